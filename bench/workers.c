/* bench_workers: the coordinator's memory with 1 to 1,000 workers that hold leases or wait for one, and the time from a push
 * to the leases it fills.
 *
 * Memory. For each number a new line: text is pushed, the coordinator is started again (so that no write buffer is counted),
 * and workers of one pool key, each on its own CURVE connection, say hello, wait in a long poll for a task, keep the lease
 * they get and report progress; a worker that gets none in ten seconds goes on waiting. The resident set of the coordinator's
 * process is read before the first worker and at the end. Limit: 64 KiB a worker.
 *
 * Leases. 64 workers wait; one batch with text enough for all of them is pushed, so that the planner waits for nothing. From
 * the sending of the batch to the arrival of each lease; beside it, the batch's own ack. Limit: a median of 100 ms.
 *
 *     bench_workers [--json FILE]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "live.h"
#include "proto/codec.h"

enum {
    WORKERS_MAX = 1000,
    LEASED = 64, /* workers of the second part, a lease each */
    TRIALS = 5,
    BATCH = 1024,
    BATCHES = 16,
    TEXT = 3584, /* bytes of a record: one batch is 64 leases of the default size */
    WAIT_MS = 60000,
    POLL_MS = 30000,
    SERVE_S = 10,
    GATHER_MS = 600 /* over what the planner waits for more workers to come */
};

static void *zmq; /* all workers' */

struct result {
    unsigned workers, leases;
    double idle_mib, mib;
};

static void must(const char *what, enum status st, const struct err *err)
{
    if (!st)
        return;
    fprintf(stderr, "bench_workers: %s: %s: %s\n", what, status_name(st), err->text);
    exit(1);
}

static double resident_mib(pid_t pid)
{
    char path[64], line[256];
    double kib = 0;
    snprintf(path, sizeof path, "/proc/%ld/status", (long)pid);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmRSS:", 6))
            kib = strtod(line + 6, NULL);
    if (f)
        fclose(f);
    return kib / 1024;
}

struct source {
    struct client client;
    Alv__PushOpened *opened;
    char text[BATCH][TEXT], ids[BATCH][16];
    Alv__Record store[BATCH], *records[BATCH];
    Alv__PushBatch batch;
};

static struct source *source_open(const char *join)
{
    struct source *s = xcalloc(1, sizeof *s);
    struct err err;
    must("domain", client_domain(join, "notes", &err), &err);
    must("connect", client_open(&s->client, join, PLANE_INGEST, WAIT_MS, &err), &err);
    must("push", client_push_open(&s->client, "notes", "bench", WAIT_MS, &s->opened, &err), &err);
    return s;
}

static void source_fill(struct source *s, uint64_t at)
{
    struct rng rng;
    rng_seed(&rng, at + 1);
    for (int i = 0; i < BATCH; i++) {
        for (int k = 0; k < TEXT; k++)
            s->text[i][k] = (char)((k & 63) == 63 ? '\n' : 'a' + rng_below(&rng, 26));
        snprintf(s->ids[i], sizeof s->ids[i], "r%llu", (unsigned long long)at + i);
        alv__record__init(&s->store[i]);
        s->store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
        s->store[i].id = s->ids[i];
        s->store[i].text = (ProtobufCBinaryData){TEXT, (uint8_t *)s->text[i]};
        s->records[i] = &s->store[i];
    }
    alv__push_batch__init(&s->batch);
    s->batch.producer = s->opened->producer;
    s->batch.position = at;
    s->batch.n_records = BATCH;
    s->batch.records = s->records;
}

static void source_close(struct source *s)
{
    codec_free(&s->opened->base);
    client_close(&s->client);
    free(s);
}

static void push(const char *join)
{
    struct source *s = source_open(join);
    struct err err;
    for (uint64_t at = 0; at < BATCHES * BATCH; at += BATCH) {
        source_fill(s, at);
        must("push", client_ask(&s->client, VERB_PUSH_BATCH, &s->batch.base, WAIT_MS, NULL, &err), &err);
    }
    source_close(s);
}

struct worker {
    struct client client;
    bool lease;
};

/* A long poll: the answer is a task as soon as there is one. */
static void ask(struct worker *w)
{
    struct err err;
    Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
    request.wait_ms = POLL_MS;
    request.fingerprint = (char[]){"bench"};
    request.tokens_per_s = 100;
    must("task", conn_send(w->client.conn, VERB_TASK_REQUEST, conn_next_id(w->client.conn), &request.base, &err), &err);
}

