/* purge.h - text that was deleted leaves the database's files, on a thread of its own.
 *
 * Carries out EFFECT_PURGE: rewrites the family of the stream, so that retracted text is in no file of the database any
 * more, its write-ahead log included (store/db.h, db_purge). The work grows with the whole log, so it is shared: whatever is
 * asked for while one runs is done by the next one together, and after each the disk has as long a rest as the work took.
 * When it cannot be done (no room) it is tried again. Pushes and commits go on meanwhile.
 */
#ifndef COORDINATOR_PURGE_H
#define COORDINATOR_PURGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "store/db.h"

struct purger;

/* `notify_fd`: an eventfd, written when purger_take() has news. */
enum status purger_start(struct db *db, int notify_fd, struct purger **out, struct err *err);
void purger_stop(struct purger **purger); /* breaks off: the core asks again after a restart. NULL is fine */

void purger_submit(struct purger *purger, uint64_t number); /* numbers rise */
bool purger_take(struct purger *purger, uint64_t *number);  /* newest number that is done, if it is news */

#endif
