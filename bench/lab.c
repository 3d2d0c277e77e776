#include "bench/lab.h"

#include <cblas.h>
#undef I /* cblas.h brings <complex.h> */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "adapter/adapter.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "bench/registers.h"
#include "model/base.h"

static const struct {
    const char *name;
    struct arch arch;
} shapes[] = {
    {"smollm2-135m",
     {.kind = ARCH_LLAMA,
      .n_layers = 30,
      .d_model = 576,
      .d_ff = 1536,
      .n_heads = 9,
      .n_kv_heads = 3,
      .head_dim = 64,
      .vocab_size = 49152,
      .context_max = 8192,
      .rope_theta = 1e5f,
      .rms_eps = 1e-5f,
      .tied_head = true}},
    {"qwen3-0.6b",
     {.kind = ARCH_QWEN3,
      .n_layers = 28,
      .d_model = 1024,
      .d_ff = 3072,
      .n_heads = 16,
      .n_kv_heads = 8,
      .head_dim = 128,
      .vocab_size = 151936,
      .context_max = 40960,
      .rope_theta = 1e6f,
      .rms_eps = 1e-6f,
      .qk_norm = true,
      .tied_head = true}},
    {"llama-3.2-1b",
     {.kind = ARCH_LLAMA,
      .n_layers = 16,
      .d_model = 2048,
      .d_ff = 8192,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 64,
      .vocab_size = 128256,
      .context_max = 131072,
      .rope_theta = 5e5f,
      .rms_eps = 1e-5f,
      .tied_head = true}},
};

void lab_fail(const struct err *err)
{
    fprintf(stderr, "bench: %s\n", err->text);
    exit(1);
}

uint32_t lab_number(const char *text, uint32_t max)
{
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    struct err err;
    if (*end || !*text || v < 1 || v > max) {
        err_set(&err, ST_USAGE, "%s: a number from 1 to %u is wanted", text, max);
        lab_fail(&err);
    }
    return (uint32_t)v;
}

enum ops_kind lab_ops(const char *name)
{
    struct err err;
    static const struct {
        const char *name;
        enum ops_kind kind;
    } kinds[] = {{"blas", OPS_BLAS}, {"dnnl", OPS_DNNL}, {"bf16", OPS_BF16}};
    ops_of(OPS_BLAS); /* the yardsticks are its products, and it may have to be told which CPU this is */
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!strcmp(name, kinds[i].name)) {
            if (ops_check(kinds[i].kind, &err) != ST_OK)
                lab_fail(&err);
            return kinds[i].kind;
        }
    err_set(&err, ST_USAGE, "%s: no such back end; blas, dnnl or bf16", name);
    lab_fail(&err);
}

/* Words that are numbers of 1/32 to 1/16, either sign, both as one f32 and as two bf16. */
static void fill(uint32_t *words, size_t n)
{
    struct rng rng;
    rng_seed(&rng, 1);
    for (size_t i = 0; i < n; i++)
        words[i] = ((uint32_t)rng_u64(&rng) & 0x807f807fu) | 0x3d003d00u;
}

struct weights *lab_weights(const char *path, const char *name, enum ops_kind ops)
{
    struct err err;
    struct weights *weights;
    if (path) {
        struct base *base;
        if (base_open(path, &base, &err) != ST_OK || weights_load(base, ops_of(ops), &weights, &err) != ST_OK)
            lab_fail(&err);
        base_close(base);
        return weights;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (!strcmp(shapes[i].name, name)) {
            if (weights_new(&shapes[i].arch, ops_of(ops)->packed, &weights, &err) != ST_OK)
                lab_fail(&err);
            fill(weights->memory, weights->bytes / sizeof(uint32_t));
            return weights;
        }
    err_set(&err, ST_USAGE, "%s: no such shape; smollm2-135m, qwen3-0.6b or llama-3.2-1b", name);
    lab_fail(&err);
}

/* The finaliser of MurmurHash3, as in scripts/golden_engine.py. */
static uint32_t mixed(uint32_t i)
{
    uint32_t h = i * 2654435761u + 12345;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

struct sample *lab_samples(uint32_t n, uint32_t seq, uint32_t vocab)
{
    struct sample *samples = xcalloc(n, sizeof *samples);
    uint32_t *tokens = xcalloc((size_t)n * (seq + 1), sizeof *tokens);
    for (uint32_t i = 0; i < n * (seq + 1); i++)
        tokens[i] = mixed(i) % vocab;
    for (uint32_t s = 0; s < n; s++)
        samples[s] = (struct sample){.tokens = tokens + (size_t)s * (seq + 1), .n_tokens = seq + 1};
    return samples;
}

float *lab_adapter(const struct adapter_shape *shape)
{
    float *block = xcalloc(adapter_floats(shape), sizeof *block);
    adapter_init(shape, 1, block);
    return block;
}

struct seconds lab_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (struct seconds){clock_s(), (double)t.tv_sec + 1e-9 * (double)t.tv_nsec};
}

struct seconds lab_since(struct seconds begin)
{
    struct seconds end = lab_now();
    return (struct seconds){end.wall - begin.wall, end.cpu - begin.cpu};
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double lab_median(double *x, uint32_t n)
{
    qsort(x, n, sizeof *x, ascending);
    return x[n / 2];
}

double lab_peak_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024;
}

/* Waits for a line; false when there is no more. */
static bool next_turn(void)
{
    for (int c = getchar(); c != '\n'; c = getchar())
        if (c == EOF)
            return false;
    return true;
}

void lab_take_turns(struct seconds (*step)(void *arg, double *loss), void *arg, double gflop, bool half,
                    uint32_t threads)
{
    static double rates[LAB_STEPS_MAX];
    uint32_t n = 0;
    while (n < LAB_STEPS_MAX && next_turn()) {
        double loss;
        struct seconds s = step(arg, &loss);
        rates[n++] = registers_gflops(half, threads);
        printf("%.4f %.4f %.6f\n", s.wall, s.cpu, loss);
        fflush(stdout);
    }
    double rate = n ? lab_median(rates, n) : 0;
    printf("%.0f %.4f\n", lab_peak_bytes(), rate > 0 ? gflop / rate : 0);
}

void lab_yardstick_init(struct lab_yardstick *y)
{
    float **matrices[] = {&y->a, &y->b, &y->c};
    for (int i = 0; i < 3; i++) {
        *matrices[i] = xcalloc(LAB_SGEMM, sizeof(float) * LAB_SGEMM);
        for (size_t k = 0; k < (size_t)LAB_SGEMM * LAB_SGEMM; k++)
            (*matrices[i])[k] = 1.0f / (float)(1 + k % 97);
    }
}

double lab_yardstick_seconds(const struct lab_yardstick *y, uint32_t threads)
{
    openblas_set_num_threads((int)threads);
    double begin = clock_s();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, LAB_SGEMM, LAB_SGEMM, LAB_SGEMM, 1, y->a, LAB_SGEMM, y->b,
                LAB_SGEMM, 0, y->c, LAB_SGEMM);
    double seconds = clock_s() - begin;
    openblas_set_num_threads(1);
    return seconds;
}

void lab_yardstick_release(struct lab_yardstick *y)
{
    free(y->a), free(y->b), free(y->c);
}
