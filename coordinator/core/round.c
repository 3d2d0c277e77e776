/* Rounds are serial: open, aggregated, evaluated, verdict. A refused one is tried with half the step, then the culprit is
 * looked for (diagnose.c). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"

enum { REFUSALS_MAX = 3, AGGREGATE_RETRY_MS = 5000, GRACE_LEAST_MS = 1000 };

void round_store(struct core *core)
{
    PUT(core, FAMILY_META, key_plain('r'), state_round, &core->round);
}

/* Forgets candidate and stored results; the round is over. */
static void close_books(struct core *core)
{
    evaluate_forget(core);
    for (size_t i = 0; i < core->old_acks_n; i++) /* acks are remembered for one further round */
        delete_key(core, FAMILY_DELTAS, key_u64('d', core->old_acks[i].lease));
    core->old_acks_n = 0;
    core->round.phase = ROUND_NONE;
    core->aggregate_at = core->round_granted_ms = core->quorum_ms = NEVER;
    memset(&core->round.candidate, 0, sizeof core->round.candidate);
    round_store(core);
    planner_pending(core);
}

void round_forget_leases(struct core *core, bool keep_losses)
{
    for (uint32_t i = 0; i < core->n_leases; i++) {
        struct lease *l = core->leases[i];
        delete_key(core, FAMILY_LEASES, key_u64('l', l->s.id));
        if (l->s.phase == LEASE_ACCEPTED && !keep_losses)
            delete_key(core, FAMILY_DELTAS, key_u64('f', l->s.id));
        if (l->s.phase == LEASE_ACCEPTED) {
            core->old_acks = xrealloc_array(core->old_acks, core->old_acks_n + 1, sizeof *core->old_acks);
            core->old_acks[core->old_acks_n++] = (struct old_ack){l->s.id, l->s.generation};
            drop_blob(core, &l->delta.digest);
        }
    }
    lease_forget_all(core);
}

void round_finish(struct core *core, bool published)
{
    close_books(core);
    round_forget_leases(core, published);
}

void round_drop_candidate(struct core *core)
{
    const struct version_files *f = &core->round.candidate;
    for (size_t i = 0; i < core->versions_n; i++) /* a candidate may equal a version bit for bit */
        if (digest_eq(&core->versions[i].files.peft, &f->peft))
            return;
    drop_files(core, f);
}

void round_cancel(struct core *core)
{
    if (core->round.phase == ROUND_NONE)
        return;
    round_drop_candidate(core);
    for (uint32_t i = 0; i < core->n_leases; i++)
        for (uint32_t j = 0; j < core->leases[i]->s.n_ranges; j++) {
            struct range r = core->leases[i]->s.ranges[j];
            domain_set(core, core->domains[r.domain.v], r.first, r.count, SEG_PENDING, 0);
        }
    round_finish(core, false);
}

/* How long a lease of this round should take: by the slowest rate its workers report, but at least as long as the
 * quorum took. Looked up again only when a lease or a rate has changed. */
static double expected_ms(struct core *core)
{
    double quorum = (double)(core->quorum_ms - core->round_granted_ms);
    double share = (1000 - core->config.settings.anchor_permille - core->config.settings.history_permille) / 1000.0;
    for (uint32_t i = 0; i < core->n_leases && !core->pace_known; i++) {
        const struct lease *l = core->leases[i];
        double ms = l->tokens_per_s ? (double)l->s.tokens / share / l->tokens_per_s * 1000 : 0;
        core->expected_ms = i == 0 ? 0 : core->expected_ms;
        core->scanned++;
        if (l->s.phase == LEASE_GRANTED && ms > core->expected_ms)
            core->expected_ms = ms;
    }
    core->pace_known = true;
    return core->expected_ms > quorum ? core->expected_ms : quorum;
}

void round_check(struct core *core)
{
    if (core->round.phase != ROUND_OPEN)
        return;
    if (!core->n_leases) { /* all its data is held */
        round_finish(core, false);
        return;
    }
    if (core->n_accepted < core->n_leases) {
        if (core->n_accepted < (uint32_t)ceil(core->config.settings.quorum * core->n_leases)) {
            core->quorum_ms = NEVER;
            return;
        }
        if (core->quorum_ms == NEVER) {
            core->quorum_ms = core->now;
            if (core->round_granted_ms == NEVER)
                core->round_granted_ms = core->now;
        }
        double grace = core->config.settings.grace * expected_ms(core);
        uint64_t close_at = core->round_granted_ms + (grace < 1e15 ? (uint64_t)grace : (uint64_t)1e15);
        if (close_at < core->quorum_ms + GRACE_LEAST_MS)
            close_at = core->quorum_ms + GRACE_LEAST_MS;
        if (core->now < close_at) {
            wake(core, close_at);
            return;
        }
    }
    for (uint32_t i = core->n_leases; i-- > 0;)
        if (core->leases[i]->s.phase != LEASE_ACCEPTED)
            lease_drop(core, i, true);
    planner_pending(core);
    if (core->round.attempt == ATTEMPT_DIAGNOSE) {
        diagnose_next(core);
        return;
    }
    core->round.phase = ROUND_AGGREGATING;
    round_store(core);
    round_aggregate(core);
}

static bool in_candidate(const struct core *core, const struct lease *l)
{
    return !core->round.suspect || l->s.id == core->round.suspect;
}

static uint32_t candidate_deltas(const struct core *core)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < core->n_leases; i++)
        n += in_candidate(core, core->leases[i]);
    return n;
}

