/* selftext.h - text that a base writes by itself, at temperature 1: what it knows, when nothing of its past is at hand.
 *
 * As an anchor it is replayed so that the base keeps what it knew. As a sentinel it measures what was lost: its tokens are
 * drawn from the base, so the loss that a version gains on it is an unbiased estimate of KL(base || version) on the
 * base's own contexts. To that end a text is kept only if it is scored on the very tokens that were drawn: it must
 * tokenise back to them, and its context begins with its first token.
 *
 * Without the chat template: the first token is drawn after the end-of-text (or bos) token, the rest after the text so
 * far alone. With it (Magpie, arXiv 2406.08464): a user's message is drawn after the opening of a user's turn, then the
 * answer; both must end by themselves.
 */
#ifndef MODEL_SELFTEXT_H
#define MODEL_SELFTEXT_H

#include <stdbool.h>

#include "base/buf.h"
#include "model/generate.h"
#include "model/template.h"

struct selftext_options {
    uint32_t texts;              /* drawn in one batch, 1 .. GENERATE_BATCH_MAX; fewer are kept */
    uint32_t tokens_max;         /* of a text, or of either message */
    uint32_t tokens_min;         /* shorter ones are dropped */
    bool chat;                   /* through the base's template */
    enum chat_template template; /* with chat */
    uint64_t seed;               /* of the batch: two seeds must differ by GENERATE_BATCH_MAX at least */
    uint32_t threads;
    enum ops_kind ops;
};

struct selftext_batch {
    struct selftext {
        struct buf text; /* plain: the text. chat: the user's message */
        struct buf answer;
        uint32_t n_tokens;
    } * items;
    uint32_t n;
    uint32_t unfinished, short_ones, unfaithful; /* dropped: had no end, too short, other tokens when read again */
};

/* ST_UNSUPPORTED: a base without the tokens it takes to begin. Else as generate_batch(). */
enum status selftext_draw(const struct frozen *base, const struct tokenizer *tok,
                          const struct selftext_options *options, struct selftext_batch *out, struct err *err);
void selftext_release(struct selftext_batch *batch);

#endif
