/* Gradients of the whole model by central difference, everything in f64: each switch of the block, each set of adapted
 * modules, several samples in a pack. Built with MODEL_REAL_F64. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/transformer.h"

enum { VOCAB = 23, N_SAMPLES = 4 };

static const struct arch toy_llama = {.kind = ARCH_LLAMA,
                                      .n_layers = 2,
                                      .d_model = 12,
                                      .d_ff = 10,
                                      .n_heads = 4,
                                      .n_kv_heads = 2,
                                      .head_dim = 4,
                                      .vocab_size = VOCAB,
                                      .context_max = 64,
                                      .rope_theta = 100,
                                      .rms_eps = 1e-5f,
                                      .tied_head = true};

static void fill(struct rng *rng, real *x, size_t n, double scale, double mean)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (real)(mean + scale * rng_normal(rng));
}

static struct weights *random_weights(const struct arch *a, uint64_t seed)
{
    struct weights *w;
    struct err err;
    struct rng rng;
    rng_seed(&rng, seed);
    if (!EXPECT_ST(weights_new(a, false, &w, &err), ST_OK, &err))
        exit(1);
    size_t C = a->d_model, Q = a->n_heads * a->head_dim, QKV = Q + 2 * a->n_kv_heads * a->head_dim;
    fill(&rng, w->embed.rows, a->vocab_size * C, 1, 0);
    if (!a->tied_head)
        fill(&rng, w->head.rows, a->vocab_size * C, 1, 0);
    fill(&rng, w->out_norm, C, 0.2, 1);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        struct layer_weights *layer = &w->layers[l];
        fill(&rng, layer->attn_norm, C, 0.2, 1);
        fill(&rng, layer->ffn_norm, C, 0.2, 1);
        fill(&rng, layer->qkv.rows, QKV * C, 0.4, 0);
        fill(&rng, layer->o.rows, C * Q, 0.4, 0);
        fill(&rng, layer->gate_up.rows, 2 * a->d_ff * C, 0.4, 0);
        fill(&rng, layer->down.rows, C * a->d_ff, 0.4, 0);
        if (a->qkv_bias)
            fill(&rng, layer->qkv_bias, QKV, 0.4, 0);
        if (a->qk_norm) {
            fill(&rng, layer->q_norm, a->head_dim, 0.2, 1);
            fill(&rng, layer->k_norm, a->head_dim, 0.2, 1);
        }
    }
    return w;
}

/* Four samples: 6 rows, none, 1 row, 5 rows with a mask. */
static struct packed toy_batch(void)
{
    static uint32_t tokens[14];
    static const uint8_t mask[6] = {1, 0, 1, 1, 0, 1};
    for (uint32_t i = 0; i < 14; i++)
        tokens[i] = (i * i * 5 + 3) % VOCAB;
    const struct sample samples[N_SAMPLES] = {
        {tokens, NULL, 7}, {tokens, NULL, 1}, {tokens + 5, NULL, 2}, {tokens + 8, mask, 6}};
    struct packed packed;
    EXPECT_EQ(pack_samples(samples, N_SAMPLES, 100, &packed), N_SAMPLES);
    EXPECT_EQ(packed.n_rows, 12);
    EXPECT_EQ(packed.n_targets, 10);
    return packed;
}

static double loss_of(struct transformer *t, const real *block, const struct packed *packed, const struct objective *o)
{
    double nll[N_SAMPLES] = {0};
    uint32_t targets[N_SAMPLES] = {0};
    transformer_run(t, block, NULL, packed, o, 0, nll, targets);
    return objective_sum(o, packed, nll);
}

/* With checkpoints: the same bytes. */
static void check_checkpointed(const struct weights *w, struct transformer_config config, uint32_t layers,
                               const real *block, const struct packed *packed, const struct objective *o,
                               const real *want)
{
    struct err err;
    struct transformer *t;
    size_t n = adapter_floats(&config.shape);
    real *grad = xcalloc(n, sizeof *grad);
    double nll[N_SAMPLES] = {0};
    uint32_t counts[N_SAMPLES] = {0};
    config.checkpoint_layers = layers;
    if (!EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err))
        return;
    transformer_run(t, block, grad, packed, o, 0.5, nll, counts);
    EXPECT(!memcmp(grad, want, n * sizeof *grad));
    transformer_free(t);
    free(grad);
}

