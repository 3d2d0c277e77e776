#include "coordinator/gauges.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* ---- families whose samples are fields --------------------------------------------------------------------------- */

enum field_type { FIELD_U64, FIELD_U32, FIELD_BOOL, FIELD_DOUBLE };

struct row {
    const char *name, *type, *help;
    size_t offset;
    enum field_type field;
    double unit; /* the sample is the field times this */
};

#define TYPE_OF(member) \
    _Generic(member, uint64_t : FIELD_U64, uint32_t : FIELD_U32, bool : FIELD_BOOL, double : FIELD_DOUBLE)
#define ROW(struct_, member, unit_, name_, type_, help_)                                       \
    {                                                                                          \
        name_, type_, help_, offsetof(struct_, member), TYPE_OF(((struct_ *)0)->member), unit_ \
    }
#define LINE(member, unit, name, type, help) ROW(struct picture, member, unit, name, type, help)
#define DOMAIN(member, unit, name, type, help) ROW(struct snapshot_domain, member, unit, name, type, help)
#define MEMBER(member, unit, name, help) ROW(struct snapshot_member, member, unit, name, "gauge", help)
#define LEASE(member, unit, name, help) ROW(struct snapshot_lease, member, unit, name, "gauge", help)

static const struct row line_rows[] = {
    LINE(s.version, 1, "alluvium_version", "gauge", "Newest published version"),
    LINE(published_s, 1, "alluvium_published_timestamp_seconds", "gauge", "Unix time of the newest version"),
    LINE(s.session_counter, 1, "alluvium_session", "gauge", "Counter of coordinator starts"),
    LINE(s.committed, 1, "alluvium_applied_seq", "gauge", "Newest durable step"),
    LINE(uncommitted, 1, "alluvium_uncommitted_steps", "gauge", "Steps that are decided and not yet durable"),
    LINE(log.groups, 1, "alluvium_commits_total", "counter", "Synced commits since the start"),
    LINE(log.bytes, 1, "alluvium_commit_bytes_total", "counter", "Bytes committed since the start"),
    LINE(log.seconds, 1, "alluvium_commit_seconds_total", "counter", "Seconds spent in commits since the start"),
    LINE(s.pushed_records, 1, "alluvium_pushed_records_total", "counter", "Records pushed since the start"),
    LINE(s.pushed_bytes, 1, "alluvium_pushed_bytes_total", "counter", "Text pushed since the start"),
    LINE(disk_free_bytes, 1, "alluvium_disk_free_bytes", "gauge", "Free space of the line's file system"),
    LINE(s.disk_low, 1, "alluvium_disk_low", "gauge", "1 while pushes are put off"),
    LINE(s.stopped, 1, "alluvium_stopped", "gauge", "1 while leasing is stopped with an alarm"),
    LINE(alarmed, 1, "alluvium_alarm", "gauge", "1 while there is an alarm, whatever it is"),
    LINE(s.quarantined, 1, "alluvium_quarantined_leases", "gauge", "Leases whose data is held back"),
    LINE(s.exclusions, 1, "alluvium_exclusions", "gauge", "Entries of the exclusion log"),
    LINE(s.erasures, 1, "alluvium_retractions_total", "counter", "Records retracted"),
    LINE(s.purged, 1, "alluvium_retractions_purged_total", "counter",
         "Of them, those whose text has left the files of the database"),
    LINE(s.n_holders, 1, "alluvium_holders", "gauge", "Workers that have yet to erase a retracted text"),
    LINE(s.n_workers, 1, "alluvium_workers", "gauge", "Workers here now"),
    LINE(s.n_subscribers, 1, "alluvium_subscribers", "gauge", "Subscribers here now"),
    LINE(s.n_producers, 1, "alluvium_producers", "gauge", "Producers here now"),
    LINE(s.tokens_per_s, 1, "alluvium_tokens_per_second", "gauge", "Of all workers, as they report"),
    LINE(s.round, 1, "alluvium_round", "gauge", "Number of the newest round"),
    LINE(s.refusals, 1, "alluvium_round_refusals", "gauge", "Rounds refused since the last version"),
    LINE(s.leases_open, 1, "alluvium_round_leases_open", "gauge", "Leases of the round that nobody has"),
    LINE(s.leases_accepted, 1, "alluvium_round_leases_accepted", "gauge", "Leases of the round that are in"),
    LINE(s.n_leases, 1, "alluvium_round_leases", "gauge", "Leases of the round"),
    LINE(s.eval_tasks, 1, "alluvium_round_evaluations", "gauge", "Evaluations that are to be made"),
};

