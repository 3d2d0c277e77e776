#include "model/weights.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "model/arena.h"
#include "model/bf16.h"

static struct frozen_matrix matrix(const struct weights *w, struct arena *arena, size_t N, size_t I)
{
    if (!w->packed)
        return (struct frozen_matrix){.rows = arena_reals(arena, N * I)};
    return (struct frozen_matrix){.tiles = arena_take(arena, bf16_bytes(N, I))};
}

static void layout(struct weights *w, struct arena *arena)
{
    const struct arch *a = &w->arch;
    size_t C = a->d_model, F = a->d_ff, D = a->head_dim, Q = a->n_heads * D, QKV = Q + 2 * a->n_kv_heads * D;
    w->embed = matrix(w, arena, a->vocab_size, C);
    w->head = a->tied_head ? w->embed : matrix(w, arena, a->vocab_size, C);
    w->out_norm = arena_reals(arena, C);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        struct layer_weights skipped, *layer = w->layers ? &w->layers[l] : &skipped;
        layer->attn_norm = arena_reals(arena, C);
        layer->qkv = matrix(w, arena, QKV, C);
        layer->qkv_bias = a->qkv_bias ? arena_reals(arena, QKV) : NULL;
        layer->q_norm = a->qk_norm ? arena_reals(arena, D) : NULL;
        layer->k_norm = a->qk_norm ? arena_reals(arena, D) : NULL;
        layer->o = matrix(w, arena, C, Q);
        layer->ffn_norm = arena_reals(arena, C);
        layer->gate_up = matrix(w, arena, 2 * F, C);
        layer->down = matrix(w, arena, C, F);
    }
}

void weights_embed(const struct weights *weights, uint32_t token, real *x)
{
    size_t C = weights->arch.d_model;
    if (!weights->packed)
        memcpy(x, weights->embed.rows + token * C, C * sizeof *x);
    else
        for (size_t i = 0; i < C; i++)
            x[i] = (real)bf16_at(weights->embed.tiles, C, token, i);
}

uint64_t weights_bytes(const struct arch *arch, bool packed)
{
    struct weights w = {.arch = *arch, .packed = packed};
    struct arena arena = {0};
    layout(&w, &arena);
    return arena.used;
}

enum status weights_new(const struct arch *arch, bool packed, struct weights **out, struct err *err)
{
    enum status st = arch_check(arch, err);
    if (st != ST_OK)
        return st;
    struct weights *w = xcalloc(1, sizeof *w);
    w->arch = *arch;
    w->packed = packed;
    w->layers = xcalloc(arch->n_layers, sizeof *w->layers);
    struct arena arena = {.used = weights_bytes(arch, packed)};
    st = arena_map(&arena, err);
    if (st != ST_OK) {
        weights_free(w);
        return st;
    }
    layout(w, &arena);
    w->bytes = arena.size;
    w->memory = arena.memory;
    *out = w;
    return ST_OK;
}

void weights_free(struct weights *weights)
{
    if (!weights)
        return;
    struct arena arena = {.memory = weights->memory, .size = weights->bytes};
    arena_release(&arena);
    free(weights->rope_factors);
    free(weights->layers);
    free(weights);
}
