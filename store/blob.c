#include "store/blob.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/hash.h"

enum { PIECE = 1 << 20, DIR_MAX = BLOB_PATH_SIZE - 128 };

struct pin {
    struct digest digest;
    uint32_t count;
};

struct blob_store {
    char *dir;
    uint64_t reserve_bytes;
    pthread_mutex_t mutex; /* guards the pins, and that nothing is deleted between look and pin */
    struct pin *pins;      /* few: transfers in progress */
    size_t n_pins, pins_cap;
};

struct blob_writer {
    struct blob_store *store;
    struct digest digest;
    uint64_t bytes, at;
    struct hasher hasher; /* over [0, at) */
    int fd;               /* of the partial, locked; -1: the blob was there already */
};

static enum status io_error(struct err *err, const char *path, const char *doing)
{
    return err_set(err, errno == ENOSPC || errno == EDQUOT ? ST_NO_SPACE : ST_IO, "%s: cannot %s: %s", path, doing,
                   strerror(errno));
}

void blob_path(const struct blob_store *store, const struct digest *digest, char out[BLOB_PATH_SIZE])
{
    char hex[DIGEST_HEX_SIZE];
    digest_hex(digest, hex);
    snprintf(out, BLOB_PATH_SIZE, "%s/%.2s/%s", store->dir, hex, hex + 2);
}

static void partial_path(const struct blob_store *store, const struct digest *digest, char out[BLOB_PATH_SIZE])
{
    char hex[DIGEST_HEX_SIZE];
    digest_hex(digest, hex);
    snprintf(out, BLOB_PATH_SIZE, "%s/partial/%s", store->dir, hex);
}

static enum status sync_dir(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return io_error(err, dir, "open");
    enum status status = fsync(fd) ? io_error(err, dir, "sync") : ST_OK;
    close(fd);
    return status;
}

/* All directories are made and synced before the first blob, so that none can vanish with a blob in it. */
static enum status make_dirs(const char *dir, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    if (mkdir(dir, 0700) && errno != EEXIST)
        return io_error(err, dir, "make");
    for (unsigned i = 0; i <= 256; i++) {
        if (i < 256)
            snprintf(path, sizeof path, "%s/%02x", dir, i);
        else
            snprintf(path, sizeof path, "%s/partial", dir);
        if (mkdir(path, 0700) && errno != EEXIST)
            return io_error(err, path, "make");
    }
    return sync_dir(dir, err);
}

enum status blob_store_open(const char *dir, uint64_t reserve_bytes, struct blob_store **out, struct err *err)
{
    if (strlen(dir) > DIR_MAX)
        return err_set(err, ST_LIMIT, "%s: path too long", dir);
    enum status status = make_dirs(dir, err);
    if (status != ST_OK)
        return status;
    struct blob_store *store = xcalloc(1, sizeof *store);
    store->dir = xstrdup(dir);
    store->reserve_bytes = reserve_bytes;
    CHECK(!pthread_mutex_init(&store->mutex, NULL));
    *out = store;
    return ST_OK;
}

void blob_store_close(struct blob_store **storep)
{
    struct blob_store *store = *storep;
    *storep = NULL;
    if (!store)
        return;
    pthread_mutex_destroy(&store->mutex);
    free(store->pins);
    free(store->dir);
    free(store);
}

/* ---- reading ---- */

enum status blob_open(struct blob_store *store, const struct digest *digest, int *fd, uint64_t *bytes, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    struct stat st;
    blob_path(store, digest, path);
    int got = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (got < 0)
        return errno == ENOENT ? err_set(err, ST_NOT_FOUND, "%s: no such blob", path) : io_error(err, path, "open");
    if (fstat(got, &st) || !S_ISREG(st.st_mode)) {
        close(got);
        return err_set(err, ST_CORRUPT, "%s: not a regular file", path);
    }
    *fd = got;
    *bytes = (uint64_t)st.st_size;
    return ST_OK;
}

enum status blob_size(struct blob_store *store, const struct digest *digest, uint64_t *bytes, struct err *err)
{
    int fd;
    enum status status = blob_open(store, digest, &fd, bytes, err);
    if (status == ST_OK)
        close(fd);
    return status;
}

bool blob_has(struct blob_store *store, const struct digest *digest)
{
    uint64_t bytes;
    return blob_size(store, digest, &bytes, NULL) == ST_OK;
}

