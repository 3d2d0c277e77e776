/* The coordinator as people run it: a process, a directory, CURVE sockets; killed, restarted, copied, starved. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/limits.h"
#include "coordinator/core/state.h"
#include "coordinator/dir.h"
#include "coordinator/streamlog.h"
#include "harness.h"
#include "live.h"
#include "proto/codec.h"
#include "proto/record.h"
#include "store/db.h"

enum { BATCH = 64, IN_FLIGHT = 4, WAIT_MS = 20000 };

static const char *line_dir(void)
{
    return harness_path(harness_tmpdir(), "line");
}

static const char *join_of(const char *dir)
{
    return harness_path(dir, "operator.join");
}

static bool init_line(const char *dir, uint16_t port)
{
    struct err err = {""};
    return EXPECT_ST(live_init(dir, port, NULL, NULL, 0, NULL, &err), ST_OK, &err);
}

/* A first run, in which an operator creates the domain. */
static bool with_domain(const char *dir, uint16_t port)
{
    struct err err = {""};
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    bool ok = EXPECT_ST(client_domain(join_of(dir), "notes", &err), ST_OK, &err);
    return EXPECT_EQ(live_end(pid, SIGTERM), 0) && ok;
}

static bool run_shell(const char *format, const char *a, const char *b)
{
    char command[2048];
    snprintf(command, sizeof command, format, a, b);
    return system(command) == 0;
}

/* ---- a producer that can start again ------------------------------------------------------------------------------ */

struct producer {
    uint64_t acked, total; /* records */
    struct digest rolling; /* over what was acked */
};

static void text_of(uint64_t i, char out[128])
{
    snprintf(out, 128, "record %llu of the stream, whose text is like no other: %016llx\n", (unsigned long long)i,
             (unsigned long long)(i * 0x9E3779B97F4A7C15u));
}

static void chain(struct digest *rolling, uint64_t first, uint64_t end)
{
    for (uint64_t i = first; i < end; i++) {
        char text[128];
        struct digest digest;
        text_of(i, text);
        struct record_view view = {.kind = ALV__RECORD_KIND__RECORD_TEXT,
                                   .id = {(const uint8_t *)"", 0},
                                   .group = {(const uint8_t *)"", 0},
                                   .text = {(const uint8_t *)text, strlen(text)}};
        record_digest(&view, &digest);
        record_chain(rolling, &view, &digest);
    }
}

/* The batch at `first`; valid until the next call. */
static const Alv__PushBatch *make_batch(uint64_t producer, uint64_t first, uint32_t n)
{
    static Alv__Record store[LIMIT_BATCH_RECORDS], *records[LIMIT_BATCH_RECORDS];
    static char texts[LIMIT_BATCH_RECORDS][128];
    static Alv__PushBatch batch;
    alv__push_batch__init(&batch);
    for (uint32_t i = 0; i < n; i++) {
        text_of(first + i, texts[i]);
        alv__record__init(&store[i]);
        store[i].kind = ALV__RECORD_KIND__RECORD_TEXT;
        store[i].text = (ProtobufCBinaryData){strlen(texts[i]), (uint8_t *)texts[i]};
        records[i] = &store[i];
    }
    batch.producer = producer;
    batch.position = first;
    batch.n_records = n;
    batch.records = records;
    return &batch;
}

static bool is_gone(pid_t pid) /* ended, but not yet waited for */
{
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == pid;
}

static pid_t kill_later(pid_t victim, uint64_t ms)
{
    pid_t killer = fork();
    if (killer == 0) {
        struct timespec t = {0, (long)ms * 1000000};
        nanosleep(&t, NULL); /* tidy: allowed, a random moment is what is wanted */
        kill(victim, SIGKILL);
        _exit(0);
    }
    return killer;
}

/* Pushes until `total` or until the coordinator is gone, with some batches in flight: an ack that left before its commit
 * is then ahead of the disk by as many. */
