/* weights.h - a frozen base as the engine wants it: f32 (`real`), each matrix once, q/k/v and gate/up one above the other.
 *
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
    real *attn_norm;       /* (C) */
    real *qkv;             /* ((H+2K)*D, C): rows of q, then of k, then of v */
    real *qkv_bias;        /* ((H+2K)*D), NULL without arch.qkv_bias */
    real *q_norm, *k_norm; /* (D), NULL without arch.qk_norm */
    real *o;               /* (C, H*D) */
    real *ffn_norm;        /* (C) */
    real *gate_up;         /* (2F, C): rows of gate, then of up */
    real *down;            /* (C, F) */
};

struct weights {
    struct arch arch;
    real *embed;    /* (V, C) */
    real *out_norm; /* (C) */
    real *head;     /* (V, C); the same memory as embed when the head is tied */
    struct layer_weights *layers;
    float *rope_factors; /* (D/2) each frequency is divided by its factor; NULL: none is */
    uint64_t bytes;      /* of the one mapping behind all of it */
    void *memory;
};

/* Bytes that weights of this shape take. */
uint64_t weights_bytes(const struct arch *arch);

/* Uninitialised memory of the right shape: for tests and loaders. ST_NO_MEMORY when it cannot be had. */
enum status weights_new(const struct arch *arch, struct weights **out, struct err *err);

/* Dequantises all of `base` once. The base may be closed afterwards. */
enum status weights_load(const struct base *base, struct weights **out, struct err *err);
void weights_free(struct weights *weights);

#endif
