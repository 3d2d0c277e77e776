/* bf16.h and ops_bf16 against plain loops over rounded factors. On a CPU without bf16 only the refusal can be tested; the rest is
 * reported as skipped. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/bf16.h"
#include "model/simd.h"
#include "model/trainer.h"
#include "weights_pack.h"

enum { SKIPPED = 77 };

static struct rng rng;

/* To nearest, ties to even. */
static float rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float *random_floats(size_t n)
{
    float *x = xmalloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = rounded((float)rng_normal(&rng));
    return x;
}

static double distance(const float *want, const float *have, size_t n) /* relative, in the Euclidean norm */
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += ((double)want[i] - (double)have[i]) * ((double)want[i] - (double)have[i]);
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(diff / norm);
}

static void *tiles(size_t rows, size_t K)
{
    return aligned_alloc(64, bf16_bytes(rows, K));
}

/* Whole numbers: every sum is exact, so are the products. */
static void check_product(enum bf16_unit unit, uint32_t M, uint32_t N, uint32_t K, int way)
{
    const bool left_across = way & 1, right_across = way & 2, turned = way & 4, accumulate = way & 8,
               past = way & 16 && !turned;
    const size_t steps = bf16_steps(K), ldl = (left_across ? M : K) + 3, ldr = (right_across ? N : K) + 1;
    float *left = xmalloc(ldl * (left_across ? K : M) * sizeof *left);
    float *right = xmalloc(ldr * (right_across ? K : N) * sizeof *right);
    for (size_t i = 0; i < ldl * (left_across ? K : M); i++)
        left[i] = (float)rng_below(&rng, 17) - 8;
    for (size_t i = 0; i < ldr * (right_across ? K : N); i++)
        right[i] = (float)rng_below(&rng, 17) - 8;
    uint16_t *l = tiles(M, K), *r = tiles(N, K);
    bf16_pack(l, BF16_LEFT, steps, 0, (struct bf16_source){left, ldl, left_across, 1, false}, M, K);
    bf16_pack(r, BF16_RIGHT, steps, 0, (struct bf16_source){right, ldr, right_across, 0.5f, false}, N, K);
    const size_t wide = turned ? M : N, ldc = past ? (wide + 15) / 16 * 16 : wide + 2, n = ldc * (turned ? N : M);
    float *C = aligned_alloc(64, (n * sizeof *C + 63) / 64 * 64), *want = xmalloc(n * sizeof *want);
    for (size_t i = 0; i < n; i++)
        C[i] = want[i] = (float)rng_below(&rng, 9);
    for (uint32_t m = 0; m < M; m++)
        for (uint32_t j = 0; j < N; j++) {
            float *c = want + (turned ? j * ldc + m : m * ldc + j), sum = accumulate ? *c : 0;
            for (uint32_t k = 0; k < K; k++)
                sum +=
                    left[left_across ? k * ldl + m : m * ldl + k] * right[right_across ? k * ldr + j : j * ldr + k] / 2;
            *c = sum;
        }
    uint32_t first = (uint32_t)steps / 2; /* in two parts */
    const struct bf16_right parts[2] = {{r, steps, first},
                                        {r + (size_t)first * BF16_TILE, steps, (uint32_t)steps - first}};
    bf16_multiply(unit, (struct bf16_target){C, ldc, accumulate ? C : NULL, .turned = turned, .past = past}, l, steps,
                  parts, M, N);
    EXPECT(!memcmp(C, want, n * sizeof *C));
    free(left), free(right), free(l), free(r), free(C), free(want);
}

