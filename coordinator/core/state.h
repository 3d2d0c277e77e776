/* state.h - every key and value of the coordinator's database, and their encoding.
 *
 * Each record type has one description in state.c that both writes and reads it, so the two cannot drift apart. Integers
 * in keys are big-endian (they sort), in values little-endian. META key "f" holds the format's number; another
 * number is refused. Decoders check every length, count and enumeration: the disk is not trusted.
 *
 * META     "f" format · "s" applied_seq · "l" line · "S" counter: session · "c" counters · "a" alias statement · "r" round
 *          "d" domain · "p" stream (of a producer) · "e" seq: exclusion · "q" id: quarantine · "k" domain, first: link
 *          "h" worker instance: how far its erasures went
 * STREAM   "s" domain, probe, offset: segment · "z" domain, first: sizes of appended segments above the watermark
 *          "t" domain, first: settled range above the watermark · "T" the same below it (history: never loaded)
 *          "w" domain, first: probe windows · "x" domain, probe, first: a later state of settled or probe segments
 * DEDUPE   "c" content: where it lives · "i" id: its revisions
 * LEASES   "l" lease of the round in progress
 * DELTAS   "d" lease: accepted delta · "f" lease: first-pass losses
 * VERSIONS "m" number: version · "v" round, n: verdict
 * MATRIX   "r" version, domain: losses · "e" round, task: evaluation results of the round in progress
 * AUDIT    "a" n: operator's action · "t" slot: token and its answer · "r" id: its retraction
 *
 * The state of a train segment: if an "x" covers it, that state; else the "T" or "t" range that covers it; else, above
 * the watermark, leased or accepted when a lease lists it, and pending when none does.
 */
#ifndef COORDINATOR_CORE_STATE_H
#define COORDINATOR_CORE_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/limits.h"
#include "coordinator/core/core.h"
#include "proto/manifest.h"

enum { STATE_FORMAT = 5, STATE_TEXT_MAX = 511, ROUND_LEASES_MAX = 512, REVISIONS_MAX = 32, OVERRIDES_MAX = 16 };

enum segment_state {
    SEG_PENDING,
    SEG_LEASED,
    SEG_ACCEPTED,
    SEG_DONE,        /* ref: version */
    SEG_QUARANTINED, /* ref: quarantine id */
    SEG_SKIPPED,     /* by the backlog policy; may be replayed */
    SEG_SUPERSEDED,  /* ref: exclusion, 0 in a probe */
    SEG_RETRACTED,   /* ref: exclusion, 0 in a probe */
    SEG_STATES
};
const char *segment_state_name(enum segment_state state);

enum probe_part { PART_GATE, PART_TUNING, PART_AUDIT, PART_RESERVE, PROBE_PARTS }; /* RESERVE: of none */

struct state_key {
    uint8_t b[32];
    size_t len;
};
struct state_key key_plain(char tag);
struct state_key key_u16(char tag, uint16_t v);
struct state_key key_u64(char tag, uint64_t v);
struct state_key key_domain(char tag, struct domain_id domain, uint64_t first);              /* z t T w k */
struct state_key key_stream(char tag, struct domain_id domain, bool probe, uint64_t offset); /* s x */
struct state_key key_hash(char tag, const struct hash16 *hash);                              /* c i */
struct state_key key_pair(char tag, uint64_t a, uint64_t b);                                 /* e (matrix), v */
struct state_key key_matrix(uint64_t version, struct domain_id domain);                      /* r */
/* The number after the tag of a key made by key_u64 / first offset of one made by key_domain. */
bool key_read_u64(struct bytes key, uint64_t *out);
bool key_read_domain(struct bytes key, struct domain_id *domain, uint64_t *first);

struct state_line {
    struct name name;
    struct digest card;
};

struct state_session {
    uint64_t counter;
    uint8_t incarnation[16], previous[16];
};

struct state_counters { /* the next number of each kind; `version` is the newest published */
    uint64_t version, round, lease, stream, quarantine, exclusion, audit;
    uint64_t erasures, purged; /* retractions; those whose text is in no file of the database any more */
    uint64_t version_next;     /* the next version is no lower; 0: as it comes. A restored line leaves a gap */
    uint32_t refusals;         /* rounds refused since the last published one */
    bool stopped;              /* leasing stopped with an alarm */
    char alarm[STATE_TEXT_MAX + 1];
};

