/* The loop: one thread that owns the core and the sockets of four planes.
 *
 *   receives  ingest: hello push-open push-batch        work: hello task-request progress task-return delta-commit
 *             models: hello watch manifest-get serving        eval-result exclusions-get
 *             control: hello control
 *   sends     the replies of verbs.h, and nothing unasked
 *
 * A turn: read what is ready (bounded), step the core with each message, give the collected batches to the commit thread,
 * and when that reports a group durable, let the core's replies go. So the disk syncs one group while the next one is
 * decided, and the busier it is, the larger the groups.
 */
#include "coordinator/backup.h"
#include "coordinator/coordinator.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/notify.h"
#include "coordinator/aggregate.h"
#include "coordinator/bulk.h"
#include "coordinator/core/core.h"
#include "coordinator/core/snapshot.h"
#include "coordinator/core/state.h"
#include "coordinator/dashboard.h"
#include "coordinator/dir.h"
#include "coordinator/facts.h"
#include "coordinator/history.h"
#include "coordinator/news.h"
#include "coordinator/peers.h"
#include "coordinator/purge.h"
#include "coordinator/report.h"
#include "coordinator/roots.h"
#include "coordinator/signing.h"
#include "coordinator/streamlog.h"
#include "net/endpoint.h"
#include "net/zap.h"
#include "store/blob.h"

enum {
    TURN_MESSAGES = 256, /* read in one turn before timers and commits are looked at */
    CHORES_MS = 1000,    /* disk space, idle peers, deferred deletions, the status page */
    RESERVE_DEFAULT = 256 << 20,
    UPLOADS_DEFAULT_GIB = 4,
    HISTORY_TURN = 16, /* versions whose losses are read in one round of chores */
    DROPS_MAX = 4096,  /* deletions waiting for a pin to go; more are found at the next start */
    FD_SIGNAL = 0,
    FD_MAIL,
    FD_STOP,
    FDS,
};

struct loop {
    struct coordinator_options options;
    struct line_dir dir;
    struct core_config config;
    struct metrics *metrics;
    struct keys *keys;
    void *zmq;
    struct zap *zap;
    struct endpoint *endpoint;
    struct streamlog *log;
    struct blob_store *blobs;
    struct roots *roots;
    struct core *core;
    struct news news;
    struct aggregator *aggregator;
    struct purger *purger;
    struct bulk *bulk;
    struct dashboard *dashboard;
    struct history *history;
    struct peers *peers;
    int fds[FDS];
    bool stop, disk_low;
    uint64_t committed, chores_ms;
    struct effects effects;
    struct digest drops[DROPS_MAX];
    uint32_t n_drops;
    enum status status; /* why the loop ends, when not because it was told to */
    struct err err;
};

static void fail(struct loop *l, enum status status, const struct err *err)
{
    if (!l->status) {
        l->status = status;
        l->err = *err;
    }
    l->stop = true;
}

/* ---- effects --------------------------------------------------------------------------------------------------- */

static void send_reply(struct loop *l, const struct effect *e)
{
    struct route to = peers_route(e->send.peer.conn);
    struct err err;
    enum status st = endpoint_send(l->endpoint, &to, e->send.verb, e->send.request, e->send.message, &err);
    if (st == ST_NOT_FOUND)
        peers_gone(l->peers, e->send.peer.conn);
    else if (st && st != ST_AGAIN)
        log_error("loop", "reply dropped verb=%u error=\"%s\"", e->send.verb, err.text);
}

static void drop_blob(struct loop *l, const struct digest *digest)
{
    enum status st = blob_delete(l->blobs, digest, NULL);
    if (st == ST_AGAIN && l->n_drops < DROPS_MAX)
        l->drops[l->n_drops++] = *digest; /* somebody reads or has just made it */
}

static void carry_out(struct loop *l)
{
    struct err err;
    enum status st;
    for (uint32_t i = 0; i < l->effects.n; i++) {
        struct effect *e = &l->effects.items[i];
        switch (e->kind) {
        case EFFECT_SEND:
            send_reply(l, e);
            break;
        case EFFECT_PERSIST:
            if ((st = roots_follow(l->roots, &e->persist.batch, &err)))
                fail(l, st, &err);
            streamlog_append(l->log, e->persist.seq, &e->persist.batch);
            break;
        case EFFECT_AGGREGATE:
            aggregator_submit(l->aggregator, e);
            break;
        case EFFECT_PURGE:
            purger_submit(l->purger, e->purge);
            break;
        case EFFECT_DROP_BLOB:
            roots_remove(l->roots, &e->drop);
            drop_blob(l, &e->drop);
            break;
        }
    }
    effects_clear(&l->effects);
}

