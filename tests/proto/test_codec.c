/* The border: what is well formed passes unchanged, everything else has a name. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/limits.h"
#include "harness.h"
#include "proto/codec.h"
#include "proto/frame.h"
#include "proto/record.h"
#include "samples.h"

static void put_varint(struct buf *b, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        buf_put_u8(b, (uint8_t)(v | 0x80));
    buf_put_u8(b, (uint8_t)v);
}

static void put_field(struct buf *b, unsigned field, const void *data, size_t len)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, len);
    buf_put(b, data, len);
}

/* Decodes what must be refused; frees it if it was not. */
static enum status decode(uint16_t verb, const struct buf *b, struct err *err)
{
    ProtobufCMessage *m = NULL;
    enum status st = codec_decode(verb, buf_bytes(b), &m, err);
    codec_free(m);
    return st;
}

static void test_rules_are_complete(void)
{
    struct err err = {{0}};
    EXPECT_ST(codec_self_check(&err), ST_OK, &err);
}

static void test_every_message_round_trips(void)
{
    unsigned n;
    const struct verb_info *table = verb_table(&n);
    for (unsigned i = 0; i < n; i++) {
        struct err err = {{0}};
        struct buf a = {0}, b = {0};
        struct frame f = {0};
        ProtobufCMessage *m = NULL;
        EXPECT_ST(frame_encode(table[i].verb, 77, sample_of(table[i].verb), &a, &err), ST_OK, &err);
        EXPECT_ST(frame_decode(a.data, a.len, &f, &err), ST_OK, &err);
        EXPECT(f.verb == table[i].verb && f.request_id == 77 && f.version == PROTOCOL_VERSION);
        EXPECT_ST(codec_decode(f.verb, f.body, &m, &err), ST_OK, &err);
        if (m) {
            EXPECT_ST(frame_encode(f.verb, 77, m, &b, &err), ST_OK, &err);
            EXPECT(a.len == b.len && !memcmp(a.data, b.data, a.len));
        }
        codec_free(m);
        buf_release(&a);
        buf_release(&b);
    }
}

