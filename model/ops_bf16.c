/* The table whose products go through bf16 (bf16.h). The frozen matrices come packed; all else is packed where it is used, in pieces
 * that stay in a core's second cache. The sums of a product are never split, so threads change no bit.
 */
#include <stdio.h>

#include "base/check.h"
#include "model/bf16.h"
#include "model/ops_fast.h"
#include "model/ops_tiles.h"

enum {
    STEPS_MAX = 64,     /* k of a piece, in steps */
    PIECE_TILES = 1024, /* of one factor: 1 MB */
    TURNED_TILES = 2 * PIECE_TILES,
    BLOCK = 2 * BF16_ROWS
};

static enum bf16_unit unit;

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* The largest piece of at most `max` when n is cut into equal ones of whole `grain`s. */
static uint32_t equal_piece(uint32_t n, uint32_t max, uint32_t grain)
{
    max = max < grain ? grain : max;
    uint32_t pieces = (n + max - 1) / max;
    return pieces ? ((n + pieces - 1) / pieces + grain - 1) / grain * grain : grain;
}

/* ------------------------------------------------------------------ products of two plain factors */

struct factor { /* rows along the output; see bf16_source */
    const void *data;
    size_t ld;
    bool across;
    uint32_t rows;
    bool half;
};

static void *number_at(const void *data, bool half, size_t at)
{
    return (char *)(uintptr_t)data + at * (half ? sizeof(uint16_t) : sizeof(float));
}

static const void *factor_at(const struct factor *f, uint32_t row, uint32_t k)
{
    return number_at(f->data, f->half, f->across ? k * f->ld + row : row * f->ld + k);
}

struct product { /* C (left.rows, right.rows) over K, added to C if `accumulate`; `turned`: C is its transpose */
    struct factor left, right;
    float *C;
    size_t ldc;
    uint32_t K;
    float scale; /* 1 when both factors are bf16 */
    bool turned, accumulate;
    struct pool *pool;
};

static void pack_piece(uint16_t *out, enum bf16_side side, size_t steps, const struct factor *f, float scale,
                       uint32_t row, uint32_t rows, uint32_t k, uint32_t K)
{
    bf16_pack(out, side, steps, 0, (struct bf16_source){factor_at(f, row, k), f->ld, f->across, scale, f->half}, rows,
              K);
}

static void product_part(const struct product *p, uint16_t *left, uint16_t *right)
{
    const uint32_t K = equal_piece(p->K, STEPS_MAX * BF16_STEP, BF16_STEP), steps = (uint32_t)bf16_steps(K);
    const uint32_t M = equal_piece(p->left.rows, PIECE_TILES / steps * BF16_ROWS / BLOCK * BLOCK, BLOCK);
    const uint32_t N = equal_piece(p->right.rows, PIECE_TILES / steps * BF16_ROWS / BLOCK * BLOCK, BLOCK);
    for (uint32_t k = 0; k < p->K; k += K)
        for (uint32_t n = 0; n < p->right.rows; n += N) {
            uint32_t depth = least(K, p->K - k), columns = least(N, p->right.rows - n);
            const struct bf16_right parts[2] = {{right, steps, (uint32_t)bf16_steps(depth)}, {right, 0, 0}};
            pack_piece(right, BF16_RIGHT, steps, &p->right, p->right.half ? 1 : p->scale, n, columns, k, depth);
            for (uint32_t m = 0; m < p->left.rows; m += M) {
                uint32_t rows = least(M, p->left.rows - m);
                pack_piece(left, BF16_LEFT, steps, &p->left, p->right.half ? p->scale : 1, m, rows, k, depth);
                float *at = p->C + (p->turned ? n * p->ldc + m : m * p->ldc + n);
                const struct bf16_target C = {
                    .data = at, .ld = p->ldc, .addend = p->accumulate || k > 0 ? at : NULL, .turned = p->turned};
                bf16_multiply(unit, C, left, steps, parts, rows, columns);
            }
        }
}

