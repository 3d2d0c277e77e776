/* Both published forms of one f32 block. PEFT: row order and names of Hugging Face. GGUF: dimensions innermost first, so
 * that A (rank, in) and B (out, rank) keep their bytes, and, for arch llama, the rows of B of q and k permuted as
 * llama.cpp's converter permutes those of the weights: within a head row i * hd/2 + j goes to 2 * j + i. A never is. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "adapter/gguf.h"
#include "adapter/safetensors.h"
#include "base/check.h"

enum { KEY_SIZE = 96 };

static void peft_key(char key[KEY_SIZE], uint32_t layer, unsigned m, char half)
{
    snprintf(key, KEY_SIZE, "base_model.model.model.layers.%" PRIu32 ".%s.lora_%c.weight", layer,
             lora_module_peft((enum lora_module)m), half);
}

/* Calls for every factor of the shape, in block order: A then B. */
typedef enum status factor_fn(void *context, uint32_t layer, unsigned m, char half, size_t at, uint32_t rows,
                              uint32_t columns);

static enum status each_factor(const struct adapter_shape *shape, factor_fn *fn, void *context)
{
    enum status st;
    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (unsigned m = 0; m < LORA_MODULES; m++) {
            if (!adapter_adapts(shape, layer, m))
                continue;
            size_t a = adapter_at_a(shape, layer, (enum lora_module)m);
            if ((st = fn(context, layer, m, 'A', a, shape->rank, shape->in[m])))
                return st;
            size_t b = adapter_at_b(shape, layer, (enum lora_module)m);
            if ((st = fn(context, layer, m, 'B', b, shape->out[m], shape->rank)))
                return st;
        }
    }
    return ST_OK;
}

struct peft_writer {
    const float *block;
    struct safetensors_tensor *tensors;
    char (*keys)[KEY_SIZE];
    size_t n;
};

static enum status peft_entry(void *context, uint32_t layer, unsigned m, char half, size_t at, uint32_t rows,
                              uint32_t columns)
{
    struct peft_writer *w = context;
    peft_key(w->keys[w->n], layer, m, half);
    w->tensors[w->n] = (struct safetensors_tensor){
        .name = w->keys[w->n], .rank = 2, .shape = {rows, columns}, .data = (const uint8_t *)(w->block + at)};
    w->n++;
    return ST_OK;
}

void adapter_write_peft(const struct adapter_shape *shape, const float *block, struct buf *out)
{
    size_t n_max = (size_t)shape->n_layers * LORA_MODULES * 2;
    struct peft_writer w = {
        .block = block, .tensors = xcalloc(n_max, sizeof *w.tensors), .keys = xcalloc(n_max, sizeof *w.keys)};
    each_factor(shape, peft_entry, &w);
    safetensors_write(w.tensors, w.n, out);
    free(w.tensors);
    free(w.keys);
}

struct peft_reader {
    const struct safetensors *file;
    float *block;
    size_t n;
    struct err *err;
};

static enum status peft_factor(void *context, uint32_t layer, unsigned m, char half, size_t at, uint32_t rows,
                               uint32_t columns)
{
    struct peft_reader *r = context;
    char key[KEY_SIZE];
    peft_key(key, layer, m, half);
    const struct safetensors_tensor *t = safetensors_find(r->file, key);
    if (!t)
        return err_set(r->err, ST_BAD_DATA, "adapter: tensor %s is missing", key);
    if (strcmp(t->dtype, "F32"))
        return err_set(r->err, ST_BAD_DATA, "adapter: tensor %s is %s, expected F32", key, t->dtype);
    if (t->rank != 2 || t->shape[0] != rows || t->shape[1] != columns)
        return err_set(r->err, ST_BAD_DATA, "adapter: tensor %s has not the shape (%u, %u)", key, rows, columns);
    memcpy(r->block + at, t->data, (size_t)t->bytes);
    for (size_t i = at; i < at + (size_t)rows * columns; i++)
        if (!isfinite(r->block[i]))
            return err_set(r->err, ST_BAD_DATA, "adapter: tensor %s: value %zu is not finite", key, i - at);
    r->n++;
    return ST_OK;
}

