/* Generation with its cache against the transformer without one. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/gguf.h"
#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/evaluate.h"
#include "model/generate.h"
#include "model/quant.h"
#include "model/transformer.h"
#include "real_base.h"

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
static struct frozen frozen; /* the same numbers, as a file of F32 would have them */
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
    if (!EXPECT_ST(weights_new(&small, false, &weights, &err), ST_OK, &err))
        exit(1);
    float *w = weights->memory;
    for (size_t i = 0; i < weights->bytes / sizeof *w; i++)
        w[i] = 0.5f * (float)rng_normal(&rng);
    EXPECT_ST(adapter_shape_of(&small, 3, 6, LORA_ALL | 1 << LORA_FIRST_LAYER, &shape, &err), ST_OK, &err);
    block = xmalloc(adapter_floats(&shape) * sizeof *block);
    for (size_t i = 0; i < adapter_floats(&shape); i++)
        block[i] = 0.3f * (float)rng_normal(&rng);
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (uint32_t)rng_below(&rng, VOCAB);
}

static struct matrix f32_matrix(const float *rows, uint32_t n, uint32_t in)
{
    return (struct matrix){(const uint8_t *)rows, GGUF_T_F32, n, in, 0};
}

static void freeze(void)
{
    uint32_t C = small.d_model, F = small.d_ff, D = small.head_dim, Q = small.n_heads * D, K = small.n_kv_heads * D;
    frozen = (struct frozen){.arch = small, .out_norm = weights->out_norm};
    frozen.layers = xcalloc(small.n_layers, sizeof *frozen.layers);
    frozen.embed = f32_matrix(weights->embed.rows, VOCAB, C);
    frozen.head = f32_matrix(weights->head.rows, VOCAB, C);
    for (uint32_t l = 0; l < small.n_layers; l++) {
        const struct layer_weights *w = &weights->layers[l];
        frozen.layers[l] = (struct frozen_layer){
            .attn_norm = w->attn_norm,
            .ffn_norm = w->ffn_norm,
            .qkv_bias = w->qkv_bias,
            .q_norm = w->q_norm,
            .k_norm = w->k_norm,
            .qkv = {f32_matrix(w->qkv.rows, Q, C), f32_matrix(w->qkv.rows + Q * C, K, C),
                    f32_matrix(w->qkv.rows + (Q + K) * C, K, C)},
            .o = f32_matrix(w->o.rows, C, Q),
            .gate_up = {f32_matrix(w->gate_up.rows, F, C), f32_matrix(w->gate_up.rows + F * C, F, C)},
            .down = f32_matrix(w->down.rows, C, F)};
    }
}

static struct text run(const struct generate_options *options, const float *adapter)
{
    struct err err;
    struct text text = {0};
    EXPECT_ST(generate(&frozen, &shape, adapter, prompt, PROMPT, options, take, &text, &err), ST_OK, &err);
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
    struct transformer_config config = {ops_of(OPS_REF), shape, PROMPT + NEW, PROMPT + NEW, 1, false, 0, false};
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
    EXPECT_ST(generate(&frozen, &shape, block, prompt, PROMPT, &options, take, &two, &err), ST_OK, &err);
    EXPECT_EQ(two.n, 2);
}

