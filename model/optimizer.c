#include "model/optimizer.h"

#include <math.h>
#include <string.h>

#include "model/simd.h"

void optimizer_reset(struct optimizer *o)
{
    memset(o->m, 0, o->n * sizeof *o->m);
    memset(o->v, 0, o->n * sizeof *o->v);
    o->step = 0;
}

double optimizer_norm(const float *grad, size_t n)
{
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++)
        sum += (double)grad[i] * (double)grad[i];
    return sqrt(sum);
}

struct coefficients {
    float clip, decay, beta1, beta2, rate, correction2, eps;
};

MODEL_CLONES static void update(float *p, float *g, float *m, float *v, struct coefficients c, size_t n)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        g[i] *= c.clip;
        m[i] = c.beta1 * m[i] + (1 - c.beta1) * g[i];
        v[i] = c.beta2 * v[i] + (1 - c.beta2) * g[i] * g[i];
        p[i] = p[i] * c.decay - c.rate * m[i] / (sqrtf(v[i]) / c.correction2 + c.eps);
    }
}

void optimizer_step(struct optimizer *o, float *params, float *grad, double norm)
{
    double t = (double)++o->step, lr = (double)o->lr;
    if (o->step < o->warmup_steps)
        lr *= t / o->warmup_steps;
    double clip = o->clip > 0 ? (double)o->clip / (norm + 1e-6) : 1;
    struct coefficients c = {
        .clip = clip < 1 ? (float)clip : 1,
        .decay = (float)(1 - lr * (double)o->weight_decay),
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .rate = (float)(lr / (1 - pow((double)o->beta1, t))),
        .correction2 = (float)sqrt(1 - pow((double)o->beta2, t)),
        .eps = o->eps,
    };
    update(params, grad, o->m, o->v, c, o->n);
}
