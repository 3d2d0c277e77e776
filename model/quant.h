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

/* Which tensor types (enum gguf_type) quant_expand() knows. */
#define QUANT_KNOWN "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K"
bool quant_known(uint32_t type);

/* Bytes of a row of `values` values, which is a multiple of the type's block. */
size_t quant_row_bytes(uint32_t type, size_t values);

/* `values` values from `src` (any alignment) to `out`. */
void quant_expand(uint32_t type, const uint8_t *src, size_t values, float *out);

#endif
