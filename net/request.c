#include "net/request.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"
#include "net/socket.h"

enum {
    RESEND_MS = LIMIT_WAIT_MS + 10000, /* silence on a standing connection: the longest poll, and some */
    REFUSED_MS = 1000,                 /* a refused key knocks again after this, doubling ... */
    REFUSED_MAX_MS = 30000,            /* ... up to this */
    QUEUE_FULL_MS = 10,
    AGAIN_MIN_MS = 50, /* ST_AGAIN without a time */
};

struct conn {
    void *socket, *monitor;
    int stop_fd;
    bool up, greeted;
    uint64_t generation; /* connections so far */
    uint64_t next_id;
    char address[ENDPOINT_SIZE], where[ENDPOINT_SIZE + 128];
    /* a refused handshake: not to be repeated at the library's pace */
    uint64_t knock_at_ms; /* 0: not refused */
    int knock_wait_ms;
    unsigned broken; /* handshakes that ended without a verdict, since the last good one */
    struct rng jitter;
    ProtobufCMessage *hello;
    conn_hello_ok *on_ok;
    void *on_ok_user;
};

/* ---- life */

static void describe(struct conn *c, const struct join *join)
{
    snprintf(c->where, sizeof c->where, "line %s at %s", join->line.s, c->address);
}

static enum status open_sockets(void *zmq, const struct join *join, struct conn *c, struct err *err)
{
    struct curve_pair me = {.secret = join->secret};
    if (!curve_public_of(&join->secret, &me.public_key) || !curve_key_valid(join->server.z85))
        return err_set(err, ST_CONFIG, "%s: a key of the join file is no CURVE key", c->where);
    enum status st = socket_client(zmq, &me, &join->server, &c->socket, err);
    curve_wipe(&me.secret);
    if (!st)
        st = socket_monitor(zmq, c->socket,
                            ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                                ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                                ZMQ_EVENT_DISCONNECTED,
                            &c->monitor, err);
    if (!st && zmq_connect(c->socket, c->address) < 0)
        st = err_set(err, ST_CONFIG, "%s: cannot connect: %s", c->where, zmq_strerror(errno));
    return st;
}

enum status conn_open(void *zmq, const struct join *join, enum plane plane, int stop_fd, struct conn **out,
                      struct err *err)
{
    struct conn *c = xcalloc(1, sizeof *c);
    uint64_t seed;
    c->stop_fd = stop_fd;
    c->knock_wait_ms = REFUSED_MS;
    random_bytes(&seed, sizeof seed);
    rng_seed(&c->jitter, seed);
    c->next_id = rng_u64(&c->jitter) >> 1; /* so that a late answer to an earlier process is nobody's */
    enum status st = join_endpoint(join->host, join->port, plane, c->address, err);
    describe(c, join);
    if (!st)
        st = open_sockets(zmq, join, c, err);
    if (st)
        conn_close(c);
    else
        *out = c;
    return st;
}

void conn_close(struct conn *c)
{
    if (!c)
        return;
    if (c->monitor) {
        zmq_socket_monitor(c->socket, NULL, 0);
        zmq_close(c->monitor);
    }
    if (c->socket)
        zmq_close(c->socket);
    codec_free(c->hello);
    free(c);
}

void conn_set_hello(struct conn *c, const Alv__Hello *hello, conn_hello_ok *on_ok, void *user)
{
    codec_free(c->hello);
    c->hello = NULL;
    c->greeted = false;
    c->on_ok = on_ok;
    c->on_ok_user = user;
    if (!hello)
        return;
    struct buf b = {0};
    protobuf_c_message_pack(&hello->base, buf_extend(&b, protobuf_c_message_get_packed_size(&hello->base)));
    CHECK(codec_decode(VERB_HELLO, buf_bytes(&b), &c->hello, NULL) == ST_OK); /* our own words */
    buf_release(&b);
}

bool conn_is_up(const struct conn *c)
{
    return c->up;
}

uint64_t conn_generation(const struct conn *c)
{
    return c->generation;
}

const char *conn_where(const struct conn *c)
{
    return c->where;
}

uint64_t conn_next_id(struct conn *c)
{
    return c->next_id++;
}

