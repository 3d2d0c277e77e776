/* core.h - the worker's session as a pure function of state and event.
 *
 * No sockets, disk, clock, threads or arithmetic: the shell (worker/worker.c) and the simulation (tests/sim) feed the same core
 * with events and carry out its effects, in order. A worker has one task at a time:
 *
 *     join -> prepare -> exclude -> ask -+-> (exclude) -> fetch -> train -> upload -> commit -+-> ask
 *                                        +-> fetch -> score -> report ------------------------+
 *                                        +-> return (a task it cannot do, or a drain) --------+
 *
 * Rules
 * - Hello first on every connection (WORKER_UP), and again when a request is refused in a way that a new hello may mend.
 * - A request has one id until it is answered: it is sent again after a silence and after a reconnect, unchanged. What
 *   was answered with "later" (ST_AGAIN) is a new request. Waits grow to a bound, with jitter from the seed.
 * - The coordinator's session chain is checked at every hello: the same counter with another incarnation, a lower counter, or a
 *   successor that does not name the one we know is a copied or set-back data directory: the worker stops and says so. A
 *   later one whose way there is not known may be of a line that was restored from a backup, where the same offsets hold other
 *   text: what is cached is dropped before the session is remembered, and the task in hand with it.
 * - Exclusions are applied before the next lease is asked for, and before one that names a newer sequence is begun.
 * - While it holds a task it reports progress at twice the rate the task asks for.
 * - A delta that was computed is committed until it is answered, unchanged; the shell keeps it on disk (WORKER_UPLOAD), so a
 *   restarted worker commits it before it asks for anything. Everything else is redone.
 * - The shell's answers name the job they belong to; those of another job are stale and passed over.
 */
#ifndef WORKER_CORE_H
#define WORKER_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/card.h"
#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "proto/verbs.h"

struct worker_core;

struct worker_config {
    char line[NAME_MAX_LEN + 1]; /* expected; empty: any */
    char software[64];
    struct card card;       /* of our own base */
    uint64_t seed;          /* of the jitter */
    uint64_t first_request; /* request ids count up from here */
    uint32_t request_ms;    /* silence after which a request is sent again; 0: 10,000 */
    uint32_t poll_ms;       /* long poll for tasks; 0: LIMIT_WAIT_MS */
    uint32_t wait_ms_max;   /* longest wait between attempts; 0: 30,000 */
    uint32_t drain_ms;      /* a drain takes at most so long; 0: 10,000 */
};

/* What the coordinator said at the first hello: needed to prepare, and constant for the life of the process. */
struct worker_line {
    struct name name;
    uint8_t seed[16]; /* of replay membership */
    uint32_t rank, alpha, targets;
};

enum worker_event_kind {
    WORKER_START,      /* once, first */
    WORKER_UP,         /* a new connection stands */
    WORKER_DOWN,       /* it broke */
    WORKER_REPLY,      /* verb, request, message */
    WORKER_TICK,       /* time passed; at the latest at worker_deadline() */
    WORKER_DRAIN,      /* asked to stop (TERM); the second time: at once */
    WORKER_PREPARED,   /* job: WORKER_PREPARE is done */
    WORKER_EXCLUDED,   /* job: WORKER_EXCLUDE is done, erasures durable */
    WORKER_FETCHED,    /* job: all payload of the task is there */
    WORKER_PROGRESSED, /* job: `progress` */
    WORKER_TRAINED,    /* job: `trained` */
    WORKER_UPLOADED,   /* job: the coordinator holds the delta's blob */
    WORKER_SCORED,     /* job: `scored` */
    WORKER_FAILED,     /* job: `status`, `text` */
};

struct worker_trained {
    struct digest delta; /* blob, durable here */
    uint64_t bytes, target_tokens;
    uint32_t steps, train_ms;
    uint32_t n_fresh;
    const struct worker_tokens {
        struct domain_id domain;
        uint64_t tokens, bytes;
    } * fresh;                 /* per domain of the lease's fresh segments, rising */
    struct bytes first_losses; /* f32 LE, one per fresh segment */
    const char *fingerprint;
};

struct worker_scored {
    struct bytes nll, tokens; /* as in EvalResult */
    const char *fingerprint;
};