static void push_all(struct producer *p, struct client *c, uint64_t producer, pid_t coordinator)
{
    uint64_t sent = p->acked;
    struct err err = {""};
    while (p->acked < p->total) {
        while (sent < p->total && sent < p->acked + IN_FLIGHT * BATCH) {
            const Alv__PushBatch *batch = make_batch(producer, sent, BATCH);
            if (conn_send(c->conn, VERB_PUSH_BATCH, conn_next_id(c->conn), &batch->base, &err))
                break;
            sent += BATCH;
        }
        enum conn_event event;
        struct reply reply;
        if (!EXPECT_ST(conn_recv(c->conn, 100, &event, &reply, &err), ST_OK, &err))
            return;
        if (event != CONN_REPLY) {
            if (is_gone(coordinator))
                return;
            continue;
        }
        if (EXPECT_EQ(reply.verb, VERB_PUSH_ACK)) {
            uint64_t position = ((const Alv__PushAck *)reply.message)->position;
            EXPECT_EQ(position, p->acked + BATCH);
            chain(&p->rolling, p->acked, position);
            p->acked = position;
        }
        codec_free(reply.message);
        if (reply.verb != VERB_PUSH_ACK)
            return;
    }
}

/* Opens the stream (again), checks that nothing acknowledged is missing, and pushes on; `kill_ms` after it began to push
 * the coordinator is killed from outside (0: not). */
static void produce(struct producer *p, const char *dir, pid_t coordinator, uint64_t kill_ms)
{
    struct client c;
    struct err err = {""};
    Alv__PushOpened *opened = NULL;
    enum status st;
    if (!EXPECT_ST(client_open(&c, join_of(dir), PLANE_INGEST, WAIT_MS, &err), ST_OK, &err))
        return;
    while ((st = client_push_open(&c, "notes", "source", 300, &opened, &err)) == ST_TIMEOUT && !is_gone(coordinator))
        ;
    if (st) {
        EXPECT(is_gone(coordinator)); /* killed by the very opening */
    } else {
        struct digest rolling = p->rolling;
        EXPECT(opened->position >= p->acked);                     /* promise 1 */
        EXPECT(opened->position <= p->acked + IN_FLIGHT * BATCH); /* at most the batches whose acks were lost */
        chain(&rolling, p->acked, opened->position);
        EXPECT(!memcmp(rolling.b, opened->rolling.data, DIGEST_LEN)); /* and it is the text that was sent */
        p->acked = opened->position;
        p->rolling = rolling;
        pid_t killer = kill_ms ? kill_later(coordinator, kill_ms) : 0;
        push_all(p, &c, opened->producer, coordinator);
        if (killer)
            live_wait(killer);
        codec_free(&opened->base);
    }
    client_close(&c);
}

/* Every record that was pushed is in the log exactly once. */
static void verify_log(const char *dir, uint64_t records)
{
    struct streamlog *log = NULL;
    struct err err = {""};
    uint8_t *seen = calloc(records, 1);
    uint64_t n = 0;
    if (!EXPECT_ST(streamlog_open(harness_path(dir, "db"), harness_path(dir, "witness"), 1 << 20, false, &log, &err),
                   ST_OK, &err)) {
        free(seen);
        return;
    }
    struct bytes key, value;
    struct db_iter *iter = db_iter_open(streamlog_db(log), FAMILY_STREAM, (struct bytes){(const uint8_t *)"s", 1},
                                        (struct bytes){(const uint8_t *)"t", 1}, false);
    while (!db_iter_next(iter, &key, &value, &err)) {
        struct state_segment segment;
        char text[160] = "";
        unsigned long long i = 0;
        if (!EXPECT(state_segment_get(value, &segment) && segment.text.len < sizeof text))
            break;
        memcpy(text, segment.text.data, segment.text.len);
        if (!EXPECT(sscanf(text, "record %llu ", &i) == 1 && i < records && !seen[i]))
            break;
        seen[i] = 1;
        n++;
    }
    db_iter_close(&iter);
    EXPECT_EQ(n, records);
    streamlog_close(&log, &err);
    free(seen);
}

