/* internal.h - the coordinator's state in memory, shared by the files of the core and by nobody else.
 *
 * What is in memory is what is unfinished: segments above each domain's watermark, the round in progress, the peers that
 * are here, the newest versions. Everything else is on disk and not needed to decide.
 *
 * A step changes this state and adds to `batch`; what it sends is collected in `fresh` and leaves when the batch of the
 * step (or, without one, the newest before it) is durable.
 */
#ifndef COORDINATOR_CORE_INTERNAL_H
#define COORDINATOR_CORE_INTERNAL_H

#include <stddef.h>

#include "coordinator/core/core.h"
#include "coordinator/core/gate.h"
#include "coordinator/core/map.h"
#include "coordinator/core/state.h"
#include "coordinator/core/text.h"

enum {
    STREAMS_MAX = 1 << 18,          /* (key, source, domain) ever pushed; each some 400 bytes */
    MEMBERS_MAX = 1 << 14,          /* peers that said hello */
    SESSIONS_MAX = 1 << 16,         /* restarts of a line */
    EXCLUSIONS_MAX = 1 << 24,       /* superseded, quarantined and retracted ranges; 24 bytes each */
    QUARANTINES_MAX = 4096,         /* held leases; leasing stops with an alarm at it */
    LINKS_MAX = 1 << 16,            /* ranges appended again, per line */
    VERSIONS_HELD = 1024,           /* newest manifests in memory ... */
    VERSIONS_BYTES = 64 << 20,      /* ... if they are no longer than this together */
    UNCOMMITTED_MAX = 4096,         /* steps ahead of the disk; then pushes are put off */
    PROBE_PIECES_MAX = 8,           /* windows of one record: a long document must not be a probe by itself */
    EVAL_TASK_WINDOWS = 64,         /* at most; a task is short, so that machines share evenly */
    TOKENS_KEPT = 1024,             /* answers to control requests, kept for their retries */
    RETRY_MS = 1000,                /* of a refusal for now */
    GATHER_MS = 500,                /* a round waits so long after a worker came: others are probably on their way */
    PRESENT_MS = 2 * LIMIT_WAIT_MS, /* a worker silent for longer is not counted on */
};

#define NEVER UINT64_MAX

struct slot { /* one train segment at or above its domain's watermark */
    uint16_t bytes;
    uint8_t state;    /* enum segment_state */
    uint8_t excluded; /* 0, or SEG_SUPERSEDED / SEG_RETRACTED: what it becomes when its lease ends */
};

struct window {           /* one probe segment that may be scored */
    uint64_t offset, key; /* key: by chance, of the line's seed */
    uint8_t part;
    bool waiting; /* for the next probe set */
};

struct domain {
    struct domain_id id;
    struct state_domain d;
    struct settings settings;
    bool dirty;         /* `d` is to be stored by this step */
    struct slot *slots; /* ring-less deque: offset o is slots[head + o - d.watermark] */
    size_t head, n, cap;
    struct appended { /* one stored list of sizes */
        uint64_t first, wall_s;
        uint32_t count;
    } * appended;
    size_t appended_head, appended_n, appended_cap; /* n counts from 0, head included */
    struct settled_range {
        uint64_t first;
        struct state_settled s;
    } * settled; /* above the watermark */
    size_t settled_n, settled_cap;
    struct window *windows; /* of the probe set, and those that wait; ascending offset */
    size_t windows_n, windows_cap;
    uint32_t part_n[PART_RESERVE], waiting_n[PART_RESERVE];
    struct link {
        uint64_t first;
        struct state_link l;
    } * links; /* ascending first */
    size_t links_n, links_cap;
    uint32_t *by_source; /* links_n indices, ascending source: no segment is repeated twice, so sources are disjoint */
    size_t by_source_cap;
    uint64_t count[SEG_STATES], bytes[SEG_STATES]; /* of slots */
    uint64_t hint;                                 /* no pending segment below */
};

