/* aggregate.h - many deltas into one candidate, on a thread of its own.
 *
 * Carries out EFFECT_AGGREGATE: every delta is read and checked, the good ones are combined (adapter/combine.h) over the
 * parent's training state, and the candidate is stored as two blobs, PEFT and GGUF, and a third where its training state is something
 * else, before the result is handed back. Memory:
 * two blocks and the files made of one, whatever the number of deltas. Jobs are done in the order given.
 *
 * The candidate's blobs are pinned until the result is released: nobody else knows of them yet.
 */
#ifndef COORDINATOR_AGGREGATE_H
#define COORDINATOR_AGGREGATE_H

#include "adapter/adapter.h"
#include "adapter/card.h"
#include "base/status.h"
#include "coordinator/core/core.h"
#include "coordinator/core/settings.h"
#include "store/blob.h"

struct aggregator;

struct aggregator_config { /* the blobs outlive the aggregator, the rest is copied */
    struct blob_store *blobs;
    struct card card;
    struct adapter_shape shape;
    struct settings settings;
    uint64_t seed; /* of the error estimate */
    int notify_fd; /* eventfd, written when a result is ready */
};

enum status aggregator_start(const struct aggregator_config *config, struct aggregator **out, struct err *err);
/* Waits for the job at hand (seconds), forgets the others: the core asks again after a restart. */
void aggregator_stop(struct aggregator **aggregator);

/* Copies the effect. */
void aggregator_submit(struct aggregator *aggregator, const struct effect *effect);
/* The next result, or NULL. Give it back with aggregator_done(). */
struct aggregated *aggregator_take(struct aggregator *aggregator);
void aggregator_done(struct aggregator *aggregator, struct aggregated *result);

/* Writes a block as both published files, durable, and pins neither; out->state stays. For version 0 and for candidates. */
enum status aggregate_store(struct blob_store *blobs, const struct card *card, const struct adapter_shape *shape,
                            const float *block, struct version_files *out, struct err *err);

#endif