static void test_products_are_exact(void)
{
    static const uint32_t sizes[][3] = {{1, 1, 1},     {32, 32, 32}, {37, 53, 70},
                                        {64, 96, 128}, {16, 40, 31}, {70, 17, 33}};
    for (enum bf16_unit unit = BF16_AVX512; unit <= bf16_unit(); unit++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
            for (int way = 0; way < 32; way++)
                check_product(unit, sizes[i][0], sizes[i][1], sizes[i][2], way);
}

static void test_rounding(void)
{
    enum { N = 16 };
    float one[N * N] = {0}, x[N * N], C[N * N];
    for (int i = 0; i < N; i++)
        one[i * N + i] = 1;
    for (int i = 0; i < N * N; i++)
        x[i] = 1 + (float)i / 512; /* half of them ties */
    uint16_t *l = tiles(N, N), *r = tiles(N, N);
    bf16_pack(l, BF16_LEFT, 1, 0, (struct bf16_source){x, N, false, 1, false}, N, N);
    bf16_pack(r, BF16_RIGHT, 1, 0, (struct bf16_source){one, N, false, 1, false}, N, N);
    bf16_multiply(bf16_unit(), (struct bf16_target){.data = C, .ld = N}, l, 1,
                  (struct bf16_right[2]){{r, 1, 1}, {r, 0, 0}}, N, N);
    for (int i = 0; i < N * N; i++)
        EXPECT(C[i] == rounded(x[i]));
    free(l), free(r);
}

static struct pool *make_pool(uint32_t threads)
{
    struct err err;
    struct pool *pool;
    if (!EXPECT_ST(pool_new(threads, &pool, &err), ST_OK, &err))
        exit(1);
    size_t each = ops_bf16.workspace(4000, 48);
    pool_lend(pool, aligned_alloc(64, threads * each), each);
    return pool;
}

static void free_pool(struct pool *pool)
{
    free(pool_workspace(pool, 0));
    pool_free(pool);
}

/* The sizes reach over one piece of rows, of columns and of k. */
static void test_plain_products(struct pool *pool)
{
    static const uint32_t sizes[][3] = {{5, 7, 3}, {33, 300, 70}, {300, 20, 2100}, {40, 2500, 40}, {2100, 16, 50}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            uint32_t M = sizes[i][0], N = sizes[i][1], K = sizes[i][2];
            float *X = random_floats((size_t)M * K), *W = random_floats((size_t)N * K);
            float *Y = random_floats((size_t)M * N), *Y2 = xmemdup(Y, (size_t)M * N * sizeof *Y);
            ops_ref.linear(pool, Y, N, X, K, W, K, M, N, K, 0.5f, accumulate);
            ops_bf16.linear(pool, Y2, N, X, K, W, K, M, N, K, 0.5f, accumulate);
            EXPECT(distance(Y, Y2, (size_t)M * N) < 1e-6);
            for (size_t j = 0; j < (size_t)M * N; j++)
                Y[j] = rounded(Y[j]);
            float *dX = random_floats((size_t)M * K), *dX2 = xmemdup(dX, (size_t)M * K * sizeof *dX);
            ops_ref.linear_dx(pool, dX, K, Y, N, W, K, M, N, K, -2, accumulate);
            ops_bf16.linear_dx(pool, dX2, K, Y, N, W, K, M, N, K, -2, accumulate);
            EXPECT(distance(dX, dX2, (size_t)M * K) < 1e-6);
            float *dW = random_floats((size_t)N * K), *dW2 = xmemdup(dW, (size_t)N * K * sizeof *dW);
            ops_ref.linear_dw(pool, dW, K, Y, N, X, K, M, N, K, 2, accumulate);
            ops_bf16.linear_dw(pool, dW2, K, Y, N, X, K, M, N, K, 2, accumulate);
            EXPECT(distance(dW, dW2, (size_t)N * K) < 1e-6);
            free(X), free(W), free(Y), free(Y2), free(dX), free(dX2), free(dW), free(dW2);
        }
}

/* Z = X P^T, rounded where the packed product rounds it, then Y += Z Q^T. */
static void add_low_rank(struct pool *pool, float *Y, float *Z, const float *X, const struct low_rank *low, uint32_t M,
                         uint32_t N, uint32_t K, bool back)
{
    if (back)
        ops_ref.linear_dx(pool, Z, low->width, X, K, low->S, low->width, M, K, low->width, 1, false);
    else
        ops_ref.linear(pool, Z, low->width, X, K, low->A, K, M, low->width, K, 1, false);
    for (size_t i = 0; i < (size_t)M * low->width; i++)
        Z[i] = rounded(Z[i]);
    if (back)
        ops_ref.linear_dx(pool, Y, N, Z, low->width, low->A, N, M, low->width, N, 1, true);
    else
        ops_ref.linear(pool, Y, N, Z, low->width, low->S, low->width, M, N, low->width, 1, true);
}

static void test_frozen(struct pool *pool)
{
    static const uint32_t sizes[][4] = {{3, 40, 24, 6},  {300, 96, 70, 48},  {200, 64, 2300, 32}, {40, 2600, 33, 16},
                                        {7, 900, 64, 0}, {70, 2080, 1100, 6}}; /* the last is turned in parts */
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            uint32_t M = sizes[i][0], N = sizes[i][1], K = sizes[i][2], R = sizes[i][3];
            float *W = random_floats((size_t)N * K), *X = random_floats((size_t)M * K),
                  *A = random_floats((size_t)R * K + 1);
            float *S = random_floats((size_t)N * R + 1), *U = random_floats((size_t)M * R + 1),
                  *U2 = random_floats((size_t)M * R + 1);
            struct frozen_matrix packed = {W, tiles(N, K)};
            bf16_pack(packed.tiles, BF16_RIGHT, bf16_steps(K), 0, (struct bf16_source){W, K, false, 1, false}, N, K);
            const struct low_rank low = {A, S, R};
            float *Y = random_floats((size_t)M * N), *Y2 = xmemdup(Y, (size_t)M * N * sizeof *Y);
            ops_ref.linear(pool, Y, N, X, K, W, K, M, N, K, 1, accumulate);
            if (R)
                add_low_rank(pool, Y, U, X, &low, M, N, K, false);
            ops_bf16.frozen(pool, (struct activation){Y2, false}, U2, (struct activation){X, false}, &packed, &low, M,
                            N, K, accumulate ? Y2 : NULL);
            EXPECT(distance(Y, Y2, (size_t)M * N) < 1e-3); /* a last bit of U may round the other way */
            EXPECT(!R || distance(U, U2, (size_t)M * R) < 1.0 / 256);
            for (size_t j = 0; j < (size_t)M * N; j++)
                Y[j] = rounded(Y[j]);
            float *dX = random_floats((size_t)M * K), *dX2 = random_floats((size_t)M * K);
            ops_ref.linear_dx(pool, dX, K, Y, N, W, K, M, N, K, 1, false);
            if (R)
                add_low_rank(pool, dX, U, Y, &low, M, K, N, true);
            ops_bf16.frozen_dx(pool, (struct activation){dX2, false}, U2, (struct activation){Y, false}, &packed, &low,
                               M, N, K);
            EXPECT(distance(dX, dX2, (size_t)M * K) < 1e-3);
            EXPECT(!R || distance(U, U2, (size_t)M * R) < 1.0 / 256);
            free(W), free(X), free(A), free(S), free(U), free(U2), free(Y), free(Y2), free(dX), free(dX2);
            free(packed.tiles);
        }
}

