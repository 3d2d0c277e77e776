/* VERSIONS and SHOW: what is known of published versions, from their manifests and the matrix of losses. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"
#include "coordinator/history.h"
#include "coordinator/losses.h"
#include "coordinator/report.h"

enum { PAGE_DEFAULT = 50, PAGE_MAX = 500, FILL_ROWS = 256 };

/* ---- rows of the matrix ------------------------------------------------------------------------------------------- */

static enum status add_learnt(struct db *db, uint64_t version, struct domain_id domain, json_t *row, struct err *err)
{
    struct learnt l;
    enum status st = losses_learnt(db, version, domain, &l, err);
    if (st)
        return st;
    json_object_set_new(row, "sentinel", json_count(l.sentinel));
    json_object_set_new(row, "base_loss", l.measured ? json_number(l.base_loss) : json_null());
    json_object_set_new(row, "learnt", l.measured ? json_number(l.base_loss - l.loss) : json_null());
    return ST_OK;
}

static uint64_t fresh_segments(const struct manifest *m, struct domain_id domain)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < m->n_leases; i++)
        for (uint32_t k = 0; k < m->leases[i].n_ranges; k++)
            if (m->leases[i].ranges[k].domain.v == domain.v)
                n += m->leases[i].ranges[k].count;
    return n;
}

/* Of the version itself, or of the one it repeats: then `m` has the losses, and nothing in them is fresh. */
static enum status domain_rows(struct db *db, const struct manifest *m, bool own, json_t **out, struct err *err)
{
    json_t *rows = json_array();
    enum status st = ST_OK;
    for (uint32_t i = 0; !st && i < m->n_domains; i++) {
        const struct manifest_domain *d = &m->domains[i];
        double tokens = (double)d->tokens;
        json_t *row = json_object();
        json_object_set_new(row, "domain", json_string(d->name.s));
        json_object_set_new(row, "windows", json_count(d->windows));
        json_object_set_new(row, "tokens", json_count(d->tokens));
        json_object_set_new(row, "loss", d->tokens ? json_number(d->nll / tokens) : json_null());
        json_object_set_new(row, "reference", json_count(d->reference));
        json_object_set_new(row, "reference_loss", d->tokens ? json_number(d->reference_nll / tokens) : json_null());
        json_object_set_new(row, "forgetting", json_number(d->forgetting));
        json_object_set_new(row, "forgetting_high", json_number(d->forgetting_high));
        json_object_set_new(row, "fresh_segments", json_count(own ? fresh_segments(m, d->id) : 0));
        st = add_learnt(db, m->number, d->id, row, err);
        json_array_append_new(rows, row);
    }
    if (st)
        json_decref(rows);
    else
        *out = rows;
    return st;
}

/* ---- versions --------------------------------------------------------------------------------------------------- */