struct member { /* a peer that said hello: (plane, key, instance) */
    struct peer peer;
    uint8_t instance[16];
    uint64_t boot, seen_ms;
    bool here;                    /* its connection is not known to be closed */
    bool waiting;                 /* a long poll is parked */
    size_t wait_at, timer_at;     /* waiting: places in core->waiting and core->timers */
    struct queue *queue;          /* that it stands in, or NULL */
    struct member *older, *newer; /* its neighbours there */
    uint64_t request, until_ms;
    char fingerprint[STATE_TEXT_MAX + 1];
    uint32_t tokens_per_s;
    uint64_t exclusion_seq;
    uint64_t watch_from, watch_alias;
    uint64_t staged, serving;
    char target[128], error[256];
};

struct queue { /* of members, by when they were last heard of */
    struct member *oldest, *newest;
    size_t n;
};

struct lease {
    struct state_lease s;
    uint64_t silent_at; /* granted: when it goes back */
    uint64_t granted_ms;
    uint32_t done, total;
    uint32_t tokens_per_s;    /* its holder's, as last reported; 0: not yet */
    struct state_delta delta; /* accepted */
};

struct old_ack { /* accepted deltas of the round before */
    uint64_t lease;
    uint32_t generation;
};

struct scored {
    uint64_t offset;
    double candidate, reference;
    uint32_t tokens;
    bool done;
};

struct eval_domain {
    struct scored *windows; /* of all looks so far */
    uint32_t n, available;
    struct gate_domain gate;
    double *diff; /* owned, read by gate */
};

struct eval_task {
    uint64_t id, reference;
    uint32_t generation, attempts;
    bool granted, second;
    uint8_t instance[16], avoid[16]; /* avoid: who scored it first */
    uint64_t silent_at;
    uint32_t n;
    struct eval_window {
        struct domain_id domain;
        uint32_t index; /* in the domain's windows */
    } * windows;        /* owned */
};

struct evaluation {
    struct window_loss *loaded; /* results found on disk, until the evaluation starts again */
    uint32_t n_loaded;
    uint64_t *stored; /* keys of results on disk */
    uint32_t n_stored;
    struct eval_domain *domains; /* one a domain of the line */
    uint32_t n_domains;
    struct eval_task *tasks;
    uint32_t n_tasks, tasks_cap, n_open; /* n_open: not granted */
    uint64_t next_task;
    uint64_t second_until;               /* second scores are not waited for any longer */
    uint32_t looks[GATE_LOOKS], n_looks; /* windows per domain at each; how many will be made */
    uint64_t training_tokens;            /* of the deltas in the candidate */
    uint32_t unscored;                   /* windows no worker managed to score */
    double second_max;                   /* largest difference between two machines, nats per token */
    uint32_t second_n;
    char fingerprint[STATE_TEXT_MAX + 1]; /* of the first result */
};

struct version { /* manifest NULL: held only for its files */
    uint64_t number;
    uint64_t parent;
    uint8_t *manifest;
    size_t manifest_len;
    uint8_t signature[SIGNATURE_LEN];
    struct version_files files;
};

struct parked { /* an effect that waits for its batch */
    uint64_t seq;
    struct effect effect;
};

struct overlay { /* what has been decided about a content or id but may not be on disk yet */
    uint64_t seq;
    struct hash16 hash;
    bool is_id, live;
    struct state_id *id; /* owned; of ID_BYTES only */
};
#define ID_BYTES(id) (offsetof(struct state_id, places) + (id)->n * sizeof(id)->places[0])

struct holder {
    struct hash16 id; /* roster_id() */
    struct state_holder h;
};

