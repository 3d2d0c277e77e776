/* world.h - what the simulation is made of; shared by sim.c (time and network), shell.c (the coordinator's process and
 * disk), peers.c and operator.c (clients), journal.c and checks.c (promises). */
#ifndef SIM_WORLD_H
#define SIM_WORLD_H

#include "client/core.h"
#include "coordinator/core/core.h"
#include "coordinator/core/state.h"
#include "memstore.h"
#include "sim.h"
#include "worker/core.h"
#include "worker/plan.h"

enum {
    WORKERS = 4,
    PRODUCERS = 2,
    SUBSCRIBER = WORKERS + PRODUCERS, /* of `latest` */
    FOLLOWER,                         /* of `stable` */
    OPERATOR,
    TWIN, /* a second process of worker 0's instance */
    NODES,
    TRAIN_DOMAINS = 2,
    OPERATOR_ALIASES = 2,
    POISONED = 0xee, /* byte 1 of a delta that learnt poison, byte 2 of a candidate with such a delta */
};

enum happening {
    HAPPEN_TO_COORDINATOR, /* a frame arrives */
    HAPPEN_TO_NODE,        /* a frame arrives */
    HAPPEN_SYNCED,         /* the coordinator's disk holds all batches up to `number` */
    HAPPEN_AGGREGATED,
    HAPPEN_PURGED,  /* deleted text has left the files: of retractions up to `number` */
    HAPPEN_JOB,     /* something a node's shell was asked for is done: kind in `number` */
    HAPPEN_CONNECT, /* a node tries to connect */
    HAPPEN_GONE,    /* the coordinator hears that a connection is closed */
    HAPPEN_CRASH,   /* of node `node`; NODES: the coordinator */
    HAPPEN_RESTART,
    HAPPEN_CUT,      /* a connection breaks */
    HAPPEN_OPERATOR, /* the operator asks again */
    HAPPEN_DISK,     /* the coordinator's disk is nearly full (`number` 1) or has room again (0) */
    HAPPEN_DRAIN,    /* a worker is told to leave */
};

struct happen {
    uint64_t at_ms, order;
    enum happening what;
    int node;
    uint32_t life; /* of the process it is for: what outlives a crash is dropped */
    uint64_t conn; /* likewise of the connection */
    uint64_t number, job;
    bool evaluate;
    struct buf bytes;
    struct aggregated aggregated;
};

struct record_fact {       /* one record of a producer's source */
    struct hash16 content; /* keyed, as stored */
    bool refused;          /* known to be unacceptable */
    int same_as;           /* index of an earlier record with this content in the same source, or -1 */
    int replaces;          /* index of an earlier record with this id, or -1 */
    bool replaced, copied; /* a later record has this id; has this content */
    bool chat;
    bool retracted; /* an operator asked for it to be forgotten, by this or an equal text's id */
};

struct node { /* a client process; what is durable of it is marked */
    int index;
    enum role role;
    enum plane plane;
    struct name key;
    uint8_t instance[16]; /* durable */
    uint64_t boot;        /* durable */
    bool alive, leaving;
    uint32_t life;
    uint64_t conn;    /* 0: none */
    uint64_t request; /* of the shell's own hello */
    bool greeted;

    struct worker_core *worker;
    struct worker_effects worker_effects;
    struct view *view;
    uint64_t session_counter; /* durable */
    uint8_t session_incarnation[16];
    struct buf pending; /* durable: packed DeltaCommit */
    uint64_t job;       /* running in the shell; 0: none */

    struct push_core *push;
    struct push_effects push_effects;
    uint32_t read_at; /* next record to hand to the core */
    uint64_t acked;   /* highest position the core was told is stored */
    bool done;
    uint32_t n_records;
    struct record_fact *facts;

    struct subscribe_core *subscribe;
    struct buf saved; /* durable */
    bool waiting;     /* for the answer to the effect at hand */
    uint64_t asked_at;
    uint64_t current; /* durable: swapped in */
    bool has_current;
    uint64_t alias_seq;
};

