/* shell.c - the coordinator's process: what its shell does with sockets, disk and threads, done by events. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/codec.h"
#include "proto/frame.h"
#include "proto/manifest.h"
#include "world.h"

/* ---- the coordinator's process */

bool blob_held(const struct world *w, const struct digest *digest)
{
    for (size_t i = 0; i < w->n_blobs; i++)
        if (digest_eq(&w->blobs[i], digest))
            return true;
    return false;
}

bool files_held(const struct world *w, const struct version_files *files)
{
    return blob_held(w, &files->peft) && blob_held(w, &files->gguf) &&
           (digest_is_zero(&files->state) || blob_held(w, &files->state));
}

void blob_hold(struct world *w, const struct digest *digest)
{
    if (blob_held(w, digest))
        return;
    if (w->n_blobs == w->cap_blobs) {
        w->cap_blobs = w->cap_blobs ? 2 * w->cap_blobs : 64;
        w->blobs = xrealloc_array(w->blobs, w->cap_blobs, sizeof *w->blobs);
    }
    w->blobs[w->n_blobs++] = *digest;
}

static void blob_drop(struct world *w, const struct digest *digest)
{
    for (size_t i = 0; i < w->n_blobs; i++)
        if (digest_eq(&w->blobs[i], digest))
            w->blobs[i] = w->blobs[--w->n_blobs];
}

static void coordinator_effects(struct world *w);

bool segment_poisons(const struct world *w, const struct state_segment *segment)
{
    return segment->content.b[0] < w->knobs.poison;
}

void coordinator_step(struct world *w, struct event event)
{
    event.now_ms = w->now_ms;
    event.wall_s = 1700000000 + w->now_ms / 1000;
    core_step(w->core, &event, &w->effects);
    coordinator_effects(w);
}

/* Deltas are bad by their digest: the data is, whoever trains it. A failure says so of those it came to. */
static void aggregate(struct world *w, const struct effect *e)
{
    struct happen h = {.what = HAPPEN_AGGREGATED, .life = w->life};
    struct aggregated *a = &h.aggregated;
    struct hasher hasher;
    uint32_t good = 0;
    bool poisoned = false;
    hasher_init(&hasher);
    hasher_put(&hasher, e->aggregate.parent_peft.b, DIGEST_LEN);
    hasher_put(&hasher, e->aggregate.parent_state.b, DIGEST_LEN);
    hasher_put(&hasher, &e->aggregate.step, sizeof e->aggregate.step);
    *a = (struct aggregated){.round = e->aggregate.round,
                             .attempt = e->aggregate.attempt,
                             .n = e->aggregate.n,
                             .files = {.peft_bytes = 64, .gguf_bytes = 64},
                             .update_norm = 1,
                             .deltas = xcalloc(e->aggregate.n, sizeof *a->deltas)};
    for (uint32_t i = 0; i < e->aggregate.n; i++) {
        const struct digest *d = &e->aggregate.deltas[i].digest;
        if (!blob_held(w, d))
            fail(w, "an accepted delta's blob is gone (lease %" PRIu64 ")", e->aggregate.deltas[i].lease);
        a->deltas[i].refused = d->b[5] < 256 * w->knobs.delta_bad;
        if (a->deltas[i].refused)
            continue;
        hasher_put(&hasher, d->b, DIGEST_LEN);
        poisoned |= d->b[1] == POISONED;
        good++;
    }
    for (uint32_t i = 0; i < a->n; i++)
        if (!a->deltas[i].refused)
            a->deltas[i] = (struct aggregated_delta){.norm = 1, .clip = 1, .weight = 1.0 / good};
    if (!good)
        a->status = ST_EMPTY;
    else if (w->faults && chance(w, w->knobs.aggregate_fails))
        a->status = ST_NO_SPACE;
    if (!a->status) {
        struct version_files *f = &a->files;
        hasher_end(&hasher, &f->peft);
        f->peft.b[2] = poisoned ? POISONED : f->peft.b[2] == POISONED ? 0 : f->peft.b[2];
        f->gguf = f->peft;
        f->gguf.b[0] ^= 1;
        blob_hold(w, &f->peft);
        blob_hold(w, &f->gguf);
        if (!publish_rule_plain(&e->aggregate.rule)) {
            f->state = f->peft;
            f->state.b[0] ^= 2;
            f->state_bytes = 64;
            blob_hold(w, &f->state);
        }
    }
    schedule(w, between(w, 5, 200), h);
}

