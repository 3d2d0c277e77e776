/* ops.h - the arithmetic of one Llama-family block, as a table of functions: each forward, then its backward.
 *
 * Four tables. ops_ref: plain loops with f64 sums, kept for ever as the truth. ops_blas and ops_dnnl: OpenBLAS or oneDNN for
 * products, vector loops for the rest; they do the same sums in another order. ops_bf16: the factors of a product are
 * rounded to bf16 (relative 2^-9), sums and all else stay f32. Given the same threads, each repeats itself bit by bit.
 *
 * Legend.  M rows (tokens of a packed batch)   C d_model   F d_ff   H query heads   K kv heads   D head_dim   V vocab
 *          R rank   N, I out and in of any matrix.   Matrices are row-major; `ld` is the distance between rows.
 * Outputs come first, then inputs, then sizes. `accumulate`: add to the output instead of writing it.
 * Sizes are at most 2^20 rows and 2^20 columns (arch_check, trainer limits), so products of ours fit BLAS's int.
 *
 * `real` is float. The gradient tests build this room a second time with double (MODEL_REAL_F64), so that a central
 * difference shows a wrong formula and not rounding.
 */
#ifndef MODEL_OPS_H
#define MODEL_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/pool.h"

#ifdef MODEL_REAL_F64
typedef double real;
#else
typedef float real;
#endif

enum ops_kind { OPS_REF, OPS_BLAS, OPS_DNNL, OPS_BF16 };
enum { OPS_THREADS_MAX = POOL_THREADS_MAX };

struct frozen_matrix { /* W (N, I), which never learns; see weights.h for which form is there */
    real *rows;        /* row-major */
    uint16_t *tiles;   /* or packed as the right factor of X W^T, see bf16.h */
};

/* Numbers that go from one product to the next through a row loop at most: bf16 where the table is `packed`, else real. The
 * residual stream and everything summed are real in all tables. */
struct activation {
    void *data; /* rows one after the other */
    bool half;
};

struct low_rank {  /* what learns beside it: W + S A; width 0: nothing does */
    const real *A; /* (width, I) */
    const real *S; /* (N, width), the scale of the adapter in it */
    uint32_t width;
};

struct attention {              /* what attention runs over */
    const uint32_t *cu_seqlens; /* (n_samples + 1) */
    uint32_t n_samples, n_heads, n_kv_heads, head_dim;
    real *scratch; /* ops.attention_scratch() numbers */
};

struct ops {
    const char *name;

    /* Y (M, N) = s X (M, I) W^T (N, I) */
    void (*linear)(struct pool *pool, real *Y, size_t ldy, const real *X, size_t ldx, const real *W, size_t ldw,
                   uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate);
    /* dX (M, I) = s dY (M, N) W (N, I) */
    void (*linear_dx)(struct pool *pool, real *dX, size_t lddx, const real *dY, size_t lddy, const real *W, size_t ldw,
                      uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate);
    /* dW (N, I) = s dY^T (M, N) X (M, I) */
    void (*linear_dw)(struct pool *pool, real *dW, size_t lddw, const real *dY, size_t lddy, const real *X, size_t ldx,
                      uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate);

    /* The two products of a frozen matrix and what learns beside it, in one pass over the rows. Only where `packed`: the other
     * tables use linear() and merge().
     *   frozen:     U (M, width) = X A^T;   Y (M, N) = X W^T + U S^T, plus `addend` (M, N) unless NULL; N 0: U alone
     *   frozen_dx:  dU (M, width) = dY S;   dX (M, I) = dY W + dU A
     * A bf16 Y has no addend. linear_half_dw is linear_dw with factors of either kind; dY begins at column `n0`. */
    bool packed;
    void (*frozen)(struct pool *pool, struct activation Y, real *U, struct activation X, const struct frozen_matrix *W,
                   const struct low_rank *low, uint32_t M, uint32_t N, uint32_t I, const real *addend);
    void (*frozen_dx)(struct pool *pool, struct activation dX, real *dU, struct activation dY,
                      const struct frozen_matrix *W, const struct low_rank *low, uint32_t M, uint32_t N, uint32_t I);
    void (*linear_half_dw)(struct pool *pool, real *dW, size_t lddw, struct activation dY, size_t lddy, uint32_t n0,
                           struct activation X, size_t ldx, uint32_t M, uint32_t N, uint32_t I, real s,
                           bool accumulate);
    /* Bytes that each thread of a pool must have been lent (pool_lend) before the first product of this table, for matrices of
     * up to `side_max` rows and columns. */
    size_t (*workspace)(uint32_t side_max, uint32_t width_max);

    void (*add_bias)(struct pool *pool, real *Y, const real *bias, uint32_t M, uint32_t N);

