/* The push core. What is in flight is a ring of batches; `opened` tells whether the stream's session stands. */
#include "client/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/codec.h"
#include "proto/record.h"
#include "proto/verbs.h"

/* ---- records --------------------------------------------------------------------------------------------------- */

enum { SLAB_BYTES = 256 * 1024 };

struct push_slab {
    struct push_slab *next;
    size_t used, size;
    _Alignas(16) uint8_t data[];
};

struct push_records *push_records_new(void)
{
    struct push_records *records = xmalloc(sizeof *records);
    records->n = 0;
    records->bytes = records->weight = 0;
    records->slabs = NULL;
    records->next = NULL;
    return records;
}

static void *slab_take(struct push_records *records, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    struct push_slab *slab = records->slabs;
    if (!slab || slab->size - slab->used < bytes) {
        size_t size = bytes > SLAB_BYTES ? bytes : SLAB_BYTES;
        slab = xmalloc(sizeof *slab + size);
        *slab = (struct push_slab){records->slabs, 0, size};
        records->slabs = slab;
    }
    void *at = slab->data + slab->used;
    slab->used += bytes;
    return at;
}

static char *slab_text(struct push_records *records, struct bytes text)
{
    if (!text.len)
        return (char *)protobuf_c_empty_string;
    char *at = slab_take(records, text.len + 1);
    memcpy(at, text.data, text.len);
    at[text.len] = 0;
    return at;
}

bool push_records_add(struct push_records *records, size_t bytes_max, Alv__RecordKind kind, struct bytes id,
                      struct bytes group, struct bytes text, struct push_place place)
{
    size_t weight = text.len + id.len + group.len; /* long names count too, or the frame could not hold the batch */
    if (records->n == LIMIT_BATCH_RECORDS || (records->n && records->weight + weight > bytes_max))
        return false;
    Alv__Record *record = slab_take(records, sizeof *record);
    alv__record__init(record);
    record->kind = kind;
    record->id = slab_text(records, id);
    record->group = slab_text(records, group);
    record->text.data = (uint8_t *)slab_text(records, text);
    record->text.len = text.len;
    records->items[records->n] = record;
    records->places[records->n++] = place;
    records->bytes += text.len;
    records->weight += weight;
    return true;
}

void push_records_free(struct push_records **records)
{
    if (!*records)
        return;
    for (struct push_slab *slab = (*records)->slabs, *next; slab; slab = next) {
        next = slab->next;
        free(slab);
    }
    free(*records);
    *records = NULL;
}

const char *push_refusal_text(Alv__Refusal reason)
{
    switch (reason) {
    case ALV__REFUSAL__REFUSAL_TOO_LONG:
        return "too long";
    case ALV__REFUSAL__REFUSAL_NOT_UTF8:
        return "not UTF-8";
    case ALV__REFUSAL__REFUSAL_EMPTY:
        return "empty";
    case ALV__REFUSAL__REFUSAL_BAD_CHAT:
        return "not a chat: an array of messages with role and content";
    case ALV__REFUSAL__REFUSAL_BAD_ID:
        return "id or group is too long or holds a control character";
    case ALV__REFUSAL__REFUSAL_DUPLICATE:
        return "a duplicate";
    default:
        return "refused for an unknown reason";
    }
}

/* ---- state ----------------------------------------------------------------------------------------------------- */

enum phase {
    PHASE_DOWN,    /* no connection yet */
    PHASE_OPENING, /* PUSH_OPEN is out, or waits to be */
    PHASE_OPEN,
    PHASE_ENDED,
};

struct flight {
    struct push_records *records;
    Alv__PushBatch message;
    uint64_t position;     /* of its first record */
    struct digest rolling; /* chain after its last record */
    uint64_t request;      /* of the newest sending; 0: to be sent */
};

