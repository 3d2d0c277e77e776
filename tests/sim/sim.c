/* sim.c - time, network, and what befalls the processes. */
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

struct node *node_of(struct world *w, uint64_t conn)
{
    for (size_t i = 0; i < w->n_conns; i++)
        if (w->conns[i].conn == conn)
            return &w->nodes[w->conns[i].node];
    return NULL;
}

void answer(struct world *w, const struct peer *peer, uint16_t verb, uint64_t request, const ProtobufCMessage *message)
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

static void to_coordinator(struct world *w, const struct happen *h)
{
    struct node *node = node_of(w, h->conn);
    if (w->core && node)
        coordinator_message(w, node, h);
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

static void crash_node(struct world *w, struct node *node, uint32_t life)
{
    if (!node->alive || (life && life != node->life))
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
        if (w->core && h->life == w->life)
            coordinator_synced(w);
        break;
    case HAPPEN_AGGREGATED:
        if (w->core && h->life == w->life)
            coordinator_step(w, (struct event){.kind = EVENT_AGGREGATED, .aggregated = &h->aggregated});
        break;
    case HAPPEN_PURGED:
        if (w->core && h->life == w->life)
            coordinator_step(w, (struct event){.kind = EVENT_PURGED, .seq = h->number});
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
    case HAPPEN_DISK:
        if (w->core)
            coordinator_step(w, (struct event){.kind = EVENT_DISK_LOW, .low = h->number});
        break;
    case HAPPEN_DRAIN:
        if (node->alive && h->life == node->life)
            peer_drain(w, node);
        break;
    case HAPPEN_CRASH:
        if (!node && w->core)
            coordinator_crash(w);
        else if (node)
            crash_node(w, node, h->life);
        break;
    case HAPPEN_RESTART:
        if (!node && !w->core)
            coordinator_start(w);
        else if (node && !node->alive && (h->node != TWIN || w->faults)) /* in peace, one process of an instance */
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
                    {"lease_attempts", w->options.seed % 3 ? "20" : "2"},
                    {"versions_kept", w->options.seed % 4 ? "64" : "3"},
                    {"ema_permille", w->options.seed % 2 ? "300" : "0"},
                    {"publish_permille", w->options.seed % 3 ? "1000" : "900"},
                    {"double_score", "0.2"},
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
    cert_sign(&root, &c->line, &release_public, 1, 0, c->release_cert);
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
    struct knobs *k = &w->knobs;
    k->aggregate_fails = chance(w, 0.3) ? 0.2 : 0;
    k->delta_bad = chance(w, 0.3) ? 0.1 : 0;
    k->task_fails = chance(w, 0.3) ? 0.05 : 0;
    k->drains = chance(w, 0.3) ? 0.05 : 0;
    k->twin = chance(w, 0.3);
    k->poison = chance(w, 0.4) ? 6 : 0;
    k->disk_low = chance(w, 0.3);
    k->copies = chance(w, 0.5);
    for (int node = 0; node <= NODES; node++) {
        uint64_t mean = node == NODES ? between(w, 4000, 40000) : between(w, 6000, 60000);
        for (uint64_t at = between(w, 500, mean); at < FAULTS_MS; at += between(w, 500, 2 * mean))
            schedule(w, at, (struct happen){.what = HAPPEN_CRASH, .node = node});
    }
    for (uint64_t at = between(w, 1000, FAULTS_MS); w->knobs.disk_low && at < FAULTS_MS;
         at += between(w, 1, FAULTS_MS)) {
        schedule(w, at, (struct happen){.what = HAPPEN_DISK, .number = 1});
        schedule(w, at + between(w, 100, 5000), (struct happen){.what = HAPPEN_DISK, .number = 0});
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
    return all_settled(w) && all_erased(w);
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
    for (size_t i = 0; i < w->n_receipts; i++)
        buf_release(&w->receipts[i].ack);
    for (size_t i = 0; i < w->n_answers; i++)
        buf_release(&w->answers[i]);
    memstore_release(&w->copy);
    free(w->receipts);
    free(w->answers);
    free(w->versions);
    free(w->leases);
}

static enum role role_of(int i)
{
    if (i < WORKERS || i == TWIN)
        return ROLE_WORKER;
    if (i < SUBSCRIBER)
        return ROLE_PRODUCER;
    return i == OPERATOR ? ROLE_OPERATOR : ROLE_SUBSCRIBER;
}

static void make_node(struct world *w, int i)
{
    enum role role = role_of(i);
    struct node *node = &w->nodes[i];
    *node = (struct node){.index = i,
                          .role = role,
                          .plane = role == ROLE_WORKER       ? PLANE_WORK
                                   : role == ROLE_PRODUCER   ? PLANE_INGEST
                                   : role == ROLE_SUBSCRIBER ? PLANE_MODELS
                                                             : PLANE_CONTROL};
    int who = i == TWIN ? 0 : i; /* key and instance */
    char name[] = "node-0";
    name[5] = (char)('0' + who);
    CHECK(name_set(&node->key, name, 6));
    node->instance[0] = (uint8_t)(who + 1);
    if (role == ROLE_PRODUCER)
        source_make(w, node, w->options.records ? w->options.records : (uint32_t)between(w, 20, 160));
    if (i != TWIN)
        peer_start(w, node);
    else if (w->knobs.twin)
        schedule(w, between(w, 500, FAULTS_MS), (struct happen){.what = HAPPEN_RESTART, .node = i});
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
    for (int i = 0; i < NODES && out->ok; i++)
        make_node(&w, i);
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
        if (!w.faults && out->ok && out->events % 16 == 0 && finished(&w))
            break;
    }
    if (out->ok && out->events >= EVENTS_MAX)
        fail(&w, "%" PRIu64 " events and not done: something runs in circles", out->events);
    if (out->ok)
        check_store(&w);
    if (out->ok)
        copied_probe(&w);
    out->simulated_ms = w.now_ms;
    release_world(&w);
}