/* Reads [offset, offset + len), which lies inside the file. */
static enum status read_exactly(int fd, const char *path, uint64_t offset, void *out, size_t len, struct err *err)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = pread(fd, (uint8_t *)out + got, len - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_error(err, path, "read");
        if (n == 0)
            return err_set(err, ST_CORRUPT, "%s: shorter than it was", path);
        got += (size_t)n;
    }
    return ST_OK;
}

enum status blob_read(struct blob_store *store, const struct digest *digest, uint64_t offset, size_t len,
                      struct buf *out, struct err *err)
{
    int fd;
    uint64_t bytes;
    char path[BLOB_PATH_SIZE];
    enum status status = blob_open(store, digest, &fd, &bytes, err);
    if (status != ST_OK)
        return status;
    blob_path(store, digest, path);
    if (offset > bytes)
        offset = bytes;
    if (len > bytes - offset)
        len = (size_t)(bytes - offset);
    size_t before = out->len;
    status = read_exactly(fd, path, offset, buf_extend(out, len), len, err);
    if (status != ST_OK)
        out->len = before;
    close(fd);
    return status;
}

/* Reads the whole blob in pieces, hashing; appends to `out` unless NULL. */
static enum status read_verified(struct blob_store *store, const struct digest *digest, uint64_t bytes_max,
                                 struct buf *out, struct err *err)
{
    int fd;
    uint64_t bytes;
    char path[BLOB_PATH_SIZE];
    enum status status = blob_open(store, digest, &fd, &bytes, err);
    if (status != ST_OK)
        return status;
    blob_path(store, digest, path);
    size_t before = out ? out->len : 0;
    uint8_t *piece = xmalloc(PIECE);
    struct hasher hasher;
    struct digest got;
    hasher_init(&hasher);
    if (bytes > bytes_max)
        status = err_set(err, ST_LIMIT, "%s: %llu bytes, at most %llu are expected", path, (unsigned long long)bytes,
                         (unsigned long long)bytes_max);
    for (uint64_t at = 0; at < bytes && status == ST_OK;) {
        size_t n = bytes - at < PIECE ? (size_t)(bytes - at) : PIECE;
        status = read_exactly(fd, path, at, piece, n, err);
        if (status == ST_OK)
            hasher_put(&hasher, piece, n);
        if (status == ST_OK && out)
            buf_put(out, piece, n);
        at += n;
    }
    hasher_end(&hasher, &got);
    if (status == ST_OK && !digest_eq(&got, digest))
        status = err_set(err, ST_CORRUPT, "%s: its bytes are not what its name says: restore it from a backup", path);
    if (status != ST_OK && out)
        out->len = before;
    free(piece);
    close(fd);
    return status;
}

enum status blob_load(struct blob_store *store, const struct digest *digest, size_t bytes_max, struct buf *out,
                      struct err *err)
{
    return read_verified(store, digest, bytes_max, out, err);
}

enum status blob_verify(struct blob_store *store, const struct digest *digest, struct err *err)
{
    return read_verified(store, digest, UINT64_MAX, NULL, err);
}

/* ---- writing ---- */

static enum status check_reserve(const struct blob_store *store, uint64_t bytes, struct err *err)
{
    struct statvfs fs;
    if (statvfs(store->dir, &fs))
        return io_error(err, store->dir, "ask for free space");
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (free_bytes < store->reserve_bytes || free_bytes - store->reserve_bytes < bytes)
        return err_set(err, ST_NO_SPACE, "%s: %llu MiB free, %llu MiB are kept in reserve, %llu MiB are wanted",
                       store->dir, (unsigned long long)(free_bytes >> 20),
                       (unsigned long long)(store->reserve_bytes >> 20), (unsigned long long)(bytes >> 20));
    return ST_OK;
}

/* Hashes what an earlier writer left. More than `bytes` cannot be ours: it starts again from nothing. */
static enum status resume(struct blob_writer *w, const char *path, struct err *err)
{
    struct stat st, named;
    if (fstat(w->fd, &st))
        return io_error(err, path, "stat");
    if (stat(path, &named) || named.st_ino != st.st_ino) /* finished by another between our open and our lock */
        return err_set(err, ST_CONFLICT, "%s: another transfer has just ended", path);
    if ((uint64_t)st.st_size > w->bytes)
        return ftruncate(w->fd, 0) ? io_error(err, path, "truncate") : ST_OK;
    uint8_t *piece = xmalloc(PIECE);
    enum status status = ST_OK;
    while (status == ST_OK && w->at < (uint64_t)st.st_size) {
        uint64_t left = (uint64_t)st.st_size - w->at;
        size_t n = left < PIECE ? (size_t)left : PIECE;
        status = read_exactly(w->fd, path, w->at, piece, n, err);
        if (status == ST_OK)
            hasher_put(&w->hasher, piece, n);
        w->at += n;
    }
    free(piece);
    return status;
}

