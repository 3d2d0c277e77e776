/* weights.h - a frozen base as the engine wants it: each matrix in one form, q/k/v and gate/up one above the other.
 *
 * The form is f32 (`real`) rows, or, packed, bf16 tiles for ops_bf16. Norms and biases are f32 in both.
 * Hugging Face row order, row-major (out, in), so Y = X W^T. Legend of shapes: ops.h. Shared read-only by any number of
 * trainers, evaluators and generators; no locks.
 */
#ifndef MODEL_WEIGHTS_H
#define MODEL_WEIGHTS_H

#include <stdint.h>

#include "adapter/card.h"
#include "base/status.h"
#include "model/ops.h"

struct base;

struct layer_weights {
    real *attn_norm;              /* (C) */
    struct frozen_matrix qkv;     /* ((H+2K)*D, C): rows of q, then of k, then of v */
    real *qkv_bias;               /* ((H+2K)*D), NULL without arch.qkv_bias */
    real *q_norm, *k_norm;        /* (D), NULL without arch.qk_norm */
    struct frozen_matrix o;       /* (C, H*D) */
    real *ffn_norm;               /* (C) */
    struct frozen_matrix gate_up; /* (2F, C): rows of gate, then of up */
    struct frozen_matrix down;    /* (C, F) */
};

struct weights {
    struct arch arch;
    bool packed;
    struct frozen_matrix embed; /* (V, C) */
    real *out_norm;             /* (C) */
    struct frozen_matrix head;  /* (V, C); embed's memory when the head is tied */
    struct layer_weights *layers;
    float *rope_factors; /* (D/2) each frequency is divided by its factor; NULL: none is */
    uint64_t bytes;      /* of the one mapping behind all of it */
    void *memory;
};

/* Bytes that weights of this shape take. */
uint64_t weights_bytes(const struct arch *arch, bool packed);

/* Uninitialised memory of the right shape: for tests and loaders. ST_NO_MEMORY when it cannot be had. */
enum status weights_new(const struct arch *arch, bool packed, struct weights **out, struct err *err);

/* Dequantises all of `base` once, into the form that the table wants. The base may be closed afterwards; its files'
 * pages are given back. */
enum status weights_load(const struct base *base, const struct ops *ops, struct weights **out, struct err *err);
void weights_free(struct weights *weights);

/* x (C) = the embedding of a token */
void weights_embed(const struct weights *weights, uint32_t token, real *x);

#endif
