/* request.h - a peer's side of the wire: a connection to one plane, requests with ids, retries, and a stop flag.
 *
 * A DEALER under CURVE that reconnects by itself, with back-off from 100 ms to 10 s and jitter. Requests are idempotent
 * by design: a request that got no answer is sent again with the same id, over the new connection if the old one broke.
 * Two ways to use it, both from one thread at a time:
 *   - conn_call(): ask and wait. Says hello first on each new connection, when a hello was set.
 *   - conn_send() / conn_recv() / conn_wait(): pipelining; the caller says hello and resends after CONN_UP.
 *
 * Sends [frame], receives [frame].
 */
#ifndef NET_REQUEST_H
#define NET_REQUEST_H

#include <stdint.h>

#include "base/status.h"
#include "net/join.h"
#include "proto/codec.h"
#include "proto/frame.h"

struct conn;

/* `stop_fd`: readable means "stop" (an eventfd, or the read end of a pipe); every wait ends with ST_STOPPED. -1: none.
 * Returns at once: the connection is made in the background. ST_CONFIG: the join file's address or keys. */
enum status conn_open(void *zmq, const struct join *join, enum plane plane, int stop_fd, struct conn **out,
                      struct err *err);
void conn_close(struct conn *conn); /* NULL is fine; does not wait */

/* Said by conn_call() before the first request of every connection; deep-copied. `on_ok` (may be NULL) sees the answer
 * and may refuse it (the status becomes the call's). NULL hello: none. */
typedef enum status conn_hello_ok(void *user, const Alv__HelloOk *ok, struct err *err);
void conn_set_hello(struct conn *conn, const Alv__Hello *hello, conn_hello_ok *on_ok, void *user);

/* Asks and waits. ST_OK: `*reply` is the message of verb + 1, codec_free() it. ST_TIMEOUT: no answer in timeout_ms; the
 * effect is unknown. An Error from the server comes back as its status and text; ST_AGAIN is retried inside, no sooner
 * than it asked, until timeout_ms. ST_DENIED: refused at the handshake (this key is unknown or revoked) or by role.
 * ST_STOPPED. The text always names the server. */
enum status conn_call(struct conn *conn, uint16_t verb, const ProtobufCMessage *message, int timeout_ms,
                      ProtobufCMessage **reply, struct err *err);

/* Waits until the connection stands and the hello, when there is one, was answered. Fails as conn_call() does. */
enum status conn_ready(struct conn *conn, int timeout_ms, struct err *err);

/* ---- pipelining (conn_ready() says the hello here too; after CONN_UP, call it again) */

uint64_t conn_next_id(struct conn *conn);

/* Queues one request. ST_AGAIN: not connected, or the queue is full: wait for conn_recv(). */
enum status conn_send(struct conn *conn, uint16_t verb, uint64_t request_id, const ProtobufCMessage *message,
                      struct err *err);

enum conn_event {
    CONN_NONE,    /* time is up */
    CONN_UP,      /* a new connection stands: say hello, send again what is unanswered */
    CONN_DOWN,    /* the connection broke; it will come back */
    CONN_REPLY,   /* a reply: see struct reply */
    CONN_REFUSED, /* the handshake was refused: this key is unknown or revoked (text in err). Retried slowly */
};

struct reply {
    uint16_t verb; /* VERB_ERROR too */
    uint64_t request_id;
    ProtobufCMessage *message; /* owned: codec_free() */
};

/* The next event, waiting at most timeout_ms (0: not at all). ST_OK with `*event`; ST_STOPPED. Malformed replies are
 * dropped (a reply that does not come is retried anyway) and counted. */
enum status conn_recv(struct conn *conn, int timeout_ms, enum conn_event *event, struct reply *out, struct err *err);

/* Waits until one of the connections has an event or one of the file descriptors is readable, at most timeout_ms (-1:
 * for ever). ST_OK, ST_TIMEOUT. Then ask each with conn_recv(..., 0, ...). */
enum { CONN_WAIT_MAX = 16 };
enum status conn_wait(struct conn *const *conns, unsigned n_conns, const int *fds, unsigned n_fds, int timeout_ms,
                      struct err *err);

bool conn_is_up(const struct conn *conn);
/* ST_TIMEOUT and, as far as it can be told, why nothing came in the time that was waited. */
enum status conn_overdue(const struct conn *conn, int waited_ms, struct err *err);
uint64_t conn_generation(const struct conn *conn); /* number of connections made so far: changed means "resend" */
const char *conn_where(const struct conn *conn);   /* "line notes at tcp://host:7404", for messages */

#endif