enum status adapter_read_peft(const struct adapter_shape *shape, const void *data, size_t len, float *block,
                              struct err *err)
{
    struct peft_reader r = {.err = err};
    struct safetensors *file = NULL;
    size_t n = adapter_floats(shape);
    enum status st = safetensors_parse(data, len, "adapter", SAFETENSORS_ADAPTER, &file, err);
    if (st)
        return st;
    r.file = file;
    r.block = xcalloc(n, sizeof *r.block); /* beside the caller's, which stays untouched on an error */
    st = each_factor(shape, peft_factor, &r);
    if (st == ST_OK && safetensors_n(file) != r.n)
        st = err_set(err, ST_BAD_DATA, "adapter: %zu tensors, expected %zu", safetensors_n(file), r.n);
    if (st == ST_OK)
        memcpy(block, r.block, n * sizeof *block);
    free(r.block);
    safetensors_close(file);
    return st;
}

static void put_json_string(struct buf *out, const char *s)
{
    buf_put_u8(out, '"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_printf(out, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            buf_printf(out, "\\u%04x", *s);
        else
            buf_put_u8(out, (uint8_t)*s);
    }
    buf_put_u8(out, '"');
}

void adapter_peft_config(const struct adapter_shape *shape, const char *base_name, struct buf *out)
{
    const char *comma = "";
    buf_printf(out, "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  \"base_model_name_or_path\": ");
    put_json_string(out, base_name);
    buf_printf(out, ",\n  \"r\": %u,\n  \"lora_alpha\": %u,\n  \"lora_dropout\": 0.0,\n  \"target_modules\": [",
               shape->rank, shape->alpha);
    for (unsigned m = 0; m < LORA_MODULES; m++) {
        if (!(shape->targets >> m & 1))
            continue;
        buf_printf(out, "%s\"%s\"", comma, strchr(lora_module_peft((enum lora_module)m), '.') + 1);
        comma = ", ";
    }
    const uint32_t first = adapter_first_layer(shape);
    if (first) {
        buf_printf(out, "],\n  \"layers_to_transform\": [%u", first);
        for (uint32_t layer = first + 1; layer < shape->n_layers; layer++)
            buf_printf(out, ", %u", layer);
    }
    buf_printf(out, "],\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true\n}\n");
}

struct gguf_export {
    struct gguf_writer file;
    const struct adapter_shape *shape;
    const struct card *card;
    const float *block;
    struct buf *out;
};

static enum status declare(void *context, uint32_t layer, unsigned m, char half, size_t at, uint32_t rows,
                           uint32_t columns)
{
    struct gguf_export *e = context;
    char name[64];
    (void)at;
    snprintf(name, sizeof name, "blk.%" PRIu32 ".%s.weight.lora_%c", layer, lora_module_gguf((enum lora_module)m),
             half == 'A' ? 'a' : 'b');
    gguf_put_tensor(&e->file, name, GGUF_T_F32, 2, (const uint64_t[]){columns, rows});
    return ST_OK;
}

static enum status append(void *context, uint32_t layer, unsigned m, char half, size_t at, uint32_t rows,
                          uint32_t columns)
{
    struct gguf_export *e = context;
    uint32_t hd = e->card->arch.head_dim;
    bool permute = half == 'B' && (m == LORA_Q || m == LORA_K) && e->card->arch.kind == ARCH_LLAMA;
    (void)layer;
    for (uint32_t row = 0; row < rows; row++) { /* row of the file */
        uint32_t within = row % hd;
        uint32_t from = permute ? row - within + within % 2 * (hd / 2) + within / 2 : row;
        buf_put(e->out, e->block + at + (size_t)from * columns, columns * sizeof(float));
    }
    size_t padding = gguf_padding((uint64_t)rows * columns * sizeof(float));
    memset(buf_extend(e->out, padding), 0, padding);
    return ST_OK;
}

void adapter_write_gguf(const struct adapter_shape *shape, const struct card *card, const float *block, struct buf *out)
{
    static const char *const names[] = {[ARCH_LLAMA] = "llama", [ARCH_QWEN2] = "qwen2", [ARCH_QWEN3] = "qwen3"};
    struct gguf_export e = {.shape = shape, .card = card, .block = block, .out = out};
    char hex[DIGEST_HEX_SIZE];
    CHECK(shape->out[LORA_Q] == card->arch.n_heads * card->arch.head_dim);
    digest_hex(&card->base, hex);
    gguf_put_string(&e.file, "general.architecture", names[card->arch.kind]);
    gguf_put_string(&e.file, "general.type", "adapter");
    gguf_put_string(&e.file, "adapter.type", "lora");
    gguf_put_f32(&e.file, "adapter.lora.alpha", (float)shape->alpha);
    gguf_put_string(&e.file, "alluvium.base.name", card->base_name);
    gguf_put_string(&e.file, "alluvium.base.blake2b", hex);
    each_factor(shape, declare, &e);
    gguf_put_header(&e.file, out);
    each_factor(shape, append, &e);
    gguf_writer_release(&e.file);
}
