#include "model/lora.h"

#include <string.h>

static const struct {
    uint32_t n;
    enum lora_module module[3];
} MEMBERS[LORA_PRODUCTS] = {
    [PRODUCT_QKV] = {3, {LORA_Q, LORA_K, LORA_V}},
    [PRODUCT_O] = {1, {LORA_O}},
    [PRODUCT_GATE_UP] = {2, {LORA_GATE, LORA_UP}},
    [PRODUCT_DOWN] = {1, {LORA_DOWN}},
};

void lora_layout(struct lora *lora, const struct ops *ops, const struct arch *arch, const struct adapter_shape *shape,
                 uint32_t rows, struct arena *arena)
{
    uint32_t Q = arch->n_heads * arch->head_dim, K = arch->n_kv_heads * arch->head_dim;
    uint32_t C = arch->d_model, F = arch->d_ff;
    const uint32_t in[LORA_MODULES] = {C, C, C, Q, C, C, F}, out[LORA_MODULES] = {Q, K, K, C, F, F, C};
    size_t largest = 0, widest = 0, highest = 0;
    lora->ops = ops;
    lora->shape = *shape;
    for (int p = 0; p < LORA_PRODUCTS; p++) {
        lora->products[p].in = in[MEMBERS[p].module[0]];
        lora->products[p].out = 0;
        lora->products[p].n = 0;
        for (uint32_t i = 0; i < MEMBERS[p].n; i++) {
            enum lora_module m = MEMBERS[p].module[i];
            if (shape->targets & (1u << m)) {
                lora->products[p].row[lora->products[p].n] = lora->products[p].out;
                lora->products[p].module[lora->products[p].n++] = m;
            }
            lora->products[p].out += out[m];
        }
        size_t size = (size_t)lora->products[p].in * lora->products[p].out;
        largest = size > largest ? size : largest;
        widest = lora->products[p].in > widest ? lora->products[p].in : widest;
        highest = lora->products[p].out > highest ? lora->products[p].out : highest;
    }
    lora->merged = arena_reals(arena, lora->ops->packed ? 3 * shape->rank * highest : largest);
    lora->stack = arena_reals(arena, 3 * shape->rank * widest);
    lora->du = arena_reals(arena, (uint64_t)rows * 3 * shape->rank);
}

uint32_t lora_width(const struct lora *lora, enum lora_product p)
{
    return lora->products[p].n * lora->shape.rank;
}

static const real *a_of(const struct lora *lora, const real *block, uint32_t layer, enum lora_module m)
{
    return block + adapter_at_a(&lora->shape, layer, m);
}

static const real *b_of(const struct lora *lora, const real *block, uint32_t layer, enum lora_module m)
{
    return block + adapter_at_b(&lora->shape, layer, m);
}

/* W + s B A for all the rows of a product; W itself when nothing in it is adapted. */
static const real *merged_weight(const struct lora *lora, enum lora_product p, uint32_t layer, const real *W,
                                 const real *block)
{
    if (!block || !lora->products[p].n)
        return W;
    uint32_t in = lora->products[p].in, row = 0;
    for (uint32_t i = 0; i < lora->products[p].n; i++) {
        enum lora_module m = lora->products[p].module[i];
        size_t plain = (size_t)row * in, at = (size_t)lora->products[p].row[i] * in;
        memcpy(lora->merged + plain, W + plain, (at - plain) * sizeof(real));
        lora->ops->merge(lora->pool, lora->merged + at, W + at, a_of(lora, block, layer, m),
                         b_of(lora, block, layer, m), lora->shape.out[m], in, lora->shape.rank,
                         (real)adapter_scale(&lora->shape));
        row = lora->products[p].row[i] + lora->shape.out[m];
    }
    size_t plain = (size_t)row * in, end = (size_t)lora->products[p].out * in;
    memcpy(lora->merged + plain, W + plain, (end - plain) * sizeof(real));
    return lora->merged;
}

/* Merging costs in*out*R, the skinny products cost M*(in+out)*R. */
static bool merges(const struct lora *lora, enum lora_product p, uint32_t M)
{
    uint64_t in = lora->products[p].in, out = lora->products[p].out;
    return M * (in + out) > in * out;
}

