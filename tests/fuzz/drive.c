/* Runs a fuzz target without libFuzzer: the seeds, every truncation of them, then seeded mutations.
 *     fuzz_NAME [RUNS [SEED]]      or      fuzz_NAME FILE...      to run inputs that were found */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "fuzz.h"

enum { SEEDS_MAX = 64, EDITS_MAX = 6 };

/* An exact allocation, so that a sanitizer sees the first byte read past the end. */
static void run(const uint8_t *data, size_t size)
{
    uint8_t *copy = xmemdup(data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static void edit(struct buf *b, struct rng *rng)
{
    static const uint64_t odd[] = {0,
                                   1,
                                   0x7f,
                                   0x80,
                                   0xff,
                                   0x7fff,
                                   0x8000,
                                   0xffff,
                                   0x7fffffff,
                                   0x80000000,
                                   0xffffffff,
                                   0x7fffffffffffffff,
                                   0x8000000000000000,
                                   0xffffffffffffffff};
    if (b->len == 0) {
        buf_put_u8(b, (uint8_t)rng_u64(rng));
        return;
    }
    size_t at = (size_t)rng_below(rng, b->len);
    uint64_t value = odd[rng_below(rng, sizeof odd / sizeof odd[0])];
    size_t width = (size_t)1 << rng_below(rng, 4);
    switch (rng_below(rng, 6)) {
    case 0:
        b->data[at] ^= (uint8_t)(1u << rng_below(rng, 8));
        break;
    case 1:
        b->data[at] = (uint8_t)rng_u64(rng);
        break;
    case 2: /* a number of some width becomes an odd one */
        for (size_t i = 0; i < width && at + i < b->len; i++)
            b->data[at + i] = (uint8_t)(value >> (8 * i));
        break;
    case 3:
        b->len = at;
        break;
    case 4: /* a piece again, at the end */
        width = (size_t)rng_below(rng, b->len - at) + 1;
        buf_reserve(b, width);
        buf_put(b, b->data + at, width);
        break;
    default: /* a piece left out */
        width = (size_t)rng_below(rng, b->len - at) + 1;
        memmove(b->data + at, b->data + at + width, b->len - at - width);
        b->len -= width;
    }
}

int main(int argc, char **argv)
{
    hash_start();
    if (argc > 1 && !isdigit((unsigned char)argv[1][0])) {
        for (int i = 1; i < argc; i++) {
            struct buf file = {0};
            struct err err;
            if (file_read(argv[i], 64 << 20, &file, &err) != ST_OK) {
                fprintf(stderr, "%s\n", err.text);
                return 1;
            }
            run(file.data, file.len);
            buf_release(&file);
        }
        return 0;
    }
    uint64_t runs = argc > 1 ? strtoull(argv[1], NULL, 10) : 20000, seed = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
    struct buf seeds[SEEDS_MAX] = {{0}};
    uint32_t n = 0;
    while (n < SEEDS_MAX && fuzz_seed(n, &seeds[n]))
        n++;
    if (n == 0) {
        fprintf(stderr, "no seeds\n");
        return 1;
    }
    for (uint32_t i = 0; i < n; i++)
        for (size_t len = 0; len <= seeds[i].len; len += seeds[i].len > 4096 ? seeds[i].len / 4096 : 1)
            run(seeds[i].data, len);
    printf("seed %" PRIu64 ", %" PRIu64 " runs from %u inputs\n", seed, runs, n);
    struct rng rng;
    rng_seed(&rng, seed);
    for (uint64_t r = 0; r < runs; r++) {
        struct buf b = {0};
        const struct buf *from = &seeds[rng_below(&rng, n)];
        buf_put(&b, from->data, from->len);
        for (uint64_t edits = 1 + rng_below(&rng, EDITS_MAX); edits > 0; edits--)
            edit(&b, &rng);
        run(b.data, b.len);
        buf_release(&b);
    }
    for (uint32_t i = 0; i < n; i++)
        buf_release(&seeds[i]);
    return 0;
}