struct core {
    struct core_config config;
    uint64_t now, wall_s;
    uint64_t seq, committed; /* newest batch made, newest durable */
    bool started, disk_low;
    unsigned load_stage, load_at;
    struct batch batch;   /* of this step */
    struct effect *fresh; /* of this step */
    size_t fresh_n, fresh_cap;
    struct parked *parked;
    size_t parked_head, parked_n, parked_cap;
    uint64_t deadline;

    struct state_session *sessions; /* ascending counter; the last is ours */
    size_t sessions_n, sessions_cap;
    struct state_counters counters;
    bool counters_dirty;
    char refused_alarm[STATE_TEXT_MAX + 1]; /* not stored: copied data directory, disagreeing machines */

    struct domain *domains[LIMIT_DOMAINS];
    uint32_t n_domains;
    struct state_stream **streams; /* by id */
    size_t streams_n, streams_cap;
    struct map stream_index;
    struct overlay *overlay;
    size_t overlay_head, overlay_n, overlay_cap;
    uint64_t overlay_base;    /* absolute index of overlay[0] */
    struct map contents, ids; /* hash -> absolute index of the newest overlay entry */
    uint64_t pushed_records, pushed_bytes;

    struct state_exclusion_packed {
        uint64_t first, watermark;
        uint32_t count;
        uint16_t domain;
        uint8_t state;
    } * exclusions; /* index = seq - 1 */
    size_t exclusions_n, exclusions_cap;
    uint64_t erase_seq; /* newest of them that is a retraction */
    struct holder *holders;
    size_t holders_n, holders_cap;
    struct map holder_by_id;
    struct held {
        uint64_t id;
        struct state_quarantine q;
    } * held;
    size_t held_n, held_cap;

    struct member *members[MEMBERS_MAX];
    size_t members_n;
    struct map member_by_conn, member_by_id;
    struct member **waiting[PLANES]; /* long polls that are parked, in no order */
    size_t waiting_n[PLANES], waiting_cap[PLANES];
    struct member **timers; /* the same as a binary heap: who waits for the shortest time is first */
    size_t timers_n, timers_cap;
    struct queue present, gone; /* workers heard of within PRESENT_MS; members whose connection is closed */
    uint64_t scanned;           /* members, leases and links looked at, one by one, by all steps so far */

    struct state_round round;
    struct lease *leases[ROUND_LEASES_MAX];
    uint32_t n_leases, n_open, n_accepted;
    uint64_t pending_since;               /* NEVER: nothing pending */
    uint64_t round_granted_ms, quorum_ms; /* NEVER: not yet */
    bool pace_known;                      /* expected_ms is of the leases as they are */
    double expected_ms;
    uint64_t aggregate_at; /* retry; NEVER: none */
    uint64_t rest_until;   /* after a refusal: no round before */
    uint64_t gather_until; /* a worker has just come */
    bool round_wanted;     /* CONTROL_ROUND */
    struct old_ack *old_acks;
    size_t old_acks_n;
    struct evaluation eval;

    struct version *versions; /* ascending */
    size_t versions_n, versions_cap, versions_bytes;
    uint64_t versions_oldest;                /* no gap from here on */
    uint64_t served_version, served_aliases; /* watchers know these */
    struct aliases aliases;
    struct buf alias_statement;
    uint8_t alias_signature[SIGNATURE_LEN];
    struct token {
        struct state_token t; /* reply unused */
        char *reply;
    } * tokens;
    size_t tokens_n;
    uint64_t token_next;
};

/* Room for one more item in `items` of `n` with capacity `cap`. */
#define GROW(items, n, cap)                                            \
    do {                                                               \
        if ((n) == (cap)) {                                            \
            (cap) = (cap) ? 2 * (cap) : 8;                             \
            (items) = xrealloc_array((items), (cap), sizeof *(items)); \
        }                                                              \
    } while (0)