/* ---- events of the connection */

static void went_down(struct conn *c)
{
    c->up = false;
    c->greeted = false;
}

static enum conn_event on_refused(struct conn *c, struct err *err)
{
    went_down(c);
    err_set(err, ST_DENIED,
            "%s: refused this key: it is unknown there or revoked; ask the operator for a new join file", c->where);
    if (!c->knock_at_ms) { /* the library would knock many times a second */
        zmq_disconnect(c->socket, c->address);
        c->knock_at_ms =
            clock_ms() + (uint64_t)c->knock_wait_ms + rng_below(&c->jitter, (uint64_t)c->knock_wait_ms / 2);
        c->knock_wait_ms = c->knock_wait_ms * 2 < REFUSED_MAX_MS ? c->knock_wait_ms * 2 : REFUSED_MAX_MS;
    }
    return CONN_REFUSED;
}

static enum conn_event next_event(struct conn *c, struct err *err)
{
    for (int event; (event = socket_event(c->monitor));) {
        switch (event) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
            c->up = true;
            c->greeted = false;
            c->broken = 0;
            c->knock_wait_ms = REFUSED_MS;
            c->generation++;
            return CONN_UP;
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            return on_refused(c, err);
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
            c->broken++;
            break;
        case ZMQ_EVENT_DISCONNECTED:
            if (c->up) {
                went_down(c);
                return CONN_DOWN;
            }
            c->broken++; /* a wrong server key looks like this: the server hangs up without a word */
        }
    }
    return CONN_NONE;
}

static bool next_reply(struct conn *c, struct reply *out)
{
    zmq_msg_t msg;
    struct frame f;
    bool got = false;
    while (!got) {
        zmq_msg_init(&msg);
        if (zmq_msg_recv(&msg, c->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&msg);
            return false;
        }
        ProtobufCMessage *m = NULL;
        if (!zmq_msg_more(&msg) && !frame_decode(zmq_msg_data(&msg), zmq_msg_size(&msg), &f, NULL) &&
            !codec_decode(f.verb, f.body, &m, NULL)) {
            *out = (struct reply){f.verb, f.request_id, m};
            got = true;
        }
        zmq_msg_close(&msg);
    }
    return true;
}

static bool readable(int fd)
{
    struct pollfd p = {fd, POLLIN, 0};
    return fd >= 0 && poll(&p, 1, 0) > 0;
}

static void knock_again(struct conn *c)
{
    if (c->knock_at_ms && clock_ms() >= c->knock_at_ms) {
        c->knock_at_ms = 0;
        zmq_connect(c->socket, c->address); /* it was good once; a failure shows as a time-out */
    }
}

/* Milliseconds until `end`, but no later than the next knock. */
static int wait_ms(const struct conn *c, uint64_t end)
{
    uint64_t now = clock_ms(), until = c->knock_at_ms && c->knock_at_ms < end ? c->knock_at_ms : end;
    uint64_t left = until > now ? until - now : 0;
    return left > INT_MAX ? INT_MAX : (int)left;
}

enum status conn_recv(struct conn *c, int timeout_ms, enum conn_event *event, struct reply *out, struct err *err)
{
    uint64_t end = timeout_ms < 0 ? UINT64_MAX : clock_ms() + (uint64_t)timeout_ms;
    for (;;) {
        if (readable(c->stop_fd))
            return err_set(err, ST_STOPPED, "%s: asked to stop", c->where);
        knock_again(c);
        *event = next_event(c, err);
        if (*event != CONN_NONE)
            return ST_OK;
        if (next_reply(c, out)) {
            *event = CONN_REPLY;
            return ST_OK;
        }
        if (clock_ms() >= end)
            return ST_OK;
        zmq_pollitem_t items[] = {
            {c->socket, 0, ZMQ_POLLIN, 0}, {c->monitor, 0, ZMQ_POLLIN, 0}, {NULL, c->stop_fd, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, c->stop_fd >= 0 ? 3 : 2, wait_ms(c, end)) < 0 && errno != EINTR)
            return err_set(err, ST_IO, "%s: cannot wait: %s", c->where, zmq_strerror(errno));
    }
}

