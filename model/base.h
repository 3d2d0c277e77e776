/* base.h - a frozen base model, mapped and read row by row.
 *
 * Opens a GGUF v3 file (arch llama, qwen2 or qwen3; F32, F16, BF16 and the quantisations quant.h
 * names) or a Hugging Face directory
 * (config.json of LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM; model.safetensors or its shards; F32, F16, BF16).
 * Whatever the file, rows come out as f32 in Hugging Face order: the row permutation of q and k in llama GGUFs is undone
 * here and nowhere else. Of RoPE scaling there is Llama 3's. What we cannot do exactly is refused by name (other RoPE
 * scaling, sliding windows, unexpected biases, unknown tensors), never ignored.
 *
 * Read-only after base_open(): any number of threads may use one base. The files must not change while it is open.
 */
#ifndef MODEL_BASE_H
#define MODEL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "adapter/card.h"
#include "base/status.h"

struct base;
struct tokenizer; /* model/tokenizer.h */

/* Legend: V vocab_size, d d_model, f d_ff, q n_heads*head_dim, kv n_kv_heads*head_dim, hd head_dim. */
enum base_tensor {
    BASE_EMBED,    /* (V, d) */
    BASE_OUT_NORM, /* (1, d) */
    BASE_HEAD,     /* (V, d); the embedding when arch.tied_head */
    /* the rest once a layer */
    BASE_ATTN_NORM, /* (1, d) */
    BASE_Q,         /* (q, d) */
    BASE_K,         /* (kv, d) */
    BASE_V,         /* (kv, d) */
    BASE_O,         /* (d, q) */
    BASE_FFN_NORM,  /* (1, d) */
    BASE_GATE,      /* (f, d) */
    BASE_UP,        /* (f, d) */
    BASE_DOWN,      /* (d, f) */
    BASE_Q_BIAS,    /* (1, q); these three when arch.qkv_bias */
    BASE_K_BIAS,    /* (1, kv) */
    BASE_V_BIAS,    /* (1, kv) */
    BASE_Q_NORM,    /* (1, hd); these two when arch.qk_norm */
    BASE_K_NORM,    /* (1, hd) */
    BASE_TENSORS
};

enum status base_open(const char *path, struct base **out, struct err *err);
/* Gives the pages of its files back, until they are touched again: for who has read the weights and goes on with the tokenizer. */
void base_rest(const struct base *base);
void base_close(struct base *base);

const struct arch *base_arch(const struct base *base);

/* The card of this base (no serving digests): hashes the whole file or directory, seconds for a large one. Fails as
 * base_tokenizer() does. */
enum status base_card(const struct base *base, struct card *out, struct err *err);

/* The base's tokenizer, owned by it. A base may lack one or have one we do not do: that is reported here (ST_NOT_FOUND,
 * ST_UNSUPPORTED, ST_BAD_DATA), so that the weights can be used all the same. */
enum status base_tokenizer(const struct base *base, const struct tokenizer **out, struct err *err);

/* The Jinja source of its chat template, or NULL. Borrowed; `*len` bytes, not NUL-terminated. */
const char *base_chat_template(const struct base *base, size_t *len);

/* (head_dim / 2) numbers by which each RoPE frequency is divided, or NULL when none is scaled. Borrowed. */
const float *base_rope_factors(const struct base *base);

/* A matrix as it lies in the file: quantised rows, borrowed from the base. */
struct matrix {
    const uint8_t *data;
    uint32_t type; /* enum gguf_type */
    uint32_t rows, in;
    uint32_t head_dim; /* != 0: the rows lie in llama.cpp's order of q and k */
};
const uint8_t *matrix_row(const struct matrix *matrix, uint32_t row); /* for quant_expand() and quant_dot() */

bool base_has(const struct base *base, enum base_tensor t, uint32_t layer);

/* Rows and columns as in the legend; 1-D tensors have one row. */
void base_shape(const struct base *base, enum base_tensor t, uint32_t *rows, uint32_t *in);

/* Rows [row0, row0 + rows) of a tensor into out (rows, in), bit-exact to the reference dequantisation of gguf-py.
 * The tensor must be there and the rows inside it. `layer` is ignored for the first three. */
void base_rows(const struct base *base, enum base_tensor t, uint32_t layer, uint32_t row0, uint32_t rows, float *out);

/* The same tensor without expanding it; it must be there. */
void base_matrix(const struct base *base, enum base_tensor t, uint32_t layer, struct matrix *out);

#endif
