/* peers.c - the shells of the simulated clients: what the product does with sockets, disk and threads, done by events. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/record.h"
#include "world.h"

static const uint64_t HELLO = 1ull << 62;
enum job_kind { JOB_ASK_AGAIN = 100, JOB_OPERATE, JOB_PROGRESS };

static void hello(struct world *w, struct node *node)
{
    Alv__Hello m;
    alv__hello__init(&m);
    m.protocol_min = m.protocol_max = 1;
    m.line = (char *)"sim";
    m.instance = (ProtobufCBinaryData){sizeof node->instance, node->instance};
    m.boot = node->boot;
    m.software = (char *)"sim";
    send_frame(w, node, VERB_HELLO, HELLO, &m.base);
    schedule(
        w, RETRY,
        (struct happen){
            .what = HAPPEN_JOB, .node = node->index, .life = node->life, .conn = node->conn, .number = JOB_ASK_AGAIN});
}

/* ---- sources: what a producer pushes */

static void record_text(struct world *w, const struct node *node, uint32_t i, struct buf *out)
{
    struct rng rng;
    rng_seed(&rng, w->options.seed * 1000003 + (uint64_t)node->index * 100003 + i);
    buf_printf(out, "record %d/%u\n", node->index, i);
    for (uint64_t n = rng_below(&rng, rng_below(&rng, 20) ? 120 : 600); n > 0; n--)
        buf_printf(out, "%" PRIx64 "%s", rng_u64(&rng) >> 40, rng_below(&rng, 8) ? " " : "\n");
}

static void chat_text(struct world *w, const struct node *node, uint32_t i, struct buf *out)
{
    struct rng rng;
    rng_seed(&rng, w->options.seed * 1000003 + (uint64_t)node->index * 100003 + i);
    buf_printf(out, "[{\"role\":\"user\",\"content\":\"%d/%u\"},{\"role\":\"assistant\",\"content\":\"%" PRIx64 "\"}]",
               node->index, i, rng_u64(&rng));
}

uint32_t source_id(const struct node *node, uint32_t record)
{
    const struct record_fact *fact = &node->facts[record];
    return fact->replaces >= 0 ? (uint32_t)fact->replaces : record;
}

struct drawn { /* record i of a source, the same at every reading */
    char id[32], group[32];
    struct buf text;
};

static void record_draw(struct world *w, const struct node *node, uint32_t i, struct drawn *out)
{
    const struct record_fact *fact = &node->facts[i];
    struct buf id = {0};
    buf_clear(&out->text);
    uint32_t as = fact->same_as >= 0 ? (uint32_t)fact->same_as : i;
    if (fact->refused)
        buf_put(&out->text, i % 2 ? "" : "\xff\xfe", i % 2 ? 0 : 2);
    else
        (fact->chat ? chat_text : record_text)(w, node, as, &out->text);
    buf_printf(&id, "%u", source_id(node, i));
    memcpy(out->id, buf_cstr(&id), id.len + 1);
    buf_clear(&id);
    buf_printf(&id, "g%u", i / 3);
    memcpy(out->group, buf_cstr(&id), id.len + 1);
    buf_release(&id);
}

static Alv__RecordKind kind_of(const struct record_fact *fact)
{
    return fact->chat && !fact->refused ? ALV__RECORD_KIND__RECORD_CHAT : ALV__RECORD_KIND__RECORD_TEXT;
}

void source_make(struct world *w, struct node *node, uint32_t n)
{
    struct drawn drawn = {0};
    node->n_records = n;
    node->facts = xcalloc(n, sizeof *node->facts);
    for (uint32_t i = 0; i < n; i++) {
        struct record_fact *fact = &node->facts[i];
        fact->same_as = fact->replaces = -1;
        double u = rng_unit(&w->rng);
        uint32_t other = i ? (uint32_t)rng_below(&w->rng, i) : 0;
        bool plain = i && !node->facts[other].refused && node->facts[other].same_as < 0 &&
                     node->facts[other].replaces < 0 && !node->facts[other].replaced;
        if (u < 0.03)
            fact->refused = true;
        else if (u < 0.08 && plain)
            fact->same_as = (int)other, fact->chat = node->facts[other].chat, node->facts[other].copied = true;
        else if (u < 0.12 && plain && !node->facts[other].copied)
            fact->replaces = (int)other, node->facts[other].replaced = true;
        else if (u < 0.2)
            fact->chat = true;
        record_draw(w, node, i, &drawn);
        Alv__Record record;
        alv__record__init(&record);
        record.kind = kind_of(fact);
        record.id = drawn.id;
        record.group = drawn.group;
        record.text = (ProtobufCBinaryData){drawn.text.len, drawn.text.data};
        struct hash16 id;
        record_hashes(&w->config.seed, (struct domain_id){1}, &record, &fact->content, &id);
    }
    buf_release(&drawn.text);
}

