/* Deltas: what each coding keeps, the same bytes for the same lease, and what is refused, by name. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/hash.h"
#include "harness.h"

static struct adapter_shape shape_of(uint32_t rank)
{
    return (struct adapter_shape){.n_layers = 3,
                                  .rank = rank,
                                  .alpha = 8,
                                  .targets = 1 << LORA_Q | 1 << LORA_DOWN,
                                  .in = {10, 10, 10, 10, 10, 10, 14},
                                  .out = {12, 6, 6, 10, 14, 14, 10}};
}

static float *random_block(const struct adapter_shape *shape, uint64_t seed, double scale)
{
    struct rng rng;
    size_t n = adapter_floats(shape);
    float *block = xcalloc(n, sizeof *block);
    rng_seed(&rng, seed);
    for (size_t i = 0; i < n; i++)
        block[i] = (float)(scale * rng_normal(&rng));
    return block;
}

static int file_of(const struct buf *bytes)
{
    const char *path = harness_path(harness_tmpdir(), "delta");
    struct err err;
    EXPECT_ST(file_write_durable(path, bytes->data, bytes->len, 0600, &err), ST_OK, &err);
    return open(path, O_RDWR | O_CLOEXEC);
}

static const struct delta_head HEAD = {.session = 3, .lease = 17, .generation = 2};

static void encode(const struct adapter_shape *shape, const float *trained, const float *parent,
                   enum delta_coding coding, uint64_t seed, struct buf *out)
{
    struct err err;
    struct delta_head head = HEAD;
    head.coding = coding;
    EXPECT_ST(delta_encode(shape, trained, parent, &head, seed, out, &err), ST_OK, &err);
}

static void test_round_trip_of_each_coding(void)
{
    struct adapter_shape shape =
        shape_of(5); /* 5 * 22 and 5 * 24 a layer: blocks end inside tensors, the last is short */
    size_t n = adapter_floats(&shape);
    EXPECT(n == 3 * 5 * (22 + 24) && n % DELTA_BLOCK != 0);
    float *parent = random_block(&shape, 1, 1), *trained = random_block(&shape, 2, 1), *got = xcalloc(n, sizeof *got);
    for (int coding = DELTA_F32; coding <= DELTA_INT8; coding++) {
        struct buf bytes = {0};
        struct delta_reader reader;
        struct delta_head head;
        struct err err;
        double norm, want = 0;
        encode(&shape, trained, parent, (enum delta_coding)coding, 9, &bytes);
        EXPECT_EQ(bytes.len, delta_bytes(&shape, (enum delta_coding)coding));
        int fd = file_of(&bytes);
        EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_OK, &err);
        EXPECT(head.session == 3 && head.lease == 17 && head.generation == 2 && (int)head.coding == coding);
        EXPECT_ST(delta_reader_open(&reader, fd, bytes.len, &shape, &err), ST_OK, &err);
        EXPECT_ST(delta_read(&reader, 0, n, got, &err), ST_OK, &err);
        for (size_t i = 0; i < n; i++) {
            float delta = trained[i] - parent[i];
            double allowed = coding == DELTA_F32    ? 0
                             : coding == DELTA_BF16 ? ldexp(fabsf(delta), -8)
                                                    : 8.0 / 127; /* |delta| < 8: one step of the scale */
            EXPECT(fabs((double)got[i] - (double)delta) <= allowed);
            want += (double)got[i] * (double)got[i];
        }
        EXPECT_NEAR(norm, sqrt(want), 1e-9 * sqrt(want));
        for (size_t first = 0; first < n; first += 7) /* any part gives the same as the whole */
            for (size_t len = 0; len <= n - first; len += 31) {
                float part[1000];
                EXPECT_ST(delta_read(&reader, first, len, part, &err), ST_OK, &err);
                EXPECT(!memcmp(part, got + first, len * sizeof *part));
            }
        delta_reader_release(&reader);
        close(fd);
        buf_release(&bytes);
    }
    free(parent), free(trained), free(got);
}

