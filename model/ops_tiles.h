/* ops_tiles.h - how the fast tables split attention over the pool. The file that includes this once defines the work of a piece,
 * forward_piece() and backward_piece(), and scratch_each(), the numbers it takes for that.
 *
 * One tile is one kv head of one sample: its keys and values are read by all the query heads of the group, stacked, so
 * that each product is (group * rows) high and dK and dV belong to one thread. Query rows go in blocks, which meet the keys up to
 * their own end in blocks that stay in cache; a row's maximum and sum are carried from one to the next (FlashAttention, arXiv
 * 2205.14135).
 *
 * A long tile is done in pieces, so that a single sample keeps all threads busy: forward by its queries, back by its keys. There
 * each piece has dK and dV of its own keys, and a part of dQ, which are added up at the end in the order of the keys: where a
 * sum is split depends on the sample's length alone, not on the threads.
 */
#ifndef MODEL_OPS_TILES_H
#define MODEL_OPS_TILES_H

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "model/ops.h"
#include "model/simd.h"

/* Each a multiple of the one before: a row sees some of every block it meets. */
enum { BLOCK_ROWS = 64, BLOCK_KEYS = 512, PIECE = 2048 };

struct tile_view {
    uint32_t T, D, G;
    size_t ld, ldo; /* between rows of qkv, of out */
    size_t q, k, v; /* where row 0 of the sample begins in qkv */
    size_t o;       /* and in out */
    size_t lse;     /* and in lse: + row * H + g */
    uint32_t H;
    float scale;
    uint32_t piece, begin, end; /* the piece's queries, or, on the way back, keys */
};

struct tiles {
    void (*work)(const struct tiles *t, const struct tile_view *v, float *scratch);
    bool back;
    const struct attention *a;
    void *out; /* and qkv, dout, saved_out: activations */
    float *lse, *dqkv;
    const float *saved_lse;
    const void *qkv, *dout, *saved_out;
    float *dq_parts; /* (pieces - 1, rows, H*D) of dQ: of the pieces behind the first */
    size_t rows, scratch_each;
    uint32_t pieces, threads; /* pieces: of the longest sample */
    atomic_uint next;
};

static size_t scratch_each(uint32_t G, uint32_t D, uint32_t seq_max);
static void forward_piece(const struct tiles *t, const struct tile_view *v, float *scratch);
static void backward_piece(const struct tiles *t, const struct tile_view *v, float *scratch);
/* x times n activations from `at` on */
static float dot_saved(const float *x, const void *saved, size_t at, uint32_t n);

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

/* For a tile's layout of its scratch: where the next `floats` lie, NULL without one, and what is used up then. */
static size_t give(float **at, float *scratch, size_t used, size_t floats)
{
    *at = scratch ? scratch + used : NULL;
    return used + round16(floats);
}

/* Of the stacked rows of a block, over the blocks of keys so far. */
struct running {
    double *sum; /* of exponentials, less max */
    float *max;
};

/* Of one piece: P and S (rows, keys of a block), and the rows of a block. */
struct room {
    float *P, *S, *Q, *O, *dQ, *delta;
    struct running running;
};

static size_t room_layout(struct room *r, float *scratch, uint32_t G, uint32_t D, uint32_t T)
{
    const size_t rows = (size_t)G * BLOCK_ROWS, keys = T < BLOCK_KEYS ? T : BLOCK_KEYS;
    float *sums;
    size_t used = give(&r->P, scratch, 0, rows * keys);
    used = give(&r->S, scratch, used, rows * keys);
    used = give(&r->Q, scratch, used, rows * D);
    used = give(&r->O, scratch, used, rows * D);
    used = give(&r->dQ, scratch, used, rows * D);
    used = give(&r->delta, scratch, used, rows);
    used = give(&r->running.max, scratch, used, rows);
    used = give(&sums, scratch, used, rows * sizeof(double) / sizeof(float));
    r->running.sum = (double *)(void *)sums;
    return used;
}

static uint32_t pieces_of(uint32_t T)
{
    return (T + PIECE - 1) / PIECE;
}

static size_t attention_scratch(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t rows_back,
                                uint32_t seq_max, uint32_t threads)
{
    const size_t parts = (size_t)(pieces_of(seq_max) - 1) * rows_back * n_heads * head_dim;
    return threads * scratch_each(n_heads / n_kv_heads, head_dim, seq_max) + parts + 16;
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

/* How many of the keys [k0, k0 + keys) row r sees; at least one. */
static uint32_t seen(uint32_t r, uint32_t k0, uint32_t keys)
{
    return r - k0 + 1 < keys ? r - k0 + 1 : keys;
}

/* P (G*n, keys): scores become exponentials, none behind the row's own place. What O (G*n, D) holds of earlier blocks is brought to the
 * new maximum. */
static void softmax(const struct tile_view *v, struct running *s, float *P, float *O, uint32_t k0, uint32_t keys,
                    uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < v->G * n; i++) {
        uint32_t some = seen(r0 + i % n, k0, keys);
        float *p = P + (size_t)i * keys, max = simd_max(p, some);
        double sum = 0;
        if (k0 > 0) {
            max = s->max[i] > max ? s->max[i] : max;
            float fade = expf(s->max[i] - max);
            sum = s->sum[i] * (double)fade;
            simd_scale(O + (size_t)i * v->D, fade, v->D);
        }
        s->sum[i] = sum + simd_exp(p, 1, max, some);
        s->max[i] = max;
        memset(p + some, 0, (keys - some) * sizeof *p);
    }
}