static void step(struct loop *l, struct event *event)
{
    event->now_ms = clock_ms();
    event->wall_s = clock_wall_s();
    core_step(l->core, event, &l->effects);
    carry_out(l);
}

/* ---- messages -------------------------------------------------------------------------------------------------- */

static void refuse(struct loop *l, const struct incoming *in, enum status status, const char *text)
{
    (void)endpoint_send_error(l->endpoint, &in->from, in->request_id, status, text, 0, NULL);
}

static void answer(struct loop *l, const struct incoming *in, uint16_t verb, const ProtobufCMessage *message)
{
    (void)endpoint_send(l->endpoint, &in->from, verb, in->request_id, message, NULL);
}

static struct report_source source_of(const struct loop *l)
{
    return (struct report_source){
        .core = l->core, .log = l->log, .dir = &l->dir, .history = l->history, .now_ms = clock_ms()};
}

/* Pushes wait while it is made: some hundred milliseconds, mostly of writing out what is in memory. */
static enum status snapshot(struct loop *l, struct report_reply *out, struct err *err)
{
    double start = clock_s();
    enum status st = backup_snapshot(&l->dir, streamlog_db(l->log), l->blobs, err);
    if (st)
        return st;
    log_info("coordinator", "snapshot for a backup seconds=%.2f", clock_s() - start);
    alv__control_reply__init(&out->control);
    out->control.json = out->json = xstrdup("{\"snapshot\":\"" BACKUP_SNAPSHOT "\"}");
    return ST_OK;
}

/* What the shell answers from disk and snapshot; false: it is the core's. */
static bool answer_here(struct loop *l, const struct incoming *in)
{
    struct err err = {""};
    struct report_source source = source_of(l);
    struct report_reply r = {0};
    enum status st;
    if (in->verb == VERB_CONTROL && ((const Alv__Control *)in->message)->verb == ALV__CONTROL_VERB__CONTROL_BACKUP)
        st = snapshot(l, &r, &err);
    else if (in->verb == VERB_CONTROL && report_answers((const Alv__Control *)in->message))
        st = report_control(&source, (const Alv__Control *)in->message, &r, &err);
    else if (in->verb == VERB_MANIFEST_GET)
        st = report_manifest(&source, (const Alv__ManifestGet *)in->message, &r, &err);
    else if (in->verb == VERB_WATCH && ((const Alv__Watch *)in->message)->from + 1 < core_versions_oldest(l->core))
        st = report_watch(&source, (const Alv__Watch *)in->message, &r, &err);
    else
        return false;
    if (st)
        refuse(l, in, st, err.text);
    else
        answer(l, in, (uint16_t)(in->verb + 1), report_message(&r));
    report_release(&r);
    return true;
}

/* Reads what the core must know, steps, and forgets it again. A disk that fails under a read ends the run. */
static void to_core(struct loop *l, const struct incoming *in, const struct peer *peer)
{
    struct event event = {
        .kind = EVENT_MESSAGE, .peer = *peer, .verb = in->verb, .request = in->request_id, .message = in->message};
    struct facts facts = {0};
    struct err err;
    enum status st = facts_read(&facts, l->core, l->log, l->blobs, &l->dir.seed, &event, &err);
    if (!st)
        step(l, &event);
    else if (st == ST_IO || st == ST_CORRUPT)
        fail(l, st, &err);
    else
        refuse(l, in, st, err.text);
    facts_release(&facts, l->blobs);
}

static enum status drain(struct loop *l)
{
    for (int i = 0; i < TURN_MESSAGES && !l->stop && !streamlog_full(l->log); i++) {
        struct incoming in;
        struct peer peer;
        struct err err;
        enum status st = endpoint_recv(l->endpoint, &in, &err);
        if (st == ST_EMPTY)
            return ST_OK;
        if (st) {
            fail(l, st, &err);
            return st;
        }
        peers_note(l->peers, &in.from, in.role, &in.key, clock_ms(), &peer);
        if (!answer_here(l, &in)) {
            if (in.verb == VERB_CONTROL)
                news_asked((const Alv__Control *)in.message, &in.key);
            to_core(l, &in, &peer);
        }
        incoming_release(&in);
    }
    return ST_OK;
}

/* ---- what happens by itself ------------------------------------------------------------------------------------ */

