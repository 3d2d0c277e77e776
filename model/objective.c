#include "model/objective.h"

#include <math.h>

#include "base/check.h"

const char *objective_name(enum objective_kind kind)
{
    static const char *const names[OBJECTIVES] = {"lm", "dpo", "kl"};
    CHECK(kind < OBJECTIVES);
    return names[kind];
}

static uint32_t targets_of(const struct packed *p, uint32_t sample)
{
    uint32_t n = 0;
    for (uint32_t m = p->cu_seqlens[sample]; m < p->cu_seqlens[sample + 1]; m++)
        n += p->mask[m] != 0;
    return n;
}

static enum status accepts_pairs(const struct packed *p, struct err *err)
{
    if (!p->reference || p->n_samples % 2)
        return err_set(err, ST_BAD_DATA,
                       "dpo: %u samples %s the reference's log-probabilities; it takes pairs with them", p->n_samples,
                       p->reference ? "with" : "without");
    for (uint32_t s = 0; s < p->n_samples; s++) {
        uint32_t targets = targets_of(p, s);
        if (!targets || !isfinite(p->reference[s]))
            return err_set(err, ST_BAD_DATA, "dpo: sample %u has %u targets and the reference's log-probability %g", s,
                           targets, p->reference[s]);
    }
    return ST_OK;
}

enum status objective_accepts(const struct objective *o, const struct packed *packed, struct err *err)
{
    if (o->kind == OBJECTIVE_DPO)
        return accepts_pairs(packed, err);
    for (uint32_t s = 0; packed->weights && s < packed->n_samples; s++)
        if (!(packed->weights[s] > 0) || !isfinite(packed->weights[s]))
            return err_set(err, ST_BAD_DATA, "sample %u has the weight %g", s, (double)packed->weights[s]);
    for (uint32_t m = 0; m < packed->n_rows && o->kind == OBJECTIVE_KL; m++)
        if (packed->mask[m] && (!packed->teacher || !packed->teacher[m]))
            return err_set(err, ST_BAD_DATA, "kl: row %u has no teacher's logits", m);
    return ST_OK;
}

double objective_count(const struct objective *o, const struct packed *packed)
{
    double sum = 0;
    if (o->kind == OBJECTIVE_DPO)
        return packed->n_samples / 2;
    if (!packed->weights)
        return packed->n_targets;
    for (uint32_t s = 0; s < packed->n_samples; s++)
        sum += (double)packed->weights[s] * targets_of(packed, s);
    return sum;
}

/* z of the pair that begins at sample s */
static double gained(const struct packed *p, const double *nll, uint32_t s)
{
    return (-nll[s] - p->reference[s]) - (-nll[s + 1] - p->reference[s + 1]);
}

/* log(1 + exp(-x)) */
static double softplus_minus(double x)
{
    return x > 0 ? log1p(exp(-x)) : log1p(exp(x)) - x;
}

double objective_sum(const struct objective *o, const struct packed *packed, const double *nll)
{
    double sum = 0;
    if (o->kind == OBJECTIVE_DPO)
        for (uint32_t s = 0; s < packed->n_samples; s += 2)
            sum += softplus_minus(o->beta * gained(packed, nll, s));
    else
        for (uint32_t s = 0; s < packed->n_samples; s++)
            sum += objective_weight(o, packed, nll, s) * nll[s];
    return sum;
}

double objective_weight(const struct objective *o, const struct packed *packed, const double *nll, uint32_t sample)
{
    if (o->kind != OBJECTIVE_DPO)
        return packed->weights ? (double)packed->weights[sample] : 1;
    double z = o->beta * gained(packed, nll, sample & ~1u), weight = o->beta / (1 + exp(z));
    return sample & 1 ? -weight : weight;
}

uint64_t objective_preferred(const struct packed *packed, const double *nll)
{
    uint64_t n = 0;
    for (uint32_t s = 0; s + 1 < packed->n_samples; s += 2)
        n += gained(packed, nll, s) > 0;
    return n;
}
