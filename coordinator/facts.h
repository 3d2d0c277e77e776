/* facts.h - what a step of the core must know from disk, read just before it (the events of core.h).
 *
 * One owner, the loop's thread: between reading and stepping nothing else may be stepped. Facts borrow from the log.
 */
#ifndef COORDINATOR_FACTS_H
#define COORDINATOR_FACTS_H

#include "coordinator/core/core.h"
#include "coordinator/core/state.h"
#include "coordinator/streamlog.h"
#include "store/blob.h"

struct facts { /* zeroed is empty */
    struct version_facts version;
    struct buf value, ranges;
    struct digest pinned; /* a delta's blob: may not be collected before the step has recorded it */
    bool pin;
};

/* Fills the event's facts, pointers included. A message that names unknown things has none: the core refuses it. */
enum status facts_read(struct facts *facts, struct core *core, struct streamlog *log, struct blob_store *blobs,
                       const struct sip_key *seed, struct event *event, struct err *err);
void facts_release(struct facts *facts, struct blob_store *blobs);

/* From the database, as committed. */
enum status facts_session(struct streamlog *log, struct state_session *out, struct err *err);
enum status facts_counters(struct streamlog *log, struct state_counters *out, struct err *err);
enum status facts_domain(struct db *db, const char *name, struct domain_id *out, struct err *err); /* ST_NOT_FOUND */
/* Version `number`, decoded; borrows from `value`, which is cleared first. ST_NOT_FOUND. */
enum status facts_version(struct db *db, uint64_t number, struct buf *value, struct state_version *out,
                          struct err *err);

/* The number of the version at or after `from`, or with `back` at or before it: numbers have gaps where the line was restored.
 * ST_EMPTY: there is none. */
enum status facts_near_version(struct db *db, uint64_t from, bool back, uint64_t *number, struct err *err);

#endif
