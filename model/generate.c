#include "model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "model/arena.h"
#include "model/lora.h"
#include "model/quant.h"
#include "model/simd.h"

/* The prompt goes through in pieces of so many rows; then one row a token. A batch has a row a text. */
enum { PIECE_ROWS = GENERATE_BATCH_MAX };

struct generator {
    const struct frozen *w;
    const struct ops *ops;
    struct pool *pool;
    const float *block;
    struct lora lora;
    struct arena arena;
    uint32_t n_texts, length;                         /* texts and their tokens that the cache has room for */
    float *keys, *values;                             /* (n_layers, n_texts, length, K*D) rotated keys, values */
    float *x, *normed, *qkv, *att, *gate_up, *hidden; /* (PIECE_ROWS, ...) */
    float *scores;                                    /* (H, length) */
    float *angles;                                    /* (length, D) */
    float *logits;                                    /* (n_texts, V) */
    float *panel;                                     /* frozen_panel() */
    uint32_t *text, *position;                        /* (PIECE_ROWS) which text a row is of, and where in it */
    uint32_t *order;                                  /* (V) the likeliest k */
    uint32_t layer, rows;                             /* attend_share: rows of this layer */
};

void generate_defaults(struct generate_options *out)
{
    *out = (struct generate_options){
        .tokens_max = 256, .temperature = 0.8f, .top_k = 40, .seed = 1, .threads = 1, .ops = OPS_BLAS};
}

static void layout(struct generator *g, const struct adapter_shape *shape)
{
    const struct arch *a = &g->w->arch;
    struct arena *arena = &g->arena;
    uint64_t C = a->d_model, D = a->head_dim, Q = a->n_heads * D, KD = a->n_kv_heads * D, n = PIECE_ROWS;
    lora_layout(&g->lora, g->ops, a, shape, PIECE_ROWS, arena);
    g->keys = arena_reals(arena, a->n_layers * g->n_texts * g->length * KD);
    g->values = arena_reals(arena, a->n_layers * g->n_texts * g->length * KD);
    g->x = arena_reals(arena, n * C);
    g->normed = arena_reals(arena, n * C);
    g->qkv = arena_reals(arena, n * (Q + 2 * KD));
    g->att = arena_reals(arena, n * Q);
    g->gate_up = arena_reals(arena, n * 2 * a->d_ff);
    g->hidden = arena_reals(arena, n * a->d_ff);
    g->scores = arena_reals(arena, (uint64_t)a->n_heads * g->length);
    g->angles = arena_reals(arena, g->length * D);
    g->logits = arena_reals(arena, (uint64_t)g->n_texts * a->vocab_size);
    g->panel = arena_reals(arena, frozen_panel(a));
    g->text = arena_take(arena, n * sizeof *g->text);
    g->position = arena_take(arena, n * sizeof *g->position);
    g->order = arena_take(arena, a->vocab_size * sizeof *g->order);
}

/* One query vector at position `at` over the cached keys and values of its kv head, `ld` apart. */
static void attend(float *out, float *scores, const float *q, const float *k, const float *v, size_t ld, uint32_t at,
                   uint32_t D)
{
    float scale = 1 / sqrtf((float)D);
    for (uint32_t j = 0; j <= at; j++)
        scores[j] = simd_dot(q, k + j * ld, D);
    float max = simd_max(scores, at + 1);
    double sum = simd_exp(scores, scale, scale * max, at + 1);
    simd_mix(out, scores, v, ld, at + 1, D);
    simd_scale(out, (float)(1 / sum), D);
}

static void attend_share(void *arg, uint32_t thread)
{
    struct generator *g = arg;
    const struct arch *a = &g->w->arch;
    uint32_t D = a->head_dim, H = a->n_heads, K = a->n_kv_heads, begin, end;
    size_t ld = (size_t)(H + 2 * K) * D, KD = (size_t)K * D, cached = g->layer * g->n_texts * g->length * KD;
    pool_share(H, 1, thread, pool_threads(g->pool), &begin, &end);
    for (uint32_t h = begin; h < end; h++) {
        size_t kv = cached + (size_t)(h / (H / K)) * D;
        for (uint32_t m = 0; m < g->rows; m++) {
            size_t at = kv + (size_t)g->text[m] * g->length * KD;
            attend(g->att + ((size_t)m * H + h) * D, g->scores + (size_t)h * g->length, g->qkv + m * ld + h * D,
                   g->keys + at, g->values + at, KD, g->position[m], D);
        }
    }
}

