/* ops_blas and ops_dnnl against ops_ref: every function, odd shapes, one to three threads. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/ops.h"
#include "model/simd.h"

static struct rng rng;
static struct pool *pool;
static const struct ops *fast; /* the table under test */

static float *random_floats(size_t n)
{
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(&rng);
    return x;
}

static float *copy(const float *x, size_t n)
{
    return xmemdup(x, n * sizeof *x);
}

/* |a - b|_2 <= 1e-6 |a|_2 : a few roundings of f32 */
static bool close(const float *a, const float *b, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)a[i] * (double)a[i];
    }
    return norm > 0 && diff <= 1e-12 * norm;
}

static void test_products(void)
{
    static const uint32_t sizes[][3] = {{1, 40, 24}, {2, 3, 5}, {33, 70, 16}, {130, 17, 65}, {16, 300, 48}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            uint32_t M = sizes[i][0], N = sizes[i][1], K = sizes[i][2];
            size_t ldx = K + 3, ldy = N + 5; /* views into wider matrices */
            float *X = random_floats(M * ldx), *W = random_floats((size_t)N * K), *Y = random_floats(M * ldy);
            float *Y2 = copy(Y, M * ldy);
            ops_ref.linear(pool, Y, ldy, X, ldx, W, K, M, N, K, 0.5f, accumulate);
            fast->linear(pool, Y2, ldy, X, ldx, W, K, M, N, K, 0.5f, accumulate);
            EXPECT(close(Y, Y2, M * ldy));
            float *dX = random_floats(M * ldx), *dX2 = copy(dX, M * ldx);
            ops_ref.linear_dx(pool, dX, ldx, Y, ldy, W, K, M, N, K, -2, accumulate);
            fast->linear_dx(pool, dX2, ldx, Y, ldy, W, K, M, N, K, -2, accumulate);
            EXPECT(close(dX, dX2, M * ldx));
            float *dW = copy(W, (size_t)N * K), *dW2 = copy(W, (size_t)N * K);
            ops_ref.linear_dw(pool, dW, K, Y, ldy, X, ldx, M, N, K, 3, accumulate);
            fast->linear_dw(pool, dW2, K, Y, ldy, X, ldx, M, N, K, 3, accumulate);
            EXPECT(close(dW, dW2, (size_t)N * K));
            free(X), free(W), free(Y), free(Y2), free(dX), free(dX2), free(dW), free(dW2);
        }
}

static void test_merge_and_bias(void)
{
    enum { N = 211, I = 37, R = 4, M = 19 };
    float *W = random_floats(N * I), *A = random_floats(R * I), *B = random_floats(N * R);
    float *a = random_floats(N * I), *b = random_floats(N * I);
    ops_ref.merge(pool, a, W, A, B, N, I, R, 2);
    fast->merge(pool, b, W, A, B, N, I, R, 2);
    EXPECT(close(a, b, N * I));
    memcpy(b, a, N * I * sizeof *a);
    ops_ref.add_bias(pool, a, W, M, I);
    fast->add_bias(pool, b, W, M, I);
    EXPECT(close(a, b, M * I));
    free(W), free(A), free(B), free(a), free(b);
}

static void test_norms_and_rope(void)
{
    enum { M = 13, HEADS = 3, C = 46, LD = HEADS * C + 7 };
    float *X = random_floats(M * LD), *w = random_floats(C), *dY = random_floats(M * LD);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        float *a = random_floats(M * LD), *b = copy(a, M * LD);
        ops_ref.rmsnorm(pool, a, LD, X, LD, w, M, HEADS, C, 1e-5f);
        fast->rmsnorm(pool, b, LD, X, LD, w, M, HEADS, C, 1e-5f);
        EXPECT(close(a, b, M * LD));
        ops_ref.rmsnorm_dx(pool, a, LD, dY, LD, X, LD, w, M, HEADS, C, 1e-5f, accumulate);
        fast->rmsnorm_dx(pool, b, LD, dY, LD, X, LD, w, M, HEADS, C, 1e-5f, accumulate);
        EXPECT(close(a, b, M * LD));
        free(a), free(b);
    }
    float *table = random_floats(20 * C), *a = copy(X, M * LD), *b = copy(X, M * LD);
    rope_table(table, 20, C, 1e4, NULL);
    uint32_t position[M];
    for (uint32_t m = 0; m < M; m++)
        position[m] = (m * 7) % 20;
    ops_ref.rope(pool, a, LD, table, position, M, HEADS, C, false);
    fast->rope(pool, b, LD, table, position, M, HEADS, C, false);
    EXPECT(close(a, b, M * LD) && !close(a, X, M * LD));
    fast->rope(pool, b, LD, table, position, M, HEADS, C, true);
    EXPECT(close(X, b, M * LD)); /* turning back is the inverse */
    free(X), free(w), free(dY), free(table), free(a), free(b);
}