static void on_mail(struct loop *l) /* a group is durable, a candidate is ready, or files are purged */
{
    uint64_t n, seq;
    struct err err;
    (void)!read(l->fds[FD_MAIL], &n, sizeof n);
    enum status st = streamlog_durable(l->log, &seq, &err);
    if (st)
        fail(l, st, &err);
    if (seq > l->committed) {
        struct event event = {.kind = EVENT_COMMITTED, .seq = seq};
        l->committed = seq;
        step(l, &event);
    }
    struct aggregated *result;
    while ((result = aggregator_take(l->aggregator))) {
        struct event event = {.kind = EVENT_AGGREGATED, .aggregated = result};
        if (!result->status) { /* workers may be sent to it as soon as the core says so */
            roots_add_files(l->roots, &result->files, ROOT_WORK);
        }
        step(l, &event);
        aggregator_done(l->aggregator, result);
    }
    if (purger_take(l->purger, &seq)) {
        struct event event = {.kind = EVENT_PURGED, .seq = seq};
        step(l, &event);
    }
}

static void on_signal(struct loop *l)
{
    struct signalfd_siginfo info;
    while (read(l->fds[FD_SIGNAL], &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGHUP) {
            struct key_grant grant;
            enum status st = keys_find(l->keys, "", &grant, NULL); /* any question reads the file again */
            log_info("coordinator", "keys read again result=%s", st == ST_AGAIN ? "unreadable" : "ok");
        } else {
            log_info("coordinator", "stopping signal=%u", info.ssi_signo);
            l->stop = true;
        }
    }
}

static void check_disk(struct loop *l)
{
    uint64_t free_bytes = db_free_bytes(streamlog_db(l->log)), reserve = l->options.reserve_bytes;
    bool low = l->disk_low ? free_bytes < 2 * reserve + reserve / 2 : free_bytes < 2 * reserve;
    if (low == l->disk_low)
        return;
    l->disk_low = low;
    if (low)
        log_error("coordinator", "disk low, pushes are refused for now free_bytes=%llu needed=%llu",
                  (unsigned long long)free_bytes, (unsigned long long)(2 * reserve));
    else
        log_info("coordinator", "disk has room again free_bytes=%llu", (unsigned long long)free_bytes);
    struct event event = {.kind = EVENT_DISK_LOW, .low = low};
    step(l, &event);
}

static void chores(struct loop *l)
{
    uint64_t now = clock_ms();
    if (now - l->chores_ms < CHORES_MS)
        return;
    l->chores_ms = now;
    notify_beat();
    struct err err;
    enum status st = bulk_status(l->bulk, &err);
    if (st)
        fail(l, st, &err);
    check_disk(l);

    struct peer gone;
    peers_expire(l->peers, now);
    while (peers_take_gone(l->peers, &gone)) {
        struct event event = {.kind = EVENT_PEER_GONE, .peer = gone};
        step(l, &event);
    }
    uint32_t n = l->n_drops;
    l->n_drops = 0;
    for (uint32_t i = 0; i < n; i++)
        if (!roots_find(l->roots, &l->drops[i])) /* made again in the meantime: it is somebody's */
            drop_blob(l, &l->drops[i]);
    struct digest stale;
    while (bulk_take_stale(l->bulk, &stale))
        if (!roots_find(l->roots, &stale))
            drop_blob(l, &stale);

    struct report_source source = source_of(l);
    struct picture *picture = picture_take(&source);
    news_look(&l->news, &picture->s);
    dashboard_update(l->dashboard, picture, source.now_ms);
    st = history_fill(l->history, streamlog_db(l->log), report_newest(l->core), HISTORY_TURN, &err);
    if (st && st != ST_NOT_FOUND) /* the newest may not be committed yet */
        log_error("coordinator", "reading the versions' losses: %s", err.text);
}

static int wait_ms(const struct loop *l)
{
    uint64_t now = clock_ms(), at = core_deadline(l->core), chores_at = l->chores_ms + CHORES_MS;
    if (chores_at < at)
        at = chores_at;
    return at <= now ? 0 : (int)(at - now);
}

/* With a full group nothing more is read: the sockets fill, and the peers wait. */
static enum status wait_for_work(struct loop *l, unsigned *ready, struct err *err)
{
    unsigned n = l->options.stop_fd >= 0 ? FDS : FDS - 1;
    return endpoint_wait(l->endpoint, !streamlog_full(l->log), l->fds, n, wait_ms(l), ready, err);
}

