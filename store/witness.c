/* The file, 8192 bytes: two slots at 0 and 4096 (a block each, so that a torn write spoils one only).
 *
 *     offset 0   8   "alvwit01"
 *            8   8   u64 writes: the slot with the larger number is the newer
 *           16   8   u64 applied_seq
 *           24  32   digest
 *           56  32   BLAKE2b-256 of bytes 0..55
 *     the rest of the block is zero.
 */
#include "store/witness.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/hash.h"

enum {
    SLOT_BYTES = 4096,
    SLOT_USED = 88,
    VALUE_SEEN = 64, /* of a value: a segment's begins with its record's hash, and the whole text was hashed for that */
};
static const char MAGIC[8] = "alvwit01";

struct witness {
    int fd;
    bool dead;
    uint64_t writes; /* the newest slot's number; the next goes into slot (writes + 1) % 2 */
    char *path;
};

/* Small parts are gathered: the hash takes them more cheaply by the block. */
static void gather(struct hasher *h, struct buf *parts, const struct batch_op *op)
{
    enum { GATHER = 4096 };
    size_t value_len = op->value.len < VALUE_SEEN ? op->value.len : VALUE_SEEN;
    buf_put_u8(parts, (uint8_t)op->kind);
    buf_put_u8(parts, op->family);
    buf_put_blob(parts, op->key.data, op->key.len);
    buf_put_u32(parts, (uint32_t)op->value.len);
    buf_put(parts, op->value.data, value_len);
    if (parts->len < GATHER)
        return;
    hasher_put(h, parts->data, parts->len);
    buf_clear(parts);
}

void witness_next(const struct witness_mark *previous, const struct batch *batch, struct witness_mark *out)
{
    struct buf parts = {0};
    struct batch_op op;
    struct hasher h;
    hasher_init(&h);
    buf_put(&parts, previous->digest.b, DIGEST_LEN);
    buf_put_u64(&parts, previous->applied_seq + 1);
    for (size_t at = 0; batch_next(batch, &at, &op);)
        gather(&h, &parts, &op);
    hasher_put(&h, parts.data, parts.len);
    out->applied_seq = previous->applied_seq + 1;
    hasher_end(&h, &out->digest);
    buf_release(&parts);
}

void witness_mark_encode(const struct witness_mark *mark, uint8_t out[WITNESS_MARK_LEN])
{
    struct buf b = {0};
    buf_put_u64(&b, mark->applied_seq);
    memcpy(out, b.data, 8);
    memcpy(out + 8, mark->digest.b, DIGEST_LEN);
    buf_release(&b);
}

bool witness_mark_decode(const void *data, size_t len, struct witness_mark *out)
{
    if (len != WITNESS_MARK_LEN)
        return false;
    struct reader r = reader_of(data, len);
    out->applied_seq = read_u64(&r);
    memcpy(out->digest.b, (const uint8_t *)data + 8, DIGEST_LEN);
    return true;
}

static bool slot_parse(const uint8_t *slot, uint64_t *writes, struct witness_mark *mark)
{
    struct digest sum;
    hash_blake2b(slot, SLOT_USED - DIGEST_LEN, &sum);
    if (memcmp(slot, MAGIC, sizeof MAGIC) || memcmp(slot + SLOT_USED - DIGEST_LEN, sum.b, DIGEST_LEN))
        return false;
    struct reader r = reader_of(slot + 8, 8);
    *writes = read_u64(&r);
    return witness_mark_decode(slot + 16, WITNESS_MARK_LEN, mark);
}

static enum status read_slots(struct witness *w, struct witness_mark *last, struct err *err)
{
    uint8_t file[2 * SLOT_BYTES];
    ssize_t n = pread(w->fd, file, sizeof file, 0);
    if (n < 0)
        return err_set(err, ST_IO, "%s: cannot read: %s", w->path, strerror(errno));
    bool any = false;
    for (int i = 0; i < 2 && n == (ssize_t)sizeof file; i++) {
        uint64_t writes;
        struct witness_mark mark;
        if (slot_parse(file + i * SLOT_BYTES, &writes, &mark) && (!any || writes > w->writes)) {
            any = true;
            w->writes = writes;
            *last = mark;
        }
    }
    if (!any)
        return err_set(err, ST_CORRUPT, "%s: not a witness file, or both its slots are damaged: restore a backup",
                       w->path);
    return ST_OK;
}

