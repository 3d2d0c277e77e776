/* The fast table that runs everywhere: OpenBLAS for products. */
#include <cblas.h>
#undef I /* cblas.h brings <complex.h> */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

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

/* OpenBLAS 0.3.21 takes a CPU younger than itself (Emerald Rapids, say) for a Prescott and multiplies at a sixth of its rate.
 * Then we name the kernels, in the way that its users are told to (OPENBLAS_CORETYPE), and have it choose again with what
 * its own start and end call; a build with one fixed core lacks both. */
extern void gotoblas_dynamic_init(void) __attribute__((weak));
extern void gotoblas_dynamic_quit(void) __attribute__((weak));

static void start(void)
{
    bool unknown = strcmp(openblas_get_corename(), "Prescott") == 0 && __builtin_cpu_supports("avx2");
    if (unknown && !getenv("OPENBLAS_CORETYPE") && gotoblas_dynamic_init && gotoblas_dynamic_quit) {
        setenv("OPENBLAS_CORETYPE", __builtin_cpu_supports("avx512bw") ? "SkylakeX" : "Haswell", 0);
        gotoblas_dynamic_quit();
        gotoblas_dynamic_init();
    }
    openblas_set_num_threads(1);
}

void ops_blas_start(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
}

void ops_blas_describe(char *out, size_t size)
{
    snprintf(out, size, "blas %s core=%s simd=%s", openblas_get_config(), openblas_get_corename(), simd_level());
}
