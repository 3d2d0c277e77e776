#include "net/endpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "net/census.h"
#include "net/join.h"
#include "net/socket.h"
#include "net/zap.h"
#include "proto/record.h"

enum outcome { ADMITTED, DENIED, MALFORMED, UNAVAILABLE, OUTCOMES };

struct plane_socket {
    void *socket; /* NULL: not this endpoint's plane */
    struct series *frames[OUTCOMES], *bytes_in, *bytes_out, *dropped;
};

struct endpoint {
    struct keys *keys;
    struct plane_socket planes[PLANES];
    unsigned next; /* plane to look at first */
    struct census *census;
    int keys_fd;          /* readable: the key table may be another one; -1: none */
    uint64_t revocations; /* of the table that connections were last held against */
    struct series *ended;
};

/* ---- life */

static void register_metrics(struct plane_socket *p, struct metrics *m, const char *plane)
{
    static const char *const outcomes[OUTCOMES] = {"ok", "denied", "malformed", "unavailable"};
    for (int i = 0; i < OUTCOMES; i++)
        p->frames[i] = metrics_counter(m, "alluvium_frames_total", "Frames received, by what became of them", "plane",
                                       plane, "result", outcomes[i], NULL);
    p->bytes_in =
        metrics_counter(m, "alluvium_frame_bytes_total", "Bytes of frames", "plane", plane, "direction", "in", NULL);
    p->bytes_out =
        metrics_counter(m, "alluvium_frame_bytes_total", "Bytes of frames", "plane", plane, "direction", "out", NULL);
    p->dropped = metrics_counter(m, "alluvium_replies_dropped_total", "Replies whose peer was gone or not reading",
                                 "plane", plane, NULL);
}

static void watch_keys(struct endpoint *e, const struct endpoint_config *config)
{
    e->keys_fd = keys_watch(config->keys); /* before the table is asked, so that no change falls between */
    e->revocations = keys_revocations(config->keys);
    e->ended = metrics_counter(config->metrics, "alluvium_connections_ended_total",
                               "Connections ended because a key was revoked", NULL);
}

enum status endpoint_open(const struct endpoint_config *config, struct endpoint **out, struct err *err)
{
    struct endpoint *e = xcalloc(1, sizeof *e);
    char address[ENDPOINT_SIZE];
    e->keys = config->keys;
    e->census = census_new();
    e->keys_fd = -1;
    enum status st = zap_self_test(config->zmq, err);
    if (!st)
        watch_keys(e, config);
    for (int p = 0; p < PLANES && !st; p++) {
        if (!(config->planes & 1u << p))
            continue;
        register_metrics(&e->planes[p], config->metrics, plane_name(p));
        st = join_endpoint(config->host, config->port, p, address, err);
        if (!st)
            st = socket_server(config->zmq, &config->server, &e->planes[p].socket, err);
        if (!st && zmq_bind(e->planes[p].socket, address) < 0)
            st = err_set(err, ST_IO, "%s: cannot bind: %s", address, zmq_strerror(errno));
        if (!st)
            census_bound(e->census, address);
    }
    if (st)
        endpoint_close(e);
    else
        *out = e;
    return st;
}

void endpoint_close(struct endpoint *e)
{
    if (!e)
        return;
    for (int p = 0; p < PLANES; p++)
        if (e->planes[p].socket)
            zmq_close(e->planes[p].socket);
    census_free(e->census);
    if (e->keys_fd >= 0)
        close(e->keys_fd);
    free(e);
}

/* Connections of keys that are no longer live end as soon as the table says so, whatever they wait for. */
static void end_revoked(struct endpoint *e)
{
    char events[4096];
    while (e->keys_fd >= 0 && read(e->keys_fd, events, sizeof events) > 0)
        ;
    uint64_t now = keys_revocations(e->keys);
    if (now == e->revocations)
        return;
    e->revocations = now;
    unsigned ended = census_sweep(e->census, e->keys);
    series_add(e->ended, ended);
    if (ended)
        log_info("endpoint", "a key was revoked, its connections are ended connections=%u", ended);
}

