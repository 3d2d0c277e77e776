#include "model/simd.h"

#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

const char *simd_level(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return "avx2";
#endif
    return "baseline";
}

/* exp by splitting off a power of two and a polynomial of degree 7 for the rest: Cephes expf (Moshier), without its
 * branches so that it vectorises. NaN stays NaN. */
INLINE float exp_within(float x) /* from -87 to 88 */
{
    float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* round to nearest: 1.5 * 2^23 */
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE float exp1(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    return exp_within(x);
}

/* Beyond 60 it is 0 or 1 to f32, and nothing here is a denormal: that would cost Intel's cores a hundred cycles. */
INLINE float sigmoid(float x)
{
    x = x < -60.0f ? -60.0f : x;
    x = x > 60.0f ? 60.0f : x;
    return 1 / (1 + exp_within(-x));
}

MODEL_CLONES void simd_add(float *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] += x[i];
}

MODEL_CLONES float simd_dot(const float *a, const float *b, uint32_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

MODEL_CLONES float simd_max(const float *x, uint32_t n)
{
    float max = -INFINITY;
#pragma omp simd reduction(max : max)
    for (uint32_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max;
}

/* A vocabulary has one likely word and tens of thousands of unlikely ones, each below the last bit of an f32 sum that holds
 * the likely one, and together worth 1e-4 nats. So short f32 sums go into an f64 one. */
#ifdef MODEL_COPIES
enum { SUM_BLOCK = 256 }; /* 16 to 64 a lane */
#else
enum { SUM_BLOCK = 16 };
#endif

MODEL_CLONES double simd_exp(float *x, float scale, float shift, uint32_t n)
{
    double total = 0;
    for (uint32_t at = 0; at < n; at += SUM_BLOCK) {
        uint32_t end = n - at < SUM_BLOCK ? n : at + SUM_BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (uint32_t i = at; i < end; i++) {
            x[i] = exp1(x[i] * scale - shift);
            sum += x[i];
        }
        total += (double)sum;
    }
    return total;
}

MODEL_CLONES double simd_exp_sum(const float *x, float shift, uint32_t n)
{
    double total = 0;
    for (uint32_t at = 0; at < n; at += SUM_BLOCK) {
        uint32_t end = n - at < SUM_BLOCK ? n : at + SUM_BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (uint32_t i = at; i < end; i++)
            sum += exp1(x[i] - shift);
        total += (double)sum;
    }
    return total;
}

MODEL_CLONES double simd_divergence(float *x, const float *t, float lse_x, float lse_t, float scale, uint32_t n)
{
    double total = 0;
    for (uint32_t at = 0; at < n; at += SUM_BLOCK) {
        uint32_t end = n - at < SUM_BLOCK ? n : at + SUM_BLOCK;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (uint32_t i = at; i < end; i++) {
            float log_p = t[i] - lse_t, log_q = x[i] - lse_x, p = exp1(log_p);
            sum += p * (log_p - log_q);
            x[i] = scale * (exp1(log_q) - p);
        }
        total += (double)sum;
    }
    return total;
}

MODEL_CLONES void simd_scale(float *x, float s, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] *= s;
}

MODEL_CLONES void simd_softmax_dx(float *dp, const float *p, float delta, float scale, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        dp[i] = scale * p[i] * (dp[i] - delta);
}

MODEL_CLONES void simd_mix(float *out, const float *p, const float *v, size_t ld, uint32_t n, uint32_t D)
{
    memset(out, 0, D * sizeof *out);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t d = 0; d < D; d++)
            out[d] += p[i] * v[i * ld + d];
}

INLINE float inverse_rms(const float *x, float eps, uint32_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return 1 / sqrtf(sum / (float)n + eps);
}

MODEL_CLONES void simd_rmsnorm(float *y, const float *x, const float *w, float eps, uint32_t n)
{
    const float r = inverse_rms(x, eps, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] = x[i] * r * w[i];
}