/* Y (M, out) = X W^T with its adapter, W as it lies in the file. */
static void product(struct generator *g, enum lora_product p, uint32_t l, float *Y, const float *X,
                    const struct matrix *parts, uint32_t n, uint32_t M, bool accumulate)
{
    frozen_product(g->pool, g->ops, Y, X, parts, n, M, accumulate, g->panel);
    if (g->block && l >= adapter_first_layer(&g->lora.shape))
        lora_add(&g->lora, p, l, Y, NULL, X, g->block, M);
}

static void run_attention(struct generator *g, uint32_t l, uint32_t M)
{
    const struct arch *a = &g->w->arch;
    const struct frozen_layer *w = &g->w->layers[l];
    uint32_t C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D, KD = (size_t)K * D;
    float *keys = g->keys + l * g->n_texts * g->length * KD, *values = g->values + l * g->n_texts * g->length * KD;

    g->ops->rmsnorm(g->pool, g->normed, C, g->x, C, w->attn_norm, M, 1, C, a->rms_eps);
    product(g, PRODUCT_QKV, l, g->qkv, g->normed, w->qkv, 3, M, false);
    if (a->qkv_bias)
        g->ops->add_bias(g->pool, g->qkv, w->qkv_bias, M, (uint32_t)ld);
    if (a->qk_norm) {
        g->ops->rmsnorm(g->pool, g->qkv, ld, g->qkv, ld, w->q_norm, M, H, D, a->rms_eps);
        g->ops->rmsnorm(g->pool, g->qkv + H * D, ld, g->qkv + H * D, ld, w->k_norm, M, K, D, a->rms_eps);
    }
    g->ops->rope(g->pool, g->qkv, ld, g->angles, g->position, M, H + K, D, false);
    for (size_t m = 0; m < M; m++) {
        size_t row = ((size_t)g->text[m] * g->length + g->position[m]) * KD;
        memcpy(keys + row, g->qkv + m * ld + H * D, KD * sizeof *keys);
        memcpy(values + row, g->qkv + m * ld + (H + K) * D, KD * sizeof *values);
    }
    g->layer = l, g->rows = M;
    pool_run(g->pool, 2ull * M * H * D * (g->position[M - 1] + 1), attend_share, g);
    product(g, PRODUCT_O, l, g->x, g->att, &w->o, 1, M, true);
}

/* Reads M tokens that stand where g->text and g->position say; g->logits says what follows each of the last n. */
static void run(struct generator *g, const uint32_t *tokens, uint32_t M, uint32_t n)
{
    const struct arch *a = &g->w->arch;
    uint32_t C = a->d_model;
    for (uint32_t m = 0; m < M; m++)
        quant_expand(g->w->embed.type, matrix_row(&g->w->embed, tokens[m]), C, g->x + (size_t)m * C);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct frozen_layer *w = &g->w->layers[l];
        run_attention(g, l, M);
        g->ops->rmsnorm(g->pool, g->normed, C, g->x, C, w->ffn_norm, M, 1, C, a->rms_eps);
        product(g, PRODUCT_GATE_UP, l, g->gate_up, g->normed, w->gate_up, 2, M, false);
        g->ops->swiglu(g->pool, g->hidden, g->gate_up, M, a->d_ff);
        product(g, PRODUCT_DOWN, l, g->x, g->hidden, &w->down, 1, M, true);
    }
    g->ops->rmsnorm(g->pool, g->normed, C, g->x + (size_t)(M - n) * C, C, g->w->out_norm, n, 1, C, a->rms_eps);
    frozen_product(g->pool, g->ops, g->logits, g->normed, &g->w->head, 1, n, false, g->panel);
}

/* ------------------------------------------------------------------ the draw */

/* A total order, so that the same k are drawn among however they are found. */
static bool likelier(const float *logits, uint32_t i, uint32_t j)
{
    return logits[i] != logits[j] ? logits[i] > logits[j] : i < j;
}

