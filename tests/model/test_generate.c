/* Generation with its cache against the transformer without one. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/generate.h"
#include "model/transformer.h"

enum { PROMPT = 70, NEW = 12, VOCAB = 67 }; /* the prompt is longer than one piece */

static const struct arch small = {.kind = ARCH_QWEN3,
                                  .n_layers = 2,
                                  .d_model = 24,
                                  .d_ff = 40,
                                  .n_heads = 4,
                                  .n_kv_heads = 2,
                                  .head_dim = 8,
                                  .vocab_size = VOCAB,
                                  .context_max = 100,
                                  .rope_theta = 1e3f,
                                  .rms_eps = 1e-6f,
                                  .qk_norm = true,
                                  .qkv_bias = true};
static struct weights *weights;
static struct adapter_shape shape;
static float *block;
static uint32_t prompt[PROMPT];

struct text {
    uint32_t tokens[NEW], n, stop_after;
};

static bool take(void *arg, uint32_t token)
{
    struct text *text = arg;
    text->tokens[text->n++] = token;
    return text->n != text->stop_after;
}

static void prepare(void)
{
    struct err err;
    struct rng rng;
    rng_seed(&rng, 9);
    if (!EXPECT_ST(weights_new(&small, &weights, &err), ST_OK, &err))
        exit(1);
    float *w = weights->memory;
    for (size_t i = 0; i < weights->bytes / sizeof *w; i++)
        w[i] = 0.5f * (float)rng_normal(&rng);
    EXPECT_ST(adapter_shape_of(&small, 3, 6, LORA_ALL, &shape, &err), ST_OK, &err);
    block = xmalloc(adapter_floats(&shape) * sizeof *block);
    for (size_t i = 0; i < adapter_floats(&shape); i++)
        block[i] = 0.2f * (float)rng_normal(&rng);
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (uint32_t)rng_below(&rng, VOCAB);
}

static struct text run(const struct generate_options *options, const float *adapter)
{
    struct err err;
    struct text text = {0};
    EXPECT_ST(generate(weights, &shape, adapter, prompt, PROMPT, options, take, &text, &err), ST_OK, &err);
    return text;
}

static uint32_t likeliest_next(struct transformer *t, const float *adapter, const uint32_t *tokens, uint32_t n)
{
    struct packed packed;
    float logits[VOCAB];
    uint32_t longer[PROMPT + NEW + 1], last = n - 1, best = 0;
    memcpy(longer, tokens, n * sizeof *tokens);
    longer[n] = 0; /* the last token of a sample is a target only */
    struct sample sample = {longer, NULL, n + 1};
    pack_samples(&sample, 1, n, &packed);
    transformer_logits(t, adapter, &packed, &last, 1, logits);
    packed_release(&packed);
    for (uint32_t v = 1; v < VOCAB; v++)
        if (logits[v] > logits[best])
            best = v;
    return best;
}

static void test_greedy_is_the_likeliest(void)
{
    struct err err;
    struct generate_options options;
    generate_defaults(&options);
    options.tokens_max = NEW;
    options.temperature = 0;
    struct transformer_config config = {ops_of(OPS_REF), shape, PROMPT + NEW, PROMPT + NEW, 1, false, CHECKPOINT_NONE};
    struct transformer *t;
    REQUIRE(EXPECT_ST(transformer_new(weights, &config, &t, &err), ST_OK, &err));
    for (int with = 0; with < 2; with++)
        for (int ops = OPS_REF; ops <= OPS_BLAS; ops++) {
            const float *adapter = with ? block : NULL;
            options.ops = (enum ops_kind)ops;
            options.threads = 2;
            struct text text = run(&options, adapter);
            uint32_t all[PROMPT + NEW];
            memcpy(all, prompt, sizeof prompt);
            EXPECT_EQ(text.n, NEW);
            for (uint32_t i = 0; i < text.n; i++) {
                EXPECT_EQ(text.tokens[i], likeliest_next(t, adapter, all, PROMPT + i));
                all[PROMPT + i] = text.tokens[i];
            }
        }
    transformer_free(t);
}

static void test_draws(void)
{
    struct generate_options options;
    generate_defaults(&options);
    options.tokens_max = NEW;
    options.temperature = 5;
    struct text a = run(&options, block), b = run(&options, block);
    EXPECT(a.n == NEW && !memcmp(&a, &b, sizeof a)); /* same seed, same text */
    options.seed = 2;
    b = run(&options, block);
    EXPECT(memcmp(a.tokens, b.tokens, sizeof a.tokens) != 0);
    options.top_k = 1;
    a = run(&options, block);
    options.temperature = 0;
    b = run(&options, block);
    EXPECT(!memcmp(&a, &b, sizeof a));

    options.stop = &b.tokens[3]; /* ends before the first such token */
    options.n_stop = 1;
    a = run(&options, block);
    EXPECT(a.n <= 3 && !memcmp(a.tokens, b.tokens, a.n * sizeof *a.tokens));
    options.n_stop = 0;
    struct err err;
    struct text two = {.stop_after = 2};
    EXPECT_ST(generate(weights, &shape, block, prompt, PROMPT, &options, take, &two, &err), ST_OK, &err);
    EXPECT_EQ(two.n, 2);
}

static void test_refusals(void)
{
    struct err err;
    struct text text = {0};
    struct generate_options options;
    generate_defaults(&options);
    options.tokens_max = 30;
    EXPECT_ST(generate(weights, &shape, block, prompt, 0, &options, take, &text, &err), ST_USAGE, &err);
    EXPECT_ST(generate(weights, &shape, block, prompt, PROMPT + 1, &options, take, &text, &err), ST_LIMIT, &err);
    options.temperature = -1;
    EXPECT_ST(generate(weights, &shape, block, prompt, 5, &options, take, &text, &err), ST_USAGE, &err);
    generate_defaults(&options);
    options.tokens_max = NEW;
    struct adapter_shape other = shape;
    other.in[LORA_DOWN]++;
    EXPECT_ST(generate(weights, &other, block, prompt, 5, &options, take, &text, &err), ST_USAGE, &err);
    uint32_t bad[] = {1, VOCAB};
    EXPECT_ST(generate(weights, &shape, block, bad, 2, &options, take, &text, &err), ST_BAD_DATA, &err);
    EXPECT_EQ(text.n, 0);
}

int main(void)
{
    hash_start();
    prepare();
    RUN(test_greedy_is_the_likeliest);
    RUN(test_draws);
    RUN(test_refusals);
    weights_free(weights);
    free(block);
    return harness_end();
}
