/* bulk.h - the bulk plane: blobs out, deltas in, segment text out, on a socket and a thread of its own.
 *
 * Large transfers never wait for a decision and no decision waits for them. The thread reads the database and the blob
 * store only; what it learns (a delta has arrived) is told by the worker itself on the work plane.
 *
 *     BLOB_GET      roots.h says who may have which blob
 *     BLOB_PUT      workers; the size must be that of a delta of this line; all uploads together are bounded: an
 *                   idle one makes room for a new one, else ST_AGAIN
 *     SEGMENTS_GET  workers; a reply is cut at LIMIT_SEGMENTS_BYTES of text; trimmed and erased segments are `missing`
 *     HELLO         answered from what is fixed for this run; the replay seed is told on the work plane only
 */
#ifndef COORDINATOR_BULK_H
#define COORDINATOR_BULK_H

#include "base/metrics.h"
#include "coordinator/core/state.h"
#include "coordinator/dir.h"
#include "coordinator/roots.h"
#include "net/keys.h"
#include "store/blob.h"
#include "store/db.h"

struct bulk;

struct bulk_config { /* all borrowed, for as long as the thread runs */
    void *zmq;
    struct keys *keys;
    struct metrics *metrics;
    const struct line_dir *dir;
    const char *host;
    uint16_t port;
    struct db *db;
    struct blob_store *blobs;
    struct roots *roots;
    struct state_session session;
    uint64_t upload_bytes; /* bound of all uploads not yet recorded by the core */
};

enum status bulk_start(const struct bulk_config *config, struct bulk **out, struct err *err);
void bulk_stop(struct bulk **bulk); /* partial uploads stay on disk */

/* Has the thread failed? ST_OK, or why it ended. */
enum status bulk_status(struct bulk *bulk, struct err *err);

/* Uploads that are whole but were never recorded, for the loop to delete: only there can a commit not come between. */
bool bulk_take_stale(struct bulk *bulk, struct digest *out);

#endif
