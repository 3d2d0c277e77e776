/* TRACE, both ways: from a record to its segments, their states and the versions that saw them; from a version to the
 * segments in it, directly and through its ancestors. The law of a segment's state is written in core/state.h. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/snapshot.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"
#include "coordinator/report.h"

enum {
    SEEN_MAX = 1000,          /* descendants looked through for "versions that saw it" */
    RANGES_MAX = 200 * 1000,  /* collected for one answer */
    SEGMENTS_MAX = 64 * 1024, /* of one record */
    HOLDERS_MAX = 256,        /* listed in one answer; all are counted */
};

/* ---- the state of one segment ------------------------------------------------------------------------------------ */

struct leases { /* of the round in progress */
    struct state_lease *items;
    uint32_t n;
};

static void leases_release(struct leases *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        state_lease_release(&l->items[i]);
    free(l->items);
    *l = (struct leases){0};
}

static enum status leases_read(struct db *db, struct leases *out, struct err *err)
{
    struct bytes key, value;
    struct db_iter *iter = db_iter_open(db, FAMILY_LEASES, (struct bytes){(const uint8_t *)"l", 1},
                                        (struct bytes){(const uint8_t *)"m", 1}, false);
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err))) {
        out->items = xrealloc_array(out->items, out->n + 1, sizeof *out->items);
        if (!state_lease_get(value, &out->items[out->n])) {
            st = err_set(err, ST_CORRUPT, "a stored lease does not decode; restore a backup");
            break;
        }
        out->n++;
    }
    db_iter_close(&iter);
    return st == ST_EMPTY ? ST_OK : st;
}

struct segment {
    enum segment_state state;
    uint64_t ref;
    bool trained; /* in `version`, whatever became of it since */
    uint64_t version;
};

/* The stored range that starts at or before `offset` and covers it; false when none does. */
static enum status covering(struct db *db, struct state_key from, struct state_key last, uint64_t offset, bool *found,
                            struct state_settled *out, struct err *err)
{
    struct bytes key, value;
    struct state_key to = last;
    to.b[to.len++] = 0; /* the bound is exclusive: just behind the last key that counts */
    struct db_iter *iter =
        db_iter_open(db, FAMILY_STREAM, (struct bytes){from.b, from.len}, (struct bytes){to.b, to.len}, true);
    enum status st = db_iter_next(iter, &key, &value, err);
    *found = false;
    if (!st) {
        struct reader r = reader_of(key.data + key.len - 8, 8);
        uint64_t first = read_u64_be(&r);
        if (!state_settled_get(value, out))
            st = err_set(err, ST_CORRUPT, "a stored state does not decode; restore a backup");
        else
            *found = offset >= first && offset - first < out->count;
    }
    db_iter_close(&iter);
    return st == ST_EMPTY ? ST_OK : st;
}

static const struct state_lease *lease_of(const struct leases *leases, struct domain_id domain, uint64_t offset)
{
    for (uint32_t i = 0; i < leases->n; i++)
        for (uint32_t k = 0; k < leases->items[i].n_ranges; k++) {
            const struct range *r = &leases->items[i].ranges[k];
            if (r->domain.v == domain.v && offset >= r->first && offset - r->first < r->count)
                return &leases->items[i];
        }
    return NULL;
}

static enum status state_of(struct db *db, const struct leases *leases, struct domain_id domain, bool probe,
                            uint64_t offset, struct segment *out, struct err *err)
{
    struct state_settled s, settled;
    bool found = false, was = false;
    enum status st = covering(db, key_stream('x', domain, probe, 0), key_stream('x', domain, probe, offset), offset,
                              &found, &s, err);
    if (!probe)
        for (const char *tag = "Tt"; *tag && !st && !was; tag++)
            st = covering(db, key_domain(*tag, domain, 0), key_domain(*tag, domain, offset), offset, &was, &settled,
                          err);
    if (st)
        return st;
    if (!found && was)
        s = settled, found = true;
    const struct state_lease *lease = found || probe ? NULL : lease_of(leases, domain, offset);
    if (found)
        *out = (struct segment){.state = (enum segment_state)s.state, .ref = s.ref};
    else if (lease)
        *out = (struct segment){.state = lease->phase == LEASE_ACCEPTED  ? SEG_ACCEPTED
                                         : lease->phase == LEASE_GRANTED ? SEG_LEASED
                                                                         : SEG_PENDING,
                                .ref = lease->id};
    else
        *out = (struct segment){.state = SEG_PENDING};
    out->trained = was && settled.state == SEG_DONE;
    out->version = out->trained ? settled.ref : 0;
    return ST_OK;
}

