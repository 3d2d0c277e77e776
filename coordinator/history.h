/* history.h - what each published version had learnt of each domain, kept in memory for the measures of continual.h.
 *
 * A version's row never changes, so it is read once. The newest HISTORY_ROWS are held: 9 bytes a domain each. Reading goes
 * forward in bounded steps, so that nobody waits for a long line; until it has caught up nothing is measured.
 * R[v][d] is relative to the domain's own base: minus what v had learnt, on the windows that both were scored on. So
 * versions that were scored on different windows are still compared like for like.
 * One owner, one thread.
 */
#ifndef COORDINATOR_HISTORY_H
#define COORDINATOR_HISTORY_H

#include <jansson.h>

#include "base/status.h"
#include "store/db.h"

enum { HISTORY_ROWS = 4096 };

struct history;
struct history *history_new(void);
void history_free(struct history *history);

/* Reads at most `rows` more versions, up to `newest`. */
enum status history_fill(struct history *history, struct db *db, uint64_t newest, uint32_t rows, struct err *err);

/* Adds "metrics" to a version's object and the domains' own to its rows (in the order of the manifest: ascending id), as
 * docs/reference/control.md says. Without a history, or before it has caught up, they are null. */
void history_add(const struct history *history, uint64_t version, json_t *object);

#endif
