#include "model/bf16.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))

#define INLINE AVX512 static inline __attribute__((always_inline))

/* Linux gives the tile registers to a process that asks (arch/x86/xstate.rst); all its threads then have them. */
static bool amx(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned BF16 = 1u << 22, TILE = 1u << 24;
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const char *asked = getenv("ALLUVIUM_BF16");
    return d & BF16 && d & TILE && !(asked && !strcmp(asked, "avx512")) &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

enum bf16_unit bf16_unit(void)
{
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
        return BF16_NONE;
    return amx() ? BF16_AMX : BF16_AVX512;
}

/* ------------------------------------------------------------------ packing */

INLINE __mmask32 first(uint32_t n)
{
    return n >= 32 ? 0xffffffff : (1u << n) - 1;
}

INLINE __m512i words_along(const void *data, bool half, uint32_t K, __m512 scale)
{
    if (half)
        return _mm512_maskz_loadu_epi16(first(K), data);
    const float *x = data;
    __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps((__mmask16)first(K), x), scale);
    __m512 b = _mm512_mul_ps(_mm512_maskz_loadu_ps((__mmask16)(first(K) >> 16), x + 16), scale);
    return (__m512i)_mm512_cvtne2ps_pbh(b, a);
}

INLINE __m512i words_across(const void *data, size_t ld, bool half, uint32_t rows, uint32_t K, __m512 scale)
{
    const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __mmask16 some = (__mmask16)first(rows < 16 ? rows : 16), next = K > 1 ? some : 0;
    if (half) {
        const uint16_t *x = data;
        __m512i both = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(some, x));
        both = _mm512_inserti64x4(both, _mm256_maskz_loadu_epi16(next, x + ld), 1);
        return _mm512_permutexvar_epi16(pairs, both);
    }
    const float *x = data;
    __m512 a = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, x), scale);
    __m512 b = _mm512_mul_ps(_mm512_maskz_loadu_ps(next, x + ld), scale);
    return _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

INLINE void transpose(__m512i x[16])
{
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + j + 2]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            y[i + j] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0x88);
            y[i + j + 4] = _mm512_shuffle_i32x4(x[i + j], x[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        x[j] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0x88);
        x[j + 8] = _mm512_shuffle_i32x4(y[j], y[j + 8], 0xdd);
    }
}

INLINE const void *element(const struct bf16_source *from, size_t at)
{
    return (const char *)from->data + at * (from->half ? sizeof(uint16_t) : sizeof(float));
}

INLINE void pack_tile(uint16_t *out, bool turn, bool half, const struct bf16_source *from, size_t at, uint32_t rows,
                      uint32_t K)
{
    const __m512 scale = _mm512_set1_ps(from->scale);
    __m512i word[16];
    for (uint32_t i = 0; i < 16; i++)
        if (from->across)
            word[i] = 2 * i < K
                          ? words_across(element(from, at + 2 * i * from->ld), from->ld, half, rows, K - 2 * i, scale)
                          : _mm512_setzero_si512();
        else
            word[i] = i < rows ? words_along(element(from, at + i * from->ld), half, K, scale) : _mm512_setzero_si512();
    if (turn)
        transpose(word);
    for (uint32_t i = 0; i < 16; i++)
        _mm512_store_si512((void *)(out + i * BF16_STEP), word[i]);
}

