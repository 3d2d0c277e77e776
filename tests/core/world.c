#include "world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/manifest.h"

static const uint8_t INCARNATION = 0x11;

static void take(struct world *w, struct effect *e)
{
    if (e->kind == EFFECT_PERSIST) {
        w->crashed |= ++w->n_batches == w->crash_at;
        if (!w->n_held)
            w->first_held = e->persist.seq;
        CHECK(e->persist.seq == w->first_held + w->n_held);
        w->held = xrealloc_array(w->held, w->n_held + 1, sizeof *w->held);
        w->held[w->n_held++] = e->persist.batch;
        e->persist.batch = (struct batch){0};
    } else if (e->kind == EFFECT_SEND) {
        w->said = xrealloc_array(w->said, w->n_said + 1, sizeof *w->said);
        w->said[w->n_said++] = (struct said){e->send.peer, e->send.verb, e->send.request, e->send.message};
        e->kind = EFFECT_DROP_BLOB; /* the message is ours now */
    } else if (e->kind == EFFECT_AGGREGATE) {
        if (w->aggregate_wanted)
            free(w->aggregate.aggregate.deltas);
        w->aggregate = *e;
        w->aggregate_wanted = true;
        e->kind = EFFECT_DROP_BLOB;
    } else if (e->kind == EFFECT_PURGE) {
        w->purge = e->purge;
    } else {
        w->dropped = xrealloc_array(w->dropped, w->n_dropped + 1, sizeof *w->dropped);
        w->dropped[w->n_dropped++] = e->drop;
    }
}

void world_step(struct world *w, struct event *event)
{
    event->now_ms = w->now;
    event->wall_s = w->wall_s;
    core_step(w->core, event, &w->effects);
    for (uint32_t i = 0; i < w->effects.n; i++)
        take(w, &w->effects.items[i]);
    w->effects.n = 0;
    if (!w->hold && !w->crashed && w->n_held)
        world_commit(w);
    if (w->auto_aggregate && w->aggregate_wanted)
        world_aggregated(w, ST_OK, -1);
}

void world_commit(struct world *w)
{
    uint64_t last = w->first_held + w->n_held - 1;
    if (!w->n_held)
        return;
    for (uint64_t i = 0; i < w->n_held; i++) {
        memstore_apply(&w->disk, &w->held[i]);
        batch_release(&w->held[i]);
    }
    w->n_held = 0;
    struct event event = {.kind = EVENT_COMMITTED, .seq = last};
    world_step(w, &event);
}

static void start(struct world *w)
{
    struct err err;
    w->core = core_new(&w->config);
    enum status st = memstore_load(&w->disk, w->core, &err);
    if (st)
        fprintf(stderr, "load: %s\n", err.text);
    CHECK_EQ(st, ST_OK);
    struct event event = {.kind = EVENT_START};
    memset(event.incarnation, INCARNATION + (int)(w->now % 100), 16);
    world_step(w, &event);
}

void world_open(struct world *w)
{
    struct sign_public public_key;
    struct sign_secret secret;
    struct version_files v0 = {.peft_bytes = 1, .gguf_bytes = 1};
    struct batch first = {0};
    *w = (struct world){
        .now = 1000, .wall_s = 1700000000, .candidate_loss = 1.9, .auto_aggregate = true, .target_tokens = 1000000};
    settings_default(&w->config.settings);
    CHECK(name_set(&w->config.line, "test", 4));
    w->config.card.arch = (struct arch){.kind = ARCH_LLAMA,
                                        .n_layers = 1,
                                        .d_model = 64,
                                        .d_ff = 64,
                                        .n_heads = 1,
                                        .n_kv_heads = 1,
                                        .head_dim = 64,
                                        .vocab_size = 64,
                                        .context_max = 64,
                                        .rope_theta = 1e4f,
                                        .rms_eps = 1e-5f};
    memcpy(w->config.card.base_name, "base", 5);
    CHECK(!adapter_shape_of(&w->config.card.arch, 16, 32, LORA_ALL, &w->config.shape, NULL));
    memset(w->config.seed.b, 7, sizeof w->config.seed.b);
    sign_keypair(&public_key, &secret);
    memcpy(w->config.release_secret, secret.b, 64);
    memcpy(w->config.release_public, public_key.b, 32);
    v0.peft.b[0] = v0.gguf.b[1] = 1;
    core_init_line(&w->config, &v0, w->wall_s, &first);
    memstore_apply(&w->disk, &first);
    batch_release(&first);
    start(w);
    struct peer operator= world_peer(PLANE_CONTROL, 1);
    CHECK(!world_hello(w, operator, 200, 1));
    world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "", "", 0);
    world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "heldout_permille", "0", 0);
}