void round_aggregate(struct core *core)
{
    core->aggregate_at = NEVER;
    if (core->round.phase != ROUND_AGGREGATING)
        return;
    const struct version *parent = version_find(core, core->round.parent);
    CHECK(parent);
    struct effect *e = add_effect(core, EFFECT_AGGREGATE);
    e->aggregate.round = core->round.number;
    e->aggregate.attempt = core->round.verdicts;
    e->aggregate.step = core->round.attempt == ATTEMPT_HALF ? 0.5 : 1;
    e->aggregate.parent = core->round.parent;
    e->aggregate.parent_peft = parent->files.peft;
    e->aggregate.parent_state = *training_state(&parent->files, NULL);
    e->aggregate.rule = (struct publish_rule){core->round.parent ? core->config.settings.ema_permille / 1000.0 : 0,
                                              core->config.settings.publish_permille / 1000.0};
    e->aggregate.deltas = xcalloc(core->n_leases, sizeof *e->aggregate.deltas);
    for (uint32_t i = 0; i < core->n_leases; i++) {
        const struct state_delta *d = &core->leases[i]->delta;
        if (in_candidate(core, core->leases[i]))
            e->aggregate.deltas[e->aggregate.n++] =
                (struct aggregate_delta){d->lease, d->digest, d->bytes, d->target_tokens};
    }
}

/* Deltas that may not take part: their data is held. Returns how many there were. */
static uint32_t hold_refused(struct core *core, const struct aggregated *a)
{
    uint32_t n = 0, left = a->n;
    for (uint32_t i = core->n_leases; i-- > 0 && left;) {
        if (!in_candidate(core, core->leases[i]))
            continue;
        left--;
        if (a->deltas[left].refused) {
            drop_blob(core, &core->leases[i]->delta.digest);
            lease_hold(core, i, "its delta was not finite or malformed");
            n++;
            continue;
        }
        core->leases[i]->s.weight = a->deltas[left].weight;
        lease_store(core, core->leases[i]);
    }
    return n;
}

void round_aggregated(struct core *core, const struct event *event)
{
    const struct aggregated *a = event->aggregated;
    struct state_round *r = &core->round;
    if (r->phase != ROUND_AGGREGATING || a->round != r->number || a->attempt != r->verdicts ||
        (a->n && a->n != candidate_deltas(core))) {
        bool known = digest_eq(&a->files.peft, &r->candidate.peft);
        for (size_t i = 0; i < core->versions_n; i++)
            known |= digest_eq(&a->files.peft, &core->versions[i].files.peft);
        if (!a->status && !known)
            drop_files(core, &a->files);
        return;
    }
    uint32_t refused = hold_refused(core, a);
    if (!core->n_leases) {
        round_finish(core, false);
    } else if (a->status && refused && r->suspect) {
        r->suspect = 0;
        diagnose_next(core);
    } else if (a->status && refused) {
        round_aggregate(core); /* again, without them */
    } else if (a->status) {
        FORMAT(core->refused_alarm, "aggregation of round %llu failed and is tried again: %.256s",
               (unsigned long long)r->number, a->text);
        core->aggregate_at = core->now + AGGREGATE_RETRY_MS;
        wake(core, core->aggregate_at);
    } else {
        r->candidate = a->files;
        r->error_ratio = a->error_ratio;
        r->update_norm = a->update_norm;
        r->clip_norm = a->clip_norm;
        r->phase = ROUND_EVALUATING;
        r->look = 0;
        round_store(core);
        evaluate_start(core);
    }
}

void round_verdict(struct core *core, uint64_t version, const struct buf *json)
{
    struct state_verdict v = {.round = core->round.number,
                              .version = version,
                              .lease = core->round.suspect,
                              .wall_s = core->wall_s,
                              .published = version != 0,
                              .attempt = core->round.attempt,
                              .text = buf_bytes(json)};
    PUT(core, FAMILY_VERSIONS, key_pair('v', core->round.number, core->round.verdicts), state_verdict, &v);
    core->round.verdicts++; /* stored with what follows from it */
}

double round_error_rate(const struct core *core)
{
    double rate = core->config.settings.error_rate; /* one decision a lease: the rate is divided once more */
    return core->round.suspect && core->round.n_leases ? rate / core->round.n_leases : rate;
}

void round_refused(struct core *core, const char *text)
{
    if (core->round.attempt == ATTEMPT_REST) {
        round_final_refusal(core, text);
        return;
    }
    round_drop_candidate(core);
    memset(&core->round.candidate, 0, sizeof core->round.candidate);
    if (core->round.attempt == ATTEMPT_HALF) {
        diagnose_start(core, text);
        return;
    }
    evaluate_forget(core);
    core->round.attempt = ATTEMPT_HALF;
    core->round.phase = ROUND_AGGREGATING;
    round_store(core);
    round_aggregate(core);
}

void round_final_refusal(struct core *core, const char *text)
{
    core->counters.refusals++;
    if (core->counters.refusals >= REFUSALS_MAX) {
        core->counters.stopped = true;
        FORMAT(core->counters.alarm,
               "leasing stopped after %u refused rounds; the last: %.300s. Look at the verdict, then resume",
               core->counters.refusals, text);
    }
    core->counters_dirty = true;
    core->rest_until = core->now + core->counters.refusals * (uint64_t)core->config.settings.round_wait_ms;
    wake(core, core->rest_until);
    round_cancel(core);
}
