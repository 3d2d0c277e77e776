/* The data of `train --objective dpo` and `kl`: pairs of answers, and a teacher's logits. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/local.h"
#include "base/limits.h"

/* ---- pairs ----------------------------------------------------------------------------------------------------------- */

/* Ids and mask of a prompt with one of its answers; the answer alone is a target. */
static enum status render_answer(const struct local *engine, const json_t *prompt, const json_t *answer,
                                 struct token_buf *ids, struct buf *mask, struct err *err)
{
    size_t from = ids->n, begins;
    enum status st;
    if (json_is_string(prompt)) {
        st = tokenizer_encode(engine->tokenizer, json_string_value(prompt), json_string_length(prompt), ids, err);
        begins = ids->n - from;
        if (st == ST_OK)
            st = tokenizer_encode(engine->tokenizer, json_string_value(answer), json_string_length(answer), ids, err);
        memset(buf_extend(mask, ids->n - from), 1, ids->n - from);
    } else {
        struct token_buf asked = {0};
        json_t *chat = json_copy((json_t *)prompt);
        char *question = json_dumps(chat, 0);
        json_array_append_new(chat, json_pack("{s:s,s:O}", "role", "assistant", "content", answer));
        char *whole = json_dumps(chat, 0);
        st = render_chat(engine, question, strlen(question), true, &asked, NULL, err);
        begins = asked.n;
        if (st == ST_OK)
            st = render_chat(engine, whole, strlen(whole), false, ids, mask, err);
        token_buf_release(&asked);
        json_decref(chat);
        free(question);
        free(whole);
    }
    if (st != ST_OK)
        return st;
    if (begins < 1 || begins >= ids->n - from)
        return err_set(err, ST_BAD_DATA, "prompt and answer must not be empty");
    memset(mask->data + from, 0, begins);
    return ST_OK;
}

static enum status check_pair(const json_t *line, struct err *err)
{
    const json_t *prompt = json_object_get(line, "prompt");
    const json_t *chosen = json_object_get(line, "chosen_logprob"),
                 *rejected = json_object_get(line, "rejected_logprob");
    if (!json_is_string(prompt) && !json_is_array(prompt))
        return err_set(err, ST_BAD_DATA, "\"prompt\" must be a string or a list of messages");
    if (!json_is_string(json_object_get(line, "chosen")) || !json_is_string(json_object_get(line, "rejected")))
        return err_set(err, ST_BAD_DATA, "\"chosen\" and \"rejected\" must be strings");
    if ((chosen || rejected) && !(json_is_number(chosen) && json_is_number(rejected) &&
                                  json_number_value(chosen) <= 0 && json_number_value(rejected) <= 0))
        return err_set(err, ST_BAD_DATA,
                       "\"chosen_logprob\" and \"rejected_logprob\" come together and are numbers of at most 0");
    return ST_OK;
}

static enum status add_pair(struct corpus *corpus, const struct local *engine, const char *text, size_t len,
                            uint32_t index, uint32_t seq, struct err *err)
{
    static const char *const names[] = {"chosen", "rejected"}, *const given[] = {"chosen_logprob", "rejected_logprob"};
    size_t from[3] = {corpus->tokens.n};
    json_error_t error;
    json_t *line = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    enum status st = line ? check_pair(line, err) : err_set(err, ST_BAD_DATA, "not JSON: %s", error.text);
    for (int i = 0; i < 2 && st == ST_OK; i++) {
        st = render_answer(engine, json_object_get(line, "prompt"), json_object_get(line, names[i]), &corpus->tokens,
                           &corpus->mask, err);
        from[i + 1] = corpus->tokens.n;
        if (st == ST_OK && from[i + 1] - from[i] > (size_t)seq + 1)
            st = err_set(err, ST_BAD_DATA, "the prompt with the %s answer is %zu tokens, at most %u fit", names[i],
                         from[i + 1] - from[i], seq + 1);
    }
    for (int i = 0; i < 2 && st == ST_OK; i++) {
        struct window *w = corpus_window(corpus, from[i], from[i + 1] - from[i], index);
        const json_t *logprob = json_object_get(line, given[i]);
        if (logprob)
            w->reference = json_number_value(logprob);
    }
    if (st != ST_OK)
        corpus->tokens.n = corpus->mask.len = from[0];
    json_decref(line);
    return st;
}

