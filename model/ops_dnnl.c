/* The same table with oneDNN's products (f32). Its code is made for the CPU when a shape is first met.
 *
 * The library is looked for when it is asked for: nobody who does not use it loads it. Debian's build brings OpenMP's threads;
 * each thread of our pool tells OpenMP to use one, so that no others are ever made.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#include "base/check.h"
#include "model/ops_fast.h"
#include "model/ops_products.h"

static const char LIBRARY[] = "libdnnl.so.2";

/* Of its C API (oneapi/dnnl/dnnl.h, 2.x). */
typedef int sgemm_fn(char transa, char transb, int64_t M, int64_t N, int64_t K, float alpha, const float *A,
                     int64_t lda, const float *B, int64_t ldb, float beta, float *C, int64_t ldc);
struct version {
    int major, minor, patch;
    const char *hash;
    unsigned runtime[2];
};

static struct {
    pthread_once_t once;
    sgemm_fn *sgemm;
    void (*omp_set_num_threads)(int);
    int (*isa)(void);
    const struct version *version;
    char why[200]; /* it cannot be used; empty: it can */
} dnnl = {.once = PTHREAD_ONCE_INIT};

static void look(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(dnnl.why, sizeof dnnl.why, "%s", dlerror());
        return;
    }
    const struct version *(*version)(void);
    *(void **)&dnnl.sgemm = dlsym(library, "dnnl_sgemm");
    *(void **)&dnnl.isa = dlsym(library, "dnnl_get_effective_cpu_isa");
    *(void **)&dnnl.omp_set_num_threads = dlsym(library, "omp_set_num_threads");
    *(void **)&version = dlsym(library, "dnnl_version");
    if (!dnnl.sgemm || !dnnl.isa || !dnnl.omp_set_num_threads || !version)
        snprintf(dnnl.why, sizeof dnnl.why, "%s is no build with OpenMP, as Debian's is", LIBRARY);
    else
        dnnl.version = version();
}

static void multiply(const struct product *p)
{
    static _Thread_local bool alone;
    if (!p->M || !p->N)
        return;
    if (!alone) {
        dnnl.omp_set_num_threads(1);
        alone = true;
    }
    int rc = dnnl.sgemm(p->ta ? 'T' : 'N', p->tb ? 'T' : 'N', p->M, p->N, p->K, p->alpha, p->A, (int64_t)p->lda, p->B,
                        (int64_t)p->ldb, p->beta, p->C, (int64_t)p->ldc);
    CHECK(rc == 0);
}

const struct ops ops_dnnl = {.name = "dnnl", OPS_PRODUCTS, OPS_ROWS};

enum status ops_dnnl_start(struct err *err)
{
    pthread_once(&dnnl.once, look);
    if (dnnl.why[0])
        return err_set(err, ST_UNSUPPORTED,
                       "the back end dnnl needs oneDNN 2 (Debian's package libdnnl2): %s; blas works without it",
                       dnnl.why);
    return ST_OK;
}

void ops_dnnl_describe(char *out, size_t size)
{
    const struct version *v = dnnl.version;
    snprintf(out, size, "dnnl oneDNN %d.%d.%d isa=0x%x simd=%s", v->major, v->minor, v->patch, (unsigned)dnnl.isa(),
             simd_level());
}