/* No cut of a frame reads outside (the sanitizers watch); each is refused or a shorter valid message. */
static void test_truncations_and_flips(void)
{
    unsigned n, refused = 0, passed = 0;
    const struct verb_info *table = verb_table(&n);
    for (unsigned i = 0; i < n; i++) {
        struct buf a = {0};
        struct frame f;
        EXPECT_ST(frame_encode(table[i].verb, 1, sample_of(table[i].verb), &a, NULL), ST_OK, NULL);
        for (size_t len = 0; len < a.len; len++) {
            uint8_t *exact = xmemdup(a.data, len); /* so that one byte too far is outside */
            ProtobufCMessage *m = NULL;
            enum status st = frame_decode(exact, len, &f, NULL);
            EXPECT((len < FRAME_HEADER_LEN) == (st != ST_OK));
            if (!st && !codec_decode(f.verb, f.body, &m, NULL))
                passed++;
            else
                refused++;
            codec_free(m);
            free(exact);
        }
        for (size_t bit = 0; bit < 8 * a.len; bit++) {
            ProtobufCMessage *m = NULL;
            a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (!frame_decode(a.data, a.len, &f, NULL) && !codec_decode(f.verb, f.body, &m, NULL))
                passed++;
            codec_free(m);
            a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        buf_release(&a);
    }
    EXPECT(refused > 100 && passed > 100);
}

/* A release too far away is refused in words that it can read, and can itself refuse in words that we can. */
static void test_protocols(void)
{
    static const uint16_t timeless[] = {VERB_HELLO, VERB_HELLO_OK, VERB_ERROR};
    EXPECT_EQ(protocol_pick(PROTOCOL_VERSION, PROTOCOL_VERSION), PROTOCOL_VERSION);
    EXPECT_EQ(protocol_pick(PROTOCOL_MIN, PROTOCOL_MIN), PROTOCOL_MIN);
    EXPECT_EQ(protocol_pick(PROTOCOL_VERSION, PROTOCOL_VERSION + 1),
              PROTOCOL_VERSION); /* for it we are the one before */
    EXPECT_EQ(protocol_pick(1, UINT32_MAX), PROTOCOL_VERSION);
    EXPECT_EQ(protocol_pick(PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 2), 0);
    EXPECT_EQ(protocol_pick(0, PROTOCOL_MIN - 1), 0);
    for (size_t i = 0; i < sizeof timeless / sizeof timeless[0]; i++) {
        struct buf a = {0};
        struct frame f = {0};
        EXPECT_ST(frame_encode(timeless[i], 5, sample_of(timeless[i]), &a, NULL), ST_OK, NULL);
        a.data[4] = PROTOCOL_VERSION + 7;
        EXPECT_ST(frame_decode(a.data, a.len, &f, NULL), ST_OK, NULL);
        EXPECT(f.verb == timeless[i] && f.request_id == 5);
        buf_release(&a);
    }
}

static void test_frame_header(void)
{
    struct buf a = {0};
    struct frame f = {0};
    EXPECT_ST(frame_encode(VERB_WATCH, 5, sample_of(VERB_WATCH), &a, NULL), ST_OK, NULL);
    a.data[4] = 2; /* protocol 2 */
    EXPECT_ST(frame_decode(a.data, a.len, &f, NULL), ST_UNSUPPORTED, NULL);
    EXPECT(f.version == 2 && f.request_id == 5 && f.verb == VERB_WATCH);
    a.data[4] = 0;
    EXPECT_ST(frame_decode(a.data, a.len, &f, NULL), ST_UNSUPPORTED, NULL);
    a.data[4] = 1;
    a.data[0] = 'a';
    EXPECT_ST(frame_decode(a.data, a.len, &f, NULL), ST_BAD_DATA, NULL);
    a.data[0] = 'A';
    a.data[7] = 9;
    EXPECT_ST(frame_decode(a.data, a.len, &f, NULL), ST_BAD_DATA, NULL);
    EXPECT_ST(frame_decode(a.data, LIMIT_FRAME_BYTES + 1, &f, NULL), ST_LIMIT, NULL);
    buf_release(&a);

    Alv__PushOpen open = ALV__PUSH_OPEN__INIT; /* the sender hears first what the peer would say */
    open.domain = (char *)(uintptr_t) "Not A Name", open.source = (char *)(uintptr_t) "s";
    struct err err = {{0}};
    EXPECT_ST(frame_encode(VERB_PUSH_OPEN, 1, &open.base, &a, &err), ST_BAD_DATA, &err);
    EXPECT(a.len == 0 && strstr(err.text, "domain"));
    buf_release(&a);
}

static void test_hostile_shapes(void)
{
    struct buf b = {0}, record = {0};
    struct err err = {{0}};
    put_varint(&record, 1 << 3), put_varint(&record, 1);
    for (int i = 0; i < LIMIT_BATCH_RECORDS; i++)
        put_field(&b, 3, record.data, record.len);
    EXPECT_ST(decode(VERB_PUSH_BATCH, &b, &err), ST_OK, &err);
    put_field(&b, 3, record.data, record.len);
    EXPECT_ST(decode(VERB_PUSH_BATCH, &b, &err), ST_LIMIT, &err);
    EXPECT(strstr(err.text, "records"));

    buf_clear(&b); /* millions of empty elements in a small frame */
    for (int i = 0; i < 2000000; i++)
        put_field(&b, 3, NULL, 0);
    EXPECT_ST(decode(VERB_PUSH_BATCH, &b, &err), ST_LIMIT, &err);
    buf_clear(&b); /* or of unknown fields */
    for (int i = 0; i < 1000000; i++)
        put_varint(&b, 900 << 3), put_varint(&b, 1);
    EXPECT_ST(decode(VERB_WATCH, &b, &err), ST_LIMIT, &err);

    buf_clear(&b); /* a length that passes the end, and one that overflows */
    put_varint(&b, 1 << 3 | 2), put_varint(&b, 10), buf_put(&b, "abc", 3);
    EXPECT_ST(decode(VERB_PUSH_OPEN, &b, &err), ST_BAD_DATA, &err);
    buf_clear(&b);
    put_varint(&b, 1 << 3 | 2), put_varint(&b, UINT64_MAX);
    EXPECT_ST(decode(VERB_PUSH_OPEN, &b, &err), ST_BAD_DATA, &err);
    buf_clear(&b); /* a varint without an end */
    for (int i = 0; i < 11; i++)
        buf_put_u8(&b, 0xff);
    EXPECT_ST(decode(VERB_WATCH, &b, &err), ST_BAD_DATA, &err);
    buf_clear(&b); /* a group; field number 0; a field twice; the wrong wire type */
    put_varint(&b, 900 << 3 | 3), put_varint(&b, 900 << 3 | 4);
    EXPECT_ST(decode(VERB_WATCH, &b, &err), ST_BAD_DATA, &err);
    EXPECT_ST(decode(VERB_WATCH, &(struct buf){(uint8_t[]){0, 1}, 2, 2}, &err), ST_BAD_DATA, &err);
    EXPECT_ST(decode(VERB_WATCH, &(struct buf){(uint8_t[]){8, 1, 8, 1}, 4, 4}, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "twice"));
    EXPECT_ST(decode(VERB_WATCH, &(struct buf){(uint8_t[]){10, 1, 8}, 3, 3}, &err), ST_BAD_DATA, &err);
    EXPECT_ST(decode(VERB_WATCH, &(struct buf){(uint8_t[]){0xa0, 0x38, 1}, 3, 3}, &err), ST_OK, &err); /* newer */
    EXPECT_ST(decode(9999, &(struct buf){0}, &err), ST_BAD_DATA, &err);
    buf_release(&b);
    buf_release(&record);
}

/* Changes one field of a fresh sample, expects the status, and that the text names the field. */
#define REFUSED(VERB, TYPE, want, name, change)                                               \
    do {                                                                                      \
        struct buf b_ = {0};                                                                  \
        struct err err_ = {{0}};                                                              \
        ProtobufCMessage *m_ = NULL;                                                          \
        const ProtobufCMessage *s_ = sample_of(VERB);                                         \
        protobuf_c_message_pack(s_, buf_extend(&b_, protobuf_c_message_get_packed_size(s_))); \
        EXPECT_ST(codec_decode(VERB, buf_bytes(&b_), &m_, &err_), ST_OK, &err_);              \
        TYPE *m = (TYPE *)m_;                                                                 \
        change;                                                                               \
        buf_clear(&b_);                                                                       \
        size_t len_ = protobuf_c_message_get_packed_size(m_);                                 \
        protobuf_c_message_pack(m_, buf_extend(&b_, len_));                                   \
        EXPECT_ST(decode(VERB, &b_, &err_), want, &err_);                                     \
        EXPECT(strstr(err_.text, name));                                                      \
        buf_release(&b_);                                                                     \
        codec_free(m_);                                                                       \
    } while (0)

static void test_rules_bite(void)
{
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "instance", m->instance.len = 15);
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "instance", m->instance.len = 0);
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "card_digest", m->card_digest.len = 31);
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "line", m->line[0] = '/');
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "software", m->software[0] = (char)0xff);
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "protocol_min", (m->protocol_min = 2, m->protocol_max = 1));
    REFUSED(VERB_HELLO, Alv__Hello, ST_BAD_DATA, "protocol_max", m->protocol_max = 0);
    REFUSED(VERB_TASK_REQUEST, Alv__TaskRequest, ST_LIMIT, "wait_ms", m->wait_ms = LIMIT_WAIT_MS + 1);
    REFUSED(VERB_BLOB_GET, Alv__BlobGet, ST_BAD_DATA, "digest", m->digest.len = 20);
    REFUSED(VERB_BLOB_GET, Alv__BlobGet, ST_LIMIT, "len", m->len = LIMIT_CHUNK_BYTES + 1);
    REFUSED(VERB_BLOB_GET, Alv__BlobGet, ST_LIMIT, "offset", m->offset = UINT64_MAX);
    REFUSED(VERB_BLOB_PUT, Alv__BlobPut, ST_BAD_DATA, "BlobPut", m->offset = 1);
    REFUSED(VERB_BLOB_PUT, Alv__BlobPut, ST_BAD_DATA, "chunk_digest", m->chunk_digest.len = 0);
    REFUSED(VERB_BLOB_CHUNK, Alv__BlobChunk, ST_BAD_DATA, "BlobChunk", m->total = 109);
    REFUSED(VERB_SEGMENTS_GET, Alv__SegmentsGet, ST_BAD_DATA, "offsets", m->offsets.len = 79);
    REFUSED(VERB_SEGMENTS_GET, Alv__SegmentsGet, ST_LIMIT, "domain", m->domain = LIMIT_DOMAINS);
    REFUSED(VERB_PUSH_BATCH, Alv__PushBatch, ST_BAD_DATA, "kind", m->records[0]->kind = 7);
    REFUSED(VERB_PUSH_ACK, Alv__PushAck, ST_BAD_DATA, "reason", m->refused[0]->reason = 0);
    REFUSED(VERB_CONTROL, Alv__Control, ST_BAD_DATA, "verb", m->verb = 99);
    REFUSED(VERB_CONTROL, Alv__Control, ST_BAD_DATA, "name", m->name[0] = '.');
    REFUSED(VERB_ERROR, Alv__Error, ST_BAD_DATA, "status", m->status = 0);
    REFUSED(VERB_TASK, Alv__Task, ST_BAD_DATA, "lr", m->lease->train->lr = NAN);
    REFUSED(VERB_TASK, Alv__Task, ST_BAD_DATA, "count", m->lease->fresh[0]->count = 0);
    REFUSED(VERB_TASK, Alv__Task, ST_BAD_DATA, "overlap", m->lease->fresh[0]->count = 6);
    REFUSED(VERB_TASK, Alv__Task, ST_BAD_DATA, "order", m->lease->fresh[2]->domain = 0);
    REFUSED(VERB_TASK, Alv__Task, ST_LIMIT, "segments", m->lease->fresh[2]->count = LIMIT_LEASE_SEGMENTS);
    REFUSED(VERB_TASK, Alv__Task, ST_LIMIT, "first", m->lease->fresh[2]->first = UINT64_MAX);
    REFUSED(VERB_EVAL_RESULT, Alv__EvalResult, ST_BAD_DATA, "windows", m->nll.len -= 8);
    REFUSED(VERB_EVAL_RESULT, Alv__EvalResult, ST_BAD_DATA, "tokens", m->tokens.len -= 1);
    REFUSED(VERB_WATCH_REPLY, Alv__WatchReply, ST_BAD_DATA, "signature", m->versions[1]->signature.len = 63);
    REFUSED(VERB_WATCH_REPLY, Alv__WatchReply, ST_BAD_DATA, "release_cert", m->release_cert.len = 64);
}

