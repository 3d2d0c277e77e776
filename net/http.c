#include "net/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

struct http {
    struct MHD_Daemon *daemon;
    unsigned n_routes;
    struct http_route routes[HTTP_ROUTES_MAX];
};

static const char plain[] = "text/plain; charset=utf-8";

const char *http_query(const struct http_request *request, const char *name)
{
    return MHD_lookup_connection_value(request->impl, MHD_GET_ARGUMENT_KIND, name);
}

static enum MHD_Result respond(struct MHD_Connection *connection, struct http_reply *reply)
{
    static const char *const headers[][2] = {
        {MHD_HTTP_HEADER_CACHE_CONTROL, "no-store"},
        {"X-Content-Type-Options", "nosniff"},
        {"Content-Security-Policy", "default-src 'self'; style-src 'self' 'unsafe-inline'; "
                                    "script-src 'self' 'unsafe-inline'; frame-ancestors 'none'"},
    };
    struct MHD_Response *r = MHD_create_response_from_buffer(reply->body.len, reply->body.data, MHD_RESPMEM_MUST_COPY);
    buf_release(&reply->body);
    if (!r)
        return MHD_NO;
    enum MHD_Result ok = MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, reply->type);
    for (size_t i = 0; ok == MHD_YES && i < sizeof headers / sizeof headers[0]; i++)
        ok = MHD_add_response_header(r, headers[i][0], headers[i][1]);
    if (ok == MHD_YES && reply->status == MHD_HTTP_METHOD_NOT_ALLOWED)
        ok = MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    if (ok == MHD_YES)
        ok = MHD_queue_response(connection, reply->status, r);
    MHD_destroy_response(r);
    return ok;
}

static void say(struct http_reply *reply, unsigned status, const char *text)
{
    reply->status = status;
    buf_printf(&reply->body, "%s\n", text);
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *upload, size_t *upload_bytes, void **context)
{
    static int seen; /* MHD calls once with the headers, then again: only its address is used */
    const struct http *h = user;
    struct http_reply reply = {200, plain, {0}};
    const struct http_request request = {path, connection};
    (void)version, (void)upload;
    if (!*context) {
        *context = &seen;
        return MHD_YES;
    }
    if (*upload_bytes) { /* no request has a body */
        *upload_bytes = 0;
        return MHD_NO;
    }
    const struct http_route *route = NULL;
    for (unsigned i = 0; i < h->n_routes; i++)
        if (!strcmp(h->routes[i].path, path))
            route = &h->routes[i];
    if (strcmp(method, MHD_HTTP_METHOD_GET) && strcmp(method, MHD_HTTP_METHOD_HEAD))
        say(&reply, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD");
    else if (!route)
        say(&reply, MHD_HTTP_NOT_FOUND, "no such page");
    else
        route->handler(route->user, &request, &reply);
    return respond(connection, &reply);
}

static bool address_of(const char *host, uint16_t port, struct sockaddr_storage *out, unsigned *flags)
{
    struct sockaddr_in *four = (struct sockaddr_in *)out;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
    memset(out, 0, sizeof *out);
    if (!host)
        host = "127.0.0.1";
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    if (!strcmp(host, "*"))
        return true;
    if (inet_pton(AF_INET, host, &four->sin_addr) == 1)
        return true;
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    *flags |= MHD_USE_IPv6;
    return inet_pton(AF_INET6, host, &six->sin6_addr) == 1;
}

enum status http_start(const char *host, uint16_t port, const struct http_route *routes, unsigned n_routes,
                       struct http **out, struct err *err)
{
    enum { IDLE_S = 10, CONNECTION_BYTES = 32 * 1024 };
    struct sockaddr_storage at;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD;
    CHECK(n_routes <= HTTP_ROUTES_MAX);
    if (!address_of(host, port, &at, &flags))
        return err_set(err, ST_CONFIG, "http: %s is no IPv4 or IPv6 address", host);
    struct http *h = xcalloc(1, sizeof *h);
    h->n_routes = n_routes;
    memcpy(h->routes, routes, n_routes * sizeof *routes);
    h->daemon = MHD_start_daemon(flags, port, NULL, NULL, on_request, h, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at,
                                 MHD_OPTION_CONNECTION_LIMIT, (unsigned)HTTP_CONNECTIONS_MAX,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
                                 (size_t)CONNECTION_BYTES, MHD_OPTION_END);
    if (!h->daemon) {
        enum status st =
            err_set(err, ST_IO, "http: cannot listen on %s:%u: %s", host ? host : "127.0.0.1", port, strerror(errno));
        free(h);
        return st;
    }
    *out = h;
    return ST_OK;
}

uint16_t http_port(const struct http *h)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info ? info->port : 0;
}

void http_stop(struct http *h)
{
    if (!h)
        return;
    MHD_stop_daemon(h->daemon);
    free(h);
}

void http_metrics(void *user, const struct http_request *request, struct http_reply *reply)
{
    (void)request;
    reply->type = "text/plain; version=0.0.4; charset=utf-8";
    metrics_render(user, &reply->body);
}
