#include "model/frozen.h"

#include <stdlib.h>

#include "base/buf.h"
#include "model/quant.h"

enum {
    PANEL_ROWS = 256, /* expanded at a time: 1.5 MB at 1,536 columns, which a second-level cache about holds */
    DIRECT_ROWS = 4   /* below so many rows of X expanding W costs more than reading its bits again for each */
};

static const float *take(const struct base *base, enum base_tensor t, uint32_t layer, float **at)
{
    uint32_t rows, in;
    float *out = *at;
    base_shape(base, t, &rows, &in);
    base_rows(base, t, layer, 0, rows, out);
    *at += (size_t)rows * in;
    return out;
}

void frozen_open(const struct base *base, struct frozen *out)
{
    const struct arch *a = base_arch(base);
    size_t D = a->head_dim, qkv = (a->n_heads + 2u * a->n_kv_heads) * D;
    size_t layer_floats = 2u * a->d_model + (a->qkv_bias ? qkv : 0) + (a->qk_norm ? 2 * D : 0);
    float *at = xmalloc((a->d_model + a->n_layers * layer_floats) * sizeof *at);
    *out = (struct frozen){.arch = *a, .rope_factors = base_rope_factors(base), .floats = at};
    out->layers = xcalloc(a->n_layers, sizeof *out->layers);
    base_matrix(base, BASE_EMBED, 0, &out->embed);
    base_matrix(base, BASE_HEAD, 0, &out->head);
    out->out_norm = take(base, BASE_OUT_NORM, 0, &at);
    for (uint32_t l = 0; l < a->n_layers; l++) {
        struct frozen_layer *layer = &out->layers[l];
        layer->attn_norm = take(base, BASE_ATTN_NORM, l, &at);
        layer->ffn_norm = take(base, BASE_FFN_NORM, l, &at);
        if (a->qkv_bias) {
            layer->qkv_bias = take(base, BASE_Q_BIAS, l, &at);
            take(base, BASE_K_BIAS, l, &at);
            take(base, BASE_V_BIAS, l, &at);
        }
        if (a->qk_norm) {
            layer->q_norm = take(base, BASE_Q_NORM, l, &at);
            layer->k_norm = take(base, BASE_K_NORM, l, &at);
        }
        base_matrix(base, BASE_Q, l, &layer->qkv[0]);
        base_matrix(base, BASE_K, l, &layer->qkv[1]);
        base_matrix(base, BASE_V, l, &layer->qkv[2]);
        base_matrix(base, BASE_O, l, &layer->o);
        base_matrix(base, BASE_GATE, l, &layer->gate_up[0]);
        base_matrix(base, BASE_UP, l, &layer->gate_up[1]);
        base_matrix(base, BASE_DOWN, l, &layer->down);
    }
}

void frozen_release(struct frozen *frozen)
{
    free(frozen->layers);
    free(frozen->floats);
    *frozen = (struct frozen){0};
}

size_t frozen_panel(const struct arch *arch)
{
    uint32_t in = arch->d_model, q = arch->n_heads * arch->head_dim;
    in = in > arch->d_ff ? in : arch->d_ff;
    return (size_t)PANEL_ROWS * (in > q ? in : q);
}

struct product {
    const struct matrix *parts;
    float *Y, *panel; /* panel: rows [row0, row0 + rows) of the first part */
    const float *X;
    size_t ldy;
    uint32_t row0, rows, M, threads;
    bool accumulate;
};

static void direct_share(void *arg, uint32_t thread)
{
    const struct product *p = arg;
    const struct matrix *w = p->parts;
    uint32_t at, end, first = 0; /* row of Y; where w's rows begin in it */
    pool_share((uint32_t)p->ldy, 16, thread, p->threads, &at, &end);
    for (; at < end; at++) {
        for (; at - first >= w->rows; w++)
            first += w->rows;
        const uint8_t *row = matrix_row(w, at - first);
        for (uint32_t m = 0; m < p->M; m++) {
            float y = quant_dot(w->type, row, p->X + (size_t)m * w->in, w->in), *to = &p->Y[m * p->ldy + at];
            *to = p->accumulate ? *to + y : y;
        }
    }
}

static void expand_share(void *arg, uint32_t thread)
{
    const struct product *p = arg;
    const struct matrix *w = p->parts;
    uint32_t begin, end;
    pool_share(p->rows, 1, thread, p->threads, &begin, &end);
    for (uint32_t r = begin; r < end; r++)
        quant_expand(w->type, matrix_row(w, p->row0 + r), w->in, p->panel + (size_t)r * w->in);
}

void frozen_product(struct pool *pool, const struct ops *ops, float *Y, const float *X, const struct matrix *parts,
                    uint32_t n, uint32_t M, bool accumulate, float *panel)
{
    uint32_t in = parts[0].in;
    struct product p = {parts, Y, panel, X, 0, 0, 0, M, pool_threads(pool), accumulate};
    for (uint32_t i = 0; i < n; i++)
        p.ldy += parts[i].rows;
    if (M < DIRECT_ROWS && ops != &ops_ref) {
        pool_run(pool, (uint64_t)M * p.ldy * in, direct_share, &p);
        return;
    }
    for (uint32_t i = 0; i < n; i++, p.parts++, p.row0 = 0)
        for (; p.row0 < p.parts->rows; p.row0 += p.rows, Y += p.rows) {
            uint32_t left = p.parts->rows - p.row0;
            p.rows = left < PANEL_ROWS ? left : PANEL_ROWS;
            pool_run(pool, (uint64_t)p.rows * in, expand_share, &p);
            ops->linear(pool, Y, p.ldy, X, in, panel, in, M, p.rows, in, 1, accumulate);
        }
}