static enum status read_aliases(struct db *db, struct aliases *out, struct err *err)
{
    struct buf b = {0};
    struct state_key key = key_plain('a');
    enum status st = db_get(db, FAMILY_META, key.b, key.len, &b, err);
    *out = (struct aliases){0};
    if (!st && b.len < SIGNATURE_LEN)
        st = err_set(err, ST_CORRUPT, "the stored aliases do not decode; restore a backup");
    if (!st)
        st = aliases_decode(b.data, b.len - SIGNATURE_LEN, out, err);
    buf_release(&b);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static json_t *alias_names(const struct aliases *aliases, uint64_t number)
{
    json_t *names = json_array();
    for (uint32_t i = 0; i < aliases->n_aliases; i++)
        if (aliases->aliases[i].version == number)
            json_array_append_new(names, json_string(aliases->aliases[i].name.s));
    return names;
}

/* "withdrawn": is it?, and "withdrawn_reason"; likewise tainted. */
static void add_mark(const struct aliases *aliases, uint64_t number, enum mark_kind kind, json_t *j)
{
    const struct mark *mark = aliases_mark(aliases, number, kind);
    char key[32];
    json_object_set_new(j, mark_name(kind), json_boolean(mark));
    snprintf(key, sizeof key, "%s_reason", mark_name(kind));
    json_object_set_new(j, key, mark && mark->reason[0] ? json_string(mark->reason) : json_null());
}

static json_t *file_json(const struct manifest_file *f)
{
    static const char *const kinds[] = {"", "peft", "gguf", "state"};
    char sha[65];
    hex_encode(f->sha256, 32, sha);
    json_t *j = json_object();
    json_object_set_new(j, "kind", json_string(f->kind <= FILE_STATE ? kinds[f->kind] : ""));
    json_object_set_new(j, "blake2b", json_digest(&f->blake2b));
    json_object_set_new(j, "sha256", json_string(sha));
    json_object_set_new(j, "bytes", json_count(f->bytes));
    return j;
}

static void add_work(const struct manifest *m, json_t *j)
{
    uint64_t segments = 0;
    for (uint32_t i = 0; i < m->n_leases; i++)
        for (uint32_t k = 0; k < m->leases[i].n_ranges; k++)
            segments += m->leases[i].ranges[k].count;
    json_object_set_new(j, "leases", json_count(m->n_leases));
    json_object_set_new(j, "segments", json_count(segments));
}

static enum status version_json(const struct report_source *source, const struct aliases *aliases, uint64_t number,
                                json_t **out, struct err *err)
{
    struct db *db = streamlog_db(source->log);
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    struct manifest *m = xcalloc(1, sizeof *m), *scored = xcalloc(1, sizeof *scored);
    json_t *j = NULL, *rows = NULL;
    enum status st = facts_version(db, number, &value, v, err);
    if (!st)
        st = manifest_decode(v->manifest.data, v->manifest.len, m, err);
    if (!st)
        st = losses_manifest(db, number, scored, err);
    if (!st)
        st = domain_rows(db, scored, scored->number == number, &rows, err);
    if (st)
        goto done;
    j = json_object();
    json_object_set_new(j, "version", json_count(number));
    json_object_set_new(j, "parent", json_count(m->parent));
    json_object_set_new(j, "round", json_count(m->round));
    json_object_set_new(j, "rollback_of", m->rollback_of ? json_count(m->rollback_of) : json_null());
    json_object_set_new(j, "created_s", json_count(m->created_s));
    json_object_set_new(j, "gated", json_boolean(!(m->flags & MANIFEST_UNGATED)));
    json_object_set_new(j, "partial", json_boolean(m->flags & MANIFEST_PARTIAL));
    json_object_set_new(j, "aliases", alias_names(aliases, number));
    add_mark(aliases, number, MARK_WITHDRAWN, j);
    add_mark(aliases, number, MARK_TAINTED, j);
    json_object_set_new(j, "verdict", json_string(m->verdict));
    json_object_set_new(j, "step_factor", json_number(m->step_factor));
    json_object_set_new(j, "averaging_error", json_number(m->averaging_error));
    json_object_set_new(j, "update_norm", json_number(m->update_norm));
    json_object_set_new(j, "tokens", json_count(v->tokens));
    json_object_set_new(j, "train_seconds", json_number((double)v->train_ms / 1000));
    add_work(m, j);
    json_object_set(j, "domains", rows);
    history_add(source->history, number, j);
    json_t *files = json_array();
    for (uint32_t i = 0; i < m->n_files; i++)
        json_array_append_new(files, file_json(&m->files[i]));
    json_object_set_new(j, "files", files);
    *out = j;
done:
    json_decref(rows);
    manifest_release(m);
    manifest_release(scored);
    free(m);
    free(scored);
    free(v);
    buf_release(&value);
    return st;
}

static enum status page_size(const char *text, uint32_t *out, struct err *err)
{
    char *end;
    *out = PAGE_DEFAULT;
    if (!*text)
        return ST_OK;
    unsigned long n = strtoul(text, &end, 10);
    if (*end || n < 1 || n > PAGE_MAX)
        return err_set(err, ST_USAGE, "\"%s\" is no page size: 1 to %d", text, PAGE_MAX);
    *out = (uint32_t)n;
    return ST_OK;
}

enum status report_versions(const struct report_source *source, const Alv__Control *control, json_t **out,
                            struct err *err)
{
    struct db *db = streamlog_db(source->log);
    struct aliases *aliases = xmalloc(sizeof *aliases);
    struct state_counters *counters = xmalloc(sizeof *counters);
    json_t *list = json_array();
    uint32_t n;
    enum status st = page_size(control->value, &n, err);
    if (!st)
        st = read_aliases(db, aliases, err);
    if (st)
        *aliases = (struct aliases){0};
    if (!st)
        st = facts_counters(source->log, counters, err);
    if (!st && source->history)
        st = history_fill(source->history, db, counters->version, FILL_ROWS, err);
    uint64_t end = st ? 0 : counters->version + 1; /* exclusive */
    if (control->number && control->number < end)
        end = control->number;
    for (; !st && n && end; n--) {
        json_t *j;
        st = facts_near_version(db, end - 1, true, &end, err);
        if (!st)
            st = version_json(source, aliases, end, &j, err);
        if (!st)
            json_array_append_new(list, j);
    }
    if (!st) {
        *out = json_object();
        json_object_set(*out, "versions", list);
        json_object_set_new(*out, "newest", json_count(counters->version));
        json_object_set_new(*out, "next", end ? json_count(end) : json_null());
    }
    json_decref(list);
    aliases_release(aliases);
    free(aliases);
    free(counters);
    return st;
}

static json_t *lease_json(const struct manifest_lease *l)
{
    json_t *j = json_object();
    json_object_set_new(j, "lease", json_count(l->id));
    json_object_set_new(j, "generation", json_count(l->generation));
    json_object_set_new(j, "delta", json_digest(&l->delta));
    json_object_set_new(j, "weight", json_number(l->weight));
    json_object_set_new(j, "ranges", json_count(l->n_ranges));
    return j;
}

enum status report_show(const struct report_source *source, uint64_t number, json_t **out, struct err *err)
{
    struct db *db = streamlog_db(source->log);
    struct buf value = {0};
    struct aliases *aliases = xmalloc(sizeof *aliases);
    struct state_version *v = xmalloc(sizeof *v);
    struct manifest *m = xcalloc(1, sizeof *m);
    struct digest digest;
    json_t *j = NULL;
    enum status st = read_aliases(db, aliases, err);
    if (st)
        *aliases = (struct aliases){0};
    if (!st)
        st = version_json(source, aliases, number, &j, err);
    if (!st)
        st = facts_version(db, number, &value, v, err);
    if (!st)
        st = manifest_decode(v->manifest.data, v->manifest.len, m, err);
    if (!st) {
        char signature[2 * SIGNATURE_LEN + 1];
        json_t *leases = json_array();
        for (uint32_t i = 0; i < m->n_leases; i++)
            json_array_append_new(leases, lease_json(&m->leases[i]));
        json_object_set_new(j, "deltas", leases);
        json_object_set_new(j, "line", json_string(m->line.s));
        json_object_set_new(j, "card", json_digest(&m->card));
        json_object_set_new(j, "rank", json_count(m->rank));
        json_object_set_new(j, "alpha", json_count(m->alpha));
        json_object_set_new(j, "exclusion_seq", json_count(m->exclusion_seq));
        json_object_set_new(j, "session", json_count(m->session_counter));
        json_object_set_new(j, "error_rate", json_number(m->error_rate));
        json_object_set_new(j, "clip_norm", json_number(m->clip_norm));
        manifest_digest(v->manifest.data, v->manifest.len, &digest);
        json_object_set_new(j, "manifest", json_digest(&digest));
        hex_encode(v->signature, SIGNATURE_LEN, signature);
        json_object_set_new(j, "signature", json_string(signature));
        *out = j;
        j = NULL;
    }
    json_decref(j);
    manifest_release(m);
    free(m);
    free(v);
    aliases_release(aliases);
    free(aliases);
    buf_release(&value);
    return st;
}
