#include "base/buf.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"

void *xmalloc(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "alluvium: out of memory (%zu bytes)\n", bytes);
        abort();
    }
    return p;
}

void *xcalloc(size_t count, size_t size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) {
        fprintf(stderr, "alluvium: out of memory (%zu x %zu bytes)\n", count, size);
        abort();
    }
    return p;
}

void *xrealloc(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p) {
        fprintf(stderr, "alluvium: out of memory (%zu bytes)\n", bytes);
        abort();
    }
    return p;
}

void *xrealloc_array(void *old, size_t count, size_t size)
{
    size_t bytes;
    CHECK(!__builtin_mul_overflow(count, size, &bytes));
    return xrealloc(old, bytes);
}

char *xstrdup(const char *s)
{
    return xmemdup(s, strlen(s) + 1);
}

void *xmemdup(const void *data, size_t len)
{
    void *p = xmalloc(len);
    if (len)
        memcpy(p, data, len);
    return p;
}

void buf_release(struct buf *buf)
{
    if (!buf)
        return;
    free(buf->data);
    *buf = (struct buf){0};
}

void buf_clear(struct buf *buf)
{
    buf->len = 0;
}

void buf_reserve(struct buf *buf, size_t more)
{
    size_t need;
    CHECK(!__builtin_add_overflow(buf->len, more, &need));
    if (need <= buf->cap)
        return;
    size_t cap = buf->cap < 64 ? 64 : buf->cap;
    while (cap < need)
        cap += cap / 2;
    buf->data = xrealloc(buf->data, cap);
    buf->cap = cap;
}

uint8_t *buf_extend(struct buf *buf, size_t more)
{
    buf_reserve(buf, more);
    uint8_t *at = buf->data + buf->len;
    buf->len += more;
    return at;
}

void buf_put(struct buf *buf, const void *data, size_t len)
{
    if (len)
        memcpy(buf_extend(buf, len), data, len);
}

