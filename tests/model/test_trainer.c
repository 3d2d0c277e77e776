/* The trainer as its users see it: same bytes again, packed = one by one, scoring = training loss, AdamW's arithmetic,
 * refusals. On a small random model through both tables of ops. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/evaluate.h"
#include "model/optimizer.h"
#include "model/trainer.h"

enum { N = 7, TOKENS = 40 };

static const struct arch small = {.kind = ARCH_LLAMA,
                                  .n_layers = 3,
                                  .d_model = 48,
                                  .d_ff = 80,
                                  .n_heads = 6,
                                  .n_kv_heads = 2,
                                  .head_dim = 8,
                                  .vocab_size = 101,
                                  .context_max = 128,
                                  .rope_theta = 1e4f,
                                  .rms_eps = 1e-5f,
                                  .tied_head = true};
static struct weights *weights;
static struct adapter_shape shape;
static float *block;
static uint32_t tokens[N][TOKENS];
static uint8_t mask[TOKENS]; /* one in three */
static struct sample samples[N];

static void prepare(void)
{
    struct err err;
    struct rng rng;
    rng_seed(&rng, 42);
    if (!EXPECT_ST(weights_new(&small, false, &weights, &err), ST_OK, &err))
        exit(1);
    float *w = weights->memory;
    for (size_t i = 0; i < weights->bytes / sizeof *w; i++)
        w[i] = 0.2f * (float)rng_normal(&rng);
    EXPECT_ST(adapter_shape_of(&small, 4, 8, LORA_ALL, &shape, &err), ST_OK, &err);
    block = xmalloc(adapter_floats(&shape) * sizeof *block);
    for (size_t i = 0; i < adapter_floats(&shape); i++)
        block[i] = 0.1f * (float)rng_normal(&rng);
    for (int i = 0; i < TOKENS; i += 3)
        mask[i] = 1;
    for (uint32_t s = 0; s < N; s++) {
        for (uint32_t i = 0; i < TOKENS; i++)
            tokens[s][i] = (uint32_t)rng_below(&rng, small.vocab_size);
        samples[s] = (struct sample){tokens[s], NULL, TOKENS - 5 * s};
    }
}

static struct trainer *new_trainer(enum ops_kind ops, uint32_t threads)
{
    struct err err;
    struct trainer_config config;
    struct trainer *t;
    trainer_defaults(&shape, &config);
    config.ops = ops;
    config.threads = threads;
    config.rows_max = 256;
    config.seq_max = 64;
    if (!EXPECT_ST(trainer_new(weights, &config, &t, &err), ST_OK, &err))
        exit(1);
    trainer_set_adapter(t, block);
    return t;
}

static size_t adapter_bytes(void)
{
    return adapter_floats(&shape) * sizeof(float);
}

static double relative(const float *a, const float *b, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)a[i] * (double)a[i];
    }
    return sqrt(diff / norm);
}

static double train(struct trainer *t, const struct packed *batches, uint32_t n, int steps)
{
    struct err err;
    struct step_result r = {0};
    for (int i = 0; i < steps; i++)
        EXPECT_ST(trainer_step(t, batches, n, &r, NULL, NULL, &err), ST_OK, &err);
    return r.loss;
}

/* One pack of seven, and seven packs of one in the same step: the same loss, gradient and factors. */
static void test_packed_is_one_by_one(void)
{
    struct err err;
    struct packed all, one[N];
    EXPECT_EQ(pack_samples(samples, N, 256, &all), N);
    for (int s = 0; s < N; s++)
        EXPECT_EQ(pack_samples(&samples[s], 1, 64, &one[s]), 1);
    struct trainer *a = new_trainer(OPS_BLAS, 2), *b = new_trainer(OPS_BLAS, 2);
    struct step_result ra, rb;
    double nll_a[N], nll_b[N];
    uint32_t targets_a[N], targets_b[N];
    EXPECT_ST(trainer_step(a, &all, 1, &ra, nll_a, targets_a, &err), ST_OK, &err);
    EXPECT_ST(trainer_step(b, one, N, &rb, nll_b, targets_b, &err), ST_OK, &err);
    EXPECT_NEAR(ra.loss, rb.loss, 1e-6 * ra.loss);
    EXPECT_NEAR(ra.grad_norm, rb.grad_norm, 1e-6 * ra.grad_norm);
    EXPECT(relative(trainer_gradient(a), trainer_gradient(b), adapter_floats(&shape)) < 1e-6);
    double sum = 0;
    for (uint32_t s = 0; s < N; s++) {
        EXPECT_NEAR(nll_a[s], nll_b[s], 1e-6 * nll_a[s]);
        EXPECT(targets_a[s] == samples[s].n_tokens - 1 && targets_b[s] == targets_a[s]);
        sum += nll_a[s];
    }
    EXPECT_NEAR(sum / all.n_targets, ra.loss, 1e-12);
    EXPECT_EQ(ra.n_targets, all.n_targets);
    trainer_free(a);
    trainer_free(b);
    packed_release(&all);
    for (int s = 0; s < N; s++)
        packed_release(&one[s]);
}