enum status conn_wait(struct conn *const *conns, unsigned n_conns, const int *fds, unsigned n_fds, int timeout_ms,
                      struct err *err)
{
    zmq_pollitem_t items[4 * CONN_WAIT_MAX];
    int n = 0;
    CHECK(n_conns <= CONN_WAIT_MAX && n_fds <= CONN_WAIT_MAX);
    uint64_t end = timeout_ms < 0 ? UINT64_MAX : clock_ms() + (uint64_t)timeout_ms;
    int wait = timeout_ms < 0 ? -1 : timeout_ms;
    for (unsigned i = 0; i < n_conns; i++) {
        items[n++] = (zmq_pollitem_t){conns[i]->socket, 0, ZMQ_POLLIN, 0};
        items[n++] = (zmq_pollitem_t){conns[i]->monitor, 0, ZMQ_POLLIN, 0};
        if (conns[i]->stop_fd >= 0)
            items[n++] = (zmq_pollitem_t){NULL, conns[i]->stop_fd, ZMQ_POLLIN, 0};
        if (conns[i]->knock_at_ms && (wait < 0 || wait_ms(conns[i], end) < wait))
            wait = wait_ms(conns[i], end);
    }
    for (unsigned i = 0; i < n_fds; i++)
        items[n++] = (zmq_pollitem_t){NULL, fds[i], ZMQ_POLLIN, 0};
    int rc = zmq_poll(items, n, wait);
    if (rc < 0 && errno != EINTR)
        return err_set(err, ST_IO, "cannot wait for replies: %s", zmq_strerror(errno));
    return rc != 0 || clock_ms() < end ? ST_OK : ST_TIMEOUT; /* earlier than asked: somebody is to knock again */
}

static void free_frame(void *data, void *hint)
{
    (void)hint;
    free(data);
}

enum status conn_send(struct conn *c, uint16_t verb, uint64_t request_id, const ProtobufCMessage *message,
                      struct err *err)
{
    struct buf frame = {0};
    if (!c->up)
        return err_set(err, ST_AGAIN, "%s: not connected", c->where);
    enum status st = frame_encode(verb, request_id, message, &frame, err);
    if (st) {
        buf_release(&frame);
        return st;
    }
    zmq_msg_t msg; /* owns the frame from here on */
    CHECK(zmq_msg_init_data(&msg, frame.data, frame.len, free_frame, NULL) == 0);
    if (zmq_msg_send(&msg, c->socket, ZMQ_DONTWAIT) < 0) {
        st = err_set(err, errno == EAGAIN ? ST_AGAIN : ST_IO, "%s: cannot send: %s", c->where, zmq_strerror(errno));
        zmq_msg_close(&msg);
    }
    return st;
}

/* ---- asking and waiting */

enum status conn_overdue(const struct conn *c, int timeout_ms, struct err *err)
{
    if (c->up)
        return err_set(err, ST_TIMEOUT, "%s: connected, but no answer in %d ms", c->where, timeout_ms);
    if (c->broken)
        return err_set(err, ST_TIMEOUT,
                       "%s: the handshake breaks off; is the server key of the join file this line's, "
                       "and the port an alluvium port?",
                       c->where);
    return err_set(err, ST_TIMEOUT, "%s: no connection in %d ms; is the coordinator running there?", c->where,
                   timeout_ms);
}

/* What an exchange waits for. */
struct wait {
    uint16_t verb;
    uint64_t id, end_ms, resend_ms; /* resend_ms: when to send (again) */
    int timeout_ms;
};

/* Takes the answer out of a reply. ST_AGAIN: the server is busy, `w->resend_ms` says until when. */
static enum status take_answer(struct wait *w, struct reply *r, ProtobufCMessage **out, struct conn *c, struct err *err)
{
    enum status st = ST_OK;
    if (r->verb == VERB_ERROR) {
        const Alv__Error *e = (const Alv__Error *)r->message;
        st = codec_error_status(e, err);
        uint32_t wait = e->retry_ms > AGAIN_MIN_MS ? e->retry_ms : AGAIN_MIN_MS;
        w->resend_ms = clock_ms() + wait + rng_below(&c->jitter, wait / 4 + 1);
        err_prefix(err, st, "%s", c->where);
    } else if (r->verb != w->verb + 1) {
        st = err_set(err, ST_BAD_DATA, "%s: answered with another verb (%u)", c->where, r->verb);
    }
    if (st)
        codec_free(r->message);
    else
        *out = r->message;
    return st;
}