/* The A of the product's modules, one above the other: (n R, in). */
static const real *stacked_a(const struct lora *lora, enum lora_product p, uint32_t layer, const real *block)
{
    size_t one = (size_t)lora->shape.rank * lora->products[p].in;
    for (uint32_t i = 0; i < lora->products[p].n; i++)
        memcpy(lora->stack + i * one, a_of(lora, block, layer, lora->products[p].module[i]), one * sizeof(real));
    return lora->stack;
}

/* What goes into a product, what comes out of it, and their gradients. What is added to the residual stream, or summed up before it goes on,
 * is real. */
static struct activation input(const struct lora *lora, const void *X)
{
    return (struct activation){(void *)(uintptr_t)X, lora->ops->packed};
}

static struct activation output(const struct lora *lora, enum lora_product p, void *Y)
{
    return (struct activation){Y, lora->ops->packed && p == PRODUCT_GATE_UP};
}

static struct activation input_gradient(const struct lora *lora, enum lora_product p, void *dX)
{
    return (struct activation){dX, lora->ops->packed && (p == PRODUCT_O || p == PRODUCT_DOWN)};
}

static struct activation output_gradient(const struct lora *lora, enum lora_product p, const void *dY)
{
    return (struct activation){(void *)(uintptr_t)dY, lora->ops->packed && (p == PRODUCT_QKV || p == PRODUCT_GATE_UP)};
}

void lora_project(const struct lora *lora, enum lora_product p, uint32_t layer, real *U, const void *X,
                  const real *block, uint32_t M)
{
    uint32_t in = lora->products[p].in, width = lora_width(lora, p);
    if (width && lora->ops->packed) {
        struct low_rank low = {stacked_a(lora, p, layer, block), NULL, width};
        lora->ops->frozen(lora->pool, output(lora, p, NULL), U, input(lora, X), &(struct frozen_matrix){0}, &low, M, 0,
                          in, false);
    } else if (width)
        lora->ops->linear(lora->pool, U, width, X, in, stacked_a(lora, p, layer, block), in, M, width, in, 1, false);
}

void lora_add(const struct lora *lora, enum lora_product p, uint32_t layer, real *Y, real *U, const real *X,
              const real *block, uint32_t M)
{
    uint32_t out = lora->products[p].out, R = lora->shape.rank, width = lora_width(lora, p);
    U = U ? U : lora->du;
    lora_project(lora, p, layer, U, X, block, M);
    for (uint32_t i = 0; i < lora->products[p].n; i++) {
        enum lora_module m = lora->products[p].module[i];
        lora->ops->linear(lora->pool, Y + lora->products[p].row[i], out, U + (size_t)i * R, width,
                          b_of(lora, block, layer, m), R, M, lora->shape.out[m], R, (real)adapter_scale(&lora->shape),
                          true);
    }
}

/* What learns beside the product's matrix, as one pair of factors: A stacked, s B in blocks one below and beside the other. */
static struct low_rank low_rank_of(const struct lora *lora, enum lora_product p, uint32_t layer, const real *block)
{
    const uint32_t R = lora->shape.rank, width = lora_width(lora, p);
    if (!block || !width)
        return (struct low_rank){0};
    const real s = (real)adapter_scale(&lora->shape);
    memset(lora->merged, 0, (size_t)lora->products[p].out * width * sizeof(real));
    for (uint32_t i = 0; i < lora->products[p].n; i++) {
        enum lora_module m = lora->products[p].module[i];
        const real *b = b_of(lora, block, layer, m);
        for (uint32_t n = 0; n < lora->shape.out[m]; n++)
            for (uint32_t j = 0; j < R; j++)
                lora->merged[(size_t)(lora->products[p].row[i] + n) * width + i * R + j] = s * b[(size_t)n * R + j];
    }
    return (struct low_rank){stacked_a(lora, p, layer, block), lora->merged, width};
}

