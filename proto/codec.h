/* codec.h - the border: a frame's body becomes a checked message here, or nowhere.
 *
 * Three passes. (1) The raw bytes are walked along the descriptor, without allocating: wire types, lengths, nesting,
 * number of fields, number of elements of each repeated field, no singular field twice, and each field's rule (a
 * digest has 32 bytes, a name is a name, a string is UTF-8 without NUL, an enum is in range, a float is finite, packed
 * values divide evenly, a number is under its limit). A string, bytes, enum or repeated field without a rule is refused,
 * so a new field cannot be forgotten. Unknown fields are skipped but counted (a newer peer). (2) Unpacked by protobuf-c
 * under an allocation cap that follows from (1). (3) What concerns several fields at once.
 *
 * A record that is too long, not UTF-8, or empty is no error of its frame: the core refuses it singly, record.h.
 */
#ifndef PROTO_CODEC_H
#define PROTO_CODEC_H

#include <protobuf-c/protobuf-c.h>
#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "base/status.h"

/* The message of `verb` in `body`. ST_BAD_DATA (malformed; the text names message and field) or ST_LIMIT (a bound of
 * limits.h). The caller frees with codec_free(), and with nothing else: the message and all in it are one allocation. Bytes
 * are copied out of `body`. */
enum status codec_decode(uint16_t verb, struct bytes body, ProtobufCMessage **out, struct err *err);

/* Pass (1) alone: what a peer would say of these bytes. */
enum status codec_check(uint16_t verb, struct bytes body, struct err *err);

/* Is the table of rules complete and about fields that exist? Asked by a test; names the culprit. */
enum status codec_self_check(struct err *err);

void codec_free(ProtobufCMessage *message); /* NULL is fine */

/* Fills an Error; `text` must live as long as it. */
void codec_error(Alv__Error *out, enum status status, const char *text, uint32_t retry_ms);

/* The status of a received Error (always negative, ST_BAD_DATA for a code we do not know) with its text in `err`. */
enum status codec_error_status(const Alv__Error *error, struct err *err);

#endif