enum status corpus_add_pairs(struct corpus *corpus, const struct local *engine, const char *path, uint32_t index,
                             uint32_t seq, struct err *err)
{
    struct buf text = {0};
    enum status st = file_read(path, (size_t)1 << 30, &text, err);
    if (st != ST_OK)
        return st;
    size_t number = 0;
    for (size_t at = 0, end; at < text.len; at = end + 1) {
        const char *newline = memchr(text.data + at, '\n', text.len - at);
        end = newline ? (size_t)(newline - (const char *)text.data) : text.len;
        char where[4400];
        struct err why;
        snprintf(where, sizeof where, "%s:%zu", path, ++number);
        if (end == at)
            continue;
        corpus->bytes += end - at;
        if (end - at > 4 * (size_t)LIMIT_RECORD_BYTES)
            corpus_refuse(corpus, where, "the line is too long");
        else if (add_pair(corpus, engine, (const char *)text.data + at, end - at, index, seq, &why) == ST_OK)
            corpus->records++;
        else
            corpus_refuse(corpus, where, why.text);
    }
    buf_release(&text);
    return ST_OK;
}

/* ---- a teacher's logits ---------------------------------------------------------------------------------------------- */

static enum status add_taught(struct corpus *corpus, const struct safetensors *file, const struct safetensors_tensor *t,
                              uint32_t vocab_size, uint32_t index, uint32_t seq, struct err *err)
{
    char name[256];
    bool wide = !strcmp(t->dtype, "I64");
    uint64_t n = t->shape[0];
    snprintf(name, sizeof name, "logits.%s", t->name + strlen("ids."));
    const struct safetensors_tensor *logits = safetensors_find(file, name);
    if ((!wide && strcmp(t->dtype, "I32")) || t->rank != 1 || n < 2 || n > (uint64_t)seq + 1)
        return err_set(err, ST_BAD_DATA, "%s: 2 to %u ids in I32 or I64 are wanted", t->name, seq + 1);
    if (!logits || strcmp(logits->dtype, "F32") || logits->rank != 2 || logits->shape[1] != vocab_size ||
        (logits->shape[0] != n && logits->shape[0] != n - 1) || (uintptr_t)logits->data % sizeof(float))
        return err_set(err, ST_BAD_DATA, "%s: an F32 tensor of %llu rows and %u columns is wanted beside %s", name,
                       (unsigned long long)n, vocab_size, t->name);
    size_t from = corpus->tokens.n;
    for (uint64_t i = 0; i < n; i++) {
        int64_t id;
        int32_t narrow;
        memcpy(wide ? (void *)&id : (void *)&narrow, t->data + i * (wide ? sizeof id : sizeof narrow),
               wide ? sizeof id : sizeof narrow);
        id = wide ? id : narrow;
        if (id < 0 || id >= vocab_size) {
            corpus->tokens.n = from;
            return err_set(err, ST_BAD_DATA, "%s: id %lld is outside the vocabulary of %u", t->name, (long long)id,
                           vocab_size);
        }
        token_buf_put(&corpus->tokens, (uint32_t)id);
    }
    memset(buf_extend(&corpus->mask, n), 1, n);
    corpus_window(corpus, from, n, index)->teacher = (const float *)(const void *)logits->data;
    corpus->records++;
    corpus->bytes += logits->bytes;
    return ST_OK;
}

enum status corpus_add_teacher(struct corpus *corpus, const char *path, uint32_t vocab_size, uint32_t index,
                               uint32_t seq, struct err *err)
{
    struct safetensors *file;
    enum status st = safetensors_open(path, SAFETENSORS_BASE, &file, err);
    if (st != ST_OK)
        return st;
    corpus->teachers = xrealloc_array(corpus->teachers, corpus->n_teachers + 1, sizeof(struct safetensors *));
    corpus->teachers[corpus->n_teachers++] = file; /* windows point into it: closed with the corpus */
    for (size_t i = 0; i < safetensors_n(file) && st == ST_OK; i++)
        if (!strncmp(safetensors_at(file, i)->name, "ids.", 4))
            st = add_taught(corpus, file, safetensors_at(file, i), vocab_size, index, seq, err);
    return st == ST_OK ? ST_OK : err_prefix(err, st, "%s", path);
}
