/* bench_push: how fast one producer's records become durable, beside RocksDB alone on the same disk in the same run.
 *
 * A real coordinator (own process, CURVE on loopback) and the product's own pusher (client/push.h): one connection, records
 * of 1 KB with ids, batches of 1,024, a few in flight. A record counts when its ack is there; a batch's latency runs from the
 * moment its records are handed to the pusher. RocksDB alone: one put a record, the same bytes, synced batches of 1,024,
 * alternating with the pushes so that both see the same machine. Then the program `alluvium push` pushes a JSONL file of other
 * records, as a process of its own. Then the coordinator is killed, and the time to its first answer taken.
 *
 * Not timed: making the texts and the file, and waiting after each part until no database works in the background any more, so
 * that nobody's merging falls into another's time. CPU includes that work: the coordinator's is counted until it is idle
 * again. The client's is this process's while it pushes: copying records into batches, hashing, packing, CURVE, sockets.
 *
 *     bench_push [--records N] [--bytes N] [--in-flight N] [--dir DIR] [--json FILE]
 */
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "client/push.h"
#include "live.h"
#include "store/db.h"

enum { BATCH = 1024, ID_SIZE = 16, ROUNDS = 4, FILE_RECORDS_MAX = 196 * 1024 };

struct bench {
    uint64_t records, bytes, in_flight;
    const char *dir, *json;
    pid_t coordinator;
    char *texts; /* of one round's records */
    /* the push that is running */
    uint64_t first, n, given, acked;
    double *given_s; /* by batch */
    /* results */
    double push_s, client_cpu_s, rocks_s, restart_s, coordinator_cpu_s, file_s, file_cpu_s, file_coordinator_cpu_s;
    uint64_t pushed, file_records;
    double *latency;
    size_t n_latency;
};

static void fatal(const char *what, enum status st, const struct err *err)
{
    fprintf(stderr, "bench_push: %s: %s: %s\n", what, status_name(st), err->text);
    exit(1);
}

static void id_of(uint64_t record, char id[ID_SIZE])
{
    snprintf(id, ID_SIZE, "r%012llu", (unsigned long long)record);
}

/* Text-like and unique: words of letters, lines of 64. */
static void make_text(uint64_t record, char *t, uint64_t bytes)
{
    struct rng rng;
    char id[ID_SIZE];
    rng_seed(&rng, record);
    for (uint64_t k = 0; k < bytes; k += 8) {
        uint64_t v = rng_u64(&rng);
        for (uint64_t j = k; j < k + 8 && j < bytes; j++, v >>= 8)
            t[j] = (j & 63) == 63 ? '\n' : (v & 7) == 0 ? ' ' : (char)('a' + (v >> 3 & 15));
    }
    id_of(record, id);
    memcpy(t, id, 13);
}

/* ---- CPU ----------------------------------------------------------------------------------------------------------- */