struct worker_event { /* pointers are borrowed for the step */
    enum worker_event_kind kind;
    uint64_t now_ms; /* monotonic */
    uint64_t job;
    union {
        struct {
            uint8_t instance[16];
            uint64_t boot;
            uint64_t session_counter; /* newest coordinator session known; 0: none */
            uint8_t session_incarnation[16];
            const Alv__DeltaCommit *pending; /* left by the last run; or NULL */
        } start;
        struct {
            uint16_t verb;
            uint64_t request;
            const ProtobufCMessage *message; /* of verb, checked by the codec */
        } reply;
        const char *fingerprint; /* PREPARED */
        struct {
            uint32_t done, total, tokens_per_s;
        } progress;
        const struct worker_trained *trained;
        const struct worker_scored *scored;
        struct {
            enum status status;
            const char *text;
            bool missing; /* a segment is no longer in the log (FETCH) */
        } failed;
    };
};

enum worker_effect_kind {
    WORKER_SEND,     /* `send`, on the work plane; when the connection is down or full: drop it, it comes again */
    WORKER_REMEMBER, /* `session`: keep it durably (the chain that the next start checks) */
    WORKER_PREPARE, /* job, `line`: make room for its adapters, with `afresh` drop all that is cached; no exclusion is applied
                      * any more; answer PREPARED or FAILED */
    WORKER_EXCLUDE, /* job, message Exclusions: into the view; payload of entries with `erase` leaves the disk */
    WORKER_FETCH,   /* job, message Lease or Evaluate (`evaluate`): get what it needs; answer FETCHED or FAILED */
    WORKER_TRAIN,   /* job, message Lease */
    WORKER_SCORE,   /* job, message Evaluate */
    WORKER_UPLOAD,  /* job, message DeltaCommit: keep the message durably, then put the blob */
    WORKER_SETTLED, /* `settled`: the delta was answered; what is kept of it may go */
    WORKER_CANCEL,  /* job: stop it; whatever it still answers is passed over */
    WORKER_STOPPED, /* `stopped`: nothing more will come */
};

struct worker_effect {
    enum worker_effect_kind kind;
    uint64_t job;
    bool evaluate;             /* FETCH: the message is an Evaluate */
    bool afresh;               /* PREPARE */
    ProtobufCMessage *message; /* owned: freed by worker_effects_clear() */
    union {
        struct {
            uint16_t verb;
            uint64_t request;
        } send; /* with `message` */
        struct {
            uint64_t counter;
            uint8_t incarnation[16];
        } session;
        struct worker_line line;
        struct {
            struct digest delta;
            bool accepted;
            char reason[128];
        } settled;
        struct {
            enum status status; /* ST_OK: drained */
            char text[512];
        } stopped;
    };
};

struct worker_effects { /* zeroed is empty */
    struct worker_effect *items;
    uint32_t n, cap;
};
void worker_effects_clear(struct worker_effects *effects);
void worker_effects_release(struct worker_effects *effects);

struct worker_core *worker_core_new(const struct worker_config *config);
void worker_core_free(struct worker_core *core); /* NULL is fine */

/* Appends to `effects`. */
void worker_step(struct worker_core *core, const struct worker_event *event, struct worker_effects *effects);

/* When WORKER_TICK is wanted at the latest; UINT64_MAX: not at all. */
uint64_t worker_deadline(const struct worker_core *core);

enum worker_phase {
    PHASE_JOIN,    /* hello not answered yet */
    PHASE_PREPARE, /* the engine is being set up */
    PHASE_EXCLUDE, /* exclusions are asked for or applied */
    PHASE_ASK,     /* waiting for a task */
    PHASE_FETCH,
    PHASE_TRAIN,
    PHASE_SCORE,
    PHASE_UPLOAD,
    PHASE_COMMIT, /* the delta's commit waits for its answer */
    PHASE_REPORT, /* the evaluation's result does */
    PHASE_RETURN, /* the handing back does */
    PHASE_STOPPED,
};
const char *worker_phase_name(enum worker_phase phase);

/* A read-only picture for logs, tests and the progress line. */
struct worker_status {
    enum worker_phase phase;
    bool up, greeted, draining;
    uint64_t task, round; /* 0: none */
    uint32_t generation;
    bool evaluate;
    uint32_t done, total, tokens_per_s;
    uint64_t exclusion_seq; /* applied */
    uint64_t leases_done, deltas_refused, evaluations_done, returned;
};
void worker_status(const struct worker_core *core, struct worker_status *out);

#endif
