/* plan.h - from a lease to the exact samples of every optimiser step. Pure: same lease, same list, whoever computes it.
 *
 * A worker goes through these stages:
 *   view_exclude    the line's exclusions, in order, up to the lease's exclusion_seq at least;
 *   plan_begin      which segments: the lease's own in its order, and a draw from the anchor and from history;
 *   (the shell gets their text and tokenises it)
 *   plan_order      which samples in which order, and which of them make each step. A pool that ran short is drawn
 *                   further (plan_more) and the stage repeated: a longer draw begins with the shorter one, and only what is
 *                   used decides, so how much was drawn at first changes nothing;
 *   plan_losses     the samples' losses given back to the fresh segments.
 * Nothing here asks what is cached: only the lease, the exclusions and the text decide.
 *
 * Samples. The tokens of a pool's segments are laid end to end, in lease order or draw order. Fresh neighbours of one
 * group (offset after offset, same domain, same group, text) form a run; so does every other segment alone. A run is
 * cut every R tokens, R = min(seq_tokens, step_tokens), each piece with the token that follows it: n tokens ask n - 1
 * questions (model/pack.h), so that every token of a run but its first is a target exactly once. Fresh samples are
 * shuffled and mixed with replayed segments by mix_order(); a step is the longest prefix of what is left with at most
 * step_tokens rows. Segments are tokenised one by one: a merge across the border of two neighbours is not made.
 */
#ifndef WORKER_PLAN_H
#define WORKER_PLAN_H

#include <stdbool.h>
#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/hash.h"
#include "base/limits.h"
#include "base/status.h"
#include "replay/mix.h"

/* ---- what a worker knows of replay: the exclusions, and a sample per domain, moved to each lease's watermark */

struct view;

struct view *view_new(const struct sip_key *seed);
void view_free(struct view *view); /* NULL is fine */

/* Takes the entries whose seq is beyond view_seq(). ST_BAD_DATA, and the view untouched: a seq that does not rise, a domain
 * or range out of bounds, a watermark that falls within its domain. */
enum status view_exclude(struct view *view, const Alv__Exclusions *exclusions, struct err *err);
uint64_t view_seq(const struct view *view); /* newest exclusion taken; 0: none */
/* Is this segment in its domain's sample, as of the last plan? For the cache's eviction. */
bool view_member(const struct view *view, struct domain_id domain, uint64_t offset);

/* ---- the border: what the codec cannot know about a task */

/* ST_BAD_DATA, with the field, unless: the ranges rise, do not overlap, and hold 1 ..
 * LIMIT_LEASE_SEGMENTS segments; domains rise; the settings are of a size we can work with. */
enum status plan_check_lease(const Alv__Lease *lease, struct err *err);
/* ST_BAD_DATA unless 1 .. LIMIT_EVAL_ADAPTERS adapters, 1 .. LIMIT_EVAL_WINDOWS windows, window_tokens in 2 .. 65536. */
enum status plan_check_evaluate(const Alv__Evaluate *evaluate, struct err *err);

/* ---- one lease */

enum {
    PLAN_DRAW_MAX = 4 * LIMIT_LEASE_SEGMENTS
}; /* of one pool: shares are below 100 %, so this is never met in earnest */

struct plan { /* zeroed is empty */
    uint64_t seed;
    uint32_t step_rows, sample_rows;
    uint32_t share_permille[MIX_POOLS];
    struct mix_segment *segments[MIX_POOLS]; /* fresh: lease order. Replay: draw order, with repetitions */
    uint32_t n[MIX_POOLS];
};

/* Moves the view's samples to the lease's watermarks and lists the segments. The lease has passed plan_check_lease().
 * ST_AGAIN: the lease needs exclusions beyond view_seq(). ST_BAD_DATA: an exclusion takes effect above the watermark. */
enum status plan_begin(struct view *view, const Alv__Lease *lease, struct plan *out, struct err *err);
/* Doubles the draw of one replay pool; false: there is nothing more to draw. The view is as plan_begin() left it. */
bool plan_more(const struct view *view, const Alv__Lease *lease, struct plan *plan, enum mix_pool pool);
void plan_release(struct plan *plan);

/* What the order depends on of a segment's text. */
struct plan_text {
    uint32_t n_tokens;
    uint64_t group; /* of the document */
    bool joins;     /* text: may continue its neighbour; a chat stands alone */
};

struct plan_sample {
    enum mix_pool pool;
    uint64_t begin;    /* in the pool's tokens, laid end to end */
    uint32_t n_tokens; /* at least 2, at most sample_rows + 1 */
};

struct plan_order { /* zeroed is empty */
    struct plan_sample *samples;
    uint32_t n_samples;
    uint32_t *steps; /* (n_steps + 1): step t trains samples [steps[t], steps[t + 1]) */
    uint32_t n_steps;
    uint64_t rows[MIX_POOLS];
    bool ran_short[MIX_POOLS];
};

/* `texts[pool]` has plan->n[pool] entries. A lease whose text has no token to learn gives no steps. */
void plan_order(const struct plan *plan, const struct plan_text *const texts[MIX_POOLS], struct plan_order *out);
void plan_order_release(struct plan_order *order);

/* Mean loss in nats of each fresh segment from the samples' summed losses and targets (in the order of `order`). A
 * sample that spans several segments counts for each with its mean. out[plan->n[MIX_FRESH]]; 0 where a segment holds no
 * target. */
void plan_losses(const struct plan *plan, const struct plan_text *fresh, const struct plan_order *order,
                 const double *sample_nll, const uint32_t *sample_targets, float *out);

#endif