/* Any piece of the turned factor is what packing across would have made of it. */
static void test_turn(void)
{
    static const uint32_t sizes[][6] = {/* N, I, i, columns, step, steps */
                                        {32, 32, 0, 32, 0, 1},    {16, 16, 0, 16, 0, 1},     {3, 40, 32, 8, 0, 1},
                                        {96, 70, 0, 70, 1, 2},    {2300, 64, 32, 32, 7, 65}, {81, 49, 0, 49, 0, 3},
                                        {40, 2600, 640, 64, 1, 1}};
    for (size_t c = 0; c < sizeof sizes / sizeof sizes[0]; c++) {
        const uint32_t N = sizes[c][0], I = sizes[c][1], i = sizes[c][2], columns = sizes[c][3], step = sizes[c][4],
                       steps = sizes[c][5];
        float *W = random_floats((size_t)N * I);
        uint16_t *forward = tiles(N, I), *back = tiles(I, N), *turned = tiles(columns, (size_t)steps * BF16_STEP);
        bf16_pack(forward, BF16_RIGHT, bf16_steps(I), 0, (struct bf16_source){W, I, false, 1, false}, N, I);
        bf16_pack(back, BF16_RIGHT, bf16_steps(N), 0, (struct bf16_source){W, I, true, 1, false}, I, N);
        bf16_turn(turned, forward, N, I, i, columns, step, steps);
        for (size_t at = 0; at < (size_t)N * I; at += 13)
            EXPECT(bf16_at(forward, I, at / I, at % I) == W[at]);
        for (size_t strip = 0; strip < bf16_strips(columns); strip++)
            EXPECT(!memcmp(turned + strip * steps * BF16_TILE,
                           back + ((i / BF16_ROWS + strip) * bf16_steps(N) + step) * BF16_TILE,
                           (size_t)steps * BF16_TILE_BYTES));
        free(W), free(forward), free(back), free(turned);
    }
}