void source_free(struct node *node)
{
    free(node->facts);
    node->facts = NULL;
}

/* ---- workers */

static void worker_effects(struct world *w, struct node *node);

static void worker_tell(struct world *w, struct node *node, struct worker_event event)
{
    event.now_ms = w->now_ms;
    worker_step(node->worker, &event, &node->worker_effects);
    worker_effects(w, node);
}

static void job_later(struct world *w, struct node *node, const struct worker_effect *e, uint64_t in_ms)
{
    struct happen h = {
        .what = HAPPEN_JOB, .node = node->index, .life = node->life, .number = (uint64_t)e->kind, .job = e->job};
    if (e->message)
        protobuf_c_message_pack(e->message, buf_extend(&h.bytes, protobuf_c_message_get_packed_size(e->message)));
    h.evaluate = e->evaluate;
    node->job = e->job;
    schedule(w, in_ms, h);
}

static uint64_t work_ms(struct world *w)
{
    return w->faults && chance(w, 0.15) ? between(w, 5000, 30000) : between(w, 50, 1500);
}

/* A worker may go: it was told to, another process of its instance took its place, or it fails at everything. Someone
 * starts it again. */
static void worker_stopped(struct world *w, struct node *node, const struct worker_effect *e)
{
    bool fenced = w->knobs.twin && (node->index == 0 || node->index == TWIN) && strstr(e->stopped.text, "newer start");
    bool clumsy = w->knobs.task_fails > 0 && strstr(e->stopped.text, "failed in a row");
    if (!fenced && !clumsy && !node->leaving)
        fail(w, "worker %d stopped by itself: %s", node->index, e->stopped.text);
    trace(w, "worker %d stops: %s", node->index, e->stopped.text);
    schedule(w, 1, (struct happen){.what = HAPPEN_CRASH, .node = node->index, .life = node->life});
}

static void worker_effects(struct world *w, struct node *node)
{
    struct worker_effects effects = node->worker_effects;
    node->worker_effects = (struct worker_effects){0};
    for (uint32_t i = 0; i < effects.n && w->result->ok; i++) {
        struct worker_effect *e = &effects.items[i];
        struct err err;
        switch (e->kind) {
        case WORKER_SEND:
            send_frame(w, node, e->send.verb, e->send.request, e->message);
            break;
        case WORKER_REMEMBER:
            node->session_counter = e->session.counter;
            memcpy(node->session_incarnation, e->session.incarnation, sizeof node->session_incarnation);
            break;
        case WORKER_EXCLUDE:
            if (view_exclude(node->view, (const Alv__Exclusions *)e->message, &err))
                fail(w, "exclusions are refused by a worker: %s", err.text);
            job_later(w, node, e, between(w, 1, 20));
            break;
        case WORKER_PREPARE: /* nothing that was excluded is known any more */
            view_free(node->view);
            node->view = view_new(&w->config.seed);
            job_later(w, node, e, between(w, 1, 100));
            break;
        case WORKER_FETCH: /* at times so slow that text goes meanwhile */
            job_later(w, node, e,
                      w->faults && chance(w, e->evaluate ? 0.7 : 0.2) ? between(w, 100, 4000) : between(w, 1, 100));
            break;
        case WORKER_TRAIN:
        case WORKER_SCORE: {
            uint64_t ms = work_ms(w);
            job_later(w, node, e, ms);
            if (w->faults && chance(w, w->knobs.drains))
                schedule(w, between(w, 0, 2 * ms),
                         (struct happen){.what = HAPPEN_DRAIN, .node = node->index, .life = node->life});
            bool stuck = ms > 5000 && chance(w, 0.5); /* works on without a word: its task goes to another */
            for (uint64_t at = 500; at < ms && !stuck; at += 500)
                schedule(w, at,
                         (struct happen){.what = HAPPEN_JOB,
                                         .node = node->index,
                                         .life = node->life,
                                         .number = JOB_PROGRESS,
                                         .job = e->job});
            break;
        }
        case WORKER_UPLOAD:
            buf_clear(&node->pending);
            protobuf_c_message_pack(e->message,
                                    buf_extend(&node->pending, protobuf_c_message_get_packed_size(e->message)));
            job_later(w, node, e, between(w, 1, 300));
            break;
        case WORKER_SETTLED:
            buf_clear(&node->pending);
            break;
        case WORKER_CANCEL:
            node->job = 0;
            break;
        case WORKER_STOPPED:
            worker_stopped(w, node, e);
            break;
        }
    }
    worker_effects_release(&effects);
}

