/* ops_products.h - what the fast tables share: everything that multiplies, over one library's `multiply`. See ops.h.
 *
 * A file that has a library includes this once and defines multiply(). The library runs single-threaded and each of our
 * threads multiplies its own part of the output. So there is one pool, which also does the row loops and the attention
 * tiles, and no product waits for a library's idle threads.
 */
#ifndef MODEL_OPS_PRODUCTS_H
#define MODEL_OPS_PRODUCTS_H

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "model/ops.h"
#include "model/simd.h"

/* C (M, N) = alpha op(A) (M, K) op(B) (K, N) + beta C */
struct product {
    bool ta, tb;
    uint32_t M, N, K;
    float alpha, beta;
    const float *A, *B;
    float *C;
    size_t lda, ldb, ldc;
    uint32_t threads;
};

static void multiply(const struct product *p);

/* Splits the longer side of the output, so that a sum is never split. */
static void multiply_share(void *arg, uint32_t thread)
{
    struct product p = *(struct product *)arg;
    uint32_t begin, end;
    if (p.M >= p.N) {
        pool_share(p.M, 16, thread, p.threads, &begin, &end);
        p.A += p.ta ? begin : begin * p.lda;
        p.C += begin * p.ldc;
        p.M = end - begin;
    } else {
        pool_share(p.N, 16, thread, p.threads, &begin, &end);
        p.B += p.tb ? begin * p.ldb : begin;
        p.C += begin;
        p.N = end - begin;
    }
    multiply(&p);
}

static void multiply_all(struct pool *pool, struct product p)
{
    p.threads = pool_threads(pool);
    pool_run(pool, (uint64_t)p.M * p.N * p.K, multiply_share, &p);
}

static void linear(struct pool *pool, float *Y, size_t ldy, const float *X, size_t ldx, const float *W, size_t ldw,
                   uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    multiply_all(pool, (struct product){false, true, M, N, I, s, accumulate, X, W, Y, ldx, ldw, ldy, 0});
}

static void linear_dx(struct pool *pool, float *dX, size_t lddx, const float *dY, size_t lddy, const float *W,
                      size_t ldw, uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    multiply_all(pool, (struct product){false, false, M, I, N, s, accumulate, dY, W, dX, lddy, ldw, lddx, 0});
}

static void linear_dw(struct pool *pool, float *dW, size_t lddw, const float *dY, size_t lddy, const float *X,
                      size_t ldx, uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    multiply_all(pool, (struct product){true, false, N, I, M, s, accumulate, dY, X, dW, lddy, ldx, lddw, 0});
}

struct merging {
    float *merged;
    const float *W, *A, *B;
    uint32_t N, I, R, threads;
    float s;
};

/* In pieces of rows that stay in cache between the copy and the product. */
enum { MERGE_ROWS = 96 };

static void merge_share(void *arg, uint32_t thread)
{
    const struct merging *g = arg;
    uint32_t begin, end;
    pool_share(g->N, 16, thread, g->threads, &begin, &end);
    for (uint32_t n = begin; n < end; n += MERGE_ROWS) {
        uint32_t rows = end - n < MERGE_ROWS ? end - n : MERGE_ROWS;
        size_t at = (size_t)n * g->I;
        memcpy(g->merged + at, g->W + at, (size_t)rows * g->I * sizeof(float));
        multiply(&(struct product){false, false, rows, g->I, g->R, g->s, 1, g->B + (size_t)n * g->R, g->A,
                                   g->merged + at, g->R, g->I, g->I, 0});
    }
}

static void merge(struct pool *pool, float *merged, const float *W, const float *A, const float *B, uint32_t N,
                  uint32_t I, uint32_t R, float s)
{
    struct merging g = {merged, W, A, B, N, I, R, pool_threads(pool), s};
    pool_run(pool, (uint64_t)N * I * (R + 1), merge_share, &g);
}

/* ------------------------------------------------------------------ attention */

/* One tile is one kv head of one sample: its keys and values are read by all the query heads of the group, stacked, so
 * that each product is (group * rows) high and dK and dV belong to one thread. Query rows go in blocks; a block multiplies
 * only with keys up to its own end. */
enum { BLOCK_ROWS = 64 };

