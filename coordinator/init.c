/* Making a line: directory and keys, version 0, then the anchor's text through the core's own intake, so that there is one
 * way only in which a record becomes segments.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/limits.h"
#include "coordinator/aggregate.h"
#include "coordinator/coordinator.h"
#include "coordinator/core/core.h"
#include "coordinator/dir.h"
#include "coordinator/facts.h"
#include "coordinator/streamlog.h"
#include "proto/codec.h"
#include "proto/record.h"

enum {
    RESERVE_DEFAULT = 256 << 20,
    LINE_MAX_BYTES = 2 * LIMIT_RECORD_BYTES + 65536, /* a JSONL line: text may double when escaped */
    PARAGRAPH_BYTES = 16 << 10,                      /* plain text becomes records of about this size */
    PROGRESS_EVERY = 64,                             /* batches */
};

struct intake { /* a pusher inside the process */
    const struct coordinator_init_options *options;
    struct coordinator_init_report *report;
    struct line_dir *dir;
    struct core *core;
    struct streamlog *log;
    struct effects effects;
    struct peer peer;
    uint64_t request, producer, position;
    /* the batch being filled */
    Alv__Record *records[LIMIT_BATCH_RECORDS];
    uint32_t n;
    size_t bytes;
    uint64_t batches, records_seen, bytes_seen;
    ProtobufCMessage *reply; /* of the last step: an owned copy */
    uint16_t reply_verb;
};

/* ---- the core, one event at a time ------------------------------------------------------------------------------ */

static ProtobufCMessage *copy_message(const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = xmalloc(len + 1);
    protobuf_c_message_pack(m, bytes);
    ProtobufCMessage *copy = protobuf_c_message_unpack(m->descriptor, NULL, len, bytes);
    free(bytes);
    CHECK(copy);
    return copy;
}

static void drop_reply(struct intake *in)
{
    if (in->reply)
        protobuf_c_message_free_unpacked(in->reply, NULL);
    in->reply = NULL;
}

static enum status step(struct intake *in, struct event *event, struct err *err)
{
    event->now_ms = clock_ms();
    event->wall_s = clock_wall_s();
    core_step(in->core, event, &in->effects);
    for (uint32_t i = 0; i < in->effects.n; i++) {
        struct effect *e = &in->effects.items[i];
        if (e->kind == EFFECT_PERSIST)
            streamlog_append(in->log, e->persist.seq, &e->persist.batch);
        if (e->kind == EFFECT_SEND) {
            drop_reply(in);
            in->reply = copy_message(e->send.message);
            in->reply_verb = e->send.verb;
        }
    }
    effects_clear(&in->effects);
    return streamlog_commit(in->log, err);
}

static enum status committed(struct intake *in, struct err *err)
{
    struct event event = {.kind = EVENT_COMMITTED};
    enum status st = streamlog_durable(in->log, &event.seq, err);
    return st ? st : step(in, &event, err);
}

/* Steps, commits, and gives back the reply of `want`, borrowed until the next call. */
static enum status ask(struct intake *in, uint16_t verb, const ProtobufCMessage *message,
                       const struct push_facts *facts, ProtobufCMessage **reply, struct err *err)
{
    struct event event = {.kind = EVENT_MESSAGE,
                          .peer = in->peer,
                          .verb = verb,
                          .request = ++in->request,
                          .message = message,
                          .facts = facts};
    drop_reply(in);
    enum status st = step(in, &event, err);
    if (!st)
        st = committed(in, err);
    if (st)
        return st;
    if (!in->reply)
        return err_set(err, ST_INTERNAL, "the core gave no answer to verb %u", verb);
    if (in->reply_verb == VERB_ERROR)
        return codec_error_status((const Alv__Error *)in->reply, err);
    *reply = in->reply;
    return ST_OK;
}

