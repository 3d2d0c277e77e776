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

/* The prompt goes through in pieces of so many rows; then one row a token. */
enum { PIECE_ROWS = 64 };

struct generator {
    const struct frozen *w;
    const struct ops *ops;
    struct pool *pool;
    const float *block;
    struct lora lora;
    struct arena arena;
    uint32_t length;                                  /* rows the cache has room for */
    float *keys, *values;                             /* (n_layers, length, K*D) rotated keys, values */
    float *x, *normed, *qkv, *att, *gate_up, *hidden; /* (PIECE_ROWS, ...) */
    float *scores;                                    /* (H, length) */
    float *angles;                                    /* (length, D) */
    float *logits;                                    /* (V) */
    float *panel;                                     /* frozen_panel() */
    uint32_t *position;                               /* (PIECE_ROWS) */
    uint32_t *order;                                  /* (V) the likeliest k */
    uint32_t layer, at, rows;                         /* attend_share: rows of this layer from position `at` on */
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
    lora_layout(&g->lora, a, shape, PIECE_ROWS, arena);
    g->keys = arena_reals(arena, a->n_layers * g->length * KD);
    g->values = arena_reals(arena, a->n_layers * g->length * KD);
    g->x = arena_reals(arena, n * C);
    g->normed = arena_reals(arena, n * C);
    g->qkv = arena_reals(arena, n * (Q + 2 * KD));
    g->att = arena_reals(arena, n * Q);
    g->gate_up = arena_reals(arena, n * 2 * a->d_ff);
    g->hidden = arena_reals(arena, n * a->d_ff);
    g->scores = arena_reals(arena, (uint64_t)a->n_heads * g->length);
    g->angles = arena_reals(arena, g->length * D);
    g->logits = arena_reals(arena, a->vocab_size);
    g->panel = arena_reals(arena, frozen_panel(a));
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
    size_t ld = (size_t)(H + 2 * K) * D, KD = (size_t)K * D, cached = g->layer * g->length * KD;
    pool_share(H, 1, thread, pool_threads(g->pool), &begin, &end);
    for (uint32_t h = begin; h < end; h++) {
        size_t kv = cached + (size_t)(h / (H / K)) * D;
        for (uint32_t m = 0; m < g->rows; m++)
            attend(g->att + ((size_t)m * H + h) * D, g->scores + (size_t)h * g->length, g->qkv + m * ld + h * D,
                   g->keys + kv, g->values + kv, KD, g->at + m, D);
    }
}

/* Y (M, out) = X W^T with its adapter, W as it lies in the file. */
static void product(struct generator *g, enum lora_product p, uint32_t l, float *Y, const float *X,
                    const struct matrix *parts, uint32_t n, uint32_t M, bool accumulate)
{
    frozen_product(g->pool, g->ops, Y, X, parts, n, M, accumulate, g->panel);
    if (g->block)
        lora_add(&g->lora, p, l, Y, NULL, X, g->block, M);
}

static void run_attention(struct generator *g, uint32_t l, uint32_t at, uint32_t M)
{
    const struct arch *a = &g->w->arch;
    const struct frozen_layer *w = &g->w->layers[l];
    uint32_t C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D, KD = (size_t)K * D;
    float *keys = g->keys + l * g->length * KD, *values = g->values + l * g->length * KD;

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
        memcpy(keys + (at + m) * KD, g->qkv + m * ld + H * D, KD * sizeof *keys);
        memcpy(values + (at + m) * KD, g->qkv + m * ld + (H + K) * D, KD * sizeof *values);
    }
    g->layer = l, g->at = at, g->rows = M;
    pool_run(g->pool, 2ull * M * H * D * (at + M), attend_share, g);
    product(g, PRODUCT_O, l, g->x, g->att, &w->o, 1, M, true);
}

