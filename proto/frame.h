/* frame.h - one message on the wire: a fixed 16-byte header, then a protobuf body, in one ZeroMQ part.
 *
 *   0  4  magic "ALV1"
 *   4  2  protocol version, little-endian: what a reader must speak to understand the body
 *   6  2  verb, verbs.h
 *   8  8  request id: chosen by the requester, echoed in the reply; a retry keeps it
 *  16  -  body, at most LIMIT_FRAME_BYTES - 16
 *
 * Releases next to each other work together. Hello says which protocols its sender speaks, from and to; the answer names the
 * highest that both do, and is kept to on that connection. A program speaks PROTOCOL_VERSION and the one before. For this
 * to be said in words whatever comes, the header, hello, its answer and error never change their form, and are read under any
 * version; everything else outside PROTOCOL_MIN .. PROTOCOL_VERSION is refused.
 */
#ifndef PROTO_FRAME_H
#define PROTO_FRAME_H

#include <stdint.h>

#include "base/buf.h"
#include "base/limits.h"
#include "proto/verbs.h"

enum { FRAME_HEADER_LEN = 16, PROTOCOL_MIN = 1, PROTOCOL_VERSION = 1 };

_Static_assert(PROTOCOL_VERSION - PROTOCOL_MIN <= 1, "only the protocol before is kept");

/* The highest protocol that is in min .. max and spoken here; 0: none. */
uint16_t protocol_pick(uint32_t min, uint32_t max);

struct frame {
    uint16_t version, verb;
    uint64_t request_id;
    struct bytes body; /* points into what was decoded */
};

/* Appends the frame to `out`. The message must be the one of `verb` (CHECK). What the peer would refuse is refused here
 * already, with codec.h's text: ST_LIMIT or ST_BAD_DATA, and `out` is untouched. */
enum status frame_encode(uint16_t verb, uint64_t request_id, const ProtobufCMessage *message, struct buf *out,
                         struct err *err);

/* ST_BAD_DATA: short, wrong magic, no such verb. ST_LIMIT: too long. ST_UNSUPPORTED: a protocol not spoken here; `out`
 * then has version, verb and request_id, so that the refusal can be sent. The body is not looked at: codec_decode(). */
enum status frame_decode(const void *data, size_t len, struct frame *out, struct err *err);

#endif
