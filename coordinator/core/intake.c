/* Records in: validated, told apart from what is there, split off for the probe, cut, appended, acknowledged. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"
#include "coordinator/core/text.h"
#include "proto/record.h"

enum {
    EPOCH_BITS = 24,
    SEGMENT_BYTES_MAX = UINT16_MAX,
    CHAT_BYTES_PER_TOKEN = 8, /* a chat with more bytes than this times the sequence cannot fit it */
};

/* SipHash-2-4-128 under the line's seed of `purpose` with its NUL, the domain, and a text. */
static void keyed16(const struct sip_key *seed, const char *purpose, struct domain_id domain, struct bytes text,
                    struct hash16 *out)
{
    uint8_t bytes[16 + LIMIT_RECORD_ID_BYTES];
    struct digest digest;
    size_t n = strlen(purpose) + 1;
    if (text.len > LIMIT_RECORD_ID_BYTES) { /* an id that will be refused */
        hash_blake2b(text.data, text.len, &digest);
        text = (struct bytes){digest.b, sizeof digest.b};
    }
    memcpy(bytes, purpose, n);
    bytes[n++] = (uint8_t)domain.v;
    bytes[n++] = (uint8_t)(domain.v >> 8);
    memcpy(bytes + n, text.data, text.len);
    hash_sip128(seed, bytes, n + text.len, out->b);
}

void id_hash(const struct sip_key *seed, struct domain_id domain, struct bytes name, struct hash16 *out)
{
    keyed16(seed, "id", domain, name, out);
}

void record_facts(const struct sip_key *seed, struct domain_id domain, const Alv__Record *record,
                  struct push_facts *facts)
{
    struct record_view view = record_of(record);
    char hex[DIGEST_HEX_SIZE];
    struct bytes name, group, digest = {facts->digest.b, sizeof facts->digest.b};
    record_digest(&view, &facts->digest);
    record_names(&view, &facts->digest, hex, &name, &group);
    keyed16(seed, "content", (struct domain_id){0}, digest, &facts->content); /* of the whole line */
    id_hash(seed, domain, name, &facts->id);
}

void record_hashes(const struct sip_key *seed, struct domain_id domain, const Alv__Record *record,
                   struct hash16 *content, struct hash16 *id)
{
    struct push_facts facts;
    record_facts(seed, domain, record, &facts);
    *content = facts.content;
    *id = facts.id;
}

/* SipHash-2-4 of u32 length and purpose, u16 domain, and a text no longer than an id. */
static uint64_t keyed(const struct core *core, const char *purpose, struct domain_id domain, struct bytes text)
{
    uint8_t bytes[32 + LIMIT_RECORD_ID_BYTES] = {(uint8_t)strlen(purpose)};
    size_t n = 4 + strlen(purpose);
    CHECK(n + 2 + text.len <= sizeof bytes);
    memcpy(bytes + 4, purpose, n - 4);
    bytes[n++] = (uint8_t)domain.v;
    bytes[n++] = (uint8_t)(domain.v >> 8);
    memcpy(bytes + n, text.data, text.len);
    return hash_sip(&core->config.seed, bytes, n + text.len);
}

/* ---- the overlay: decided, perhaps not yet on disk */

static void overlay_add(struct core *core, const struct overlay *o)
{
    if (core->overlay_head > 64 && 2 * core->overlay_head > core->overlay_n) {
        core->overlay_n -= core->overlay_head;
        memmove(core->overlay, core->overlay + core->overlay_head, core->overlay_n * sizeof *core->overlay);
        core->overlay_base += core->overlay_head;
        core->overlay_head = 0;
    }
    GROW(core->overlay, core->overlay_n, core->overlay_cap);
    core->overlay[core->overlay_n] = *o;
    map_put(o->is_id ? &core->ids : &core->contents, &o->hash, core->overlay_base + core->overlay_n++);
}

void overlay_content(struct core *core, const struct hash16 *hash, bool live)
{
    overlay_add(core, &(struct overlay){.seq = core->seq + 1, .hash = *hash, .live = live});
}