/* ---- which versions saw a version's data --------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* `version` and its descendants, ascending; true when there are more than SEEN_MAX to look at. */
static enum status descendants(struct db *db, uint64_t version, uint64_t newest, json_t **out, bool *more,
                               struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    uint64_t *has = xcalloc(SEEN_MAX, sizeof *has), at = version;
    size_t n = 0, looked = 0;
    json_t *list = json_array();
    enum status st = ST_OK;
    for (; at <= newest && looked < SEEN_MAX && !(st = facts_near_version(db, at, false, &at, err)); at++, looked++) {
        st = facts_version(db, at, &value, v, err);
        if (st)
            break;
        if (at != version && !bsearch(&v->parent, has, n, sizeof *has, by_number))
            continue;
        has[n++] = at;
        json_array_append_new(list, json_count(at));
    }
    *more = !st && at <= newest;
    free(has);
    free(v);
    buf_release(&value);
    if (st && st != ST_EMPTY)
        json_decref(list);
    else
        *out = list;
    return st == ST_EMPTY ? ST_OK : st;
}

static enum status add_run(struct db *db, uint64_t newest, json_t *runs, uint64_t first, uint64_t count, bool probe,
                           struct segment s, struct err *err)
{
    static const char *const refs[SEG_STATES] = {"lease",      "lease", "lease",     "version",
                                                 "quarantine", NULL,    "exclusion", "exclusion"};
    json_t *run = json_object();
    json_object_set_new(run, "first", json_count(first));
    json_object_set_new(run, "count", json_count(count));
    bool held_out = probe && s.state == SEG_PENDING;
    json_object_set_new(run, "state", json_string(held_out ? "held-out" : segment_state_name(s.state)));
    if (refs[s.state] && (s.ref || s.state == SEG_DONE))
        json_object_set_new(run, refs[s.state], json_count(s.ref));
    json_array_append_new(runs, run);
    if (!s.trained)
        return ST_OK;
    if (s.state != SEG_DONE)
        json_object_set_new(run, "trained_in", json_count(s.version));
    json_t *seen;
    bool more;
    enum status st = descendants(db, s.version, newest, &seen, &more, err);
    if (!st) {
        json_object_set_new(run, "seen_by", seen);
        json_object_set_new(run, "seen_by_more", json_boolean(more));
    }
    return st;
}

/* Neighbours in one state make one run. */
static enum status place_runs(struct db *db, const struct leases *leases, uint64_t newest, struct domain_id domain,
                              bool probe, uint64_t first, uint64_t count, json_t *runs, struct err *err)
{
    struct segment run = {0}, s;
    uint64_t run_first = first;
    enum status st = count > SEGMENTS_MAX ? err_set(err, ST_LIMIT, "the record has too many segments") : ST_OK;
    for (uint64_t o = first; !st && o < first + count; o++) {
        st = state_of(db, leases, domain, probe, o, &s, err);
        if (!st && o > first &&
            (s.state != run.state || s.ref != run.ref || s.trained != run.trained || s.version != run.version)) {
            st = add_run(db, newest, runs, run_first, o - run_first, probe, run, err);
            run_first = o;
        }
        run = s;
    }
    if (!st && count)
        st = add_run(db, newest, runs, run_first, first + count - run_first, probe, run, err);
    return st;
}

