/* sample.h - a uniform sample of one domain's settled history, as a pure function of (watermark, exclusions).
 *
 * Bottom-k sampling with a threshold that never rises (Cohen and Kaplan, "Summarizing data using bottom-k sketches",
 * PODC 2007; Ting, "Adaptive threshold sampling", SIGMOD 2022). The law, step by step:
 *   - offsets arrive in order 0, 1, 2, ... up to the watermark H (exclusive); an exclusion (seq, at, first, count) takes
 *     effect after the arrival of at - 1 and before that of at;
 *   - tau starts above every key. An arrival that is not excluded and whose (key, offset) is below tau is taken; when
 *     more than k are held, the largest leaves. While k are held, tau is the largest held;
 *   - an exclusion removes what it covers; tau stays where it is, so later arrivals refill the sample without bias.
 * Hence: what has left never returns; the sample is {o < H : (key, o) <= tau, not excluded}; it is a uniform sample
 * without replacement of the not excluded history as long as exclusions do not look at keys.
 *
 * Pure; no randomness but the seed. Cost: one SipHash an arrival, O(log k) for the few that enter, O(1) a draw.
 */
#ifndef REPLAY_SAMPLE_H
#define REPLAY_SAMPLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/ids.h"
#include "base/status.h"

enum { SAMPLE_K_MAX = 1 << 24 };

/* Offsets [first, first + count) of a domain that are retracted, superseded or quarantined. `seq` counts up from 1 within
 * the line; `at` is the domain's watermark when it was recorded, so it never falls from one to the next. The range
 * may lie above `at` (quarantined before it was settled): then it never enters. */
struct exclusion {
    uint64_t seq, at, first, count;
};

struct sample_member {
    uint64_t key, offset;
};

struct sample {
    struct sip_key seed;
    struct domain_id domain;
    uint32_t k;
    uint64_t start;             /* first offset of the slice this sample is of; 0 but for merging */
    uint64_t watermark;         /* H: offsets below it have arrived */
    uint64_t seq;               /* last exclusion that took effect */
    struct sample_member tau;   /* (key, offset): members are at or below */
    struct sample_member *heap; /* the n members, largest (key, offset) first */
    uint32_t n;
    uint32_t *slots; /* offset -> place in heap, plus 1; open addressing on the key */
    uint32_t n_slots, heap_cap;
    struct exclusion *ahead; /* ranges not yet arrived, sorted and disjoint */
    uint32_t n_ahead, ahead_cap;
};

/* An empty sample. 1 <= k <= SAMPLE_K_MAX is the caller's to ensure. Memory grows with the members, not with k. */
void sample_init(struct sample *sample, const struct sip_key *seed, struct domain_id domain, uint32_t k);
void sample_release(struct sample *sample);

/* Brings the sample to exactly (watermark, seq): as if rebuilt from nothing with the exclusions whose seq <= `seq`. Goes
 * forward when that is possible, starts again when it is not (older watermark or seq: the cost is one hash per
 * offset). `exclusions` is this domain's whole list, seq rising; ST_BAD_DATA when it is not in order, when `at` falls or
 * a range overflows; ST_USAGE when an exclusion of seq <= `seq` has at > watermark. Then the sample is untouched. */
enum status sample_to(struct sample *sample, uint64_t watermark, uint64_t seq, const struct exclusion *exclusions,
                      size_t n, struct err *err);

bool sample_contains(const struct sample *sample, uint64_t offset);
/* What a trimmed log must keep for replay: the members, and all at or above the watermark. */
bool sample_retains(const struct sample *sample, uint64_t offset);
/* The members' offsets, rising: the form to compute with, since it depends on nothing but the law. out[n]. */
void sample_members(const struct sample *sample, uint64_t *out);
/* One member, uniformly, in O(1). n > 0. Reproducible only for the same sequence of calls (heap order). */
uint64_t sample_draw(const struct sample *sample, struct rng *rng);

/* A slice starting at `start`, to be merged: histories can be sampled in parallel. Before the first sample_to(). */
void sample_start_at(struct sample *sample, uint64_t start);
/* Adds the sample of the slice that follows (from->start == into->watermark; same seed, domain and k): the smaller tau
 * wins. Without exclusions the result is that of the whole; with them still uniform, but not the law's. */
void sample_merge(struct sample *into, const struct sample *from);

#endif
