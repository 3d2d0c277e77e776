/* sim.c - time, network, and the coordinator's process and disk. */
#include <inttypes.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/codec.h"
#include "proto/frame.h"
#include "proto/manifest.h"
#include "world.h"

enum {
    FAULTS_MS = 40 * 1000,      /* faults happen until then */
    PEACE_MS = 4 * 3600 * 1000, /* after which everything must be done */
    EVENTS_MAX = 4000000,       /* a run that needs more is stuck */
};

bool chance(struct world *w, double p)
{
    return rng_unit(&w->rng) < p;
}

uint64_t between(struct world *w, uint64_t low, uint64_t high)
{
    return low + rng_below(&w->rng, high - low + 1);
}

void fail(struct world *w, const char *format, ...)
{
    if (!w->result->ok)
        return;
    w->result->ok = false;
    int n = snprintf(w->result->failure, sizeof w->result->failure, "at %" PRIu64 " ms: ", w->now_ms);
    va_list args;
    va_start(args, format);
    vsnprintf(w->result->failure + n, sizeof w->result->failure - (size_t)n, format, args);
    va_end(args);
}

void trace(struct world *w, const char *format, ...)
{
    if (!w->options.trace)
        return;
    fprintf(stderr, "%10" PRIu64 " ", w->now_ms);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

/* ---- the queue */

static bool sooner(const struct happen *a, const struct happen *b)
{
    return a->at_ms != b->at_ms ? a->at_ms < b->at_ms : a->order < b->order;
}

void schedule(struct world *w, uint64_t in_ms, struct happen h)
{
    h.at_ms = w->now_ms + in_ms;
    h.order = w->order++;
    if (w->n_queue == w->cap_queue) {
        w->cap_queue = w->cap_queue ? 2 * w->cap_queue : 1024;
        w->queue = xrealloc_array(w->queue, w->cap_queue, sizeof *w->queue);
    }
    size_t i = w->n_queue++;
    while (i > 0 && sooner(&h, &w->queue[(i - 1) / 2])) {
        w->queue[i] = w->queue[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->queue[i] = h;
}

static struct happen next_happen(struct world *w)
{
    struct happen top = w->queue[0], last = w->queue[--w->n_queue];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= w->n_queue)
            break;
        if (c + 1 < w->n_queue && sooner(&w->queue[c + 1], &w->queue[c]))
            c++;
        if (!sooner(&w->queue[c], &last))
            break;
        w->queue[i] = w->queue[c];
        i = c;
    }
    if (w->n_queue)
        w->queue[i] = last;
    return top;
}

static void happen_release(struct happen *h)
{
    buf_release(&h->bytes);
    free(h->aggregated.deltas);
}

/* ---- the network: every frame is encoded, carried (perhaps lost, late, twice) and decoded */

static void carry(struct world *w, struct happen h)
{
    w->result->messages++;
    unsigned copies = chance(w, w->loss) ? 0 : chance(w, w->duplicate) ? 2 : 1;
    w->result->lost += copies == 0;
    for (unsigned i = 0; i < copies; i++) {
        struct happen copy = h;
        copy.bytes = (struct buf){0};
        buf_put(&copy.bytes, h.bytes.data, h.bytes.len);
        uint64_t late = chance(w, 0.02) && w->faults ? between(w, 100, 3000) : between(w, 1, 20);
        schedule(w, late, copy);
    }
    buf_release(&h.bytes);
}

void send_frame(struct world *w, struct node *node, uint16_t verb, uint64_t request, const ProtobufCMessage *message)
{
    struct happen h = {.what = HAPPEN_TO_COORDINATOR, .node = node->index, .conn = node->conn};
    struct err err;
    if (!node->conn)
        return;
    enum status st = frame_encode(verb, request, message, &h.bytes, &err);
    if (st) {
        fail(w, "node %d made a frame its peer would refuse: %s", node->index, err.text);
        return;
    }
    trace(w, "node %d sends %s #%" PRIu64, node->index, verb_find(verb)->name, request);
    carry(w, h);
}

static struct node *node_of(struct world *w, uint64_t conn)
{
    for (size_t i = 0; i < w->n_conns; i++)
        if (w->conns[i].conn == conn)
            return &w->nodes[w->conns[i].node];
    return NULL;
}

static void answer(struct world *w, const struct peer *peer, uint16_t verb, uint64_t request,
                   const ProtobufCMessage *message)
{
    struct node *node = node_of(w, peer->conn);
    struct happen h = {.what = HAPPEN_TO_NODE, .conn = peer->conn};
    struct err err;
    if (!node)
        return;
    if (frame_encode(verb, request, message, &h.bytes, &err)) {
        fail(w, "the coordinator made a frame its peer would refuse: %s", err.text);
        return;
    }
    h.node = node->index;
    trace(w, "coordinator answers node %d %s #%" PRIu64 "%s%s", node->index, verb_find(verb)->name, request,
          verb == VERB_ERROR ? ": " : "", verb == VERB_ERROR ? ((const Alv__Error *)message)->text : "");
    carry(w, h);
}

/* ---- the coordinator's process */

bool blob_held(const struct world *w, const struct digest *digest)
{
    for (size_t i = 0; i < w->n_blobs; i++)
        if (digest_eq(&w->blobs[i], digest))
            return true;
    return false;
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

static void coordinator_step(struct world *w, struct event event)
{
    event.now_ms = w->now_ms;
    event.wall_s = 1700000000 + w->now_ms / 1000;
    core_step(w->core, &event, &w->effects);
    coordinator_effects(w);
}

static void aggregate(struct world *w, const struct effect *e)
{
    struct happen h = {.what = HAPPEN_AGGREGATED, .life = w->life};
    struct hasher hasher;
    struct digest d;
    hasher_init(&hasher);
    hasher_put(&hasher, e->aggregate.parent_peft.b, DIGEST_LEN);
    hasher_put(&hasher, &e->aggregate.step, sizeof e->aggregate.step);
    h.aggregated = (struct aggregated){.round = e->aggregate.round,
                                       .attempt = e->aggregate.attempt,
                                       .n = e->aggregate.n,
                                       .peft_bytes = 64,
                                       .gguf_bytes = 64,
                                       .update_norm = 1,
                                       .deltas = xcalloc(e->aggregate.n, sizeof *h.aggregated.deltas)};
    for (uint32_t i = 0; i < e->aggregate.n; i++) {
        if (!blob_held(w, &e->aggregate.deltas[i].digest))
            fail(w, "an accepted delta's blob is gone (lease %" PRIu64 ")", e->aggregate.deltas[i].lease);
        hasher_put(&hasher, e->aggregate.deltas[i].digest.b, DIGEST_LEN);
        h.aggregated.deltas[i] = (struct aggregated_delta){.norm = 1, .clip = 1, .weight = 1.0 / e->aggregate.n};
    }
    hasher_end(&hasher, &h.aggregated.peft);
    d = h.aggregated.peft;
    d.b[0] ^= 1;
    h.aggregated.gguf = d;
    blob_hold(w, &h.aggregated.peft);
    blob_hold(w, &h.aggregated.gguf);
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
                if (node)
                    check_acked(w, node, ((const Alv__PushAck *)e->send.message)->position);
            }
            if (e->send.verb == VERB_TASK && ((const Alv__Task *)e->send.message)->lease)
                check_grant(w, ((const Alv__Task *)e->send.message)->lease);
            answer(w, &e->send.peer, e->send.verb, e->send.request, e->send.message);
            break;
        case EFFECT_PERSIST:
            unsynced_add(w, e->persist.seq, &e->persist.batch);
            break;
        case EFFECT_AGGREGATE:
            aggregate(w, e);
            break;
        case EFFECT_DROP_BLOB:
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
        memstore_apply(&w->disk, &w->unsynced[i].batch);
        w->seq_durable = w->unsynced[i].seq;
        batch_release(&w->unsynced[i].batch);
    }
    w->n_unsynced -= n;
    memmove(w->unsynced, w->unsynced + n, w->n_unsynced * sizeof *w->unsynced);
}

