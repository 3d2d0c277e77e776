/* db.h - one RocksDB directory behind the few verbs alluvium needs.
 *
 * The only file that speaks RocksDB is db.c. A "family" is an index into the names given at open; coordinator and
 * worker each name their own. A commit is one write batch: all of it or nothing, over all families.
 *
 * Durability: db_commit(sync = true) returns after fdatasync of the log; sync = false survives a killed process but
 * not a lost machine. Damage in the middle of the log is refused at open (recovery mode 0); a torn last record is
 * dropped, which for acknowledged records store/witness.h detects.
 *
 * After a failed commit the handle is dead: later commits are refused with ST_IO, reads still work. Close and open
 * again: nothing acknowledged is lost. (RocksDB 7.8.3 does not recover an open handle from a failed log write.)
 *
 * Threads: every function may be called from any thread, except that one iterator belongs to one thread, and that
 * nobody may use the handle during or after db_close(). Close all iterators first.
 */
#ifndef STORE_DB_H
#define STORE_DB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "store/batch.h"

enum { DB_FAMILIES_MAX = 32, DB_KEY_MAX = 1 << 12, DB_VALUE_MAX = 64 << 20 };

struct db;
struct db_iter;

/* What a family is like. It may change from one opening to the next: both kinds are read whatever it is. */
enum db_shape {
    DB_PLAIN,  /* leveled compaction */
    DB_LOG,    /* large values written once: kept in files of their own, so that compaction (tiered) moves only keys and
                * places (Lu et al. 2016, WiscKey: separating keys from values in SSD-conscious storage) */
    DB_HASHED, /* small values under hashes, mostly asked for what is not there: unsorted until they are flushed, tiered
                * compaction, no compression. Its newest entries are held once more, for finding (recent.h); a walk over
                * it sorts what is not flushed yet */
};

struct db_options {
    const char *const *families; /* borrowed during db_open only; an index here is a batch's `family` */
    const enum db_shape *shapes; /* of each family, borrowed likewise; NULL: all plain */
    uint32_t n_families;
    uint64_t write_buffer_bytes; /* per family; 0: 8 MiB. The log may grow to 2 x this before a flush is forced */
    uint64_t cache_bytes;        /* block cache, all families together; 0: 32 MiB */
    uint64_t reserve_bytes;      /* commits are refused while the file system has less free; 0: 256 MiB */
    bool create;                 /* else a missing directory is ST_NOT_FOUND */
    bool read_only;              /* nothing is written, and another process may have it open: what it had committed by
                                  * now is seen. If that one removes a file meanwhile, reading fails: open again */
};

/* Opens (and recovers) the directory. ST_CONFLICT: another process, or this one, holds it open. ST_NOT_FOUND: no
 * database there and `create` is false. ST_CORRUPT: the log or a file is damaged (named in the text). ST_NO_SPACE: too
 * little room to recover. Families in the directory that are not named are ST_CONFIG; missing ones are made. */
enum status db_open(const char *path, const struct db_options *options, struct db **out, struct err *err);
void db_close(struct db **db);

/* Applies the batch atomically. ST_NO_SPACE: below the reserve, nothing was written and the handle stays usable; a batch
 * with a delete in it may use half of the reserve, since deleting is the way out.
 * Anything else but ST_OK: the handle is dead (see above), and whether the batch is there shows only after re-opening.
 * An empty batch with `sync` makes earlier unsynced commits durable. */
enum status db_commit(struct db *db, const struct batch *batch, bool sync, struct err *err); /* not when read_only */
/* Several at once, in this order, as one. */
enum status db_commit_all(struct db *db, const struct batch *batches, size_t n, bool sync, struct err *err);

/* Appends the value to `out`. ST_NOT_FOUND when absent, ST_CORRUPT when its block does not verify. */
enum status db_get(struct db *db, uint8_t family, const void *key, size_t key_len, struct buf *out, struct err *err);
bool db_has(struct db *db, uint8_t family, const void *key, size_t key_len, enum status *status, struct err *err);

/* Reads n keys at once. `values` is cleared and filled; out[i] then points into it, data NULL when absent (an empty
 * value has data, len 0). `each` (may be NULL) receives ST_OK, ST_NOT_FOUND or the error of each key, and then the call
 * is ST_OK; without it the first error is returned. */
enum status db_multi_get(struct db *db, uint8_t family, size_t n, const struct bytes *keys, struct buf *values,
                         struct bytes *out, enum status *each, struct err *err);

/* Walks [from, to) in key order, or from the last key downwards. {NULL, 0} means no bound. A consistent snapshot of the
 * moment it was opened. db_iter_next: ST_OK with key and value borrowed until the next call; ST_EMPTY at the end;
 * ST_CORRUPT (family and last good key named) when a block does not verify. */
struct db_iter *db_iter_open(struct db *db, uint8_t family, struct bytes from, struct bytes to, bool backwards);
enum status db_iter_next(struct db_iter *iter, struct bytes *key, struct bytes *value, struct err *err);
void db_iter_close(struct db_iter **iter);

/* A consistent copy in the new directory `dir` (hard links where it can), for backup. `dir` must not exist. */
enum status db_checkpoint(struct db *db, const char *dir, struct err *err);

/* Rewrites [from, to) so that what was deleted is gone from the files, the log included. Slow; blocks; commits and reads go
 * on meanwhile. ST_STOPPED: db_purge_stop() was called. */
enum status db_purge(struct db *db, uint8_t family, struct bytes from, struct bytes to, struct err *err);
/* Breaks off a purge that runs, and allows none any more. From any thread, before db_close(). */
void db_purge_stop(struct db *db);

/* Reads every block of a family with checksums verified and without filling the cache. `each` (may be NULL) sees every
 * pair and may return a status that stops the walk. ST_CORRUPT names the place. */
typedef enum status (*db_each_fn)(void *user, struct bytes key, struct bytes value, struct err *err);
enum status db_scrub(struct db *db, uint8_t family, db_each_fn each, void *user, uint64_t *keys, uint64_t *bytes,
                     struct err *err);

/* A RocksDB integer property by its suffix ("estimate-num-keys", "total-sst-files-size"); false when unknown. */
bool db_property(struct db *db, uint8_t family, const char *suffix, uint64_t *out);
uint64_t db_free_bytes(struct db *db); /* of its file system, now */

#endif
