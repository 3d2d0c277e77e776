/* generate.h - text from the model with an adapter: one token after the other, keys and values cached.
 * The base's weights are read in the file's quantisation (frozen.h).
 *
 * For people who want to see what a version says (`alluvium generate`) and for contexts sampled from the base itself.
 * Not a server. Same seed, same text on the same numeric fingerprint.
 */
#ifndef MODEL_GENERATE_H
#define MODEL_GENERATE_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/status.h"
#include "model/frozen.h"

struct generate_options {
    uint32_t tokens_max;  /* at most so many new tokens */
    float temperature;    /* 0: greedy */
    uint32_t top_k;       /* draw among the k likeliest; 0: among all */
    uint64_t seed;        /* of every draw */
    const uint32_t *stop; /* (n_stop) ids that end the text; the stop token itself is not handed on */
    uint32_t n_stop;
    uint32_t threads;
    enum ops_kind ops;
};

/* Called with every new token; false ends the generation early. */
typedef bool generate_fn(void *arg, uint32_t token);

/* 256 tokens, temperature 0.8, top-k 40, seed 1, no stop ids, 1 thread, BLAS. */
void generate_defaults(struct generate_options *out);

/* `block` (layout of `shape`) may be NULL: the bare base; `shape` is then not read. ST_USAGE: an empty prompt or a bad
 * option. ST_LIMIT: prompt + tokens_max beyond the model's context. ST_BAD_DATA: a prompt token outside the vocabulary.
 */
enum status generate(const struct frozen *base, const struct adapter_shape *shape, const float *block,
                     const uint32_t *prompt, uint32_t n_prompt, const struct generate_options *options, generate_fn *fn,
                     void *arg, struct err *err);

enum { GENERATE_BATCH_MAX = 64 };

struct generate_text {
    const uint32_t *prompt; /* (n_prompt) borrowed */
    uint32_t n_prompt;
    uint32_t *tokens; /* (options.tokens_max) room of the caller's; what was drawn */
    uint32_t n_tokens;
    bool stopped; /* by a stop token, not by the length */
};

/* Texts of the bare base side by side, a row of every product each: much faster than one after the other, since the
 * weights are read once a step for all of them. Text i draws from stream seed + i. Same texts, options and fingerprint: same
 * tokens. Errors as generate(). */
enum status generate_batch(const struct frozen *base, struct generate_text *texts, uint32_t n,
                           const struct generate_options *options, struct err *err);

#endif
