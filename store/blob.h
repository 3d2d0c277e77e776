/* blob.h - a directory of immutable files, each named by the BLAKE2b-256 of its bytes.
 *
 * A blob is there entirely or not at all: it is written beside, synced, verified, renamed into place, and the directory
 * synced. Writing what is already there is free. Nothing is ever changed in place, so a reader needs no lock.
 *
 *     DIR/ab/cdef...        blob abcdef... (first two hex digits are the directory)
 *     DIR/partial/abcdef... an upload in progress; survives a restart and is resumed
 *
 * Collection: the owner lists blobs, knows which are roots, and deletes the rest. A pin (a count in memory) protects a
 * blob while it is being sent or has been received but not yet recorded.
 *
 * Threads: a store may be used from several threads; a writer belongs to one.
 */
#ifndef STORE_BLOB_H
#define STORE_BLOB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"

enum { BLOB_PATH_SIZE = 4096 };

struct blob_store;
struct blob_writer;

/* Makes the directory when missing. Writes are refused with ST_NO_SPACE while less than `reserve_bytes` are free. */
enum status blob_store_open(const char *dir, uint64_t reserve_bytes, struct blob_store **out, struct err *err);
void blob_store_close(struct blob_store **store); /* no writers may be open */

/* Stores the bytes durably; `out` receives their digest. */
enum status blob_put(struct blob_store *store, const void *data, size_t len, struct digest *out, struct err *err);

bool blob_has(struct blob_store *store, const struct digest *digest);
enum status blob_size(struct blob_store *store, const struct digest *digest, uint64_t *bytes, struct err *err);
void blob_path(const struct blob_store *store, const struct digest *digest, char out[BLOB_PATH_SIZE]);

/* A read-only descriptor (the caller closes it; it stays good after a delete) and the size. ST_NOT_FOUND. */
enum status blob_open(struct blob_store *store, const struct digest *digest, int *fd, uint64_t *bytes, struct err *err);
/* Appends [offset, offset + len), less at the end of the blob; nothing past it. Not verified: the reader of a range
 * verifies the whole, or its chunk. */
enum status blob_read(struct blob_store *store, const struct digest *digest, uint64_t offset, size_t len,
                      struct buf *out, struct err *err);
/* Appends the whole blob, verified: ST_CORRUPT when it is not what its name says, ST_LIMIT above `bytes_max`. */
enum status blob_load(struct blob_store *store, const struct digest *digest, size_t bytes_max, struct buf *out,
                      struct err *err);
/* Reads and compares without keeping anything: for the scrub. */
enum status blob_verify(struct blob_store *store, const struct digest *digest, struct err *err);

/* A blob that arrives in pieces. The length and digest are known beforehand (from the sender). A partial left by an
 * earlier writer is resumed: blob_writer_at() says where the next byte belongs. ST_CONFLICT: another writer has it open.
 * ST_LIMIT never: the caller checks `bytes` against its own limit first. When the blob is already there, the
 * writer is complete at once: at == bytes, and commit succeeds. */
enum status blob_writer_open(struct blob_store *store, const struct digest *digest, uint64_t bytes,
                             struct blob_writer **out, struct err *err);
uint64_t blob_writer_at(const struct blob_writer *writer);
enum status blob_writer_put(struct blob_writer *writer, const void *data, size_t len, struct err *err);
/* Verifies, syncs, renames, syncs the directory; consumes the writer on ST_OK and on ST_VERIFY (wrong bytes: the partial
 * is removed). ST_USAGE: bytes are missing; the writer stays. */
enum status blob_writer_commit(struct blob_writer **writer, struct err *err);
void blob_writer_close(struct blob_writer **writer);   /* keeps the partial for later */
void blob_writer_abandon(struct blob_writer **writer); /* and removes it */

/* Pins are counted and forgotten at a restart. blob_delete: ST_AGAIN while pinned, ST_NOT_FOUND. */
void blob_pin(struct blob_store *store, const struct digest *digest);
void blob_unpin(struct blob_store *store, const struct digest *digest);
enum status blob_delete(struct blob_store *store, const struct digest *digest, struct err *err);

/* Visits every blob, or every partial, in no particular order; files that are not ours are passed over. The visitor may
 * delete what it sees; a status other than ST_OK stops the walk and is returned. */
typedef enum status (*blob_each_fn)(void *user, const struct digest *digest, uint64_t bytes, struct err *err);
enum status blob_list(struct blob_store *store, blob_each_fn each, void *user, struct err *err);
enum status blob_list_partials(struct blob_store *store, blob_each_fn each, void *user, struct err *err);
enum status blob_delete_partial(struct blob_store *store, const struct digest *digest, struct err *err);

#endif
