/* unpack.h - a checked body becomes a message in a few slabs of memory that go together; inside proto/ only.
 *
 * A batch of a push has a thousand records: taken and given back one by one, their parts cost as much as all checks.
 */
#ifndef PROTO_UNPACK_H
#define PROTO_UNPACK_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>

#include "base/buf.h"

/* `fields`: how many there are in all messages of the body; with its length they bound what is taken from the system. NULL:
 * it cannot be unpacked within that. Free with unpack_free() and nothing else, and keep no part of it longer. */
ProtobufCMessage *unpack_message(const ProtobufCMessageDescriptor *descriptor, struct bytes body, size_t fields);
void unpack_free(ProtobufCMessage *message); /* NULL is fine */

#endif