static void check_gradients_of(const char *what, const struct arch *arch, uint32_t targets, struct packed packed,
                               const struct objective *o)
{
    struct err err;
    struct weights *w = random_weights(arch, 11);
    struct transformer_config config = {.ops = &ops_ref, .rows_max = 12, .seq_max = 6, .threads = 1, .train = true};
    struct transformer *t;
    EXPECT_ST(adapter_shape_of(arch, 2, 3, targets, &config.shape, &err), ST_OK, &err);
    if (!EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err))
        return;
    size_t n = adapter_floats(&config.shape);
    real *block = xcalloc(n, sizeof *block), *grad = xcalloc(n, sizeof *grad);
    struct rng rng;
    rng_seed(&rng, 5);
    fill(&rng, block, n, 0.3, 0);

    double nll[N_SAMPLES] = {0}, worst = 0, norm = 0;
    uint32_t counts[N_SAMPLES] = {0};
    transformer_run(t, block, grad, &packed, o, 0.5, nll, counts);
    for (uint32_t layers = 1; layers <= arch->n_layers; layers++)
        check_checkpointed(w, config, layers, block, &packed, o, grad);
    for (size_t i = 0; i < n; i++) {
        const double h = 1e-5, old = block[i];
        block[i] = old + h;
        double up = loss_of(t, block, &packed, o);
        block[i] = old - h;
        double down = loss_of(t, block, &packed, o);
        block[i] = old;
        worst = fmax(worst, fabs(grad[i] - 0.5 * (up - down) / (2 * h)));
        norm = fmax(norm, fabs(grad[i]));
    }
    harness_expect(norm > 1e-3 && worst < 1e-7 * (1 + norm), __FILE__, __LINE__,
                   "%s, targets 0x%x: largest gradient %g, worst difference %g", what, targets, norm, worst);
    packed_release(&packed);
    transformer_free(t);
    weights_free(w);
    free(block), free(grad);
}

static const struct objective lm = {.kind = OBJECTIVE_LM};

static void check_gradients(const char *what, const struct arch *arch, uint32_t targets)
{
    check_gradients_of(what, arch, targets, toy_batch(), &lm);
}

static const float uneven[N_SAMPLES] = {1, 3, 0.5f, 2.25f};

/* sum over targets of (1 - d) nll(text) + d nll(the teacher's predictions), each with its sample's weight, from logits alone */
static double distilled_loss(struct transformer *t, const real *block, const real *start, const struct packed *p,
                             const struct objective *o)
{
    real logits[12 * VOCAB], taught[TEACHERS][12 * VOCAB];
    uint32_t rows[12] = {0}, n = 0, s = 0;
    double sum = 0;
    for (uint32_t m = 0; m < p->n_rows; m++)
        if (p->mask[m])
            rows[n++] = m;
    transformer_logits(t, block, p, rows, n, logits);
    transformer_logits(t, NULL, p, rows, n, taught[TEACHER_BASE]);
    transformer_logits(t, start, p, rows, n, taught[TEACHER_START]);
    for (uint32_t i = 0; i < n; i++) {
        while (rows[i] >= p->cu_seqlens[s + 1])
            s++;
        const real *x = logits + i * VOCAB, *y = taught[p->distilled[s]] + i * VOCAB;
        double d = o->distil[p->distilled[s]];
        double zx = 0, zy = 0, cross = 0;
        for (uint32_t v = 0; v < VOCAB; v++)
            zx += exp(x[v]), zy += d > 0 ? exp(y[v]) : 0;
        for (uint32_t v = 0; v < VOCAB && d > 0; v++)
            cross += exp(y[v]) / zy * (log(zx) - x[v]);
        double text = log(zx) - x[p->targets[rows[i]]];
        sum += (double)p->weights[s] * ((1 - d) * text + d * cross);
    }
    return sum;
}

