/* lora.h - a frozen linear layer with a LoRA beside it: Y = X (W + s B A)^T, forward and backward.
 *
 * A layer has four products; q, k, v share one input and are one product, so are gate and up. U = X A^T is saved by the
 * forward: with it dB = s dY^T U, dU = s dY B, dA = dU^T X, and dX = dY (W + s B A). No gradient of W.
 * The algebra: Hu et al. 2021; what to save: unsloth's fast_lora; merging when there are many rows: RunLoRA.
 */
#ifndef MODEL_LORA_H
#define MODEL_LORA_H

#include "adapter/adapter.h"
#include "model/arena.h"
#include "model/ops.h"

enum lora_product { PRODUCT_QKV, PRODUCT_O, PRODUCT_GATE_UP, PRODUCT_DOWN, LORA_PRODUCTS };
enum { LORA_STACKED_MAX = 3 }; /* modules in one product */

struct lora {
    const struct ops *ops;
    struct pool *pool;
    struct adapter_shape shape;
    struct {
        uint32_t in, out;
        uint32_t n;                 /* adapted modules in this product */
        enum lora_module module[3]; /* (n) */
        uint32_t row[3];            /* (n) where the module's rows begin in the product's matrix */
    } products[LORA_PRODUCTS];
    real *merged; /* room for the largest W; where products are packed, (largest out, 3R) */
    real *stack;  /* (3R, largest in): the A of one product, one above the other */
    real *du;     /* (rows, 3R), or U when nobody keeps it */
};

/* Sets the shapes and takes scratch for up to `rows` rows from the arena. */
void lora_layout(struct lora *lora, const struct ops *ops, const struct arch *arch, const struct adapter_shape *shape,
                 uint32_t rows, struct arena *arena);

/* Width of U for a product: n * R, 0 when nothing in it is adapted. */
uint32_t lora_width(const struct lora *lora, enum lora_product p);

/* Every X and gate_up's Y are activations of the table's kind (ops.h), and so are the gradients of qkv's and gate_up's Y, o's and
 * down's X; all else is real. The `void *`s below are one or the other. */

/* Y (M, out) from X (M, in), plus `addend` (M, out) unless NULL; it may be Y. `block` NULL: W alone. U (M, lora_width) is written
 * unless NULL. */
void lora_forward(const struct lora *lora, enum lora_product p, uint32_t layer, void *Y, real *U, const void *X,
                  const struct frozen_matrix *W, const real *block, uint32_t M, const real *addend);

/* U (M, lora_width) = X A^T alone, the same bits as lora_forward's. Nothing to do when nothing in it is adapted. */
void lora_project(const struct lora *lora, enum lora_product p, uint32_t layer, real *U, const void *X,
                  const real *block, uint32_t M);

/* Y += s (X A^T) B^T: the part of the adapter alone, for a Y that has the frozen product already. U (M, lora_width) is
 * written unless NULL. */
void lora_add(const struct lora *lora, enum lora_product p, uint32_t layer, real *Y, real *U, const real *X,
              const real *block, uint32_t M);

/* dX (M, in) = dY (M, out) (W + s B A), unless dX is NULL; and dU, which stays here for lora_dw(). */
void lora_dx(const struct lora *lora, enum lora_product p, uint32_t layer, void *dX, const void *dY,
             const struct frozen_matrix *W, const real *block, uint32_t M);

/* Adds this product's dA and dB to `grad` (layout of the block). Follows lora_dx() of the same product and dY. */
void lora_dw(const struct lora *lora, enum lora_product p, uint32_t layer, real *grad, const void *dY, const void *X,
             const real *U, uint32_t M);

#endif
