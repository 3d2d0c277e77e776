/* home.h - a worker's own directory: who it is, what it has seen, what it keeps. Layout: worker.h.
 *
 * The small files are text, written durably as a whole. `boot` is raised by home_open() before anyone else hears of it:
 * a requeued job that starts from the same directory fences the one before. The directory's lock is held until
 * home_close(). The functions that write may be called from one thread at a time; blobs and db are thread-safe.
 */
#ifndef WORKER_HOME_H
#define WORKER_HOME_H

#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/status.h"
#include "store/blob.h"
#include "store/db.h"

/* Families of the cache database. */
enum home_family { HOME_PAYLOAD, HOME_LENGTHS, HOME_SCORES, HOME_META, HOME_FAMILIES };

struct home {
    char dir[BLOB_PATH_SIZE];
    int lock_fd;
    uint8_t instance[16];
    uint64_t boot;
    uint64_t session_counter; /* 0: none seen */
    uint8_t session_incarnation[16];
    Alv__DeltaCommit *pending; /* left by the last run, or NULL */
    struct blob_store *blobs;
    struct db *db;
};

/* Makes the directory when it is missing. ST_CONFLICT: another worker runs there. ST_CORRUPT names the file. */
enum status home_open(const char *dir, uint64_t reserve_bytes, struct home *out, struct err *err);
void home_close(struct home *home);
/* Whose line's the directory is: the first root key that it is asked about. ST_CONFLICT: another's, so nothing in it (sessions, text,
 * a delta on its way) is of this line. */
enum status home_belongs(struct home *home, const uint8_t root[32], struct err *err);

/* Opens the cache database of the worker's directory `dir` for reading only, whether or not that worker runs. ST_NOT_FOUND: it is no
 * worker's directory, or the worker has not begun. */
enum status home_look(const char *dir, struct db **out, struct err *err);

enum status home_remember(struct home *home, uint64_t counter, const uint8_t incarnation[16], struct err *err);
enum status home_keep_commit(struct home *home, const Alv__DeltaCommit *commit, struct err *err);
/* Forgets the commit and deletes its blob. */
void home_drop_commit(struct home *home, const struct digest *delta);

/* Exclusion sequence up to which erasures have been carried out on this disk. */
enum status home_erased(struct home *home, uint64_t *seq, struct err *err);
enum status home_set_erased(struct home *home, uint64_t seq, struct err *err); /* synced */

/* Drops the whole cache: payload, scores, how far erasures went. Synced. Who holds a keep over it opens it again. */
enum status home_forget(struct home *home, struct err *err);

/* Deletes blobs but the `n` named and the pending delta: at start, and when a new parent arrives. */
void home_collect(struct home *home, const struct digest *keep, size_t n);

#endif