/* Sends until answered; with `hello` on whatever connection stands, else only on a greeted one (ST_AGAIN: greet). */
static enum status exchange(struct conn *c, struct wait *w, const ProtobufCMessage *message, bool hello,
                            ProtobufCMessage **out, struct err *err)
{
    uint64_t generation = 0; /* of the connection it was sent on */
    struct err busy = {{0}};
    for (;;) {
        uint64_t now = clock_ms();
        if (now >= w->end_ms)
            return busy.text[0] ? err_set(err, ST_AGAIN, "%s", busy.text) : conn_overdue(c, w->timeout_ms, err);
        if (c->up && !hello && c->hello && !c->greeted)
            return ST_EMPTY;
        if (c->up && (generation != c->generation || now >= w->resend_ms)) {
            enum status st = conn_send(c, w->verb, w->id, message, err);
            if (st && st != ST_AGAIN)
                return st;
            w->resend_ms = now + (st ? QUEUE_FULL_MS : RESEND_MS);
            generation = st ? generation : c->generation;
        }
        enum conn_event event;
        struct reply r = {0};
        uint64_t until = c->up && w->resend_ms < w->end_ms ? w->resend_ms : w->end_ms;
        enum status st = conn_recv(c, (int)(until - now), &event, &r, err);
        if (st)
            return st;
        if (event == CONN_REFUSED)
            return ST_DENIED; /* err holds the text */
        if (event != CONN_REPLY)
            continue;
        if (r.request_id != w->id) { /* the answer to something given up */
            codec_free(r.message);
            continue;
        }
        st = take_answer(w, &r, out, c, &busy);
        if (st != ST_AGAIN) {
            if (st)
                err_set(err, st, "%s", busy.text);
            return st;
        }
    }
}

static enum status greet(struct conn *c, uint64_t end_ms, int timeout_ms, struct err *err)
{
    struct wait w = {VERB_HELLO, conn_next_id(c), end_ms, 0, timeout_ms};
    ProtobufCMessage *ok = NULL;
    enum status st = exchange(c, &w, c->hello, true, &ok, err);
    if (st)
        return st;
    uint64_t generation = c->generation;
    st = c->on_ok ? c->on_ok(c->on_ok_user, (const Alv__HelloOk *)ok, err) : ST_OK;
    codec_free(ok);
    c->greeted = !st && c->up && c->generation == generation;
    return st;
}

static uint64_t end_of(int timeout_ms)
{
    return clock_ms() + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0);
}

static enum status ready_by(struct conn *c, uint64_t end_ms, int timeout_ms, struct err *err)
{
    while (!c->up || (c->hello && !c->greeted)) {
        if (c->up) {
            enum status st = greet(c, end_ms, timeout_ms, err);
            if (st)
                return st;
            continue;
        }
        enum conn_event event;
        struct reply r = {0};
        uint64_t now = clock_ms();
        if (now >= end_ms)
            return conn_overdue(c, timeout_ms, err);
        enum status st = conn_recv(c, (int)(end_ms - now), &event, &r, err);
        codec_free(r.message); /* of a connection that is gone */
        if (st)
            return st;
        if (event == CONN_REFUSED)
            return ST_DENIED;
    }
    return ST_OK;
}

enum status conn_ready(struct conn *c, int timeout_ms, struct err *err)
{
    return ready_by(c, end_of(timeout_ms), timeout_ms, err);
}

enum status conn_call(struct conn *c, uint16_t verb, const ProtobufCMessage *message, int timeout_ms,
                      ProtobufCMessage **reply, struct err *err)
{
    struct wait w = {verb, conn_next_id(c), end_of(timeout_ms), 0, timeout_ms};
    for (;;) {
        enum status st = ready_by(c, w.end_ms, timeout_ms, err);
        if (!st)
            st = exchange(c, &w, message, false, reply, err);
        if (st != ST_EMPTY) /* the connection is another one: hello first */
            return st;
    }
}