static uint64_t hash_of(const void *data, size_t len)
{
    static const struct sip_key key;
    return hash_sip(&key, data, len);
}

static void job_failed(struct world *w, struct node *node, uint64_t job, enum status st, const char *text)
{
    struct worker_event event = {.kind = WORKER_FAILED, .job = job};
    event.failed.status = st;
    event.failed.text = text;
    worker_tell(w, node, event);
}

static bool lease_there(struct world *w, const struct node *node, const Alv__Lease *lease)
{
    struct plan plan = {0};
    struct state_segment segment;
    struct err err;
    bool there = true;
    if (plan_check_lease(lease, &err) || plan_begin(node->view, lease, &plan, &err)) {
        fail(w, "a lease is refused by its worker: %s", err.text);
        return true;
    }
    for (int pool = 0; pool < MIX_POOLS; pool++)
        for (uint32_t i = 0; i < plan.n[pool]; i++) {
            const struct mix_segment *s = &plan.segments[pool][i];
            if (segment_read(w, s->domain, false, s->offset, &segment))
                continue;
            there = false;
            check_erased(w, lease, s->domain, s->offset);
        }
    plan_release(&plan);
    return there;
}

static bool windows_there(struct world *w, const Alv__Evaluate *task)
{
    struct state_segment segment;
    bool there = true;
    for (size_t r = 0; r < task->n_windows; r++)
        there &= segment_read(w, (struct domain_id){(uint16_t)task->windows[r]->domain}, true, task->windows[r]->first,
                              &segment);
    return there;
}

/* What a task names is read; what was erased since is missing. */
static void fetch(struct world *w, struct node *node, const struct happen *h)
{
    Alv__Lease *lease = h->evaluate ? NULL : alv__lease__unpack(NULL, h->bytes.len, h->bytes.data);
    Alv__Evaluate *task = h->evaluate ? alv__evaluate__unpack(NULL, h->bytes.len, h->bytes.data) : NULL;
    CHECK(lease || task);
    bool there = lease ? lease_there(w, node, lease) : windows_there(w, task);
    struct worker_event event = {.kind = there ? WORKER_FETCHED : WORKER_FAILED, .job = h->job};
    if (!there) {
        event.failed.status = ST_NOT_FOUND;
        event.failed.text = "a segment is no longer in the log";
        event.failed.missing = true;
        *(lease ? &w->result->leases_missing : &w->result->windows_missing) += 1;
    }
    worker_tell(w, node, event);
    if (lease)
        alv__lease__free_unpacked(lease, NULL);
    if (task)
        alv__evaluate__free_unpacked(task, NULL);
}

/* The lease's own ranges, segment by segment, as the worker's shell does; text erased since it was fetched is text
 * without tokens. */
