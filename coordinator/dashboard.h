/* dashboard.h - the HTTP window on the line: probes, metrics, its state as JSON, and a page for people.
 *
 *     /livez            200 while the loop turns; depends on nothing outside the process
 *     /readyz           200 when work is taken in: loop, database, disk, handshakes; else 503 and why; ?verbose: each check
 *     /metrics          Prometheus text
 *     /status.json      as the verb STATUS
 *     /versions.json    as the verb VERSIONS: ?n= at most 50, ?before=NUMBER for older ones
 *     /verdicts.json    {"verdicts": [as EXPLAIN], "next"} newest first, refused ones too: ?n= at most 50, ?before=ROUND
 *     /quarantine.json  the newest 50, as the verb QUARANTINE_LIST
 *     /                 the page (coordinator/page/)
 *
 * Once a second the loop hands over a picture and goes on; requests are answered by the HTTP thread from the newest picture,
 * and from the database what never changes. Nothing a client does makes the loop wait: they share one pointer under a lock
 * that is held for a few instructions. Read only; no secrets and no sample text are in it.
 */
#ifndef COORDINATOR_DASHBOARD_H
#define COORDINATOR_DASHBOARD_H

#include "base/metrics.h"
#include "coordinator/report.h"
#include "net/zap.h"

struct dashboard;

struct dashboard_config {    /* all borrowed until dashboard_stop() */
    const char *host, *name; /* as http_start(); may be NULL */
    uint16_t port;           /* 0: no HTTP, and everything else here does nothing */
    struct metrics *metrics;
    struct streamlog *log;
    const struct zap *zap;
};
enum status dashboard_start(const struct dashboard_config *config, struct dashboard **out, struct err *err);
void dashboard_stop(struct dashboard **dashboard);
uint16_t dashboard_port(const struct dashboard *dashboard);

void dashboard_beat(struct dashboard *dashboard);                                             /* the loop is alive */
void dashboard_update(struct dashboard *dashboard, struct picture *picture, uint64_t now_ms); /* takes the picture */

#endif
