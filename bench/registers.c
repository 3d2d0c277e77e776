#include "bench/registers.h"

#include <pthread.h>

#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "model/bf16.h"
#include "model/pool.h"

#if defined(__x86_64__)

#include <immintrin.h>

enum { SUMS = 12, ROUNDS = 1 << 23 };

/* Sums that do not wait for each other, enough of them for two units of six cycles; hidden from the compiler, which would see that they
 * are all the same. Each function: the FLOP that it did. */
#define EACH(statement)                                     \
    _Pragma("GCC unroll 12") for (int i = 0; i < SUMS; i++) \
    {                                                       \
        statement;                                          \
    }
#define HIDE(value) __asm__ volatile("" : "+v"(value))
#define MULTIPLY_ADD(name, isa, vector, zero, one, step, flop) \
    __attribute__((target(isa))) static double name(void)      \
    {                                                          \
        vector sum[SUMS], x = one;                             \
        EACH(sum[i] = zero; HIDE(sum[i]))                      \
        for (int r = 0; r < ROUNDS; r++)                       \
            EACH(sum[i] = step)                                \
        EACH(HIDE(sum[i]))                                     \
        return (double)(flop)*SUMS * ROUNDS;                   \
    }

MULTIPLY_ADD(avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_set1_ps(1), _mm256_fmadd_ps(x, x, sum[i]), 16)
MULTIPLY_ADD(avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_set1_ps(1), _mm512_fmadd_ps(x, x, sum[i]), 32)
MULTIPLY_ADD(avx512_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps(), _mm512_set1_ps(1),
             _mm512_dpbf16_ps(sum[i], (__m512bh)x, (__m512bh)x), 64)

__attribute__((target("amx-tile,amx-bf16"))) static double amx_bf16(void)
{
    static const struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_zero(4);
    _tile_zero(5);
    for (int r = 0; r < ROUNDS / 64; r++) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_release();
    return 4.0 * 2 * 16 * 16 * 32 * (ROUNDS / 64);
}

typedef double kernel_fn(void);

static kernel_fn *kernel_of(bool half)
{
    if (half)
        switch (bf16_unit()) {
        case BF16_AMX:
            return amx_bf16;
        case BF16_AVX512:
            return avx512_bf16;
        case BF16_NONE:
            return NULL;
        }
    return __builtin_cpu_supports("avx512f") ? avx512 : __builtin_cpu_supports("avx2") ? avx2 : NULL;
}

struct share {
    kernel_fn *kernel;
    double flop;
};

static void *work(void *arg)
{
    struct share *s = arg;
    s->flop = s->kernel();
    return NULL;
}

double registers_gflops(bool half, uint32_t threads)
{
    struct share shares[POOL_THREADS_MAX];
    pthread_t ids[POOL_THREADS_MAX];
    kernel_fn *kernel = kernel_of(half);
    if (!kernel)
        return 0;
    double begin = clock_s(), flop = 0;
    for (uint32_t i = 0; i < threads; i++) {
        shares[i] = (struct share){kernel, 0};
        CHECK(pthread_create(&ids[i], NULL, work, &shares[i]) == 0);
    }
    for (uint32_t i = 0; i < threads; i++) {
        pthread_join(ids[i], NULL);
        flop += shares[i].flop;
    }
    return flop / (clock_s() - begin) / 1e9;
}

#else

double registers_gflops(bool half, uint32_t threads)
{
    (void)half, (void)threads;
    return 0;
}

#endif