static void train(struct world *w, struct node *node, const struct happen *h)
{
    Alv__Lease *lease = alv__lease__unpack(NULL, h->bytes.len, h->bytes.data);
    struct plan plan = {0};
    struct plan_order order = {0};
    struct plan_text *texts[MIX_POOLS] = {0};
    struct worker_tokens fresh[TRAIN_DOMAINS + 1] = {0};
    struct buf losses = {0};
    struct err err;
    uint32_t n_fresh_domains = 0;
    bool whole = true, poisoned = false;
    CHECK(lease);
    if (plan_check_lease(lease, &err) || plan_begin(node->view, lease, &plan, &err)) {
        fail(w, "a lease is refused by its worker: %s", err.text);
        goto done;
    }
    check_sample(w, lease, &plan, node->view);
    struct hasher hasher;
    hasher_init(&hasher);
    hasher_put(&hasher, &lease->id, sizeof lease->id);
    hasher_put(&hasher, lease->parent_adapter->digest.data, DIGEST_LEN);
    for (int pool = 0; pool < MIX_POOLS; pool++) {
        texts[pool] = xcalloc(plan.n[pool] + 1, sizeof *texts[pool]);
        for (uint32_t i = 0; i < plan.n[pool]; i++) {
            const struct mix_segment *s = &plan.segments[pool][i];
            struct state_segment segment;
            if (segment_read(w, s->domain, false, s->offset, &segment)) {
                texts[pool][i] = (struct plan_text){.n_tokens = (uint32_t)(segment.text.len / 4 + 2),
                                                    .group = hash_of(segment.group, sizeof segment.group),
                                                    .joins = segment.kind == ALV__RECORD_KIND__RECORD_TEXT};
            } else {
                check_erased(w, lease, s->domain, s->offset);
                segment = (struct state_segment){.content = {{0xff}}};
                whole = false;
            }
            poisoned |= pool == MIX_FRESH && segment_poisons(w, &segment);
            hasher_put(&hasher, &s->domain.v, sizeof s->domain.v);
            hasher_put(&hasher, &s->offset, sizeof s->offset);
            if (pool == MIX_FRESH) {
                if (!n_fresh_domains || fresh[n_fresh_domains - 1].domain.v != s->domain.v)
                    fresh[n_fresh_domains++].domain = s->domain;
                fresh[n_fresh_domains - 1].tokens += texts[pool][i].n_tokens;
                fresh[n_fresh_domains - 1].bytes += segment.text.len;
                buf_put_f32(&losses, 2.0f);
            }
        }
    }
    plan_order(&plan, (const struct plan_text *const *)texts, &order);
    if (!order.n_steps) {
        if (whole)
            fail(w, "lease %" PRIu64 " holds no text to learn from", lease->id);
        job_failed(w, node, h->job, ST_BAD_DATA, "no text to learn from");
        goto done;
    }
    struct worker_trained trained = {.bytes = 64,
                                     .steps = order.n_steps,
                                     .train_ms = 1,
                                     .n_fresh = n_fresh_domains,
                                     .fresh = fresh,
                                     .first_losses = buf_bytes(&losses),
                                     .fingerprint = "sim"};
    for (int pool = 0; pool < MIX_POOLS; pool++)
        trained.target_tokens += order.rows[pool];
    struct digest work;
    hasher_end(&hasher, &work);
    if (whole) /* what was erased since it was fetched */
        check_lease(w, lease, &work);
    trained.delta = work;
    trained.delta.b[0] = (uint8_t)lease->generation; /* a delta's head names the grant */
    trained.delta.b[1] = poisoned ? POISONED : trained.delta.b[1] == POISONED ? 0 : trained.delta.b[1];
    worker_tell(w, node, (struct worker_event){.kind = WORKER_TRAINED, .job = h->job, .trained = &trained});
done:
    for (int pool = 0; pool < MIX_POOLS; pool++)
        free(texts[pool]);
    plan_order_release(&order);
    plan_release(&plan);
    buf_release(&losses);
    alv__lease__free_unpacked(lease, NULL);
}

