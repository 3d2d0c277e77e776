#include "coordinator/core/snapshot.h"

#include <string.h>

#include "coordinator/core/internal.h"

static void fill_domain(const struct core *core, const struct domain *d, uint64_t tokens_per_s,
                        struct snapshot_domain *out)
{
    out->name = d->d.name;
    out->segments = d->d.train_next;
    out->bytes = d->d.train_bytes;
    out->watermark = d->d.watermark;
    memcpy(out->count, d->d.settled, sizeof out->count);
    for (unsigned s = SEG_PENDING; s < SEG_DONE; s++)
        out->count[s] = d->count[s];
    out->pending_bytes = d->bytes[SEG_PENDING];
    out->lag_ms = d->n ? domain_age_ms(core, d) : 0;
    out->relabelled = d->d.relabelled;
    out->eta_ms = !out->pending_bytes ? 0
                  : tokens_per_s      ? domain_tokens(core, d, out->pending_bytes) * 1000 / tokens_per_s
                                      : UINT64_MAX;
    out->probe_segments = d->d.probe_next;
    memcpy(out->probe, d->part_n, sizeof d->part_n);
    out->probe[PART_RESERVE] =
        (uint32_t)(d->d.probe_next - out->probe[PART_GATE] - out->probe[PART_TUNING] - out->probe[PART_AUDIT]);
    out->probe_set = d->d.probe_set;
    out->records = d->d.records;
    out->duplicates = d->d.duplicates;
    out->refused = d->d.refused;
    out->superseded = d->d.superseded;
    out->reference = d->d.reference;
    out->sentinel = d->settings.sentinel;
    out->tokens_per_byte = (double)domain_tokens(core, d, 1u << 20) / (1u << 20);
}

/* A socket does not say that its peer has gone. Workers and subscribers poll at least every LIMIT_WAIT_MS and report progress in
 * between: a silence of three polls, or the one after which a task goes to another, is an absence to whoever looks. */
static bool is_here(const struct core *core, const struct member *m, uint64_t now_ms)
{
    const uint64_t polls = 3 * LIMIT_WAIT_MS, silence = core->config.settings.lease_silence_ms;
    bool polled = m->peer.plane == PLANE_WORK || m->peer.plane == PLANE_MODELS;
    return m->here && (!polled || now_ms <= m->seen_ms + (silence > polls ? silence : polls));
}

static void fill_member(const struct core *core, const struct member *m, uint64_t now_ms, struct snapshot_member *out)
{
    out->plane = m->peer.plane;
    out->key = m->peer.key;
    memcpy(out->instance, m->instance, 16);
    out->here = is_here(core, m, now_ms);
    out->waiting = m->waiting;
    out->seen_ms = now_ms > m->seen_ms ? now_ms - m->seen_ms : 0;
    out->tokens_per_s = m->tokens_per_s;
    out->exclusion_seq = m->exclusion_seq;
    out->staged = m->staged;
    out->serving = m->serving;
    memcpy(out->target, m->target, sizeof out->target);
    memcpy(out->error, m->error, sizeof out->error);
    FORMAT(out->fingerprint, "%s", m->fingerprint);
}

static void fill_members(const struct core *core, uint64_t now_ms, struct snapshot *out)
{
    for (size_t i = 0; i < core->members_n; i++) {
        const struct member *m = core->members[i];
        if (!is_here(core, m, now_ms))
            continue;
        if (m->peer.plane == PLANE_WORK)
            out->n_workers++, out->tokens_per_s += m->tokens_per_s;
        out->n_subscribers += m->peer.plane == PLANE_MODELS;
        out->n_producers += m->peer.plane == PLANE_INGEST;
    }
    for (int gone = 0; gone < 2; gone++) /* the list is short: those who have left do not push others out */
        for (size_t i = 0; i < core->members_n && out->n_members < SNAPSHOT_MEMBERS; i++) {
            const struct member *m = core->members[i];
            if ((m->peer.plane == PLANE_WORK || m->peer.plane == PLANE_MODELS) && is_here(core, m, now_ms) == !gone)
                fill_member(core, m, now_ms, &out->members[out->n_members++]);
        }
}

static void fill_round(const struct core *core, uint64_t now_ms, struct snapshot *out)
{
    out->round = core->round.number;
    out->phase = core->round.phase;
    out->round_attempt = core->round.attempt;
    out->round_look = core->round.look;
    out->refusals = core->counters.refusals;
    out->n_leases = core->n_leases;
    out->leases_open = core->n_open;
    out->leases_accepted = core->n_accepted;
    for (uint32_t i = 0; i < core->n_leases && i < SNAPSHOT_LEASES; i++) {
        const struct lease *l = core->leases[i];
        struct snapshot_lease *s = &out->leases[i];
        *s = (struct snapshot_lease){.id = l->s.id,
                                     .generation = l->s.generation,
                                     .attempts = l->s.attempts,
                                     .done = l->done,
                                     .total = l->total,
                                     .phase = l->s.phase,
                                     .key = l->s.key};
        if (l->s.phase == LEASE_GRANTED && now_ms > l->granted_ms)
            s->age_ms = now_ms - l->granted_ms;
        memcpy(s->instance, l->s.instance, 16);
    }
    out->eval_tasks = core->eval.n_tasks;
    out->eval_open = core->eval.n_open;
}

void core_snapshot(const struct core *core, uint64_t now_ms, struct snapshot *out)
{
    memset(out, 0, sizeof *out);
    out->line = core->config.line;
    out->session_counter = core->sessions_n ? session_now(core)->counter : 0;
    out->seq = core->seq;
    out->committed = core->committed;
    out->pushed_records = core->pushed_records;
    out->pushed_bytes = core->pushed_bytes;
    out->disk_low = core->disk_low;
    out->stopped = core->counters.stopped;
    const char *alarm = core->counters.alarm[0] ? core->counters.alarm : core->refused_alarm;
    if (core->held_n >= QUARANTINES_MAX && !alarm[0])
        alarm = "leasing stopped: too many leases are held; release or drop them";
    FORMAT(out->alarm, "%s", alarm);
    fill_members(core, now_ms, out);
    out->n_domains = core->n_domains;
    for (uint32_t i = 0; i < core->n_domains; i++)
        fill_domain(core, core->domains[i], out->tokens_per_s, &out->domains[i]);
    for (uint32_t i = 0; i < core->round.n_domains; i++)
        out->domains[i].history_weight = core->round.domains[i].weight;
    fill_round(core, now_ms, out);
    out->version = core->counters.version;
    out->aliases_seq = core->aliases.seq;
    out->n_aliases = core->aliases.n_aliases;
    memcpy(out->aliases, core->aliases.aliases, sizeof out->aliases);
    out->exclusions = core->exclusions_n;
    out->quarantined = core->held_n;
    out->anchor_permille = core->config.settings.anchor_permille;
    out->history_permille = core->config.settings.history_permille;
    out->sample_k = core->config.settings.sample_k;
    out->scanned = core->scanned;
    out->erasures = core->counters.erasures;
    out->purged = core->counters.purged;
    out->n_holders = core_holders(core, core->erase_seq, NULL, 0);
}
