/* quant.h - rows of frozen weights as f32, bit-exact to the reference dequantisation of gguf-py.
 *
 * Block layouts are at the head of quant.c. Each value is one product, or one product and one sum, rounded to f32 after
 * each; -std=c17 keeps the compiler from fusing them.
 */
#ifndef MODEL_QUANT_H
#define MODEL_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Which tensor types (enum gguf_type) quant_expand() knows. */
#define QUANT_KNOWN "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K"
bool quant_known(uint32_t type);

/* Bytes of a row of `values` values, which is a multiple of the type's block. */
size_t quant_row_bytes(uint32_t type, size_t values);

/* `values` values from `src` (any alignment) to `out`. */
void quant_expand(uint32_t type, const uint8_t *src, size_t values, float *out);

/* The row times x (values): what expanding it and a dot product in f32 give, but for the order of the sum. quant_dot.c */
float quant_dot(uint32_t type, const uint8_t *src, const float *x, size_t values);

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff, bits;
    float v = (float)fraction * 0x1p-24f; /* subnormal: exact in f32 */
    if (exponent == 0)
        return sign ? -v : v;
    bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13; /* bias 15 becomes 127 */
    memcpy(&v, &bits, sizeof v);
    return v;
}

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

#endif