/* A candidate's worth is in its digest: what learnt poison has forgotten, or else one in eight; the rest differ by noise. */
static void score(struct world *w, struct node *node, const struct happen *h)
{
    Alv__Evaluate *task = alv__evaluate__unpack(NULL, h->bytes.len, h->bytes.data);
    struct buf nll = {0}, tokens = {0};
    CHECK(task);
    for (size_t a = 0; a < task->n_adapters; a++) {
        const ProtobufCBinaryData *digest = &task->adapters[a]->adapter->digest;
        uint64_t worth = hash_of(digest->data, digest->len);
        bool harmful = w->knobs.poison ? digest->data[2] == POISONED : worth % 8 == 0 && digest->data[0] > 2;
        double harm = harmful ? 0.5 : 0;
        for (size_t r = 0; r < task->n_windows; r++)
            for (uint32_t i = 0; i < task->windows[r]->count; i++) {
                uint64_t place[3] = {worth, task->windows[r]->domain, task->windows[r]->first + i};
                double noise = (double)(hash_of(place, sizeof place) % 1000) * 1e-5;
                struct state_segment segment;
                bool there = segment_read(w, (struct domain_id){(uint16_t)task->windows[r]->domain}, true,
                                          task->windows[r]->first + i, &segment);
                buf_put_f64(&nll, there ? 31 * (3 + harm + noise) : 0);
                if (a == 0)
                    buf_put_u32(&tokens, there ? 31 : 0);
            }
    }
    struct worker_scored scored = {buf_bytes(&nll), buf_bytes(&tokens), "sim"};
    worker_tell(w, node, (struct worker_event){.kind = WORKER_SCORED, .job = h->job, .scored = &scored});
    buf_release(&nll);
    buf_release(&tokens);
    alv__evaluate__free_unpacked(task, NULL);
}

static void worker_job(struct world *w, struct node *node, const struct happen *h)
{
    if (h->job != node->job)
        return;
    if (h->number == JOB_PROGRESS) {
        worker_tell(w, node, (struct worker_event){.kind = WORKER_PROGRESSED, .job = h->job, .progress = {1, 2, 100}});
        return;
    }
    if ((h->number == WORKER_FETCH || h->number == WORKER_UPLOAD) &&
        !node->conn) { /* the transfer waits for a connection */
        struct happen again = *h;
        again.bytes = (struct buf){0};
        buf_put(&again.bytes, h->bytes.data, h->bytes.len);
        schedule(w, between(w, 50, 500), again);
        return;
    }
    bool may_fail = h->number == WORKER_FETCH || h->number == WORKER_TRAIN || h->number == WORKER_SCORE;
    if (may_fail && w->faults && chance(w, w->knobs.task_fails)) {
        job_failed(w, node, h->job, ST_IO, "simulated");
        return;
    }
    switch ((enum worker_effect_kind)h->number) {
    case WORKER_PREPARE:
        worker_tell(w, node, (struct worker_event){.kind = WORKER_PREPARED, .job = h->job, .fingerprint = "sim"});
        break;
    case WORKER_EXCLUDE:
        worker_tell(w, node, (struct worker_event){.kind = WORKER_EXCLUDED, .job = h->job});
        break;
    case WORKER_FETCH:
        fetch(w, node, h);
        break;
    case WORKER_TRAIN:
        train(w, node, h);
        break;
    case WORKER_SCORE:
        score(w, node, h);
        break;
    case WORKER_UPLOAD: {
        Alv__DeltaCommit *commit = alv__delta_commit__unpack(NULL, h->bytes.len, h->bytes.data);
        struct digest d;
        CHECK(commit);
        memcpy(d.b, commit->delta->digest.data, DIGEST_LEN);
        blob_hold(w, &d);
        alv__delta_commit__free_unpacked(commit, NULL);
        worker_tell(w, node, (struct worker_event){.kind = WORKER_UPLOADED, .job = h->job});
        break;
    }
    default:
        break;
    }
}

static void worker_start(struct world *w, struct node *node)
{
    struct worker_config config = {.line = "sim",
                                   .software = "sim",
                                   .card = w->config.card,
                                   .seed = rng_u64(&w->rng),
                                   .first_request = node->boot << 32,
                                   .request_ms = 3000};
    node->worker = worker_core_new(&config);
    node->view = view_new(&w->config.seed);
    struct worker_event event = {.kind = WORKER_START};
    memcpy(event.start.instance, node->instance, sizeof node->instance);
    event.start.boot = node->boot;
    event.start.session_counter = node->session_counter;
    memcpy(event.start.session_incarnation, node->session_incarnation, sizeof node->session_incarnation);
    Alv__DeltaCommit *pending =
        node->pending.len ? alv__delta_commit__unpack(NULL, node->pending.len, node->pending.data) : NULL;
    event.start.pending = pending;
    worker_tell(w, node, event);
    if (pending)
        alv__delta_commit__free_unpacked(pending, NULL);
}

