/* gauges.h - the picture of the moment as Prometheus text: the families that are not counted where they happen.
 *
 * They are written from the picture at each scrape, so that a worker or alias that is gone leaves no series behind.
 * Bounded: one series a domain (LIMIT_DOMAINS) or member (SNAPSHOT_MEMBERS) and family; a member that has been gone for
 * GAUGES_GONE_MS is not shown any more, so that requeued jobs do not pile up.
 */
#ifndef COORDINATOR_GAUGES_H
#define COORDINATOR_GAUGES_H

#include "coordinator/report.h"

enum { GAUGES_GONE_MS = 3600 * 1000 };

/* The name by which metrics and the page call a member: its key and the first 8 digits of its instance. */
enum { MEMBER_NAME_SIZE = NAME_MAX_LEN + 1 + 8 + 1 };
void member_name(const struct name *key, const uint8_t instance[16], char out[MEMBER_NAME_SIZE]);

void gauges_render(const struct picture *picture, struct buf *out);
void gauges_process(struct buf *out); /* process_*: this process, as Prometheus' own clients name it */

#endif