/* ---- killed -------------------------------------------------------------------------------------------------------- */

static void test_acked_records_survive_kills(void)
{
    static const char *const points[] = {
        "streamlog.before_commit=kill@2", "streamlog.after_commit=kill@3", "streamlog.after_witness=kill@2",
        "streamlog.before_commit=kill@5", "streamlog.after_commit=kill@6", "streamlog.after_witness=kill@7",
        "streamlog.after_commit=kill@1", /* the new session itself */
    };
    const char *dir = line_dir();
    uint16_t port = live_port();
    if (!init_line(dir, port))
        return;
    struct producer p = {0};
    if (!with_domain(dir, port))
        return;
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        pid_t pid = live_start(dir, port, 1 << 20, points[i], NULL);
        if (i == sizeof points / sizeof points[0] - 1) {
            EXPECT_EQ(live_wait(pid), 1000 + SIGKILL);
            continue;
        }
        p.total = p.acked + 100000 * BATCH; /* more than it gets to */
        produce(&p, dir, pid, 0);
        EXPECT_EQ(live_wait(pid), 1000 + SIGKILL); /* the point was reached */
    }
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    p.total = p.acked + 10 * BATCH;
    produce(&p, dir, pid, 0);
    EXPECT_EQ(p.acked, p.total);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
    verify_log(dir, p.total);
}

static void test_random_kills(void)
{
    const char *dir = harness_path(harness_tmpdir(), "random");
    uint16_t port = live_port();
    struct rng rng;
    struct producer p = {0};
    rng_seed(&rng, 20260);
    if (!init_line(dir, port) || !with_domain(dir, port))
        return;
    for (int i = 0; i < 12; i++) {
        uint64_t ms = 1 + rng_below(&rng, 80);
        pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
        if (i % 3 == 0) { /* while it starts */
            live_wait(kill_later(pid, ms));
        } else {
            p.total = p.acked + 100000 * BATCH; /* more than it gets to */
            produce(&p, dir, pid, ms);
        }
        EXPECT_EQ(live_end(pid, SIGKILL), 1000 + SIGKILL);
    }
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    p.total = p.acked + 2 * BATCH;
    produce(&p, dir, pid, 0);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
    verify_log(dir, p.acked);
}

/* ---- who may come in ------------------------------------------------------------------------------------------------ */

static void test_wrong_role_and_unknown_key_are_refused(void)
{
    const char *dir = harness_path(harness_tmpdir(), "roles"), *path = harness_path(harness_tmpdir(), "worker.join");
    uint16_t port = live_port();
    struct err err = {""};
    struct keys *keys = NULL;
    struct join join;
    struct curve_pair pair;
    struct client c;
    if (!init_line(dir, port))
        return;
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_CONTROL, WAIT_MS, &err), ST_OK, &err);
    client_close(&c);

    /* a worker, made while the coordinator runs, may not push */
    EXPECT_ST(keys_open(dir, &keys, &err), ST_OK, &err);
    EXPECT_ST(join_read(join_of(dir), &join, &err), ST_OK, &err);
    join.role = ROLE_WORKER;
    name_set(&join.name, "pool", 4);
    EXPECT_ST(keys_add(keys, &join.name, ROLE_WORKER, NULL, 0, &pair, &err), ST_OK, &err);
    join.secret = pair.secret;
    EXPECT_ST(join_write(path, &join, &err), ST_OK, &err);
    static const enum plane closed[] = {PLANE_INGEST, PLANE_MODELS, PLANE_CONTROL};
    for (size_t i = 0; i < sizeof closed / sizeof closed[0]; i++) {
        EXPECT_ST(client_open(&c, path, closed[i], WAIT_MS, &err), ST_DENIED, &err);
        EXPECT(strstr(err.text, "worker pool may not say hello") != NULL);
        client_close(&c);
    }

    /* a key nobody knows does not get past the handshake */
    curve_pair_new(&pair);
    join.secret = pair.secret;
    EXPECT_ST(join_write(path, &join, &err), ST_OK, &err);
    EXPECT(client_open(&c, path, PLANE_WORK, 3000, &err) == ST_DENIED);
    client_close(&c);
    keys_free(keys);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