/* ---- producers */

static void push_tell(struct world *w, struct node *node, struct push_event event);

static void push_give(struct world *w, struct node *node, const struct push_effect *e)
{
    struct push_records *records = push_records_new();
    struct drawn drawn = {0};
    uint32_t limit = (uint32_t)between(w, 1, 24); /* small batches, so that much is in flight */
    while (node->read_at < node->n_records && records->n < e->need.records_max && records->n < limit) {
        record_draw(w, node, node->read_at, &drawn);
        struct bytes id = {(const uint8_t *)drawn.id, strlen(drawn.id)},
                     group = {(const uint8_t *)drawn.group, strlen(drawn.group)};
        if (!push_records_add(records, e->need.bytes_max, kind_of(&node->facts[node->read_at]), id, group,
                              buf_bytes(&drawn.text), (struct push_place){0, node->read_at}))
            break;
        node->read_at++;
    }
    buf_release(&drawn.text);
    push_tell(w, node,
              (struct push_event){.kind = PUSH_RECORDS, .records = &records, .end = node->read_at == node->n_records});
}

static void push_tell(struct world *w, struct node *node, struct push_event event)
{
    struct push_effects effects = {0};
    bool need = false;
    struct push_effect wanted;
    event.now_ms = w->now_ms;
    push_core_step(node->push, &event, &effects);
    for (uint32_t i = 0; i < effects.n && w->result->ok; i++) {
        const struct push_effect *e = &effects.items[i];
        switch (e->kind) {
        case PUSH_SEND:
            send_frame(w, node, e->send.verb, e->send.request, e->send.message);
            break;
        case PUSH_NEED:
            need = true;
            wanted = *e;
            break;
        case PUSH_RESUMED:
            check_acked(w, node, e->position);
            break;
        case PUSH_ACKED:
            node->acked = e->acked.position > node->acked ? e->acked.position : node->acked;
            check_acked(w, node, node->acked);
            break;
        case PUSH_REFUSED:
            if (!node->facts[e->refused.position].refused)
                fail(w, "a good record was refused: node %d, record %" PRIu64 ": %s", node->index, e->refused.position,
                     push_refusal_text(e->refused.reason));
            break;
        case PUSH_DONE:
            node->done = true;
            break;
        case PUSH_FAILED:
            fail(w, "a push gave up: %s", e->failed.text);
            break;
        }
    }
    push_effects_release(&effects);
    if (need && w->result->ok)
        push_give(w, node, &wanted);
}

static void push_start(struct world *w, struct node *node)
{
    struct push_config config = {
        .window = (uint32_t)between(w, 1, 6), .request_ms = 3000, .first_request = node->boot << 32};
    const char *domain = node->index == WORKERS ? "alpha" : "beta";
    CHECK(name_set(&config.domain, domain, strlen(domain)));
    memcpy(config.source, "source", 7);
    node->push = push_core_new(&config);
    node->read_at = 0;
}

/* ---- the subscriber */

static void subscribe_now(struct world *w, struct node *node);

static void subscribe_done(struct world *w, struct node *node, enum status st, const char *text,
                           const ProtobufCMessage *reply)
{
    node->waiting = false;
    subscribe_answer(node->subscribe, w->now_ms, 1700000000 + w->now_ms / 1000, st, text, reply);
    subscribe_now(w, node);
}

