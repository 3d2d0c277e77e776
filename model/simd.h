/* simd.h - the loops over single rows, compiled for several vector widths and chosen when the program starts.
 *
 * Plain C: `omp simd` gives the compiler leave to reorder the marked sums, and MODEL_CLONES makes one copy for the
 * baseline, one for AVX2+FMA and one for AVX-512. Results differ in the last bits between copies, so simd_level() is part
 * of the numeric fingerprint.
 */
#ifndef MODEL_SIMD_H
#define MODEL_SIMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* MODEL_ONE_COPY: built with a sanitizer; some run before the resolvers that would pick a copy, none leaves loops vectorised. */
#if defined(__x86_64__) && !defined(MODEL_ONE_COPY)
#define MODEL_COPIES
#define MODEL_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MODEL_CLONES
#endif

const char *simd_level(void); /* "baseline", "avx2" or "avx512" */

void simd_add(float *y, const float *x, uint32_t n);
float simd_dot(const float *a, const float *b, uint32_t n);
float simd_max(const float *x, uint32_t n);

/* x = exp(scale x - shift), returns their sum (f64 over blocks); exact to 2 ulp, arguments below -87 give 1e-38. */
double simd_exp(float *x, float scale, float shift, uint32_t n);
double simd_exp_sum(const float *x, float shift, uint32_t n); /* the sum alone */
/* Sum of p (log p - log q), p = exp(t - lse_t), q = exp(x - lse_x); x becomes scale (q - p). */
double simd_divergence(float *x, const float *t, float lse_x, float lse_t, float scale, uint32_t n);
void simd_scale(float *x, float s, uint32_t n);

/* ds = scale p (dp - delta), over dp */
void simd_softmax_dx(float *dp, const float *p, float delta, float scale, uint32_t n);

/* out (D) = sum of p[i] times row i of v, n rows `ld` apart */
void simd_mix(float *out, const float *p, const float *v, size_t ld, uint32_t n, uint32_t D);

void simd_rmsnorm(float *y, const float *x, const float *w, float eps, uint32_t n);
void simd_rmsnorm_dx(float *dx, const float *dy, const float *x, const float *w, float eps, uint32_t n,
                     bool accumulate);
void simd_rope(float *x, const float *cosine, const float *sine, float sign, uint32_t half);
void simd_swiglu(float *y, const float *gate, const float *up, uint32_t n);
void simd_swiglu_back(float *gate, float *up, float *y, const float *dy, uint32_t n);
/* The same on bf16 numbers, rounded to nearest even at the end. */
void simd_round(uint16_t *y, const float *x, uint32_t n);
void simd_widen(float *y, const uint16_t *x, uint32_t n);
float simd_dot_half(const float *a, const uint16_t *b, uint32_t n);
void simd_rope_half(uint16_t *y, const float *x, const float *cosine, const float *sine, float sign, uint32_t half);
void simd_rmsnorm_half(uint16_t *y, const float *x, const float *w, float eps, uint32_t n);
void simd_swiglu_half(uint16_t *y, const uint16_t *gate, const uint16_t *up, uint32_t n);
void simd_swiglu_half_back(uint16_t *gate, uint16_t *up, uint16_t *y, const uint16_t *dy, uint32_t n);

#endif
