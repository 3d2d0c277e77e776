/* Blocks of 32 values, little-endian, f16 scales (ggml-common.h of ggml):
 *
 *   Q8_0  34 bytes  d f16; q i8 x 32           d * q
 *   Q4_0  18        d f16; q 16 bytes          d * (q - 8)     low nibbles are values 0-15, high ones 16-31
 *   Q4_1  20        d f16, m f16; q 16 bytes   d * q + m       as above
 */
#include "model/quant.h"

#include <string.h>

#include "adapter/gguf.h"
#include "base/check.h"

enum { BLOCK = 32 };

static uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static float from_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static float from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 0x3ff;
    if (exponent == 31) /* infinity, NaN */
        return from_bits(sign | 0x7f800000 | fraction << 13);
    if (exponent) /* bias 15 becomes 127 */
        return from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float v = (float)fraction * 0x1p-24f; /* subnormal: exact in f32 */
    return sign ? -v : v;
}

bool quant_known(uint32_t type)
{
    return type == GGUF_T_F32 || type == GGUF_T_F16 || type == GGUF_T_BF16 || type == GGUF_T_Q8_0 ||
           type == GGUF_T_Q4_0 || type == GGUF_T_Q4_1;
}

size_t quant_row_bytes(uint32_t type, size_t values)
{
    uint32_t block_values, block_bytes;
    gguf_type_block(type, &block_values, &block_bytes);
    CHECK(values % block_values == 0);
    return values / block_values * block_bytes;
}

static void expand_q8_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 34, out += BLOCK) {
        float d = from_f16(load_u16(src));
        for (int i = 0; i < BLOCK; i++)
            out[i] = d * (float)(int8_t)src[2 + i];
    }
}

static void expand_q4_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 18, out += BLOCK) {
        float d = from_f16(load_u16(src));
        for (int i = 0; i < BLOCK / 2; i++) {
            out[i] = d * (float)((src[2 + i] & 15) - 8);
            out[i + BLOCK / 2] = d * (float)((src[2 + i] >> 4) - 8);
        }
    }
}

static void expand_q4_1(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 20, out += BLOCK) {
        float d = from_f16(load_u16(src)), m = from_f16(load_u16(src + 2));
        for (int i = 0; i < BLOCK / 2; i++) {
            out[i] = d * (float)(src[4 + i] & 15) + m;
            out[i + BLOCK / 2] = d * (float)(src[4 + i] >> 4) + m;
        }
    }
}

void quant_expand(uint32_t type, const uint8_t *src, size_t values, float *out)
{
    switch (type) {
    case GGUF_T_F32:
        memcpy(out, src, values * sizeof *out);
        break;
    case GGUF_T_F16:
        for (size_t i = 0; i < values; i++)
            out[i] = from_f16(load_u16(src + 2 * i));
        break;
    case GGUF_T_BF16:
        for (size_t i = 0; i < values; i++)
            out[i] = from_bits((uint32_t)load_u16(src + 2 * i) << 16);
        break;
    case GGUF_T_Q8_0:
        expand_q8_0(src, values / BLOCK, out);
        break;
    case GGUF_T_Q4_0:
        expand_q4_0(src, values / BLOCK, out);
        break;
    case GGUF_T_Q4_1:
        expand_q4_1(src, values / BLOCK, out);
        break;
    default:
        CHECK(quant_known(type));
    }
}
