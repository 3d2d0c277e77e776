/* Which tables there are. */
#include <stdio.h>

#include "base/check.h"
#include "model/bf16.h"
#include "model/ops_fast.h"

enum ops_kind ops_best(void)
{
    return bf16_unit() == BF16_NONE ? OPS_BLAS : OPS_BF16;
}

enum status ops_check(enum ops_kind kind, struct err *err)
{
    if (kind == OPS_DNNL)
        return ops_dnnl_start(err);
    if (kind == OPS_BF16)
        return ops_bf16_start(err);
    if (kind != OPS_REF && kind != OPS_BLAS)
        return err_set(err, ST_USAGE, "unknown back end %d", (int)kind);
    return ST_OK;
}

const struct ops *ops_of(enum ops_kind kind)
{
    struct err err;
    CHECK(ops_check(kind, &err) == ST_OK);
    if (kind == OPS_BLAS)
        ops_blas_start();
    static const struct ops *const tables[] = {&ops_ref, &ops_blas, &ops_dnnl, &ops_bf16};
    return tables[kind];
}

void ops_describe(enum ops_kind kind, char *out, size_t size)
{
    if (kind == OPS_BLAS)
        ops_blas_describe(out, size);
    else if (kind == OPS_DNNL)
        ops_dnnl_describe(out, size);
    else if (kind == OPS_BF16)
        ops_bf16_describe(out, size);
    else
        snprintf(out, size, "ref");
}
