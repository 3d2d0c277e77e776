/* base_impl.h - the inside of a base, shared by base.c and the two loaders. */
#ifndef MODEL_BASE_IMPL_H
#define MODEL_BASE_IMPL_H

#include "adapter/gguf.h"
#include "adapter/safetensors.h"
#include "base/buf.h"
#include "model/base.h"
#include "model/tokenizer.h"

#define BASE_SHARED BASE_ATTN_NORM /* the tensors before it are there once */
enum { BASE_PER_LAYER = BASE_TENSORS - BASE_SHARED };

#define ROPE_FACTOR_MIN 1e-3f
#define ROPE_FACTOR_MAX 1e6f

struct weight { /* data == NULL: not there */
    const uint8_t *data;
    uint32_t type; /* enum gguf_type */
    bool permuted; /* rows in llama.cpp's order of q and k */
};

struct base {
    char *path;
    char name[64];
    struct arch arch;
    struct weight shared[BASE_SHARED];
    struct weight *layers; /* (n_layers, BASE_PER_LAYER) */
    float *rope_factors;   /* (head_dim / 2), or NULL */
    struct gguf *gguf;     /* one of these two holds the bytes */
    struct safetensors **shards;
    size_t n_shards;
    struct tokenizer *tokenizer;
    enum status tokenizer_status; /* why there is none */
    struct err tokenizer_err;
    struct buf chat_template;
};

enum name_style { NAMES_GGUF, NAMES_HF };

/* Which tensor a file's name means; false: none we know. */
bool base_name_parse(enum name_style style, const char *name, uint32_t n_layers, enum base_tensor *t, uint32_t *layer);

/* Checks the architecture and makes room for the weights. */
enum status base_begin(struct base *base, struct err *err);
/* Enters one tensor of shape (rows, in) under the name the file gives it; it must have the shape and a place. */
enum status base_place(struct base *base, enum name_style style, const char *name, uint64_t rows, uint64_t in,
                       struct weight weight, struct err *err);
/* Everything there that must be. */
enum status base_complete(const struct base *base, enum name_style style, struct err *err);
void base_set_name(struct base *base, struct bytes name); /* for people: cut, other than printable ASCII replaced */

enum status base_load_gguf(struct base *base, struct err *err);
enum status base_load_hf(struct base *base, struct err *err);

#endif
