#include "coordinator/core/continual.h"

#include <math.h>

static double at(const struct loss_matrix *m, uint32_t row, uint32_t domain)
{
    return m->loss[(uint64_t)row * m->n_domains + domain];
}

/* The first or last of rows [1, end) that learnt the domain; 0: none. */
static uint32_t fresh_row(const struct loss_matrix *m, uint32_t domain, uint32_t end, bool last)
{
    uint32_t found = 0;
    for (uint32_t v = 1; v < end && (last || !found); v++)
        if (m->fresh[(uint64_t)v * m->n_domains + domain])
            found = v;
    return found;
}

double continual_learnt(const struct loss_matrix *m, uint32_t domain)
{
    return m->n_rows ? at(m, 0, domain) - at(m, m->n_rows - 1, domain) : NAN;
}

double continual_forgetting(const struct loss_matrix *m, uint32_t domain)
{
    double best = NAN;
    for (uint32_t v = 0; v + 1 < m->n_rows; v++)
        best = fmin(best, at(m, v, domain)); /* ignores a NaN beside a number */
    return m->n_rows ? at(m, m->n_rows - 1, domain) - best : NAN;
}

double continual_backward(const struct loss_matrix *m, uint32_t domain)
{
    uint32_t l = fresh_row(m, domain, m->n_rows, true);
    return l && l + 1 < m->n_rows ? at(m, l, domain) - at(m, m->n_rows - 1, domain) : NAN;
}

double continual_forward(const struct loss_matrix *m, uint32_t domain)
{
    uint32_t f = fresh_row(m, domain, m->n_rows, false);
    return f ? at(m, 0, domain) - at(m, f - 1, domain) : NAN;
}

double continual_intransigence(const struct loss_matrix *m, uint32_t domain, double joint)
{
    uint32_t l = fresh_row(m, domain, m->n_rows, true);
    return l ? at(m, l, domain) - joint : NAN;
}

double continual_general_delta(const double *kl, const uint32_t *tokens, uint32_t n)
{
    double sum = 0, count = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += kl[i];
        count += tokens[i];
    }
    return count > 0 ? sum / count : NAN;
}

double continual_sentinel(const double *now, const double *base, const uint32_t *tokens, uint32_t n)
{
    double sum = 0, count = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += now[i] - base[i];
        count += tokens[i];
    }
    return count > 0 ? sum / count : NAN;
}

double continual_mean(const double *values, uint32_t n)
{
    double sum = 0;
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!isnan(values[i])) {
            sum += values[i];
            count++;
        }
    return count ? sum / count : NAN;
}