static const struct row domain_rows[] = {
    DOMAIN(segments, 1, "alluvium_domain_segments_total", "counter", "Train segments ever appended"),
    DOMAIN(bytes, 1, "alluvium_domain_bytes_total", "counter", "Text ever appended"),
    DOMAIN(records, 1, "alluvium_domain_records_total", "counter", "Records taken in"),
    DOMAIN(duplicates, 1, "alluvium_domain_duplicates_total", "counter", "Records that were there already"),
    DOMAIN(refused, 1, "alluvium_domain_refused_total", "counter", "Records refused"),
    DOMAIN(superseded, 1, "alluvium_domain_superseded_total", "counter", "Records replaced by a newer text"),
    DOMAIN(pending_bytes, 1, "alluvium_domain_pending_bytes", "gauge", "Text not yet learnt"),
    DOMAIN(lag_ms, 1e-3, "alluvium_domain_lag_seconds", "gauge", "Age of the oldest text not yet learnt"),
    DOMAIN(probe_segments, 1, "alluvium_domain_probe_segments", "gauge", "Segments held out to measure with"),
    DOMAIN(reference, 1, "alluvium_domain_reference_version", "gauge", "Version the domain is compared with"),
};

static const struct row worker_rows[] = {
    MEMBER(here, 1, "alluvium_worker_up", "1 while the worker is here: heard of in the last minute and a half"),
    MEMBER(seen_ms, 1e-3, "alluvium_worker_silence_seconds", "Since its last message"),
    MEMBER(tokens_per_s, 1, "alluvium_worker_tokens_per_second", "As it reports"),
    MEMBER(exclusion_seq, 1, "alluvium_worker_exclusions", "Entries of the exclusion log it has applied"),
};

static const struct row lease_rows[] = {
    LEASE(done, 1, "alluvium_worker_lease_steps_done", "Optimiser steps done of the lease it holds"),
    LEASE(total, 1, "alluvium_worker_lease_steps", "Optimiser steps of the lease it holds"),
    LEASE(age_ms, 1e-3, "alluvium_worker_lease_age_seconds", "Since it got the lease"),
};

static const struct row subscriber_rows[] = {
    MEMBER(here, 1, "alluvium_subscriber_up", "1 while the subscriber is here: heard of in the last minute and a half"),
    MEMBER(seen_ms, 1e-3, "alluvium_subscriber_silence_seconds", "Since its last message"),
    MEMBER(serving, 1, "alluvium_subscriber_serving_version", "Version its model server serves"),
    MEMBER(staged, 1, "alluvium_subscriber_staged_version", "Version it has verified and put in place"),
};

#define COUNT(rows) (sizeof(rows) / sizeof(rows)[0])

static void head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Label values are names of ours: nothing in them is to be escaped. `label` NULL: none. */
static void sample(struct buf *out, const char *name, const char *label, const char *value, double v)
{
    if (label)
        buf_printf(out, "%s{%s=\"%s\"} %.15g\n", name, label, value, v);
    else
        buf_printf(out, "%s %.15g\n", name, v);
}

static double read_field(const struct row *row, const void *object)
{
    const char *at = (const char *)object + row->offset;
    double v = row->field == FIELD_U64    ? (double)*(const uint64_t *)(const void *)at
               : row->field == FIELD_U32  ? (double)*(const uint32_t *)(const void *)at
               : row->field == FIELD_BOOL ? (double)*(const bool *)(const void *)at
                                          : *(const double *)(const void *)at;
    return v * row->unit;
}

static void put_domains(const struct snapshot *s, struct buf *out)
{
    static const char states[] = "alluvium_domain_segments", eta[] = "alluvium_domain_eta_seconds";
    for (size_t r = 0; r < COUNT(domain_rows); r++) {
        const struct row *row = &domain_rows[r];
        head(out, row->name, row->type, row->help);
        for (uint32_t i = 0; i < s->n_domains; i++)
            sample(out, row->name, "domain", s->domains[i].name.s, read_field(row, &s->domains[i]));
    }
    head(out, states, "gauge", "Train segments by the state they are in");
    for (uint32_t i = 0; i < s->n_domains; i++)
        for (int k = 0; k < SEG_STATES; k++)
            buf_printf(out, "%s{domain=\"%s\",state=\"%s\"} %llu\n", states, s->domains[i].name.s,
                       segment_state_name((enum segment_state)k), (unsigned long long)s->domains[i].count[k]);
    head(out, eta, "gauge", "Until what is pending is learnt, at the present rate; absent while nobody works");
    for (uint32_t i = 0; i < s->n_domains; i++)
        if (s->domains[i].eta_ms != UINT64_MAX)
            sample(out, eta, "domain", s->domains[i].name.s, (double)s->domains[i].eta_ms / 1000);
}

void member_name(const struct name *key, const uint8_t instance[16], char out[MEMBER_NAME_SIZE])
{
    char hex[9];
    hex_encode(instance, 4, hex);
    snprintf(out, MEMBER_NAME_SIZE, "%s/%s", key->s, hex);
}

