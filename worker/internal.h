/* internal.h - the worker's core in memory, shared by the files that make it up and by nobody else.
 *
 *     core.c   the step: events in, ticks, drain, the picture for others
 *     ask.c    effects, and requests until they are answered
 *     hello.c  what is checked before this worker takes part in a line
 *     reply.c  what the coordinator answers
 *     task.c   the task in hand, from the first question to the last, and what the shell reports of it
 */
#ifndef WORKER_INTERNAL_H
#define WORKER_INTERNAL_H

#include "base/hash.h"
#include "worker/core.h"

/* What is being asked. Hello goes before all else; progress travels beside the main question. */
enum slot { SLOT_HELLO, SLOT_MAIN, SLOT_PROGRESS, SLOTS };

struct call {
    ProtobufCMessage *message; /* NULL: nothing is asked */
    uint16_t verb;
    uint64_t id;
    uint64_t due; /* when it is sent (again) */
    uint32_t tries, refusals;
    bool greeted_for; /* a hello was said because this was refused: another refusal is final */
};

struct task {
    bool held, evaluate;
    uint64_t id, round;
    uint32_t generation, progress_ms;
    uint32_t done, total, tokens_per_s;
    Alv__Lease *lease; /* one of the two, or neither for a delta left by an earlier run */
    Alv__Evaluate *evaluation;
};

struct worker_core {
    struct worker_config config;
    struct rng rng;
    enum worker_phase phase;
    bool up, greeted, prepared, draining, line_known;
    bool afresh; /* the cache goes with the next PREPARE; then the session is remembered */
    uint64_t now, drain_due, progress_due, upload_due, asked_at, not_before;
    struct call calls[SLOTS];
    uint64_t next_request, job;
    uint8_t instance[16];
    uint64_t boot;
    uint64_t session_counter;
    uint8_t session_incarnation[16];
    struct worker_line line;
    char fingerprint[LIMIT_TEXT_BYTES];
    uint64_t exclusion_seq, exclusion_newest;
    uint64_t excluding; /* seq that is reached when EXCLUDED comes; 0: the entries were only asked for */
    struct task task;
    Alv__DeltaCommit *commit; /* computed and not yet answered */
    uint32_t failures;
    struct err failure;
    enum status failure_status;
    uint32_t tokens_per_s;
    uint64_t leases_done, deltas_refused, evaluations_done, returned;
};

/* ---- ask.c */

void *message_clone(const void *message);
void message_drop(void *message); /* NULL is fine */
/* Truncates to fit, between characters: the codec refuses what is not UTF-8, our own messages too. */
void ask_text(char *out, size_t size, const char *text);
/* The new effect stays valid until the next one. `message` (may be NULL) is copied. */
struct worker_effect *ask_effect(struct worker_core *core, struct worker_effects *out, enum worker_effect_kind kind,
                                 const void *message);
/* Nothing more will come. */
void ask_stop(struct worker_core *core, struct worker_effects *out, enum status status, const char *text);

/* 250 ms, 500 ms, ... up to the bound, each shortened by up to a half so that workers do not march in step. */
uint64_t ask_pause_ms(struct worker_core *core, uint32_t tries);
void ask(struct worker_core *core, enum slot slot, uint16_t verb, const void *message); /* `message` is copied */
void ask_at(struct worker_core *core, enum slot slot, uint16_t verb, const void *message, uint64_t due);
/* The same question as a new request: it was answered, but not for good. */
void ask_again(struct worker_core *core, struct call *call, uint64_t delay_ms);
void ask_hello(struct worker_core *core);
void ask_end(struct worker_core *core, enum slot slot);
bool ask_sendable(const struct worker_core *core, enum slot slot);
void ask_send(struct worker_core *core, struct worker_effects *out); /* whatever is due */
bool ask_for_later(enum status status);                              /* a refusal that may be another answer tomorrow */

/* ---- hello.c */

/* Line, base and shape. `known` is what an earlier hello said; NULL at the first. */
enum status hello_line(const struct worker_config *config, const struct worker_line *known, const Alv__HelloOk *ok,
                       struct worker_line *out, struct err *err);
/* Is this session of the chain that ends, as far as we know, in (counter, incarnation)? counter 0: none is known. */
enum status hello_session(uint64_t counter, const uint8_t incarnation[16], const Alv__HelloOk *ok, struct err *err);

/* ---- reply.c */

void reply_remember(struct worker_core *core, struct worker_effects *out); /* the session, durably */

void reply_take(struct worker_core *core, const struct worker_event *event, struct worker_effects *out);

/* ---- task.c */

void task_next(struct worker_core *core, struct worker_effects *out); /* what to do when nothing is under way */
/* It is in hand from here on, and its progress is reported. */
void task_begin(struct worker_core *core, uint32_t progress_ms);
void task_report(struct worker_core *core); /* progress, when it is due */
bool task_works(const struct worker_core *core);
void task_exclusions(struct worker_core *core, uint64_t delay_ms); /* asks for them */
void task_upload(struct worker_core *core, struct worker_effects *out);
void task_settle(struct worker_core *core, struct worker_effects *out, bool accepted, const char *reason);
void task_failed(struct worker_core *core, enum status status, const char *text);
void task_return(struct worker_core *core, Alv__ReturnReason why, const char *reason);
void task_abandon(struct worker_core *core, struct worker_effects *out); /* the coordinator says it is not ours */
void task_drop(struct worker_core *core);
void task_afresh(struct worker_core *core, struct worker_effects *out); /* nothing that is known may be used any more */
void task_job(struct worker_core *core, const struct worker_event *event, struct worker_effects *out);

#endif
