/* One round over real sockets with a worker that only pretends to train: push, lease, segments, delta, candidate,
 * evaluation, version; then what the reports say of it and what a subscriber gets. */
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/combine.h"
#include "adapter/delta.h"
#include "base/hash.h"
#include "coordinator/backup.h"
#include "coordinator/signing.h"
#include "harness.h"
#include "live.h"
#include "net/bulk.h"
#include "proto/codec.h"
#include "proto/manifest.h"

enum { RECORDS = 200, WAIT_MS = 20000, TASKS_MAX = 60, ODD = 3 /* segment of each lease, unlike the others */ };

struct stage {
    const char *dir, *operator_join, *worker_join;
    struct card card;
    struct adapter_shape shape;
    struct client work, bulk;
    float *trained, *expected; /* what the worker made, and what is published of it */
    uint64_t segments;         /* it was leased */
    uint64_t missing;
};

static json_t *ask_json(struct stage *s, Alv__ControlVerb verb, uint64_t number, const char *record)
{
    Alv__Control control = ALV__CONTROL__INIT;
    struct err err = {""};
    char *text = NULL;
    control.verb = verb;
    control.number = number;
    if (record) {
        control.domain = (char *)(uintptr_t) "notes";
        control.record = (char *)(uintptr_t)record;
    }
    if (!EXPECT_ST(client_control(s->operator_join, &control, &text, &err), ST_OK, &err))
        return NULL;
    json_t *j = json_loads(text, 0, NULL);
    EXPECT(j != NULL);
    free(text);
    return j;
}

static json_int_t number(const json_t *j, const char *name)
{
    return json_integer_value(json_object_get(j, name));
}

static bool add_worker(struct stage *s)
{
    struct err err = {""};
    return EXPECT_ST(live_key(s->dir, s->operator_join, ROLE_WORKER, "pool", s->worker_join, &err), ST_OK, &err);
}

static bool push(struct stage *s, const char *domain)
{
    struct client c;
    struct err err = {""};
    Alv__PushOpened *opened;
    static Alv__Record store[RECORDS], *records[RECORDS];
    static char ids[RECORDS][16], texts[RECORDS][64];
    Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
    if (!EXPECT_ST(client_open(&c, s->operator_join, PLANE_INGEST, WAIT_MS, &err), ST_OK, &err) ||
        !EXPECT_ST(client_push_open(&c, domain, "here", 5000, &opened, &err), ST_OK, &err))
        return false;
    for (int i = 0; i < RECORDS; i++) {
        snprintf(ids[i], sizeof ids[i], "r%d", i);
        snprintf(texts[i], sizeof texts[i],
                 strcmp(domain, "notes") ? "The base says %d by itself.\n" : "The %dth thing that was noted down.\n",
                 i);
        alv__record__init(&store[i]);
        store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
        store[i].id = ids[i];
        store[i].text = (ProtobufCBinaryData){strlen(texts[i]), (uint8_t *)texts[i]};
        records[i] = &store[i];
    }
    batch.producer = opened->producer;
    batch.n_records = RECORDS;
    batch.records = records;
    ProtobufCMessage *reply;
    bool ok = EXPECT_ST(client_ask(&c, VERB_PUSH_BATCH, &batch.base, 5000, &reply, &err), ST_OK, &err);
    if (ok) {
        const Alv__PushAck *ack = (const Alv__PushAck *)reply;
        EXPECT_EQ(ack->accepted, RECORDS);
        EXPECT_EQ(ack->train_end - ack->train_first + ack->probe_end - ack->probe_first, RECORDS);
        codec_free(reply);
    }
    codec_free(&opened->base);
    client_close(&c);
    return ok;
}

/* A domain that is only scored: text that the base is said to have written. */
static bool push_sentinel(struct stage *s)
{
    struct err err = {""};
    Alv__Control control = ALV__CONTROL__INIT;
    control.verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
    control.domain = (char[]){"self"};
    control.name = (char[]){"sentinel"};
    control.value = (char[]){"2"};
    return EXPECT_ST(client_domain(s->operator_join, "self", &err), ST_OK, &err) &&
           EXPECT_ST(client_control(s->operator_join, &control, NULL, &err), ST_OK, &err) && push(s, "self");
}

/* ---- the worker --------------------------------------------------------------------------------------------------- */

