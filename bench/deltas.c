/* bench_deltas: from N workers' deltas to a version, end to end: upload over CURVE, durable blobs, acceptance, combination.
 *
 * A new line of the default model's shape for each N. N workers, each on its own connections, hold a lease and an encoded
 * delta in memory. The clock runs from the first upload until the version is published; the round has no probes, so nothing
 * else is in between. Beside it: the wall time of the uploads alone, the coordinator's CPU time a delta (the figure that
 * counts where workers are on other machines: here they share its cores), and its peak memory.
 *
 *     bench_deltas [--coding f32|bf16|int8] [--most N] [--json FILE]
 */
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "live.h"
#include "net/bulk.h"
#include "proto/codec.h"

enum { MOST = 512 /* leases of a round */, UPLOADERS = 4, TEXT = 1900, WAIT_MS = 30000, RECORDS_EACH = 4, BATCH = 128 };

static const struct arch smollm2 = {.kind = ARCH_LLAMA,
                                    .n_layers = 30,
                                    .d_model = 576,
                                    .d_ff = 1536,
                                    .n_heads = 9,
                                    .n_kv_heads = 3,
                                    .head_dim = 64,
                                    .vocab_size = 49152,
                                    .context_max = 8192,
                                    .rope_theta = 1e5f,
                                    .rms_eps = 1e-5f,
                                    .tied_head = true};

struct worker {
    struct client work, bulk;
    Alv__Task *task;
    struct buf delta;
    struct digest digest;
};

struct bench {
    uint32_t most;
    enum delta_coding coding;
    const char *json;
    char top[64];
    struct buf out;
};

static void must(const char *what, enum status st, const struct err *err)
{
    if (!st)
        return;
    fprintf(stderr, "bench_deltas: %s: %s: %s\n", what, status_name(st), err->text);
    exit(1);
}

/* ---- the line */

static void push(const char *join, uint32_t records)
{
    static char text[BATCH][TEXT], ids[BATCH][16];
    static Alv__Record store[BATCH], *list[BATCH];
    struct client client;
    struct err err;
    struct rng rng;
    Alv__PushOpened *opened;
    rng_seed(&rng, 1);
    must("domain", client_domain(join, "notes", &err), &err);
    must("connect", client_open(&client, join, PLANE_INGEST, WAIT_MS, &err), &err);
    must("push", client_push_open(&client, "notes", "bench", WAIT_MS, &opened, &err), &err);
    for (uint32_t at = 0, n; at < records; at += n) {
        n = records - at < BATCH ? records - at : BATCH;
        for (uint32_t i = 0; i < n; i++) {
            for (int k = 0; k < TEXT; k++)
                text[i][k] = (char)((k & 63) == 63 ? '\n' : 'a' + rng_below(&rng, 26));
            snprintf(ids[i], sizeof ids[i], "r%u", at + i);
            alv__record__init(&store[i]);
            store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
            store[i].id = ids[i];
            store[i].text = (ProtobufCBinaryData){TEXT, (uint8_t *)text[i]};
            list[i] = &store[i];
        }
        Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
        batch.producer = opened->producer;
        batch.position = at;
        batch.n_records = n;
        batch.records = list;
        must("push", client_ask(&client, VERB_PUSH_BATCH, &batch.base, WAIT_MS, NULL, &err), &err);
    }
    codec_free(&opened->base);
    client_close(&client);
}

static uint64_t published(struct client *control)
{
    uint8_t token[16];
    struct err err;
    ProtobufCMessage *reply;
    Alv__Control ask = ALV__CONTROL__INIT;
    random_bytes(token, sizeof token);
    ask.verb = ALV__CONTROL_VERB__CONTROL_STATUS;
    ask.token = (ProtobufCBinaryData){sizeof token, token};
    must("status", client_ask(control, VERB_CONTROL, &ask.base, WAIT_MS, &reply, &err), &err);
    json_t *j = json_loads(((const Alv__ControlReply *)reply)->json, 0, NULL);
    uint64_t version = (uint64_t)json_integer_value(json_object_get(j, "version"));
    json_decref(j);
    codec_free(reply);
    return version;
}

static double proc_peak_mb(pid_t pid)
{
    char path[64], line[256];
    double kb = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6))
            kb = strtod(line + 6, NULL);
    if (f)
        fclose(f);
    return kb * 1024 / 1e6;
}

