/* template.h - chat messages to token ids and the mask of what is learnt.
 *
 * A chat template is a Jinja program in the base's metadata. We do not run it: a known one is recognised by the SHA-256 of
 * its source and rendered here, equal to the reference (golden tests); an unknown one is refused with its hash.
 *
 * Contents are encoded as plain text: "<|im_end|>" inside a message is text and cannot end the turn. There the
 * reference, which parses the rendered string, differs on purpose.
 */
#ifndef MODEL_TEMPLATE_H
#define MODEL_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/status.h"
#include "model/tokenizer.h"

enum chat_template {
    CHAT_SMOLLM2 = 1, /* ChatML; a default system message comes first when the chat does not begin with one */
};

enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT };

struct chat_message { /* borrowed */
    enum chat_role role;
    const char *content; /* UTF-8 */
    size_t len;
};

/* ST_NOT_FOUND when `source` is NULL (the base has none), ST_UNSUPPORTED with its hash when it is unknown. */
enum status chat_template_find(const char *source, size_t len, enum chat_template *out, struct err *err);

/* Appends the ids of the whole chat, and for each a byte to `mask`: 1 when it is a target, that is the content of an
 * assistant's message and the end-of-turn token after it. With `ask` the opening of an assistant's turn is appended
 * (generation). `mask` may be NULL. ST_BAD_DATA: content not UTF-8, no messages, or a tokenizer without the
 * template's tokens; then nothing is appended. */
enum status chat_render(enum chat_template kind, const struct tokenizer *tok, const struct chat_message *messages,
                        size_t n, bool ask, struct token_buf *ids, struct buf *mask, struct err *err);

#endif
