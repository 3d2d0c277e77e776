/* From GGUF metadata (tokenizer.ggml.*) or a tokenizer.json to a tokenizer_spec. What would change the ids and is not done
 * here is refused by name. Left alone on purpose: the post-processor and add_bos/add_eos (plain text gets neither), the
 * decoder's options, padding and truncation of batches. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_spec.h"

#define LLAMA3_HEAD "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define LLAMA3_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const char llama3_regex[] = LLAMA3_HEAD "\\p{N}{1,3}" LLAMA3_TAIL;
static const char qwen2_regex[] = LLAMA3_HEAD "\\p{N}" LLAMA3_TAIL;

void tokenizer_spec_release(struct tokenizer_spec *spec)
{
    free(spec->tokens);
    free(spec->merges);
    *spec = (struct tokenizer_spec){0};
}

/* "left right" with exactly one space, as the alphabet of bytes has none. */
static bool split_merge(struct bytes text, struct merge_spec *out)
{
    const uint8_t *space = text.len ? memchr(text.data, ' ', text.len) : NULL;
    if (!space)
        return false;
    size_t left = (size_t)(space - text.data);
    *out = (struct merge_spec){{text.data, left}, {space + 1, text.len - left - 1}};
    return memchr(out->right.data, ' ', out->right.len) == NULL;
}

/* ---- GGUF ---- */

static bool bytes_are(struct bytes b, const char *s)
{
    return b.len == strlen(s) && !memcmp(b.data, s, b.len);
}

static enum status gguf_pretoken(const struct gguf *g, struct tokenizer_spec *spec, struct err *err)
{
    struct bytes model, pre;
    enum status st = gguf_get_string(g, "tokenizer.ggml.model", &model, err);
    if (st)
        return st;
    if (!bytes_are(model, "gpt2"))
        return err_set(err, ST_UNSUPPORTED, "tokenizer.ggml.model \"%.*s\"; only gpt2 (byte-level BPE) is known",
                       (int)(model.len < 64 ? model.len : 64), (const char *)model.data);
    if ((st = gguf_get_string(g, "tokenizer.ggml.pre", &pre, err)))
        return st;
    if (bytes_are(pre, "smollm"))
        spec->pretoken = PRETOKEN_SMOLLM;
    else if (bytes_are(pre, "gpt-2"))
        spec->pretoken = PRETOKEN_GPT2;
    else if (bytes_are(pre, "llama-bpe"))
        spec->pretoken = PRETOKEN_LLAMA3;
    else if (bytes_are(pre, "qwen2"))
        spec->pretoken = PRETOKEN_QWEN2;
    else
        return err_set(err, ST_UNSUPPORTED, "tokenizer.ggml.pre \"%.*s\"; known are smollm, gpt-2, llama-bpe and qwen2",
                       (int)(pre.len < 64 ? pre.len : 64), (const char *)pre.data);
    spec->ignore_merges = spec->pretoken == PRETOKEN_LLAMA3;
    spec->nfc = spec->pretoken == PRETOKEN_QWEN2;
    bool prefix = false;
    st = gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &prefix, err);
    if (st != ST_OK && st != ST_NOT_FOUND)
        return st;
    if (prefix)
        return err_set(err, ST_UNSUPPORTED, "tokenizer.ggml.add_space_prefix is true");
    return ST_OK;
}

static enum status gguf_tokens(const struct gguf *g, struct tokenizer_spec *spec, struct err *err)
{
    static const enum token_kind kinds[] = {TOKEN_UNUSED, TOKEN_NORMAL, TOKEN_ADDED,
                                            TOKEN_ADDED,  TOKEN_ADDED,  TOKEN_UNUSED}; /* by GGUF's token type */
    struct bytes *texts = NULL;
    enum status st = gguf_get_strings(g, "tokenizer.ggml.tokens", &texts, &spec->n_tokens, err);
    if (st)
        return st;
    const struct gguf_kv *types = gguf_kv(g, "tokenizer.ggml.token_type");
    if (!types || types->kind != GGUF_ARRAY || types->element != GGUF_I32 || types->count != spec->n_tokens) {
        st = err_set(err, ST_BAD_DATA, "tokenizer.ggml.token_type is not an i32 for each of the %zu tokens",
                     spec->n_tokens);
        goto done;
    }
    struct reader r = reader_of(types->raw.data, types->raw.len);
    spec->tokens = xcalloc(spec->n_tokens, sizeof *spec->tokens);
    for (size_t i = 0; i < spec->n_tokens; i++) {
        uint32_t type = read_u32(&r);
        if (type < 1 || type >= sizeof kinds / sizeof kinds[0]) {
            st = err_set(err, ST_UNSUPPORTED, "token %zu has the type %u", i, type);
            goto done;
        }
        spec->tokens[i] = (struct token_spec){texts[i], kinds[type]};
    }
done:
    free(texts);
    return st;
}