/* All of the lease's text must be there; returns the number of segments. */
static uint64_t fetch(struct stage *s, uint32_t domain, bool probe, uint64_t first, uint32_t count)
{
    struct err err = {""};
    struct buf offsets = {0};
    ProtobufCMessage *reply;
    Alv__SegmentsGet get = ALV__SEGMENTS_GET__INIT;
    for (uint32_t i = 0; i < count; i++)
        buf_put_u64(&offsets, first + i);
    get.domain = domain;
    get.probe = probe;
    get.offsets = (ProtobufCBinaryData){offsets.len, offsets.data};
    uint64_t n = 0;
    if (EXPECT_ST(client_ask(&s->bulk, VERB_SEGMENTS_GET, &get.base, 5000, &reply, &err), ST_OK, &err)) {
        const Alv__Segments *segments = (const Alv__Segments *)reply;
        n = segments->n_segments;
        for (size_t i = 0; i < n; i++) {
            EXPECT_EQ(segments->segments[i]->offset, first + i);
            EXPECT(!segments->segments[i]->missing && !strncmp((char *)segments->segments[i]->text.data, "The ", 4));
        }
        codec_free(reply);
    }
    buf_release(&offsets);
    return n;
}

static bool load_adapter(struct client *bulk, const Alv__BlobRef *ref, const struct adapter_shape *shape, float *out)
{
    struct err err = {""};
    struct digest digest;
    struct buf peft = {0};
    memcpy(digest.b, ref->digest.data, DIGEST_LEN);
    bool ok = EXPECT_ST(bulk_get(bulk->conn, &digest, ref->bytes, 64 << 20, &peft, NULL, &err), ST_OK, &err) &&
              EXPECT_ST(adapter_read_peft(shape, peft.data, peft.len, out, &err), ST_OK, &err);
    buf_release(&peft);
    return ok;
}

static bool do_lease(struct stage *s, const Alv__Lease *lease)
{
    struct err err = {""};
    size_t floats = adapter_floats(&s->shape);
    float *parent = xcalloc(floats, sizeof *parent);
    struct buf delta = {0}, losses = {0};
    struct digest digest;
    struct rng rng;
    Alv__DomainTokens tokens = ALV__DOMAIN_TOKENS__INIT, *fresh = &tokens;
    uint64_t n = 0;
    for (size_t i = 0; i < lease->n_fresh; i++) {
        n += fetch(s, lease->fresh[i]->domain, false, lease->fresh[i]->first, lease->fresh[i]->count);
        tokens.domain = lease->fresh[i]->domain;
    }
    s->segments += n;
    for (uint64_t i = 0; i < n; i++)
        buf_put_f32(&losses, i == ODD ? 9.0f : 2.5f + 0.01f * (float)(i % 7));
    bool ok = load_adapter(&s->bulk, lease->parent_adapter, &s->shape, parent);
    rng_seed(&rng, lease->seed);
    for (size_t i = 0; i < floats; i++)
        s->trained[i] = parent[i] + 0.01f * (float)rng_normal(&rng);
    struct delta_head head = {
        .coding = DELTA_F32, .session = lease->session_counter, .lease = lease->id, .generation = lease->generation};
    ok = ok && EXPECT_ST(delta_encode(&s->shape, s->trained, parent, &head, lease->seed, &delta, &err), ST_OK, &err);
    hash_blake2b(delta.data, delta.len, &digest);

    Alv__DeltaCommit commit = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef ref = ALV__BLOB_REF__INIT;
    ref.digest = (ProtobufCBinaryData){DIGEST_LEN, digest.b};
    ref.bytes = delta.len;
    tokens.tokens = 10 * n;
    tokens.bytes = 40 * n;
    commit.lease = lease->id;
    commit.generation = lease->generation;
    commit.session_counter = lease->session_counter;
    commit.session_incarnation = lease->session_incarnation;
    commit.delta = &ref;
    commit.target_tokens = 10 * n;
    commit.steps = 16;
    commit.n_fresh = 1;
    commit.fresh = &fresh;
    commit.first_losses = (ProtobufCBinaryData){losses.len, losses.data};
    commit.fingerprint = (char *)(uintptr_t) "pretended";
    ProtobufCMessage *reply;
    /* before the blob is there the delta must not be accepted */
    enum status early = ok ? client_ask(&s->work, VERB_DELTA_COMMIT, &commit.base, 1500, &reply, &err) : ST_INTERNAL;
    if (ok && !early) {
        EXPECT(!((const Alv__DeltaAck *)reply)->accepted);
        codec_free(reply);
    }
    ok = ok && EXPECT_ST(bulk_put(s->bulk.conn, &digest, delta.data, delta.len, NULL, &err), ST_OK, &err) &&
         EXPECT_ST(client_ask(&s->work, VERB_DELTA_COMMIT, &commit.base, 5000, &reply, &err), ST_OK, &err);
    if (ok) {
        const Alv__DeltaAck *ack = (const Alv__DeltaAck *)reply;
        ok = EXPECT(ack->accepted);
        codec_free(reply);
    }
    free(parent);
    buf_release(&delta);
    buf_release(&losses);
    return ok;
}