static void test_gradients_of_distillation(void)
{
    static const uint8_t distilled[N_SAMPLES] = {TEACHER_START, TEACHER_NONE, TEACHER_BASE, TEACHER_START};
    static const uint8_t none[N_SAMPLES] = {0};
    const struct objective o = {.kind = OBJECTIVE_LM, .distil = {[TEACHER_BASE] = 0.7, [TEACHER_START] = 0.4}};
    struct weights *w = random_weights(&toy_llama, 11);
    struct transformer_config config = {
        .ops = &ops_ref, .rows_max = 12, .seq_max = 6, .threads = 1, .train = true, .distil = true};
    struct packed packed = toy_batch();
    struct transformer *t;
    struct err err;
    struct rng rng;
    EXPECT_ST(adapter_shape_of(&toy_llama, 2, 3, LORA_ALL, &config.shape, &err), ST_OK, &err);
    REQUIRE(EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err));
    size_t n = adapter_floats(&config.shape);
    real *block = xcalloc(n, sizeof *block), *grad = xcalloc(n, sizeof *grad), *plain = xcalloc(n, sizeof *plain),
         *start = xcalloc(n, sizeof *start);
    double nll[N_SAMPLES] = {0}, again[N_SAMPLES] = {0}, worst = 0, norm = 0;
    uint32_t counts[N_SAMPLES] = {0};
    rng_seed(&rng, 5);
    fill(&rng, block, n, 0.3, 0);
    fill(&rng, start, n, 0.3, 0);
    packed.distilled = distilled;
    packed.weights = uneven;
    transformer_teach(t, start, &packed, &o);
    transformer_run(t, block, grad, &packed, &o, 0.5, nll, counts);
    for (size_t i = 0; i < n; i++) {
        const double h = 1e-5, old = block[i];
        block[i] = old + h;
        double up = distilled_loss(t, block, start, &packed, &o);
        block[i] = old - h;
        double down = distilled_loss(t, block, start, &packed, &o);
        block[i] = old;
        worst = fmax(worst, fabs(grad[i] - 0.5 * (up - down) / (2 * h)));
        norm = fmax(norm, fabs(grad[i]));
    }
    EXPECT(norm > 1e-3 && worst < 1e-7 * (1 + norm));
    transformer_run(t, block, plain, &packed, &o, 0.5, again, counts); /* nobody taught: the text alone */
    EXPECT(memcmp(plain, grad, n * sizeof *grad) != 0 && !memcmp(nll, again, sizeof nll)); /* losses stay the text's */
    memset(grad, 0, n * sizeof *grad);
    packed.distilled = none;
    transformer_teach(t, start, &packed, &o);
    transformer_run(t, block, grad, &packed, &o, 0.5, again, counts);
    EXPECT(!memcmp(plain, grad, n * sizeof *grad));
    packed_release(&packed);
    transformer_free(t);
    weights_free(w);
    free(block), free(grad), free(plain), free(start);
}

static void test_gradients_of_each_objective(void)
{
    static const uint8_t answer[7] = {0, 0, 0, 1, 1, 1, 1};
    static const double reference[N_SAMPLES] = {-9, -12, -3, -4};
    const struct objective dpo = {.kind = OBJECTIVE_DPO, .beta = 0.3}, kl = {.kind = OBJECTIVE_KL};
    uint32_t tokens[16];
    struct packed pairs, packed = toy_batch();
    real logits[12][VOCAB];
    const real *teacher[12];
    struct rng rng;
    struct err err;
    for (uint32_t i = 0; i < 16; i++)
        tokens[i] = (i * i * 7 + 2) % VOCAB;
    const struct sample samples[] = {
        {tokens, answer, 5}, {tokens + 3, answer, 6}, {tokens + 9, NULL, 2}, {tokens + 10, NULL, 3}};
    EXPECT_EQ(pack_pairs(samples, N_SAMPLES, 100, &pairs), N_SAMPLES);
    EXPECT_ST(objective_accepts(&dpo, &pairs, &err), ST_BAD_DATA, &err);
    pairs.reference = reference;
    EXPECT_ST(objective_accepts(&dpo, &pairs, &err), ST_OK, &err);
    EXPECT_EQ(objective_count(&dpo, &pairs), 2);
    check_gradients_of("dpo", &toy_llama, LORA_ALL, pairs, &dpo);

    rng_seed(&rng, 8);
    for (uint32_t m = 0; m < 12; m++) {
        fill(&rng, logits[m], VOCAB, 2, 0);
        teacher[m] = logits[m];
    }
    EXPECT_ST(objective_accepts(&kl, &packed, &err), ST_BAD_DATA, &err);
    packed.teacher = teacher;
    EXPECT_ST(objective_accepts(&kl, &packed, &err), ST_OK, &err);
    check_gradients_of("kl", &toy_llama, LORA_ALL, packed, &kl);
}