static double proc_cpu_s(pid_t pid)
{
    char path[64], text[1024] = "";
    unsigned long long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *f = fopen(path, "re");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    const char *after = strrchr(text, ')');
    if (after)
        (void)sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu", &user, &system);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* ---- workers */

static void take_lease(struct worker *w)
{
    struct err err;
    ProtobufCMessage *reply = NULL;
    Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
    request.wait_ms = 1000;
    request.fingerprint = (char[]){"bench"};
    request.tokens_per_s = 100;
    for (int i = 0; i < 30 && !w->task; i++) {
        must("task", client_ask(&w->work, VERB_TASK_REQUEST, &request.base, WAIT_MS, &reply, &err), &err);
        if (((Alv__Task *)reply)->lease)
            w->task = (Alv__Task *)reply;
        else
            codec_free(reply);
    }
    if (!w->task) {
        fprintf(stderr, "bench_deltas: a worker got no lease in 30 s\n");
        exit(1);
    }
}

static void encode(struct worker *w, const struct bench *b, const struct adapter_shape *shape, const float *parent,
                   float *trained)
{
    const Alv__Lease *lease = w->task->lease;
    struct err err;
    struct rng rng;
    rng_seed(&rng, lease->id);
    for (size_t i = 0, n = adapter_floats(shape); i < n; i++)
        trained[i] = parent[i] + 0.001f * (float)(rng_unit(&rng) - 0.5);
    struct delta_head head = {
        .coding = b->coding, .session = lease->session_counter, .lease = lease->id, .generation = lease->generation};
    must("delta", delta_encode(shape, trained, parent, &head, lease->seed, &w->delta, &err), &err);
    hash_blake2b(w->delta.data, w->delta.len, &w->digest);
}

static void commit(struct worker *w)
{
    const Alv__Lease *lease = w->task->lease;
    struct err err;
    struct buf losses = {0};
    uint64_t n = 0;
    ProtobufCMessage *reply;
    Alv__DeltaCommit m = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef ref = ALV__BLOB_REF__INIT;
    Alv__DomainTokens tokens = ALV__DOMAIN_TOKENS__INIT, *fresh = &tokens;
    for (size_t i = 0; i < lease->n_fresh; i++)
        n += lease->fresh[i]->count;
    for (uint64_t i = 0; i < n; i++)
        buf_put_f32(&losses, 2.5f);
    tokens.domain = lease->fresh[0]->domain;
    tokens.tokens = 600 * n;
    tokens.bytes = TEXT * n;
    ref.digest = (ProtobufCBinaryData){DIGEST_LEN, w->digest.b};
    ref.bytes = w->delta.len;
    m.lease = lease->id;
    m.generation = lease->generation;
    m.session_counter = lease->session_counter;
    m.session_incarnation = lease->session_incarnation;
    m.delta = &ref;
    m.target_tokens = 600 * n;
    m.steps = 16;
    m.n_fresh = 1;
    m.fresh = &fresh;
    m.first_losses = (ProtobufCBinaryData){losses.len, losses.data};
    m.fingerprint = (char[]){"bench"};
    must("commit", client_ask(&w->work, VERB_DELTA_COMMIT, &m.base, WAIT_MS, &reply, &err), &err);
    CHECK(((const Alv__DeltaAck *)reply)->accepted);
    codec_free(reply);
    buf_release(&losses);
}

struct uploader {
    struct worker *workers;
    uint32_t first, n;
};

static void *upload(void *arg)
{
    struct uploader *u = arg;
    struct err err;
    for (uint32_t i = u->first; i < u->n; i += UPLOADERS) {
        struct worker *w = &u->workers[i];
        must("upload", bulk_put(w->bulk.conn, &w->digest, w->delta.data, w->delta.len, NULL, &err), &err);
        commit(w);
    }
    return NULL;
}

/* ---- */

struct result {
    double upload_s, total_s, cpu_s, idle_mb, peak_mb;
    uint64_t bytes;
};

static void measure(struct bench *b, uint32_t n, struct result *r)
{
    static struct worker workers[MOST];
    char line[128], operator_join[160], worker_join[160], log[160];
    struct err err;
    struct settings settings;
    struct card card;
    struct adapter_shape shape;
    struct client control;
    uint16_t port = live_port();
    memset(workers, 0, sizeof workers);
    snprintf(line, sizeof line, "%s/line%u", b->top, n);
    snprintf(operator_join, sizeof operator_join, "%s/operator.join", line);
    snprintf(worker_join, sizeof worker_join, "%s/worker%u.join", b->top, n);
    snprintf(log, sizeof log, "%s/log%u", b->top, n);
    live_card(&card, &shape, &settings);
    settings.delta_coding = b->coding;
    settings.heldout_permille = 0;
    settings.step_tokens = 512, settings.lease_steps_min = 1;
    settings.quorum = 1;
    must("init", live_init(line, port, &settings, NULL, 0, NULL, &err), &err);
    must("keys", live_key(line, operator_join, ROLE_WORKER, "pool", worker_join, &err), &err);
    pid_t pid = live_start(line, port, 0, NULL, log);
    push(operator_join, RECORDS_EACH * n);
    must("control", client_open(&control, operator_join, PLANE_CONTROL, WAIT_MS, &err), &err);
    for (uint32_t i = 0; i < n; i++) {
        must("worker", client_open(&workers[i].work, worker_join, PLANE_WORK, WAIT_MS, &err), &err);
        must("worker", client_open(&workers[i].bulk, worker_join, PLANE_BULK, WAIT_MS, &err), &err);
    }
    size_t floats = adapter_floats(&shape);
    float *parent = xcalloc(floats, sizeof *parent), *trained = xmalloc(floats * sizeof *trained);
    for (uint32_t i = 0; i < n; i++) {
        take_lease(&workers[i]);
        encode(&workers[i], b, &shape, parent, trained);
    }
    r->bytes = workers[0].delta.len;
    r->idle_mb = proc_peak_mb(pid);
    double cpu = proc_cpu_s(pid), begun = clock_s();
    struct uploader uploaders[UPLOADERS];
    pthread_t threads[UPLOADERS];
    for (uint32_t i = 0; i < UPLOADERS; i++) {
        uploaders[i] = (struct uploader){workers, i, n};
        CHECK_EQ(pthread_create(&threads[i], NULL, upload, &uploaders[i]), 0);
    }
    for (uint32_t i = 0; i < UPLOADERS; i++)
        pthread_join(threads[i], NULL);
    r->upload_s = clock_s() - begun;
    while (published(&control) == 0 && clock_s() < begun + 600)
        usleep(10000); /* tidy: allowed, an answer costs the coordinator more than a millisecond */
    r->total_s = clock_s() - begun;
    CHECK_EQ(published(&control), 1);
    r->cpu_s = proc_cpu_s(pid) - cpu;
    r->peak_mb = proc_peak_mb(pid);
    for (uint32_t i = 0; i < n; i++) {
        codec_free(&workers[i].task->base);
        buf_release(&workers[i].delta);
        client_close(&workers[i].work);
        client_close(&workers[i].bulk);
    }
    client_close(&control);
    free(parent);
    free(trained);
    live_end(pid, SIGTERM);
}

static bool parse(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--most"))
            b->most = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--coding"))
            b->coding = !strcmp(value, "f32")    ? DELTA_F32
                        : !strcmp(value, "bf16") ? DELTA_BF16
                                                 : (strcmp(value, "int8") ? 0 : DELTA_INT8);
        else if (!strcmp(argv[i], "--json"))
            b->json = value;
        else
            return false;
    }
    return b->most >= 1 && b->most <= MOST && b->coding;
}