static enum status gguf_merges(const struct gguf *g, struct tokenizer_spec *spec, struct err *err)
{
    struct bytes *lines = NULL;
    enum status st = gguf_get_strings(g, "tokenizer.ggml.merges", &lines, &spec->n_merges, err);
    if (st)
        return st;
    spec->merges = xcalloc(spec->n_merges, sizeof *spec->merges);
    for (size_t i = 0; i < spec->n_merges && st == ST_OK; i++)
        if (!split_merge(lines[i], &spec->merges[i]))
            st = err_set(err, ST_BAD_DATA, "tokenizer.ggml.merges: entry %zu is not two tokens and a space", i);
    free(lines);
    return st;
}

static enum status gguf_id(const struct gguf *g, const char *key, uint32_t *out, struct err *err)
{
    *out = TOKEN_NONE;
    enum status st = gguf_get_u32(g, key, out, err);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

enum status tokenizer_from_gguf(const struct gguf *g, struct tokenizer **out, struct err *err)
{
    struct tokenizer_spec spec = {0};
    enum status st = gguf_pretoken(g, &spec, err);
    if (st == ST_OK)
        st = gguf_tokens(g, &spec, err);
    if (st == ST_OK)
        st = gguf_merges(g, &spec, err);
    if (st == ST_OK)
        st = gguf_id(g, "tokenizer.ggml.bos_token_id", &spec.bos, err);
    if (st == ST_OK)
        st = gguf_id(g, "tokenizer.ggml.eos_token_id", &spec.eos, err);
    if (st == ST_OK)
        st = tokenizer_build(&spec, "tokenizer", out, err);
    tokenizer_spec_release(&spec);
    return st;
}

/* ---- tokenizer.json ---- */

static bool is_type(const json_t *v, const char *type)
{
    const char *s = json_string_value(json_object_get(v, "type"));
    return s && !strcmp(s, type);
}

/* A switch that is missing counts as `missing`. */
static bool flag(const json_t *object, const char *key, bool missing)
{
    const json_t *v = json_object_get(object, key);
    return v ? json_is_true(v) : missing;
}

static bool is_byte_level(const json_t *v, bool use_regex)
{
    return is_type(v, "ByteLevel") && !flag(v, "add_prefix_space", true) && flag(v, "use_regex", true) == use_regex;
}

static enum status json_pretoken(const json_t *root, struct tokenizer_spec *spec, struct err *err)
{
    const json_t *pre = json_object_get(root, "pre_tokenizer"), *list = json_object_get(pre, "pretokenizers");
    const json_t *first = json_array_get(list, 0), *second = json_array_get(list, 1);
    bool pair = is_type(pre, "Sequence") && json_array_size(list) == 2;
    const char *regex = json_string_value(json_object_get(json_object_get(first, "pattern"), "Regex"));
    const char *behavior = json_string_value(json_object_get(first, "behavior"));
    bool split = pair && is_type(first, "Split") && regex && behavior && !strcmp(behavior, "Isolated") &&
                 !flag(first, "invert", false) && is_byte_level(second, false);
    if (is_byte_level(pre, true))
        spec->pretoken = PRETOKEN_GPT2;
    else if (pair && is_type(first, "Digits") && flag(first, "individual_digits", false) && is_byte_level(second, true))
        spec->pretoken = PRETOKEN_SMOLLM;
    else if (split && !strcmp(regex, llama3_regex))
        spec->pretoken = PRETOKEN_LLAMA3;
    else if (split && !strcmp(regex, qwen2_regex))
        spec->pretoken = PRETOKEN_QWEN2;
    else {
        char *text = pre ? json_dumps(pre, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
        err_set(err, ST_UNSUPPORTED, "tokenizer.json: pre_tokenizer %.300s is not a known one",
                text ? text : "missing");
        free(text);
        return ST_UNSUPPORTED;
    }
    const json_t *normalizer = json_object_get(root, "normalizer");
    if (normalizer && !json_is_null(normalizer) && !is_type(normalizer, "NFC")) {
        const char *name = json_string_value(json_object_get(normalizer, "type"));
        return err_set(err, ST_UNSUPPORTED, "tokenizer.json: normalizer %.64s; only none and NFC are known",
                       name ? name : "?");
    }
    spec->nfc = is_type(normalizer, "NFC");
    return ST_OK;
}

static bool unset(const json_t *v) /* missing, null, false or "" */
{
    const char *s = json_string_value(v);
    return !v || json_is_null(v) || json_is_false(v) || (s && !*s);
}

static enum status json_model(const json_t *model, struct tokenizer_spec *spec, struct err *err)
{
    static const char *const refused[] = {"dropout", "continuing_subword_prefix", "end_of_word_suffix",
                                          "byte_fallback"};
    if (!is_type(model, "BPE"))
        return err_set(err, ST_UNSUPPORTED, "tokenizer.json: the model is not BPE");
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (!unset(json_object_get(model, refused[i])))
            return err_set(err, ST_UNSUPPORTED, "tokenizer.json: model.%s is set", refused[i]);
    spec->ignore_merges = flag(model, "ignore_merges", false);
    spec->unknown_token = !unset(json_object_get(model, "unk_token"));
    return ST_OK;
}

/* An id inside the limit; raises n_tokens to hold it. */
static enum status json_id(const json_t *v, const char *what, struct tokenizer_spec *spec, size_t *id, struct err *err)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= TOKENIZER_VOCAB_MAX)
        return err_set(err, ST_BAD_DATA, "tokenizer.json: %s: an id is not between 0 and %d", what,
                       TOKENIZER_VOCAB_MAX - 1);
    *id = (size_t)json_integer_value(v);
    if (*id >= spec->n_tokens)
        spec->n_tokens = *id + 1;
    return ST_OK;
}

