/* A quantised row times a vector; block layouts are at the head of quant.c.
 *
 * Everywhere: a stretch is expanded into the first-level cache and multiplied. With AVX2 the types that generation meets
 * most have a kernel that keeps the numbers in registers, 2.2 times as fast: compilers of today do not make that of plain
 * loops or of vector types (GCC 12 widens bytes in two steps and splits vectors where copies are cloned). */
#include "adapter/gguf.h"
#include "model/quant.h"
#include "model/simd.h"

enum { BLOCK = 32, STRETCH = 256 };

static float dot_expanded(uint32_t type, const uint8_t *src, const float *x, size_t values)
{
    float stretch[STRETCH], sum = 0;
    while (values) {
        size_t n = values < STRETCH ? values : STRETCH;
        quant_expand(type, src, n, stretch);
        sum += simd_dot(stretch, x, (uint32_t)n);
        src += quant_row_bytes(type, n);
        x += n;
        values -= n;
    }
    return sum;
}

#ifdef __x86_64__
#include <immintrin.h>

#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define INLINE AVX2 static inline __attribute__((always_inline))

INLINE __m256 scale(const uint8_t *p) /* an f16, eight times */
{
    return _mm256_set1_ps(_cvtsh_ss(load_u16(p)));
}

INLINE __m256 from_u8(__m128i q) /* the lower eight bytes */
{
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(q));
}

/* Eight sums of q x for a block of nibbles: low ones are values 0-15, high ones 16-31. */
INLINE __m256 nibbles(const uint8_t *bytes, const float *x)
{
    __m128i q = _mm_loadu_si128((const void *)bytes), mask = _mm_set1_epi8(15);
    __m128i low = _mm_and_si128(q, mask), high = _mm_and_si128(_mm_srli_epi16(q, 4), mask);
    __m256 a = _mm256_mul_ps(from_u8(low), _mm256_loadu_ps(x));
    __m256 b = _mm256_mul_ps(from_u8(_mm_srli_si128(low, 8)), _mm256_loadu_ps(x + 8));
    a = _mm256_fmadd_ps(from_u8(high), _mm256_loadu_ps(x + 16), a);
    b = _mm256_fmadd_ps(from_u8(_mm_srli_si128(high, 8)), _mm256_loadu_ps(x + 24), b);
    return _mm256_add_ps(a, b);
}

INLINE __m256 sums_of(const float *x) /* eight sums of a block of x */
{
    return _mm256_add_ps(_mm256_add_ps(_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)),
                         _mm256_add_ps(_mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)));
}

INLINE float total(__m256 v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

AVX2 static float dot_q4_0(const uint8_t *src, const float *x, size_t blocks)
{
    __m256 sum = _mm256_setzero_ps(), eight = _mm256_set1_ps(8);
    for (; blocks; blocks--, src += 18, x += BLOCK)
        sum = _mm256_fmadd_ps(scale(src), _mm256_fnmadd_ps(eight, sums_of(x), nibbles(src + 2, x)), sum);
    return total(sum);
}

AVX2 static float dot_q4_1(const uint8_t *src, const float *x, size_t blocks)
{
    __m256 sum = _mm256_setzero_ps(), minimum = sum;
    for (; blocks; blocks--, src += 20, x += BLOCK) {
        sum = _mm256_fmadd_ps(scale(src), nibbles(src + 4, x), sum);
        minimum = _mm256_fmadd_ps(scale(src + 2), sums_of(x), minimum);
    }
    return total(_mm256_add_ps(sum, minimum));
}

AVX2 static float dot_q8_0(const uint8_t *src, const float *x, size_t blocks)
{
    __m256 sum = _mm256_setzero_ps();
    for (; blocks; blocks--, src += 34, x += BLOCK) {
        __m256 block = _mm256_setzero_ps();
        for (int i = 0; i < BLOCK; i += 8) {
            __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(src + 2 + i)));
            block = _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), _mm256_loadu_ps(x + i), block);
        }
        sum = _mm256_fmadd_ps(scale(src), block, sum);
    }
    return total(sum);
}

float quant_dot(uint32_t type, const uint8_t *src, const float *x, size_t values)
{
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    switch (avx2 ? type : UINT32_MAX) {
    case GGUF_T_Q4_0:
        return dot_q4_0(src, x, values / BLOCK);
    case GGUF_T_Q4_1:
        return dot_q4_1(src, x, values / BLOCK);
    case GGUF_T_Q8_0:
        return dot_q8_0(src, x, values / BLOCK);
    default:
        return dot_expanded(type, src, x, values);
    }
}
#else
float quant_dot(uint32_t type, const uint8_t *src, const float *x, size_t values)
{
    return dot_expanded(type, src, x, values);
}
#endif
