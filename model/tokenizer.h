/* tokenizer.h - byte-level BPE, exact to Hugging Face `tokenizers` for the pre-tokenizers smollm, gpt-2, llama-bpe
 * (Llama 3) and qwen2, read from GGUF metadata or from a tokenizer.json.
 *
 * Text is split by a hand-written scanner (no regex engine), each piece is merged by rank, leftmost first (Sennrich et
 * al. 2016, arXiv 1508.07909; byte-level as in GPT-2). qwen2 text is brought to NFC first, as its tokenizer.json asks.
 * Anything else (another pre-tokenizer, normalizer, dropout, byte fallback ...) is refused by name.
 *
 * Bytes that have no token (SmolLM2 lacks 21: 04 06 13 14 16 1d c0 c1 f1 f2 f5-ff) are dropped silently, as the reference
 * does: such text does not round-trip, and its neighbours may merge across the gap.
 *
 * Read-only after it was made: threads may share it.
 */
#ifndef MODEL_TOKENIZER_H
#define MODEL_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "adapter/gguf.h"
#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"

enum { TOKEN_NONE = UINT32_MAX, TOKENIZER_VOCAB_MAX = 1 << 20 };

struct tokenizer;

struct token_buf { /* grows; zeroed memory is empty */
    uint32_t *ids;
    size_t n, cap;
};
void token_buf_put(struct token_buf *buf, uint32_t id);
void token_buf_release(struct token_buf *buf);

/* From the tokenizer.ggml.* keys. ST_NOT_FOUND when there are none. */
enum status tokenizer_from_gguf(const struct gguf *gguf, struct tokenizer **out, struct err *err);
/* From the text of a tokenizer.json; the ids of bos and eos come from elsewhere (config.json), TOKEN_NONE when unknown. */
enum status tokenizer_from_json(const void *json, size_t len, uint32_t bos, uint32_t eos, struct tokenizer **out,
                                struct err *err);
void tokenizer_free(struct tokenizer *tok);

/* Appends the ids of `text` taken as plain text: the names of special and added tokens in it are text like any other, and
 * no bos or eos is added. ST_BAD_DATA when it is not valid UTF-8, ST_LIMIT beyond 1 GiB (then nothing is
 * appended). */
enum status tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len, struct token_buf *out,
                             struct err *err);
/* The same, but the names of control and added tokens become their ids (longest first): for templates only, never for
 * text from outside. */
enum status tokenizer_encode_special(const struct tokenizer *tok, const char *text, size_t len, struct token_buf *out,
                                     struct err *err);

/* Appends the bytes of each id: special tokens by name. Ids outside the vocabulary give nothing. The bytes need not be valid
 * UTF-8 when the ids are cut inside a character. */
void tokenizer_decode(const struct tokenizer *tok, const uint32_t *ids, size_t n, struct buf *out);

uint32_t tokenizer_vocab_size(const struct tokenizer *tok);                 /* largest id + 1; some ids may be unused */
uint32_t tokenizer_token_id(const struct tokenizer *tok, const char *name); /* exact, "<|im_end|>"; TOKEN_NONE */
uint32_t tokenizer_bos(const struct tokenizer *tok);                        /* TOKEN_NONE when unknown */
uint32_t tokenizer_eos(const struct tokenizer *tok);

/* BLAKE2b over everything that decides ids: pre-tokenizer, switches, tokens with their kinds, merges, bos and eos. */
void tokenizer_digest(const struct tokenizer *tok, struct digest *out);

#endif
