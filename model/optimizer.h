/* optimizer.h - AdamW (Loshchilov, Hutter 2019) with a clipped global norm and a linear warm-up, f32 in one pass.
 *
 * Same arithmetic as PyTorch: the norm is clipped by clip / (norm + 1e-6), decay is decoupled, both moments are corrected
 * for their start at zero.
 */
#ifndef MODEL_OPTIMIZER_H
#define MODEL_OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>

struct optimizer {
    float lr, beta1, beta2, eps, weight_decay;
    float clip;            /* 0: none */
    uint32_t warmup_steps; /* step t of 1.. runs at lr * min(1, t / warmup_steps) */
    uint64_t step;         /* done so far */
    size_t n;
    float *m, *v; /* (n) borrowed */
};

/* Moments zero, step 0. */
void optimizer_reset(struct optimizer *o);

/* Euclidean norm of the gradient, summed in f64. */
double optimizer_norm(const float *grad, size_t n);

/* One step. `norm` is optimizer_norm(grad) and finite. grad is scaled in place when clipped. */
void optimizer_step(struct optimizer *o, float *params, float *grad, double norm);

#endif