static void test_exact_is_what_greedy_says(void)
{
    struct generate_options options;
    struct evaluator_config config;
    struct evaluator *evaluator;
    struct err err;
    uint32_t all[PROMPT + NEW];
    uint8_t mask[PROMPT + NEW] = {0};
    bool exact = false;
    generate_defaults(&options);
    options.tokens_max = NEW;
    options.temperature = 0;
    options.ops = OPS_REF;
    struct text text = run(&options, block);
    memcpy(all, prompt, sizeof prompt);
    memcpy(all + PROMPT, text.tokens, sizeof text.tokens);
    memset(mask + PROMPT, 1, NEW);
    evaluator_defaults(&shape, &config);
    config.rows_max = config.seq_max = PROMPT + NEW;
    config.ops = OPS_REF;
    REQUIRE(EXPECT_ST(evaluator_new(weights, &config, &evaluator, &err), ST_OK, &err));
    evaluator_set_adapter(evaluator, block);
    struct sample sample = {all, mask, PROMPT + NEW};
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_OK, &err);
    EXPECT(exact);
    sample.mask = NULL; /* the prompt was not greedy */
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_OK, &err);
    EXPECT(!exact);
    sample.mask = mask;
    exact = true;
    all[PROMPT + NEW - 1] ^= 1; /* wrong in the very last word */
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_OK, &err);
    EXPECT(!exact);
    all[PROMPT + NEW - 1] ^= 1;
    evaluator_set_adapter(evaluator, NULL); /* the base says something else */
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_OK, &err);
    EXPECT(!exact);
    memset(mask, 0, sizeof mask);
    exact = true;
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_OK, &err);
    EXPECT(!exact); /* nothing was asked */
    sample.n_tokens = PROMPT + NEW + 2;
    EXPECT_ST(evaluator_exact(evaluator, &sample, &exact, &err), ST_LIMIT, &err);
    evaluator_free(evaluator);
}

static void test_refusals(void)
{
    struct err err;
    struct text text = {0};
    struct generate_options options;
    generate_defaults(&options);
    options.tokens_max = 30;
    EXPECT_ST(generate(&frozen, &shape, block, prompt, 0, &options, take, &text, &err), ST_USAGE, &err);
    EXPECT_ST(generate(&frozen, &shape, block, prompt, PROMPT + 1, &options, take, &text, &err), ST_LIMIT, &err);
    options.temperature = -1;
    EXPECT_ST(generate(&frozen, &shape, block, prompt, 5, &options, take, &text, &err), ST_USAGE, &err);
    generate_defaults(&options);
    options.tokens_max = NEW;
    struct adapter_shape other = shape;
    other.in[LORA_DOWN]++;
    EXPECT_ST(generate(&frozen, &other, block, prompt, 5, &options, take, &text, &err), ST_USAGE, &err);
    uint32_t bad[] = {1, VOCAB};
    EXPECT_ST(generate(&frozen, &shape, block, bad, 2, &options, take, &text, &err), ST_BAD_DATA, &err);
    EXPECT_EQ(text.n, 0);
}

/* The products that generation takes, on rows of every quantisation: with the bits as they are and with expanded rows, in
 * f64 from the expanded ones. */
static void test_quantised_products(void)
{
    static const uint32_t types[] = {GGUF_T_F32,  GGUF_T_F16,  GGUF_T_BF16, GGUF_T_Q8_0, GGUF_T_Q4_0, GGUF_T_Q4_1,
                                     GGUF_T_Q5_0, GGUF_T_Q5_1, GGUF_T_Q4_K, GGUF_T_Q5_K, GGUF_T_Q6_K};
    enum { IN = 512, HEAD = 8, ROWS = 264, M_MAX = 9 }; /* more rows than a panel */
    static float x[M_MAX * IN], row[IN], direct[M_MAX * 2 * ROWS], plain[M_MAX * 2 * ROWS];
    struct arch arch = {.d_model = IN, .d_ff = IN, .n_heads = 1, .head_dim = HEAD};
    struct rng rng;
    struct pool *pool;
    struct err err;
    rng_seed(&rng, 4);
    EXPECT_ST(pool_new(2, &pool, &err), ST_OK, &err);
    float *panel = xcalloc(frozen_panel(&arch), sizeof *panel);
    for (size_t i = 0; i < M_MAX * IN; i++)
        x[i] = (float)rng_normal(&rng);
    for (size_t t = 0; t < sizeof types / sizeof types[0]; t++) {
        size_t bytes = quant_row_bytes(types[t], IN);
        uint8_t *raw = xmalloc(2 * ROWS * bytes);
        for (size_t i = 0; i < 2 * ROWS * bytes; i++)
            raw[i] = (uint8_t)(rng_u64(&rng) & (i % 2 ? 0x3f : 0xff)); /* scales and numbers of moderate size */
        struct matrix parts[2] = {{raw, types[t], ROWS, IN, 0}, {raw + ROWS * bytes, types[t], ROWS, IN, HEAD}};
        for (uint32_t M = 1; M <= M_MAX; M += 4) { /* 1: the bits; 5 and 9: panels */
            memset(direct, 0, sizeof direct);
            frozen_product(pool, &ops_blas, direct, x, parts, 2, M, false, panel);
            frozen_product(pool, &ops_ref, plain, x, parts, 2, M, false, panel);
            frozen_product(pool, &ops_ref, plain, x, parts, 2, M, true, panel);
            double worst = 0;
            for (uint32_t r = 0; r < 2 * ROWS; r++) {
                quant_expand(types[t], matrix_row(&parts[r / ROWS], r % ROWS), IN, row);
                for (uint32_t m = 0; m < M; m++) {
                    double sum = 0, size = 0;
                    for (uint32_t i = 0; i < IN; i++) {
                        sum += (double)row[i] * (double)x[m * IN + i];
                        size += fabs((double)row[i] * (double)x[m * IN + i]);
                    }
                    double a = fabs((double)direct[m * 2 * ROWS + r] - sum) / size;
                    double b = fabs((double)plain[m * 2 * ROWS + r] - 2 * sum) / size;
                    worst = fmax(worst, fmax(a, b));
                }
            }
            harness_expect(worst < 1e-6, __FILE__, __LINE__, "%s with %u rows: off by %g", gguf_type_name(types[t]), M,
                           worst);
        }
        free(raw);
    }
    free(panel);
    pool_free(pool);
}