static void forget(struct world *w)
{
    for (uint64_t i = 0; i < w->n_held; i++)
        batch_release(&w->held[i]);
    w->n_held = 0;
    if (w->aggregate_wanted)
        free(w->aggregate.aggregate.deltas);
    w->aggregate_wanted = false;
    core_free(w->core);
}

void world_restart(struct world *w)
{
    forget(w);
    w->crashed = false;
    w->now += 7;
    bool hold = w->hold;
    w->hold = false;
    start(w);
    w->hold = hold;
    CHECK(!world_hello(w, world_peer(PLANE_CONTROL, 1), 200, 1));
}

void world_close(struct world *w)
{
    forget(w);
    for (size_t i = 0; i < w->n_said; i++)
        protobuf_c_message_free_unpacked(w->said[i].message, NULL);
    free(w->said);
    free(w->held);
    free(w->dropped);
    effects_release(&w->effects);
    memstore_release(&w->disk);
}

void world_tick(struct world *w, uint64_t ms)
{
    uint64_t end = w->now + ms;
    for (int i = 0; i < 10000 && core_deadline(w->core) <= end; i++) {
        uint64_t at = core_deadline(w->core);
        w->now = at > w->now ? at : w->now;
        struct event event = {.kind = EVENT_TICK};
        world_step(w, &event);
    }
    w->now = end;
    w->wall_s += ms / 1000;
}

struct peer world_peer(enum plane plane, uint64_t conn)
{
    struct peer p = {.conn = conn, .plane = plane, .role = ROLE_OPERATOR};
    name_set(&p.key, "key", 3);
    return p;
}

const struct said *world_reply(const struct world *w, uint64_t request)
{
    for (size_t i = w->n_said; i-- > 0;)
        if (w->said[i].request == request)
            return &w->said[i];
    return NULL;
}

static const struct said *send_event(struct world *w, struct event *event)
{
    event->kind = EVENT_MESSAGE;
    event->request = ++w->request;
    uint64_t request = w->request;
    world_step(w, event);
    return world_reply(w, request);
}

const struct said *world_send(struct world *w, struct peer peer, enum verb verb, const void *message)
{
    struct event event = {.peer = peer, .verb = (uint16_t)verb, .message = message, .blob_held = true};
    return send_event(w, &event);
}

static enum status status_of(const struct said *s)
{
    return !s ? ST_TIMEOUT : s->verb == VERB_ERROR ? (enum status)((const Alv__Error *)s->message)->status : ST_OK;
}

enum status world_hello(struct world *w, struct peer peer, uint8_t instance, uint64_t boot)
{
    Alv__Hello h = ALV__HELLO__INIT;
    uint8_t id[16] = {instance}, none[16] = {0};
    struct digest card;
    card_digest_trained(&w->config.card, &card);
    h.protocol_min = h.protocol_max = 1;
    h.line = (char[]){"test"};
    h.instance = (ProtobufCBinaryData){16, id};
    h.session_incarnation = (ProtobufCBinaryData){16, none};
    h.boot = boot;
    if (peer.plane == PLANE_WORK)
        h.card_digest = (ProtobufCBinaryData){DIGEST_LEN, card.b};
    enum status st = status_of(world_send(w, peer, VERB_HELLO, &h));
    if (peer.plane == PLANE_WORK)
        world_tick(w, 500); /* a round waits for others that may come */
    return st;
}

uint64_t world_push_open(struct world *w, struct peer peer, const char *source, const char *domain, uint64_t *position)
{
    Alv__PushOpen open = ALV__PUSH_OPEN__INIT;
    open.domain = xstrdup(domain);
    open.source = xstrdup(source);
    const struct said *s = world_send(w, peer, VERB_PUSH_OPEN, &open);
    free(open.domain);
    free(open.source);
    if (!s || s->verb != VERB_PUSH_OPENED)
        return UINT64_MAX;
    if (position)
        *position = ((const Alv__PushOpened *)s->message)->position;
    return ((const Alv__PushOpened *)s->message)->producer;
}