enum status blob_writer_open(struct blob_store *store, const struct digest *digest, uint64_t bytes,
                             struct blob_writer **out, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    partial_path(store, digest, path);
    struct blob_writer *w =
        aligned_alloc(_Alignof(struct blob_writer), sizeof *w); /* the hasher's; more than malloc's */
    CHECK(w);
    *w = (struct blob_writer){.store = store, .digest = *digest, .bytes = bytes, .fd = -1};
    hasher_init(&w->hasher);
    enum status status = ST_OK;
    if (blob_has(store, digest))
        w->at = bytes;
    else if ((status = check_reserve(store, bytes, err)) == ST_OK) {
        w->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (w->fd < 0)
            status = io_error(err, path, "open");
        else if (flock(w->fd, LOCK_EX | LOCK_NB))
            status = err_set(err, ST_CONFLICT, "%s: another transfer is writing it", path);
        else
            status = resume(w, path, err);
    }
    if (status == ST_OK)
        *out = w;
    else
        blob_writer_close(&w);
    return status;
}

uint64_t blob_writer_at(const struct blob_writer *writer)
{
    return writer->at;
}

enum status blob_writer_put(struct blob_writer *w, const void *data, size_t len, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    partial_path(w->store, &w->digest, path);
    if (len > w->bytes - w->at)
        return err_set(err, ST_BAD_DATA, "%s: more bytes than the announced %llu", path, (unsigned long long)w->bytes);
    for (size_t put = 0; put < len;) {
        ssize_t n = FAILPOINT("blob.write")
                        ? (errno = EIO, -1)
                        : pwrite(w->fd, (const uint8_t *)data + put, len - put, (off_t)(w->at + put));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_error(err, path, "write"); /* w->at did not move: the same piece may be put again */
        put += (size_t)n;
    }
    hasher_put(&w->hasher, data, len);
    w->at += len;
    return ST_OK;
}

/* The partial is complete and verified: make it the blob, in an order that survives a cut at any point. */
static enum status install(struct blob_writer *w, struct err *err)
{
    char partial[BLOB_PATH_SIZE], path[BLOB_PATH_SIZE];
    partial_path(w->store, &w->digest, partial);
    blob_path(w->store, &w->digest, path);
    if (FAILPOINT("blob.sync") || fsync(w->fd))
        return io_error(err, partial, "sync");
    if (FAILPOINT("blob.rename") || rename(partial, path))
        return io_error(err, path, "rename to");
    *strrchr(path, '/') = 0;
    if (FAILPOINT("blob.sync_dir"))
        return err_set(err, ST_IO, "%s: cannot sync: failpoint", path);
    return sync_dir(path, err);
}

enum status blob_writer_commit(struct blob_writer **wp, struct err *err)
{
    struct blob_writer *w = *wp;
    if (w->at < w->bytes)
        return err_set(err, ST_USAGE, "blob of %llu bytes: only %llu are there", (unsigned long long)w->bytes,
                       (unsigned long long)w->at);
    if (w->fd < 0) { /* was there already; its directory entry may not be synced yet if its writer was cut off */
        char path[BLOB_PATH_SIZE];
        blob_path(w->store, &w->digest, path);
        *strrchr(path, '/') = 0;
        enum status status = sync_dir(path, err);
        if (status == ST_OK)
            blob_writer_close(wp);
        return status;
    }
    struct hasher copy = w->hasher;
    struct digest got;
    hasher_end(&copy, &got);
    if (!digest_eq(&got, &w->digest)) {
        char hex[DIGEST_HEX_SIZE];
        digest_hex(&w->digest, hex);
        blob_writer_abandon(wp);
        return err_set(err, ST_VERIFY, "blob %s: the bytes received have another digest: send it again from the start",
                       hex);
    }
    enum status status = install(w, err);
    if (status == ST_OK)
        blob_writer_close(wp);
    return status;
}

void blob_writer_close(struct blob_writer **wp)
{
    struct blob_writer *w = *wp;
    *wp = NULL;
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    free(w);
}

void blob_writer_abandon(struct blob_writer **wp)
{
    char path[BLOB_PATH_SIZE];
    if (*wp && (*wp)->fd >= 0) {
        partial_path((*wp)->store, &(*wp)->digest, path);
        unlink(path);
    }
    blob_writer_close(wp);
}

