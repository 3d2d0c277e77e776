/* evaluate.h - adapters scored side by side on the same windows, and what was scored before remembered.
 *
 * A window is the first window_tokens tokens of a probe segment, and is scored alone: its loss then depends on the
 * adapter, the window and the numeric fingerprint, not on its neighbours. So a loss kept from an earlier evaluation is
 * the very number that scoring again would give (promise 6), and a reference costs nothing the second time. The
 * price is smaller products; measured against it, the reference is half of an evaluation's work.
 *
 * Cache: key  adapter digest (32) | domain u16 BE | offset u64 BE | window_tokens u32 BE | BLAKE2b of the fingerprint (16)
 *        value  f64 LE summed nats | u32 LE targets. Not synced; may be lost. Job thread only.
 */
#ifndef WORKER_EVALUATE_H
#define WORKER_EVALUATE_H

#include <stdatomic.h>
#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/limits.h"
#include "store/db.h"
#include "worker/engine.h"
#include "worker/fetch.h"
#include "worker/train.h"

struct eval_work { /* zeroed is empty */
    struct eval_window {
        struct domain_id domain;
        uint64_t offset;
        size_t begin; /* in ids and mask */
        uint32_t n_tokens, n_targets;
    } * windows;
    uint32_t n_windows;
    struct token_buf ids;
    struct buf mask;
    float **blocks; /* (n_adapters) factors */
    uint32_t n_adapters;
};
void eval_work_release(struct eval_work *work);

/* The windows' tokens; the caller adds the blocks. */
enum status eval_ready(const struct engine *engine, const Alv__Evaluate *task, segments_fn *segments, void *user,
                       struct eval_work *work, struct err *err);

struct eval_result {
    struct buf nll;    /* f64 LE, [adapter][window]; owned */
    struct buf tokens; /* u32 LE, [window]; owned */
    uint64_t scored, remembered;
    char fingerprint[LIMIT_TEXT_BYTES];
};
void eval_result_release(struct eval_result *result);

/* `db` (family `family`) is the cache. ST_STOPPED when `cancel` became true. */
enum status eval_run(struct engine *engine, const Alv__Evaluate *task, const struct eval_work *work, struct db *db,
                     uint8_t family, const atomic_bool *cancel, train_progress *progress, void *user,
                     struct eval_result *out, struct err *err);

#endif
