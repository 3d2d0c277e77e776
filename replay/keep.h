/* keep.h - the text of replayed segments on a worker: a cache under a byte budget, over the worker's own database.
 *
 * Membership is decided by sample.h, never here: all of it may be lost at any moment, and is fetched again from the
 * coordinator's log. So puts are not synced, and a damaged value is dropped and reported as missing.
 * What goes first when the budget is used up is said by the owner's `rank` function. One thread.
 */
#ifndef REPLAY_KEEP_H
#define REPLAY_KEEP_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"
#include "replay/mix.h"
#include "store/db.h"

enum { KEEP_SEGMENT_MAX = 2 << 20, KEEP_DECILES = 10 };

struct keep;

enum keep_rank { KEEP_LOOSE, KEEP_MEMBER, KEEP_PINNED }; /* evicted first, evicted then, never evicted */
typedef enum keep_rank (*keep_rank_fn)(void *user, struct domain_id domain, uint64_t offset);

struct keep_options {
    uint8_t family_payload, family_meta; /* of `db`: segment bytes, and their lengths alone */
    uint64_t budget_bytes;               /* of payload */
    keep_rank_fn rank;                   /* sample member, pinned by the current lease, or neither; must not be NULL */
    void *user;
};

/* Reads the lengths to know what is there. `db` is borrowed and must outlive the keep. */
enum status keep_open(struct db *db, const struct keep_options *options, struct keep **out, struct err *err);
void keep_close(struct keep **keep);

/* Stores distinct segments (bodies[i] belongs to segments[i]), evicting down to nine tenths of the budget when it is passed.
 * ST_LIMIT: they do not fit beside what is pinned, or one is over KEEP_SEGMENT_MAX; nothing is stored. Not durable. */
enum status keep_put(struct keep *keep, size_t n, const struct mix_segment *segments, const struct bytes *bodies,
                     struct err *err);

/* Reads many: out[i] points into `values` (cleared and filled), data NULL when missing. Damaged ones are dropped, counted
 * and missing. */
enum status keep_get(struct keep *keep, size_t n, const struct mix_segment *segments, struct buf *values,
                     struct bytes *out, struct err *err);

/* A tombstone: deletes [first, first + count) of a domain and rewrites the files, so that the bytes are gone from disk
 * when this returns. */
enum status keep_erase(struct keep *keep, struct domain_id domain, uint64_t first, uint64_t count, struct err *err);

/* Reads and verifies everything; damaged values are dropped. */
enum status keep_scrub(struct keep *keep, uint64_t *verified, uint64_t *dropped, struct err *err);

struct keep_stats {
    uint64_t segments, bytes;
    uint64_t first, last; /* offsets of the oldest and newest held; 0 when there are none */
    uint64_t
        by_age[KEEP_DECILES]; /* segments per tenth of [0, watermark), oldest first: level when the sample is fair */
};

uint64_t keep_bytes(const struct keep *keep);   /* payload held, all domains */
uint64_t keep_damaged(const struct keep *keep); /* values dropped since open because they did not verify */
enum status keep_stats(struct keep *keep, struct domain_id domain, uint64_t watermark, struct keep_stats *out,
                       struct err *err);
/* The lowest domain, from `from` on, of which something is held. ST_NOT_FOUND: none. */
enum status keep_next_domain(struct keep *keep, struct domain_id from, struct domain_id *out, struct err *err);

#endif