static void test_bf16_rounds_to_even(void)
{
    struct adapter_shape shape = shape_of(1);
    size_t n = adapter_floats(&shape);
    float *zero = xcalloc(n, sizeof *zero), *trained = xcalloc(n, sizeof *trained), got[4];
    struct buf bytes = {0};
    struct delta_reader reader;
    struct err err;
    trained[0] = 1 + 0x1p-8f;            /* a tie: down to even */
    trained[1] = 1 + 0x3p-8f;            /* a tie: up to even */
    trained[2] = 1 + 0x1p-8f + 0x1p-20f; /* above the tie */
    trained[3] = -0x1p-140f;             /* subnormal: rounds to itself or to zero, stays finite */
    encode(&shape, trained, zero, DELTA_BF16, 0, &bytes);
    int fd = file_of(&bytes);
    EXPECT_ST(delta_reader_open(&reader, fd, bytes.len, &shape, &err), ST_OK, &err);
    EXPECT_ST(delta_read(&reader, 0, 4, got, &err), ST_OK, &err);
    EXPECT(got[0] == 1 && got[1] == 1 + 0x1p-6f && got[2] == 1 + 0x1p-7f && got[3] <= 0);
    delta_reader_release(&reader);
    close(fd);
    buf_release(&bytes);
    free(zero), free(trained);
}

/* The mean over many seeds is the value: nothing is lost on average, so no state is needed. */
static void test_int8_is_unbiased_and_seeded(void)
{
    enum { TRIALS = 4000, LOOK = 64 };
    struct adapter_shape shape = shape_of(2);
    size_t n = adapter_floats(&shape);
    float *zero = xcalloc(n, sizeof *zero), *trained = random_block(&shape, 4, 0.01), got[LOOK], most = 0;
    double sum[LOOK] = {0};
    struct buf first = {0};
    encode(&shape, trained, zero, DELTA_INT8, 1, &first);
    for (size_t i = 0; i < LOOK; i++)
        most = fabsf(trained[i]) > most ? fabsf(trained[i]) : most;
    for (uint64_t seed = 0; seed < TRIALS; seed++) {
        struct buf bytes = {0};
        encode(&shape, trained, zero, DELTA_INT8, seed, &bytes);
        EXPECT_EQ(!memcmp(bytes.data, first.data, first.len), seed == 1);
        struct reader r = reader_of(bytes.data + 72, bytes.len - 72);
        float scale = read_f32(&r);
        for (size_t i = 0; i < LOOK; i++) {
            got[i] = scale * (float)(int8_t)read_u8(&r);
            EXPECT(fabsf(got[i] - trained[i]) <= scale * 1.0001f);
            sum[i] += (double)got[i];
        }
        buf_release(&bytes);
    }
    double step = (double)most / 127, chi2 = 0;
    for (size_t i = 0; i < LOOK; i++) {
        double off = sum[i] / TRIALS - (double)trained[i], p = fmod(fabs((double)trained[i]) / step, 1);
        double variance = step * step * (p * (1 - p) + 1e-6) / TRIALS;
        chi2 += off * off / variance;
    }
    EXPECT(chi2 < LOOK + 5 * sqrt(2.0 * LOOK));
    buf_release(&first);
    free(zero), free(trained);
}

