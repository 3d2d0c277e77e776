/* weights_pack.h - weights packed matrix by matrix, all at once: what weights_load() does panel by panel must give the same bytes, and
 * random weights come packed this way. */
#ifndef TESTS_WEIGHTS_PACK_H
#define TESTS_WEIGHTS_PACK_H

#include <string.h>

#include "model/bf16.h"
#include "model/weights.h"

static void pack_all(const struct frozen_matrix *to, const struct frozen_matrix *from, uint32_t N, uint32_t I)
{
    bf16_pack(to->tiles, BF16_RIGHT, bf16_steps(I), 0, (struct bf16_source){from->rows, I, false, 1, false}, N, I);
}

/* Turns *weights from f32 rows into tiles. The CPU must have a bf16_unit(). */
static enum status weights_pack(struct weights **weights, struct err *err)
{
    struct weights *from = *weights, *to;
    const struct arch *a = &from->arch;
    enum status st = weights_new(a, true, &to, err);
    if (st != ST_OK)
        return st;
    uint32_t C = a->d_model, F = a->d_ff, D = a->head_dim, Q = a->n_heads * D, QKV = Q + 2 * a->n_kv_heads * D;
    pack_all(&to->embed, &from->embed, a->vocab_size, C);
    if (!a->tied_head)
        pack_all(&to->head, &from->head, a->vocab_size, C);
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
        pack_all(&out->qkv, &in->qkv, QKV, C);
        pack_all(&out->o, &in->o, C, Q);
        pack_all(&out->gate_up, &in->gate_up, 2 * F, C);
        pack_all(&out->down, &in->down, C, F);
    }
    to->rope_factors = from->rope_factors;
    from->rope_factors = NULL;
    weights_free(from);
    *weights = to;
    return ST_OK;
}

#endif