struct action { /* what the operator wants: kept until it is answered, whoever crashes */
    Alv__ControlVerb verb;
    uint64_t number, expect;
    bool has_expect, keep;
    const char *name, *domain; /* static strings; "": none */
    char value[24], record[32];
};

struct receipt { /* of a batch that is durable */
    struct name key;
    uint64_t first, end; /* positions */
    struct buf ack;      /* packed, as it must be said each time */
};

struct knobs { /* of this world, by its seed */
    double aggregate_fails, delta_bad, task_fails, drains;
    unsigned poison; /* of 256 records make a model forget that learns them; else candidates are bad by chance */
    bool twin, disk_low, copies;
};

struct version_seen {
    bool known;
    struct digest manifest;
};

struct lease_seen {
    uint64_t id;
    uint32_t generation;      /* newest that was granted */
    uint32_t held_generation; /* the grant that `holder` has */
    uint8_t holder[24];       /* instance and boot */
    bool done;
    uint64_t exclusion_seq; /* of the plan that `work` was done by */
    struct digest work;     /* what was trained for it: the same whoever did it */
};

struct world {
    struct sim_options options;
    struct sim_result *result;
    struct rng rng;
    uint64_t now_ms, order;
    bool faults; /* false: the peace at the end */
    double loss, duplicate, cut;

    struct happen *queue; /* binary heap by (at_ms, order) */
    size_t n_queue, cap_queue;

    struct core_config config;
    struct core *core; /* NULL: down */
    struct effects effects;
    uint32_t life;
    uint64_t next_conn, incarnation;
    struct memstore disk; /* durable */
    struct unsynced {
        uint64_t seq;
        struct batch batch;
    } * unsynced;
    size_t n_unsynced, cap_unsynced;
    uint64_t seq_durable;
    bool sync_running;
    struct digest *blobs; /* durable at the coordinator */
    size_t n_blobs, cap_blobs;
    struct conn {
        uint64_t conn;
        int node;
    } * conns;
    size_t n_conns, cap_conns;

    struct node nodes[NODES];
    struct knobs knobs;
    uint64_t twin_admitted; /* newest of them that this run of the coordinator has let in */
    uint64_t twin_boot;     /* shared by the processes of worker 0's instance */
    struct memstore copy;   /* of the coordinator's directory, taken at a crash */
    uint32_t operator_step; /* actions answered; names the present one in requests and tokens */
    bool has_action;
    struct action action;
    uint32_t rollbacks;
    struct alias_model {
        bool set;
        uint64_t version;
    } aliases[OPERATOR_ALIASES];
    struct buf *answers; /* to action n: what it is told must not change */
    uint32_t n_answers;

    struct receipt *receipts;
    size_t n_receipts, cap_receipts;
    uint64_t exclusion_last, lease_last, exclusion_at[TRAIN_DOMAINS + 1], relabels[TRAIN_DOMAINS + 1];
    struct version_seen *versions;
    size_t n_versions;
    struct lease_seen *leases;
    size_t n_leases, cap_leases;
};

