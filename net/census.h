/* census.h - which connection of an endpoint speaks for which key, so that those of a revoked key can be ended.
 *
 * libzmq 4.3 has no call that closes one peer's connection. But each message names the descriptor it came over, and
 * shutdown(2) of that descriptor looks to the library like a peer that hung up: it cleans up, the peer is told by TCP, and
 * is refused with words when it knocks again. Connections that have never spoken are ended as well when a key is revoked,
 * since nobody knows whose they are: an honest one comes back at once.
 *
 * A descriptor may belong to another connection by the time it is looked at. Sockets are therefore compared by the number
 * that the kernel gives each of them once (SO_COOKIE), on a duplicate that cannot change under our hands.
 *
 * One thread.
 */
#ifndef NET_CENSUS_H
#define NET_CENSUS_H

#include <stddef.h>

#include "net/keys.h"

struct census;

struct census *census_new(void);
void census_free(struct census *census); /* NULL is fine */

/* A connection to this address is ours: "tcp://host:port" or "ipc:///path", as bound. */
void census_bound(struct census *census, const char *address);

/* A message came over `fd` from the holder of `public_z85`. Cheap when it did before. */
void census_note(struct census *census, int fd, const char *public_z85);

/* Ends every connection to our addresses but those of keys that are live now; says how many. When the key table cannot
 * be read none is ended: who is refused for the moment is not revoked. */
unsigned census_sweep(struct census *census, struct keys *keys);

#endif
