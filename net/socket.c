#include "net/socket.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/hash.h"
#include "base/limits.h"
#include "net/zap.h"

#ifndef ZMQ_ZAP_ENFORCE_DOMAIN
#define ZMQ_ZAP_ENFORCE_DOMAIN 93 /* the header hides the name behind its DRAFT switch; the stock library takes it */
#endif

enum {
    HANDSHAKE_MS = 5000,       /* a peer that opens a connection and says nothing is dropped after it */
    HEARTBEAT_MS = 2000,       /* a dead peer or a forgotten NAT entry is noticed ... */
    HEARTBEAT_LOST_MS = 10000, /* ... after this */
    RECONNECT_MS =
        100, /* to three times this: each socket has its own, for the library's jitter is never more than this, */
    RECONNECT_MAX_MS =
        10000, /* and doubled up to half of this, or all of it: peers that fell together come back apart */
    CONNECT_MS = 5000,
    BACKLOG = 256,
};

struct option {
    int name, value;
};

static enum status set(void *socket, const struct option *options, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++)
        if (zmq_setsockopt(socket, options[i].name, &options[i].value, sizeof(int)) < 0)
            return err_set(err, ST_IO, "ZeroMQ refuses option %d = %d: %s", options[i].name, options[i].value,
                           zmq_strerror(errno));
    return ST_OK;
}

static enum status open_socket(void *zmq, int type, void **out, struct err *err)
{
    static const struct option common[] = {
        {ZMQ_LINGER, 0},
        {ZMQ_SNDHWM, LIMIT_QUEUE_MESSAGES},
        {ZMQ_RCVHWM, LIMIT_QUEUE_MESSAGES},
        {ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS},
        {ZMQ_HEARTBEAT_IVL, HEARTBEAT_MS},
        {ZMQ_HEARTBEAT_TIMEOUT, HEARTBEAT_LOST_MS},
        {ZMQ_HEARTBEAT_TTL, HEARTBEAT_LOST_MS},
        {ZMQ_IPV6, 1},
    };
    int64_t message_max = LIMIT_FRAME_BYTES;
    void *s = zmq_socket(zmq, type);
    if (!s)
        return err_set(err, ST_IO, "cannot make a socket: %s", zmq_strerror(errno));
    enum status st = set(s, common, sizeof common / sizeof common[0], err);
    if (!st && zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &message_max, sizeof message_max) < 0)
        st = err_set(err, ST_IO, "ZeroMQ refuses the message limit: %s", zmq_strerror(errno));
    if (st)
        zmq_close(s);
    else
        *out = s;
    return st;
}

static enum status keep_or_close(void *s, bool good, void **out, struct err *err)
{
    if (good) {
        *out = s;
        return ST_OK;
    }
    enum status st = err_set(err, ST_IO, "ZeroMQ refuses the CURVE keys or an option: %s", zmq_strerror(errno));
    zmq_close(s);
    return st;
}

enum status socket_server(void *zmq, const struct curve_pair *server, void **out, struct err *err)
{
    static const struct option options[] = {
        {ZMQ_ROUTER_MANDATORY, 1}, /* a reply to nobody is an error, not silence */
        {ZMQ_CURVE_SERVER, 1},
        {ZMQ_ZAP_ENFORCE_DOMAIN, 1}, /* without it a missing handler lets everybody in */
        {ZMQ_BACKLOG, BACKLOG},
    };
    void *s = NULL;
    enum status st = open_socket(zmq, ZMQ_ROUTER, &s, err);
    if (st)
        return st;
    st = set(s, options, sizeof options / sizeof options[0], err);
    if (st) {
        zmq_close(s);
        return st;
    }
    bool good = zmq_setsockopt(s, ZMQ_ZAP_DOMAIN, ZAP_DOMAIN, strlen(ZAP_DOMAIN)) == 0 &&
                zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, server->secret.z85, CURVE_Z85_SIZE) == 0;
    return keep_or_close(s, good, out, err);
}

enum status socket_client(void *zmq, const struct curve_pair *me, const struct curve_key *server, void **out,
                          struct err *err)
{
    uint32_t luck[2];
    random_bytes(luck, sizeof luck);
    const struct option options[] = {
        {ZMQ_IMMEDIATE, 1}, /* nothing is queued for a connection that does not stand */
        {ZMQ_RECONNECT_IVL, RECONNECT_MS + (int)(luck[0] % (2 * RECONNECT_MS))},
        {ZMQ_RECONNECT_IVL_MAX, RECONNECT_MAX_MS / 2 + (int)(luck[1] % (RECONNECT_MAX_MS / 2))},
        {ZMQ_CONNECT_TIMEOUT, CONNECT_MS},
    };
    void *s = NULL;
    enum status st = open_socket(zmq, ZMQ_DEALER, &s, err);
    if (st)
        return st;
    st = set(s, options, sizeof options / sizeof options[0], err);
    if (st) {
        zmq_close(s);
        return st;
    }
    bool good = zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, server->z85, CURVE_Z85_SIZE) == 0 &&
                zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, me->public_key.z85, CURVE_Z85_SIZE) == 0 &&
                zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, me->secret.z85, CURVE_Z85_SIZE) == 0;
    return keep_or_close(s, good, out, err);
}

enum status socket_monitor(void *zmq, void *socket, int events, void **out, struct err *err)
{
    static atomic_uint counter; /* only to name the inproc end */
    char address[64];
    int linger = 0;
    snprintf(address, sizeof address, "inproc://alluvium.monitor.%u", atomic_fetch_add(&counter, 1));
    if (zmq_socket_monitor(socket, address, events) < 0)
        return err_set(err, ST_IO, "cannot watch a socket: %s", zmq_strerror(errno));
    void *m = zmq_socket(zmq, ZMQ_PAIR);
    if (!m || zmq_setsockopt(m, ZMQ_LINGER, &linger, sizeof linger) < 0 || zmq_connect(m, address) < 0) {
        enum status st = err_set(err, ST_IO, "cannot watch a socket: %s", zmq_strerror(errno));
        if (m)
            zmq_close(m);
        zmq_socket_monitor(socket, NULL, 0);
        return st;
    }
    *out = m;
    return ST_OK;
}

int socket_event(void *monitor)
{
    uint8_t head[6];
    uint16_t event = 0;
    int n = zmq_recv(monitor, head, sizeof head, ZMQ_DONTWAIT);
    if (n != sizeof head)
        return 0;
    memcpy(&event, head, sizeof event); /* native order: it comes from this process */
    int more = 0;
    size_t size = sizeof more;
    while (zmq_getsockopt(monitor, ZMQ_RCVMORE, &more, &size) == 0 && more)
        if (zmq_recv(monitor, NULL, 0, ZMQ_DONTWAIT) < 0) /* the address; not needed */
            break;
    return event;
}
