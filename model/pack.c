#include "model/pack.h"

#include <string.h>

#include "base/buf.h"
#include "base/check.h"

static uint32_t rows_of(const struct sample *s)
{
    return s->n_tokens < 2 ? 0 : s->n_tokens - 1;
}

static uint32_t pack(const struct sample *samples, uint32_t n, uint32_t together, uint32_t rows_max, struct packed *out)
{
    uint32_t taken = 0, rows = 0;
    while (taken < n) {
        uint64_t more = 0;
        for (uint32_t i = 0; i < together; i++)
            more += rows_of(&samples[taken + i]);
        if (more > rows_max - rows)
            break;
        rows += (uint32_t)more;
        taken += together;
    }
    CHECK(taken > 0 || n == 0);

    struct packed p = {.n_samples = taken, .n_rows = rows};
    p.tokens = xcalloc((size_t)rows + 1, sizeof *p.tokens);
    p.targets = xcalloc((size_t)rows + 1, sizeof *p.targets);
    p.mask = xcalloc((size_t)rows + 1, 1);
    p.cu_seqlens = xcalloc((size_t)taken + 1, sizeof *p.cu_seqlens);
    uint32_t row = 0;
    for (uint32_t s = 0; s < taken; s++) {
        uint32_t m = rows_of(&samples[s]);
        for (uint32_t i = 0; i < m; i++, row++) {
            p.tokens[row] = samples[s].tokens[i];
            p.targets[row] = samples[s].tokens[i + 1];
            p.mask[row] = !samples[s].mask || samples[s].mask[i + 1];
            p.n_targets += p.mask[row];
        }
        p.cu_seqlens[s + 1] = row;
    }
    *out = p;
    return taken;
}

uint32_t pack_samples(const struct sample *samples, uint32_t n, uint32_t rows_max, struct packed *out)
{
    return pack(samples, n, 1, rows_max, out);
}

uint32_t pack_pairs(const struct sample *samples, uint32_t n, uint32_t rows_max, struct packed *out)
{
    CHECK(n % 2 == 0);
    return pack(samples, n, 2, rows_max, out);
}

void packed_release(struct packed *packed)
{
    free(packed->tokens);
    free(packed->targets);
    free(packed->mask);
    free(packed->cu_seqlens);
    memset(packed, 0, sizeof *packed);
}

enum status packed_check(const struct packed *packed, uint32_t vocab_size, struct err *err)
{
    if (packed->cu_seqlens[0] != 0 || packed->cu_seqlens[packed->n_samples] != packed->n_rows)
        return err_set(err, ST_BAD_DATA, "packed batch: boundaries do not span its %u rows", packed->n_rows);
    for (uint32_t s = 0; s < packed->n_samples; s++)
        if (packed->cu_seqlens[s] > packed->cu_seqlens[s + 1])
            return err_set(err, ST_BAD_DATA, "packed batch: sample %u ends before it begins", s);
    uint32_t targets = 0;
    for (uint32_t i = 0; i < packed->n_rows; i++) {
        if (packed->tokens[i] >= vocab_size || packed->targets[i] >= vocab_size)
            return err_set(err, ST_BAD_DATA, "packed batch: row %u has a token outside the vocabulary of %u", i,
                           vocab_size);
        targets += packed->mask[i] != 0;
    }
    if (targets != packed->n_targets)
        return err_set(err, ST_BAD_DATA, "packed batch: %u targets announced, %u found", packed->n_targets, targets);
    return ST_OK;
}
