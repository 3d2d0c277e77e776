#include "net/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"

enum { CROWDED = HTTP_CONNECTIONS_MAX - 8 }; /* connections, from which on the slowest makes room */

struct guest { /* a connection; only the daemon's thread looks at it */
    int fd;
    uint64_t since_ms; /* it came, or had its last answer */
};

struct http {
    struct MHD_Daemon *daemon;
    char name[LIMIT_HOST_BYTES + 1];
    unsigned n_routes, n_guests;
    struct http_route routes[HTTP_ROUTES_MAX];
    struct guest *guests[HTTP_CONNECTIONS_MAX];
};

static const char plain[] = "text/plain; charset=utf-8";

const char *http_query(const struct http_request *request, const char *name)
{
    const char *value = NULL;
    size_t len = 0;
    if (MHD_lookup_connection_value_n(request->impl, MHD_GET_ARGUMENT_KIND, name, strlen(name), &value, &len) !=
        MHD_YES)
        return NULL;
    return value ? value : ""; /* "?verbose" */
}

/* ---- who is connected ------------------------------------------------------------------------------------------- */

/* Its reader sees the end of the stream, and the daemon closes it in this very turn. */
static void turn_out_slowest(struct http *h)
{
    struct guest *slowest = h->guests[0];
    for (unsigned i = 1; i < h->n_guests; i++)
        if (h->guests[i]->since_ms < slowest->since_ms)
            slowest = h->guests[i];
    slowest->since_ms = UINT64_MAX; /* it is on its way out */
    shutdown(slowest->fd, SHUT_RDWR);
}

static void on_connection(void *user, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    struct http *h = user;
    struct guest *g = *context;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        CHECK(h->n_guests < HTTP_CONNECTIONS_MAX);
        if (h->n_guests >= CROWDED)
            turn_out_slowest(h);
        g = xcalloc(1, sizeof *g);
        g->fd = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        g->since_ms = clock_ms();
        h->guests[h->n_guests++] = g;
        *context = g;
        return;
    }
    for (unsigned i = 0; i < h->n_guests; i++)
        if (h->guests[i] == g)
            h->guests[i] = h->guests[--h->n_guests];
    free(g);
}

/* ---- replies ---------------------------------------------------------------------------------------------------- */

enum { TAG_SIZE = 2 + 2 * 16 + 1 };

static void tag_of(const struct buf *body, char out[TAG_SIZE])
{
    struct digest digest;
    hash_blake2b(body->data, body->len, &digest);
    out[0] = '"';
    hex_encode(digest.b, 16, out + 1);
    out[TAG_SIZE - 2] = '"';
    out[TAG_SIZE - 1] = 0;
}

