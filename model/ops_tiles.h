/* ops_tiles.h - how the fast tables split attention over the pool. The file that includes this once defines the work of a tile,
 * forward_tile() and backward_tile(), and scratch_each(), the numbers it takes for that.
 *
 * One tile is one kv head of one sample: its keys and values are read by all the query heads of the group, stacked, so
 * that each product is (group * rows) high and dK and dV belong to one thread. Query rows go in blocks; a block multiplies
 * only with keys up to its own end.
 */
#ifndef MODEL_OPS_TILES_H
#define MODEL_OPS_TILES_H

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "model/ops.h"
#include "model/simd.h"

enum { BLOCK_ROWS = 64 };

struct tiles {
    void (*tile)(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch);
    const struct attention *a;
    void *out; /* and qkv, dout, saved_out: activations */
    float *lse, *dqkv;
    const float *saved_lse;
    const void *qkv, *dout, *saved_out;
    size_t scratch_each;
    atomic_uint next;
};

struct tile_view {
    uint32_t T, D, G;
    size_t ld, ldo; /* between rows of qkv, of out */
    size_t q, k, v; /* where row 0 of the sample begins in qkv */
    size_t o;       /* and in out */
    size_t lse;     /* and in lse: + row * H + g */
    uint32_t H;
    float scale;
};

static size_t scratch_each(uint32_t G, uint32_t D, uint32_t seq_max);
static void forward_tile(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch);
static void backward_tile(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch);
static float dot_saved(const float *x, const void *saved, size_t at,
                       uint32_t n); /* x times n activations from `at` on */

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

static size_t attention_scratch(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t seq_max,
                                uint32_t threads)
{
    return threads * scratch_each(n_heads / n_kv_heads, head_dim, seq_max) + 16;
}

static struct tile_view view_of(const struct attention *a, uint32_t sample, uint32_t kv_head)
{
    uint32_t D = a->head_dim, H = a->n_heads, K = a->n_kv_heads, G = H / K;
    size_t row = a->cu_seqlens[sample];
    struct tile_view v = {.T = a->cu_seqlens[sample + 1] - a->cu_seqlens[sample], .D = D, .G = G, .H = H};
    v.ld = (size_t)(H + 2 * K) * D;
    v.ldo = (size_t)H * D;
    v.q = row * v.ld + (size_t)kv_head * G * D;
    v.k = row * v.ld + (size_t)(H + kv_head) * D;
    v.v = v.k + (size_t)K * D;
    v.o = row * v.ldo + (size_t)kv_head * G * D;
    v.lse = row * H + (size_t)kv_head * G;
    v.scale = 1 / sqrtf((float)D);
    return v;
}

/* Rows [r0, r0 + n) of the group's heads, one head below the other in `stacked` (G*n, D), back to rows `ld` apart. */
static void unstack_heads(float *to, size_t ld, const float *stacked, const struct tile_view *v, uint32_t r0,
                          uint32_t n)
{
    for (size_t g = 0; g < v->G; g++)
        for (size_t r = 0; r < n; r++)
            memcpy(to + (r0 + r) * ld + g * v->D, stacked + (g * n + r) * v->D, v->D * sizeof(float));
}

static void clear_rows(float *to, size_t ld, uint32_t rows, uint32_t D)
{
    for (size_t r = 0; r < rows; r++)
        memset(to + r * ld, 0, D * sizeof(float));
}

/* P (G*n, keys): scores become probabilities, none behind the row's own place; their log-sum-exp is saved. */
static void softmax(const struct tiles *t, const struct tile_view *v, float *P, uint32_t keys, uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < v->G * n; i++) {
        uint32_t g = i / n, r = r0 + i % n;
        float *p = P + (size_t)i * keys, max = simd_max(p, r + 1);
        double sum = simd_exp(p, 1, max, r + 1);
        simd_scale(p, (float)(1 / sum), r + 1);
        memset(p + r + 1, 0, (keys - r - 1) * sizeof *p);
        t->lse[v->lse + (size_t)r * v->H + g] = max + (float)log(sum);
    }
}

/* P: scores become probabilities again; S: the gradients of the probabilities become those of the scores. dO (G*n, D). */
static void softmax_back(const struct tiles *t, const struct tile_view *v, float *P, float *S, const float *dO,
                         uint32_t keys, uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < v->G * n; i++) {
        uint32_t g = i / n, r = r0 + i % n, rest = keys - r - 1;
        float *p = P + (size_t)i * keys, *s = S + (size_t)i * keys;
        float delta = dot_saved(dO + (size_t)i * v->D, t->saved_out, v->o + r * v->ldo + (size_t)g * v->D, v->D);
        simd_exp(p, 1, t->saved_lse[v->lse + (size_t)r * v->H + g], r + 1);
        simd_softmax_dx(s, p, delta, v->scale, r + 1);
        memset(p + r + 1, 0, rest * sizeof *p);
        memset(s + r + 1, 0, rest * sizeof *s);
    }
}

static void tiles_share(void *arg, uint32_t thread)
{
    struct tiles *t = arg;
    float *scratch = t->a->scratch + thread * t->scratch_each;
    for (;;) {
        uint32_t i = atomic_fetch_add(&t->next, 1);
        if (i >= t->a->n_samples * t->a->n_kv_heads)
            return;
        t->tile(t, i / t->a->n_kv_heads, i % t->a->n_kv_heads, scratch);
    }
}

static void tiles_all(struct pool *pool, struct tiles *t)
{
    uint32_t longest = 0;
    uint64_t work = 0;
    for (uint32_t s = 0; s < t->a->n_samples; s++) {
        uint32_t T = t->a->cu_seqlens[s + 1] - t->a->cu_seqlens[s];
        longest = T > longest ? T : longest;
        work += (uint64_t)T * T * t->a->n_heads * t->a->head_dim;
    }
    t->scratch_each = scratch_each(t->a->n_heads / t->a->n_kv_heads, t->a->head_dim, longest);
    pool_run(pool, work, tiles_share, t);
}

static void attention(struct pool *pool, void *out, float *lse, const void *qkv, const struct attention *a)
{
    struct tiles t = {.tile = forward_tile, .a = a, .out = out, .lse = lse, .qkv = qkv};
    tiles_all(pool, &t);
}

static void attention_back(struct pool *pool, float *dqkv, const void *dout, const void *out, const float *lse,
                           const void *qkv, const struct attention *a)
{
    struct tiles t = {
        .tile = backward_tile, .a = a, .dqkv = dqkv, .dout = dout, .saved_out = out, .saved_lse = lse, .qkv = qkv};
    tiles_all(pool, &t);
}

#endif
