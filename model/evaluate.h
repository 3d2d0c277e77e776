/* evaluate.h - how well an adapter predicts: forward only, nothing saved, per-sample losses.
 *
 * Same arithmetic as the trainer's forward. One evaluator scores many adapters one after the other (candidate and
 * reference side by side); all memory is taken by evaluator_new(). One thread at a time.
 */
#ifndef MODEL_EVALUATE_H
#define MODEL_EVALUATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/status.h"
#include "model/ops.h"
#include "model/pack.h"
#include "model/weights.h"

struct evaluator_config {
    struct adapter_shape shape;
    uint32_t rows_max; /* rows of one product; at least seq_max */
    uint32_t seq_max;  /* rows of the longest sample */
    uint32_t threads;  /* 1 .. OPS_THREADS_MAX */
    enum ops_kind ops;
    uint64_t memory_max; /* refuse a larger plan (weights included); 0: no limit */
};

struct evaluator;

/* 1,024 rows, samples up to 512 rows, 1 thread, BLAS. */
void evaluator_defaults(const struct adapter_shape *shape, struct evaluator_config *out);

/* Bytes it will take, the weights included. */
enum status evaluator_plan(const struct arch *arch, const struct evaluator_config *config, uint64_t *bytes,
                           struct err *err);

/* Borrows `weights` until evaluator_free(). Starts with the bare base. */
enum status evaluator_new(const struct weights *weights, const struct evaluator_config *config, struct evaluator **out,
                          struct err *err);
void evaluator_free(struct evaluator *evaluator);

/* Copies the factors; NULL: the bare base. */
void evaluator_set_adapter(struct evaluator *evaluator, const float *block);

/* Summed loss in nats and number of targets of each sample. Samples are packed in order as they fit, so the bits depend
 * on the list as a whole. nll and targets have room for n; written only on ST_OK.
 * ST_LIMIT: a sample of more than seq_max + 1 tokens. ST_BAD_DATA: a token outside the vocabulary, or a loss
 * that is not finite. */
enum status evaluator_score(struct evaluator *evaluator, const struct sample *samples, uint32_t n, double *nll,
                            uint32_t *targets, struct err *err);

/* Would greedy decoding say it? True when every target is the likeliest token after the ones before it (the smallest id of
 * several): exact-answer accuracy without generating. False for a sample without targets. Errors as evaluator_score(). */
enum status evaluator_exact(struct evaluator *evaluator, const struct sample *sample, bool *exact, struct err *err);

/* As trainer_fingerprint(). */
void evaluator_fingerprint(const struct evaluator *evaluator, char *out, size_t size);

#endif
