/* bench_train - tokens per second of LoRA training, beside what the machine's sgemm gives in the same minutes.
 *
 *     bench_train [--base FILE|DIR] [--threads N] [--samples S] [--seq T] [--steps K] [--json FILE]
 *
 * One step is S samples of T rows (default 4 of 512), rank 16 on all seven linears. Without --base the weights are
 * random in the shape of SmolLM2-135M: speed does not depend on their values. Steps and 2048^3 products take turns, so
 * that a busy neighbour slows both; the medians are compared. The fraction counts model FLOP only:
 * 4 P + 6 P_lora + 4 V C + 7 L H D T per token (scores are computed again in the backward).
 */
#include <cblas.h>
#undef I /* cblas.h brings <complex.h> */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "model/base.h"
#include "model/trainer.h"

enum { SGEMM = 2048, STEPS_MAX = 1000 };

struct bench {
    const char *base, *json;
    uint32_t threads, samples, seq, steps;
    struct weights *weights;
    struct trainer *trainer;
    struct packed packed;
    float *a, *b, *c; /* SGEMM squared */
};

static const struct arch smollm2 = {.kind = ARCH_LLAMA,
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
                                    .tied_head = true};

static void fail(const struct err *err)
{
    fprintf(stderr, "bench_train: %s\n", err->text);
    exit(1);
}

static void fill(struct rng *rng, float *x, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++)
        x[i] = scale * ((float)(rng_u64(rng) >> 40) / (1 << 23) - 1);
}

static void load(struct bench *b)
{
    struct err err;
    if (b->base) {
        struct base *base;
        if (base_open(b->base, &base, &err) != ST_OK || weights_load(base, &b->weights, &err) != ST_OK)
            fail(&err);
        base_close(base);
        return;
    }
    struct rng rng;
    rng_seed(&rng, 1);
    if (weights_new(&smollm2, &b->weights, &err) != ST_OK)
        fail(&err);
    fill(&rng, b->weights->memory, b->weights->bytes / sizeof(float), 0.05f);
}

static void prepare(struct bench *b)
{
    struct err err;
    struct adapter_shape shape;
    struct trainer_config config;
    const struct arch *arch = &b->weights->arch;
    if (adapter_shape_of(arch, 16, 32, LORA_ALL, &shape, &err) != ST_OK)
        fail(&err);
    trainer_defaults(&shape, &config);
    config.threads = b->threads;
    config.seq_max = b->seq;
    config.rows_max = b->samples * b->seq;
    if (trainer_new(b->weights, &config, &b->trainer, &err) != ST_OK)
        fail(&err);
    size_t n = adapter_floats(&shape);
    float *block = xmalloc(n * sizeof *block);
    adapter_init(&shape, 1, block);
    trainer_set_adapter(b->trainer, block);
    free(block);

    struct rng rng;
    rng_seed(&rng, 2);
    uint32_t *tokens = xmalloc((size_t)config.rows_max * 2 * sizeof *tokens);
    struct sample *samples = xcalloc(b->samples, sizeof *samples);
    for (uint32_t s = 0; s < b->samples; s++) {
        samples[s] = (struct sample){tokens + (size_t)s * (b->seq + 1), NULL, b->seq + 1};
        for (uint32_t i = 0; i <= b->seq; i++)
            tokens[(size_t)s * (b->seq + 1) + i] = (uint32_t)rng_below(&rng, arch->vocab_size);
    }
    pack_samples(samples, b->samples, config.rows_max, &b->packed);
    free(samples);
    free(tokens);
    b->a = xmalloc(sizeof(float) * SGEMM * SGEMM);
    b->b = xmalloc(sizeof(float) * SGEMM * SGEMM);
    b->c = xcalloc(SGEMM, sizeof(float) * SGEMM);
    fill(&rng, b->a, SGEMM * SGEMM, 1);
    fill(&rng, b->b, SGEMM * SGEMM, 1);
}

static double gflop_per_token(const struct arch *a, const struct adapter_shape *shape, uint32_t seq)
{
    double linear = 0;
    for (int m = 0; m < LORA_MODULES; m++)
        linear += (double)a->n_layers * shape->in[m] * shape->out[m];
    return (4 * linear + 6 * (double)adapter_floats(shape) + 4.0 * a->vocab_size * a->d_model +
            7.0 * a->n_layers * a->n_heads * a->head_dim * seq) /
           1e9;
}

static double sgemm_seconds(const struct bench *b)
{
    openblas_set_num_threads((int)b->threads);
    double begin = clock_s();
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, SGEMM, SGEMM, SGEMM, 1, b->a, SGEMM, b->b, SGEMM, 0, b->c,
                SGEMM);
    double seconds = clock_s() - begin;
    openblas_set_num_threads(1);
    return seconds;
}