/* ---- core.c */
void put_key(struct core *core, uint8_t family, struct state_key key, const struct buf *value);
void delete_key(struct core *core, uint8_t family, struct state_key key);
/* PUT(core, family, key, state_lease, &lease): encodes and adds to the step's batch */
#define PUT(core, family, key, type, v)                                           \
    do {                                                                          \
        struct state_key key_ = (key);                                            \
        size_t at_ = batch_put_begin(&(core)->batch, (family), key_.b, key_.len); \
        type##_put(&(core)->batch.ops, (v));                                      \
        batch_put_end(&(core)->batch, at_);                                       \
    } while (0)
void wake(struct core *core, uint64_t at_ms); /* a TICK is wanted by then */
void reply(struct core *core, const struct peer *peer, uint64_t request, enum verb verb, void *message /* owned */);
void reply_ok(struct core *core, const struct peer *peer, uint64_t request, enum verb verb);
void refuse_text(struct core *core, const struct event *event, enum status status, uint32_t retry_ms, const char *text);
/* refuse(core, event, status, retry_ms, format, ...) */
#define refuse(core, event, status, retry_ms, ...)                        \
    do {                                                                  \
        struct err refuse_;                                               \
        err_set(&refuse_, (status), __VA_ARGS__);                         \
        refuse_text((core), (event), (status), (retry_ms), refuse_.text); \
    } while (0)
void drop_blob(struct core *core, const struct digest *digest);
void drop_files(struct core *core, const struct version_files *files);
/* What leases train on from, and its size unless NULL. */
const struct digest *training_state(const struct version_files *files, uint64_t *bytes);
struct effect *add_effect(struct core *core, enum effect_kind kind);
void *new_message(const ProtobufCMessageDescriptor *descriptor);
void set_bytes(ProtobufCBinaryData *field, const void *data, size_t len);
const struct state_session *session_now(const struct core *core);
bool session_known(const struct core *core, uint64_t counter, ProtobufCBinaryData incarnation);
/* A line that was restored from a backup skips counters: those between are of a time that it has forgotten. */
bool session_forgotten(const struct core *core, uint64_t counter);
/* Known, and nothing was forgotten since: what it gave out may not have been given out anew in the forgotten time. */
bool session_grants(const struct core *core, uint64_t counter, ProtobufCBinaryData incarnation);

/* ---- domain.c: segments and their states */
struct domain *domain_new(struct core *core, const char *name);
struct domain *domain_find(const struct core *core, const char *name);
void domain_free(struct domain *d);
enum status domain_override(struct domain *d, const char *name, const char *value, struct err *err);
struct slot *domain_slot(const struct domain *d, uint64_t offset); /* NULL: below the watermark, or not there yet */
void domain_load_slots(struct domain *d, uint64_t first, uint64_t wall_s, struct bytes sizes, uint32_t count);
/* Appends pending segments; sizes in bytes. Returns the first offset. */
uint64_t domain_append(struct core *core, struct domain *d, const uint16_t *sizes, uint32_t count);
/* Moves in-window segments to a state. Terminal states are recorded; excluded ones become what they are excluded as
 * whenever `state` is pending, done or quarantined. */
void domain_set(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state,
                uint64_t ref);
void domain_settle(struct core *core, struct domain *d); /* advances the watermark */
/* Takes [first, +count) and all its repetitions out of replay: exclusions, overlays, states. ST_LIMIT: log is full. */
void domain_exclude(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state);
uint64_t exclusion_add(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state);
/* Appends [first, +count) again at new offsets; the old ones are superseded by them if `supersede`. */
void domain_repeat(struct core *core, struct domain *d, uint64_t first, uint32_t count, bool supersede);
/* The probe. A held-out window waits for the part its group belongs to; of more than a whole set's worth those with the
 * lowest keys stay, a uniform sample of what came since the last freezing. Freezing fills what is missing in the parts from those that wait: a new numbered set, if any did. Between two
 * freezings windows only leave: those whose text went. */
