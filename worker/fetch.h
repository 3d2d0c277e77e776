/* fetch.h - what a task needs, brought here: adapters by digest, segments from the worker's cache or the log.
 *
 * What a task consists of is fixed by plan.h; here it is only fetched. A segment that the log no longer has is an error that
 * names it: nothing is left out, since the list must not depend on who computes it. Job thread only.
 */
#ifndef WORKER_FETCH_H
#define WORKER_FETCH_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "alluvium.pb-c.h"
#include "base/status.h"
#include "net/bulk.h"
#include "replay/keep.h"
#include "replay/mix.h"
#include "store/blob.h"

struct fetch { /* all borrowed */
    struct conn *bulk;
    struct blob_store *blobs;
    struct keep *keep;
};

/* The factors of a version or candidate: from the blob store, else fetched and kept there. Verified by its digest, then
 * read strictly. block (adapter_floats) */
enum status fetch_adapter(struct fetch *fetch, const Alv__BlobRef *ref, const struct adapter_shape *shape, float *block,
                          struct err *err);

/* Segments by place, each once. Zeroed is empty. */
struct segment_set {
    bool probe; /* of the probe sequences: never cached on disk */
    struct placed_segment {
        struct mix_segment at;
        Alv__Segment *segment; /* owned */
    } * items;                 /* rising by (domain, offset) */
    uint32_t n;
    uint64_t from_cache, from_log; /* counts */
};
void segment_set_release(struct segment_set *set);
const Alv__Segment *segment_set_find(const struct segment_set *set, struct mix_segment at); /* NULL: not there */

/* Adds those that are wanted and not there yet (repetitions are fine). ST_NOT_FOUND: the log no longer has one. On error the set
 * keeps what it has; what came is in the cache. */
enum status fetch_segments(struct fetch *fetch, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                           struct err *err);

#endif