static void test_gradients_of_weighted_samples(void)
{
    static const float unfit[][N_SAMPLES] = {{1, 0, 1, 1}, {1, 1, -1, 1}, {NAN, 1, 1, 1}, {1, 1, 1, INFINITY}};
    struct packed packed = toy_batch();
    struct err err;
    for (int i = 0; i < 4; i++) {
        packed.weights = unfit[i];
        EXPECT_ST(objective_accepts(&lm, &packed, &err), ST_BAD_DATA, &err);
    }
    packed.weights = uneven;
    EXPECT_ST(objective_accepts(&lm, &packed, &err), ST_OK, &err);
    EXPECT_NEAR(objective_count(&lm, &packed), 6 * 1 + 1 * 0.5 + 3 * 2.25,
                0); /* targets of the samples that have rows */
    check_gradients_of("weighted", &toy_llama, LORA_ALL, packed, &lm);
}

/* A pair is never torn apart, and what is not whole is refused. */
static void test_pairs(void)
{
    const struct objective dpo = {.kind = OBJECTIVE_DPO, .beta = 0.3};
    static const double reference[3] = {-1, -2, NAN};
    static const uint8_t none[3] = {1, 0, 0}; /* the first token is no target */
    uint32_t tokens[7] = {1, 2, 3, 4, 5, 6, 7};
    struct sample samples[] = {{tokens, NULL, 4}, {tokens, NULL, 3}, {tokens, NULL, 3}, {tokens, NULL, 3}};
    struct packed p;
    struct err err;
    EXPECT_EQ(pack_pairs(samples, 4, 8, &p), 2); /* 3 + 2 rows; the next pair has 4 */
    packed_release(&p);
    EXPECT_EQ(pack_pairs(samples, 4, 9, &p), 4);
    packed_release(&p);
    EXPECT_EQ(pack_samples(samples, 3, 9, &p), 3);
    p.reference = reference;
    EXPECT_ST(objective_accepts(&dpo, &p, &err), ST_BAD_DATA, &err); /* three */
    packed_release(&p);
    samples[1].mask = none;
    EXPECT_EQ(pack_pairs(samples, 2, 9, &p), 2);
    p.reference = reference;
    EXPECT_ST(objective_accepts(&dpo, &p, &err), ST_BAD_DATA, &err); /* no target */
    p.reference = reference + 1;
    p.mask[3] = 1;
    EXPECT_ST(objective_accepts(&dpo, &p, &err), ST_BAD_DATA, &err); /* not finite */
    packed_release(&p);
}

static void test_gradients_of_each_switch(void)
{
    struct arch a = toy_llama;
    check_gradients("llama", &a, LORA_ALL);
    a.tied_head = false;
    a.n_kv_heads = 4;
    check_gradients("untied head, no groups", &a, LORA_ALL);
    a.n_kv_heads = 1;
    check_gradients("one kv head", &a, LORA_ALL);
    a = toy_llama;
    a.kind = ARCH_QWEN2;
    a.qkv_bias = true;
    check_gradients("qwen2", &a, LORA_ALL);
    a = toy_llama;
    a.kind = ARCH_QWEN3;
    a.qk_norm = true;
    a.head_dim = 6; /* heads wider than d_model / n_heads */
    check_gradients("qwen3", &a, LORA_ALL);
}

/* What is skipped below the lowest adapted product must not be needed. */
static void test_gradients_of_each_module(void)
{
    for (uint32_t m = 0; m < LORA_MODULES; m++)
        check_gradients("one module", &toy_llama, 1u << m);
    check_gradients("q and v", &toy_llama, 1 << LORA_Q | 1 << LORA_V);
    check_gradients("o and up", &toy_llama, 1 << LORA_O | 1 << LORA_UP);
    struct arch a = toy_llama;
    a.n_layers = 3;
    for (uint32_t first = 1; first < a.n_layers; first++) {
        check_gradients("upper layers", &a, LORA_ALL | first << LORA_FIRST_LAYER);
        check_gradients("o of upper layers", &a, 1 << LORA_O | first << LORA_FIRST_LAYER);
    }
}