static enum MHD_Result respond(struct MHD_Connection *connection, struct http_reply *reply)
{
    static const char *const headers[][2] = {
        {MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache"},
        {"X-Content-Type-Options", "nosniff"},
        {"X-Frame-Options", "DENY"},
        {"Referrer-Policy", "no-referrer"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
        {"Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                                    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
    };
    char tag[TAG_SIZE] = "";
    if (reply->tagged && reply->status == MHD_HTTP_OK) {
        const char *has = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_IF_NONE_MATCH);
        tag_of(&reply->body, tag);
        if (has && !strcmp(has, tag)) {
            reply->status = MHD_HTTP_NOT_MODIFIED;
            buf_clear(&reply->body);
        }
    }
    struct MHD_Response *r = MHD_create_response_from_buffer(reply->body.len, reply->body.data, MHD_RESPMEM_MUST_COPY);
    buf_release(&reply->body);
    if (!r)
        return MHD_NO;
    enum MHD_Result ok = MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, reply->type);
    for (size_t i = 0; ok == MHD_YES && i < sizeof headers / sizeof headers[0]; i++)
        ok = MHD_add_response_header(r, headers[i][0], headers[i][1]);
    if (ok == MHD_YES && *tag)
        ok = MHD_add_response_header(r, MHD_HTTP_HEADER_ETAG, tag);
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

/* ---- requests --------------------------------------------------------------------------------------------------- */

/* "name", "name:port", "1.2.3.4:port", "[::1]:port": the name or address alone. */
static bool host_name(const char *host, char *out, size_t size)
{
    bool six = host[0] == '[';
    size_t n = six ? strcspn(++host, "]") : strcspn(host, ":");
    if (!n || n >= size || (six && host[n] != ']'))
        return false;
    memcpy(out, host, n);
    out[n] = 0;
    const char *rest = host + n + six;
    return !*rest || (*rest == ':' && strspn(rest + 1, "0123456789") == strlen(rest + 1));
}

/* An address cannot be rebound, and "localhost" is not asked of the DNS. Without a Host (HTTP/1.0) it was no browser. */
static bool host_allowed(const struct http *h, const char *host)
{
    char name[LIMIT_HOST_BYTES + 1];
    struct in6_addr address;
    if (!host)
        return true;
    if (!host_name(host, name, sizeof name))
        return false;
    return inet_pton(AF_INET, name, &address) == 1 || inet_pton(AF_INET6, name, &address) == 1 ||
           !strcasecmp(name, "localhost") || (h->name[0] && !strcasecmp(name, h->name));
}

static bool is_read(const char *method)
{
    return !strcmp(method, MHD_HTTP_METHOD_GET) || !strcmp(method, MHD_HTTP_METHOD_HEAD);
}

static void answer(const struct http *h, const struct http_request *request, const char *method,
                   struct http_reply *reply)
{
    const struct http_route *route = NULL;
    for (unsigned i = 0; i < h->n_routes; i++)
        if (!strcmp(h->routes[i].path, request->path))
            route = &h->routes[i];
    if (!host_allowed(h, MHD_lookup_connection_value(request->impl, MHD_HEADER_KIND, MHD_HTTP_HEADER_HOST)))
        say(reply, MHD_HTTP_MISDIRECTED_REQUEST, "this server is asked for by address, or by the name in --http-name");
    else if (!is_read(method))
        say(reply, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD");
    else if (!route)
        say(reply, MHD_HTTP_NOT_FOUND, "no such page");
    else
        route->handler(route->user, request, reply);
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *connection, const char *path, const char *method,
                                  const char *version, const char *upload, size_t *upload_bytes, void **context)
{
    static int seen; /* MHD calls once with the headers, then again: only its address is used */
    const struct http *h = user;
    struct http_reply reply = {.status = MHD_HTTP_OK, .type = plain};
    const struct http_request request = {path, connection};
    (void)version, (void)upload;
    if (!*context) {
        *context = &seen;
        if (is_read(method))
            return MHD_YES;
    }                    /* else it is refused before its body comes */
    if (*upload_bytes) { /* no request has a body */
        *upload_bytes = 0;
        return MHD_NO;
    }
    answer(h, &request, method, &reply);
    struct guest *g = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    if (g && g->since_ms != UINT64_MAX)
        g->since_ms = clock_ms();
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

enum status http_start(const char *host, uint16_t port, const char *name, const struct http_route *routes,
                       unsigned n_routes, struct http **out, struct err *err)
{
    enum { IDLE_S = 10, CONNECTION_BYTES = 32 * 1024 };
    struct sockaddr_storage at;
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD; /* select() cannot see descriptors over 1023, and a line has more */
    CHECK(n_routes <= HTTP_ROUTES_MAX);
    if (!address_of(host, port, &at, &flags))
        return err_set(err, ST_CONFIG, "http: %s is no IPv4 or IPv6 address", host);
    struct http *h = xcalloc(1, sizeof *h);
    snprintf(h->name, sizeof h->name, "%s", name ? name : "");
    h->n_routes = n_routes;
    memcpy(h->routes, routes, n_routes * sizeof *routes);
    h->daemon = MHD_start_daemon(flags, port, NULL, NULL, on_request, h, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at,
                                 MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_CONNECTION_LIMIT,
                                 (unsigned)HTTP_CONNECTIONS_MAX, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_S,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES, MHD_OPTION_END);
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
