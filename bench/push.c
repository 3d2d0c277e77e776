/* bench_push: how fast one producer's records become durable, beside RocksDB alone on the same disk in the same run.
 *
 * A real coordinator (own process, CURVE on loopback), one connection, records of 1 KB, batches of 1,024, a few in
 * flight; an ack counts when it arrives. RocksDB alone: one put a record, the same bytes, synced batches of 1,024, alternating
 * with the pushes so that both see the same machine. Then the coordinator is killed and the time to its first answer taken.
 *
 *     bench_push [--records N] [--bytes N] [--in-flight N] [--dir DIR] [--json FILE]
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "live.h"
#include "proto/codec.h"
#include "store/db.h"

enum { BATCH = 1024, ID_SIZE = 16, IN_FLIGHT_MAX = 64, ROUNDS = 4 };

struct bench {
    uint64_t records, bytes, in_flight;
    const char *dir, *json;
    /* one batch, filled again and again */
    Alv__Record store[BATCH], *records_of[BATCH];
    char ids[BATCH][ID_SIZE];
    char *text; /* BATCH * bytes */
    /* results */
    double push_s, rocks_s, restart_s, cpu_s, own_s; /* CPU: the coordinator's, this side's while pushing */
    uint64_t pushed, rocks_records;
    double *latency;
    size_t n_latency;
};

static void fatal(const char *what, enum status st, const struct err *err)
{
    fprintf(stderr, "bench_push: %s: %s: %s\n", what, status_name(st), err->text);
    exit(1);
}

/* Text-like and unique: words of letters, lines of 64. */
static void fill(struct bench *b, uint64_t first)
{
    struct rng rng;
    rng_seed(&rng, first);
    for (uint64_t i = 0; i < BATCH; i++) {
        char *t = b->text + i * b->bytes;
        for (uint64_t k = 0; k < b->bytes; k += 8) {
            uint64_t v = rng_u64(&rng);
            for (uint64_t j = k; j < k + 8 && j < b->bytes; j++, v >>= 8)
                t[j] = (j & 63) == 63 ? '\n' : (v & 7) == 0 ? ' ' : (char)('a' + (v >> 3 & 15));
        }
        snprintf(b->ids[i], ID_SIZE, "r%012llu", (unsigned long long)(first + i));
        memcpy(t, b->ids[i], 13);
        alv__record__init(&b->store[i]);
        b->store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
        b->store[i].id = b->ids[i];
        b->store[i].text.data = (uint8_t *)t;
        b->store[i].text.len = b->bytes;
        b->records_of[i] = &b->store[i];
    }
}

/* ---- the push --------------------------------------------------------------------------------------------------- */

/* CPU of this process so far, all threads. */
static double own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct flight {
    uint64_t id, end;
    double sent;
};

static void push(struct bench *b, struct client *c, uint64_t producer, uint64_t first, uint64_t n)
{
    struct flight flights[IN_FLIGHT_MAX];
    uint64_t head = 0, tail = 0, next = first;
    struct err err;
    double start = clock_s(), cpu = own_cpu();
    while (next < first + n || head < tail) {
        while (next < first + n && tail - head < b->in_flight) {
            Alv__PushBatch batch = ALV__PUSH_BATCH__INIT;
            fill(b, next);
            batch.producer = producer;
            batch.position = next;
            batch.n_records = BATCH;
            batch.records = b->records_of;
            struct flight *f = &flights[tail % IN_FLIGHT_MAX];
            *f = (struct flight){conn_next_id(c->conn), next + BATCH, clock_s()};
            enum status st = conn_send(c->conn, VERB_PUSH_BATCH, f->id, &batch.base, &err);
            if (st == ST_AGAIN)
                break;
            if (st)
                fatal("send", st, &err);
            tail++;
            next += BATCH;
        }
        enum conn_event event;
        struct reply reply = {0};
        enum status st = conn_recv(c->conn, 10000, &event, &reply, &err);
        if (st)
            fatal("receive", st, &err);
        if (event == CONN_NONE)
            fatal("receive", ST_TIMEOUT, &(struct err){"no ack in 10 s"});
        if (event != CONN_REPLY)
            continue;
        if (reply.verb == VERB_ERROR)
            fatal("push", codec_error_status((const Alv__Error *)reply.message, &err), &err);
        const Alv__PushAck *ack = (const Alv__PushAck *)reply.message;
        struct flight *f = &flights[head % IN_FLIGHT_MAX];
        if (reply.request_id == f->id && ack->position == f->end) {
            b->latency[b->n_latency++] = clock_s() - f->sent;
            head++;
        }
        codec_free(reply.message);
    }
    b->push_s += clock_s() - start;
    b->own_s += own_cpu() - cpu;
    b->pushed += n;
}

