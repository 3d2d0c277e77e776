#include "proto/frame.h"

#include <string.h>

#include "base/check.h"
#include "proto/codec.h"

static const char magic[4] = {'A', 'L', 'V', '1'};

uint16_t protocol_pick(uint32_t min, uint32_t max)
{
    uint32_t highest = max < PROTOCOL_VERSION ? max : PROTOCOL_VERSION;
    return highest < PROTOCOL_MIN || highest < min ? 0 : (uint16_t)highest;
}

enum status frame_encode(uint16_t verb, uint64_t request_id, const ProtobufCMessage *message, struct buf *out,
                         struct err *err)
{
    const struct verb_info *info = verb_find(verb);
    CHECK(info && message->descriptor == info->message);
    size_t start = out->len, len = protobuf_c_message_get_packed_size(message);
    if (len > LIMIT_FRAME_BYTES - FRAME_HEADER_LEN)
        return err_set(err, ST_LIMIT, "%s of %zu bytes does not fit a frame of %d", info->name, len, LIMIT_FRAME_BYTES);
    buf_put(out, magic, sizeof magic);
    buf_put_u16(out, PROTOCOL_VERSION);
    buf_put_u16(out, verb);
    buf_put_u64(out, request_id);
    uint8_t *body = buf_extend(out, len);
    CHECK_EQ(protobuf_c_message_pack(message, body), len);
    enum status st = codec_check(verb, (struct bytes){body, len}, err);
    if (st)
        out->len = start;
    return st;
}

enum status frame_decode(const void *data, size_t len, struct frame *out, struct err *err)
{
    struct reader r = reader_of(data, len);
    struct frame f;
    if (len > LIMIT_FRAME_BYTES)
        return err_set(err, ST_LIMIT, "frame of %zu bytes; at most %d", len, LIMIT_FRAME_BYTES);
    const uint8_t *head = read_raw(&r, sizeof magic);
    if (!head || memcmp(head, magic, sizeof magic))
        return err_set(err, ST_BAD_DATA, "no frame of alluvium: the magic is missing");
    f.version = read_u16(&r);
    f.verb = read_u16(&r);
    f.request_id = read_u64(&r);
    if (r.failed)
        return err_set(err, ST_BAD_DATA, "frame of %zu bytes is shorter than its header", len);
    f.body = (struct bytes){r.data + r.at, len - r.at};
    bool timeless = f.verb == VERB_HELLO || f.verb == VERB_HELLO_OK || f.verb == VERB_ERROR;
    if ((f.version < PROTOCOL_MIN || f.version > PROTOCOL_VERSION) && !timeless) {
        *out = f;
        return err_set(err, ST_UNSUPPORTED, "protocol %u; this side speaks %d to %d: run releases next to each other",
                       f.version, PROTOCOL_MIN, PROTOCOL_VERSION);
    }
    if (!verb_find(f.verb))
        return err_set(err, ST_BAD_DATA, "no verb has the number %u", f.verb);
    *out = f;
    return ST_OK;
}
