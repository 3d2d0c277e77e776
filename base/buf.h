/* buf.h - bytes that grow, bytes that are read with care, and memory that never comes back NULL.
 *
 * `struct buf` owns its memory: buf_init / buf_release; zeroed memory is an empty buffer. All integers are
 * little-endian on disk and wire unless a function says _be (keys that must sort).
 *
 * `struct reader` borrows. A read past the end sets `failed`, returns zeroes from then on, and never reads outside:
 * read a whole structure, then ask once.
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct buf {
    uint8_t *data;
    size_t len, cap;
};

struct bytes { /* borrowed, not owned */
    const uint8_t *data;
    size_t len;
};

void buf_release(struct buf *buf);
void buf_clear(struct buf *buf);                   /* keeps the memory */
void buf_reserve(struct buf *buf, size_t more);    /* room for `more` further bytes */
uint8_t *buf_extend(struct buf *buf, size_t more); /* appends `more` uninitialised bytes, returns where */
void buf_put(struct buf *buf, const void *data, size_t len);
void buf_put_u8(struct buf *buf, uint8_t v);
void buf_put_u16(struct buf *buf, uint16_t v);
void buf_put_u32(struct buf *buf, uint32_t v);
void buf_put_u64(struct buf *buf, uint64_t v);
void buf_put_f64(struct buf *buf, double v);
void buf_put_f32(struct buf *buf, float v);
void buf_put_u16_be(struct buf *buf, uint16_t v);
void buf_put_u32_be(struct buf *buf, uint32_t v);
void buf_put_u64_be(struct buf *buf, uint64_t v);
void buf_put_str(struct buf *buf, const char *s);                 /* u32 length, then the bytes, no NUL */
void buf_put_blob(struct buf *buf, const void *data, size_t len); /* u32 length, then the bytes */
void buf_printf(struct buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(struct buf *buf, const char *format, va_list args) __attribute__((format(printf, 2, 0)));
const char *buf_cstr(struct buf *buf); /* NUL after the data (not counted); valid until the next write */
struct bytes buf_bytes(const struct buf *buf);

struct reader {
    const uint8_t *data;
    size_t len, at;
    bool failed;
};

struct reader reader_of(const void *data, size_t len);
size_t reader_left(const struct reader *r);
bool reader_done(const struct reader *r); /* no failure and nothing left over */
uint8_t read_u8(struct reader *r);
uint16_t read_u16(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
double read_f64(struct reader *r);
float read_f32(struct reader *r);
uint16_t read_u16_be(struct reader *r);
uint32_t read_u32_be(struct reader *r);
uint64_t read_u64_be(struct reader *r);
const uint8_t *read_raw(struct reader *r, size_t len);   /* NULL when short */
struct bytes read_blob(struct reader *r);                /* u32 length + bytes; {NULL,0} when short */
bool read_str(struct reader *r, char *out, size_t size); /* u32 length + bytes into a C string; false: short,
                                                             too long or a NUL inside (sets failed) */

/* Allocation for our own, bounded sizes: aborts when memory is gone (a daemon is crash-only). Sizes that come from a
 * file or a peer are checked against a limit first. *_array check the product. */
void *xmalloc(size_t bytes);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t bytes);
void *xrealloc_array(void *old, size_t count, size_t size);
char *xstrdup(const char *s);
void *xmemdup(const void *data, size_t len);

/* Opens a regular file for reading. A directory, device or FIFO is ST_BAD_DATA at once: a FIFO would block, a device never end. */
enum status file_open(const char *path, int *fd_out, struct err *err);
/* Makes an empty file, or leaves the one that is there, in one step: killed, it leaves no other name behind. */
enum status file_mark_durable(const char *path, unsigned mode, struct err *err);
/* Reads a whole file of at most `bytes_max` (ST_LIMIT beyond). Appends to `out`. */
enum status file_read(const char *path, size_t bytes_max, struct buf *out, struct err *err);
/* Writes a whole file so that a crash leaves the old one or the new one: temporary name, fsync, rename, fsync of the
 * directory. `mode` is exact (umask not applied). */
enum status file_write_durable(const char *path, const void *data, size_t len, unsigned mode, struct err *err);

#endif
