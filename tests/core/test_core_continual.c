/* The measures of continual learning on matrices small enough to work out by hand. */
#include <math.h>

#include "coordinator/core/continual.h"
#include "harness.h"

#define NEAR(a, b) EXPECT(fabs((a) - (b)) < 1e-12)

/* Three domains. Row 1 learns a, row 2 learns b, row 3 learns a and c; c is first measured in row 1. */
static const double LOSS[] = {
    3.0, 4.0, NAN, /* base */
    2.0, 3.9, 5.0, /* a learnt: b gains a little for nothing */
    2.5, 2.5, 5.2, /* b learnt: a is forgotten in part */
    1.8, 2.7, 4.0, /* a and c learnt: b is forgotten in part */
};
static const bool FRESH[] = {
    false, false, false, true, false, false, false, true, false, true, false, true,
};

static struct loss_matrix rows(uint32_t n)
{
    return (struct loss_matrix){.loss = LOSS, .fresh = FRESH, .n_rows = n, .n_domains = 3};
}

static void test_by_hand(void)
{
    struct loss_matrix two = rows(3), all = rows(4);
    NEAR(continual_learnt(&all, 0), 1.2);
    NEAR(continual_learnt(&all, 1), 1.3);
    EXPECT(isnan(continual_learnt(&all, 2))); /* no base to compare with */

    NEAR(continual_forgetting(&two, 0), 0.5);  /* 2.5 against 2.0 */
    NEAR(continual_forgetting(&two, 1), -1.4); /* better than ever */
    NEAR(continual_forgetting(&all, 0), -0.2); /* learnt again */
    NEAR(continual_forgetting(&all, 1), 0.2);  /* 2.7 against 2.5 */
    NEAR(continual_forgetting(&all, 2), -1.0); /* the unmeasured base does not count */

    NEAR(continual_backward(&two, 0), -0.5);    /* learnt in row 1, worse since */
    EXPECT(isnan(continual_backward(&two, 1))); /* learnt in this very row */
    EXPECT(isnan(continual_backward(&two, 2))); /* never learnt */
    NEAR(continual_backward(&all, 1), -0.2);
    EXPECT(isnan(continual_backward(&all, 0))); /* the last time counts, and that is now */

    NEAR(continual_forward(&all, 0), 0.0);     /* learnt first: nothing came before */
    NEAR(continual_forward(&all, 1), 0.1);     /* 4.0 - 3.9, before its own first row */
    EXPECT(isnan(continual_forward(&all, 2))); /* the base was not measured on it */
    EXPECT(isnan(continual_forward(&two, 2))); /* not learnt yet */

    NEAR(continual_intransigence(&two, 0, 1.9), 0.1);
    NEAR(continual_intransigence(&all, 1, 2.6), -0.1); /* better than joint training */
    EXPECT(isnan(continual_intransigence(&all, 0, NAN)) && isnan(continual_intransigence(&two, 2, 1.0)));
}

/* A constant of its own added to a column changes nothing but the loss itself. */
static void test_relative(void)
{
    double moved[12];
    for (int i = 0; i < 12; i++)
        moved[i] = LOSS[i] + (i % 3 == 1 ? -7.0 : 2.0);
    struct loss_matrix m = rows(4), n = rows(4);
    n.loss = moved;
    for (uint32_t d = 0; d < 2; d++) {
        NEAR(continual_learnt(&m, d), continual_learnt(&n, d));
        NEAR(continual_forgetting(&m, d), continual_forgetting(&n, d));
        NEAR(continual_forward(&m, d), continual_forward(&n, d));
    }
    NEAR(continual_backward(&m, 1), continual_backward(&n, 1));
}

static void test_edges(void)
{
    struct loss_matrix none = rows(0), base = rows(1);
    EXPECT(isnan(continual_learnt(&none, 0)) && isnan(continual_forgetting(&none, 0)) &&
           isnan(continual_backward(&none, 0)) && isnan(continual_forward(&none, 0)) &&
           isnan(continual_intransigence(&none, 0, 1)));
    NEAR(continual_learnt(&base, 0), 0);
    EXPECT(isnan(continual_forgetting(&base, 0)) && isnan(continual_backward(&base, 0)));
}

static void test_means(void)
{
    const double kl[] = {2, 1}, now[] = {30, 10}, before[] = {28, 10.5}, values[] = {NAN, 0.5, -0.1};
    const uint32_t tokens[] = {100, 50}, nothing[] = {0, 0};
    NEAR(continual_general_delta(kl, tokens, 2), 0.02);
    NEAR(continual_sentinel(now, before, tokens, 2), 0.01);
    EXPECT(isnan(continual_general_delta(kl, nothing, 2)) && isnan(continual_sentinel(now, before, tokens, 0)));
    NEAR(continual_mean(values, 3), 0.2);
    EXPECT(isnan(continual_mean(values, 1)) && isnan(continual_mean(values, 0)));
}

int main(void)
{
    RUN(test_by_hand);
    RUN(test_relative);
    RUN(test_edges);
    RUN(test_means);
    return harness_end();
}