static enum status begin_intake(struct intake *in, struct err *err)
{
    struct event event = {.kind = EVENT_START};
    random_bytes(event.incarnation, sizeof event.incarnation);
    enum status st = step(in, &event, err);
    if (!st)
        st = committed(in, err);
    if (st)
        return st;
    uint8_t instance[16];
    ProtobufCMessage *reply;
    random_bytes(instance, sizeof instance);
    in->peer = (struct peer){.conn = 1, .plane = PLANE_INGEST, .role = ROLE_OPERATOR};
    name_set(&in->peer.key, "operator", strlen("operator"));
    Alv__Hello hello = ALV__HELLO__INIT;
    hello.protocol_min = hello.protocol_max = 1;
    hello.instance = (ProtobufCBinaryData){sizeof instance, instance};
    hello.boot = 1;
    hello.software = (char *)(uintptr_t) "alluvium init";
    return ask(in, VERB_HELLO, &hello.base, NULL, &reply, err);
}

/* ---- batches ---------------------------------------------------------------------------------------------------- */

static enum status flush(struct intake *in, const char *file, struct err *err)
{
    ProtobufCMessage *reply;
    struct domain_id general = {0};
    if (!in->n)
        return ST_OK;
    Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
    batch.producer = in->producer;
    batch.position = in->position;
    batch.n_records = in->n;
    batch.records = in->records;
    const struct push_facts *facts = streamlog_facts(in->log, &in->dir->seed, general, &batch, err);
    enum status st = facts ? ask(in, VERB_PUSH_BATCH, &batch.base, facts, &reply, err) : ST_IO;
    if (!st) {
        const Alv__PushAck *ack = (const Alv__PushAck *)reply;
        in->position = ack->position;
        in->report->duplicates += ack->duplicates;
        in->report->refused += ack->n_refused;
        in->report->records += ack->accepted;
        in->report->segments += ack->train_end - ack->train_first;
        in->report->held_out += ack->probe_end - ack->probe_first;
    }
    for (uint32_t i = 0; i < in->n; i++)
        alv__record__free_unpacked(in->records[i], NULL);
    in->n = 0;
    in->bytes = 0;
    if (!st && in->options->progress && in->batches++ % PROGRESS_EVERY == 0)
        in->options->progress(in->options->user, file, in->records_seen, in->bytes_seen);
    return st;
}

static uint8_t *copy_bytes(const void *data, size_t len)
{
    uint8_t *p = malloc(len + 1); /* freed by protobuf-c's allocator, which is malloc's */
    CHECK(p);
    memcpy(p, data, len);
    p[len] = 0;
    return p;
}

