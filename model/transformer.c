#include "model/transformer.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "model/arena.h"
#include "model/lora.h"
#include "model/loss.h"

struct saved {              /* of one layer, for the backward */
    real *x;                /* (M, C) residual stream at the layer's entry */
    real *raw;              /* (M, (H+K)*D) q and k before their norms; NULL without qk_norm */
    void *qkv;              /* (M, (H+2K)*D) rotated, activations */
    void *att;              /* (M, H*D) activations */
    real *lse;              /* (M, H) */
    real *mid;              /* (M, C) residual stream between attention and feed-forward */
    void *gate_up;          /* (M, 2F) activations (ops.h); the backward turns them into their gradient */
    real *u[LORA_PRODUCTS]; /* (M, lora_width); NULL when scoring */
};

struct transformer {
    const struct weights *w;
    struct transformer_config config;
    struct arena arena;
    struct pool *pool;
    struct lora lora;
    struct loss loss;
    /* (n_layers) All the same memory when scoring and below what learns, all but x those with checkpoints. */
    struct saved *layers;
    uint32_t *picked; /* (n_picked) the rows that are wanted behind the last attention */
    uint32_t n_picked;
    void *att_picked;        /* (n_picked, H*D) attention's output in the last layer, activations */
    real *x_out;             /* (n_picked, C) after the last layer */
    real *x_taught;          /* (n_taught, C) the same of the teachers, with distillation */
    uint32_t n_taught;       /* 0: nothing is distilled */
    void *normed;            /* (M, C) activations */
    void *hidden;            /* (M, F) activations: silu(gate) * up */
    real *dx, *dn;           /* (M, C) gradients of the residual stream and of a norm's output */
    void *dhidden;           /* (M, F) activations */
    void *datt;              /* (M, H*D) activations */
    real *dqkv;              /* (M, (H+2K)*D); where the table is packed, qkv too until it is rounded */
    uint16_t *dqkv_half;     /* the same rounded, where the table is packed */
    real *angles;            /* (seq_max, D) */
    uint32_t *position;      /* (M) */
    real *attention_scratch; /* see ops.h */
    void *workspace;         /* (threads, workspace_each bytes) lent to the pool */
    size_t workspace_each;
};

/* ------------------------------------------------------------------ memory */

static size_t activation_size(const struct transformer *t)
{
    return t->config.ops->packed ? sizeof(uint16_t) : sizeof(real);
}

static void *activations(const struct transformer *t, struct arena *arena, uint64_t n)
{
    return arena_take(arena, n * activation_size(t));
}

static void layout_layer(struct saved *s, const struct transformer *t, const struct arch *a, uint64_t M,
                         struct arena *arena)
{
    uint64_t C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    s->raw = a->qk_norm ? arena_reals(arena, M * (H + K) * D) : NULL;
    s->qkv = activations(t, arena, M * (H + 2 * K) * D);
    s->att = activations(t, arena, M * H * D);
    s->lse = arena_reals(arena, M * H);
    s->mid = arena_reals(arena, M * C);
    s->gate_up = activations(t, arena, M * 2 * a->d_ff);
    for (int p = 0; p < LORA_PRODUCTS; p++)
        s->u[p] = t->config.train ? arena_reals(arena, M * lora_width(&t->lora, (enum lora_product)p)) : NULL;
}

