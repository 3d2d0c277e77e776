/* snapshot.h - a read-only picture of the core for status, metrics and the dashboard: plain values, no pointers into it.
 * Taken by the owner of the core, then readable from any thread. Lists are bounded; `n_...` counts all, the arrays hold
 * what fits. */
#ifndef COORDINATOR_CORE_SNAPSHOT_H
#define COORDINATOR_CORE_SNAPSHOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/ids.h"
#include "base/limits.h"
#include "coordinator/core/state.h"

enum { SNAPSHOT_MEMBERS = 256, SNAPSHOT_LEASES = 128 };

struct snapshot {
    struct name line;
    uint64_t session_counter;
    uint64_t seq, committed;               /* batches made, durable */
    uint64_t pushed_records, pushed_bytes; /* since this start */
    bool disk_low;
    char alarm[STATE_TEXT_MAX + 1]; /* empty: none */
    bool stopped;                   /* leasing, until CONTROL_RESUME */

    uint32_t n_domains;
    struct snapshot_domain {
        struct name name;
        uint64_t segments, bytes; /* ever appended to train */
        uint64_t watermark;
        uint64_t count[SEG_STATES];     /* train segments; done and the like as they were settled */
        uint64_t pending_bytes, lag_ms; /* of the oldest unsettled text */
        uint64_t relabelled;            /* superseded or retracted after they were settled */
        uint64_t eta_ms;                /* until pending is learnt, at the present rates; UINT64_MAX: nobody works */
        uint64_t probe_segments;
        uint32_t probe[PROBE_PARTS], probe_set;
        uint64_t records, duplicates, refused, superseded;
        uint64_t reference;
        uint32_t sentinel; /* enum sentinel */
        double tokens_per_byte;
        uint32_t history_weight; /* in the history pool of the newest round */
    } domains[LIMIT_DOMAINS];

    uint64_t round;
    enum round_phase phase;
    uint32_t round_attempt, round_look, refusals;
    uint32_t n_leases, leases_open, leases_accepted;
    struct snapshot_lease {
        uint64_t id;
        uint32_t generation, attempts, done, total;
        uint64_t age_ms; /* granted: since then */
        enum lease_phase phase;
        struct name key;
        uint8_t instance[16];
    } leases[SNAPSHOT_LEASES];
    uint32_t eval_tasks, eval_open;

    uint32_t n_workers, n_subscribers, n_producers; /* here now */
    uint64_t tokens_per_s;                          /* of all workers */
    uint32_t n_members;                             /* held below: who is here first */
    struct snapshot_member {
        enum plane plane;
        struct name key;
        uint8_t instance[16];
        bool here, waiting;
        uint64_t seen_ms; /* ago */
        uint32_t tokens_per_s;
        uint64_t exclusion_seq;   /* workers: newest applied */
        uint64_t staged, serving; /* subscribers */
        char target[128], error[256], fingerprint[128];
    } members[SNAPSHOT_MEMBERS];

    uint64_t version; /* newest */
    uint64_t aliases_seq;
    uint32_t n_aliases;
    struct alias aliases[ALIASES_MAX];
    uint64_t exclusions, quarantined;                     /* entries of the log; held leases */
    uint32_t anchor_permille, history_permille, sample_k; /* what a lease mixes in, as the line is set */
    uint64_t scanned;          /* members, leases and links looked at one by one, in all steps */
    uint64_t erasures, purged; /* retractions; those whose text left the files of the database */
    uint32_t n_holders;        /* workers that have yet to erase a retracted text */
};

#endif
