/* The worker's core, driven by events: what it asks, in which order, and what it does when the world misbehaves. */
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"
#include "worker/core.h"

enum { REQUEST_MS = 1000, DRAIN_MS = 5000 };

static uint8_t inc_a[16] = {1}, inc_b[16] = {2}, inc_zero[16], seed16[16] = {9}, card_bytes_digest[32] = {7};
static struct card card;

struct bench {
    struct worker_core *core;
    struct worker_effects effects;
    uint64_t now;
};

static void step(struct bench *b, struct worker_event event)
{
    worker_effects_clear(&b->effects);
    event.now_ms = b->now;
    worker_step(b->core, &event, &b->effects);
}

static void tick(struct bench *b, uint64_t ms)
{
    b->now += ms;
    step(b, (struct worker_event){.kind = WORKER_TICK});
}

static struct worker_effect *find(struct bench *b, enum worker_effect_kind kind)
{
    for (uint32_t i = 0; i < b->effects.n; i++)
        if (b->effects.items[i].kind == kind)
            return &b->effects.items[i];
    return NULL;
}

static struct worker_effect *sent(struct bench *b, uint16_t verb)
{
    for (uint32_t i = 0; i < b->effects.n; i++)
        if (b->effects.items[i].kind == WORKER_SEND && b->effects.items[i].send.verb == verb)
            return &b->effects.items[i];
    return NULL;
}

/* Answers the request of `verb` that the last step sent (or `request`, when given). */
static void reply(struct bench *b, uint64_t request, uint16_t verb, const void *message)
{
    step(b,
         (struct worker_event){.kind = WORKER_REPLY, .reply = {.verb = verb, .request = request, .message = message}});
}

static uint64_t request_of(struct bench *b, uint16_t verb)
{
    struct worker_effect *e = sent(b, verb);
    return EXPECT(e != NULL) ? e->send.request : 0;
}

static enum worker_phase phase(struct bench *b)
{
    struct worker_status s;
    worker_status(b->core, &s);
    return s.phase;
}

static void refuse(struct bench *b, uint64_t request, enum status status, uint32_t retry_ms)
{
    Alv__Error error = ALV__ERROR__INIT;
    error.status = status;
    error.text = (char *)"no";
    error.retry_ms = retry_ms;
    reply(b, request, VERB_ERROR, &error);
}

static struct worker_event job_event(struct bench *b, enum worker_event_kind kind)
{
    uint64_t job = 0;
    for (uint32_t i = 0; i < b->effects.n; i++)
        if (b->effects.items[i].kind != WORKER_SEND && b->effects.items[i].kind != WORKER_CANCEL)
            job = b->effects.items[i].job;
    return (struct worker_event){.kind = kind, .job = job};
}

static void hello_reply(struct bench *b, uint64_t request, uint64_t counter, uint8_t *incarnation, uint8_t *previous,
                        uint64_t exclusion_seq)
{
    Alv__HelloOk ok = ALV__HELLO_OK__INIT;
    struct buf bytes = {0};
    card_encode(&card, &bytes);
    ok.protocol = 1;
    ok.line = (char *)"notes";
    ok.session_counter = counter;
    ok.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    ok.previous_incarnation = (ProtobufCBinaryData){16, previous};
    ok.card = (ProtobufCBinaryData){bytes.len, bytes.data};
    ok.seed = (ProtobufCBinaryData){16, seed16};
    ok.exclusion_seq = exclusion_seq;
    ok.adapter_rank = 16, ok.adapter_alpha = 32, ok.adapter_targets = 127;
    reply(b, request, VERB_HELLO_OK, &ok);
    buf_release(&bytes);
}

static void card_fill(void)
{
    card = (struct card){.base_name = "tiny"};
    card.arch = (struct arch){ARCH_LLAMA, 2, 64, 128, 4, 2, 16, 256, 512, 1e4f, 1e-5f, true, false, false};
    card.base.b[0] = 1;
}

