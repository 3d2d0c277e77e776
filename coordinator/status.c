/* STATUS: the picture of the moment as JSON. */
#include <stdlib.h>

#include "coordinator/core/snapshot.h"
#include "coordinator/report.h"

static const char *phase_name(enum round_phase phase)
{
    static const char *const names[] = {"none", "open", "aggregating", "evaluating"};
    return phase <= ROUND_EVALUATING ? names[phase] : "unknown";
}

struct picture *picture_take(const struct report_source *source)
{
    struct picture *p = xcalloc(1, sizeof *p);
    core_snapshot(source->core, source->now_ms, &p->s);
    streamlog_stats(source->log, &p->log);
    p->disk_free_bytes = db_free_bytes(streamlog_db(source->log));
    p->uncommitted = p->s.seq - p->s.committed;
    p->alarmed = p->s.alarm[0] != 0;
    return p;
}

static uint64_t number_of(const struct core *core, bool session)
{
    struct snapshot *s = xcalloc(1, sizeof *s); /* half a megabyte: not on the stack */
    core_snapshot(core, 0, s);
    uint64_t number = session ? s->session_counter : s->version;
    free(s);
    return number;
}

uint64_t report_newest(const struct core *core)
{
    return number_of(core, false);
}

uint64_t report_session(const struct core *core)
{
    return number_of(core, true);
}

static json_t *json_hex(const uint8_t instance[16])
{
    char hex[33];
    hex_encode(instance, 16, hex);
    return json_string(hex);
}

static json_t *domain_json(const struct snapshot_domain *d)
{
    json_t *j = json_object(), *states = json_object();
    for (int i = 0; i < SEG_STATES; i++)
        json_object_set_new(states, segment_state_name((enum segment_state)i), json_count(d->count[i]));
    json_object_set_new(j, "domain", json_string(d->name.s));
    json_object_set_new(j, "segments", json_count(d->segments));
    json_object_set_new(j, "bytes", json_count(d->bytes));
    json_object_set_new(j, "watermark", json_count(d->watermark));
    json_object_set_new(j, "states", states);
    json_object_set_new(j, "pending_bytes", json_count(d->pending_bytes));
    json_object_set_new(j, "lag_ms", json_count(d->lag_ms));
    json_object_set_new(j, "eta_ms", d->eta_ms == UINT64_MAX ? json_null() : json_count(d->eta_ms));
    json_object_set_new(j, "relabelled", json_count(d->relabelled));
    json_object_set_new(j, "probe_segments", json_count(d->probe_segments));
    json_object_set_new(j, "probe_set", json_count(d->probe_set));
    json_object_set_new(j, "gate_windows", json_count(d->probe[PART_GATE]));
    json_object_set_new(j, "records", json_count(d->records));
    json_object_set_new(j, "duplicates", json_count(d->duplicates));
    json_object_set_new(j, "refused", json_count(d->refused));
    json_object_set_new(j, "superseded", json_count(d->superseded));
    json_object_set_new(j, "reference", json_count(d->reference));
    json_object_set_new(j, "sentinel", json_count(d->sentinel));
    json_object_set_new(j, "tokens_per_byte", json_number(d->tokens_per_byte));
    json_object_set_new(j, "history_weight", json_count(d->history_weight));
    return j;
}

static json_t *round_json(const struct snapshot *s)
{
    static const char *const phases[] = {"open", "granted", "accepted"};
    json_t *j = json_object(), *leases = json_array();
    uint32_t n = s->n_leases < SNAPSHOT_LEASES ? s->n_leases : SNAPSHOT_LEASES;
    for (uint32_t i = 0; i < n; i++) {
        const struct snapshot_lease *l = &s->leases[i];
        json_t *lease = json_object();
        json_object_set_new(lease, "lease", json_count(l->id));
        json_object_set_new(lease, "generation", json_count(l->generation));
        json_object_set_new(lease, "failed_attempts", json_count(l->attempts));
        json_object_set_new(lease, "phase", json_string(l->phase <= LEASE_ACCEPTED ? phases[l->phase] : "unknown"));
        json_object_set_new(lease, "done", json_count(l->done));
        json_object_set_new(lease, "total", json_count(l->total));
        json_object_set_new(lease, "worker", json_string(l->key.s));
        json_object_set_new(lease, "instance", json_hex(l->instance));
        json_object_set_new(lease, "age_ms", l->phase == LEASE_GRANTED ? json_count(l->age_ms) : json_null());
        json_array_append_new(leases, lease);
    }
    json_object_set_new(j, "round", json_count(s->round));
    json_object_set_new(j, "phase", json_string(phase_name(s->phase)));
    json_object_set_new(j, "attempt", json_count(s->round_attempt));
    json_object_set_new(j, "look", json_count(s->round_look));
    json_object_set_new(j, "refusals", json_count(s->refusals));
    json_object_set_new(j, "leases", json_count(s->n_leases));
    json_object_set_new(j, "leases_open", json_count(s->leases_open));
    json_object_set_new(j, "leases_accepted", json_count(s->leases_accepted));
    json_object_set_new(j, "evaluations", json_count(s->eval_tasks));
    json_object_set_new(j, "evaluations_open", json_count(s->eval_open));
    json_object_set_new(j, "lease_list", leases);
    return j;
}