/* The common cases apart, so that the compiler sees that nothing is masked. */
AVX512 static void pack_at(uint16_t *tile, bool turn, const struct bf16_source *from, uint32_t i, uint32_t k,
                           uint32_t rows, uint32_t K)
{
    const size_t at = from->across ? k * from->ld + i : i * from->ld + k;
    const uint32_t height = from->across ? BF16_STEP : BF16_ROWS;
    if (from->half && at % BF16_STEP == 0) /* bf16 rows come from far away: the tile below is asked for, line by line */
        for (uint32_t r = 0; r < height; r++)
            __builtin_prefetch(element(from, at + (height + r) * from->ld));
    if (rows - i < BF16_ROWS || K - k < BF16_STEP)
        pack_tile(tile, turn, from->half, from, at, rows - i, K - k);
    else if (from->half && turn)
        pack_tile(tile, true, true, from, at, BF16_ROWS, BF16_STEP);
    else if (from->half)
        pack_tile(tile, false, true, from, at, BF16_ROWS, BF16_STEP);
    else if (turn)
        pack_tile(tile, true, false, from, at, BF16_ROWS, BF16_STEP);
    else
        pack_tile(tile, false, false, from, at, BF16_ROWS, BF16_STEP);
}

/* In the order in which the source lies. */
void bf16_pack(uint16_t *out, enum bf16_side side, size_t steps, size_t step0, struct bf16_source from, uint32_t rows,
               uint32_t K)
{
    const bool turn = (side == BF16_RIGHT) != from.across;
    out += step0 * BF16_TILE;
    if (from.across)
        for (uint32_t k = 0; k < K; k += BF16_STEP)
            for (uint32_t i = 0; i < rows; i += BF16_ROWS)
                pack_at(out + (i / BF16_ROWS * steps + k / BF16_STEP) * BF16_TILE, turn, &from, i, k, rows, K);
    else
        for (uint32_t i = 0; i < rows; i += BF16_ROWS)
            for (uint32_t k = 0; k < K; k += BF16_STEP)
                pack_at(out + (i / BF16_ROWS * steps + k / BF16_STEP) * BF16_TILE, turn, &from, i, k, rows, K);
}

/* Word [w][n] of W's tiles holds k 2w and 2w + 1 of row n; two such tiles, of rows n and n + 16, hold 16 rows of 32 k, which are 32 rows
 * of 16 words of the turned factor: their even halves, then the odd ones, and these transposed. */