/* Takes a lease if one has come and reports progress on it; says whether there was one. */
static bool take(struct worker *w)
{
    struct err err;
    enum conn_event event;
    struct reply reply = {0};
    must("receive", conn_recv(w->client.conn, 1, &event, &reply, &err), &err);
    if (event != CONN_REPLY || reply.verb != VERB_TASK) {
        codec_free(reply.message);
        return false;
    }
    const Alv__Task *task = (const Alv__Task *)reply.message;
    Alv__Progress progress = ALV__PROGRESS__INIT;
    if (task->lease) {
        progress.task = task->lease->id;
        progress.generation = task->lease->generation;
        progress.total = 1000;
        progress.tokens_per_s = 100;
        must("progress", client_ask(&w->client, VERB_PROGRESS, &progress.base, WAIT_MS, NULL, &err), &err);
        w->lease = true;
    } else {
        ask(w);
    }
    codec_free(reply.message);
    return w->lease;
}

struct line {
    char dir[600], operator_join[700], worker_join[700], log[700];
};

static void make_line(const char *top, const char *name, struct line *l)
{
    struct err err;
    struct settings settings;
    struct card card;
    struct adapter_shape shape;
    snprintf(l->dir, sizeof l->dir, "%s/%s", top, name);
    snprintf(l->operator_join, sizeof l->operator_join, "%s/operator.join", l->dir);
    snprintf(l->worker_join, sizeof l->worker_join, "%s/%s.join", top, name);
    snprintf(l->log, sizeof l->log, "%s/%s.log", top, name);
    live_card(&card, &shape, &settings);
    must("init", live_init(l->dir, live_port(), &settings, NULL, 0, NULL, &err), &err);
    must("keys", live_key(l->dir, l->operator_join, ROLE_WORKER, "pool", l->worker_join, &err), &err);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Milliseconds from one push to its ack, and to the lease of each worker; false: not every worker got one. */
static bool push_to_lease(const char *top, int trial, double *ack_ms, double lease_ms[LEASED])
{
    char name[16];
    struct line l;
    struct err err;
    static struct worker workers[LEASED];
    struct conn *conns[LEASED + 1];
    unsigned n = 0;
    memset(workers, 0, sizeof workers);
    snprintf(name, sizeof name, "push%d", trial);
    make_line(top, name, &l);
    pid_t pid = live_start(l.dir, live_port(), 0, NULL, l.log);
    struct source *s = source_open(l.operator_join);
    for (int i = 0; i < LEASED; i++) {
        must("worker", client_open_on(zmq, &workers[i].client, l.worker_join, PLANE_WORK, WAIT_MS, &err), &err);
        conns[i] = workers[i].client.conn;
        ask(&workers[i]);
    }
    conns[LEASED] = s->client.conn;
    source_fill(s, 0);
    enum conn_event none;
    struct reply nothing = {0};
    must("wait", conn_recv(s->client.conn, GATHER_MS, &none, &nothing, &err), &err);
    double began = clock_s(), end = began + SERVE_S;
    *ack_ms = 0;
    must("push", conn_send(s->client.conn, VERB_PUSH_BATCH, conn_next_id(s->client.conn), &s->batch.base, &err), &err);
    while ((n < LEASED || !*ack_ms) && clock_s() < end)
        for (int i = 0; i <= LEASED; i++) {
            enum conn_event event;
            struct reply reply = {0};
            must("receive", conn_recv(conns[i], 0, &event, &reply, &err), &err);
            double ms = (clock_s() - began) * 1000;
            if (event == CONN_REPLY && i == LEASED)
                *ack_ms = ms;
            else if (event == CONN_REPLY && reply.verb == VERB_TASK && ((const Alv__Task *)reply.message)->lease)
                lease_ms[n++] = ms;
            codec_free(reply.message);
        }
    for (int i = 0; i < LEASED; i++)
        client_close(&workers[i].client);
    source_close(s);
    live_end(pid, SIGTERM);
    return n == LEASED;
}

static void measure(const char *top, struct result *r)
{
    char name[16];
    struct line l;
    struct err err;
    static struct worker workers[WORKERS_MAX];
    memset(workers, 0, sizeof workers);
    snprintf(name, sizeof name, "line%u", r->workers);
    make_line(top, name, &l);
    pid_t pid = live_start(l.dir, live_port(), 0, NULL, l.log);
    push(l.operator_join);
    live_end(pid, SIGTERM);
    pid = live_start(l.dir, live_port(), 0, NULL, l.log);
    Alv__Control round = ALV__CONTROL__INIT;
    round.verb = ALV__CONTROL_VERB__CONTROL_ROUND;
    struct client client;
    must("restart", client_open(&client, l.operator_join, PLANE_INGEST, WAIT_MS, &err), &err);
    r->idle_mib = resident_mib(pid);
    for (unsigned i = 0; i < r->workers; i++)
        must("worker", client_open_on(zmq, &workers[i].client, l.worker_join, PLANE_WORK, WAIT_MS, &err), &err);
    must("round", client_control(l.operator_join, &round, NULL, &err), &err);
    for (unsigned i = 0; i < r->workers; i++)
        ask(&workers[i]);
    double end = clock_s() + SERVE_S;
    while (r->leases < r->workers && clock_s() < end)
        for (unsigned i = 0; i < r->workers; i++)
            if (!workers[i].lease)
                r->leases += take(&workers[i]);
    must("hello", client_hello(&client, 0, NULL, WAIT_MS, &err), &err); /* it has read what came before */
    r->mib = resident_mib(pid);
    for (unsigned i = 0; i < r->workers; i++)
        client_close(&workers[i].client);
    client_close(&client);
    live_end(pid, SIGTERM);
}

static void leases(const char *top, FILE *out)
{
    static double all[TRIALS * LEASED];
    double acks[TRIALS];
    int n = 0;
    for (int t = 0; t < TRIALS; t++) {
        if (!push_to_lease(top, t, &acks[t], all + n)) {
            fprintf(stderr, "bench_workers: not every worker got a lease\n");
            exit(1);
        }
        n += LEASED;
    }
    qsort(all, (size_t)n, sizeof *all, by_size);
    qsort(acks, TRIALS, sizeof *acks, by_size);
    double median = all[n / 2], p99 = all[n * 99 / 100];
    printf("\npush to lease, %d workers, %d pushes: median %.1f ms, 99 %% %.1f ms; the push's own ack %.1f ms\n",
           LEASED, TRIALS, median, p99, acks[TRIALS / 2]);
    if (out)
        fprintf(out, ",\"leases\":{\"workers\":%d,\"median_ms\":%.1f,\"p99_ms\":%.1f,\"ack_ms\":%.1f}", LEASED, median,
                p99, acks[TRIALS / 2]);
}

int main(int argc, char **argv)
{
    live_main(argc, argv);
    char top[] = "/tmp/bench_workers.XXXXXX", clean[600];
    struct result results[] = {{.workers = 1}, {.workers = 16}, {.workers = 64}, {.workers = WORKERS_MAX}};
    const char *json = argc == 3 && !strcmp(argv[1], "--json") ? argv[2] : NULL;
    if (argc != 1 && !json) {
        fprintf(stderr, "usage: bench_workers [--json FILE]\n");
        return 2;
    }
    if (!mkdtemp(top) || !(zmq = zmq_ctx_new()) || zmq_ctx_set(zmq, ZMQ_MAX_SOCKETS, 4 * WORKERS_MAX) < 0) {
        perror("bench_workers");
        return 1;
    }
    FILE *out = json ? fopen(json, "we") : NULL;
    if (json && !out) {
        perror(json);
        return 1;
    }
    printf("workers  leases held  resident MiB idle  with workers  KiB a worker\n");
    for (size_t i = 0; i < sizeof results / sizeof results[0]; i++) {
        struct result *r = &results[i];
        measure(top, r);
        double each = (r->mib - r->idle_mib) * 1024 / r->workers;
        printf("%7u  %11u  %17.1f  %12.1f  %12.1f\n", r->workers, r->leases, r->idle_mib, r->mib, each);
        fflush(stdout);
        if (out)
            fprintf(out, "%s{\"workers\":%u,\"leases\":%u,\"idle_mib\":%.1f,\"mib\":%.1f,\"kib_per_worker\":%.1f}",
                    i ? "," : "{\"memory\":[", r->workers, r->leases, r->idle_mib, r->mib, each);
    }
    if (out)
        fprintf(out, "]");
    leases(top, out);
    if (out && (fprintf(out, "}\n") < 0 || fclose(out))) {
        perror(json);
        return 1;
    }
    zmq_ctx_term(zmq);
    snprintf(clean, sizeof clean, "rm -rf '%s'", top);
    return system(clean) ? 1 : 0;
}