static void bench_start(struct bench *b, uint64_t known_counter, uint8_t *known, const Alv__DeltaCommit *pending)
{
    card_fill();
    struct worker_config config = {.line = "notes", .software = "test", .card = card, .seed = 1, .first_request = 100};
    config.request_ms = REQUEST_MS;
    config.drain_ms = DRAIN_MS;
    *b = (struct bench){.core = worker_core_new(&config), .now = 5000};
    struct worker_event start = {.kind = WORKER_START, .start = {.boot = 3, .session_counter = known_counter}};
    start.start.pending = pending;
    if (known)
        memcpy(start.start.session_incarnation, known, 16);
    step(b, start);
    EXPECT_EQ(b->effects.n, 0);
    step(b, (struct worker_event){.kind = WORKER_UP});
}

static void bench_end(struct bench *b)
{
    worker_effects_release(&b->effects);
    worker_core_free(b->core);
}

/* To the point where it asks for a task; returns that request. */
static uint64_t bench_ready(struct bench *b, const Alv__DeltaCommit *pending)
{
    bench_start(b, 0, NULL, pending);
    hello_reply(b, request_of(b, VERB_HELLO), 1, inc_a, inc_zero, 0);
    EXPECT(find(b, WORKER_REMEMBER) && find(b, WORKER_REMEMBER)->session.counter == 1);
    EXPECT(find(b, WORKER_PREPARE) && find(b, WORKER_PREPARE)->line.rank == 16);
    struct worker_event prepared = job_event(b, WORKER_PREPARED);
    prepared.fingerprint = "plain loops";
    step(b, prepared);
    return pending ? 0 : request_of(b, VERB_TASK_REQUEST);
}

static Alv__Lease lease;
static Alv__TrainConfig train;
static Alv__BlobRef blob;
static Alv__Range range, *ranges = &range;
static Alv__Evaluate evaluation;
static Alv__AdapterRef adapter, *adapters = &adapter;

static void tasks_fill(uint64_t exclusion_seq)
{
    alv__lease__init(&lease);
    alv__train_config__init(&train);
    alv__blob_ref__init(&blob);
    alv__range__init(&range);
    alv__evaluate__init(&evaluation);
    alv__adapter_ref__init(&adapter);
    blob.digest = (ProtobufCBinaryData){32, card_bytes_digest};
    blob.bytes = 10;
    range.domain = 1, range.count = 4;
    train.seq_tokens = 32, train.step_tokens = 64, train.lr = 1e-3f, train.beta1 = 0.9f, train.beta2 = 0.99f;
    train.eps = 1e-8f, train.sample_k = 8;
    lease.id = 40, lease.generation = 2, lease.round = 6, lease.session_counter = 1, lease.progress_ms = 2000;
    lease.session_incarnation = (ProtobufCBinaryData){16, inc_a};
    lease.parent_adapter = &blob;
    lease.n_fresh = 1, lease.fresh = &ranges;
    lease.train = &train;
    lease.exclusion_seq = exclusion_seq;
    evaluation.id = 41, evaluation.generation = 1, evaluation.session_counter = 1, evaluation.progress_ms = 2000;
    evaluation.session_incarnation = (ProtobufCBinaryData){16, inc_a};
    adapter.adapter = &blob;
    evaluation.n_adapters = 1, evaluation.adapters = &adapters;
    evaluation.n_windows = 1, evaluation.windows = &ranges;
    evaluation.window_tokens = 32;
}

static void grant(struct bench *b, uint64_t request, uint64_t exclusion_seq)
{
    Alv__Task task = ALV__TASK__INIT;
    tasks_fill(exclusion_seq);
    task.lease = &lease;
    reply(b, request, VERB_TASK, &task);
}

static void finish_training(struct bench *b, uint64_t job)
{
    static const uint8_t losses[16];
    struct worker_tokens fresh = {{1}, 100, 400};
    struct worker_trained r = {.delta = {{5}}, .bytes = 77, .target_tokens = 130, .steps = 2, .n_fresh = 1};
    r.fresh = &fresh;
    r.first_losses = (struct bytes){losses, 16};
    r.fingerprint = "plain loops";
    struct worker_event event = {.kind = WORKER_TRAINED, .job = job};
    event.trained = &r;
    step(b, event);
}

