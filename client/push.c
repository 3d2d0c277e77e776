/* Sends hello, push-open, push-batch; receives hello-ok, push-opened, push-ack, error. */
#include "client/push.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#include "base/clock.h"
#include "client/hello.h"
#include "net/request.h"

enum { HELLO_FIRST = 1u << 30, CONNECT_MS = 15000 }; /* ids of hellos are far above those of the core's requests */

struct pusher {
    struct push_options options;
    struct name domain;
    void *zmq;
    struct conn *conn;
    bool up; /* connected, and hello was answered */
    bool ever_up;
    uint64_t hello_request;
    uint64_t next_request;
    struct hello hello;
    struct push_totals totals;
    /* the source being pushed */
    struct push_core *core;
    const struct push_input *input;
    struct push_effects effects;
    struct push_records *reading; /* asked for, not there yet */
    bool needing;
    uint32_t need_records;
    size_t need_bytes;
    bool resumed, ended;
    enum status status;
};

enum status pusher_open(const struct push_options *options, struct pusher **out, struct err *err)
{
    struct pusher *p = xcalloc(1, sizeof *p);
    p->options = *options;
    p->next_request = 1;
    p->hello_request = HELLO_FIRST;
    enum status st = ST_OK;
    if (!name_set(&p->domain, options->domain, strlen(options->domain)))
        st = err_set(err, ST_USAGE,
                     "\"%s\" is no name of a domain: a-z 0-9 . _ - , at most 63, beginning with a letter or "
                     "digit",
                     options->domain);
    else if (options->join->role != ROLE_PRODUCER && options->join->role != ROLE_OPERATOR)
        st = err_set(err, ST_DENIED,
                     "the join file is a %s's; pushing takes a producer's (alluvium keys add producer NAME)",
                     role_name(options->join->role));
    else if (!(p->zmq = zmq_ctx_new()))
        st = err_set(err, ST_IO, "no ZeroMQ context: %s", zmq_strerror(errno));
    else
        st = conn_open(p->zmq, options->join, PLANE_INGEST, options->stop_fd, &p->conn, err);
    hello_init(&p->hello, options->join);
    if (st == ST_OK)
        *out = p;
    else
        pusher_close(&p);
    return st;
}

void pusher_close(struct pusher **pusher)
{
    struct pusher *p = *pusher;
    if (!p)
        return;
    conn_close(p->conn);
    if (p->zmq)
        zmq_ctx_term(p->zmq);
    push_effects_release(&p->effects);
    free(p);
    *pusher = NULL;
}

const struct push_totals *pusher_totals(const struct pusher *p)
{
    return &p->totals;
}

static void tell(struct pusher *p)
{
    uint64_t until;
    if (!p->options.progress)
        return;
    enum push_state state = PUSH_SENDING;
    p->totals.why = push_core_why(p->core);
    if (!p->up)
        state = PUSH_CONNECTING;
    else if (push_core_busy(p->core, &until))
        state = PUSH_WAITING;
    else if (!p->resumed)
        state = PUSH_CHECKING;
    p->options.progress(p->options.user, state, &p->totals);
}

static void on_refused(struct pusher *p, const struct push_effect *effect)
{
    char where[4400];
    if (p->input->where)
        p->input->where(p->input->user, effect->refused.place, where, sizeof where);
    else
        snprintf(where, sizeof where, "%s: record %llu", p->input->name,
                 (unsigned long long)effect->refused.position + 1);
    if (p->options.refused)
        p->options.refused(p->options.user, where, push_refusal_text(effect->refused.reason));
}

static void on_acked(struct pusher *p, const struct push_report *r)
{
    p->totals.records += r->records;
    p->totals.bytes += r->bytes;
    p->totals.accepted += r->accepted;
    p->totals.duplicates += r->duplicates;
    p->totals.superseded += r->superseded;
    p->totals.refused += r->refused;
    if (r->lost) {
        p->totals.unknown += r->records;
        return;
    }
    p->totals.train_first = r->train_first;
    p->totals.train_end = r->train_end;
    p->totals.probe_first = r->probe_first;
    p->totals.probe_end = r->probe_end;
}

/* Carries out what the core wants. A request that cannot be queued now is as good as lost on the way: the core asks
 * again in time. One that breaks the codec's rules is our own mistake and ends the push. */
static void perform(struct pusher *p, struct err *err)
{
    for (uint32_t i = 0; i < p->effects.n && !p->ended; i++) {
        const struct push_effect *effect = &p->effects.items[i];
        enum status st;
        switch (effect->kind) {
        case PUSH_SEND:
            st = conn_send(p->conn, effect->send.verb, effect->send.request, effect->send.message, err);
            if (st != ST_OK && st != ST_AGAIN) {
                p->ended = true;
                p->status = st;
            }
            break;
        case PUSH_NEED:
            p->needing = true;
            p->need_records = effect->need.records_max;
            p->need_bytes = effect->need.bytes_max;
            break;
        case PUSH_RESUMED:
            p->resumed = true;
            p->totals.resumed += effect->position;
            break;
        case PUSH_REFUSED:
            on_refused(p, effect);
            break;
        case PUSH_ACKED:
            on_acked(p, &effect->acked);
            break;
        case PUSH_DONE:
            p->ended = true;
            break;
        case PUSH_FAILED:
            p->ended = true;
            p->status = err_set(err, effect->failed.status, "%s", effect->failed.text);
            break;
        }
    }
    tell(p);
}