    /* W' (N, I) = W + s B (N, R) A (R, I): the weight a LoRA stands for. Saves the skinny products when M is large
     * (RunLoRA, arXiv 2312.03415). Its gradients are those of the factors, see lora.h. */
    void (*merge)(struct pool *pool, real *merged, const real *W, const real *A, const real *B, uint32_t N, uint32_t I,
                  uint32_t R, real s);

    /* Every row holds `heads` vectors of C numbers, each divided by its root mean square and scaled by w (C). heads is
     * 1 for the block norms, the number of heads for qwen3's q and k norms. Y may be X. Zhang, Sennrich 2019. */
    void (*rmsnorm)(struct pool *pool, real *Y, size_t ldy, const real *X, size_t ldx, const real *w, uint32_t M,
                    uint32_t heads, uint32_t C, real eps);
    /* The same as activations, of whole rows. Where `packed`. */
    void (*rmsnorm_half)(struct pool *pool, uint16_t *Y, const real *X, const real *w, uint32_t M, uint32_t C,
                         real eps);
    /* dX may be dY. The norms are frozen: no dw. */
    void (*rmsnorm_dx)(struct pool *pool, real *dX, size_t lddx, const real *dY, size_t lddy, const real *X, size_t ldx,
                       const real *w, uint32_t M, uint32_t heads, uint32_t C, real eps, bool accumulate);

    /* Rotates, in place, the `heads` first vectors of each row: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) with x1, x2
     * the halves of a vector (Hugging Face's convention). table (positions, D): cos, then sin, of D/2 angles; `position`
     * (M). `back` turns the other way, which is the gradient. RoFormer, arXiv 2104.09864. */
    void (*rope)(struct pool *pool, real *X, size_t ldx, const real *table, const uint32_t *position, uint32_t M,
                 uint32_t heads, uint32_t D, bool back);

    /* Y (M, N) = X as activations, the `heads` first vectors of D rotated as above. Where `packed`. */
    void (*rope_half)(struct pool *pool, uint16_t *Y, const real *X, uint32_t N, const real *table,
                      const uint32_t *position, uint32_t M, uint32_t heads, uint32_t D, bool back);

    /* Causal attention inside each sample. qkv (M, (H+2K)*D) rotated, out and dout (M, H*D): activations; lse (M, H) the log of each row's sum
     * of exponentials, from which the backward computes the probabilities again (FlashAttention, arXiv 2205.14135). */
    void (*attention)(struct pool *pool, void *out, real *lse, const void *qkv, const struct attention *a);
    void (*attention_back)(struct pool *pool, real *dqkv, const void *dout, const void *out, const real *lse,
                           const void *qkv, const struct attention *a);
    /* rows_back: of the largest batch that attention_back() gets, 0 if none. */
    size_t (*attention_scratch)(uint32_t n_heads, uint32_t n_kv_heads, uint32_t head_dim, uint32_t rows_back,
                                uint32_t seq_max, uint32_t threads);

    /* Y (M, F) = silu(gate) * up, GU (M, 2F) = gate and up side by side; activations in both functions */
    void (*swiglu)(struct pool *pool, void *Y, const void *GU, uint32_t M, uint32_t F);
    /* GU becomes its own gradient; Y is computed again, for the product below needs it. */
    void (*swiglu_back)(struct pool *pool, void *GU, void *Y, const void *dY, uint32_t M, uint32_t F);

    /* nll (M) = log sum exp(logits) - logits[target]. grad_scale != 0: logits become grad_scale * (softmax - one-hot). */
    void (*cross_entropy)(struct pool *pool, double *nll, real *logits, const uint32_t *targets, uint32_t M, uint32_t V,
                          real grad_scale);
    /* kl (M) = KL(softmax(teacher) || softmax(logits)); logits become grad_scale * (softmax(logits) - softmax(teacher)).
     * teacher: M pointers to rows of V. */
    void (*divergence)(struct pool *pool, double *kl, real *logits, const real *const *teacher, uint32_t M, uint32_t V,
                       real grad_scale);
};

extern const struct ops ops_ref, ops_blas, ops_dnnl, ops_bf16;

enum { OPS_PACKED_MODEL_MAX = 8192 }; /* d_model, where the table is packed */

/* bf16 on a CPU that multiplies bf16 (AMX or AVX512-BF16), else OpenBLAS. */
enum ops_kind ops_best(void);

/* ST_USAGE: no such table. ST_UNSUPPORTED: its library is not on this machine; the text says what to install. */
enum status ops_check(enum ops_kind kind, struct err *err);
const struct ops *ops_of(enum ops_kind kind); /* one that ops_check() accepts */

/* (n_positions, D): the angles in f32, as transformers computes them. `factors` (D/2), by which each frequency is divided
 * (Llama 3's scaling), or NULL. */
void rope_table(real *table, uint32_t n_positions, uint32_t D, double theta, const float *factors);

/* Back end, library, kernel and vector level as text: the first half of a numeric fingerprint. */
void ops_describe(enum ops_kind kind, char *out, size_t size);

#endif
