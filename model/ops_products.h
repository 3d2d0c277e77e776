/* ops_products.h - what the fast tables share: everything that multiplies, over one library's `multiply`. See ops.h.
 *
 * A file that has a library includes this once and defines multiply(). The library runs single-threaded and each of our
 * threads multiplies its own part of the output. So there is one pool, which also does the row loops and the attention
 * tiles, and no product waits for a library's idle threads.
 */
#ifndef MODEL_OPS_PRODUCTS_H
#define MODEL_OPS_PRODUCTS_H

#include <math.h>
#include <string.h>

#include "model/ops_tiles.h"
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

static size_t scratch_each(uint32_t G, uint32_t D, uint32_t seq_max)
{
    struct room r;
    return room_layout(&r, NULL, G, D, seq_max);
}

/* Rows [r0, r0 + n) of the group's heads, one head below the other: (G*n, D), from rows `ld` apart. */
static void stack_heads(float *stacked, const float *from, size_t ld, const struct tile_view *v, uint32_t r0,
                        uint32_t n)
{
    for (size_t g = 0; g < v->G; g++)
        for (size_t r = 0; r < n; r++)
            memcpy(stacked + (g * n + r) * v->D, from + (r0 + r) * ld + g * v->D, v->D * sizeof(float));
}

static float dot_saved(const float *x, const void *saved, size_t at, uint32_t n)
{
    return simd_dot(x, (const float *)saved + at, n);
}

static void forward_piece(const struct tiles *t, const struct tile_view *v, float *scratch)
{
    const float *qkv = t->qkv;
    struct room r;
    room_layout(&r, scratch, v->G, v->D, v->T);
    for (uint32_t r0 = v->begin; r0 < v->end; r0 += BLOCK_ROWS) {
        uint32_t n = v->end - r0 < BLOCK_ROWS ? v->end - r0 : BLOCK_ROWS, end = r0 + n, rows = v->G * n;
        stack_heads(r.Q, qkv + v->q, v->ld, v, r0, n);
        for (uint32_t k0 = 0; k0 < end; k0 += BLOCK_KEYS) {
            uint32_t keys = end - k0 < BLOCK_KEYS ? end - k0 : BLOCK_KEYS;
            const float *k = qkv + v->k + k0 * v->ld, *val = qkv + v->v + k0 * v->ld;
            multiply(&(struct product){false, true, rows, keys, v->D, v->scale, 0, r.Q, k, r.P, v->D, v->ld, keys, 0});
            softmax(v, &r.running, r.P, r.O, k0, keys, r0, n);
            multiply(&(struct product){false, false, rows, v->D, keys, 1, k0 > 0, r.P, val, r.O, keys, v->ld, v->D, 0});
        }
        softmax_end(t, v, &r.running, r.O, r0, n);
        unstack_heads((float *)t->out + v->o, v->ldo, r.O, v, r0, n);
    }
}

static void backward_piece(const struct tiles *t, const struct tile_view *v, float *scratch)
{
    const float *qkv = t->qkv;
    struct room r;
    room_layout(&r, scratch, v->G, v->D, v->T);
    size_t ldq;
    float *dq = piece_dq(t, v, &ldq);
    clear_rows(t->dqkv + v->k + v->begin * v->ld, v->ld, v->end - v->begin, v->D);
    clear_rows(t->dqkv + v->v + v->begin * v->ld, v->ld, v->end - v->begin, v->D);
    for (uint32_t r0 = v->begin; r0 < v->T; r0 += BLOCK_ROWS) {
        uint32_t n = v->T - r0 < BLOCK_ROWS ? v->T - r0 : BLOCK_ROWS, rows = v->G * n;
        uint32_t end = r0 + n < v->end ? r0 + n : v->end;
        stack_heads(r.Q, qkv + v->q, v->ld, v, r0, n);
        stack_heads(r.O, (const float *)t->dout + v->o, v->ldo, v, r0, n);
        deltas(t, v, r.delta, r.O, r0, n);
        for (uint32_t k0 = v->begin; k0 < end; k0 += BLOCK_KEYS) {
            uint32_t keys = end - k0 < BLOCK_KEYS ? end - k0 : BLOCK_KEYS;
            const float *k = qkv + v->k + k0 * v->ld, *val = qkv + v->v + k0 * v->ld;
            float *dk = t->dqkv + v->k + k0 * v->ld, *dv = t->dqkv + v->v + k0 * v->ld;
            multiply(&(struct product){false, true, rows, keys, v->D, v->scale, 0, r.Q, k, r.P, v->D, v->ld, keys, 0});
            multiply(&(struct product){false, true, rows, keys, v->D, 1, 0, r.O, val, r.S, v->D, v->ld, keys, 0});
            softmax_back(t, v, r.P, r.S, r.delta, k0, keys, r0, n);
            multiply(&(struct product){true, false, keys, v->D, rows, 1, 1, r.P, r.O, dv, keys, v->D, v->ld, 0});
            multiply(&(struct product){true, false, keys, v->D, rows, 1, 1, r.S, r.Q, dk, keys, v->D, v->ld, 0});
            multiply(&(struct product){false, false, rows, v->D, keys, 1, k0 > v->begin, r.S, k, r.dQ, keys, v->ld,
                                       v->D, 0});
        }
        unstack_heads(dq, ldq, r.dQ, v, r0, n);
    }
}

#define OPS_PRODUCTS                                                                                          \
    .linear = linear, .linear_dx = linear_dx, .linear_dw = linear_dw, .merge = merge, .attention = attention, \
    .attention_back = attention_back, .attention_scratch = attention_scratch

#endif