enum status endpoint_wait(struct endpoint *e, bool hear, const int *fds, unsigned n_fds, int timeout_ms,
                          unsigned *ready, struct err *err)
{
    zmq_pollitem_t items[PLANES + ENDPOINT_FDS_MAX + 1];
    int n = 0;
    CHECK(n_fds <= ENDPOINT_FDS_MAX);
    end_revoked(e);
    for (unsigned i = 0; i < n_fds; i++)
        items[n++] = (zmq_pollitem_t){NULL, fds[i], ZMQ_POLLIN, 0};
    for (int p = 0; hear && p < PLANES; p++)
        if (e->planes[p].socket)
            items[n++] = (zmq_pollitem_t){e->planes[p].socket, 0, ZMQ_POLLIN, 0};
    if (e->keys_fd >= 0)
        items[n++] = (zmq_pollitem_t){NULL, e->keys_fd, ZMQ_POLLIN, 0};
    int rc = zmq_poll(items, n, timeout_ms);
    if (rc < 0 && errno != EINTR)
        return err_set(err, ST_IO, "cannot wait for messages: %s", zmq_strerror(errno));
    if (ready)
        *ready = 0;
    for (unsigned i = 0; rc > 0 && i < n_fds; i++)
        if (items[i].revents)
            *ready |= 1u << i;
    if (rc > 0)
        end_revoked(e);
    return rc == 0 ? ST_TIMEOUT : ST_OK;
}

/* ---- receiving */

/* Reads [routing id, frame] off one socket. ST_EMPTY: none; ST_BAD_DATA: a message of another shape, now gone. */
static enum status receive(void *socket, struct route *from, zmq_msg_t *frame)
{
    zmq_msg_t id;
    zmq_msg_init(&id);
    if (zmq_msg_recv(&id, socket, ZMQ_DONTWAIT) < 0) {
        zmq_msg_close(&id);
        return ST_EMPTY;
    }
    const uint8_t *bytes = zmq_msg_data(&id);
    /* A route the socket made itself: zero and four bytes. A peer that brings its own could wait for another's mail. */
    bool good = zmq_msg_size(&id) == ROUTE_LEN && bytes[0] == 0;
    if (good)
        memcpy(from->id, bytes, ROUTE_LEN);
    int more = zmq_msg_more(&id);
    zmq_msg_close(&id);
    for (int parts = 0; more; parts++) {
        if (zmq_msg_recv(frame, socket, ZMQ_DONTWAIT) < 0)
            return ST_BAD_DATA;
        more = zmq_msg_more(frame);
        good = good && parts == 0 && !more;
    }
    return good && zmq_msg_size(frame) ? ST_OK : ST_BAD_DATA;
}

/* What a key may do is asked of the table as it is now, not as it was at the handshake. */
static enum status authorise(struct endpoint *e, enum plane plane, const char *public_z85, uint16_t verb,
                             struct key_grant *grant, struct err *err)
{
    enum status st = keys_find(e->keys, public_z85 ? public_z85 : "", grant, err);
    if (st)
        return st;
    if (verb_allowed(verb, plane, grant->role))
        return ST_OK;
    const struct verb_info *info = verb_find(verb);
    return err_set(err, ST_DENIED, "%s %s may not say %s on %s", role_name(grant->role), grant->name.s,
                   info ? info->name : "that", plane_name(plane));
}

static enum status authorise_domain(struct endpoint *e, const struct key_grant *grant, const ProtobufCMessage *message,
                                    struct err *err)
{
    const Alv__PushOpen *open = (const Alv__PushOpen *)message;
    struct name domain;
    if (name_set(&domain, open->domain, strlen(open->domain)) && keys_may_push(e->keys, &grant->name, &domain))
        return ST_OK;
    return err_set(err, ST_DENIED, "%s may not push into %s", grant->name.s, open->domain);
}

/* From bytes to an admitted message. `*request_id` is set as soon as it is known, for the refusal. */
static enum status admit(struct endpoint *e, enum plane plane, zmq_msg_t *msg, struct incoming *out,
                         uint64_t *request_id, struct err *err)
{
    struct frame frame = {0};
    struct key_grant grant;
    ProtobufCMessage *message = NULL;
    enum status st = frame_decode(zmq_msg_data(msg), zmq_msg_size(msg), &frame, err);
    *request_id = frame.request_id;
    if (!st)
        st = authorise(e, plane, zmq_msg_gets(msg, "User-Id"), frame.verb, &grant, err);
    if (!st)
        st = codec_decode(frame.verb, frame.body, &message, err);
    if (!st && frame.verb == VERB_PUSH_OPEN)
        st = authorise_domain(e, &grant, message, err);
    if (st) {
        codec_free(message);
        return st;
    }
    out->key = grant.name;
    out->role = grant.role;
    out->verb = frame.verb;
    out->request_id = frame.request_id;
    out->message = message;
    out->frame_bytes = (uint32_t)zmq_msg_size(msg);
    return ST_OK;
}

static enum outcome outcome_of(enum status st)
{
    return st == ST_OK ? ADMITTED : st == ST_DENIED ? DENIED : st == ST_AGAIN ? UNAVAILABLE : MALFORMED;
}

