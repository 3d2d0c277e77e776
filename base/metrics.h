/* metrics.h - counters, gauges and histograms, rendered as Prometheus text (exposition format 0.0.4).
 *
 * A series is one name with one fixed set of labels. It is registered once (at start, or when a domain appears) and then
 * changed through its pointer, lock-free, from any thread. Registering the same name and labels again returns the same
 * series. Label values are bounded: past METRICS_SERIES_MAX series of one name, all further ones share a series whose
 * every label value is "other".
 *
 * A NULL registry gives NULL series, and changing a NULL series does nothing: libraries need no "are metrics on?".
 */
#ifndef BASE_METRICS_H
#define BASE_METRICS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum { METRICS_SERIES_MAX = 256, METRICS_LABELS_MAX = 4, METRICS_BUCKETS_MAX = 16 };

struct metrics;
struct series; /* owned by its registry */

struct metrics *metrics_new(void);
void metrics_free(struct metrics *metrics);

/* The variable part is label name, label value, ..., NULL. Names follow Prometheus (our prefix, base units, _total,
 * _seconds, _bytes); a wrong name, or one name with two kinds, is our own mistake (CHECK). `help` is kept from the
 * first registration. */
struct series *metrics_counter(struct metrics *metrics, const char *name, const char *help, ...)
    __attribute__((sentinel));
struct series *metrics_gauge(struct metrics *metrics, const char *name, const char *help, ...)
    __attribute__((sentinel));
/* `bounds`: ascending upper bounds, at most METRICS_BUCKETS_MAX; +Inf is added. */
struct series *metrics_histogram(struct metrics *metrics, const char *name, const char *help, const double *bounds,
                                 size_t n_bounds, ...) __attribute__((sentinel));

void series_inc(struct series *series);                   /* counter: + 1 */
void series_add(struct series *series, double amount);    /* counter (amount >= 0) or gauge */
void series_set(struct series *series, double value);     /* gauge */
void series_observe(struct series *series, double value); /* histogram; NaN is not counted */
double series_value(const struct series *series);         /* counter, gauge: value; histogram: count. For tests */

/* Appends the whole registry as text, families in the order of registration. */
void metrics_render(struct metrics *metrics, struct buf *out);

#endif
