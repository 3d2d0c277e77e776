/* Real CURVE sockets on loopback: who gets in, who does not, and what a hostile or lost peer costs. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "harness.h"
#include "net/request.h"
#include "net/socket.h"
#include "rig.h"

enum { BUSY_MS = 150, LONG_MS = 60000 }; /* LONG_MS: "not by time-out": a test that waits so long has failed */

static bool say_hello(struct rig *rig, const struct incoming *in)
{
    Alv__Ok ok = ALV__OK__INIT;
    if (in->verb == VERB_HELLO)
        rig_hello_ok(rig, in);
    else if (in->verb == VERB_PUSH_OPEN)
        endpoint_send_error(rig->endpoint, &in->from, in->request_id, ST_NOT_FOUND, "reached the core", 0, NULL);
    else
        endpoint_send(rig->endpoint, &in->from, (uint16_t)(in->verb + 1), in->request_id, &ok.base, NULL);
    return true;
}

static enum status hello_to(struct rig *rig, const struct join *join, enum plane plane, int timeout_ms,
                            char name[NAME_MAX_LEN + 1], struct err *err)
{
    struct conn *conn = NULL;
    Alv__Hello hello;
    ProtobufCMessage *reply = NULL;
    rig_fill_hello(&hello);
    enum status st = conn_open(rig->zmq, join, plane, -1, &conn, err);
    if (!st)
        st = conn_call(conn, VERB_HELLO, &hello.base, timeout_ms, &reply, err);
    if (!st && name)
        snprintf(name, NAME_MAX_LEN + 1, "%s", ((Alv__HelloOk *)reply)->line);
    codec_free(reply);
    conn_close(conn);
    return st;
}

static double counted(struct rig *rig, const char *plane, const char *result)
{
    return series_value(
        metrics_counter(rig->metrics, "alluvium_frames_total", "", "plane", plane, "result", result, NULL));
}

static void test_known_key_passes_on_the_planes_of_its_role(void)
{
    struct rig rig;
    struct err err = {{0}};
    rig_start(&rig, NULL, say_hello, NULL);
    struct join pool = rig_join(&rig, "pool-a", ROLE_WORKER, NULL), team = rig_join(&rig, "team", ROLE_OPERATOR, NULL);
    for (int p = 0; p < PLANES; p++) {
        char name[NAME_MAX_LEN + 1] = "";
        const struct join *join = p == PLANE_WORK ? &pool : &team;
        EXPECT_ST(hello_to(&rig, join, p, LONG_MS, name, &err), ST_OK, &err);
        EXPECT_STR(name, join->name.s); /* the name is the table's, not the message's */
        EXPECT_EQ(counted(&rig, plane_name(p), "ok"), 1);
    }
    struct join feed = rig_join(&rig, "feed", ROLE_PRODUCER, NULL);
    EXPECT_ST(hello_to(&rig, &feed, PLANE_WORK, LONG_MS, NULL, &err), ST_DENIED, &err);
    EXPECT(strstr(err.text, "producer feed may not say hello on work") != NULL);
    rig_stop(&rig);
}

static void test_same_machine(void)
{
    struct rig rig;
    struct err err = {{0}};
    char host[300];
    snprintf(host, sizeof host, "ipc:%s", harness_tmpdir());
    rig_start(&rig, host, say_hello, NULL);
    struct join join = rig_join(&rig, "op", ROLE_OPERATOR, NULL), stranger = join;
    struct curve_pair pair;
    curve_pair_new(&pair);
    stranger.secret = pair.secret;
    EXPECT_ST(hello_to(&rig, &join, PLANE_CONTROL, LONG_MS, NULL, &err), ST_OK, &err);
    EXPECT_ST(hello_to(&rig, &stranger, PLANE_CONTROL, LONG_MS, NULL, &err), ST_DENIED, &err);
    rig_stop(&rig);
}

