/* The law of the sample: against a plain reading of it, uniform, and the same however it is reached. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "harness.h"
#include "replay/key.h"
#include "replay/sample.h"

static const struct domain_id DOMAIN = {3};

static struct sip_key seed_of(uint64_t n)
{
    struct sip_key seed;
    struct rng rng;
    rng_seed(&rng, n);
    for (int i = 0; i < SIP_KEY_LEN; i++)
        seed.b[i] = (uint8_t)rng_u64(&rng);
    return seed;
}

static bool covered(const struct exclusion *x, size_t n, uint64_t offset)
{
    for (size_t i = 0; i < n; i++)
        if (offset >= x[i].first && offset - x[i].first < x[i].count)
            return true;
    return false;
}

/* The header's law read aloud: no heap, no index. Returns the number of members; out is sorted by key. */
static uint32_t plain(struct sip_key seed, uint32_t k, uint64_t watermark, uint64_t seq, const struct exclusion *x,
                      size_t n, struct sample_member *out)
{
    uint32_t held = 0;
    uint64_t tau = UINT64_MAX;
    size_t next = 0;
    for (uint64_t o = 0; o <= watermark; o++) {
        for (; next < n && x[next].seq <= seq && x[next].at <= o; next++) {
            uint32_t left = 0;
            for (uint32_t i = 0; i < held; i++)
                if (!covered(&x[next], 1, out[i].offset))
                    out[left++] = out[i];
            held = left;
        }
        uint64_t key = replay_key(&seed, DOMAIN, o);
        if (o == watermark || covered(x, next, o) || key > tau)
            continue;
        uint32_t at = held++;
        for (; at > 0 && out[at - 1].key > key; at--)
            out[at] = out[at - 1];
        out[at] = (struct sample_member){key, o};
        if (held > k)
            held = k;
        if (held == k && out[k - 1].key < tau)
            tau = out[k - 1].key;
    }
    return held;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct sample_member *)a)->offset, y = ((const struct sample_member *)b)->offset;
    return (x > y) - (x < y);
}

static bool same_as_plain(const struct sample *s, const struct exclusion *x, size_t n)
{
    struct sample_member *want = xcalloc(s->k + 1, sizeof *want);
    uint64_t *got = xcalloc(s->n, sizeof *got);
    uint32_t n_want = plain(s->seed, s->k, s->watermark, s->seq, x, n, want);
    bool same = n_want == s->n;
    sample_members(s, got);
    qsort(want, n_want, sizeof *want, by_offset);
    for (uint32_t i = 0; i < n_want && same; i++)
        same = want[i].offset == got[i];
    uint32_t members = 0;
    for (uint64_t o = 0; o < s->watermark + 10; o++)
        members += sample_contains(s, o);
    free(want);
    free(got);
    return same && members == s->n;
}

static struct exclusion *random_exclusions(struct rng *rng, size_t n, uint64_t length)
{
    struct exclusion *x = xcalloc(n, sizeof *x);
    uint64_t at = 0;
    for (size_t i = 0; i < n; i++) {
        at += rng_below(rng, 2 * length / n);
        at = at < length ? at : length;
        x[i].seq = 3 * i + 1; /* other domains have the numbers between */
        x[i].at = at;
        x[i].count = rng_below(rng, 3) ? rng_below(rng, 4) : rng_below(rng, length / 3);
        x[i].first = rng_below(rng, length);
    }
    return x;
}

static void test_key_known_answer(void)
{
    struct sip_key seed;
    for (int i = 0; i < SIP_KEY_LEN; i++)
        seed.b[i] = (uint8_t)i;
    uint8_t in[10] = {0x02, 0x01, 8, 7, 6, 5, 4, 3, 2, 1}; /* domain 0x0102, offset 0x0102030405060708 */
    EXPECT(replay_key(&seed, (struct domain_id){0x0102}, 0x0102030405060708u) == hash_sip(&seed, in, sizeof in));
}

