/* frozen.h - a base read where it lies: its matrices stay mapped, in the quantisation of the file.
 *
 * For generation: the products of one token read every weight once, so they are bound by memory, and a matrix of 4 bits is
 * an eighth of the same in f32. Training and evaluation multiply many rows at a time and hold f32 (weights.h).
 */
#ifndef MODEL_FROZEN_H
#define MODEL_FROZEN_H

#include "model/base.h"
#include "model/ops.h"

struct frozen_layer { /* shapes as in weights.h */
    const float *attn_norm, *ffn_norm;
    const float *qkv_bias;        /* NULL without arch.qkv_bias */
    const float *q_norm, *k_norm; /* NULL without arch.qk_norm */
    struct matrix qkv[3], o, gate_up[2], down;
};

struct frozen {
    struct arch arch;
    struct matrix embed, head;
    const float *out_norm, *rope_factors; /* factors: NULL when there are none */
    struct frozen_layer *layers;
    void *floats; /* owned: norms and biases */
};

/* Shares the base's memory: the base must stay open. Any number of threads may read it. */
void frozen_open(const struct base *base, struct frozen *out);
void frozen_release(struct frozen *frozen);

/* Floats of scratch that frozen_product() takes. */
size_t frozen_panel(const struct arch *arch);

/* Y (M, N) = X (M, in) W^T, where W is the `n` parts one above the other, N their rows together; added to Y if `accumulate`.
 * A few rows are multiplied with the quantised rows as they are (quant_dot); more, or the plain back end, go through
 * `panel`, in which a stretch of W is expanded. */
void frozen_product(struct pool *pool, const struct ops *ops, float *Y, const float *X, const struct matrix *parts,
                    uint32_t n, uint32_t M, bool accumulate, float *panel);

#endif