struct push_core {
    struct push_config config;
    enum phase phase;
    uint64_t request; /* next id */
    uint64_t open_request;
    Alv__PushOpen open_message;
    uint64_t producer;
    uint32_t batch_records_max;
    size_t batch_bytes_max;
    uint64_t stored; /* position the coordinator has; of `stored_rolling` */
    struct digest stored_rolling;
    bool resumed;  /* the chain was compared at `stored`; from then on it is ours */
    uint64_t read; /* records taken from the source; of `rolling` */
    struct digest rolling;
    bool needing, end;
    struct flight flights[PUSH_WINDOW_MAX];
    uint32_t first, n;          /* ring: unanswered, oldest first */
    struct push_records *spent; /* effects of this step still point into them */
    bool waiting;               /* asked to wait, until wait_until_ms */
    char why[200];              /* the words it was asked with */
    uint64_t wait_until_ms;
    uint64_t silent_until_ms; /* then what is unanswered is sent again */
    uint32_t opens;           /* sessions lost in a row, without an ack between */
    char text[512];
};

struct push_core *push_core_new(const struct push_config *config)
{
    struct push_core *core = xcalloc(1, sizeof *core);
    core->config = *config;
    if (!core->config.window)
        core->config.window = PUSH_WINDOW;
    if (core->config.window > PUSH_WINDOW_MAX)
        core->config.window = PUSH_WINDOW_MAX;
    if (!core->config.request_ms)
        core->config.request_ms = 10000;
    core->request = config->first_request ? config->first_request : 1;
    core->silent_until_ms = UINT64_MAX;
    alv__push_open__init(&core->open_message);
    core->open_message.domain = core->config.domain.s;
    core->open_message.source = core->config.source;
    return core;
}

static struct flight *flight_at(struct push_core *core, uint32_t i)
{
    return &core->flights[(core->first + i) % PUSH_WINDOW_MAX];
}

static void pop(struct push_core *core)
{
    struct flight *flight = flight_at(core, 0);
    flight->records->next = core->spent;
    core->spent = flight->records;
    flight->records = NULL;
    core->first = (core->first + 1) % PUSH_WINDOW_MAX;
    core->n--;
}

static void free_spent(struct push_core *core)
{
    while (core->spent) {
        struct push_records *records = core->spent;
        core->spent = records->next;
        push_records_free(&records);
    }
}

void push_core_free(struct push_core *core)
{
    if (!core)
        return;
    while (core->n)
        pop(core);
    free_spent(core);
    free(core);
}

uint64_t push_core_deadline(const struct push_core *core)
{
    if (core->phase == PHASE_DOWN || core->phase == PHASE_ENDED)
        return UINT64_MAX;
    return core->waiting ? core->wait_until_ms : core->silent_until_ms;
}

uint64_t push_core_next_request(const struct push_core *core)
{
    return core->request;
}

bool push_core_busy(const struct push_core *core, uint64_t *until_ms)
{
    *until_ms = core->wait_until_ms;
    return core->waiting;
}

const char *push_core_why(const struct push_core *core)
{
    return core->why;
}

/* ---- effects --------------------------------------------------------------------------------------------------- */

static struct push_effect *add(struct push_effects *effects, enum push_effect_kind kind)
{
    if (effects->n == effects->cap) {
        effects->cap = effects->cap ? 2 * effects->cap : 16;
        effects->items = xrealloc_array(effects->items, effects->cap, sizeof *effects->items);
    }
    effects->items[effects->n] = (struct push_effect){.kind = kind};
    return &effects->items[effects->n++];
}

void push_effects_release(struct push_effects *effects)
{
    free(effects->items);
    *effects = (struct push_effects){0};
}

static void fail(struct push_core *core, enum status status, struct push_effects *effects)
{
    core->phase = PHASE_ENDED;
    struct push_effect *effect = add(effects, PUSH_FAILED);
    effect->failed.status = status;
    effect->failed.text = core->text;
}

static uint64_t send(struct push_core *core, uint16_t verb, const ProtobufCMessage *message,
                     struct push_effects *effects)
{
    struct push_effect *effect = add(effects, PUSH_SEND);
    effect->send.verb = verb;
    effect->send.request = core->request++;
    effect->send.message = message;
    return effect->send.request;
}

