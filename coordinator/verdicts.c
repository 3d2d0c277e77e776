/* EXPLAIN, and the lists of verdicts and held data: why something was published, refused, or set aside. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"
#include "coordinator/report.h"

static json_t *verdict_json(const struct state_verdict *v)
{
    json_error_t at;
    json_t *j = json_object();
    json_t *text = json_loadb((const char *)v->text.data, v->text.len, JSON_ALLOW_NUL, &at);
    json_object_set_new(j, "round", json_count(v->round));
    json_object_set_new(j, "version", v->published ? json_count(v->version) : json_null());
    json_object_set_new(j, "published", json_boolean(v->published));
    json_object_set_new(j, "attempt", json_count(v->attempt));
    json_object_set_new(j, "lease", v->lease ? json_count(v->lease) : json_null());
    json_object_set_new(j, "time_s", json_count(v->wall_s));
    json_object_set_new(j, "gate", text ? text : json_stringn((const char *)v->text.data, v->text.len));
    return j;
}

/* An earlier verdict of the round in short: which domains did it forget for certain? */
static void add_brief(json_t *list, const struct buf *value)
{
    struct state_verdict v;
    if (!state_verdict_get(buf_bytes(value), &v))
        return;
    json_t *full = verdict_json(&v), *j = json_object(), *forgets = json_array(), *domain;
    json_t *gate = json_object_get(json_object_get(full, "gate"), "gate");
    size_t i;
    json_array_foreach(json_object_get(gate, "domains"), i,
                       domain) if (json_number_value(json_object_get(domain, "low")) >
                                   json_number_value(json_object_get(domain, "budget")))
        json_array_append(forgets, json_object_get(domain, "domain"));
    json_object_set(j, "attempt", json_object_get(json_object_get(full, "gate"), "attempt"));
    json_object_set(j, "lease", json_object_get(full, "lease"));
    json_object_set(j, "outcome", json_object_get(gate, "outcome"));
    json_object_set_new(j, "forgets", forgets);
    json_array_append_new(list, j);
    json_decref(full);
}

static enum status add_outliers(struct db *db, uint64_t version, json_t *out, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    struct manifest *m = xcalloc(1, sizeof *m);
    json_t *outliers = NULL;
    enum status st = facts_version(db, version, &value, v, err);
    if (!st)
        st = manifest_decode(v->manifest.data, v->manifest.len, m, err);
    if (!st)
        st = report_outliers(db, m, &outliers, err);
    if (!st)
        json_object_set_new(out, "outliers", outliers);
    manifest_release(m);
    free(m);
    free(v);
    buf_release(&value);
    return st;
}

enum status report_explain(const struct report_source *source, const Alv__Control *control, json_t **out,
                           struct err *err)
{
    struct db *db = streamlog_db(source->log);
    bool by_round = !strcmp(control->name, "round");
    uint64_t round = control->number;
    struct buf value = {0}, next = {0};
    struct state_verdict verdict;
    json_t *earlier = json_array();
    enum status st = ST_OK;
    if (!by_round) {
        struct state_version *v = xmalloc(sizeof *v);
        st = facts_version(db, control->number, &value, v, err);
        bool gated = !st && control->number && !v->rollback_of;
        if (!st && !gated) {
            *out = json_object();
            json_object_set_new(*out, "version", json_count(control->number));
            json_object_set_new(*out, "published", json_true());
            json_object_set_new(*out, "reason",
                                json_string(control->number ? "a rollback is published without a gate"
                                                            : "version 0 is the base: there is nothing to compare"));
        }
        round = st ? 0 : v->round;
        free(v);
        if (st || !gated)
            goto done;
    }
    bool found = false;
    for (uint64_t n = 0; !st; n++) { /* the last is the round's */
        struct state_key key = key_pair('v', round, n);
        buf_clear(&next);
        st = db_get(db, FAMILY_VERSIONS, key.b, key.len, &next, err);
        if (!st) {
            if (found)
                add_brief(earlier, &value);
            struct buf swap = value;
            value = next, next = swap, found = true;
        }
    }
    if (st == ST_NOT_FOUND && found)
        st = ST_OK;
    if (st == ST_NOT_FOUND)
        st = err_set(err, ST_NOT_FOUND, "there is no verdict on round %llu", (unsigned long long)round);
    if (!st && !state_verdict_get(buf_bytes(&value), &verdict))
        st = err_set(err, ST_CORRUPT, "the verdict on round %llu does not decode", (unsigned long long)round);
    if (st)
        goto done;
    *out = verdict_json(&verdict);
    json_object_set(*out, "earlier", earlier);
    if (verdict.published && (st = add_outliers(db, verdict.version, *out, err))) {
        json_decref(*out);
        *out = NULL;
    }
done:
    json_decref(earlier);
    buf_release(&next);
    buf_release(&value);
    return st;
}

static struct bytes bytes_of(const struct state_key *key)
{
    return (struct bytes){key->b, key->len};
}

enum status report_verdicts(struct db *db, uint64_t before, uint32_t n, json_t **out, struct err *err)
{
    struct state_key from = key_pair('v', 0, 0), to = key_pair('v', before ? before : UINT64_MAX, 0);
    struct db_iter *iter = db_iter_open(db, FAMILY_VERSIONS, bytes_of(&from), bytes_of(&to), true);
    struct bytes key, value;
    struct state_verdict v;
    json_t *list = json_array();
    uint64_t last = 0;
    enum status st = ST_OK;
    while (json_array_size(list) < n && !(st = db_iter_next(iter, &key, &value, err))) {
        if (!state_verdict_get(value, &v)) {
            st = err_set(err, ST_CORRUPT, "a verdict does not decode; restore a backup");
            break;
        }
        last = v.round;
        json_array_append_new(list, verdict_json(&v));
    }
    db_iter_close(&iter);
    if (st && st != ST_EMPTY) {
        json_decref(list);
        return st;
    }
    *out = json_object();
    json_object_set_new(*out, "verdicts", list);
    json_object_set_new(*out, "next", st == ST_EMPTY ? json_null() : json_count(last));
    return ST_OK;
}

enum status report_held(struct db *db, uint32_t n, json_t **out, struct err *err)
{
    struct state_key from = key_u64('q', 0), to = key_plain('q' + 1);
    struct db_iter *iter = db_iter_open(db, FAMILY_META, bytes_of(&from), bytes_of(&to), true);
    struct bytes key, value;
    json_t *list = json_array();
    uint64_t total = 0;
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err))) {
        struct state_quarantine q;
        uint64_t id, segments = 0;
        if (!key_read_u64(key, &id) || !state_quarantine_get(value, &q)) {
            st = err_set(err, ST_CORRUPT, "a quarantine does not decode; restore a backup");
            break;
        }
        for (uint32_t i = 0; i < q.n; i++)
            segments += q.ranges[i].count;
        if (total++ < n) {
            json_t *j = json_object();
            json_object_set_new(j, "id", json_count(id));
            json_object_set_new(j, "lease", json_count(q.lease));
            json_object_set_new(j, "round", json_count(q.round));
            json_object_set_new(j, "since_s", json_count(q.wall_s));
            json_object_set_new(j, "segments", json_count(segments));
            json_object_set_new(j, "reason", json_string(q.reason));
            json_array_append_new(list, j);
        }
        state_quarantine_release(&q);
    }
    db_iter_close(&iter);
    if (st != ST_EMPTY) {
        json_decref(list);
        return st;
    }
    *out = json_object();
    json_object_set_new(*out, "quarantine", list);
    json_object_set_new(*out, "total", json_count(total));
    return ST_OK;
}
