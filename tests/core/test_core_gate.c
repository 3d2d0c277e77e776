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
    EXPECT_EQ(gate_judge(&d, 1, 0.01, 2, true), GATE_REFUSE); /* undecided at the cap */
    d = domain_of(64, 64, 0.02, 0.05);
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

/* A candidate that forgets exactly its budget must not pass more often than the stated rate, over all looks. */
static void test_error_rate_is_kept(void)
{
    enum { RUNS = 20000 };
    const double rate = 0.05;
    struct rng rng;
    int passed = 0;
    rng_seed(&rng, 11);
    for (int run = 0; run < RUNS; run++) {
        const uint32_t looks[3] = {32, 64, 128};
        uint32_t n = 0;
        for (unsigned look = 0; look < 3; look++) {
            for (; n < looks[look]; n++)
                diff[n] = 0.02 + 0.1 * rng_normal(&rng);
            struct gate_domain d = {.budget = 0.02, .n = n, .available = 128, .diff = diff};
            enum gate_outcome o = gate_judge(&d, 1, rate, look, look == 2);
            if (o == GATE_LOOK)
                continue;
            passed += o == GATE_PASS;
            break;
        }
    }
    double limit = RUNS * rate + 4 * sqrt(RUNS * rate * (1 - rate));
    EXPECT(passed <= limit);
    EXPECT(passed >= RUNS * rate / 4); /* and is not merely deaf */
}

int main(void)
{
    hash_start();
    RUN(test_quantile_known_values);
    RUN(test_outcomes);
    RUN(test_a_sentinel_is_told_and_takes_no_share);
    RUN(test_worst_domain_decides_and_rate_is_divided);
    RUN(test_error_rate_is_kept);
    return harness_end();
}
