#include "model/ops_fast.h"

#include <math.h>

#include "model/simd.h"

struct rows { /* the arguments of every row loop below; each uses what it needs */
    void (*row)(const struct rows *r, size_t m);
    float *out, *out2;
    const float *in, *in2, *w;
    uint16_t *half_out, *half_out2; /* bf16 */
    const uint16_t *half_in;
    const uint32_t *ids;
    const float *const *rows;
    double *nll;
    size_t ld_out, ld_in, ld_in2;
    uint32_t M, heads, C, threads;
    float x;
    bool flag;
};

static void rows_share(void *arg, uint32_t thread)
{
    const struct rows *r = arg;
    uint32_t begin, end;
    pool_share(r->M, 1, thread, r->threads, &begin, &end);
    for (uint32_t m = begin; m < end; m++)
        r->row(r, m);
}

enum { ROW_WORK = 8 }; /* a number's share of a row loop, in multiplications */

static void rows_all(struct pool *pool, struct rows r)
{
    r.threads = pool_threads(pool);
    pool_run(pool, (uint64_t)r.M * (r.heads ? r.heads : 1) * r.C * ROW_WORK, rows_share, &r);
}

static void add_bias_row(const struct rows *r, size_t m)
{
    simd_add(r->out + m * r->C, r->in, r->C);
}

void rows_add_bias(struct pool *pool, float *Y, const float *bias, uint32_t M, uint32_t N)
{
    rows_all(pool, (struct rows){.row = add_bias_row, .out = Y, .in = bias, .M = M, .C = N});
}

static void rmsnorm_row(const struct rows *r, size_t m)
{
    for (size_t h = 0; h < r->heads; h++)
        simd_rmsnorm(r->out + m * r->ld_out + h * r->C, r->in + m * r->ld_in + h * r->C, r->w, r->x, r->C);
}

void rows_rmsnorm(struct pool *pool, float *Y, size_t ldy, const float *X, size_t ldx, const float *w, uint32_t M,
                  uint32_t heads, uint32_t C, float eps)
{
    rows_all(pool, (struct rows){.row = rmsnorm_row,
                                 .out = Y,
                                 .ld_out = ldy,
                                 .in = X,
                                 .ld_in = ldx,
                                 .w = w,
                                 .M = M,
                                 .heads = heads,
                                 .C = C,
                                 .x = eps});
}

static void rmsnorm_dx_row(const struct rows *r, size_t m)
{
    for (size_t h = 0; h < r->heads; h++)
        simd_rmsnorm_dx(r->out + m * r->ld_out + h * r->C, r->in + m * r->ld_in + h * r->C,
                        r->in2 + m * r->ld_in2 + h * r->C, r->w, r->x, r->C, r->flag);
}

void rows_rmsnorm_dx(struct pool *pool, float *dX, size_t lddx, const float *dY, size_t lddy, const float *X,
                     size_t ldx, const float *w, uint32_t M, uint32_t heads, uint32_t C, float eps, bool accumulate)
{
    rows_all(pool, (struct rows){.row = rmsnorm_dx_row,
                                 .out = dX,
                                 .ld_out = lddx,
                                 .in = dY,
                                 .ld_in = lddy,
                                 .in2 = X,
                                 .ld_in2 = ldx,
                                 .w = w,
                                 .M = M,
                                 .heads = heads,
                                 .C = C,
                                 .x = eps,
                                 .flag = accumulate});
}

static void rope_row(const struct rows *r, size_t m)
{
    const float *cosine = r->in + (size_t)r->ids[m] * r->C;
    for (size_t h = 0; h < r->heads; h++)
        simd_rope(r->out + m * r->ld_out + h * r->C, cosine, cosine + r->C / 2, r->x, r->C / 2);
}

void rows_rope(struct pool *pool, float *X, size_t ldx, const float *table, const uint32_t *position, uint32_t M,
               uint32_t heads, uint32_t D, bool back)
{
    rows_all(pool, (struct rows){.row = rope_row,
                                 .out = X,
                                 .ld_out = ldx,
                                 .in = table,
                                 .ids = position,
                                 .M = M,
                                 .heads = heads,
                                 .C = D,
                                 .x = back ? -1 : 1});
}

static void rope_half_row(const struct rows *r, size_t m)
{
    const uint32_t N = (uint32_t)r->ld_in, D = r->C, rotated = r->heads * D;
    const float *cosine = r->in2 + (size_t)r->ids[m] * D, *x = r->in + m * N;
    uint16_t *y = r->half_out + m * N;
    for (uint32_t at = 0; at < rotated; at += D)
        simd_rope_half(y + at, x + at, cosine, cosine + D / 2, r->x, D / 2);
    simd_round(y + rotated, x + rotated, N - rotated);
}