/* Scratch first, then what is saved; returns the bytes of the first part. */
static uint64_t layout(struct transformer *t, const struct arch *a, struct arena *arena)
{
    const struct transformer_config *c = &t->config;
    uint64_t M = c->rows_max, C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    t->loss.ops = c->ops;
    lora_layout(&t->lora, c->ops, a, &c->shape, c->rows_max, arena);
    loss_layout(&t->loss, a, c->rows_max, c->distil, arena);
    t->picked = arena_take(arena, M * sizeof *t->picked);
    t->att_picked = activations(t, arena, M * H * D);
    t->x_out = arena_reals(arena, M * C);
    t->x_taught = c->distil ? arena_reals(arena, M * C) : NULL;
    t->normed = activations(t, arena, M * C);
    t->hidden = activations(t, arena, M * a->d_ff);
    if (c->train) {
        t->dx = arena_reals(arena, M * C);
        t->dn = arena_reals(arena, M * C);
        t->dhidden = activations(t, arena, M * a->d_ff);
        t->datt = activations(t, arena, M * H * D);
        if (c->ops->packed)
            t->dqkv_half = activations(t, arena, M * (H + 2 * K) * D);
    }
    if (c->train || c->ops->packed)
        t->dqkv = arena_reals(arena, M * (H + 2 * K) * D);
    t->angles = arena_reals(arena, (uint64_t)c->seq_max * D);
    t->position = arena_take(arena, M * sizeof *t->position);
    if (c->ops->workspace) {
        uint64_t attention = (H + 2 * K) * D, ffn = 2 * a->d_ff;
        t->workspace_each =
            c->ops->workspace((uint32_t)(attention > ffn ? attention : ffn), LORA_STACKED_MAX * c->shape.rank);
        t->workspace = arena_take(arena, t->workspace_each * c->threads);
    }
    t->attention_scratch =
        arena_reals(arena, c->ops->attention_scratch(a->n_heads, a->n_kv_heads, a->head_dim, c->train ? c->rows_max : 0,
                                                     c->seq_max, c->threads));
    uint64_t scratch = arena->used;
    struct saved one = {0};
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const bool kept = c->train && l > adapter_first_layer(&c->shape); /* the backward ends at that one */
        if (l == 0 || kept)
            one.x = arena_reals(arena, M * C);
        if (l == 0 || (kept && l >= c->checkpoint_layers))
            layout_layer(&one, t, a, M, arena);
        if (t->layers)
            t->layers[l] = one;
    }
    return scratch;
}

enum status transformer_plan(const struct arch *arch, const struct transformer_config *config, uint64_t *saved,
                             uint64_t *scratch, struct err *err)
{
    const struct transformer_config *c = config;
    enum status st = arch_check(arch, err);
    if (st != ST_OK)
        return st;
    struct adapter_shape shape;
    st = adapter_shape_of(arch, c->shape.rank, c->shape.alpha, c->shape.targets, &shape, err);
    if (st != ST_OK)
        return st;
    if (!adapter_shape_eq(&shape, &c->shape))
        return err_set(err, ST_USAGE, "the adapter's shape is not one of this base");
    if (c->rows_max < 1 || c->rows_max > TRANSFORMER_ROWS_MAX || c->seq_max < 1 || c->seq_max > c->rows_max)
        return err_set(err, ST_USAGE, "rows (%u) must be 1 to %d and hold one sample (%u rows)", c->rows_max,
                       TRANSFORMER_ROWS_MAX, c->seq_max);
    if (c->seq_max > arch->context_max)
        return err_set(err, ST_USAGE, "samples of %u rows exceed the model's context of %u", c->seq_max,
                       arch->context_max);
    if (c->ops->packed && arch->d_model > OPS_PACKED_MODEL_MAX)
        return err_set(err, ST_UNSUPPORTED, "the back end %s does models of a width up to %d, not %u; blas does",
                       c->ops->name, OPS_PACKED_MODEL_MAX, arch->d_model);
    if (c->checkpoint_layers > arch->n_layers)
        return err_set(err, ST_USAGE, "checkpoints of %u layers, and the model has %u", c->checkpoint_layers,
                       arch->n_layers);
    if (c->threads < 1 || c->threads > OPS_THREADS_MAX)
        return err_set(err, ST_USAGE, "threads must be 1 to %d, not %u", OPS_THREADS_MAX, c->threads);
    struct transformer t = {.config = *c};
    struct arena arena = {0};
    *scratch = layout(&t, arch, &arena);
    *saved = arena.used - *scratch;
    return ST_OK;
}

