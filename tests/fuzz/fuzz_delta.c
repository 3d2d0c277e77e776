/* A delta file of any bytes: refused, or every value it yields is finite. */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "fuzz.h"

static const struct adapter_shape SHAPE = {.n_layers = 2,
                                           .rank = 3,
                                           .alpha = 6,
                                           .targets = 1 << LORA_V,
                                           .in = {8, 8, 8, 8, 8, 8, 9},
                                           .out = {8, 5, 5, 8, 9, 9, 8}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct delta_head head;
    struct delta_reader reader;
    double norm;
    if (fd < 0)
        fd = memfd_create("delta", MFD_CLOEXEC);
    bool written = fd >= 0 && !ftruncate(fd, 0) && pwrite(fd, data, size, 0) == (ssize_t)size;
    CHECK(written);
    if (delta_check(fd, size, &SHAPE, NULL, &head, &norm, NULL) != ST_OK)
        return 0;
    CHECK(isfinite(norm) && norm >= 0 && size == delta_bytes(&SHAPE, head.coding));
    CHECK_EQ(delta_reader_open(&reader, fd, size, &SHAPE, NULL), ST_OK);
    for (uint64_t at = 0; at < head.floats; at += 5) {
        float v[5];
        size_t n = head.floats - at < 5 ? (size_t)(head.floats - at) : 5;
        CHECK_EQ(delta_read(&reader, at, n, v, NULL), ST_OK);
        for (size_t i = 0; i < n; i++)
            CHECK(isfinite(v[i]));
    }
    delta_reader_release(&reader);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    size_t n = adapter_floats(&SHAPE);
    float *zero = xcalloc(n, sizeof *zero), *trained = xcalloc(n, sizeof *trained);
    struct delta_head head = {.session = 1, .lease = 2, .generation = 3};
    for (size_t i = 0; i < n; i++)
        trained[i] = (float)i / 7 - 3;
    for (int coding = DELTA_F32; coding <= DELTA_INT8; coding++) {
        struct buf out = {0};
        head.coding = (enum delta_coding)coding;
        CHECK_EQ(delta_encode(&SHAPE, trained, zero, &head, 5, &out, NULL), ST_OK);
        use(out.data, out.len);
        buf_release(&out);
    }
    free(zero);
    free(trained);
}