/* A connection of a new key, waiting in a long poll that nothing will answer. */
static bool park(const char *dir, enum role role, enum plane plane, uint16_t verb, const ProtobufCMessage *poll,
                 struct client *c)
{
    const char *path = harness_path(harness_tmpdir(), "parked.join");
    struct err err = {""};
    struct keys *keys = NULL;
    struct join join;
    struct curve_pair pair;
    bool ok = EXPECT_ST(keys_open(dir, &keys, &err), ST_OK, &err) &&
              EXPECT_ST(join_read(join_of(dir), &join, &err), ST_OK, &err);
    join.role = role;
    name_set(&join.name, role_name(role), strlen(role_name(role)));
    ok = ok && EXPECT_ST(keys_add(keys, &join.name, role, NULL, 0, &pair, &err), ST_OK, &err);
    join.secret = pair.secret;
    ok = ok && EXPECT_ST(join_write(path, &join, &err), ST_OK, &err) &&
         EXPECT_ST(client_open(c, path, plane, WAIT_MS, &err), ST_OK, &err) &&
         EXPECT_ST(conn_send(c->conn, verb, conn_next_id(c->conn), poll, &err), ST_OK, &err) &&
         EXPECT_ST(keys_revoke(keys, &join.name, &err), ST_OK, &err);
    keys_free(keys);
    return ok;
}

/* The connection breaks, with no message of ours and before the poll's own time, and knocking again is answered with no. */
static bool turned_out(struct client *c)
{
    enum conn_event event = CONN_NONE;
    struct reply reply = {0};
    struct err err = {""};
    bool down = false, answered = false;
    do {
        if (!EXPECT_ST(conn_recv(c->conn, WAIT_MS, &event, &reply, &err), ST_OK, &err))
            return false;
        down = down || event == CONN_DOWN;
        answered = answered || event == CONN_REPLY;
        codec_free(reply.message);
        reply.message = NULL;
    } while (event != CONN_REFUSED && event != CONN_NONE);
    return event == CONN_REFUSED && down && !answered && strstr(err.text, "revoked");
}