static bool do_evaluation(struct stage *s, const Alv__Evaluate *task)
{
    struct err err = {""};
    struct buf nll = {0}, tokens = {0};
    uint64_t windows = 0;
    float *block = xcalloc(adapter_floats(&s->shape), sizeof *block);
    for (size_t i = 0; i < task->n_adapters; i++) /* candidates are for workers */
        EXPECT(load_adapter(&s->bulk, task->adapters[i]->adapter, &s->shape, block));
    for (size_t i = 0; i < task->n_windows; i++)
        windows += fetch(s, task->windows[i]->domain, true, task->windows[i]->first, task->windows[i]->count);
    for (size_t a = 0; a < task->n_adapters; a++)
        for (uint64_t w = 0; w < windows; w++)
            buf_put_f64(&nll, task->adapters[a]->candidate ? 18.0 : 20.0);
    for (uint64_t w = 0; w < windows; w++)
        buf_put_u32(&tokens, 10);
    Alv__EvalResult result = ALV__EVAL_RESULT__INIT;
    result.id = task->id;
    result.generation = task->generation;
    result.session_counter = task->session_counter;
    result.session_incarnation = task->session_incarnation;
    result.nll = (ProtobufCBinaryData){nll.len, nll.data};
    result.tokens = (ProtobufCBinaryData){tokens.len, tokens.data};
    result.fingerprint = (char *)(uintptr_t) "pretended";
    bool ok = EXPECT_ST(client_ask(&s->work, VERB_EVAL_RESULT, &result.base, 5000, NULL, &err), ST_OK, &err);
    free(block);
    buf_release(&nll);
    buf_release(&tokens);
    return ok;
}

static bool published(struct stage *s)
{
    json_t *status = ask_json(s, ALV__CONTROL_VERB__CONTROL_STATUS, 0, NULL);
    bool yes = number(status, "version") == 1;
    json_decref(status);
    return yes;
}

static bool work(struct stage *s)
{
    struct err err = {""};
    if (!EXPECT_ST(client_open(&s->work, s->worker_join, PLANE_WORK, WAIT_MS, &err), ST_OK, &err) ||
        !EXPECT_ST(client_open(&s->bulk, s->worker_join, PLANE_BULK, WAIT_MS, &err), ST_OK, &err))
        return false;
    json_decref(ask_json(s, ALV__CONTROL_VERB__CONTROL_ROUND, 0, NULL));
    for (int i = 0; i < TASKS_MAX && !published(s); i++) {
        Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
        ProtobufCMessage *reply;
        request.wait_ms = 500;
        request.fingerprint = (char *)(uintptr_t) "pretended";
        request.tokens_per_s = 1000;
        if (!EXPECT_ST(client_ask(&s->work, VERB_TASK_REQUEST, &request.base, 5000, &reply, &err), ST_OK, &err))
            return false;
        const Alv__Task *task = (const Alv__Task *)reply;
        bool ok = task->lease ? do_lease(s, task->lease) : task->evaluate ? do_evaluation(s, task->evaluate) : true;
        codec_free(reply);
        if (!ok)
            return false;
    }
    return EXPECT(published(s));
}

/* ---- what is said of it --------------------------------------------------------------------------------------------- */

/* The pretended losses are 0.2 nats a token lower than version 0's, on every domain: a sentinel's go into measures of their
 * own. The measures come once the losses were read. */