static void product_share(void *arg, uint32_t thread)
{
    struct product p = *(const struct product *)arg;
    struct factor *split = p.left.rows >= p.right.rows ? &p.left : &p.right;
    uint32_t begin, end;
    pool_share(split->rows, BLOCK, thread, pool_threads(p.pool), &begin, &end);
    split->data = factor_at(split, begin, 0);
    split->rows = end - begin;
    p.C += (split == &p.left) != p.turned ? begin * p.ldc : begin;
    uint16_t *workspace = pool_workspace(p.pool, thread);
    if (begin < end)
        product_part(&p, workspace, workspace + (size_t)PIECE_TILES * BF16_TILE);
}

static void product(struct pool *pool, struct product p)
{
    p.pool = pool;
    pool_run(pool, (uint64_t)p.left.rows * p.right.rows * p.K, product_share, &p);
}

static void linear(struct pool *pool, float *Y, size_t ldy, const float *X, size_t ldx, const float *W, size_t ldw,
                   uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    product(pool,
            (struct product){
                {X, ldx, false, M, false}, {W, ldw, false, N, false}, Y, ldy, I, .scale = s, .accumulate = accumulate});
}

static void linear_dx(struct pool *pool, float *dX, size_t lddx, const float *dY, size_t lddy, const float *W,
                      size_t ldw, uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    product(
        pool,
        (struct product){
            {dY, lddy, false, M, false}, {W, ldw, true, I, false}, dX, lddx, N, .scale = s, .accumulate = accumulate});
}

/* A factor across is packed fastest on the right: the larger goes there. */
static void linear_half_dw(struct pool *pool, float *dW, size_t lddw, struct activation dY, size_t lddy, uint32_t n0,
                           struct activation X, size_t ldx, uint32_t M, uint32_t N, uint32_t I, float s,
                           bool accumulate)
{
    struct product p = {{number_at(dY.data, dY.half, n0), lddy, true, N, dY.half},
                        {X.data, ldx, true, I, X.half},
                        dW,
                        lddw,
                        M,
                        .scale = s,
                        .accumulate = accumulate};
    if (N > I) {
        struct factor larger = p.left;
        p.left = p.right;
        p.right = larger;
        p.turned = true;
    }
    product(pool, p);
}

static void linear_dw(struct pool *pool, float *dW, size_t lddw, const float *dY, size_t lddy, const float *X,
                      size_t ldx, uint32_t M, uint32_t N, uint32_t I, float s, bool accumulate)
{
    linear_half_dw(pool, dW, lddw, (struct activation){(float *)(uintptr_t)dY, false}, lddy, 0,
                   (struct activation){(float *)(uintptr_t)X, false}, ldx, M, N, I, s, accumulate);
}

/* ------------------------------------------------------------------ a frozen matrix and what learns beside it */

/* Both ways are one: Z (M, width) = X P^T;  Y (M, N) = X W^T + Z Q^T, with P (width, K) and Q (N, width). It is done in pieces of N
 * and K. For the way back W is packed as K rows of N: the threads turn a piece together, each some columns, into their
 * workspaces, and all read all of it. */
struct beside {
    struct activation Y, X;
    float *Z;
    const uint16_t *W;
    bool back;
    struct factor P, Q;
    uint32_t M, N, K, width;
    const float *addend;
    struct pool *pool;
    uint32_t n, columns, step, steps; /* the piece */
};

/* The turned columns [begin, end) of the piece, which are the thread's. */
static uint16_t *turned_by(const struct beside *b, uint32_t thread, uint32_t *begin, uint32_t *end)
{
    pool_share(b->columns, BLOCK, thread, pool_threads(b->pool), begin, end);
    return (uint16_t *)pool_workspace(b->pool, thread) + (size_t)PIECE_TILES * BF16_TILE;
}

static void turn_share(void *arg, uint32_t thread)
{
    const struct beside *b = arg;
    uint32_t begin, end;
    uint16_t *turned = turned_by(b, thread, &begin, &end);
    if (begin < end)
        bf16_turn(turned, b->W, b->K, b->N, b->n + begin, end - begin, b->step, b->steps);
}

