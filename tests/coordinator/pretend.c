/* A line that looks lived in, made in seconds: a real coordinator, and workers that only pretend to train.
 *
 *     pretend DIR PORT HTTP_PORT VERSIONS [trouble]        PORT 0: any, printed behind "ready"
 *
 * Five domains arrive one after another. What a version has learnt of each is a small formula (LEARN, FORGET), and losses are
 * that plus noise which depends on the window alone; so rounds, verdicts, versions and their matrix are the coordinator's
 * own, made through its own doors. With `trouble` (and 3 versions at least) the last rounds are bad: refusals, data held back, a
 * subscriber that fails, and a rollback at the end. When all is there it prints "ready" and stays as it is until its standard input ends.
 */
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "base/hash.h"
#include "live.h"
#include "net/bulk.h"
#include "proto/codec.h"

enum {
    WAIT_MS = 20000,
    DOMAINS = 6,
    RECORDS = 60, /* of one push */
    VERSIONS_MAX = 512,
    WORKERS = 3,
    TOKENS = 400, /* that a segment is said to have */
};
static const char *const names[DOMAINS] = {"general", "ocaml", "health", "finance", "scripture", "support-chat"};
static const double start[DOMAINS] = {3.1, 2.4, 3.0, 3.4, 2.7, 3.8}; /* loss of the base */
static const double LEARN = 0.22, REACH = 0.75, FORGET = 0.006; /* a version's step towards -REACH; what others lose */

struct level { /* loss less that of the base, of each domain */
    double v[DOMAINS];
};

struct line {
    char dir[3000], operator_join[3100], worker_join[3100], server_join[3100];
    struct card card;
    struct adapter_shape shape;
    struct level versions[VERSIONS_MAX], next; /* next: of the candidate in the making */
    uint64_t newest;
    bool refuses, harms; /* the workers: give leases back; train what makes the other domains forget */
    struct client work[WORKERS], bulk;
};

/* Anything unexpected ends the program: it is a fixture. */
static void must(enum status status, const struct err *err, const char *what)
{
    if (status) {
        fprintf(stderr, "pretend: %s: %s: %s\n", what, status_name(status), err->text);
        exit(1);
    }
}

static json_t *ask_json(struct line *l, Alv__ControlVerb verb, const char *domain, const char *name, uint64_t number)
{
    Alv__Control control = ALV__CONTROL__INIT;
    struct err err = {""};
    char *text = NULL;
    control.verb = verb;
    control.number = number;
    control.domain = domain ? (char *)(uintptr_t)domain : control.domain;
    control.name = name ? (char *)(uintptr_t)name : control.name;
    control.keep = true; /* of a rollback: nothing is pending again */
    must(client_control(l->operator_join, &control, &text, &err), &err, "control");
    json_t *j = json_loads(text, 0, NULL);
    free(text);
    CHECK(j);
    return j;
}

static void control(struct line *l, Alv__ControlVerb verb, const char *domain, const char *name, uint64_t number)
{
    json_decref(ask_json(l, verb, domain, name, number));
}

static void add_key(struct line *l, enum role role, const char *name, const char *path)
{
    struct err err = {""};
    must(live_key(l->dir, l->operator_join, role, name, path, &err), &err, "key");
}

static void push(struct line *l, int domain, unsigned serial)
{
    static Alv__Record store[RECORDS], *records[RECORDS];
    static char ids[RECORDS][32], texts[RECORDS][96], source[32];
    struct client c;
    struct err err = {""};
    Alv__PushOpened *opened;
    Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
    snprintf(source, sizeof source, "feed-%u", serial);
    must(client_open(&c, l->operator_join, PLANE_INGEST, WAIT_MS, &err), &err, "ingest");
    must(client_push_open(&c, names[domain], source, WAIT_MS, &opened, &err), &err, "push");
    for (int i = 0; i < RECORDS; i++) {
        snprintf(ids[i], sizeof ids[i], "r%u-%d", serial, i);
        snprintf(texts[i], sizeof texts[i], "Thing %d of feed %u that %s has to say.\n", i, serial, names[domain]);
        alv__record__init(&store[i]);
        store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
        store[i].id = ids[i];
        store[i].text = (ProtobufCBinaryData){strlen(texts[i]), (uint8_t *)texts[i]};
        records[i] = &store[i];
    }
    batch.producer = opened->producer;
    batch.n_records = RECORDS;
    batch.records = records;
    must(client_ask(&c, VERB_PUSH_BATCH, &batch.base, WAIT_MS, NULL, &err), &err, "batch");
    codec_free(&opened->base);
    client_close(&c);
}

