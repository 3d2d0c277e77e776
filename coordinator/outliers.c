/* Segments that were unlike the rest of their domain when they were first seen: wrong language, noise, a broken export. The
 * loss of each at its first pass came with its lease's delta, so this costs no extra work. Far out is what lies more than
 * OUT robust standard deviations (1.4826 x the median distance from the median; Hampel 1974) above its domain's median. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/state.h"
#include "coordinator/report.h"

enum { LISTED_MAX = 32, LEAST = 16 /* segments of a domain, for a median that means something */ };
static const double OUT = 6;

struct first {
    struct domain_id domain;
    uint64_t offset, lease;
    float loss;
    double beyond; /* robust standard deviations over the median */
};

struct firsts {
    struct first *items;
    size_t n, cap;
};

/* 0 is a segment without a target. */
static enum status collect(struct db *db, const struct manifest_lease *l, struct firsts *out, struct err *err)
{
    struct state_key key = key_u64('f', l->id);
    struct buf value = {0};
    enum status st = db_get(db, FAMILY_DELTAS, key.b, key.len, &value, err);
    struct reader r = reader_of(value.data, value.len);
    for (uint32_t i = 0; !st && i < l->n_ranges; i++)
        for (uint32_t j = 0; j < l->ranges[i].count; j++) {
            float loss = read_f32(&r);
            if (r.failed || !isfinite(loss) || !(loss > 0))
                continue;
            if (out->n == out->cap)
                out->items = xrealloc_array(out->items, out->cap = out->cap ? 2 * out->cap : 256, sizeof *out->items);
            out->items[out->n++] = (struct first){l->ranges[i].domain, l->ranges[i].first + j, l->id, loss, 0};
        }
    buf_release(&value);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

static int by_domain(const void *a, const void *b)
{
    const struct first *x = a, *y = b;
    if (x->domain.v != y->domain.v)
        return x->domain.v < y->domain.v ? -1 : 1;
    return x->loss < y->loss ? -1 : x->loss > y->loss;
}

static int by_beyond(const void *a, const void *b)
{
    const struct first *x = a, *y = b;
    return x->beyond > y->beyond ? -1 : x->beyond < y->beyond;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* One domain's, rising. */
static void measure(struct first *items, size_t n)
{
    if (n < LEAST)
        return;
    double median = items[n / 2].loss, *away = xcalloc(n, sizeof *away);
    for (size_t i = 0; i < n; i++)
        away[i] = fabs(items[i].loss - median);
    qsort(away, n, sizeof *away, by_value);
    double sd = 1.4826 * away[n / 2];
    for (size_t i = 0; i < n && sd > 0; i++)
        items[i].beyond = (items[i].loss - median) / sd;
    free(away);
}

enum status report_outliers(struct db *db, const struct manifest *m, json_t **out, struct err *err)
{
    struct firsts all = {0};
    enum status st = ST_OK;
    for (uint32_t i = 0; !st && i < m->n_leases; i++)
        st = collect(db, &m->leases[i], &all, err);
    if (all.n)
        qsort(all.items, all.n, sizeof *all.items, by_domain);
    for (size_t i = 0, run; i < all.n; i += run) {
        for (run = 1; i + run < all.n && all.items[i + run].domain.v == all.items[i].domain.v; run++)
            ;
        measure(all.items + i, run);
    }
    if (all.n)
        qsort(all.items, all.n, sizeof *all.items, by_beyond);
    *out = st ? NULL : json_array();
    for (size_t i = 0; !st && i < all.n && i < LISTED_MAX && all.items[i].beyond > OUT; i++) {
        json_t *j = json_object();
        json_object_set_new(j, "domain", json_count(all.items[i].domain.v));
        json_object_set_new(j, "offset", json_count(all.items[i].offset));
        json_object_set_new(j, "lease", json_count(all.items[i].lease));
        json_object_set_new(j, "loss", json_number(all.items[i].loss));
        json_object_set_new(j, "deviations", json_number(all.items[i].beyond));
        json_array_append_new(*out, j);
    }
    free(all.items);
    return st;
}
