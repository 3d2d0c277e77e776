#include "coordinator/dashboard.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "coordinator/facts.h"
#include "coordinator/gauges.h"
#include "coordinator/page.h"
#include "net/http.h"

enum {
    DEAD_MS = 30 * 1000, /* a loop that has not turned, or a commit that has not ended, for this long */
    LIST_DEFAULT = 30,
    LIST_MAX = 50,   /* versions or verdicts in one answer: what one costs has a bound whatever the line's length */
    FILL_ROWS = 256, /* versions read for the measures in one answer */
};

struct dashboard {
    struct dashboard_config config;
    struct http *http;
    _Atomic uint64_t beat_ms;

    pthread_mutex_t lock;
    struct picture *fresh; /* handed over by the loop, not yet looked at */

    struct picture *shown; /* these are the HTTP thread's own */
    uint64_t published_version, published_s;
    struct history *history;

    uint64_t committed, moved_ms; /* the loop's own: when commits last went on */
};

/* ---- what is shown ------------------------------------------------------------------------------------------------- */

/* The newest picture, or NULL before the first. */
static const struct picture *look(struct dashboard *d)
{
    pthread_mutex_lock(&d->lock);
    struct picture *fresh = d->fresh;
    d->fresh = NULL;
    pthread_mutex_unlock(&d->lock);
    if (!fresh)
        return d->shown;
    free(d->shown);
    d->shown = fresh;
    if (d->published_version != fresh->s.version || !d->published_s) {
        struct buf value = {0};
        struct state_version *v = xmalloc(sizeof *v);
        if (!facts_version(streamlog_db(d->config.log), fresh->s.version, &value, v, NULL)) {
            d->published_version = fresh->s.version;
            d->published_s = v->created_s;
        }
        free(v);
        buf_release(&value);
    }
    fresh->published_s = d->published_s;
    return fresh;
}

/* ---- probes -------------------------------------------------------------------------------------------------------- */

static bool loop_alive(const struct dashboard *d)
{
    return clock_ms() - atomic_load(&d->beat_ms) < DEAD_MS;
}

static void livez(void *user, const struct http_request *request, struct http_reply *reply)
{
    bool alive = loop_alive(user);
    (void)request;
    reply->status = alive ? 200 : 503;
    buf_printf(&reply->body, "%s\n", alive ? "ok" : "the loop does not turn");
}

static void readyz(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    const struct picture *p = look(d);
    const struct {
        const char *name, *why; /* NULL: in order */
    } checks[] = {
        {"loop", loop_alive(d) ? NULL : "does not turn"},
        {"database", !p                        ? "starting"
                     : p->stalled_ms > DEAD_MS ? "commits do not get on"
                                               : NULL},
        {"disk", p && p->s.disk_low ? "low: pushes are put off" : NULL},
        {"handshakes", zap_alive(d->config.zap) ? NULL : "are not answered"},
    };
    bool verbose = http_query(request, "verbose") != NULL, ready = true;
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        ready = ready && !checks[i].why;
        if (verbose || checks[i].why)
            buf_printf(&reply->body, "%s: %s\n", checks[i].name, checks[i].why ? checks[i].why : "ok");
    }
    if (ready)
        buf_printf(&reply->body, "ok\n");
    reply->status = ready ? 200 : 503;
}

