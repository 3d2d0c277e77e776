/* The gate: its quantile, its outcomes, and the error rate it promises. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "coordinator/core/gate.h"
#include "harness.h"

static void test_quantile_known_values(void)
{
    /* by the incomplete beta function in 30 digits (mpmath), the first and the normal from tables */
    EXPECT_NEAR(student_quantile(0.975, 1), 12.706204736174698, 1e-9);
    EXPECT_NEAR(student_quantile(0.975, 10), 2.2281388519862744, 1e-10);
    EXPECT_NEAR(student_quantile(0.99, 63), 2.387008, 1e-5);
    EXPECT_NEAR(student_quantile(0.95, 30), 1.6972608865939579, 1e-10);
    EXPECT_NEAR(student_quantile(0.05, 30), -1.6972608865939579, 1e-10);
    EXPECT_NEAR(student_quantile(0.999, 1e7), 3.090232, 1e-5); /* the normal's */
    EXPECT_NEAR(student_quantile(0.5, 3), 0, 0);
}

static double diff[256];

static struct gate_domain domain_of(uint32_t n, uint32_t available, double mean, double sd)
{
    struct gate_domain d = {.budget = 0.02, .n = n, .available = available, .diff = diff};
    for (uint32_t i = 0; i < n; i++)
        diff[i] = mean + (i % 2 ? sd : -sd);
    name_set(&d.name, "code", 4);
    return d;
}

static void test_outcomes(void)
{
    struct gate_domain d = domain_of(64, 256, -0.1, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_PASS);
    EXPECT(d.better && d.measured && d.low < d.mean && d.mean < d.high);
    d = domain_of(64, 256, 0.01, 0.001);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_PASS);
    EXPECT(!d.better);
    d = domain_of(64, 256, 0.1, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_REFUSE);
    d = domain_of(64, 256, 0.02, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_LOOK);
    d = domain_of(64, 256, 0.019, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 2, true), GATE_PASS); /* at the cap the mean decides */
    EXPECT(d.high > d.budget);
    struct buf json = {0};
    gate_explain(&d, 1, 0.01, 2, GATE_PASS, &json);
    EXPECT(strstr(buf_cstr(&json), "by the mean of all windows") != NULL);
    buf_release(&json);
    d = domain_of(64, 256, 0.021, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 2, true), GATE_REFUSE);
    d = domain_of(64, 256, 0.01, 0.2);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 2, true), GATE_REFUSE); /* but twice the budget must be ruled out */
    EXPECT(d.mean < d.budget && d.high > 2 * d.budget);
    d = domain_of(64, 64, 0.021, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_REFUSE); /* there are no more windows */
    d = domain_of(4, 4, 0.02, 0.05);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_PASS); /* too few to measure */
    EXPECT(!d.measured && !d.better);
    d = domain_of(8, 8, 5, 0.01);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_REFUSE); /* but not blind to a wreck */
    d = domain_of(0, 0, 0, 0);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_PASS);
    d = domain_of(64, 64, NAN, 0);
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 0, false), GATE_REFUSE);
}

static void test_a_sentinel_is_told_and_takes_no_share(void)
{
    struct gate_domain d[2] = {domain_of(64, 256, 0.01, 0.001), domain_of(64, 256, 3, 0.001)};
    double own[64];
    char sentence[200];
    for (int i = 0; i < 64; i++)
        own[i] = 0.01 + (i % 2 ? 0.001 : -0.001);
    d[0].diff = own;
    d[1].sentinel = true;
    EXPECT_EQ(gate_judge(d, 2, 0.01, 0, false), GATE_PASS);
    EXPECT_NEAR(d[0].alpha, 0.01 * 0.25, 1e-15); /* as if it were alone */
    EXPECT(d[1].outcome == GATE_PASS && d[1].measured && !d[1].better);
    EXPECT_NEAR(d[1].mean, 3, 1e-9);
    gate_sentence(d, 2, GATE_PASS, sentence, sizeof sentence);
    EXPECT(strstr(sentence, "1 domains") != NULL && strstr(sentence, "+0.01") != NULL);
    for (int i = 0; i < 64; i++)
        diff[i] = -1;
    EXPECT_EQ(gate_judge(d, 2, 0.01, 0, false), GATE_PASS);
    EXPECT(!d[1].better); /* it never moves its reference */
}