struct override { /* a setting of one domain */
    char name[32], value[32];
};

struct state_domain {
    struct name name;
    uint64_t train_next, probe_next;
    uint64_t watermark;                                /* H */
    uint64_t train_bytes;                              /* appended */
    uint64_t settled_bytes;                            /* below the watermark */
    uint64_t tokens_seen, bytes_seen;                  /* reported by workers: tokens per byte */
    uint64_t reference;                                /* version the domain is compared with */
    uint64_t base;                                     /* the first reference: what was learnt is counted from it */
    uint32_t probe_set;                                /* number of the frozen one, 0: none yet */
    uint64_t settled[SEG_STATES];                      /* train segments in each terminal state */
    uint64_t relabelled;                               /* later states of these: superseded, retracted (or both) */
    uint64_t records, duplicates, refused, superseded; /* of pushes */
    uint32_t n_overrides;
    struct override overrides[OVERRIDES_MAX];
};

struct state_stream { /* (key, source, domain) */
    struct name key;
    char source[LIMIT_SOURCE_BYTES + 1];
    struct domain_id domain;
    uint32_t epoch; /* of the producer session */
    uint64_t position;
    struct digest rolling;
    uint64_t last_position; /* first record of the last batch; == position before the first one */
    struct digest last_rolling;
    struct buf last_ack; /* packed PushAck; owned */
};

struct state_exclusion {
    struct domain_id domain;
    uint64_t first;
    uint32_t count;
    uint64_t watermark; /* when it was recorded: sample.h's `at` */
    uint8_t state;      /* SEG_QUARANTINED, SEG_SUPERSEDED, SEG_RETRACTED (erase) */
};

struct range {
    struct domain_id domain;
    uint64_t first;
    uint32_t count;
};

struct state_holder { /* a worker instance that was given text */
    struct name key;
    uint8_t instance[16];
    uint64_t applied; /* exclusions up to here: what they retract is not on its disk */
    uint64_t seen_s;  /* when that was reported */
};

struct state_retraction {   /* the newest of a record */
    uint64_t number;        /* counts retractions */
    uint64_t exclusion_seq; /* 0: it was held out, no worker kept it */
    uint64_t wall_s;
    struct name key; /* who asked for it */
};

struct state_quarantine {
    uint64_t lease, round, wall_s;
    char reason[STATE_TEXT_MAX + 1];
    uint32_t n;
    struct range *ranges; /* owned */
};

struct state_link { /* offsets [first of the key, + count) repeat the segments from `source` on, which are lower */
    uint64_t source;
    uint32_t count;
};

enum round_phase { ROUND_NONE, ROUND_OPEN, ROUND_AGGREGATING, ROUND_EVALUATING };

enum round_attempt {
    ATTEMPT_FULL,     /* the mean of all deltas */
    ATTEMPT_HALF,     /* half of that step */
    ATTEMPT_DIAGNOSE, /* the same data again in single-domain leases, each delta judged alone */
    ATTEMPT_REST,     /* those that are not to blame together */
    ROUND_ATTEMPTS
};

struct state_round {
    uint64_t number;
    uint8_t phase;   /* enum round_phase */
    uint8_t attempt; /* enum round_attempt */
    uint8_t look;    /* evaluation: 0, 1, 2 */
    uint64_t parent, opened_s;
    uint64_t exclusion_seq; /* of the view below: what its leases replay from */
    uint32_t n_leases;      /* opened with */
    uint32_t verdicts;      /* given so far: numbers them */
    uint64_t suspect;       /* ATTEMPT_DIAGNOSE: the lease whose delta alone is the candidate; 0: none yet */
    struct version_files candidate;
    double error_ratio, update_norm, clip_norm;
    uint32_t n_domains;
    struct round_domain {
        uint64_t watermark;
        uint32_t weight; /* in the history pool */
    } domains[LIMIT_DOMAINS];
};

enum lease_phase { LEASE_OPEN, LEASE_GRANTED, LEASE_ACCEPTED };
enum lease_blame { BLAME_UNKNOWN, BLAME_NONE, BLAME_FORGETS };

struct state_lease {
    uint64_t id, round, seed;
    uint32_t generation; /* 0: never granted */
    uint32_t attempts;   /* failed ones */
    uint8_t phase;       /* enum lease_phase */
    uint8_t instance[16];
    uint64_t boot;
    struct name key;
    uint64_t tokens;        /* fresh, estimated */
    uint64_t exclusion_seq; /* what was taken out of the log up to here is not in it */
    double weight;          /* in the candidate, once aggregated */
    uint8_t blame;          /* enum lease_blame */
    uint32_t n_ranges;
    struct range *ranges; /* owned; ascending */
};