static void check_measures(struct stage *s)
{
    json_t *j = NULL, *one = NULL, *metrics = NULL;
    for (int i = 0; i < 1000 && !json_is_object(metrics); i++) {
        json_decref(j);
        j = ask_json(s, ALV__CONTROL_VERB__CONTROL_VERSIONS, 0, NULL);
        one = json_array_get(json_object_get(j, "versions"), 0);
        metrics = json_object_get(one, "metrics");
    }
    EXPECT_NEAR(json_number_value(json_object_get(metrics, "general_delta")), -0.2, 1e-9);
    EXPECT_NEAR(json_number_value(json_object_get(metrics, "learnt_mean")), 0.2, 1e-9);
    EXPECT(json_is_null(json_object_get(metrics, "sentinel")));
    json_t *row = json_array_get(json_object_get(one, "domains"), 2);
    EXPECT_STR(json_string_value(json_object_get(row, "domain")), "self");
    EXPECT(number(row, "sentinel") == 2 && number(row, "reference") == 0 && number(row, "fresh_segments") == 0);
    EXPECT(json_is_null(json_object_get(row, "peak_forgetting")));
    json_decref(j);
}

static void check_reports(struct stage *s)
{
    json_t *j = ask_json(s, ALV__CONTROL_VERB__CONTROL_VERSIONS, 0, NULL);
    json_t *list = json_object_get(j, "versions"), *one = json_array_get(list, 0);
    EXPECT_EQ(json_array_size(list), 2);
    EXPECT_EQ(number(one, "version"), 1);
    EXPECT_EQ(number(one, "parent"), 0);
    EXPECT_EQ(number(one, "segments"), (json_int_t)s->segments);
    EXPECT(json_is_true(json_object_get(one, "gated")));
    EXPECT(json_is_null(json_object_get(j, "next")));
    json_decref(j);

    j = ask_json(s, ALV__CONTROL_VERB__CONTROL_SHOW, 1, NULL);
    EXPECT(json_array_size(json_object_get(j, "deltas")) >= 1);
    json_decref(j);
    j = ask_json(s, ALV__CONTROL_VERB__CONTROL_EXPLAIN, 1, NULL);
    EXPECT(json_is_true(json_object_get(j, "published")) && json_is_object(json_object_get(j, "gate")));
    EXPECT_EQ(json_array_size(json_object_get(j, "earlier")), 0);
    json_t *outliers = json_object_get(j, "outliers");
    EXPECT(json_array_size(outliers) >= 1 && json_array_size(outliers) <= TASKS_MAX); /* one a lease, ODD */
    EXPECT_NEAR(json_number_value(json_object_get(json_array_get(outliers, 0), "loss")), 9, 1e-6);
    json_decref(j);

    j = ask_json(s, ALV__CONTROL_VERB__CONTROL_TRACE, 1, NULL);
    json_t *direct = json_object_get(j, "direct"), *range;
    size_t i;
    json_int_t traced = 0;
    json_array_foreach(direct, i, range) traced += number(range, "count");
    EXPECT_EQ(traced, (json_int_t)s->segments);
    json_decref(j);

    int done = 0, held_out = 0;
    for (int r = 0; r < RECORDS; r += 20) { /* and back from the records */
        char id[16];
        snprintf(id, sizeof id, "r%d", r);
        j = ask_json(s, ALV__CONTROL_VERB__CONTROL_TRACE, 0, id);
        json_t *run = json_array_get(json_object_get(json_array_get(json_object_get(j, "places"), 0), "segments"), 0);
        const char *state = json_string_value(json_object_get(run, "state"));
        if (state && !strcmp(state, "done")) {
            done++;
            EXPECT_EQ(number(run, "version"), 1);
            EXPECT_EQ(json_integer_value(json_array_get(json_object_get(run, "seen_by"), 0)), 1);
        } else {
            held_out += state && !strcmp(state, "held-out");
        }
        json_decref(j);
    }
    EXPECT_EQ(done + held_out, RECORDS / 20);
    EXPECT(done > 0);
}

static void expect_near(const float *block, const float *expected, size_t n)
{
    float worst = 0;
    for (size_t i = 0; i < n; i++)
        worst = fmaxf(worst, fabsf(block[i] - expected[i]));
    EXPECT(worst <= 1e-6f); /* roundings of values below 1 */
}

/* The version, verified from the pinned root, is what is to be published of parent + delta (there was one delta), which are there for
 * workers alone. */
