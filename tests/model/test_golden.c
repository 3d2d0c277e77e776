/* The engine against PyTorch, transformers and PEFT: files made by scripts/golden_engine.py, which also says what they
 * hold. Loss within 1e-4 nats a token, gradients within 1e-4 relative, 50 AdamW steps within 1e-3.
 *
 * The real model is read from $ALLUVIUM_BASE_GGUF or build/cache/SmolLM2-135M-Instruct.Q4_1.gguf (scripts/test fetches
 * it). Without it this test fails: a skipped proof is none. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/safetensors.h"
#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/base.h"
#include "model/evaluate.h"
#include "model/trainer.h"
#include "model/transformer.h"
#include "weights_pack.h"

#define GOLDEN SOURCE_DIR "/tests/golden/engine/"
enum { SAMPLES = 2, TOKENS_MAX = 512, STEPS = 50, PROJECTIONS = 16 };

struct golden {
    struct safetensors *file;
    uint32_t tokens[TOKENS_MAX];
    struct sample samples[SAMPLES];
};

/* MurmurHash3's finaliser of (seed, index), as in the script. */
static uint32_t mixed(uint32_t i, uint32_t seed)
{
    uint32_t h = i * 2654435761u + seed * 40503u + 12345u;
    h = (h ^ h >> 16) * 0x85ebca6bu;
    h = (h ^ h >> 13) * 0xc2b2ae35u;
    return h ^ h >> 16;
}

static const float *floats(const struct golden *g, const char *name, size_t n)
{
    const struct safetensors_tensor *t = safetensors_find(g->file, name);
    if (!EXPECT(t && !strcmp(t->dtype, "F32") && t->bytes == n * sizeof(float)))
        exit(harness_end());
    return (const float *)(const void *)t->data;
}

static void golden_open(struct golden *g, const char *name)
{
    struct err err;
    if (!EXPECT_ST(safetensors_open(harness_path(GOLDEN, name), SAFETENSORS_BASE, &g->file, &err), ST_OK, &err))
        exit(harness_end());
    const float *lengths = floats(g, "lengths", SAMPLES);
    uint32_t n = (uint32_t)(lengths[0] + lengths[1]);
    const float *ids = floats(g, "ids", n);
    if (!EXPECT(n <= TOKENS_MAX))
        exit(harness_end());
    for (uint32_t i = 0; i < n; i++)
        g->tokens[i] = (uint32_t)ids[i];
    g->samples[0] = (struct sample){g->tokens, NULL, (uint32_t)lengths[0]};
    g->samples[1] = (struct sample){g->tokens + g->samples[0].n_tokens, NULL, (uint32_t)lengths[1]};
}

static struct weights *load_for(const char *path, const struct ops *ops)
{
    struct err err;
    struct base *base;
    struct weights *w;
    if (!EXPECT_ST(base_open(path, &base, &err), ST_OK, &err) ||
        !EXPECT_ST(weights_load(base, ops, &w, &err), ST_OK, &err))
        exit(harness_end());
    base_close(base);
    return w;
}

static struct weights *load(const char *path)
{
    return load_for(path, &ops_blas);
}

/* Packed while it is read, panel by panel, or all at once afterwards: the same bytes, also where q, k and v, or gate and up, meet
 * inside a tile. */
static void check_packed(const char *path)
{
    struct err err;
    if (ops_check(OPS_BF16, &err) != ST_OK) {
        printf("    packing: %s\n", err.text);
        return;
    }
    struct weights *read = load_for(path, &ops_bf16), *whole = load(path);
    if (EXPECT_ST(weights_pack(&whole, &err), ST_OK, &err) && EXPECT_EQ(read->bytes, whole->bytes))
        EXPECT(!memcmp(read->memory, whole->memory, read->bytes));
    weights_free(read);
    weights_free(whole);
}

static float *noise_adapter(const struct adapter_shape *shape, float b_size)
{
    float *block = xmalloc(adapter_floats(shape) * sizeof *block);
    uint32_t seed = 0;
    for (uint32_t l = 0; l < shape->n_layers; l++)
        for (int m = 0; m < LORA_MODULES; m++) {
            float *a = block + adapter_at_a(shape, l, (enum lora_module)m);
            float *b = block + adapter_at_b(shape, l, (enum lora_module)m), a_size = (float)(1 / sqrt(shape->in[m]));
            for (uint32_t i = 0; i < shape->rank * shape->in[m]; i++)
                a[i] = (float)(mixed(i, seed) / 2147483648.0 - 1) * a_size;
            for (uint32_t i = 0; i < shape->rank * shape->out[m]; i++)
                b[i] = (float)(mixed(i, seed + 1) / 2147483648.0 - 1) * b_size;
            seed += 2;
        }
    return block;
}