/* Released quarantines are appended again: the copies of [first, +count) are part of the answer. */
static enum status copies(struct db *db, const struct leases *leases, uint64_t newest, struct domain_id domain,
                          uint64_t first, uint64_t count, json_t *places, struct err *err)
{
    struct bytes key, value;
    struct state_key from = key_domain('k', domain, 0), to = key_domain('k', domain, UINT64_MAX);
    struct db_iter *iter =
        db_iter_open(db, FAMILY_META, (struct bytes){from.b, from.len}, (struct bytes){to.b, to.len}, false);
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err))) {
        struct state_link link;
        struct domain_id d;
        uint64_t at;
        if (!key_read_domain(key, &d, &at) || !state_link_get(value, &link)) {
            st = err_set(err, ST_CORRUPT, "a stored link does not decode; restore a backup");
            break;
        }
        uint64_t low = link.source > first ? link.source : first;
        uint64_t high = link.source + link.count < first + count ? link.source + link.count : first + count;
        if (low >= high)
            continue;
        json_t *place = json_object(), *runs = json_array();
        json_object_set_new(place, "probe", json_false());
        json_object_set_new(place, "first", json_count(at + (low - link.source)));
        json_object_set_new(place, "count", json_count(high - low));
        json_object_set_new(place, "copy_of", json_count(low));
        json_object_set_new(place, "segments", runs);
        json_array_append_new(places, place);
        if ((st = place_runs(db, leases, newest, domain, false, at + (low - link.source), high - low, runs, err)))
            break;
    }
    db_iter_close(&iter);
    return st == ST_EMPTY ? ST_OK : st;
}

/* All versions that any of the places names, ascending, each once. */
static uint64_t *seen_in(const json_t *places, size_t *n)
{
    uint64_t *all = NULL;
    size_t i, j, k, cap = 0, kept = 0;
    json_t *place, *run, *number;
    *n = 0;
    json_array_foreach(places, i, place) json_array_foreach(json_object_get(place, "segments"), j, run)
        json_array_foreach(json_object_get(run, "seen_by"), k, number)
    {
        if (*n == cap)
            all = xrealloc_array(all, cap = cap ? 2 * cap : 64, sizeof *all);
        all[(*n)++] = (uint64_t)json_integer_value(number);
    }
    if (*n)
        qsort(all, *n, sizeof *all, by_number);
    for (i = 0; i < *n; i++)
        if (!kept || all[kept - 1] != all[i])
            all[kept++] = all[i];
    *n = kept;
    return all;
}

/* The newest ancestor of the newest version that saw none of it: what to go back to. */
static enum status clean_version(struct db *db, uint64_t newest, const uint64_t *seen, size_t n, uint64_t *out,
                                 struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = ST_OK;
    *out = newest;
    while (!st && n && bsearch(out, seen, n, sizeof *seen, by_number)) {
        st = facts_version(db, *out, &value, v, err);
        if (!st && v->parent >= *out)
            st = err_set(err, ST_CORRUPT, "version %llu has parent %llu", (unsigned long long)*out,
                         (unsigned long long)v->parent);
        if (!st)
            *out = v->parent;
    }
    free(v);
    buf_release(&value);
    return st;
}

static enum status add_seen(struct db *db, uint64_t newest, const json_t *places, json_t *out, struct err *err)
{
    size_t n;
    uint64_t clean, *seen = seen_in(places, &n);
    enum status st = clean_version(db, newest, seen, n, &clean, err);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_count(seen[i]));
    json_object_set_new(out, "seen_by", list);
    if (!st)
        json_object_set_new(out, "clean", json_count(clean));
    free(seen);
    return st;
}

/* Who asked for it, whether the text has left the database's files, and which workers may hold it still; NULL when the
 * record was never retracted. */
