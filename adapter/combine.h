/* combine.h - many deltas into one candidate: clipped, capped, weighted mean of factors, streamed from files.
 *
 *     candidate = parent + step * sum_i w_i c_i delta_i
 *
 * w_i: target tokens over their sum, none above weight_cap / N (what the cap takes goes to the others in proportion);
 * c_i = min(1, clip * median norm / norm_i), the lower median, so that with two deltas the larger one is bounded.
 * Federated averaging (McMahan et al. 2017, arXiv 1602.05629) of LoRA factors with outer rate 1.
 *
 * Averaging A and B apart is not averaging the products: the difference is sum_i w_i (B_i - B)(A_i - A), the
 * cross-covariance of the drifts (FedEx-LoRA, arXiv 2410.09432). Its Frobenius norm is estimated in the same pass by
 * random signs z: E||M z||^2 = ||M||_F^2 (Hutchinson 1990), relative to the change of the weights it was meant to make.
 *
 * Memory: two modules' worth of doubles, whatever N. The deltas are taken in the order of (session, lease), so the result
 * does not depend on the order they arrived in, to the last bit. Blocking; no threads of its own.
 */
#ifndef ADAPTER_COMBINE_H
#define ADAPTER_COMBINE_H

#include <stdint.h>

#include "adapter/adapter.h"
#include "adapter/delta.h"
#include "base/ids.h"
#include "base/status.h"

enum { COMBINE_DELTAS_MAX = 512, COMBINE_SKETCHES_MAX = 16 };

struct combine_input {
    int fd; /* of the blob, see blob_open(); borrowed */
    uint64_t bytes;
    struct digest digest; /* the blob's name: checked while the first pass reads it */
    uint64_t target_tokens;
};

struct combine_settings {
    double weight_cap; /* default 2: no delta weighs more than twice an equal share */
    double clip;       /* default 3 x median norm */
    double step;       /* 1, or less for a retry with a shorter step */
    uint32_t sketches; /* sign vectors per module for the error estimate; default 4; 0: none */
    uint64_t seed;     /* of those */
};

struct combine_row { /* what became of one input, in the caller's order */
    struct delta_head head;
    double norm, clip, weight; /* clip: the factor c_i, 1 when it was left alone */
};

struct combine_result {
    double median_norm;
    double norm; /* L2 of the mean delta, before `step` */
    double
        factor_error; /* ||sum w (B_i - B)(A_i - A)||_F / ||change of B A||_F of the full step; estimated; 0 if n = 1 */
    uint64_t target_tokens;
};

struct combine_settings combine_defaults(void);

/* Reads one input whole: digest, shape, every value; fills head and norm of its row. ST_CORRUPT: the blob is not what its name
 * says. ST_BAD_DATA, ST_UNSUPPORTED: the delta is not one of this line. */
enum status combine_check(const struct adapter_shape *shape, const struct combine_input *in, struct combine_row *row,
                          struct err *err);

/* Writes the candidate block (adapter_floats) and rows[n]. Deltas with no target tokens have weight 0.
 * ST_USAGE: n out of range, settings out of range, no target tokens at all, or two deltas of one lease. ST_CORRUPT: a
 * blob is not what its name says. ST_BAD_DATA: a delta of another shape, or not finite; the text names the
 * input. On any error `candidate` is undefined, rows of inputs before the bad one are filled. */
enum status combine(const struct adapter_shape *shape, const float *parent, const struct combine_input *inputs,
                    uint32_t n, const struct combine_settings *settings, float *candidate, struct combine_row *rows,
                    struct combine_result *result, struct err *err);

/* The same for inputs that combine_check() has passed, with the rows it filled. */
enum status combine_checked(const struct adapter_shape *shape, const float *parent, const struct combine_input *inputs,
                            uint32_t n, const struct combine_settings *settings, float *candidate,
                            struct combine_row *rows, struct combine_result *result, struct err *err);

/* What a lineage publishes of its training states: their exponential mean over the versions, in which what was published before counts
 * `ema` (temporal ensembles: Soutif-Cormerais et al. 2023, arXiv 2306.16817), and of what that adds to the base the part `scale` (between
 * base and tuned weights: Wortsman et al. 2022, arXiv 2109.01903). */
struct publish_rule {
    double ema;   /* 0 .. below 1 */
    double scale; /* above 0 .. 1 */
};

static inline bool publish_rule_plain(const struct publish_rule *rule) /* the state itself is published */
{
    return rule->ema == 0 && rule->scale == 1;
}

/* `published`: of the parent; becomes what follows it. Version 0 has learnt nothing that counts: what follows it has an `ema` of 0. */
void publish_next(const struct adapter_shape *shape, const struct publish_rule *rule, const float *state,
                  float *published);

#endif