/* Y's columns [n + first, n + last) of packed rows, which Z's follow where `parts` says so. */
static void multiply_part(const struct beside *b, struct bf16_target Y, const uint16_t *left, size_t strip,
                          struct bf16_right parts[2], uint32_t rows, uint32_t first, uint32_t last)
{
    const size_t steps = bf16_steps(b->K);
    const uint16_t *Q = parts[1].tiles;
    if (!b->back) {
        const size_t row = (b->n + first) / BF16_ROWS;
        parts[0] = (struct bf16_right){b->W + (row * steps + b->step) * BF16_TILE, steps, b->steps};
        bf16_multiply(unit, Y, left, strip, parts, rows, last - first);
        return;
    }
    for (uint32_t thread = 0, begin, end; thread < pool_threads(b->pool); thread++) {
        struct bf16_target to = Y;
        parts[0] = (struct bf16_right){turned_by(b, thread, &begin, &end), b->steps, b->steps};
        parts[1].tiles = Q + begin / BF16_ROWS * parts[1].strip * BF16_TILE;
        to.data = number_at(Y.data, Y.half, begin);
        to.addend = Y.addend ? Y.addend + begin : NULL;
        bf16_multiply(unit, to, left, strip, parts, rows, end - begin);
    }
}

/* Rows [row, end) of X, columns [first, last) of the piece; on the way back, all of them. */
static void beside_part(const struct beside *b, uint32_t row, uint32_t end, uint32_t first, uint32_t last,
                        uint16_t *left)
{
    const uint32_t more = (uint32_t)bf16_steps(b->width), strip = b->steps + more;
    const uint32_t piece = equal_piece(end - row, PIECE_TILES / strip * BF16_ROWS / BLOCK * BLOCK, BLOCK);
    const uint32_t k = b->step * BF16_STEP, K = least(b->steps * BF16_STEP, b->K - k);
    uint16_t *P = left + (size_t)(PIECE_TILES + TURNED_TILES) * BF16_TILE,
             *Q = P + bf16_strips(b->width) * b->steps * BF16_TILE;
    if (b->width) {
        pack_piece(P, BF16_RIGHT, b->steps, &b->P, 1, 0, b->width, k, K);
        pack_piece(Q, BF16_RIGHT, more, &b->Q, 1, b->n + first, last - first, 0, b->width);
    }
    for (uint32_t m = row; m < end; m += piece) {
        const uint32_t rows = least(piece, end - m);
        const size_t at = (size_t)m * b->N + b->n + first;
        void *y = number_at(b->Y.data, b->Y.half, at), *x = number_at(b->X.data, b->X.half, (size_t)m * b->K + k);
        const float *addend = k > 0 ? y : b->addend ? b->addend + at : NULL;
        float *Z = b->Z + (size_t)m * b->width;
        struct bf16_right parts[2] = {{P, b->steps, b->steps}, {Q, more, 0}};
        bf16_pack(left, BF16_LEFT, strip, 0, (struct bf16_source){x, b->K, false, 1, b->X.half}, rows, K);
        if (b->width && b->n == 0)
            bf16_multiply(unit, (struct bf16_target){.data = Z, .ld = b->width, .addend = k > 0 ? Z : NULL}, left,
                          strip, parts, rows, b->width);
        if (b->width && k + K == b->K) {
            bf16_pack(left, BF16_LEFT, strip, b->steps, (struct bf16_source){Z, b->width, false, 1, false}, rows,
                      b->width);
            parts[1].steps = more;
        }
        multiply_part(b, (struct bf16_target){y, b->N, addend, .half = b->Y.half, .past = !b->Y.half && k + K == b->K},
                      left, strip, parts, rows, first, last);
    }
}

/* By rows; by columns where each thread would read a matrix far larger than its rows (the head, forward). */
static void beside_share(void *arg, uint32_t thread)
{
    const struct beside *b = arg;
    const uint32_t threads = pool_threads(b->pool);
    uint32_t begin, end;
    if (!b->back && !b->width && b->N > 8 * b->M) {
        pool_share(b->columns, BLOCK, thread, threads, &begin, &end);
        beside_part(b, 0, b->M, begin, end, pool_workspace(b->pool, thread));
    } else {
        pool_share(b->M, BLOCK, thread, threads, &begin, &end);
        beside_part(b, begin, end, 0, b->columns, pool_workspace(b->pool, thread));
    }
}

