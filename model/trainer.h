/* trainer.h - LoRA training of one adapter on a frozen base, one optimiser step at a time.
 *
 * Same weights, same configuration, same batches: same bytes, on the same numeric fingerprint (promise 6). Nothing is
 * random in here and nothing survives trainer_set_adapter(), so a lease's result never depends on an earlier lease.
 * All memory is taken by trainer_new(). Use one trainer from one thread at a time; it has its own pool of `threads`.
 */
#ifndef MODEL_TRAINER_H
#define MODEL_TRAINER_H

#include <stddef.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/status.h"
#include "model/ops.h"
#include "model/pack.h"
#include "model/transformer.h"
#include "model/weights.h"

struct trainer_config {
    struct adapter_shape shape;
    float lr, beta1, beta2, eps, weight_decay;
    float clip;            /* global norm of the gradient; 0: no clipping */
    uint32_t warmup_steps; /* step t of 1.. runs at lr * min(1, t / warmup_steps) */
    uint32_t rows_max;     /* rows of one micro-batch (packed.n_rows); memory follows from it */
    uint32_t seq_max;      /* rows of the longest sample */
    uint32_t threads;      /* 1 .. OPS_THREADS_MAX */
    enum ops_kind ops;
    uint32_t checkpoint_layers; /* transformer.h */
    struct objective objective;
    uint64_t memory_max; /* refuse a larger plan (weights included); 0: no limit */
};

/* What the trainer takes, known before anything is allocated. */
struct memory_plan {
    uint64_t weights, activations, scratch, adapter; /* adapter: factors, gradient and two moments */
    uint64_t total;
};

struct step_result {
    double loss;        /* the objective, see objective.h: a mean over the whole step, before the update */
    uint64_t n_targets; /* 0: nothing was trained and the adapter is unchanged */
    double preferred;   /* DPO: the share of pairs in which the chosen answer has gained more; else 0 */
    double grad_norm;   /* before clipping */
};

struct trainer;

/* AdamW 1e-3 (0.9, 0.99), eps 1e-8, no decay, clip 1, warm-up 4, 2,048 rows, samples up to 512 rows, 1 thread, BLAS,
 * no checkpoints, causal language modelling. */
void trainer_defaults(const struct adapter_shape *shape, struct trainer_config *out);

/* ST_USAGE: a setting out of range, or a shape that does not fit the arch. */
enum status trainer_plan(const struct arch *arch, const struct trainer_config *config, struct memory_plan *out,
                         struct err *err);

/* Lowers rows_max and raises checkpoint_layers so that the plan keeps within memory_max: the fastest choice that does, the
 * same for the same numbers. It changes the fingerprint. ST_NO_MEMORY: even seq_max rows (DPO: two samples) with checkpoints take
 * more. */
enum status trainer_fit(const struct arch *arch, struct trainer_config *config, struct memory_plan *out,
                        struct err *err);

/* Borrows `weights` until trainer_free(). ST_NO_MEMORY when the plan exceeds memory_max or memory cannot be had. The
 * adapter starts as all zeros; give it one. */
enum status trainer_new(const struct weights *weights, const struct trainer_config *config, struct trainer **out,
                        struct err *err);
void trainer_free(struct trainer *trainer);

/* Copies the factors (adapter_floats() of them) and starts the optimiser afresh: moments zero, step 0. */
void trainer_set_adapter(struct trainer *trainer, const float *block);
/* The rate of the steps from here on, until trainer_set_adapter(); warm-up applies to it. */
void trainer_set_rate(struct trainer *trainer, float lr);
const float *trainer_adapter(const struct trainer *trainer);  /* valid until trainer_free(); changed by each step */
const float *trainer_gradient(const struct trainer *trainer); /* of the last step, after clipping; same layout */

/* One optimiser step over all `batches` (micro-batches; the sum is divided by the targets, or pairs, of all together).
 * sample_nll and sample_targets, each NULL or with room for the sum of n_samples, get every sample's summed loss in
 * nats and its targets, in order: the first-pass loss of a lease's segments.
 * ST_BAD_DATA: a token outside the vocabulary, a broken boundary, or what the objective needs is missing. ST_LIMIT: more rows than planned. ST_BAD_DATA too: the
 * loss or the gradient is not finite; adapter and optimiser are unchanged. */
enum status trainer_step(struct trainer *trainer, const struct packed *batches, uint32_t n_batches,
                         struct step_result *out, double *sample_nll, uint32_t *sample_targets, struct err *err);

/* Forward only: every sample's summed loss and its targets with the adapter as it is, whatever the objective. DPO's reference
 * is minus that. Errors as for trainer_step(). */
enum status trainer_score(struct trainer *trainer, const struct packed *batches, uint32_t n_batches, double *sample_nll,
                          uint32_t *sample_targets, struct err *err);

/* The numeric fingerprint: back end, library and kernel, vector level, threads, rows of a micro-batch, policy. Equal
 * text, equal bits. */
void trainer_fingerprint(const struct trainer *trainer, char *out, size_t size);

#endif
