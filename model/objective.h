/* objective.h - what a step makes smaller.
 *
 *   LM   the mean loss in nats per target. Chat fine-tuning is this with a mask from roles (template.h).
 *        With `distil` the targets of marked samples are that share their teacher's predictions (pack.h), the rest the text: such a
 *        row pulls back to what the teacher said, and at nothing where it still says so. Learning without forgetting, Li and Hoiem
 *        2016, arXiv 1606.09282, with replayed text in the place of new. Losses that are reported stay those of the text.
 *        With weights (pack.h) it is the weighted mean: what is replayed may count for more than its rows.
 *   DPO  samples come in pairs, the chosen answer and the rejected one: the mean over pairs of -log sigmoid(beta z), z how
 *        much more the chosen answer's log-probability has risen over the reference's than the rejected one's. The
 *        reference's log-probabilities are given. Rafailov et al. 2023, arXiv 2305.18290.
 *   KL   the mean over targets of KL(teacher || model), the teacher's logits given. Hinton et al. 2015, arXiv 1503.02531,
 *        without its temperature.
 *
 * Each is a sum over rows of a known gradient with respect to the logits, times a number per sample, so one way back through
 * the model serves them all.
 */
#ifndef MODEL_OBJECTIVE_H
#define MODEL_OBJECTIVE_H

#include "base/status.h"
#include "model/pack.h"

enum objective_kind { OBJECTIVE_LM, OBJECTIVE_DPO, OBJECTIVE_KL, OBJECTIVES };

struct objective {
    enum objective_kind kind;
    double beta;             /* DPO: how far from the reference; 0.1 is usual */
    double distil[TEACHERS]; /* LM: each teacher's share, 0 .. 1; TEACHER_NONE has none */
};

static inline bool objective_distils(const struct objective *o)
{
    return o->distil[TEACHER_BASE] > 0 || o->distil[TEACHER_START] > 0;
}

const char *objective_name(enum objective_kind kind); /* "lm", "dpo", "kl" */

/* ST_BAD_DATA unless the batch brings what the objective needs: whole pairs with finite references and targets on both
 * sides, or a teacher's logits at every target row. */
enum status objective_accepts(const struct objective *o, const struct packed *packed, struct err *err);

/* What the objective's sum over a batch is divided by: targets, each with its sample's weight, or pairs. */
double objective_count(const struct objective *o, const struct packed *packed);

/* Sum of the objective over a batch, from each sample's nll (for KL: its divergence). */
double objective_sum(const struct objective *o, const struct packed *packed, const double *nll);

/* d(sum)/d(nll of a sample) */
double objective_weight(const struct objective *o, const struct packed *packed, const double *nll, uint32_t sample);

/* Pairs in which the chosen answer has gained more than the rejected one. */
uint64_t objective_preferred(const struct packed *packed, const double *nll);

#endif
