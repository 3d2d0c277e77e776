/* bench_eval - tokens per second of scoring: forward only, an adapter applied, windows packed together.
 *
 *     bench_eval [--base FILE|DIR | --shape NAME] [--threads N] [--samples S] [--seq T] [--steps K] [--ops blas|dnnl|bf16]
 *                [--turns] [--json FILE]
 *
 * One step scores S samples of T rows (default 4 of 512). Beside it, taking turns, a 2048^3 product of the same library and
 * threads, and multiply-adds in registers; the medians are compared. The fractions count 2 P + 2 V C + 2 L H D T FLOP per token.
 * --turns as in bench_train.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "bench/lab.h"
#include "bench/registers.h"
#include "model/evaluate.h"

struct bench {
    const char *base, *shape, *json;
    uint32_t threads, samples, seq, steps;
    bool turns;
    enum ops_kind ops;
    struct weights *weights;
    struct evaluator *evaluator;
    struct adapter_shape adapter;
    uint64_t planned;
    struct sample *list;
    double *nll;
    uint32_t *targets;
    struct lab_yardstick yardstick;
};

static void prepare(struct bench *b)
{
    struct err err;
    struct evaluator_config config;
    const struct arch *arch = &b->weights->arch;
    if (adapter_shape_of(arch, 16, 32, LORA_ALL, &b->adapter, &err) != ST_OK)
        lab_fail(&err);
    evaluator_defaults(&b->adapter, &config);
    config.ops = b->ops;
    config.threads = b->threads;
    config.seq_max = b->seq;
    config.rows_max = b->samples * b->seq;
    if (evaluator_plan(arch, &config, &b->planned, &err) != ST_OK ||
        evaluator_new(b->weights, &config, &b->evaluator, &err) != ST_OK)
        lab_fail(&err);
    float *block = lab_adapter(&b->adapter);
    evaluator_set_adapter(b->evaluator, block);
    free(block);
    b->list = lab_samples(b->samples, b->seq, arch->vocab_size);
    b->nll = xcalloc(b->samples, sizeof *b->nll);
    b->targets = xcalloc(b->samples, sizeof *b->targets);
}

static struct seconds step_seconds(void *arg, double *loss)
{
    struct bench *b = arg;
    struct err err;
    struct seconds begin = lab_now();
    if (evaluator_score(b->evaluator, b->list, b->samples, b->nll, b->targets, &err) != ST_OK)
        lab_fail(&err);
    struct seconds took = lab_since(begin);
    *loss = 0;
    for (uint32_t s = 0; s < b->samples; s++)
        *loss += b->nll[s] / ((double)b->samples * b->seq);
    return took;
}

static double gflop_per_token(const struct bench *b)
{
    const struct arch *a = &b->weights->arch;
    double linear = 0;
    for (int m = 0; m < LORA_MODULES; m++)
        linear += (double)a->n_layers * b->adapter.in[m] * b->adapter.out[m];
    return 2e-9 *
           (linear + (double)a->vocab_size * a->d_model + (double)a->n_layers * a->n_heads * a->head_dim * b->seq);
}

static void measure(struct bench *b)
{
    static double steps[LAB_STEPS_MAX], products[LAB_STEPS_MAX], registers[LAB_STEPS_MAX];
    double loss, peak, rows = (double)b->samples * b->seq;
    char fingerprint[512];
    step_seconds(b, &loss); /* warm */
    peak = lab_peak_bytes();
    lab_yardstick_init(&b->yardstick);
    lab_yardstick_seconds(&b->yardstick, b->threads);
    for (uint32_t i = 0; i < b->steps; i++) {
        products[i] = lab_yardstick_seconds(&b->yardstick, b->threads);
        registers[i] = registers_gflops(b->ops == OPS_BF16, b->threads);
        steps[i] = step_seconds(b, &loss).wall;
    }
    evaluator_fingerprint(b->evaluator, fingerprint, sizeof fingerprint);
    double rate = rows / lab_median(steps, b->steps), gflop = gflop_per_token(b);
    double sgemm = 2e-9 * LAB_SGEMM * LAB_SGEMM * LAB_SGEMM / lab_median(products, b->steps);
    double most = lab_median(registers, b->steps);
    printf("%s\n%u x %u rows   %.0f tokens/s   %.3f GFLOP/token   %.1f GFLOP/s\n", fingerprint, b->samples, b->seq,
           rate, gflop, rate * gflop);
    printf("sgemm %d^3   %.1f GFLOP/s   fraction %.3f\n", LAB_SGEMM, sgemm, rate * gflop / sgemm);
    if (most > 0)
        printf("registers alone   %.1f GFLOP/s   fraction %.3f\n", most, rate * gflop / most);
    printf("peak memory %.0f MB, planned %.0f MB: %+.1f %%\n", peak / 1e6, (double)b->planned / 1e6,
           100 * (peak / (double)b->planned - 1));
    lab_yardstick_release(&b->yardstick);
    if (!b->json)
        return;
    struct buf out = {0};
    struct err err;
    buf_printf(&out,
               "{\"bench\": \"eval\", \"fingerprint\": \"%s\", \"samples\": %u, \"seq\": %u, \"threads\": %u, "
               "\"steps\": %u, \"tokens_per_s\": %.1f, \"gflop_per_token\": %.4f, \"sgemm_gflops\": %.1f, "
               "\"fraction\": %.4f, \"peak_mb\": %.0f, \"planned_mb\": %.0f}\n",
               fingerprint, b->samples, b->seq, b->threads, b->steps, rate, gflop, sgemm, rate * gflop / sgemm,
               peak / 1e6, (double)b->planned / 1e6);
    if (file_write_durable(b->json, out.data, out.len, 0644, &err) != ST_OK)
        lab_fail(&err);
    buf_release(&out);
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
        else if (!strcmp(argv[i], "--steps"))
            b->steps = lab_number(value, LAB_STEPS_MAX);
        else if (!strcmp(argv[i], "--ops"))
            b->ops = lab_ops(value);
        else if (!strcmp(argv[i], "--turns"))
            b->turns = true, i--; /* it has no value */
        else {
            fprintf(stderr, "usage: bench_eval [--base FILE | --shape NAME] [--threads N] [--samples S] [--seq T] "
                            "[--steps K] [--ops blas|dnnl|bf16] [--turns] [--json FILE]\n");
            exit(2);
        }
    }
}

int main(int argc, char **argv)
{
    static struct bench b = {
        .shape = "smollm2-135m", .ops = OPS_BLAS, .threads = 2, .samples = 4, .seq = 512, .steps = 5};
    parse(&b, argc, argv);
    hash_start();
    b.weights = lab_weights(b.base, b.shape, b.ops);
    prepare(&b);
    if (b.turns)
        lab_take_turns(step_seconds, &b, gflop_per_token(&b) * b.samples * b.seq, b.ops == OPS_BF16, b.threads);
    else
        measure(&b);
    evaluator_free(b.evaluator);
    weights_free(b.weights);
    free((void *)b.list[0].tokens);
    free(b.list), free(b.nll), free(b.targets);
    return 0;
}
