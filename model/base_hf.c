/* A base from a Hugging Face directory: config.json, model.safetensors or model.safetensors.index.json with its shards,
 * and, when there, tokenizer.json, tokenizer_config.json and chat_template.jinja. Of config.json the settings that would
 * change the arithmetic are checked one by one. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/base_impl.h"

enum { CONFIG_MAX = 1 << 20, INDEX_MAX = 64 << 20, TOKENIZER_MAX = 256 << 20, SHARDS_MAX = 1024 };

static char *path_in(const struct base *base, const char *name) /* to be freed */
{
    size_t size = strlen(base->path) + strlen(name) + 2;
    char *path = xmalloc(size);
    snprintf(path, size, "%s/%s", base->path, name);
    return path;
}

static enum status read_json(const struct base *base, const char *name, size_t bytes_max, json_t **out, struct err *err)
{
    struct buf text = {0};
    json_error_t e;
    char *path = path_in(base, name);
    enum status st = file_read(path, bytes_max, &text, err);
    if (st == ST_OK) {
        *out = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, &e);
        if (!json_is_object(*out)) {
            st = err_set(err, ST_BAD_DATA, "%s: line %d: %s", path, *out ? 1 : e.line, *out ? "not an object" : e.text);
            json_decref(*out);
            *out = NULL;
        }
    }
    buf_release(&text);
    free(path);
    return st;
}

static bool absent(const json_t *v)
{
    return !v || json_is_null(v) || json_is_false(v);
}

static bool string_is(const json_t *v, const char *s)
{
    return json_is_string(v) && !strcmp(json_string_value(v), s);
}

static enum status find_kind(struct base *base, const json_t *config, struct err *err)
{
    static const struct {
        const char *name;
        enum arch_kind kind;
    } known[] = {{"LlamaForCausalLM", ARCH_LLAMA}, {"Qwen2ForCausalLM", ARCH_QWEN2}, {"Qwen3ForCausalLM", ARCH_QWEN3}};
    const json_t *list = json_object_get(config, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (name && json_array_size(list) == 1 && !strcmp(name, known[i].name)) {
            base->arch.kind = known[i].kind;
            return ST_OK;
        }
    return err_set(err, ST_UNSUPPORTED,
                   "%s/config.json: architecture %.64s; known are LlamaForCausalLM, Qwen2ForCausalLM and "
                   "Qwen3ForCausalLM",
                   base->path, name ? name : "missing");
}

static enum status refuse(const struct base *base, const char *key, struct err *err)
{
    return err_set(err, ST_UNSUPPORTED, "%s/config.json: this setting of %s is not supported", base->path, key);
}

static enum status refuse_unsupported(const struct base *base, const json_t *config, struct err *err)
{
    static const char *const must_be_absent[] = {"mlp_bias", "use_sliding_window", "quantization_config",
                                                 "rope_interleaved"};
    for (size_t i = 0; i < sizeof must_be_absent / sizeof must_be_absent[0]; i++)
        if (!absent(json_object_get(config, must_be_absent[i])))
            return refuse(base, must_be_absent[i], err);
    const json_t *bias = json_object_get(config, "attention_bias");
    const json_t *act = json_object_get(config, "hidden_act"), *types = json_object_get(config, "layer_types");
    const json_t *partial = json_object_get(config, "partial_rotary_factor");
    if (base->arch.kind != ARCH_QWEN2 && !absent(bias))
        return refuse(base, "attention_bias", err);
    if (!absent(partial) && json_number_value(partial) != 1.0)
        return refuse(base, "partial_rotary_factor", err);
    if (act && !string_is(act, "silu"))
        return refuse(base, "hidden_act", err);
    for (size_t i = 0; i < json_array_size(types); i++)
        if (!string_is(json_array_get(types, i), "full_attention"))
            return refuse(base, "layer_types", err);
    return ST_OK;
}

static enum status get_u32(const struct base *base, const json_t *config, const char *key, uint32_t *out,
                           struct err *err)
{
    const json_t *v = json_object_get(config, key);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > UINT32_MAX)
        return err_set(err, ST_BAD_DATA, "%s/config.json: %s is missing or not a positive integer", base->path, key);
    *out = (uint32_t)json_integer_value(v);
    return ST_OK;
}