/* ---- the workers --------------------------------------------------------------------------------------------------- */

static void get_adapter(struct line *l, const Alv__BlobRef *ref, float *out)
{
    struct err err = {""};
    struct digest digest;
    struct buf peft = {0};
    memcpy(digest.b, ref->digest.data, DIGEST_LEN);
    must(bulk_get(l->bulk.conn, &digest, ref->bytes, 64 << 20, &peft, NULL, &err), &err, "adapter");
    must(adapter_read_peft(&l->shape, peft.data, peft.len, out, &err), &err, "adapter");
    buf_release(&peft);
}

static uint64_t count_of(const Alv__Lease *lease, bool learns[DOMAINS])
{
    uint64_t n = 0;
    for (size_t i = 0; i < lease->n_fresh; i++) {
        n += lease->fresh[i]->count;
        if (lease->fresh[i]->domain < DOMAINS)
            learns[lease->fresh[i]->domain] = true;
    }
    return n;
}

/* What the candidate will be like, whoever trains for it. */
static void learn(struct line *l, uint64_t parent, const bool learns[DOMAINS])
{
    l->next = l->versions[parent];
    for (int d = 0; d < DOMAINS; d++)
        if (learns[d])
            l->next.v[d] += LEARN * (-REACH - l->next.v[d]);
        else
            l->next.v[d] += l->harms ? 0.5 : FORGET * (d ? 1 : 0.02);
}

static void do_lease(struct line *l, struct client *work, const Alv__Lease *lease)
{
    struct err err = {""};
    size_t floats = adapter_floats(&l->shape);
    float *parent = xcalloc(floats, sizeof *parent), *trained = xcalloc(floats, sizeof *trained);
    struct buf delta = {0}, losses = {0};
    struct digest digest;
    struct rng rng;
    Alv__DomainTokens tokens[DOMAINS], *fresh[DOMAINS];
    bool learns[DOMAINS] = {false};
    size_t n_fresh = 0;
    uint64_t n = count_of(lease, learns);
    learn(l, lease->parent, learns);
    for (uint32_t d = 0; d < DOMAINS; d++)
        if (learns[d]) {
            alv__domain_tokens__init(&tokens[n_fresh]);
            tokens[n_fresh].domain = d;
            tokens[n_fresh].tokens = TOKENS * n;
            tokens[n_fresh].bytes = 4 * TOKENS * n;
            fresh[n_fresh] = &tokens[n_fresh];
            n_fresh++;
        }
    for (uint64_t i = 0; i < n; i++)
        buf_put_f32(&losses, 2.5f);
    get_adapter(l, lease->parent_adapter, parent);
    rng_seed(&rng, lease->seed);
    for (size_t i = 0; i < floats; i++)
        trained[i] = parent[i] + 0.01f * (float)rng_normal(&rng);
    struct delta_head head = {
        .coding = DELTA_F32, .session = lease->session_counter, .lease = lease->id, .generation = lease->generation};
    must(delta_encode(&l->shape, trained, parent, &head, lease->seed, &delta, &err), &err, "delta");
    hash_blake2b(delta.data, delta.len, &digest);
    Alv__DeltaCommit commit = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef ref = ALV__BLOB_REF__INIT;
    ref.digest = (ProtobufCBinaryData){DIGEST_LEN, digest.b};
    ref.bytes = delta.len;
    commit.lease = lease->id;
    commit.generation = lease->generation;
    commit.session_counter = lease->session_counter;
    commit.session_incarnation = lease->session_incarnation;
    commit.delta = &ref;
    commit.target_tokens = TOKENS * n;
    commit.steps = 16;
    commit.n_fresh = n_fresh;
    commit.fresh = fresh;
    commit.first_losses = (ProtobufCBinaryData){losses.len, losses.data};
    commit.fingerprint = (char *)(uintptr_t) "pretended";
    commit.train_ms = (uint32_t)(n * 40);
    must(bulk_put(l->bulk.conn, &digest, delta.data, delta.len, NULL, &err), &err, "upload");
    must(client_ask(work, VERB_DELTA_COMMIT, &commit.base, WAIT_MS, NULL, &err), &err, "commit");
    free(parent);
    free(trained);
    buf_release(&delta);
    buf_release(&losses);
}

