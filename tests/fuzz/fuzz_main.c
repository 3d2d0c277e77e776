#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "fuzz.h"

enum { ROUNDS = 20000, CHANGES_MAX = 6 };

static size_t runs;

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
    rng_seed(&rng, len);
    run(data, len);
    for (size_t cut = 0; cut < len && cut < 8192; cut++)
        run(data, cut);
    for (int i = 0; i < ROUNDS; i++) {
        buf_clear(&b);
        buf_put(&b, data, len);
        for (uint64_t n = 1 + rng_below(&rng, CHANGES_MAX); n; n--)
            change(&rng, &b);
        run(b.data, b.len);
    }
    buf_release(&b);
}

int main(void)
{
    hash_start();
    fuzz_seeds(mutate);
    printf("%zu inputs\n", runs);
    return runs ? 0 : 1;
}
