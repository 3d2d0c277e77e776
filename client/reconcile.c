#include "client/reconcile.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Is this one of our line's names, loaded from our directory? */
static bool is_ours(const struct reconcile_wanted *w, const struct served_model *m)
{
    char want[RECONCILE_PATH_SIZE];
    size_t n = strlen(w->line);
    if (!m->id || !m->root || strncmp(m->id, w->line, n) || strncmp(m->id + n, "-v", 2))
        return false;
    const char *digits = m->id + n + 2;
    if (!*digits || digits[strspn(digits, "0123456789")])
        return false;
    return snprintf(want, sizeof want, "%s/%s", w->dir, m->id) < (int)sizeof want && !strcmp(want, m->root);
}

void reconcile_next(const struct reconcile_wanted *w, const struct served_model *models, size_t n,
                    struct reconcile_action *out)
{
    const struct served_model *there = NULL, *older = NULL;
    *out = (struct reconcile_action){RECONCILE_NOTHING, "", ""};
    snprintf(out->name, sizeof out->name, "%s-v%" PRIu64, w->line, w->version);
    snprintf(out->path, sizeof out->path, "%s/%s", w->dir, out->name);
    for (size_t i = 0; i < n; i++)
        if (models[i].id && !strcmp(models[i].id, out->name))
            there = &models[i];
        else if (is_ours(w, &models[i]))
            older = &models[i];
    if (!there) {
        out->kind = RECONCILE_LOAD;
    } else if (there->root && strcmp(there->root, out->path)) {
        out->kind = RECONCILE_CONFLICT;
        snprintf(out->path, sizeof out->path, "%s", there->root);
    } else if (older) {
        out->kind = w->drained ? RECONCILE_UNLOAD : RECONCILE_DRAIN;
        snprintf(out->name, sizeof out->name, "%s", older->id);
    }
}
