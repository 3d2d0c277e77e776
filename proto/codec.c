#include "proto/codec.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "proto/record.h"
#include "proto/unpack.h"
#include "proto/verbs.h"

/* ---- the rules: what a field may hold, beyond its type. A field with min > 0 must be there. */

enum rule_kind {
    NUMBER, /* value in [min, max] */
    ENUM,   /* a value of the enum, not under min */
    TEXT,   /* UTF-8 without NUL, min..max bytes */
    RAW,    /* a string without NUL, min..max bytes: judged singly by the core */
    NAME,   /* ids.h; empty allowed when min is 0 */
    BYTES,  /* min..max bytes, a multiple of `step`: {0, 32, 32} is "nothing or a digest" */
    COUNT,  /* elements of a repeated field */
    PART,   /* a message; needed when min is 1 */
};

struct rule {
    const ProtobufCMessageDescriptor *message;
    const char *field;
    enum rule_kind kind;
    uint64_t min, max;
    uint32_t step;
};

#define OF(message) &alv__##message##__descriptor
#define EXACTLY(n) BYTES, (n), (n), 1
#define MAYBE(n) BYTES, 0, (n), (n)
#define SMALL_TEXT TEXT, 0, LIMIT_TEXT_BYTES, 0
#define DOMAIN_INDEX NUMBER, 0, LIMIT_DOMAINS - 1, 0
#define DURATION NUMBER, 1, 24 * 3600 * 1000, 0

