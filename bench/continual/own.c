#include "own.h"

#include <stdlib.h>

#include "base/buf.h"
#include "corpus.h"

enum { ROWS_MAX = 1024 }; /* two messages of 256 tokens and their template */

static enum status score(const struct own *own, struct engine *engine, const float *block, double *nll, struct err *err)
{
    uint32_t context = base_arch(engine->base)->context_max;
    enum status status = engine_evaluator(engine, context < ROWS_MAX ? context : ROWS_MAX, err);
    if (status != ST_OK)
        return status;
    evaluator_set_adapter(engine->evaluator, block);
    return evaluator_score(engine->evaluator, own->samples, own->n, nll, own->targets, err);
}

enum status own_read(const char *dir, struct engine *engine, struct own *out, struct err *err)
{
    static const struct corpus_options whole = {0};
    struct own own = {0};
    struct corpus texts;
    enum status status = corpus_read(dir, "own", &whole, 0, engine, &texts, err);
    if (status != ST_OK)
        return status;
    own.digest = texts.digest;
    own.samples = xcalloc((size_t)texts.n_documents + 1, sizeof *own.samples);
    own.targets = xcalloc((size_t)texts.n_documents + 1, sizeof *own.targets);
    own.base = xcalloc((size_t)texts.n_documents + 1, sizeof *own.base);
    for (; own.n < texts.n_documents && status == ST_OK; own.n++) {
        const struct corpus_document *d = &texts.documents[own.n];
        size_t begin = own.ids.n;
        status = engine_tokenise(engine, d->kind, d->text, &own.ids, &own.mask, err);
        own.samples[own.n].n_tokens = (uint32_t)(own.ids.n - begin);
    }
    size_t at = 0; /* the buffers have moved while they grew */
    for (uint32_t i = 0; i < own.n; at += own.samples[i++].n_tokens) {
        own.samples[i].tokens = own.ids.ids + at;
        own.samples[i].mask = own.mask.data + at;
    }
    if (status == ST_OK && own.n == 0)
        status = err_set(err, ST_BAD_DATA, "%s/own.jsonl: no text in it", dir);
    if (status == ST_OK)
        status = score(&own, engine, NULL, own.base, err);
    corpus_release(&texts);
    if (status == ST_OK)
        *out = own;
    else
        own_release(&own);
    return status;
}

void own_release(struct own *own)
{
    token_buf_release(&own->ids);
    buf_release(&own->mask);
    free(own->samples);
    free(own->base);
    free(own->targets);
    *own = (struct own){0};
}

enum status own_score(const struct own *own, struct engine *engine, const float *block, double *kl, double *by_text,
                      struct err *err)
{
    enum status status = score(own, engine, block, by_text, err);
    double sum = 0, targets = 0;
    for (uint32_t i = 0; i < own->n && status == ST_OK; i++)
        targets += own->targets[i];
    for (uint32_t i = 0; i < own->n && status == ST_OK; i++) {
        by_text[i] = (by_text[i] - own->base[i]) / targets;
        sum += by_text[i];
    }
    *kl = sum;
    return status;
}