static void test_worst_domain_decides_and_rate_is_divided(void)
{
    struct gate_domain d[2] = {domain_of(64, 256, -0.1, 0.05), domain_of(64, 256, -0.1, 0.05)};
    double bad[64];
    for (int i = 0; i < 64; i++)
        bad[i] = 0.5 + 0.01 * (i % 3);
    d[1].diff = bad;
    EXPECT_EQ(gate_judge(d, 2, 0.01, 0, false), GATE_REFUSE);
    EXPECT_NEAR(d[0].alpha, 0.01 / 2 / 4, 1e-15);
    struct buf json = {0};
    gate_explain(d, 2, 0.01, 0, GATE_REFUSE, &json);
    EXPECT(strstr(buf_cstr(&json), "forgets more than its budget") != NULL);
    buf_release(&json);
    char text[256];
    gate_sentence(d, 2, GATE_REFUSE, text, sizeof text);
    EXPECT(strstr(text, "refuse") != NULL);
}

/* How many of `runs` candidates pass that forget `harm` nats, over all looks. */
static int passes(int runs, double rate, double harm, double sd, const uint32_t looks[GATE_LOOKS])
{
    struct rng rng;
    int passed = 0;
    rng_seed(&rng, 11);
    for (int run = 0; run < runs; run++) {
        enum gate_outcome o = GATE_LOOK;
        uint32_t n = 0;
        for (unsigned look = 0; look < GATE_LOOKS && o == GATE_LOOK; look++) {
            for (; n < looks[look]; n++)
                diff[n] = harm + sd * rng_normal(&rng);
            struct gate_domain d = {.budget = 0.02, .n = n, .available = looks[GATE_LOOKS - 1], .diff = diff};
            o = gate_judge(&d, 1, rate, look, look == GATE_LOOKS - 1);
        }
        passed += o == GATE_PASS;
    }
    return passed;
}

/* A candidate that forgets twice its budget must not pass more often than the stated rate, over all looks, however wide the losses are. */
static void test_error_rate_is_kept(void)
{
    enum { RUNS = 5000 };
    const double rate = 0.05, limit = RUNS * rate + 4 * sqrt(RUNS * rate * (1 - rate));
    const uint32_t looks[GATE_LOOKS] = {32, 64, 128};
    const double widths[] = {0.1, 0.2, 0.4};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        EXPECT(passes(RUNS, rate, 0.04, widths[i], looks) <= limit);
    EXPECT(passes(RUNS, rate, 0.04, 0.2, looks) >= RUNS * rate / 4); /* and is not merely deaf */
}

/* One that forgets half of it is seldom refused where the windows are as wide as recorded ones (bench_gate). */
static void test_harmless_rounds_are_let_through(void)
{
    enum { RUNS = 5000 };
    const uint32_t looks[GATE_LOOKS] = {64, 128, 256};
    EXPECT(passes(RUNS, 0.01, 0.01, 0.05, looks) >= 0.98 * RUNS);
    EXPECT(passes(RUNS, 0.01, 0, 0.05, looks) >= 0.999 * RUNS);
}

int main(void)
{
    hash_start();
    RUN(test_quantile_known_values);
    RUN(test_outcomes);
    RUN(test_a_sentinel_is_told_and_takes_no_share);
    RUN(test_worst_domain_decides_and_rate_is_divided);
    RUN(test_error_rate_is_kept);
    RUN(test_harmless_rounds_are_let_through);
    return harness_end();
}