static void test_revocation_ends_parked_polls(void)
{
    const char *dir = harness_path(harness_tmpdir(), "revoked");
    uint16_t port = live_port();
    struct client worker = {0}, subscriber = {0};
    Alv__TaskRequest task = ALV__TASK_REQUEST__INIT;
    Alv__Watch watch = ALV__WATCH__INIT;
    task.wait_ms = watch.wait_ms = LIMIT_WAIT_MS;
    task.fingerprint = (char[]){"test"};
    watch.alias_seq = UINT32_MAX; /* nothing is news */
    if (!init_line(dir, port))
        return;
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    if (EXPECT(park(dir, ROLE_WORKER, PLANE_WORK, VERB_TASK_REQUEST, &task.base, &worker)))
        EXPECT(turned_out(&worker));
    if (EXPECT(park(dir, ROLE_SUBSCRIBER, PLANE_MODELS, VERB_WATCH, &watch.base, &subscriber)))
        EXPECT(turned_out(&subscriber));
    client_close(&worker);
    client_close(&subscriber);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

/* The release after this one speaks its own protocol and ours; the one after that no longer does. */
static void test_releases_next_to_each_other(void)
{
    const char *dir = harness_path(harness_tmpdir(), "protocols");
    uint16_t port = live_port();
    struct err err = {""};
    struct client c;
    ProtobufCMessage *reply = NULL;
    if (!init_line(dir, port))
        return;
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    static const enum plane planes[] = {PLANE_INGEST, PLANE_MODELS, PLANE_CONTROL, PLANE_BULK};
    for (size_t i = 0; i < sizeof planes / sizeof planes[0]; i++) {
        Alv__Hello hello = ALV__HELLO__INIT;
        EXPECT_ST(client_open(&c, join_of(dir), planes[i], WAIT_MS, &err), ST_OK, &err);
        conn_set_hello(c.conn, NULL, NULL, NULL);
        hello.instance = (ProtobufCBinaryData){sizeof c.instance, c.instance};
        hello.boot = 2;
        hello.protocol_min = PROTOCOL_VERSION;
        hello.protocol_max = PROTOCOL_VERSION + 1;
        EXPECT_ST(client_ask(&c, VERB_HELLO, &hello.base, WAIT_MS, &reply, &err), ST_OK, &err);
        EXPECT_EQ(((const Alv__HelloOk *)reply)->protocol, PROTOCOL_VERSION);
        codec_free(reply);
        hello.protocol_min = PROTOCOL_VERSION + 1;
        EXPECT_ST(client_ask(&c, VERB_HELLO, &hello.base, WAIT_MS, NULL, &err), ST_UNSUPPORTED, &err);
        EXPECT(strstr(err.text, "run releases next to each other") != NULL);
        client_close(&c);
    }
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

/* ---- one directory, one coordinator ---------------------------------------------------------------------------------- */

static void test_a_directory_has_one_coordinator(void)
{
    const char *dir = harness_path(harness_tmpdir(), "single");
    uint16_t port = live_port();
    struct err err = {""};
    struct client c;
    if (!init_line(dir, port))
        return;
    EXPECT_ST(live_init(dir, port, NULL, NULL, 0, NULL, &err), ST_CONFLICT, &err);
    char address[LIMIT_HOST_BYTES + 1];
    uint16_t told = 0;
    EXPECT_ST(line_dir_where(dir, address, &told, &err), ST_OK, &err);
    EXPECT_EQ(told, port);
    EXPECT_STR(address, "127.0.0.1");
    pid_t pid = live_start(dir, 0, 1 << 20, NULL, NULL); /* no port is given: the line's own */
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_CONTROL, WAIT_MS, &err), ST_OK, &err);
    client_close(&c);
    EXPECT_EQ(live_wait(live_start(dir, port, 1 << 20, NULL, NULL)), 10 - ST_CONFLICT);
    struct line_dir locked;
    char pid_text[32];
    snprintf(pid_text, sizeof pid_text, "process %ld", (long)pid);
    EXPECT_ST(line_dir_open(dir, &locked, &err), ST_CONFLICT, &err);
    EXPECT(strstr(err.text, pid_text) != NULL);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

static void test_a_killed_init_is_repeated(void)
{
    const char *dir = harness_path(harness_tmpdir(), "again"), *mark = harness_path(dir, "init-unfinished");
    struct err err = {""};
    if (!init_line(dir, live_port()))
        return;
    FILE *f = fopen(mark, "w"); /* as if it had been killed just before its last act */
    EXPECT(f && !fclose(f));
    EXPECT_EQ(live_wait(live_start(dir, live_port(), 1 << 20, NULL, NULL)), 10 - ST_CONFIG);
    EXPECT(init_line(dir, live_port()));
    EXPECT(access(mark, F_OK) != 0);
    struct line_dir read_back;
    EXPECT_ST(line_dir_open(dir, &read_back, &err), ST_OK, &err);
    EXPECT_STR(read_back.line.s, "test-line");
    line_dir_close(&read_back);
    const char *foreign = harness_tmpdir();
    f = fopen(harness_path(foreign, "mine"), "w");
    EXPECT(f && !fclose(f));
    EXPECT_ST(live_init(foreign, 0, NULL, NULL, 0, NULL, &err), ST_CONFLICT, &err);
}

/* One damaged byte in what makes the line itself is noticed at the start, not when a version does not verify. */
static void test_damaged_files_are_refused(void)
{
    static const char *const names[] = {"seed", "release.key", "release.cert", "server.key"};
    const char *dir = harness_path(harness_tmpdir(), "damaged");
    struct err err = {""};
    struct line_dir opened;
    if (!init_line(dir, live_port()))
        return;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const char *path = harness_path(dir, names[i]);
        struct buf good = {0};
        EXPECT_ST(file_read(path, 4096, &good, &err), ST_OK, &err);
        for (size_t at = 0; at < good.len; at++) {
            good.data[at] ^= 1;
            EXPECT_ST(file_write_durable(path, good.data, good.len, 0600, &err), ST_OK, &err);
            enum status st = line_dir_open(dir, &opened, &err);
            EXPECT(st != ST_OK);
            if (!st)
                line_dir_close(&opened);
            good.data[at] ^= 1;
        }
        EXPECT_ST(file_write_durable(path, good.data, good.len, 0600, &err), ST_OK, &err);
        buf_release(&good);
    }
    EXPECT_ST(line_dir_open(dir, &opened, &err), ST_OK, &err);
    line_dir_close(&opened);
    EXPECT_EQ(rename(harness_path(dir, "keys.json"), harness_path(dir, "k")), 0);
    EXPECT_ST(line_dir_open(dir, &opened, &err), ST_NOT_FOUND, &err);
}