static const struct rule rules[] = {
    /* rules of one message stand together */
    {OF(error), "text", SMALL_TEXT},
    {OF(error), "retry_ms", NUMBER, 0, LIMIT_RETRY_MS, 0},
    {OF(hello), "protocol_min", NUMBER, 1, UINT16_MAX, 0},
    {OF(hello), "protocol_max", NUMBER, 1, UINT16_MAX, 0},
    {OF(hello), "line", NAME, 0, NAME_MAX_LEN, 0},
    {OF(hello), "instance", EXACTLY(16)},
    {OF(hello), "software", SMALL_TEXT},
    {OF(hello), "session_incarnation", MAYBE(16)},
    {OF(hello), "card_digest", MAYBE(DIGEST_LEN)},
    {OF(hello_ok), "protocol", NUMBER, 1, UINT16_MAX, 0},
    {OF(hello_ok), "line", NAME, 1, NAME_MAX_LEN, 0},
    {OF(hello_ok), "session_incarnation", EXACTLY(16)},
    {OF(hello_ok), "previous_incarnation", EXACTLY(16)},
    {OF(hello_ok), "card", BYTES, 0, LIMIT_CARD_BYTES, 1},
    {OF(hello_ok), "root_key", EXACTLY(32)},
    {OF(hello_ok), "seed", MAYBE(16)},
    {OF(hello_ok), "adapter_rank", NUMBER, 0, 65536, 0},
    {OF(hello_ok), "adapter_alpha", NUMBER, 0, 65536, 0},
    {OF(push_open), "domain", NAME, 1, NAME_MAX_LEN, 0},
    {OF(push_open), "source", TEXT, 1, LIMIT_SOURCE_BYTES, 0},
    {OF(push_opened), "position", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(push_opened), "rolling", EXACTLY(DIGEST_LEN)},
    {OF(push_opened), "record_bytes_max", NUMBER, 1, LIMIT_RECORD_BYTES, 0},
    {OF(push_opened), "batch_records_max", NUMBER, 1, LIMIT_BATCH_RECORDS, 0},
    {OF(push_opened), "batch_bytes_max", NUMBER, 1, LIMIT_BATCH_BYTES, 0},
    {OF(record), "kind", ENUM, 0, 0, 0},
    {OF(record), "id", RAW, 0, LIMIT_FRAME_BYTES, 0},
    {OF(record), "group", RAW, 0, LIMIT_FRAME_BYTES, 0},
    {OF(record), "text", BYTES, 0, LIMIT_FRAME_BYTES, 1},
    {OF(push_batch), "position", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(push_batch), "records", COUNT, 1, LIMIT_BATCH_RECORDS, 0},
    {OF(refused), "index", NUMBER, 0, LIMIT_BATCH_RECORDS - 1, 0},
    {OF(refused), "reason", ENUM, 1, 0, 0},
    {OF(push_ack), "refused", COUNT, 0, LIMIT_BATCH_RECORDS, 0},
    {OF(task_request), "wait_ms", NUMBER, 0, LIMIT_WAIT_MS, 0},
    {OF(task_request), "fingerprint", SMALL_TEXT},
    {OF(range), "domain", DOMAIN_INDEX},
    {OF(range), "first", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(range), "count", NUMBER, 1, LIMIT_LEASE_SEGMENTS, 0},
    {OF(domain_view), "domain", DOMAIN_INDEX},
    {OF(domain_view), "name", NAME, 1, NAME_MAX_LEN, 0},
    {OF(domain_view), "watermark", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(train_config), "seq_tokens", NUMBER, 1, 1 << 20, 0},
    {OF(train_config), "step_tokens", NUMBER, 1, 1 << 24, 0},
    {OF(train_config), "anchor_permille", NUMBER, 0, 1000, 0},
    {OF(train_config), "history_permille", NUMBER, 0, 1000, 0},
    {OF(train_config), "sample_k", NUMBER, 0, 1 << 24, 0},
    {OF(blob_ref), "digest", EXACTLY(DIGEST_LEN)},
    {OF(blob_ref), "bytes", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(lease), "session_incarnation", EXACTLY(16)},
    {OF(lease), "parent_adapter", PART, 1, 1, 0},
    {OF(lease), "fresh", COUNT, 1, LIMIT_LEASE_RANGES, 0},
    {OF(lease), "domains", COUNT, 0, LIMIT_DOMAINS, 0},
    {OF(lease), "train", PART, 1, 1, 0},
    {OF(lease), "progress_ms", DURATION},
    {OF(adapter_ref), "adapter", PART, 1, 1, 0},
    {OF(evaluate), "session_incarnation", EXACTLY(16)},
    {OF(evaluate), "adapters", COUNT, 1, LIMIT_EVAL_ADAPTERS, 0},
    {OF(evaluate), "windows", COUNT, 1, LIMIT_EVAL_WINDOWS, 0},
    {OF(evaluate), "window_tokens", NUMBER, 1, 1 << 20, 0},
    {OF(evaluate), "progress_ms", DURATION},
    {OF(task_return), "reason", SMALL_TEXT},
    {OF(task_return), "why", ENUM, 0, 0, 0},
    {OF(domain_tokens), "domain", DOMAIN_INDEX},
    {OF(delta_commit), "session_incarnation", EXACTLY(16)},
    {OF(delta_commit), "delta", PART, 1, 1, 0},
    {OF(delta_commit), "fresh", COUNT, 0, LIMIT_DOMAINS, 0},
    {OF(delta_commit), "first_losses", BYTES, 0, 4 * LIMIT_LEASE_SEGMENTS, 4},
    {OF(delta_commit), "fingerprint", SMALL_TEXT},
    {OF(delta_ack), "reason", SMALL_TEXT},
    {OF(eval_result), "session_incarnation", EXACTLY(16)},
    {OF(eval_result), "nll", BYTES, 8, 8 * LIMIT_EVAL_ADAPTERS *LIMIT_EVAL_WINDOWS, 8},
    {OF(eval_result), "tokens", BYTES, 4, 4 * LIMIT_EVAL_WINDOWS, 4},
    {OF(eval_result), "fingerprint", SMALL_TEXT},
    {OF(exclusion), "domain", DOMAIN_INDEX},
    {OF(exclusion), "first", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(exclusion), "count", NUMBER, 1, UINT32_MAX, 0},
    {OF(exclusion), "watermark", NUMBER, 0, LIMIT_OFFSET, 0},
    {OF(exclusions), "entries", COUNT, 0, LIMIT_EXCLUSIONS, 0},
    {OF(blob_get), "digest", EXACTLY(DIGEST_LEN)},
    {OF(blob_get), "offset", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(blob_get), "len", NUMBER, 1, LIMIT_CHUNK_BYTES, 0},
    {OF(blob_chunk), "offset", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(blob_chunk), "total", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(blob_chunk), "data", BYTES, 0, LIMIT_CHUNK_BYTES, 1},
    {OF(blob_chunk), "chunk_digest", EXACTLY(DIGEST_LEN)},
    {OF(blob_put), "digest", EXACTLY(DIGEST_LEN)},
    {OF(blob_put), "total", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(blob_put), "offset", NUMBER, 0, LIMIT_BLOB_BYTES, 0},
    {OF(blob_put), "data", BYTES, 0, LIMIT_CHUNK_BYTES, 1},
    {OF(blob_put), "chunk_digest", MAYBE(DIGEST_LEN)},
    {OF(segments_get), "domain", DOMAIN_INDEX},
    {OF(segments_get), "offsets", BYTES, 8, 8 * LIMIT_SEGMENTS_GET, 8},
    {OF(segment), "kind", ENUM, 0, 0, 0},
    {OF(segment), "group", MAYBE(8)},
    {OF(segment), "text", BYTES, 0, LIMIT_RECORD_BYTES, 1},
    {OF(segments), "segments", COUNT, 0, LIMIT_SEGMENTS_GET, 0},
    {OF(watch), "wait_ms", NUMBER, 0, LIMIT_WAIT_MS, 0},
    {OF(signed_manifest), "manifest", BYTES, 1, LIMIT_MANIFEST_BYTES, 1},
    {OF(signed_manifest), "signature", EXACTLY(64)},
    {OF(signed_aliases), "statement", BYTES, 1, LIMIT_MANIFEST_BYTES, 1},
    {OF(signed_aliases), "signature", EXACTLY(64)},
    {OF(watch_reply), "versions", COUNT, 0, LIMIT_WATCH_VERSIONS, 0},
    {OF(watch_reply), "aliases", PART, 0, 1, 0},
    {OF(watch_reply), "release_key", MAYBE(32)},
    {OF(watch_reply), "release_cert", MAYBE(80)},
    {OF(serving), "target", SMALL_TEXT},
    {OF(serving), "error", SMALL_TEXT},
    {OF(control), "verb", ENUM, 1, 0, 0},
    {OF(control), "name", NAME, 0, NAME_MAX_LEN, 0},
    {OF(control), "value", SMALL_TEXT},
    {OF(control), "domain", NAME, 0, NAME_MAX_LEN, 0},
    {OF(control), "record", TEXT, 0, LIMIT_RECORD_ID_BYTES, 0},
    {OF(control), "token", MAYBE(16)},
    {OF(control_reply), "json", TEXT, 0, LIMIT_JSON_BYTES, 0},
};