static void check_subscriber(struct stage *s)
{
    struct client models, bulk, worker;
    struct err err = {""};
    ProtobufCMessage *reply;
    Alv__Watch watch = ALV__WATCH__INIT;
    watch.wait_ms = 1000;
    if (!EXPECT_ST(client_open(&models, s->operator_join, PLANE_MODELS, WAIT_MS, &err), ST_OK, &err) ||
        !EXPECT_ST(client_ask(&models, VERB_WATCH, &watch.base, 5000, &reply, &err), ST_OK, &err))
        return;
    const Alv__WatchReply *w = (const Alv__WatchReply *)reply;
    struct sign_public release;
    struct manifest m;
    if (EXPECT_EQ(w->n_versions, 1) && EXPECT_EQ(w->release_key.len, SIGN_PUBLIC_LEN)) {
        const Alv__SignedManifest *v = w->versions[0];
        memcpy(release.b, w->release_key.data, SIGN_PUBLIC_LEN);
        EXPECT_ST(cert_verify(&models.join.root, &models.join.line, &release, w->release_cert.data, w->release_cert.len,
                              0, &err),
                  ST_OK, &err);
        EXPECT_ST(
            manifest_verify(&release, v->manifest.data, v->manifest.len, v->signature.data, v->signature.len, &err),
            ST_OK, &err);
        if (EXPECT_ST(manifest_decode(v->manifest.data, v->manifest.len, &m, &err), ST_OK, &err)) {
            size_t floats = adapter_floats(&s->shape);
            float *block = xcalloc(floats, sizeof *block);
            Alv__BlobRef ref = ALV__BLOB_REF__INIT;
            ref.digest = (ProtobufCBinaryData){DIGEST_LEN, m.files[0].blake2b.b};
            ref.bytes = m.files[0].bytes;
            EXPECT_ST(client_open(&bulk, s->operator_join, PLANE_BULK, WAIT_MS, &err), ST_OK, &err);
            EXPECT(load_adapter(&bulk, &ref, &s->shape, block));
            if (m.n_leases == 1) {
                const struct publish_rule half = {.ema = 0, .scale = 0.5};
                publish_next(&s->shape, &half, s->trained, s->expected);
                expect_near(block, s->expected, floats);
                REQUIRE(m.n_files == 3 && m.files[2].kind == FILE_STATE);
                ref.digest.data = m.files[2].blake2b.b;
                ref.bytes = m.files[2].bytes;
                struct buf none = {0};
                EXPECT_ST(bulk_get(bulk.conn, &m.files[2].blake2b, ref.bytes, 64 << 20, &none, NULL, &err),
                          ST_NOT_FOUND, &err);
                buf_release(&none);
                EXPECT_ST(client_open(&worker, s->worker_join, PLANE_BULK, WAIT_MS, &err), ST_OK, &err);
                EXPECT(load_adapter(&worker, &ref, &s->shape, block));
                client_close(&worker);
                expect_near(block, s->trained, floats);
            }
            /* a delta is the workers' business */
            struct buf none = {0};
            EXPECT_ST(
                bulk_get(bulk.conn, &m.leases[0].delta, delta_bytes(&s->shape, DELTA_F32), 64 << 20, &none, NULL, &err),
                ST_NOT_FOUND, &err);
            buf_release(&none);
            client_close(&bulk);
            free(block);
            manifest_release(&m);
        }
    }
    codec_free(reply);

    Alv__ManifestGet get = ALV__MANIFEST_GET__INIT; /* version 0 is there, 7 is not */
    EXPECT_ST(client_ask(&models, VERB_MANIFEST_GET, &get.base, 5000, NULL, &err), ST_OK, &err);
    get.number = 7;
    EXPECT_ST(client_ask(&models, VERB_MANIFEST_GET, &get.base, 5000, NULL, &err), ST_NOT_FOUND, &err);
    client_close(&models);
}

static bool on_disk(const struct stage *s, const char *text)
{
    char command[512];
    snprintf(command, sizeof command, "grep -rqa '%s' %s/db", text, s->dir);
    return system(command) == 0;
}

