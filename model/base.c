#include "model/base.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/check.h"
#include "model/base_impl.h"
#include "model/quant.h"

/* The names of each tensor in both kinds of file; those of a layer without its prefix and number. */
static const char *const names[BASE_TENSORS][2] = {
    [BASE_EMBED] = {"token_embd.weight", "model.embed_tokens.weight"},
    [BASE_OUT_NORM] = {"output_norm.weight", "model.norm.weight"},
    [BASE_HEAD] = {"output.weight", "lm_head.weight"},
    [BASE_ATTN_NORM] = {"attn_norm.weight", "input_layernorm.weight"},
    [BASE_Q] = {"attn_q.weight", "self_attn.q_proj.weight"},
    [BASE_K] = {"attn_k.weight", "self_attn.k_proj.weight"},
    [BASE_V] = {"attn_v.weight", "self_attn.v_proj.weight"},
    [BASE_O] = {"attn_output.weight", "self_attn.o_proj.weight"},
    [BASE_FFN_NORM] = {"ffn_norm.weight", "post_attention_layernorm.weight"},
    [BASE_GATE] = {"ffn_gate.weight", "mlp.gate_proj.weight"},
    [BASE_UP] = {"ffn_up.weight", "mlp.up_proj.weight"},
    [BASE_DOWN] = {"ffn_down.weight", "mlp.down_proj.weight"},
    [BASE_Q_BIAS] = {"attn_q.bias", "self_attn.q_proj.bias"},
    [BASE_K_BIAS] = {"attn_k.bias", "self_attn.k_proj.bias"},
    [BASE_V_BIAS] = {"attn_v.bias", "self_attn.v_proj.bias"},
    [BASE_Q_NORM] = {"attn_q_norm.weight", "self_attn.q_norm.weight"},
    [BASE_K_NORM] = {"attn_k_norm.weight", "self_attn.k_norm.weight"},
};
static const char *const layer_prefix[2] = {"blk.", "model.layers."};

bool base_name_parse(enum name_style style, const char *name, uint32_t n_layers, enum base_tensor *t, uint32_t *layer)
{
    size_t prefix = strlen(layer_prefix[style]), digits = 0;
    uint32_t n = 0;
    bool in_layer = !strncmp(name, layer_prefix[style], prefix);
    const char *rest = name;
    if (in_layer) { /* a number below n_layers as it is printed: no sign, no leading zeros */
        for (rest += prefix; rest[digits] >= '0' && rest[digits] <= '9' && n < n_layers; digits++)
            n = n * 10 + (uint32_t)(rest[digits] - '0');
        if (n >= n_layers || digits == 0 || (rest[0] == '0' && digits > 1) || rest[digits] != '.')
            return false;
        rest += digits + 1;
    }
    for (unsigned i = in_layer ? BASE_SHARED : 0; i < (in_layer ? BASE_TENSORS : BASE_SHARED); i++) {
        if (strcmp(rest, names[i][style]))
            continue;
        *t = (enum base_tensor)i;
        *layer = n;
        return true;
    }
    return false;
}

static void name_of(enum name_style style, enum base_tensor t, uint32_t layer, char out[96])
{
    if (t < BASE_SHARED)
        snprintf(out, 96, "%s", names[t][style]);
    else
        snprintf(out, 96, "%s%" PRIu32 ".%s", layer_prefix[style], layer, names[t][style]);
}

static struct weight *slot(const struct base *base, enum base_tensor t, uint32_t layer)
{
    CHECK(t < BASE_TENSORS);
    if (t == BASE_HEAD && base->arch.tied_head)
        t = BASE_EMBED;
    if (t < BASE_SHARED)
        return (struct weight *)&base->shared[t];
    CHECK(layer < base->arch.n_layers);
    return &base->layers[(size_t)layer * BASE_PER_LAYER + (t - BASE_SHARED)];
}

/* Whether the architecture has this tensor. */
static bool belongs(const struct arch *arch, enum base_tensor t)
{
    if (t == BASE_Q_BIAS || t == BASE_K_BIAS || t == BASE_V_BIAS)
        return arch->qkv_bias;
    if (t == BASE_Q_NORM || t == BASE_K_NORM)
        return arch->qk_norm;
    return t != BASE_HEAD || !arch->tied_head;
}