static void open_stream(struct push_core *core, uint64_t now_ms, struct push_effects *effects)
{
    core->phase = PHASE_OPENING;
    core->waiting = false;
    for (uint32_t i = 0; i < core->n; i++)
        flight_at(core, i)->request = 0;
    core->open_request = send(core, VERB_PUSH_OPEN, &core->open_message.base, effects);
    core->silent_until_ms = now_ms + core->config.request_ms;
}

/* Sends what has no request, in order; asks for records when there is room; finds the end. */
static void advance(struct push_core *core, uint64_t now_ms, struct push_effects *effects)
{
    if (core->phase != PHASE_OPEN)
        return;
    for (uint32_t i = 0; i < core->n && !core->waiting; i++) {
        struct flight *flight = flight_at(core, i);
        if (flight->request)
            continue;
        flight->message.producer = core->producer;
        flight->request = send(core, VERB_PUSH_BATCH, &flight->message.base, effects);
        if (i == 0) /* the silence that counts is the first one's: the others' answers wait for it */
            core->silent_until_ms = now_ms + core->config.request_ms;
    }
    if (!core->n)
        core->silent_until_ms = UINT64_MAX; /* nothing is awaited from the other side */
    if (core->end && !core->n) {
        core->phase = PHASE_ENDED;
        add(effects, PUSH_DONE);
    } else if (!core->end && !core->needing && core->n < core->config.window) {
        core->needing = true;
        struct push_effect *effect = add(effects, PUSH_NEED);
        effect->need.records_max = core->batch_records_max;
        effect->need.bytes_max = core->batch_bytes_max;
    }
}

/* ---- the source -------------------------------------------------------------------------------------------------- */

static void chain(struct digest *rolling, const Alv__Record *record)
{
    struct record_view view = record_of(record);
    struct digest digest;
    record_digest(&view, &digest);
    record_chain(rolling, &view, &digest);
}

/* Takes records [from, n) as the next batch. Consumes. */
static void board(struct push_core *core, struct push_records **records, uint32_t from)
{
    CHECK(core->n < PUSH_WINDOW_MAX);
    struct push_records *r = *records;
    *records = NULL;
    memmove(r->items, r->items + from, (r->n - from) * sizeof r->items[0]);
    memmove(r->places, r->places + from, (r->n - from) * sizeof r->places[0]);
    r->n -= from;
    r->bytes = 0;
    struct flight *flight = flight_at(core, core->n++);
    *flight = (struct flight){.records = r, .position = core->read};
    for (uint32_t i = 0; i < r->n; i++) {
        chain(&core->rolling, r->items[i]);
        r->bytes += r->items[i]->text.len;
    }
    core->read += r->n;
    flight->rolling = core->rolling;
    alv__push_batch__init(&flight->message);
    flight->message.position = flight->position;
    flight->message.n_records = r->n;
    flight->message.records = r->items;
}

static void changed(struct push_core *core, struct push_effects *effects)
{
    snprintf(core->text, sizeof core->text,
             "%s: the first %llu records are not the ones pushed before under this name; it was changed, or its order "
             "was. Push it under a new name (--source NAME, or --restart): what is known already is recognised and "
             "dropped",
             core->config.source, (unsigned long long)core->stored);
    fail(core, ST_CONFLICT, effects);
}

/* Compares the chains once everything that is stored was read. */
static void try_resume(struct push_core *core, struct push_effects *effects)
{
    if (core->resumed || core->read < core->stored)
        return;
    if (!digest_eq(&core->rolling, &core->stored_rolling)) {
        changed(core, effects);
        return;
    }
    core->resumed = true;
    add(effects, PUSH_RESUMED)->position = core->stored;
}

