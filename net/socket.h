/* socket.h - the options that every socket of ours has, in one place; inside net/ only.
 *
 * CURVE on both sides, bounded queues and messages, heartbeats, time limits on connecting and shaking hands, no linger.
 */
#ifndef NET_SOCKET_H
#define NET_SOCKET_H

#include "base/status.h"
#include "net/keys.h"

/* Both NULL on failure with ST_IO. The caller closes with zmq_close(). */
enum status socket_server(void *zmq, const struct curve_pair *server, void **out, struct err *err);
enum status socket_client(void *zmq, const struct curve_pair *me, const struct curve_key *server, void **out,
                          struct err *err);

/* A PAIR socket that receives `events` of `socket`. */
enum status socket_monitor(void *zmq, void *socket, int events, void **out, struct err *err);
/* The next event, or 0 when there is none. */
int socket_event(void *monitor);

#endif