static struct trainer *new_trainer(const struct weights *w, const struct adapter_shape *shape, enum ops_kind ops,
                                   float lr, uint32_t rows)
{
    struct err err;
    struct trainer_config config;
    struct trainer *t;
    trainer_defaults(shape, &config);
    config.lr = lr;
    if (lr == 0) /* the gradient as it is */
        config.clip = 0;
    config.weight_decay = 0.01f;
    config.rows_max = config.seq_max = rows;
    config.ops = ops;
    config.threads = 2;
    if (!EXPECT_ST(trainer_new(w, &config, &t, &err), ST_OK, &err))
        exit(harness_end());
    return t;
}

static void check_training(struct trainer *t, const struct packed *packed, const float *want)
{
    struct err err;
    double worst = 0;
    for (int step = 0; step < STEPS; step++) {
        struct step_result r;
        if (!EXPECT_ST(trainer_step(t, packed, 1, &r, NULL, NULL, &err), ST_OK, &err))
            return;
        worst = fmax(worst, fabs(r.loss - (double)want[step]));
    }
    EXPECT_NEAR(worst, 0, 1e-3);
}

static void check_logits(const struct weights *w, const struct adapter_shape *shape, enum ops_kind kind,
                         const float *block, const struct packed *packed, const float *want)
{
    struct err err;
    struct transformer_config config = {ops_of(kind), *shape, 64, 32, 2, false, 0, false};
    struct transformer *t;
    REQUIRE(EXPECT_ST(transformer_new(w, &config, &t, &err), ST_OK, &err));
    uint32_t rows[64], V = w->arch.vocab_size;
    for (uint32_t i = 0; i < packed->n_rows; i++)
        rows[i] = i;
    float *logits = xmalloc((size_t)packed->n_rows * V * sizeof *logits);
    transformer_logits(t, block, packed, rows, packed->n_rows, logits);
    double worst = 0, size = 0;
    for (size_t i = 0; i < (size_t)packed->n_rows * V; i++) {
        worst = fmax(worst, fabs((double)logits[i] - (double)want[i]));
        size = fmax(size, fabs((double)want[i]));
    }
    EXPECT(size > 1);
    EXPECT_NEAR(worst, 0, 1e-5 * size);
    free(logits);
    transformer_free(t);
}

static void check_toy(const char *name, enum ops_kind ops)
{
    struct err err;
    struct golden g;
    char file[32];
    snprintf(file, sizeof file, "%s.safetensors", name);
    golden_open(&g, file);
    struct weights *w = load(harness_path(GOLDEN, name));
    struct adapter_shape shape;
    EXPECT_ST(adapter_shape_of(&w->arch, 2, 3, LORA_ALL, &shape, &err), ST_OK, &err);
    float *block = noise_adapter(&shape, 0.2f);
    struct packed packed;
    EXPECT_EQ(pack_samples(g.samples, SAMPLES, 64, &packed), SAMPLES);
    check_logits(w, &shape, ops, block, &packed, floats(&g, "logits", (size_t)packed.n_rows * w->arch.vocab_size));

    struct trainer *t = new_trainer(w, &shape, ops, 0, 64);
    struct step_result r;
    trainer_set_adapter(t, block);
    EXPECT_ST(trainer_step(t, &packed, 1, &r, NULL, NULL, &err), ST_OK, &err);
    EXPECT_NEAR(r.loss, floats(&g, "loss", 1)[0], 1e-5);
    size_t n = adapter_floats(&shape);
    const float *got = trainer_gradient(t), *want = floats(&g, "grad", n);
    double dot = 0, gg = 0, ww = 0, diff = 0;
    for (size_t i = 0; i < n; i++) {
        double a = (double)got[i], b = (double)want[i];
        dot += a * b, gg += a * a, ww += b * b, diff += (a - b) * (a - b);
    }
    EXPECT(dot / sqrt(gg * ww) > 0.99999);
    EXPECT_NEAR(sqrt(diff / ww), 0, 1e-4);
    trainer_free(t);

    t = new_trainer(w, &shape, ops, 1e-2f, 64);
    trainer_set_adapter(t, block);
    check_training(t, &packed, floats(&g, "losses", STEPS));
    trainer_free(t);
    packed_release(&packed);
    free(block);
    weights_free(w);
    safetensors_close(g.file);
}