static bool shown(const struct snapshot_member *m, enum plane plane)
{
    return m->plane == plane && (m->here || m->seen_ms < GAUGES_GONE_MS);
}

static void put_members(const struct snapshot *s, enum plane plane, const char *label, const struct row *rows, size_t n,
                        struct buf *out)
{
    char name[MEMBER_NAME_SIZE];
    for (size_t r = 0; r < n; r++) {
        head(out, rows[r].name, rows[r].type, rows[r].help);
        for (uint32_t i = 0; i < s->n_members && i < SNAPSHOT_MEMBERS; i++) {
            if (!shown(&s->members[i], plane))
                continue;
            member_name(&s->members[i].key, s->members[i].instance, name);
            sample(out, rows[r].name, label, name, read_field(&rows[r], &s->members[i]));
        }
    }
}

static void put_leases(const struct snapshot *s, struct buf *out)
{
    char name[MEMBER_NAME_SIZE];
    for (size_t r = 0; r < COUNT(lease_rows); r++) {
        head(out, lease_rows[r].name, lease_rows[r].type, lease_rows[r].help);
        for (uint32_t i = 0; i < s->n_leases && i < SNAPSHOT_LEASES; i++) {
            if (s->leases[i].phase != LEASE_GRANTED)
                continue;
            member_name(&s->leases[i].key, s->leases[i].instance, name);
            sample(out, lease_rows[r].name, "worker", name, read_field(&lease_rows[r], &s->leases[i]));
        }
    }
}

/* Those with a problem of their own, and how far each is behind. */
static void put_subscribers(const struct snapshot *s, struct buf *out)
{
    static const char error[] = "alluvium_subscriber_error";
    char name[MEMBER_NAME_SIZE];
    put_members(s, PLANE_MODELS, "subscriber", subscriber_rows, COUNT(subscriber_rows), out);
    head(out, error, "gauge", "1 while it reports that staging or serving fails");
    for (uint32_t i = 0; i < s->n_members && i < SNAPSHOT_MEMBERS; i++)
        if (shown(&s->members[i], PLANE_MODELS)) {
            member_name(&s->members[i].key, s->members[i].instance, name);
            sample(out, error, "subscriber", name, s->members[i].error[0] != 0);
        }
}

void gauges_render(const struct picture *p, struct buf *out)
{
    static const char *const phases[] = {"none", "open", "aggregating", "evaluating"};
    const struct snapshot *s = &p->s;
    head(out, "alluvium_build_info", "gauge", "1, labelled with the program's version and the line's name");
    buf_printf(out, "alluvium_build_info{version=\"%s\",line=\"%s\"} 1\n", ALLUVIUM_VERSION, s->line.s);
    for (size_t r = 0; r < COUNT(line_rows); r++) {
        head(out, line_rows[r].name, line_rows[r].type, line_rows[r].help);
        sample(out, line_rows[r].name, NULL, NULL, read_field(&line_rows[r], p));
    }
    head(out, "alluvium_alias_version", "gauge", "Version an alias points at");
    for (uint32_t i = 0; i < s->n_aliases; i++)
        sample(out, "alluvium_alias_version", "alias", s->aliases[i].name.s, (double)s->aliases[i].version);
    head(out, "alluvium_round_phase", "gauge", "1 for the phase the round is in");
    for (int i = 0; i <= ROUND_EVALUATING; i++)
        sample(out, "alluvium_round_phase", "phase", phases[i], (int)s->phase == i);
    put_domains(s, out);
    put_members(s, PLANE_WORK, "worker", worker_rows, COUNT(worker_rows), out);
    put_leases(s, out);
    put_subscribers(s, out);
}

/* ---- this process -------------------------------------------------------------------------------------------------- */

static double resident_bytes(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (!f || fscanf(f, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

static double open_files(void)
{
    double n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (dir && readdir(dir))
        n++;
    if (dir)
        closedir(dir);
    return n > 3 ? n - 3 : 0; /* ".", "..", and the directory itself */
}

void gauges_process(struct buf *out)
{
    struct rusage use;
    struct rlimit files;
    double cpu = 0;
    if (!getrusage(RUSAGE_SELF, &use))
        cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
              (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) / 1e6;
    head(out, "process_cpu_seconds_total", "counter", "Processor time used");
    sample(out, "process_cpu_seconds_total", NULL, NULL, cpu);
    head(out, "process_resident_memory_bytes", "gauge", "Memory in use");
    sample(out, "process_resident_memory_bytes", NULL, NULL, resident_bytes());
    head(out, "process_open_fds", "gauge", "Open files and sockets");
    sample(out, "process_open_fds", NULL, NULL, open_files());
    head(out, "process_max_fds", "gauge", "Most files and sockets that may be open");
    sample(out, "process_max_fds", NULL, NULL, getrlimit(RLIMIT_NOFILE, &files) ? 0 : (double)files.rlim_cur);
}
