/* bulk.h - blobs in chunks over a connection to the bulk plane: resumable, checked chunk by chunk and as a whole.
 *
 * LIMIT_CHUNKS_IN_FLIGHT requests of LIMIT_CHUNK_BYTES are kept in flight (credit). Answers are taken in order; after a
 * lost connection or a silence, what is missing from the first gap on is asked again (go-back-n). A transfer that makes
 * no progress for stall_ms ends with ST_TIMEOUT and can be called again: it goes on where it stopped.
 */
#ifndef NET_BULK_H
#define NET_BULK_H

#include "base/ids.h"
#include "net/request.h"

struct bulk_options {
    int stall_ms;                                                /* 0: 60,000 */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* or NULL */
    void *user;
};

/* Gets blob `digest` of exactly `bytes` into `path`. Bytes go to "<path>.part", which is kept on failure and resumed
 * from (its content is hashed again); when the whole digest is right it is synced and renamed. ST_VERIFY: the bytes are
 * not the blob's (the part is removed). ST_NOT_FOUND: the server has no such blob. */
enum status bulk_get_file(struct conn *conn, const struct digest *digest, uint64_t bytes, const char *path,
                          const struct bulk_options *options, struct err *err);

/* Into memory: appends exactly `bytes` to `out`, or nothing. ST_LIMIT beyond bytes_max. */
enum status bulk_get(struct conn *conn, const struct digest *digest, uint64_t bytes, uint64_t bytes_max,
                     struct buf *out, const struct bulk_options *options, struct err *err);

/* Puts a blob and returns when the server holds it verified and durable. The server says where to go on, so a retry
 * (or a second worker with the same bytes) sends only what is missing. */
enum status bulk_put(struct conn *conn, const struct digest *digest, const void *data, uint64_t bytes,
                     const struct bulk_options *options, struct err *err);
enum status bulk_put_file(struct conn *conn, const struct digest *digest, const char *path,
                          const struct bulk_options *options, struct err *err);

/* ---- the server's side: what every holder of blobs must check, in one place */

/* ST_BAD_DATA / ST_LIMIT / ST_USAGE unless offset, length and chunk digest fit together and `total`. */
enum status bulk_check_put(const Alv__BlobPut *put, struct err *err);
/* Fills a chunk that borrows `data`; `digest` is room for its digest. */
void bulk_fill_chunk(Alv__BlobChunk *chunk, uint64_t offset, uint64_t total, const void *data, size_t len,
                     struct digest *digest);

#endif