/* After the last block: O is divided by the sums, and log-sum-exp is saved. */
static void softmax_end(const struct tiles *t, const struct tile_view *v, const struct running *s, float *O,
                        uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < v->G * n; i++) {
        simd_scale(O + (size_t)i * v->D, (float)(1 / s->sum[i]), v->D);
        t->lse[v->lse + (size_t)(r0 + i % n) * v->H + i / n] = s->max[i] + (float)log(s->sum[i]);
    }
}

/* delta (G*n): of each stacked row, its gradient dO (G*n, D) times its output. */
static void deltas(const struct tiles *t, const struct tile_view *v, float *delta, const float *dO, uint32_t r0,
                   uint32_t n)
{
    for (size_t i = 0; i < v->G * n; i++)
        delta[i] = dot_saved(dO + i * v->D, t->saved_out, v->o + (r0 + i % n) * v->ldo + i / n * v->D, v->D);
}

/* P: scores become probabilities; S: the gradients of the probabilities become those of the scores. */
static void softmax_back(const struct tiles *t, const struct tile_view *v, float *P, float *S, const float *delta,
                         uint32_t k0, uint32_t keys, uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < v->G * n; i++) {
        uint32_t g = i / n, r = r0 + i % n, some = seen(r, k0, keys), rest = keys - some;
        float *p = P + (size_t)i * keys, *s = S + (size_t)i * keys;
        simd_exp(p, 1, t->saved_lse[v->lse + (size_t)r * v->H + g], some);
        simd_softmax_dx(s, p, delta[i], v->scale, some);
        memset(p + some, 0, rest * sizeof *p);
        memset(s + some, 0, rest * sizeof *s);
    }
}

/* The largest first: the last queries see the most keys, the first keys are seen by the most queries. */
static void tiles_share(void *arg, uint32_t thread)
{
    struct tiles *t = arg;
    const uint32_t K = t->a->n_kv_heads, n = t->a->n_samples * K;
    float *scratch = t->a->scratch + thread * t->scratch_each;
    for (uint32_t i; (i = atomic_fetch_add(&t->next, 1)) < t->pieces * n;) {
        struct tile_view v = view_of(t->a, i % n / K, i % K);
        v.piece = t->back ? i / n : t->pieces - 1 - i / n;
        v.begin = v.piece * PIECE;
        v.end = v.begin + PIECE < v.T ? v.begin + PIECE : v.T;
        if (v.begin < v.end)
            t->work(t, &v, scratch);
    }
}

/* Of the piece: where row 0 of the sample begins in dQ, or in its part, and the distance between rows. */
static float *piece_dq(const struct tiles *t, const struct tile_view *v, size_t *ld)
{
    *ld = v->piece ? v->ldo : v->ld;
    return v->piece ? t->dq_parts + (v->piece - 1) * t->rows * v->ldo + v->o : t->dqkv + v->q;
}

static void add_parts(void *arg, uint32_t thread)
{
    const struct tiles *t = arg;
    const struct attention *a = t->a;
    const size_t width = (size_t)a->n_heads * a->head_dim, ld = width + 2 * (size_t)a->n_kv_heads * a->head_dim;
    uint32_t begin, end;
    pool_share((uint32_t)t->rows, 1, thread, t->threads, &begin, &end);
    for (uint32_t m = begin, s = 0; m < end; m++) {
        while (m >= a->cu_seqlens[s + 1])
            s++;
        for (uint32_t part = 0; part < (m - a->cu_seqlens[s]) / PIECE; part++)
            simd_add(t->dqkv + m * ld, t->dq_parts + (part * t->rows + m) * width, (uint32_t)width);
    }
}

static void tiles_all(struct pool *pool, struct tiles *t)
{
    const struct attention *a = t->a;
    uint32_t longest = 0;
    uint64_t work = 0;
    for (uint32_t s = 0; s < a->n_samples; s++) {
        uint32_t T = a->cu_seqlens[s + 1] - a->cu_seqlens[s];
        longest = T > longest ? T : longest;
        work += (uint64_t)T * T * a->n_heads * a->head_dim;
    }
    t->rows = a->cu_seqlens[a->n_samples];
    t->pieces = pieces_of(longest);
    t->threads = pool_threads(pool);
    t->scratch_each = scratch_each(a->n_heads / a->n_kv_heads, a->head_dim, longest);
    t->dq_parts = a->scratch + t->threads * t->scratch_each;
    pool_run(pool, work, tiles_share, t);
    if (t->back && t->pieces > 1)
        pool_run(pool, t->rows * (uint64_t)a->n_heads * a->head_dim, add_parts, t);
}

static void attention(struct pool *pool, void *out, float *lse, const void *qkv, const struct attention *a)
{
    struct tiles t = {.work = forward_piece, .a = a, .out = out, .lse = lse, .qkv = qkv};
    tiles_all(pool, &t);
}

static void attention_back(struct pool *pool, float *dqkv, const void *dout, const void *out, const float *lse,
                           const void *qkv, const struct attention *a)
{
    struct tiles t = {.work = backward_piece,
                      .back = true,
                      .a = a,
                      .dqkv = dqkv,
                      .dout = dout,
                      .saved_out = out,
                      .saved_lse = lse,
                      .qkv = qkv};
    tiles_all(pool, &t);
}

#endif
