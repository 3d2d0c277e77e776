#include <string.h>

#include "base/buf.h"
#include "model/arena.h"
#include "model/base.h"
#include "model/bf16.h"
#include "model/weights.h"

enum status weights_load(const struct base *base, const struct ops *ops, struct weights **out, struct err *err)
{
    const struct arch *a = base_arch(base);
    struct weights *w;
    enum status st = weights_new(a, false, &w, err);
    if (st != ST_OK)
        return st;
    uint32_t F = a->d_ff, Q = a->n_heads * a->head_dim, K = a->n_kv_heads * a->head_dim;
    size_t C = a->d_model;
    base_rows(base, BASE_EMBED, 0, 0, a->vocab_size, w->embed.rows);
    base_rows(base, BASE_OUT_NORM, 0, 0, 1, w->out_norm);
    if (!a->tied_head)
        base_rows(base, BASE_HEAD, 0, 0, a->vocab_size, w->head.rows);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct layer_weights *layer = &w->layers[l];
        base_rows(base, BASE_ATTN_NORM, l, 0, 1, layer->attn_norm);
        base_rows(base, BASE_Q, l, 0, Q, layer->qkv.rows);
        base_rows(base, BASE_K, l, 0, K, layer->qkv.rows + Q * C);
        base_rows(base, BASE_V, l, 0, K, layer->qkv.rows + (Q + K) * C);
        if (a->qkv_bias) {
            base_rows(base, BASE_Q_BIAS, l, 0, 1, layer->qkv_bias);
            base_rows(base, BASE_K_BIAS, l, 0, 1, layer->qkv_bias + Q);
            base_rows(base, BASE_V_BIAS, l, 0, 1, layer->qkv_bias + Q + K);
        }
        if (a->qk_norm) {
            base_rows(base, BASE_Q_NORM, l, 0, 1, layer->q_norm);
            base_rows(base, BASE_K_NORM, l, 0, 1, layer->k_norm);
        }
        base_rows(base, BASE_O, l, 0, a->d_model, layer->o.rows);
        base_rows(base, BASE_FFN_NORM, l, 0, 1, layer->ffn_norm);
        base_rows(base, BASE_GATE, l, 0, F, layer->gate_up.rows);
        base_rows(base, BASE_UP, l, 0, F, layer->gate_up.rows + F * C);
        base_rows(base, BASE_DOWN, l, 0, a->d_model, layer->down.rows);
    }
    if (base_rope_factors(base))
        w->rope_factors = xmemdup(base_rope_factors(base), a->head_dim / 2 * sizeof *w->rope_factors);
    *out = w;
    if (ops->packed)
        st = weights_pack(out, err);
    if (st != ST_OK)
        weights_free(*out);
    return st;
}

static void move(const struct frozen_matrix *to, const struct frozen_matrix *from, uint32_t N, uint32_t I)
{
    bf16_pack(to->tiles, BF16_RIGHT, bf16_steps(I), 0, (struct bf16_source){from->rows, I, false, 1, false}, N, I);
    arena_forget(from->rows, (size_t)N * I * sizeof(real));
}

enum status weights_pack(struct weights **weights, struct err *err)
{
    struct weights *from = *weights, *to;
    const struct arch *a = &from->arch;
    enum status st = weights_new(a, true, &to, err);
    if (st != ST_OK)
        return st;
    uint32_t C = a->d_model, F = a->d_ff, D = a->head_dim, Q = a->n_heads * D, QKV = Q + 2 * a->n_kv_heads * D;
    move(&to->embed, &from->embed, a->vocab_size, C);
    if (!a->tied_head)
        move(&to->head, &from->head, a->vocab_size, C);
    memcpy(to->out_norm, from->out_norm, C * sizeof(real));
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct layer_weights *in = &from->layers[l], *out = &to->layers[l];
        memcpy(out->attn_norm, in->attn_norm, C * sizeof(real));
        memcpy(out->ffn_norm, in->ffn_norm, C * sizeof(real));
        if (a->qkv_bias)
            memcpy(out->qkv_bias, in->qkv_bias, QKV * sizeof(real));
        if (a->qk_norm) {
            memcpy(out->q_norm, in->q_norm, D * sizeof(real));
            memcpy(out->k_norm, in->k_norm, D * sizeof(real));
        }
        move(&out->qkv, &in->qkv, QKV, C);
        move(&out->o, &in->o, C, Q);
        move(&out->gate_up, &in->gate_up, 2 * F, C);
        move(&out->down, &in->down, C, F);
    }
    to->rope_factors = from->rope_factors;
    from->rope_factors = NULL;
    weights_free(from);
    *weights = to;
    return ST_OK;
}