/* A sum over samples, and each as if it were alone. */
static void test_packed_is_one_by_one(void)
{
    struct err err;
    struct weights *w = random_weights(&toy_llama, 3);
    struct transformer_config config = {.ops = &ops_ref, .rows_max = 12, .seq_max = 6, .threads = 1, .train = true};
    struct transformer *t;
    EXPECT_ST(adapter_shape_of(&toy_llama, 2, 4, LORA_ALL, &config.shape, &err), ST_OK, &err);
    REQUIRE(EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err));
    size_t n = adapter_floats(&config.shape);
    real *block = xcalloc(n, sizeof *block), *grad = xcalloc(n, sizeof *grad), *each = xcalloc(n, sizeof *each);
    struct rng rng;
    rng_seed(&rng, 6);
    fill(&rng, block, n, 0.3, 0);
    struct packed packed = toy_batch();
    double nll[N_SAMPLES] = {0};
    uint32_t counts[N_SAMPLES] = {0};
    transformer_run(t, block, grad, &packed, &lm, 1, nll, counts);
    for (uint32_t s = 0; s < N_SAMPLES; s++) {
        uint32_t at = packed.cu_seqlens[s], cu[2] = {0, packed.cu_seqlens[s + 1] - at}, count = 0;
        struct packed one = {.tokens = packed.tokens + at,
                             .targets = packed.targets + at,
                             .mask = packed.mask + at,
                             .cu_seqlens = cu,
                             .n_samples = 1,
                             .n_rows = cu[1],
                             .n_targets = counts[s]};
        double alone = 0;
        EXPECT_ST(transformer_accepts(t, &one, &err), ST_OK, &err);
        transformer_run(t, block, each, &one, &lm, 1, &alone, &count);
        EXPECT_NEAR(alone, nll[s], 1e-12 * (1 + nll[s]));
        EXPECT_EQ(count, counts[s]);
    }
    double worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = fmax(worst, fabs(grad[i] - each[i]));
    EXPECT(worst < 1e-10);
    packed_release(&packed);
    transformer_free(t);
    weights_free(w);
    free(block), free(grad), free(each);
}

static void test_refusals(void)
{
    struct err err;
    struct weights *w = random_weights(&toy_llama, 3);
    struct transformer_config config = {.ops = &ops_ref, .rows_max = 12, .seq_max = 6, .threads = 1}, bad;
    struct transformer *t = NULL;
    EXPECT_ST(adapter_shape_of(&toy_llama, 2, 4, LORA_ALL, &config.shape, &err), ST_OK, &err);
    REQUIRE(EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err));
    struct packed packed = toy_batch();
    EXPECT_ST(transformer_accepts(t, &packed, &err), ST_OK, &err);
    packed.tokens[3] = VOCAB;
    EXPECT_ST(transformer_accepts(t, &packed, &err), ST_BAD_DATA, &err);
    packed.tokens[3] = 0;
    packed.cu_seqlens[1] = 7, packed.cu_seqlens[2] = 7; /* a sample of 7 rows, planned 6 */
    EXPECT_ST(transformer_accepts(t, &packed, &err), ST_LIMIT, &err);
    packed.cu_seqlens[1] = 9; /* falls back */
    EXPECT_ST(transformer_accepts(t, &packed, &err), ST_BAD_DATA, &err);
    packed.n_rows = 13;
    EXPECT_ST(transformer_accepts(t, &packed, &err), ST_LIMIT, &err);
    packed_release(&packed);
    transformer_free(t);

    bad = config, bad.seq_max = 13;
    EXPECT_ST(transformer_new(w, &bad, &t, &err), ST_USAGE, &err);
    bad = config, bad.rows_max = 100, bad.seq_max = 65; /* beyond the context */
    EXPECT_ST(transformer_new(w, &bad, &t, &err), ST_USAGE, &err);
    bad = config, bad.shape.out[LORA_K]++;
    EXPECT_ST(transformer_new(w, &bad, &t, &err), ST_USAGE, &err);
    bad = config, bad.threads = 0;
    EXPECT_ST(transformer_new(w, &bad, &t, &err), ST_USAGE, &err);
    weights_free(w);
}

int main(void)
{
    hash_start();
    RUN(test_gradients_of_each_switch);
    RUN(test_gradients_of_each_module);
    RUN(test_gradients_of_each_objective);
    RUN(test_gradients_of_weighted_samples);
    RUN(test_gradients_of_distillation);
    RUN(test_pairs);
    RUN(test_packed_is_one_by_one);
    RUN(test_refusals);
    return harness_end();
}