enum status transformer_new(const struct weights *weights, const struct transformer_config *config,
                            struct transformer **out, struct err *err)
{
    uint64_t saved, scratch;
    enum status st = transformer_plan(&weights->arch, config, &saved, &scratch, err);
    if (st != ST_OK)
        return st;
    CHECK(weights->packed == config->ops->packed);
    struct transformer *t = xcalloc(1, sizeof *t);
    t->w = weights;
    t->config = *config;
    t->layers = xcalloc(weights->arch.n_layers, sizeof *t->layers);
    t->arena.used = saved + scratch;
    st = arena_map(&t->arena, err);
    if (st == ST_OK)
        st = pool_new(config->threads, &t->pool, err);
    if (st != ST_OK) {
        transformer_free(t);
        return st;
    }
    layout(t, &weights->arch, &t->arena);
    CHECK(t->arena.used == saved + scratch); /* the plan is what is taken */
    pool_lend(t->pool, t->workspace, t->workspace_each);
    t->lora.pool = t->loss.pool = t->pool;
    rope_table(t->angles, config->seq_max, weights->arch.head_dim, (double)weights->arch.rope_theta,
               weights->rope_factors);
    *out = t;
    return ST_OK;
}

void transformer_free(struct transformer *t)
{
    if (!t)
        return;
    pool_free(t->pool);
    arena_release(&t->arena);
    free(t->layers);
    free(t);
}

enum status transformer_accepts(const struct transformer *t, const struct packed *packed, struct err *err)
{
    if (packed->n_rows > t->config.rows_max)
        return err_set(err, ST_LIMIT, "a batch of %u rows, planned for %u", packed->n_rows, t->config.rows_max);
    enum status st = packed_check(packed, t->w->arch.vocab_size, err);
    if (st != ST_OK)
        return st;
    for (uint32_t s = 0; s < packed->n_samples; s++)
        if (packed->cu_seqlens[s + 1] - packed->cu_seqlens[s] > t->config.seq_max)
            return err_set(err, ST_LIMIT, "sample %u of the batch has %u rows, planned for %u", s,
                           packed->cu_seqlens[s + 1] - packed->cu_seqlens[s], t->config.seq_max);
    return ST_OK;
}

/* ------------------------------------------------------------------ forward */

static struct attention attention_of(const struct transformer *t, const struct packed *packed)
{
    const struct arch *a = &t->w->arch;
    return (struct attention){packed->cu_seqlens, packed->n_samples, a->n_heads,
                              a->n_kv_heads,      a->head_dim,       t->attention_scratch};
}

/* Rows behind the attention of a layer. */
static uint32_t rows_behind(const struct transformer *t, uint32_t l, uint32_t M)
{
    return l + 1 == t->w->arch.n_layers ? t->n_picked : M;
}

/* The picked rows of X, `row` bytes each, one after the other. */
static void pick_rows(const struct transformer *t, void *out, const void *X, size_t row)
{
    for (size_t i = 0; i < t->n_picked; i++)
        memcpy((char *)out + i * row, (const char *)X + t->picked[i] * row, row);
}

/* And back to their places, in the same memory, zeros between: from the end, where a row only moves up. */
static void spread_rows(const struct transformer *t, void *X, size_t row, uint32_t M)
{
    size_t i = t->n_picked;
    char *rows = X;
    for (size_t m = M; m-- > 0;)
        if (i > 0 && t->picked[i - 1] == m)
            memmove(rows + m * row, rows + --i * row, row);
        else
            memset(rows + m * row, 0, row);
}

static void norm(struct transformer *t, const real *x, const real *weight, uint32_t M)
{
    const struct arch *a = &t->w->arch;
    if (t->config.ops->packed)
        t->config.ops->rmsnorm_half(t->pool, t->normed, x, weight, M, a->d_model, (real)a->rms_eps);
    else
        t->config.ops->rmsnorm(t->pool, t->normed, a->d_model, x, a->d_model, weight, M, 1, a->d_model,
                               (real)a->rms_eps);
}

