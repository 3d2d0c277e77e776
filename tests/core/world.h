/* world.h - a core with a disk in memory and peers that say what a test wants. Commits at once unless told to hold. */
#ifndef CORE_WORLD_H
#define CORE_WORLD_H

#include "coordinator/core/snapshot.h"
#include "coordinator/core/state.h"
#include "memstore.h"

struct world {
    struct core_config config;
    struct core *core;
    struct memstore disk;
    struct effects effects;
    uint64_t now, wall_s, request;
    bool hold; /* batches are kept back: nothing becomes durable */
    struct batch *held;
    uint64_t first_held, n_held;
    struct said {
        struct peer peer;
        uint16_t verb;
        uint64_t request;
        ProtobufCMessage *message;
    } * said; /* every message sent so far */
    size_t n_said, cap_said;
    struct digest *dropped;
    size_t n_dropped;
    uint64_t purge;          /* newest EFFECT_PURGE; a test may reset it */
    struct effect aggregate; /* the newest request; kind 0 (a send) when none is open */
    bool aggregate_wanted;
    uint64_t poison, bad_leases[64]; /* offset of domain 1 that makes forget what learns it, 0: none; who learnt it */
    unsigned n_bad;
    uint64_t target_tokens; /* of each delta */
    double candidate_loss;  /* nats per token of every candidate; references have 2 */
    uint32_t worse;         /* id of a domain on which candidates have a nat more; 0: none */
    bool auto_aggregate;
    uint64_t n_batches, crash_at; /* the crash_at-th batch is never committed, nor any after it; 0: no crash */
    bool crashed;
};

void world_open(struct world *w); /* a new line with domain "code" */
void world_close(struct world *w);
void world_restart(struct world *w); /* a crash: what was not committed is gone */
void world_commit(struct world *w);  /* what was held */
void world_step(struct world *w, struct event *event);
void world_tick(struct world *w, uint64_t ms); /* time passes, with the ticks that are asked for */

struct peer world_peer(enum plane plane, uint64_t conn);
/* Sends and returns the reply to it, if there is one by now. */
const struct said *world_send(struct world *w, struct peer peer, enum verb verb, const void *message);
const struct said *world_reply(const struct world *w, uint64_t request);
enum status world_hello(struct world *w, struct peer peer, uint8_t instance, uint64_t boot);

uint64_t world_push_open(struct world *w, struct peer peer, const char *source, const char *domain, uint64_t *position);
struct text {
    const char *id, *text;
};
const struct said *world_push(struct world *w, struct peer peer, uint64_t producer, uint64_t position,
                              const struct text *texts, unsigned n);
/* n records of about `bytes` each, ids "<prefix>0", ... */
const struct said *world_push_many(struct world *w, struct peer peer, uint64_t producer, uint64_t position,
                                   const char *prefix, unsigned n, unsigned bytes);
const struct said *world_control(struct world *w, Alv__ControlVerb verb, const char *domain, const char *name,
                                 const char *value, uint64_t number);

const struct said *world_retract(struct world *w, const char *domain, struct domain_id id, const char *record);

/* A task for this worker, or NULL. */
const Alv__Task *world_task(struct world *w, struct peer worker);
const struct said *world_commit_delta(struct world *w, struct peer worker, const Alv__Lease *lease,
                                      uint32_t generation);
const struct said *world_score(struct world *w, struct peer worker, const Alv__Evaluate *task);
void world_aggregated(struct world *w, enum status status, int refused); /* refused: index of a delta, or -1 */
/* Lets the workers do what there is until nothing is. Returns tasks done. */
unsigned world_work(struct world *w, const struct peer *workers, unsigned n);
/* Sum over all states of every domain's train segments equals the segments appended, for each domain. */
bool world_counts_once(const struct world *w);
bool world_has(const struct world *w, uint8_t family, struct state_key key, struct bytes *out);

#endif