static struct bytes bytes_of(const json_t *string)
{
    return (struct bytes){(const uint8_t *)json_string_value(string), json_string_length(string)};
}

static enum status json_tokens(json_t *root, json_t *vocab, struct tokenizer_spec *spec, struct err *err)
{
    static const char *const refused[] = {"lstrip", "rstrip", "single_word"};
    const char *text;
    json_t *value;
    size_t i, id = 0;
    enum status st;
    json_t *added = json_object_get(root, "added_tokens");
    spec->tokens = xcalloc(TOKENIZER_VOCAB_MAX, sizeof *spec->tokens);
    if (!json_is_object(vocab))
        return err_set(err, ST_BAD_DATA, "tokenizer.json: model.vocab is not an object");
    json_object_foreach(vocab, text, value)
    {
        if ((st = json_id(value, "model.vocab", spec, &id, err)))
            return st;
        if (spec->tokens[id].kind != TOKEN_UNUSED)
            return err_set(err, ST_BAD_DATA, "tokenizer.json: model.vocab: id %zu twice", id);
        spec->tokens[id] = (struct token_spec){{(const uint8_t *)text, strlen(text)}, TOKEN_NORMAL};
    }
    json_array_foreach(added, i, value)
    {
        struct bytes content = bytes_of(json_object_get(value, "content"));
        if ((st = json_id(json_object_get(value, "id"), "added_tokens", spec, &id, err)))
            return st;
        struct token_spec *t = &spec->tokens[id];
        bool same = content.len == t->text.len && content.data && !memcmp(content.data, t->text.data, content.len);
        if (!content.len || (t->kind != TOKEN_UNUSED && !same))
            return err_set(err, ST_BAD_DATA, "tokenizer.json: added token %zu is empty or another in model.vocab", id);
        for (size_t k = 0; k < sizeof refused / sizeof refused[0]; k++)
            if (flag(value, refused[k], false))
                return err_set(err, ST_UNSUPPORTED, "tokenizer.json: added token %zu has %s", id, refused[k]);
        *t = (struct token_spec){content, TOKEN_ADDED};
    }
    return ST_OK;
}

static enum status json_merges(const json_t *merges, struct tokenizer_spec *spec, struct err *err)
{
    spec->n_merges = json_array_size(merges);
    spec->merges = xcalloc(spec->n_merges, sizeof *spec->merges);
    for (size_t i = 0; i < spec->n_merges; i++) {
        const json_t *m = json_array_get(merges, i);
        const json_t *left = json_array_get(m, 0), *right = json_array_get(m, 1);
        if (json_array_size(m) == 2 && json_is_string(left) && json_is_string(right))
            spec->merges[i] = (struct merge_spec){bytes_of(left), bytes_of(right)};
        else if (!json_is_string(m) || !split_merge(bytes_of(m), &spec->merges[i]))
            return err_set(err, ST_BAD_DATA, "tokenizer.json: merge %zu is not a pair of tokens", i);
    }
    return ST_OK;
}

enum status tokenizer_from_json(const void *json, size_t len, uint32_t bos, uint32_t eos, struct tokenizer **out,
                                struct err *err)
{
    struct tokenizer_spec spec = {.bos = bos, .eos = eos};
    json_error_t e;
    enum status st = ST_OK;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &e);
    if (!root)
        return err_set(err, ST_BAD_DATA, "tokenizer.json: line %d: %s", e.line, e.text);
    json_t *model = json_object_get(root, "model");
    st = json_pretoken(root, &spec, err);
    if (st == ST_OK)
        st = json_model(model, &spec, err);
    if (st == ST_OK)
        st = json_tokens(root, json_object_get(model, "vocab"), &spec, err);
    if (st == ST_OK)
        st = json_merges(json_object_get(model, "merges"), &spec, err);
    if (st == ST_OK)
        st = tokenizer_build(&spec, "tokenizer.json", out, err);
    tokenizer_spec_release(&spec);
    json_decref(root);
    return st;
}