static void on_records(struct push_core *core, const struct push_event *event, struct push_effects *effects)
{
    CHECK(core->needing && event->records && *event->records);
    core->needing = false;
    core->end = event->end;
    struct push_records *r = *event->records;
    uint32_t from = 0;
    while (!core->resumed && from < r->n && core->read < core->stored) {
        chain(&core->rolling, r->items[from++]);
        core->read++;
    }
    try_resume(core, effects);
    if (core->end && core->read < core->stored && core->phase != PHASE_ENDED) {
        snprintf(core->text, sizeof core->text,
                 "%s: holds %llu records, but %llu were pushed before under this name; it was cut or replaced. Push it "
                 "under a new name (--source NAME, or --restart)",
                 core->config.source, (unsigned long long)core->read, (unsigned long long)core->stored);
        fail(core, ST_CONFLICT, effects);
    }
    if (from < r->n && core->phase != PHASE_ENDED)
        board(core, event->records, from);
    else
        push_records_free(event->records);
}

/* ---- replies --------------------------------------------------------------------------------------------------- */

static void report(struct push_core *core, const struct flight *flight, const Alv__PushAck *ack,
                   struct push_effects *effects)
{
    for (size_t i = 0; ack && i < ack->n_refused; i++) {
        uint32_t index = ack->refused[i]->index;
        if (index >= flight->records->n)
            continue; /* a peer's number */
        struct push_effect *refused = add(effects, PUSH_REFUSED);
        refused->refused.position = flight->position + index;
        refused->refused.place = flight->records->places[index];
        refused->refused.id = flight->records->items[index]->id;
        refused->refused.reason = ack->refused[i]->reason;
    }
    struct push_report *r = &add(effects, PUSH_ACKED)->acked;
    *r = (struct push_report){
        .position = flight->position + flight->records->n,
        .records = flight->records->n,
        .bytes = flight->records->bytes,
        .lost = !ack,
    };
    if (ack) {
        r->accepted = ack->accepted;
        r->duplicates = ack->duplicates;
        r->superseded = ack->superseded;
        r->refused = (uint32_t)ack->n_refused;
        r->train_first = ack->train_first;
        r->train_end = ack->train_end;
        r->probe_first = ack->probe_first;
        r->probe_end = ack->probe_end;
    }
    core->opens = 0;
}

static void on_ack(struct push_core *core, const Alv__PushAck *ack, uint64_t now_ms, struct push_effects *effects)
{
    if (core->phase != PHASE_OPEN || !core->n)
        return;
    /* Answers come in order. One for a later batch means that the first one's got lost: it will be asked again. */
    struct flight *flight = flight_at(core, 0);
    if (ack->position != flight->position + flight->records->n)
        return;
    report(core, flight, ack, effects);
    core->stored = ack->position;
    core->stored_rolling = flight->rolling;
    pop(core);
    core->waiting = false;
    core->silent_until_ms = now_ms + core->config.request_ms;
}

/* A session after the first: what was in flight is stored, or is not. Both sides must still tell the same story. */
static void reconcile(struct push_core *core, uint64_t position, const struct digest *rolling,
                      struct push_effects *effects)
{
    while (core->n && core->stored < position && core->phase != PHASE_ENDED) {
        struct flight *flight = flight_at(core, 0);
        report(core, flight, NULL, effects);
        core->stored = flight->position + flight->records->n;
        core->stored_rolling = flight->rolling;
        pop(core);
    }
    if (core->stored == position && digest_eq(&core->stored_rolling, rolling))
        return;
    snprintf(core->text, sizeof core->text,
             "%s: the coordinator has %llu records of it where this push had sent %llu; %s", core->config.source,
             (unsigned long long)position, (unsigned long long)core->stored,
             position > core->stored ? "is another push of the same source running? Push again when it has ended"
                                     : "was it restored from a backup? Push again");
    fail(core, ST_CONFLICT, effects);
}

static void on_opened(struct push_core *core, const Alv__PushOpened *opened, struct push_effects *effects)
{
    struct digest rolling;
    CHECK_EQ(opened->rolling.len, sizeof rolling.b); /* the codec's rule */
    memcpy(rolling.b, opened->rolling.data, sizeof rolling.b);
    core->phase = PHASE_OPEN;
    core->producer = opened->producer;
    core->batch_records_max = opened->batch_records_max;
    if (!core->batch_records_max || core->batch_records_max > LIMIT_BATCH_RECORDS)
        core->batch_records_max = LIMIT_BATCH_RECORDS;
    core->batch_bytes_max = opened->batch_bytes_max;
    if (!core->batch_bytes_max || core->batch_bytes_max > LIMIT_BATCH_BYTES)
        core->batch_bytes_max = LIMIT_BATCH_BYTES;
    if (core->resumed) {
        reconcile(core, opened->position, &rolling, effects);
        return;
    }
    core->stored = opened->position;
    core->stored_rolling = rolling;
    if (core->read > core->stored)
        changed(core, effects); /* it went backwards while we were reading */
    else
        try_resume(core, effects);
}

