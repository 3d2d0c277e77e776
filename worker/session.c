/* Work plane, as a client. Sends HELLO, EXCLUSIONS_GET, TASK_REQUEST, PROGRESS, TASK_RETURN, DELTA_COMMIT, EVAL_RESULT;
 * receives their answers and ERROR. All of it is decided in core.c. */
#include "worker/session.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/notify.h"
#include "net/request.h"
#include "proto/codec.h"

enum {
    WAIT_MS_MAX = 10000,
    LINE_MS = 200,
    ALONE_MS = 15000,
    BEAT_MS = 5000, /* deploy/systemd allows a minute without one */
};

struct session {
    struct session_config config;
    struct conn *conn;
    struct worker_core *core;
    struct worker_effects effects;
    struct worker_status seen; /* for what is said when it changes */
    uint64_t line_at;          /* when the progress line was last drawn */
    uint64_t beat_at;          /* when the service manager next hears that the loop turns */
    uint64_t alone_at;         /* when somebody is told that there is no coordinator; 0: there is one */
    bool line_drawn, stopped;
    enum status status;
    char text[512];
};

/* ---- what people and programs see */

static void clear_line(struct session *s)
{
    if (s->line_drawn)
        fputs("\r\033[K", s->config.progress);
    s->line_drawn = false;
}

/* Takes the object. */
static void say(struct session *s, json_t *object)
{
    if (!object)
        return;
    if (s->config.events) {
        json_object_set_new(object, "time", json_integer((json_int_t)clock_wall_s()));
        json_dumpf(object, s->config.events, JSON_COMPACT);
        fputc('\n', s->config.events);
        fflush(s->config.events);
    }
    json_decref(object);
}

static void report_changes(struct session *s)
{
    struct worker_status now;
    worker_status(s->core, &now);
    if (now.phase != s->seen.phase || now.task != s->seen.task) {
        clear_line(s);
        if (now.task)
            log_info("worker", "%s task=%" PRIu64 " round=%" PRIu64 " generation=%u", worker_phase_name(now.phase),
                     now.task, now.round, now.generation);
        else
            log_debug("worker", "%s", worker_phase_name(now.phase));
        say(s, json_pack("{s:s, s:s, s:I, s:I, s:b}", "event", "phase", "phase", worker_phase_name(now.phase), "task",
                         (json_int_t)now.task, "round", (json_int_t)now.round, "evaluate", (int)now.evaluate));
    } else if (now.done != s->seen.done && now.total) {
        say(s, json_pack("{s:s, s:I, s:I, s:I, s:I}", "event", "progress", "task", (json_int_t)now.task, "done",
                         (json_int_t)now.done, "total", (json_int_t)now.total, "tokens_per_s",
                         (json_int_t)now.tokens_per_s));
    }
    if (s->config.progress && (now.phase != s->seen.phase || clock_ms() >= s->line_at + LINE_MS)) {
        clear_line(s);
        fprintf(s->config.progress, "%s", worker_phase_name(now.phase));
        if (now.task)
            fprintf(s->config.progress, " %s %" PRIu64, now.evaluate ? "evaluation" : "lease", now.task);
        if (now.task && now.total)
            fprintf(s->config.progress, "  %u/%u  %u tok/s", now.done, now.total, now.tokens_per_s);
        fflush(s->config.progress);
        s->line_drawn = true;
        s->line_at = clock_ms();
    }
    s->seen = now;
}

/* ---- effects */

static void carry_out(struct session *s, struct worker_effect *e)
{
    struct err err;
    switch (e->kind) {
    case WORKER_SEND:
        if (conn_send(s->conn, e->send.verb, e->send.request, e->message, &err) != ST_OK)
            log_debug("worker", "not sent verb=%u why=\"%s\"", e->send.verb, err.text); /* it comes again */
        break;
    case WORKER_REMEMBER:
        log_info("worker", "joined session=%" PRIu64, e->session.counter);
        if (home_remember(s->config.home, e->session.counter, e->session.incarnation, &err) != ST_OK)
            log_warn("worker", "the coordinator's session could not be kept why=\"%s\"", err.text);
        break;
    case WORKER_SETTLED: {
        char hex[DIGEST_HEX_SIZE];
        digest_hex(&e->settled.delta, hex);
        if (e->settled.accepted)
            log_info("worker", "delta accepted digest=%.16s", hex);
        else
            log_warn("worker", "delta refused digest=%.16s why=\"%s\"", hex, e->settled.reason);
        say(s, json_pack("{s:s, s:s, s:b, s:s}", "event", "delta", "digest", hex, "accepted", (int)e->settled.accepted,
                         "reason", e->settled.reason));
        jobs_add(s->config.jobs, e);
        break;
    }
    case WORKER_CANCEL:
        jobs_cancel(s->config.jobs, e->job);
        break;
    case WORKER_STOPPED:
        s->stopped = true;
        s->status = e->stopped.status;
        memcpy(s->text, e->stopped.text, sizeof s->text);
        break;
    default:
        jobs_add(s->config.jobs, e);
    }
}

