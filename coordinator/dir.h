/* dir.h - the directory of a line: what is in it (coordinator.h lists it), how it is made, locked and read.
 *
 * Making it is not atomic, repeating it is: the first file written is `init-unfinished`, the last act removes it. A
 * directory that has it is emptied and made afresh by the next init, and refused by everything else.
 */
#ifndef COORDINATOR_DIR_H
#define COORDINATOR_DIR_H

#include <stdint.h>

#include "adapter/adapter.h"
#include "adapter/card.h"
#include "base/hash.h"
#include "base/ids.h"
#include "coordinator/coordinator.h"
#include "coordinator/core/core.h"
#include "coordinator/core/settings.h"
#include "net/keys.h"
#include "proto/manifest.h"

enum { DIR_PATH_SIZE = 4096 };

struct line_dir { /* a locked and read directory; holds secrets: line_dir_close() wipes them */
    char path[DIR_PATH_SIZE];
    int lock_fd;
    struct name line;
    char address[LIMIT_HOST_BYTES + 1]; /* where peers find it; for join files */
    uint16_t port;                      /* base port, likewise */
    struct card card;
    struct adapter_shape shape;
    struct settings settings;
    struct sip_key seed;
    struct sign_public root, release;
    struct sign_secret release_secret;
    uint8_t cert[CERT_LEN];
    struct curve_pair server;
};

/* Makes directory, keys, card, settings and the operator's join file, and leaves it locked and marked unfinished.
 * Statuses of coordinator_init(). */
enum status line_dir_create(const struct coordinator_init_options *options, struct line_dir *out, struct err *err);
/* Everything else is in place: takes the mark away, durably. */
enum status line_dir_finish(struct line_dir *dir, struct err *err);

/* Locks and reads. ST_CONFLICT: another process has it (its pid is in the text). ST_CONFIG: unfinished, or a file is
 * missing or wrong. */
enum status line_dir_open(const char *path, struct line_dir *out, struct err *err);
void line_dir_close(struct line_dir *dir); /* zeroed is fine */

/* Of a directory that may be in use: reads line.json (path, name, address, port, the shape's numbers), locks nothing and holds
 * no secret. ST_NOT_FOUND: no line. */
enum status line_dir_identity(const char *path, struct line_dir *out, struct err *err);
/* Where peers find it. */
enum status line_dir_where(const char *path, char address[LIMIT_HOST_BYTES + 1], uint16_t *port, struct err *err);

/* "PATH/name"; ST_LIMIT when too long. */
enum status line_dir_path(const struct line_dir *dir, const char *name, char out[DIR_PATH_SIZE], struct err *err);

/* One file of the directory. Writing is durable and replaces it whole; reading takes exactly `len` bytes (else ST_CONFIG), of a
 * secret only when nobody else can read it. */
enum status line_dir_write(const struct line_dir *dir, const char *name, const void *data, size_t len, unsigned mode,
                           struct err *err);
enum status line_dir_write_secret(const struct line_dir *dir, const char *name, const void *data, size_t len,
                                  struct err *err);
enum status line_dir_read(const struct line_dir *dir, const char *name, bool secret, void *out, size_t len,
                          struct err *err);

void line_dir_core_config(const struct line_dir *dir, struct core_config *out); /* holds the secrets too: wipe it */

#endif