static void wait(struct push_core *core, uint64_t now_ms, uint32_t retry_ms)
{
    enum { WAIT_MS_MIN = 50 };
    if (retry_ms < WAIT_MS_MIN)
        retry_ms = WAIT_MS_MIN;
    core->waiting = true;
    core->wait_until_ms = now_ms + (retry_ms < LIMIT_RETRY_MS ? retry_ms : LIMIT_RETRY_MS);
}

static void on_error(struct push_core *core, const struct push_event *event, struct push_effects *effects)
{
    const Alv__Error *error = (const Alv__Error *)event->message;
    struct err err;
    enum status status = codec_error_status(error, &err);
    uint32_t i = 0;
    while (i < core->n && flight_at(core, i)->request != event->request)
        i++;
    bool batch = core->phase == PHASE_OPEN && i < core->n;
    if (!batch && !(core->phase == PHASE_OPENING && event->request == core->open_request))
        return; /* of an earlier sending */
    if (status == ST_AGAIN || (status == ST_CONFLICT && batch && i > 0)) {
        /* Those behind a batch that was put off leave a gap before them and are refused too: all of them go again. */
        for (; batch && i < core->n; i++)
            flight_at(core, i)->request = 0;
        if (status == ST_AGAIN)
            snprintf(core->why, sizeof core->why, "%.199s", err.text);
        wait(core, event->now_ms, error->retry_ms);
    } else if (status == ST_CONFLICT && batch && core->opens++ < PUSH_OPENS_MAX) {
        open_stream(core, event->now_ms, effects);
    } else {
        snprintf(core->text, sizeof core->text, "%.400s", err.text);
        fail(core, status, effects);
    }
}

static void on_tick(struct push_core *core, uint64_t now_ms, struct push_effects *effects)
{
    bool waited = core->waiting && now_ms >= core->wait_until_ms;
    /* Waiting does not excuse silence about the first batch: its answer may be lost, and all behind it wait for it. */
    bool first_asked = core->n && flight_at(core, 0)->request;
    bool silent = (!core->waiting || first_asked) && now_ms >= core->silent_until_ms;
    if (waited)
        core->waiting = false;
    if (core->phase == PHASE_OPENING && (waited || silent))
        open_stream(core, now_ms, effects);
    else if (silent)
        for (uint32_t i = 0; i < core->n; i++)
            flight_at(core, i)->request = 0;
}

void push_core_step(struct push_core *core, const struct push_event *event, struct push_effects *effects)
{
    effects->n = 0;
    free_spent(core);
    if (core->phase == PHASE_ENDED) {
        if (event->kind == PUSH_RECORDS)
            push_records_free(event->records);
        return;
    }
    switch (event->kind) {
    case PUSH_UP:
        open_stream(core, event->now_ms, effects);
        break;
    case PUSH_RECORDS:
        on_records(core, event, effects);
        break;
    case PUSH_TICK:
        on_tick(core, event->now_ms, effects);
        break;
    case PUSH_MESSAGE:
        if (event->verb == VERB_PUSH_ACK)
            on_ack(core, (const Alv__PushAck *)event->message, event->now_ms, effects);
        else if (event->verb == VERB_ERROR)
            on_error(core, event, effects);
        else if (event->verb == VERB_PUSH_OPENED && core->phase == PHASE_OPENING &&
                 event->request == core->open_request)
            on_opened(core, (const Alv__PushOpened *)event->message, effects);
        break;
    }
    advance(core, event->now_ms, effects);
}