struct tiles {
    void (*tile)(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch);
    const struct attention *a;
    float *out, *lse, *dqkv;
    const float *qkv, *dout, *saved_out, *saved_lse;
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

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

static size_t scratch_each(uint32_t G, uint32_t D, uint32_t seq_max)
{
    return 2 * round16((size_t)G * BLOCK_ROWS * seq_max) + 3 * round16((size_t)G * BLOCK_ROWS * D);
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

/* Rows [r0, r0 + n) of the group's heads, one head below the other: (G*n, D), from or to rows `ld` apart. */
static void stack_heads(float *stacked, const float *from, size_t ld, const struct tile_view *v, uint32_t r0,
                        uint32_t n)
{
    for (size_t g = 0; g < v->G; g++)
        for (size_t r = 0; r < n; r++)
            memcpy(stacked + (g * n + r) * v->D, from + (r0 + r) * ld + g * v->D, v->D * sizeof(float));
}

static void forward_tile(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch)
{
    struct tile_view v = view_of(t->a, sample, kv_head);
    float *P = scratch, *Q = P + 2 * round16((size_t)v.G * BLOCK_ROWS * v.T);
    float *O = Q + round16((size_t)v.G * BLOCK_ROWS * v.D);
    for (uint32_t r0 = 0; r0 < v.T; r0 += BLOCK_ROWS) {
        uint32_t n = v.T - r0 < BLOCK_ROWS ? v.T - r0 : BLOCK_ROWS, keys = r0 + n, rows = v.G * n;
        stack_heads(Q, t->qkv + v.q, v.ld, &v, r0, n);
        multiply(&(struct product){false, true, rows, keys, v.D, v.scale, 0, Q, t->qkv + v.k, P, v.D, v.ld, keys, 0});
        for (uint32_t i = 0; i < rows; i++) {
            uint32_t g = i / n, r = r0 + i % n;
            float *p = P + (size_t)i * keys, max = simd_max(p, r + 1);
            double sum = simd_exp(p, 1, max, r + 1);
            simd_scale(p, (float)(1 / sum), r + 1);
            memset(p + r + 1, 0, (keys - r - 1) * sizeof *p);
            t->lse[v.lse + (size_t)r * v.H + g] = max + (float)log(sum);
        }
        multiply(&(struct product){false, false, rows, v.D, keys, 1, 0, P, t->qkv + v.v, O, keys, v.ld, v.D, 0});
        for (size_t i = 0; i < rows; i++)
            memcpy(t->out + v.o + (r0 + i % n) * v.ldo + i / n * v.D, O + i * v.D, v.D * sizeof(float));
    }
}

static void backward_tile(const struct tiles *t, uint32_t sample, uint32_t kv_head, float *scratch)
{
    struct tile_view v = view_of(t->a, sample, kv_head);
    float *P = scratch, *S = P + round16((size_t)v.G * BLOCK_ROWS * v.T);
    float *Q = S + round16((size_t)v.G * BLOCK_ROWS * v.T), *O = Q + round16((size_t)v.G * BLOCK_ROWS * v.D);
    float *dQ = O + round16((size_t)v.G * BLOCK_ROWS * v.D);
    const float *k = t->qkv + v.k, *val = t->qkv + v.v;
    float *dk = t->dqkv + v.k, *dv = t->dqkv + v.v;
    for (size_t r = 0; r < v.T; r++) {
        memset(dk + r * v.ld, 0, v.D * sizeof(float));
        memset(dv + r * v.ld, 0, v.D * sizeof(float));
    }
    for (uint32_t r0 = 0; r0 < v.T; r0 += BLOCK_ROWS) {
        uint32_t n = v.T - r0 < BLOCK_ROWS ? v.T - r0 : BLOCK_ROWS, keys = r0 + n, rows = v.G * n;
        stack_heads(Q, t->qkv + v.q, v.ld, &v, r0, n);
        stack_heads(O, t->dout + v.o, v.ldo, &v, r0, n);
        multiply(&(struct product){false, true, rows, keys, v.D, v.scale, 0, Q, k, P, v.D, v.ld, keys, 0});
        multiply(&(struct product){false, true, rows, keys, v.D, 1, 0, O, val, S, v.D, v.ld, keys, 0});
        for (uint32_t i = 0; i < rows; i++) {
            uint32_t g = i / n, r = r0 + i % n, rest = keys - r - 1;
            float *p = P + (size_t)i * keys, *s = S + (size_t)i * keys;
            float delta = simd_dot(O + (size_t)i * v.D, t->saved_out + v.o + r * v.ldo + (size_t)g * v.D, v.D);
            simd_exp(p, 1, t->saved_lse[v.lse + (size_t)r * v.H + g], r + 1);
            simd_softmax_dx(s, p, delta, v.scale, r + 1);
            memset(p + r + 1, 0, rest * sizeof *p);
            memset(s + r + 1, 0, rest * sizeof *s);
        }
        multiply(&(struct product){true, false, keys, v.D, rows, 1, 1, P, O, dv, keys, v.D, v.ld, 0});
        multiply(&(struct product){true, false, keys, v.D, rows, 1, 1, S, Q, dk, keys, v.D, v.ld, 0});
        multiply(&(struct product){false, false, rows, v.D, keys, 1, 0, S, k, dQ, keys, v.ld, v.D, 0});
        for (size_t i = 0; i < rows; i++)
            memcpy(t->dqkv + v.q + (r0 + i % n) * v.ld + i / n * v.D, dQ + i * v.D, v.D * sizeof(float));
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

static void attention(struct pool *pool, float *out, float *lse, const float *qkv, const struct attention *a)
{
    struct tiles t = {.tile = forward_tile, .a = a, .out = out, .lse = lse, .qkv = qkv};
    tiles_all(pool, &t);
}

static void attention_back(struct pool *pool, float *dqkv, const float *dout, const float *out, const float *lse,
                           const float *qkv, const struct attention *a)
{
    struct tiles t = {
        .tile = backward_tile, .a = a, .dqkv = dqkv, .dout = dout, .saved_out = out, .saved_lse = lse, .qkv = qkv};
    tiles_all(pool, &t);
}

#define OPS_PRODUCTS                                                                                          \
    .linear = linear, .linear_dx = linear_dx, .linear_dw = linear_dw, .merge = merge, .attention = attention, \
    .attention_back = attention_back, .attention_scratch = attention_scratch

#endif