static double step_seconds(struct bench *b)
{
    struct err err;
    struct step_result r;
    double begin = clock_s();
    if (trainer_step(b->trainer, &b->packed, 1, &r, NULL, NULL, &err) != ST_OK)
        fail(&err);
    return clock_s() - begin;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, uint32_t n)
{
    qsort(x, n, sizeof *x, ascending);
    return x[n / 2];
}

static void report(const struct bench *b, double *steps, double *products)
{
    struct adapter_shape shape;
    struct memory_plan plan;
    struct trainer_config config;
    struct rusage usage;
    char fingerprint[512];
    const struct arch *arch = &b->weights->arch;
    adapter_shape_of(arch, 16, 32, LORA_ALL, &shape, NULL);
    trainer_defaults(&shape, &config);
    config.seq_max = b->seq;
    config.rows_max = b->packed.n_rows;
    config.threads = b->threads;
    trainer_plan(arch, &config, &plan, NULL);
    trainer_fingerprint(b->trainer, fingerprint, sizeof fingerprint);
    getrusage(RUSAGE_SELF, &usage);
    double rate = b->packed.n_rows / median(steps, b->steps), gflop = gflop_per_token(arch, &shape, b->seq);
    double sgemm = 2e-9 * SGEMM * SGEMM * SGEMM / median(products, b->steps);
    double sgemm_bytes = 3.0 * SGEMM * SGEMM * sizeof(float);
    double rss = ((double)usage.ru_maxrss * 1024 - sgemm_bytes) / 1e6; /* the yardstick's matrices are not ours */
    printf("%s\n", fingerprint);
    printf("%u x %u rows   %.0f tokens/s   %.3f GFLOP/token   %.1f GFLOP/s\n", b->samples, b->seq, rate, gflop,
           rate * gflop);
    printf("sgemm %d^3   %.1f GFLOP/s   fraction %.3f\n", SGEMM, sgemm, rate * gflop / sgemm);
    printf("peak memory %.0f MB (planned %.0f MB)\n", rss, (double)plan.total / 1e6);
    if (!b->json)
        return;
    struct buf out = {0};
    struct err err;
    buf_printf(&out,
               "{\"bench\": \"train\", \"fingerprint\": \"%s\", \"samples\": %u, \"seq\": %u, \"threads\": %u, "
               "\"steps\": %u, \"tokens_per_s\": %.1f, \"gflop_per_token\": %.4f, \"sgemm_gflops\": %.1f, "
               "\"fraction\": %.4f, \"peak_mb\": %.0f, \"planned_mb\": %.0f}\n",
               fingerprint, b->samples, b->seq, b->threads, b->steps, rate, gflop, sgemm, rate * gflop / sgemm, rss,
               (double)plan.total / 1e6);
    if (file_write_durable(b->json, out.data, out.len, 0644, &err) != ST_OK)
        fail(&err);
    buf_release(&out);
}

static uint32_t number(const char *s, uint32_t max)
{
    char *end;
    unsigned long v = strtoul(s, &end, 10);
    struct err err;
    if (*end || !*s || v < 1 || v > max) {
        err_set(&err, ST_USAGE, "%s: a number from 1 to %u is wanted", s, max);
        fail(&err);
    }
    return (uint32_t)v;
}

int main(int argc, char **argv)
{
    static double steps[STEPS_MAX], products[STEPS_MAX];
    struct bench b = {.threads = 2, .samples = 4, .seq = 512, .steps = 3};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--base"))
            b.base = value;
        else if (!strcmp(argv[i], "--json"))
            b.json = value;
        else if (!strcmp(argv[i], "--threads"))
            b.threads = number(value, OPS_THREADS_MAX);
        else if (!strcmp(argv[i], "--samples"))
            b.samples = number(value, 4096);
        else if (!strcmp(argv[i], "--seq"))
            b.seq = number(value, 8192);
        else if (!strcmp(argv[i], "--steps"))
            b.steps = number(value, STEPS_MAX);
        else {
            fprintf(stderr, "usage: bench_train [--base FILE] [--threads N] [--samples S] [--seq T] [--steps K] "
                            "[--json FILE]\n");
            return 2;
        }
    }
    hash_start();
    load(&b);
    prepare(&b);
    step_seconds(&b); /* warm */
    sgemm_seconds(&b);
    for (uint32_t i = 0; i < b.steps; i++) {
        products[i] = sgemm_seconds(&b);
        steps[i] = step_seconds(&b);
    }
    report(&b, steps, products);
    packed_release(&b.packed);
    trainer_free(b.trainer);
    weights_free(b.weights);
    free(b.a), free(b.b), free(b.c);
    return 0;
}