/* Nats per token on one window: the level of the version, noise of the window, and a little of both. */
static double loss_at(const struct level *level, uint32_t domain, uint64_t offset, uint64_t version)
{
    struct rng window, both;
    rng_seed(&window, 1000003 * (domain + 1) + offset);
    rng_seed(&both, 7919 * (version + 1) + 31 * offset + domain);
    return start[domain] + level->v[domain] + 0.25 * rng_normal(&window) + 0.02 * rng_normal(&both);
}

static void do_evaluation(struct line *l, struct client *work, const Alv__Evaluate *task)
{
    enum { WINDOW_TOKENS = 100 };
    struct err err = {""};
    struct buf nll = {0}, tokens = {0};
    for (size_t a = 0; a < task->n_adapters; a++) {
        bool candidate = task->adapters[a]->candidate;
        uint64_t version = candidate ? 1000 + task->round : task->adapters[a]->version;
        for (size_t i = 0; i < task->n_windows; i++)
            for (uint32_t k = 0; k < task->windows[i]->count; k++) {
                uint32_t d = task->windows[i]->domain < DOMAINS ? task->windows[i]->domain : 0;
                const struct level *level = candidate ? &l->next : &l->versions[version % VERSIONS_MAX];
                buf_put_f64(&nll, WINDOW_TOKENS * fmax(0, loss_at(level, d, task->windows[i]->first + k, version)));
                if (!a)
                    buf_put_u32(&tokens, WINDOW_TOKENS);
            }
    }
    Alv__EvalResult result = ALV__EVAL_RESULT__INIT;
    result.id = task->id;
    result.generation = task->generation;
    result.session_counter = task->session_counter;
    result.session_incarnation = task->session_incarnation;
    result.nll = (ProtobufCBinaryData){nll.len, nll.data};
    result.tokens = (ProtobufCBinaryData){tokens.len, tokens.data};
    result.fingerprint = (char *)(uintptr_t) "pretended";
    must(client_ask(work, VERB_EVAL_RESULT, &result.base, WAIT_MS, NULL, &err), &err, "scores");
    buf_release(&nll);
    buf_release(&tokens);
}

/* Takes a lease and gets no further than a third of it. */
static void begin_lease(struct line *l, struct client *work)
{
    struct err err = {""};
    for (int i = 0; i < 200; i++) {
        Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
        Alv__Progress progress = ALV__PROGRESS__INIT;
        ProtobufCMessage *reply;
        request.wait_ms = 100;
        request.fingerprint = (char *)(uintptr_t) "pretended";
        request.tokens_per_s = 900;
        must(client_ask(work, VERB_TASK_REQUEST, &request.base, WAIT_MS, &reply, &err), &err, "task");
        const Alv__Task *task = (const Alv__Task *)reply;
        bool got = task->lease != NULL;
        if (got) {
            progress.task = task->lease->id;
            progress.generation = task->lease->generation;
            progress.done = 6;
            progress.total = 18;
            progress.tokens_per_s = 900;
            must(client_ask(work, VERB_PROGRESS, &progress.base, WAIT_MS, NULL, &err), &err, "progress");
        }
        codec_free(reply);
        if (got)
            return;
    }
    fprintf(stderr, "pretend: no lease came in %s\n", l->dir);
    exit(1);
}

