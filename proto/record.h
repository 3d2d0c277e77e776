/* record.h - what a pushed record is to both sides: its digest, its name, its place in the chain of its source, and
 * whether it can be taken at all. Pure; used by client/push and coordinator/intake, which must agree bit for bit.
 *
 *   record digest  = BLAKE2b-256("alluvium record 1\0" | u8 kind | u64 length | text)
 *   rolling chain  = BLAKE2b-256("alluvium chain 1\0" | d | record digest | u32 length | id | u32 length | group)
 *
 * with id and group as sent (an empty one stays empty), integers little-endian, and d = 32 zero bytes at position 0.
 */
#ifndef PROTO_RECORD_H
#define PROTO_RECORD_H

#include <stdbool.h>

#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "base/ids.h"

struct record_view { /* borrowed */
    Alv__RecordKind kind;
    struct bytes id, group, text;
};

struct record_view record_of(const Alv__Record *record); /* borrows from it */

/* REFUSAL_NONE, or why this record cannot be taken: EMPTY, TOO_LONG (over LIMIT_RECORD_BYTES), NOT_UTF8, BAD_ID (id or
 * group over LIMIT_RECORD_ID_BYTES, not UTF-8, or with a control character; also an unknown kind). The inside of a
 * chat's JSON is the intake's business. */
Alv__Refusal record_check(const struct record_view *record);

void record_digest(const struct record_view *record, struct digest *out);
void record_chain(struct digest *rolling, const struct record_view *record, const struct digest *digest);

/* The id and group that count: an empty id becomes the digest in hex (written to `hex`), an empty group the id. */
void record_names(const struct record_view *record, const struct digest *digest, char hex[DIGEST_HEX_SIZE],
                  struct bytes *id, struct bytes *group);

/* Well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF). NUL passes. */
bool utf8_valid(const void *text, size_t len);
size_t utf8_prefix(const void *text, size_t len); /* length of the longest well-formed prefix: to cut a text */

#endif