void base_shape(const struct base *base, enum base_tensor t, uint32_t *rows, uint32_t *in)
{
    const struct arch *a = &base->arch;
    uint32_t q = a->n_heads * a->head_dim, kv = a->n_kv_heads * a->head_dim;
    const uint32_t shapes[BASE_TENSORS][2] = {
        [BASE_EMBED] = {a->vocab_size, a->d_model},
        [BASE_OUT_NORM] = {1, a->d_model},
        [BASE_HEAD] = {a->vocab_size, a->d_model},
        [BASE_ATTN_NORM] = {1, a->d_model},
        [BASE_Q] = {q, a->d_model},
        [BASE_K] = {kv, a->d_model},
        [BASE_V] = {kv, a->d_model},
        [BASE_O] = {a->d_model, q},
        [BASE_FFN_NORM] = {1, a->d_model},
        [BASE_GATE] = {a->d_ff, a->d_model},
        [BASE_UP] = {a->d_ff, a->d_model},
        [BASE_DOWN] = {a->d_model, a->d_ff},
        [BASE_Q_BIAS] = {1, q},
        [BASE_K_BIAS] = {1, kv},
        [BASE_V_BIAS] = {1, kv},
        [BASE_Q_NORM] = {1, a->head_dim},
        [BASE_K_NORM] = {1, a->head_dim},
    };
    CHECK(t < BASE_TENSORS);
    *rows = shapes[t][0];
    *in = shapes[t][1];
}

enum status base_begin(struct base *base, struct err *err)
{
    enum status st = arch_check(&base->arch, err);
    if (st)
        return err_prefix(err, st, "%s", base->path);
    base->layers = xcalloc((size_t)base->arch.n_layers * BASE_PER_LAYER, sizeof *base->layers);
    return ST_OK;
}

enum status base_place(struct base *base, enum name_style style, const char *name, uint64_t rows, uint64_t in,
                       struct weight weight, struct err *err)
{
    enum base_tensor t;
    uint32_t layer, want_rows, want_in;
    if (!base_name_parse(style, name, base->arch.n_layers, &t, &layer))
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %.200s has no place in this architecture", base->path, name);
    if (!belongs(&base->arch, t))
        return err_set(err, ST_UNSUPPORTED, "%s: unexpected tensor %.200s", base->path, name);
    base_shape(base, t, &want_rows, &want_in);
    if (rows != want_rows || in != want_in)
        return err_set(err, ST_BAD_DATA, "%s: tensor %.200s is (%" PRIu64 ", %" PRIu64 "), expected (%u, %u)",
                       base->path, name, rows, in, want_rows, want_in);
    if (!quant_known(weight.type))
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %.200s is %s; known are " QUANT_KNOWN, base->path, name,
                       gguf_type_name(weight.type));
    struct weight *w = slot(base, t, layer);
    if (w->data)
        return err_set(err, ST_BAD_DATA, "%s: tensor %.200s twice", base->path, name);
    weight.permuted = weight.permuted && (t == BASE_Q || t == BASE_K);
    *w = weight;
    return ST_OK;
}

enum status base_complete(const struct base *base, enum name_style style, struct err *err)
{
    for (unsigned t = 0; t < BASE_TENSORS; t++) {
        for (uint32_t layer = 0; layer < (t < BASE_SHARED ? 1 : base->arch.n_layers); layer++) {
            char name[96];
            if (!belongs(&base->arch, (enum base_tensor)t) || slot(base, (enum base_tensor)t, layer)->data)
                continue;
            name_of(style, (enum base_tensor)t, layer, name);
            return err_set(err, ST_BAD_DATA, "%s: tensor %s is missing", base->path, name);
        }
    }
    return ST_OK;
}

void base_set_name(struct base *base, struct bytes name)
{
    size_t n = name.len < sizeof base->name - 1 ? name.len : sizeof base->name - 1;
    for (size_t i = 0; i < n; i++)
        base->name[i] = name.data[i] >= ' ' && name.data[i] <= '~' ? (char)name.data[i] : '?';
    base->name[n] = 0;
}