static void check_attention(uint32_t H, uint32_t K, uint32_t D, const uint32_t *cu_seqlens, uint32_t n_samples,
                            uint32_t longest)
{
    uint32_t M = cu_seqlens[n_samples];
    size_t n = (size_t)M * (H + 2 * K) * D, no = (size_t)M * H * D;
    struct attention a = {cu_seqlens, n_samples, H, K, D, NULL};
    a.scratch = xmalloc(fast->attention_scratch(H, K, D, M, longest, pool_threads(pool)) * sizeof(float));
    float *qkv = random_floats(n), *out = random_floats(no), *out2 = random_floats(no), *dout = random_floats(no);
    float *lse = random_floats(M * H), *lse2 = random_floats(M * H);
    ops_ref.attention(pool, out, lse, qkv, &a);
    fast->attention(pool, out2, lse2, qkv, &a);
    EXPECT(close(out, out2, no));
    EXPECT(close(lse, lse2, M * H));
    float *d = random_floats(n), *d2 = random_floats(n);
    ops_ref.attention_back(pool, d, dout, out, lse, qkv, &a);
    fast->attention_back(pool, d2, dout, out, lse, qkv, &a);
    EXPECT(close(d, d2, n));
    free(a.scratch), free(qkv), free(out), free(out2), free(dout), free(lse), free(lse2), free(d), free(d2);
}

static void test_attention(void)
{
    static const uint32_t heads[][3] = {{1, 1, 8}, {6, 2, 10}, {4, 4, 16}, {9, 3, 64}}; /* H, K, D */
    /* one row, none, more than a block, ...; then more than a block of keys and than a piece, whose last has one row */
    static const uint32_t some[] = {0, 1, 1, 66, 80, 229}, longer[] = {0, 2100, 2300, 6397};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        check_attention(heads[i][0], heads[i][1], heads[i][2], some, 5, 149);
    if (pool_threads(pool) == 3)
        check_attention(2, 1, 8, longer, 3, 4097);
}

static void test_swiglu(void)
{
    enum { M = 9, F = 53 };
    float *gu = random_floats(M * 2 * F), *gu2 = copy(gu, M * 2 * F), *dy = random_floats(M * F);
    gu[0] = gu2[0] = 200; /* saturated both ways */
    gu[1] = gu2[1] = -200;
    float *y = random_floats(M * F), *y2 = random_floats(M * F);
    ops_ref.swiglu(pool, y, gu, M, F);
    fast->swiglu(pool, y2, gu, M, F);
    EXPECT(close(y, y2, M * F));
    memset(y2, 0, M * F * sizeof *y2);
    ops_ref.swiglu_back(pool, gu, y, dy, M, F);
    fast->swiglu_back(pool, gu2, y2, dy, M, F);
    EXPECT(close(gu, gu2, M * 2 * F) && close(y, y2, M * F));
    free(gu), free(gu2), free(dy), free(y), free(y2);
}

