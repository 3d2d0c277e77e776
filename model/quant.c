/* Little-endian, scales are f16 (ggml-common.h of ggml). Blocks of 32 values; low nibbles are values 0-15, high ones 16-31:
 *
 *   Q8_0  34 bytes  d; q i8 x 32                     d * q
 *   Q4_0  18        d; q 16 bytes                    d * (q - 8)
 *   Q4_1  20        d, m; q 16 bytes                 d * q + m
 *   Q5_0  22        d; h 4 bytes; q 16 bytes         d * (q - 16)    bit i of h is the fifth bit of value i
 *   Q5_1  24        d, m; h 4 bytes; q 16 bytes      d * q + m
 *
 * Blocks of 256 values. Q4_K and Q5_K have eight groups of 32, each with a scale s and a minimum m of six bits, packed in 12
 * bytes (group_scale below); two groups share 32 bytes of nibbles. Q6_K has sixteen groups of 16, each with a scale of eight
 * bits; every 128 values share 64 bytes of nibbles and 32 bytes of upper bit pairs:
 *
 *   Q4_K  144       d, m; 12 bytes; q 128                     (d s) * q - (m min)
 *   Q5_K  176       d, m; 12 bytes; h 32; q 128               as above; bit g of h[i] is the fifth bit of value i of group g
 *   Q6_K  210       q 128; h 64; s i8 x 16; d                 (d s) * (q - 32)
 */
#include "model/quant.h"

#include "adapter/gguf.h"
#include "base/check.h"
#include "model/simd.h"

enum { BLOCK = 32, SUPER = 256, GROUPS = SUPER / BLOCK };

static float from_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

bool quant_known(uint32_t type)
{
    switch (type) {
    case GGUF_T_F32:
    case GGUF_T_F16:
    case GGUF_T_BF16:
    case GGUF_T_Q8_0:
    case GGUF_T_Q4_0:
    case GGUF_T_Q4_1:
    case GGUF_T_Q5_0:
    case GGUF_T_Q5_1:
    case GGUF_T_Q4_K:
    case GGUF_T_Q5_K:
    case GGUF_T_Q6_K:
        return true;
    default:
        return false;
    }
}

size_t quant_row_bytes(uint32_t type, size_t values)
{
    uint32_t block_values, block_bytes;
    gguf_type_block(type, &block_values, &block_bytes);
    CHECK(values % block_values == 0);
    return values / block_values * block_bytes;
}

MODEL_CLONES static void expand_q8_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 34, out += BLOCK) {
        float d = f16_to_f32(load_u16(src));
        for (int i = 0; i < BLOCK; i++)
            out[i] = d * (float)(int8_t)src[2 + i];
    }
}

MODEL_CLONES static void expand_q4_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 18, out += BLOCK) {
        float d = f16_to_f32(load_u16(src));
        for (int i = 0; i < BLOCK / 2; i++) {
            out[i] = d * (float)((src[2 + i] & 15) - 8);
            out[i + BLOCK / 2] = d * (float)((src[2 + i] >> 4) - 8);
        }
    }
}

MODEL_CLONES static void expand_q4_1(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 20, out += BLOCK) {
        float d = f16_to_f32(load_u16(src)), m = f16_to_f32(load_u16(src + 2));
        for (int i = 0; i < BLOCK / 2; i++) {
            out[i] = d * (float)(src[4 + i] & 15) + m;
            out[i + BLOCK / 2] = d * (float)(src[4 + i] >> 4) + m;
        }
    }
}

/* Value i of a block of nibbles with fifth bits. */
static int five_bits(const uint8_t *h, const uint8_t *q, int i)
{
    int low = i < BLOCK / 2 ? q[i] & 15 : q[i - BLOCK / 2] >> 4;
    return low | (h[i / 8] >> i % 8 & 1) << 4;
}

static void expand_q5_0(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 22, out += BLOCK) {
        float d = f16_to_f32(load_u16(src));
        for (int i = 0; i < BLOCK; i++)
            out[i] = d * (float)(five_bits(src + 2, src + 6, i) - 16);
    }
}

static void expand_q5_1(const uint8_t *src, size_t blocks, float *out)
{
    for (; blocks; blocks--, src += 24, out += BLOCK) {
        float d = f16_to_f32(load_u16(src)), m = f16_to_f32(load_u16(src + 2));
        for (int i = 0; i < BLOCK; i++)
            out[i] = d * (float)five_bits(src + 4, src + 8, i) + m;
    }
}

/* Groups 0-3 have the low six bits of bytes g and g + 4; groups 4-7 a nibble each of byte g + 4 and the two bits left over. */
static void group_scale(const uint8_t *packed, int g, int *scale, int *min)
{
    if (g < 4) {
        *scale = packed[g] & 63;
        *min = packed[g + 4] & 63;
    } else {
        *scale = (packed[g + 4] & 15) | (packed[g - 4] >> 6) << 4;
        *min = packed[g + 4] >> 4 | (packed[g] >> 6) << 4;
    }
}

/* Q4_K, and Q5_K with `h`. */
static void expand_groups(const uint8_t *head, const uint8_t *h, const uint8_t *q, float *out)
{
    float d = f16_to_f32(load_u16(head)), dmin = f16_to_f32(load_u16(head + 2));
    for (int g = 0; g < GROUPS; g++) {
        int scale, min;
        group_scale(head + 4, g, &scale, &min);
        float s = d * (float)scale, m = dmin * (float)min;
        for (int i = 0; i < BLOCK; i++) {
            int low = g % 2 ? q[g / 2 * BLOCK + i] >> 4 : q[g / 2 * BLOCK + i] & 15;
            int high = h ? (h[i] >> g & 1) << 4 : 0;
            out[g * BLOCK + i] = s * (float)(low | high) - m;
        }
    }
}

static void expand_q6_k(const uint8_t *src, float *out)
{
    const uint8_t *q = src, *h = src + 128, *scales = src + 192;
    float d = f16_to_f32(load_u16(src + 208));
    for (int i = 0; i < SUPER; i++) {
        int half = i / 128, quarter = i % 128 / 32; /* nibbles: quarters 0, 1 low of 64 bytes, 2, 3 high */
        int low = q[half * 64 + i % 64] >> quarter / 2 * 4 & 15, high = h[half * 32 + i % 32] >> quarter * 2 & 3;
        out[i] = d * (float)(int8_t)scales[i / 16] * (float)((low | high << 4) - 32);
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
            out[i] = f16_to_f32(load_u16(src + 2 * i));
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
    case GGUF_T_Q5_0:
        expand_q5_0(src, values / BLOCK, out);
        break;
    case GGUF_T_Q5_1:
        expand_q5_1(src, values / BLOCK, out);
        break;
    case GGUF_T_Q4_K:
        for (size_t b = 0; b < values / SUPER; b++, src += 144)
            expand_groups(src, NULL, src + 16, out + b * SUPER);
        break;
    case GGUF_T_Q5_K:
        for (size_t b = 0; b < values / SUPER; b++, src += 176)
            expand_groups(src, src + 16, src + 48, out + b * SUPER);
        break;
    case GGUF_T_Q6_K:
        for (size_t b = 0; b < values / SUPER; b++, src += 210)
            expand_q6_k(src, out + b * SUPER);
        break;
    default:
        CHECK(quant_known(type));
    }
}