static void unsynced_add(struct world *w, uint64_t seq, struct batch *batch)
{
    if (w->n_unsynced == w->cap_unsynced) {
        w->cap_unsynced = w->cap_unsynced ? 2 * w->cap_unsynced : 64;
        w->unsynced = xrealloc_array(w->unsynced, w->cap_unsynced, sizeof *w->unsynced);
    }
    w->unsynced[w->n_unsynced++] = (struct unsynced){seq, *batch};
    *batch = (struct batch){0};
    if (!w->sync_running) { /* group commit: what gathers until then is synced together */
        w->sync_running = true;
        schedule(w, between(w, 1, 8), (struct happen){.what = HAPPEN_SYNCED, .life = w->life, .number = seq});
    }
}

static void coordinator_effects(struct world *w)
{
    for (uint32_t i = 0; i < w->effects.n && w->result->ok; i++) {
        struct effect *e = &w->effects.items[i];
        switch (e->kind) {
        case EFFECT_SEND:
            if (e->send.verb == VERB_PUSH_ACK) {
                struct node *node = node_of(w, e->send.peer.conn);
                if (node) {
                    check_acked(w, node, ((const Alv__PushAck *)e->send.message)->position);
                    check_ack(w, node, (const Alv__PushAck *)e->send.message);
                }
            }
            if (e->send.verb == VERB_TASK && ((const Alv__Task *)e->send.message)->lease) {
                struct node *node = node_of(w, e->send.peer.conn);
                if (node)
                    check_grant(w, node, ((const Alv__Task *)e->send.message)->lease);
            }
            if (e->send.verb == VERB_HELLO_OK) {
                struct node *node = node_of(w, e->send.peer.conn);
                if (node)
                    check_admitted(w, node);
            }
            if (e->send.verb == VERB_CONTROL_REPLY)
                operator_told(w, e->send.request, ((const Alv__ControlReply *)e->send.message)->json);
            answer(w, &e->send.peer, e->send.verb, e->send.request, e->send.message);
            break;
        case EFFECT_PERSIST:
            unsynced_add(w, e->persist.seq, &e->persist.batch);
            break;
        case EFFECT_AGGREGATE:
            aggregate(w, e);
            break;
        case EFFECT_PURGE:
            check_purge(w, e->purge);
            schedule(w, between(w, 1, 3000),
                     (struct happen){.what = HAPPEN_PURGED, .life = w->life, .number = e->purge});
            break;
        case EFFECT_DROP_BLOB:
            check_drop(w, &e->drop);
            blob_drop(w, &e->drop);
            break;
        }
    }
    effects_clear(&w->effects);
}

/* Batches reach the disk in order. After a crash any number of the first of them may have (the cache was written back by
 * chance), the rest is gone. */
static void sync_batches(struct world *w, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        check_batch(w, &w->unsynced[i].batch);
        memstore_apply(&w->disk, &w->unsynced[i].batch);
        check_applied(w, &w->unsynced[i].batch);
        w->seq_durable = w->unsynced[i].seq;
        batch_release(&w->unsynced[i].batch);
    }
    w->n_unsynced -= n;
    memmove(w->unsynced, w->unsynced + n, w->n_unsynced * sizeof *w->unsynced);
}

void coordinator_synced(struct world *w)
{
    w->sync_running = false;
    sync_batches(w, w->n_unsynced);
    if (w->result->ok)
        coordinator_step(w, (struct event){.kind = EVENT_COMMITTED, .seq = w->seq_durable});
}

void coordinator_start(struct world *w)
{
    w->twin_admitted = 0;
    struct err err;
    w->core = core_new(&w->config);
    if (memstore_load(&w->disk, w->core, &err)) {
        fail(w, "the coordinator cannot load what it stored: %s", err.text);
        return;
    }
    struct event start = {.kind = EVENT_START};
    w->incarnation++;
    memcpy(start.incarnation, &w->incarnation, sizeof w->incarnation);
    start.incarnation[15] = 1;
    trace(w, "coordinator starts, seq %" PRIu64, w->seq_durable);
    coordinator_step(w, start);
}

void coordinator_crash(struct world *w)
{
    trace(w, "coordinator crashes with %zu batches not synced", w->n_unsynced);
    w->result->crashes++;
    w->life++;
    core_free(w->core);
    w->core = NULL;
    effects_clear(&w->effects);
    sync_batches(w, between(w, 0, w->n_unsynced));
    for (size_t i = 0; i < w->n_unsynced; i++)
        batch_release(&w->unsynced[i].batch);
    w->n_unsynced = 0;
    w->sync_running = false;
    w->n_conns = 0;
    check_store(w);
    copied_probe(w);
    copied_take(w);
    for (int i = 0; i < NODES; i++)
        if (w->nodes[i].conn)
            peer_cut(w, &w->nodes[i]);
    schedule(w, between(w, 10, 2000), (struct happen){.what = HAPPEN_RESTART, .node = NODES});
}