/* One message of one plane, admitted or refused. */
static enum status take(struct endpoint *e, enum plane plane, struct incoming *out, struct err *err)
{
    struct plane_socket *p = &e->planes[plane];
    struct route from = {.plane = (uint8_t)plane};
    uint64_t request_id = 0;
    zmq_msg_t msg;
    zmq_msg_init(&msg);
    enum status st = receive(p->socket, &from, &msg);
    bool known = st == ST_OK; /* there is somebody to answer */
    if (known) {
        const char *user = zmq_msg_gets(&msg, "User-Id");
        census_note(e->census, zmq_msg_get(&msg, ZMQ_SRCFD), user ? user : "");
        series_add(p->bytes_in, (double)zmq_msg_size(&msg));
        st = admit(e, plane, &msg, out, &request_id, err);
        out->from = from;
    }
    if (st != ST_EMPTY)
        series_inc(p->frames[outcome_of(st)]);
    if (known && st)
        endpoint_send_error(e, &from, request_id, st, err->text, st == ST_AGAIN ? 1000 : 0, NULL);
    zmq_msg_close(&msg);
    return st;
}

enum status endpoint_recv(struct endpoint *e, struct incoming *out, struct err *err)
{
    enum { REFUSALS_MAX = 64 };
    struct err why;
    for (int refusals = 0, empty = 0; empty < PLANES && refusals < REFUSALS_MAX;) {
        enum plane plane = e->next;
        e->next = (e->next + 1) % PLANES;
        struct incoming in = {0};
        enum status st = e->planes[plane].socket ? take(e, plane, &in, &why) : ST_EMPTY;
        if (st == ST_OK) {
            *out = in;
            return ST_OK;
        }
        if (st == ST_EMPTY) {
            empty++;
        } else {
            empty = 0;
            refusals++;
        }
    }
    return err_set(err, ST_EMPTY, "no message");
}

void incoming_release(struct incoming *in)
{
    codec_free(in->message);
    in->message = NULL;
}

/* ---- sending */

static void free_frame(void *data, void *hint)
{
    (void)hint;
    free(data);
}

/* Begins a message to a route. A queue that looks full may only not have heard yet what the peer has read: the library
 * listens for that at most once a millisecond, unless it is asked for its events. */
static bool address(void *socket, const struct route *to)
{
    int events;
    size_t size = sizeof events;
    if (zmq_send(socket, to->id, ROUTE_LEN, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0)
        return true;
    return errno == EAGAIN && zmq_getsockopt(socket, ZMQ_EVENTS, &events, &size) == 0 &&
           zmq_send(socket, to->id, ROUTE_LEN, ZMQ_SNDMORE | ZMQ_DONTWAIT) >= 0;
}

static enum status send_frame(struct plane_socket *p, const struct route *to, struct buf *frame, struct err *err)
{
    zmq_msg_t msg;
    size_t len = frame->len;
    CHECK(zmq_msg_init_data(&msg, frame->data, len, free_frame, NULL) == 0);
    *frame = (struct buf){0}; /* the message owns it now */
    if (!address(p->socket, to) || zmq_msg_send(&msg, p->socket, ZMQ_DONTWAIT) < 0) {
        int e = errno;
        zmq_msg_close(&msg);
        series_inc(p->dropped);
        return err_set(err, e == EAGAIN ? ST_AGAIN : ST_NOT_FOUND, "the reply was dropped: %s", zmq_strerror(e));
    }
    series_add(p->bytes_out, (double)len);
    return ST_OK;
}

enum status endpoint_send(struct endpoint *e, const struct route *to, uint16_t verb, uint64_t request_id,
                          const ProtobufCMessage *message, struct err *err)
{
    struct buf frame = {0};
    struct err why;
    CHECK(to->plane < PLANES && e->planes[to->plane].socket);
    enum status st = frame_encode(verb, request_id, message, &frame, &why);
    if (st) {
        buf_release(&frame);
        CHECK(verb != VERB_ERROR);
        endpoint_send_error(e, to, request_id, ST_INTERNAL, why.text, 0, NULL);
        return err_set(err, st, "%s", why.text);
    }
    return send_frame(&e->planes[to->plane], to, &frame, err);
}

enum status endpoint_send_error(struct endpoint *e, const struct route *to, uint64_t request_id, enum status status,
                                const char *text, uint32_t retry_ms, struct err *err)
{
    struct err clean; /* a text cut in the middle of a character would not pass the codec */
    Alv__Error error;
    size_t len = utf8_prefix(text, strnlen(text, sizeof clean.text - 1));
    memcpy(clean.text, text, len);
    clean.text[len] = 0;
    codec_error(&error, status, clean.text, retry_ms);
    return endpoint_send(e, to, VERB_ERROR, request_id, &error.base, err);
}
