/* endpoint.h - the coordinator's side of the wire: one ROUTER a plane, CURVE only, default deny.
 *
 * An endpoint holds the sockets of some planes and belongs to one thread: the loop opens one for ingest, work, models
 * and control, the bulk thread another for bulk. What endpoint_recv() hands out has passed, in this order: the
 * handshake (zap.h), the size limit, the frame header, the key table as it is now (role, not revoked), the table of
 * verbs (plane and role), a producer's list of domains, and codec.h. What did not pass is answered with an Error (when
 * there is an id to answer), counted, and never seen by the caller.
 *
 * Receives [routing id, frame]; sends [routing id, frame]. Nothing blocks but endpoint_wait().
 */
#ifndef NET_ENDPOINT_H
#define NET_ENDPOINT_H

#include <stdint.h>

#include "base/metrics.h"
#include "base/status.h"
#include "net/keys.h"
#include "proto/codec.h"
#include "proto/frame.h"
#include "proto/verbs.h"

enum { ROUTE_LEN = 5 };

/* Where a reply goes. A peer gets a new route at every reconnect; a route is never given to another peer while the
 * socket lives. Compare with memcmp. */
struct route {
    uint8_t plane; /* enum plane */
    uint8_t id[ROUTE_LEN];
};

struct incoming {
    struct route from;
    struct name key; /* name in the key table: the peer's only identity; nothing in a message replaces it */
    enum role role;
    uint16_t verb;
    uint64_t request_id;
    ProtobufCMessage *message; /* of verb_find(verb); owned: incoming_release() */
    uint32_t frame_bytes;
};

struct endpoint_config {
    void *zmq; /* context, with a running zap thread */
    struct keys *keys;
    struct curve_pair server; /* server_key_read() */
    const char *host;         /* "*", "127.0.0.1", "[::1]", "ipc:/dir": see join_endpoint() */
    uint16_t port;            /* base */
    unsigned planes;          /* bits 1 << plane */
    struct metrics *metrics;  /* or NULL */
};

struct endpoint;

/* Runs zap_self_test(), then binds. ST_DENIED: the door does not shut; ST_IO: cannot bind (address in the text). */
enum status endpoint_open(const struct endpoint_config *config, struct endpoint **out, struct err *err);
void endpoint_close(struct endpoint *endpoint); /* NULL is fine; queued replies are dropped */

/* Waits until a message (`hear`; else messages are left where they are) or one of the file descriptors is ready, at most
 * timeout_ms (-1: for ever). ST_OK or ST_TIMEOUT; a signal is ST_OK. `ready`: bit i set when fds[i] is readable; may be
 * NULL when n_fds is 0. A change of the key table ends the wait (ST_OK) and the connections of keys that were revoked. */
enum { ENDPOINT_FDS_MAX = 8 };
enum status endpoint_wait(struct endpoint *endpoint, bool hear, const int *fds, unsigned n_fds, int timeout_ms,
                          unsigned *ready, struct err *err);

/* The next admitted message, planes in turn. ST_EMPTY: none now. Refused ones are dealt with inside, at most 64 a call
 * (then ST_EMPTY, so that a flood of refusals cannot hold the loop). */
enum status endpoint_recv(struct endpoint *endpoint, struct incoming *out, struct err *err);
void incoming_release(struct incoming *in);

/* Queues a reply. ST_AGAIN (the peer's queue is full) and ST_NOT_FOUND (it has gone): the reply is dropped and counted;
 * the peer will ask again with the same id, so nothing is to be done. ST_LIMIT, ST_BAD_DATA: our reply breaks the
 * codec's rules; an Error with ST_INTERNAL was sent in its place. */
enum status endpoint_send(struct endpoint *endpoint, const struct route *to, uint16_t verb, uint64_t request_id,
                          const ProtobufCMessage *message, struct err *err);
enum status endpoint_send_error(struct endpoint *endpoint, const struct route *to, uint64_t request_id,
                                enum status status, const char *text, uint32_t retry_ms, struct err *err);

#endif