static void serve(struct loop *l)
{
    while (!l->stop) {
        unsigned ready = 0;
        struct err err;
        enum status st = wait_for_work(l, &ready, &err);
        if (st && st != ST_TIMEOUT) {
            fail(l, st, &err);
            break;
        }
        dashboard_beat(l->dashboard);
        if (ready & 1u << FD_STOP)
            l->stop = true;
        if (ready & 1u << FD_SIGNAL)
            on_signal(l);
        if (ready & 1u << FD_MAIL)
            on_mail(l);
        if (drain(l))
            break;
        if (core_deadline(l->core) <= clock_ms()) {
            struct event event = {.kind = EVENT_TICK};
            step(l, &event);
        }
        chores(l);
        streamlog_handover(l->log);
    }
}

/* ---- start and stop -------------------------------------------------------------------------------------------- */

static enum status open_fds(struct loop *l, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread: all inherit it */
    l->fds[FD_SIGNAL] = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    l->fds[FD_MAIL] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    l->fds[FD_STOP] = l->options.stop_fd;
    if (l->fds[FD_SIGNAL] < 0 || l->fds[FD_MAIL] < 0)
        return err_set(err, ST_IO, "signalfd or eventfd: %s", strerror(errno));
    return ST_OK;
}

static enum status drop_stale_snapshot(struct loop *l, struct err *err)
{
    int lock;
    enum status st = backup_begin(l->dir.path, &lock, err);
    if (!st)
        st = backup_snapshot_drop(l->dir.path, err);
    if (lock >= 0)
        close(lock);
    return st == ST_CONFLICT ? ST_OK : st; /* it is being copied */
}

static enum status open_disk(struct loop *l, struct err *err)
{
    char db[DIR_PATH_SIZE], witness[DIR_PATH_SIZE], blobs[DIR_PATH_SIZE];
    uint64_t deleted = 0;
    enum status st = line_dir_open(l->options.dir, &l->dir, err);
    if (!l->options.port)
        l->options.port = l->dir.port;
    if (!st)
        st = line_dir_path(&l->dir, "db", db, err);
    if (!st)
        st = line_dir_path(&l->dir, "witness", witness, err);
    if (!st)
        st = line_dir_path(&l->dir, "blobs", blobs, err);
    if (!st)
        st = blob_store_open(blobs, l->options.reserve_bytes, &l->blobs, err);
    if (!st)
        st = streamlog_open(db, witness, l->options.reserve_bytes, false, &l->log, err);
    uint64_t renewed = 0;
    if (!st)
        st = signing_renew(l->log, &l->dir, clock_wall_s(), &renewed, err);
    if (!st && renewed)
        log_info("coordinator", "signed anew with the present release key versions=%llu", (unsigned long long)renewed);
    if (!st) /* of a backup that was not finished: it would keep what is deleted */
        st = drop_stale_snapshot(l, err);
    l->roots = roots_new();
    if (!st)
        st = roots_load(l->roots, streamlog_db(l->log), err);
    if (!st)
        st = roots_collect(l->roots, l->blobs, &deleted, err);
    if (!st && deleted)
        log_info("coordinator", "collected blobs=%llu", (unsigned long long)deleted);
    return st;
}

/* The new session is durable before anybody can hear of it. */
static enum status start_core(struct loop *l, struct err *err)
{
    line_dir_core_config(&l->dir, &l->config);
    l->core = core_new(&l->config);
    enum status st = streamlog_load(l->log, l->core, err);
    struct aggregator_config ac = {.blobs = l->blobs,
                                   .card = l->dir.card,
                                   .shape = l->dir.shape,
                                   .settings = l->dir.settings,
                                   .seed = hash_sip(&l->dir.seed, "sketch", 6),
                                   .notify_fd = l->fds[FD_MAIL]};
    if (!st)
        st = aggregator_start(&ac, &l->aggregator, err);
    if (!st)
        st = purger_start(streamlog_db(l->log), l->fds[FD_MAIL], &l->purger, err);
    if (st)
        return st;
    struct event event = {.kind = EVENT_START};
    random_bytes(event.incarnation, sizeof event.incarnation);
    l->peers = peers_new();
    step(l, &event);
    if (l->status) {
        *err = l->err;
        return l->status;
    }
    st = streamlog_commit(l->log, err);
    if (!st)
        st = streamlog_durable(l->log, &l->committed, err);
    if (!st)
        st = streamlog_start(l->log, l->fds[FD_MAIL], err);
    if (!st) {
        event = (struct event){.kind = EVENT_COMMITTED, .seq = l->committed};
        step(l, &event);
    }
    return st;
}

