#include "net/zap.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "net/socket.h"

static const char zap_address[] = "inproc://zeromq.zap.01";

enum result { OK, UNKNOWN, MALFORMED, UNAVAILABLE, RESULTS };

struct zap {
    pthread_t thread;
    struct keys *keys;
    void *socket;             /* REP, the thread's */
    void *stop_in, *stop_out; /* PAIR: a message, or its end, stops the thread */
    struct series *counts[RESULTS];
    _Atomic uint64_t beat_ms; /* when the thread last waited for a handshake */
};

/* ---- one request */

enum { FRAMES = 7, FRAME_BYTES = 255, BEAT_MS = 1000 };

struct request {
    int n;
    size_t len[FRAMES];
    uint8_t data[FRAMES][FRAME_BYTES + 1];
};

static bool receive(void *socket, struct request *r)
{
    int more = 1;
    size_t size = sizeof more;
    *r = (struct request){0};
    for (int i = 0; more; i++) {
        uint8_t spare[FRAME_BYTES + 1], *to = i < FRAMES ? r->data[i] : spare;
        int n = zmq_recv(socket, to, FRAME_BYTES, 0);
        if (n < 0 || zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &size) < 0)
            return false;
        if (i < FRAMES)
            r->len[i] = (size_t)n;
        r->n = i + 1;
    }
    return true;
}

static bool is(const struct request *r, int i, const char *want)
{
    return r->len[i] == strlen(want) && !memcmp(r->data[i], want, r->len[i]);
}

static enum result judge(struct keys *keys, const struct request *r, char user[CURVE_Z85_SIZE])
{
    struct key_grant grant;
    if (r->n != FRAMES || !is(r, 0, "1.0") || !is(r, 2, ZAP_DOMAIN) || !is(r, 5, "CURVE") || r->len[6] != 32)
        return MALFORMED;
    if (!zmq_z85_encode(user, r->data[6], 32))
        return MALFORMED;
    switch (keys_find(keys, user, &grant, NULL)) {
    case ST_OK:
        return OK;
    case ST_AGAIN:
        return UNAVAILABLE;
    default:
        return UNKNOWN;
    }
}

static bool answer(void *socket, const struct request *r, enum result result, const char *user)
{
    static const char *const status[RESULTS] = {"200", "400", "400", "300"};
    static const char *const text[RESULTS] = {"OK", "this key is unknown or revoked", "CURVE only", "come again"};
    const char *user_id = result == OK ? user : "";
    size_t id_len = r->n > 1 && r->len[1] <= FRAME_BYTES ? r->len[1] : 0;
    return zmq_send(socket, "1.0", 3, ZMQ_SNDMORE) >= 0 && zmq_send(socket, r->data[1], id_len, ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, status[result], 3, ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, text[result], strlen(text[result]), ZMQ_SNDMORE) >= 0 &&
           zmq_send(socket, user_id, strlen(user_id), ZMQ_SNDMORE) >= 0 && zmq_send(socket, "", 0, 0) >= 0;
}

static void *run(void *arg)
{
    struct zap *z = arg;
    zmq_pollitem_t items[] = {{z->socket, 0, ZMQ_POLLIN, 0}, {z->stop_in, 0, ZMQ_POLLIN, 0}};
    for (;;) {
        struct request r;
        char user[CURVE_Z85_SIZE] = "";
        atomic_store(&z->beat_ms, clock_ms());
        if (zmq_poll(items, 2, BEAT_MS) < 0 && errno != EINTR)
            break;
        if (items[1].revents)
            return NULL;
        if (!(items[0].revents & ZMQ_POLLIN))
            continue;
        if (!receive(z->socket, &r))
            break;
        enum result result = judge(z->keys, &r, user);
        series_inc(z->counts[result]);
        if (!answer(z->socket, &r, result, user))
            break;
    }
    /* Nobody new gets in from here on, which is safe; but a coordinator that lets nobody in should not linger. */
    log_error("zap", "the door's thread failed: %s", zmq_strerror(errno));
    abort();
}

/* ---- life */

bool zap_alive(const struct zap *z)
{
    return clock_ms() - atomic_load(&z->beat_ms) < 10 * BEAT_MS;
}

