#include <stdlib.h>

#include "base/buf.h"
#include "model/base.h"
#include "model/bf16.h"
#include "model/weights.h"

enum { PANEL = 512 }; /* rows that are f32 at a time: whole strips */

/* Tensors one above the other; packed by way of `panel`, which is NULL where they stay rows. */
static void fill(const struct base *base, uint32_t layer, const struct frozen_matrix *to, const enum base_tensor *parts,
                 uint32_t n_parts, float *panel)
{
    uint32_t done = 0, held = 0, rows, in;
    for (uint32_t p = 0; p < n_parts; p++) {
        base_shape(base, parts[p], &rows, &in);
        if (!panel)
            base_rows(base, parts[p], layer, 0, rows, to->rows + (size_t)done * in);
        for (uint32_t row = 0, n; row < rows && panel; row += n) {
            n = rows - row < PANEL - held ? rows - row : PANEL - held;
            base_rows(base, parts[p], layer, row, n, panel + (size_t)held * in);
            held += n;
            if (held < PANEL && (p + 1 < n_parts || row + n < rows))
                continue;
            bf16_pack(to->tiles + bf16_strips(done) * bf16_steps(in) * BF16_TILE, BF16_RIGHT, bf16_steps(in), 0,
                      (struct bf16_source){panel, in, false, 1, false}, held, in);
            done += held;
            held = 0;
        }
        done += panel ? 0 : rows;
    }
}

enum status weights_load(const struct base *base, const struct ops *ops, struct weights **out, struct err *err)
{
    static const enum base_tensor embed[] = {BASE_EMBED}, head[] = {BASE_HEAD}, qkv[] = {BASE_Q, BASE_K, BASE_V},
                                  o[] = {BASE_O}, gate_up[] = {BASE_GATE, BASE_UP}, down[] = {BASE_DOWN};
    const struct arch *a = base_arch(base);
    struct weights *w;
    enum status st = weights_new(a, ops->packed, &w, err);
    if (st != ST_OK)
        return st;
    uint32_t Q = a->n_heads * a->head_dim, K = a->n_kv_heads * a->head_dim, C = a->d_model, F = a->d_ff;
    uint32_t widest = C > F ? C : F;
    float *panel = ops->packed ? xcalloc((size_t)PANEL * (widest > Q ? widest : Q), sizeof *panel) : NULL;
    fill(base, 0, &w->embed, embed, 1, panel);
    base_rows(base, BASE_OUT_NORM, 0, 0, 1, w->out_norm);
    if (!a->tied_head)
        fill(base, 0, &w->head, head, 1, panel);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        const struct layer_weights *layer = &w->layers[l];
        base_rows(base, BASE_ATTN_NORM, l, 0, 1, layer->attn_norm);
        fill(base, l, &layer->qkv, qkv, 3, panel);
        if (a->qkv_bias) {
            base_rows(base, BASE_Q_BIAS, l, 0, 1, layer->qkv_bias);
            base_rows(base, BASE_K_BIAS, l, 0, 1, layer->qkv_bias + Q);
            base_rows(base, BASE_V_BIAS, l, 0, 1, layer->qkv_bias + Q + K);
        }
        if (a->qk_norm) {
            base_rows(base, BASE_Q_NORM, l, 0, 1, layer->q_norm);
            base_rows(base, BASE_K_NORM, l, 0, 1, layer->k_norm);
        }
        fill(base, l, &layer->o, o, 1, panel);
        base_rows(base, BASE_FFN_NORM, l, 0, 1, layer->ffn_norm);
        fill(base, l, &layer->gate_up, gate_up, 2, panel);
        fill(base, l, &layer->down, down, 1, panel);
    }
    free(panel);
    base_rest(base);
    if (base_rope_factors(base))
        w->rope_factors = xmemdup(base_rope_factors(base), a->head_dim / 2 * sizeof *w->rope_factors);
    *out = w;
    return ST_OK;
}