/* ---- RocksDB alone ------------------------------------------------------------------------------------------------ */

static void rocks(struct bench *b, struct db *db, uint64_t first, uint64_t n)
{
    struct batch batch = {0};
    struct err err;
    double spent = 0;
    for (uint64_t at = first; at < first + n; at += BATCH) {
        fill(b, at);
        double start = clock_s(); /* making the text is nobody's work here */
        batch_clear(&batch);
        for (uint64_t i = 0; i < BATCH; i++)
            batch_put(&batch, 0, b->ids[i], 13, b->text + i * b->bytes, b->bytes);
        enum status st = db_commit(db, &batch, true, &err);
        if (st)
            fatal("rocksdb", st, &err);
        spent += clock_s() - start;
    }
    batch_release(&batch);
    b->rocks_s += spent;
    b->rocks_records += n;
}

/* User and system time of a process that still runs. */
static void coordinator_cpu(pid_t pid, struct bench *b)
{
    char path[64], line[1024] = "";
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *f = fopen(path, "re");
    if (f && fgets(line, sizeof line, f) && strrchr(line, ')'))
        sscanf(strrchr(line, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    if (f)
        fclose(f);
    b->cpu_s = (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void report(struct bench *b)
{
    qsort(b->latency, b->n_latency, sizeof *b->latency, by_value);
    double rate = (double)b->pushed / b->push_s, rocks_rate = (double)b->rocks_records / b->rocks_s;
    double p50 = b->latency[b->n_latency / 2] * 1e3, p99 = b->latency[b->n_latency * 99 / 100] * 1e3;
    double cpu = b->cpu_s;
    char text[1024];
    snprintf(text, sizeof text,
             "{\"records\":%llu,\"record_bytes\":%llu,\"batch\":%d,\"in_flight\":%llu,\"push_records_per_s\":%.0f,"
             "\"rocksdb_records_per_s\":%.0f,\"ratio\":%.3f,\"ack_p50_ms\":%.2f,\"ack_p99_ms\":%.2f,"
             "\"restart_after_kill_s\":%.3f,\"coordinator_cpu_us_per_record\":%.2f,\"client_cpu_us_per_record\":%.2f}",
             (unsigned long long)b->pushed, (unsigned long long)b->bytes, BATCH, (unsigned long long)b->in_flight, rate,
             rocks_rate, rate / rocks_rate, p50, p99, b->restart_s, cpu * 1e6 / (double)b->pushed,
             b->own_s * 1e6 / (double)b->pushed);
    printf("pushed      %10.0f records/s, acknowledged durably (%llu records of %llu bytes)\n", rate,
           (unsigned long long)b->pushed, (unsigned long long)b->bytes);
    printf("rocksdb     %10.0f records/s alone; ratio %.3f\n", rocks_rate, rate / rocks_rate);
    printf("ack         %10.2f ms p50, %.2f ms p99 (batches of %d, %llu in flight)\n", p50, p99, BATCH,
           (unsigned long long)b->in_flight);
    printf("restart     %10.3f s from kill -9 to the first answer\n", b->restart_s);
    printf("coordinator %10.2f us of CPU a record\n", cpu * 1e6 / (double)b->pushed);
    printf("client      %10.2f us of CPU a record, making the text included\n", b->own_s * 1e6 / (double)b->pushed);
    if (b->json) {
        FILE *f = fopen(b->json, "we");
        if (!f || fprintf(f, "%s\n", text) < 0 || fclose(f)) {
            perror(b->json);
            exit(1);
        }
    }
}

static void options(struct bench *b, int argc, char **argv)
{
    *b = (struct bench){.records = 400 * 1024, .bytes = 1024, .in_flight = 4};
    for (int i = 1; i + 1 < argc; i += 2) {
        uint64_t n = strtoull(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--records"))
            b->records = n;
        else if (!strcmp(argv[i], "--bytes"))
            b->bytes = n;
        else if (!strcmp(argv[i], "--in-flight"))
            b->in_flight = n;
        else if (!strcmp(argv[i], "--dir"))
            b->dir = argv[i + 1];
        else if (!strcmp(argv[i], "--json"))
            b->json = argv[i + 1];
        else
            argc = 0;
    }
    if (argc % 2 == 0 || b->bytes < 32 || b->bytes > 4096 || !b->in_flight || b->in_flight > IN_FLIGHT_MAX ||
        b->records < ROUNDS * BATCH) {
        fprintf(stderr, "usage: bench_push [--records N] [--bytes 32..4096] [--in-flight 1..64] [--dir DIR] "
                        "[--json FILE]\n");
        exit(2);
    }
    b->records = b->records / (ROUNDS * BATCH) * (ROUNDS * BATCH);
}

int main(int argc, char **argv)
{
    live_main(argc, argv);
    static struct bench b;
    struct client client;
    struct err err;
    char top[] = "/tmp/bench_push.XXXXXX", line[512], alone[512], join[600], clean[600], log[600];
    options(&b, argc, argv);
    b.text = malloc(BATCH * b.bytes);
    b.latency = calloc(b.records / BATCH + 1, sizeof *b.latency);
    CHECK(b.text && b.latency);
    const char *dir = b.dir ? b.dir : mkdtemp(top);
    if (!dir || (b.dir && mkdir(dir, 0700) && errno != EEXIST)) {
        perror("bench_push");
        return 1;
    }
    snprintf(line, sizeof line, "%s/line", dir);
    snprintf(alone, sizeof alone, "%s/alone", dir);
    snprintf(join, sizeof join, "%s/operator.join", line);
    snprintf(log, sizeof log, "%s/log", dir);
    uint16_t port = live_port();
    struct settings settings;
    struct card card;
    struct adapter_shape shape;
    live_card(&card, &shape, &settings);
    settings.backlog_bytes = (uint64_t)64 << 30; /* nobody learns here */
    enum status st = live_init(line, port, &settings, NULL, 0, NULL, &err);
    if (st)
        fatal("init", st, &err);
    struct db *db;
    const char *const families[] = {"alone"};
    struct db_options dbo = {.families = families, .n_families = 1, .write_buffer_bytes = 16 << 20, .create = true};
    if ((st = db_open(alone, &dbo, &db, &err)))
        fatal("rocksdb", st, &err);

    pid_t pid = live_start(line, port, 0, NULL, log);
    Alv__PushOpened *opened;
    if ((st = client_domain(join, "bench", &err)) || (st = client_open(&client, join, PLANE_INGEST, 20000, &err)) ||
        (st = client_push_open(&client, "bench", "bench", 10000, &opened, &err)))
        fatal("connect", st, &err);
    for (uint64_t i = 0, n = b.records / ROUNDS; i < ROUNDS; i++) {
        push(&b, &client, opened->producer, i * n, n);
        rocks(&b, db, i * n, n);
    }
    codec_free(&opened->base);
    client_close(&client);
    coordinator_cpu(pid, &b);
    live_end(pid, SIGKILL);

    double start = clock_s();
    pid = live_start(line, port, 0, NULL, log);
    if ((st = client_open(&client, join, PLANE_INGEST, 20000, &err)))
        fatal("restart", st, &err);
    b.restart_s = clock_s() - start;
    client_close(&client);
    live_end(pid, SIGTERM);
    db_close(&db);
    report(&b);
    if (!b.dir) {
        snprintf(clean, sizeof clean, "rm -rf '%s'", dir);
        if (system(clean))
            return 1;
    }
    return 0;
}
