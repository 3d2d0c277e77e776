/* card.h - the model card: all the coordinator ever knows of the base model.
 *
 * Made once by `alluvium init` from the base file, kept in the line's directory, sent to every worker and subscriber,
 * who compare it with the base they hold. The canonical bytes are written at the head of card.c.
 */
#ifndef ADAPTER_CARD_H
#define ADAPTER_CARD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"

enum { CARD_SERVING_MAX = 16 };

enum arch_kind { ARCH_LLAMA = 1, ARCH_QWEN2 = 2, ARCH_QWEN3 = 3 };

/* Shape of a Llama-family model; one block kind with switches. */
struct arch {
    enum arch_kind kind;
    uint32_t n_layers, d_model, d_ff, n_heads, n_kv_heads, head_dim, vocab_size, context_max;
    float rope_theta, rms_eps;
    bool tied_head; /* the head is the token embedding */
    bool qkv_bias;  /* qwen2 */
    bool qk_norm;   /* qwen3: RMSNorm per head on q and k */
};

struct card {
    char base_name[64];      /* for people: "SmolLM2-135M-Instruct" */
    struct digest base;      /* of the weights that are trained on: see card_digest_base() */
    struct digest tokenizer; /* of the tokenizer's tables, see model/tokenizer.h */
    struct arch arch;
    uint32_t n_serving; /* further files with the same weights that may serve an adapter (bf16, Q8, ...) */
    struct digest serving[CARD_SERVING_MAX];
};

/* ST_BAD_DATA (with the field's name) unless every number is one we can work with: heads divide, dimensions between 1
 * and 2^20, layers at most 1024, finite positive theta and eps. */
enum status arch_check(const struct arch *arch, struct err *err);

void card_encode(const struct card *card, struct buf *out);
enum status card_decode(const void *data, size_t len, struct card *out, struct err *err); /* ends in arch_check */
void card_digest(const struct card *card, struct digest *out); /* BLAKE2b of the canonical bytes */
/* Of what training depends on: weights, tokenizer and architecture; not the name, nor what else may serve. A worker makes its
 * card from its own files and is compared by this. */
void card_digest_trained(const struct card *card, struct digest *out);

/* Digest of a base: a GGUF file's own bytes, or for a Hugging Face directory the BLAKE2b over the sorted
 * (name, size, digest) of its *.safetensors, config.json and tokenizer.json. Reads everything once. */
enum status card_digest_base(const char *path, struct digest *out, struct err *err);

#endif