static void give_back(struct client *work, const Alv__Lease *lease)
{
    struct err err = {""};
    Alv__TaskReturn back = ALV__TASK_RETURN__INIT;
    back.task = lease->id;
    back.generation = lease->generation;
    back.reason = (char *)(uintptr_t) "a segment could not be tokenised";
    must(client_ask(work, VERB_TASK_RETURN, &back.base, WAIT_MS, NULL, &err), &err, "return");
}

/* One task for one worker, if there is one; true when there was. */
static bool work_once(struct line *l, int worker)
{
    struct err err = {""};
    Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
    ProtobufCMessage *reply;
    request.wait_ms = 100;
    request.fingerprint = (char *)(uintptr_t) "pretended";
    request.tokens_per_s = 900 + 250 * (uint32_t)worker;
    must(client_ask(&l->work[worker], VERB_TASK_REQUEST, &request.base, WAIT_MS, &reply, &err), &err, "task");
    const Alv__Task *task = (const Alv__Task *)reply;
    bool any = task->lease || task->evaluate;
    if (task->lease && l->refuses)
        give_back(&l->work[worker], task->lease);
    else if (task->lease)
        do_lease(l, &l->work[worker], task->lease);
    else if (task->evaluate)
        do_evaluation(l, &l->work[worker], task->evaluate);
    codec_free(reply);
    return any;
}

/* Works until the status has `name` at `value`, and keeps in mind what each new version is like. */
static void work_until(struct line *l, const char *name, json_int_t value)
{
    for (int idle = 0; idle < 600; idle++) {
        bool any = false;
        for (int w = 0; w < WORKERS; w++)
            any = work_once(l, w) || any;
        if (any)
            idle = 0;
        json_t *j = ask_json(l, ALV__CONTROL_VERB__CONTROL_STATUS, NULL, NULL, 0);
        uint64_t newest = (uint64_t)json_integer_value(json_object_get(j, "version"));
        const json_t *is = json_object_get(j, name);
        bool there = json_is_boolean(is) ? json_is_true(is) : json_integer_value(is) >= value;
        json_decref(j);
        if (newest > l->newest)
            l->versions[newest % VERSIONS_MAX] = l->next;
        l->newest = newest;
        if (there)
            return;
    }
    fprintf(stderr, "pretend: %s does not become %lld\n", name, (long long)value);
    exit(1);
}

static void round_of(struct line *l, int domain, unsigned serial)
{
    push(l, domain, serial);
    control(l, ALV__CONTROL_VERB__CONTROL_ROUND, NULL, NULL, 0);
}

/* ---- the story ------------------------------------------------------------------------------------------------------ */

static void serve_version(struct line *l, const char *instance, uint64_t staged, uint64_t serving, const char *error,
                          struct client *c)
{
    struct err err = {""};
    Alv__Serving s = ALV__SERVING__INIT;
    must(client_open(c, l->server_join, PLANE_MODELS, WAIT_MS, &err), &err, "models");
    s.staged = staged;
    s.serving = serving;
    s.target = (char *)(uintptr_t)instance;
    s.error = (char *)(uintptr_t)error;
    must(client_ask(c, VERB_SERVING, &s.base, WAIT_MS, NULL, &err), &err, "serving");
}

static void make(struct line *l, uint16_t port)
{
    struct settings settings;
    struct err err = {""};
    char anchor[3100];
    const char *anchors[] = {anchor};
    live_card(&l->card, &l->shape, &settings);
    settings.heldout_permille = 400;
    settings.round_wait_ms = 1;
    settings.lease_steps_min = 1;
    settings.double_score = 0;
    settings.looks[0] = settings.looks[1] = settings.looks[2] = 32;
    settings.probe_gate = 64;
    settings.forget_budget = 0.15;
    settings.lease_silence_ms = 3600 * 1000;
    snprintf(anchor, sizeof anchor, "%s-anchor.jsonl", l->dir);
    FILE *f = fopen(anchor, "w");
    CHECK(f);
    for (int i = 0; i < 200; i++)
        fprintf(f, "{\"id\": \"a%d\", \"text\": \"General sentence number %d of the anchor.\"}\n", i, i);
    CHECK_EQ(fclose(f), 0);
    must(live_init(l->dir, port, &settings, anchors, 1, NULL, &err), &err, "init");
    unlink(anchor);
}

