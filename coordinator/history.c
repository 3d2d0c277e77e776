#include "coordinator/history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "coordinator/core/continual.h"
#include "coordinator/core/settings.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"
#include "coordinator/losses.h"

struct row {
    uint64_t parent;
    uint32_t n; /* domains there were */
    double *learnt;
    bool *fresh;
    uint8_t *sentinel; /* enum sentinel */
};

struct history {
    uint64_t first, next;          /* versions held: [first, next) */
    struct row rows[HISTORY_ROWS]; /* version v at v % HISTORY_ROWS */
};

struct history *history_new(void)
{
    return xcalloc(1, sizeof(struct history));
}

static void row_release(struct row *row)
{
    free(row->learnt);
    free(row->fresh);
    free(row->sentinel);
    *row = (struct row){0};
}

void history_free(struct history *h)
{
    for (uint32_t i = 0; h && i < HISTORY_ROWS; i++)
        row_release(&h->rows[i]);
    free(h);
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static void note_fresh(const struct manifest *m, struct row *row)
{
    for (uint32_t i = 0; i < m->n_leases; i++)
        for (uint32_t k = 0; k < m->leases[i].n_ranges; k++)
            if (m->leases[i].ranges[k].domain.v < row->n)
                row->fresh[m->leases[i].ranges[k].domain.v] = true;
}

static enum status read_row(struct db *db, uint64_t version, struct row *out, struct err *err)
{
    struct manifest *m = xcalloc(1, sizeof *m); /* another's, when the version repeats it */
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = facts_version(db, version, &value, v, err);
    if (!st)
        st = losses_manifest(db, version, m, err);
    if (!st) {
        out->parent = v->parent < version ? v->parent : 0; /* version 0 is its own */
        out->n = m->n_domains ? m->domains[m->n_domains - 1].id.v + 1u : 0;
        out->learnt = xcalloc(out->n ? out->n : 1, sizeof *out->learnt);
        out->fresh = xcalloc(out->n ? out->n : 1, sizeof *out->fresh);
        out->sentinel = xcalloc(out->n ? out->n : 1, sizeof *out->sentinel);
        for (uint32_t d = 0; d < out->n; d++)
            out->learnt[d] = NAN;
        if (m->number == version)
            note_fresh(m, out);
    }
    for (uint32_t i = 0; !st && i < m->n_domains; i++) {
        struct learnt learnt;
        st = losses_learnt(db, m->number, m->domains[i].id, &learnt, err);
        if (!st && learnt.measured)
            out->learnt[m->domains[i].id.v] = learnt.base_loss - learnt.loss;
        if (!st)
            out->sentinel[m->domains[i].id.v] = (uint8_t)learnt.sentinel;
    }
    if (st)
        row_release(out);
    manifest_release(m);
    free(m);
    free(v);
    buf_release(&value);
    return st;
}

enum status history_fill(struct history *h, struct db *db, uint64_t newest, uint32_t rows, struct err *err)
{
    if (newest + 1 > h->next + HISTORY_ROWS) { /* far behind: what would be thrown away is not read */
        for (uint32_t i = 0; i < HISTORY_ROWS; i++)
            row_release(&h->rows[i]);
        h->first = h->next = newest + 1 - HISTORY_ROWS;
    }
    for (; rows && h->next <= newest; rows--) {
        struct row row = {0};
        uint64_t after;
        enum status st = read_row(db, h->next, &row, err);
        if (st == ST_NOT_FOUND && !facts_near_version(db, h->next, false, &after, NULL))
            st = ST_OK; /* numbers have a gap where the line was restored */
        if (st)
            return st;
        row_release(&h->rows[h->next % HISTORY_ROWS]);
        h->rows[h->next++ % HISTORY_ROWS] = row;
        if (h->next - h->first > HISTORY_ROWS)
            h->first++;
    }
    return ST_OK;
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

/* The lineage of `version`, oldest first, under a row of zeros: the base. */
static void lineage(const struct history *h, uint64_t version, uint32_t n_domains, struct loss_matrix *out)
{
    uint32_t n = 1;
    for (uint64_t v = version; v >= h->first && v; v = h->rows[v % HISTORY_ROWS].parent)
        n++;
    double *loss = xcalloc((uint64_t)n * n_domains, sizeof *loss);
    bool *fresh = xcalloc((uint64_t)n * n_domains, sizeof *fresh);
    *out = (struct loss_matrix){.loss = loss, .fresh = fresh, .n_rows = n, .n_domains = n_domains};
    for (uint64_t v = version; --n; v = h->rows[v % HISTORY_ROWS].parent) {
        const struct row *row = &h->rows[v % HISTORY_ROWS];
        for (uint32_t d = 0; d < n_domains; d++) {
            loss[(uint64_t)n * n_domains + d] = d < row->n && !row->sentinel[d] ? -row->learnt[d] : NAN;
            fresh[(uint64_t)n * n_domains + d] = d < row->n && row->fresh[d];
        }
    }
}

/* What the sentinels of one kind lost since version 0, on average. On text that the base drew from itself that is KL(base
 * || version): docs/how-to/sentinels.md. */
static double sentinel_loss(const struct row *row, enum sentinel kind)
{
    double *lost = xcalloc(row->n ? row->n : 1, sizeof *lost);
    for (uint32_t d = 0; d < row->n; d++)
        lost[d] = row->sentinel[d] == kind ? -row->learnt[d] : NAN;
    double mean = continual_mean(lost, row->n);
    free(lost);
    return mean;
}

static json_t *number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

typedef double measure_fn(const struct loss_matrix *m, uint32_t domain);

/* One measure for each domain's row, and its mean for the version. */
static void add_measure(const struct loss_matrix *m, const char *name, measure_fn *measure, json_t *domains,
                        json_t *metrics)
{
    double *values = xcalloc(m->n_domains, sizeof *values);
    for (uint32_t d = 0; d < m->n_domains; d++) {
        values[d] = measure(m, d);
        json_t *row = json_array_get(domains, d);
        if (row)
            json_object_set_new(row, name, number(values[d]));
    }
    json_object_set_new(metrics, name, number(continual_mean(values, m->n_domains)));
    free(values);
}

void history_add(const struct history *h, uint64_t version, json_t *object)
{
    json_t *domains = json_object_get(object, "domains"), *metrics = json_object();
    uint32_t n = (uint32_t)json_array_size(domains);
    if (!h || version < h->first || version >= h->next || !n || n != h->rows[version % HISTORY_ROWS].n) {
        json_object_set_new(object, "metrics", json_null());
        json_decref(metrics);
        return;
    }
    struct loss_matrix m;
    lineage(h, version, n, &m);
    add_measure(&m, "learnt_mean", continual_learnt, NULL, metrics);
    add_measure(&m, "peak_forgetting", continual_forgetting, domains, metrics);
    add_measure(&m, "backward_transfer", continual_backward, domains, metrics);
    add_measure(&m, "forward_transfer", continual_forward, domains, metrics);
    json_object_set_new(metrics, "intransigence", json_null()); /* a line has no jointly trained model */
    const struct row *row = &h->rows[version % HISTORY_ROWS];
    json_object_set_new(metrics, "general_delta", number(sentinel_loss(row, SENTINEL_OWN_TEXT)));
    json_object_set_new(metrics, "sentinel", number(sentinel_loss(row, SENTINEL_KEPT_ASIDE)));
    json_object_set_new(object, "metrics", metrics);
    free((void *)(uintptr_t)m.loss);
    free((void *)(uintptr_t)m.fresh);
}
