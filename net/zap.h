/* zap.h - the door: a thread that answers every CURVE handshake from the key table (RFC 27, ZAP).
 *
 * Start it before any socket binds: without a handler libzmq encrypts but lets everybody in. Sockets must set
 * ZMQ_ZAP_DOMAIN to ZAP_DOMAIN and ZMQ_ZAP_ENFORCE_DOMAIN (endpoint.c does). The peer's public key becomes the
 * "User-Id" of all its messages, so that the table can be asked again on each of them.
 *
 * Listens: inproc://zeromq.zap.01, REP: [version, request id, domain, address, identity, mechanism, key].
 * Answers: [version, request id, status, text, user id, ""]: 200; 400 unknown, revoked, no CURVE, other domain; 300 (the
 * peer comes again) when the table cannot be read.
 */
#ifndef NET_ZAP_H
#define NET_ZAP_H

#include <stdbool.h>

#include "base/metrics.h"
#include "base/status.h"
#include "net/keys.h"

#define ZAP_DOMAIN "alluvium"

struct zap;

/* `zmq` is the ZeroMQ context, `keys` must outlive the thread, `metrics` may be NULL:
 * alluvium_handshakes_total{result="ok|unknown|malformed|unavailable"}. ST_CONFLICT: the context has a handler. */
enum status zap_start(void *zmq, struct keys *keys, struct metrics *metrics, struct zap **out, struct err *err);
void zap_stop(struct zap *zap); /* after the last endpoint is closed */
/* Has its thread looked for handshakes lately? Any thread may ask. */
bool zap_alive(const struct zap *zap);

/* Proves that the door is shut: binds a socket of our kind on loopback, knocks with a key nobody knows, and demands
 * that the handshake is refused. ST_DENIED (do not serve!) when a message got through or the refusal did not come.
 * endpoint_open() calls it. Takes milliseconds. */
enum status zap_self_test(void *zmq, struct err *err);

#endif