static uint16_t *rounded_copy(const float *x, size_t n)
{
    uint16_t *half = xmalloc(n * sizeof *half);
    simd_round(half, x, (uint32_t)n);
    return half;
}

static void check_attention(struct pool *pool, uint32_t H, uint32_t K, uint32_t D, const uint32_t *cu_seqlens,
                            uint32_t n_samples, uint32_t longest)
{
    uint32_t M = cu_seqlens[n_samples];
    size_t n = (size_t)M * (H + 2 * K) * D, no = (size_t)M * H * D;
    struct attention a = {cu_seqlens, n_samples, H, K, D, NULL};
    a.scratch = aligned_alloc(64, ops_bf16.attention_scratch(H, K, D, M, longest, pool_threads(pool)) * sizeof(float));
    float *qkv = random_floats(n), *dout = random_floats(no), *lse = random_floats(M * H), *lse2 = random_floats(M * H);
    float *out = random_floats(no), *out2 = xmalloc(no * sizeof *out2), *dqkv = random_floats(n),
          *dqkv2 = random_floats(n);
    uint16_t *half = rounded_copy(qkv, n), *dhalf = rounded_copy(dout, no), *out_half = xmalloc(no * sizeof *out_half);
    ops_ref.attention(pool, out, lse, qkv, &a);
    ops_bf16.attention(pool, out_half, lse2, half, &a);
    simd_widen(out2, out_half, (uint32_t)no);
    EXPECT(distance(lse, lse2, M * H) < 1.0 / 256 && distance(out, out2, no) < 1.0 / 256);
    ops_ref.attention_back(pool, dqkv, dout, out, lse, qkv, &a);
    ops_bf16.attention_back(pool, dqkv2, dhalf, out_half, lse2, half, &a);
    EXPECT(distance(dqkv, dqkv2, n) < 1.0 / 128);
    free(a.scratch), free(qkv), free(half), free(dout), free(lse), free(lse2), free(out), free(out2), free(dqkv);
    free(dqkv2), free(dhalf), free(out_half);
}

static void test_attention(struct pool *pool)
{
    static const uint32_t heads[][3] = {{1, 1, 8}, {6, 2, 10}, {9, 3, 64}}; /* H, K, D */
    static const uint32_t some[] = {0, 1, 1, 66, 80, 229}, longer[] = {0, 2100, 2300, 6397};
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++)
        check_attention(pool, heads[i][0], heads[i][1], heads[i][2], some, 5, 149);
    if (pool_threads(pool) == 3)
        check_attention(pool, 2, 1, 8, longer, 3, 4097);
}

/* ------------------------------------------------------------------ a whole step */

static const struct arch small = {.kind = ARCH_QWEN3,
                                  .n_layers = 3,
                                  .d_model = 96,
                                  .d_ff = 200,
                                  .n_heads = 6,
                                  .n_kv_heads = 2,
                                  .head_dim = 32,
                                  .vocab_size = 500,
                                  .context_max = 128,
                                  .rope_theta = 1e4f,
                                  .rms_eps = 1e-5f,
                                  .tied_head = true,
                                  .qk_norm = true};
enum { TOKENS = 100, SEQS = 4, STEPS = 20 };

struct curve {
    double loss[STEPS];
    float *grad; /* of the first step */
};