void domain_hold_out(struct core *core, struct domain *d, uint64_t offset, enum probe_part part);
void domain_freeze_probe(struct core *core, struct domain *d);
void domain_add_link(struct domain *d, const struct link *link);
void domain_load_window(const struct core *core, struct domain *d, uint64_t offset, const struct state_windows *v);
void domain_drop_windows(struct core *core, struct domain *d, uint64_t first, uint32_t count);
uint64_t domain_tokens(const struct core *core, const struct domain *d, uint64_t bytes);
uint64_t domain_age_ms(const struct core *core, const struct domain *d); /* of the oldest unsettled segment */
bool state_terminal(enum segment_state state);

/* ---- intake.c */
void intake_open(struct core *core, const struct event *event);
void intake_push(struct core *core, const struct event *event);
void intake_committed(struct core *core);
void overlay_content(struct core *core, const struct hash16 *hash, bool live);
void overlay_id(struct core *core, const struct hash16 *hash, const struct state_id *id);
bool overlay_find(const struct core *core, bool is_id, const struct hash16 *hash, const struct overlay **out);
void id_hash(const struct sip_key *seed, struct domain_id domain, struct bytes name, struct hash16 *out);
bool stream_add(struct core *core, uint64_t id, struct state_stream *stream); /* takes it */

/* ---- roster.c */
void roster_hello(struct core *core, const struct event *event);
void roster_gone(struct core *core, const struct peer *peer);
struct hash16 roster_id(const struct core *core, const struct peer *peer, const uint8_t instance[16]);
struct member *roster_find(struct core *core, const struct peer *peer);
void roster_park(struct core *core, struct member *m, uint64_t request, uint32_t wait_ms);
void roster_unpark(struct core *core, struct member *m);
uint32_t roster_workers(struct core *core); /* present */
void roster_heard(struct core *core, struct member *m);
void roster_expire(struct core *core); /* answers whose wait is over */
void roster_release(struct core *core);

/* ---- planner.c */
void planner_open_round(struct core *core); /* when it is time */
void planner_pending(struct core *core);    /* pending text appeared or went */
void planner_view(struct core *core);       /* what leases granted from now on replay from */
uint32_t planner_ranges(uint32_t n_leases); /* most a lease may hold, of so many */
void planner_add_segment(struct lease *l, struct domain_id domain, uint64_t offset, uint32_t *ranges_cap);
void planner_add_lease(struct core *core, struct lease *l); /* takes it: stored, open, its segments leased */

/* ---- lease.c */
void lease_request(struct core *core, const struct event *event, struct member *m);
void lease_progress(struct core *core, const struct event *event, struct member *m);
void lease_return_task(struct core *core, const struct event *event, struct member *m);
void lease_commit(struct core *core, const struct event *event, struct member *m);
void lease_newer_boot(struct core *core, const struct member *m);
void lease_undelivered(struct core *core, const struct member *m); /* its connection is gone: what it had not begun */
void lease_serve(struct core *core);                               /* gives what is open to who waits */
void lease_none(struct core *core, struct member *m);              /* answers a waiting worker: nothing to do */
void lease_tell(struct core *core); /* answers who waits, so that it applies the newest exclusions */
void lease_expire(struct core *core);
void lease_store(struct core *core, struct lease *l);
void lease_hold(struct core *core, uint32_t index, const char *reason); /* quarantines its data and drops it */
void lease_drop(struct core *core, uint32_t index, bool to_pending);    /* takes it out of the round */
void lease_forget_all(struct core *core);                               /* memory only */
struct lease *lease_find(struct core *core, uint64_t id, uint32_t *index);

