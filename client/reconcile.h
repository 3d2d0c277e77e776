/* reconcile.h - what a model server is told next: a pure function of what it should serve and what it says it serves.
 *
 * In vLLM's words: a server lists models; one without a parent is a base, the others are adapters loaded under a name from
 * a path. Each version gets a name of its own, `LINE-vN`, and is loaded beside the one before; that one is unloaded when
 * requests that were on their way to it have had time to end. Only names of our line that were loaded from our directory
 * are ever unloaded: another subscriber's adapters on the same server are not ours to touch.
 *
 * Applied again and again to a fresh list this heals everything: a restarted server (nothing listed), a call whose answer
 * was lost (the list tells), two versions left over.
 */
#ifndef CLIENT_RECONCILE_H
#define CLIENT_RECONCILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/status.h"

struct served_model {
    const char *id, *root, *parent; /* NULL: the server does not say */
};

struct reconcile_wanted {
    const char *line;
    const char *dir; /* absolute, as the server sees it: version N is in dir/LINE-vN */
    uint64_t version;
    bool drained; /* it has been listed long enough for older ones to go */
};

enum { RECONCILE_NAME_SIZE = NAME_MAX_LEN + 32, RECONCILE_PATH_SIZE = 4096 + RECONCILE_NAME_SIZE };

enum reconcile_kind {
    RECONCILE_NOTHING,  /* as it should be */
    RECONCILE_DRAIN,    /* as it should be, but for older versions that must wait */
    RECONCILE_LOAD,     /* `name` from `path` */
    RECONCILE_UNLOAD,   /* `name` */
    RECONCILE_CONFLICT, /* `name` is there, but from elsewhere (`path`): a person must look */
};

struct reconcile_action {
    enum reconcile_kind kind;
    char name[RECONCILE_NAME_SIZE], path[RECONCILE_PATH_SIZE];
};

void reconcile_next(const struct reconcile_wanted *wanted, const struct served_model *models, size_t n,
                    struct reconcile_action *out);

#endif