/* Llama 3.1: long waves are stretched by `factor`, short ones stay, those between are blended. As transformers' llama3. */
static enum status read_llama3(struct base *base, const json_t *scaling, const char *key, struct err *err)
{
    static const char *const names[] = {"factor", "low_freq_factor", "high_freq_factor",
                                        "original_max_position_embeddings"};
    const struct arch *a = &base->arch;
    double v[4];
    for (int i = 0; i < 4; i++) {
        v[i] = json_number_value(json_object_get(scaling, names[i]));
        if (!(v[i] > 0 && v[i] < 1e9))
            return err_set(err, ST_BAD_DATA, "%s/config.json: %s: %s is missing or out of range", base->path, key,
                           names[i]);
    }
    double factor = v[0], low = v[1], high = v[2], context = v[3];
    if (!(high > low && factor >= 1 && factor <= (double)ROPE_FACTOR_MAX))
        return err_set(err, ST_BAD_DATA, "%s/config.json: %s: the factors do not fit each other", base->path, key);
    base->rope_factors = xcalloc(a->head_dim / 2, sizeof *base->rope_factors);
    for (uint32_t i = 0; i < a->head_dim / 2; i++) {
        double wave = 2 * M_PI * pow((double)a->rope_theta, 2.0 * i / a->head_dim);
        double stays = (context / wave - low) / (high - low); /* 0: a long wave, 1: a short one */
        stays = stays < 0 ? 0 : stays > 1 ? 1 : stays;
        base->rope_factors[i] = (float)(1 / ((1 - stays) / factor + stays));
    }
    return ST_OK;
}

/* Old configurations have rope_theta and rope_scaling, newer ones both in rope_parameters. */
static const json_t *rope_settings(const json_t *config, const char **key)
{
    *key = absent(json_object_get(config, "rope_scaling")) ? "rope_parameters" : "rope_scaling";
    return json_object_get(config, *key);
}

static enum status read_rope_scaling(struct base *base, const json_t *config, struct err *err)
{
    const char *key;
    const json_t *rope = rope_settings(config, &key), *type = json_object_get(rope, "rope_type");
    if (!type)
        type = json_object_get(rope, "type"); /* older still */
    if (absent(rope) || (!type && !strcmp(key, "rope_parameters")) || string_is(type, "default"))
        return ST_OK;
    return base->arch.kind == ARCH_LLAMA && string_is(type, "llama3") ? read_llama3(base, rope, key, err)
                                                                      : refuse(base, key, err);
}

static enum status read_arch(struct base *base, const json_t *config, struct err *err)
{
    struct arch *a = &base->arch;
    const struct {
        const char *key;
        uint32_t *out;
    } required[] = {{"max_position_embeddings", &a->context_max}, {"hidden_size", &a->d_model},
                    {"num_hidden_layers", &a->n_layers},          {"intermediate_size", &a->d_ff},
                    {"num_attention_heads", &a->n_heads},         {"vocab_size", &a->vocab_size}};
    enum status st = find_kind(base, config, err);
    if (st == ST_OK)
        st = refuse_unsupported(base, config, err);
    for (size_t i = 0; st == ST_OK && i < sizeof required / sizeof required[0]; i++)
        st = get_u32(base, config, required[i].key, required[i].out, err);
    if (st)
        return st;
    a->n_kv_heads = a->n_heads; /* Llama's default; the others always say */
    if (a->kind != ARCH_LLAMA || !absent(json_object_get(config, "num_key_value_heads")))
        st = get_u32(base, config, "num_key_value_heads", &a->n_kv_heads, err);
    a->head_dim = a->d_model / a->n_heads; /* the default but for qwen3 */
    if (st == ST_OK && (a->kind == ARCH_QWEN3 || !absent(json_object_get(config, "head_dim"))))
        st = get_u32(base, config, "head_dim", &a->head_dim, err);
    if (st)
        return st;
    const char *key;
    const json_t *theta = json_object_get(config, "rope_theta");
    if (!theta)
        theta = json_object_get(rope_settings(config, &key), "rope_theta");
    a->rope_theta = theta ? (float)json_number_value(theta) : 10000;
    a->rms_eps =
        (float)json_number_value(json_object_get(config, "rms_norm_eps")); /* missing: 0, arch_check refuses it */
    a->tied_head = json_is_true(json_object_get(config, "tie_word_embeddings"));
    a->qkv_bias = a->kind == ARCH_QWEN2;
    a->qk_norm = a->kind == ARCH_QWEN3;
    st = base_begin(base, err);
    return st == ST_OK ? read_rope_scaling(base, config, err) : st;
}

