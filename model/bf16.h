/* bf16.h - products through bf16: factors rounded to nearest even as they are packed, sums in f32.
 *
 * A factor is packed into tiles of 16 rows by 32 k, 1 KB each, as AMX's TDPBF16PS and AVX512-BF16's VDPBF16PS both read them
 * (Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20). Two k neighbours make one 32-bit word w. A left
 * tile holds word [row][w], a right one [w][column]: each is the other's transpose, so either is packed from rows that run along k
 * or across it. The tiles of 16 rows follow each other along k, a strip; strips follow each other. What a tile has beyond the
 * matrix is zero. No state but the CPU's tile registers, one thread, nothing fails.
 */
#ifndef MODEL_BF16_H
#define MODEL_BF16_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum bf16_unit { BF16_NONE, BF16_AVX512, BF16_AMX };
enum { BF16_ROWS = 16, BF16_STEP = 32, BF16_TILE = BF16_ROWS * BF16_STEP, BF16_TILE_BYTES = 2 * BF16_TILE };

/* The best that the CPU has and the kernel lets us use. The environment's ALLUVIUM_BF16=avx512 passes over AMX. */
enum bf16_unit bf16_unit(void);

static inline size_t bf16_strips(size_t rows)
{
    return (rows + BF16_ROWS - 1) / BF16_ROWS;
}

static inline size_t bf16_steps(size_t K)
{
    return (K + BF16_STEP - 1) / BF16_STEP;
}

static inline size_t bf16_bytes(size_t rows, size_t K)
{
    return bf16_strips(rows) * bf16_steps(K) * BF16_TILE_BYTES;
}

enum bf16_side { BF16_LEFT, BF16_RIGHT };

/* A factor that is not packed yet: element (i, k) lies at data[i * ld + k], or, `across`, at data[k * ld + i]. `half`: it is bf16
 * already, and scale is 1; else float. */
struct bf16_source {
    const void *data;
    size_t ld;
    bool across;
    float scale;
    bool half;
};

/* Packs scale * rows [0, rows), k [0, K) into strips of `steps` tiles, from tile `step0` of each on. `out`: 64-byte aligned. */
void bf16_pack(uint16_t *out, enum bf16_side side, size_t steps, size_t step0, struct bf16_source from, uint32_t rows,
               uint32_t K);

/* Element (row, k) of a packed right factor. */
static inline float bf16_at(const uint16_t *right, size_t K, size_t row, size_t k)
{
    const uint16_t *tile = right + (row / BF16_ROWS * bf16_steps(K) + k / BF16_STEP) * BF16_TILE;
    const uint32_t bits = (uint32_t)tile[k % BF16_STEP / 2 * BF16_STEP + row % BF16_ROWS * 2 + k % 2] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* W (N, I), packed as the right factor of X W^T, becomes that of dY W: of I's columns [i, i + columns), i a multiple of 32, the steps
 * [step, step + steps) along N, strips of `steps` tiles. No rounding. `out`: 64-byte aligned. */
void bf16_turn(uint16_t *out, const uint16_t *W, uint32_t N, uint32_t I, uint32_t i, uint32_t columns, uint32_t step,
               uint32_t steps);

/* Some steps of a packed right factor. */
struct bf16_right {
    const uint16_t *tiles;
    size_t strip; /* tiles from one strip to the next */
    uint32_t steps;
};

struct bf16_target {
    void *data; /* float, or bf16 if `half` (then neither turned nor with an addend) */
    size_t ld;
    const float *addend; /* NULL, or of the shape of `data`, which it may be */
    bool turned;         /* (N, M) */
    bool half;
    bool past; /* float, not turned: large, and read when all of it is there: may go past the caches */
};

/* C (M, N) = left right, or added to the addend. The steps of right[0] and then those of right[1]
 * (which may have none) meet those of each left strip, `strip` tiles apart. */
void bf16_multiply(enum bf16_unit unit, struct bf16_target C, const uint16_t *left, size_t strip,
                   const struct bf16_right right[2], uint32_t M, uint32_t N);

#endif
