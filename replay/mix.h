/* mix.h - a lease turned into the exact list of segments to train, in order. Pure integer arithmetic.
 *
 * Three pools: fresh (the lease's own segments), anchor (domain 0, `general`) and history (the other domains' samples).
 * The worker calls, in this order:
 *   0. mix_shuffle     the order of the fresh segments, so that domains mix;
 *   1. mix_draw        for the anchor and for the history pool: which replayed segments, in which order;
 *   2. mix_order       with everyone's token counts (the worker has fetched and tokenised them by now).
 * All depend on the lease's seed, the lease and the samples: never on who computes them, nor on how many workers there
 * are. Each stage has its own random stream, and a longer draw begins with the shorter one: when mix_order() says that a
 * pool ran short, draw more and call it again.
 */
#ifndef REPLAY_MIX_H
#define REPLAY_MIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ids.h"

enum mix_pool { MIX_FRESH, MIX_HISTORY, MIX_ANCHOR, MIX_POOLS };

struct mix_domain { /* one domain to draw from */
    struct domain_id domain;
    uint32_t weight; /* chosen in proportion; the lease carries it (for history: sqrt of tokens, with a floor) */
    const uint64_t *members; /* sample_members(): rising; borrowed */
    uint32_t n;
};

struct mix_segment {
    struct domain_id domain;
    uint64_t offset;
};

/* A seeded permutation of 0 .. n-1. */
void mix_shuffle(uint64_t lease_seed, uint32_t n, uint32_t *order);

/* Draws `wanted` segments: the domain by weight, then the next of that domain's seeded permutation (without
 * replacement; when all were drawn, another permutation). Domains rising by id; those without members or weight are passed
 * over. Returns `wanted`, or 0 when nothing can be drawn. */
uint32_t mix_draw(uint64_t lease_seed, enum mix_pool pool, const struct mix_domain *domains, uint32_t n_domains,
                  uint32_t wanted, struct mix_segment *out);

/* How many tokens of a replay pool go with so many fresh ones. Shares in permille of all tokens, sum below 1000. */
uint64_t mix_tokens_wanted(uint64_t fresh_tokens, uint32_t share_permille, uint32_t other_share_permille);

struct mix_input {
    const uint32_t *tokens[MIX_POOLS]; /* of each segment of a pool, in the order of stages 0 and 1; each > 0 */
    uint32_t n[MIX_POOLS];
    uint32_t share_permille[MIX_POOLS]; /* MIX_FRESH is ignored: it takes the rest */
};

struct mix_item {
    enum mix_pool pool;
    uint32_t index; /* within its pool */
};

struct mix_result {
    uint32_t n;                 /* items written */
    uint64_t tokens[MIX_POOLS]; /* taken from each pool */
    bool ran_short[MIX_POOLS];  /* the pool was due but used up: its share went to the others */
};

/* The sequence: at each point the pool that lags most behind its share of the tokens, ties to fresh, then history;
 * ends when fresh is used up. A pool is never more than one segment ahead of its share, nor two behind. `out` holds
 * n[0] + n[1] + n[2]. Shares must sum to less than 1000. */
void mix_order(const struct mix_input *input, struct mix_item *out, struct mix_result *result);

#endif