static enum status retraction_of(const struct report_source *source, struct domain_id domain, const char *record,
                                 json_t **out, struct err *err)
{
    struct hash16 id;
    struct buf value = {0};
    struct state_retraction r;
    Alv__Record named = ALV__RECORD__INIT;
    named.id = (char *)(uintptr_t)record;
    struct hash16 content;
    record_hashes(&source->dir->seed, domain, &named, &content, &id);
    struct state_key key = key_hash('r', &id);
    enum status st = db_get(streamlog_db(source->log), FAMILY_AUDIT, key.b, key.len, &value, err);
    if (!st && !state_retraction_get(buf_bytes(&value), &r))
        st = err_set(err, ST_CORRUPT, "a stored retraction does not decode; restore a backup");
    buf_release(&value);
    if (st)
        return st == ST_NOT_FOUND ? ST_OK : st;
    struct snapshot *s = xcalloc(1, sizeof *s);
    struct state_holder *held = xcalloc(HOLDERS_MAX, sizeof *held);
    uint32_t n = core_holders(source->core, r.exclusion_seq, held, HOLDERS_MAX);
    json_t *list = json_array();
    core_snapshot(source->core, source->now_ms, s);
    for (uint32_t i = 0; i < n && i < HOLDERS_MAX; i++) {
        char instance[33];
        json_t *h = json_object();
        hex_encode(held[i].instance, sizeof held[i].instance, instance);
        json_object_set_new(h, "key", json_string(held[i].key.s));
        json_object_set_new(h, "instance", json_string(instance));
        json_object_set_new(h, "applied", json_count(held[i].applied));
        json_object_set_new(h, "reported_s", json_count(held[i].seen_s));
        json_array_append_new(list, h);
    }
    *out = json_object();
    json_object_set_new(*out, "by", json_string(r.key.s));
    json_object_set_new(*out, "at_s", json_count(r.wall_s));
    json_object_set_new(*out, "exclusion_seq", json_count(r.exclusion_seq));
    json_object_set_new(*out, "purged", json_boolean(s->purged >= r.number));
    json_object_set_new(*out, "holders", list);
    json_object_set_new(*out, "holders_total", json_count(n));
    free(held);
    free(s);
    return ST_OK;
}

static enum status trace_record(const struct report_source *source, const Alv__Control *control, uint64_t newest,
                                json_t **out, struct err *err)
{
    struct db *db = streamlog_db(source->log);
    struct leases leases = {0};
    struct state_id *id = xmalloc(sizeof *id);
    struct domain_id domain;
    struct bytes value;
    json_t *places = json_array();
    enum status st = facts_domain(db, control->domain, &domain, err);
    if (!st)
        st = streamlog_record(source->log, &source->dir->seed, domain, control->record, &value, err);
    if (!st && !value.data)
        st = err_set(err, ST_NOT_FOUND, "no record of domain %s has that id", control->domain);
    if (!st && !state_id_get(value, id))
        st = err_set(err, ST_CORRUPT, "the stored record does not decode; restore a backup");
    if (!st)
        st = leases_read(db, &leases, err);
    for (uint32_t i = 0; !st && i < id->n; i++) {
        const struct state_place *p = &id->places[i];
        json_t *place = json_object(), *runs = json_array();
        json_object_set_new(place, "revision", json_count(id->revision - (id->n - 1 - i)));
        json_object_set_new(place, "probe", json_boolean(p->probe));
        json_object_set_new(place, "first", json_count(p->first));
        json_object_set_new(place, "count", json_count(p->count));
        json_object_set_new(place, "segments", runs);
        json_array_append_new(places, place);
        st = place_runs(db, &leases, newest, p->domain, p->probe, p->first, p->count, runs, err);
        if (!st && !p->probe)
            st = copies(db, &leases, newest, p->domain, p->first, p->count, places, err);
    }
    json_t *retraction = NULL;
    if (!st)
        st = retraction_of(source, domain, control->record, &retraction, err);
    if (!st) {
        *out = json_object();
        json_object_set_new(*out, "domain", json_string(control->domain));
        json_object_set_new(*out, "record", json_string(control->record));
        json_object_set_new(*out, "revision", json_count(id->revision));
        json_object_set_new(*out, "live", json_boolean(id->live));
        json_object_set(*out, "places", places);
        if (retraction)
            json_object_set(*out, "retraction", retraction);
        if ((st = add_seen(db, newest, places, *out, err))) {
            json_decref(*out);
            *out = NULL;
        }
    }
    json_decref(retraction);
    json_decref(places);
    leases_release(&leases);
    free(id);
    return st;
}

/* ---- a version ----------------------------------------------------------------------------------------------------- */

struct ranges {
    struct manifest_range *items;
    size_t n, cap;
};

