/* STATUS: the picture of the moment as JSON, and as gauges. */
#include <stdlib.h>

#include "coordinator/core/snapshot.h"
#include "coordinator/report.h"

static const char *phase_name(enum round_phase phase)
{
    static const char *const names[] = {"none", "open", "aggregating", "evaluating"};
    return phase <= ROUND_EVALUATING ? names[phase] : "unknown";
}

static struct snapshot *take(const struct core *core, uint64_t now_ms)
{
    struct snapshot *s = xcalloc(1, sizeof *s); /* half a megabyte: not on the stack */
    core_snapshot(core, now_ms, s);
    return s;
}

uint64_t report_newest(const struct core *core)
{
    struct snapshot *s = take(core, 0);
    uint64_t version = s->version;
    free(s);
    return version;
}

uint64_t report_session(const struct core *core)
{
    struct snapshot *s = take(core, 0);
    uint64_t session = s->session_counter;
    free(s);
    return session;
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
    json_object_set_new(j, "tokens_per_byte", json_number(d->tokens_per_byte));
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
    char instance[33];
    json_t *j = json_object();
    hex_encode(m->instance, sizeof m->instance, instance);
    json_object_set_new(j, "plane", json_string(plane_name(m->plane)));
    json_object_set_new(j, "key", json_string(m->key.s));
    json_object_set_new(j, "instance", json_string(instance));
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

json_t *report_status(const struct report_source *source)
{
    struct snapshot *s = take(source->core, source->now_ms);
    struct streamlog_stats log;
    json_t *j = json_object(), *domains = json_array(), *members = json_array(), *commits = json_object();
    uint32_t n_members = s->n_members < SNAPSHOT_MEMBERS ? s->n_members : SNAPSHOT_MEMBERS;
    for (uint32_t i = 0; i < s->n_domains; i++)
        json_array_append_new(domains, domain_json(&s->domains[i]));
    for (uint32_t i = 0; i < n_members; i++)
        json_array_append_new(members, member_json(&s->members[i]));
    streamlog_stats(source->log, &log);
    json_object_set_new(commits, "groups", json_count(log.groups));
    json_object_set_new(commits, "batches", json_count(log.batches));
    json_object_set_new(commits, "bytes", json_count(log.bytes));
    json_object_set_new(commits, "seconds", json_number(log.seconds));

    json_object_set_new(j, "line", json_string(s->line.s));
    json_object_set_new(j, "version", json_count(s->version));
    json_object_set_new(j, "aliases", aliases_json(s));
    json_object_set_new(j, "session", json_count(s->session_counter));
    json_object_set_new(j, "applied_seq", json_count(s->committed));
    json_object_set_new(j, "pushed_records", json_count(s->pushed_records));
    json_object_set_new(j, "pushed_bytes", json_count(s->pushed_bytes));
    json_object_set_new(j, "disk_low", json_boolean(s->disk_low));
    json_object_set_new(j, "disk_free_bytes", json_count(db_free_bytes(streamlog_db(source->log))));
    json_object_set_new(j, "alarm", s->alarm[0] ? json_string(s->alarm) : json_null());
    json_object_set_new(j, "stopped", json_boolean(s->stopped));
    json_object_set_new(j, "exclusions", json_count(s->exclusions));
    json_object_set_new(j, "quarantined", json_count(s->quarantined));
    json_object_set_new(j, "workers", json_count(s->n_workers));
    json_object_set_new(j, "subscribers", json_count(s->n_subscribers));
    json_object_set_new(j, "producers", json_count(s->n_producers));
    json_object_set_new(j, "tokens_per_s", json_count(s->tokens_per_s));
    json_object_set_new(j, "commits", commits);
    json_object_set_new(j, "round", round_json(s));
    json_object_set_new(j, "domains", domains);
    json_object_set_new(j, "members", members);
    json_object_set_new(j, "members_total", json_count(s->n_members));
    free(s);
    return j;
}

/* ---- gauges ----------------------------------------------------------------------------------------------------- */

static void gauge(struct metrics *m, const char *name, const char *help, double value)
{
    series_set(metrics_gauge(m, name, help, NULL), value);
}

static void domain_gauge(struct metrics *m, const char *name, const char *help, const char *domain, double value)
{
    series_set(metrics_gauge(m, name, help, "domain", domain, NULL), value);
}

void report_metrics(const struct report_source *source, struct metrics *m)
{
    struct snapshot *s = take(source->core, source->now_ms);
    struct streamlog_stats log;
    streamlog_stats(source->log, &log);
    gauge(m, "alluvium_version", "Newest published version", (double)s->version);
    gauge(m, "alluvium_session", "Counter of coordinator starts", (double)s->session_counter);
    gauge(m, "alluvium_applied_seq", "Newest durable step", (double)s->committed);
    gauge(m, "alluvium_commit_groups", "Synced commits since the start", (double)log.groups);
    gauge(m, "alluvium_commit_bytes", "Bytes committed since the start", (double)log.bytes);
    gauge(m, "alluvium_commit_seconds", "Seconds spent in commits since the start", log.seconds);
    gauge(m, "alluvium_disk_free_bytes", "Free space of the line's file system",
          (double)db_free_bytes(streamlog_db(source->log)));
    gauge(m, "alluvium_disk_low", "1 while pushes are put off", s->disk_low);
    gauge(m, "alluvium_stopped", "1 while leasing is stopped with an alarm", s->stopped);
    gauge(m, "alluvium_workers", "Workers here now", s->n_workers);
    gauge(m, "alluvium_subscribers", "Subscribers here now", s->n_subscribers);
    gauge(m, "alluvium_round", "Number of the newest round", (double)s->round);
    gauge(m, "alluvium_round_refusals", "Rounds refused since the last version", s->refusals);
    gauge(m, "alluvium_tokens_per_second", "Of all workers, as they report", (double)s->tokens_per_s);
    for (uint32_t i = 0; i < s->n_domains; i++) {
        const struct snapshot_domain *d = &s->domains[i];
        domain_gauge(m, "alluvium_domain_segments", "Train segments ever appended", d->name.s, (double)d->segments);
        domain_gauge(m, "alluvium_domain_pending_bytes", "Text not yet learnt", d->name.s, (double)d->pending_bytes);
        domain_gauge(m, "alluvium_domain_lag_seconds", "Age of the oldest text not yet learnt", d->name.s,
                     (double)d->lag_ms / 1000);
        domain_gauge(m, "alluvium_domain_records", "Records taken in", d->name.s, (double)d->records);
    }
    free(s);
}