static void test_same_bytes_again(void)
{
    struct packed all;
    pack_samples(samples, N, 256, &all);
    for (uint32_t threads = 1; threads <= 3; threads++) {
        struct trainer *a = new_trainer(OPS_BLAS, threads), *b = new_trainer(OPS_BLAS, threads);
        char fa[512], fb[512];
        train(a, &all, 1, 20);
        train(b, &all, 1, 3);
        trainer_set_adapter(b, block); /* nothing of those three steps may remain */
        train(b, &all, 1, 20);
        EXPECT(!memcmp(trainer_adapter(a), trainer_adapter(b), adapter_bytes()));
        EXPECT(memcmp(trainer_adapter(a), block, adapter_bytes()) != 0);
        trainer_fingerprint(a, fa, sizeof fa);
        trainer_fingerprint(b, fb, sizeof fb);
        EXPECT_STR(fa, fb);
        EXPECT(strstr(fa, "threads=") && strstr(fa, "OpenBLAS"));
        trainer_free(a);
        trainer_free(b);
    }
    packed_release(&all);
}

/* A smaller plan, the same gradient and the same factors; only the fingerprint says so. */
static void check_checkpoints(uint32_t layers)
{
    struct err err;
    struct packed all;
    struct trainer_config config;
    struct memory_plan none, some;
    struct trainer *a = new_trainer(OPS_BLAS, 2), *b;
    trainer_defaults(&shape, &config);
    config.threads = 2;
    config.rows_max = 256;
    config.seq_max = 64;
    EXPECT_ST(trainer_plan(&small, &config, &none, &err), ST_OK, &err);
    config.checkpoint_layers = layers;
    EXPECT_ST(trainer_plan(&small, &config, &some, &err), ST_OK, &err);
    const uint64_t saved = none.activations - some.activations, of = small.n_layers - 1;
    EXPECT(saved * of > (layers - 1) * none.activations / 2 && none.scratch == some.scratch);
    REQUIRE(EXPECT_ST(trainer_new(weights, &config, &b, &err), ST_OK, &err));
    trainer_set_adapter(b, block);
    for (uint32_t s = 0; s < N; s += 2)
        samples[s].mask = mask;
    pack_samples(samples, N, 256, &all);
    for (uint32_t s = 0; s < N; s++)
        samples[s].mask = NULL;
    EXPECT(all.n_targets < all.n_rows); /* the last layer has fewer rows than the others */
    train(a, &all, 1, 10);
    train(b, &all, 1, 10);
    EXPECT(!memcmp(trainer_gradient(a), trainer_gradient(b), adapter_bytes()));
    EXPECT(!memcmp(trainer_adapter(a), trainer_adapter(b), adapter_bytes()));
    char fa[512], fb[512], want[32];
    snprintf(want, sizeof want, "checkpoints=%u", layers);
    trainer_fingerprint(a, fa, sizeof fa);
    trainer_fingerprint(b, fb, sizeof fb);
    EXPECT(strstr(fa, "checkpoints=0") && strstr(fb, want));
    trainer_free(a);
    trainer_free(b);
    packed_release(&all);
}

static void test_checkpoints_change_no_bit(void)
{
    struct err err;
    struct trainer_config config;
    struct memory_plan plan;
    check_checkpoints(2);
    check_checkpoints(small.n_layers);
    trainer_defaults(&shape, &config);
    config.seq_max = 64;
    config.checkpoint_layers = small.n_layers + 1;
    EXPECT_ST(trainer_plan(&small, &config, &plan, &err), ST_USAGE, &err);
}