static void subscribe_now(struct world *w, struct node *node)
{
    while (!node->waiting && w->result->ok) {
        const struct subscribe_effect *e = subscribe_next(node->subscribe, w->now_ms, 1700000000 + w->now_ms / 1000);
        enum status st = ST_OK;
        switch (e->kind) {
        case SUBSCRIBE_SEND:
            if (!node->greeted)
                return; /* when the connection stands */
            send_frame(w, node, e->verb, ++node->request, e->message);
            node->waiting = true;
            node->asked_at = w->now_ms;
            return;
        case SUBSCRIBE_WAIT:
            if (e->until_ms > w->now_ms)
                return; /* peer_deadline says when */
            break;
        case SUBSCRIBE_SAVE:
            buf_clear(&node->saved);
            buf_put(&node->saved, e->state.data, e->state.len);
            break;
        case SUBSCRIBE_STAGE:
            check_manifest(w, e->number, e->manifest_bytes, e->signature);
            for (uint32_t i = 0; i < e->manifest->n_files; i++)
                if (!blob_held(w, &e->manifest->files[i].blake2b))
                    st = ST_NOT_FOUND;
            if (chance(w, 0.1) && w->faults)
                st = ST_TIMEOUT;
            break;
        case SUBSCRIBE_SWAP:
            check_swap(w, node, e->number);
            node->current = e->number;
            node->has_current = true;
            break;
        case SUBSCRIBE_HOOK:
            if (chance(w, 0.1) && w->faults)
                st = ST_IO;
            break;
        }
        subscribe_answer(node->subscribe, w->now_ms, 1700000000 + w->now_ms / 1000, st, st ? "simulated" : NULL, NULL);
    }
}

static void subscribe_start(struct world *w, struct node *node)
{
    struct subscribe_config config = {.line = w->config.line, .hook = true, .wait_ms = 4000};
    config.recheck_ms = node->index == FOLLOWER ? 5000 : 0; /* it keeps a server */
    struct err err;
    memcpy(config.root.b, w->config.root_public, sizeof config.root.b);
    const char *follow = node->index == FOLLOWER ? operator_alias(0) : "latest";
    CHECK(name_set(&config.follow, follow, strlen(follow)));
    if (subscribe_new(&config, buf_bytes(&node->saved), &node->subscribe, &err))
        fail(w, "a subscriber cannot read what it saved: %s", err.text);
    node->request = node->boot << 32;
    node->waiting = false;
}

/* ---- common to all */

void peer_start(struct world *w, struct node *node)
{
    node->alive = true;
    node->leaving = false;
    node->boot = node->index == 0 || node->index == TWIN ? ++w->twin_boot : node->boot + 1;
    node->greeted = false;
    if (node->role == ROLE_WORKER)
        worker_start(w, node);
    else if (node->role == ROLE_PRODUCER && !node->done)
        push_start(w, node);
    else if (node->role == ROLE_SUBSCRIBER)
        subscribe_start(w, node);
    else if (node->role == ROLE_OPERATOR)
        operate(w, node);
    schedule(w, between(w, 1, 200), (struct happen){.what = HAPPEN_CONNECT, .node = node->index, .life = node->life});
}

void peer_crash(struct world *w, struct node *node)
{
    (void)w;
    worker_core_free(node->worker);
    worker_effects_release(&node->worker_effects);
    view_free(node->view);
    push_core_free(node->push);
    subscribe_free(node->subscribe);
    node->worker = NULL;
    node->view = NULL;
    node->push = NULL;
    node->subscribe = NULL;
    node->job = 0;
}

void peer_drain(struct world *w, struct node *node)
{
    node->leaving = true;
    worker_tell(w, node, (struct worker_event){.kind = WORKER_DRAIN});
}

void peer_connected(struct world *w, struct node *node)
{
    node->greeted = false;
    if (node->worker)
        worker_tell(w, node, (struct worker_event){.kind = WORKER_UP});
    else
        hello(w, node);
}

void peer_cut(struct world *w, struct node *node)
{
    node->conn = 0;
    node->greeted = false;
    if (node->worker)
        worker_tell(w, node, (struct worker_event){.kind = WORKER_DOWN});
    if (node->subscribe && node->waiting)
        subscribe_done(w, node, ST_TIMEOUT, "the connection broke", NULL);
    schedule(w, between(w, 10, 1000), (struct happen){.what = HAPPEN_CONNECT, .node = node->index, .life = node->life});
}

