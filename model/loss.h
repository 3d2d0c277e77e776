/* loss.h - last norm, head and cross-entropy in one, over target rows only, in pieces.
 *
 * The logits of all rows at once would be rows * V numbers. Here a piece of rows is multiplied with the head, its loss
 * taken, the gradient written over the logits and multiplied back, before the next piece (Liger's fused linear
 * cross-entropy). Rows that are no targets cost nothing.
 */
#ifndef MODEL_LOSS_H
#define MODEL_LOSS_H

#include "model/arena.h"
#include "model/objective.h"
#include "model/ops.h"
#include "model/pack.h"
#include "model/weights.h"

struct loss {
    const struct ops *ops;
    struct pool *pool;
    uint32_t piece_rows;
    void *normed;             /* (piece, C) activations, see ops.h */
    real *logits;             /* (piece, V) */
    uint32_t *rows, *targets; /* (piece) */
    double *nll;              /* (piece) */
    const real **teacher;     /* (piece) */
    real *share;              /* (piece) of the teacher, with distillation, like what follows */
    real *taught_logits;      /* (LOSS_TAUGHT_ROWS, V) */
    double *taught_nll;       /* (LOSS_TAUGHT_ROWS) */
};
enum { LOSS_TAUGHT_ROWS = 64 };

/* Takes scratch for batches of up to `rows_max` rows. */
void loss_layout(struct loss *loss, const struct arch *arch, uint32_t rows_max, bool distil, struct arena *arena);

/* x (N, C) is the residual stream after the last layer at the N = packed->n_targets target rows, in order. Adds each
 * sample's loss (for KL: its divergence) to nll (n_samples) and its targets to n_targets (n_samples), which the caller has
 * zeroed. dx (N, C), unless NULL, becomes grad_scale * d(objective_sum)/dx. `taught`: x of the teachers at the target rows of the
 * distilled samples, one after the other; read when the objective distils and dx is wanted. */
void loss_run(const struct loss *loss, const struct weights *w, real *dx, const real *x, const real *taught,
              const struct packed *packed, const struct objective *objective, real grad_scale, double *nll,
              uint32_t *n_targets);

/* logits (n, V) of the rows of x (n, C) */
void loss_logits(const struct loss *loss, const struct weights *w, real *logits, const real *x, uint32_t n);

#endif