static enum status open_shard(struct base *base, const char *name, struct err *err)
{
    char *path = path_in(base, name);
    enum status st = base->n_shards < SHARDS_MAX
                         ? safetensors_open(path, SAFETENSORS_BASE, &base->shards[base->n_shards], err)
                         : err_set(err, ST_LIMIT, "%s: more than %d shards", base->path, SHARDS_MAX);
    if (st == ST_OK)
        base->n_shards++;
    free(path);
    return st;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Opens each file the index names, once. Where a tensor lies is taken from the files; they must hold what the index says. */
static enum status open_shards(struct base *base, struct err *err)
{
    json_t *index = NULL, *file;
    const char *tensor, **files = NULL;
    size_t n = 0;
    enum status st = read_json(base, "model.safetensors.index.json", INDEX_MAX, &index, err);
    if (st)
        return st;
    json_t *map = json_object_get(index, "weight_map");
    files = xcalloc(json_object_size(map), sizeof *files);
    json_object_foreach(map, tensor, file)
    {
        const char *name = json_string_value(file), *dot = name ? strrchr(name, '.') : NULL;
        if (!dot || strcmp(dot, ".safetensors") || strchr(name, '/') || name[0] == '.') {
            st = err_set(err, ST_BAD_DATA, "%s/model.safetensors.index.json: bad file name for tensor %.200s",
                         base->path, tensor);
            goto done;
        }
        files[n++] = name;
    }
    qsort(files, n, sizeof *files, by_text);
    for (size_t i = 0; i < n && st == ST_OK; i++)
        if (i == 0 || strcmp(files[i - 1], files[i]))
            st = open_shard(base, files[i], err);
    size_t tensors = 0;
    for (size_t i = 0; i < base->n_shards; i++)
        tensors += safetensors_n(base->shards[i]);
    if (st == ST_OK && tensors != json_object_size(map))
        st = err_set(err, ST_BAD_DATA, "%s: the shards hold %zu tensors, their index names %zu", base->path, tensors,
                     json_object_size(map));
done:
    free(files);
    json_decref(index);
    return st;
}

static enum status place_tensor(struct base *base, const struct safetensors_tensor *t, struct err *err)
{
    struct weight w = {.data = t->data};
    const char *inv_freq = strstr(t->name, ".rotary_emb.inv_freq");
    if (inv_freq && !strcmp(inv_freq, ".rotary_emb.inv_freq"))
        return ST_OK; /* a buffer old versions saved; it follows from rope_theta */
    if (base->arch.tied_head && !strcmp(t->name, "lm_head.weight"))
        return ST_OK; /* a second copy of the embedding, which is what transformers uses */
    if (!strcmp(t->dtype, "F32"))
        w.type = GGUF_T_F32;
    else if (!strcmp(t->dtype, "F16"))
        w.type = GGUF_T_F16;
    else if (!strcmp(t->dtype, "BF16"))
        w.type = GGUF_T_BF16;
    else
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %.200s is %s; known are F32, F16 and BF16", base->path, t->name,
                       t->dtype);
    if (t->rank < 1 || t->rank > 2)
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %.200s has %u dimensions", base->path, t->name, t->rank);
    uint64_t rows = t->rank == 1 ? 1 : t->shape[0];
    return base_place(base, NAMES_HF, t->name, rows, t->shape[t->rank - 1], w, err);
}

static enum status load_weights(struct base *base, struct err *err)
{
    char *single = path_in(base, "model.safetensors");
    base->shards = xcalloc(SHARDS_MAX, sizeof *base->shards);
    enum status st = access(single, F_OK) == 0 ? open_shard(base, "model.safetensors", err) : open_shards(base, err);
    free(single);
    for (size_t i = 0; i < base->n_shards; i++)
        for (size_t k = 0; st == ST_OK && k < safetensors_n(base->shards[i]); k++)
            st = place_tensor(base, safetensors_at(base->shards[i], k), err);
    return st ? st : base_complete(base, NAMES_HF, err);
}

static uint32_t token_id(const json_t *v) /* a number, or the first of a list */
{
    if (json_is_array(v))
        v = json_array_get(v, 0);
    bool ok = json_is_integer(v) && json_integer_value(v) >= 0 && json_integer_value(v) < TOKENIZER_VOCAB_MAX;
    return ok ? (uint32_t)json_integer_value(v) : TOKEN_NONE;
}

static void load_tokenizer(struct base *base, const json_t *config)
{
    struct buf text = {0};
    char *path = path_in(base, "tokenizer.json");
    enum status st = file_read(path, TOKENIZER_MAX, &text, &base->tokenizer_err);
    if (st == ST_OK)
        st = tokenizer_from_json(text.data, text.len, token_id(json_object_get(config, "bos_token_id")),
                                 token_id(json_object_get(config, "eos_token_id")), &base->tokenizer,
                                 &base->tokenizer_err);
    base->tokenizer_status = st;
    buf_release(&text);
    free(path);
}

static void load_template(struct base *base)
{
    json_t *settings = NULL;
    char *path = path_in(base, "chat_template.jinja");
    if (file_read(path, CONFIG_MAX, &base->chat_template, NULL) != ST_OK &&
        read_json(base, "tokenizer_config.json", 16 * CONFIG_MAX, &settings, NULL) == ST_OK) {
        const json_t *text = json_object_get(settings, "chat_template");
        if (json_is_string(text))
            buf_put(&base->chat_template, json_string_value(text), json_string_length(text));
    }
    json_decref(settings);
    free(path);
}

enum status base_load_hf(struct base *base, struct err *err)
{
    json_t *config = NULL;
    enum status st = read_json(base, "config.json", CONFIG_MAX, &config, err);
    if (st == ST_OK)
        st = read_arch(base, config, err);
    if (st == ST_OK)
        st = load_weights(base, err);
    if (st == ST_OK) {
        const char *name = json_string_value(json_object_get(config, "_name_or_path"));
        const char *slash = name ? strrchr(name, '/') : NULL;
        name = slash ? slash + 1 : name ? name : "";
        base_set_name(base, (struct bytes){(const uint8_t *)name, strlen(name)});
        load_tokenizer(base, config);
        load_template(base);
    }
    json_decref(config);
    return st;
}