/* The k likeliest, likeliest first: insertion into a short list, which most tokens never enter. */
static void find_top(struct generator *g, const float *logits, uint32_t k)
{
    uint32_t n = 0;
    for (uint32_t v = 0; v < g->w->arch.vocab_size; v++) {
        if (n == k && !likelier(logits, v, g->order[k - 1]))
            continue;
        uint32_t i = n < k ? n++ : k - 1;
        for (; i > 0 && likelier(logits, v, g->order[i - 1]); i--)
            g->order[i] = g->order[i - 1];
        g->order[i] = v;
    }
}

static uint32_t likeliest(struct generator *g, const float *logits)
{
    find_top(g, logits, 1);
    return g->order[0];
}

static uint32_t draw(struct generator *g, const float *logits, const struct generate_options *o, struct rng *rng)
{
    uint32_t V = g->w->arch.vocab_size, k = o->top_k && o->top_k < V ? o->top_k : V;
    if (o->temperature == 0 || k == 1)
        return likeliest(g, logits);
    if (k < V)
        find_top(g, logits, k);
    else
        for (uint32_t v = 0; v < V; v++)
            g->order[v] = v;
    double sum = 0, max = (double)simd_max(logits, V);
    for (uint32_t i = 0; i < k; i++)
        sum += exp(((double)logits[g->order[i]] - max) / (double)o->temperature);
    double left = rng_unit(rng) * sum;
    for (uint32_t i = 0; i < k; i++) {
        left -= exp(((double)logits[g->order[i]] - max) / (double)o->temperature);
        if (left < 0)
            return g->order[i];
    }
    return likeliest(g, logits); /* rounding ate the last of it */
}

static bool stops(const struct generate_options *o, uint32_t token)
{
    for (uint32_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == token)
            return true;
    return false;
}

/* ------------------------------------------------------------------ */

static enum status check(const struct arch *a, const uint32_t *prompt, uint32_t n_prompt,
                         const struct generate_options *o, struct err *err)
{
    if (!n_prompt)
        return err_set(err, ST_USAGE, "the prompt is empty");
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return err_set(err, ST_USAGE, "temperature must be between 0 and 100");
    if (o->ops != OPS_REF && o->ops != OPS_BLAS)
        return err_set(err, ST_USAGE, "unknown back end %d", (int)o->ops);
    if ((uint64_t)n_prompt + o->tokens_max > a->context_max)
        return err_set(err, ST_LIMIT, "%u prompt tokens and %u new ones exceed the model's context of %u", n_prompt,
                       o->tokens_max, a->context_max);
    for (uint32_t i = 0; i < n_prompt; i++)
        if (prompt[i] >= a->vocab_size)
            return err_set(err, ST_BAD_DATA, "prompt token %u is outside the vocabulary of %u", i, a->vocab_size);
    return ST_OK;
}

static enum status start(struct generator *g, const struct adapter_shape *shape, const struct generate_options *options,
                         struct err *err)
{
    layout(g, shape);
    enum status st = arena_map(&g->arena, err);
    if (st == ST_OK)
        st = pool_new(options->threads, &g->pool, err);
    if (st != ST_OK)
        return st;
    layout(g, shape);
    g->lora.pool = g->pool;
    rope_table(g->angles, g->length, g->w->arch.head_dim, (double)g->w->arch.rope_theta, g->w->rope_factors);
    return ST_OK;
}

static void end(struct generator *g)
{
    pool_free(g->pool);
    arena_release(&g->arena);
}

