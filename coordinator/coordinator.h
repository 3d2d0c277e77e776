/* coordinator.h - one line's log, planner, aggregator and registry, as a directory and a process.
 *
 * coordinator_init() makes the directory; coordinator_run() serves it until it is told to stop. All decisions are the
 * pure core's (coordinator/core/core.h); this room gives it a disk, sockets and clocks.
 *
 *     line.json       name of the line and the adapter's shape, fixed at init; address and base port, which may be edited
 *     line.conf       settings ("name = value"); edit, then restart
 *     card.bin        the model card
 *     root.key        ed25519 secret, signs the release key; needed by nobody while the coordinator runs: move it away
 *     release.key     ed25519 secret, signs manifests;   release.cert  root's public key and its signature over it
 *     server.key      CURVE secret of all sockets
 *     seed            16 bytes: replay membership, held-out groups, record hashes
 *     keys.json       who may connect, in which role (net/keys.h)
 *     operator.join   the first operator's join file (net/join.h)
 *     db/ blobs/ witness lock
 *
 * Secrets are 0600. One process serves a directory at a time (flock on `lock`).
 */
#ifndef COORDINATOR_COORDINATOR_H
#define COORDINATOR_COORDINATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "adapter/card.h"
#include "base/status.h"
#include "coordinator/core/settings.h"

enum { COORDINATOR_PORT = 7400 }; /* default base port; a plane listens at base + enum plane */

struct coordinator_init_options {
    const char *dir;
    const char *line;                  /* name of the line */
    const struct card *card;           /* made by the caller from the base; the coordinator never reads a base */
    const struct adapter_shape *shape; /* rank and alpha must be those of `settings` */
    const struct settings *settings;
    const char *address;        /* host that peers connect to, for join files */
    uint16_t port;              /* base port; 0: COORDINATOR_PORT */
    uint64_t seed;              /* of version 0's factors; 0: chosen */
    const char *const *anchors; /* files of general text: *.jsonl (fields text, id, group, or messages), else plain */
    uint32_t n_anchors;
    uint64_t reserve_bytes; /* free space to keep; 0: 256 MiB */
    /* Called now and then while anchor text is taken in, from the caller's thread; may be NULL. `file` is the one being
     * read, or NULL before the first. */
    void (*progress)(void *user, const char *file, uint64_t records, uint64_t bytes);
    void *user;
};

struct coordinator_init_report {
    uint64_t records, duplicates, refused, segments, held_out; /* of the anchor */
};

/* Makes the line. ST_CONFLICT: the directory holds something else, or a finished line. An init that was killed may be
 * repeated: what it left is recognised and made afresh. ST_BAD_DATA names file and line of anchor text that cannot
 * be read; nothing is left half-made then but what a repetition clears away. */
enum status coordinator_init(const struct coordinator_init_options *options, struct coordinator_init_report *report,
                             struct err *err);

struct coordinator_options {
    const char *dir;
    const char *host;       /* to bind; NULL: "127.0.0.1"; "*" for every interface */
    uint16_t port;          /* base port; 0: the line's */
    uint16_t http_port;     /* /livez /readyz /metrics and /; 0: none */
    const char *http_host;  /* to bind for them; NULL: "127.0.0.1" */
    const char *http_name;  /* a name they may be asked for by, beside addresses and localhost; NULL: none */
    uint64_t reserve_bytes; /* free space to keep; 0: 256 MiB. Below twice this, pushes are refused for now */
    uint64_t upload_bytes;  /* of deltas on their way in, all workers together; 0: 4 GiB */
    int stop_fd;            /* readable: stop as if SIGTERM had come; -1: none */
};

/* Serves until SIGTERM or SIGINT (or stop_fd), then finishes the commit in flight, closes and returns ST_OK. SIGHUP
 * reads keys.json again. The three signals are blocked in this thread and in those it starts, for good: call it early in a
 * process of its own. ST_CONFLICT: another coordinator serves the directory (its pid is in the text), or a port
 * is taken. ST_CORRUPT: the directory is damaged, or the database lost its tail (the text says what to do).
 * Anything else: what failed; a restart continues without loss. */
enum status coordinator_run(const struct coordinator_options *options, struct err *err);

#endif
