/* Formats:  instance  32 hex digits, newline
 *           boot      decimal, newline
 *           session   decimal counter, space, 32 hex digits, newline
 *           commit    "ALVC" | u32 LE 1 | BLAKE2b-256 of the rest | packed DeltaCommit
 */
#include "worker/home.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/limits.h"
#include "base/log.h"
#include "proto/codec.h"
#include "proto/verbs.h"

enum { SMALL_FILE_MAX = 256, COMMIT_MAX = LIMIT_FRAME_BYTES, COMMIT_HEAD = 8 + DIGEST_LEN };

static const char *const family_names[HOME_FAMILIES] = {"payload", "lengths", "scores", "meta"};

struct path {
    char s[BLOB_PATH_SIZE + 32];
};

static struct path path_of(const struct home *home, const char *name)
{
    struct path path;
    snprintf(path.s, sizeof path.s, "%s/%s", home->dir, name);
    return path;
}

static enum status read_small(const struct home *home, const char *name, struct buf *out, struct err *err)
{
    struct path path = path_of(home, name);
    struct stat st;
    if (stat(path.s, &st) != 0 && errno == ENOENT)
        return err_set(err, ST_NOT_FOUND, "%s: no such file", path.s);
    enum status status = file_read(path.s, SMALL_FILE_MAX, out, err);
    buf_cstr(out);
    return status;
}

static enum status write_small(const struct home *home, const char *name, const char *text, struct err *err)
{
    struct path path = path_of(home, name);
    return file_write_durable(path.s, text, strlen(text), 0600, err);
}

static enum status corrupt(const struct home *home, const char *name, struct err *err)
{
    return err_set(err, ST_CORRUPT, "%s/%s is damaged. Remove the worker's directory to start as a new worker",
                   home->dir, name);
}

static enum status load_instance(struct home *home, struct err *err)
{
    struct buf text = {0};
    char hex[2 * 16 + 1], line[2 * 16 + 2];
    enum status status = read_small(home, "instance", &text, err);
    if (status == ST_OK && (text.len != 33 || !hex_decode((char *)text.data, 32, home->instance, 16)))
        status = corrupt(home, "instance", err);
    if (status == ST_NOT_FOUND) {
        random_bytes(home->instance, 16);
        hex_encode(home->instance, 16, hex);
        snprintf(line, sizeof line, "%.32s\n", hex);
        status = write_small(home, "instance", line, err);
    }
    buf_release(&text);
    return status;
}

static enum status raise_boot(struct home *home, struct err *err)
{
    struct buf text = {0};
    char line[32];
    enum status status = read_small(home, "boot", &text, err);
    if (status == ST_OK) {
        char *end;
        errno = 0;
        home->boot = strtoull((char *)text.data, &end, 10);
        if (errno || end == (char *)text.data || *end != '\n' || home->boot == UINT64_MAX)
            status = corrupt(home, "boot", err);
    }
    if (status == ST_NOT_FOUND)
        status = ST_OK;
    if (status == ST_OK) {
        snprintf(line, sizeof line, "%" PRIu64 "\n", ++home->boot);
        status = write_small(home, "boot", line, err);
    }
    buf_release(&text);
    return status;
}

static enum status load_session(struct home *home, struct err *err)
{
    struct buf text = {0};
    enum status status = read_small(home, "session", &text, err);
    if (status == ST_OK) {
        char *end;
        errno = 0;
        home->session_counter = strtoull((char *)text.data, &end, 10);
        size_t at = (size_t)(end - (char *)text.data);
        if (errno || at == 0 || text.len != at + 34 || *end != ' ' ||
            !hex_decode(end + 1, 32, home->session_incarnation, 16))
            status = corrupt(home, "session", err);
    }
    buf_release(&text);
    return status == ST_NOT_FOUND ? ST_OK : status;
}

enum status home_remember(struct home *home, uint64_t counter, const uint8_t incarnation[16], struct err *err)
{
    char hex[33], line[80];
    hex_encode(incarnation, 16, hex);
    hex[32] = 0;
    snprintf(line, sizeof line, "%" PRIu64 " %s\n", counter, hex);
    home->session_counter = counter;
    memcpy(home->session_incarnation, incarnation, 16);
    return write_small(home, "session", line, err);
}

