#include "base/buf.h"
#include "model/base.h"
#include "model/weights.h"

enum status weights_load(const struct base *base, struct weights **out, struct err *err)
{
    const struct arch *a = base_arch(base);
    struct weights *w;
    enum status st = weights_new(a, &w, err);
    if (st != ST_OK)
        return st;
    uint32_t F = a->d_ff, Q = a->n_heads * a->head_dim, K = a->n_kv_heads * a->head_dim;
    size_t C = a->d_model;
    base_rows(base, BASE_EMBED, 0, 0, a->vocab_size, w->embed);
    base_rows(base, BASE_OUT_NORM, 0, 0, 1, w->out_norm);
    if (!a->tied_head)
        base_rows(base, BASE_HEAD, 0, 0, a->vocab_size, w->head);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct layer_weights *layer = &w->layers[l];
        base_rows(base, BASE_ATTN_NORM, l, 0, 1, layer->attn_norm);
        base_rows(base, BASE_Q, l, 0, Q, layer->qkv);
        base_rows(base, BASE_K, l, 0, K, layer->qkv + Q * C);
        base_rows(base, BASE_V, l, 0, K, layer->qkv + (Q + K) * C);
        if (a->qkv_bias) {
            base_rows(base, BASE_Q_BIAS, l, 0, 1, layer->qkv_bias);
            base_rows(base, BASE_K_BIAS, l, 0, 1, layer->qkv_bias + Q);
            base_rows(base, BASE_V_BIAS, l, 0, 1, layer->qkv_bias + Q + K);
        }
        if (a->qk_norm) {
            base_rows(base, BASE_Q_NORM, l, 0, 1, layer->q_norm);
            base_rows(base, BASE_K_NORM, l, 0, 1, layer->k_norm);
        }
        base_rows(base, BASE_O, l, 0, a->d_model, layer->o);
        base_rows(base, BASE_FFN_NORM, l, 0, 1, layer->ffn_norm);
        base_rows(base, BASE_GATE, l, 0, F, layer->gate_up);
        base_rows(base, BASE_UP, l, 0, F, layer->gate_up + F * C);
        base_rows(base, BASE_DOWN, l, 0, a->d_model, layer->down);
    }
    if (base_rope_factors(base))
        w->rope_factors = xmemdup(base_rope_factors(base), a->head_dim / 2 * sizeof *w->rope_factors);
    *out = w;
    return ST_OK;
}