int main(int argc, char **argv)
{
    static struct line l;
    struct err err = {""};
    struct client servers[3];
    live_main(argc, argv);
    if (argc < 5)
        return fprintf(stderr, "usage: pretend DIR PORT HTTP_PORT VERSIONS [trouble]\n"), 2;
    uint16_t port = (uint16_t)strtoul(argv[2], NULL, 10), http = (uint16_t)strtoul(argv[3], NULL, 10);
    uint64_t versions = strtoull(argv[4], NULL, 10);
    port = port ? port : live_port();
    http = http ? http : (uint16_t)(port + 7);
    CHECK(versions < VERSIONS_MAX - 8);
    snprintf(l.dir, sizeof l.dir, "%s", argv[1]);
    snprintf(l.operator_join, sizeof l.operator_join, "%s/operator.join", l.dir);
    snprintf(l.worker_join, sizeof l.worker_join, "%s-pool.join", l.dir);
    snprintf(l.server_join, sizeof l.server_join, "%s-server.join", l.dir);
    make(&l, port);
    add_key(&l, ROLE_WORKER, "pool", l.worker_join);
    add_key(&l, ROLE_SUBSCRIBER, "ward3", l.server_join);
    live_http(http);
    pid_t pid = live_start(l.dir, port, 1 << 20, NULL, NULL);
    for (int w = 0; w < WORKERS; w++)
        must(client_open(&l.work[w], l.worker_join, PLANE_WORK, WAIT_MS, &err), &err, "worker");
    must(client_open(&l.bulk, l.worker_join, PLANE_BULK, WAIT_MS, &err), &err, "bulk");
    for (int d = 1; d < DOMAINS; d++)
        control(&l, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, names[d], NULL, 0);

    for (uint64_t v = 1; v <= versions; v++) { /* one stream after another, then all again */
        uint64_t turn = (v - 1) * (DOMAINS - 1) / (versions < 10 ? versions : 10);
        round_of(&l, 1 + (int)(turn % (DOMAINS - 1)), (unsigned)v);
        work_until(&l, "version", (json_int_t)v);
    }
    control(&l, ALV__CONTROL_VERB__CONTROL_PROMOTE, NULL, "stable", versions > 2 ? versions - 2 : versions);
    control(&l, ALV__CONTROL_VERB__CONTROL_PROMOTE, NULL, "canary", versions);
    serve_version(&l, "http://gpu-1:8000", versions, versions, "", &servers[0]);
    serve_version(&l, "http://gpu-2:8000", versions, versions > 1 ? versions - 1 : 0, "", &servers[1]);
    if (argc > 5) {
        serve_version(&l, "http://gpu-3:8000", versions, versions > 4 ? versions - 4 : 0,
                      "load ward3-v9: connection refused", &servers[2]);
        l.refuses = true;
        round_of(&l, 4, 100001);
        work_until(&l, "quarantined", 1);
        l.refuses = false;
        l.harms = true; /* in two domains: were it one lease, its data would be held and the line go on */
        push(&l, 4, 100003);
        round_of(&l, 5, 100002);
        work_until(&l, "stopped", 1);
        control(&l, ALV__CONTROL_VERB__CONTROL_ROLLBACK, NULL, NULL, versions - 2);
    }
    if (argc > 5) {
        push(&l, 2, 100000); /* something to do */
    } else {
        round_of(&l, 2, 100000);
        begin_lease(&l, &l.work[0]);
    }
    printf("ready %u\n", http);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    for (int i = 0; i < (argc > 5 ? 3 : 2); i++)
        client_close(&servers[i]);
    return live_end(pid, SIGTERM);
}
