#include "net/bulk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/limits.h"

enum {
    STALL_MS = 60 * 1000,
    SILENCE_MS = 15 * 1000, /* then what is missing is asked for again */
    SETTLE_MS = 100,        /* between questions whether the server has verified the whole */
};

/* ---- the server's side */

enum status bulk_check_put(const Alv__BlobPut *put, struct err *err)
{
    struct digest d;
    if (put->offset > put->total || put->data.len > put->total - put->offset)
        return err_set(err, ST_BAD_DATA, "chunk at %llu passes the blob's end", (unsigned long long)put->offset);
    if (put->data.len == 0)
        return ST_OK;
    hash_blake2b(put->data.data, put->data.len, &d);
    if (put->chunk_digest.len != DIGEST_LEN || memcmp(d.b, put->chunk_digest.data, DIGEST_LEN))
        return err_set(err, ST_VERIFY, "chunk at %llu does not match its digest", (unsigned long long)put->offset);
    return ST_OK;
}

void bulk_fill_chunk(Alv__BlobChunk *chunk, uint64_t offset, uint64_t total, const void *data, size_t len,
                     struct digest *digest)
{
    alv__blob_chunk__init(chunk);
    hash_blake2b(data, len, digest);
    chunk->offset = offset;
    chunk->total = total;
    chunk->data = (ProtobufCBinaryData){len, (uint8_t *)(uintptr_t)data}; /* protobuf-c has no const; it only reads */
    chunk->chunk_digest = (ProtobufCBinaryData){DIGEST_LEN, digest->b};
}

/* ---- the state of one transfer */

struct transfer {
    struct conn *conn;
    const struct digest *digest;
    uint64_t total, done, asked;          /* done: received or acknowledged; asked: requested or sent. done <= asked */
    uint64_t last_id;                     /* of the newest request */
    uint64_t first_id;                    /* replies to older requests are not ours */
    uint64_t generation;                  /* of the connection `asked` was asked on */
    uint64_t moved_ms, heard_ms, hold_ms; /* progress; progress or go-back; do not ask before */
    bool complete;                        /* put: verified and durable there */
    struct bulk_options options;
    /* get: where bytes go */
    int fd;
    uint8_t *into;
    struct hasher hasher;
    /* put: where they come from */
    const uint8_t *from;
    uint8_t *chunk;
};

static void begin(struct transfer *t, struct conn *conn, const struct digest *digest, uint64_t total,
                  const struct bulk_options *options)
{
    *t = (struct transfer){.conn = conn, .digest = digest, .total = total, .fd = -1};
    if (options)
        t->options = *options;
    if (t->options.stall_ms <= 0)
        t->options.stall_ms = STALL_MS;
    t->first_id = conn_next_id(conn);
    t->moved_ms = t->heard_ms = clock_ms();
}

static void moved(struct transfer *t, uint64_t done)
{
    t->done = done;
    t->moved_ms = t->heard_ms = clock_ms();
    if (t->asked < done)
        t->asked = done;
    if (t->options.progress)
        t->options.progress(t->options.user, done, t->total);
}

static void go_back(struct transfer *t)
{
    t->asked = t->done;
    t->heard_ms = clock_ms();
}

static size_t chunk_at(const struct transfer *t, uint64_t offset)
{
    uint64_t left = t->total - offset;
    return left < LIMIT_CHUNK_BYTES ? (size_t)left : LIMIT_CHUNK_BYTES;
}

/* An Error in answer to one of our requests. ST_OK: go on (after a pause). */
static enum status on_error(struct transfer *t, const Alv__Error *e, struct err *err)
{
    enum status st = codec_error_status(e, err);
    if (st != ST_AGAIN)
        return err_prefix(err, st, "%s", conn_where(t->conn));
    go_back(t);
    t->hold_ms = clock_ms() + (e->retry_ms > SETTLE_MS ? e->retry_ms : SETTLE_MS);
    return ST_OK;
}

/* Drives a transfer: `ask` sends the request for t->asked and moves it on, `take` uses a reply. */
struct direction {
    uint16_t reply;
    enum status (*ask)(struct transfer *t, struct err *err);
    enum status (*take)(struct transfer *t, const ProtobufCMessage *reply, struct err *err);
    bool (*finished)(const struct transfer *t);
};

