/* continual.h - how continual learning is measured: pure functions of a matrix of losses. docs/metrics.md has the formulas
 * and papers.
 *
 * R[v][d] is the loss of row v on domain d's probe in nats per token: lower is better. Rows are the versions of one lineage,
 * oldest first, and row 0 is the base; the last row is the one that is judged. Only differences within one column are
 * used, so each column may be given relative to any constant of its own. NaN: not measured, here and in every result.
 * The papers count accuracy, where higher is better: the signs here are turned so that forgetting > 0, backward
 * transfer < 0 and forward transfer < 0 are bad, as there.
 */
#ifndef COORDINATOR_CORE_CONTINUAL_H
#define COORDINATOR_CORE_CONTINUAL_H

#include <stdbool.h>
#include <stdint.h>

struct loss_matrix {
    const double *loss; /* (n_rows, n_domains) */
    const bool *fresh;  /* (n_rows, n_domains): did row v learn fresh text of d? Row 0 did not */
    uint32_t n_rows, n_domains;
};

/* R[0][d] - R[T][d]: what was gained over the base, and still is. */
double continual_learnt(const struct loss_matrix *m, uint32_t domain);

/* R[T][d] - min over v < T of R[v][d]: how far the domain is from the best it ever was; < 0 when it is better than ever.
 * Chaudhry et al. 2018, Riemannian Walk, section 3.1. */
double continual_forgetting(const struct loss_matrix *m, uint32_t domain);

/* R[l][d] - R[T][d], l < T the last row that learnt d afresh: what later learning did to it. Lopez-Paz and Ranzato 2017,
 * Gradient Episodic Memory, section 2. Not measured when d has not been learnt, or only now. */
double continual_backward(const struct loss_matrix *m, uint32_t domain);

/* R[0][d] - R[f - 1][d], f the first row that learnt d: what learning other domains had done for it before. The same paper,
 * with the base in the place of a random start. */
double continual_forward(const struct loss_matrix *m, uint32_t domain);

/* R[l][d] - joint, l <= T the last row that learnt d afresh: how far learning fell short of training on everything at once.
 * Chaudhry et al. 2018, section 3.2. `joint`: that model's loss, in the column's terms. */
double continual_intransigence(const struct loss_matrix *m, uint32_t domain, double joint);

/* Mean KL(base || version) in nats per token, over n contexts that were sampled from the base itself: sums over a
 * context's tokens, and their number. How far the model moved where nobody asked it to. */
double continual_general_delta(const double *kl, const uint32_t *tokens, uint32_t n);

/* Mean loss change in nats per token on text that is never trained on: summed losses of version and base over each piece. */
double continual_sentinel(const double *now, const double *base, const uint32_t *tokens, uint32_t n);

/* Mean of what was measured; NaN when nothing was. */
double continual_mean(const double *values, uint32_t n);

#endif