static void forward_attention(struct transformer *t, uint32_t l, const real *block, const struct packed *packed)
{
    const struct arch *a = &t->w->arch;
    const struct layer_weights *w = &t->w->layers[l];
    const struct ops *ops = t->config.ops;
    struct saved *s = &t->layers[l];
    uint32_t M = packed->n_rows, C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D;
    real eps = (real)a->rms_eps, *qkv = ops->packed ? t->dqkv : s->qkv;

    norm(t, s->x, w->attn_norm, M);
    lora_forward(&t->lora, PRODUCT_QKV, l, qkv, s->u[PRODUCT_QKV], t->normed, &w->qkv, block, M, NULL);
    if (a->qkv_bias)
        ops->add_bias(t->pool, qkv, w->qkv_bias, M, (uint32_t)ld);
    if (a->qk_norm) {
        for (size_t m = 0; m < M; m++)
            memcpy(s->raw + m * (H + K) * D, qkv + m * ld, (size_t)(H + K) * D * sizeof(real));
        ops->rmsnorm(t->pool, qkv, ld, qkv, ld, w->q_norm, M, H, D, eps);
        ops->rmsnorm(t->pool, qkv + H * D, ld, qkv + H * D, ld, w->k_norm, M, K, D, eps);
    }
    if (ops->packed)
        ops->rope_half(t->pool, s->qkv, qkv, (uint32_t)ld, t->angles, t->position, M, H + K, D, false);
    else
        ops->rope(t->pool, qkv, ld, t->angles, t->position, M, H + K, D, false);
    struct attention attention = attention_of(t, packed);
    ops->attention(t->pool, s->att, s->lse, s->qkv, &attention);
    const real *x = s->x;
    const void *att = s->att;
    if (l + 1 == a->n_layers) {
        pick_rows(t, s->mid, s->x, C * sizeof(real));
        pick_rows(t, t->att_picked, s->att, H * D * activation_size(t));
        att = t->att_picked;
        x = s->mid;
    }
    lora_forward(&t->lora, PRODUCT_O, l, s->mid, s->u[PRODUCT_O], att, &w->o, block, rows_behind(t, l, M), x);
}

/* x_next NULL: only what the backward needs. */
static void forward_ffn(struct transformer *t, uint32_t l, const real *block, real *x_next, uint32_t M)
{
    const struct arch *a = &t->w->arch;
    const struct layer_weights *w = &t->w->layers[l];
    struct saved *s = &t->layers[l];
    norm(t, s->mid, w->ffn_norm, M);
    lora_forward(&t->lora, PRODUCT_GATE_UP, l, s->gate_up, s->u[PRODUCT_GATE_UP], t->normed, &w->gate_up, block, M,
                 NULL);
    t->config.ops->swiglu(t->pool, t->hidden, s->gate_up, M, a->d_ff);
    if (!x_next) {
        lora_project(&t->lora, PRODUCT_DOWN, l, s->u[PRODUCT_DOWN], t->hidden, block, M);
        return;
    }
    lora_forward(&t->lora, PRODUCT_DOWN, l, x_next, s->u[PRODUCT_DOWN], t->hidden, &w->down, block, M, s->mid);
}

static void forward(struct transformer *t, const real *block, const struct packed *packed)
{
    const struct arch *a = &t->w->arch;
    for (uint32_t s = 0; s < packed->n_samples; s++)
        for (uint32_t i = packed->cu_seqlens[s]; i < packed->cu_seqlens[s + 1]; i++)
            t->position[i] = i - packed->cu_seqlens[s];
    for (size_t m = 0; m < packed->n_rows; m++)
        weights_embed(t->w, packed->tokens[m], t->layers[0].x + m * a->d_model);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const real *own = l < adapter_first_layer(&t->config.shape) ? NULL : block;
        forward_attention(t, l, own, packed);
        forward_ffn(t, l, own, l + 1 < a->n_layers ? t->layers[l + 1].x : t->x_out, rows_behind(t, l, packed->n_rows));
    }
}

/* ------------------------------------------------------------------ backward */

enum { ATTENTION_IN = 1 << LORA_Q | 1 << LORA_K | 1 << LORA_V, FFN_IN = 1 << LORA_GATE | 1 << LORA_UP };

/* dx comes in as the gradient of the layer's output and leaves as that of `mid`, unless nothing below it learns:
 * then false. */
