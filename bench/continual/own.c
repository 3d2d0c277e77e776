#include "own.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

enum { FILE_MAX = 64 << 20, ROWS_MAX = 1024 }; /* two messages of 256 tokens and their template */

static enum status add_line(struct own *own, const char *line, size_t len, const struct engine *engine, uint32_t *ends,
                            struct err *err)
{
    json_t *root = json_loadb(line, len, 0, NULL);
    const json_t *text = json_object_get(root, "text"), *messages = json_object_get(root, "messages");
    char *chat = messages ? json_dumps(messages, JSON_COMPACT) : NULL;
    enum status status = ST_BAD_DATA;
    if (chat)
        status = engine_tokenise(engine, ALV__RECORD_KIND__RECORD_CHAT, (struct bytes){(uint8_t *)chat, strlen(chat)},
                                 &own->ids, &own->mask, err);
    else if (json_is_string(text))
        status = engine_tokenise(engine, ALV__RECORD_KIND__RECORD_TEXT,
                                 (struct bytes){(const uint8_t *)json_string_value(text), json_string_length(text)},
                                 &own->ids, &own->mask, err);
    else
        err_set(err, status, "neither \"text\" nor \"messages\"");
    ends[own->n++] = (uint32_t)own->ids.n;
    free(chat);
    json_decref(root);
    return status == ST_OK ? ST_OK : err_prefix(err, status, "own.jsonl, line %u", own->n);
}

static enum status score(const struct own *own, struct engine *engine, const float *block, double *nll, struct err *err)
{
    enum status status = engine_evaluator(engine, ROWS_MAX, err);
    if (status != ST_OK)
        return status;
    evaluator_set_adapter(engine->evaluator, block);
    return evaluator_score(engine->evaluator, own->samples, own->n, nll, own->targets, err);
}

enum status own_read(const char *dir, struct engine *engine, struct own *out, struct err *err)
{
    struct own own = {0};
    struct buf file = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/own.jsonl", dir);
    enum status status = file_read(path, FILE_MAX, &file, err);
    if (status != ST_OK)
        return status;
    uint32_t lines = 0, *ends;
    hash_blake2b(file.data, file.len, &own.digest);
    for (size_t i = 0; i < file.len; i++)
        lines += file.data[i] == '\n';
    ends = xcalloc((size_t)lines + 1, sizeof *ends);
    if (lines == 0)
        status = err_set(err, ST_BAD_DATA, "%s: no text in it", path);
    for (size_t at = 0; status == ST_OK && own.n < lines;) {
        const uint8_t *end = memchr(file.data + at, '\n', file.len - at);
        status = add_line(&own, (const char *)file.data + at, (size_t)(end - file.data) - at, engine, ends, err);
        at = (size_t)(end - file.data) + 1;
    }
    own.samples = xcalloc((size_t)own.n + 1, sizeof *own.samples);
    own.targets = xcalloc((size_t)own.n + 1, sizeof *own.targets);
    own.base = xcalloc((size_t)own.n + 1, sizeof *own.base);
    for (uint32_t i = 0; i < own.n; i++) {
        uint32_t begin = i ? ends[i - 1] : 0;
        own.samples[i] = (struct sample){own.ids.ids + begin, own.mask.data + begin, ends[i] - begin};
    }
    if (status == ST_OK)
        status = score(&own, engine, NULL, own.base, err);
    free(ends);
    buf_release(&file);
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