/* ---- reading the disk */

bool disk_get(const struct world *w, uint8_t family, struct state_key key, struct bytes *out)
{
    return memstore_get(&w->disk, family, key.b, key.len, out);
}

void disk_scan(const struct world *w, uint8_t family, char tag, pair_fn *each, void *user)
{
    const struct mem_item *items = w->disk.items;
    for (size_t i = memstore_seek(&w->disk, family, &tag, 1);
         i < w->disk.n && items[i].family == family && (char)items[i].key.data[0] == tag; i++)
        if (!each(user, buf_bytes(&items[i].key), buf_bytes(&items[i].value)))
            return;
}

bool disk_version(const struct world *w, uint64_t number, struct state_version *out)
{
    struct bytes value;
    return disk_get(w, FAMILY_VERSIONS, key_u64('m', number), &value) && state_version_get(value, out);
}

bool disk_domain(const struct world *w, unsigned id, struct state_domain *out)
{
    struct bytes value;
    return disk_get(w, FAMILY_META, key_u16('d', (uint16_t)id), &value) && state_domain_get(value, out);
}

uint64_t disk_newest(const struct world *w)
{
    struct state_counters counters;
    struct bytes value;
    CHECK(disk_get(w, FAMILY_META, key_plain('c'), &value) && state_counters_get(value, &counters));
    return counters.version;
}

bool disk_withdrawn(const struct world *w, uint64_t version)
{
    struct aliases a;
    bool withdrawn = false;
    if (disk_aliases(w, &a)) {
        withdrawn = aliases_mark(&a, version, MARK_WITHDRAWN);
        aliases_release(&a);
    }
    return withdrawn;
}

bool disk_aliases(const struct world *w, struct aliases *out)
{
    struct bytes value;
    return disk_get(w, FAMILY_META, key_plain('a'), &value) && value.len > SIGNATURE_LEN &&
           !aliases_decode(value.data, value.len - SIGNATURE_LEN, out, NULL);
}

/* The newest link that starts at or below `offset`, if it covers it. */
static bool link_source(const struct world *w, struct domain_id domain, uint64_t offset, uint64_t *source)
{
    struct state_key key = key_domain('k', domain, offset + 1);
    size_t at = memstore_seek(&w->disk, FAMILY_META, key.b, key.len);
    struct domain_id d;
    struct state_link link;
    uint64_t first;
    if (!at || w->disk.items[at - 1].family != FAMILY_META || w->disk.items[at - 1].key.data[0] != 'k')
        return false;
    const struct mem_item *item = &w->disk.items[at - 1];
    if (!key_read_domain(buf_bytes(&item->key), &d, &first) || !state_link_get(buf_bytes(&item->value), &link) ||
        d.v != domain.v || offset - first >= link.count)
        return false;
    *source = link.source + (offset - first);
    return true;
}

bool segment_read(const struct world *w, struct domain_id domain, bool probe, uint64_t offset,
                  struct state_segment *out)
{
    struct bytes value;
    while (!probe && link_source(w, domain, offset, &offset))
        ; /* a source is lower than what repeats it */
    return disk_get(w, FAMILY_STREAM, key_stream('s', domain, probe, offset), &value) && state_segment_get(value, out);
}

/* ---- what the product's shell answers itself, from disk */

static ProtobufCBinaryData binary(struct bytes b)
{
    return (ProtobufCBinaryData){.len = b.len, .data = (uint8_t *)(uintptr_t)b.data};
}

static void answer_manifest(struct world *w, const struct peer *peer, uint64_t request, uint64_t number)
{
    struct state_version v;
    if (!disk_version(w, number, &v)) {
        Alv__Error error;
        alv__error__init(&error);
        codec_error(&error, ST_NOT_FOUND, (char *)"no such version", 0);
        answer(w, peer, VERB_ERROR, request, &error.base);
        return;
    }
    Alv__SignedManifest m;
    alv__signed_manifest__init(&m);
    m.number = number;
    m.manifest = binary(v.manifest);
    m.signature = binary((struct bytes){v.signature, sizeof v.signature});
    answer(w, peer, VERB_MANIFEST, request, &m.base);
}

/* ---- what a step must know from disk (coordinator/facts.h) */

