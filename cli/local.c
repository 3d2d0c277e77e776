#include "cli/local.h"

#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "adapter/mapping.h"
#include "cli/print.h"
#include "client/source.h"

enum { CONFIG_BYTES_MAX = 1 << 20, MESSAGES_MAX = 4096 };

enum status local_open(const char *path, struct local *out, struct err *err)
{
    struct local e = {0};
    enum status st = base_open(path, &e.base, err);
    if (st == ST_OK)
        st = base_tokenizer(e.base, &e.tokenizer, err);
    if (st == ST_OK)
        *out = e;
    else
        local_release(&e);
    return st;
}

enum status local_load(struct local *engine, enum ops_kind ops, struct err *err)
{
    enum status st = ops_check(ops, err);
    return st == ST_OK ? weights_load(engine->base, ops_of(ops), &engine->weights, err) : st;
}

void local_release(struct local *engine)
{
    weights_free(engine->weights);
    base_close(engine->base);
    *engine = (struct local){0};
}

uint32_t local_threads(uint32_t wanted)
{
    cpu_set_t set;
    if (wanted)
        return wanted;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > OPS_THREADS_MAX ? OPS_THREADS_MAX : (uint32_t)n;
}

enum ops_kind local_ops(unsigned choice)
{
    static const enum ops_kind kinds[] = {OPS_BLAS, OPS_BLAS, OPS_BF16, OPS_DNNL, OPS_REF};
    return choice ? kinds[choice] : ops_best();
}

/* ---- adapters -------------------------------------------------------------------------------------------------------- */

static bool config_targets(const json_t *list, uint32_t *out)
{
    size_t i;
    json_t *item;
    *out = 0;
    json_array_foreach(list, i, item)
    {
        enum lora_module m =
            json_is_string(item) ? lora_module_of(json_string_value(item), json_string_length(item)) : LORA_MODULES;
        if (m == LORA_MODULES)
            return false;
        *out |= 1u << m;
    }
    return *out != 0;
}

/* layers_to_transform: all layers from one on, in rising order. */
static bool config_first_layer(const json_t *list, uint32_t n_layers, uint32_t *out)
{
    size_t n = json_array_size(list);
    *out = n_layers - (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        const json_t *layer = json_array_get(list, i);
        if (n > n_layers || !json_is_integer(layer) || json_integer_value(layer) != (json_int_t)(*out + i))
            return false;
    }
    return n > 0;
}

/* A field by which PEFT would compute something else from the same tensors; NULL: none. */
static const char *foreign_field(const json_t *config)
{
    static const char *const flags[] = {"use_rslora", "use_dora", "fan_in_fan_out"}, *const sets[] = {
                                                                                         "rank_pattern",
                                                                                         "alpha_pattern",
                                                                                         "modules_to_save"};
    const json_t *type = json_object_get(config, "peft_type"), *bias = json_object_get(config, "bias");
    if (type && (!json_is_string(type) || strcmp(json_string_value(type), "LORA")))
        return "peft_type";
    if (bias && (!json_is_string(bias) || strcmp(json_string_value(bias), "none")))
        return "bias";
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++)
        if (json_is_true(json_object_get(config, flags[i])))
            return flags[i];
    for (size_t i = 0; i < sizeof sets / sizeof sets[0]; i++) {
        const json_t *set = json_object_get(config, sets[i]);
        if (json_object_size(set) || json_array_size(set))
            return sets[i];
    }
    return NULL;
}

/* `counted`: the config does not say which layers. */
static enum status read_shape(const char *path, const struct arch *arch, struct adapter_shape *out, bool *counted,
                              struct err *err)
{
    struct buf text = {0};
    json_error_t error;
    uint32_t targets, first = 0;
    enum status st = file_read(path, CONFIG_BYTES_MAX, &text, err);
    if (st != ST_OK)
        return st;
    json_t *root = json_loadb((const char *)text.data, text.len, 0, &error);
    json_int_t r = json_integer_value(json_object_get(root, "r"));
    json_int_t alpha = json_integer_value(json_object_get(root, "lora_alpha"));
    const json_t *layers = json_object_get(root, "layers_to_transform");
    const char *foreign = foreign_field(root);
    *counted = !layers || json_is_null(layers);
    if (!root)
        st = err_set(err, ST_BAD_DATA, "%s:%d: %s", path, error.line, error.text);
    else if (foreign)
        st = err_set(err, ST_UNSUPPORTED, "%s: %s asks for what is no plain LoRA", path, foreign);
    else if (r < 1 || r > LORA_RANK_MAX || alpha < 1 || alpha > 65536)
        st = err_set(err, ST_BAD_DATA, "%s: r must be 1 to %d and lora_alpha a whole number", path, LORA_RANK_MAX);
    else if (!config_targets(json_object_get(root, "target_modules"), &targets))
        st = err_set(err, ST_UNSUPPORTED, "%s: target_modules must name some of the seven linears of a layer", path);
    else if (!*counted && !config_first_layer(layers, arch->n_layers, &first))
        st = err_set(err, ST_UNSUPPORTED,
                     "%s: layers_to_transform must be a list of all layers from one to %u, in rising order", path,
                     arch->n_layers - 1);
    else
        st = adapter_shape_of(arch, (uint32_t)r, (uint32_t)alpha, targets | first << LORA_FIRST_LAYER, out, err);
    json_decref(root);
    buf_release(&text);
    return st;
}

