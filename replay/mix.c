#include "replay/mix.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "base/hash.h"

/* A random stream of its own for each use, so that a longer list in one place changes nothing in another. */
enum stream { STREAM_FRESH = 1, STREAM_DOMAIN_CHOICE, STREAM_PERMUTATION };

static struct rng stream_of(uint64_t lease_seed, enum stream stream, uint64_t which)
{
    struct rng rng;
    rng_seed(&rng, lease_seed);
    rng_seed(&rng, rng_u64(&rng) ^ (uint64_t)stream << 56 ^ which);
    return rng;
}

void mix_shuffle(uint64_t lease_seed, uint32_t n, uint32_t *order)
{
    struct rng rng = stream_of(lease_seed, STREAM_FRESH, 0);
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n; i > 1; i--) { /* Fisher and Yates */
        uint32_t j = (uint32_t)rng_below(&rng, i), t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
}

/* One domain's seeded permutations, made as far as they are asked for. */
struct deck {
    const struct mix_domain *domain;
    struct rng rng;
    uint32_t *left; /* indices into members; [0, at) were dealt in this pass */
    uint32_t at;
};

static uint64_t deal(struct deck *deck)
{
    uint32_t n = deck->domain->n;
    if (!deck->left) {
        deck->left = xmalloc(n * sizeof *deck->left);
        for (uint32_t i = 0; i < n; i++)
            deck->left[i] = i;
    }
    if (deck->at == n)
        deck->at = 0;
    uint32_t j = deck->at + (uint32_t)rng_below(&deck->rng, n - deck->at), got = deck->left[j];
    deck->left[j] = deck->left[deck->at];
    deck->left[deck->at++] = got;
    return deck->domain->members[got];
}

uint32_t mix_draw(uint64_t lease_seed, enum mix_pool pool, const struct mix_domain *domains, uint32_t n_domains,
                  uint32_t wanted, struct mix_segment *out)
{
    uint64_t weights = 0;
    struct rng choice = stream_of(lease_seed, STREAM_DOMAIN_CHOICE, pool);
    struct deck *decks = xcalloc(n_domains, sizeof *decks);
    for (uint32_t d = 0; d < n_domains; d++) {
        CHECK(d == 0 || domains[d].domain.v > domains[d - 1].domain.v);
        decks[d].domain = &domains[d];
        decks[d].rng = stream_of(lease_seed, STREAM_PERMUTATION, (uint64_t)pool << 16 | domains[d].domain.v);
        weights += domains[d].n ? domains[d].weight : 0;
    }
    uint32_t drawn = 0;
    for (; weights > 0 && drawn < wanted; drawn++) {
        uint64_t r = rng_below(&choice, weights);
        uint32_t d = 0;
        for (;; d++) {
            uint64_t w = domains[d].n ? domains[d].weight : 0;
            if (r < w)
                break;
            r -= w;
        }
        out[drawn] = (struct mix_segment){domains[d].domain, deal(&decks[d])};
    }
    for (uint32_t d = 0; d < n_domains; d++)
        free(decks[d].left);
    free(decks);
    return drawn;
}

uint64_t mix_tokens_wanted(uint64_t fresh_tokens, uint32_t share_permille, uint32_t other_share_permille)
{
    CHECK(share_permille + other_share_permille < 1000 && fresh_tokens < UINT64_MAX / 1000);
    return fresh_tokens * share_permille / (1000 - share_permille - other_share_permille);
}

void mix_order(const struct mix_input *in, struct mix_item *out, struct mix_result *result)
{
    uint64_t share[MIX_POOLS], total = 0;
    uint32_t at[MIX_POOLS] = {0};
    share[MIX_HISTORY] = in->share_permille[MIX_HISTORY];
    share[MIX_ANCHOR] = in->share_permille[MIX_ANCHOR];
    CHECK(share[MIX_HISTORY] + share[MIX_ANCHOR] < 1000);
    share[MIX_FRESH] = 1000 - share[MIX_HISTORY] - share[MIX_ANCHOR];
    *result = (struct mix_result){0};
    while (at[MIX_FRESH] < in->n[MIX_FRESH]) {
        int best = -1;
        int64_t best_lag = 0;
        for (int p = 0; p < MIX_POOLS; p++) {
            int64_t lag = (int64_t)(share[p] * total) - (int64_t)(1000 * result->tokens[p]);
            bool empty = at[p] == in->n[p];
            if (empty && share[p] > 0 && lag >= 0)
                result->ran_short[p] = true;
            if (!empty && share[p] > 0 && (best < 0 || lag > best_lag)) {
                best = p;
                best_lag = lag;
            }
        }
        uint32_t tokens = in->tokens[best][at[best]];
        out[result->n++] = (struct mix_item){(enum mix_pool)best, at[best]++};
        result->tokens[best] += tokens;
        total += tokens;
    }
}