static void test_cross_entropy(void)
{
    enum { M = 5, V = 30011 };
    float *a = random_floats(M * V), *b;
    uint32_t targets[M];
    double nll[M], nll2[M];
    for (uint32_t m = 0; m < M; m++)
        targets[m] = (uint32_t)rng_below(&rng, V);
    a[V + 3] = 500; /* a certain row */
    for (uint32_t v = 0; v < V; v++)
        a[2 * V + v] = v ? 0 : 17; /* one likely word, and many that only count together */
    targets[2] = 0;
    b = copy(a, M * V);
    fast->cross_entropy(pool, nll2, b, targets, M, V, 0);
    EXPECT(!memcmp(a, b, M * V * sizeof *a)); /* scoring leaves the logits */
    ops_ref.cross_entropy(pool, nll, a, targets, M, V, 0.25f);
    for (int m = 0; m < M; m++)
        EXPECT_NEAR(nll[m], nll2[m], 1e-6 * (1 + nll[m]));
    fast->cross_entropy(pool, nll2, b, targets, M, V, 0.25f);
    for (int m = 0; m < M; m++)
        EXPECT_NEAR(nll[m], nll2[m], 1e-6 * (1 + nll[m]));
    EXPECT(close(a, b, M * V));
    free(a), free(b);
}

static void test_exp(void)
{
    for (double x = -86; x < 88; x += 0.0137) {
        float y = (float)x;
        simd_exp(&y, 1, 0, 1);
        double want = exp((double)(float)x);
        EXPECT_NEAR((double)y / want, 1, 2.5e-7);
    }
    float nan = NAN, low = -1e30f;
    EXPECT(isnan(simd_exp(&nan, 1, 0, 1)));
    EXPECT(simd_exp(&low, 1, 0, 1) < 1e-37f);
}

static void test_shares_cover(void)
{
    for (uint32_t n = 0; n < 70; n += 3)
        for (uint32_t threads = 1; threads < 6; threads++) {
            uint32_t at = 0, begin, end;
            for (uint32_t t = 0; t < threads; t++, at = end) {
                pool_share(n, 16, t, threads, &begin, &end);
                EXPECT(begin == at && end >= begin);
            }
            EXPECT_EQ(at, n);
        }
}

static void test_divergence(void)
{
    enum { M = 9, V = 333 };
    float *a = random_floats(M * V), *b = copy(a, M * V), *t = random_floats(M * V);
    const float *teacher[M];
    double want[M], got[M];
    for (int m = 0; m < M; m++)
        teacher[m] = t + (M - 1 - m) * V; /* rows lie anywhere */
    ops_ref.divergence(pool, want, a, teacher, M, V, 0.25f);
    fast->divergence(pool, got, b, teacher, M, V, 0.25f);
    EXPECT(close(a, b, M * V));
    for (int m = 0; m < M; m++)
        EXPECT_NEAR(got[m], want[m], 1e-6 * (1 + want[m]));
    fast->divergence(pool, got, t, (const float *const[]){t}, 1, V, 1);
    EXPECT_NEAR(got[0], 0, 1e-6);
    free(a), free(b), free(t);
}

static void test_table(enum ops_kind kind, uint32_t threads)
{
    struct err err;
    rng_seed(&rng, threads);
    if (!EXPECT_ST(ops_check(kind, &err), ST_OK, &err) || !EXPECT_ST(pool_new(threads, &pool, &err), ST_OK, &err))
        return;
    fast = ops_of(kind);
    printf("  %s, %u threads\n", fast->name, threads);
    RUN(test_products);
    RUN(test_merge_and_bias);
    RUN(test_norms_and_rope);
    RUN(test_attention);
    RUN(test_swiglu);
    RUN(test_cross_entropy);
    RUN(test_divergence);
    pool_free(pool);
}

int main(void)
{
    struct err err;
    char text[256];
    hash_start();
    for (uint32_t threads = 1; threads <= 3; threads++) {
        test_table(OPS_BLAS, threads);
        test_table(OPS_DNNL, threads); /* scripts/packages test brings libdnnl2 */
    }
    EXPECT(ops_of(OPS_BLAS) == &ops_blas && ops_of(OPS_REF) == &ops_ref);
    ops_describe(OPS_DNNL, text, sizeof text);
    EXPECT(!strncmp(text, "dnnl oneDNN 2.", 14));
    ops_describe(OPS_BLAS, text, sizeof text); /* its fallback for a CPU that it does not know */
    EXPECT(!strstr(text, "core=Prescott") || !__builtin_cpu_supports("avx2"));
    EXPECT_ST(ops_check((enum ops_kind)9, &err), ST_USAGE, &err);
    RUN(test_exp);
    RUN(test_shares_cover);
    EXPECT_ST(pool_new(0, &pool, &err), ST_USAGE, &err);
    return harness_end();
}