enum { N_RULES = sizeof rules / sizeof rules[0], FIELDS_MAX = 32, PLANS_MAX = 128 };

/* First rule of a message, or N_RULES. */
static unsigned rules_of(const ProtobufCMessageDescriptor *d)
{
    unsigned i = 0;
    while (i < N_RULES && rules[i].message != d)
        i++;
    return i;
}

static const struct rule *rule_find(unsigned first, const ProtobufCMessageDescriptor *d, const char *field)
{
    for (unsigned i = first; i < N_RULES && rules[i].message == d; i++)
        if (!strcmp(rules[i].field, field))
            return &rules[i];
    return NULL;
}

/* The same table by message and field: a batch has a thousand records, and nobody wants to compare names for each. */
struct plan {
    const ProtobufCMessageDescriptor *message;
    const struct rule *rule[FIELDS_MAX];   /* of the field with this index; NULL: none */
    const struct plan *inside[FIELDS_MAX]; /* of a field that is a message */
    uint32_t needed;                       /* bits: fields with a min */
};

static struct plan plans[PLANS_MAX];
static unsigned n_plans;
static pthread_once_t plans_once = PTHREAD_ONCE_INIT;

static const struct plan *plan_add(const ProtobufCMessageDescriptor *d)
{
    for (unsigned i = 0; i < n_plans; i++)
        if (plans[i].message == d)
            return &plans[i];
    CHECK(n_plans < PLANS_MAX && d->n_fields <= FIELDS_MAX);
    struct plan *plan = &plans[n_plans++];
    unsigned first = rules_of(d);
    plan->message = d;
    for (unsigned i = 0; i < d->n_fields; i++) {
        plan->rule[i] = rule_find(first, d, d->fields[i].name);
        if (plan->rule[i] && plan->rule[i]->min)
            plan->needed |= 1u << i;
        if (d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            plan->inside[i] = plan_add(d->fields[i].descriptor);
    }
    return plan;
}

static void plans_make(void)
{
    unsigned n;
    const struct verb_info *verbs = verb_table(&n);
    for (unsigned i = 0; i < n; i++)
        plan_add(verbs[i].message);
}

static const struct plan *plan_of(const ProtobufCMessageDescriptor *d)
{
    pthread_once(&plans_once, plans_make);
    unsigned i = 0;
    while (i < n_plans && plans[i].message != d)
        i++;
    CHECK(i < n_plans);
    return &plans[i];
}

/* ---- pass 1: the raw bytes along the descriptor */

struct scan {
    unsigned fields; /* seen so far, in all messages of the frame */
    struct err *err;
};

#define BAD(scan, d, f, ...) bad((scan), ST_BAD_DATA, (d), (f), __VA_ARGS__)
#define OVER(scan, d, f, ...) bad((scan), ST_LIMIT, (d), (f), __VA_ARGS__)

static enum status bad(struct scan *s, enum status st, const ProtobufCMessageDescriptor *d,
                       const ProtobufCFieldDescriptor *f, const char *what)
{
    return err_set(s->err, st, "%s%s%s: %s", d->short_name, f ? "." : "", f ? f->name : "", what);
}

static bool read_varint(struct reader *r, uint64_t *out)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && r->at < r->len; shift += 7) {
        uint8_t b = r->data[r->at++];
        if (shift == 63 && b > 1)
            return false;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *out = v;
            return true;
        }
    }
    return false;
}

