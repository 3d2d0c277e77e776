/* ops_fast.h - inside the room: what the fast tables share beside their products (ops_products.h), and how each begins.
 *
 * rows_*: everything that is no product, row by row over the pool with simd.h. Each is ops.h's function of that name.
 */
#ifndef MODEL_OPS_FAST_H
#define MODEL_OPS_FAST_H

#include "model/ops.h"

void rows_add_bias(struct pool *pool, float *Y, const float *bias, uint32_t M, uint32_t N);
void rows_rmsnorm(struct pool *pool, float *Y, size_t ldy, const float *X, size_t ldx, const float *w, uint32_t M,
                  uint32_t heads, uint32_t C, float eps);
void rows_rmsnorm_dx(struct pool *pool, float *dX, size_t lddx, const float *dY, size_t lddy, const float *X,
                     size_t ldx, const float *w, uint32_t M, uint32_t heads, uint32_t C, float eps, bool accumulate);
void rows_rope(struct pool *pool, float *X, size_t ldx, const float *table, const uint32_t *position, uint32_t M,
               uint32_t heads, uint32_t D, bool back);
void rows_swiglu(struct pool *pool, void *Y, const void *GU, uint32_t M, uint32_t F);
void rows_swiglu_back(struct pool *pool, void *GU, void *Y, const void *dY, uint32_t M, uint32_t F);
void rows_rmsnorm_half(struct pool *pool, uint16_t *Y, const float *X, const float *w, uint32_t M, uint32_t C,
                       float eps);
void rows_rope_half(struct pool *pool, uint16_t *Y, const float *X, uint32_t N, const float *table,
                    const uint32_t *position, uint32_t M, uint32_t heads, uint32_t D, bool back);
void rows_swiglu_half(struct pool *pool, void *Y, const void *GU, uint32_t M, uint32_t F);
void rows_swiglu_half_back(struct pool *pool, void *GU, void *Y, const void *dY, uint32_t M, uint32_t F);
void rows_cross_entropy(struct pool *pool, double *nll, float *logits, const uint32_t *targets, uint32_t M, uint32_t V,
                        float grad_scale);
void rows_divergence(struct pool *pool, double *kl, float *logits, const float *const *teacher, uint32_t M, uint32_t V,
                     float grad_scale);

/* Before the first product. ST_UNSUPPORTED, with the reason: the library, or the CPU, is not there. */
void ops_blas_start(void);
enum status ops_dnnl_start(struct err *err);
enum status ops_bf16_start(struct err *err);
void ops_blas_describe(char *out, size_t size);
void ops_dnnl_describe(char *out, size_t size);
void ops_bf16_describe(char *out, size_t size);

/* With bf16 activations: rows_swiglu_half. */
#define OPS_ROWS .swiglu = rows_swiglu, .swiglu_back = rows_swiglu_back, OPS_ROWS_REAL
#define OPS_ROWS_REAL                                                                                     \
    .add_bias = rows_add_bias, .rmsnorm = rows_rmsnorm, .rmsnorm_dx = rows_rmsnorm_dx, .rope = rows_rope, \
    .cross_entropy = rows_cross_entropy, .divergence = rows_divergence

#endif