void overlay_id(struct core *core, const struct hash16 *hash, const struct state_id *id)
{
    struct state_id *copy = xmemdup(id, ID_BYTES(id)); /* there are thousands: no room for revisions that are not */
    overlay_add(core, &(struct overlay){.seq = core->seq + 1, .hash = *hash, .is_id = true, .id = copy});
}

bool overlay_find(const struct core *core, bool is_id, const struct hash16 *hash, const struct overlay **out)
{
    uint64_t at;
    if (!map_get(is_id ? &core->ids : &core->contents, hash, &at))
        return false;
    *out = &core->overlay[at - core->overlay_base];
    return true;
}

void intake_committed(struct core *core)
{
    while (core->overlay_head < core->overlay_n && core->overlay[core->overlay_head].seq <= core->committed) {
        struct overlay *o = &core->overlay[core->overlay_head];
        struct map *map = o->is_id ? &core->ids : &core->contents;
        uint64_t at;
        if (map_get(map, &o->hash, &at) && at == core->overlay_base + core->overlay_head)
            map_delete(map, &o->hash);
        free(o->id);
        o->id = NULL;
        core->overlay_head++;
    }
}

/* ---- streams */

static struct hash16 stream_key(const struct core *core, const char *key, const char *source, struct domain_id domain)
{
    struct buf b = {0};
    buf_put_str(&b, key);
    buf_put_str(&b, source);
    buf_put_u16(&b, domain.v);
    struct hash16 h;
    crypto_generichash(h.b, sizeof h.b, b.data, b.len, core->config.seed.b, sizeof core->config.seed.b);
    buf_release(&b);
    return h;
}

bool stream_add(struct core *core, uint64_t id, struct state_stream *stream)
{
    if (id >= STREAMS_MAX || (id < core->streams_n && core->streams[id])) {
        state_stream_release(stream);
        return false;
    }
    while (core->streams_n <= id) {
        GROW(core->streams, core->streams_n, core->streams_cap);
        core->streams[core->streams_n++] = NULL;
    }
    struct hash16 key = stream_key(core, stream->key.s, stream->source, stream->domain);
    core->streams[id] = xmemdup(stream, sizeof *stream);
    map_put(&core->stream_index, &key, id);
    return true;
}

static struct state_stream *stream_of(const struct core *core, uint64_t producer)
{
    uint64_t id = producer >> EPOCH_BITS;
    return id < core->streams_n ? core->streams[id] : NULL;
}

bool core_producer_domain(const struct core *core, uint64_t producer, struct domain_id *out)
{
    const struct state_stream *s = stream_of(core, producer);
    if (s)
        *out = s->domain;
    return s != NULL;
}

static void store_stream(struct core *core, uint64_t id)
{
    PUT(core, FAMILY_META, key_u64('p', id), state_stream, core->streams[id]);
}

static void domain_names(const struct core *core, struct buf *out)
{
    for (uint32_t i = 0; i < core->n_domains; i++)
        buf_printf(out, "%s%s", i ? ", " : "", core->domains[i]->d.name.s);
}

