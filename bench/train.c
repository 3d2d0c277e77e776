/* bench_train - tokens per second of LoRA training, beside what the machine's sgemm gives in the same minutes.
 *
 *     bench_train [--base FILE|DIR | --shape NAME] [--threads N] [--samples S] [--seq T] [--rank R] [--steps K]
 *                 [--memory MB] [--checkpoint-layers L] [--ops blas|dnnl|bf16] [--turns] [--json FILE]
 *
 * One step is S samples of T rows (default 4 of 512), rank 16 on all seven linears. Without --base the weights are
 * random in the shape of SmolLM2-135M or of --shape (lab.h). Steps, 2048^3 products and multiply-adds in registers
 * (registers.h) take turns, so that a busy neighbour slows all; the medians are compared. The fractions count model FLOP only:
 * 4 P + 6 P_lora + 4 V C + 7 L H D T per token (scores are computed again in the backward).
 *
 * After the steps, every product of a step is done by itself, in the library's own threads. "products / step" is what is left
 * to gain by anything that is no product; the CPU seconds say it on a busy machine too (waiting threads spin a little).
 *
 * With --turns: one step for every line on stdin, its seconds and its loss on stdout, then what lab_take_turns() adds; nothing
 * else is measured (bench/peers/compare.py alternates with a peer).
 */
#include <cblas.h>
#undef I /* cblas.h brings <complex.h> */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "bench/lab.h"
#include "bench/registers.h"
#include "model/trainer.h"

enum { PRODUCTS_MAX = 128 };

struct product { /* (M, N) over K, `times` times a step; op(A) op(B) as cblas has them */
    CBLAS_TRANSPOSE ta, tb;
    uint32_t M, N, K;
    double times;
};

struct products {
    struct product list[PRODUCTS_MAX];
    uint32_t n;
};

struct bench {
    const char *base, *shape, *json;
    uint32_t threads, samples, seq, rank, steps, memory_mb, checkpoint_layers;
    bool turns;
    enum ops_kind ops;
    struct trainer_config config;
    struct memory_plan plan;
    struct weights *weights;
    struct trainer *trainer;
    struct packed batches[4096];
    uint32_t n_batches;
    struct lab_yardstick yardstick;
};