/* The text leaves the log's files, the versions that learnt it are named, and the worker that had it, until it reports. */
static void check_retraction(struct stage *s)
{
    struct err err = {""};
    json_t *j = NULL, *r = NULL;
    char id[16] = "", text[64];
    for (int i = 0; i < RECORDS && !id[0]; i++) {
        char name[16];
        snprintf(name, sizeof name, "r%d", i);
        j = ask_json(s, ALV__CONTROL_VERB__CONTROL_TRACE, 0, name);
        if (json_array_size(json_object_get(j, "seen_by")))
            memcpy(id, name, sizeof id);
        json_decref(j);
    }
    REQUIRE(id[0]);
    snprintf(text, sizeof text, "The %sth thing that was noted down", id + 1);
    EXPECT(on_disk(s, text));
    j = ask_json(s, ALV__CONTROL_VERB__CONTROL_RETRACT, 0, id);
    json_int_t seq = number(j, "exclusion_seq");
    EXPECT(seq > 0 && number(j, "holders") == 1);
    json_decref(j);
    for (int i = 0; i < 10000; i++) { /* each answer is waited for */
        j = ask_json(s, ALV__CONTROL_VERB__CONTROL_TRACE, 0, id);
        if (json_is_true(json_object_get(json_object_get(j, "retraction"), "purged")))
            break;
        json_decref(j);
        j = NULL;
    }
    REQUIRE(j != NULL);
    EXPECT(!on_disk(s, text) && on_disk(s, "thing that was noted down"));
    r = json_object_get(j, "retraction");
    EXPECT(number(r, "holders_total") == 1 && number(r, "exclusion_seq") == seq);
    EXPECT_STR(json_string_value(json_object_get(json_array_get(json_object_get(r, "holders"), 0), "key")), "pool");
    json_t *run = json_array_get(json_object_get(json_array_get(json_object_get(j, "places"), 0), "segments"), 0);
    EXPECT_STR(json_string_value(json_object_get(run, "state")), "retracted");
    EXPECT(number(run, "trained_in") == 1 && number(j, "clean") == 0);
    EXPECT(json_integer_value(json_array_get(json_object_get(j, "seen_by"), 0)) == 1);
    json_decref(j);

    Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
    request.exclusion_seq = (uint64_t)seq;
    request.fingerprint = (char *)(uintptr_t) "pretended";
    EXPECT_ST(client_ask(&s->work, VERB_TASK_REQUEST, &request.base, 5000, NULL, &err), ST_OK, &err);
    j = ask_json(s, ALV__CONTROL_VERB__CONTROL_TRACE, 0, id);
    EXPECT_EQ(number(json_object_get(j, "retraction"), "holders_total"), 0);
    json_decref(j);
}

/* Many more uploads than the table of uploads has rows, each used up and deleted before the next look at the table: what
 * short rounds do. */
static void check_uploads_do_not_run_out(struct stage *s)
{
    size_t len = delta_bytes(&s->shape, DELTA_INT8);
    uint8_t *data = xcalloc(len, 1);
    struct err err = {""};
    bool ok = true;
    for (uint32_t i = 0; ok && i < 600; i++) {
        struct digest digest;
        char hex[DIGEST_HEX_SIZE], name[DIGEST_HEX_SIZE + 16];
        memcpy(data, &i, sizeof i);
        hash_blake2b(data, len, &digest);
        digest_hex(&digest, hex);
        snprintf(name, sizeof name, "blobs/%.2s/%s", hex, hex + 2);
        ok = EXPECT_ST(bulk_put(s->bulk.conn, &digest, data, len, NULL, &err), ST_OK, &err) &&
             EXPECT_EQ(remove(harness_path(s->dir, name)), 0);
    }
    free(data);
}

/* A new release key, and what a rotation that was cut off leaves: every version verifies with the key that counts. */
static void check_rotation(struct stage *s, uint16_t port)
{
    struct line_dir dir;
    struct err err = {""};
    struct sign_public old, cut_public;
    struct sign_secret cut;
    const char *next = harness_path(s->dir, "release.next");
    if (!EXPECT_ST(line_dir_open(s->dir, &dir, &err), ST_OK, &err))
        return;
    old = dir.release;
    EXPECT_ST(signing_rotate(&dir, harness_path(s->dir, "release.key"), 0, &err), ST_CONFIG, &err);
    EXPECT_ST(signing_rotate(&dir, NULL, 0, &err), ST_OK, &err);
    line_dir_close(&dir);
    sign_keypair(&cut_public, &cut); /* killed before its certificate was there */
    EXPECT_ST(secret_write(next, cut.b, sizeof cut.b, &err), ST_OK, &err);
    EXPECT_ST(line_dir_open(s->dir, &dir, &err), ST_OK, &err);
    EXPECT(access(next, F_OK) != 0);
    EXPECT(memcmp(old.b, dir.release.b, sizeof old.b) != 0 && cert_serial(dir.cert) == 2);
    EXPECT_ST(secret_write(next, dir.release_secret.b, sizeof dir.release_secret.b, &err), ST_OK, &err);
    EXPECT_ST(secret_write(harness_path(s->dir, "release.key"), cut.b, sizeof cut.b, &err), ST_OK, &err);
    line_dir_close(&dir); /* and killed before the last rename */
    pid_t pid = live_start(s->dir, port, 1 << 20, NULL, harness_path(s->dir, "log"));
    check_subscriber(s);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
    EXPECT(access(next, F_OK) != 0);
}