/* One value as it stands on the wire. */
struct value {
    unsigned wire;
    uint64_t number;    /* wire types 0, 1, 5 */
    struct bytes bytes; /* wire type 2 */
};

static bool read_value(struct reader *r, unsigned wire, struct value *out)
{
    *out = (struct value){.wire = wire};
    uint64_t len;
    switch (wire) {
    case 0:
        return read_varint(r, &out->number);
    case 1:
        out->number = read_u64(r);
        return !r->failed;
    case 5:
        out->number = read_u32(r);
        return !r->failed;
    case 2:
        if (!read_varint(r, &len) || len > reader_left(r))
            return false;
        out->bytes = (struct bytes){read_raw(r, (size_t)len), (size_t)len};
        return true;
    default: /* groups are not spoken here */
        return false;
    }
}

static int wire_of(ProtobufCType type)
{
    switch (type) {
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        return 0;
    case PROTOBUF_C_TYPE_FLOAT:
        return 5;
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_BYTES:
    case PROTOBUF_C_TYPE_MESSAGE:
        return 2;
    default:
        return -1; /* a type no message of ours has */
    }
}

static enum status check_number(struct scan *s, const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                                const struct rule *rule, uint64_t v)
{
    float real;
    uint32_t bits = (uint32_t)v;
    switch (f->type) {
    case PROTOBUF_C_TYPE_FLOAT:
        memcpy(&real, &bits, sizeof real);
        return isfinite(real) ? ST_OK : BAD(s, d, f, "is not finite");
    case PROTOBUF_C_TYPE_BOOL:
        return v <= 1 ? ST_OK : BAD(s, d, f, "is neither true nor false");
    case PROTOBUF_C_TYPE_ENUM:
        if (v > INT32_MAX || !protobuf_c_enum_descriptor_get_value(f->descriptor, (int)v))
            return BAD(s, d, f, "has no such value");
        break;
    case PROTOBUF_C_TYPE_UINT64:
        break;
    default:
        if (v > UINT32_MAX)
            return BAD(s, d, f, "does not fit 32 bits");
    }
    if (rule && v < rule->min)
        return BAD(s, d, f, "is too small");
    if (rule && rule->kind == NUMBER && v > rule->max)
        return OVER(s, d, f, "is over its limit");
    return ST_OK;
}