/* ---- round.c */
void round_check(struct core *core); /* closes it when it is time */
void round_aggregate(struct core *core);
void round_aggregated(struct core *core, const struct event *event);
void round_refused(struct core *core, const char *text);
void round_finish(struct core *core, bool published); /* after a verdict: forgets leases and deltas */
void round_cancel(struct core *core);                 /* all its segments return to pending */
void round_store(struct core *core);
double round_error_rate(const struct core *core);              /* of the candidate at hand */
void round_forget_leases(struct core *core, bool keep_losses); /* their deltas too; acks are remembered */
void round_drop_candidate(struct core *core);
void round_verdict(struct core *core, uint64_t version, const struct buf *json);
void round_final_refusal(struct core *core, const char *text);

/* ---- diagnose.c: which lease's data makes a round forget */
void diagnose_start(struct core *core, const char *text); /* after the half step was refused, too */
void diagnose_next(struct core *core);                    /* the next delta alone, or the rest together */
void diagnose_judged(struct core *core, enum gate_outcome outcome);
void diagnose_settings(const struct core *core, Alv__TrainConfig *train);

/* ---- evaluate.c */
void evaluate_start(struct core *core);
void verdict_json(const struct core *core, enum gate_outcome outcome, struct buf *out);
bool evaluate_grant(struct core *core, struct member *m); /* replies with a task if there is one for it */
void evaluate_result(struct core *core, const struct event *event, struct member *m);
bool evaluate_progress(struct core *core, const struct member *m, uint64_t id, uint32_t generation);
void evaluate_give_back(struct core *core, const struct member *m, uint64_t id, uint32_t generation);
void evaluate_expire(struct core *core);
void evaluate_newer_boot(struct core *core, const struct member *m);
void evaluate_drop(struct core *core, struct domain_id domain, uint64_t first, uint32_t count); /* probes that went */
void evaluate_check(struct core *core);
void evaluate_load(struct core *core, uint64_t task, const struct state_losses *losses);
void evaluate_numbers(const struct core *core, uint32_t domain, uint32_t *windows, uint64_t *tokens, double *candidate,
                      double *reference);                      /* sums over what was scored */
void evaluate_cost(const struct core *core, struct buf *json); /* what was spent of what may be */
void evaluate_release(struct core *core);
void evaluate_forget(struct core *core); /* memory and stored results */

/* ---- release.c */
void release_init(struct core *core, const struct version_files *v0); /* version 0 and the aliases of a new line */
void release_publish(struct core *core, enum gate_outcome outcome);
enum status release_rollback(struct core *core, const struct event *event, struct err *err);
/* `kind` "withdrawn" or "tainted" puts the mark on a version, or changes its reason; "none" takes both away. */
enum status release_mark(struct core *core, uint64_t number, const char *kind, const char *reason, struct err *err);
enum status release_promote(struct core *core, const char *alias, uint64_t number, const uint64_t *expect,
                            struct err *err);
void release_answer(struct core *core, struct member *m); /* a waiting subscriber, with what there is */
void release_watch(struct core *core, const struct event *event, struct member *m);
void release_serve(struct core *core); /* answers watchers */
const struct version *version_find(const struct core *core, uint64_t number);
bool release_holds(const struct core *core,
                   uint64_t number); /* its files are there and stay while something refers to it */
void version_hold(struct core *core, uint64_t number, const struct state_version *v, bool manifest);
void release_expire(struct core *core);
/* Gives ranges that were settled back as pending text, without what was superseded or retracted since. ST_LIMIT: too many
 * ranges were given back in this line; nothing is done. */
enum status release_repeat(struct core *core, const struct range *ranges, uint32_t n, bool supersede,
                           uint64_t *segments, struct err *err);

/* ---- retract.c */
enum status retract(struct core *core, const struct event *event, struct buf *json, struct err *err);
void retract_applied(struct core *core, const struct member *m); /* it reports how far it has come */
void retract_start(struct core *core);
void retract_purged(struct core *core, uint64_t erasures);
bool retract_load(struct core *core, const struct hash16 *id, const struct state_holder *h);

/* ---- control.c */
void control(struct core *core, const struct event *event, struct member *m);
enum status token_load(struct core *core, const struct state_token *t);

#endif