static struct curve train(enum ops_kind ops, uint32_t threads, uint32_t checkpoint_layers, uint32_t targets)
{
    struct err err;
    struct weights *w;
    struct adapter_shape shape;
    struct trainer *trainer;
    struct curve curve = {0};
    rng_seed(&rng, 5);
    if (!EXPECT_ST(weights_new(&small, false, &w, &err), ST_OK, &err))
        exit(1);
    for (size_t i = 0; i < w->bytes / sizeof(float); i++)
        ((float *)w->memory)[i] = 0.1f * (float)rng_normal(&rng);
    if (ops == OPS_BF16)
        EXPECT_ST(weights_pack(&w, &err), ST_OK, &err);
    EXPECT(w->packed == (ops == OPS_BF16) && w->bytes == weights_bytes(&small, w->packed));
    EXPECT_ST(adapter_shape_of(&small, 8, 16, targets, &shape, &err), ST_OK, &err);
    struct trainer_config config;
    trainer_defaults(&shape, &config);
    config.ops = ops;
    config.lr = 1e-2f;
    config.threads = threads;
    config.checkpoint_layers = checkpoint_layers;
    config.rows_max = SEQS * TOKENS;
    config.seq_max = TOKENS;
    if (!EXPECT_ST(trainer_new(w, &config, &trainer, &err), ST_OK, &err))
        exit(1);
    size_t n = adapter_floats(&shape);
    float *block = xmalloc(n * sizeof *block);
    for (size_t i = 0; i < n; i++)
        block[i] = 0.05f * (float)rng_normal(&rng);
    trainer_set_adapter(trainer, block);
    uint32_t tokens[SEQS][TOKENS];
    struct sample samples[SEQS];
    for (int s = 0; s < SEQS; s++) {
        for (int i = 0; i < TOKENS; i++)
            tokens[s][i] = (uint32_t)rng_below(&rng, small.vocab_size);
        samples[s] = (struct sample){tokens[s], NULL, TOKENS};
    }
    struct packed packed;
    EXPECT_EQ(pack_samples(samples, SEQS, config.rows_max, &packed), SEQS);
    for (int i = 0; i < STEPS; i++) {
        struct step_result r;
        EXPECT_ST(trainer_step(trainer, &packed, 1, &r, NULL, NULL, &err), ST_OK, &err);
        curve.loss[i] = r.loss;
        if (i == 0)
            curve.grad = xmemdup(trainer_gradient(trainer), n * sizeof(float));
    }
    packed_release(&packed);
    trainer_free(trainer);
    weights_free(w);
    free(block);
    return curve;
}

static double cosine(const float *a, const float *b, size_t n)
{
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / sqrt(aa * bb);
}

static void check_training(uint32_t targets)
{
    struct err err;
    struct adapter_shape shape;
    EXPECT_ST(adapter_shape_of(&small, 8, 16, targets, &shape, &err), ST_OK, &err);
    size_t n = adapter_floats(&shape);
    struct curve want = train(OPS_REF, 1, 0, targets), one = train(OPS_BF16, 1, 0, targets);
    struct curve three = train(OPS_BF16, 3, 0, targets), block = train(OPS_BF16, 2, small.n_layers, targets);
    EXPECT(cosine(want.grad, one.grad, n) > 0.9995);
    for (int i = 0; i < STEPS; i++)
        EXPECT(fabs(want.loss[i] - one.loss[i]) < 0.005 * want.loss[i]);
    EXPECT(one.loss[STEPS - 1] < 0.98 * one.loss[0]);
    EXPECT(!memcmp(one.loss, three.loss, sizeof one.loss) && !memcmp(one.grad, three.grad, n * sizeof(float)));
    EXPECT(!memcmp(one.loss, block.loss, sizeof one.loss) && !memcmp(one.grad, block.grad, n * sizeof(float)));
    free(want.grad), free(one.grad), free(three.grad), free(block.grad);
}

static void test_training(void)
{
    check_training(LORA_ALL);
    check_training(LORA_ALL | 1 << LORA_FIRST_LAYER);
}

int main(void)
{
    struct err err;
    hash_start();
    rng_seed(&rng, 3);
    if (bf16_unit() == BF16_NONE) {
        EXPECT_ST(ops_check(OPS_BF16, &err), ST_UNSUPPORTED, &err);
        EXPECT(strstr(err.text, "AVX512-BF16"));
        printf("  skipped: this CPU has no bf16\n");
        return harness_end() ? 1 : SKIPPED;
    }
    EXPECT_ST(ops_check(OPS_BF16, &err), ST_OK, &err);
    printf("  %s\n", bf16_unit() == BF16_AMX ? "amx and avx512" : "avx512");
    RUN(test_products_are_exact);
    RUN(test_rounding);
    RUN(test_turn);
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        struct pool *pool = make_pool(threads);
        test_plain_products(pool);
        test_frozen(pool);
        test_attention(pool);
        free_pool(pool);
    }
    RUN(test_training);
    return harness_end();
}