/* sim.c */
void schedule(struct world *w, uint64_t in_ms, struct happen happen); /* takes happen.bytes */
void send_frame(struct world *w, struct node *node, uint16_t verb, uint64_t request, const ProtobufCMessage *message);
struct node *node_of(struct world *w, uint64_t conn);
void answer(struct world *w, const struct peer *peer, uint16_t verb, uint64_t request, const ProtobufCMessage *message);
bool chance(struct world *w, double p);
uint64_t between(struct world *w, uint64_t low, uint64_t high); /* inclusive */
void fail(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace(struct world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* shell.c: what the product's coordinator does with sockets, disk and threads */
void coordinator_start(struct world *w);
void coordinator_crash(struct world *w);
void coordinator_step(struct world *w, struct event event);
void coordinator_message(struct world *w, struct node *node, const struct happen *h);
void coordinator_synced(struct world *w);
bool blob_held(const struct world *w, const struct digest *digest);
bool files_held(const struct world *w, const struct version_files *files);
void blob_hold(struct world *w, const struct digest *digest);
typedef bool pair_fn(void *user, struct bytes key, struct bytes value);
void disk_scan(const struct world *w, uint8_t family, char tag, pair_fn *each, void *user); /* until it says false */
bool disk_get(const struct world *w, uint8_t family, struct state_key key, struct bytes *out);
bool disk_version(const struct world *w, uint64_t number, struct state_version *out);
bool disk_domain(const struct world *w, unsigned id, struct state_domain *out);
uint64_t disk_newest(const struct world *w); /* version */
bool disk_aliases(const struct world *w, struct aliases *out);
bool disk_withdrawn(const struct world *w, uint64_t version);
/* The stored text of a train segment; that of a repeated one is where it was first. */
bool segment_poisons(const struct world *w, const struct state_segment *segment);
bool segment_read(const struct world *w, struct domain_id domain, bool probe, uint64_t offset,
                  struct state_segment *out);

/* peers.c: the shells of the clients */
void peer_start(struct world *w, struct node *node);
void peer_crash(struct world *w, struct node *node);
void peer_connected(struct world *w, struct node *node);
void peer_cut(struct world *w, struct node *node);
void peer_drain(struct world *w, struct node *node);
void peer_message(struct world *w, struct node *node, uint16_t verb, uint64_t request, const ProtobufCMessage *message);
void peer_job(struct world *w, struct node *node, const struct happen *h);
uint64_t peer_deadline(const struct world *w, const struct node *node);
void peer_tick(struct world *w, struct node *node);
bool peer_finished(const struct world *w, const struct node *node);
void source_make(struct world *w, struct node *node, uint32_t n);
void source_free(struct node *node);
uint32_t source_id(const struct node *node, uint32_t record); /* ids are numbers */

/* operator.c */
enum { CONTROL = 1u << 30 /* request ids of actions */, RETRY = 1000 };
void operate(struct world *w, struct node *node);
void operator_message(struct world *w, struct node *node, uint16_t verb, uint64_t request,
                      const ProtobufCMessage *message);
void operator_told(struct world *w, uint64_t request, const char *json); /* what the coordinator says */
const char *operator_alias(unsigned i);

/* copied.c: a coordinator on a copy of the directory is refused */
void copied_take(struct world *w);
void copied_probe(struct world *w);

/* journal.c: each batch, as it becomes durable */
void check_batch(struct world *w, const struct batch *batch); /* before it is applied */
void check_applied(struct world *w, const struct batch *batch);
void check_ack(struct world *w, const struct node *producer, const Alv__PushAck *ack); /* 1: the same each time */
void check_drop(struct world *w, const struct digest *digest);                         /* 5 */
void check_purge(struct world *w, uint64_t number); /* what it is to rewrite was deleted */

/* checks.c: the promises */
void check_acked(struct world *w, const struct node *producer, uint64_t position); /* 1 */
void check_store(struct world *w);                                                 /* 1 and 2, on the durable state */
void check_round(struct world *w);                                                 /* one round, disjoint leases */
void check_grant(struct world *w, const struct node *worker, const Alv__Lease *lease);                 /* 2 */
void check_lease(struct world *w, const Alv__Lease *lease, const struct digest *work);                 /* 3 and 6 */
void check_admitted(struct world *w, const struct node *node);                                         /* fencing */
void check_erased(struct world *w, const Alv__Lease *lease, struct domain_id domain, uint64_t offset); /* 2 */
void check_sample(struct world *w, const Alv__Lease *lease, const struct plan *plan, const struct view *view); /* 3 */
void check_manifest(struct world *w, uint64_t number, struct bytes manifest, struct bytes signature);          /* 5 */
void check_swap(struct world *w, const struct node *subscriber, uint64_t number);                              /* 5 */
bool all_settled(struct world *w);
bool all_erased(struct world *w); /* what was retracted: from the files and by the workers */

#endif