AVX512 static void turn_tiles(uint16_t *out[2], const uint16_t *low, const uint16_t *high)
{
    const __m512i halves = _mm512_set_epi16(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1, 30, 28, 26, 24,
                                            22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    for (int tile = 0; tile < 2; tile++) {
        __m512i word[16];
        if (!out[tile])
            continue;
        for (int w = 0; w < 8; w++) {
            const size_t at = (size_t)(8 * tile + w) * BF16_STEP;
            __m512i a = _mm512_permutexvar_epi16(halves, _mm512_load_si512(low + at));
            __m512i b = high ? _mm512_permutexvar_epi16(halves, _mm512_load_si512(high + at)) : _mm512_setzero_si512();
            word[2 * w] = _mm512_shuffle_i64x2(a, b, 0x44);
            word[2 * w + 1] = _mm512_shuffle_i64x2(a, b, 0xee);
        }
        transpose(word);
        for (int w = 0; w < 16; w++)
            _mm512_store_si512((void *)(out[tile] + w * BF16_STEP), word[w]);
    }
}

void bf16_turn(uint16_t *out, const uint16_t *W, uint32_t N, uint32_t I, uint32_t i, uint32_t columns, uint32_t step,
               uint32_t steps)
{
    const size_t along = bf16_steps(I), first_step = i / BF16_STEP, strips = bf16_strips(columns);
    for (size_t n = 0; n < steps; n++)
        for (size_t f = 0; 2 * f < strips; f++) {
            const size_t strip = 2 * (step + n);
            const uint16_t *low = W + (strip * along + first_step + f) * BF16_TILE;
            uint16_t *to = out + (2 * f * steps + n) * BF16_TILE;
            turn_tiles((uint16_t *[2]){to, 2 * f + 1 < strips ? to + steps * BF16_TILE : NULL}, low,
                       strip + 1 < bf16_strips(N) ? low + along * BF16_TILE : NULL);
        }
}

/* ------------------------------------------------------------------ products */

enum { BLOCK = 2 * BF16_ROWS };

/* C (32, 32) from two left strips and two right ones, added to the addend if there is one. At an edge the second strip of a side may
 * not be there: not `tall`, not `wide`. */
struct block {
    float *C;
    const float *addend;
    size_t ldc;
    bool tall, wide;
    const uint16_t *left[2], *right[2][2]; /* [part][strip] */
    uint32_t steps[2];
};

/* In memory: GCC 12 takes the instruction to read eight bytes and leaves out the rest of a local one. */
static const struct {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

AMX static void tiles_ready(void)
{
    static _Thread_local bool ready;
    if (!ready)
        _tile_loadconfig(&tile_shapes);
    ready = true;
}

/* A half of the tiles of two steps ahead, between products: a core that asks for a tile's sixteen lines only as it needs them waits for
 * its second cache, all the more when another thread has half of its queues. */
INLINE void fetch_half(const uint16_t *left, const uint16_t *right, int half)
{
    enum { AHEAD = 2 * BF16_TILE, LINES = BF16_ROWS / 2 };
    const size_t from = AHEAD + (size_t)half * LINES * BF16_STEP;
#pragma GCC unroll 8
    for (size_t i = 0; i < LINES; i++) {
        __builtin_prefetch(left + from + i * BF16_STEP);
        __builtin_prefetch(right + from + i * BF16_STEP);
    }
}

AMX static void block_amx(const struct block *b)
{
    const size_t stride = b->ldc * sizeof(float);
    float *low = b->C + BF16_ROWS * b->ldc;
    if (b->addend) {
        const float *below = b->addend + BF16_ROWS * b->ldc;
        _tile_loadd(0, b->addend, stride);
        if (b->wide)
            _tile_loadd(1, b->addend + BF16_ROWS, stride);
        if (b->tall)
            _tile_loadd(2, below, stride);
        if (b->tall && b->wide)
            _tile_loadd(3, below + BF16_ROWS, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const uint16_t *l0 = b->left[0], *l1 = b->left[1];
    for (int part = 0; part < 2; part++) {
        const uint16_t *r0 = b->right[part][0], *r1 = b->right[part][1];
        for (uint32_t s = 0; s < b->steps[part]; s++) {
            _tile_loadd(4, l0, 64);
            fetch_half(l0, r0, 0);
            _tile_loadd(6, r0, 64);
            _tile_dpbf16ps(0, 4, 6);
            fetch_half(l0, r0, 1);
            if (b->wide) {
                _tile_loadd(7, r1, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            fetch_half(l1, r1, 0);
            if (b->tall) {
                _tile_loadd(5, l1, 64);
                _tile_dpbf16ps(2, 5, 6);
                fetch_half(l1, r1, 1);
                if (b->wide)
                    _tile_dpbf16ps(3, 5, 7);
            }
            l0 += BF16_TILE;
            l1 += BF16_TILE;
            r0 += BF16_TILE;
            r1 += BF16_TILE;
        }
    }
    _tile_stored(0, b->C, stride);
    if (b->wide)
        _tile_stored(1, b->C + BF16_ROWS, stride);
    if (b->tall)
        _tile_stored(2, low, stride);
    if (b->tall && b->wide)
        _tile_stored(3, low + BF16_ROWS, stride);
}

/* The same with vectors: rows from `row` on, as many as 16 sums hold of `columns` vectors each. */
INLINE void rows_avx512(const struct block *b, uint32_t row, const uint32_t columns)
{
    enum { SUMS = 16 };
    const uint16_t *l = b->left[row / BF16_ROWS] + row % BF16_ROWS * BF16_STEP;
    const size_t first = row * b->ldc;
    __m512 sum[SUMS];
#pragma GCC unroll 16
    for (uint32_t i = 0; i < SUMS; i++)
        sum[i] = b->addend ? _mm512_loadu_ps(b->addend + first + i / columns * b->ldc + i % columns * BF16_ROWS)
                           : _mm512_setzero_ps();
    for (int part = 0; part < 2; part++) {
        const uint16_t *r0 = b->right[part][0], *r1 = b->right[part][1];
        for (uint32_t s = 0; s < b->steps[part]; s++, l += BF16_TILE - BF16_STEP)
            for (uint32_t w = 0; w < BF16_STEP / 2; w++, l += 2, r0 += BF16_STEP, r1 += BF16_STEP) {
                __m512bh x = (__m512bh)_mm512_load_si512((const void *)r0);
                __m512bh y = columns == 2 ? (__m512bh)_mm512_load_si512((const void *)r1) : x;
#pragma GCC unroll 16
                for (uint32_t i = 0; i < SUMS; i++) {
                    int32_t word;
                    memcpy(&word, l + i / columns * BF16_STEP, sizeof word);
                    sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)_mm512_set1_epi32(word), i % columns ? y : x);
                }
            }
    }
#pragma GCC unroll 16
    for (uint32_t i = 0; i < SUMS; i++)
        _mm512_storeu_ps(b->C + first + i / columns * b->ldc + i % columns * BF16_ROWS, sum[i]);
}

AVX512 static void block_avx512(const struct block *b)
{
    const uint32_t rows = b->tall ? BLOCK : BF16_ROWS;
    if (b->wide)
        for (uint32_t row = 0; row < rows; row += BF16_ROWS / 2)
            rows_avx512(b, row, 2);
    else
        for (uint32_t row = 0; row < rows; row += BF16_ROWS)
            rows_avx512(b, row, 1);
}

/* A block that ends early, is turned or becomes bf16, by way of a whole one. */
static void copy_block(const struct bf16_target *C, size_t at, const float *block, uint32_t rows, uint32_t columns)
{
    const size_t down = C->turned ? 1 : C->ld, right = C->turned ? C->ld : 1;
    float *to = (float *)C->data + at;
    for (uint32_t i = 0; i < rows; i++)
        for (uint32_t j = 0; j < columns; j++) {
            float *c = to + i * down + j * right;
            *c = (C->addend ? C->addend[at + i * down + j * right] : 0) + block[i * BLOCK + j];
        }
}

/* Whole lines go past the caches: whoever reads them does so when all of C is there. */
AVX512 static void round_block(uint16_t *to, size_t ld, const float *block, uint32_t rows, uint32_t columns)
{
    for (uint32_t i = 0; i < rows; i++, to += ld) {
        __m512 a = _mm512_load_ps(block + i * BLOCK), b = _mm512_load_ps(block + i * BLOCK + BF16_ROWS);
        __m512i half = (__m512i)_mm512_cvtne2ps_pbh(b, a);
        if (columns == BLOCK && (uintptr_t)to % sizeof half == 0)
            _mm512_stream_si512((void *)to, half);
        else
            _mm512_mask_storeu_epi16(to, first(columns), half);
    }
}

/* As round_block(), in f32. */
AVX512 static void stream_block(const struct bf16_target *C, size_t at, const float *block)
{
    float *to = (float *)C->data + at;
    const float *addend = C->addend ? C->addend + at : NULL;
    for (uint32_t i = 0; i < BLOCK; i++, to += C->ld, block += BLOCK) {
        __m512 a = _mm512_load_ps(block), b = _mm512_load_ps(block + BF16_ROWS);
        if (addend) {
            a = _mm512_add_ps(a, _mm512_loadu_ps(addend + i * C->ld));
            b = _mm512_add_ps(b, _mm512_loadu_ps(addend + i * C->ld + BF16_ROWS));
        }
        _mm512_stream_ps(to, a);
        _mm512_stream_ps(to + BF16_ROWS, b);
    }
}

/* A block is computed faster than its memory answers: the next one's lines are asked for meanwhile. */
static void fetch_block(const struct bf16_target *C, size_t at, bool past)
{
    for (uint32_t i = 0; i < BLOCK; i++, at += C->ld) {
        if (!past) {
            __builtin_prefetch((float *)C->data + at, 1, 3);
            __builtin_prefetch((float *)C->data + at + BF16_ROWS, 1, 3);
        }
        if (C->addend && (past || C->addend != C->data)) {
            __builtin_prefetch(C->addend + at, 0, 3);
            __builtin_prefetch(C->addend + at + BF16_ROWS, 0, 3);
        }
    }
}

void bf16_multiply(enum bf16_unit unit, struct bf16_target C, const uint16_t *left, size_t strip,
                   const struct bf16_right right[2], uint32_t M, uint32_t N)
{
    _Alignas(64) float whole[BLOCK * BLOCK];
    const bool past = C.past && unit == BF16_AMX /* vectors gain nothing by it */
                      && (uintptr_t)C.data % sizeof(__m512) == 0 && C.ld % BF16_ROWS == 0;
    if (unit == BF16_AMX)
        tiles_ready();
    for (uint32_t n = 0; n < N; n += BLOCK)
        for (uint32_t m = 0; m < M; m += BLOCK) {
            const bool tall = m + BF16_ROWS < M, wide = n + BF16_ROWS < N;
            const uint32_t rows = M - m < BLOCK ? M - m : BLOCK, columns = N - n < BLOCK ? N - n : BLOCK;
            const bool stream = past && rows == BLOCK && columns == BLOCK;
            const bool direct = !stream && !C.turned && !C.half && rows % BF16_ROWS == 0 && columns % BF16_ROWS == 0;
            const size_t at = C.turned ? n * C.ld + m : m * C.ld + n;
            if (!C.turned && !C.half && m + 2 * BLOCK <= M)
                fetch_block(&C, at + BLOCK * C.ld, past);
            else if (!C.turned && !C.half && n + 2 * BLOCK <= N && M >= BLOCK)
                fetch_block(&C, n + BLOCK, past);
            struct block b = {.C = direct ? (float *)C.data + at : whole,
                              .ldc = direct ? C.ld : BLOCK,
                              .addend = direct && C.addend ? C.addend + at : NULL,
                              .tall = tall,
                              .wide = wide};
            b.left[0] = left + m / BF16_ROWS * strip * BF16_TILE;
            b.left[1] = b.left[0] + tall * strip * BF16_TILE;
            for (int part = 0; part < 2; part++) {
                b.steps[part] = right[part].steps;
                b.right[part][0] = right[part].tiles + n / BF16_ROWS * right[part].strip * BF16_TILE;
                b.right[part][1] = b.right[part][0] + wide * right[part].strip * BF16_TILE;
            }
            if (unit == BF16_AMX)
                block_amx(&b);
            else
                block_avx512(&b);
            if (C.half)
                round_block((uint16_t *)C.data + at, C.ld, whole, rows, columns);
            else if (stream)
                stream_block(&C, at, whole);
            else if (!direct)
                copy_block(&C, at, whole, rows, columns);
        }
    if (C.half || past)
        _mm_sfence(); /* what went past the caches is not ordered before a later store that tells other threads */
}

#else

enum bf16_unit bf16_unit(void)
{
    return BF16_NONE;
}

void bf16_pack(uint16_t *out, enum bf16_side side, size_t steps, size_t step0, struct bf16_source from, uint32_t rows,
               uint32_t K)
{
    (void)out, (void)side, (void)steps, (void)step0, (void)from, (void)rows, (void)K;
}

void bf16_turn(uint16_t *out, const uint16_t *W, uint32_t N, uint32_t I, uint32_t i, uint32_t columns, uint32_t step,
               uint32_t steps)
{
    (void)out, (void)W, (void)N, (void)I, (void)i, (void)columns, (void)step, (void)steps;
}

void bf16_multiply(enum bf16_unit unit, struct bf16_target C, const uint16_t *left, size_t strip,
                   const struct bf16_right right[2], uint32_t M, uint32_t N)
{
    (void)unit, (void)C, (void)left, (void)strip, (void)right, (void)M, (void)N;
}

#endif