static void test_unknown_key_is_refused_with_words(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct curve_pair pair;
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    curve_pair_new(&pair);
    join.secret = pair.secret;
    EXPECT_ST(hello_to(&rig, &join, PLANE_WORK, LONG_MS, NULL, &err), ST_DENIED, &err);
    EXPECT(strstr(err.text, "unknown there or revoked") != NULL);
    EXPECT_EQ(rig.seen, 0);
    rig_stop(&rig);
}

static void test_wrong_server_key(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct curve_pair other;
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    curve_pair_new(&other);
    join.server = other.public_key; /* the client believes another server */
    EXPECT_ST(hello_to(&rig, &join, PLANE_WORK, 1500, NULL, &err), ST_TIMEOUT, &err);
    EXPECT(strstr(err.text, "server key") != NULL);
    EXPECT_EQ(rig.seen, 0);
    rig_stop(&rig);
}

static void test_revoked_on_the_next_message(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct conn *conn = NULL;
    struct keys *elsewhere = NULL;
    Alv__Hello hello;
    ProtobufCMessage *reply = NULL;
    rig_fill_hello(&hello);
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, -1, &conn, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    reply = NULL;
    EXPECT_ST(keys_open(rig.dir, &elsewhere, &err), ST_OK, &err); /* another process would do it so */
    EXPECT_ST(keys_revoke(elsewhere, &join.name, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_DENIED, &err);
    EXPECT_EQ(conn_generation(conn), 1); /* let in once */
    EXPECT_EQ(rig.seen, 1);
    /* the name gets a new key: the old connection stays out, the new one comes in */
    struct join again = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_DENIED, &err);
    EXPECT_ST(hello_to(&rig, &again, PLANE_WORK, LONG_MS, NULL, &err), ST_OK, &err);
    keys_free(elsewhere);
    conn_close(conn);
    rig_stop(&rig);
}

/* Waits until the connection is refused; says whether it broke first. Nothing is sent, so nothing but the revocation can
 * end the server's wait, which has no end of its own. */
static bool ended(struct conn *conn)
{
    bool down = false;
    for (;;) {
        enum conn_event event;
        struct reply r = {0};
        struct err err = {{0}};
        if (!EXPECT_ST(conn_recv(conn, LONG_MS, &event, &r, &err), ST_OK, &err) || !EXPECT(event != CONN_NONE))
            return false;
        if (event == CONN_REFUSED)
            return down && strstr(err.text, "revoked");
        down = down || event == CONN_DOWN;
        codec_free(r.message);
    }
}

/* Takes hello, and keeps any other request waiting for ever. */
static bool park(struct rig *rig, const struct incoming *in)
{
    return in->verb == VERB_HELLO ? say_hello(rig, in) : true;
}

