/* push.h - pushes sources into a domain over one connection: the push core with a socket and files.
 *
 * One thread: reads, chains, sends and waits in turn. Returns when everything is stored for good, or cannot be.
 */
#ifndef CLIENT_PUSH_H
#define CLIENT_PUSH_H

#include "client/core.h"
#include "net/join.h"

struct push_totals {
    uint64_t sources;                                   /* finished */
    uint64_t resumed;                                   /* records that were stored before this run */
    uint64_t records;                                   /* stored by this run, refused and duplicates included */
    uint64_t accepted, duplicates, superseded, refused; /* refused: here or by the coordinator */
    uint64_t bytes;                                     /* of text in `records` */
    uint64_t unknown;                /* stored, but the answer that told what was refused got lost with a connection */
    uint64_t train_first, train_end; /* the newest receipt: offsets in the domain's train sequence */
    uint64_t probe_first, probe_end;
    const char *why; /* PUSH_WAITING: the coordinator's words, until the next event */
};

enum push_state {
    PUSH_CONNECTING,
    PUSH_CHECKING /* what is stored already */,
    PUSH_SENDING,
    PUSH_WAITING /* asked to: the backlog is full, or the disk */
};

/* Where records come from: source.h, or the caller of the C API. `next` adds records as source_read() does. */
struct push_input {
    const char *name; /* of the stream: 1 .. LIMIT_SOURCE_BYTES bytes of UTF-8 */
    enum status (*next)(void *user, uint32_t records_max, size_t bytes_max, struct push_records *records, bool *end,
                        struct err *err);
    int (*fd)(void *user); /* to wait for after ST_EMPTY; NULL: never ST_EMPTY */
    void (*where)(void *user, struct push_place place, char *out, size_t size); /* NULL: "record N" */
    void *user;
};

struct push_options {
    const struct join *join;
    const char *domain;
    uint32_t window; /* batches in flight; 0: PUSH_WINDOW */
    int connect_ms;  /* give up when there is no connection after so long; 0: 15,000. Later losses are waited out */
    int stop_fd;     /* -1: none. ST_STOPPED; what was acknowledged stays, and a later push goes on from there */
    /* Both may be NULL. `where` is "file:line"; text says why. */
    void (*refused)(void *user, const char *where, const char *why);
    void (*progress)(void *user, enum push_state state, const struct push_totals *totals); /* after each event */
    void *user;
};

struct pusher;

/* ST_CONFIG: the join file's address; ST_USAGE: the domain is no name; ST_DENIED: not a producer's or operator's key. */
enum status pusher_open(const struct push_options *options, struct pusher **out, struct err *err);
void pusher_close(struct pusher **pusher);

/* Pushes one source to its end. ST_CONFLICT: it is not what was pushed before under this name. Adds to the totals. */
enum status pusher_push(struct pusher *pusher, const struct push_input *input, struct err *err);
const struct push_totals *pusher_totals(const struct pusher *pusher);

#endif
