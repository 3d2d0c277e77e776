/* A base from GGUF metadata and tensors. The keys below `<arch>.` that we know are listed; any other one may change the
 * arithmetic and is refused by name. */
#include <stdio.h>
#include <string.h>

#include "model/base_impl.h"

static bool bytes_are(struct bytes b, const char *s)
{
    return b.len == strlen(s) && !memcmp(b.data, s, b.len);
}

static enum status find_kind(struct base *base, const char **prefix, struct err *err)
{
    static const struct {
        const char *name;
        enum arch_kind kind;
    } known[] = {{"llama", ARCH_LLAMA}, {"qwen2", ARCH_QWEN2}, {"qwen3", ARCH_QWEN3}};
    struct bytes name, type;
    enum status st = gguf_get_string(base->gguf, "general.architecture", &name, err);
    if (st)
        return st;
    if (gguf_get_string(base->gguf, "general.type", &type, NULL) == ST_OK && !bytes_are(type, "model"))
        return err_set(err, ST_UNSUPPORTED, "%s: general.type is not \"model\"", base->path);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (!bytes_are(name, known[i].name))
            continue;
        base->arch.kind = known[i].kind;
        *prefix = known[i].name;
        return ST_OK;
    }
    return err_set(err, ST_UNSUPPORTED, "%s: architecture \"%.*s\"; known are llama, qwen2 and qwen3", base->path,
                   (int)(name.len < 64 ? name.len : 64), (const char *)name.data);
}