/* Reads M tokens that stand at positions at .. at + M - 1; g->logits says what follows the last. */
static void run(struct generator *g, const uint32_t *tokens, uint32_t at, uint32_t M)
{
    const struct arch *a = &g->w->arch;
    uint32_t C = a->d_model;
    for (uint32_t m = 0; m < M; m++) {
        quant_expand(g->w->embed.type, matrix_row(&g->w->embed, tokens[m]), C, g->x + (size_t)m * C);
        g->position[m] = at + m;
    }
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct frozen_layer *w = &g->w->layers[l];
        run_attention(g, l, at, M);
        g->ops->rmsnorm(g->pool, g->normed, C, g->x, C, w->ffn_norm, M, 1, C, a->rms_eps);
        product(g, PRODUCT_GATE_UP, l, g->gate_up, g->normed, w->gate_up, 2, M, false);
        g->ops->swiglu(g->pool, g->hidden, g->gate_up, M, a->d_ff);
        product(g, PRODUCT_DOWN, l, g->x, g->hidden, &w->down, 1, M, true);
    }
    g->ops->rmsnorm(g->pool, g->normed, C, g->x + (size_t)(M - 1) * C, C, g->w->out_norm, 1, 1, C, a->rms_eps);
    frozen_product(g->pool, g->ops, g->logits, g->normed, &g->w->head, 1, 1, false, g->panel);
}

/* ------------------------------------------------------------------ the draw */

/* A total order, so that the same k are drawn among however they are found. */
static bool likelier(const float *logits, uint32_t i, uint32_t j)
{
    return logits[i] != logits[j] ? logits[i] > logits[j] : i < j;
}

/* The k likeliest, likeliest first: insertion into a short list, which most tokens never enter. */
static void find_top(struct generator *g, uint32_t k)
{
    uint32_t n = 0;
    for (uint32_t v = 0; v < g->w->arch.vocab_size; v++) {
        if (n == k && !likelier(g->logits, v, g->order[k - 1]))
            continue;
        uint32_t i = n < k ? n++ : k - 1;
        for (; i > 0 && likelier(g->logits, v, g->order[i - 1]); i--)
            g->order[i] = g->order[i - 1];
        g->order[i] = v;
    }
}

static uint32_t draw(struct generator *g, const struct generate_options *o, struct rng *rng)
{
    uint32_t V = g->w->arch.vocab_size, k = o->top_k && o->top_k < V ? o->top_k : V;
    if (o->temperature == 0 || k == 1) {
        find_top(g, 1);
        return g->order[0];
    }
    if (k < V)
        find_top(g, k);
    else
        for (uint32_t v = 0; v < V; v++)
            g->order[v] = v;
    double sum = 0, max = (double)simd_max(g->logits, V);
    for (uint32_t i = 0; i < k; i++)
        sum += exp(((double)g->logits[g->order[i]] - max) / (double)o->temperature);
    double left = rng_unit(rng) * sum;
    for (uint32_t i = 0; i < k; i++) {
        left -= exp(((double)g->logits[g->order[i]] - max) / (double)o->temperature);
        if (left < 0)
            return g->order[i];
    }
    return g->order[0]; /* rounding ate the last of it */
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
    struct generator g = {.w = base, .ops = ops_of(options->ops), .block = block};
    g.length = n_prompt + options->tokens_max;
    layout(&g, &own);
    st = arena_map(&g.arena, err);
    if (st == ST_OK)
        st = pool_new(options->threads, &g.pool, err);
    if (st != ST_OK)
        goto done;
    layout(&g, &own);
    g.lora.ops = g.ops;
    g.lora.pool = g.pool;
    rope_table(g.angles, g.length, base->arch.head_dim, (double)base->arch.rope_theta, base->rope_factors);

    struct rng rng;
    rng_seed(&rng, options->seed);
    uint32_t at = 0;
    while (at < n_prompt) {
        uint32_t n = n_prompt - at < PIECE_ROWS ? n_prompt - at : PIECE_ROWS;
        run(&g, prompt + at, at, n);
        at += n;
    }
    for (uint32_t i = 0; i < options->tokens_max; i++) {
        uint32_t token = draw(&g, options, &rng);
        if (stops(options, token) || !fn(arg, token) || i + 1 == options->tokens_max)
            break;
        run(&g, &token, at++, 1);
    }
done:
    pool_free(g.pool);
    arena_release(&g.arena);
    return st;
}