enum status generate(const struct frozen *base, const struct adapter_shape *shape, const float *block,
                     const uint32_t *prompt, uint32_t n_prompt, const struct generate_options *options, generate_fn *fn,
                     void *arg, struct err *err)
{
    enum status st = check(&base->arch, prompt, n_prompt, options, err);
    if (st != ST_OK)
        return st;
    struct adapter_shape own;
    st = adapter_shape_of(&base->arch, block ? shape->rank : 1, block ? shape->alpha : 1,
                          block ? shape->targets : LORA_ALL, &own, err);
    if (st != ST_OK)
        return st;
    if (block && !adapter_shape_eq(&own, shape))
        return err_set(err, ST_USAGE, "the adapter's shape is not one of this base");
    struct generator g = {
        .w = base, .ops = ops_of(options->ops), .block = block, .n_texts = 1, .length = n_prompt + options->tokens_max};
    st = start(&g, &own, options, err);
    if (st != ST_OK)
        goto done;
    struct rng rng;
    rng_seed(&rng, options->seed);
    uint32_t at = 0;
    while (at < n_prompt) {
        uint32_t n = n_prompt - at < PIECE_ROWS ? n_prompt - at : PIECE_ROWS;
        for (uint32_t m = 0; m < n; m++)
            g.text[m] = 0, g.position[m] = at + m;
        run(&g, prompt + at, n, 1);
        at += n;
    }
    for (uint32_t i = 0; i < options->tokens_max; i++) {
        uint32_t token = draw(&g, g.logits, options, &rng);
        if (stops(options, token) || !fn(arg, token) || i + 1 == options->tokens_max)
            break;
        g.text[0] = 0, g.position[0] = at++;
        run(&g, &token, 1, 1);
    }
done:
    end(&g);
    return st;
}

/* ------------------------------------------------------------------ many at once */

static enum status check_batch(const struct frozen *w, const struct generate_text *texts, uint32_t n,
                               const struct generate_options *o, uint32_t *length, struct err *err)
{
    if (n < 1 || n > GENERATE_BATCH_MAX)
        return err_set(err, ST_USAGE, "%u texts at once, not within 1 .. %d", n, GENERATE_BATCH_MAX);
    *length = 0;
    for (uint32_t i = 0; i < n; i++) {
        enum status st = check(&w->arch, texts[i].prompt, texts[i].n_prompt, o, err);
        if (st != ST_OK)
            return err_prefix(err, st, "text %u", i);
        *length = texts[i].n_prompt + o->tokens_max > *length ? texts[i].n_prompt + o->tokens_max : *length;
    }
    return ST_OK;
}

/* Every text that goes on feeds one token a step: of its prompt, or the one it drew. */
static void run_batch(struct generator *g, struct generate_text *texts, uint32_t n,
                      const struct generate_options *options)
{
    struct rng rng[GENERATE_BATCH_MAX];
    uint32_t at[GENERATE_BATCH_MAX] = {0}, tokens[GENERATE_BATCH_MAX], M;
    bool over[GENERATE_BATCH_MAX] = {0};
    for (uint32_t i = 0; i < n; i++) {
        rng_seed(&rng[i], options->seed + i);
        texts[i].n_tokens = 0;
        texts[i].stopped = false;
    }
    do {
        M = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (over[i])
                continue;
            tokens[M] = at[i] < texts[i].n_prompt ? texts[i].prompt[at[i]] : texts[i].tokens[at[i] - texts[i].n_prompt];
            g->text[M] = i;
            g->position[M++] = at[i]++;
        }
        if (M)
            run(g, tokens, M, M);
        for (uint32_t m = 0; m < M; m++) {
            struct generate_text *text = &texts[g->text[m]];
            if (at[g->text[m]] < text->n_prompt)
                continue;
            uint32_t token = draw(g, g->logits + (size_t)m * g->w->arch.vocab_size, options, &rng[g->text[m]]);
            text->stopped = stops(options, token);
            if (!text->stopped)
                text->tokens[text->n_tokens++] = token;
            over[g->text[m]] = text->stopped || text->n_tokens == options->tokens_max;
        }
    } while (M);
}

enum status generate_batch(const struct frozen *base, struct generate_text *texts, uint32_t n,
                           const struct generate_options *options, struct err *err)
{
    struct generator g = {.w = base, .ops = ops_of(options->ops), .n_texts = n};
    struct adapter_shape own;
    enum status st = check_batch(base, texts, n, options, &g.length, err);
    if (st == ST_OK)
        st = adapter_shape_of(&base->arch, 1, 1, LORA_ALL, &own, err);
    if (st != ST_OK)
        return st;
    st = start(&g, &own, options, err);
    if (st == ST_OK)
        run_batch(&g, texts, n, options);
    end(&g);
    return st;
}