/* The real base as its file has it, against the same base expanded to f32. */
static void test_the_file_and_its_expansion_agree(void)
{
    struct base *base;
    struct frozen bits;
    struct err err;
    REQUIRE(EXPECT_ST(base_open(real_base_path(), &base, &err), ST_OK, &err));
    frozen_open(base, &bits);
    static const uint32_t text[] = {504, 2746, 282, 4649, 314};
    struct generate_options options;
    generate_defaults(&options);
    options.tokens_max = NEW;
    options.temperature = 0;
    struct text quantised = {0}, expanded = {0};
    EXPECT_ST(generate(&bits, NULL, NULL, text, 5, &options, take, &quantised, &err), ST_OK, &err);
    options.ops = OPS_REF;
    EXPECT_ST(generate(&bits, NULL, NULL, text, 5, &options, take, &expanded, &err), ST_OK, &err);
    EXPECT(quantised.n == NEW && !memcmp(&quantised, &expanded, sizeof quantised));
    frozen_release(&bits);
    base_close(base);
}

static void test_a_batch_is_its_texts_one_by_one(void)
{
    enum { TEXTS = 5 };
    struct generate_options options;
    struct generate_text texts[TEXTS];
    uint32_t room[TEXTS][NEW], stop = 3;
    struct err err;
    bool any_stopped = false;
    generate_defaults(&options);
    options.tokens_max = NEW;
    options.temperature = 3;
    options.top_k = 0;
    options.stop = &stop, options.n_stop = 1;
    options.ops = OPS_REF; /* sums that do not depend on how many rows a product has */
    for (uint32_t seed = 1; seed < 40; seed += TEXTS) {
        options.seed = seed;
        for (uint32_t i = 0; i < TEXTS; i++)
            texts[i] = (struct generate_text){.prompt = prompt, .n_prompt = 1 + 3 * i, .tokens = room[i]};
        EXPECT_ST(generate_batch(&frozen, texts, TEXTS, &options, &err), ST_OK, &err);
        for (uint32_t i = 0; i < TEXTS; i++) {
            struct generate_options alone = options;
            struct text want = {0};
            alone.seed = seed + i;
            EXPECT_ST(generate(&frozen, NULL, NULL, prompt, 1 + 3 * i, &alone, take, &want, &err), ST_OK, &err);
            EXPECT(texts[i].n_tokens == want.n && !memcmp(room[i], want.tokens, want.n * sizeof want.tokens[0]));
            EXPECT_EQ(texts[i].stopped, want.n < NEW);
            any_stopped |= texts[i].stopped;
        }
    }
    EXPECT(any_stopped);
    EXPECT_ST(generate_batch(&frozen, texts, GENERATE_BATCH_MAX + 1, &options, &err), ST_USAGE, &err);
    texts[2].n_prompt = 0;
    EXPECT_ST(generate_batch(&frozen, texts, TEXTS, &options, &err), ST_USAGE, &err);
}