/* A new file has both slots written, so that later "no intact slot" can only mean damage. */
static enum status create_file(const char *path, struct err *err)
{
    struct buf file = {0};
    for (uint64_t writes = 0; writes < 2; writes++) {
        size_t start = file.len;
        struct digest sum, none = {0};
        buf_put(&file, MAGIC, sizeof MAGIC);
        buf_put_u64(&file, writes);
        buf_put_u64(&file, 0);
        buf_put(&file, none.b, DIGEST_LEN);
        hash_blake2b(file.data + start, file.len - start, &sum);
        buf_put(&file, sum.b, DIGEST_LEN);
        memset(buf_extend(&file, SLOT_BYTES - SLOT_USED), 0, SLOT_BYTES - SLOT_USED);
    }
    enum status status = file_write_durable(path, file.data, file.len, 0600, err);
    buf_release(&file);
    return status;
}

enum status witness_open(const char *path, bool create, struct witness **out, struct witness_mark *last,
                         struct err *err)
{
    enum status status = ST_OK;
    if (create && access(path, F_OK) && errno == ENOENT && (status = create_file(path, err)) != ST_OK)
        return status;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: cannot open the witness: %s", path,
                       strerror(errno));
    struct witness *w = xcalloc(1, sizeof *w);
    w->fd = fd;
    w->path = xstrdup(path);
    struct witness_mark mark = {0};
    status = read_slots(w, &mark, err);
    if (status != ST_OK) {
        witness_close(&w);
        return status;
    }
    *last = mark;
    *out = w;
    return ST_OK;
}

enum status witness_write(struct witness *w, const struct witness_mark *mark, struct err *err)
{
    if (w->dead)
        return err_set(err, ST_IO, "%s: an earlier write failed: start again", w->path);
    struct buf slot = {0};
    struct digest sum;
    uint8_t body[WITNESS_MARK_LEN];
    witness_mark_encode(mark, body);
    buf_put(&slot, MAGIC, sizeof MAGIC);
    buf_put_u64(&slot, w->writes + 1);
    buf_put(&slot, body, sizeof body);
    hash_blake2b(slot.data, slot.len, &sum);
    buf_put(&slot, sum.b, DIGEST_LEN);

    enum status status = ST_OK;
    off_t at = (off_t)((w->writes + 1) % 2 * SLOT_BYTES);
    if (FAILPOINT("witness.write") || pwrite(w->fd, slot.data, slot.len, at) != (ssize_t)slot.len ||
        FAILPOINT("witness.sync") || fdatasync(w->fd)) {
        w->dead = true; /* after a failed sync nobody knows what the disk holds */
        status = err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot write: %s", w->path, strerror(errno));
    } else
        w->writes++;
    buf_release(&slot);
    return status;
}

void witness_close(struct witness **wp)
{
    struct witness *w = *wp;
    *wp = NULL;
    if (!w)
        return;
    close(w->fd);
    free(w->path);
    free(w);
}

enum status witness_compare(const struct witness_mark *witness, const struct witness_mark *database, const char *what,
                            struct err *err)
{
    if (database->applied_seq < witness->applied_seq)
        return err_set(err, ST_CORRUPT,
                       "%s: a tail of the log is missing: the database ends at step %llu, its witness saw step %llu. "
                       "Acknowledged data was lost: do not start; restore a backup, or repair the disk first",
                       what, (unsigned long long)database->applied_seq, (unsigned long long)witness->applied_seq);
    if (database->applied_seq == witness->applied_seq && !digest_eq(&database->digest, &witness->digest))
        return err_set(err, ST_CORRUPT,
                       "%s: database and witness both end at step %llu but tell different histories: one of them was "
                       "copied from elsewhere; restore both from one backup",
                       what, (unsigned long long)database->applied_seq);
    return ST_OK;
}
