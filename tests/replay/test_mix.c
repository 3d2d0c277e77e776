/* A lease's list: shares reached, every fresh segment once, the same for everyone. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "replay/mix.h"

enum { DOMAINS = 4, MEMBERS = 40 };
static uint64_t members[DOMAINS][MEMBERS];
static struct mix_domain domains[DOMAINS];

static void make_domains(void)
{
    const uint32_t weight[DOMAINS] = {5, 0, 10, 25}, n[DOMAINS] = {MEMBERS, MEMBERS, MEMBERS, 7};
    for (uint16_t d = 0; d < DOMAINS; d++) {
        for (uint64_t i = 0; i < MEMBERS; i++)
            members[d][i] = 1000u * d + 3 * i;
        domains[d] = (struct mix_domain){{d}, weight[d], members[d], n[d]};
    }
}

static void test_shuffle(void)
{
    enum { N = 6, TRIALS = 36000 };
    int first[N] = {0};
    uint32_t order[N], again[N];
    for (uint64_t seed = 0; seed < TRIALS; seed++) {
        unsigned seen = 0;
        mix_shuffle(seed, N, order);
        for (int i = 0; i < N; i++)
            seen |= 1u << order[i];
        EXPECT_EQ(seen, (1 << N) - 1);
        first[order[0]]++;
    }
    double chi2 = 0;
    for (int i = 0; i < N; i++)
        chi2 += (double)(first[i] - TRIALS / N) * (first[i] - TRIALS / N) / (TRIALS / N);
    EXPECT(chi2 < 20.5); /* 5 degrees of freedom, p = 0.001 */
    mix_shuffle(7, N, order);
    mix_shuffle(7, N, again);
    EXPECT(!memcmp(order, again, sizeof order));
    mix_shuffle(7, 0, order);
}

static void test_draws(void)
{
    enum { WANTED = 8000 };
    static struct mix_segment a[WANTED], b[WANTED];
    int per_domain[DOMAINS] = {0}, per_member[DOMAINS][MEMBERS] = {{0}};
    EXPECT_EQ(mix_draw(42, MIX_HISTORY, domains, DOMAINS, WANTED, a), WANTED);
    EXPECT_EQ(mix_draw(42, MIX_HISTORY, domains, DOMAINS, 100, b), 100);
    EXPECT(!memcmp(a, b, 100 * sizeof *a)); /* a longer draw begins with the shorter */
    EXPECT_EQ(mix_draw(43, MIX_HISTORY, domains, DOMAINS, 100, b), 100);
    EXPECT(memcmp(a, b, 100 * sizeof *a));
    EXPECT_EQ(mix_draw(42, MIX_ANCHOR, domains, DOMAINS, 100, b), 100);
    EXPECT(memcmp(a, b, 100 * sizeof *a));

    for (int i = 0; i < WANTED; i++) {
        uint16_t d = a[i].domain.v;
        uint64_t m = (a[i].offset - 1000u * d) / 3;
        EXPECT(d < DOMAINS && m < domains[d].n && members[d][m] == a[i].offset);
        per_domain[d]++;
        per_member[d][m]++;
    }
    double chi2 = 0;
    for (int d = 0; d < DOMAINS; d++) {
        double want = WANTED * domains[d].weight / 40.0;
        chi2 += want > 0 ? (per_domain[d] - want) * (per_domain[d] - want) / want : 0;
        int least = WANTED, most = 0;
        for (uint32_t m = 0; m < domains[d].n; m++) {
            least = per_member[d][m] < least ? per_member[d][m] : least;
            most = per_member[d][m] > most ? per_member[d][m] : most;
        }
        EXPECT(most - least <= 1); /* all of a domain before any of it again */
    }
    EXPECT_EQ(per_domain[1], 0);
    EXPECT(chi2 < 13.8); /* 2 degrees of freedom, p = 0.001 */

    struct mix_domain nothing[] = {{{1}, 10, NULL, 0}, {{2}, 0, members[2], 3}};
    EXPECT_EQ(mix_draw(1, MIX_HISTORY, nothing, 2, 10, a), 0);
    EXPECT_EQ(mix_draw(1, MIX_HISTORY, NULL, 0, 10, a), 0);
}