const struct said *world_push(struct world *w, struct peer peer, uint64_t producer, uint64_t position,
                              const struct text *texts, unsigned n)
{
    Alv__PushBatch b = ALV__PUSH_BATCH__INIT;
    Alv__Record *records = xcalloc(n, sizeof *records);
    b.records = xcalloc(n, sizeof *b.records);
    b.producer = producer;
    b.position = position;
    b.n_records = n;
    for (unsigned i = 0; i < n; i++) {
        alv__record__init(&records[i]);
        records[i].kind = texts[i].text[0] == '[' ? ALV__RECORD_KIND__RECORD_CHAT : ALV__RECORD_KIND__RECORD_TEXT;
        records[i].id = xstrdup(texts[i].id);
        records[i].text = (ProtobufCBinaryData){strlen(texts[i].text), (uint8_t *)(uintptr_t)texts[i].text};
        b.records[i] = &records[i];
    }
    struct domain_id domain = {0};
    core_producer_domain(w->core, producer, &domain);
    struct push_facts *facts = memstore_facts(&w->disk, &w->config.seed, domain, &b);
    struct event event = {.peer = peer, .verb = VERB_PUSH_BATCH, .message = &b.base, .facts = facts};
    const struct said *s = send_event(w, &event);
    for (unsigned i = 0; i < n; i++)
        free(records[i].id);
    free(records);
    free(b.records);
    free(facts);
    return s;
}

const struct said *world_push_many(struct world *w, struct peer peer, uint64_t producer, uint64_t position,
                                   const char *prefix, unsigned n, unsigned bytes)
{
    struct text *texts = xcalloc(n, sizeof *texts);
    for (unsigned i = 0; i < n; i++) {
        char id[64];
        char *text = xcalloc(1, bytes + 1);
        snprintf(id, sizeof id, "%s%u", prefix, i);
        texts[i].id = xstrdup(id);
        for (unsigned j = 0; j < bytes; j++)
            text[j] = id[j % strlen(id)];
        texts[i].text = text;
    }
    const struct said *s = world_push(w, peer, producer, position, texts, n);
    for (unsigned i = 0; i < n; i++) {
        free((char *)(uintptr_t)texts[i].id);
        free((char *)(uintptr_t)texts[i].text);
    }
    free(texts);
    return s;
}

const struct said *world_control(struct world *w, Alv__ControlVerb verb, const char *domain, const char *name,
                                 const char *value, uint64_t number)
{
    Alv__Control c = ALV__CONTROL__INIT;
    c.verb = verb;
    c.domain = xstrdup(domain);
    c.name = xstrdup(name);
    c.value = xstrdup(value);
    c.number = number;
    const struct said *s = world_send(w, world_peer(PLANE_CONTROL, 1), VERB_CONTROL, &c);
    free(c.domain);
    free(c.name);
    free(c.value);
    return s;
}

const struct said *world_retract(struct world *w, const char *domain, struct domain_id id, const char *record)
{
    Alv__Control c = ALV__CONTROL__INIT;
    Alv__Record r = ALV__RECORD__INIT;
    struct hash16 content, hash;
    struct bytes value = {0};
    r.kind = ALV__RECORD_KIND__RECORD_TEXT;
    r.id = (char *)(uintptr_t)record;
    record_hashes(&w->config.seed, id, &r, &content, &hash);
    world_has(w, FAMILY_DEDUPE, key_hash('i', &hash), &value);
    c.verb = ALV__CONTROL_VERB__CONTROL_RETRACT;
    c.domain = (char *)(uintptr_t)domain;
    c.record = (char *)(uintptr_t)record;
    struct event event = {
        .peer = world_peer(PLANE_CONTROL, 1), .verb = VERB_CONTROL, .message = &c.base, .record_value = value};
    return send_event(w, &event);
}

const Alv__Task *world_task(struct world *w, struct peer worker)
{
    Alv__TaskRequest r = ALV__TASK_REQUEST__INIT;
    r.wait_ms = 20000;
    r.fingerprint = (char[]){"ref"};
    const struct said *s = world_send(w, worker, VERB_TASK_REQUEST, &r);
    return s && s->verb == VERB_TASK ? (const Alv__Task *)s->message : NULL;
}

const struct said *world_commit_delta(struct world *w, struct peer worker, const Alv__Lease *lease, uint32_t generation)
{
    Alv__DeltaCommit c = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef blob = ALV__BLOB_REF__INIT;
    struct digest digest;
    uint64_t what[2] = {lease->id, generation};
    hash_blake2b(what, sizeof what, &digest);
    size_t n = 0;
    for (size_t i = 0; i < lease->n_fresh; i++) {
        const Alv__Range *r = lease->fresh[i];
        n += r->count;
        if (w->poison && r->domain == 1 && w->poison >= r->first && w->poison - r->first < r->count)
            w->bad_leases[w->n_bad++ % 64] = lease->id;
    }
    float *losses = xcalloc(n, sizeof *losses);
    blob.digest = (ProtobufCBinaryData){DIGEST_LEN, digest.b};
    blob.bytes = 100;
    c.lease = lease->id;
    c.generation = generation;
    c.session_counter = lease->session_counter;
    c.session_incarnation = lease->session_incarnation;
    c.delta = &blob;
    c.target_tokens = w->target_tokens;
    c.first_losses = (ProtobufCBinaryData){4 * n, (uint8_t *)losses};
    const struct said *s = world_send(w, worker, VERB_DELTA_COMMIT, &c);
    free(losses);
    return s;
}

