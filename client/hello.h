/* hello.h - what every client of a line says first, and what it expects back. */
#ifndef CLIENT_HELLO_H
#define CLIENT_HELLO_H

#include "alluvium.pb-c.h"
#include "net/join.h"

struct hello {
    Alv__Hello message; /* points into the rest: do not copy */
    uint8_t instance[16], incarnation[16];
    struct name line;
};

/* Clients keep nothing about the coordinator's sessions and need no fence: the instance is a fresh random one
 * (a subscriber, which is counted, puts its directory's there). */
void hello_init(struct hello *hello, const struct join *join);

/* ST_CONFLICT: another line answers at this address, or one with another root key than the join file's. */
enum status hello_check(const struct join *join, const Alv__HelloOk *ok, struct err *err);

#endif