/* The budget decides: rows first, then checkpoints, layer by layer, then the rest of the rows, then no. */
static void test_fit(void)
{
    struct err err;
    struct trainer_config config;
    struct memory_plan plan, got;
    static const struct {
        uint32_t rows;
        uint32_t checkpoint_layers;
    } want[] = {{2048, 0}, {1024, 0}, {512, 0}, {512, 2}, {512, 3}, {256, 3}, {64, 3}};
    trainer_defaults(&shape, &config);
    config.seq_max = 64;
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        struct trainer_config c = config, exact = config;
        exact.rows_max = want[i].rows;
        exact.checkpoint_layers = want[i].checkpoint_layers;
        EXPECT_ST(trainer_plan(&small, &exact, &plan, &err), ST_OK, &err);
        c.memory_max = plan.total;
        EXPECT_ST(trainer_fit(&small, &c, &got, &err), ST_OK, &err);
        harness_expect(got.total <= c.memory_max, __FILE__, __LINE__, "case %zu keeps its budget", i);
        harness_expect(c.rows_max == want[i].rows && c.checkpoint_layers == want[i].checkpoint_layers, __FILE__,
                       __LINE__, "case %zu: %u rows, checkpoints of %u layers", i, c.rows_max, c.checkpoint_layers);
    }
    config.memory_max = plan.total - 1;
    EXPECT_ST(trainer_fit(&small, &config, &got, &err), ST_NO_MEMORY, &err);
    EXPECT(config.rows_max == 2048 && strstr(err.text, "64 rows") && strstr(err.text, "of 3 layers"));
    config.memory_max = 0;
    EXPECT_ST(trainer_fit(&small, &config, &got, &err), ST_OK, &err);
    EXPECT(config.rows_max == 2048 && config.checkpoint_layers == 0);
}

static void test_both_tables_train_alike(void)
{
    struct packed all;
    pack_samples(samples, N, 256, &all);
    struct trainer *a = new_trainer(OPS_REF, 1), *b = new_trainer(OPS_BLAS, 2);
    double first = train(a, &all, 1, 1), last_a = train(a, &all, 1, 30), last_b = train(b, &all, 1, 31);
    EXPECT(last_a < first - 0.1);
    EXPECT_NEAR(last_a, last_b, 1e-4);
    trainer_free(a);
    trainer_free(b);
    packed_release(&all);
}

static void test_scoring_is_the_training_loss(void)
{
    struct err err;
    struct packed all;
    pack_samples(samples, N, 256, &all);
    struct trainer *t = new_trainer(OPS_BLAS, 2);
    struct evaluator_config config;
    struct evaluator *e;
    evaluator_defaults(&shape, &config);
    config.rows_max = 256;
    config.seq_max = 64;
    config.threads = 2;
    REQUIRE(EXPECT_ST(evaluator_new(weights, &config, &e, &err), ST_OK, &err));
    double scored[N], trained[N];
    uint32_t targets[N];
    struct step_result r;
    evaluator_set_adapter(e, block);
    EXPECT_ST(evaluator_score(e, samples, N, scored, targets, &err), ST_OK, &err);
    EXPECT_ST(trainer_step(t, &all, 1, &r, trained, NULL, &err), ST_OK, &err);
    for (int s = 0; s < N; s++)
        EXPECT_NEAR(scored[s], trained[s], 1e-6 * trained[s]);

    double bare[N], zero[N];
    evaluator_set_adapter(e, NULL);
    EXPECT_ST(evaluator_score(e, samples, N, bare, targets, &err), ST_OK, &err);
    float *none = xcalloc(adapter_floats(&shape), sizeof *none);
    evaluator_set_adapter(e, none);
    EXPECT_ST(evaluator_score(e, samples, N, zero, targets, &err), ST_OK, &err);
    for (int s = 0; s < N; s++) {
        EXPECT_NEAR(bare[s], zero[s], 1e-6 * bare[s]);
        EXPECT(fabs(bare[s] - scored[s]) > 1e-3);
    }
    tokens[2][1] = small.vocab_size;
    EXPECT_ST(evaluator_score(e, samples, N, zero, targets, &err), ST_BAD_DATA, &err);
    tokens[2][1] = 0;
    struct sample longer = {tokens[0], NULL, config.seq_max + 2};
    EXPECT_ST(evaluator_score(e, &longer, 1, zero, targets, &err), ST_LIMIT, &err);
    free(none);
    evaluator_free(e);
    trainer_free(t);
    packed_release(&all);
}

/* The same update in f64, written from the paper. */
static void test_adamw(void)
{
    enum { P = 5, STEPS = 6 };
    float p[P] = {1, -2, 0.5f, 0, 3}, m[P], v[P];
    double q[P] = {1, -2, 0.5, 0, 3}, qm[P] = {0}, qv[P] = {0};
    struct optimizer o = {.lr = 0.1f,
                          .beta1 = 0.9f,
                          .beta2 = 0.99f,
                          .eps = 1e-8f,
                          .weight_decay = 0.05f,
                          .clip = 1,
                          .warmup_steps = 3,
                          .n = P,
                          .m = m,
                          .v = v};
    optimizer_reset(&o);
    for (int t = 1; t <= STEPS; t++) {
        float g[P];
        double norm = 0, lr = 0.1 * fmin(1, t / 3.0);
        for (int i = 0; i < P; i++) {
            g[i] = (float)((i - 2) * 0.4 * t) - p[i] * 0.1f;
            norm += (double)g[i] * (double)g[i];
        }
        norm = sqrt(norm);
        for (int i = 0; i < P; i++) {
            double gi = (double)g[i] * fmin(1, 1 / (norm + 1e-6));
            qm[i] = 0.9 * qm[i] + 0.1 * gi;
            qv[i] = 0.99 * qv[i] + 0.01 * gi * gi;
            q[i] -= lr * 0.05 * q[i];
            q[i] -= lr * (qm[i] / (1 - pow(0.9, t))) / (sqrt(qv[i] / (1 - pow(0.99, t))) + 1e-8);
        }
        EXPECT_NEAR(optimizer_norm(g, P), norm, 1e-12);
        optimizer_step(&o, p, g, norm);
        for (int i = 0; i < P; i++)
            EXPECT_NEAR(p[i], q[i], 2e-5); /* (1 - 0.9f) in f32 is 2e-7 off; 6 steps of 0.1 */
    }
    EXPECT_EQ(o.step, STEPS);
}

