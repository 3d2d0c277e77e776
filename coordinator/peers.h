/* peers.h - connections as numbers.
 *
 * A connection's number is its plane and its route, which the socket gives to nobody else while it lives; so the way
 * back needs no table. The table only remembers who is there, so that a connection that has been silent for
 * PEER_IDLE_MS (long polls come at least every LIMIT_WAIT_MS) is reported gone. One thread.
 */
#ifndef COORDINATOR_PEERS_H
#define COORDINATOR_PEERS_H

#include "coordinator/core/core.h"
#include "net/endpoint.h"

enum { PEER_IDLE_MS = 10 * 60 * 1000, PEERS_MAX = 1 << 14 };

struct peers;

struct peers *peers_new(void);
void peers_free(struct peers *peers);

uint64_t peers_conn(const struct route *from);
struct route peers_route(uint64_t conn);

/* A message has come: who sent it, as the core knows peers. When PEERS_MAX are there, the longest silent ones go. */
void peers_note(struct peers *peers, const struct route *from, enum role role, const struct name *key, uint64_t now_ms,
                struct peer *out);
void peers_gone(struct peers *peers, uint64_t conn); /* a reply had nowhere to go */
void peers_expire(struct peers *peers, uint64_t now_ms);
bool peers_take_gone(struct peers *peers, struct peer *out); /* each once */

#endif