static enum status ask_ahead(struct transfer *t, const struct direction *way, struct err *err)
{
    enum status st = ST_OK;
    uint64_t window = (uint64_t)LIMIT_CHUNKS_IN_FLIGHT * LIMIT_CHUNK_BYTES;
    while (!st && t->asked < t->total && t->asked - t->done < window)
        st = way->ask(t, err);
    return st == ST_AGAIN ? ST_OK : st;
}

static enum status step(struct transfer *t, const struct direction *way, struct err *err)
{
    enum conn_event event;
    struct reply r = {0};
    uint64_t now = clock_ms();
    int wait = now < t->hold_ms ? (int)(t->hold_ms - now) : SETTLE_MS;
    enum status st = conn_recv(t->conn, wait, &event, &r, err);
    if (st)
        return st;
    if (event == CONN_REFUSED)
        return ST_DENIED;
    if (event == CONN_REPLY && r.request_id >= t->first_id) {
        if (r.verb == VERB_ERROR)
            st = on_error(t, (const Alv__Error *)r.message, err);
        else if (r.verb == way->reply)
            st = way->take(t, r.message, err);
        if (r.request_id == t->last_id && t->asked > t->done)
            go_back(t); /* all is answered, and there is a gap */
    }
    codec_free(r.message);
    return st;
}

static enum status run(struct transfer *t, const struct direction *way, struct err *err)
{
    enum status st = ST_OK;
    while (!st && !way->finished(t)) {
        uint64_t now = clock_ms(), end = t->moved_ms + (uint64_t)t->options.stall_ms;
        if (now >= end)
            return err_set(err, ST_TIMEOUT, "%s: %llu of %llu bytes, then nothing for %d ms", conn_where(t->conn),
                           (unsigned long long)t->done, (unsigned long long)t->total, t->options.stall_ms);
        st = conn_ready(t->conn, (int)(end - now), err);
        if (st)
            break;
        if (t->generation != conn_generation(t->conn) || now - t->heard_ms >= SILENCE_MS) {
            t->generation = conn_generation(t->conn);
            go_back(t);
        }
        if (now >= t->hold_ms)
            st = ask_ahead(t, way, err);
        if (!st)
            st = step(t, way, err);
    }
    return st;
}

/* ---- get */

static enum status ask_chunk(struct transfer *t, struct err *err)
{
    Alv__BlobGet get = ALV__BLOB_GET__INIT;
    get.digest = (ProtobufCBinaryData){DIGEST_LEN, (uint8_t *)(uintptr_t)t->digest->b};
    get.offset = t->asked;
    get.len = (uint32_t)chunk_at(t, t->asked);
    uint64_t id = conn_next_id(t->conn);
    enum status st = conn_send(t->conn, VERB_BLOB_GET, id, &get.base, err);
    if (st)
        return st;
    t->asked += get.len;
    t->last_id = id;
    return ST_OK;
}