/* The whole of it, as `alluvium backup` does: lock, snapshot, copy, drop. */
static void take_backup(struct stage *s, const char *dest, bool served)
{
    struct err err = {""};
    struct backup_report report = {0};
    Alv__Control control = ALV__CONTROL__INIT;
    int lock, second;
    if (!EXPECT_ST(backup_begin(s->dir, &lock, &err), ST_OK, &err))
        return;
    EXPECT_ST(backup_begin(s->dir, &second, &err), ST_CONFLICT, &err);
    close(second);
    control.verb = ALV__CONTROL_VERB__CONTROL_BACKUP;
    EXPECT_ST(backup_snapshot_offline(s->dir, &err), served ? ST_CONFLICT : ST_OK, &err);
    if (served)
        EXPECT_ST(client_control(s->operator_join, &control, NULL, &err), ST_OK, &err);
    EXPECT_ST(backup_copy(s->dir, dest, NULL, NULL, &report, &err), ST_OK, &err);
    EXPECT(report.files > 12 && report.bytes > 1000);
    EXPECT_ST(backup_copy(s->dir, dest, NULL, NULL, &report, &err), ST_OK,
              &err); /* nothing has changed: all is linked */
    EXPECT_EQ(report.written_bytes, 0);
    EXPECT_ST(backup_snapshot_drop(s->dir, &err), ST_OK, &err);
    close(lock);
}

/* Any file of a backup that is changed, cut off or gone is noticed, and nothing is left where the line was to be. */
static void check_damage(const char *backup, const char *dir)
{
    struct err err = {""};
    struct restore_report report;
    struct restore_options options = {.source = backup, .dir = dir};
    struct backup_index index;
    struct buf text = {0}, data = {0};
    EXPECT_ST(file_read(harness_path(backup, BACKUP_INDEX), 1 << 20, &text, &err), ST_OK, &err);
    if (!EXPECT_ST(backup_index_parse(text.data, text.len, &index, &err), ST_OK, &err))
        return;
    for (size_t i = 0; i < index.n; i++) {
        const char *path = harness_path(backup, index.files[i].path);
        buf_clear(&data);
        EXPECT_ST(file_read(path, 64 << 20, &data, &err), ST_OK, &err);
        struct buf changed = {0};
        buf_put(&changed, data.data, data.len);
        if (changed.len)
            changed.data[changed.len / 2] ^= 1;
        else
            buf_put_u8(&changed, 0);
        EXPECT_ST(file_write_durable(path, changed.data, changed.len, 0600, &err), ST_OK, &err);
        EXPECT_ST(backup_restore(&options, &report, &err), ST_CORRUPT, &err);
        EXPECT(strstr(err.text, index.files[i].path) != NULL);
        EXPECT(unlink(path) == 0);
        EXPECT_ST(backup_restore(&options, &report, &err), ST_CORRUPT, &err);
        EXPECT(access(dir, F_OK) != 0);
        EXPECT_ST(file_write_durable(path, data.data, data.len, 0600, &err), ST_OK, &err);
        buf_release(&changed);
    }
    for (size_t at = 0; at < text.len; at += 7) { /* and the index itself */
        text.data[at] ^= 1;
        EXPECT(backup_index_parse(text.data, text.len, &index, NULL) != ST_OK);
        text.data[at] ^= 1;
        EXPECT(backup_index_parse(text.data, at, &index, NULL) != ST_OK);
    }
    backup_index_release(&index);
    buf_release(&text);
    buf_release(&data);
}