/* Through fetching and training to the upload; returns the job. */
static uint64_t to_upload(struct bench *b, uint64_t request)
{
    grant(b, request, 0);
    EXPECT(find(b, WORKER_FETCH) && !find(b, WORKER_FETCH)->evaluate);
    struct worker_event fetched = job_event(b, WORKER_FETCHED);
    step(b, fetched);
    EXPECT(find(b, WORKER_TRAIN) != NULL);
    finish_training(b, fetched.job);
    EXPECT(find(b, WORKER_UPLOAD) != NULL);
    return fetched.job;
}

static void test_happy_path(void)
{
    struct bench b;
    uint64_t request = bench_ready(&b, NULL), job = to_upload(&b, request);
    const Alv__DeltaCommit *kept = (const Alv__DeltaCommit *)find(&b, WORKER_UPLOAD)->message;
    EXPECT_EQ(kept->lease, 40);
    EXPECT_EQ(kept->generation, 2);
    EXPECT_EQ(kept->first_losses.len, 16);
    step(&b, (struct worker_event){.kind = WORKER_UPLOADED, .job = job});
    uint64_t commit = request_of(&b, VERB_DELTA_COMMIT);

    tick(&b, REQUEST_MS); /* silence: the same request with the same content */
    EXPECT_EQ(request_of(&b, VERB_DELTA_COMMIT), commit);
    EXPECT_EQ(((const Alv__DeltaCommit *)sent(&b, VERB_DELTA_COMMIT)->message)->target_tokens, 130);

    Alv__DeltaAck ack = ALV__DELTA_ACK__INIT;
    ack.accepted = true;
    reply(&b, commit, VERB_DELTA_ACK, &ack);
    EXPECT(find(&b, WORKER_SETTLED) && find(&b, WORKER_SETTLED)->settled.accepted);
    uint64_t ask = request_of(&b, VERB_TASK_REQUEST);
    reply(&b, commit, VERB_DELTA_ACK, &ack); /* the ack again: nothing happens */
    EXPECT_EQ(b.effects.n, 0);
    struct worker_status s;
    worker_status(b.core, &s);
    EXPECT_EQ(s.leases_done, 1);
    EXPECT_EQ(s.task, 0);

    Alv__Task task = ALV__TASK__INIT; /* an evaluation */
    task.evaluate = &evaluation;
    reply(&b, ask, VERB_TASK, &task);
    EXPECT(find(&b, WORKER_FETCH) && find(&b, WORKER_FETCH)->evaluate);
    struct worker_event fetched = job_event(&b, WORKER_FETCHED);
    step(&b, fetched);
    EXPECT(find(&b, WORKER_SCORE) != NULL);
    double nll = 3;
    uint32_t tokens = 31;
    struct worker_scored result = {{(uint8_t *)&nll, 8}, {(uint8_t *)&tokens, 4}, "plain loops"};
    struct worker_event scored = {.kind = WORKER_SCORED, .job = fetched.job};
    scored.scored = &result;
    step(&b, scored);
    Alv__Ok ok = ALV__OK__INIT;
    reply(&b, request_of(&b, VERB_EVAL_RESULT), VERB_EVAL_OK, &ok);
    EXPECT(sent(&b, VERB_TASK_REQUEST) != NULL);
    bench_end(&b);
}