static void test_divergence_is_named(void)
{
    struct adapter_shape shape = shape_of(4);
    size_t n = adapter_floats(&shape);
    float *parent = random_block(&shape, 1, 1), *trained = random_block(&shape, 2, 1);
    struct buf out = {0};
    struct err err;
    struct delta_head head = HEAD;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int coding = DELTA_F32; coding <= DELTA_INT8; coding++)
        for (int i = 0; i < 3; i++) {
            size_t at = adapter_at_b(&shape, 1, LORA_DOWN) + 3;
            float keep = trained[at];
            head.coding = (enum delta_coding)coding;
            trained[at] = bad[i];
            buf_put(&out, "x", 1);
            EXPECT_ST(delta_encode(&shape, trained, parent, &head, 0, &out, &err), ST_BAD_DATA, &err);
            EXPECT(strstr(err.text, "layers.1 mlp.down_proj B") != NULL && out.len == 1);
            trained[at] = keep;
            buf_clear(&out);
        }
    trained[n - 1] = 0x1.ffp127f; /* finite, but rounds to infinity in bf16 */
    parent[n - 1] = 0;
    head.coding = DELTA_BF16;
    EXPECT_ST(delta_encode(&shape, trained, parent, &head, 0, &out, &err), ST_BAD_DATA, &err);
    head.coding = DELTA_INT8;
    EXPECT_ST(delta_encode(&shape, trained, parent, &head, 0, &out, &err), ST_OK, &err);
    buf_release(&out);
    free(parent), free(trained);
}

static void put_at(int fd, off_t at, const void *data, size_t len)
{
    EXPECT(pwrite(fd, data, len, at) == (ssize_t)len);
}

static void test_hostile_files(void)
{
    struct adapter_shape shape = shape_of(4), other = shape_of(5);
    float *parent = random_block(&shape, 1, 1), *trained = random_block(&shape, 2, 1);
    struct delta_head head;
    struct err err;
    double norm;
    for (int coding = DELTA_F32; coding <= DELTA_INT8; coding++) {
        struct buf bytes = {0};
        encode(&shape, trained, parent, (enum delta_coding)coding, 9, &bytes);
        int fd = file_of(&bytes);
        EXPECT_ST(delta_check(fd, bytes.len, &other, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        EXPECT(strstr(err.text, "another shape") != NULL);
        for (uint64_t len = 0; len < bytes.len; len += 11) /* said to be shorter */
            EXPECT_ST(delta_check(fd, len, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        EXPECT_ST(delta_check(fd, bytes.len + 1, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        EXPECT_ST(delta_check(fd, UINT64_MAX, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        for (off_t at = 0; at < 72; at++) { /* each byte of the head matters, but for the lease's own numbers */
            uint8_t byte = bytes.data[at] ^ 0x40;
            put_at(fd, at, &byte, 1);
            enum status status = delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err);
            bool free_field = at >= 12 && at < 32;
            EXPECT(free_field ? status == ST_OK : status == ST_BAD_DATA || status == ST_UNSUPPORTED);
            put_at(fd, at, &bytes.data[at], 1);
        }
        /* A value that is not finite, past the first piece of a reader. */
        const uint8_t ones[4] = {0xff, 0xff, 0xff, 0x7f};
        off_t at = coding == DELTA_F32 ? 72 + 4 * 150 : coding == DELTA_BF16 ? 72 + 2 * 150 : 72 + 68;
        put_at(fd, at, ones + (coding == DELTA_BF16 ? 2 : 0), coding == DELTA_BF16 ? 2 : 4);
        EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        EXPECT(strstr(err.text, "lease 17") && strstr(err.text, "layers."));
        put_at(fd, 72, bytes.data + 72, bytes.len - 72);
        EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_OK, &err);
        if (coding == DELTA_INT8) {
            put_at(fd, 72 + 4 + 10, "\x80", 1); /* -128 */
            EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
            put_at(fd, 72 + 4 + 10, bytes.data + 86, 1);
            put_at(fd, 72 + 3, "\xbf", 1); /* a negative scale */
            EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        }
        EXPECT(!ftruncate(fd, 200)); /* shorter than its own record says */
        EXPECT_ST(delta_check(fd, bytes.len, &shape, NULL, &head, &norm, &err), ST_BAD_DATA, &err);
        close(fd);
        buf_release(&bytes);
    }
    free(parent), free(trained);
}

int main(void)
{
    hash_start();
    RUN(test_round_trip_of_each_coding);
    RUN(test_bf16_rounds_to_even);
    RUN(test_int8_is_unbiased_and_seeded);
    RUN(test_divergence_is_named);
    RUN(test_hostile_files);
    return harness_end();
}
