/* The fast table that runs everywhere: OpenBLAS for products. */
#include <cblas.h>
#undef I /* cblas.h brings <complex.h> */
#include <stdio.h>

#include "model/ops_fast.h"
#include "model/ops_products.h"

static void multiply(const struct product *p)
{
    if (!p->M || !p->N)
        return;
    if (p->M == 1 && !p->ta) { /* generation, one token: a product would pack all of B for one row */
        cblas_sgemv(CblasRowMajor, p->tb ? CblasNoTrans : CblasTrans, (int)(p->tb ? p->N : p->K),
                    (int)(p->tb ? p->K : p->N), p->alpha, p->B, (int)p->ldb, p->A, 1, p->beta, p->C, 1);
        return;
    }
    cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans, p->tb ? CblasTrans : CblasNoTrans, (int)p->M,
                (int)p->N, (int)p->K, p->alpha, p->A, (int)p->lda, p->B, (int)p->ldb, p->beta, p->C, (int)p->ldc);
}

const struct ops ops_blas = {.name = "blas", OPS_PRODUCTS, OPS_ROWS};

void ops_blas_start(void)
{
    openblas_set_num_threads(1);
}

void ops_blas_describe(char *out, size_t size)
{
    snprintf(out, size, "blas %s core=%s simd=%s", openblas_get_config(), openblas_get_corename(), simd_level());
}