void rows_rope_half(struct pool *pool, uint16_t *Y, const float *X, uint32_t N, const float *table,
                    const uint32_t *position, uint32_t M, uint32_t heads, uint32_t D, bool back)
{
    rows_all(pool, (struct rows){.row = rope_half_row,
                                 .half_out = Y,
                                 .in = X,
                                 .ld_in = N,
                                 .in2 = table,
                                 .ids = position,
                                 .M = M,
                                 .heads = heads,
                                 .C = D,
                                 .x = back ? -1 : 1});
}

static void swiglu_row(const struct rows *r, size_t m)
{
    const float *gate = r->in + m * 2 * r->C;
    simd_swiglu(r->out + m * r->C, gate, gate + r->C, r->C);
}

void rows_swiglu(struct pool *pool, void *Y, const void *GU, uint32_t M, uint32_t F)
{
    rows_all(pool, (struct rows){.row = swiglu_row, .out = Y, .in = GU, .M = M, .C = F});
}

static void swiglu_back_row(const struct rows *r, size_t m)
{
    float *gate = r->out + m * 2 * r->C;
    simd_swiglu_back(gate, gate + r->C, r->out2 + m * r->C, r->in + m * r->C, r->C);
}

void rows_swiglu_back(struct pool *pool, void *GU, void *Y, const void *dY, uint32_t M, uint32_t F)
{
    rows_all(pool, (struct rows){.row = swiglu_back_row, .out = GU, .out2 = Y, .in = dY, .M = M, .C = F});
}

static void rmsnorm_half_row(const struct rows *r, size_t m)
{
    simd_rmsnorm_half(r->half_out + m * r->C, r->in + m * r->C, r->w, r->x, r->C);
}

void rows_rmsnorm_half(struct pool *pool, uint16_t *Y, const float *X, const float *w, uint32_t M, uint32_t C,
                       float eps)
{
    rows_all(pool, (struct rows){.row = rmsnorm_half_row, .half_out = Y, .in = X, .w = w, .M = M, .C = C, .x = eps});
}

static void swiglu_half_row(const struct rows *r, size_t m)
{
    const uint16_t *gate = r->half_in + m * 2 * r->C;
    simd_swiglu_half(r->half_out + m * r->C, gate, gate + r->C, r->C);
}

void rows_swiglu_half(struct pool *pool, void *Y, const void *GU, uint32_t M, uint32_t F)
{
    rows_all(pool, (struct rows){.row = swiglu_half_row, .half_out = Y, .half_in = GU, .M = M, .C = F});
}

static void swiglu_half_back_row(const struct rows *r, size_t m)
{
    uint16_t *gate = r->half_out + m * 2 * r->C;
    simd_swiglu_half_back(gate, gate + r->C, r->half_out2 + m * r->C, r->half_in + m * r->C, r->C);
}

void rows_swiglu_half_back(struct pool *pool, void *GU, void *Y, const void *dY, uint32_t M, uint32_t F)
{
    rows_all(pool,
             (struct rows){.row = swiglu_half_back_row, .half_out = GU, .half_out2 = Y, .half_in = dY, .M = M, .C = F});
}

static void cross_entropy_row(const struct rows *r, size_t m)
{
    float *row = r->out + m * r->C, max = simd_max(row, r->C), target = row[r->ids[m]];
    double sum = r->x == 0 ? simd_exp_sum(row, max, r->C) : simd_exp(row, 1, max, r->C);
    r->nll[m] = log(sum) + (double)max - (double)target;
    if (r->x == 0)
        return;
    simd_scale(row, (float)((double)r->x / sum), r->C);
    row[r->ids[m]] -= r->x;
}

void rows_cross_entropy(struct pool *pool, double *nll, float *logits, const uint32_t *targets, uint32_t M, uint32_t V,
                        float grad_scale)
{
    rows_all(pool,
             (struct rows){
                 .row = cross_entropy_row, .nll = nll, .out = logits, .ids = targets, .M = M, .C = V, .x = grad_scale});
}

static double log_sum_exp(const float *x, uint32_t n)
{
    float max = simd_max(x, n);
    return log(simd_exp_sum(x, max, n)) + (double)max;
}

static void divergence_row(const struct rows *r, size_t m)
{
    float *row = r->out + m * r->C;
    r->nll[m] = simd_divergence(row, r->rows[m], (float)log_sum_exp(row, r->C), (float)log_sum_exp(r->rows[m], r->C),
                                r->x, r->C);
}

void rows_divergence(struct pool *pool, double *kl, float *logits, const float *const *teacher, uint32_t M, uint32_t V,
                     float grad_scale)
{
    rows_all(pool,
             (struct rows){
                 .row = divergence_row, .nll = kl, .out = logits, .rows = teacher, .M = M, .C = V, .x = grad_scale});
}
