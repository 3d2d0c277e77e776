/* bench_workers: the coordinator's memory, idle and with 1, 16 and 64 workers that hold leases or wait for one.
 *
 * For each number a new line: text is pushed, the coordinator is started again (so that no write buffer is counted), and
 * workers of one pool key, each on its own CURVE connection, say hello, wait in a long poll for a task, keep the lease they
 * get and report progress; a worker that gets none in ten seconds goes on waiting. The resident set of the coordinator's
 * process is read before the first worker and at the end.
 *
 *     bench_workers [--json FILE]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "live.h"
#include "net/keys.h"
#include "proto/codec.h"

enum { WORKERS_MAX = 64, BATCH = 1024, BATCHES = 16, TEXT = 1024, WAIT_MS = 20000, POLL_MS = 20000, SERVE_S = 10 };

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

/* A pool key for all workers. */
static void make_pool(const char *line, const char *operator_join, const char *worker_join)
{
    struct err err;
    struct join join;
    struct keys *keys;
    struct curve_pair pair;
    must("join", join_read(operator_join, &join, &err), &err);
    must("keys", keys_open(line, &keys, &err), &err);
    join.role = ROLE_WORKER;
    name_set(&join.name, "pool", 4);
    must("keys", keys_add(keys, &join.name, ROLE_WORKER, NULL, 0, &pair, &err), &err);
    join.secret = pair.secret;
    must("join", join_write(worker_join, &join, &err), &err);
    keys_free(keys);
}

static void push(const char *join)
{
    static char text[BATCH][TEXT], ids[BATCH][16];
    static Alv__Record store[BATCH], *records[BATCH];
    struct client client;
    struct err err;
    struct rng rng;
    Alv__PushOpened *opened;
    rng_seed(&rng, 1);
    must("domain", client_domain(join, "notes", &err), &err);
    must("connect", client_open(&client, join, PLANE_INGEST, WAIT_MS, &err), &err);
    must("push", client_push_open(&client, "notes", "bench", WAIT_MS, &opened, &err), &err);
    for (uint64_t at = 0; at < BATCHES * BATCH; at += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            for (int k = 0; k < TEXT; k++)
                text[i][k] = (char)((k & 63) == 63 ? '\n' : 'a' + rng_below(&rng, 26));
            snprintf(ids[i], sizeof ids[i], "r%llu", (unsigned long long)at + i);
            alv__record__init(&store[i]);
            store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
            store[i].id = ids[i];
            store[i].text = (ProtobufCBinaryData){TEXT, (uint8_t *)text[i]};
            records[i] = &store[i];
        }
        Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
        batch.producer = opened->producer;
        batch.position = at;
        batch.n_records = BATCH;
        batch.records = records;
        must("push", client_ask(&client, VERB_PUSH_BATCH, &batch.base, WAIT_MS, NULL, &err), &err);
    }
    codec_free(&opened->base);
    client_close(&client);
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

static void measure(const char *top, uint16_t port, struct result *r)
{
    char line[600], operator_join[700], worker_join[700], log[700];
    struct err err;
    struct settings settings;
    struct card card;
    struct adapter_shape shape;
    static struct worker workers[WORKERS_MAX];
    memset(workers, 0, sizeof workers);
    snprintf(line, sizeof line, "%s/line%u", top, r->workers);
    snprintf(operator_join, sizeof operator_join, "%s/operator.join", line);
    snprintf(worker_join, sizeof worker_join, "%s/worker%u.join", top, r->workers);
    snprintf(log, sizeof log, "%s/log%u", top, r->workers);
    live_card(&card, &shape, &settings);
    must("init", live_init(line, port, &settings, NULL, 0, NULL, &err), &err);
    make_pool(line, operator_join, worker_join);

    pid_t pid = live_start(line, port, 0, NULL, log);
    push(operator_join);
    live_end(pid, SIGTERM);
    pid = live_start(line, port, 0, NULL, log);
    Alv__Control round = ALV__CONTROL__INIT;
    round.verb = ALV__CONTROL_VERB__CONTROL_ROUND;
    struct client client;
    must("restart", client_open(&client, operator_join, PLANE_INGEST, WAIT_MS, &err), &err);
    r->idle_mib = resident_mib(pid);
    for (unsigned i = 0; i < r->workers; i++)
        must("worker", client_open(&workers[i].client, worker_join, PLANE_WORK, WAIT_MS, &err), &err);
    must("round", client_control(operator_join, &round, NULL, &err), &err);
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

int main(int argc, char **argv)
{
    live_main(argc, argv);
    char top[] = "/tmp/bench_workers.XXXXXX", clean[600];
    struct result results[] = {{.workers = 1}, {.workers = 16}, {.workers = 64}};
    const char *json = argc == 3 && !strcmp(argv[1], "--json") ? argv[2] : NULL;
    if (argc != 1 && !json) {
        fprintf(stderr, "usage: bench_workers [--json FILE]\n");
        return 2;
    }
    if (!mkdtemp(top)) {
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
        measure(top, live_port(), r);
        double each = (r->mib - r->idle_mib) * 1024 / r->workers;
        printf("%7u  %11u  %17.1f  %12.1f  %12.1f\n", r->workers, r->leases, r->idle_mib, r->mib, each);
        fflush(stdout);
        if (out)
            fprintf(out, "%s{\"workers\":%u,\"leases\":%u,\"idle_mib\":%.1f,\"mib\":%.1f,\"kib_per_worker\":%.1f}",
                    i ? "," : "[", r->workers, r->leases, r->idle_mib, r->mib, each);
    }
    if (out && (fprintf(out, "]\n") < 0 || fclose(out))) {
        perror(json);
        return 1;
    }
    snprintf(clean, sizeof clean, "rm -rf '%s'", top);
    return system(clean) ? 1 : 0;
}
