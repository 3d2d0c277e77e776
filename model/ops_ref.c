/* The truth: one loop per sum, sums in f64, no threads, nothing clever. See ops.h for what each function means. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "model/ops.h"

static void put(real *out, double value, bool accumulate)
{
    *out = (real)(accumulate ? (double)*out + value : value);
}

static void linear(struct pool *pool, real *Y, size_t ldy, const real *X, size_t ldx, const real *W, size_t ldw,
                   uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate)
{
    (void)pool;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t n = 0; n < N; n++) {
            double sum = 0;
            for (uint32_t i = 0; i < I; i++)
                sum += (double)X[m * ldx + i] * (double)W[n * ldw + i];
            put(&Y[m * ldy + n], (double)s * sum, accumulate);
        }
}

static void linear_dx(struct pool *pool, real *dX, size_t lddx, const real *dY, size_t lddy, const real *W, size_t ldw,
                      uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate)
{
    (void)pool;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t i = 0; i < I; i++) {
            double sum = 0;
            for (uint32_t n = 0; n < N; n++)
                sum += (double)dY[m * lddy + n] * (double)W[n * ldw + i];
            put(&dX[m * lddx + i], (double)s * sum, accumulate);
        }
}

static void linear_dw(struct pool *pool, real *dW, size_t lddw, const real *dY, size_t lddy, const real *X, size_t ldx,
                      uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate)
{
    (void)pool;
    for (uint32_t n = 0; n < N; n++)
        for (uint32_t i = 0; i < I; i++) {
            double sum = 0;
            for (uint32_t m = 0; m < M; m++)
                sum += (double)dY[m * lddy + n] * (double)X[m * ldx + i];
            put(&dW[n * lddw + i], (double)s * sum, accumulate);
        }
}

static void add_bias(struct pool *pool, real *Y, const real *bias, uint32_t M, uint32_t N)
{
    (void)pool;
    for (size_t m = 0; m < M; m++)
        for (uint32_t n = 0; n < N; n++)
            Y[m * N + n] += bias[n];
}

static void merge(struct pool *pool, real *merged, const real *W, const real *A, const real *B, uint32_t N, uint32_t I,
                  uint32_t R, real s)
{
    (void)pool;
    for (size_t n = 0; n < N; n++)
        for (size_t i = 0; i < I; i++) {
            double sum = 0;
            for (size_t r = 0; r < R; r++)
                sum += (double)B[n * R + r] * (double)A[r * I + i];
            merged[n * I + i] = (real)((double)W[n * I + i] + (double)s * sum);
        }
}

/* 1 / root mean square */
static double inverse_rms(const real *x, uint32_t C, real eps)
{
    double sum = 0;
    for (uint32_t c = 0; c < C; c++)
        sum += (double)x[c] * (double)x[c];
    return 1 / sqrt(sum / C + (double)eps);
}

static void rmsnorm(struct pool *pool, real *Y, size_t ldy, const real *X, size_t ldx, const real *w, uint32_t M,
                    uint32_t heads, uint32_t C, real eps)
{
    (void)pool;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t h = 0; h < heads; h++) {
            const real *x = X + m * ldx + (size_t)h * C;
            real *y = Y + m * ldy + (size_t)h * C;
            double r = inverse_rms(x, C, eps);
            for (uint32_t c = 0; c < C; c++)
                y[c] = (real)((double)x[c] * r * (double)w[c]);
        }
}

/* y = x r w, r = (mean x^2 + eps)^(-1/2), dr/dx_c = -r^3 x_c / C */
static void rmsnorm_dx(struct pool *pool, real *dX, size_t lddx, const real *dY, size_t lddy, const real *X, size_t ldx,
                       const real *w, uint32_t M, uint32_t heads, uint32_t C, real eps, bool accumulate)
{
    (void)pool;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t h = 0; h < heads; h++) {
            const real *x = X + m * ldx + (size_t)h * C, *dy = dY + m * lddy + (size_t)h * C;
            real *dx = dX + m * lddx + (size_t)h * C;
            double r = inverse_rms(x, C, eps), sum = 0;
            for (uint32_t c = 0; c < C; c++)
                sum += (double)dy[c] * (double)w[c] * (double)x[c];
            for (uint32_t c = 0; c < C; c++)
                put(&dx[c], r * ((double)dy[c] * (double)w[c] - (double)x[c] * r * r * sum / C), accumulate);
        }
}