static bool backward_ffn(struct transformer *t, uint32_t l, const real *block, real *grad, uint32_t M)
{
    const struct arch *a = &t->w->arch;
    const struct layer_weights *w = &t->w->layers[l];
    const struct ops *ops = t->config.ops;
    struct saved *s = &t->layers[l];
    uint32_t C = a->d_model, targets = t->config.shape.targets;
    bool below = l > adapter_first_layer(&t->config.shape) || targets & (ATTENTION_IN | 1 << LORA_O);
    real eps = (real)a->rms_eps;

    lora_dx(&t->lora, PRODUCT_DOWN, l, t->dhidden, t->dx, &w->down, block, M);
    ops->swiglu_back(t->pool, s->gate_up, t->hidden, t->dhidden, M, a->d_ff);
    lora_dw(&t->lora, PRODUCT_DOWN, l, grad, t->dx, t->hidden, s->u[PRODUCT_DOWN], M);
    lora_dx(&t->lora, PRODUCT_GATE_UP, l, below ? t->dn : NULL, s->gate_up, &w->gate_up, block, M);
    if (targets & FFN_IN) {
        norm(t, s->mid, w->ffn_norm, M);
        lora_dw(&t->lora, PRODUCT_GATE_UP, l, grad, s->gate_up, t->normed, s->u[PRODUCT_GATE_UP], M);
    }
    if (!below)
        return false;
    ops->rmsnorm_dx(t->pool, t->dx, C, t->dn, C, s->mid, C, w->ffn_norm, M, 1, C, eps, true);
    return true;
}

/* dx comes in as the gradient of `mid` and leaves as that of the layer's input. */
static void backward_attention(struct transformer *t, uint32_t l, const real *block, real *grad,
                               const struct packed *packed)
{
    const struct arch *a = &t->w->arch;
    const struct layer_weights *w = &t->w->layers[l];
    const struct ops *ops = t->config.ops;
    struct saved *s = &t->layers[l];
    uint32_t M = packed->n_rows, C = a->d_model, D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    uint32_t targets = t->config.shape.targets, first = adapter_first_layer(&t->config.shape);
    size_t ld = (size_t)(H + 2 * K) * D, ldr = (size_t)(H + K) * D;
    real eps = (real)a->rms_eps;

    bool last = l + 1 == a->n_layers;
    uint32_t n = rows_behind(t, l, M);
    bool below = l > first || targets & ATTENTION_IN;
    lora_dx(&t->lora, PRODUCT_O, l, below ? t->datt : NULL, t->dx, &w->o, block, n);
    lora_dw(&t->lora, PRODUCT_O, l, grad, t->dx, last ? t->att_picked : s->att, s->u[PRODUCT_O], n);
    if (!below)
        return;
    if (last) {
        spread_rows(t, t->datt, H * D * activation_size(t), M);
        spread_rows(t, t->dx, C * sizeof(real), M);
    }
    struct attention attention = attention_of(t, packed);
    ops->attention_back(t->pool, t->dqkv, t->datt, s->att, s->lse, s->qkv, &attention);
    const void *dqkv = t->dqkv;
    uint32_t rotated = H + K; /* what is still to be turned back when it is rounded */
    if (!ops->packed || a->qk_norm) {
        ops->rope(t->pool, t->dqkv, ld, t->angles, t->position, M, rotated, D, true);
        rotated = 0;
    }
    if (a->qk_norm) {
        ops->rmsnorm_dx(t->pool, t->dqkv, ld, t->dqkv, ld, s->raw, ldr, w->q_norm, M, H, D, eps, false);
        ops->rmsnorm_dx(t->pool, t->dqkv + H * D, ld, t->dqkv + H * D, ld, s->raw + H * D, ldr, w->k_norm, M, K, D, eps,
                        false);
    }
    if (ops->packed) {
        ops->rope_half(t->pool, t->dqkv_half, t->dqkv, (uint32_t)ld, t->angles, t->position, M, rotated, D, true);
        dqkv = t->dqkv_half;
    }
    lora_dx(&t->lora, PRODUCT_QKV, l, l > first ? t->dn : NULL, dqkv, &w->qkv, block, M);
    if (targets & ATTENTION_IN) {
        norm(t, s->x, w->attn_norm, M);
        lora_dw(&t->lora, PRODUCT_QKV, l, grad, dqkv, t->normed, s->u[PRODUCT_QKV], M);
    }
    if (l == first)
        return;
    ops->rmsnorm_dx(t->pool, t->dx, C, t->dn, C, s->x, C, w->attn_norm, M, 1, C, eps, true);
}

static void pick_targets(struct transformer *t, const struct packed *packed)
{
    t->n_picked = 0;
    for (uint32_t m = 0; m < packed->n_rows; m++)
        if (packed->mask[m])
            t->picked[t->n_picked++] = m;
}