static void test_law_forward_and_rebuilt(void)
{
    struct rng rng;
    rng_seed(&rng, 11);
    for (int round = 0; round < 60; round++) {
        enum { LENGTH = 600, EXCLUSIONS = 12 };
        struct sip_key seed = seed_of((uint64_t)round);
        struct exclusion *x = random_exclusions(&rng, EXCLUSIONS, LENGTH);
        struct sample walk, leap;
        struct err err;
        uint32_t k = 1 + (uint32_t)rng_below(&rng, 80);
        sample_init(&walk, &seed, DOMAIN, k);
        sample_init(&leap, &seed, DOMAIN, k);
        size_t known = 0;
        for (uint64_t h = 0; h <= LENGTH; h += rng_below(&rng, 90)) { /* in small steps, as a worker sees it */
            while (known < EXCLUSIONS && x[known].at <= h)
                known++;
            EXPECT_ST(sample_to(&walk, h, known ? x[known - 1].seq : 0, x, known, &err), ST_OK, &err);
            EXPECT(same_as_plain(&walk, x, known));
        }
        EXPECT_ST(sample_to(&leap, walk.watermark, walk.seq, x, EXCLUSIONS, &err), ST_OK, &err);
        EXPECT(same_as_plain(&leap, x, EXCLUSIONS) && leap.tau.key == walk.tau.key && leap.n == walk.n);
        /* back to an older lease, and forward again */
        uint64_t old_h = x[EXCLUSIONS / 2].at, old_seq = x[EXCLUSIONS / 2].seq;
        EXPECT_ST(sample_to(&walk, old_h, old_seq, x, EXCLUSIONS, &err), ST_OK, &err);
        EXPECT(same_as_plain(&walk, x, EXCLUSIONS));
        EXPECT_ST(sample_to(&walk, leap.watermark, leap.seq, x, EXCLUSIONS, &err), ST_OK, &err);
        EXPECT(same_as_plain(&walk, x, EXCLUSIONS));
        sample_release(&walk);
        sample_release(&leap);
        free(x);
    }
}

static void test_tau_never_rises_and_what_left_stays_away(void)
{
    enum { LENGTH = 3000, K = 50 };
    struct sip_key seed = seed_of(1);
    struct sample s;
    struct exclusion x[LENGTH / 100];
    struct err err;
    bool left[LENGTH] = {false}, was_in[LENGTH] = {false};
    uint64_t tau = UINT64_MAX;
    size_t n = 0;
    bool shrunk = false, refilled = false;
    sample_init(&s, &seed, DOMAIN, K);
    for (uint64_t h = 1; h <= LENGTH; h++) {
        if (h % 100 == 0) {
            x[n] = (struct exclusion){.seq = n + 1, .at = h, .first = h / 2, .count = h / 4};
            n++;
        }
        EXPECT_ST(sample_to(&s, h, n, x, n, &err), ST_OK, &err);
        shrunk |= h > 500 && s.n < K - 5;
        refilled |= shrunk && s.n == K;
        EXPECT(s.tau.key <= tau);
        tau = s.tau.key;
        for (uint64_t o = 0; o < h; o++) {
            bool in = sample_contains(&s, o);
            EXPECT(!(in && left[o]) && sample_retains(&s, o) == in);
            left[o] |= was_in[o] && !in;
            left[o] |= o + 1 < h && !was_in[o] && !in; /* did not get in when it came */
            was_in[o] = in;
        }
        EXPECT(sample_retains(&s, h) && !sample_contains(&s, h));
    }
    EXPECT(shrunk && refilled);
    sample_release(&s);
}

/* Each surviving offset is in the sample equally often, early or late, next to an exclusion or not. */
static void test_uniform_under_exclusions(void)
{
    enum { LENGTH = 200, K = 20, TRIALS = 20000 };
    const struct exclusion x[] = {{1, 60, 10, 30}, {2, 120, 100, 15}, {3, 120, 150, 10}};
    static int hits[LENGTH];
    double size = 0;
    int alive = 0;
    memset(hits, 0, sizeof hits);
    for (uint64_t t = 0; t < TRIALS; t++) {
        struct sip_key seed = seed_of(1000 + t);
        struct sample s;
        uint64_t members[K];
        sample_init(&s, &seed, DOMAIN, K);
        sample_to(&s, LENGTH, 3, x, 3, NULL);
        sample_members(&s, members);
        for (uint32_t i = 0; i < s.n; i++)
            hits[members[i]]++;
        size += s.n;
        sample_release(&s);
    }
    for (uint64_t o = 0; o < LENGTH; o++)
        alive += !covered(x, 3, o);
    double p = size / TRIALS / alive, chi2 = 0;
    for (uint64_t o = 0; o < LENGTH; o++) {
        if (covered(x, 3, o))
            EXPECT_EQ(hits[o], 0);
        else
            chi2 += (hits[o] - TRIALS * p) * (hits[o] - TRIALS * p) / (TRIALS * p * (1 - p));
    }
    EXPECT_EQ(alive, LENGTH - 55);
    EXPECT(chi2 < alive + 4 * sqrt(2.0 * alive)); /* about p = 1e-4 for a chi-square with `alive` degrees */
    EXPECT(chi2 > alive - 5 * sqrt(2.0 * alive));
}