static enum status check_bytes(struct scan *s, const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                               const struct rule *rule, struct bytes b)
{
    if (b.len < rule->min)
        return BAD(s, d, f, "is too short");
    if (b.len > rule->max)
        return OVER(s, d, f, "is too long");
    if (rule->kind == BYTES)
        return b.len % rule->step ? BAD(s, d, f, "has a wrong length") : ST_OK;
    if (b.len && memchr(b.data, 0, b.len)) /* it would be cut there: protobuf-c gives C strings */
        return BAD(s, d, f, "holds a NUL");
    if (rule->kind == NAME && b.len && !name_valid((const char *)b.data, b.len))
        return BAD(s, d, f, "is not a name ([a-z0-9][a-z0-9._-]*, at most 63)");
    if (rule->kind == TEXT && !utf8_valid(b.data, b.len))
        return BAD(s, d, f, "is not UTF-8");
    return ST_OK;
}

static enum status scan_message(struct scan *s, const struct plan *plan, struct bytes b, int depth);

static enum status scan_field(struct scan *s, const struct plan *plan, unsigned index, const struct value *v,
                              unsigned seen, int depth)
{
    const ProtobufCMessageDescriptor *d = plan->message;
    const ProtobufCFieldDescriptor *f = &d->fields[index];
    const struct rule *rule = plan->rule[index];
    if ((int)v->wire != wire_of(f->type))
        return BAD(s, d, f, "has the wrong wire type");
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        if (!rule || rule->kind != COUNT || f->type != PROTOBUF_C_TYPE_MESSAGE)
            return BAD(s, d, f, "has no rule");
        if (seen > rule->max)
            return OVER(s, d, f, "has too many elements");
    } else if (seen > 1) {
        return BAD(s, d, f, "stands twice");
    }
    if (f->type == PROTOBUF_C_TYPE_MESSAGE)
        return scan_message(s, plan->inside[index], v->bytes, depth + 1);
    if (v->wire != 2)
        return check_number(s, d, f, rule, v->number);
    return rule ? check_bytes(s, d, f, rule, v->bytes) : BAD(s, d, f, "has no rule");
}

/* Which field has this number: its index, or -1. Fields mostly come in order, so the next one is tried first. */
static int field_index(const ProtobufCMessageDescriptor *d, uint64_t number, unsigned next)
{
    if (next < d->n_fields && d->fields[next].id == number)
        return (int)next;
    const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(d, (unsigned)number);
    return f ? (int)(f - d->fields) : -1;
}

static enum status scan_message(struct scan *s, const struct plan *plan, struct bytes b, int depth)
{
    const ProtobufCMessageDescriptor *d = plan->message;
    struct reader r = reader_of(b.data, b.len);
    unsigned seen[FIELDS_MAX] = {0}, next = 0;
    uint32_t there = 0;
    if (depth > LIMIT_FRAME_DEPTH)
        return OVER(s, d, NULL, "nested too deep");
    while (r.at < r.len) {
        uint64_t tag;
        struct value v;
        if (++s->fields > LIMIT_FRAME_FIELDS)
            return OVER(s, d, NULL, "the frame has too many fields");
        if (!read_varint(&r, &tag) || tag >> 3 == 0 || tag > UINT32_MAX || !read_value(&r, tag & 7, &v))
            return BAD(s, d, NULL, "malformed field");
        int index = field_index(d, tag >> 3, next);
        if (index < 0)
            continue; /* a newer peer's: skipped, but counted */
        next = (unsigned)index + (d->fields[index].label != PROTOBUF_C_LABEL_REPEATED);
        there |= 1u << index;
        enum status st = scan_field(s, plan, (unsigned)index, &v, ++seen[index], depth);
        if (st)
            return st;
    }
    uint32_t missing = plan->needed & ~there;
    return missing ? BAD(s, d, &d->fields[__builtin_ctz(missing)], "is missing") : ST_OK;
}

