/* train.h - a lease made ready (segments, tokens, order) and trained into an encoded delta.
 *
 * train_ready() and train_run() are all of what makes a delta's bytes; given the text, they depend on the lease, the
 * exclusions and the numeric fingerprint alone (promise 6). Job thread only.
 */
#ifndef WORKER_TRAIN_H
#define WORKER_TRAIN_H

#include <stdatomic.h>
#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/limits.h"
#include "worker/core.h"
#include "worker/engine.h"
#include "worker/fetch.h"
#include "worker/plan.h"

struct lease_work { /* zeroed is empty */
    struct plan plan;
    struct plan_order order;
    struct plan_text *texts[MIX_POOLS];
    uint32_t n_texts[MIX_POOLS];
    struct token_buf ids[MIX_POOLS];            /* laid end to end */
    struct buf mask[MIX_POOLS];                 /* one byte a token */
    float *parent;                              /* factors */
    struct worker_tokens tokens[LIMIT_DOMAINS]; /* of the fresh segments, rising by domain */
    uint32_t n_tokens;
    uint64_t from_cache, from_log; /* segments */
};
void lease_work_release(struct lease_work *work);

/* Where the text of segments comes from: fetch_segments() or a test's own. Adds what is wanted to the set. */
typedef enum status segments_fn(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                                struct err *err);

/* Fills all of `work` but `parent`. ST_STOPPED when `cancel` became true. */
enum status train_ready(const struct engine *engine, struct view *view, const Alv__Lease *lease, segments_fn *segments,
                        void *user, const atomic_bool *cancel, struct lease_work *work, struct err *err);

typedef void train_progress(void *user, uint32_t done, uint32_t total, uint32_t tokens_per_s);

struct train_result {
    struct buf delta;        /* encoded; owned */
    struct buf first_losses; /* f32 LE; owned */
    uint64_t target_tokens;
    uint32_t steps, train_ms;
    double loss; /* of the last step, for people */
    char fingerprint[LIMIT_TEXT_BYTES];
};
void train_result_release(struct train_result *result);

/* ST_STOPPED when `cancel` became true, looked at between steps. ST_INTERNAL / ST_BAD_DATA: training diverged. */
enum status train_run(struct engine *engine, const Alv__Lease *lease, const struct lease_work *work,
                      const atomic_bool *cancel, train_progress *progress, void *user, struct train_result *out,
                      struct err *err);

#endif