static void step(struct session *s, struct worker_event *event)
{
    event->now_ms = clock_ms();
    if (event->kind == WORKER_FAILED)
        log_warn("worker", "failed status=%s why=\"%s\"", status_name(event->failed.status), event->failed.text);
    worker_effects_clear(&s->effects);
    worker_step(s->core, event, &s->effects);
    for (uint32_t i = 0; i < s->effects.n; i++)
        carry_out(s, &s->effects.items[i]);
    report_changes(s);
}

/* ---- events */

static enum status take_network(struct session *s, struct err *err)
{
    for (;;) {
        enum conn_event kind;
        struct reply reply = {0};
        struct worker_event event = {.kind = WORKER_TICK};
        enum status status = conn_recv(s->conn, 0, &kind, &reply, err);
        if (status != ST_OK)
            return status;
        if (kind == CONN_NONE)
            return ST_OK;
        if (kind == CONN_REFUSED)
            return err_set(err, ST_DENIED, "the coordinator refused this worker's key: it is unknown there or revoked");
        if (kind == CONN_UP)
            event.kind = WORKER_UP;
        if (kind == CONN_DOWN)
            event.kind = WORKER_DOWN;
        if (kind == CONN_REPLY) {
            event.kind = WORKER_REPLY;
            event.reply.verb = reply.verb;
            event.reply.request = reply.request_id;
            event.reply.message = reply.message;
        }
        step(s, &event);
        codec_free(reply.message);
        if (s->stopped)
            return ST_OK;
    }
}

/* How often were we asked to stop since the last look? */
static void take_stop(struct session *s)
{
    char request[256];
    struct pollfd fd = {.fd = s->config.stop_fd, .events = POLLIN};
    while (!s->stopped && fd.fd >= 0 && poll(&fd, 1, 0) > 0 && (fd.revents & POLLIN) &&
           read(fd.fd, request, s->config.stop_size) == (ssize_t)s->config.stop_size) {
        log_info("worker", "asked to stop");
        notify_stopping();
        struct worker_event event = {.kind = WORKER_DRAIN};
        step(s, &event);
    }
}

/* A worker waits for its coordinator for ever, but not in silence; with --check it says what it found, and ends. */
static enum status look_for_coordinator(struct session *s, struct err *err)
{
    const uint64_t now = clock_ms();
    struct err why;
    if (conn_is_up(s->conn)) {
        if (s->alone_at == UINT64_MAX)
            log_info("worker", "connected");
        s->alone_at = 0;
    } else if (!s->alone_at) {
        s->alone_at = now + ALONE_MS;
    } else if (now >= s->alone_at && s->alone_at != UINT64_MAX) {
        conn_overdue(s->conn, ALONE_MS, &why);
        if (s->config.check)
            return err_set(err, ST_TIMEOUT, "%s", why.text);
        log_warn("worker", "still trying why=\"%s\"", why.text);
        s->alone_at = UINT64_MAX;
    }
    return ST_OK;
}

static enum status loop(struct session *s, struct err *err)
{
    const int fds[2] = {jobs_fd(s->config.jobs), s->config.stop_fd};
    while (!s->stopped) {
        uint64_t now = clock_ms(), due = worker_deadline(s->core);
        int wait = due <= now ? 0 : due - now < WAIT_MS_MAX ? (int)(due - now) : WAIT_MS_MAX;
        enum status status = conn_wait(&s->conn, 1, fds, s->config.stop_fd >= 0 ? 2 : 1, wait, err);
        if (status != ST_OK && status != ST_TIMEOUT)
            return status;
        if (clock_ms() >= s->beat_at) {
            (void)futimens(s->config.home->lock_fd, NULL); /* for probes that can only look at files */
            notify_beat();                                 /* last: who hears it finds the file touched */
            s->beat_at = clock_ms() + BEAT_MS;
        }
        take_stop(s);
        struct worker_event event;
        while (!s->stopped && jobs_next(s->config.jobs, &event))
            step(s, &event);
        if (!s->stopped && (status = take_network(s, err)) != ST_OK)
            return status;
        if (!s->stopped && (status = look_for_coordinator(s, err)) != ST_OK)
            return status;
        if (s->config.check && s->seen.phase == PHASE_ASK)
            return ST_OK;
        event = (struct worker_event){.kind = WORKER_TICK};
        if (!s->stopped)
            step(s, &event);
    }
    return s->status == ST_OK ? ST_OK : err_set(err, s->status, "%s", s->text);
}

enum status session_run(const struct session_config *config, struct err *err)
{
    struct session s = {.config = *config};
    enum status status = conn_open(config->zmq, config->join, PLANE_WORK, -1, &s.conn, err);
    if (status != ST_OK)
        return status;
    s.core = worker_core_new(&config->core);
    struct worker_event start = {.kind = WORKER_START};
    memcpy(start.start.instance, config->home->instance, 16);
    start.start.boot = config->home->boot;
    start.start.session_counter = config->home->session_counter;
    memcpy(start.start.session_incarnation, config->home->session_incarnation, 16);
    start.start.pending = config->home->pending;
    step(&s, &start);
    notify_ready();
    status = loop(&s, err);
    clear_line(&s);
    say(&s, json_pack("{s:s, s:s}", "event", "stopped", "status", status_name(status)));
    worker_effects_release(&s.effects);
    worker_core_free(s.core);
    conn_close(s.conn);
    return status;
}