static enum status scan_body(uint16_t verb, struct bytes body, struct scan *s)
{
    const struct verb_info *info = verb_find(verb);
    if (!info)
        return err_set(s->err, ST_BAD_DATA, "no verb has the number %u", verb);
    if (body.len > LIMIT_FRAME_BYTES)
        return OVER(s, info->message, NULL, "is larger than a frame");
    return scan_message(s, plan_of(info->message), body, 1);
}

enum status codec_check(uint16_t verb, struct bytes body, struct err *err)
{
    struct scan s = {.err = err};
    return scan_body(verb, body, &s);
}

/* ---- pass 3 (after unpack.c): what concerns several fields */

static enum status check_ranges(Alv__Range *const *ranges, size_t n, bool ordered, uint64_t total_max,
                                const char *where, struct err *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        const Alv__Range *now = ranges[i], *before = i ? ranges[i - 1] : NULL;
        total += now->count;
        if (ordered && before && before->domain == now->domain && before->first + before->count > now->first)
            return err_set(err, ST_BAD_DATA, "%s: ranges overlap or are out of order", where);
        if (ordered && before && before->domain > now->domain)
            return err_set(err, ST_BAD_DATA, "%s: ranges are out of order", where);
    }
    if (total > total_max)
        return err_set(err, ST_LIMIT, "%s: %llu segments; at most %llu", where, (unsigned long long)total,
                       (unsigned long long)total_max);
    return ST_OK;
}

static enum status check_task(const Alv__Task *t, struct err *err)
{
    if (t->lease && t->evaluate)
        return err_set(err, ST_BAD_DATA, "Task: lease and evaluate at once");
    if (t->lease)
        return check_ranges(t->lease->fresh, t->lease->n_fresh, true, LIMIT_LEASE_SEGMENTS, "Lease.fresh", err);
    if (t->evaluate)
        return check_ranges(t->evaluate->windows, t->evaluate->n_windows, false, LIMIT_EVAL_WINDOWS, "Evaluate.windows",
                            err);
    return ST_OK;
}

static enum status check_span(uint64_t offset, size_t len, uint64_t total, const char *where, struct err *err)
{
    return offset <= total && len <= total - offset ? ST_OK
                                                    : err_set(err, ST_BAD_DATA, "%s: passes the blob's end", where);
}

static enum status check_whole(uint16_t verb, const ProtobufCMessage *m, struct err *err)
{
    const Alv__Hello *hello = (const Alv__Hello *)m;
    const Alv__EvalResult *result = (const Alv__EvalResult *)m;
    const Alv__BlobChunk *chunk = (const Alv__BlobChunk *)m;
    const Alv__BlobPut *put = (const Alv__BlobPut *)m;
    const Alv__Error *error = (const Alv__Error *)m;
    switch (verb) {
    case VERB_ERROR:
        return error->status < 0 ? ST_OK : err_set(err, ST_BAD_DATA, "Error.status: is no error");
    case VERB_HELLO:
        return hello->protocol_min <= hello->protocol_max
                   ? ST_OK
                   : err_set(err, ST_BAD_DATA, "Hello: protocol_min is over protocol_max");
    case VERB_TASK:
        return check_task((const Alv__Task *)m, err);
    case VERB_EVAL_RESULT:
        if (result->nll.len / 8 % (result->tokens.len / 4) ||
            result->nll.len / 8 > LIMIT_EVAL_ADAPTERS * (result->tokens.len / 4))
            return err_set(err, ST_BAD_DATA, "EvalResult: %zu losses do not go with %zu windows", result->nll.len / 8,
                           result->tokens.len / 4);
        return ST_OK;
    case VERB_BLOB_CHUNK:
        return check_span(chunk->offset, chunk->data.len, chunk->total, "BlobChunk", err);
    case VERB_BLOB_PUT:
        if (put->data.len && put->chunk_digest.len != DIGEST_LEN)
            return err_set(err, ST_BAD_DATA, "BlobPut.chunk_digest: is missing");
        return check_span(put->offset, put->data.len, put->total, "BlobPut", err);
    default:
        return ST_OK;
    }
}

