#include "coordinator/dashboard.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "net/http.h"

enum { DEAD_MS = 30 * 1000 }; /* a loop that has not turned for this long: longer than any commit or step */

struct dashboard {
    struct http *http;
    struct metrics *metrics;
    _Atomic uint64_t beat_ms;
    pthread_mutex_t lock; /* of the rest */
    char *status;         /* JSON */
    bool disk_low;
};

static const char PAGE[] =
    "<!doctype html><meta charset=utf-8><title>alluvium</title>"
    "<style>body{font:14px/1.5 monospace;margin:2em}</style>"
    "<h1>alluvium</h1><p><a href=/metrics>metrics</a> <a href=/status.json>status.json</a></p><pre id=s></pre>"
    "<script>async function f(){const r=await fetch('/status.json');"
    "document.getElementById('s').textContent=JSON.stringify(await r.json(),null,2)}f();setInterval(f,2000)</script>";

static void livez(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    (void)request;
    bool alive = clock_ms() - atomic_load(&d->beat_ms) < DEAD_MS;
    reply->status = alive ? 200 : 503;
    buf_printf(&reply->body, "%s\n", alive ? "ok" : "the loop does not turn");
}

static void readyz(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    (void)request;
    bool alive = clock_ms() - atomic_load(&d->beat_ms) < DEAD_MS;
    pthread_mutex_lock(&d->lock);
    const char *why = !alive ? "the loop does not turn" : !d->status ? "starting" : d->disk_low ? "disk low" : NULL;
    pthread_mutex_unlock(&d->lock);
    reply->status = why ? 503 : 200;
    buf_printf(&reply->body, "%s\n", why ? why : "ok");
}

static void status_json(void *user, const struct http_request *request, struct http_reply *reply)
{
    struct dashboard *d = user;
    (void)request;
    reply->type = "application/json";
    pthread_mutex_lock(&d->lock);
    buf_printf(&reply->body, "%s\n", d->status ? d->status : "{}");
    pthread_mutex_unlock(&d->lock);
}

static void page(void *user, const struct http_request *request, struct http_reply *reply)
{
    (void)user, (void)request;
    reply->type = "text/html; charset=utf-8";
    buf_put(&reply->body, PAGE, sizeof PAGE - 1);
}

enum status dashboard_start(struct metrics *metrics, uint16_t port, struct dashboard **out, struct err *err)
{
    struct dashboard *d = xcalloc(1, sizeof *d);
    d->metrics = metrics;
    pthread_mutex_init(&d->lock, NULL);
    dashboard_beat(d);
    const struct http_route routes[] = {
        {"/livez", livez, d},
        {"/readyz", readyz, d},
        {"/metrics", http_metrics, metrics},
        {"/status.json", status_json, d},
        {"/", page, d},
    };
    enum status st = ST_OK;
    if (port)
        st = http_start("127.0.0.1", port, routes, sizeof routes / sizeof routes[0], &d->http, err);
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
    free(d->status);
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

void dashboard_update(struct dashboard *d, const struct report_source *source, bool disk_low)
{
    if (!d->http)
        return;
    report_metrics(source, d->metrics);
    json_t *json = report_status(source);
    char *text = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    pthread_mutex_lock(&d->lock);
    free(d->status);
    d->status = text;
    d->disk_low = disk_low;
    pthread_mutex_unlock(&d->lock);
}