/* |got - want| / |want| */
static double distance(const float *got, const float *want, size_t n)
{
    double diff = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        size += (double)want[i] * (double)want[i];
    }
    return sqrt(diff / size);
}

static void check_objective(const struct weights *w, const struct objective *objective, enum ops_kind ops,
                            const struct packed *packed, const float *loss, const float *grad)
{
    struct err err;
    struct trainer_config config;
    struct adapter_shape shape;
    struct trainer *t;
    struct step_result r;
    EXPECT_ST(adapter_shape_of(&w->arch, 2, 3, LORA_ALL, &shape, &err), ST_OK, &err);
    trainer_defaults(&shape, &config);
    config.objective = *objective;
    config.ops = ops;
    config.clip = 0;
    config.rows_max = 64;
    config.seq_max = 32;
    REQUIRE(EXPECT_ST(trainer_new(w, &config, &t, &err), ST_OK, &err));
    float *block = noise_adapter(&shape, 0.2f);
    trainer_set_adapter(t, block);
    EXPECT_ST(trainer_step(t, packed, 1, &r, NULL, NULL, &err), ST_OK, &err);
    EXPECT_NEAR(r.loss, loss[0], 1e-5 * (1 + (double)loss[0]));
    EXPECT_NEAR(distance(trainer_gradient(t), grad, adapter_floats(&shape)), 0, 1e-4);
    trainer_free(t);
    free(block);
}

static void test_objectives(void)
{
    enum { PROMPT = 4 };
    static const char *const names[] = {"llama", "qwen3"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        struct golden toy, g;
        struct err err;
        struct adapter_shape shape;
        struct packed packed;
        char file[64];
        snprintf(file, sizeof file, "%s.safetensors", names[i]);
        golden_open(&toy, file);
        snprintf(file, sizeof file, "%s_objectives.safetensors", names[i]);
        EXPECT_ST(safetensors_open(harness_path(GOLDEN, file), SAFETENSORS_BASE, &g.file, &err), ST_OK, &err);
        struct weights *w = load(harness_path(GOLDEN, names[i]));
        EXPECT_ST(adapter_shape_of(&w->arch, 2, 3, LORA_ALL, &shape, &err), ST_OK, &err);
        size_t n = adapter_floats(&shape), V = w->arch.vocab_size;

        EXPECT_EQ(pack_samples(toy.samples, SAMPLES, 64, &packed), SAMPLES);
        float *logits = xmalloc(packed.n_rows * V * sizeof *logits);
        const float *teacher[64];
        for (size_t k = 0; k < packed.n_rows * V; k++)
            logits[k] = (float)(mixed((uint32_t)k, 77) / 2147483648.0 - 1) * 3;
        for (size_t m = 0; m < packed.n_rows; m++)
            teacher[m] = logits + m * V;
        packed.teacher = teacher;
        for (int ops = OPS_REF; ops <= OPS_DNNL; ops++)
            check_objective(w, &(struct objective){.kind = OBJECTIVE_KL}, (enum ops_kind)ops, &packed,
                            floats(&g, "kl", 1), floats(&g, "kl_grad", n));
        packed_release(&packed);
        free(logits);

        uint8_t mask[TOKENS_MAX];
        memset(mask, 1, sizeof mask);
        memset(mask, 0, PROMPT);
        const float *given = floats(&g, "reference", SAMPLES);
        const double reference[SAMPLES] = {(double)given[0], (double)given[1]};
        toy.samples[0].mask = toy.samples[1].mask = mask;
        EXPECT_EQ(pack_pairs(toy.samples, SAMPLES, 64, &packed), SAMPLES);
        packed.reference = reference;
        for (int ops = OPS_REF; ops <= OPS_DNNL; ops++)
            check_objective(w, &(struct objective){.kind = OBJECTIVE_DPO, .beta = 0.3}, (enum ops_kind)ops, &packed,
                            floats(&g, "dpo", 1), floats(&g, "dpo_grad", n));
        packed_release(&packed);
        weights_free(w);
        safetensors_close(g.file);
        safetensors_close(toy.file);
    }
}

static void test_toys(void)
{
    static const char *const names[] = {"llama", "llama3", "qwen2", "qwen3"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        check_toy(names[i], OPS_REF);
        check_toy(names[i], OPS_BLAS);
        check_toy(names[i], OPS_DNNL);
        check_packed(harness_path(GOLDEN, names[i]));
    }
}

/* Every factor's gradient from its norm and 16 projections on random signs s: for an error e the mean of (s.e)^2 is |e|^2,
 * so the projections give the size of the error of each tensor, and with it a bound of the cosine. */