const struct said *world_score(struct world *w, struct peer worker, const Alv__Evaluate *task)
{
    Alv__EvalResult r = ALV__EVAL_RESULT__INIT;
    size_t n = task->n_windows;
    double *nll = xcalloc(2 * n, sizeof *nll), harm = task->adapters[0]->adapter->digest.data[31] == 1 ? 0.5 : 0;
    uint32_t *tokens = xcalloc(n, sizeof *tokens);
    for (size_t i = 0; i < n; i++) {
        uint64_t h = task->windows[i]->first * 0x9e3779b97f4a7c15u;
        double noise = (double)(h >> 40) * 0x1p-24 - 0.5; /* of the window: the same for both */
        tokens[i] = 100;
        nll[i] = 100 * (w->candidate_loss + harm + noise + 0.001 * (double)(h >> 60));
        nll[i] += w->worse && task->windows[i]->domain == w->worse ? 100 : 0;
        nll[n + i] = 100 * (2 + noise);
    }
    r.id = task->id;
    r.generation = task->generation;
    r.session_counter = task->session_counter;
    r.session_incarnation = task->session_incarnation;
    r.nll = (ProtobufCBinaryData){16 * n, (uint8_t *)nll};
    r.tokens = (ProtobufCBinaryData){4 * n, (uint8_t *)tokens};
    const struct said *s = world_send(w, worker, VERB_EVAL_RESULT, &r);
    free(nll);
    free(tokens);
    return s;
}

void world_aggregated(struct world *w, enum status status, int refused)
{
    struct effect e = w->aggregate;
    uint32_t n = e.aggregate.n;
    struct aggregated a = {.status = status,
                           .round = e.aggregate.round,
                           .attempt = e.aggregate.attempt,
                           .files = {.peft_bytes = 5, .gguf_bytes = 6},
                           .n = n};
    CHECK(w->aggregate_wanted);
    w->aggregate_wanted = false;
    a.deltas = xcalloc(n + 1, sizeof *a.deltas);
    uint64_t what[3] = {a.round, a.attempt, n};
    hash_blake2b(what, sizeof what, &a.files.peft);
    hash_blake2b(what, 1, &a.files.gguf);
    a.files.peft.b[31] = 0;
    for (uint32_t i = 0; i < n; i++)
        for (unsigned j = 0; j < w->n_bad && j < 64; j++)
            a.files.peft.b[31] |= e.aggregate.deltas[i].lease == w->bad_leases[j];
    if (!publish_rule_plain(&e.aggregate.rule)) {
        a.files.state = a.files.peft;
        a.files.state.b[0] ^= 1;
        a.files.state_bytes = 7;
    }
    for (uint32_t i = 0; i < n; i++)
        a.deltas[i] =
            (struct aggregated_delta){(int)i == refused, 1, 1, (int)i == refused ? 0 : 1.0 / (n - (refused >= 0))};
    struct event event = {.kind = EVENT_AGGREGATED, .aggregated = &a};
    world_step(w, &event);
    free(a.deltas);
    free(e.aggregate.deltas);
}

unsigned world_work(struct world *w, const struct peer *workers, unsigned n)
{
    unsigned done = 0;
    for (bool any = true; any && done < 10000;) {
        any = false;
        for (unsigned i = 0; i < n; i++) {
            const Alv__Task *t = world_task(w, workers[i]);
            if (!t || (!t->lease && !t->evaluate))
                continue;
            any = true;
            done++;
            if (t->lease)
                world_commit_delta(w, workers[i], t->lease, t->lease->generation);
            else
                world_score(w, workers[i], t->evaluate);
        }
    }
    return done;
}

bool world_counts_once(const struct world *w)
{
    struct snapshot *s = xcalloc(1, sizeof *s);
    core_snapshot(w->core, w->now, s);
    bool ok = true;
    for (uint32_t i = 0; i < s->n_domains; i++) {
        uint64_t sum = 0;
        for (unsigned k = 0; k < SEG_STATES; k++)
            sum += s->domains[i].count[k];
        ok &= sum == s->domains[i].segments;
    }
    free(s);
    return ok;
}

bool world_has(const struct world *w, uint8_t family, struct state_key key, struct bytes *out)
{
    return memstore_get(&w->disk, family, key.b, key.len, out);
}