static void put_le(struct buf *buf, uint64_t v, unsigned n)
{
    uint8_t *p = buf_extend(buf, n);
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void put_be(struct buf *buf, uint64_t v, unsigned n)
{
    uint8_t *p = buf_extend(buf, n);
    for (unsigned i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> (8 * (n - 1 - i)));
}

void buf_put_u8(struct buf *buf, uint8_t v)
{
    put_le(buf, v, 1);
}

void buf_put_u16(struct buf *buf, uint16_t v)
{
    put_le(buf, v, 2);
}

void buf_put_u32(struct buf *buf, uint32_t v)
{
    put_le(buf, v, 4);
}

void buf_put_u64(struct buf *buf, uint64_t v)
{
    put_le(buf, v, 8);
}

void buf_put_f64(struct buf *buf, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_le(buf, bits, 8);
}

void buf_put_f32(struct buf *buf, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    put_le(buf, bits, 4);
}

void buf_put_u16_be(struct buf *buf, uint16_t v)
{
    put_be(buf, v, 2);
}

void buf_put_u32_be(struct buf *buf, uint32_t v)
{
    put_be(buf, v, 4);
}

void buf_put_u64_be(struct buf *buf, uint64_t v)
{
    put_be(buf, v, 8);
}

void buf_put_blob(struct buf *buf, const void *data, size_t len)
{
    CHECK(len <= UINT32_MAX);
    buf_put_u32(buf, (uint32_t)len);
    buf_put(buf, data, len);
}

void buf_put_str(struct buf *buf, const char *s)
{
    buf_put_blob(buf, s, strlen(s));
}

void buf_vprintf(struct buf *buf, const char *format, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    CHECK(n >= 0);
    buf_reserve(buf, (size_t)n + 1);
    vsnprintf((char *)buf->data + buf->len, (size_t)n + 1, format, again);
    va_end(again);
    buf->len += (size_t)n;
}

void buf_printf(struct buf *buf, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    buf_vprintf(buf, format, args);
    va_end(args);
}

const char *buf_cstr(struct buf *buf)
{
    buf_reserve(buf, 1);
    buf->data[buf->len] = 0;
    return (const char *)buf->data;
}

struct bytes buf_bytes(const struct buf *buf)
{
    return (struct bytes){buf->data, buf->len};
}

struct reader reader_of(const void *data, size_t len)
{
    return (struct reader){.data = data, .len = len};
}

size_t reader_left(const struct reader *r)
{
    return r->failed ? 0 : r->len - r->at;
}

bool reader_done(const struct reader *r)
{
    return !r->failed && r->at == r->len;
}

const uint8_t *read_raw(struct reader *r, size_t len)
{
    if (r->failed || len > r->len - r->at) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *p = r->data + r->at;
    r->at += len;
    return p;
}

static uint64_t read_le(struct reader *r, unsigned n)
{
    const uint8_t *p = read_raw(r, n);
    uint64_t v = 0;
    for (unsigned i = 0; p && i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static uint64_t read_be(struct reader *r, unsigned n)
{
    const uint8_t *p = read_raw(r, n);
    uint64_t v = 0;
    for (unsigned i = 0; p && i < n; i++)
        v = v << 8 | p[i];
    return v;
}

uint8_t read_u8(struct reader *r)
{
    return (uint8_t)read_le(r, 1);
}

uint16_t read_u16(struct reader *r)
{
    return (uint16_t)read_le(r, 2);
}

uint32_t read_u32(struct reader *r)
{
    return (uint32_t)read_le(r, 4);
}

uint64_t read_u64(struct reader *r)
{
    return read_le(r, 8);
}

double read_f64(struct reader *r)
{
    uint64_t bits = read_le(r, 8);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

float read_f32(struct reader *r)
{
    uint32_t bits = (uint32_t)read_le(r, 4);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

uint16_t read_u16_be(struct reader *r)
{
    return (uint16_t)read_be(r, 2);
}

uint32_t read_u32_be(struct reader *r)
{
    return (uint32_t)read_be(r, 4);
}

uint64_t read_u64_be(struct reader *r)
{
    return read_be(r, 8);
}

struct bytes read_blob(struct reader *r)
{
    uint32_t len = read_u32(r);
    const uint8_t *p = read_raw(r, len);
    return (struct bytes){p, p ? len : 0};
}

bool read_str(struct reader *r, char *out, size_t size)
{
    struct bytes b = read_blob(r);
    if (r->failed || b.len >= size || memchr(b.data, 0, b.len)) {
        r->failed = true;
        if (size)
            out[0] = 0;
        return false;
    }
    memcpy(out, b.data, b.len);
    out[b.len] = 0;
    return true;
}

enum status file_open(const char *path, int *fd_out, struct err *err)
{
    struct stat at;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK); /* without effect on what is accepted */
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &at) || !S_ISREG(at.st_mode)) {
        close(fd);
        return err_set(err, ST_BAD_DATA, "%s: not a regular file", path);
    }
    *fd_out = fd;
    return ST_OK;
}

enum status file_read(const char *path, size_t bytes_max, struct buf *out, struct err *err)
{
    size_t start = out->len;
    int fd;
    enum status st = file_open(path, &fd, err);
    if (st)
        return st;
    for (;;) {
        buf_reserve(out, 64 * 1024);
        ssize_t n = read(fd, out->data + out->len, out->cap - out->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            st = err_set(err, ST_IO, "%s: cannot read: %s", path, strerror(errno));
            break;
        }
        if (n == 0)
            break;
        out->len += (size_t)n;
        if (out->len - start > bytes_max) {
            st = err_set(err, ST_LIMIT, "%s: larger than %zu bytes", path, bytes_max);
            break;
        }
    }
    close(fd);
    if (st)
        out->len = start;
    return st;
}

static enum status fsync_directory_of(const char *path, struct err *err)
{
    char *copy = xstrdup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(copy);
    if (fd < 0 || fsync(fd) < 0) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return err_set(err, ST_IO, "%s: cannot sync its directory: %s", path, strerror(e));
    }
    close(fd);
    return ST_OK;
}

enum status file_mark_durable(const char *path, unsigned mode, struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot create: %s", path, strerror(errno));
    close(fd);
    return fsync_directory_of(path, err);
}

enum status file_write_durable(const char *path, const void *data, size_t len, unsigned mode, struct err *err)
{
    struct buf tmp = {0};
    enum status st = ST_OK;
    buf_printf(&tmp, "%s.tmp.%ld", path, (long)getpid());
    const char *name = buf_cstr(&tmp);
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) {
        st = err_set(err, ST_IO, "%s: cannot create: %s", name, strerror(errno));
        goto done;
    }
    size_t at = 0;
    while (at < len) {
        ssize_t n = write(fd, (const uint8_t *)data + at, len - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            goto failed;
        at += (size_t)n;
    }
    if (fchmod(fd, mode) < 0 || fsync(fd) < 0)
        goto failed;
    int closed = close(fd);
    fd = -1;
    if (closed < 0 || rename(name, path) < 0)
        goto failed;
    st = fsync_directory_of(path, err);
    goto done;
failed:
    st = err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot write: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    unlink(name);
done:
    buf_release(&tmp);
    return st;
}