static void prepare(struct bench *b)
{
    struct err err;
    struct adapter_shape shape;
    const struct arch *arch = &b->weights->arch;
    if (adapter_shape_of(arch, b->rank, 2 * b->rank, LORA_ALL, &shape, &err) != ST_OK)
        lab_fail(&err);
    trainer_defaults(&shape, &b->config);
    b->config.ops = b->ops;
    b->config.threads = b->threads;
    b->config.seq_max = b->seq;
    b->config.rows_max = b->samples * b->seq;
    b->config.checkpoint_layers = b->checkpoint_layers;
    b->config.memory_max = (uint64_t)b->memory_mb * 1000000;
    if (trainer_fit(arch, &b->config, &b->plan, &err) != ST_OK ||
        trainer_new(b->weights, &b->config, &b->trainer, &err) != ST_OK)
        lab_fail(&err);
    float *block = lab_adapter(&shape);
    trainer_set_adapter(b->trainer, block);
    free(block);

    struct sample *samples = lab_samples(b->samples, b->seq, arch->vocab_size);
    for (uint32_t at = 0; at < b->samples;)
        at += pack_samples(samples + at, b->samples - at, b->config.rows_max, &b->batches[b->n_batches++]);
    free((void *)samples[0].tokens);
    free(samples);
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

static struct seconds step_seconds(void *arg, double *loss)
{
    struct bench *b = arg;
    struct err err;
    struct step_result r;
    struct seconds begin = lab_now();
    if (trainer_step(b->trainer, b->batches, b->n_batches, &r, NULL, NULL, &err) != ST_OK)
        lab_fail(&err);
    if (loss)
        *loss = r.loss;
    return lab_since(begin);
}

static void add(struct products *p, CBLAS_TRANSPOSE ta, CBLAS_TRANSPOSE tb, uint32_t M, uint32_t N, uint32_t K,
                double times)
{
    if (p->n < PRODUCTS_MAX && times > 0)
        p->list[p->n++] = (struct product){ta, tb, M, N, K, times};
}

/* One linear layer of `n` adapted modules, stacked: forward, dX, and what its LoRAs take (U, dU, dA, dB; the merged weight
 * twice). */
static void add_linear(struct products *p, uint32_t M, uint32_t in, uint32_t out, uint32_t n, uint32_t R, double times)
{
    add(p, CblasNoTrans, CblasTrans, M, out, in, times);
    add(p, CblasNoTrans, CblasNoTrans, M, in, out, times);
    add(p, CblasNoTrans, CblasTrans, M, n * R, in, times);
    add(p, CblasNoTrans, CblasNoTrans, M, R, out / n, n * times);
    add(p, CblasTrans, CblasNoTrans, R, in, M, n * times);
    add(p, CblasTrans, CblasNoTrans, out / n, R, M, n * times);
    add(p, CblasNoTrans, CblasNoTrans, out, in, R, 2 * times);
}

/* What one step multiplies with no checkpoints: transformer.c, lora.c, loss.c, and ops_blas.c for the attention. */
static void products_of(const struct bench *b, struct products *p)
{
    enum { PIECE = 341, BLOCK = 64 };
    const struct arch *a = &b->weights->arch;
    uint32_t C = a->d_model, D = a->head_dim, Q = a->n_heads * D, KV = a->n_kv_heads * D,
             G = a->n_heads / a->n_kv_heads;
    uint32_t M = b->batches[0].n_rows, R = b->rank;
    double layers = (double)a->n_layers * b->n_batches, rows = (double)b->samples * b->seq;
    add_linear(p, M, C, Q + 2 * KV, 3, R, layers);
    add_linear(p, M, Q, C, 1, R, layers);
    add_linear(p, M, C, 2 * a->d_ff, 2, R, layers);
    add_linear(p, M, a->d_ff, C, 1, R, layers);
    add(p, CblasNoTrans, CblasTrans, PIECE, a->vocab_size, C, rows / PIECE);
    add(p, CblasNoTrans, CblasNoTrans, PIECE, C, a->vocab_size, rows / PIECE);
    double tiles = (double)a->n_layers * b->samples * a->n_kv_heads;
    for (uint32_t keys = BLOCK; keys <= b->seq && p->n + 3 <= PRODUCTS_MAX; keys += BLOCK) {
        add(p, CblasNoTrans, CblasTrans, G * BLOCK, keys, D, 3 * tiles);
        add(p, CblasNoTrans, CblasNoTrans, G * BLOCK, D, keys, 2 * tiles);
        add(p, CblasTrans, CblasNoTrans, keys, D, G * BLOCK, 2 * tiles);
    }
}

/* The whole list once, each product timed alone over a few repetitions. */
static struct seconds products_seconds(const struct bench *b)
{
    static struct products p;
    struct seconds sum = {0, 0};
    size_t largest = 0;
    p.n = 0;
    products_of(b, &p);
    for (uint32_t i = 0; i < p.n; i++) {
        size_t M = p.list[i].M, N = p.list[i].N, K = p.list[i].K;
        largest = M * K > largest ? M * K : largest;
        largest = N * K > largest ? N * K : largest;
        largest = M * N > largest ? M * N : largest;
    }
    float *A = xcalloc(largest, sizeof *A), *B = xcalloc(largest, sizeof *B), *Y = xcalloc(largest, sizeof *Y);
    for (size_t i = 0; i < largest; i++)
        A[i] = B[i] = 1.0f / (float)(1 + i % 97);
    openblas_set_num_threads((int)b->threads);
    for (uint32_t i = 0; i < p.n; i++) {
        const struct product *x = &p.list[i];
        bool ta = x->ta == CblasTrans, tb = x->tb == CblasTrans;
        double flop = 2.0 * x->M * x->N * x->K;
        int n = flop > 1e9 ? 2 : 2 + (int)(1e8 / flop);
        n = n > 200 ? 200 : n;
        struct seconds begin = {0, 0};
        for (int k = 0; k <= n; k++) { /* the first is not counted */
            if (k == 1)
                begin = lab_now();
            cblas_sgemm(CblasRowMajor, x->ta, x->tb, (int)x->M, (int)x->N, (int)x->K, 1, A, (int)(ta ? x->M : x->K), B,
                        (int)(tb ? x->K : x->N), 0, Y, (int)x->N);
        }
        struct seconds took = lab_since(begin);
        sum.wall += took.wall / n * x->times;
        sum.cpu += took.cpu / n * x->times;
    }
    openblas_set_num_threads(1);
    free(A), free(B), free(Y);
    return sum;
}

static double rows_of(const struct bench *b)
{
    return (double)b->samples * b->seq;
}

static void report(const struct bench *b, double *steps, double *step_cpu, double *products, double *registers,
                   double peak)
{
    char fingerprint[512];
    const struct arch *arch = &b->weights->arch;
    double sgemm_bytes = 3.0 * LAB_SGEMM * LAB_SGEMM * sizeof(float);
    double rss = (peak - sgemm_bytes) / 1e6; /* the yardstick's matrices are not ours */
    struct seconds alone = products_seconds(b);
    trainer_fingerprint(b->trainer, fingerprint, sizeof fingerprint);
    double step = lab_median(steps, b->steps), cpu = lab_median(step_cpu, b->steps);
    double rate = rows_of(b) / step, gflop = gflop_per_token(arch, &b->config.shape, b->seq);
    double sgemm = 2e-9 * LAB_SGEMM * LAB_SGEMM * LAB_SGEMM / lab_median(products, b->steps);
    double most = lab_median(registers, b->steps);
    printf("%s\n", fingerprint);
    printf("%u x %u rows   %.0f tokens/s   %.3f GFLOP/token   %.1f GFLOP/s\n", b->samples, b->seq, rate, gflop,
           rate * gflop);
    printf("sgemm %d^3   %.1f GFLOP/s   fraction %.3f\n", LAB_SGEMM, sgemm, rate * gflop / sgemm);
    if (most > 0)
        printf("registers alone   %.1f GFLOP/s   fraction %.3f\n", most, rate * gflop / most);
    if (b->config.checkpoint_layers == 0)
        printf("products alone %.2f s of a step's %.2f s: products / step %.3f, in CPU seconds %.3f\n", alone.wall,
               step, alone.wall / step, alone.cpu / cpu);
    printf("peak memory %.0f MB, planned %.0f MB: %+.1f %%\n", rss, (double)b->plan.total / 1e6,
           100 * (rss * 1e6 / (double)b->plan.total - 1));
    if (!b->json)
        return;
    struct buf out = {0};
    struct err err;
    buf_printf(&out,
               "{\"bench\": \"train\", \"fingerprint\": \"%s\", \"samples\": %u, \"seq\": %u, \"threads\": %u, "
               "\"steps\": %u, \"tokens_per_s\": %.1f, \"gflop_per_token\": %.4f, \"sgemm_gflops\": %.1f, "
               "\"fraction\": %.4f, \"products_per_step\": %.4f, \"products_per_step_cpu\": %.4f, \"peak_mb\": %.0f, "
               "\"planned_mb\": %.0f}\n",
               fingerprint, b->samples, b->seq, b->threads, b->steps, rate, gflop, sgemm, rate * gflop / sgemm,
               alone.wall / step, alone.cpu / cpu, rss, (double)b->plan.total / 1e6);
    if (file_write_durable(b->json, out.data, out.len, 0644, &err) != ST_OK)
        lab_fail(&err);
    buf_release(&out);
}

static void measure(struct bench *b)
{
    static double steps[LAB_STEPS_MAX], cpu[LAB_STEPS_MAX], products[LAB_STEPS_MAX], registers[LAB_STEPS_MAX];
    lab_yardstick_init(&b->yardstick);
    step_seconds(b, NULL); /* warm */
    lab_yardstick_seconds(&b->yardstick, b->threads);
    for (uint32_t i = 0; i < b->steps; i++) {
        products[i] = lab_yardstick_seconds(&b->yardstick, b->threads);
        registers[i] = registers_gflops(b->ops == OPS_BF16, b->threads);
        struct seconds step = step_seconds(b, NULL);
        steps[i] = step.wall;
        cpu[i] = step.cpu;
    }
    report(b, steps, cpu, products, registers, lab_peak_bytes());
    lab_yardstick_release(&b->yardstick);
}

static void parse(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--base"))
            b->base = value;
        else if (!strcmp(argv[i], "--shape"))
            b->shape = value;
        else if (!strcmp(argv[i], "--json"))
            b->json = value;
        else if (!strcmp(argv[i], "--threads"))
            b->threads = lab_number(value, OPS_THREADS_MAX);
        else if (!strcmp(argv[i], "--samples"))
            b->samples = lab_number(value, 4096);
        else if (!strcmp(argv[i], "--seq"))
            b->seq = lab_number(value, 8192);
        else if (!strcmp(argv[i], "--rank"))
            b->rank = lab_number(value, LORA_RANK_MAX);
        else if (!strcmp(argv[i], "--memory"))
            b->memory_mb = lab_number(value, 1 << 20);
        else if (!strcmp(argv[i], "--checkpoint-layers"))
            b->checkpoint_layers = lab_number(value, 1 << 10);
        else if (!strcmp(argv[i], "--steps"))
            b->steps = lab_number(value, LAB_STEPS_MAX);
        else if (!strcmp(argv[i], "--ops"))
            b->ops = lab_ops(value);
        else if (!strcmp(argv[i], "--turns"))
            b->turns = true, i--; /* it has no value */
        else {
            fprintf(stderr, "usage: bench_train [--base FILE | --shape NAME] [--threads N] [--samples S] [--seq T] "
                            "[--rank R] [--steps K] [--memory MB] [--checkpoint-layers L] [--ops blas|dnnl|bf16] "
                            "[--turns] [--json FILE]\n");
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    static struct bench b = {
        .shape = "smollm2-135m", .ops = OPS_BLAS, .threads = 2, .samples = 4, .seq = 512, .rank = 16, .steps = 3};
    parse(&b, argc, argv);
    hash_start();
    b.weights = lab_weights(b.base, b.shape, b.ops);
    prepare(&b);
    if (b.turns)
        lab_take_turns(step_seconds, &b, gflop_per_token(&b.weights->arch, &b.config.shape, b.seq) * rows_of(&b),
                       b.ops == OPS_BF16, b.threads);
    else
        measure(&b);
    for (uint32_t i = 0; i < b.n_batches; i++)
        packed_release(&b.batches[i]);
    trainer_free(b.trainer);
    weights_free(b.weights);
    return 0;
}