enum status codec_decode(uint16_t verb, struct bytes body, ProtobufCMessage **out, struct err *err)
{
    struct scan s = {.err = err};
    enum status st = scan_body(verb, body, &s);
    if (st)
        return st;
    const struct verb_info *info = verb_find(verb);
    ProtobufCMessage *m = unpack_message(info->message, body, s.fields);
    if (!m)
        return err_set(err, ST_LIMIT, "%s: cannot be unpacked", info->name);
    st = check_whole(verb, m, err);
    if (st)
        codec_free(m);
    else
        *out = m;
    return st;
}

void codec_free(ProtobufCMessage *message)
{
    unpack_free(message);
}

/* ---- the table itself */

static enum status check_field_has_rule(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                                        struct err *err)
{
    const struct rule *rule = rule_find(rules_of(d), d, f->name);
    bool needs = f->label == PROTOBUF_C_LABEL_REPEATED || f->type == PROTOBUF_C_TYPE_STRING ||
                 f->type == PROTOBUF_C_TYPE_BYTES || f->type == PROTOBUF_C_TYPE_ENUM;
    bool fits = !rule || (f->label == PROTOBUF_C_LABEL_REPEATED) == (rule->kind == COUNT);
    if (rule && rule->kind != COUNT)
        switch (f->type) {
        case PROTOBUF_C_TYPE_STRING:
            fits = rule->kind == TEXT || rule->kind == RAW || rule->kind == NAME;
            break;
        case PROTOBUF_C_TYPE_BYTES:
            fits = rule->kind == BYTES && rule->step;
            break;
        case PROTOBUF_C_TYPE_ENUM:
            fits = rule->kind == ENUM;
            break;
        case PROTOBUF_C_TYPE_MESSAGE:
            fits = rule->kind == PART;
            break;
        default:
            fits = rule->kind == NUMBER;
        }
    if ((needs && !rule) || !fits || wire_of(f->type) < 0)
        return err_set(err, ST_INTERNAL, "%s.%s: %s", d->short_name, f->name, rule ? "unfit rule" : "no rule");
    return ST_OK;
}

static enum status check_message_has_rules(const ProtobufCMessageDescriptor *d, int depth, struct err *err)
{
    enum status st = ST_OK;
    if (depth > LIMIT_FRAME_DEPTH || d->n_fields > FIELDS_MAX)
        return err_set(err, ST_INTERNAL, "%s: nested too deep or too many fields", d->short_name);
    for (unsigned i = 0; !st && i < d->n_fields; i++) {
        st = check_field_has_rule(d, &d->fields[i], err);
        if (!st && d->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
            st = check_message_has_rules(d->fields[i].descriptor, depth + 1, err);
    }
    return st;
}

enum status codec_self_check(struct err *err)
{
    for (unsigned i = 0; i < N_RULES; i++) {
        if (!protobuf_c_message_descriptor_get_field_by_name(rules[i].message, rules[i].field))
            return err_set(err, ST_INTERNAL, "%s.%s: no such field", rules[i].message->short_name, rules[i].field);
        if (i && rules[i].message != rules[i - 1].message && rules_of(rules[i].message) != i)
            return err_set(err, ST_INTERNAL, "%s: its rules do not stand together", rules[i].message->short_name);
    }
    unsigned n;
    const struct verb_info *verbs = verb_table(&n);
    for (unsigned i = 0; i < n; i++) {
        enum status st = check_message_has_rules(verbs[i].message, 1, err);
        if (st)
            return st;
    }
    return ST_OK;
}

/* ---- errors as messages */

void codec_error(Alv__Error *out, enum status status, const char *text, uint32_t retry_ms)
{
    alv__error__init(out);
    out->status = status < 0 ? status : ST_INTERNAL;
    out->text = (char *)(uintptr_t)text; /* protobuf-c has no const; it only reads */
    out->retry_ms = retry_ms < LIMIT_RETRY_MS ? retry_ms : LIMIT_RETRY_MS;
}

enum status codec_error_status(const Alv__Error *error, struct err *err)
{
    bool known = error->status < 0 && error->status >= ST_INTERNAL;
    return err_set(err, known ? (enum status)error->status : ST_BAD_DATA, "%s",
                   error->text[0] ? error->text : "refused without a reason");
}
