/* rig.h - a coordinator's edge for tests: a line's directory, keys, the door, endpoints on loopback, and a thread that
 * answers. The handler runs on that thread.
 */
#ifndef TESTS_NET_RIG_H
#define TESTS_NET_RIG_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/metrics.h"
#include "net/endpoint.h"
#include "net/join.h"
#include "net/zap.h"

struct rig;
/* Answers, or not. Returns false to make the server restart (its sockets close, and bind again on the same ports). */
typedef bool rig_handler(struct rig *rig, const struct incoming *in);

struct rig {
    void *zmq;
    const char *dir;
    struct keys *keys;
    struct metrics *metrics;
    struct zap *zap;
    struct endpoint_config config;
    struct endpoint *endpoint; /* the server thread's */
    pthread_t thread;
    int stop_fd;
    rig_handler *handler;
    void *user;
    atomic_int seen; /* messages handed to the handler */
};

/* host NULL: 127.0.0.1 on a free block of ports. REQUIREs by aborting: a rig that does not stand tests nothing. */
void rig_start(struct rig *rig, const char *host, rig_handler *handler, void *user);
void rig_stop(struct rig *rig);

/* A new key and what its join file says. */
struct join rig_join(struct rig *rig, const char *name, enum role role, const char *only_domain);

/* HelloOk whose line is the name of the key it came from. */
void rig_hello_ok(struct rig *rig, const struct incoming *in);
void rig_fill_hello(Alv__Hello *hello);

#endif