enum status blob_put(struct blob_store *store, const void *data, size_t len, struct digest *out, struct err *err)
{
    struct blob_writer *w;
    struct digest digest;
    hash_blake2b(data, len, &digest);
    enum status status = blob_writer_open(store, &digest, len, &w, err);
    if (status != ST_OK)
        return status;
    if (w->fd >= 0 && w->at > 0) { /* we hold all of it: an old partial saves nothing */
        w->at = 0;
        hasher_init(&w->hasher);
    }
    if (w->at < len)
        status = blob_writer_put(w, data, len, err);
    if (status == ST_OK)
        status = blob_writer_commit(&w, err);
    if (status == ST_OK)
        *out = digest;
    blob_writer_close(&w);
    return status;
}

/* ---- pins, deleting, listing ---- */

static struct pin *find_pin(struct blob_store *store, const struct digest *digest)
{
    for (size_t i = 0; i < store->n_pins; i++)
        if (digest_eq(&store->pins[i].digest, digest))
            return &store->pins[i];
    return NULL;
}

void blob_pin(struct blob_store *store, const struct digest *digest)
{
    pthread_mutex_lock(&store->mutex);
    struct pin *pin = find_pin(store, digest);
    if (!pin) {
        if (store->n_pins == store->pins_cap) {
            store->pins_cap = store->pins_cap ? 2 * store->pins_cap : 16;
            store->pins = xrealloc_array(store->pins, store->pins_cap, sizeof *store->pins);
        }
        pin = &store->pins[store->n_pins++];
        *pin = (struct pin){.digest = *digest};
    }
    pin->count++;
    pthread_mutex_unlock(&store->mutex);
}

void blob_unpin(struct blob_store *store, const struct digest *digest)
{
    pthread_mutex_lock(&store->mutex);
    struct pin *pin = find_pin(store, digest);
    CHECK(pin && pin->count > 0);
    if (--pin->count == 0)
        *pin = store->pins[--store->n_pins];
    pthread_mutex_unlock(&store->mutex);
}

enum status blob_delete(struct blob_store *store, const struct digest *digest, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    blob_path(store, digest, path);
    pthread_mutex_lock(&store->mutex);
    enum status status = ST_OK;
    if (find_pin(store, digest))
        status = err_set(err, ST_AGAIN, "%s: in use", path);
    else if (unlink(path))
        status = errno == ENOENT ? err_set(err, ST_NOT_FOUND, "%s: no such blob", path) : io_error(err, path, "delete");
    pthread_mutex_unlock(&store->mutex);
    return status;
}

enum status blob_delete_partial(struct blob_store *store, const struct digest *digest, struct err *err)
{
    char path[BLOB_PATH_SIZE];
    partial_path(store, digest, path);
    if (unlink(path) && errno != ENOENT)
        return io_error(err, path, "delete");
    return ST_OK;
}

/* Visits the files of one directory whose names, after `prefix`, are digests. */
static enum status list_dir(const char *dir, const char *prefix, blob_each_fn each, void *user, struct err *err)
{
    enum status status = ST_OK;
    struct dirent *entry;
    DIR *d = opendir(dir);
    if (!d)
        return errno == ENOENT ? ST_OK : io_error(err, dir, "list");
    while (status == ST_OK && (entry = readdir(d))) {
        char hex[NAME_MAX + 3];
        struct digest digest;
        struct stat st;
        snprintf(hex, sizeof hex, "%s%s", prefix, entry->d_name);
        if (digest_parse(hex, strlen(hex), &digest) && !fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) &&
            S_ISREG(st.st_mode))
            status = each(user, &digest, (uint64_t)st.st_size, err);
    }
    closedir(d);
    return status;
}

enum status blob_list(struct blob_store *store, blob_each_fn each, void *user, struct err *err)
{
    enum status status = ST_OK;
    for (unsigned i = 0; i < 256 && status == ST_OK; i++) {
        char dir[BLOB_PATH_SIZE], prefix[3];
        snprintf(prefix, sizeof prefix, "%02x", i);
        snprintf(dir, sizeof dir, "%s/%s", store->dir, prefix);
        status = list_dir(dir, prefix, each, user, err);
    }
    return status;
}

enum status blob_list_partials(struct blob_store *store, blob_each_fn each, void *user, struct err *err)
{
    char dir[BLOB_PATH_SIZE];
    snprintf(dir, sizeof dir, "%s/partial", store->dir);
    return list_dir(dir, "", each, user, err);
}