static enum status open_sockets(void *zmq, struct zap *z, struct err *err)
{
    char address[64];
    int linger = 0;
    z->socket = zmq_socket(zmq, ZMQ_REP);
    z->stop_in = zmq_socket(zmq, ZMQ_PAIR);
    z->stop_out = zmq_socket(zmq, ZMQ_PAIR);
    snprintf(address, sizeof address, "inproc://alluvium.zap.%p", (void *)z);
    if (!z->socket || !z->stop_in || !z->stop_out ||
        zmq_setsockopt(z->socket, ZMQ_LINGER, &linger, sizeof linger) < 0 || zmq_bind(z->stop_in, address) < 0 ||
        zmq_connect(z->stop_out, address) < 0)
        return err_set(err, ST_IO, "zap: cannot make its sockets: %s", zmq_strerror(errno));
    if (zmq_bind(z->socket, zap_address) < 0)
        return err_set(err, errno == EADDRINUSE ? ST_CONFLICT : ST_IO, "zap: cannot bind %s: %s", zap_address,
                       zmq_strerror(errno));
    return ST_OK;
}

static void close_sockets(struct zap *z)
{
    void *sockets[] = {z->socket, z->stop_in, z->stop_out};
    for (size_t i = 0; i < sizeof sockets / sizeof sockets[0]; i++)
        if (sockets[i])
            zmq_close(sockets[i]);
}

enum status zap_start(void *zmq, struct keys *keys, struct metrics *metrics, struct zap **out, struct err *err)
{
    static const char *const results[RESULTS] = {"ok", "unknown", "malformed", "unavailable"};
    struct zap *z = xcalloc(1, sizeof *z);
    z->keys = keys;
    z->beat_ms = clock_ms();
    for (int i = 0; i < RESULTS; i++)
        z->counts[i] = metrics_counter(metrics, "alluvium_handshakes_total", "CURVE handshakes by result", "result",
                                       results[i], NULL);
    enum status st = open_sockets(zmq, z, err);
    int rc = st ? 0 : pthread_create(&z->thread, NULL, run, z);
    if (rc)
        st = err_set(err, ST_IO, "zap: cannot start its thread: %s", strerror(rc));
    if (st) {
        close_sockets(z);
        free(z);
        return st;
    }
    *out = z;
    return ST_OK;
}

void zap_stop(struct zap *z)
{
    if (!z)
        return;
    CHECK(zmq_send(z->stop_out, "", 0, 0) == 0);
    CHECK(pthread_join(z->thread, NULL) == 0);
    close_sockets(z);
    free(z);
}

/* ---- the self-test */

struct knock {
    void *server, *client, *monitor;
};

static enum status knock_open(void *zmq, struct knock *k, struct err *err)
{
    struct curve_pair server, stranger;
    char address[128];
    size_t size = sizeof address;
    curve_pair_new(&server);
    curve_pair_new(&stranger);
    enum status st = socket_server(zmq, &server, &k->server, err);
    if (!st)
        st = socket_client(zmq, &stranger, &server.public_key, &k->client, err);
    if (!st)
        st = socket_monitor(zmq, k->client,
                            ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                                ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL,
                            &k->monitor, err);
    if (!st &&
        (zmq_bind(k->server, "tcp://127.0.0.1:*") < 0 ||
         zmq_getsockopt(k->server, ZMQ_LAST_ENDPOINT, address, &size) < 0 || zmq_connect(k->client, address) < 0))
        st = err_set(err, ST_IO, "self-test: cannot bind and connect on loopback: %s", zmq_strerror(errno));
    return st;
}

static void knock_close(struct knock *k)
{
    if (k->monitor) {
        zmq_socket_monitor(k->client, NULL, 0);
        zmq_close(k->monitor);
    }
    if (k->client)
        zmq_close(k->client);
    if (k->server)
        zmq_close(k->server);
}

enum status zap_self_test(void *zmq, struct err *err)
{
    enum { WAIT_MS = 10000 };
    struct knock k = {0};
    enum status st = knock_open(zmq, &k, err);
    uint64_t end = clock_ms() + WAIT_MS;
    bool refused = false, let_in = false;
    while (!st && !refused && !let_in && clock_ms() < end) {
        zmq_pollitem_t items[] = {{k.monitor, 0, ZMQ_POLLIN, 0}, {k.server, 0, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, 100) < 0 && errno != EINTR)
            st = err_set(err, ST_IO, "self-test: %s", zmq_strerror(errno));
        int event = items[0].revents ? socket_event(k.monitor) : 0;
        if (event == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH)
            refused = true;
        else if (event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED || items[1].revents)
            let_in = true;
        else if (event) /* broken off without a verdict: there is no door-keeper, or it cannot read its table */
            break;
    }
    if (!st && !refused)
        st = err_set(err, ST_DENIED, "self-test: %s; refusing to serve",
                     let_in ? "a stranger was let in" : "a stranger was not refused by the key table");
    knock_close(&k);
    return st;
}