struct state_delta {
    uint64_t lease, round;
    uint32_t generation, steps, train_ms;
    struct digest digest;
    uint64_t bytes, target_tokens;
    struct name key;
    uint8_t instance[16];
    char fingerprint[STATE_TEXT_MAX + 1];
};

struct state_settled { /* "t", "T", and "x" */
    uint32_t count;
    uint8_t state;
    uint64_t ref;
};

struct state_sizes {
    uint64_t wall_s;
    uint32_t count;
    struct bytes sizes; /* u16 LE each; borrowed */
};

struct state_windows { /* neighbouring probe segments of one part */
    uint32_t count;
    uint8_t part;
    uint8_t waiting; /* in the reserve, for that part of the next probe set */
};

struct state_segment {
    uint8_t kind; /* Alv__RecordKind */
    uint32_t piece, pieces;
    uint8_t group[8];
    struct hash16 content; /* of the whole record */
    struct bytes text;     /* borrowed */
};

struct state_place { /* where a record's segments are */
    struct domain_id domain;
    uint8_t probe;
    uint64_t first;
    uint32_t count;
};

struct state_id {
    uint32_t revision; /* counts from 1 */
    uint8_t live;      /* the newest place holds the present text */
    struct hash16 content;
    uint32_t n; /* newest last; older ones than REVISIONS_MAX have been erased */
    struct state_place places[REVISIONS_MAX];
};

struct state_version {
    uint64_t parent, round, rollback_of, created_s;
    uint64_t tokens, train_ms; /* trained for it by all workers together */
    struct bytes manifest;     /* borrowed after decoding */
    uint8_t signature[SIGNATURE_LEN];
    struct version_files files;
    uint32_t n_domains;
    struct version_reference { /* what each domain was compared with from this version on */
        uint64_t version;
        struct digest peft;
        uint64_t peft_bytes;
    } references[LIMIT_DOMAINS];
};

struct state_verdict {
    uint64_t round, version; /* version: 0 when refused */
    uint64_t lease;          /* whose delta alone was judged; 0: all */
    uint64_t wall_s;
    uint8_t published, attempt;
    struct bytes text; /* JSON, gate.h; borrowed */
};

/* Losses on one domain's gate windows: of a version, or of candidate and reference in an evaluation task. */
struct state_losses {
    uint32_t n;
    struct window_loss {
        struct domain_id domain;
        uint64_t offset;
        double candidate, reference; /* summed NLL, nats */
        uint32_t tokens;
    } * items; /* owned */
    char fingerprint[STATE_TEXT_MAX + 1];
    uint8_t second; /* scored again, to compare machines */
};

struct state_audit {
    uint64_t wall_s;
    struct name key;
    uint32_t verb;
    char text[STATE_TEXT_MAX + 1];
};

struct state_token {
    uint8_t token[16];
    uint64_t order;
    struct bytes reply; /* JSON; borrowed */
};

/* STATE(name): void name_put(struct buf *, const struct name *);  bool name_get(struct bytes, struct name *);
 * get: false when the bytes are not exactly one value; then nothing is owned. Owned members are released by the matching
 * release function. */
#define STATE(type)                                         \
    void type##_put(struct buf *out, const struct type *v); \
    bool type##_get(struct bytes value, struct type *out)
STATE(state_line);
STATE(state_session);
STATE(state_counters);
STATE(state_domain);
STATE(state_stream);
STATE(state_exclusion);
STATE(state_quarantine);
STATE(state_holder);
STATE(state_retraction);
STATE(state_link);
STATE(state_round);
STATE(state_lease);
STATE(state_delta);
STATE(state_settled);
STATE(state_sizes);
STATE(state_windows);
STATE(state_segment);
STATE(state_place);
STATE(state_id);
STATE(state_version);
STATE(state_verdict);
STATE(state_losses);
STATE(state_audit);
STATE(state_token);
#undef STATE

void state_stream_release(struct state_stream *v);
void state_quarantine_release(struct state_quarantine *v);
void state_lease_release(struct state_lease *v);
void state_losses_release(struct state_losses *v);

#endif