static void beside_run(struct beside b)
{
    const uint32_t steps = (uint32_t)bf16_steps(b.K);
    const uint32_t depth = b.Y.half ? steps : equal_piece(steps, STEPS_MAX, 1); /* a bf16 Y takes no addend */
    const uint32_t turned = TURNED_TILES / depth * BF16_ROWS / BLOCK * BLOCK * pool_threads(b.pool);
    const uint32_t wide = b.back ? equal_piece(b.N, turned, BLOCK) : b.N;
    CHECK(2 * (depth + bf16_steps(b.width)) <= PIECE_TILES);
    do { /* once where Y has no columns: Z alone is wanted */
        b.columns = least(wide, b.N - b.n);
        for (b.step = 0; b.step < steps; b.step += depth) {
            b.steps = least(depth, steps - b.step);
            const uint64_t numbers = (uint64_t)b.steps * BF16_STEP * (b.columns + b.width);
            if (b.back)
                pool_run(b.pool, numbers, turn_share, &b);
            pool_run(b.pool, b.M * numbers, beside_share, &b);
        }
        b.n += b.columns;
    } while (b.n < b.N);
}

static void frozen(struct pool *pool, struct activation Y, float *U, struct activation X, const struct frozen_matrix *W,
                   const struct low_rank *low, uint32_t M, uint32_t N, uint32_t I, const float *addend)
{
    const struct beside b = {.Y = Y,
                             .X = X,
                             .Z = U,
                             .W = W->tiles,
                             .P = {low->A, I, false, low->width, false},
                             .Q = {low->S, low->width, false, N, false},
                             .M = M,
                             .N = N,
                             .K = I,
                             .width = low->width,
                             .addend = addend,
                             .pool = pool};
    beside_run(b);
}

static void frozen_dx(struct pool *pool, struct activation dX, float *dU, struct activation dY,
                      const struct frozen_matrix *W, const struct low_rank *low, uint32_t M, uint32_t N, uint32_t I)
{
    const struct beside b = {.Y = dX,
                             .X = dY,
                             .Z = dU,
                             .W = W->tiles,
                             .back = true,
                             .P = {low->S, low->width, true, low->width, false},
                             .Q = {low->A, I, true, I, false},
                             .M = M,
                             .N = I,
                             .K = N,
                             .width = low->width,
                             .pool = pool};
    beside_run(b);
}

static size_t workspace(uint32_t side_max, uint32_t width_max)
{
    const size_t beside = bf16_bytes(width_max, side_max) + bf16_bytes(side_max, width_max);
    return (size_t)(PIECE_TILES + TURNED_TILES) * BF16_TILE_BYTES + beside; /* two plain factors take less */
}

/* ------------------------------------------------------------------ attention */

/* Of one piece: what all tables have, keys and values, packed once, and the packed forms of what meets them. */
struct packed_room {
    struct room room;
    uint16_t *k_along, *k_across, *v_along, *v_across, *q_across, *do_across, *left;
};

static size_t give_tiles(uint16_t **at, float *scratch, size_t used, size_t bytes)
{
    *at = scratch ? (uint16_t *)(void *)(scratch + used) : NULL;
    return used + bytes / sizeof(float);
}

static size_t layout(struct packed_room *r, float *scratch, uint32_t G, uint32_t D, uint32_t T)
{
    const size_t rows = (size_t)G * BLOCK_ROWS, keys = least(T, BLOCK_KEYS);
    size_t used = room_layout(&r->room, scratch, G, D, T);
    used = give_tiles(&r->k_along, scratch, used, bf16_bytes(T, D));
    used = give_tiles(&r->k_across, scratch, used, bf16_bytes(D, T));
    used = give_tiles(&r->v_along, scratch, used, bf16_bytes(T, D));
    used = give_tiles(&r->v_across, scratch, used, bf16_bytes(D, T));
    used = give_tiles(&r->q_across, scratch, used, bf16_bytes(D, rows));
    used = give_tiles(&r->do_across, scratch, used, bf16_bytes(D, rows));
    const size_t by_keys = bf16_bytes(rows, keys), by_rows = bf16_bytes(keys, rows), by_head = bf16_bytes(rows, D);
    const size_t left = by_keys > by_rows ? by_keys : by_rows;
    return give_tiles(&r->left, scratch, used, left > by_head ? left : by_head);
}

static size_t scratch_each(uint32_t G, uint32_t D, uint32_t seq_max)
{
    struct packed_room r;
    return layout(&r, NULL, G, D, seq_max);
}