/* A subscribed version's config does not say which layers: the number of tensors does. */
static enum status count_layers(const struct mapping *map, const char *path, struct adapter_shape *shape,
                                struct err *err)
{
    struct safetensors *file;
    const uint32_t each = 2 * (uint32_t)__builtin_popcount(shape->targets & LORA_ALL);
    enum status st = safetensors_parse(map->data, map->len, path, SAFETENSORS_ADAPTER, &file, err);
    if (st != ST_OK)
        return st;
    size_t n = safetensors_n(file);
    if (n > 0 && n % each == 0 && n / each < shape->n_layers)
        shape->targets |= (shape->n_layers - (uint32_t)(n / each)) << LORA_FIRST_LAYER;
    safetensors_close(file);
    return ST_OK;
}

enum status lora_read(const char *path, const struct arch *arch, struct lora *out, struct err *err)
{
    char config[4200], tensors[4200];
    struct stat st;
    bool directory = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    const char *slash = strrchr(path, '/');
    int dir_len = directory ? (int)strlen(path) : slash ? (int)(slash - path) : 1;
    snprintf(config, sizeof config, "%.*s/adapter_config.json", dir_len, directory || slash ? path : ".");
    snprintf(tensors, sizeof tensors, directory ? "%s/adapter_model.safetensors" : "%s", path);
    struct lora lora = {0};
    struct mapping map = {0};
    bool counted;
    enum status status = read_shape(config, arch, &lora.shape, &counted, err);
    if (status == ST_OK)
        status = mapping_open(tensors, &map, err);
    if (status == ST_OK && counted)
        status = count_layers(&map, tensors, &lora.shape, err);
    if (status == ST_OK) {
        lora.block = xcalloc(adapter_floats(&lora.shape), sizeof *lora.block);
        status = adapter_read_peft(&lora.shape, map.data, map.len, lora.block, err);
        if (status != ST_OK)
            err_prefix(err, status, "%s", tensors);
    }
    mapping_close(&map);
    if (status == ST_OK)
        *out = lora;
    else
        lora_release(&lora);
    return status;
}

void lora_release(struct lora *lora)
{
    free(lora->block);
    *lora = (struct lora){0};
}

/* ---- text ------------------------------------------------------------------------------------------------------------ */

enum status render_chat(const struct local *engine, const char *json, size_t len, bool ask, struct token_buf *ids,
                        struct buf *mask, struct err *err)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    struct chat_message messages[MESSAGES_MAX];
    enum chat_template kind;
    size_t source_len, i;
    json_t *message;
    const char *source = base_chat_template(engine->base, &source_len);
    enum status st = chat_template_find(source, source_len, &kind, err);
    if (st != ST_OK)
        return st;
    json_t *root = json_loadb(json, len, JSON_ALLOW_NUL, NULL);
    if (!json_is_array(root) || json_array_size(root) > MESSAGES_MAX)
        st = err_set(err, ST_BAD_DATA, "not a list of at most %d messages", MESSAGES_MAX);
    for (i = 0; st == ST_OK && i < json_array_size(root); i++) {
        message = json_array_get(root, i);
        const char *role = json_string_value(json_object_get(message, "role"));
        const json_t *content = json_object_get(message, "content");
        unsigned r = 0;
        while (r < 3 && (!role || strcmp(role, roles[r])))
            r++;
        if (r == 3 || !json_is_string(content))
            st = err_set(err, ST_BAD_DATA, "message %zu: the role is system, user or assistant, the content a string",
                         i + 1);
        else
            messages[i] =
                (struct chat_message){(enum chat_role)r, json_string_value(content), json_string_length(content)};
    }
    if (st == ST_OK)
        st = chat_render(kind, engine->tokenizer, messages, json_array_size(root), ask, ids, mask, err);
    json_decref(root);
    return st;
}

