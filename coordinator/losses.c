#include "coordinator/losses.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "coordinator/core/settings.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"

static enum status read_losses(struct db *db, uint64_t version, struct domain_id domain, struct state_losses *out,
                               struct err *err)
{
    struct buf b = {0};
    struct state_key key = key_matrix(version, domain);
    *out = (struct state_losses){0};
    enum status st = db_get(db, FAMILY_MATRIX, key.b, key.len, &b, err);
    if (!st && !state_losses_get(buf_bytes(&b), out))
        st = err_set(err, ST_CORRUPT, "the losses of version %llu do not decode", (unsigned long long)version);
    buf_release(&b);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static int by_offset(const void *a, const void *b)
{
    uint64_t x = ((const struct window_loss *)a)->offset, y = ((const struct window_loss *)b)->offset;
    return x < y ? -1 : x > y;
}

/* Mean losses of two versions on the windows both were scored on: what was learnt since the base, like for like. */
static bool common_loss(struct state_losses *a, struct state_losses *base, double *loss, double *base_loss)
{
    double sum = 0, base_sum = 0;
    uint64_t tokens = 0;
    if (base->n)
        qsort(base->items, base->n, sizeof *base->items, by_offset);
    for (uint32_t i = 0; i < a->n && base->n; i++) {
        const struct window_loss *w = bsearch(&a->items[i], base->items, base->n, sizeof *base->items, by_offset);
        if (!w)
            continue;
        sum += a->items[i].candidate;
        base_sum += w->candidate;
        tokens += a->items[i].tokens;
    }
    if (!tokens)
        return false;
    *loss = sum / (double)tokens;
    *base_loss = base_sum / (double)tokens;
    return true;
}

static uint32_t sentinel_of(const struct state_domain *d)
{
    for (uint32_t i = 0; i < d->n_overrides; i++)
        if (!strcmp(d->overrides[i].name, "sentinel"))
            return (uint32_t)strtoul(d->overrides[i].value, NULL, 10);
    return SENTINEL_NONE;
}

static enum status domain_base(struct db *db, struct domain_id domain, uint64_t *out, uint32_t *sentinel,
                               struct err *err)
{
    struct buf b = {0};
    struct state_domain *d = xmalloc(sizeof *d);
    struct state_key key = key_u16('d', domain.v);
    enum status st = db_get(db, FAMILY_META, key.b, key.len, &b, err);
    if (!st && !state_domain_get(buf_bytes(&b), d))
        st = err_set(err, ST_CORRUPT, "domain %u does not decode; restore a backup", domain.v);
    if (!st) {
        *out = d->base;
        *sentinel = sentinel_of(d);
    }
    free(d);
    buf_release(&b);
    return st;
}

enum status losses_learnt(struct db *db, uint64_t version, struct domain_id domain, struct learnt *out, struct err *err)
{
    struct state_losses now, base = {0};
    uint64_t since = 0;
    *out = (struct learnt){0};
    enum status st = read_losses(db, version, domain, &now, err);
    if (!st)
        st = domain_base(db, domain, &since, &out->sentinel, err);
    if (!st)
        st = read_losses(db, since, domain, &base, err);
    if (!st)
        out->measured = common_loss(&now, &base, &out->loss, &out->base_loss);
    state_losses_release(&now);
    state_losses_release(&base);
    return st;
}

enum status losses_manifest(struct db *db, uint64_t version, struct manifest *out, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st;
    *out = (struct manifest){0};
    for (;;) {
        manifest_release(out);
        st = facts_version(db, version, &value, v, err);
        if (!st)
            st = manifest_decode(v->manifest.data, v->manifest.len, out, err);
        if (st || out->n_domains || !(out->flags & MANIFEST_ROLLBACK) || out->rollback_of >= version)
            break;
        version = out->rollback_of;
    }
    free(v);
    buf_release(&value);
    return st;
}