static void rope(struct pool *pool, real *X, size_t ldx, const real *table, const uint32_t *position, uint32_t M,
                 uint32_t heads, uint32_t D, bool back)
{
    (void)pool;
    uint32_t half = D / 2;
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t h = 0; h < heads; h++) {
            real *x = X + m * ldx + (size_t)h * D;
            const real *c = table + (size_t)position[m] * D, *s = c + half;
            for (uint32_t i = 0; i < half; i++) {
                real sin_i = back ? -s[i] : s[i], x1 = x[i], x2 = x[i + half];
                x[i] = x1 * c[i] - x2 * sin_i;
                x[i + half] = x2 * c[i] + x1 * sin_i;
            }
        }
}

static double dot(const real *a, const real *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static void attention(struct pool *pool, void *out_activations, real *lse, const void *activations,
                      const struct attention *a)
{
    (void)pool;
    const real *qkv = activations;
    real *out = out_activations;
    uint32_t D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D, ldo = (size_t)H * D;
    double scale = 1 / sqrt((double)D);
    for (uint32_t s = 0; s < a->n_samples; s++)
        for (uint32_t h = 0; h < H; h++)
            for (size_t i = a->cu_seqlens[s]; i < a->cu_seqlens[s + 1]; i++) {
                const real *q = qkv + i * ld + (size_t)h * D, *k = qkv + (size_t)(H + h / (H / K)) * D;
                const real *v = k + (size_t)K * D;
                double max = -INFINITY, sum = 0;
                for (size_t j = a->cu_seqlens[s]; j <= i; j++)
                    max = fmax(max, scale * dot(q, k + j * ld, D));
                for (size_t j = a->cu_seqlens[s]; j <= i; j++)
                    sum += exp(scale * dot(q, k + j * ld, D) - max);
                double log_sum = max + log(sum);
                lse[i * H + h] = (real)log_sum;
                for (uint32_t d = 0; d < D; d++) {
                    double o = 0;
                    for (size_t j = a->cu_seqlens[s]; j <= i; j++)
                        o += exp(scale * dot(q, k + j * ld, D) - log_sum) * (double)v[j * ld + d];
                    out[i * ldo + (size_t)h * D + d] = (real)o;
                }
            }
}

/* p = exp(scale q.k - lse); dv += p do; dp = do.v; ds = p (dp - do.o); dq += scale ds k; dk += scale ds q */
static void attention_back(struct pool *pool, real *dqkv, const void *dout_activations, const void *out_activations,
                           const real *lse, const void *activations, const struct attention *a)
{
    (void)pool;
    const real *qkv = activations, *dout = dout_activations, *out = out_activations;
    uint32_t D = a->head_dim, H = a->n_heads, K = a->n_kv_heads;
    size_t ld = (size_t)(H + 2 * K) * D, ldo = (size_t)H * D;
    double scale = 1 / sqrt((double)D);
    const size_t n = a->cu_seqlens[a->n_samples] * ld;
    double *sum = xcalloc(n, sizeof *sum);
    for (uint32_t s = 0; s < a->n_samples; s++)
        for (uint32_t h = 0; h < H; h++)
            for (size_t i = a->cu_seqlens[s]; i < a->cu_seqlens[s + 1]; i++) {
                size_t at_q = i * ld + (size_t)h * D;
                const real *o = out + i * ldo + (size_t)h * D, *d_o = dout + i * ldo + (size_t)h * D;
                double delta = dot(d_o, o, D);
                for (size_t j = a->cu_seqlens[s]; j <= i; j++) {
                    size_t at_k = j * ld + (size_t)(H + h / (H / K)) * D, at_v = at_k + (size_t)K * D;
                    double p = exp(scale * dot(qkv + at_q, qkv + at_k, D) - (double)lse[i * H + h]);
                    double ds = scale * p * (dot(d_o, qkv + at_v, D) - delta);
                    for (uint32_t d = 0; d < D; d++) {
                        sum[at_v + d] += p * (double)d_o[d];
                        sum[at_q + d] += ds * (double)qkv[at_k + d];
                        sum[at_k + d] += ds * (double)qkv[at_q + d];
                    }
                }
            }
    for (size_t at = 0; at < n; at++)
        dqkv[at] = (real)sum[at];
    free(sum);
}

static size_t attention_scratch(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t rows_back,
                                uint32_t seq_max, uint32_t threads)
{
    (void)n_heads, (void)n_kv_heads, (void)head_dim, (void)rows_back, (void)seq_max, (void)threads;
    return 0;
}

static void swiglu(struct pool *pool, void *out, const void *in, uint32_t M, uint32_t F)
{
    real *Y = out;
    const real *GU = in;
    (void)pool;
    for (size_t m = 0; m < M; m++)
        for (size_t f = 0; f < F; f++) {
            double g = (double)GU[m * 2 * F + f], u = (double)GU[m * 2 * F + F + f];
            Y[m * F + f] = (real)(g / (1 + exp(-g)) * u);
        }
}

/* silu(g) = g sig(g); silu'(g) = sig(g) (1 + g (1 - sig(g))) */
static void swiglu_back(struct pool *pool, void *inout, void *out, const void *in, uint32_t M, uint32_t F)
{
    real *GU = inout, *Y = out;
    const real *dY = in;
    (void)pool;
    for (size_t m = 0; m < M; m++)
        for (size_t f = 0; f < F; f++) {
            real *at_g = &GU[m * 2 * F + f], *at_u = at_g + F;
            double g = (double)*at_g, u = (double)*at_u, sig = 1 / (1 + exp(-g)), dy = (double)dY[m * F + f];
            Y[m * F + f] = (real)(g * sig * u);
            *at_g = (real)(dy * u * sig * (1 + g * (1 - sig)));
            *at_u = (real)(dy * g * sig);
        }
}

static double log_sum_exp(const real *x, uint32_t n)
{
    double max = -INFINITY, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        max = fmax(max, (double)x[i]);
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - max);
    return max + log(sum);
}