void lora_forward(const struct lora *lora, enum lora_product p, uint32_t layer, void *Y, real *U, const void *X,
                  const struct frozen_matrix *W, const real *block, uint32_t M, const real *addend)
{
    uint32_t in = lora->products[p].in, out = lora->products[p].out;
    if (lora->ops->packed) {
        struct low_rank low = low_rank_of(lora, p, layer, block);
        lora->ops->frozen(lora->pool, output(lora, p, Y), U ? U : lora->du, input(lora, X), W, &low, M, out, in,
                          addend);
        return;
    }
    bool merging = merges(lora, p, M);
    const real *weight = merging ? merged_weight(lora, p, layer, W->rows, block) : W->rows;
    if (addend && addend != Y)
        memcpy(Y, addend, (size_t)M * out * sizeof(real));
    lora->ops->linear(lora->pool, Y, out, X, in, weight, in, M, out, in, 1, addend != NULL);
    if (!block)
        return;
    if (!merging)
        lora_add(lora, p, layer, Y, U, X, block, M);
    else if (U)
        lora_project(lora, p, layer, U, X, block, M);
}

/* dU (M, n R) = s dY B, module by module. */
static void project_back(const struct lora *lora, enum lora_product p, uint32_t layer, const real *dY,
                         const real *block, uint32_t M)
{
    for (uint32_t i = 0; i < lora->products[p].n; i++) {
        enum lora_module m = lora->products[p].module[i];
        lora->ops->linear_dx(lora->pool, lora->du + (size_t)i * lora->shape.rank, lora_width(lora, p),
                             dY + lora->products[p].row[i], lora->products[p].out, b_of(lora, block, layer, m),
                             lora->shape.rank, M, lora->shape.out[m], lora->shape.rank,
                             (real)adapter_scale(&lora->shape), false);
    }
}

void lora_dx(const struct lora *lora, enum lora_product p, uint32_t layer, void *dX, const void *dY,
             const struct frozen_matrix *W, const real *block, uint32_t M)
{
    uint32_t in = lora->products[p].in, out = lora->products[p].out, width = lora_width(lora, p);
    if (lora->ops->packed) {
        struct low_rank low = low_rank_of(lora, p, layer, block);
        lora->ops->frozen_dx(lora->pool, input_gradient(lora, p, dX), lora->du, output_gradient(lora, p, dY), W, &low,
                             M, out, dX ? in : 0);
        return;
    }
    project_back(lora, p, layer, dY, block, M);
    if (!dX)
        return;
    bool merging = merges(lora, p, M);
    const real *weight = merging ? merged_weight(lora, p, layer, W->rows, block) : W->rows;
    lora->ops->linear_dx(lora->pool, dX, in, dY, out, weight, in, M, out, in, 1, false);
    if (!merging && width)
        lora->ops->linear_dx(lora->pool, dX, in, lora->du, width, stacked_a(lora, p, layer, block), in, M, width, in, 1,
                             true);
}

/* linear_dw of whichever kind; dY from column n0 on. */
static void dw(const struct lora *lora, real *dW, size_t lddw, struct activation dY, size_t lddy, uint32_t n0,
               struct activation X, size_t ldx, uint32_t M, uint32_t N, uint32_t I, real s, bool accumulate)
{
    if (lora->ops->packed)
        lora->ops->linear_half_dw(lora->pool, dW, lddw, dY, lddy, n0, X, ldx, M, N, I, s, accumulate);
    else
        lora->ops->linear_dw(lora->pool, dW, lddw, (real *)dY.data + n0, lddy, X.data, ldx, M, N, I, s, accumulate);
}

void lora_dw(const struct lora *lora, enum lora_product p, uint32_t layer, real *grad, const void *dY, const void *X,
             const real *U, uint32_t M)
{
    uint32_t in = lora->products[p].in, out = lora->products[p].out, R = lora->shape.rank, width = lora_width(lora, p);
    if (!width)
        return;
    dw(lora, lora->stack, in, (struct activation){lora->du, false}, width, 0, input(lora, X), in, M, width, in, 1,
       false);
    for (uint32_t i = 0; i < lora->products[p].n; i++) {
        enum lora_module m = lora->products[p].module[i];
        real *da = grad + adapter_at_a(&lora->shape, layer, m), *one = lora->stack + (size_t)i * R * in;
        for (size_t j = 0; j < (size_t)R * in; j++)
            da[j] += one[j];
        dw(lora, grad + adapter_at_b(&lora->shape, layer, m), R, output_gradient(lora, p, dY), out,
           lora->products[p].row[i], (struct activation){(real *)(uintptr_t)U + (size_t)i * R, false}, width, M,
           lora->shape.out[m], R, (real)adapter_scale(&lora->shape), true);
    }
}