static void test_progress_and_abandon(void)
{
    struct bench b;
    grant(&b, bench_ready(&b, NULL), 0);
    struct worker_event fetched = job_event(&b, WORKER_FETCHED);
    step(&b, fetched);
    struct worker_event progress = {.kind = WORKER_PROGRESSED, .job = fetched.job, .progress = {3, 16, 900}};
    step(&b, progress);
    EXPECT(worker_deadline(b.core) <= b.now + 1000);
    tick(&b, 1000); /* half of progress_ms */
    const Alv__Progress *p = (const Alv__Progress *)(sent(&b, VERB_PROGRESS) ? sent(&b, VERB_PROGRESS)->message : NULL);
    if (EXPECT(p != NULL))
        EXPECT(p->done == 3 && p->total == 16 && p->task == 40 && p->generation == 2 && !p->evaluate);
    uint64_t id = request_of(&b, VERB_PROGRESS);
    tick(&b, 1000); /* unanswered: the same one */
    EXPECT_EQ(request_of(&b, VERB_PROGRESS), id);
    Alv__ProgressOk ok = ALV__PROGRESS_OK__INIT;
    reply(&b, id, VERB_PROGRESS_OK, &ok);
    tick(&b, 1000);
    EXPECT(request_of(&b, VERB_PROGRESS) > id);
    ok.abandon = true;
    reply(&b, request_of(&b, VERB_PROGRESS), VERB_PROGRESS_OK, &ok);
    EXPECT(find(&b, WORKER_CANCEL) && find(&b, WORKER_CANCEL)->job == fetched.job);
    EXPECT(sent(&b, VERB_TASK_REQUEST) != NULL);
    finish_training(&b, fetched.job); /* too late: stale */
    EXPECT_EQ(b.effects.n, 0);
    EXPECT_EQ(phase(&b), PHASE_ASK);
    tick(&b, 60000);
    grant(&b, request_of(&b, VERB_TASK_REQUEST), 0); /* and so it is while the next one trains */
    struct worker_event again = job_event(&b, WORKER_FETCHED);
    step(&b, again);
    finish_training(&b, fetched.job);
    EXPECT_EQ(phase(&b), PHASE_TRAIN);
    finish_training(&b, again.job);
    EXPECT_EQ(phase(&b), PHASE_UPLOAD);
    bench_end(&b);
}

/* Loses the connection, gets a new one, and answers its hello. */
static void reconnect(struct bench *b, uint64_t exclusion_seq)
{
    step(b, (struct worker_event){.kind = WORKER_DOWN});
    EXPECT_EQ(b->effects.n, 0);
    tick(b, 20000);
    EXPECT_EQ(b->effects.n, 0); /* nothing is sent into nowhere */
    step(b, (struct worker_event){.kind = WORKER_UP});
    EXPECT_EQ(b->effects.n, 1);
    hello_reply(b, request_of(b, VERB_HELLO), 1, inc_a, inc_zero, exclusion_seq);
}

static void test_reconnect_in_each_state(void)
{
    struct bench b;
    uint64_t request = bench_ready(&b, NULL);
    reconnect(&b, 0);
    EXPECT_EQ(request_of(&b, VERB_TASK_REQUEST), request); /* the same question, the same id */
    grant(&b, request, 0);
    struct worker_event fetched = job_event(&b, WORKER_FETCHED);
    reconnect(&b, 0);
    EXPECT(sent(&b, VERB_PROGRESS) && !sent(&b, VERB_TASK_REQUEST));
    EXPECT_EQ(phase(&b), PHASE_FETCH);
    step(&b, fetched);
    EXPECT(find(&b, WORKER_TRAIN) != NULL);
    reconnect(&b, 0);
    EXPECT_EQ(phase(&b), PHASE_TRAIN);
    step(&b, (struct worker_event){.kind = WORKER_DOWN}); /* trained and uploaded while the line is down */
    finish_training(&b, fetched.job);
    EXPECT(find(&b, WORKER_UPLOAD) != NULL);
    step(&b, (struct worker_event){.kind = WORKER_UPLOADED, .job = fetched.job});
    EXPECT_EQ(b.effects.n, 0);
    reconnect(&b, 0);
    uint64_t commit = request_of(&b, VERB_DELTA_COMMIT);
    reconnect(&b, 0);
    EXPECT_EQ(request_of(&b, VERB_DELTA_COMMIT), commit);

    refuse(&b, commit, ST_CONFLICT, 0); /* "say hello first": the coordinator restarted behind a standing connection */
    uint64_t hello = request_of(&b, VERB_HELLO);
    EXPECT(!sent(&b, VERB_DELTA_COMMIT));
    hello_reply(&b, hello, 2, inc_b, inc_a, 0);
    EXPECT(find(&b, WORKER_REMEMBER) && find(&b, WORKER_REMEMBER)->session.counter == 2);
    uint64_t again = request_of(&b, VERB_DELTA_COMMIT);
    EXPECT(again > commit);
    const Alv__DeltaCommit *m = (const Alv__DeltaCommit *)sent(&b, VERB_DELTA_COMMIT)->message;
    EXPECT(m->session_counter == 1 && m->session_incarnation.data[0] == 1); /* who granted it, unchanged */
    refuse(&b, again, ST_AGAIN, 700);
    EXPECT(!sent(&b, VERB_DELTA_COMMIT));
    tick(&b, 699);
    EXPECT(!sent(&b, VERB_DELTA_COMMIT));
    tick(&b, 1);
    EXPECT(request_of(&b, VERB_DELTA_COMMIT) > again);
    Alv__DeltaAck ack = ALV__DELTA_ACK__INIT;
    ack.reason = (char *)"superseded";
    reply(&b, request_of(&b, VERB_DELTA_COMMIT), VERB_DELTA_ACK, &ack);
    EXPECT(find(&b, WORKER_SETTLED) && !find(&b, WORKER_SETTLED)->settled.accepted);
    EXPECT(sent(&b, VERB_TASK_REQUEST) != NULL);
    bench_end(&b);
}