static int by_place(const void *a, const void *b)
{
    const struct manifest_range *x = a, *y = b;
    if (x->domain.v != y->domain.v)
        return x->domain.v < y->domain.v ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* Sorts, and joins neighbours. A long range is split where its count would not fit. */
static void tidy(struct ranges *r)
{
    size_t n = 0;
    if (r->n)
        qsort(r->items, r->n, sizeof *r->items, by_place);
    for (size_t i = 0; i < r->n; i++) {
        struct manifest_range *last = n ? &r->items[n - 1] : NULL, *next = &r->items[i];
        if (last && last->domain.v == next->domain.v && next->first <= last->first + last->count &&
            next->first + next->count - last->first <= UINT32_MAX) {
            uint64_t end = next->first + next->count;
            if (end > last->first + last->count)
                last->count = (uint32_t)(end - last->first);
        } else {
            r->items[n++] = *next;
        }
    }
    r->n = n;
}

static enum status add_version(struct db *db, uint64_t number, struct ranges *r, uint64_t *parent, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    struct manifest *m = xcalloc(1, sizeof *m);
    enum status st = facts_version(db, number, &value, v, err);
    if (!st)
        st = manifest_decode(v->manifest.data, v->manifest.len, m, err);
    for (uint32_t i = 0; !st && i < m->n_leases; i++)
        for (uint32_t k = 0; k < m->leases[i].n_ranges; k++) {
            if (r->n == r->cap)
                r->items = xrealloc_array(r->items, r->cap = r->cap ? 2 * r->cap : 64, sizeof *r->items);
            r->items[r->n++] = m->leases[i].ranges[k];
        }
    if (!st)
        *parent = v->parent;
    manifest_release(m);
    free(m);
    free(v);
    buf_release(&value);
    return st;
}

/* A domain's name, for people; null when it cannot be read. */
static json_t *name_json(struct db *db, struct domain_id domain)
{
    struct buf b = {0};
    struct state_domain *d = xmalloc(sizeof *d);
    struct state_key key = key_u16('d', domain.v);
    json_t *name = NULL;
    if (!db_get(db, FAMILY_META, key.b, key.len, &b, NULL) && state_domain_get(buf_bytes(&b), d))
        name = json_string(d->name.s);
    free(d);
    buf_release(&b);
    return name ? name : json_null();
}

static json_t *ranges_json(struct db *db, struct ranges *r)
{
    json_t *list = json_array(), *name = NULL;
    tidy(r);
    for (size_t i = 0; i < r->n; i++) {
        json_t *j = json_object();
        if (!i || r->items[i].domain.v != r->items[i - 1].domain.v) {
            json_decref(name);
            name = name_json(db, r->items[i].domain);
        }
        json_object_set_new(j, "domain", json_count(r->items[i].domain.v));
        json_object_set(j, "name", name);
        json_object_set_new(j, "first", json_count(r->items[i].first));
        json_object_set_new(j, "count", json_count(r->items[i].count));
        json_array_append_new(list, j);
    }
    json_decref(name);
    return list;
}

static enum status trace_version(const struct report_source *source, uint64_t number, json_t **out, struct err *err)
{
    struct db *db = streamlog_db(source->log);
    struct ranges direct = {0}, inherited = {0};
    json_t *ancestors = json_array();
    uint64_t parent = 0, at = number;
    enum status st = add_version(db, number, &direct, &parent, err);
    while (!st && at && inherited.n < RANGES_MAX) {
        if (parent >= at) {
            st = err_set(err, ST_CORRUPT, "version %llu has parent %llu", (unsigned long long)at,
                         (unsigned long long)parent);
            break;
        }
        at = parent;
        json_array_append_new(ancestors, json_count(at));
        if (at) {
            st = add_version(db, at, &inherited, &parent, err);
            if (inherited.n > RANGES_MAX / 2)
                tidy(&inherited); /* joined, most fall together */
        }
    }
    if (!st) {
        *out = json_object();
        json_object_set_new(*out, "version", json_count(number));
        json_object_set(*out, "ancestors", ancestors);
        json_object_set_new(*out, "direct", ranges_json(db, &direct));
        json_object_set_new(*out, "inherited", ranges_json(db, &inherited));
        json_object_set_new(*out, "complete", json_boolean(!at || inherited.n < RANGES_MAX));
    }
    json_decref(ancestors);
    free(direct.items);
    free(inherited.items);
    return st;
}

enum status report_trace(const struct report_source *source, const Alv__Control *control, json_t **out, struct err *err)
{
    uint64_t newest = report_newest(source->core);
    if (control->record[0])
        return trace_record(source, control, newest, out, err);
    return trace_version(source, control->number, out, err);
}
