#include "corpus.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "coordinator/core/text.h"

enum { FILE_MAX = 64 << 20 };
static const struct sip_key heldout_key = {"alluvium heldout"};
const char *const corpus_part_names[CORPUS_PARTS] = {"audit", "gate", "tuning"};

/* ---- documents */

static bool held_out(const struct corpus_options *options, uint64_t group)
{
    return hash_sip(&heldout_key, &group, sizeof group) % 1000 < options->heldout_permille;
}

/* The texts are appended to one buffer, which moves while it grows: lengths first, places at the end. */
static enum status read_documents(struct corpus *c, const struct buf *file, struct err *err)
{
    uint32_t line = 0, cap = 0;
    for (size_t at = 0, end; at < file->len; at = end + 1) {
        const uint8_t *newline = memchr(file->data + at, '\n', file->len - at);
        end = newline ? (size_t)(newline - file->data) : file->len;
        line++;
        json_error_t why;
        json_t *root = json_loadb((const char *)file->data + at, end - at, 0, &why);
        const char *id = json_string_value(json_object_get(root, "id"));
        const json_t *text = json_object_get(root, "text"), *messages = json_object_get(root, "messages");
        char *chat = messages ? json_dumps(messages, JSON_COMPACT) : NULL;
        struct bytes body = {(const uint8_t *)chat, chat ? strlen(chat) : 0};
        if (!chat && json_is_string(text))
            body = (struct bytes){(const uint8_t *)json_string_value(text), json_string_length(text)};
        if (!id || body.len == 0) {
            free(chat);
            json_decref(root);
            return err_set(err, ST_BAD_DATA,
                           "%s.jsonl, line %u: not an object with \"id\" and \"text\" or \"messages\"", c->name, line);
        }
        if (c->n_documents == cap) {
            cap = cap ? 2 * cap : 256;
            c->documents = xrealloc_array(c->documents, cap, sizeof *c->documents);
        }
        c->documents[c->n_documents++] =
            (struct corpus_document){.text = {NULL, body.len},
                                     .group = hash_sip(&heldout_key, id, strlen(id)),
                                     .kind = chat ? ALV__RECORD_KIND__RECORD_CHAT : ALV__RECORD_KIND__RECORD_TEXT};
        buf_put(&c->text, body.data, body.len);
        free(chat);
        json_decref(root);
    }
    size_t at = 0;
    for (uint32_t d = 0; d < c->n_documents; d++) {
        c->documents[d].text.data = c->text.data + at;
        at += c->documents[d].text.len;
    }
    return ST_OK;
}

/* ---- windows */

struct cursor { /* a document whose windows are being taken */
    struct bytes left;
    uint32_t index;
};

/* Appends the next window of the document, if there is one of full length. */
static enum status take_window(struct corpus *c, const struct corpus_options *options, const struct engine *engine,
                               struct cursor *at, enum corpus_part part, bool *taken, struct err *err)
{
    struct token_buf *ids = &c->windows[part];
    struct buf mask = {0};
    enum status status = ST_OK;
    *taken = false;
    while (!*taken && at->left.len > 0 && status == ST_OK) {
        size_t len = text_cut(at->left, options->segment_bytes), had = ids->n;
        struct bytes text = {at->left.data, len};
        at->left = (struct bytes){at->left.data + len, at->left.len - len};
        status = engine_tokenise(engine, ALV__RECORD_KIND__RECORD_TEXT, text, ids, &mask, err);
        *taken = status == ST_OK && ids->n - had >= options->window_tokens;
        ids->n = *taken ? had + options->window_tokens : had;
    }
    if (*taken)
        c->window_groups[part][c->n_windows[part]++] = at->index;
    buf_release(&mask);
    return status;
}

static enum status fill_part(struct corpus *c, const struct corpus_options *options, const struct engine *engine,
                             struct cursor *cursors, uint32_t n, enum corpus_part part, struct err *err)
{
    enum status status = ST_OK;
    bool any = true;
    c->window_groups[part] = xcalloc(options->windows[part] + 1, sizeof *c->window_groups[part]);
    while (any && status == ST_OK && c->n_windows[part] < options->windows[part]) {
        any = false;
        for (uint32_t i = 0; i < n && status == ST_OK && c->n_windows[part] < options->windows[part]; i++) {
            bool taken;
            status = take_window(c, options, engine, &cursors[i], part, &taken, err);
            any |= taken;
        }
    }
    if (status == ST_OK && c->n_windows[part] < options->windows[part])
        status = err_set(err, ST_LIMIT, "%s: held-out text for %u windows of the %s part, %u are wanted", c->name,
                         c->n_windows[part], corpus_part_names[part], options->windows[part]);
    return status;
}

