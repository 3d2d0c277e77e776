/* join.h - the file that lets a peer in: address, keys and name in one 0600 file, made by `keys add`.
 *
 * Text, one `key = value` a line, `#` starts a comment line; the first line is the version:
 *
 *     alluvium-join 1
 *     line = notes                    # no comments behind values; shown here for the reader
 *     host = coordinator.example.org  name, IPv4, [IPv6], or ipc:/absolute/directory on the same machine
 *     port = 7400                     base port: plane p is at port + p (0 with ipc:)
 *     server = <Z85>                  CURVE public key of the coordinator
 *     role = worker
 *     name = pool-a
 *     secret = <Z85>                  CURVE secret key of this peer
 *     root = <64 hex digits>          ed25519 root key: what a subscriber trusts
 *
 * Every key is required, once; an unknown one is refused with its line number.
 */
#ifndef NET_JOIN_H
#define NET_JOIN_H

#include <stdint.h>

#include "base/limits.h"
#include "net/keys.h"
#include "proto/manifest.h"

struct join {
    struct name line;
    char host[LIMIT_HOST_BYTES + 1];
    uint16_t port;
    struct curve_key server;
    enum role role;
    struct name name;
    struct curve_key secret;
    struct sign_public root;
};

/* ST_CONFIG with file and line; ST_NOT_FOUND; a loose mode is ST_CONFIG too. */
enum status join_read(const char *path, struct join *out, struct err *err);
enum status join_write(const char *path, const struct join *join, struct err *err); /* 0600, durable */
void join_wipe(struct join *join);

enum { ENDPOINT_SIZE = 320 };
/* The ZeroMQ address of a plane: "tcp://host:port" or "ipc:///dir/plane.sock". ST_CONFIG when host is not one of the
 * forms above or port + plane leaves 1..65535. For binding, host may also be "*". */
enum status join_endpoint(const char *host, uint16_t port, enum plane plane, char out[ENDPOINT_SIZE], struct err *err);

#endif
