/* dashboard.h - the small HTTP window on the loop: /livez /readyz /metrics, the status as JSON, and a plain page.
 *
 * Once a second the loop gives it a picture; requests are answered from that by the HTTP thread and never touch the core.
 * Loopback only. No secrets and no sample text are in it.
 */
#ifndef COORDINATOR_DASHBOARD_H
#define COORDINATOR_DASHBOARD_H

#include "base/metrics.h"
#include "coordinator/report.h"

struct dashboard;

/* Port 0: no HTTP, and everything else here does nothing. */
enum status dashboard_start(struct metrics *metrics, uint16_t port, struct dashboard **out, struct err *err);
void dashboard_stop(struct dashboard **dashboard);
uint16_t dashboard_port(const struct dashboard *dashboard);

void dashboard_beat(struct dashboard *dashboard); /* the loop is alive */
void dashboard_update(struct dashboard *dashboard, const struct report_source *source, bool disk_low);

#endif
