/* streamlog.h - the line's database as the core sees it: loaded once, read ahead of a step, appended to in groups.
 *
 * A core's batches are appended in the order of their seq; a group of them becomes one synced commit, then the witness
 * is written, and only then does streamlog_durable() move: whoever answers peers waits for that (promise 1). With
 * streamlog_start() a thread of its own commits, so that the next group is decided while the disk works on this one.
 *
 * Threads: one owner calls everything here; the commit thread is private. streamlog_db() may be read from any thread.
 */
#ifndef COORDINATOR_STREAMLOG_H
#define COORDINATOR_STREAMLOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "coordinator/core/core.h"
#include "store/batch.h"
#include "store/db.h"

struct streamlog;

enum { STREAMLOG_GROUP_MAX = 16 << 20 }; /* bytes of one group: bounds memory and the stall of one commit */

/* Opens database and witness and compares them. `create`: both new. Statuses of db_open() and witness_compare(). */
enum status streamlog_open(const char *db_path, const char *witness_path, uint64_t reserve_bytes, bool create,
                           struct streamlog **out, struct err *err);
/* Commits what is left, stops the thread, closes. The status is that of the last commit; the memory goes in any case. */
enum status streamlog_close(struct streamlog **log, struct err *err);

struct db *streamlog_db(struct streamlog *log);

/* Feeds the core what it wants to have in memory (core_load_next). */
enum status streamlog_load(struct streamlog *log, struct core *core, struct err *err);

/* Commits `batch` (which is left empty) as a step of its own, before a core is loaded: for what is changed while nobody
 * decides. Statuses of streamlog_commit(). */
enum status streamlog_amend(struct streamlog *log, struct batch *batch, struct err *err);

/* Takes the operations of `batch` (which is left empty) into the open group. Seqs are dense: the first one after
 * opening follows the database's. */
void streamlog_append(struct streamlog *log, uint64_t seq, struct batch *batch);
bool streamlog_full(const struct streamlog *log); /* take no more work until a commit is done */

/* Commits the open group here and now. ST_NO_SPACE: nothing lost, call again. */
enum status streamlog_commit(struct streamlog *log, struct err *err);

/* Starts the commit thread, which writes to `notify_fd` (an eventfd) after each group. From then on
 * streamlog_handover() gives it the open group when it is idle; it retries by itself while the disk is full. */
enum status streamlog_start(struct streamlog *log, int notify_fd, struct err *err);
void streamlog_handover(struct streamlog *log);

/* Newest seq that is durable. ST_OK, or why no commit will succeed any more: stop and start again. */
enum status streamlog_durable(struct streamlog *log, uint64_t *seq, struct err *err);

struct streamlog_stats {
    uint64_t groups, batches, bytes; /* committed */
    double seconds;                  /* in commits, their sync included */
};
void streamlog_stats(struct streamlog *log, struct streamlog_stats *out);

/* What core_step() must know about each record of a batch: hashes, and what the dedupe family holds. The facts borrow
 * from `log` until the next call. NULL (with err) when the disk failed. */
const struct push_facts *streamlog_facts(struct streamlog *log, const struct sip_key *seed, struct domain_id domain,
                                         const Alv__PushBatch *batch, struct err *err);
/* The stored value of a record's id; empty when unknown. Borrows likewise. */
enum status streamlog_record(struct streamlog *log, const struct sip_key *seed, struct domain_id domain, const char *id,
                             struct bytes *value, struct err *err);

#endif