static enum status add(struct intake *in, const char *file, Alv__RecordKind kind, const char *id, const char *group,
                       const void *text, size_t len, struct err *err)
{
    if (in->n == LIMIT_BATCH_RECORDS || in->bytes + len > LIMIT_BATCH_BYTES) {
        enum status st = flush(in, file, err);
        if (st)
            return st;
    }
    Alv__Record *r = malloc(sizeof *r);
    CHECK(r);
    alv__record__init(r);
    r->kind = kind;
    r->id = (char *)copy_bytes(id, strlen(id));
    r->group = (char *)copy_bytes(group, strlen(group));
    r->text.data = copy_bytes(text, len);
    r->text.len = len;
    in->records[in->n++] = r;
    in->bytes += len;
    in->records_seen++;
    in->bytes_seen += len;
    return ST_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

/* {"text":..} or {"messages":[..]}, with optional "id" and "group". What the intake would refuse is refused here, with
 * its line: an anchor is chosen text, so nothing in it should be passed over in silence. */
static enum status add_json(struct intake *in, const char *file, uint64_t line_no, const char *line, size_t len,
                            struct err *err)
{
    json_error_t at;
    json_t *j = json_loadb(line, len, JSON_REJECT_DUPLICATES, &at);
    if (!json_is_object(j)) {
        json_decref(j);
        return err_set(err, ST_BAD_DATA, "%s:%llu: no JSON object: %s", file, (unsigned long long)line_no,
                       j ? "another kind of value" : at.text);
    }
    const char *id = json_string_value(json_object_get(j, "id"));
    const char *group = json_string_value(json_object_get(j, "group"));
    json_t *text = json_object_get(j, "text"), *messages = json_object_get(j, "messages");
    struct record_view view = {.kind = ALV__RECORD_KIND__RECORD_TEXT};
    char *chat = NULL;
    enum status st = ST_OK;
    if (json_is_string(text)) {
        view.text = (struct bytes){(const uint8_t *)json_string_value(text), json_string_length(text)};
    } else if (json_is_array(messages)) {
        view.kind = ALV__RECORD_KIND__RECORD_CHAT;
        chat = json_dumps(messages, JSON_COMPACT);
        view.text = (struct bytes){(const uint8_t *)chat, chat ? strlen(chat) : 0};
    } else {
        st = err_set(err, ST_BAD_DATA, "%s:%llu: neither a \"text\" string nor a \"messages\" array", file,
                     (unsigned long long)line_no);
    }
    view.id = (struct bytes){(const uint8_t *)(id ? id : ""), id ? strlen(id) : 0};
    view.group = (struct bytes){(const uint8_t *)(group ? group : ""), group ? strlen(group) : 0};
    Alv__Refusal refusal = st ? ALV__REFUSAL__REFUSAL_NONE : record_check(&view);
    if (refusal)
        st = err_set(err, ST_BAD_DATA, "%s:%llu: %s", file, (unsigned long long)line_no,
                     protobuf_c_enum_descriptor_get_value(&alv__refusal__descriptor, (int)refusal)->name);
    if (!st)
        st = add(in, file, view.kind, id ? id : "", group ? group : "", view.text.data, view.text.len, err);
    free(chat);
    json_decref(j);
    return st;
}

/* The next line with its newline into `line`, which holds no more than LINE_MAX_BYTES whatever the file: false at the end,
 * ST_LIMIT in `st` for a longer one. */
static bool next_line(FILE *f, const char *file, uint64_t line_no, struct buf *line, enum status *st, struct err *err)
{
    int c;
    buf_clear(line);
    while ((c = getc_unlocked(f)) != EOF) {
        if (line->len == LINE_MAX_BYTES) {
            *st = err_set(err, ST_LIMIT, "%s:%llu: a line of more than %d bytes", file, (unsigned long long)line_no,
                          LINE_MAX_BYTES);
            return false;
        }
        buf_put_u8(line, (uint8_t)c);
        if (c == '\n')
            break;
    }
    return line->len > 0;
}

static enum status read_jsonl(struct intake *in, FILE *f, const char *file, struct err *err)
{
    struct buf line = {0};
    enum status st = ST_OK;
    for (uint64_t n = 1; !st && next_line(f, file, n, &line, &st, err); n++)
        if (strspn(buf_cstr(&line), " \t\r\n") < line.len)
            st = add_json(in, file, n, buf_cstr(&line), line.len, err);
    buf_release(&line);
    return st;
}

/* Plain text: paragraphs (separated by empty lines) are gathered into records of about PARAGRAPH_BYTES. */
static enum status read_plain(struct intake *in, FILE *f, const char *file, struct err *err)
{
    struct buf text = {0}, line = {0};
    char group[64];
    uint64_t part = 0;
    enum status st = ST_OK;
    for (uint64_t n = 1; !st; n++) {
        bool end = !next_line(f, file, n, &line, &st, err);
        if (st)
            break;
        if (!utf8_valid((const char *)line.data, line.len))
            st = err_set(err, ST_BAD_DATA, "%s:%llu: not UTF-8", file, (unsigned long long)n);
        buf_put(&text, line.data, line.len);
        bool blank = strspn(buf_cstr(&line), " \t\r\n") == line.len;
        bool full = text.len >= PARAGRAPH_BYTES && (blank || text.len >= LIMIT_RECORD_BYTES / 2);
        if (!st && text.len > LIMIT_RECORD_BYTES)
            st = err_set(err, ST_LIMIT, "%s:%llu: a line of %zu bytes", file, (unsigned long long)n, line.len);
        if (!st && (end || full) && strspn(buf_cstr(&text), " \t\r\n") < text.len) {
            snprintf(group, sizeof group, "part-%llu", (unsigned long long)part++);
            st = add(in, file, ALV__RECORD_KIND__RECORD_TEXT, "", group, text.data, text.len, err);
        }
        if (end || full)
            buf_clear(&text);
        if (end)
            break;
    }
    buf_release(&line);
    buf_release(&text);
    return st;
}

static enum status read_anchor(struct intake *in, const char *file, struct err *err)
{
    size_t len = strlen(file);
    ProtobufCMessage *reply;
    const char *name = strrchr(file, '/');
    name = name ? name + 1 : file;
    char source[LIMIT_SOURCE_BYTES + 1];
    snprintf(source, sizeof source, "anchor:%.*s", (int)sizeof source - 8, name);
    if (in->options->progress)
        in->options->progress(in->options->user, file, in->records_seen, in->bytes_seen);
    int fd;
    enum status st = file_open(file, &fd, err);
    if (st)
        return st;
    FILE *f = fdopen(fd, "r");
    CHECK(f);
    Alv__PushOpen open = ALV__PUSH_OPEN__INIT;
    open.domain = (char *)(uintptr_t) "general";
    open.source = source;
    uint64_t before = in->records_seen;
    st = ask(in, VERB_PUSH_OPEN, &open.base, NULL, &reply, err);
    if (!st) {
        in->producer = ((const Alv__PushOpened *)reply)->producer;
        in->position = ((const Alv__PushOpened *)reply)->position;
        bool jsonl = len > 6 && !strcmp(file + len - 6, ".jsonl");
        st = jsonl ? read_jsonl(in, f, file, err) : read_plain(in, f, file, err);
    }
    if (!st && ferror(f))
        st = err_set(err, ST_IO, "%s: %s", file, strerror(errno));
    if (!st && in->records_seen == before)
        st = err_set(err, ST_BAD_DATA, "%s: no text in it", file);
    if (!st)
        st = flush(in, file, err);
    fclose(f);
    return st;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static enum status make_version_0(struct line_dir *dir, const struct core_config *config, uint64_t seed,
                                  uint64_t reserve, struct streamlog *log, struct err *err)
{
    char path[DIR_PATH_SIZE];
    struct blob_store *blobs = NULL;
    struct version_files files = {0};
    struct batch first = {0};
    float *block = xcalloc(adapter_floats(&dir->shape), sizeof *block);
    adapter_init(&dir->shape, seed, block);
    enum status st = line_dir_path(dir, "blobs", path, err);
    if (!st)
        st = blob_store_open(path, reserve, &blobs, err);
    if (!st)
        st = aggregate_store(blobs, &dir->card, &dir->shape, block, &files, err);
    if (!st) {
        core_init_line(config, &files, clock_wall_s(), &first);
        streamlog_append(log, 1, &first);
        st = streamlog_commit(log, err);
    }
    batch_release(&first);
    free(block);
    if (blobs)
        blob_store_close(&blobs);
    return st;
}

enum status coordinator_init(const struct coordinator_init_options *options, struct coordinator_init_report *report,
                             struct err *err)
{
    hash_start();
    char db[DIR_PATH_SIZE], witness[DIR_PATH_SIZE];
    struct line_dir dir = {.lock_fd = -1};
    struct coordinator_init_report sums = {0};
    struct core_config *config = xcalloc(1, sizeof *config);
    struct intake *in = xcalloc(1, sizeof *in);
    uint64_t seed = options->seed, reserve = options->reserve_bytes ? options->reserve_bytes : RESERVE_DEFAULT;
    while (!seed)
        random_bytes(&seed, sizeof seed);
    *in = (struct intake){.options = options, .report = &sums, .dir = &dir};

    enum status st = line_dir_create(options, &dir, err);
    if (!st)
        st = line_dir_path(&dir, "db", db, err);
    if (!st)
        st = line_dir_path(&dir, "witness", witness, err);
    if (!st)
        st = streamlog_open(db, witness, reserve, true, &in->log, err);
    if (st)
        goto done;
    line_dir_core_config(&dir, config);
    st = make_version_0(&dir, config, seed, reserve, in->log, err);
    if (!st) {
        in->core = core_new(config);
        st = streamlog_load(in->log, in->core, err);
    }
    if (!st && options->n_anchors)
        st = begin_intake(in, err);
    for (uint32_t i = 0; !st && i < options->n_anchors; i++)
        st = read_anchor(in, options->anchors[i], err);
    if (in->log) {
        enum status closed = streamlog_close(&in->log, st ? NULL : err);
        st = st ? st : closed;
    }
    if (!st)
        st = line_dir_finish(&dir, err);
    if (!st && report)
        *report = sums;
done:
    for (uint32_t i = 0; i < in->n; i++)
        alv__record__free_unpacked(in->records[i], NULL);
    drop_reply(in);
    effects_release(&in->effects);
    if (in->core)
        core_free(in->core);
    free(in);
    free(config);
    line_dir_close(&dir);
    return st;
}
