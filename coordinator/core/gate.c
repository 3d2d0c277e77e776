#include "coordinator/core/gate.h"

#include <math.h>
#include <string.h>

#include "coordinator/core/text.h"

static const double SPENT[GATE_LOOKS] = {0.25, 0.25, 0.5};

const char *gate_outcome_name(enum gate_outcome outcome)
{
    return outcome == GATE_PASS ? "publish" : outcome == GATE_LOOK ? "look" : "refuse";
}

/* Continued fraction of the incomplete beta function, modified Lentz. */
static double beta_fraction(double a, double b, double x)
{
    const double tiny = 1e-300;
    double c = 1, d = 1 - (a + b) * x / (a + 1);
    d = 1 / (fabs(d) < tiny ? tiny : d);
    double h = d;
    for (int m = 1; m < 10000; m++) {
        for (int odd = 0; odd < 2; odd++) {
            double num = odd ? -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
                             : m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
            d = 1 + num * d;
            d = 1 / (fabs(d) < tiny ? tiny : d);
            c = 1 + num / c;
            c = fabs(c) < tiny ? tiny : c;
            h *= d * c;
            if (odd && fabs(d * c - 1) < 1e-15)
                return h;
        }
    }
    return h;
}

static double incomplete_beta(double a, double b, double x)
{
    if (x <= 0 || x >= 1)
        return x >= 1;
    double front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x));
    return x < (a + 1) / (a + b + 2) ? front * beta_fraction(a, b, x) / a : 1 - front * beta_fraction(b, a, 1 - x) / b;
}

/* P(T > t), t >= 0 */
static double student_tail(double t, double df)
{
    return incomplete_beta(df / 2, 0.5, df / (df + t * t)) / 2;
}

double student_quantile(double p, double df)
{
    if (p == 0.5)
        return 0;
    double tail = p < 0.5 ? p : 1 - p, low = 0, high = 1;
    while (student_tail(high, df) > tail && high < 1e300)
        high *= 2;
    for (int i = 0; i < 200; i++) {
        double mid = low + (high - low) / 2;
        if (student_tail(mid, df) > tail)
            low = mid;
        else
            high = mid;
    }
    return p < 0.5 ? -high : high;
}

static void measure(struct gate_domain *d)
{
    double mean = 0, square = 0;
    for (uint32_t i = 0; i < d->n; i++) { /* Welford */
        double delta = d->diff[i] - mean;
        mean += delta / (i + 1);
        square += delta * (d->diff[i] - mean);
    }
    d->mean = mean;
    d->sd = d->n > 1 ? sqrt(square / (d->n - 1)) : 0;
    d->low = d->high = d->n ? mean : 0;
    if (d->n > 1) {
        double half = student_quantile(1 - d->alpha, d->n - 1) * d->sd / sqrt(d->n);
        d->low = mean - half;
        d->high = mean + half;
    }
}

static enum gate_outcome judge(struct gate_domain *d, bool last)
{
    measure(d);
    d->measured = d->n >= GATE_WINDOWS_MIN;
    d->better = d->measured && d->high < 0 && !d->sentinel;
    if (d->sentinel)
        return GATE_PASS;
    if (d->n > 1 && !(d->low <= d->budget)) /* a NaN refuses */
        return GATE_REFUSE;
    if (d->high < d->budget)
        return GATE_PASS;
    if (!last && d->n < d->available)
        return GATE_LOOK;
    return !d->measured || (d->mean <= d->budget && d->high < 2 * d->budget) ? GATE_PASS : GATE_REFUSE;
}

enum gate_outcome gate_judge(struct gate_domain *domains, uint32_t n, double error_rate, unsigned look, bool last)
{
    enum gate_outcome outcome = GATE_PASS;
    uint32_t judged = 0;
    double share = 0;
    look = look < GATE_LOOKS ? look : GATE_LOOKS - 1;
    for (unsigned i = look; i < (last ? GATE_LOOKS : look + 1); i++)
        share += SPENT[i];
    for (uint32_t i = 0; i < n; i++)
        judged += !domains[i].sentinel;
    for (uint32_t i = 0; i < n; i++) {
        if (domains[i].decided)
            continue;
        domains[i].alpha = error_rate / (judged ? judged : 1) * share;
        domains[i].outcome = judge(&domains[i], last);
        if (domains[i].outcome > outcome)
            outcome = domains[i].outcome;
    }
    return outcome;
}

static const char *remark(const struct gate_domain *d)
{
    if (!d->n)
        return "no probe: not measured, does not block";
    if (d->sentinel)
        return "sentinel: measured against version 0, not judged";
    if (d->outcome == GATE_REFUSE && d->low <= d->budget)
        return d->mean > d->budget ? "over its budget by the mean of all windows: refused"
                                   : "twice its budget cannot be ruled out with all windows: refused";
    if (d->outcome == GATE_REFUSE)
        return "forgets more than its budget";
    if (!d->measured)
        return "too few windows to measure: does not block";
    if (d->outcome == GATE_LOOK)
        return "undecided: more windows";
    if (d->high >= d->budget)
        return "within its budget by the mean of all windows, surely under twice of it";
    return d->better ? "better than its reference" : "within its budget";
}

void gate_explain(const struct gate_domain *domains, uint32_t n, double error_rate, unsigned look,
                  enum gate_outcome outcome, struct buf *out)
{
    buf_printf(out, "{\"outcome\":\"%s\",\"error_rate\":%.6g,\"look\":%u,\"domains\":[", gate_outcome_name(outcome),
               error_rate, look + 1);
    for (uint32_t i = 0; i < n; i++) {
        const struct gate_domain *d = &domains[i];
        buf_printf(
            out,
            "%s{\"domain\":\"%s\",\"reference\":%llu,\"probe_set\":%u,\"windows\":%u,\"available\":%u,\"budget\":%.6g,"
            "\"mean\":%.9g,\"sd\":%.6g,\"low\":%.9g,\"high\":%.9g,\"alpha\":%.6g,\"outcome\":\"%s\","
            "\"remark\":\"%s\"}",
            i ? "," : "", d->name.s, (unsigned long long)d->reference, d->probe_set, d->n, d->available, d->budget,
            d->mean, d->sd, d->low, d->high, d->alpha, gate_outcome_name(d->outcome), remark(d));
    }
    buf_printf(out, "]}");
}

void gate_sentence(const struct gate_domain *domains, uint32_t n, enum gate_outcome outcome, char *out, size_t size)
{
    const struct gate_domain *worst = NULL;
    uint32_t blind = 0, judged = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (domains[i].sentinel)
            continue;
        judged++;
        blind += !domains[i].measured;
        if (domains[i].n && (!worst || domains[i].high - domains[i].budget > worst->high - worst->budget))
            worst = &domains[i];
    }
    struct buf text = {0};
    buf_printf(&text, "%s: %u domains, %u not measured", gate_outcome_name(outcome), judged, blind);
    if (worst)
        buf_printf(&text, "; nearest to its budget %s, %+.4f (at most %+.4f) nats per token", worst->name.s,
                   worst->mean, worst->high);
    text_copy(out, size, buf_cstr(&text));
    buf_release(&text);
}