/* For a base that does not say its name: the last part of its path, so that messages have something to call it. */
static void name_after_path(struct base *base)
{
    char *path = realpath(base->path, NULL);
    const char *name = path ? strrchr(path, '/') : NULL;
    name = name ? name + 1 : base->path;
    base_set_name(base, (struct bytes){(const uint8_t *)name, strlen(name)});
    free(path);
}

enum status base_open(const char *path, struct base **out, struct err *err)
{
    struct stat s;
    if (stat(path, &s))
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    struct base *base = xcalloc(1, sizeof *base);
    base->path = xstrdup(path);
    enum status st = S_ISDIR(s.st_mode) ? base_load_hf(base, err) : base_load_gguf(base, err);
    if (!st && !base->name[0])
        name_after_path(base);
    if (st)
        base_close(base);
    else
        *out = base;
    return st;
}

void base_rest(const struct base *base)
{
    if (base->gguf)
        gguf_rest(base->gguf);
    for (size_t i = 0; i < base->n_shards; i++)
        safetensors_rest(base->shards[i]);
}

void base_close(struct base *base)
{
    if (!base)
        return;
    tokenizer_free(base->tokenizer);
    gguf_close(base->gguf);
    for (size_t i = 0; i < base->n_shards; i++)
        safetensors_close(base->shards[i]);
    free(base->shards);
    free(base->rope_factors);
    free(base->layers);
    buf_release(&base->chat_template);
    free(base->path);
    free(base);
}

const struct arch *base_arch(const struct base *base)
{
    return &base->arch;
}

enum status base_card(const struct base *base, struct card *out, struct err *err)
{
    struct card card = {.arch = base->arch};
    const struct tokenizer *tok = NULL;
    enum status st = base_tokenizer(base, &tok, err);
    if (st == ST_OK)
        st = card_digest_base(base->path, &card.base, err);
    if (st)
        return st;
    tokenizer_digest(tok, &card.tokenizer);
    memcpy(card.base_name, base->name, sizeof card.base_name);
    *out = card;
    return ST_OK;
}

enum status base_tokenizer(const struct base *base, const struct tokenizer **out, struct err *err)
{
    if (!base->tokenizer)
        return err_set(err, base->tokenizer_status, "%s: %s", base->path, base->tokenizer_err.text);
    *out = base->tokenizer;
    return ST_OK;
}

const char *base_chat_template(const struct base *base, size_t *len)
{
    *len = base->chat_template.len;
    return (const char *)base->chat_template.data;
}

const float *base_rope_factors(const struct base *base)
{
    return base->rope_factors;
}

bool base_has(const struct base *base, enum base_tensor t, uint32_t layer)
{
    return slot(base, t, layer)->data != NULL;
}

/* The row of the file that holds row `row` of q or k: within a head i * hd/2 + j lies at 2 * j + i. */
static uint32_t permuted_row(uint32_t row, uint32_t hd)
{
    uint32_t within = row % hd, i = within / (hd / 2), j = within % (hd / 2);
    return row - within + 2 * j + i;
}

const uint8_t *matrix_row(const struct matrix *matrix, uint32_t row)
{
    uint32_t at = matrix->head_dim ? permuted_row(row, matrix->head_dim) : row;
    return matrix->data + at * quant_row_bytes(matrix->type, matrix->in);
}

void base_matrix(const struct base *base, enum base_tensor t, uint32_t layer, struct matrix *out)
{
    const struct weight *w = slot(base, t, layer);
    CHECK(w->data);
    *out = (struct matrix){.data = w->data, .type = w->type, .head_dim = w->permuted ? base->arch.head_dim : 0};
    base_shape(base, t, &out->rows, &out->in);
}

void base_rows(const struct base *base, enum base_tensor t, uint32_t layer, uint32_t row0, uint32_t rows, float *out)
{
    struct matrix m;
    base_matrix(base, t, layer, &m);
    CHECK(row0 <= m.rows && rows <= m.rows - row0);
    if (m.head_dim)
        for (uint32_t r = 0; r < rows; r++)
            quant_expand(m.type, matrix_row(&m, row0 + r), m.in, out + (size_t)r * m.in);
    else
        quant_expand(m.type, matrix_row(&m, row0), (size_t)rows * m.in, out);
}