void intake_open(struct core *core, const struct event *event)
{
    const Alv__PushOpen *open = (const Alv__PushOpen *)event->message;
    struct domain *d = domain_find(core, open->domain);
    if (!d) {
        struct buf names = {0};
        domain_names(core, &names);
        refuse(core, event, ST_NOT_FOUND, 0,
               "no domain \"%s\" in this line; there are: %s; an operator makes one: alluvium domains set %s",
               open->domain, buf_cstr(&names), open->domain);
        buf_release(&names);
        return;
    }
    struct hash16 key = stream_key(core, event->peer.key.s, open->source, d->id);
    uint64_t id;
    if (!map_get(&core->stream_index, &key, &id)) {
        if (core->counters.stream >= STREAMS_MAX) {
            refuse(core, event, ST_LIMIT, 0, "this line has %u sources already: name fewer, larger ones", STREAMS_MAX);
            return;
        }
        struct state_stream s = {.key = event->peer.key, .domain = d->id};
        FORMAT(s.source, "%s", open->source);
        id = core->counters.stream++;
        core->counters_dirty = true;
        CHECK(stream_add(core, id, &s));
    }
    struct state_stream *s = core->streams[id];
    s->epoch = (s->epoch + 1) & ((1u << EPOCH_BITS) - 1);
    store_stream(core, id);
    Alv__PushOpened *out = new_message(&alv__push_opened__descriptor);
    out->producer = id << EPOCH_BITS | s->epoch;
    out->position = s->position;
    set_bytes(&out->rolling, s->rolling.b, DIGEST_LEN);
    out->record_bytes_max = LIMIT_RECORD_BYTES;
    out->batch_records_max = LIMIT_BATCH_RECORDS;
    out->batch_bytes_max = LIMIT_BATCH_BYTES;
    reply(core, &event->peer, event->request, VERB_PUSH_OPENED, out);
}

/* ---- one batch */

struct push {
    struct core *core;
    struct domain *d;
    Alv__PushAck *ack;
    uint16_t *sizes; /* cut, but not yet appended */
    uint32_t n, cap;
    uint64_t *skipped; /* offsets among them */
    uint32_t n_skipped, skipped_cap;
};

static void flush(struct push *p)
{
    if (!p->n)
        return;
    uint64_t first = domain_append(p->core, p->d, p->sizes, p->n);
    if (p->d->id.v == 0)
        domain_set(p->core, p->d, first, p->n, SEG_DONE, 0); /* the anchor is never fresh */
    for (uint32_t i = 0, run; i < p->n_skipped; i += run) {
        for (run = 1; i + run < p->n_skipped && p->skipped[i + run] == p->skipped[i] + run; run++)
            ;
        domain_set(p->core, p->d, p->skipped[i], run, SEG_SKIPPED, 0);
    }
    p->n = p->n_skipped = 0;
}

static void erase_payload(struct core *core, const struct state_place *place)
{
    struct state_key from = key_stream('s', place->domain, place->probe, place->first);
    struct state_key to = key_stream('s', place->domain, place->probe, place->first + place->count);
    batch_delete_range(&core->batch, FAMILY_STREAM, from.b, from.len, to.b, to.len);
}

/* The present text of an id is no longer to be learnt from. */
static void supersede(struct push *p, struct state_id *id)
{
    struct state_place *place = &id->places[id->n - 1];
    flush(p); /* it may be of this very batch */
    if (place->probe) {
        struct state_settled v = {place->count, SEG_SUPERSEDED, 0};
        domain_drop_windows(p->core, p->d, place->first, place->count);
        PUT(p->core, FAMILY_STREAM, key_stream('x', p->d->id, true, place->first), state_settled, &v);
    } else {
        domain_exclude(p->core, p->d, place->first, place->count, SEG_SUPERSEDED);
    }
    delete_key(p->core, FAMILY_DEDUPE, key_hash('c', &id->content));
    overlay_content(p->core, &id->content, false);
    id->live = 0;
    p->d->d.superseded++;
    p->ack->superseded++;
}

/* Over the budget's half, an ever smaller part of what comes is trained; at the budget, nothing. */
static bool sampled_away(const struct push *p, uint64_t offset)
{
    double fill = (double)p->d->bytes[SEG_PENDING] / (double)p->d->settings.backlog_bytes;
    if (!p->d->settings.backlog_sample || fill <= 0.5)
        return false;
    uint64_t h = keyed(p->core, "backlog", p->d->id, (struct bytes){(const uint8_t *)&offset, sizeof offset});
    return (double)(h >> 11) * 0x1p-53 >= 2 * (1 - fill);
}