static void step(struct pusher *p, struct push_event *event, struct err *err)
{
    event->now_ms = clock_ms();
    push_core_step(p->core, event, &p->effects);
    perform(p, err);
}

/* Reads for the core. ST_EMPTY: nothing there yet. */
static enum status feed(struct pusher *p, struct err *err)
{
    bool end = false;
    struct push_records *records = push_records_new();
    enum status st = p->input->next(p->input->user, p->need_records, p->need_bytes, records, &end, err);
    if (st == ST_OK) {
        p->needing = false;
        step(p, &(struct push_event){.kind = PUSH_RECORDS, .records = &records, .end = end}, err);
    }
    push_records_free(&records);
    return st;
}

static enum status on_reply(struct pusher *p, const struct reply *reply, struct err *err)
{
    if (reply->request_id < HELLO_FIRST) {
        if (p->up)
            step(
                p,
                &(struct push_event){
                    .kind = PUSH_MESSAGE, .verb = reply->verb, .request = reply->request_id, .message = reply->message},
                err);
        return ST_OK;
    }
    if (reply->request_id != p->hello_request)
        return ST_OK;
    if (reply->verb == VERB_ERROR)
        return codec_error_status((const Alv__Error *)reply->message, err);
    enum status st = hello_check(p->options.join, (const Alv__HelloOk *)reply->message, err);
    if (st != ST_OK)
        return st;
    p->up = p->ever_up = true;
    step(p, &(struct push_event){.kind = PUSH_UP}, err);
    return ST_OK;
}

/* One event of the connection. */
static enum status receive(struct pusher *p, int timeout_ms, bool *any, struct err *err)
{
    enum conn_event event;
    struct reply reply = {0};
    enum status st = conn_recv(p->conn, timeout_ms, &event, &reply, err);
    *any = st == ST_OK && event != CONN_NONE;
    if (st != ST_OK)
        return st;
    switch (event) {
    case CONN_NONE:
        break;
    case CONN_UP:
        p->up = false;
        st = conn_send(p->conn, VERB_HELLO, ++p->hello_request, &p->hello.message.base, err);
        st = st == ST_AGAIN ? ST_OK : st;
        break;
    case CONN_DOWN:
        p->up = false;
        tell(p);
        break;
    case CONN_REPLY:
        st = on_reply(p, &reply, err);
        codec_free(reply.message);
        break;
    case CONN_REFUSED:
        return ST_DENIED;
    }
    return st;
}

/* How long nothing needs to be done if nothing comes. */
static int patience(const struct pusher *p, uint64_t give_up_ms)
{
    enum { LOOK_MS = 1000 };
    uint64_t now = clock_ms(), until = now + LOOK_MS;
    if (push_core_deadline(p->core) < until)
        until = push_core_deadline(p->core);
    if (!p->ever_up && give_up_ms < until)
        until = give_up_ms;
    return until > now ? (int)(until - now) : 0;
}

static enum status pump(struct pusher *p, struct err *err)
{
    uint64_t give_up_ms = clock_ms() + (uint64_t)(p->options.connect_ms ? p->options.connect_ms : CONNECT_MS);
    if (p->up) /* a source after the first */
        step(p, &(struct push_event){.kind = PUSH_UP}, err);
    while (!p->ended) {
        bool any;
        enum status st = receive(p, 0, &any, err);
        if (st != ST_OK)
            return st;
        if (any)
            continue;
        if (!p->ever_up && clock_ms() >= give_up_ms)
            return err_set(err, ST_TIMEOUT,
                           "no answer from %s, port %u: is the coordinator running, and the port open?",
                           p->options.join->host, p->options.join->port);
        if (clock_ms() >= push_core_deadline(p->core)) {
            step(p, &(struct push_event){.kind = PUSH_TICK}, err);
            continue;
        }
        st = p->needing ? feed(p, err) : ST_EMPTY;
        if (st == ST_OK)
            continue;
        if (st != ST_EMPTY)
            return st;
        int fd = p->needing && p->input->fd ? p->input->fd(p->input->user) : -1;
        int wait_ms = patience(p, give_up_ms);
        st = conn_wait(&p->conn, 1, &fd, fd >= 0, wait_ms, err);
        if (st != ST_OK && st != ST_TIMEOUT)
            return st;
        tell(p);
    }
    return p->status;
}

enum status pusher_push(struct pusher *p, const struct push_input *input, struct err *err)
{
    struct push_config config = {.domain = p->domain, .window = p->options.window, .first_request = p->next_request};
    size_t len = strlen(input->name);
    if (!len || len > LIMIT_SOURCE_BYTES)
        return err_set(err, ST_USAGE, "%.80s: a source's name has 1 to %d bytes (give a shorter one with --source)",
                       input->name, LIMIT_SOURCE_BYTES);
    memcpy(config.source, input->name, len + 1);
    p->core = push_core_new(&config);
    p->input = input;
    p->needing = p->resumed = p->ended = false;
    p->status = ST_OK;
    enum status st = pump(p, err);
    p->totals.sources += st == ST_OK;
    p->next_request = push_core_next_request(p->core);
    push_core_free(p->core);
    p->core = NULL;
    return st;
}