static void exclusions_reply(struct bench *b, uint64_t seq, uint64_t newest)
{
    Alv__Exclusions list = ALV__EXCLUSIONS__INIT;
    Alv__Exclusion e = ALV__EXCLUSION__INIT, *pointer = &e;
    e.seq = seq, e.domain = 1, e.count = 1;
    list.n_entries = 1, list.entries = &pointer, list.newest = newest;
    reply(b, request_of(b, VERB_EXCLUSIONS_GET), VERB_EXCLUSIONS, &list);
}

static void test_exclusions_first(void)
{
    struct bench b;
    bench_start(&b, 0, NULL, NULL);
    hello_reply(&b, request_of(&b, VERB_HELLO), 1, inc_a, inc_zero, 9);
    struct worker_event prepared = job_event(&b, WORKER_PREPARED);
    prepared.fingerprint = "plain loops";
    step(&b, prepared);
    EXPECT(!sent(&b, VERB_TASK_REQUEST));
    exclusions_reply(&b, 5, 9); /* a part */
    EXPECT(find(&b, WORKER_EXCLUDE) && !sent(&b, VERB_EXCLUSIONS_GET));
    step(&b, job_event(&b, WORKER_EXCLUDED)); /* only now is it counted as applied */
    EXPECT_EQ(((const Alv__ExclusionsGet *)sent(&b, VERB_EXCLUSIONS_GET)->message)->since, 5);
    exclusions_reply(&b, 9, 9);
    step(&b, job_event(&b, WORKER_EXCLUDED));
    const struct worker_effect *ask = sent(&b, VERB_TASK_REQUEST);
    if (!EXPECT(ask != NULL))
        return;
    EXPECT_EQ(((const Alv__TaskRequest *)ask->message)->exclusion_seq, 9);

    grant(&b, ask->send.request, 11); /* the lease knows of newer ones: not begun before they are applied */
    EXPECT(!find(&b, WORKER_FETCH));
    exclusions_reply(&b, 11, 11);
    step(&b, job_event(&b, WORKER_EXCLUDED));
    EXPECT(find(&b, WORKER_FETCH) != NULL);
    bench_end(&b);
}

static void test_session_chain(void)
{
    const struct {
        uint64_t known, now;
        uint8_t *known_inc, *inc, *previous;
        bool fine;
    } cases[] = {
        {4, 4, inc_a, inc_a, inc_zero, true}, {4, 4, inc_a, inc_b, inc_zero, false}, /* a copy under the same number */
        {4, 5, inc_a, inc_b, inc_a, true},    {4, 5, inc_a, inc_b, inc_b, false},    /* a copy that went on */
        {4, 9, inc_a, inc_b, inc_b, true},    {4, 3, inc_a, inc_a, inc_zero, false}, /* set back */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;
        bench_start(&b, cases[i].known, cases[i].known_inc, NULL);
        hello_reply(&b, request_of(&b, VERB_HELLO), cases[i].now, cases[i].inc, cases[i].previous, 0);
        EXPECT_EQ(find(&b, WORKER_PREPARE) != NULL, cases[i].fine);
        EXPECT_EQ(find(&b, WORKER_STOPPED) != NULL, !cases[i].fine);
        if (!cases[i].fine && find(&b, WORKER_STOPPED))
            EXPECT_EQ(find(&b, WORKER_STOPPED)->stopped.status, ST_CONFLICT);
        bench_end(&b);
    }
}

