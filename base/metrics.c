#include "base/metrics.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>

#include "base/check.h"

enum kind { COUNTER, GAUGE, HISTOGRAM };

struct label {
    char *name, *value;
};

struct series {
    struct series *next; /* of the family */
    unsigned n_labels;
    struct label labels[METRICS_LABELS_MAX];
    _Atomic double value; /* a histogram's sum */
    _Atomic uint64_t count;
    unsigned n_bounds;
    const double *bounds; /* the family's */
    _Atomic uint64_t buckets[METRICS_BUCKETS_MAX];
};

struct family {
    struct family *next;
    enum kind kind;
    char *name, *help;
    unsigned n_series, n_bounds;
    double bounds[METRICS_BUCKETS_MAX];
    struct series *series, **last;
};

struct metrics {
    pthread_mutex_t lock; /* the lists; values are atomic */
    struct family *families, **last;
};

struct metrics *metrics_new(void)
{
    struct metrics *m = xcalloc(1, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    m->last = &m->families;
    return m;
}

static void series_free(struct series *s)
{
    for (unsigned i = 0; i < s->n_labels; i++) {
        free(s->labels[i].name);
        free(s->labels[i].value);
    }
    free(s);
}

void metrics_free(struct metrics *m)
{
    if (!m)
        return;
    for (struct family *f = m->families, *next; f; f = next) {
        next = f->next;
        for (struct series *s = f->series, *after; s; s = after) {
            after = s->next;
            series_free(s);
        }
        free(f->name);
        free(f->help);
        free(f);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static bool word_valid(const char *s, bool colon)
{
    for (size_t i = 0; s[i]; i++) {
        bool letter = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z') || s[i] == '_';
        if (!letter && !(colon && s[i] == ':') && !(i && s[i] >= '0' && s[i] <= '9'))
            return false;
    }
    return s[0] != 0;
}

static struct family *family_get(struct metrics *m, enum kind kind, const char *name, const char *help,
                                 const double *bounds, size_t n_bounds)
{
    for (struct family *f = m->families; f; f = f->next)
        if (!strcmp(f->name, name)) {
            CHECK_EQ(f->kind, kind);
            return f;
        }
    CHECK(word_valid(name, true) && n_bounds <= METRICS_BUCKETS_MAX);
    struct family *f = xcalloc(1, sizeof *f);
    f->kind = kind;
    f->name = xstrdup(name);
    f->help = xstrdup(help);
    f->n_bounds = (unsigned)n_bounds;
    for (size_t i = 0; i < n_bounds; i++) {
        CHECK(i == 0 || bounds[i] > bounds[i - 1]);
        f->bounds[i] = bounds[i];
    }
    f->last = &f->series;
    *m->last = f;
    m->last = &f->next;
    return f;
}

static struct series *series_find(struct family *f, const char *const *pairs, unsigned n)
{
    for (struct series *s = f->series; s; s = s->next) {
        bool same = s->n_labels == n;
        for (unsigned i = 0; same && i < n; i++)
            same = !strcmp(s->labels[i].name, pairs[2 * i]) && !strcmp(s->labels[i].value, pairs[2 * i + 1]);
        if (same)
            return s;
    }
    return NULL;
}

static struct series *series_get(struct metrics *m, enum kind kind, const char *name, const char *help,
                                 const double *bounds, size_t n_bounds, va_list ap)
{
    const char *pairs[2 * METRICS_LABELS_MAX];
    unsigned n = 0;
    for (const char *label; (label = va_arg(ap, const char *)); n++) {
        CHECK(n < METRICS_LABELS_MAX && word_valid(label, false));
        pairs[2 * n] = label;
        pairs[2 * n + 1] = va_arg(ap, const char *);
    }
    if (!m)
        return NULL;
    pthread_mutex_lock(&m->lock);
    struct family *f = family_get(m, kind, name, help, bounds, n_bounds);
    struct series *s = series_find(f, pairs, n);
    if (!s && f->n_series >= METRICS_SERIES_MAX) {
        for (unsigned i = 0; i < n; i++)
            pairs[2 * i + 1] = "other";
        s = series_find(f, pairs, n);
    }
    if (!s) {
        s = xcalloc(1, sizeof *s);
        s->n_labels = n;
        for (unsigned i = 0; i < n; i++)
            s->labels[i] = (struct label){xstrdup(pairs[2 * i]), xstrdup(pairs[2 * i + 1])};
        s->n_bounds = f->n_bounds;
        s->bounds = f->bounds;
        *f->last = s;
        f->last = &s->next;
        f->n_series++;
    }
    pthread_mutex_unlock(&m->lock);
    return s;
}

struct series *metrics_counter(struct metrics *m, const char *name, const char *help, ...)
{
    va_list ap;
    va_start(ap, help);
    struct series *s = series_get(m, COUNTER, name, help, NULL, 0, ap);
    va_end(ap);
    return s;
}

struct series *metrics_gauge(struct metrics *m, const char *name, const char *help, ...)
{
    va_list ap;
    va_start(ap, help);
    struct series *s = series_get(m, GAUGE, name, help, NULL, 0, ap);
    va_end(ap);
    return s;
}

struct series *metrics_histogram(struct metrics *m, const char *name, const char *help, const double *bounds,
                                 size_t n_bounds, ...)
{
    va_list ap;
    va_start(ap, n_bounds);
    struct series *s = series_get(m, HISTOGRAM, name, help, bounds, n_bounds, ap);
    va_end(ap);
    return s;
}

void series_inc(struct series *s)
{
    series_add(s, 1);
}

void series_add(struct series *s, double amount)
{
    if (!s)
        return;
    double old = atomic_load_explicit(&s->value, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(&s->value, &old, old + amount, memory_order_relaxed,
                                                  memory_order_relaxed))
        ;
}

void series_set(struct series *s, double value)
{
    if (s)
        atomic_store_explicit(&s->value, value, memory_order_relaxed);
}

void series_observe(struct series *s, double value)
{
    if (!s || isnan(value))
        return;
    for (unsigned i = 0; i < s->n_bounds; i++)
        if (value <= s->bounds[i]) {
            atomic_fetch_add_explicit(&s->buckets[i], 1, memory_order_relaxed);
            break;
        }
    atomic_fetch_add_explicit(&s->count, 1, memory_order_relaxed);
    series_add(s, value);
}

double series_value(const struct series *s)
{
    if (!s)
        return 0;
    uint64_t count = atomic_load_explicit(&s->count, memory_order_relaxed);
    return s->n_bounds ? (double)count : atomic_load_explicit(&s->value, memory_order_relaxed);
}

static void put_escaped(struct buf *out, const char *s, bool quotes)
{
    for (; *s; s++) {
        if (*s == '\\' || (quotes && *s == '"'))
            buf_put_u8(out, '\\');
        if (*s == '\n')
            buf_put(out, "\\n", 2);
        else
            buf_put_u8(out, (uint8_t)*s);
    }
}

static void put_number(struct buf *out, double v)
{
    if (isnan(v) || isinf(v))
        buf_printf(out, "%s\n", isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
    else
        buf_printf(out, "%.17g\n", v);
}

/* name suffix {labels, le="bound"} and the space behind */
static void put_head(struct buf *out, const struct family *f, const struct series *s, const char *suffix,
                     const char *le)
{
    buf_printf(out, "%s%s", f->name, suffix);
    if (s->n_labels || le)
        buf_put_u8(out, '{');
    for (unsigned i = 0; i < s->n_labels; i++) {
        buf_printf(out, "%s%s=\"", i ? "," : "", s->labels[i].name);
        put_escaped(out, s->labels[i].value, true);
        buf_put_u8(out, '"');
    }
    if (le)
        buf_printf(out, "%sle=\"%s\"", s->n_labels ? "," : "", le);
    if (s->n_labels || le)
        buf_put_u8(out, '}');
    buf_put_u8(out, ' ');
}

static void put_histogram(struct buf *out, const struct family *f, const struct series *s)
{
    uint64_t sum = 0, count = atomic_load_explicit(&s->count, memory_order_relaxed);
    char le[32];
    for (unsigned i = 0; i < f->n_bounds; i++) {
        sum += atomic_load_explicit(&s->buckets[i], memory_order_relaxed);
        snprintf(le, sizeof le, "%g", f->bounds[i]);
        put_head(out, f, s, "_bucket", le);
        buf_printf(out, "%llu\n", (unsigned long long)sum);
    }
    if (count < sum) /* an observation came between the two reads */
        count = sum;
    put_head(out, f, s, "_bucket", "+Inf");
    buf_printf(out, "%llu\n", (unsigned long long)count);
    put_head(out, f, s, "_sum", NULL);
    put_number(out, atomic_load_explicit(&s->value, memory_order_relaxed));
    put_head(out, f, s, "_count", NULL);
    buf_printf(out, "%llu\n", (unsigned long long)count);
}

void metrics_render(struct metrics *m, struct buf *out)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    if (!m)
        return;
    pthread_mutex_lock(&m->lock);
    for (const struct family *f = m->families; f; f = f->next) {
        buf_printf(out, "# HELP %s ", f->name);
        put_escaped(out, f->help, false);
        buf_printf(out, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
        for (const struct series *s = f->series; s; s = s->next) {
            if (f->kind == HISTOGRAM) {
                put_histogram(out, f, s);
                continue;
            }
            put_head(out, f, s, "", NULL);
            put_number(out, atomic_load_explicit(&s->value, memory_order_relaxed));
        }
    }
    pthread_mutex_unlock(&m->lock);
}
