/* gate.h - may a candidate be published? A pure function of paired losses.
 *
 * For each domain the mean over windows of (candidate - reference), each in nats per token, gets a Student-t interval
 * whose one-sided error is error_rate / domains x the share of this look. The whole rate is spent over the looks
 * (SPENT: a quarter, a quarter, a half: most where most windows are), so that by the union bound the chance that any
 * domain is judged wrongly at any look is at most error_rate. Who knows before the first loss that there will be fewer
 * looks says so with `last`, and the last one spends what is left.
 *   refuse   the lower bound is over the budget
 *   pass     the upper bound is under the budget
 *   else     look at more windows; when there are no more, or at the last look: pass if the mean is within the budget and the
 *            upper bound under twice of it, else refuse
 * So a candidate that forgets twice its budget is published at most at the error rate, and one that forgets half of it seldom
 * refused (bench_gate; docs/decisions/017-what-the-last-look-decides.md).
 * A domain with fewer than GATE_WINDOWS_MIN windows cannot be measured: that is said, and only a lower bound over the
 * budget refuses. One without windows is said and does not block. A sentinel is measured at the first look and told,
 * no more: whoever steers by it has nothing left to see by.
 */
#ifndef COORDINATOR_CORE_GATE_H
#define COORDINATOR_CORE_GATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"

enum { GATE_LOOKS = 3, GATE_WINDOWS_MIN = 16 };

enum gate_outcome { GATE_PASS, GATE_LOOK, GATE_REFUSE };
const char *gate_outcome_name(enum gate_outcome outcome);

struct gate_domain {
    /* in */
    struct name name;
    uint64_t reference;    /* version */
    uint32_t probe_set;    /* whose windows these are */
    double budget;         /* nats per token */
    bool sentinel;         /* measured, never judged: neither it nor the share of the error rate blocks anything */
    uint32_t n, available; /* windows scored, windows there are */
    bool decided;          /* passed at an earlier look: that stands, nothing here is touched */
    const double *diff;    /* n: candidate - reference, mean nats per token of a window; borrowed */
    /* out */
    double mean, sd, low, high; /* sd, low, high: 0 when n < 2 */
    double alpha;
    bool measured; /* enough windows */
    bool better;   /* significantly better than the reference: high < 0, measured */
    enum gate_outcome outcome;
};

/* look: 0 .. GATE_LOOKS - 1. `last`: no further look will be made, which does not depend on any loss. GATE_REFUSE if any domain refuses, else GATE_LOOK if
 * any wants more, else GATE_PASS. */
enum gate_outcome gate_judge(struct gate_domain *domains, uint32_t n, double error_rate, unsigned look, bool last);

/* The verdict with all its numbers, as a JSON object. */
void gate_explain(const struct gate_domain *domains, uint32_t n, double error_rate, unsigned look,
                  enum gate_outcome outcome, struct buf *out);

/* One sentence for a manifest. */
void gate_sentence(const struct gate_domain *domains, uint32_t n, enum gate_outcome outcome, char *out, size_t size);

/* Quantile of Student's t: P(T <= t) = p for df >= 1 degrees of freedom, 0 < p < 1. The distribution function is the
 * regularised incomplete beta function by Lentz's continued fraction (Numerical Recipes, 3rd edition, 6.4); it is
 * inverted by bisection. Relative error below 1e-9. */
double student_quantile(double p, double df);

#endif