static void revocation_ends(const char *host)
{
    enum { PARKED = 3 };
    struct rig rig;
    struct err err = {{0}};
    struct conn *parked[PARKED] = {0}, *silent = NULL, *other = NULL;
    struct keys *elsewhere = NULL;
    Alv__Hello hello;
    ProtobufCMessage *reply = NULL;
    Alv__TaskRequest ask = ALV__TASK_REQUEST__INIT;
    ask.wait_ms = LIMIT_WAIT_MS;
    ask.fingerprint = (char[]){"test"};
    rig_fill_hello(&hello);
    rig_start(&rig, host, park, NULL);
    struct join pool = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    struct join stays = rig_join(&rig, "pool-b", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &stays, PLANE_WORK, -1, &other, &err), ST_OK, &err);
    EXPECT_ST(conn_call(other, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    for (int i = 0; i < PARKED; i++) { /* many instances of one key, each in a long poll */
        EXPECT_ST(conn_open(rig.zmq, &pool, PLANE_WORK, -1, &parked[i], &err), ST_OK, &err);
        EXPECT_ST(conn_call(parked[i], VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
        codec_free(reply);
        EXPECT_ST(conn_send(parked[i], VERB_TASK_REQUEST, conn_next_id(parked[i]), &ask.base, &err), ST_OK, &err);
    }
    EXPECT_ST(conn_open(rig.zmq, &pool, PLANE_BULK, -1, &silent, &err), ST_OK, &err); /* shakes hands, says nothing */
    EXPECT_ST(conn_ready(silent, LONG_MS, &err), ST_OK, &err);
    EXPECT_ST(keys_open(rig.dir, &elsewhere, &err), ST_OK, &err);
    EXPECT_ST(keys_revoke(elsewhere, &pool.name, &err), ST_OK, &err); /* another process would do it so */
    for (int i = 0; i < PARKED; i++)
        EXPECT(ended(parked[i]));
    EXPECT(ended(silent));
    EXPECT_ST(conn_call(other, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    EXPECT_EQ(conn_generation(other), 1); /* nobody else's connection was touched */
    EXPECT_EQ(series_value(metrics_counter(rig.metrics, "alluvium_connections_ended_total", "", NULL)), PARKED + 1);
    for (int i = 0; i < PARKED; i++)
        conn_close(parked[i]);
    conn_close(silent);
    conn_close(other);
    keys_free(elsewhere);
    rig_stop(&rig);
}

static void test_revocation_ends_live_connections(void)
{
    char host[200];
    revocation_ends(NULL);
    snprintf(host, sizeof host, "ipc:%s", harness_tmpdir());
    revocation_ends(host);
}

static void test_roles_and_domains(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct conn *conn = NULL;
    ProtobufCMessage *reply = NULL;
    Alv__PushOpen open = ALV__PUSH_OPEN__INIT;
    Alv__ManifestGet get = ALV__MANIFEST_GET__INIT;
    rig_start(&rig, NULL, say_hello, NULL);
    struct join worker = rig_join(&rig, "w", ROLE_WORKER, NULL);
    struct join producer = rig_join(&rig, "p", ROLE_PRODUCER, "ocaml");

    EXPECT_ST(conn_open(rig.zmq, &worker, PLANE_MODELS, -1, &conn, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_MANIFEST_GET, &get.base, LONG_MS, &reply, &err), ST_DENIED, &err);
    EXPECT(strstr(err.text, "worker w may not say manifest-get on models") != NULL);
    EXPECT_EQ(rig.seen, 0);
    conn_close(conn);

    EXPECT_ST(conn_open(rig.zmq, &producer, PLANE_INGEST, -1, &conn, &err), ST_OK, &err);
    open.source = (char *)(uintptr_t) "s";
    open.domain = (char *)(uintptr_t) "ocaml";
    EXPECT_ST(conn_call(conn, VERB_PUSH_OPEN, &open.base, LONG_MS, &reply, &err), ST_NOT_FOUND, &err);
    EXPECT_EQ(rig.seen, 1);
    open.domain = (char *)(uintptr_t) "erlang";
    EXPECT_ST(conn_call(conn, VERB_PUSH_OPEN, &open.base, LONG_MS, &reply, &err), ST_DENIED, &err);
    EXPECT_EQ(rig.seen, 1);
    EXPECT_EQ(counted(&rig, "ingest", "denied"), 1);
    conn_close(conn);
    rig_stop(&rig);
}

/* ---- the self-test and its negative controls */

static void *permissive_door(void *socket) /* lets everybody in, until its socket is told to stop */
{
    char part[256], id[256];
    for (;;) {
        int more = 1, n = 0, id_len = 0;
        size_t size = sizeof more;
        for (int i = 0; more; i++) {
            n = zmq_recv(socket, part, sizeof part, 0);
            if (n < 0) {
                zmq_close(socket);
                return NULL;
            }
            if (i == 1)
                memcpy(id, part, (size_t)(id_len = n));
            zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size);
        }
        zmq_send(socket, "1.0", 3, ZMQ_SNDMORE);
        zmq_send(socket, id, (size_t)id_len, ZMQ_SNDMORE);
        zmq_send(socket, "200", 3, ZMQ_SNDMORE);
        zmq_send(socket, "", 0, ZMQ_SNDMORE);
        zmq_send(socket, "", 0, ZMQ_SNDMORE);
        zmq_send(socket, "", 0, 0);
    }
}

static void test_self_test_fails_when_the_door_does_not_shut(void)
{
    struct err err = {{0}};
    struct endpoint_config config = {.host = "127.0.0.1", .port = 20000, .planes = 1};
    struct endpoint *endpoint = NULL;
    void *zmq = zmq_ctx_new();
    EXPECT_ST(zap_self_test(zmq, &err), ST_DENIED, &err); /* no handler at all */
    config.zmq = zmq;
    curve_pair_new(&config.server);
    EXPECT_ST(endpoint_open(&config, &endpoint, &err), ST_DENIED, &err);
    EXPECT(endpoint == NULL);
    zmq_ctx_term(zmq);

    pthread_t thread;
    zmq = zmq_ctx_new();
    void *door = zmq_socket(zmq, ZMQ_REP);
    REQUIRE(zmq_bind(door, "inproc://zeromq.zap.01") == 0);
    REQUIRE(pthread_create(&thread, NULL, permissive_door, door) == 0);
    EXPECT_ST(zap_self_test(zmq, &err), ST_DENIED, &err);
    EXPECT(strstr(err.text, "let in") != NULL);
    zmq_ctx_shutdown(zmq);
    pthread_join(thread, NULL);
    zmq_ctx_term(zmq);

    struct keys *keys = NULL;
    struct zap *zap = NULL, *second = NULL;
    zmq = zmq_ctx_new();
    EXPECT_ST(keys_open(harness_tmpdir(), &keys, &err), ST_OK, &err);
    EXPECT_ST(zap_start(zmq, keys, NULL, &zap, &err), ST_OK, &err);
    EXPECT_ST(zap_start(zmq, keys, NULL, &second, &err), ST_CONFLICT, &err);
    EXPECT_ST(zap_self_test(zmq, &err), ST_OK, &err);
    zap_stop(zap);
    keys_free(keys);
    zmq_ctx_term(zmq);
}

/* ---- hostile peers */

static void wait_for_event(void *monitor, int want)
{
    zmq_pollitem_t item = {monitor, 0, ZMQ_POLLIN, 0};
    int got = 0;
    while (got != want && zmq_poll(&item, 1, LONG_MS) > 0)
        got = socket_event(monitor);
    EXPECT_EQ(got, want);
}

static void open_raw(struct rig *rig, const struct join *join, const char *routing_id, void **socket, void **monitor)
{
    struct curve_pair me = {.secret = join->secret};
    char address[ENDPOINT_SIZE];
    CHECK(curve_public_of(&me.secret, &me.public_key));
    CHECK(join_endpoint(join->host, join->port, PLANE_WORK, address, NULL) == ST_OK);
    CHECK(socket_client(rig->zmq, &me, &join->server, socket, NULL) == ST_OK);
    CHECK(socket_monitor(rig->zmq, *socket, ZMQ_EVENT_ALL, monitor, NULL) == ST_OK);
    if (routing_id)
        CHECK(zmq_setsockopt(*socket, ZMQ_ROUTING_ID, routing_id, strlen(routing_id)) == 0);
    CHECK(zmq_connect(*socket, address) == 0);
    wait_for_event(*monitor, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
}

static void close_raw(void *socket, void *monitor)
{
    zmq_socket_monitor(socket, NULL, 0);
    zmq_close(monitor);
    zmq_close(socket);
}

static void test_hostile_messages_cost_their_sender_only(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct conn *good = NULL;
    void *bad, *monitor;
    Alv__Hello hello;
    ProtobufCMessage *reply = NULL;
    rig_fill_hello(&hello);
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "good", ROLE_WORKER, NULL), evil = rig_join(&rig, "evil", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, -1, &good, &err), ST_OK, &err);
    EXPECT_ST(conn_call(good, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);

    /* over the size: the connection ends */
    open_raw(&rig, &evil, NULL, &bad, &monitor);
    uint8_t *big = xcalloc(1, LIMIT_FRAME_BYTES + 1);
    EXPECT(zmq_send(bad, big, LIMIT_FRAME_BYTES + 1, 0) > 0);
    wait_for_event(monitor, ZMQ_EVENT_DISCONNECTED);
    close_raw(bad, monitor);
    EXPECT_EQ(rig.seen, 1);

    /* noise, an empty message, several parts, a frame with a broken body (answered) */
    open_raw(&rig, &evil, NULL, &bad, &monitor);
    struct rng rng;
    rng_seed(&rng, 1);
    for (int i = 0; i < 50; i++) {
        for (int k = 0; k < 200; k++)
            big[k] = (uint8_t)rng_u64(&rng);
        zmq_send(bad, big, 200, 0);
    }
    zmq_send(bad, "", 0, 0);
    zmq_send(bad, "one", 3, ZMQ_SNDMORE);
    zmq_send(bad, "two", 3, 0);
    struct buf frame = {0};
    struct frame answer;
    EXPECT_ST(frame_encode(VERB_HELLO, 99, &hello.base, &frame, &err), ST_OK, &err);
    frame.data[FRAME_HEADER_LEN] ^= 0xff;
    zmq_send(bad, frame.data, frame.len, 0);
    do {
        int n = zmq_recv(bad, big, LIMIT_FRAME_BYTES, 0);
        REQUIRE(n > 0 && !frame_decode(big, (size_t)n, &answer, NULL) && answer.verb == VERB_ERROR);
    } while (answer.request_id != 99);
    close_raw(bad, monitor);
    EXPECT_EQ(rig.seen, 1);
    EXPECT_EQ(counted(&rig, "work", "malformed"), 53);

    /* a peer that names its own route is not spoken to */
    open_raw(&rig, &evil, "victim", &bad, &monitor);
    frame.data[FRAME_HEADER_LEN] ^= 0xff;
    zmq_send(bad, frame.data, frame.len, 0);
    reply = NULL; /* the good one's answer comes after the bad one's was judged, or before: ask until it was */
    while (counted(&rig, "work", "malformed") < 54) {
        EXPECT_ST(conn_call(good, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
        codec_free(reply);
    }
    EXPECT(zmq_recv(bad, big, 16, ZMQ_DONTWAIT) < 0 && errno == EAGAIN);
    close_raw(bad, monitor);
    EXPECT_EQ(conn_generation(good), 1);
    conn_close(good);
    buf_release(&frame);
    free(big);
    rig_stop(&rig);
}

static void test_plaintext_and_garbage(void)
{
    struct rig rig;
    struct err err = {{0}};
    char address[ENDPOINT_SIZE];
    void *plain, *monitor;
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(join_endpoint(join.host, join.port, PLANE_WORK, address, &err), ST_OK, &err);
    plain = zmq_socket(rig.zmq, ZMQ_DEALER);
    int linger = 0;
    zmq_setsockopt(plain, ZMQ_LINGER, &linger, sizeof linger);
    REQUIRE(socket_monitor(rig.zmq, plain, ZMQ_EVENT_ALL, &monitor, &err) == ST_OK);
    REQUIRE(zmq_connect(plain, address) == 0);
    zmq_send(plain, "hello", 5, 0);
    wait_for_event(monitor, ZMQ_EVENT_DISCONNECTED);
    close_raw(plain, monitor);

    struct rng rng;
    rng_seed(&rng, 2);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)(join.port + PLANE_WORK))};
    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    for (int i = 0; i < 300; i++) {
        static const uint8_t greeting[] = {0xff, 0, 0, 0, 0, 0, 0, 0, 1, 0x7f, 3, 1, 'C', 'U', 'R', 'V', 'E'};
        uint8_t noise[600];
        for (size_t k = 0; k < sizeof noise; k++)
            noise[k] = (uint8_t)rng_u64(&rng);
        if (i % 2) { /* a good greeting first, then noise where the handshake should be */
            memset(noise, 0, 64);
            memcpy(noise, greeting, sizeof greeting);
        }
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        REQUIRE(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
        EXPECT(send(fd, noise, rng_below(&rng, sizeof noise), MSG_NOSIGNAL) >= 0);
        close(fd);
    }
    EXPECT_ST(hello_to(&rig, &join, PLANE_WORK, LONG_MS, NULL, &err), ST_OK, &err);
    EXPECT_EQ(rig.seen, 1);
    rig_stop(&rig);
}

static void test_unreadable_table_admits_nobody_for_now(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct conn *conn = NULL;
    Alv__Hello hello;
    ProtobufCMessage *reply = NULL;
    struct buf saved = {0};
    rig_fill_hello(&hello);
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    const char *path = harness_path(rig.dir, "keys.json");
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, -1, &conn, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    reply = NULL;
    EXPECT_ST(secret_read(path, 100000, &saved, &err), ST_OK, &err);
    EXPECT_ST(secret_write(path, "{", 1, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, 300, &reply, &err), ST_AGAIN, &err);
    EXPECT_EQ(rig.seen, 1);
    EXPECT_ST(secret_write(path, saved.data, saved.len, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_HELLO, &hello.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    conn_close(conn);
    buf_release(&saved);
    rig_stop(&rig);
}

/* ---- requests that survive */

struct script {
    int progress_seen, hellos;
    uint64_t busy_ms, retried_ms;
    uint64_t ids[8];
};

/* The first progress report is lost with its connection, the second is put off, the third is answered. */
static bool stumble(struct rig *rig, const struct incoming *in)
{
    struct script *s = rig->user;
    Alv__ProgressOk ok = ALV__PROGRESS_OK__INIT;
    if (in->verb == VERB_HELLO) {
        s->hellos++;
        rig_hello_ok(rig, in);
        return true;
    }
    s->ids[s->progress_seen++ % 8] = in->request_id;
    *(s->progress_seen == 2 ? &s->busy_ms : &s->retried_ms) = clock_ms();
    if (s->progress_seen == 1)
        return false;
    if (s->progress_seen == 2)
        endpoint_send_error(rig->endpoint, &in->from, in->request_id, ST_AGAIN, "busy", BUSY_MS, NULL);
    else
        endpoint_send(rig->endpoint, &in->from, VERB_PROGRESS_OK, in->request_id, &ok.base, NULL);
    return true;
}

static enum status count_ok(void *user, const Alv__HelloOk *ok, struct err *err)
{
    (void)ok, (void)err;
    ++*(int *)user;
    return ST_OK;
}

static void test_a_request_survives_a_restart_and_a_busy_server(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct script script = {0};
    struct conn *conn = NULL;
    ProtobufCMessage *reply = NULL;
    Alv__Hello hello;
    Alv__Progress progress = ALV__PROGRESS__INIT;
    int greeted = 0;
    rig_fill_hello(&hello);
    rig_start(&rig, NULL, stumble, &script);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, -1, &conn, &err), ST_OK, &err);
    conn_set_hello(conn, &hello, count_ok, &greeted);
    EXPECT_ST(conn_call(conn, VERB_PROGRESS, &progress.base, LONG_MS, &reply, &err), ST_OK, &err);
    codec_free(reply);
    EXPECT_EQ(conn_generation(conn), 2);
    conn_close(conn);
    rig_stop(&rig);
    EXPECT_EQ(script.progress_seen, 3);
    EXPECT(script.retried_ms - script.busy_ms >= BUSY_MS);                    /* no sooner than it was asked to */
    EXPECT(script.ids[0] == script.ids[1] && script.ids[1] == script.ids[2]); /* one request, one id */
    EXPECT(script.hellos == 2 && greeted == 2);                               /* hello on each connection */
}

static bool silent(struct rig *rig, const struct incoming *in)
{
    uint64_t one = 1;
    (void)in;
    return write(*(int *)rig->user, &one, sizeof one) == sizeof one;
}

/* What fell together does not come back together: each socket doubles its own pause, up to its own bound. */
static void test_back_off_is_bounded_and_differs(void)
{
    enum { SOCKETS = 32 };
    struct curve_pair me, server;
    struct err err = {{0}};
    void *zmq = zmq_ctx_new();
    int first[2] = {0}, differ[2] = {0};
    curve_pair_new(&me);
    curve_pair_new(&server);
    for (int i = 0; i < SOCKETS; i++) {
        int ms[2] = {0};
        size_t size = sizeof ms[0];
        void *s = NULL;
        if (!EXPECT_ST(socket_client(zmq, &me, &server.public_key, &s, &err), ST_OK, &err))
            return;
        EXPECT(zmq_getsockopt(s, ZMQ_RECONNECT_IVL, &ms[0], &size) == 0 && ms[0] >= 100 && ms[0] < 300);
        EXPECT(zmq_getsockopt(s, ZMQ_RECONNECT_IVL_MAX, &ms[1], &size) == 0 && ms[1] >= 5000 && ms[1] < 10000);
        for (int k = 0; k < 2; k++) {
            first[k] = i ? first[k] : ms[k];
            differ[k] += ms[k] != first[k];
        }
        zmq_close(s);
    }
    EXPECT(differ[0] > 0 && differ[1] > 0);
    zmq_ctx_term(zmq);
}

static void test_stop_flag_ends_every_wait(void)
{
    struct rig rig;
    struct err err = {{0}};
    struct conn *conn = NULL;
    ProtobufCMessage *reply = NULL;
    Alv__Progress progress = ALV__PROGRESS__INIT;
    int stop_fd = eventfd(0, EFD_CLOEXEC); /* raised by the server when the request arrives */
    rig_start(&rig, NULL, silent, &stop_fd);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, stop_fd, &conn, &err), ST_OK, &err);
    EXPECT_ST(conn_call(conn, VERB_PROGRESS, &progress.base, LONG_MS, &reply, &err), ST_STOPPED, &err);
    EXPECT_EQ(rig.seen, 1);
    conn_close(conn);
    rig_stop(&rig);
    close(stop_fd);
}

static void test_pipelining(void)
{
    enum { N = 200 };
    struct rig rig;
    struct err err = {{0}};
    struct conn *conn = NULL;
    Alv__Hello hello;
    rig_fill_hello(&hello);
    rig_start(&rig, NULL, say_hello, NULL);
    struct join join = rig_join(&rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(rig.zmq, &join, PLANE_WORK, -1, &conn, &err), ST_OK, &err);
    EXPECT_ST(conn_send(conn, VERB_HELLO, conn_next_id(conn), &hello.base, &err), ST_AGAIN, &err); /* not up yet */
    EXPECT_ST(conn_ready(conn, LONG_MS, &err), ST_OK, &err);
    uint64_t first = conn_next_id(conn) + 1;
    int sent = 0, got = 0;
    while (got < N) {
        enum conn_event event;
        struct reply r;
        while (sent < N && sent - got < 30 &&
               conn_send(conn, VERB_HELLO, first + (uint64_t)sent, &hello.base, &err) == ST_OK)
            sent++;
        REQUIRE(conn_wait(&conn, 1, NULL, 0, LONG_MS, &err) == ST_OK);
        while (conn_recv(conn, 0, &event, &r, &err) == ST_OK && event != CONN_NONE) {
            REQUIRE(event == CONN_REPLY);
            EXPECT(r.verb == VERB_HELLO_OK && r.request_id == first + (uint64_t)got);
            codec_free(r.message);
            got++;
        }
    }
    conn_close(conn);
    rig_stop(&rig);
}

int main(void)
{
    hash_start();
    RUN(test_known_key_passes_on_the_planes_of_its_role);
    RUN(test_same_machine);
    RUN(test_unknown_key_is_refused_with_words);
    RUN(test_wrong_server_key);
    RUN(test_revoked_on_the_next_message);
    RUN(test_revocation_ends_live_connections);
    RUN(test_roles_and_domains);
    RUN(test_self_test_fails_when_the_door_does_not_shut);
    RUN(test_hostile_messages_cost_their_sender_only);
    RUN(test_plaintext_and_garbage);
    RUN(test_unreadable_table_admits_nobody_for_now);
    RUN(test_a_request_survives_a_restart_and_a_busy_server);
    RUN(test_back_off_is_bounded_and_differs);
    RUN(test_stop_flag_ends_every_wait);
    RUN(test_pipelining);
    return harness_end();
}