static void on_refused(void *user, const char *where, const char *why)
{
    (void)user;
    fprintf(stderr, "%s: refused: %s\n", where, why);
}

void corpus_refuse(struct corpus *corpus, const char *where, const char *why)
{
    on_refused(NULL, where, why);
    corpus->refused++;
}

struct window *corpus_window(struct corpus *corpus, size_t from, size_t n, uint32_t index)
{
    if (corpus->n == corpus->cap) {
        corpus->cap = corpus->cap ? 2 * corpus->cap : 256;
        corpus->windows = xrealloc_array(corpus->windows, corpus->cap, sizeof *corpus->windows);
    }
    struct window *w = &corpus->windows[corpus->n++];
    *w = (struct window){.at = from, .n = (uint32_t)n, .path = index, .reference = NAN};
    return w;
}

/* Windows of at most seq + 1 tokens; one in which nothing is a target is left out. False: that was all of them. */
static bool cut(struct corpus *corpus, size_t from, uint32_t index, uint32_t seq)
{
    size_t end = corpus->tokens.n, had = corpus->n;
    for (size_t at = from; at + 1 < end; at += seq) {
        size_t n = end - at < (size_t)seq + 1 ? end - at : (size_t)seq + 1;
        if (memchr(corpus->mask.data + at + 1, 1, n - 1))
            corpus_window(corpus, at, n, index);
    }
    return corpus->n > had;
}

static enum status add_record(struct corpus *corpus, const struct local *engine, const Alv__Record *record,
                              uint32_t index, uint32_t seq, const char *where, struct err *err)
{
    size_t from = corpus->tokens.n;
    bool chat = record->kind == ALV__RECORD_KIND__RECORD_CHAT;
    enum status st;
    if (chat) {
        st = render_chat(engine, (const char *)record->text.data, record->text.len, false, &corpus->tokens,
                         &corpus->mask, err);
    } else {
        st = tokenizer_encode(engine->tokenizer, (const char *)record->text.data, record->text.len, &corpus->tokens,
                              err);
        size_t n = corpus->tokens.n - from;
        if (st == ST_OK && n)
            memset(buf_extend(&corpus->mask, n), 1, n);
    }
    if (st != ST_OK)
        return st;
    if (!cut(corpus, from, index, seq) && chat) {
        corpus->tokens.n = corpus->mask.len = from;
        corpus_refuse(corpus, where, "the chat has no words of an assistant, so there is nothing to learn from it");
        return ST_OK;
    }
    corpus->records++;
    corpus->bytes += record->text.len;
    return ST_OK;
}

enum status corpus_add(struct corpus *corpus, const struct local *engine, const char *path, uint32_t index,
                       uint32_t seq, struct err *err)
{
    const struct source_options options = {.refused = on_refused};
    struct source *source;
    bool end = false;
    enum status st = source_open(path, &options, &source, err);
    if (st != ST_OK)
        return st;
    while (st == ST_OK && !end) {
        struct push_records *records = push_records_new();
        st = source_read(source, LIMIT_BATCH_RECORDS, LIMIT_BATCH_BYTES, records, &end, err);
        if (st == ST_EMPTY)
            st = ST_OK; /* a pipe: the next read finds more, or its end */
        for (uint32_t i = 0; i < records->n && st == ST_OK; i++) {
            char where[4400];
            source_where(source, records->places[i], where, sizeof where);
            st = add_record(corpus, engine, records->items[i], index, seq, where, err);
            if (st != ST_OK)
                err_prefix(err, st, "%s", where);
        }
        push_records_free(&records);
    }
    struct source_progress progress;
    source_progress(source, &progress);
    corpus->refused += progress.refused;
    source_close(&source);
    return st;
}

struct sample corpus_sample(const struct corpus *corpus, size_t window)
{
    const struct window *w = &corpus->windows[window];
    return (struct sample){corpus->tokens.ids + w->at, corpus->mask.data + w->at, w->n};
}

void corpus_release(struct corpus *corpus)
{
    token_buf_release(&corpus->tokens);
    buf_release(&corpus->mask);
    free(corpus->windows);
    for (size_t i = 0; i < corpus->n_teachers; i++)
        safetensors_close(corpus->teachers[i]);
    free(corpus->teachers);
    *corpus = (struct corpus){0};
}