static enum status make_windows(struct corpus *c, const struct corpus_options *options, unsigned parts,
                                const struct engine *engine, struct err *err)
{
    static const enum corpus_part deal[] = {PART_AUDIT, PART_GATE, PART_AUDIT, PART_GATE, PART_TUNING};
    struct cursor *cursors = xcalloc((size_t)c->n_documents + 1, sizeof *cursors);
    enum status status = ST_OK;
    for (enum corpus_part part = 0; part < CORPUS_PARTS && status == ST_OK; part++) {
        uint32_t n = 0, dealt = 0;
        for (uint32_t d = 0; d < c->n_documents; d++)
            if (held_out(options, c->documents[d].group) && deal[dealt++ % 5] == part)
                cursors[n++] = (struct cursor){c->documents[d].text, d};
        if (parts & 1u << part)
            status = fill_part(c, options, engine, cursors, n, part, err);
    }
    free(cursors);
    return status;
}

/* ---- */

enum status corpus_read(const char *dir, const char *name, const struct corpus_options *options, unsigned parts,
                        const struct engine *engine, struct corpus *out, struct err *err)
{
    struct corpus c = {.name = name};
    struct buf file = {0};
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.jsonl", dir, name);
    enum status status = file_read(path, FILE_MAX, &file, err);
    if (status == ST_OK) {
        hash_blake2b(file.data, file.len, &c.digest);
        status = read_documents(&c, &file, err);
    }
    if (status == ST_OK)
        status = make_windows(&c, options, parts, engine, err);
    buf_release(&file);
    if (status == ST_OK)
        *out = c;
    else
        corpus_release(&c);
    return status;
}

void corpus_order(struct corpus *c, const struct corpus_options *options, uint64_t seed)
{
    uint32_t *order = xcalloc((size_t)c->n_documents + 1, sizeof *order), cap = 0;
    mix_shuffle(seed, c->n_documents, order);
    free(c->train);
    c->train = NULL;
    c->n_train = 0;
    for (uint32_t d = 0; d < c->n_documents; d++) {
        const struct corpus_document *document = &c->documents[order[d]];
        if (held_out(options, document->group))
            continue;
        struct bytes left = document->text;
        for (uint32_t piece = 0; left.len > 0; piece++) {
            size_t len =
                document->kind == ALV__RECORD_KIND__RECORD_CHAT ? left.len : text_cut(left, options->segment_bytes);
            if (c->n_train == cap) {
                cap = cap ? 2 * cap : 1024;
                c->train = xrealloc_array(c->train, cap, sizeof *c->train);
            }
            c->train[c->n_train++] = (struct corpus_segment){{left.data, len}, document->group, piece, document->kind};
            left = (struct bytes){left.data + len, left.len - len};
        }
    }
    free(order);
}

void corpus_release(struct corpus *c)
{
    for (int part = 0; part < CORPUS_PARTS; part++) {
        token_buf_release(&c->windows[part]);
        free(c->window_groups[part]);
    }
    free(c->train);
    free(c->documents);
    buf_release(&c->text);
    *c = (struct corpus){0};
}

static int by_place(const void *a, const void *b)
{
    const struct mix_segment x = ((const struct placed_segment *)a)->at, y = ((const struct placed_segment *)b)->at;
    return x.domain.v != y.domain.v ? x.domain.v - y.domain.v : (x.offset > y.offset) - (x.offset < y.offset);
}

static Alv__Segment *segment_of(const struct corpus_segment *from, uint64_t offset)
{
    Alv__Segment s = ALV__SEGMENT__INIT;
    uint8_t group[8];
    for (int i = 0; i < 8; i++)
        group[i] = (uint8_t)(from->group >> (8 * i));
    s.offset = offset;
    s.kind = from->kind;
    s.piece = from->piece;
    s.group = (ProtobufCBinaryData){sizeof group, group};
    s.text = (ProtobufCBinaryData){from->text.len, (uint8_t *)from->text.data};
    size_t len = alv__segment__get_packed_size(&s);
    uint8_t *packed = xmalloc(len);
    alv__segment__pack(&s, packed);
    Alv__Segment *out = alv__segment__unpack(NULL, len, packed);
    free(packed);
    CHECK(out != NULL);
    return out;
}

enum status corpus_segments(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                            struct err *err)
{
    const struct corpus *corpora = user;
    (void)err;
    for (uint32_t i = 0; i < n; i++) {
        const struct corpus *c = &corpora[wanted[i].domain.v];
        if (segment_set_find(set, wanted[i]))
            continue;
        CHECK(wanted[i].offset < c->n_train);
        set->items = xrealloc_array(set->items, set->n + 1, sizeof *set->items);
        set->items[set->n++] =
            (struct placed_segment){wanted[i], segment_of(&c->train[wanted[i].offset], wanted[i].offset)};
        qsort(set->items, set->n, sizeof *set->items, by_place);
    }
    return ST_OK;
}