/* A session whose way here is not known may be of a restored line: nothing cached may be used, what is in hand is given up,
 * and the session is remembered only when the cache is gone. */
static void test_a_restored_line_begins_afresh(void)
{
    struct bench b;
    bench_start(&b, 4, inc_a, NULL); /* at the start */
    hello_reply(&b, request_of(&b, VERB_HELLO), 900, inc_b, inc_b, 3);
    EXPECT(find(&b, WORKER_PREPARE) && find(&b, WORKER_PREPARE)->afresh && !find(&b, WORKER_REMEMBER));
    struct worker_event prepared = job_event(&b, WORKER_PREPARED);
    prepared.fingerprint = "plain loops";
    step(&b, prepared);
    EXPECT(find(&b, WORKER_REMEMBER) && find(&b, WORKER_REMEMBER)->session.counter == 900);
    EXPECT_EQ(((const Alv__ExclusionsGet *)sent(&b, VERB_EXCLUSIONS_GET)->message)->since, 0);
    exclusions_reply(&b, 3, 3);
    step(&b, job_event(&b, WORKER_EXCLUDED));
    grant(&b, request_of(&b, VERB_TASK_REQUEST), 3); /* and with a lease in hand */
    EXPECT(find(&b, WORKER_FETCH) != NULL);
    step(&b, (struct worker_event){.kind = WORKER_DOWN});
    step(&b, (struct worker_event){.kind = WORKER_UP});
    hello_reply(&b, request_of(&b, VERB_HELLO), 5000, inc_a, inc_zero, 2); /* fewer exclusions than were known */
    EXPECT(find(&b, WORKER_CANCEL) && find(&b, WORKER_PREPARE) && find(&b, WORKER_PREPARE)->afresh);
    EXPECT(!find(&b, WORKER_REMEMBER));
    prepared = job_event(&b, WORKER_PREPARED);
    prepared.fingerprint = "plain loops";
    step(&b, prepared);
    EXPECT(find(&b, WORKER_REMEMBER) && find(&b, WORKER_REMEMBER)->session.counter == 5000);
    EXPECT_EQ(((const Alv__ExclusionsGet *)sent(&b, VERB_EXCLUSIONS_GET)->message)->since, 0);
    exclusions_reply(&b, 2, 2);
    step(&b, job_event(&b, WORKER_EXCLUDED));
    EXPECT(sent(&b, VERB_TASK_REQUEST) != NULL);
    bench_end(&b);
}

static void test_another_base_is_refused_by_name(void)
{
    struct bench b;
    bench_start(&b, 0, NULL, NULL);
    memcpy(card.base_name, "other", 6);
    card.n_serving = 1; /* another name and another list of serving files are no other base ... */
    hello_reply(&b, request_of(&b, VERB_HELLO), 1, inc_a, inc_zero, 0);
    EXPECT(find(&b, WORKER_PREPARE) != NULL);
    bench_end(&b);
    bench_start(&b, 0, NULL, NULL);
    memcpy(card.base_name, "other", 6);
    card.base.b[5] = 1; /* ... other bytes are */
    hello_reply(&b, request_of(&b, VERB_HELLO), 1, inc_a, inc_zero, 0);
    const struct worker_effect *e = find(&b, WORKER_STOPPED);
    if (EXPECT(e != NULL))
        EXPECT(e->stopped.status == ST_CONFIG && strstr(e->stopped.text, "other") && strstr(e->stopped.text, "tiny"));
    bench_end(&b);
}

