/* settings.h - the settings of a line: one table with default, bounds and reason (DESIGN section 14).
 *
 * Kept as `line.conf` in the line's directory ("name = value", # comments); unknown names and values out of bounds are
 * refused with their line. A domain overrides those of settings_for_domain(). The looks are named look_1, look_2, look_3.
 */
#ifndef COORDINATOR_CORE_SETTINGS_H
#define COORDINATOR_CORE_SETTINGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum sentinel { SENTINEL_NONE, SENTINEL_KEPT_ASIDE, SENTINEL_OWN_TEXT }; /* nobody trains on it; the base wrote it */

struct settings {
    uint32_t segment_bytes; /* a text record is cut at line ends into pieces of about this size */
    uint32_t seq_tokens;    /* longest packed sample */
    uint32_t step_tokens;   /* one optimiser step */
    uint32_t rank, alpha;
    double lr, beta1, beta2, weight_decay, clip;
    uint32_t decay_permille, warmup_steps;
    uint32_t anchor_permille, history_permille, distil_permille, history_distil_permille;
    uint32_t history_boost_permille, anchor_boost_permille, average_permille;
    uint32_t ema_permille, publish_permille; /* what is published of a training state: struct publish_rule */
    uint32_t sample_k;
    uint32_t lease_steps_min; /* a lease has at least this many optimiser steps ... */
    uint32_t lease_steps_max; /* ... and at most this many */
    uint32_t lease_attempts;
    uint32_t round_wait_ms;    /* pending text too small for a full lease waits this long at the most */
    double quorum;             /* share of a round's leases */
    double grace;              /* multiple of the expected time */
    uint32_t lease_silence_ms; /* a lease without a progress report for this long goes back to pending */
    double clip_norm;          /* times the median delta norm */
    double weight_cap;         /* times the equal share */
    double forget_budget;      /* nats per token */
    double error_rate;         /* per round, one-sided, divided over the domains */
    uint32_t looks[3];         /* windows per domain at the first, second, last look */
    uint32_t window_tokens;
    uint32_t probe_gate, probe_tuning, probe_audit; /* windows per domain */
    uint32_t heldout_permille;                      /* of groups, until the probe is full */
    uint64_t backlog_bytes;
    uint64_t backlog_age_ms;
    bool backlog_sample;         /* false: block */
    uint32_t delta_coding;       /* enum delta_coding */
    double double_score;         /* share of windows scored by a second worker */
    uint32_t sentinel;           /* of a domain: enum sentinel, see control.c */
    uint32_t versions_kept;      /* adapter blobs of the newest N stay */
    uint32_t base_tokens_per_kb; /* tokens per 1,024 bytes assumed until workers report */
};

void settings_default(struct settings *out);
/* Applies one "name = value"; ST_CONFIG with name, value and the allowed range. */
enum status settings_set(struct settings *s, const char *name, const char *value, struct err *err);
enum status settings_check(const struct settings *s, struct err *err); /* what ties settings together */
/* What ties them to the base: no sample and no window is longer than its context. */
enum status settings_fit(const struct settings *s, uint32_t context, struct err *err);
enum status settings_read(const char *path, struct settings *s, struct err *err);

struct setting_info {
    const char *name, *reason; /* reason: unit, and why this default */
    double low, high;
};
const struct setting_info *settings_info(unsigned i); /* row i of the table; NULL past its end */
bool settings_for_domain(const char *name);           /* may CONTROL_DOMAIN_SET override it? */
void settings_value(const struct settings *s, const char *name, char *out, size_t size);

#endif