/* A damaged commit is no reason to stop: the lease is redone by someone. */
static void load_commit(struct home *home)
{
    struct path path = path_of(home, "commit");
    struct buf bytes = {0};
    struct digest digest;
    struct err err;
    ProtobufCMessage *message = NULL;
    struct stat st;
    if (stat(path.s, &st) != 0)
        return;
    if (file_read(path.s, COMMIT_MAX, &bytes, &err) == ST_OK && bytes.len > COMMIT_HEAD &&
        memcmp(bytes.data, "ALVC\1\0\0\0", 8) == 0) {
        struct bytes body = {bytes.data + COMMIT_HEAD, bytes.len - COMMIT_HEAD};
        hash_blake2b(body.data, body.len, &digest);
        if (memcmp(digest.b, bytes.data + 8, DIGEST_LEN) == 0)
            codec_decode(VERB_DELTA_COMMIT, body, &message, &err);
    }
    if (message)
        home->pending = (Alv__DeltaCommit *)message;
    else
        log_warn("worker", "a kept delta cannot be read and is dropped file=%s", path.s);
    buf_release(&bytes);
}

enum status home_keep_commit(struct home *home, const Alv__DeltaCommit *commit, struct err *err)
{
    struct path path = path_of(home, "commit");
    struct buf bytes = {0};
    struct digest digest;
    size_t len = alv__delta_commit__get_packed_size(commit);
    buf_put(&bytes, "ALVC\1\0\0\0", 8);
    buf_extend(&bytes, DIGEST_LEN);
    alv__delta_commit__pack(commit, buf_extend(&bytes, len));
    hash_blake2b(bytes.data + COMMIT_HEAD, len, &digest);
    memcpy(bytes.data + 8, digest.b, DIGEST_LEN);
    enum status status = file_write_durable(path.s, bytes.data, bytes.len, 0600, err);
    buf_release(&bytes);
    return status;
}

void home_drop_commit(struct home *home, const struct digest *delta)
{
    struct path path = path_of(home, "commit");
    unlink(path.s); /* if it comes back after a power cut, it is committed again and answered as before */
    blob_delete(home->blobs, delta, NULL);
}

enum status home_erased(struct home *home, uint64_t *seq, struct err *err)
{
    struct buf value = {0};
    enum status status = db_get(home->db, HOME_META, "e", 1, &value, err);
    *seq = 0;
    if (status == ST_OK) {
        struct reader r = reader_of(value.data, value.len);
        *seq = read_u64(&r);
    }
    buf_release(&value);
    return status == ST_NOT_FOUND ? ST_OK : status;
}

enum status home_set_erased(struct home *home, uint64_t seq, struct err *err)
{
    struct batch batch = {0};
    struct buf value = {0};
    buf_put_u64(&value, seq);
    batch_put(&batch, HOME_META, "e", 1, value.data, value.len);
    enum status status = db_commit(home->db, &batch, true, err);
    batch_release(&batch);
    buf_release(&value);
    return status;
}

enum status home_forget(struct home *home, struct err *err)
{
    static const uint8_t first[1];
    uint8_t last[64]; /* past every key: those of scores begin with any byte, and are shorter */
    struct batch batch = {0};
    memset(last, 0xff, sizeof last);
    for (uint8_t family = 0; family < HOME_FAMILIES; family++)
        batch_delete_range(&batch, family, first, sizeof first, last, sizeof last);
    enum status status = db_commit(home->db, &batch, true, err);
    batch_release(&batch);
    return status;
}

struct collector {
    struct home *home;
    const struct digest *keep;
    size_t n;
};

static enum status collect_one(void *user, const struct digest *digest, uint64_t bytes, struct err *err)
{
    (void)bytes, (void)err;
    const struct collector *c = user;
    const Alv__DeltaCommit *pending = c->home->pending;
    if (pending && memcmp(pending->delta->digest.data, digest->b, DIGEST_LEN) == 0)
        return ST_OK;
    for (size_t i = 0; i < c->n; i++)
        if (digest_eq(&c->keep[i], digest))
            return ST_OK;
    blob_delete(c->home->blobs, digest, NULL); /* a blob that stays costs only room */
    return ST_OK;
}