/* What one domain deals does not depend on whether others are there, only when. */
static void test_domains_do_not_disturb_each_other(void)
{
    static struct mix_segment all[2000], alone[200];
    mix_draw(5, MIX_HISTORY, domains, DOMAINS, 2000, all);
    mix_draw(5, MIX_HISTORY, &domains[2], 1, 200, alone);
    int n = 0;
    for (int i = 0; i < 2000 && n < 200; i++)
        if (all[i].domain.v == 2) {
            EXPECT_EQ(all[i].offset, alone[n].offset);
            n++;
        }
    EXPECT_EQ(n, 200);
}

static void test_shares_within_a_segment(void)
{
    struct rng rng;
    rng_seed(&rng, 3);
    for (int round = 0; round < 300; round++) {
        enum { MOST = 400, LONGEST = 700 };
        uint32_t tokens[MIX_POOLS][MOST];
        struct mix_input in = {.share_permille = {0, (uint32_t)rng_below(&rng, 450), (uint32_t)rng_below(&rng, 450)}};
        struct mix_result result;
        struct mix_item out[3 * MOST];
        for (int p = 0; p < MIX_POOLS; p++) {
            for (int i = 0; i < MOST; i++)
                tokens[p][i] = 1 + (uint32_t)rng_below(&rng, LONGEST);
            in.tokens[p] = tokens[p];
            in.n[p] = MOST;
        }
        in.n[MIX_FRESH] = (uint32_t)rng_below(&rng, 30);
        mix_order(&in, out, &result);
        int64_t total = 0, taken[MIX_POOLS] = {0}, share[MIX_POOLS];
        uint32_t next[MIX_POOLS] = {0};
        share[1] = in.share_permille[1], share[2] = in.share_permille[2], share[0] = 1000 - share[1] - share[2];
        for (uint32_t i = 0; i < result.n; i++) {
            EXPECT_EQ(out[i].index, next[out[i].pool]); /* in order, each once */
            next[out[i].pool]++;
            taken[out[i].pool] += tokens[out[i].pool][out[i].index];
            total += tokens[out[i].pool][out[i].index];
            for (int p = 0; p < MIX_POOLS; p++) {
                EXPECT(1000 * taken[p] - share[p] * total <= 1000 * LONGEST);
                EXPECT(share[p] * total - 1000 * taken[p] <= 2 * 1000 * LONGEST);
            }
        }
        EXPECT_EQ(next[MIX_FRESH], in.n[MIX_FRESH]);
        EXPECT(!result.ran_short[0] && !result.ran_short[1] && !result.ran_short[2]);
        for (int p = 0; p < MIX_POOLS; p++)
            EXPECT_EQ(result.tokens[p], taken[p]);
    }
}

static void test_pools_that_run_short(void)
{
    uint32_t tokens[100];
    for (int i = 0; i < 100; i++)
        tokens[i] = 10;
    struct mix_input in = {.tokens = {tokens, tokens, tokens}, .n = {60, 3, 0}, .share_permille = {0, 200, 50}};
    struct mix_item out[100];
    struct mix_result result;
    mix_order(&in, out, &result);
    EXPECT(result.n == 63 && result.ran_short[MIX_HISTORY] && result.ran_short[MIX_ANCHOR] && !result.ran_short[0]);
    in.n[MIX_HISTORY] = in.n[MIX_ANCHOR] = 100;
    mix_order(&in, out, &result);
    EXPECT(result.n >= 79 && result.n <= 81 && !result.ran_short[MIX_HISTORY] && !result.ran_short[MIX_ANCHOR]);
    in.share_permille[MIX_HISTORY] = 0; /* no share: never taken, never short */
    in.n[MIX_HISTORY] = 0;
    mix_order(&in, out, &result);
    EXPECT(result.tokens[MIX_HISTORY] == 0 && !result.ran_short[MIX_HISTORY]);
    EXPECT_EQ(mix_tokens_wanted(7500, 200, 50), 2000);
    EXPECT_EQ(mix_tokens_wanted(7500, 50, 200), 500);
}

int main(void)
{
    hash_start();
    make_domains();
    RUN(test_shuffle);
    RUN(test_draws);
    RUN(test_domains_do_not_disturb_each_other);
    RUN(test_shares_within_a_segment);
    RUN(test_pools_that_run_short);
    return harness_end();
}