static void metrics(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    const struct picture *p = look(d);
    http_metrics(d->config.metrics, request, reply);
    if (p)
        gauges_render(p, &reply->body);
    gauges_process(&reply->body);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------- */

static void put_json(json_t *json, struct http_reply *reply)
{
    char *text = json_dumps(json, JSON_COMPACT | JSON_REAL_PRECISION(10));
    json_decref(json);
    reply->type = "application/json";
    reply->tagged = true;
    CHECK(text);
    buf_printf(&reply->body, "%s\n", text);
    free(text);
}

static void put_error(enum status status, const struct err *err, struct http_reply *reply)
{
    json_t *json = json_pack("{s:{s:s,s:s}}", "error", "status", status_name(status), "text", err->text);
    reply->status = status == ST_USAGE ? 400 : status == ST_NOT_FOUND ? 404 : status == ST_AGAIN ? 503 : 500;
    put_json(json, reply);
}

static enum status number_of(const struct http_request *request, const char *name, uint64_t low, uint64_t high,
                             uint64_t preset, uint64_t *out, struct err *err)
{
    const char *text = http_query(request, name);
    *out = preset;
    if (!text)
        return ST_OK;
    size_t n = strlen(text);
    if (!n || n > 18 || strspn(text, "0123456789") != n || (*out = strtoull(text, NULL, 10)) < low || *out > high)
        return err_set(err, ST_USAGE, "%s takes a number from %llu to %llu", name, (unsigned long long)low,
                       (unsigned long long)high);
    return ST_OK;
}

static enum status page_of(const struct http_request *request, uint64_t *before, uint64_t *n, struct err *err)
{
    enum status st = number_of(request, "before", 1, INT64_MAX, 0, before, err);
    return st ? st : number_of(request, "n", 1, LIST_MAX, LIST_DEFAULT, n, err);
}

static void status_json(void *user, const struct http_request *request, struct http_reply *reply)
{
    const struct picture *p = look(user);
    const struct err starting = {"starting"};
    (void)request;
    if (p)
        put_json(report_status(p), reply);
    else
        put_error(ST_AGAIN, &starting, reply);
}

static void versions_json(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    const struct report_source source = {.log = d->config.log, .history = d->history};
    uint64_t before = 0, n = 0;
    struct err err = {""};
    json_t *json = NULL;
    char value[24];
    Alv__Control control = ALV__CONTROL__INIT;
    enum status st = page_of(request, &before, &n, &err);
    snprintf(value, sizeof value, "%llu", (unsigned long long)n);
    control.number = before;
    control.value = value;
    if (!st)
        st = report_versions(&source, &control, &json, &err);
    if (st)
        put_error(st, &err, reply);
    else
        put_json(json, reply);
}

static void verdicts_json(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    uint64_t before = 0, n = 0;
    struct err err = {""};
    json_t *json = NULL;
    enum status st = page_of(request, &before, &n, &err);
    if (!st)
        st = report_verdicts(streamlog_db(d->config.log), before, (uint32_t)n, &json, &err);
    if (st)
        put_error(st, &err, reply);
    else
        put_json(json, reply);
}

static void quarantine_json(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    struct err err = {""};
    json_t *json = NULL;
    enum status st = report_held(streamlog_db(d->config.log), LIST_MAX, &json, &err);
    (void)request;
    if (st)
        put_error(st, &err, reply);
    else
        put_json(json, reply);
}

static void page_file(void *user, const struct http_request *request, struct http_reply *reply)
{
    const struct page_file *file = user;
    (void)request;
    reply->type = file->type;
    reply->tagged = true;
    buf_put(&reply->body, file->body.data, file->body.len);
}

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static enum status serve(struct dashboard *d, struct err *err)
{
    struct http_route routes[HTTP_ROUTES_MAX] = {
        {"/livez", livez, d},
        {"/readyz", readyz, d},
        {"/metrics", metrics, d},
        {"/status.json", status_json, d},
        {"/versions.json", versions_json, d},
        {"/verdicts.json", verdicts_json, d},
        {"/quarantine.json", quarantine_json, d},
    };
    unsigned n = 7, n_files;
    const struct page_file *files = page_files(&n_files);
    for (unsigned i = 0; i < n_files; i++)
        routes[n++] = (struct http_route){files[i].path, page_file, (void *)(uintptr_t)&files[i]};
    return http_start(d->config.host, d->config.port, d->config.name, routes, n, &d->http, err);
}

enum status dashboard_start(const struct dashboard_config *config, struct dashboard **out, struct err *err)
{
    struct dashboard *d = xcalloc(1, sizeof *d);
    d->config = *config;
    pthread_mutex_init(&d->lock, NULL);
    d->history = history_new();
    dashboard_beat(d);
    enum status st = config->port ? serve(d, err) : ST_OK;
    *out = d;
    if (st)
        dashboard_stop(out);
    return st;
}

void dashboard_stop(struct dashboard **dp)
{
    struct dashboard *d = *dp;
    if (!d)
        return;
    *dp = NULL;
    if (d->http)
        http_stop(d->http);
    pthread_mutex_destroy(&d->lock);
    history_free(d->history);
    free(d->fresh);
    free(d->shown);
    free(d);
}

uint16_t dashboard_port(const struct dashboard *d)
{
    return d->http ? http_port(d->http) : 0;
}

void dashboard_beat(struct dashboard *d)
{
    atomic_store(&d->beat_ms, clock_ms());
}

void dashboard_update(struct dashboard *d, struct picture *p, uint64_t now_ms)
{
    if (!d->http) {
        free(p);
        return;
    }
    if (!p->uncommitted || p->s.committed != d->committed || !d->moved_ms) {
        d->committed = p->s.committed;
        d->moved_ms = now_ms;
    }
    p->stalled_ms = now_ms - d->moved_ms;
    pthread_mutex_lock(&d->lock);
    struct picture *unseen = d->fresh;
    d->fresh = p;
    pthread_mutex_unlock(&d->lock);
    free(unseen);
}
