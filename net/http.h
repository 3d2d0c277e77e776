/* http.h - the small window: GET and HEAD of a fixed table of paths, on loopback unless told otherwise.
 *
 * For /livez, /readyz, /metrics and the dashboard. No path from a request ever names a file; no request has a body. One
 * thread serves all requests and calls the handlers: a handler reads a snapshot and must be quick and thread-safe.
 *
 * Against hostile clients:
 * - At most HTTP_CONNECTIONS_MAX connections, each with a fixed memory for its headers (431 beyond it). When they are nearly
 *   used up, the one that has been idle or dripping for longest is closed for the newcomer, so that slow clients cannot shut
 *   out a probe. Silence closes a connection as well.
 * - The Host header must be an IP address, "localhost", or the name given at the start: a name that a hostile page has
 *   rebound to this address is refused with 421 (DNS rebinding: Jackson et al. 2007, Protecting browsers from DNS
 *   rebinding attacks, section 5.2).
 * - Every reply forbids framing, sniffing, foreign embedding, and (CSP) everything that is not from here.
 */
#ifndef NET_HTTP_H
#define NET_HTTP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/metrics.h"
#include "base/status.h"

struct http_reply {
    unsigned status;  /* preset to 200 */
    const char *type; /* preset to "text/plain; charset=utf-8"; static text */
    struct buf body;
    bool tagged; /* may be asked for with If-None-Match: an ETag of the body is sent, and 304 when it is the same */
};

struct http_request {
    const char *path;
    void *impl;
};
/* A query parameter's value, "" for one without, NULL when it was not given. Valid during the handler. */
const char *http_query(const struct http_request *request, const char *name);

typedef void http_handler(void *user, const struct http_request *request, struct http_reply *reply);

struct http_route {
    const char *path; /* exact: "/metrics" */
    http_handler *handler;
    void *user;
};

enum { HTTP_ROUTES_MAX = 32, HTTP_CONNECTIONS_MAX = 64 };

struct http;

/* `host` is an address, "127.0.0.1" by default (NULL), "*" for all; port 0: any free one. `name` is one more Host that may be
 * asked for, behind a proxy or in a cluster's DNS; NULL: none. The table is copied. ST_IO: cannot bind. */
enum status http_start(const char *host, uint16_t port, const char *name, const struct http_route *routes,
                       unsigned n_routes, struct http **out, struct err *err);
uint16_t http_port(const struct http *http);
void http_stop(struct http *http);

/* Ready-made handler: user is a struct metrics *. */
void http_metrics(void *user, const struct http_request *request, struct http_reply *reply);

#endif