static void test_refusals(void)
{
    struct err err;
    struct trainer_config config, bad;
    struct memory_plan plan;
    struct trainer *t = NULL;
    struct step_result r;
    trainer_defaults(&shape, &config);
    config.rows_max = 256;
    config.seq_max = 64;
    EXPECT_ST(trainer_plan(&small, &config, &plan, &err), ST_OK, &err);
    EXPECT(plan.total == plan.weights + plan.activations + plan.scratch + plan.adapter);
    EXPECT(plan.adapter >= 4 * adapter_bytes() && plan.weights == weights->bytes);
    bad = config, bad.memory_max = plan.total - 1;
    EXPECT_ST(trainer_new(weights, &bad, &t, &err), ST_NO_MEMORY, &err);
    bad = config, bad.lr = NAN;
    EXPECT_ST(trainer_new(weights, &bad, &t, &err), ST_USAGE, &err);
    bad = config, bad.eps = 0;
    EXPECT_ST(trainer_new(weights, &bad, &t, &err), ST_USAGE, &err);
    bad = config, bad.ops = (enum ops_kind)9;
    EXPECT_ST(trainer_new(weights, &bad, &t, &err), ST_USAGE, &err);

    config.memory_max = plan.total;
    REQUIRE(EXPECT_ST(trainer_new(weights, &config, &t, &err), ST_OK, &err));
    trainer_set_adapter(t, block);
    struct packed all;
    pack_samples(samples, N, 256, &all);
    all.targets[5] = small.vocab_size;
    EXPECT_ST(trainer_step(t, &all, 1, &r, NULL, NULL, &err), ST_BAD_DATA, &err);
    all.targets[5] = 0;
    memset(all.mask, 0, all.n_rows);
    all.n_targets = 0;
    EXPECT_ST(trainer_step(t, &all, 1, &r, NULL, NULL, &err), ST_OK, &err); /* nothing asked, nothing changed */
    EXPECT_EQ(r.n_targets, 0);
    packed_release(&all);

    float *poisoned = xmemdup(block, adapter_bytes());
    poisoned[3] = INFINITY;
    trainer_set_adapter(t, poisoned);
    pack_samples(samples, N, 256, &all);
    EXPECT_ST(trainer_step(t, &all, 1, &r, NULL, NULL, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "not finite") != NULL);
    EXPECT(!memcmp(trainer_adapter(t), poisoned, adapter_bytes()));
    free(poisoned);
    packed_release(&all);
    trainer_free(t);
}

static void test_packing(void)
{
    struct packed p;
    uint32_t at = 0, packs = 0, targets = 0, last[N];
    for (; at < N; packs++) {
        uint32_t n = pack_samples(samples + at, N - at, 64, &p);
        EXPECT(n > 0 && p.n_rows <= 64 && p.cu_seqlens[n] == p.n_rows);
        for (uint32_t s = 0; s < n; s++)
            last[at + s] = p.targets[p.cu_seqlens[s + 1] - 1];
        targets += p.n_targets;
        at += n;
        packed_release(&p);
    }
    EXPECT(packs == 4 && targets == 39 + 34 + 29 + 24 + 19 + 14 + 9);
    for (uint32_t s = 0; s < N; s++)
        EXPECT_EQ(last[s], tokens[s][samples[s].n_tokens - 1]);
    EXPECT_EQ(pack_samples(samples, 0, 64, &p), 0);
    EXPECT_EQ(p.n_rows, 0);
    packed_release(&p);
}

int main(void)
{
    hash_start();
    prepare();
    RUN(test_packing);
    RUN(test_packed_is_one_by_one);
    RUN(test_same_bytes_again);
    RUN(test_checkpoints_change_no_bit);
    RUN(test_fit);
    RUN(test_both_tables_train_alike);
    RUN(test_scoring_is_the_training_loss);
    RUN(test_adamw);
    RUN(test_refusals);
    weights_free(weights);
    free(block);
    return harness_end();
}