static void test_drain(void)
{
    struct bench b;
    bench_ready(&b, NULL);
    step(&b, (struct worker_event){.kind = WORKER_DRAIN}); /* idle: at once */
    EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_OK);
    bench_end(&b);

    grant(&b, bench_ready(&b, NULL), 0); /* training: cancelled and handed back */
    step(&b, job_event(&b, WORKER_FETCHED));
    uint64_t job = find(&b, WORKER_TRAIN)->job;
    step(&b, (struct worker_event){.kind = WORKER_DRAIN});
    EXPECT(find(&b, WORKER_CANCEL) && find(&b, WORKER_CANCEL)->job == job);
    uint64_t back = request_of(&b, VERB_TASK_RETURN);
    EXPECT_EQ(((const Alv__TaskReturn *)sent(&b, VERB_TASK_RETURN)->message)->why, ALV__RETURN_REASON__RETURN_DRAINING);
    finish_training(&b, job);
    EXPECT(!find(&b, WORKER_UPLOAD));
    Alv__Ok ok = ALV__OK__INIT;
    reply(&b, back, VERB_TASK_RETURN_OK, &ok);
    EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_OK);
    bench_end(&b);

    to_upload(&b, bench_ready(&b, NULL)); /* a computed delta: seen through, but not for ever */
    step(&b, (struct worker_event){.kind = WORKER_DRAIN});
    EXPECT(!find(&b, WORKER_CANCEL) && !find(&b, WORKER_STOPPED));
    tick(&b, DRAIN_MS);
    EXPECT(find(&b, WORKER_STOPPED) && !find(&b, WORKER_SETTLED));
    bench_end(&b);

    grant(&b, bench_ready(&b, NULL), 0); /* twice: at once */
    step(&b, (struct worker_event){.kind = WORKER_DRAIN});
    step(&b, (struct worker_event){.kind = WORKER_DRAIN});
    EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_STOPPED);
    bench_end(&b);
}

static void test_a_delta_survives_a_restart(void)
{
    struct bench b;
    to_upload(&b, bench_ready(&b, NULL));
    Alv__DeltaCommit *kept = (Alv__DeltaCommit *)find(&b, WORKER_UPLOAD)->message;
    find(&b, WORKER_UPLOAD)->message = NULL;
    bench_end(&b);

    bench_ready(&b, kept);
    EXPECT(find(&b, WORKER_UPLOAD) && !sent(&b, VERB_TASK_REQUEST));
    step(&b, job_event(&b, WORKER_UPLOADED));
    const struct worker_effect *e = sent(&b, VERB_DELTA_COMMIT);
    if (EXPECT(e != NULL))
        EXPECT_EQ(((const Alv__DeltaCommit *)e->message)->lease, 40);
    bench_end(&b);

    bench_ready(&b, kept); /* its blob is gone: handed back, then on */
    struct worker_event failed = job_event(&b, WORKER_FAILED);
    failed.failed.status = ST_NOT_FOUND;
    failed.failed.text = "no such blob: caf\xc3"; /* cut inside a character by some buffer's end */
    step(&b, failed);
    EXPECT(find(&b, WORKER_SETTLED) != NULL);
    if (EXPECT(sent(&b, VERB_TASK_RETURN) != NULL))
        EXPECT_STR(((const Alv__TaskReturn *)sent(&b, VERB_TASK_RETURN)->message)->reason, "no such blob: caf");
    bench_end(&b);
    alv__delta_commit__free_unpacked(kept, NULL);
}

static void test_missing_text_is_handed_back_and_nobody_blamed(void)
{
    struct bench b;
    uint64_t request = bench_ready(&b, NULL);
    for (int i = 0; i < 20; i++) { /* more often than a worker may fail in a row */
        grant(&b, request, 0);
        struct worker_event failed = job_event(&b, WORKER_FAILED);
        failed.failed.status = ST_NOT_FOUND;
        failed.failed.text = "domain 1: train segment 7 is no longer in the log";
        failed.failed.missing = true;
        step(&b, failed);
        const struct worker_effect *e = sent(&b, VERB_TASK_RETURN);
        REQUIRE(e != NULL);
        EXPECT_EQ(((const Alv__TaskReturn *)e->message)->why, ALV__RETURN_REASON__RETURN_MISSING);
        EXPECT_STR(((const Alv__TaskReturn *)e->message)->reason, failed.failed.text);
        Alv__Ok ok = ALV__OK__INIT;
        reply(&b, request_of(&b, VERB_TASK_RETURN), VERB_TASK_RETURN_OK, &ok);
        request = request_of(&b, VERB_TASK_REQUEST); /* at once */
    }
    bench_end(&b);
}