static void test_a_copied_directory_is_refused_by_its_peers(void)
{
    const char *dir = harness_path(harness_tmpdir(), "original"), *copy = harness_path(harness_tmpdir(), "copy");
    uint16_t port = live_port();
    struct err err = {""};
    struct client c;
    if (!init_line(dir, port))
        return;
    EXPECT(run_shell("cp -a '%s' '%s'", dir, copy));
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_INGEST, WAIT_MS, &err), ST_OK, &err);
    uint64_t session = c.session;
    uint8_t incarnation[16];
    memcpy(incarnation, c.incarnation, 16);
    client_close(&c);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);

    pid = live_start(copy, port, 1 << 20, NULL, NULL); /* comes to the same counter, under another incarnation */
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_INGEST, WAIT_MS, &err), ST_OK, &err);
    EXPECT_EQ(c.session, session);
    EXPECT(memcmp(c.incarnation, incarnation, 16) != 0);
    EXPECT(client_hello(&c, session, incarnation, 3000, &err) != ST_OK);
    client_close(&c);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);

    pid = live_start(dir, port, 1 << 20, NULL, NULL); /* the original goes on */
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_INGEST, WAIT_MS, &err), ST_OK, &err);
    EXPECT_ST(client_hello(&c, session, incarnation, 5000, &err), ST_OK, &err);
    client_close(&c);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

/* ---- the disk ---------------------------------------------------------------------------------------------------------- */

static void test_a_lost_tail_is_found(void)
{
    const char *dir = harness_path(harness_tmpdir(), "tail"), *old = harness_path(harness_tmpdir(), "old-db");
    const char *db = harness_path(dir, "db");
    uint16_t port = live_port();
    if (!init_line(dir, port))
        return;
    EXPECT(run_shell("cp -a '%s' '%s'", db, old));
    struct producer p = {.total = 2 * BATCH};
    if (!with_domain(dir, port))
        return;
    pid_t pid = live_start(dir, port, 1 << 20, NULL, NULL);
    produce(&p, dir, pid, 0);
    EXPECT_EQ(p.acked, p.total);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
    EXPECT(run_shell("rm -rf '%s'", db, "") && run_shell("cp -a '%s' '%s'", old, db));
    EXPECT_EQ(live_wait(live_start(dir, port, 1 << 20, NULL, NULL)), 10 - ST_CORRUPT);
}

static void test_a_nearly_full_disk_puts_pushes_off(void)
{
    const char *dir = harness_path(harness_tmpdir(), "full");
    uint16_t port = live_port();
    struct statvfs fs;
    struct err err = {""};
    struct client c;
    Alv__PushOpened *opened = NULL;
    if (!init_line(dir, port) || !EXPECT(!statvfs(dir, &fs)))
        return;
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize; /* a reserve of 60 %: below twice the reserve */
    pid_t pid = live_start(dir, port, free_bytes / 10 * 6, NULL, NULL);
    EXPECT_ST(client_open(&c, join_of(dir), PLANE_INGEST, WAIT_MS, &err), ST_OK, &err);
    enum status st = client_push_open(&c, "general", "s", 10000, &opened, &err);
    if (!st)
        st = client_ask(&c, VERB_PUSH_BATCH, &make_batch(opened->producer, 0, BATCH)->base, 2500, NULL, &err);
    EXPECT(st == ST_AGAIN || st == ST_TIMEOUT); /* asked again and again until the time was up */
    if (opened)
        codec_free(&opened->base);
    client_close(&c);
    EXPECT_EQ(live_end(pid, SIGTERM), 0);
}

