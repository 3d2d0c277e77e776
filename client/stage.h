/* stage.h - the directory a subscriber keeps: versions put in place whole, and the link to the current one.
 *
 * Layout: subscribe.h. Everything is written beside, synced, and renamed into place; what was interrupted is resumed or
 * made again. Not thread-safe; the lock in .alluvium keeps other processes out.
 */
#ifndef CLIENT_STAGE_H
#define CLIENT_STAGE_H

#include "net/bulk.h"
#include "proto/manifest.h"

enum { STAGE_PATH_SIZE = 4300 };

struct stage;

/* Makes the directory when missing, takes its lock. ST_CONFLICT: another process has it. */
enum status stage_open(const char *dir, const struct name *line, struct stage **out, struct err *err);
void stage_close(struct stage **stage);

/* The subscriber's state; empty when there is none yet. */
enum status stage_load_state(struct stage *stage, size_t bytes_max, struct buf *out, struct err *err);
enum status stage_save_state(struct stage *stage, struct bytes state, struct err *err);

/* Who this directory's subscriber is: the same on this host at every start, and a number that each start makes
 * larger, by the clock where that helps: a directory that was set back is not older than itself. A copy of the directory on another
 * host is somebody else. */
enum status stage_identity(struct stage *stage, uint8_t instance[16], uint64_t *boot, struct err *err);

struct stage_files {
    const struct manifest *manifest;
    struct bytes manifest_bytes, signature;
    const char *base_name;
    unsigned forms; /* enum subscribe_forms */
};
/* Puts a version's directory in place, fetching its files over `bulk` (both digests checked). What is there already is
 * checked again. ST_CORRUPT: it is there, but changed (the text says what to do). */
enum status stage_put(struct stage *stage, const struct stage_files *files, struct conn *bulk,
                      const struct bulk_options *options, struct err *err);

/* `current` points to this version from now on; durable. */
enum status stage_swap(struct stage *stage, uint64_t number, struct err *err);

/* Removes directories of versions beyond the newest `keep` besides `current`. What cannot be removed stays. */
void stage_prune(struct stage *stage, uint64_t current, uint32_t keep);

/* Absolute path of a version's directory. */
void stage_path(const struct stage *stage, uint64_t number, char out[STAGE_PATH_SIZE]);

#endif