static void check_projections(const struct golden *g, const struct adapter_shape *shape, const float *grad)
{
    size_t tensors = (size_t)shape->n_layers * LORA_MODULES * 2;
    const float *norms = floats(g, "norms", tensors), *want = floats(g, "projections", tensors * PROJECTIONS);
    double worst = 0;
    for (size_t t = 0; t < tensors; t++) {
        uint32_t l = (uint32_t)t / 2 / LORA_MODULES;
        enum lora_module m = (enum lora_module)(t / 2 % LORA_MODULES);
        const float *x = grad + (t % 2 ? adapter_at_b(shape, l, m) : adapter_at_a(shape, l, m));
        uint32_t n = shape->rank * (t % 2 ? shape->out[m] : shape->in[m]);
        double projections[PROJECTIONS] = {0}, square = 0, error = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t h = mixed(i, 5000 + (uint32_t)t);
            square += (double)x[i] * (double)x[i];
            for (int k = 0; k < PROJECTIONS; k++)
                projections[k] += h >> k & 1 ? -(double)x[i] : (double)x[i];
        }
        for (int k = 0; k < PROJECTIONS; k++)
            error += pow(projections[k] - (double)want[t * PROJECTIONS + k], 2) / PROJECTIONS;
        worst = fmax(worst, sqrt(error) / (double)norms[t]);
        worst = fmax(worst, fabs(sqrt(square) / (double)norms[t] - 1));
    }
    EXPECT_NEAR(worst, 0, 1e-4); /* a relative error of 1e-4 is a cosine above 1 - 1e-8 */
}

static void test_smollm2(void)
{
    const char *path = getenv("ALLUVIUM_BASE_GGUF");
    if (!path)
        path = SOURCE_DIR "/build/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    if (!harness_expect(access(path, R_OK) == 0, __FILE__, __LINE__,
                        "%s cannot be read: run scripts/test, which fetches it, or set ALLUVIUM_BASE_GGUF", path))
        return;
    check_packed(path);
    struct err err;
    struct golden g;
    golden_open(&g, "smollm2.safetensors");
    struct weights *w = load(path);
    struct adapter_shape shape;
    EXPECT_ST(adapter_shape_of(&w->arch, 16, 32, LORA_ALL, &shape, &err), ST_OK, &err);
    float *block = noise_adapter(&shape, 0.02f);

    struct evaluator_config config;
    struct evaluator *e;
    double nll[SAMPLES];
    uint32_t targets[SAMPLES];
    evaluator_defaults(&shape, &config);
    config.threads = 2;
    REQUIRE(EXPECT_ST(evaluator_new(w, &config, &e, &err), ST_OK, &err));
    EXPECT_ST(evaluator_score(e, g.samples, SAMPLES, nll, targets, &err), ST_OK, &err);
    const float *base = floats(&g, "base", SAMPLES);
    for (int s = 0; s < SAMPLES; s++)
        EXPECT_NEAR(nll[s] / targets[s], base[s], 1e-5);
    evaluator_set_adapter(e, block);
    EXPECT_ST(evaluator_score(e, g.samples, SAMPLES, nll, targets, &err), ST_OK, &err);
    float loss = floats(&g, "loss", 1)[0];
    EXPECT_NEAR((nll[0] + nll[1]) / (targets[0] + targets[1]), loss, 1e-5);
    evaluator_free(e);

    struct packed packed;
    struct step_result r;
    struct trainer *t = new_trainer(w, &shape, OPS_BLAS, 0, 400);
    trainer_set_adapter(t, block);
    EXPECT_EQ(pack_samples(g.samples, SAMPLES, 400, &packed), SAMPLES);
    EXPECT_ST(trainer_step(t, &packed, 1, &r, NULL, NULL, &err), ST_OK, &err);
    EXPECT_NEAR(r.loss, loss, 1e-5);
    check_projections(&g, &shape, trainer_gradient(t));
    trainer_free(t);
    packed_release(&packed);

    for (int s = 0; s < SAMPLES; s++)
        g.samples[s].n_tokens = 32;
    t = new_trainer(w, &shape, OPS_BLAS, 1e-3f, 64);
    trainer_set_adapter(t, block);
    EXPECT_EQ(pack_samples(g.samples, SAMPLES, 64, &packed), SAMPLES);
    check_training(t, &packed, floats(&g, "losses", STEPS));
    trainer_free(t);
    packed_release(&packed);
    free(block);
    weights_free(w);
    safetensors_close(g.file);
}

int main(void)
{
    hash_start();
    RUN(test_toys);
    RUN(test_objectives);
    RUN(test_smollm2);
    return harness_end();
}