static void add_segment(struct push *p, uint64_t offset, bool probe, const struct state_segment *segment)
{
    PUT(p->core, FAMILY_STREAM, key_stream('s', p->d->id, probe, offset), state_segment, segment);
    if (probe)
        return;
    if (p->n == p->cap) {
        p->cap = p->cap ? 2 * p->cap : 256;
        p->sizes = xrealloc_array(p->sizes, p->cap, sizeof *p->sizes);
    }
    p->sizes[p->n++] = (uint16_t)segment->text.len;
    if (p->d->id.v && sampled_away(p, offset)) {
        GROW(p->skipped, p->n_skipped, p->skipped_cap);
        p->skipped[p->n_skipped++] = offset;
    }
}

/* The part a held-out group belongs to, whatever there is room for: its documents never change sides. */
static enum probe_part part_of(const struct push *p, uint64_t h)
{
    const struct settings *s = &p->d->settings;
    uint64_t sum = s->probe_gate + s->probe_tuning + s->probe_audit;
    if (s->sentinel) /* nobody steers by it */
        return PART_AUDIT;
    if (!sum)
        return PART_RESERVE;
    uint64_t r = h % sum;
    return r < s->probe_gate ? PART_GATE : r < s->probe_gate + s->probe_tuning ? PART_TUNING : PART_AUDIT;
}

/* Room for what the records of a batch become, so that a megabyte is not moved along as it grows. */
static void reserve(struct core *core, const Alv__PushBatch *batch)
{
    enum { AROUND = 256 }; /* keys, heads, the id's and the content's entries */
    size_t bytes = 0;
    for (size_t i = 0; i < batch->n_records; i++)
        bytes += AROUND + batch->records[i]->text.len;
    buf_reserve(&core->batch.ops, bytes);
}

static uint32_t pieces_of(const struct push *p, const struct record_view *view)
{
    uint32_t n = 1;
    if (view->kind == ALV__RECORD_KIND__RECORD_TEXT)
        for (struct bytes rest = view->text; (rest.len > p->d->settings.segment_bytes); n++) {
            size_t cut = text_cut(rest, p->d->settings.segment_bytes);
            rest.data += cut, rest.len -= cut;
        }
    return n;
}

/* Cuts a record and appends its segments; tells where they went. */
static void append_record(struct push *p, const struct record_view *view, const struct push_facts *facts,
                          struct state_place *place)
{
    char hex[DIGEST_HEX_SIZE];
    struct bytes name, group, rest = view->text;
    record_names(view, &facts->digest, hex, &name, &group);
    uint64_t held_out = keyed(p->core, "held out", p->d->id, group), near = keyed(p->core, "group", p->d->id, group);
    bool probe = p->d->settings.sentinel || held_out % 1000 < p->d->settings.heldout_permille;
    struct state_segment s = {.kind = (uint8_t)view->kind, .pieces = pieces_of(p, view), .content = facts->content};
    memcpy(s.group, &near, 8);
    uint64_t first = probe ? p->d->d.probe_next : p->d->d.train_next + p->n;
    for (; s.piece < s.pieces; s.piece++) {
        s.text = rest;
        if (s.pieces > 1)
            s.text.len = text_cut(rest, p->d->settings.segment_bytes);
        add_segment(p, first + s.piece, probe, &s);
        rest.data += s.text.len, rest.len -= s.text.len;
        if (!probe)
            continue;
        if (s.piece < PROBE_PIECES_MAX)
            domain_hold_out(p->core, p->d, first + s.piece, part_of(p, held_out / 1000));
        p->d->d.probe_next++;
    }
    *place = (struct state_place){p->d->id, probe, first, s.pieces};
}

static Alv__Refusal check_record(const struct push *p, const struct record_view *view)
{
    Alv__Refusal reason = record_check(view);
    if (reason || view->kind != ALV__RECORD_KIND__RECORD_CHAT)
        return reason;
    if (view->text.len > SEGMENT_BYTES_MAX ||
        view->text.len > (size_t)CHAT_BYTES_PER_TOKEN * p->core->config.settings.seq_tokens)
        return ALV__REFUSAL__REFUSAL_TOO_LONG;
    return chat_valid(view->text) ? ALV__REFUSAL__REFUSAL_NONE : ALV__REFUSAL__REFUSAL_BAD_CHAT;
}

