/* tokenizer_spec.h - what a file says of a tokenizer, before it is checked and indexed. Inside the model room only. */
#ifndef MODEL_TOKENIZER_SPEC_H
#define MODEL_TOKENIZER_SPEC_H

#include <stdbool.h>

#include "model/pretoken.h"
#include "model/tokenizer.h"

enum token_kind {
    TOKEN_UNUSED, /* a hole in the ids */
    TOKEN_NORMAL, /* made by merging; its text is in GPT-2's alphabet of bytes */
    TOKEN_ADDED,  /* control or added: found by name only; its text is plain */
};

struct token_spec {
    struct bytes text;
    enum token_kind kind;
};

struct merge_spec {
    struct bytes left, right; /* in the alphabet; the rank is the index */
};

struct tokenizer_spec { /* borrows all bytes; owns the two arrays */
    enum pretoken pretoken;
    bool nfc, ignore_merges;
    bool unknown_token; /* the file names a token for unknown bytes: refused when some byte lacks its own */
    uint32_t bos, eos;
    struct token_spec *tokens;
    struct merge_spec *merges;
    size_t n_tokens, n_merges;
};
void tokenizer_spec_release(struct tokenizer_spec *spec);

/* Checks and indexes. ST_BAD_DATA: a name twice, a merge of tokens that are not there. `where` begins each message. */
enum status tokenizer_build(const struct tokenizer_spec *spec, const char *where, struct tokenizer **out,
                            struct err *err);

#endif
