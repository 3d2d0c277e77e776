/* live.h - a real coordinator as a child process, and a plain client of it; for tests and benchmarks.
 *
 * The child is this same program, started again as `PROGRAM --serve DIR PORT RESERVE HTTP`: a fresh process, so that neither
 * RocksDB's nor ZeroMQ's threads are forked. main() calls live_main() first.
 */
#ifndef LIVE_H
#define LIVE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "alluvium.pb-c.h"
#include "coordinator/coordinator.h"
#include "net/request.h"

void live_main(int argc, char **argv); /* returns unless this process is to be a coordinator */

void live_card(struct card *card, struct adapter_shape *shape, struct settings *settings); /* a tiny, made-up base */
void live_arch(const struct arch *arch); /* of the made-up base from now on; kept by reference */
enum status live_init(const char *dir, uint16_t port, const struct settings *settings, const char *const *anchors,
                      uint32_t n_anchors, struct coordinator_init_report *report, struct err *err);
/* Adds a key to the line in `dir` and writes its join file. */
enum status live_key(const char *dir, const char *operator_join, enum role role, const char *name,
                     const char *join_path, struct err *err);
uint16_t live_port(void); /* a base port of this process's own */

/* `failpoints` (may be NULL) arms the child. The exit code of a coordinator that ends by itself is 10 - status. */
pid_t live_start(const char *dir, uint16_t port, uint64_t reserve, const char *failpoints, const char *log);
void live_http(uint16_t port); /* of the coordinators started from now on; 0, at first: none */
int live_wait(pid_t pid);      /* exit code, or 1000 + signal */
int live_end(pid_t pid, int signal_no);

struct client {
    void *zmq; /* its own; NULL: shared */
    struct join join;
    struct conn *conn;
    uint8_t instance[16];
    uint64_t boot;
    uint64_t session; /* of the last hello answered */
    uint8_t incarnation[16];
    struct digest card; /* workers say which base they hold */
};

/* Connects to one plane with a join file and says hello (waiting for a coordinator that is only starting). */
enum status client_open(struct client *client, const char *join_path, enum plane plane, int timeout_ms,
                        struct err *err);
/* The same on a context that is shared by many, and outlives the client. */
enum status client_open_on(void *zmq, struct client *client, const char *join_path, enum plane plane, int timeout_ms,
                           struct err *err);
void client_close(struct client *client);
enum status client_hello(struct client *client, uint64_t known_session, const uint8_t *known_incarnation,
                         int timeout_ms, struct err *err);
enum status client_ask(struct client *client, uint16_t verb, const ProtobufCMessage *message, int timeout_ms,
                       ProtobufCMessage **reply, struct err *err);

/* One control verb over a connection of its own; `json` (may be NULL) is to be freed. */
enum status client_control(const char *join_path, const Alv__Control *control, char **json, struct err *err);
enum status client_domain(const char *join_path, const char *domain, struct err *err); /* creates it */

enum status client_push_open(struct client *client, const char *domain, const char *source, int timeout_ms,
                             Alv__PushOpened **out, struct err *err);

#endif