static enum status refuse_unknown_keys(const struct base *base, const char *prefix, struct err *err)
{
    static const char *const known[] = {"context_length",
                                        "embedding_length",
                                        "block_count",
                                        "feed_forward_length",
                                        "attention.head_count",
                                        "attention.head_count_kv",
                                        "attention.layer_norm_rms_epsilon",
                                        "attention.key_length",
                                        "attention.value_length",
                                        "rope.dimension_count",
                                        "rope.freq_base",
                                        "rope.scaling.type",
                                        "vocab_size"};
    size_t n = strlen(prefix);
    for (size_t i = 0; i < gguf_n_kv(base->gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(base->gguf, i);
        bool ok = kv->key.len <= n || memcmp(kv->key.data, prefix, n) || kv->key.data[n] != '.';
        struct bytes rest = {kv->key.data + n + 1, kv->key.len - n - 1};
        for (size_t k = 0; !ok && k < sizeof known / sizeof known[0]; k++)
            ok = bytes_are(rest, known[k]);
        if (!ok)
            return err_set(err, ST_UNSUPPORTED, "%s: metadata key %.*s is not supported", base->path,
                           (int)(kv->key.len < 200 ? kv->key.len : 200), (const char *)kv->key.data);
    }
    return ST_OK;
}

static const char *key_of(char out[128], const char *prefix, const char *rest)
{
    snprintf(out, 128, "%s.%s", prefix, rest);
    return out;
}

static enum status u32_or(const struct gguf *g, const char *key, uint32_t missing, uint32_t *out, struct err *err)
{
    enum status st = gguf_get_u32(g, key, out, err);
    if (st == ST_NOT_FOUND)
        *out = missing;
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static enum status read_dims(struct base *base, const char *prefix, struct err *err)
{
    struct arch *a = &base->arch;
    const struct gguf *g = base->gguf;
    const struct {
        const char *key;
        uint32_t *out;
    } required[] = {{"context_length", &a->context_max},
                    {"embedding_length", &a->d_model},
                    {"block_count", &a->n_layers},
                    {"feed_forward_length", &a->d_ff},
                    {"attention.head_count", &a->n_heads}};
    char key[128];
    enum status st;
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++)
        if ((st = gguf_get_u32(g, key_of(key, prefix, required[i].key), required[i].out, err)))
            return st;
    if ((st = gguf_get_f32(g, key_of(key, prefix, "attention.layer_norm_rms_epsilon"), &a->rms_eps, err)) ||
        (st = u32_or(g, key_of(key, prefix, "attention.head_count_kv"), a->n_heads, &a->n_kv_heads, err)))
        return st;
    if (a->n_heads == 0)
        return err_set(err, ST_BAD_DATA, "%s: attention.head_count is 0", base->path);
    return u32_or(g, key_of(key, prefix, "attention.key_length"), a->d_model / a->n_heads, &a->head_dim, err);
}

static enum status read_rope(struct base *base, const char *prefix, struct err *err)
{
    struct arch *a = &base->arch;
    const struct gguf *g = base->gguf;
    uint32_t rotated, value_length;
    struct bytes scaling;
    char key[128];
    enum status st;
    if ((st = u32_or(g, key_of(key, prefix, "rope.dimension_count"), a->head_dim, &rotated, err)) ||
        (st = u32_or(g, key_of(key, prefix, "attention.value_length"), a->head_dim, &value_length, err)))
        return st;
    if (rotated != a->head_dim || value_length != a->head_dim)
        return err_set(err, ST_UNSUPPORTED, "%s: heads of %u with %u rotated and values of %u; all three must be equal",
                       base->path, a->head_dim, rotated, value_length);
    st = gguf_get_f32(g, key_of(key, prefix, "rope.freq_base"), &a->rope_theta, err);
    if (st == ST_NOT_FOUND)
        a->rope_theta = 10000;
    else if (st)
        return st;
    st = gguf_get_string(g, key_of(key, prefix, "rope.scaling.type"), &scaling, err);
    if (st == ST_OK && !bytes_are(scaling, "none"))
        return err_set(err, ST_UNSUPPORTED, "%s: %s is not \"none\": RoPE scaling is not supported", base->path, key);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static enum status read_arch(struct base *base, const char *prefix, struct err *err)
{
    struct arch *a = &base->arch;
    uint32_t vocab;
    char key[128];
    enum status st = refuse_unknown_keys(base, prefix, err);
    if (st == ST_OK)
        st = read_dims(base, prefix, err);
    if (st == ST_OK)
        st = read_rope(base, prefix, err);
    if (st)
        return st;
    const struct gguf_tensor *embed = gguf_tensor(base->gguf, "token_embd.weight");
    if (!embed || embed->ne[1] > UINT32_MAX)
        return err_set(err, ST_BAD_DATA, "%s: no usable tensor token_embd.weight", base->path);
    a->vocab_size = (uint32_t)embed->ne[1];
    if ((st = u32_or(base->gguf, key_of(key, prefix, "vocab_size"), a->vocab_size, &vocab, err)))
        return st;
    if (vocab != a->vocab_size)
        return err_set(err, ST_BAD_DATA, "%s: %s is %u, token_embd.weight has %u rows", base->path, key, vocab,
                       a->vocab_size);
    a->tied_head = gguf_tensor(base->gguf, "output.weight") == NULL;
    a->qkv_bias = a->kind == ARCH_QWEN2;
    a->qk_norm = a->kind == ARCH_QWEN3;
    return base_begin(base, err);
}

/* What llama.cpp's converter makes of Llama 3's rope_scaling: a factor for each frequency. */
static enum status read_rope_factors(struct base *base, const struct gguf_tensor *t, struct err *err)
{
    uint32_t n = base->arch.head_dim / 2;
    if (base->arch.kind != ARCH_LLAMA || t->type != GGUF_T_F32 || t->n_dims != 1 || t->ne[0] != n)
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %s is not %u F32 numbers of a llama", base->path, t->name, n);
    base->rope_factors = xmemdup(t->data, n * sizeof *base->rope_factors);
    for (uint32_t i = 0; i < n; i++)
        if (!(base->rope_factors[i] >= ROPE_FACTOR_MIN && base->rope_factors[i] <= ROPE_FACTOR_MAX))
            return err_set(err, ST_BAD_DATA, "%s: number %u of %s is out of range", base->path, i, t->name);
    return ST_OK;
}

enum status base_load_gguf(struct base *base, struct err *err)
{
    const char *prefix = NULL;
    struct bytes text;
    enum status st = gguf_open(base->path, &base->gguf, err);
    if (st == ST_OK)
        st = find_kind(base, &prefix, err);
    if (st == ST_OK)
        st = read_arch(base, prefix, err);
    for (size_t i = 0; st == ST_OK && i < gguf_n_tensors(base->gguf); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(base->gguf, i);
        struct weight w = {t->data, t->type, base->arch.kind == ARCH_LLAMA};
        if (!strcmp(t->name, "rope_freqs.weight"))
            st = read_rope_factors(base, t, err);
        else if (t->n_dims > 2)
            st = err_set(err, ST_UNSUPPORTED, "%s: tensor %s has %u dimensions", base->path, t->name, t->n_dims);
        else
            st = base_place(base, NAMES_GGUF, t->name, t->ne[1], t->ne[0], w, err);
    }
    if (st == ST_OK)
        st = base_complete(base, NAMES_GGUF, err);
    if (st)
        return st;
    if (gguf_get_string(base->gguf, "general.name", &text, NULL) == ST_OK)
        base_set_name(base, text);
    if (gguf_get_string(base->gguf, "tokenizer.chat_template", &text, NULL) == ST_OK)
        buf_put(&base->chat_template, text.data, text.len);
    base->tokenizer_status = tokenizer_from_gguf(base->gguf, &base->tokenizer, &base->tokenizer_err);
    return ST_OK;
}
