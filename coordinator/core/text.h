/* text.h - what the intake does with a record's text: cut it into segments, or check that it is a chat. Pure. */
#ifndef COORDINATOR_CORE_TEXT_H
#define COORDINATOR_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

enum { CHAT_MESSAGES_MAX = 1024 };

/* Length of the next segment of `text` (valid UTF-8, not empty): whole lines as long as they fit in `bytes`; a line that
 * does not fit alone is cut at the last character boundary that does. Between 1 and `bytes`, which is at least 4. */
size_t text_cut(struct bytes text, size_t bytes);

/* Is this a JSON array of 1 .. CHAT_MESSAGES_MAX objects, each with exactly the string members "role" (system, user,
 * assistant or tool) and "content", at least one of them a non-empty "assistant"? Strict RFC 8259 (escapes included);
 * accepts no other member, so that nothing a template could be misled by gets in. */
bool chat_valid(struct bytes text);

#endif