static void take_record(struct push *p, uint32_t index, const struct record_view *view, const struct push_facts *facts)
{
    struct core *core = p->core;
    Alv__Refusal reason = check_record(p, view);
    if (reason) {
        Alv__Refused *r = new_message(&alv__refused__descriptor);
        r->index = index;
        r->reason = reason;
        p->ack->refused[p->ack->n_refused++] = r;
        p->d->d.refused++;
        return;
    }
    const struct overlay *o;
    struct state_id id = {0};
    if (overlay_find(core, true, &facts->id, &o))
        memcpy(&id, o->id, ID_BYTES(o->id));
    else if (facts->id_known && !state_id_get(facts->id_value, &id))
        id = (struct state_id){0}; /* damaged: the old text stays, the new one is added */
    bool live = overlay_find(core, false, &facts->content, &o) ? o->live : facts->content_live;
    if (core->config.planted & PLANT_NO_DUPLICATE_CHECK)
        live = false;
    bool same = id.live && !memcmp(&id.content, &facts->content, sizeof id.content);
    bool changed = false;
    if (id.live && id.n && !same) {
        supersede(p, &id);
        changed = true;
    }
    if (live) {
        p->d->d.duplicates++;
        p->ack->duplicates++;
    } else {
        struct state_place place;
        append_record(p, view, facts, &place);
        if (id.n == REVISIONS_MAX) {
            erase_payload(core, &id.places[0]);
            memmove(id.places, id.places + 1, (REVISIONS_MAX - 1) * sizeof id.places[0]);
            id.n--;
        }
        id.places[id.n++] = place;
        id.revision++;
        id.live = 1;
        id.content = facts->content;
        PUT(core, FAMILY_DEDUPE, key_hash('c', &facts->content), state_place, &place);
        overlay_content(core, &facts->content, true);
        p->ack->accepted++;
        p->d->d.records++;
        core->pushed_records++;
        core->pushed_bytes += view->text.len;
        changed = true;
    }
    if (changed) {
        PUT(core, FAMILY_DEDUPE, key_hash('i', &facts->id), state_id, &id);
        overlay_id(core, &facts->id, &id);
    }
}

/* false: answered with a refusal for now. */
static bool has_room(struct core *core, const struct event *event, const struct domain *d)
{
    if (core->disk_low) {
        refuse(core, event, ST_AGAIN, 10 * RETRY_MS, "the coordinator's disk is nearly full: free room there");
    } else if (core->seq - core->committed > UNCOMMITTED_MAX) {
        refuse(core, event, ST_AGAIN, RETRY_MS, "the coordinator's disk is behind");
    } else if (core->exclusions_n + 2 * LIMIT_BATCH_RECORDS > EXCLUSIONS_MAX) {
        refuse(core, event, ST_LIMIT, 0, "this line has superseded or retracted %zu ranges: start a new line",
               core->exclusions_n);
    } else if (d->id.v && !d->settings.backlog_sample && d->bytes[SEG_PENDING] >= d->settings.backlog_bytes) {
        refuse(core, event, ST_AGAIN, 10 * RETRY_MS, "domain %s has %llu bytes waiting to be learnt, its budget",
               d->d.name.s, (unsigned long long)d->bytes[SEG_PENDING]);
    } else if (d->id.v && !d->settings.backlog_sample && domain_age_ms(core, d) > d->settings.backlog_age_ms) {
        refuse(core, event, ST_AGAIN, 10 * RETRY_MS, "domain %s has text waiting for over %llu s, its budget",
               d->d.name.s, (unsigned long long)(d->settings.backlog_age_ms / 1000));
    } else {
        return true;
    }
    return false;
}