static void test_merge_is_the_sample_of_both(void)
{
    for (uint64_t round = 0; round < 20; round++) {
        struct sip_key seed = seed_of(round);
        struct sample whole, a, b;
        uint64_t cut = 37 * round;
        sample_init(&whole, &seed, DOMAIN, 64);
        sample_init(&a, &seed, DOMAIN, 64);
        sample_init(&b, &seed, DOMAIN, 64);
        sample_start_at(&b, cut);
        sample_to(&whole, 1000, 0, NULL, 0, NULL);
        sample_to(&a, cut, 0, NULL, 0, NULL);
        sample_to(&b, 1000, 0, NULL, 0, NULL);
        sample_merge(&a, &b);
        EXPECT(a.watermark == 1000 && a.n == whole.n && a.tau.key == whole.tau.key && same_as_plain(&a, NULL, 0));
        sample_to(&a, 2000, 0, NULL, 0, NULL); /* and goes on like it */
        EXPECT(same_as_plain(&a, NULL, 0));
        sample_release(&whole);
        sample_release(&a);
        sample_release(&b);
    }
}

/* The slice's threshold stays low although its members are gone; the other slice must bow to it. */
static void test_merge_with_exclusions_keeps_the_smaller_tau(void)
{
    const struct exclusion x[] = {{1, 2500, 500, 1600}};
    struct sip_key seed = seed_of(8);
    struct sample a, b;
    sample_init(&a, &seed, DOMAIN, 64);
    sample_init(&b, &seed, DOMAIN, 64);
    sample_start_at(&b, 500);
    sample_to(&a, 500, 0, NULL, 0, NULL);
    sample_to(&b, 2500, 1, x, 1, NULL);
    EXPECT(b.n > 0 && b.n < 40 && b.tau.key < a.tau.key);
    uint64_t tau = b.tau.key;
    uint32_t want = 0;
    for (uint64_t o = 0; o < 2500; o++)
        want += !covered(x, 1, o) && replay_key(&seed, DOMAIN, o) <= tau;
    sample_merge(&a, &b);
    EXPECT(a.tau.key == tau && a.n == want && want < 64);
    sample_release(&a);
    sample_release(&b);
}

/* An exclusion that took effect below where we are already: only starting again is right. */
static void test_an_exclusion_learnt_late(void)
{
    const struct exclusion x[] = {{4, 300, 0, 250}};
    struct sip_key seed = seed_of(9);
    struct sample s;
    struct err err;
    sample_init(&s, &seed, DOMAIN, 40);
    EXPECT_ST(sample_to(&s, 900, 3, NULL, 0, &err), ST_OK, &err);
    EXPECT_ST(sample_to(&s, 900, 4, x, 1, &err), ST_OK, &err);
    EXPECT(same_as_plain(&s, x, 1));
    sample_release(&s);
}

static void test_hostile_exclusions(void)
{
    struct sip_key seed = seed_of(1);
    struct sample s;
    struct err err;
    const struct exclusion unordered[] = {{2, 5, 0, 1}, {1, 5, 0, 1}}, falling[] = {{1, 5, 0, 1}, {2, 4, 0, 1}},
                           overflow[] = {{1, 5, UINT64_MAX, 2}}, late[] = {{1, 50, 0, 1}},
                           huge[] = {{1, 5, 2, UINT64_MAX - 2}};
    sample_init(&s, &seed, DOMAIN, 8);
    EXPECT_ST(sample_to(&s, 10, 0, NULL, 0, &err), ST_OK, &err);
    EXPECT_ST(sample_to(&s, 10, 9, unordered, 2, &err), ST_BAD_DATA, &err);
    EXPECT_ST(sample_to(&s, 10, 9, falling, 2, &err), ST_BAD_DATA, &err);
    EXPECT_ST(sample_to(&s, 10, 9, overflow, 1, &err), ST_BAD_DATA, &err);
    EXPECT_ST(sample_to(&s, 10, 9, late, 1, &err), ST_USAGE, &err);
    EXPECT(s.n == 8 && s.watermark == 10 && s.seq == 0);
    EXPECT_ST(sample_to(&s, 100, 1, huge, 1, &err), ST_OK, &err);
    EXPECT_EQ(s.n, 2); /* offsets 0 and 1 are all that is left, and all that will ever be */
    struct rng rng;
    rng_seed(&rng, 1);
    for (int i = 0; i < 20; i++)
        EXPECT(sample_draw(&s, &rng) < 2);
    sample_release(&s);
}

int main(void)
{
    hash_start();
    RUN(test_key_known_answer);
    RUN(test_law_forward_and_rebuilt);
    RUN(test_tau_never_rises_and_what_left_stays_away);
    RUN(test_uniform_under_exclusions);
    RUN(test_merge_is_the_sample_of_both);
    RUN(test_merge_with_exclusions_keeps_the_smaller_tau);
    RUN(test_an_exclusion_learnt_late);
    RUN(test_hostile_exclusions);
    return harness_end();
}