/* ---- anchor ------------------------------------------------------------------------------------------------------------ */

static void write_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    EXPECT(f && fputs(text, f) >= 0 && !fclose(f));
}

static void test_init_takes_in_anchor_text(void)
{
    const char *dir = harness_tmpdir(), *good = harness_path(dir, "good.jsonl"), *plain = harness_path(dir, "plain");
    const char *bad = harness_path(dir, "bad.jsonl"), *full = harness_path(dir, "full");
    struct err err = {""};
    struct coordinator_init_report report = {0};
    write_text(good, "{\"text\":\"one\",\"id\":\"a\"}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"},"
                     "{\"role\":\"assistant\",\"content\":\"hello\"}]}\n{\"text\":\"one\",\"id\":\"b\"}\n");
    write_text(plain, "A paragraph.\n\nAnother one.\n");
    write_text(bad, "{\"text\":\"fine\"}\n{\"text\":7}\n");
    const char *files[] = {good, plain};
    EXPECT_ST(live_init(harness_path(dir, "anchored"), 0, NULL, files, 2, &report, &err), ST_OK, &err);
    EXPECT_EQ(report.records, 3);
    EXPECT_EQ(report.duplicates, 1);
    EXPECT_EQ(report.refused, 0);
    EXPECT_EQ(report.segments + report.held_out, 3);
    EXPECT_ST(live_init(harness_path(dir, "spoilt"), 0, NULL, &bad, 1, &report, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "bad.jsonl:2") != NULL);
    write_text(bad, " \n\n");
    EXPECT_ST(live_init(harness_path(dir, "spoilt"), 0, NULL, &bad, 1, &report, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "no text in it") != NULL);
    EXPECT_ST(live_init(harness_path(dir, "anchored"), 0, NULL, NULL, 0, NULL, &err), ST_CONFLICT, &err);
    EXPECT(strstr(err.text, "holds a line already") != NULL);
    EXPECT(run_shell("mkdir '%s' && touch '%s/x'", full, full));
    EXPECT_ST(live_init(full, 0, NULL, NULL, 0, NULL, &err), ST_CONFLICT, &err);
    EXPECT(access(harness_path(full, "lock"), F_OK) != 0); /* nothing is left in what is not ours */
    EXPECT_EQ(truncate(bad, 1 << 30), 0);                  /* a line without end is not read into memory */
    EXPECT_ST(live_init(harness_path(dir, "spoilt"), 0, NULL, &bad, 1, &report, &err), ST_LIMIT, &err);
    EXPECT(strstr(err.text, "bad.jsonl:3: a line of more than") != NULL);
    EXPECT_ST(live_init(harness_path(dir, "spoilt"), 0, NULL, files, 2, &report, &err), ST_OK, &err);
}

int main(int argc, char **argv)
{
    live_main(argc, argv);
    RUN(test_init_takes_in_anchor_text);
    RUN(test_acked_records_survive_kills);
    RUN(test_random_kills);
    RUN(test_wrong_role_and_unknown_key_are_refused);
    RUN(test_revocation_ends_parked_polls);
    RUN(test_releases_next_to_each_other);
    RUN(test_a_directory_has_one_coordinator);
    RUN(test_a_killed_init_is_repeated);
    RUN(test_damaged_files_are_refused);
    RUN(test_a_copied_directory_is_refused_by_its_peers);
    RUN(test_a_lost_tail_is_found);
    RUN(test_a_nearly_full_disk_puts_pushes_off);
    return harness_end();
}
