#include "model/evaluate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "model/transformer.h"

struct evaluator {
    struct evaluator_config config;
    struct transformer *transformer;
    float *block; /* the adapter */
    bool bare;
    uint32_t vocab_size;
};

void evaluator_defaults(const struct adapter_shape *shape, struct evaluator_config *out)
{
    *out = (struct evaluator_config){.shape = *shape, .rows_max = 1024, .seq_max = 512, .threads = 1, .ops = OPS_BLAS};
}

static struct transformer_config transformer_config_of(const struct evaluator_config *c)
{
    return (struct transformer_config){.ops = ops_of(c->ops),
                                       .shape = c->shape,
                                       .rows_max = c->rows_max,
                                       .seq_max = c->seq_max,
                                       .threads = c->threads};
}

enum status evaluator_plan(const struct arch *arch, const struct evaluator_config *config, uint64_t *bytes,
                           struct err *err)
{
    enum status st = ops_check(config->ops, err);
    if (st != ST_OK)
        return st;
    struct transformer_config c = transformer_config_of(config);
    uint64_t saved, scratch;
    st = transformer_plan(arch, &c, &saved, &scratch, err);
    if (st == ST_OK)
        *bytes = weights_bytes(arch, c.ops->packed) + saved + scratch + adapter_floats(&config->shape) * sizeof(float);
    return st;
}

enum status evaluator_new(const struct weights *weights, const struct evaluator_config *config, struct evaluator **out,
                          struct err *err)
{
    uint64_t bytes;
    enum status st = evaluator_plan(&weights->arch, config, &bytes, err);
    if (st != ST_OK)
        return st;
    if (config->memory_max && bytes > config->memory_max)
        return err_set(err, ST_NO_MEMORY, "scoring would take %llu MiB and %llu are allowed: use fewer rows than %u",
                       (unsigned long long)(bytes >> 20), (unsigned long long)(config->memory_max >> 20),
                       config->rows_max);
    struct transformer_config c = transformer_config_of(config);
    struct transformer *transformer;
    st = transformer_new(weights, &c, &transformer, err);
    if (st != ST_OK)
        return st;
    struct evaluator *e = xcalloc(1, sizeof *e);
    e->config = *config;
    e->transformer = transformer;
    e->block = xcalloc(adapter_floats(&config->shape), sizeof *e->block);
    e->bare = true;
    e->vocab_size = weights->arch.vocab_size;
    *out = e;
    return ST_OK;
}

void evaluator_free(struct evaluator *evaluator)
{
    if (!evaluator)
        return;
    transformer_free(evaluator->transformer);
    free(evaluator->block);
    free(evaluator);
}

void evaluator_set_adapter(struct evaluator *evaluator, const float *block)
{
    evaluator->bare = !block;
    if (block)
        memcpy(evaluator->block, block, adapter_floats(&evaluator->config.shape) * sizeof *block);
}

enum status evaluator_score(struct evaluator *evaluator, const struct sample *samples, uint32_t n, double *nll,
                            uint32_t *targets, struct err *err)
{
    for (uint32_t s = 0; s < n; s++)
        if (samples[s].n_tokens > evaluator->config.seq_max + 1)
            return err_set(err, ST_LIMIT, "sample %u has %u tokens, at most %u can be scored", s, samples[s].n_tokens,
                           evaluator->config.seq_max + 1);
    double *sums = xcalloc((size_t)n + 1, sizeof *sums);
    uint32_t *counts = xcalloc((size_t)n + 1, sizeof *counts);
    enum status st = ST_OK;
    const struct objective plain = {.kind = OBJECTIVE_LM};
    for (uint32_t at = 0; at < n && st == ST_OK;) {
        struct packed packed;
        uint32_t taken = pack_samples(samples + at, n - at, evaluator->config.rows_max, &packed);
        st = transformer_accepts(evaluator->transformer, &packed, err);
        if (st == ST_OK)
            transformer_run(evaluator->transformer, evaluator->bare ? NULL : evaluator->block, NULL, &packed, &plain, 0,
                            sums + at, counts + at);
        for (uint32_t s = at; s < at + taken && st == ST_OK; s++)
            if (!isfinite(sums[s]))
                st =
                    err_set(err, ST_BAD_DATA,
                            "the loss of sample %u is not finite: the base or the adapter holds NaN or huge values", s);
        packed_release(&packed);
        at += taken;
    }
    if (st == ST_OK && n) {
        memcpy(nll, sums, n * sizeof *nll);
        memcpy(targets, counts, n * sizeof *targets);
    }
    free(sums);
    free(counts);
    return st;
}

static bool likeliest(const float *logits, uint32_t n, uint32_t target)
{
    for (uint32_t v = 0; v < n; v++)
        if (logits[v] > logits[target] || (logits[v] == logits[target] && v < target) || isnan(logits[v]))
            return false;
    return true;
}

enum status evaluator_exact(struct evaluator *evaluator, const struct sample *sample, bool *exact, struct err *err)
{
    enum { PIECE = 32 }; /* rows of logits at a time; an answer is seldom longer */
    const uint32_t V = evaluator->vocab_size;
    uint32_t rows[PIECE], n = 0;
    struct packed packed;
    bool same = true, any = false;
    if (sample->n_tokens > evaluator->config.seq_max + 1)
        return err_set(err, ST_LIMIT, "a sample of %u tokens, at most %u can be scored", sample->n_tokens,
                       evaluator->config.seq_max + 1);
    pack_samples(sample, 1, evaluator->config.rows_max, &packed);
    enum status st = transformer_accepts(evaluator->transformer, &packed, err);
    float *logits = xmalloc((size_t)PIECE * V * sizeof *logits);
    for (uint32_t m = 0; st == ST_OK && same && m < packed.n_rows; m++) {
        if (packed.mask[m])
            rows[n++] = m;
        if (n == PIECE || (n > 0 && m + 1 == packed.n_rows)) {
            transformer_logits(evaluator->transformer, evaluator->bare ? NULL : evaluator->block, &packed, rows, n,
                               logits);
            for (uint32_t i = 0; i < n && same; i++)
                same = likeliest(logits + (size_t)i * V, V, packed.targets[rows[i]]);
            any = true;
            n = 0;
        }
    }
    free(logits);
    packed_release(&packed);
    if (st == ST_OK)
        *exact = same && any;
    return st;
}

void evaluator_fingerprint(const struct evaluator *evaluator, char *out, size_t size)
{
    char back_end[256];
    ops_describe(evaluator->config.ops, back_end, sizeof back_end);
    snprintf(out, size, "%s threads=%u rows=%u", back_end, evaluator->config.threads, evaluator->config.rows_max);
}
