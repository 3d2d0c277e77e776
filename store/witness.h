/* witness.h - remembers how far a database had come, outside of it.
 *
 * A write-ahead log that lost its tail opens without complaint: the last records are simply not there. So after each
 * commit group, and before its acks leave, the shell writes (applied_seq, digest) here; at start it compares. The digest
 * is a chain over the batches, so that two histories with the same number of steps differ.
 *
 *     witness_next(&mark, batch, &mark);               mark goes into the batch's own last put (family meta)
 *     db_commit(db, batch, true, err);
 *     witness_write(witness, &mark, err);              then the acks
 *
 * A crash between the two leaves the database one group ahead of its witness, which is in order; a witness ahead of its
 * database is a lost tail. A failed write kills the object: stop and start again. One thread.
 */
#ifndef STORE_WITNESS_H
#define STORE_WITNESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"
#include "store/batch.h"

struct witness;

enum { WITNESS_MARK_LEN = 8 + DIGEST_LEN };

struct witness_mark { /* zeroed: nothing was applied yet */
    uint64_t applied_seq;
    struct digest digest;
};

/* The mark after `batch` (which does not yet hold the mark itself): applied_seq + 1 and BLAKE2b(previous digest,
 * applied_seq, operations: kind, family, key, length of the value and its first 64 bytes). Enough to tell two histories
 * apart, which is all it is for; damage is what checksums find. `out` may be `previous`. */
void witness_next(const struct witness_mark *previous, const struct batch *batch, struct witness_mark *out);

/* The mark as it is stored in the database. */
void witness_mark_encode(const struct witness_mark *mark, uint8_t out[WITNESS_MARK_LEN]);
bool witness_mark_decode(const void *data, size_t len, struct witness_mark *out);

/* Opens the file and reads the newest intact slot into `last`. `create`: makes a new file when there is none (a new
 * database only), else ST_NOT_FOUND. ST_CORRUPT: neither slot verifies. */
enum status witness_open(const char *path, bool create, struct witness **out, struct witness_mark *last,
                         struct err *err);
/* Writes the older of the two slots and waits until it is durable. */
enum status witness_write(struct witness *witness, const struct witness_mark *mark, struct err *err);
void witness_close(struct witness **witness);

/* ST_OK when the database is at or ahead of the witness. ST_CORRUPT: its tail is missing, or it is another history; the
 * text says what to do. `what` names the database. */
enum status witness_compare(const struct witness_mark *witness, const struct witness_mark *database, const char *what,
                            struct err *err);

#endif