static void test_failures_are_bounded(void)
{
    struct bench b;
    uint64_t request = bench_ready(&b, NULL);
    for (int i = 0; i < 5; i++) {
        grant(&b, request, 0);
        struct worker_event failed = job_event(&b, WORKER_FAILED);
        failed.failed.status = ST_IO;
        failed.failed.text = "disk";
        step(&b, failed);
        EXPECT_EQ(((const Alv__TaskReturn *)sent(&b, VERB_TASK_RETURN)->message)->why,
                  ALV__RETURN_REASON__RETURN_LOCAL);
        Alv__Ok ok = ALV__OK__INIT;
        reply(&b, request_of(&b, VERB_TASK_RETURN), VERB_TASK_RETURN_OK, &ok);
        EXPECT(!sent(&b, VERB_TASK_REQUEST)); /* not at once */
        if (i < 4) {
            tick(&b, 60000);
            request = request_of(&b, VERB_TASK_REQUEST);
        }
    }
    EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_IO);
    bench_end(&b);

    request = bench_ready(&b, NULL); /* what the machine lacks it will lack again, and is not the lease's fault */
    grant(&b, request, 0);
    struct worker_event full = job_event(&b, WORKER_FAILED);
    full.failed.status = ST_NO_SPACE;
    full.failed.text = "the disk is full";
    step(&b, full);
    EXPECT_EQ(((const Alv__TaskReturn *)sent(&b, VERB_TASK_RETURN)->message)->why, ALV__RETURN_REASON__RETURN_LOCAL);
    Alv__Ok ok = ALV__OK__INIT;
    reply(&b, request_of(&b, VERB_TASK_RETURN), VERB_TASK_RETURN_OK, &ok);
    if (EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_NO_SPACE))
        EXPECT_STR(find(&b, WORKER_STOPPED)->stopped.text, "the disk is full");
    bench_end(&b);

    request = bench_ready(&b, NULL);
    Alv__Task none = ALV__TASK__INIT; /* nothing to do, said at once: no busy loop */
    reply(&b, request, VERB_TASK, &none);
    EXPECT(!sent(&b, VERB_TASK_REQUEST));
    tick(&b, 1000);
    EXPECT(sent(&b, VERB_TASK_REQUEST) != NULL);

    Alv__Task task = ALV__TASK__INIT; /* a lease we cannot do is handed back with the reason */
    tasks_fill(0);
    train.seq_tokens = 0;
    task.lease = &lease;
    reply(&b, request_of(&b, VERB_TASK_REQUEST), VERB_TASK, &task);
    const struct worker_effect *back = sent(&b, VERB_TASK_RETURN);
    if (EXPECT(back != NULL))
        EXPECT(strstr(((const Alv__TaskReturn *)back->message)->reason, "seq_tokens") != NULL);
    bench_end(&b);
}

static void test_refused_for_good(void)
{
    struct bench b;
    uint64_t request = bench_ready(&b, NULL);
    refuse(&b, request, ST_DENIED, 0);
    hello_reply(&b, request_of(&b, VERB_HELLO), 1, inc_a, inc_zero, 0);
    refuse(&b, request_of(&b, VERB_TASK_REQUEST), ST_DENIED, 0);
    EXPECT(find(&b, WORKER_STOPPED) && find(&b, WORKER_STOPPED)->stopped.status == ST_DENIED);
    bench_end(&b);
    bench_start(&b, 0, NULL, NULL); /* a newer start of this instance took its place */
    refuse(&b, request_of(&b, VERB_HELLO), ST_CONFLICT, 0);
    const struct worker_effect *stopped = find(&b, WORKER_STOPPED);
    if (EXPECT(stopped != NULL))
        EXPECT(strstr(stopped->stopped.text, "tiny") && strstr(stopped->stopped.text, "no"));
    bench_end(&b);
}

int main(void)
{
    hash_start();
    RUN(test_happy_path);
    RUN(test_progress_and_abandon);
    RUN(test_reconnect_in_each_state);
    RUN(test_exclusions_first);
    RUN(test_session_chain);
    RUN(test_a_restored_line_begins_afresh);
    RUN(test_another_base_is_refused_by_name);
    RUN(test_drain);
    RUN(test_a_delta_survives_a_restart);
    RUN(test_missing_text_is_handed_back_and_nobody_blamed);
    RUN(test_failures_are_bounded);
    RUN(test_refused_for_good);
    return harness_end();
}
