#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "fuzz.h"

#ifndef FUZZ_ROUNDS
#define FUZZ_ROUNDS 20000 /* changed inputs a seed; fewer for a target that is slow */
#endif
enum { CHANGES_MAX = 6 };

static size_t runs;
static uint64_t seed, until_ms; /* until_ms 0: one pass over the seeds */

/* On memory of exactly this size, so that the address sanitizer sees one byte too far. */
static void run(const uint8_t *data, size_t len)
{
    uint8_t *copy = xmalloc(len);
    if (len)
        memcpy(copy, data, len);
    LLVMFuzzerTestOneInput(copy, len);
    free(copy);
    runs++;
}

static void change(struct rng *rng, struct buf *b)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '}', '[', ']', ',', '-', '9', ' ', '\\'};
    if (b->len == 0)
        return;
    size_t at = rng_below(rng, b->len), n = rng_below(rng, b->len - at < 16 ? b->len - at : 16);
    switch (rng_below(rng, 6)) {
    case 0:
        b->data[at] ^= (uint8_t)(1u << rng_below(rng, 8));
        break;
    case 1:
        b->data[at] = values[rng_below(rng, sizeof values)];
        break;
    case 2: /* a length that lies */
        memset(b->data + at, rng_below(rng, 2) ? 0xff : 0, b->len - at < 8 ? b->len - at : 8);
        break;
    case 3: /* cut out */
        memmove(b->data + at, b->data + at + n, b->len - at - n);
        b->len -= n;
        break;
    case 4: /* copy elsewhere */
        memmove(b->data + rng_below(rng, b->len - n), b->data + at, n);
        break;
    default:
        b->len = at;
    }
}

static void mutate(const uint8_t *data, size_t len)
{
    struct rng rng;
    struct buf b = {0};
    rng_seed(&rng, len + seed);
    run(data, len);
    for (size_t cut = 0; cut < len && cut < 8192; cut++)
        run(data, cut);
    for (int i = 0; i < FUZZ_ROUNDS; i++) {
        buf_clear(&b);
        buf_put(&b, data, len);
        for (uint64_t n = 1 + rng_below(&rng, CHANGES_MAX); n; n--)
            change(&rng, &b);
        run(b.data, b.len);
    }
    buf_release(&b);
}

/* fuzz_NAME [SEED [SECONDS]]: passes with SEED, SEED + 1, ... for so long; without arguments the one pass of the test. */
int main(int argc, char **argv)
{
    hash_start();
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    until_ms = argc > 2 ? clock_ms() + 1000 * strtoull(argv[2], NULL, 10) : 0;
    do
        fuzz_seeds(mutate);
    while (seed++, clock_ms() < until_ms);
    printf("%zu inputs\n", runs);
    return runs ? 0 : 1;
}
