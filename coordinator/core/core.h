/* core.h - the coordinator as a pure function of state and event.
 *
 * No sockets, disk, clock, threads or randomness: the shell (coordinator/loop.c) and the simulation (tests/sim) feed the
 * same core with events and carry out its effects. Everything that must survive is in the batches of EFFECT_PERSIST; a
 * core that is loaded from the committed batches (core_load for every key and value, then EVENT_START) goes on where
 * the old one was.
 *
 * Rules
 * - A step makes at most one EFFECT_PERSIST. Batches are numbered densely (`seq`, stored in the batch itself as
 *   applied_seq) and are committed in that order, several at once if the shell likes (group commit).
 * - What a step answers about a stored effect leaves only with EVENT_COMMITTED of its seq (promise 1). State in memory
 *   runs ahead of the disk; nothing that is sent does.
 * - Every request may arrive twice, late, or after a restart; the second arrival gets the first one's answer.
 * - What a decision must read from disk comes with the event (`struct push_facts`, `blob_held`, ...), read before the step
 *   and after the newest EVENT_COMMITTED that was delivered; the core overlays what it has decided since.
 * - Who answers: the core answers all verbs but these, which the shell answers from disk and snapshot: the bulk plane;
 *   MANIFEST_GET; WATCH when `from` + 1 < core_versions_oldest(); CONTROL's read-only verbs (STATUS, VERSIONS, SHOW,
 *   EXPLAIN, TRACE). Hello must be the first message of a connection; all else is refused until then.
 * - `now_ms` is monotonic within one run and starts anywhere: deadlines are durations, re-armed by EVENT_START.
 */
#ifndef COORDINATOR_CORE_CORE_H
#define COORDINATOR_CORE_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/card.h"
#include "adapter/combine.h"
#include "alluvium.pb-c.h"
#include "base/hash.h"
#include "base/ids.h"
#include "base/status.h"
#include "coordinator/core/settings.h"
#include "proto/verbs.h"
#include "store/batch.h"

struct core;

/* Bugs on purpose, to prove that the simulation finds them; 0 in the product. */
enum planted {
    PLANT_ACK_BEFORE_COMMIT = 1,  /* replies do not wait for EVENT_COMMITTED */
    PLANT_NO_DUPLICATE_CHECK = 2, /* a repeated push batch is stored again */
    PLANT_STALE_GENERATION = 4,   /* a delta of an earlier grant of a lease is accepted */
};

struct core_config {
    struct name line;
    struct card card;
    struct adapter_shape shape;
    struct settings settings;
    struct sip_key seed;        /* replay membership, held-out groups, record hashes: the line's secret */
    uint8_t release_secret[64]; /* ed25519; signs manifests and alias statements */
    uint8_t release_public[32];
    uint8_t release_cert[80]; /* root certifies release_public: CERT_LEN of proto/manifest.h */
    uint8_t root_public[32];
    unsigned planted; /* enum planted */
};

/* A connection of one plane, as the edge authenticated it. `conn` is never reused within a run. */
struct peer {
    uint64_t conn;
    enum plane plane;
    enum role role;
    struct name key;
};

struct hash16 { /* SipHash-2-4-128 under the line's seed: content or id of a record */
    uint8_t b[16];
};

/* What is stored about one record of a push, read before the step. */
struct push_facts {
    struct digest digest;      /* record_digest(): the step does not hash the text again */
    struct hash16 content, id; /* these three are computed by record_facts() */
    bool content_live;         /* a live record of this line has this very content */
    bool id_known;             /* this id was pushed to this domain before */
    struct bytes id_value;     /* its stored value (state.h), when known */
};

/* What is stored about a version an operator names, read before the step. */
struct version_facts {
    struct bytes value; /* its stored record (state.h) */
    uint64_t newest;    /* newest version there was on disk when this was read */
    bool files_held;    /* ROLLBACK: its adapter files are still in the blob store */
    bool in_lineage;    /* ROLLBACK: reached from the newest version by parents */
    const struct
        done_range { /* ROLLBACK without `keep`: the leases' ranges in the manifests of the versions left behind */
        struct domain_id domain;
        uint64_t first;
        uint32_t count;
    } * ranges; /* borrowed for the step */
    uint32_t n;
};

enum event_kind {
    EVENT_START,      /* once, after loading; carries a fresh incarnation */
    EVENT_MESSAGE,    /* a decoded, permitted message */
    EVENT_PEER_GONE,  /* the connection is closed (may be late or never come) */
    EVENT_COMMITTED,  /* all batches up to `seq` are durable */
    EVENT_AGGREGATED, /* answer to EFFECT_AGGREGATE */
    EVENT_TICK,       /* time passed; sent at the latest at core_deadline() */
    EVENT_PURGED,     /* answer to EFFECT_PURGE: `seq` is its number, or an earlier one's */
    EVENT_DISK_LOW,   /* `low` tells: refuse what grows (ST_AGAIN) until it is false again */
};

/* A version's blobs. What leases train on from is `state`, a PEFT file as well, where that is not what is published; else zero. */
struct version_files {
    struct digest peft, gguf, state;
    uint64_t peft_bytes, gguf_bytes, state_bytes;
    uint8_t peft_sha256[32], gguf_sha256[32], state_sha256[32];
};