/* User and system time of a process that still runs. */
static double cpu_of(pid_t pid)
{
    char path[64], line[1024] = "";
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%ld/stat", (long)pid);
    FILE *f = fopen(path, "re");
    if (f && fgets(line, sizeof line, f) && strrchr(line, ')'))
        sscanf(strrchr(line, ')') + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system);
    if (f)
        fclose(f);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static double own_cpu(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Until neither the coordinator nor this process does anything in the background. */
static void settle(const struct bench *b)
{
    double before, now = cpu_of(b->coordinator) + own_cpu();
    do {
        struct timespec pause = {0, 200000000};
        nanosleep(&pause, NULL); /* tidy: allowed, nobody tells when RocksDB is idle */
        before = now;
        now = cpu_of(b->coordinator) + own_cpu();
    } while (now - before > 0.015);
}

/* ---- the push ------------------------------------------------------------------------------------------------------ */

static enum status next(void *user, uint32_t records_max, size_t bytes_max, struct push_records *records, bool *end,
                        struct err *err)
{
    struct bench *b = user;
    (void)err;
    CHECK_EQ(records_max, BATCH);
    b->given_s[b->given / BATCH] = clock_s();
    for (int i = 0; i < BATCH; i++, b->given++) {
        char id[ID_SIZE];
        id_of(b->first + b->given, id);
        struct bytes text = {(const uint8_t *)b->texts + b->given * b->bytes, b->bytes};
        CHECK(push_records_add(records, bytes_max, ALV__RECORD_KIND__RECORD_TEXT,
                               (struct bytes){(const uint8_t *)id, strlen(id)}, (struct bytes){0}, text,
                               (struct push_place){0}));
    }
    *end = b->given == b->n;
    return ST_OK;
}

static void progress(void *user, enum push_state state, const struct push_totals *totals)
{
    struct bench *b = user;
    (void)state;
    for (; b->acked + BATCH <= totals->records - b->pushed; b->acked += BATCH)
        b->latency[b->n_latency++] = clock_s() - b->given_s[b->acked / BATCH];
}

static void push(struct bench *b, struct pusher *pusher, uint64_t first)
{
    char name[32];
    struct err err;
    struct push_input input = {.name = name, .next = next, .user = b};
    snprintf(name, sizeof name, "bench-%llu", (unsigned long long)first);
    b->first = first, b->given = b->acked = 0;
    double start = clock_s(), cpu = own_cpu(), coordinator_cpu = cpu_of(b->coordinator);
    enum status st = pusher_push(pusher, &input, &err);
    if (st)
        fatal("push", st, &err);
    b->push_s += clock_s() - start;
    b->client_cpu_s += own_cpu() - cpu;
    CHECK_EQ(pusher_totals(pusher)->accepted, b->pushed + b->n);
    b->pushed += b->n;
    settle(b);
    b->coordinator_cpu_s += cpu_of(b->coordinator) - coordinator_cpu;
}

/* ---- RocksDB alone ------------------------------------------------------------------------------------------------- */

static void rocks(struct bench *b, struct db *db, uint64_t first)
{
    struct batch batch = {0};
    struct err err;
    double start = clock_s();
    for (uint64_t at = 0; at < b->n; at += BATCH) {
        batch_clear(&batch);
        for (uint64_t i = at; i < at + BATCH; i++) {
            char id[ID_SIZE];
            id_of(first + i, id);
            batch_put(&batch, 0, id, strlen(id), b->texts + i * b->bytes, b->bytes);
        }
        enum status st = db_commit(db, &batch, true, &err);
        if (st)
            fatal("rocksdb", st, &err);
    }
    b->rocks_s += clock_s() - start;
    batch_release(&batch);
    settle(b);
}

/* ---- alluvium push ------------------------------------------------------------------------------------------------- */

static void write_file(const struct bench *b, const char *path)
{
    FILE *f = fopen(path, "we");
    char *text = malloc(b->bytes), id[ID_SIZE];
    CHECK(f && text);
    for (uint64_t i = 0; i < b->file_records; i++) {
        id_of(b->records + i, id);
        make_text(b->records + i, text, b->bytes);
        fprintf(f, "{\"id\":\"%s\",\"text\":\"", id);
        for (uint64_t k = 0; k < b->bytes; k++)
            if (text[k] == '\n')
                fputs("\\n", f);
            else
                fputc(text[k], f);
        fputs("\"}\n", f);
    }
    free(text);
    if (fclose(f)) {
        perror(path);
        exit(1);
    }
}

static void push_file(struct bench *b, const char *join, const char *path)
{
    extern char **environ;
    char window[32];
    snprintf(window, sizeof window, "--window=%llu", (unsigned long long)b->in_flight);
    const char *argv[] = {ALLUVIUM_PROGRAM, "push", "--join", join, "bench", path, "--quiet", window, NULL};
    pid_t pid;
    int status;
    struct rusage usage;
    double start = clock_s(), coordinator_cpu = cpu_of(b->coordinator);
    CHECK_EQ(posix_spawn(&pid, argv[0], NULL, NULL, (char **)(uintptr_t)argv, environ), 0);
    CHECK_EQ(wait4(pid, &status, 0, &usage), pid);
    b->file_s = clock_s() - start;
    if (status) {
        fprintf(stderr, "bench_push: %s push failed\n", argv[0]);
        exit(1);
    }
    b->file_cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                    (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    settle(b);
    b->file_coordinator_cpu_s = cpu_of(b->coordinator) - coordinator_cpu;
}

/* ---- report -------------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void report(struct bench *b)
{
    qsort(b->latency, b->n_latency, sizeof *b->latency, by_value);
    double n = (double)b->pushed, rate = n / b->push_s, rocks_rate = n / b->rocks_s;
    double p50 = b->latency[b->n_latency / 2] * 1e3, p99 = b->latency[b->n_latency * 99 / 100] * 1e3;
    double coordinator = b->coordinator_cpu_s * 1e6 / n, client = b->client_cpu_s * 1e6 / n;
    double files = (double)b->file_records, file_rate = files / b->file_s;
    double file_client = b->file_cpu_s * 1e6 / files, file_coordinator = b->file_coordinator_cpu_s * 1e6 / files;
    char text[1024];
    snprintf(text, sizeof text,
             "{\"records\":%llu,\"record_bytes\":%llu,\"batch\":%d,\"in_flight\":%llu,\"push_records_per_s\":%.0f,"
             "\"rocksdb_records_per_s\":%.0f,\"ratio\":%.3f,\"ack_p50_ms\":%.2f,\"ack_p99_ms\":%.2f,"
             "\"coordinator_cpu_us_per_record\":%.2f,\"client_cpu_us_per_record\":%.2f,\"file_records\":%llu,"
             "\"file_records_per_s\":%.0f,\"file_client_cpu_us_per_record\":%.2f,"
             "\"file_coordinator_cpu_us_per_record\":%.2f,\"restart_records\":%llu,\"restart_after_kill_s\":%.3f}",
             (unsigned long long)b->pushed, (unsigned long long)b->bytes, BATCH, (unsigned long long)b->in_flight, rate,
             rocks_rate, rate / rocks_rate, p50, p99, coordinator, client, (unsigned long long)b->file_records,
             file_rate, file_client, file_coordinator, (unsigned long long)(b->pushed + b->file_records), b->restart_s);
    printf("pushed      %10.0f records/s, acknowledged durably (%llu records of %llu bytes)\n", rate,
           (unsigned long long)b->pushed, (unsigned long long)b->bytes);
    printf("rocksdb     %10.0f records/s alone; ratio %.3f\n", rocks_rate, rate / rocks_rate);
    printf("ack         %10.2f ms p50, %.2f ms p99 (batches of %d, %llu in flight)\n", p50, p99, BATCH,
           (unsigned long long)b->in_flight);
    printf("cpu         %10.2f us a record at the coordinator, %.2f at the client\n", coordinator, client);
    printf(
        "a file      %10.0f records/s by `alluvium push` of %llu JSON lines; cpu %.2f us a record at the coordinator, "
        "%.2f at the client\n",
        file_rate, (unsigned long long)b->file_records, file_coordinator, file_client);
    printf("restart     %10.3f s from kill -9 to the first answer, with %llu records in the log\n", b->restart_s,
           (unsigned long long)(b->pushed + b->file_records));
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
    *b = (struct bench){.records = 400 * 1024, .bytes = 1024, .in_flight = PUSH_WINDOW};
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
    if (argc % 2 == 0 || b->bytes < 32 || b->bytes > 4096 || !b->in_flight || b->in_flight > PUSH_WINDOW_MAX ||
        b->records < ROUNDS * BATCH) {
        fprintf(stderr,
                "usage: bench_push [--records N] [--bytes 32..4096] [--in-flight 1..%d] [--dir DIR] "
                "[--json FILE]\n",
                PUSH_WINDOW_MAX);
        exit(2);
    }
    b->n = b->records / (ROUNDS * BATCH) * BATCH;
    b->records = b->n * ROUNDS;
    b->file_records = b->records < FILE_RECORDS_MAX ? b->records : FILE_RECORDS_MAX;
    b->texts = malloc(b->n * b->bytes);
    b->given_s = calloc(b->n / BATCH, sizeof *b->given_s);
    b->latency = calloc(b->records / BATCH, sizeof *b->latency);
    CHECK(b->texts && b->given_s && b->latency);
}

static void rounds(struct bench *b, const struct join *join, struct db *db)
{
    struct pusher *pusher;
    struct err err;
    struct push_options po = {.join = join,
                              .domain = "bench",
                              .window = (uint32_t)b->in_flight,
                              .stop_fd = -1,
                              .progress = progress,
                              .user = b};
    enum status st = pusher_open(&po, &pusher, &err);
    if (st)
        fatal("connect", st, &err);
    for (uint64_t first = 0; first < b->records; first += b->n) {
        for (uint64_t i = 0; i < b->n; i++)
            make_text(first + i, b->texts + i * b->bytes, b->bytes);
        push(b, pusher, first);
        rocks(b, db, first);
    }
    pusher_close(&pusher);
}

int main(int argc, char **argv)
{
    live_main(argc, argv);
    static struct bench b;
    struct client client;
    struct err err;
    char top[] = "/tmp/bench_push.XXXXXX", line[512], alone[512], join_path[600], clean[600], log[600], file[600];
    options(&b, argc, argv);
    const char *dir = b.dir ? b.dir : mkdtemp(top);
    if (!dir || (b.dir && mkdir(dir, 0700) && errno != EEXIST)) {
        perror("bench_push");
        return 1;
    }
    snprintf(line, sizeof line, "%s/line", dir);
    snprintf(alone, sizeof alone, "%s/alone", dir);
    snprintf(join_path, sizeof join_path, "%s/operator.join", line);
    snprintf(log, sizeof log, "%s/log", dir);
    snprintf(file, sizeof file, "%s/records.jsonl", dir);
    uint16_t port = live_port();
    struct settings settings;
    struct card card;
    struct adapter_shape shape;
    struct join join;
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
    write_file(&b, file);

    b.coordinator = live_start(line, port, 0, NULL, log);
    if ((st = client_domain(join_path, "bench", &err)) || (st = join_read(join_path, &join, &err)))
        fatal("connect", st, &err);
    rounds(&b, &join, db);
    push_file(&b, join_path, file);
    live_end(b.coordinator, SIGKILL);

    double start = clock_s();
    b.coordinator = live_start(line, port, 0, NULL, log);
    if ((st = client_open(&client, join_path, PLANE_INGEST, 20000, &err)))
        fatal("restart", st, &err);
    b.restart_s = clock_s() - start;
    client_close(&client);
    live_end(b.coordinator, SIGTERM);
    db_close(&db);
    report(&b);
    if (!b.dir) {
        snprintf(clean, sizeof clean, "rm -rf '%s'", dir);
        if (system(clean))
            return 1;
    }
    return 0;
}
