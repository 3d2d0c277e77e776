#include "model/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "model/arena.h"
#include "model/lora.h"

/* The prompt goes through in pieces of so many rows; then one row a token. */
enum { PIECE_ROWS = 64 };

struct generator {
    const struct weights *w;
    const struct ops *ops;
    struct pool *pool;
    const float *block;
    struct lora lora;
    struct arena arena;
    uint32_t length;                                  /* rows the cache has room for */
    float *keys, *values;                             /* (n_layers, length, K*D) rotated keys, values */
    float *x, *normed, *qkv, *att, *gate_up, *hidden; /* (PIECE_ROWS, ...) */
    float *scores;                                    /* (length) */
    float *angles;                                    /* (length, D) */
    float *logits;                                    /* (V) */
    uint32_t *position;                               /* (PIECE_ROWS) */
    uint32_t *order;                                  /* (V) for top-k */
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
    g->scores = arena_reals(arena, g->length);
    g->angles = arena_reals(arena, g->length * D);
    g->logits = arena_reals(arena, a->vocab_size);
    g->position = arena_take(arena, n * sizeof *g->position);
    g->order = arena_take(arena, a->vocab_size * sizeof *g->order);
}

/* One query vector at position `at` over the cached keys and values of its kv head, `ld` apart. */
static void attend(struct generator *g, float *out, const float *q, const float *k, const float *v, size_t ld,
                   uint32_t at)
{
    uint32_t D = g->w->arch.head_dim;
    float scale = 1 / sqrtf((float)D), max = -INFINITY, sum = 0;
    for (uint32_t j = 0; j <= at; j++) {
        float s = 0;
        for (uint32_t d = 0; d < D; d++)
            s += q[d] * k[j * ld + d];
        g->scores[j] = s * scale;
        max = fmaxf(max, g->scores[j]);
    }
    for (uint32_t j = 0; j <= at; j++)
        sum += g->scores[j] = expf(g->scores[j] - max);
    memset(out, 0, D * sizeof *out);
    for (uint32_t j = 0; j <= at; j++)
        for (uint32_t d = 0; d < D; d++)
            out[d] += g->scores[j] / sum * v[j * ld + d];
}

static void run_attention(struct generator *g, uint32_t l, uint32_t at, uint32_t M)
{
    const struct arch *a = &g->w->arch;
    const struct layer_weights *w = &g->w->layers[l];
    uint32_t C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D, KD = (size_t)K * D;
    float *keys = g->keys + l * g->length * KD, *values = g->values + l * g->length * KD;

    g->ops->rmsnorm(g->pool, g->normed, C, g->x, C, w->attn_norm, M, 1, C, a->rms_eps);
    lora_forward(&g->lora, PRODUCT_QKV, l, g->qkv, NULL, g->normed, w->qkv, g->block, M, false);
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
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t h = 0; h < H; h++) {
            size_t kv = (size_t)(h / (H / K)) * D;
            attend(g, g->att + ((size_t)m * H + h) * D, g->qkv + m * ld + h * D, keys + kv, values + kv, KD, at + m);
        }
    lora_forward(&g->lora, PRODUCT_O, l, g->x, NULL, g->att, w->o, g->block, M, true);
}

/* Reads M tokens that stand at positions at .. at + M - 1; g->logits says what follows the last. */
static void run(struct generator *g, const uint32_t *tokens, uint32_t at, uint32_t M)
{
    const struct arch *a = &g->w->arch;
    uint32_t C = a->d_model;
    for (uint32_t m = 0; m < M; m++) {
        memcpy(g->x + (size_t)m * C, g->w->embed + (size_t)tokens[m] * C, C * sizeof *g->x);
        g->position[m] = at + m;
    }
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct layer_weights *w = &g->w->layers[l];
        run_attention(g, l, at, M);
        g->ops->rmsnorm(g->pool, g->normed, C, g->x, C, w->ffn_norm, M, 1, C, a->rms_eps);
        lora_forward(&g->lora, PRODUCT_GATE_UP, l, g->gate_up, NULL, g->normed, w->gate_up, g->block, M, false);
        g->ops->swiglu(g->pool, g->hidden, g->gate_up, M, a->d_ff);
        lora_forward(&g->lora, PRODUCT_DOWN, l, g->x, NULL, g->hidden, w->down, g->block, M, true);
    }
    g->ops->rmsnorm(g->pool, g->normed, C, g->x + (size_t)(M - 1) * C, C, g->w->out_norm, 1, 1, C, a->rms_eps);
    g->ops->linear(g->pool, g->logits, a->vocab_size, g->normed, C, g->w->head, C, 1, a->vocab_size, C, 1, false);
}