static void test_nul_in_a_string(void)
{
    struct buf b = {0};
    struct err err = {{0}};
    put_field(&b, 1, "ocaml", 5);
    put_field(&b, 2, "a\0b", 3);
    EXPECT_ST(decode(VERB_PUSH_OPEN, &b, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "NUL"));
    buf_release(&b);
}

static void test_errors_travel(void)
{
    Alv__Error e;
    struct err err = {{0}};
    codec_error(&e, ST_AGAIN, "full", 99999999);
    EXPECT_EQ(e.retry_ms, LIMIT_RETRY_MS);
    EXPECT_ST(codec_error_status(&e, &err), ST_AGAIN, &err);
    EXPECT_STR(err.text, "full");
    e.status = -1000;
    EXPECT_ST(codec_error_status(&e, &err), ST_BAD_DATA, &err);
}

static struct record_view view(Alv__RecordKind kind, const char *id, const char *group, const char *text, size_t len)
{
    return (struct record_view){
        kind, {(const uint8_t *)id, strlen(id)}, {(const uint8_t *)group, strlen(group)}, {(const uint8_t *)text, len}};
}

static void test_records(void)
{
    const Alv__RecordKind TEXT = ALV__RECORD_KIND__RECORD_TEXT, CHAT = ALV__RECORD_KIND__RECORD_CHAT;
    char *big = xcalloc(1, LIMIT_RECORD_BYTES + 1);
    memset(big, 'x', LIMIT_RECORD_BYTES + 1);
    struct record_view r = view(TEXT, "a", "", "text", 4);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_NONE);
    r = view(TEXT, "a", "", "", 0);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_EMPTY);
    r = view(TEXT, "a", "", big, LIMIT_RECORD_BYTES);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_NONE);
    r = view(TEXT, "a", "", big, LIMIT_RECORD_BYTES + 1);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_TOO_LONG);
    r = view(CHAT, "a", "", "\xc0\x80", 2);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_NOT_UTF8);
    r = view(TEXT, "a\n", "", "t", 1);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_BAD_ID);
    r = view(TEXT, "a", "\xff", "t", 1);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_BAD_ID);
    r = view(ALV__RECORD_KIND__RECORD_NONE, "a", "", "t", 1);
    EXPECT_EQ(record_check(&r), ALV__REFUSAL__REFUSAL_BAD_ID);
    free(big);

    /* known answers: hashlib.blake2b(b"alluvium record 1\0" + b"\x01" + (5).to_bytes(8, "little") + b"let x",
     * digest_size=32), and the chain over it from 32 zero bytes with id "a" and group "" */
    struct digest d, chain = {{0}}, other = {{0}};
    char hex[DIGEST_HEX_SIZE], names[DIGEST_HEX_SIZE];
    r = view(TEXT, "a", "", "let x", 5);
    record_digest(&r, &d);
    digest_hex(&d, hex);
    EXPECT_STR(hex, "73cf3169c95749c702997067d15c18e39363e9c62ff68518bb040971ed292d43");
    record_chain(&chain, &r, &d);
    digest_hex(&chain, hex);
    EXPECT_STR(hex, "b380ca791ef0a6ec91022ed19e47b8cde93ff4742ebb679140d49c2213cf6468");
    r = view(TEXT, "", "a", "let x", 5); /* the same bytes on the other side of a border are another record */
    record_chain(&other, &r, &d);
    EXPECT(!digest_eq(&chain, &other));
    struct bytes id, group;
    record_names(&r, &d, names, &id, &group);
    EXPECT(id.len == 64 && group.len == 1);
    r = view(TEXT, "", "", "let x", 5);
    record_names(&r, &d, names, &id, &group);
    EXPECT(id.len == 64 && group.data == id.data);
}

static void test_utf8(void)
{
    const char *good[] = {
        "", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"};
    const char *bad[] = {"\x80",         "\xc0\x80",         "\xc1\xbf",         "\xe0\x9f\xbf",
                         "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
                         "\xc2",         "\xe2\x82",         "\xf0\x90\x80",     "\xe2\x28\xa1"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        EXPECT(utf8_valid(good[i], strlen(good[i])));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char text[16];
        snprintf(text, sizeof text, "ok%s", bad[i]);
        EXPECT_EQ(utf8_prefix(text, strlen(text)), 2);
    }
}

int main(void)
{
    hash_start();
    RUN(test_rules_are_complete);
    RUN(test_every_message_round_trips);
    RUN(test_truncations_and_flips);
    RUN(test_frame_header);
    RUN(test_protocols);
    RUN(test_hostile_shapes);
    RUN(test_rules_bite);
    RUN(test_nul_in_a_string);
    RUN(test_errors_travel);
    RUN(test_records);
    RUN(test_utf8);
    return harness_end();
}
