#include "coordinator/facts.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static enum status get(struct db *db, uint8_t family, const struct state_key *key, struct buf *out, struct err *err)
{
    buf_clear(out);
    return db_get(db, family, key->b, key->len, out, err);
}

static enum status undecodable(const char *what, struct err *err)
{
    return err_set(err, ST_CORRUPT, "the stored %s does not decode; restore a backup", what);
}

enum status facts_session(struct streamlog *log, struct state_session *out, struct err *err)
{
    struct bytes key, value;
    struct db_iter *iter = db_iter_open(streamlog_db(log), FAMILY_META, (struct bytes){(const uint8_t *)"S", 1},
                                        (struct bytes){(const uint8_t *)"T", 1}, true); /* the newest first */
    enum status st = db_iter_next(iter, &key, &value, err);
    if (st == ST_EMPTY || (!st && !state_session_get(value, out)))
        st = undecodable("session", err);
    db_iter_close(&iter);
    return st;
}

enum status facts_counters(struct streamlog *log, struct state_counters *out, struct err *err)
{
    struct buf b = {0};
    struct state_key key = key_plain('c');
    enum status st = get(streamlog_db(log), FAMILY_META, &key, &b, err);
    if (!st && !state_counters_get(buf_bytes(&b), out))
        st = undecodable("counters", err);
    buf_release(&b);
    return st;
}

enum status facts_domain(struct db *db, const char *name, struct domain_id *out, struct err *err)
{
    struct bytes key, value;
    struct state_domain *d = xmalloc(sizeof *d);
    struct db_iter *iter = db_iter_open(db, FAMILY_META, (struct bytes){(const uint8_t *)"d", 1},
                                        (struct bytes){(const uint8_t *)"e", 1}, false);
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err))) {
        if (!state_domain_get(value, d) || key.len != 3) {
            st = undecodable("domain", err);
            break;
        }
        if (!strcmp(d->name.s, name)) {
            out->v = (uint16_t)(key.data[1] << 8 | key.data[2]);
            break;
        }
    }
    db_iter_close(&iter);
    free(d);
    return st == ST_EMPTY ? err_set(err, ST_NOT_FOUND, "no domain is called %s", name) : st;
}

enum status facts_version(struct db *db, uint64_t number, struct buf *value, struct state_version *out, struct err *err)
{
    struct state_key key = key_u64('m', number);
    enum status st = get(db, FAMILY_VERSIONS, &key, value, err);
    if (st == ST_NOT_FOUND)
        return err_set(err, ST_NOT_FOUND, "there is no version %llu", (unsigned long long)number);
    if (!st && !state_version_get(buf_bytes(value), out))
        st = undecodable("version", err);
    return st;
}

/* ---- for events ------------------------------------------------------------------------------------------------ */

static enum status add_ranges(const struct state_version *version, struct buf *ranges, struct err *err)
{
    struct manifest m;
    enum status st = manifest_decode(version->manifest.data, version->manifest.len, &m, err);
    if (st)
        return st;
    for (uint32_t i = 0; i < m.n_leases; i++)
        for (uint32_t k = 0; k < m.leases[i].n_ranges; k++) {
            const struct manifest_range *r = &m.leases[i].ranges[k];
            struct done_range done = {.domain = r->domain, .first = r->first, .count = r->count};
            buf_put(ranges, &done, sizeof done);
        }
    manifest_release(&m);
    return ST_OK;
}

enum status facts_near_version(struct db *db, uint64_t from, bool back, uint64_t *number, struct err *err)
{
    struct bytes key, value;
    struct state_key at = key_u64('m', from), end = key_u64('m', back ? 0 : UINT64_MAX);
    if (back)
        at.b[at.len++] = 0; /* the bound is exclusive: just behind */
    struct db_iter *iter =
        db_iter_open(db, FAMILY_VERSIONS, (struct bytes){back ? end.b : at.b, back ? end.len : at.len},
                     (struct bytes){back ? at.b : end.b, back ? at.len : end.len}, back);
    enum status st = db_iter_next(iter, &key, &value, err);
    if (!st && !key_read_u64(key, number))
        st = undecodable("version", err);
    db_iter_close(&iter);
    return st;
}