static void coordinator_start(struct world *w)
{
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

static void coordinator_crash(struct world *w)
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
    for (int i = 0; i < NODES; i++)
        if (w->nodes[i].conn)
            peer_cut(w, &w->nodes[i]);
    schedule(w, between(w, 10, 2000), (struct happen){.what = HAPPEN_RESTART, .node = NODES});
}

/* ---- what the product's shell answers itself, from disk */

void disk_scan(const struct world *w, uint8_t family, pair_fn *each, void *user)
{
    for (size_t i = memstore_seek(&w->disk, family, "", 0); i < w->disk.n && w->disk.items[i].family == family; i++)
        if (!each(user, buf_bytes(&w->disk.items[i].key), buf_bytes(&w->disk.items[i].value)))
            return;
}

static bool version_read(struct world *w, uint64_t number, struct state_version *out)
{
    struct state_key key = key_u64('m', number);
    struct bytes value;
    return memstore_get(&w->disk, FAMILY_VERSIONS, key.b, key.len, &value) && state_version_get(value, out);
}

static ProtobufCBinaryData binary(struct bytes b)
{
    return (ProtobufCBinaryData){.len = b.len, .data = (uint8_t *)(uintptr_t)b.data};
}

static void answer_manifest(struct world *w, const struct peer *peer, uint64_t request, uint64_t number)
{
    struct state_version v;
    if (!version_read(w, number, &v)) {
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

static void to_coordinator(struct world *w, struct happen *h)
{
    struct node *node = node_of(w, h->conn);
    struct frame frame;
    struct err err;
    ProtobufCMessage *message = NULL;
    if (!w->core || !node)
        return;
    if (frame_decode(h->bytes.data, h->bytes.len, &frame, &err) ||
        codec_decode(frame.verb, frame.body, &message, &err)) {
        fail(w, "a frame of node %d is refused: %s", h->node, err.text);
        return;
    }
    if (!verb_allowed(frame.verb, node->plane, node->role)) {
        fail(w, "node %d may not say %s", h->node, verb_find(frame.verb)->name);
        goto done;
    }
    struct event event = {.kind = EVENT_MESSAGE,
                          .peer = {.conn = h->conn, .plane = node->plane, .role = node->role, .key = node->key},
                          .verb = frame.verb,
                          .request = frame.request_id,
                          .message = message};
    struct push_facts *facts = NULL;
    struct version_facts version = {0};
    struct state_version stored;
    struct domain_id domain;
    switch (frame.verb) {
    case VERB_MANIFEST_GET:
        answer_manifest(w, &event.peer, frame.request_id, ((const Alv__ManifestGet *)message)->number);
        goto done;
    case VERB_PUSH_BATCH:
        if (core_producer_domain(w->core, ((const Alv__PushBatch *)message)->producer, &domain))
            event.facts = facts = memstore_facts(&w->disk, &w->config.seed, domain, (const Alv__PushBatch *)message);
        break;
    case VERB_DELTA_COMMIT: {
        struct digest d;
        memcpy(d.b, ((const Alv__DeltaCommit *)message)->delta->digest.data, DIGEST_LEN);
        event.blob_held = blob_held(w, &d);
        break;
    }
    case VERB_CONTROL: {
        const Alv__Control *control = (const Alv__Control *)message;
        struct state_key key = key_u64('m', control->number);
        if (memstore_get(&w->disk, FAMILY_VERSIONS, key.b, key.len, &version.value) &&
            state_version_get(version.value, &stored)) {
            version.files_held = blob_held(w, &stored.files.peft);
            version.in_lineage = true;
            event.version = &version;
        }
        break;
    }
    }
    coordinator_step(w, event);
    free(facts);
done:
    codec_free(message);
}

static void to_node(struct world *w, struct happen *h)
{
    struct node *node = &w->nodes[h->node];
    struct frame frame;
    struct err err;
    ProtobufCMessage *message = NULL;
    if (!node->alive || node->conn != h->conn)
        return;
    if (frame_decode(h->bytes.data, h->bytes.len, &frame, &err) ||
        codec_decode(frame.verb, frame.body, &message, &err)) {
        fail(w, "a frame of the coordinator is refused: %s", err.text);
        return;
    }
    peer_message(w, node, frame.verb, frame.request_id, message);
    codec_free(message);
}

static void connect_node(struct world *w, struct node *node)
{
    if (!node->alive || node->conn)
        return;
    bool early = node->role == ROLE_PRODUCER && w->operator_step < TRAIN_DOMAINS; /* there are no domains yet */
    if (!w->core || early) {
        schedule(w, between(w, 50, 500),
                 (struct happen){.what = HAPPEN_CONNECT, .node = node->index, .life = node->life});
        return;
    }
    node->conn = ++w->next_conn;
    if (w->n_conns == w->cap_conns) {
        w->cap_conns = w->cap_conns ? 2 * w->cap_conns : 64;
        w->conns = xrealloc_array(w->conns, w->cap_conns, sizeof *w->conns);
    }
    w->conns[w->n_conns++] = (struct conn){node->conn, node->index};
    peer_connected(w, node);
    if (w->faults && chance(w, w->cut))
        schedule(w, between(w, 100, 10000),
                 (struct happen){.what = HAPPEN_CUT, .node = node->index, .conn = node->conn});
}

static void cut_node(struct world *w, struct node *node)
{
    uint64_t conn = node->conn;
    for (size_t i = 0; i < w->n_conns; i++)
        if (w->conns[i].conn == conn)
            w->conns[i] = w->conns[--w->n_conns];
    peer_cut(w, node);
    if (chance(w, 0.7)) /* the news may never come */
        schedule(w, between(w, 1, 2000),
                 (struct happen){.what = HAPPEN_GONE, .node = node->index, .conn = conn, .life = w->life});
}

static void gone(struct world *w, const struct happen *h)
{
    const struct node *node = &w->nodes[h->node];
    if (w->core && h->life == w->life)
        coordinator_step(
            w, (struct event){.kind = EVENT_PEER_GONE,
                              .peer = {.conn = h->conn, .plane = node->plane, .role = node->role, .key = node->key}});
}

static void crash_node(struct world *w, struct node *node)
{
    if (!node->alive)
        return;
    trace(w, "node %d crashes", node->index);
    w->result->crashes++;
    if (node->conn)
        cut_node(w, node);
    peer_crash(w, node);
    node->alive = false;
    node->life++;
    schedule(w, between(w, 10, 5000), (struct happen){.what = HAPPEN_RESTART, .node = node->index});
}

static void happen_now(struct world *w, struct happen *h)
{
    struct node *node = h->node < NODES ? &w->nodes[h->node] : NULL;
    switch (h->what) {
    case HAPPEN_TO_COORDINATOR:
        to_coordinator(w, h);
        break;
    case HAPPEN_TO_NODE:
        to_node(w, h);
        break;
    case HAPPEN_SYNCED:
        if (w->core && h->life == w->life) {
            w->sync_running = false;
            sync_batches(w, w->n_unsynced);
            coordinator_step(w, (struct event){.kind = EVENT_COMMITTED, .seq = w->seq_durable});
        }
        break;
    case HAPPEN_AGGREGATED:
        if (w->core && h->life == w->life)
            coordinator_step(w, (struct event){.kind = EVENT_AGGREGATED, .aggregated = &h->aggregated});
        break;
    case HAPPEN_JOB:
    case HAPPEN_OPERATOR:
        if (node->alive && h->life == node->life)
            peer_job(w, node, h);
        break;
    case HAPPEN_CONNECT:
        if (h->life == node->life)
            connect_node(w, node);
        break;
    case HAPPEN_GONE:
        gone(w, h);
        break;
    case HAPPEN_CUT:
        if (node->alive && node->conn == h->conn)
            cut_node(w, node);
        break;
    case HAPPEN_CRASH:
        if (!node && w->core)
            coordinator_crash(w);
        else if (node)
            crash_node(w, node);
        break;
    case HAPPEN_RESTART:
        if (!node && !w->core)
            coordinator_start(w);
        else if (node && !node->alive)
            peer_start(w, node);
        break;
    }
}

/* ---- a run */

static void make_line(struct world *w)
{
    struct core_config *c = &w->config;
    struct sign_public root_public, release_public;
    struct sign_secret root, release;
    struct batch batch = {0};
    struct err err;
    CHECK(name_set(&c->line, "sim", 3));
    c->card = (struct card){.base_name = "sim",
                            .arch = {.kind = ARCH_LLAMA,
                                     .n_layers = 1,
                                     .d_model = 8,
                                     .d_ff = 8,
                                     .n_heads = 2,
                                     .n_kv_heads = 1,
                                     .head_dim = 4,
                                     .vocab_size = 256,
                                     .context_max = 512,
                                     .rope_theta = 10000,
                                     .rms_eps = 1e-5f,
                                     .tied_head = true}};
    CHECK_EQ(adapter_shape_of(&c->card.arch, 2, 4, LORA_ALL, &c->shape, &err), ST_OK);
    settings_default(&c->settings);
    struct {
        const char *name, *value;
    } settings[] = {{"segment_bytes", "256"},
                    {"step_tokens", "64"},
                    {"seq_tokens", "64"},
                    {"rank", "2"},
                    {"alpha", "4"},
                    {"lease_steps_min", "2"},
                    {"lease_steps_max", "8"},
                    {"round_wait_ms", "2000"},
                    {"lease_silence_ms", "8000"},
                    {"probe_gate", "24"},
                    {"probe_tuning", "8"},
                    {"probe_audit", "8"},
                    {"heldout_permille", "60"},
                    {"sample_k", "32"},
                    {"lease_attempts", "20"},
                    {"base_tokens_per_kb", "250"},
                    {"window_tokens", "32"},
                    {"lr", "1e-3"}};
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        if (settings_set(&c->settings, settings[i].name, settings[i].value, &err))
            fail(w, "settings: %s", err.text);
    memcpy(c->seed.b, &w->options.seed, sizeof w->options.seed);
    const uint8_t root_seed[crypto_sign_SEEDBYTES] = {1}, release_seed[crypto_sign_SEEDBYTES] = {2};
    crypto_sign_seed_keypair(root_public.b, root.b, root_seed); /* fixed keys: a run repeats byte by byte */
    crypto_sign_seed_keypair(release_public.b, release.b, release_seed);
    memcpy(c->release_secret, release.b, sizeof release.b);
    memcpy(c->release_public, release_public.b, sizeof release_public.b);
    memcpy(c->root_public, root_public.b, sizeof root_public.b);
    cert_sign(&root, &c->line, &release_public, 0, c->release_cert);
    c->planted = w->options.planted;
    struct version_files v0 = {.peft_bytes = 64, .gguf_bytes = 64};
    v0.peft.b[0] = 1;
    v0.gguf.b[0] = 2;
    blob_hold(w, &v0.peft);
    blob_hold(w, &v0.gguf);
    core_init_line(c, &v0, 1700000000, &batch);
    memstore_apply(&w->disk, &batch);
    batch_release(&batch);
}

static void plan_faults(struct world *w)
{
    for (int node = 0; node <= NODES; node++) {
        uint64_t mean = node == NODES ? between(w, 4000, 40000) : between(w, 6000, 60000);
        for (uint64_t at = between(w, 500, mean); at < FAULTS_MS; at += between(w, 500, 2 * mean))
            schedule(w, at, (struct happen){.what = HAPPEN_CRASH, .node = node});
    }
    w->loss = rng_unit(&w->rng) * 0.08;
    w->duplicate = rng_unit(&w->rng) * 0.08;
    w->cut = rng_unit(&w->rng);
}

static bool finished(struct world *w)
{
    if (!w->core || w->n_unsynced || w->sync_running)
        return false;
    for (int i = 0; i < NODES; i++)
        if (!peer_finished(w, &w->nodes[i]))
            return false;
    return all_settled(w);
}

static void ticks(struct world *w)
{
    if (w->core && core_deadline(w->core) <= w->now_ms)
        coordinator_step(w, (struct event){.kind = EVENT_TICK});
    for (int i = 0; i < NODES; i++)
        if (w->nodes[i].alive && peer_deadline(w, &w->nodes[i]) <= w->now_ms)
            peer_tick(w, &w->nodes[i]);
}

static uint64_t next_time(struct world *w)
{
    uint64_t at = w->n_queue ? w->queue[0].at_ms : UINT64_MAX;
    uint64_t d = w->core ? core_deadline(w->core) : UINT64_MAX;
    at = d < at ? d : at;
    for (int i = 0; i < NODES; i++) {
        d = w->nodes[i].alive ? peer_deadline(w, &w->nodes[i]) : UINT64_MAX;
        at = d < at ? d : at;
    }
    return at < w->now_ms ? w->now_ms : at;
}

static void release_world(struct world *w)
{
    for (size_t i = 0; i < w->n_queue; i++)
        happen_release(&w->queue[i]);
    free(w->queue);
    core_free(w->core);
    effects_release(&w->effects);
    for (size_t i = 0; i < w->n_unsynced; i++)
        batch_release(&w->unsynced[i].batch);
    free(w->unsynced);
    memstore_release(&w->disk);
    free(w->blobs);
    free(w->conns);
    for (int i = 0; i < NODES; i++) {
        peer_crash(w, &w->nodes[i]);
        buf_release(&w->nodes[i].pending);
        buf_release(&w->nodes[i].saved);
        source_free(&w->nodes[i]);
    }
    free(w->versions);
    free(w->leases);
}

void sim_run(const struct sim_options *options, struct sim_result *out)
{
    struct world w = {.options = *options, .result = out, .faults = true};
    memset(out, 0, sizeof *out);
    out->ok = true;
    rng_seed(&w.rng, options->seed);
    make_line(&w);
    plan_faults(&w);
    coordinator_start(&w);
    for (int i = 0; i < NODES && out->ok; i++) {
        struct node *node = &w.nodes[i];
        *node = (struct node){.index = i,
                              .role = i < WORKERS       ? ROLE_WORKER
                                      : i < SUBSCRIBER  ? ROLE_PRODUCER
                                      : i == SUBSCRIBER ? ROLE_SUBSCRIBER
                                                        : ROLE_OPERATOR,
                              .plane = i < WORKERS       ? PLANE_WORK
                                       : i < SUBSCRIBER  ? PLANE_INGEST
                                       : i == SUBSCRIBER ? PLANE_MODELS
                                                         : PLANE_CONTROL};
        char name[] = "node-0";
        name[5] = (char)('0' + i);
        CHECK(name_set(&node->key, name, 6));
        node->instance[0] = (uint8_t)(i + 1);
        if (node->role == ROLE_PRODUCER)
            source_make(&w, node, options->records ? options->records : (uint32_t)between(&w, 20, 160));
        peer_start(&w, node);
    }
    while (out->ok && out->events < EVENTS_MAX) {
        uint64_t at = next_time(&w);
        if (w.faults && at > FAULTS_MS) {
            w.faults = false;
            w.loss = w.duplicate = w.cut = 0;
            trace(&w, "peace");
        }
        if (at == UINT64_MAX || at > FAULTS_MS + PEACE_MS) {
            fail(&w, "nothing happens any more, yet not all is done");
            break;
        }
        w.now_ms = at;
        if (w.n_queue && w.queue[0].at_ms <= at) {
            struct happen h = next_happen(&w);
            happen_now(&w, &h);
            happen_release(&h);
        }
        if (out->ok)
            ticks(&w);
        out->events++;
        if (out->ok && out->events % 64 == 0)
            check_round(&w);
        if (!w.faults && out->ok && out->events % 16 == 0 && finished(&w))
            break;
    }
    if (out->ok && out->events >= EVENTS_MAX)
        fail(&w, "%" PRIu64 " events and not done: something runs in circles", out->events);
    if (out->ok)
        check_store(&w);
    out->simulated_ms = w.now_ms;
    release_world(&w);
}