/* ------------------------------------------------------------------ the draw */

static int by_logit(const void *a, const void *b, void *logits)
{
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    float x = ((const float *)logits)[i], y = ((const float *)logits)[j];
    if (x != y)
        return x < y ? 1 : -1;
    return i < j ? -1 : 1; /* a total order: the same draw from any sort */
}

static uint32_t draw(struct generator *g, const struct generate_options *o, struct rng *rng)
{
    uint32_t V = g->w->arch.vocab_size, k = o->top_k && o->top_k < V ? o->top_k : V, best = 0;
    for (uint32_t v = 1; v < V; v++)
        if (g->logits[v] > g->logits[best])
            best = v;
    if (o->temperature == 0 || k == 1)
        return best;
    for (uint32_t v = 0; v < V; v++)
        g->order[v] = v;
    if (k < V)
        qsort_r(g->order, V, sizeof *g->order, by_logit, g->logits);
    double sum = 0, max = (double)g->logits[best];
    for (uint32_t i = 0; i < k; i++)
        sum += exp(((double)g->logits[g->order[i]] - max) / (double)o->temperature);
    double left = rng_unit(rng) * sum;
    for (uint32_t i = 0; i < k; i++) {
        left -= exp(((double)g->logits[g->order[i]] - max) / (double)o->temperature);
        if (left < 0)
            return g->order[i];
    }
    return best; /* rounding ate the last of it */
}

static bool stops(const struct generate_options *o, uint32_t token)
{
    for (uint32_t i = 0; i < o->n_stop; i++)
        if (o->stop[i] == token)
            return true;
    return false;
}

/* ------------------------------------------------------------------ */

static enum status check(const struct weights *w, const uint32_t *prompt, uint32_t n_prompt,
                         const struct generate_options *o, struct err *err)
{
    if (!n_prompt)
        return err_set(err, ST_USAGE, "the prompt is empty");
    if (!(o->temperature >= 0 && o->temperature <= 100))
        return err_set(err, ST_USAGE, "temperature must be between 0 and 100");
    if (o->ops != OPS_REF && o->ops != OPS_BLAS)
        return err_set(err, ST_USAGE, "unknown back end %d", (int)o->ops);
    if ((uint64_t)n_prompt + o->tokens_max > w->arch.context_max)
        return err_set(err, ST_LIMIT, "%u prompt tokens and %u new ones exceed the model's context of %u", n_prompt,
                       o->tokens_max, w->arch.context_max);
    for (uint32_t i = 0; i < n_prompt; i++)
        if (prompt[i] >= w->arch.vocab_size)
            return err_set(err, ST_BAD_DATA, "prompt token %u is outside the vocabulary of %u", i, w->arch.vocab_size);
    return ST_OK;
}

enum status generate(const struct weights *weights, const struct adapter_shape *shape, const float *block,
                     const uint32_t *prompt, uint32_t n_prompt, const struct generate_options *options, generate_fn *fn,
                     void *arg, struct err *err)
{
    enum status st = check(weights, prompt, n_prompt, options, err);
    if (st != ST_OK)
        return st;
    struct adapter_shape own;
    st = adapter_shape_of(&weights->arch, block ? shape->rank : 1, block ? shape->alpha : 1,
                          block ? shape->targets : LORA_ALL, &own, err);
    if (st != ST_OK)
        return st;
    if (block && !adapter_shape_eq(&own, shape))
        return err_set(err, ST_USAGE, "the adapter's shape is not one of this base");
    struct generator g = {.w = weights, .ops = ops_of(options->ops), .block = block};
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
    rope_table(g.angles, g.length, weights->arch.head_dim, (double)weights->arch.rope_theta, weights->rope_factors);

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