/* What the chain becomes over a batch. */
static void chain(struct digest *rolling, const Alv__PushBatch *batch, const struct push_facts *facts)
{
    for (size_t i = 0; i < batch->n_records; i++) {
        struct record_view view = record_of(batch->records[i]);
        record_chain(rolling, &view, &facts[i].digest);
    }
}

/* Does the batch continue the stream? Otherwise answers: with the first answer if it is the last batch again. */
static bool continues(struct core *core, const struct event *event, const struct state_stream *s)
{
    const Alv__PushBatch *batch = (const Alv__PushBatch *)event->message;
    if (batch->position == s->position)
        return true;
    if (batch->position != s->last_position || batch->position + batch->n_records != s->position) {
        refuse(core, event, ST_CONFLICT, 0, "expected position %llu, got %llu", (unsigned long long)s->position,
               (unsigned long long)batch->position);
        return false;
    }
    if (core->config.planted & PLANT_NO_DUPLICATE_CHECK)
        return true;
    struct digest rolling = s->last_rolling;
    chain(&rolling, batch, event->facts);
    if (!digest_eq(&rolling, &s->rolling)) {
        refuse(core, event, ST_CONFLICT, 0,
               "position %llu holds other records than were taken from there before: the source "
               "changed under the push",
               (unsigned long long)batch->position);
        return false;
    }
    Alv__PushAck *ack = alv__push_ack__unpack(NULL, s->last_ack.len, s->last_ack.data);
    if (ack)
        reply(core, &event->peer, event->request, VERB_PUSH_ACK, ack);
    else
        refuse(core, event, ST_CORRUPT, 0, "the stored answer to position %llu does not parse",
               (unsigned long long)batch->position);
    return false;
}

void intake_push(struct core *core, const struct event *event)
{
    const Alv__PushBatch *batch = (const Alv__PushBatch *)event->message;
    struct state_stream *s = stream_of(core, batch->producer);
    if (!s || !name_eq(&s->key, &event->peer.key)) {
        refuse(core, event, ST_NOT_FOUND, 0, "no such producer session: open one");
        return;
    }
    if (s->epoch != (batch->producer & ((1u << EPOCH_BITS) - 1))) {
        refuse(core, event, ST_CONFLICT, 0, "another push of this source has begun: this session is fenced");
        return;
    }
    struct domain *d = core->domains[s->domain.v];
    if (!batch->n_records || batch->n_records > LIMIT_BATCH_RECORDS || !event->facts) {
        refuse(core, event, ST_BAD_DATA, 0, "a batch holds 1 to %u records", LIMIT_BATCH_RECORDS);
        return;
    }
    if (!continues(core, event, s) || !has_room(core, event, d))
        return;
    struct push p = {.core = core, .d = d, .ack = new_message(&alv__push_ack__descriptor)};
    p.ack->refused = xcalloc(batch->n_records, sizeof *p.ack->refused);
    struct digest rolling = s->rolling;
    reserve(core, batch);
    p.ack->train_first = d->d.train_next;
    p.ack->probe_first = d->d.probe_next;
    for (uint32_t i = 0; i < batch->n_records; i++) {
        struct record_view view = record_of(batch->records[i]);
        record_chain(&rolling, &view, &event->facts[i].digest);
        take_record(&p, i, &view, &event->facts[i]);
    }
    flush(&p);
    d->dirty = true;
    p.ack->train_end = d->d.train_next;
    p.ack->probe_end = d->d.probe_next;
    p.ack->seq = core->seq + 1;
    s->last_position = s->position;
    s->last_rolling = s->rolling;
    s->position += batch->n_records;
    p.ack->position = s->position;
    s->rolling = rolling;
    buf_clear(&s->last_ack);
    size_t len = alv__push_ack__get_packed_size(p.ack);
    alv__push_ack__pack(p.ack, buf_extend(&s->last_ack, len));
    store_stream(core, batch->producer >> EPOCH_BITS);
    reply(core, &event->peer, event->request, VERB_PUSH_ACK, p.ack);
    free(p.sizes);
    free(p.skipped);
    planner_pending(core);
}