static void cross_entropy(struct pool *pool, double *nll, real *logits, const uint32_t *targets, uint32_t M, uint32_t V,
                          real grad_scale)
{
    (void)pool;
    for (size_t m = 0; m < M; m++) {
        real *row = logits + m * V;
        double lse = log_sum_exp(row, V);
        nll[m] = lse - (double)row[targets[m]];
        if (grad_scale == 0)
            continue;
        for (uint32_t v = 0; v < V; v++)
            row[v] = (real)((double)grad_scale * (exp((double)row[v] - lse) - (v == targets[m])));
    }
}

static void divergence(struct pool *pool, double *kl, real *logits, const real *const *teacher, uint32_t M, uint32_t V,
                       real grad_scale)
{
    (void)pool;
    for (size_t m = 0; m < M; m++) {
        real *row = logits + m * V;
        double lse = log_sum_exp(row, V), lse_teacher = log_sum_exp(teacher[m], V);
        kl[m] = 0;
        for (uint32_t v = 0; v < V; v++) {
            double log_q = (double)row[v] - lse, log_p = (double)teacher[m][v] - lse_teacher;
            kl[m] += exp(log_p) * (log_p - log_q);
            row[v] = (real)((double)grad_scale * (exp(log_q) - exp(log_p)));
        }
    }
}

const struct ops ops_ref = {
    .name = "ref",
    .linear = linear,
    .linear_dx = linear_dx,
    .linear_dw = linear_dw,
    .add_bias = add_bias,
    .merge = merge,
    .rmsnorm = rmsnorm,
    .rmsnorm_dx = rmsnorm_dx,
    .rope = rope,
    .attention = attention,
    .attention_back = attention_back,
    .attention_scratch = attention_scratch,
    .swiglu = swiglu,
    .swiglu_back = swiglu_back,
    .cross_entropy = cross_entropy,
    .divergence = divergence,
};

void rope_table(real *table, uint32_t n_positions, uint32_t D, double theta, const float *factors)
{
    for (uint32_t p = 0; p < n_positions; p++)
        for (uint32_t i = 0; i < D / 2; i++) {
            double factor = factors ? (double)factors[i] : 1;
            float frequency = (float)(1 / pow(theta, 2.0 * i / D) / factor), angle = (float)p * frequency;
            table[(size_t)p * D + i] = (real)cos((double)angle);
            table[(size_t)p * D + D / 2 + i] = (real)sin((double)angle);
        }
}
