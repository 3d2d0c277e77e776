/* transformer.h - the Llama-family model, forward and backward by hand, for one packed batch.
 *
 *     x = embed[token]
 *     per layer:  x += o(attention(rope(norm?(qkv(rmsnorm(x))))))        q/k norm for qwen3, bias for qwen2
 *                 x += down(silu(gate(n)) * up(n)),  n = rmsnorm(x)
 *     loss = cross-entropy(head(rmsnorm(x)), target)
 *
 * Gradients go to the LoRA factors and nowhere else: no weight gradient of the base, nothing below the lowest adapted
 * product. Behind the last attention only the target rows are computed. A training transformer saves per row and layer x,
 * q k v, attention's output and log-sum-exp, x again before the feed-forward, gate and up, and the projections U; norms and
 * silu are computed again. Of the first `checkpoint_layers` it saves x alone and runs each forward again before its backward:
 * the same gradients to the last bit (Chen et al. 2016, arXiv 1604.06174). A scoring one keeps a single layer. All memory is
 * one arena, laid out by transformer_new().
 */
#ifndef MODEL_TRANSFORMER_H
#define MODEL_TRANSFORMER_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/status.h"
#include "model/objective.h"
#include "model/ops.h"
#include "model/pack.h"
#include "model/weights.h"

enum { TRANSFORMER_ROWS_MAX = 1 << 20 };

struct transformer_config {
    const struct ops *ops;
    struct adapter_shape shape;
    uint32_t rows_max, seq_max, threads;
    bool train;
    uint32_t checkpoint_layers; /* when training: 0 to all; they share the memory of one, so 1 saves nothing */
    bool distil;                /* when training: transformer_teach() will be called */
};

struct transformer;

/* Bytes of saved activations and of scratch. ST_USAGE: a size out of range or a shape that does not fit the arch. */
enum status transformer_plan(const struct arch *arch, const struct transformer_config *config, uint64_t *saved,
                             uint64_t *scratch, struct err *err);

/* Borrows `weights`. */
enum status transformer_new(const struct weights *weights, const struct transformer_config *config,
                            struct transformer **out, struct err *err);
void transformer_free(struct transformer *t);

/* ST_LIMIT when the batch has more rows or a longer sample than planned; else what packed_check() says. */
enum status transformer_accepts(const struct transformer *t, const struct packed *packed, struct err *err);

/* Adds each sample's summed loss (KL: divergence) to nll (n_samples, zeroed by the caller) and its targets to n_targets (n_samples). `block` NULL: the bare base.
 * grad, unless NULL (then block must be given, and config.train), gets grad_scale * d(objective_sum)/d(block) added. The batch
 * must be one that transformer_accepts() and objective_accepts(). */
void transformer_run(struct transformer *t, const real *block, real *grad, const struct packed *packed,
                     const struct objective *objective, real grad_scale, double *nll, uint32_t *n_targets);

/* Has the teachers that have a share (pack.h; `start`: the adapter of TEACHER_START, else not read) read the batch's samples of theirs. The
 * next transformer_run() must be of the same batch, with a gradient: what they predict goes into its objective. */
void transformer_teach(struct transformer *t, const real *start, const struct packed *packed,
                       const struct objective *objective);

/* logits (n, V) at some rows of an accepted batch; n <= rows_max */
void transformer_logits(struct transformer *t, const real *block, const struct packed *packed, const uint32_t *rows,
                        uint32_t n, real *logits);

#endif