struct facts {
    struct push_facts *push;
    struct version_facts version;
    struct buf ranges;
};

static void add_ranges(struct world *w, uint64_t number, struct buf *out, uint64_t *parent)
{
    struct state_version v;
    struct manifest m;
    CHECK(disk_version(w, number, &v) && !manifest_decode(v.manifest.data, v.manifest.len, &m, NULL));
    for (uint32_t i = 0; i < m.n_leases; i++)
        for (uint32_t k = 0; k < m.leases[i].n_ranges; k++) {
            const struct manifest_range *r = &m.leases[i].ranges[k];
            struct done_range done = {r->domain, r->first, r->count};
            buf_put(out, &done, sizeof done);
        }
    *parent = m.parent;
    manifest_release(&m);
}

static void control_facts(struct world *w, const Alv__Control *c, struct facts *facts, struct event *event)
{
    struct version_facts *v = &facts->version;
    if (c->verb == ALV__CONTROL_VERB__CONTROL_RETRACT) {
        Alv__Record record;
        struct hash16 content, id;
        alv__record__init(&record);
        record.kind = ALV__RECORD_KIND__RECORD_TEXT;
        record.id = c->record;
        for (uint16_t d = 1; d <= TRAIN_DOMAINS; d++) {
            struct state_domain domain;
            if (!disk_domain(w, d, &domain) || strcmp(domain.name.s, c->domain))
                continue;
            record_hashes(&w->config.seed, (struct domain_id){d}, &record, &content, &id);
            disk_get(w, FAMILY_DEDUPE, key_hash('i', &id), &event->record_value);
        }
    }
    struct state_version stored;
    if ((c->verb != ALV__CONTROL_VERB__CONTROL_ROLLBACK && c->verb != ALV__CONTROL_VERB__CONTROL_PROMOTE) ||
        !disk_get(w, FAMILY_VERSIONS, key_u64('m', c->number), &v->value) || !state_version_get(v->value, &stored))
        return;
    v->newest = disk_newest(w);
    v->files_held = files_held(w, &stored.files);
    if (c->verb == ALV__CONTROL_VERB__CONTROL_ROLLBACK) {
        uint64_t at = v->newest;
        while (at > c->number)
            add_ranges(w, at, &facts->ranges, &at);
        v->in_lineage = at == c->number;
        v->ranges = (const struct done_range *)(const void *)facts->ranges.data;
        v->n = (uint32_t)(facts->ranges.len / sizeof(struct done_range));
    }
    event->version = v;
}

static void read_facts(struct world *w, struct facts *facts, struct event *event)
{
    struct domain_id domain;
    struct digest d;
    switch (event->verb) {
    case VERB_PUSH_BATCH: {
        const Alv__PushBatch *batch = (const Alv__PushBatch *)event->message;
        if (core_producer_domain(w->core, batch->producer, &domain))
            event->facts = facts->push = memstore_facts(&w->disk, &w->config.seed, domain, batch);
        break;
    }
    case VERB_DELTA_COMMIT:
        memcpy(d.b, ((const Alv__DeltaCommit *)event->message)->delta->digest.data, DIGEST_LEN);
        event->blob_held = blob_held(w, &d);
        break;
    case VERB_CONTROL:
        control_facts(w, (const Alv__Control *)event->message, facts, event);
        break;
    }
}

void coordinator_message(struct world *w, struct node *node, const struct happen *h)
{
    struct frame frame;
    struct err err;
    ProtobufCMessage *message = NULL;
    if (frame_decode(h->bytes.data, h->bytes.len, &frame, &err) ||
        codec_decode(frame.verb, frame.body, &message, &err)) {
        fail(w, "a frame of node %d is refused: %s", node->index, err.text);
        return;
    }
    struct event event = {.kind = EVENT_MESSAGE,
                          .peer = {.conn = h->conn, .plane = node->plane, .role = node->role, .key = node->key},
                          .verb = frame.verb,
                          .request = frame.request_id,
                          .message = message};
    struct facts facts = {0};
    if (!verb_allowed(frame.verb, node->plane, node->role)) {
        fail(w, "node %d may not say %s", node->index, verb_find(frame.verb)->name);
    } else if (frame.verb == VERB_MANIFEST_GET) {
        answer_manifest(w, &event.peer, frame.request_id, ((const Alv__ManifestGet *)message)->number);
    } else {
        read_facts(w, &facts, &event);
        coordinator_step(w, event);
    }
    free(facts.push);
    buf_release(&facts.ranges);
    codec_free(message);
}
