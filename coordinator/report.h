/* report.h - the read-only side of the models and control planes: answered from disk and snapshot, without a step.
 *
 * The JSON of each control verb is documented in docs/reference/control.md. Every answer is bounded (LIMIT_JSON_BYTES);
 * long lists come in pages whose `next` is given back in the next request. What is read is what was committed when the
 * question came. One thread, the loop's.
 */
#ifndef COORDINATOR_REPORT_H
#define COORDINATOR_REPORT_H

#include <jansson.h>

#include "coordinator/core/core.h"
#include "coordinator/core/snapshot.h"
#include "coordinator/dir.h"
#include "coordinator/history.h"
#include "coordinator/streamlog.h"

struct report_source {
    struct core *core;
    struct streamlog *log;
    const struct line_dir *dir;
    struct history *history; /* for the measures of continual learning; NULL: they are null */
    uint64_t now_ms;
};

/* All that status, metrics and the page show of one moment: plain values, half a megabyte, to be freed with free(). */
struct picture {
    struct snapshot s;
    struct streamlog_stats log;
    uint64_t disk_free_bytes, uncommitted;
    uint64_t published_s; /* the newest version; 0: not known yet */
    uint64_t stalled_ms;  /* how long commits have not got on */
    bool alarmed;
};
struct picture *picture_take(const struct report_source *source); /* by the core's owner */

struct report_reply { /* zeroed is empty; holds the message and what it borrows */
    union {
        Alv__ControlReply control;
        Alv__SignedManifest manifest;
        Alv__WatchReply watch;
    };
    char *json;
    struct buf bytes;
    Alv__SignedManifest *items, **pointers;
};
const ProtobufCMessage *report_message(const struct report_reply *reply);
void report_release(struct report_reply *reply);

bool report_answers(const Alv__Control *control); /* is this verb answered here? */
enum status report_control(const struct report_source *source, const Alv__Control *control, struct report_reply *out,
                           struct err *err);
enum status report_manifest(const struct report_source *source, const Alv__ManifestGet *get, struct report_reply *out,
                            struct err *err);
/* A watcher that is further behind than the core remembers. */
enum status report_watch(const struct report_source *source, const Alv__Watch *watch, struct report_reply *out,
                         struct err *err);

uint64_t report_newest(const struct core *core);  /* version number */
uint64_t report_session(const struct core *core); /* counter */

/* The parts: a new JSON value, or a status. status.c, versions.c and trace.c. */
json_t *report_status(const struct picture *picture);
enum status report_versions(const struct report_source *source, const Alv__Control *control, json_t **out,
                            struct err *err);
enum status report_show(const struct report_source *source, uint64_t number, json_t **out, struct err *err);
enum status report_explain(const struct report_source *source, const Alv__Control *control, json_t **out,
                           struct err *err);
/* The `n` newest verdicts of rounds before `before` (0: all), refused ones included: {"verdicts": [as EXPLAIN], "next"}. */
enum status report_verdicts(struct db *db, uint64_t before, uint32_t n, json_t **out, struct err *err);
/* The `n` newest held leases, as QUARANTINE_LIST. */
enum status report_held(struct db *db, uint32_t n, json_t **out, struct err *err);
enum status report_trace(const struct report_source *source, const Alv__Control *control, json_t **out,
                         struct err *err);

/* Segments of a version whose first loss was far above their domain's: outliers.c. */
struct manifest;
enum status report_outliers(struct db *db, const struct manifest *m, json_t **out, struct err *err);

json_t *json_number(double v); /* null when it is not finite */
json_t *json_count(uint64_t v);
json_t *json_digest(const struct digest *digest);

#endif