void home_collect(struct home *home, const struct digest *keep, size_t n)
{
    struct collector collector = {home, keep, n};
    blob_list(home->blobs, collect_one, &collector, NULL);
}

static enum status make_dirs(const char *dir, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    if (snprintf(path, sizeof path, "%s", dir) >= (int)sizeof path - 64)
        return err_set(err, ST_USAGE, "the worker's directory name is too long");
    for (char *p = path + 1;; p++) {
        if (*p != '/' && *p != 0)
            continue;
        char c = *p;
        *p = 0;
        if (mkdir(path, 0700) != 0 && errno != EEXIST)
            return err_set(err, ST_IO, "mkdir %s: %s", path, strerror(errno));
        *p = c;
        if (c == 0)
            return ST_OK;
    }
}

static enum status take_lock(struct home *home, struct err *err)
{
    struct path path = path_of(home, "lock");
    home->lock_fd = open(path.s, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (home->lock_fd < 0)
        return err_set(err, ST_IO, "%s: %s", path.s, strerror(errno));
    if (flock(home->lock_fd, LOCK_EX | LOCK_NB) != 0)
        return err_set(err, ST_CONFLICT, "%s: another worker runs in this directory", home->dir);
    return ST_OK;
}

enum status home_open(const char *dir, uint64_t reserve_bytes, struct home *out, struct err *err)
{
    *out = (struct home){.lock_fd = -1};
    enum status status = make_dirs(dir, err);
    if (status != ST_OK)
        return status;
    snprintf(out->dir, sizeof out->dir, "%s", dir);
    const struct db_options options = {
        .families = family_names, .n_families = HOME_FAMILIES, .reserve_bytes = reserve_bytes, .create = true};
    struct path blobs = path_of(out, "blobs"), cache = path_of(out, "cache");
    if ((status = take_lock(out, err)) == ST_OK && (status = load_instance(out, err)) == ST_OK &&
        (status = raise_boot(out, err)) == ST_OK && (status = load_session(out, err)) == ST_OK &&
        (status = blob_store_open(blobs.s, reserve_bytes, &out->blobs, err)) == ST_OK)
        status = db_open(cache.s, &options, &out->db, err);
    if (status == ST_CORRUPT && out->blobs)
        err_set(err, status, "%s is damaged. Remove it: it is a cache, what is missing is fetched again", cache.s);
    if (status != ST_OK) {
        home_close(out);
        return status;
    }
    load_commit(out);
    return ST_OK;
}

enum status home_belongs(struct home *home, const uint8_t root[32], struct err *err)
{
    struct path path = path_of(home, "root");
    struct buf known = {0};
    enum status status = file_read(path.s, 32, &known, err);
    bool other = status == ST_OK && (known.len != 32 || memcmp(known.data, root, 32) != 0);
    buf_release(&known);
    if (status == ST_NOT_FOUND)
        return file_write_durable(path.s, root, 32, 0600, err);
    return other ? err_set(err, ST_CONFLICT, "%s is of a worker of another line: give this one a --dir of its own",
                           home->dir)
                 : status;
}

enum status home_look(const char *dir, struct db **out, struct err *err)
{
    struct home home = {.lock_fd = -1};
    const struct db_options options = {.families = family_names, .n_families = HOME_FAMILIES, .read_only = true};
    snprintf(home.dir, sizeof home.dir, "%s", dir);
    struct path cache = path_of(&home, "cache");
    enum status status = db_open(cache.s, &options, out, err);
    return status == ST_NOT_FOUND ? err_set(err, status, "%s: no worker has kept anything here", dir) : status;
}

void home_close(struct home *home)
{
    db_close(&home->db);
    blob_store_close(&home->blobs);
    codec_free((ProtobufCMessage *)home->pending);
    if (home->lock_fd >= 0)
        close(home->lock_fd);
    *home = (struct home){.lock_fd = -1};
}