/* Walks from the newest version to its parents until `number`; what was trained on the way is collected. */
static enum status walk_back(struct db *db, uint64_t newest, uint64_t number, struct facts *facts, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = ST_OK;
    uint64_t at = newest;
    while (at > number) {
        st = facts_version(db, at, &value, v, err);
        if (!st)
            st = add_ranges(v, &facts->ranges, err);
        if (!st && v->parent >= at)
            st = err_set(err, ST_CORRUPT, "version %llu has parent %llu", (unsigned long long)at,
                         (unsigned long long)v->parent);
        if (st)
            break;
        at = v->parent;
    }
    facts->version.in_lineage = !st && at == number;
    free(v);
    buf_release(&value);
    return st;
}

static enum status read_version(struct facts *facts, struct streamlog *log, struct blob_store *blobs,
                                const Alv__Control *control, struct event *event, struct err *err)
{
    struct db *db = streamlog_db(log);
    struct state_key key = key_u64('m', control->number);
    struct state_counters counters;
    enum status st = get(db, FAMILY_VERSIONS, &key, &facts->value, err);
    if (st == ST_NOT_FOUND)
        return ST_OK;
    if (!st)
        st = facts_counters(log, &counters, err);
    if (!st && control->verb == ALV__CONTROL_VERB__CONTROL_ROLLBACK)
        st = walk_back(db, counters.version, control->number, facts, err);
    if (st)
        return st;
    facts->version.newest = counters.version;
    struct state_version *v = xmalloc(sizeof *v);
    if (state_version_get(buf_bytes(&facts->value), v))
        facts->version.files_held = blob_has(blobs, &v->files.peft) && blob_has(blobs, &v->files.gguf) &&
                                    (digest_is_zero(&v->files.state) || blob_has(blobs, &v->files.state));
    free(v);
    facts->version.newest = counters.version;
    facts->version.value = buf_bytes(&facts->value);
    facts->version.ranges = (const struct done_range *)(const void *)facts->ranges.data;
    facts->version.n = (uint32_t)(facts->ranges.len / sizeof(struct done_range));
    event->version = &facts->version;
    return ST_OK;
}

static enum status read_control(struct facts *facts, struct streamlog *log, struct blob_store *blobs,
                                const struct sip_key *seed, const Alv__Control *control, struct event *event,
                                struct err *err)
{
    struct domain_id domain;
    switch (control->verb) {
    case ALV__CONTROL_VERB__CONTROL_ROLLBACK:
    case ALV__CONTROL_VERB__CONTROL_PROMOTE:
        return read_version(facts, log, blobs, control, event, err);
    case ALV__CONTROL_VERB__CONTROL_RETRACT: {
        enum status st = facts_domain(streamlog_db(log), control->domain, &domain, err);
        if (st == ST_NOT_FOUND)
            return ST_OK;
        return st ? st : streamlog_record(log, seed, domain, control->record, &event->record_value, err);
    }
    default:
        return ST_OK;
    }
}

static void read_delta(struct facts *facts, struct blob_store *blobs, const Alv__DeltaCommit *commit,
                       struct event *event)
{
    uint64_t bytes;
    if (!commit->delta || commit->delta->digest.len != DIGEST_LEN)
        return;
    memcpy(facts->pinned.b, commit->delta->digest.data, DIGEST_LEN);
    blob_pin(blobs, &facts->pinned);
    facts->pin = true;
    event->blob_held = !blob_size(blobs, &facts->pinned, &bytes, NULL) && bytes == commit->delta->bytes;
}

enum status facts_read(struct facts *facts, struct core *core, struct streamlog *log, struct blob_store *blobs,
                       const struct sip_key *seed, struct event *event, struct err *err)
{
    struct domain_id domain;
    if (event->verb == VERB_PUSH_BATCH) {
        const Alv__PushBatch *batch = (const Alv__PushBatch *)event->message;
        if (!core_producer_domain(core, batch->producer, &domain))
            return ST_OK;
        event->facts = streamlog_facts(log, seed, domain, batch, err);
        return event->facts ? ST_OK : ST_IO;
    }
    if (event->verb == VERB_CONTROL)
        return read_control(facts, log, blobs, seed, (const Alv__Control *)event->message, event, err);
    if (event->verb == VERB_DELTA_COMMIT)
        read_delta(facts, blobs, (const Alv__DeltaCommit *)event->message, event);
    return ST_OK;
}

void facts_release(struct facts *facts, struct blob_store *blobs)
{
    if (facts->pin)
        blob_unpin(blobs, &facts->pinned);
    buf_release(&facts->value);
    buf_release(&facts->ranges);
    *facts = (struct facts){0};
}