struct aggregated {
    enum status status; /* ST_OK or why no candidate could be made */
    char text[256];
    uint64_t round;
    uint32_t attempt;              /* of the effect: names the candidate within its round */
    struct version_files files;    /* durable */
    double error_ratio;            /* factor averaging, combine.h */
    double update_norm, clip_norm; /* of the mean delta; bound the deltas were clipped to (0: none) */
    uint32_t n;                    /* deltas, in the order of the effect */
    struct aggregated_delta {
        bool refused;              /* non-finite or malformed: takes no part; its data is held */
        double norm, clip, weight; /* weights of the accepted sum to 1 */
    } * deltas;                    /* borrowed for the step */
};

struct event {
    enum event_kind kind;
    uint64_t now_ms;
    uint64_t wall_s;                     /* for manifests only */
    struct peer peer;                    /* MESSAGE, PEER_GONE */
    uint16_t verb;                       /* MESSAGE */
    uint64_t request;                    /* MESSAGE: request id, echoed */
    const ProtobufCMessage *message;     /* MESSAGE: borrowed */
    const struct push_facts *facts;      /* PUSH_BATCH: one per record */
    bool blob_held;                      /* DELTA_COMMIT: the blob is whole, verified and durable */
    struct bytes record_value;           /* CONTROL_RETRACT: the stored value of the id (state.h); empty: unknown */
    const struct version_facts *version; /* CONTROL_ROLLBACK, CONTROL_PROMOTE: of `number`; NULL: unknown */
    uint64_t seq;                        /* COMMITTED, PURGED */
    uint8_t incarnation[16];             /* START */
    const struct aggregated *aggregated; /* AGGREGATED */
    bool low;                            /* DISK_LOW */
};

enum effect_kind {
    EFFECT_SEND,
    EFFECT_PERSIST,
    EFFECT_AGGREGATE,
    EFFECT_DROP_BLOB, /* nothing refers to it any more (durably so): may be deleted */
    EFFECT_PURGE, /* text was deleted (durably so): rewrite the files that held it. The newest does for all before */
};

struct effect {
    enum effect_kind kind;
    union {
        struct {
            struct peer peer;
            uint16_t verb;
            uint64_t request;
            ProtobufCMessage *message; /* owned: freed by effects_clear */
        } send;
        struct {
            uint64_t seq;
            struct batch batch; /* owned */
        } persist;
        struct {
            uint64_t round;
            uint32_t attempt;
            double step; /* 1, or 0.5 for the half step */
            uint64_t parent;
            struct digest parent_peft, parent_state; /* the same where the parent's weights are its state */
            struct publish_rule rule;                /* what is published of the new state */
            uint32_t n;
            struct aggregate_delta {
                uint64_t lease;
                struct digest digest;
                uint64_t bytes, target_tokens;
            } * deltas; /* owned; in lease order */
        } aggregate;
        struct digest drop;
        uint64_t purge;
    };
};

struct effects { /* zeroed is empty */
    struct effect *items;
    uint32_t n, cap;
};
void effects_clear(struct effects *effects);
void effects_release(struct effects *effects);

struct core *core_new(const struct core_config *config);
void core_free(struct core *core);

/* Creates a line: the batch that a new database starts with (version 0, domain `general`, counters;
 * applied_seq 1, so the first step's is 2). `v0` says where version 0's blobs are. Anchor text is pushed later as ordinary batches to `general`. */
void core_init_line(const struct core_config *config, const struct version_files *v0, uint64_t wall_s,
                    struct batch *out);

/* Loading: while core_load_next() names a range [from, to) of a family's keys, feed every pair in it, in key order, to
 * core_load(). What is outside the ranges (text, dedupe, history) is never read: the work depends on what is unfinished,
 * not on how long the line has lived. ST_CORRUPT names family and key; the core is then good for nothing but freeing. */
struct load_range {
    uint8_t family;
    uint8_t from[32], to[32];
    size_t from_len, to_len;
};
bool core_load_next(struct core *core, struct load_range *out);
enum status core_load(struct core *core, uint8_t family, struct bytes key, struct bytes value, struct err *err);

void core_step(struct core *core, const struct event *event, struct effects *effects);

/* When EVENT_TICK is wanted at the latest; UINT64_MAX: not at all. */
uint64_t core_deadline(const struct core *core);

/* The digest and the keyed hashes of push_facts: content covers kind and text; id covers domain and the id as pushed (or,
 * when empty, the content). Pure; the shell calls it before the step. */
void record_facts(const struct sip_key *seed, struct domain_id domain, const Alv__Record *record,
                  struct push_facts *facts);
void record_hashes(const struct sip_key *seed, struct domain_id domain, const Alv__Record *record,
                   struct hash16 *content, struct hash16 *id);

/* The producer session of a batch names its domain; false: unknown session (the step will refuse). */
bool core_producer_domain(const struct core *core, uint64_t producer, struct domain_id *out);

/* The oldest version whose signed manifest the core still holds: the shell answers a WATCH from below it. */
uint64_t core_versions_oldest(const struct core *core);

/* Worker instances that may hold text retracted by an exclusion up to `seq`: all that ever asked for work and have not
 * reported it applied. Fills at most `max`, returns how many there are. */
struct state_holder;
uint32_t core_holders(const struct core *core, uint64_t seq, struct state_holder *out, uint32_t max);

/* Read-only picture for status, metrics and the dashboard (snapshot.h). */
struct snapshot;
void core_snapshot(const struct core *core, uint64_t now_ms, struct snapshot *out);

#endif