/* As stack_heads(), of bf16. */
static void stack_halves(float *stacked, const uint16_t *from, size_t ld, const struct tile_view *v, uint32_t r0,
                         uint32_t n)
{
    for (size_t g = 0; g < v->G; g++)
        for (size_t r = 0; r < n; r++)
            simd_widen(stacked + (g * n + r) * v->D, from + (r0 + r) * ld + g * v->D, v->D);
}

static void unstack_rounded(uint16_t *to, size_t ld, const float *stacked, const struct tile_view *v, uint32_t r0,
                            uint32_t n)
{
    for (size_t g = 0; g < v->G; g++)
        for (size_t r = 0; r < n; r++)
            simd_round(to + (r0 + r) * ld + g * v->D, stacked + (g * n + r) * v->D, v->D);
}

static float dot_saved(const float *x, const void *saved, size_t at, uint32_t n)
{
    return simd_dot_half(x, (const uint16_t *)saved + at, n);
}

/* C (M, N) = left (over K) times a right factor that is packed already, of strips `strip`. */
static void times(float *C, size_t ldc, struct bf16_source left, uint16_t *packed, const uint16_t *right, size_t strip,
                  uint32_t M, uint32_t N, uint32_t K, bool accumulate)
{
    const uint32_t steps = (uint32_t)bf16_steps(K);
    const struct bf16_right parts[2] = {{right, strip, steps}, {right, 0, 0}};
    bf16_pack(packed, BF16_LEFT, steps, 0, left, M, K);
    bf16_multiply(unit, (struct bf16_target){.data = C, .ld = ldc, .addend = accumulate ? C : NULL}, packed, steps,
                  parts, M, N);
}

/* Keys from k0 on of a packed factor: in its rows, or along its k. */
static const uint16_t *keys_down(const uint16_t *packed, size_t steps, uint32_t k0)
{
    return packed + k0 / BF16_ROWS * steps * BF16_TILE;
}

static const uint16_t *keys_along(const uint16_t *packed, uint32_t k0)
{
    return packed + (size_t)k0 / BF16_STEP * BF16_TILE;
}

static void forward_piece(const struct tiles *t, const struct tile_view *v, float *scratch)
{
    const size_t by_head = bf16_steps(v->D), by_keys = bf16_steps(v->end);
    const uint16_t *qkv = t->qkv;
    struct packed_room p;
    struct room *r = &p.room;
    layout(&p, scratch, v->G, v->D, v->T);
    bf16_pack(p.k_along, BF16_RIGHT, by_head, 0, (struct bf16_source){qkv + v->k, v->ld, false, 1, true}, v->end, v->D);
    bf16_pack(p.v_across, BF16_RIGHT, by_keys, 0, (struct bf16_source){qkv + v->v, v->ld, true, 1, true}, v->D, v->end);
    for (uint32_t r0 = v->begin; r0 < v->end; r0 += BLOCK_ROWS) {
        uint32_t n = least(v->end - r0, BLOCK_ROWS), end = r0 + n, rows = v->G * n;
        stack_halves(r->Q, qkv + v->q, v->ld, v, r0, n);
        for (uint32_t k0 = 0; k0 < end; k0 += BLOCK_KEYS) {
            uint32_t keys = least(end - k0, BLOCK_KEYS);
            times(r->P, keys, (struct bf16_source){r->Q, v->D, false, v->scale, false}, p.left,
                  keys_down(p.k_along, by_head, k0), by_head, rows, keys, v->D, false);
            softmax(v, &r->running, r->P, r->O, k0, keys, r0, n);
            times(r->O, v->D, (struct bf16_source){r->P, keys, false, 1, false}, p.left, keys_along(p.v_across, k0),
                  by_keys, rows, v->D, keys, k0 > 0);
        }
        softmax_end(t, v, &r->running, r->O, r0, n);
        unstack_rounded((uint16_t *)t->out + v->o, v->ldo, r->O, v, r0, n);
    }
}