/* A teacher's samples of a batch as one of their own; borrows nothing. */
static void pack_taught(const struct packed *from, enum teacher teacher, struct packed *out)
{
    *out = (struct packed){.tokens = xcalloc((size_t)from->n_rows + 1, sizeof *out->tokens),
                           .mask = xcalloc((size_t)from->n_rows + 1, sizeof *out->mask),
                           .cu_seqlens = xcalloc((size_t)from->n_samples + 1, sizeof *out->cu_seqlens)};
    for (uint32_t s = 0; s < from->n_samples; s++) {
        uint32_t begin = from->cu_seqlens[s], n = from->cu_seqlens[s + 1] - begin;
        if (from->distilled[s] != teacher)
            continue;
        memcpy(out->tokens + out->n_rows, from->tokens + begin, n * sizeof *out->tokens);
        memcpy(out->mask + out->n_rows, from->mask + begin, n * sizeof *out->mask);
        out->n_rows += n;
        out->cu_seqlens[++out->n_samples] = out->n_rows;
    }
}

/* Puts a teacher's rows where they belong among those of all taught samples. */
static void keep_taught(struct transformer *t, const struct packed *packed, enum teacher teacher,
                        const struct objective *objective)
{
    size_t C = t->w->arch.d_model, from = 0, to = 0;
    for (uint32_t s = 0; s < packed->n_samples; s++) {
        enum teacher by = packed->distilled[s];
        size_t n = 0;
        if (objective->distil[by] <= 0)
            continue;
        for (uint32_t m = packed->cu_seqlens[s]; m < packed->cu_seqlens[s + 1]; m++)
            n += packed->mask[m];
        if (by == teacher) {
            memcpy(t->x_taught + to * C, t->x_out + from * C, n * C * sizeof(real));
            from += n;
        }
        to += n;
    }
    t->n_taught += t->n_picked;
}

void transformer_teach(struct transformer *t, const real *start, const struct packed *packed,
                       const struct objective *objective)
{
    CHECK(t->config.distil && packed->n_rows <= t->config.rows_max);
    t->n_taught = 0;
    for (enum teacher teacher = TEACHER_BASE; packed->distilled && teacher < TEACHERS; teacher++) {
        struct packed few;
        if (objective->distil[teacher] <= 0)
            continue;
        pack_taught(packed, teacher, &few);
        pick_targets(t, &few);
        if (t->n_picked) {
            forward(t, teacher == TEACHER_START ? start : NULL, &few);
            keep_taught(t, packed, teacher, objective);
        }
        packed_release(&few);
    }
}

void transformer_run(struct transformer *t, const real *block, real *grad, const struct packed *packed,
                     const struct objective *objective, real grad_scale, double *nll, uint32_t *n_targets)
{
    CHECK(packed->n_rows <= t->config.rows_max);
    CHECK(!grad || (block && t->config.train));
    if (!packed->n_targets)
        return;
    pick_targets(t, packed);
    forward(t, block, packed);
    loss_run(&t->loss, t->w, grad ? t->dx : NULL, t->x_out, grad && t->n_taught ? t->x_taught : NULL, packed, objective,
             grad_scale, nll, n_targets);
    t->n_taught = 0;
    if (!grad)
        return;
    uint32_t M = packed->n_rows;
    for (uint32_t l = t->w->arch.n_layers; l-- > adapter_first_layer(&t->config.shape);) {
        if (l + 1 < t->config.checkpoint_layers) { /* the last of them is still there */
            forward_attention(t, l, block, packed);
            forward_ffn(t, l, block, NULL, M);
        }
        if (backward_ffn(t, l, block, grad, rows_behind(t, l, M)))
            backward_attention(t, l, block, grad, packed);
    }
}

void transformer_logits(struct transformer *t, const real *block, const struct packed *packed, const uint32_t *rows,
                        uint32_t n, real *logits)
{
    CHECK(packed->n_rows <= t->config.rows_max && n <= t->config.rows_max);
    memcpy(t->picked, rows, n * sizeof *rows);
    t->n_picked = n;
    forward(t, block, packed);
    loss_logits(&t->loss, t->w, logits, t->x_out, n);
}