static enum status store(struct transfer *t, const uint8_t *data, size_t len, struct err *err)
{
    if (t->into) {
        memcpy(t->into + t->done, data, len);
        return ST_OK;
    }
    for (size_t at = 0; at < len;) {
        ssize_t n = pwrite(t->fd, data + at, len - at, (off_t)(t->done + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "cannot write a blob: %s", strerror(errno));
        at += (size_t)n;
    }
    return ST_OK;
}

static enum status take_chunk(struct transfer *t, const ProtobufCMessage *reply, struct err *err)
{
    const Alv__BlobChunk *chunk = (const Alv__BlobChunk *)reply;
    struct digest d;
    if (chunk->total != t->total)
        return err_set(err, ST_VERIFY, "%s: the blob has %llu bytes there, not %llu", conn_where(t->conn),
                       (unsigned long long)chunk->total, (unsigned long long)t->total);
    if (chunk->offset != t->done || chunk->data.len != chunk_at(t, t->done))
        return ST_OK; /* after a gap, or asked for twice */
    hash_blake2b(chunk->data.data, chunk->data.len, &d);
    if (memcmp(d.b, chunk->chunk_digest.data, DIGEST_LEN))
        return err_set(err, ST_VERIFY, "%s: a chunk at %llu does not match its digest", conn_where(t->conn),
                       (unsigned long long)chunk->offset);
    enum status st = store(t, chunk->data.data, chunk->data.len, err);
    if (!st) {
        hasher_put(&t->hasher, chunk->data.data, chunk->data.len);
        moved(t, t->done + chunk->data.len);
    }
    return st;
}

static bool all_received(const struct transfer *t)
{
    return t->done == t->total;
}

static const struct direction getting = {VERB_BLOB_CHUNK, ask_chunk, take_chunk, all_received};

/* The end of every get: the bytes are the blob's, or they are refused. */
static enum status verify(struct transfer *t, struct err *err)
{
    struct digest d;
    hasher_end(&t->hasher, &d);
    return digest_eq(&d, t->digest)
               ? ST_OK
               : err_set(err, ST_VERIFY, "%s: the blob's bytes do not match its digest", conn_where(t->conn));
}

enum status bulk_get(struct conn *conn, const struct digest *digest, uint64_t bytes, uint64_t bytes_max,
                     struct buf *out, const struct bulk_options *options, struct err *err)
{
    struct transfer t;
    size_t start = out->len;
    if (bytes > bytes_max)
        return err_set(err, ST_LIMIT, "a blob of %llu bytes; at most %llu", (unsigned long long)bytes,
                       (unsigned long long)bytes_max);
    begin(&t, conn, digest, bytes, options);
    hasher_init(&t.hasher);
    t.into = buf_extend(out, (size_t)bytes);
    enum status st = run(&t, &getting, err);
    if (!st)
        st = verify(&t, err);
    if (st)
        out->len = start;
    return st;
}

/* What an earlier attempt left in the part file, hashed. Whole chunks only. */
static enum status resume(struct transfer *t, const char *part, struct err *err)
{
    struct stat at;
    if (fstat(t->fd, &at) < 0)
        return err_set(err, ST_IO, "%s: cannot stat: %s", part, strerror(errno));
    uint64_t have = (uint64_t)at.st_size > t->total ? 0 : (uint64_t)at.st_size;
    if (have < t->total)
        have -= have % LIMIT_CHUNK_BYTES;
    if (ftruncate(t->fd, (off_t)have) < 0)
        return err_set(err, ST_IO, "%s: cannot cut: %s", part, strerror(errno));
    uint8_t *piece = xmalloc(LIMIT_CHUNK_BYTES);
    enum status st = ST_OK;
    uint64_t at_byte = 0;
    while (!st && at_byte < have) {
        ssize_t n = pread(t->fd, piece, LIMIT_CHUNK_BYTES, (off_t)at_byte);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            st = err_set(err, ST_IO, "%s: cannot read back: %s", part, n ? strerror(errno) : "it got shorter");
        else
            hasher_put(&t->hasher, piece, (size_t)n), at_byte += (uint64_t)n;
    }
    free(piece);
    t->done = t->asked = at_byte;
    return st;
}

static enum status settle_file(struct transfer *t, const char *part, const char *path, struct err *err)
{
    enum status st = verify(t, err);
    if (st) {
        unlink(part); /* nothing of it can be trusted */
        return st;
    }
    if (fsync(t->fd) < 0 || rename(part, path) < 0)
        return err_set(err, ST_IO, "%s: cannot finish: %s", path, strerror(errno));
    char *slash = strrchr(path, '/');
    char *dir = slash ? xmemdup(path, (size_t)(slash - path) + 2) : xstrdup(".");
    if (slash)
        dir[slash - path + 1] = 0;
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        st = err_set(err, ST_IO, "%s: cannot sync: %s", dir, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(dir);
    return st;
}

enum status bulk_get_file(struct conn *conn, const struct digest *digest, uint64_t bytes, const char *path,
                          const struct bulk_options *options, struct err *err)
{
    struct transfer t;
    struct buf part = {0};
    begin(&t, conn, digest, bytes, options);
    hasher_init(&t.hasher);
    buf_printf(&part, "%s.part", path);
    t.fd = open(buf_cstr(&part), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    enum status st = t.fd < 0 ? err_set(err, ST_IO, "%s: cannot create: %s", buf_cstr(&part), strerror(errno)) : ST_OK;
    if (!st)
        st = resume(&t, buf_cstr(&part), err);
    if (!st)
        st = run(&t, &getting, err);
    if (!st)
        st = settle_file(&t, buf_cstr(&part), path, err);
    if (t.fd >= 0)
        close(t.fd);
    buf_release(&part);
    return st;
}

/* ---- put */

static enum status chunk_bytes(struct transfer *t, size_t len, const uint8_t **out, struct err *err)
{
    if (t->from) {
        *out = t->from + t->asked;
        return ST_OK;
    }
    for (size_t at = 0; at < len;) {
        ssize_t n = pread(t->fd, t->chunk + at, len - at, (off_t)(t->asked + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(err, ST_IO, "cannot read the blob to send: %s", n ? strerror(errno) : "it got shorter");
        at += (size_t)n;
    }
    *out = t->chunk;
    return ST_OK;
}

static void fill_put(const struct transfer *t, Alv__BlobPut *put)
{
    alv__blob_put__init(put);
    put->digest = (ProtobufCBinaryData){DIGEST_LEN, (uint8_t *)(uintptr_t)t->digest->b};
    put->total = t->total;
}

static enum status send_chunk(struct transfer *t, struct err *err)
{
    Alv__BlobPut put;
    struct digest d;
    size_t len = chunk_at(t, t->asked);
    const uint8_t *data = NULL;
    enum status st = chunk_bytes(t, len, &data, err);
    if (st)
        return st;
    fill_put(t, &put);
    hash_blake2b(data, len, &d);
    put.offset = t->asked;
    put.data = (ProtobufCBinaryData){len, (uint8_t *)(uintptr_t)data};
    put.chunk_digest = (ProtobufCBinaryData){DIGEST_LEN, d.b};
    uint64_t id = conn_next_id(t->conn);
    st = conn_send(t->conn, VERB_BLOB_PUT, id, &put.base, err);
    if (st)
        return st;
    t->asked += len;
    t->last_id = id;
    return ST_OK;
}

static enum status take_ok(struct transfer *t, const ProtobufCMessage *reply, struct err *err)
{
    const Alv__BlobPutOk *ok = (const Alv__BlobPutOk *)reply;
    if (ok->next > t->total || (ok->complete && ok->next != t->total))
        return err_set(err, ST_BAD_DATA, "%s: acknowledges bytes that the blob does not have", conn_where(t->conn));
    t->complete = ok->complete;
    if (ok->next > t->done || ok->complete)
        moved(t, ok->next);
    return ST_OK;
}

static bool all_sent(const struct transfer *t)
{
    return t->complete || t->done == t->total;
}

static const struct direction putting = {VERB_BLOB_PUT_OK, send_chunk, take_ok, all_sent};

/* Asks the server where to go on, or whether it is content. */
static enum status ask_server(struct transfer *t, struct err *err)
{
    Alv__BlobPut put;
    ProtobufCMessage *reply = NULL;
    fill_put(t, &put);
    enum status st = conn_call(t->conn, VERB_BLOB_PUT, &put.base, t->options.stall_ms, &reply, err);
    if (st)
        return st;
    const Alv__BlobPutOk *ok = (const Alv__BlobPutOk *)reply;
    t->done = 0; /* the server knows best, even when it lost some */
    st = take_ok(t, reply, err);
    if (!st)
        t->done = t->asked = ok->next;
    codec_free(reply);
    return st;
}

static enum status put(struct transfer *t, struct err *err)
{
    uint64_t best = 0, since = clock_ms();
    enum status st = ask_server(t, err);
    while (!st && !t->complete) {
        t->generation = conn_generation(t->conn);
        st = run(t, &putting, err);
        if (!st && !t->complete)
            st = ask_server(t, err);
        if (t->done > best)
            best = t->done, since = clock_ms();
        if (!st && !t->complete && clock_ms() - since > (uint64_t)t->options.stall_ms)
            st = err_set(err, ST_TIMEOUT, "%s: holds all bytes, but does not confirm them", conn_where(t->conn));
        if (!st && !t->complete && t->done == t->total) { /* it is still verifying: wait, but hear the stop flag */
            t->hold_ms = clock_ms() + SETTLE_MS;
            st = step(t, &putting, err);
        }
    }
    return st;
}

enum status bulk_put(struct conn *conn, const struct digest *digest, const void *data, uint64_t bytes,
                     const struct bulk_options *options, struct err *err)
{
    static const uint8_t nothing;
    struct transfer t;
    begin(&t, conn, digest, bytes, options);
    t.from = bytes ? data : &nothing;
    return put(&t, err);
}

enum status bulk_put_file(struct conn *conn, const struct digest *digest, const char *path,
                          const struct bulk_options *options, struct err *err)
{
    struct transfer t;
    struct stat at;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &at) < 0) {
        enum status st = err_set(err, ST_IO, "%s: cannot open: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return st;
    }
    begin(&t, conn, digest, (uint64_t)at.st_size, options);
    t.fd = fd;
    t.chunk = xmalloc(LIMIT_CHUNK_BYTES);
    enum status st = put(&t, err);
    free(t.chunk);
    close(fd);
    return st;
}