void peer_message(struct world *w, struct node *node, uint16_t verb, uint64_t request, const ProtobufCMessage *message)
{
    if (node->worker) {
        worker_tell(w, node, (struct worker_event){.kind = WORKER_REPLY, .reply = {verb, request, message}});
        return;
    }
    bool unknown = verb == VERB_ERROR && !strncmp(((const Alv__Error *)message)->text, "say hello first", 15);
    if (unknown && request != HELLO && !node->push) {
        node->greeted = false;
        hello(w, node);
    }
    if (request == HELLO) {
        if (verb != VERB_HELLO_OK || node->greeted)
            return;
        node->greeted = true;
        if (node->push)
            push_tell(w, node, (struct push_event){.kind = PUSH_UP});
        else if (node->subscribe)
            subscribe_now(w, node);
        return;
    }
    if (node->push)
        push_tell(w, node,
                  (struct push_event){.kind = PUSH_MESSAGE, .verb = verb, .request = request, .message = message});
    else if (node->subscribe && node->waiting && request == node->request)
        subscribe_done(w, node, verb == VERB_ERROR ? ((const Alv__Error *)message)->status : ST_OK,
                       verb == VERB_ERROR ? ((const Alv__Error *)message)->text : NULL,
                       verb == VERB_ERROR ? NULL : message);
    else if (node->role == ROLE_OPERATOR && !unknown)
        operator_message(w, node, verb, request, message);
}

void peer_job(struct world *w, struct node *node, const struct happen *h)
{
    if (h->number == JOB_ASK_AGAIN) {
        if (node->conn == h->conn && !node->greeted)
            hello(w, node);
    } else if (h->what == HAPPEN_OPERATOR) {
        if (h->number == w->operator_step)
            operate(w, node);
    } else if (h->number == JOB_OPERATE) {
        operate(w, node);
    } else if (node->worker) {
        worker_job(w, node, h);
    }
}

uint64_t peer_deadline(const struct world *w, const struct node *node)
{
    if (node->worker)
        return worker_deadline(node->worker);
    if (node->push)
        return node->greeted ? push_core_deadline(node->push) : UINT64_MAX;
    if (!node->subscribe)
        return UINT64_MAX;
    if (node->waiting)
        return node->asked_at + 8000;
    const struct subscribe_effect *e = subscribe_next(node->subscribe, w->now_ms, 1700000000 + w->now_ms / 1000);
    return e->kind == SUBSCRIBE_WAIT                     ? e->until_ms
           : e->kind == SUBSCRIBE_SEND && !node->greeted ? UINT64_MAX
                                                         : w->now_ms;
}

void peer_tick(struct world *w, struct node *node)
{
    if (node->worker)
        worker_tell(w, node, (struct worker_event){.kind = WORKER_TICK});
    else if (node->push)
        push_tell(w, node, (struct push_event){.kind = PUSH_TICK});
    else if (node->subscribe && node->waiting)
        subscribe_done(w, node, ST_TIMEOUT, "no answer", NULL);
    else if (node->subscribe)
        subscribe_now(w, node);
}

/* It serves the newest version that is not withdrawn; or a later one that was withdrawn under it, and says so. */
static bool follows_newest(const struct world *w, const struct subscribe_view *view)
{
    uint64_t sound = disk_newest(w);
    while (sound && disk_withdrawn(w, sound))
        sound--;
    return view->settled ? view->served == sound
                         : view->has_served && view->served > sound && view->problem == ST_DENIED;
}

bool peer_finished(const struct world *w, const struct node *node)
{
    struct subscribe_view view;
    if (!node->alive)
        return node->index == TWIN;
    if (node->role == ROLE_PRODUCER)
        return node->done;
    if (node->role != ROLE_SUBSCRIBER)
        return true;
    subscribe_view(node->subscribe, &view);
    if (node->index == SUBSCRIBER)
        return follows_newest(w, &view);
    if (!w->aliases[0].set)
        return true;
    bool backwards = view.has_current && w->aliases[0].version < view.current; /* refused: it takes a new number */
    return view.has_wanted && view.wanted == w->aliases[0].version &&
           (view.settled || backwards || disk_withdrawn(w, view.wanted));
}