static enum status open_doors(struct loop *l, struct err *err)
{
    enum status st = keys_open(l->dir.path, &l->keys, err);
    if (!(l->zmq = zmq_ctx_new()))
        st = err_set(err, ST_NO_MEMORY, "zmq_ctx_new: %s", zmq_strerror(zmq_errno()));
    if (!st)
        st = zap_start(l->zmq, l->keys, l->metrics, &l->zap, err);
    struct endpoint_config ec = {.zmq = l->zmq,
                                 .keys = l->keys,
                                 .server = l->dir.server,
                                 .host = l->options.host,
                                 .port = l->options.port,
                                 .planes =
                                     1u << PLANE_INGEST | 1u << PLANE_WORK | 1u << PLANE_MODELS | 1u << PLANE_CONTROL,
                                 .metrics = l->metrics};
    if (!st)
        st = endpoint_open(&ec, &l->endpoint, err);
    struct bulk_config bc = {.zmq = l->zmq,
                             .keys = l->keys,
                             .metrics = l->metrics,
                             .dir = &l->dir,
                             .host = l->options.host,
                             .port = l->options.port,
                             .db = streamlog_db(l->log),
                             .blobs = l->blobs,
                             .roots = l->roots,
                             .upload_bytes = l->options.upload_bytes};
    struct dashboard_config hc = {.host = l->options.http_host,
                                  .name = l->options.http_name,
                                  .port = l->options.http_port,
                                  .metrics = l->metrics,
                                  .log = l->log,
                                  .zap = l->zap};
    if (!st)
        st = facts_session(l->log, &bc.session, err);
    if (!st)
        st = bulk_start(&bc, &l->bulk, err);
    if (!st)
        st = dashboard_start(&hc, &l->dashboard, err);
    return st;
}

/* Everything in reverse; what was decided but not yet committed is committed, though nobody is told any more. */
static enum status shut_down(struct loop *l, struct err *err)
{
    dashboard_stop(&l->dashboard);
    bulk_stop(&l->bulk);
    endpoint_close(l->endpoint);
    zap_stop(l->zap);
    if (l->zmq)
        zmq_ctx_term(l->zmq);
    keys_free(l->keys);
    aggregator_stop(&l->aggregator);
    purger_stop(&l->purger);
    if (l->log) {
        struct streamlog_stats stats;
        streamlog_stats(l->log, &stats);
        log_info("coordinator", "stopping commits=%llu batches=%llu bytes=%llu commit_seconds=%.3f",
                 (unsigned long long)stats.groups, (unsigned long long)stats.batches, (unsigned long long)stats.bytes,
                 stats.seconds);
    }
    enum status st = streamlog_close(&l->log, err);
    core_free(l->core);
    history_free(l->history);
    peers_free(l->peers);
    roots_free(l->roots);
    blob_store_close(&l->blobs);
    effects_release(&l->effects);
    metrics_free(l->metrics);
    line_dir_close(&l->dir);
    for (int i = 0; i < FD_STOP; i++)
        if (l->fds[i] >= 0)
            close(l->fds[i]);
    return st;
}

/* A worker holds two connections; shells give 1,024 descriptors where the system allows more. */
static void raise_descriptors(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* without it there is room for fewer */
    }
}

enum status coordinator_run(const struct coordinator_options *options, struct err *err)
{
    hash_start();
    raise_descriptors();
    struct loop *l = xcalloc(1, sizeof *l);
    struct err closing = {""};
    double start = clock_s();
    l->options = *options;
    l->dir.lock_fd = -1;
    l->fds[FD_SIGNAL] = l->fds[FD_MAIL] = -1;
    l->options.host = options->host ? options->host : "127.0.0.1";
    l->options.reserve_bytes = options->reserve_bytes ? options->reserve_bytes : RESERVE_DEFAULT;
    l->options.upload_bytes = options->upload_bytes ? options->upload_bytes : (uint64_t)UPLOADS_DEFAULT_GIB << 30;
    l->metrics = metrics_new();
    l->history = history_new();
    enum status st = open_fds(l, err);
    if (!st)
        st = open_disk(l, err);
    if (!st)
        st = start_core(l, err);
    if (!st)
        st = open_doors(l, err);
    if (!st) {
        log_info("coordinator", "ready line=%s version=%llu session=%llu ports=%u-%u http=%u seconds=%.2f",
                 l->dir.line.s, (unsigned long long)report_newest(l->core), (unsigned long long)report_session(l->core),
                 l->options.port, l->options.port + PLANES - 1, dashboard_port(l->dashboard), clock_s() - start);
        notify_ready();
        serve(l);
        notify_stopping();
        st = l->status;
        if (st && err)
            *err = l->err;
    }
    enum status closed = shut_down(l, &closing);
    if (!st && closed) {
        st = closed;
        if (err)
            *err = closing;
    }
    free(l);
    return st;
}