MODEL_CLONES void simd_rmsnorm_dx(float *dx, const float *dy, const float *x, const float *w, float eps, uint32_t n,
                                  bool accumulate)
{
    float squares = 0, sum = 0;
#pragma omp simd reduction(+ : squares, sum)
    for (uint32_t i = 0; i < n; i++) {
        squares += x[i] * x[i];
        sum += dy[i] * w[i] * x[i];
    }
    float r = 1 / sqrtf(squares / (float)n + eps), t = r * r * r * sum / (float)n;
    if (accumulate)
        for (uint32_t i = 0; i < n; i++)
            dx[i] += r * dy[i] * w[i] - x[i] * t;
    else
        for (uint32_t i = 0; i < n; i++)
            dx[i] = r * dy[i] * w[i] - x[i] * t;
}

MODEL_CLONES void simd_rope(float *x, const float *cosine, const float *sine, float sign, uint32_t half)
{
    float *x2 = x + half;
#pragma omp simd
    for (uint32_t i = 0; i < half; i++) {
        float s = sign * sine[i], low = x[i], high = x2[i];
        x[i] = low * cosine[i] - high * s;
        x2[i] = high * cosine[i] + low * s;
    }
}

MODEL_CLONES void simd_swiglu(float *y, const float *gate, const float *up, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = gate[i] * sigmoid(gate[i]) * up[i];
}

MODEL_CLONES void simd_swiglu_back(float *gate, float *up, float *y, const float *dy, uint32_t n)
{
#pragma omp simd
    for (uint32_t i = 0; i < n; i++) {
        float g = gate[i], u = up[i], sig = sigmoid(g), d = dy[i];
        y[i] = g * sig * u;
        gate[i] = d * u * sig * (1 + g * (1 - sig));
        up[i] = d * g * sig;
    }
}

INLINE float from_half(uint16_t x)
{
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

INLINE uint16_t to_half(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

MODEL_CLONES void simd_round(uint16_t *y, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = to_half(x[i]);
}

MODEL_CLONES void simd_widen(float *y, const uint16_t *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        y[i] = from_half(x[i]);
}

MODEL_CLONES float simd_dot_half(const float *a, const uint16_t *b, uint32_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * from_half(b[i]);
    return sum;
}

MODEL_CLONES void simd_rope_half(uint16_t *y, const float *x, const float *cosine, const float *sine, float sign,
                                 uint32_t half)
{
    uint16_t *y2 = y + half;
    const float *x2 = x + half;
#pragma omp simd
    for (uint32_t i = 0; i < half; i++)
        y[i] = to_half(x[i] * cosine[i] - x2[i] * (sign * sine[i]));
#pragma omp simd
    for (uint32_t i = 0; i < half; i++)
        y2[i] = to_half(x2[i] * cosine[i] + x[i] * (sign * sine[i]));
}

MODEL_CLONES void simd_rmsnorm_half(uint16_t *y, const float *x, const float *w, float eps, uint32_t n)
{
    const float r = inverse_rms(x, eps, n);
    for (uint32_t i = 0; i < n; i++)
        y[i] = to_half(x[i] * r * w[i]);
}

MODEL_CLONES void simd_swiglu_half(uint16_t *y, const uint16_t *gate, const uint16_t *up, uint32_t n)
{
#pragma omp simd
    for (uint32_t i = 0; i < n; i++) {
        float g = from_half(gate[i]);
        y[i] = to_half(g * sigmoid(g) * from_half(up[i]));
    }
}

MODEL_CLONES void simd_swiglu_half_back(uint16_t *gate, uint16_t *up, uint16_t *y, const uint16_t *dy, uint32_t n)
{
#pragma omp simd
    for (uint32_t i = 0; i < n; i++) {
        float g = from_half(gate[i]), u = from_half(up[i]), sig = sigmoid(g), d = from_half(dy[i]);
        y[i] = to_half(g * sig * u);
        gate[i] = to_half(d * u * sig * (1 + g * (1 - sig)));
        up[i] = to_half(d * g * sig);
    }
}