static json_t *member_json(const struct snapshot_member *m)
{
    json_t *j = json_object();
    json_object_set_new(j, "plane", json_string(plane_name(m->plane)));
    json_object_set_new(j, "key", json_string(m->key.s));
    json_object_set_new(j, "instance", json_hex(m->instance));
    json_object_set_new(j, "here", json_boolean(m->here));
    json_object_set_new(j, "seen_ms", json_count(m->seen_ms));
    if (m->plane == PLANE_WORK) {
        json_object_set_new(j, "waiting", json_boolean(m->waiting));
        json_object_set_new(j, "tokens_per_s", json_count(m->tokens_per_s));
        json_object_set_new(j, "exclusion_seq", json_count(m->exclusion_seq));
        json_object_set_new(j, "fingerprint", json_string(m->fingerprint));
    }
    if (m->plane == PLANE_MODELS) {
        json_object_set_new(j, "staged", json_count(m->staged));
        json_object_set_new(j, "serving", json_count(m->serving));
        json_object_set_new(j, "target", json_string(m->target));
        json_object_set_new(j, "error", json_string(m->error));
    }
    return j;
}

static json_t *aliases_json(const struct snapshot *s)
{
    json_t *j = json_object();
    for (uint32_t i = 0; i < s->n_aliases; i++)
        json_object_set_new(j, s->aliases[i].name.s, json_count(s->aliases[i].version));
    return j;
}

static json_t *replay_json(const struct snapshot *s)
{
    json_t *j = json_object();
    json_object_set_new(j, "anchor_permille", json_count(s->anchor_permille));
    json_object_set_new(j, "history_permille", json_count(s->history_permille));
    json_object_set_new(j, "sample_k", json_count(s->sample_k));
    return j;
}

json_t *report_status(const struct picture *p)
{
    const struct snapshot *s = &p->s;
    json_t *j = json_object(), *domains = json_array(), *members = json_array(), *commits = json_object();
    uint32_t n_members = s->n_members < SNAPSHOT_MEMBERS ? s->n_members : SNAPSHOT_MEMBERS;
    for (uint32_t i = 0; i < s->n_domains; i++)
        json_array_append_new(domains, domain_json(&s->domains[i]));
    for (uint32_t i = 0; i < n_members; i++)
        json_array_append_new(members, member_json(&s->members[i]));
    json_object_set_new(commits, "groups", json_count(p->log.groups));
    json_object_set_new(commits, "batches", json_count(p->log.batches));
    json_object_set_new(commits, "bytes", json_count(p->log.bytes));
    json_object_set_new(commits, "seconds", json_number(p->log.seconds));

    json_object_set_new(j, "line", json_string(s->line.s));
    json_object_set_new(j, "version", json_count(s->version));
    json_object_set_new(j, "aliases", aliases_json(s));
    json_object_set_new(j, "session", json_count(s->session_counter));
    json_object_set_new(j, "applied_seq", json_count(s->committed));
    json_object_set_new(j, "pushed_records", json_count(s->pushed_records));
    json_object_set_new(j, "pushed_bytes", json_count(s->pushed_bytes));
    json_object_set_new(j, "disk_low", json_boolean(s->disk_low));
    json_object_set_new(j, "disk_free_bytes", json_count(p->disk_free_bytes));
    json_object_set_new(j, "alarm", s->alarm[0] ? json_string(s->alarm) : json_null());
    json_object_set_new(j, "stopped", json_boolean(s->stopped));
    json_object_set_new(j, "exclusions", json_count(s->exclusions));
    json_object_set_new(j, "quarantined", json_count(s->quarantined));
    json_object_set_new(j, "retractions", json_count(s->erasures));
    json_object_set_new(j, "retractions_purged", json_count(s->purged));
    json_object_set_new(j, "holders", json_count(s->n_holders));
    json_object_set_new(j, "workers", json_count(s->n_workers));
    json_object_set_new(j, "subscribers", json_count(s->n_subscribers));
    json_object_set_new(j, "producers", json_count(s->n_producers));
    json_object_set_new(j, "tokens_per_s", json_count(s->tokens_per_s));
    json_object_set_new(j, "commits", commits);
    json_object_set_new(j, "replay", replay_json(s));
    json_object_set_new(j, "round", round_json(s));
    json_object_set_new(j, "domains", domains);
    json_object_set_new(j, "members", members);
    json_object_set_new(j, "members_total", json_count(s->n_members));
    return j;
}