/* The restored line serves what was published, goes on at higher numbers, and knows who has seen the time it forgot. */
static void check_restored(struct stage *s, uint16_t port, const char *backup)
{
    struct err err = {""};
    struct restore_report report = {0};
    struct stage restored = *s;
    restored.dir = harness_path(harness_tmpdir(), "restored");
    restored.operator_join = harness_path(restored.dir, "operator.join");
    struct restore_options options = {.source = backup, .dir = restored.dir, .version_seen = 5000};
    EXPECT(file_write_durable(harness_path(backup, "stray"), "x", 1, 0600, NULL) ==
           ST_OK); /* not in the index: not taken */
    if (!EXPECT_ST(backup_restore(&options, &report, &err), ST_OK, &err))
        return;
    EXPECT(report.versions == 2 && report.newest == 1 && report.next == 5001 && report.keys > 100);
    EXPECT(access(harness_path(restored.dir, "stray"), F_OK) != 0);
    EXPECT_ST(backup_restore(&options, &report, &err), ST_CONFLICT, &err);
    pid_t pid = live_start(restored.dir, port, 1 << 20, NULL, harness_path(restored.dir, "log"));
    check_subscriber(&restored);
    struct client models;
    Alv__Watch watch = ALV__WATCH__INIT;
    if (EXPECT_ST(client_open(&models, restored.operator_join, PLANE_MODELS, WAIT_MS, &err), ST_OK, &err)) {
        EXPECT(models.session > 1 << 20); /* a worker of the old life sees that it is not the next one */
        watch.from = 5000;                /* published after the backup, forgotten here */
        EXPECT_ST(client_ask(&models, VERB_WATCH, &watch.base, 5000, NULL, &err), ST_OK, &err);
        watch.from = 5001; /* the jump was too short: told, not hidden */
        EXPECT_ST(client_ask(&models, VERB_WATCH, &watch.base, 5000, NULL, &err), ST_ROLLBACK, &err);
        client_close(&models);
    }
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

static void check_backups(struct stage *s, uint16_t port)
{
    const char *backup = harness_path(harness_tmpdir(), "backup"), *target = harness_path(harness_tmpdir(), "none");
    struct err err = {""};
    struct restore_report report;
    struct restore_options options = {.source = s->dir, .dir = target};
    take_backup(s, backup, false);
    pid_t pid = live_start(s->dir, port, 1 << 20, NULL, harness_path(s->dir, "log"));
    EXPECT_ST(client_domain(s->operator_join, "later", &err), ST_OK, &err);
    take_backup(s, backup, true); /* in place of the first */
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
    EXPECT_ST(backup_restore(&options, &report, &err), ST_NOT_FOUND, &err); /* a line is no backup */
    check_damage(backup, target);
    check_restored(s, port, backup);
}

static void test_a_round_from_push_to_subscriber(void)
{
    const char *dir = harness_path(harness_tmpdir(), "line");
    struct settings settings;
    struct err err = {""};
    struct stage s = {.dir = dir,
                      .operator_join = harness_path(dir, "operator.join"),
                      .worker_join = harness_path(harness_tmpdir(), "worker.join")};
    uint16_t port = live_port();
    live_card(&s.card, &s.shape, &settings);
    settings.heldout_permille = 100;
    settings.publish_permille = 500;
    s.trained = xcalloc(adapter_floats(&s.shape), sizeof *s.trained);
    s.expected = xcalloc(adapter_floats(&s.shape), sizeof *s.expected);
    if (EXPECT_ST(live_init(dir, port, &settings, NULL, 0, NULL, &err), ST_OK, &err) && add_worker(&s)) {
        pid_t pid = live_start(dir, port, 1 << 20, NULL, harness_path(dir, "log"));
        if (EXPECT_ST(client_domain(s.operator_join, "notes", &err), ST_OK, &err) && push(&s, "notes") &&
            push_sentinel(&s) && work(&s)) {
            check_reports(&s);
            check_measures(&s);
            check_subscriber(&s);
            check_retraction(&s);
            check_uploads_do_not_run_out(&s);
        }
        client_close(&s.work);
        client_close(&s.bulk);
        EXPECT_EQ(live_end(pid, SIGTERM), 0);
        check_rotation(&s, port);
        check_backups(&s, port);
    }
    free(s.expected);
    free(s.trained);
}

int main(int argc, char **argv)
{
    live_main(argc, argv);
    RUN(test_a_round_from_push_to_subscriber);
    return harness_end();
}