static double log_sum_exp(const float *logits)
{
    double max = -INFINITY, sum = 0;
    for (int v = 0; v < VOCAB; v++)
        max = fmax(max, (double)logits[v]);
    for (int v = 0; v < VOCAB; v++)
        sum += exp((double)logits[v] - max);
    return max + log(sum);
}

/* What a sentinel rests on: on text drawn from the base, the loss that an adapter gains is KL(base || adapter) on average. */
static void test_loss_gained_on_own_text_is_the_divergence(void)
{
    enum { TEXTS = 64, TOKENS = 24, BATCHES = 6, N = TEXTS * (TOKENS - 1) * BATCHES };
    static uint32_t room[TEXTS][TOKENS], first[TEXTS];
    static float of_base[TOKENS][VOCAB], of_adapter[TOKENS][VOCAB];
    struct generate_text texts[TEXTS];
    struct generate_options options;
    struct err err;
    struct rng rng;
    struct transformer_config config = {ops_of(OPS_BLAS), shape, TOKENS, TOKENS, 1, false, 0, false};
    struct transformer *t;
    double gained = 0, square = 0, divergence = 0;
    uint32_t rows[TOKENS];
    REQUIRE(EXPECT_ST(transformer_new(weights, &config, &t, &err), ST_OK, &err));
    generate_defaults(&options);
    options.tokens_max = TOKENS - 1;
    options.temperature = 1;
    options.top_k = 0;
    rng_seed(&rng, 4);
    for (uint32_t i = 0; i < TOKENS; i++)
        rows[i] = i;
    for (uint32_t b = 0; b < BATCHES; b++) {
        options.seed = 1000 + 100 * b;
        for (uint32_t i = 0; i < TEXTS; i++) {
            first[i] = (uint32_t)rng_below(&rng, VOCAB);
            texts[i] = (struct generate_text){.prompt = &first[i], .n_prompt = 1, .tokens = room[i] + 1};
        }
        EXPECT_ST(generate_batch(&frozen, texts, TEXTS, &options, &err), ST_OK, &err);
        for (uint32_t i = 0; i < TEXTS; i++) {
            struct packed packed;
            room[i][0] = first[i];
            struct sample sample = {room[i], NULL, TOKENS};
            pack_samples(&sample, 1, TOKENS, &packed);
            transformer_logits(t, NULL, &packed, rows, TOKENS - 1, &of_base[0][0]);
            transformer_logits(t, block, &packed, rows, TOKENS - 1, &of_adapter[0][0]);
            packed_release(&packed);
            for (uint32_t j = 0; j + 1 < TOKENS; j++) {
                double zb = log_sum_exp(of_base[j]), za = log_sum_exp(of_adapter[j]);
                double ratio = ((double)of_base[j][room[i][j + 1]] - zb) - ((double)of_adapter[j][room[i][j + 1]] - za);
                gained += ratio;
                square += ratio * ratio;
                for (int v = 0; v < VOCAB; v++)
                    divergence += exp((double)of_base[j][v] - zb) *
                                  (((double)of_base[j][v] - zb) - ((double)of_adapter[j][v] - za));
            }
        }
    }
    double error = sqrt(square / N - gained / N * (gained / N)) / sqrt(N);
    EXPECT(divergence / N > 20 * error); /* it can tell it from nothing */
    EXPECT_NEAR(gained / N, divergence / N, 4 * error);
    transformer_free(t);
}

int main(void)
{
    hash_start();
    prepare();
    freeze();
    RUN(test_greedy_is_the_likeliest);
    RUN(test_draws);
    RUN(test_a_batch_is_its_texts_one_by_one);
    RUN(test_loss_gained_on_own_text_is_the_divergence);
    RUN(test_quantised_products);
    RUN(test_the_file_and_its_expansion_agree);
    RUN(test_exact_is_what_greedy_says);
    RUN(test_refusals);
    frozen_release(&frozen);
    weights_free(weights);
    free(block);
    return harness_end();
}
