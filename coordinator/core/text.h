/* text.h - text without the world: a record's text cut into segments or checked as a chat, and bounded texts for people. */
#ifndef COORDINATOR_CORE_TEXT_H
#define COORDINATOR_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/status.h"

enum { CHAT_MESSAGES_MAX = 1024 };

/* Length of the next segment of `text` (valid UTF-8, not empty): whole lines as long as they fit in `bytes`; a line that
 * does not fit alone is cut at the last character boundary that does. Between 1 and `bytes`, which is at least 4. */
size_t text_cut(struct bytes text, size_t bytes);

/* Is this a JSON array of 1 .. CHAT_MESSAGES_MAX objects, each with exactly the string members "role" (system, user,
 * assistant or tool) and "content", at least one of them a non-empty "assistant"? Strict RFC 8259 (escapes included);
 * accepts no other member, so that nothing a template could be misled by gets in. */
bool chat_valid(struct bytes text);

/* Copies as much as fits, cut between characters, always terminated. `size` at least 1. */
void text_copy(char *out, size_t size, const char *s);

/* Formats into an array of char, cut to what fits (and to struct err's text). */
#define FORMAT(array, ...)                               \
    do {                                                 \
        struct err format_;                              \
        err_set(&format_, ST_OK, __VA_ARGS__);           \
        text_copy((array), sizeof(array), format_.text); \
    } while (0)

#endif