static void backward_piece(const struct tiles *t, const struct tile_view *v, float *scratch)
{
    const uint32_t all = v->end - v->begin;
    const size_t by_head = bf16_steps(v->D), by_keys = bf16_steps(all), at = v->begin * v->ld;
    const uint16_t *k = (const uint16_t *)t->qkv + v->k + at, *val = (const uint16_t *)t->qkv + v->v + at;
    float *dk = t->dqkv + v->k + at, *dv = t->dqkv + v->v + at;
    size_t ldq;
    float *dq = piece_dq(t, v, &ldq);
    struct packed_room p;
    struct room *r = &p.room;
    layout(&p, scratch, v->G, v->D, v->T);
    bf16_pack(p.k_along, BF16_RIGHT, by_head, 0, (struct bf16_source){k, v->ld, false, 1, true}, all, v->D);
    bf16_pack(p.v_along, BF16_RIGHT, by_head, 0, (struct bf16_source){val, v->ld, false, 1, true}, all, v->D);
    bf16_pack(p.k_across, BF16_RIGHT, by_keys, 0, (struct bf16_source){k, v->ld, true, 1, true}, v->D, all);
    clear_rows(dk, v->ld, all, v->D);
    clear_rows(dv, v->ld, all, v->D);
    for (uint32_t r0 = v->begin; r0 < v->T; r0 += BLOCK_ROWS) {
        uint32_t n = least(v->T - r0, BLOCK_ROWS), rows = v->G * n, end = least(r0 + n, v->end) - v->begin;
        const size_t by_rows = bf16_steps(rows);
        stack_halves(r->Q, (const uint16_t *)t->qkv + v->q, v->ld, v, r0, n);
        stack_halves(r->O, (const uint16_t *)t->dout + v->o, v->ldo, v, r0, n);
        deltas(t, v, r->delta, r->O, r0, n);
        bf16_pack(p.q_across, BF16_RIGHT, by_rows, 0, (struct bf16_source){r->Q, v->D, true, 1, false}, v->D, rows);
        bf16_pack(p.do_across, BF16_RIGHT, by_rows, 0, (struct bf16_source){r->O, v->D, true, 1, false}, v->D, rows);
        for (uint32_t k0 = 0; k0 < end; k0 += BLOCK_KEYS) { /* among the piece's */
            uint32_t keys = least(end - k0, BLOCK_KEYS);
            times(r->P, keys, (struct bf16_source){r->Q, v->D, false, v->scale, false}, p.left,
                  keys_down(p.k_along, by_head, k0), by_head, rows, keys, v->D, false);
            times(r->S, keys, (struct bf16_source){r->O, v->D, false, 1, false}, p.left,
                  keys_down(p.v_along, by_head, k0), by_head, rows, keys, v->D, false);
            softmax_back(t, v, r->P, r->S, r->delta, v->begin + k0, keys, r0, n);
            times(dv + k0 * v->ld, v->ld, (struct bf16_source){r->P, keys, true, 1, false}, p.left, p.do_across,
                  by_rows, keys, v->D, rows, true);
            times(dk + k0 * v->ld, v->ld, (struct bf16_source){r->S, keys, true, 1, false}, p.left, p.q_across, by_rows,
                  keys, v->D, rows, true);
            times(r->dQ, v->D, (struct bf16_source){r->S, keys, false, 1, false}, p.left, keys_along(p.k_across, k0),
                  by_keys, rows, v->D, keys, k0 > 0);
        }
        unstack_heads(dq, ldq, r->dQ, v, r0, n);
    }
}

const struct ops ops_bf16 = {.name = "bf16",
                             .linear = linear,
                             .linear_dx = linear_dx,
                             .linear_dw = linear_dw,
                             .packed = true,
                             .frozen = frozen,
                             .frozen_dx = frozen_dx,
                             .linear_half_dw = linear_half_dw,
                             .rmsnorm_half = rows_rmsnorm_half,
                             .rope_half = rows_rope_half,
                             .swiglu = rows_swiglu_half,
                             .swiglu_back = rows_swiglu_half_back,
                             .workspace = workspace,
                             .attention = attention,
                             .attention_back = attention_back,
                             .attention_scratch = attention_scratch,
                             OPS_ROWS_REAL};

enum status ops_bf16_start(struct err *err)
{
    unit = bf16_unit(); /* the same every time */
    if (unit == BF16_NONE)
        return err_set(err, ST_UNSUPPORTED,
                       "the back end bf16 needs a CPU with AVX512-BF16, or AMX; blas works on this one");
    return ST_OK;
}

void ops_bf16_describe(char *out, size_t size)
{
    snprintf(out, size, "bf16 %s simd=%s", unit == BF16_AMX ? "amx" : "avx512", simd_level());
}