int main(int argc, char **argv)
{
    struct bench b = {.most = 32, .coding = DELTA_F32, .top = "/tmp/bench_deltas.XXXXXX"};
    struct err err;
    char clean[128];
    live_main(argc, argv);
    live_arch(&smollm2);
    if (!parse(&b, argc, argv)) {
        fprintf(stderr, "usage: bench_deltas [--coding f32|bf16|int8] [--most 1..%d] [--json FILE]\n", MOST);
        return 2;
    }
    if (!mkdtemp(b.top)) {
        perror("bench_deltas");
        return 1;
    }
    buf_printf(&b.out, "{\"bench\": \"deltas\", \"coding\": %d, \"rows\": [", (int)b.coding);
    printf(" N    MB each   deltas/s end to end   uploads/s   coordinator CPU s a delta   its peak MB before, after\n");
    static const uint32_t sizes[] = {1, 8, 32, 64, 256, MOST};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && sizes[i] <= b.most; i++) {
        struct result r;
        uint32_t n = sizes[i];
        measure(&b, n, &r);
        printf("%2u   %8.2f   %19.1f   %9.1f   %25.3f   %14.0f %7.0f\n", n, (double)r.bytes / 1e6, n / r.total_s,
               n / r.upload_s, r.cpu_s / n, r.idle_mb, r.peak_mb);
        fflush(stdout);
        buf_printf(&b.out,
                   "%s{\"n\": %u, \"bytes\": %llu, \"deltas_per_s\": %.2f, \"uploads_per_s\": %.2f, \"cpu_s\": "
                   "%.4f, \"idle_mb\": %.1f, \"peak_mb\": %.1f}",
                   i ? ", " : "", n, (unsigned long long)r.bytes, n / r.total_s, n / r.upload_s, r.cpu_s / n, r.idle_mb,
                   r.peak_mb);
    }
    buf_printf(&b.out, "]}\n");
    if (b.json)
        must("json", file_write_durable(b.json, b.out.data, b.out.len, 0644, &err), &err);
    buf_release(&b.out);
    snprintf(clean, sizeof clean, "rm -rf '%s'", b.top);
    return system(clean) ? 1 : 0;
}
