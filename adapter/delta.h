/* delta.h - what a worker sends back: trained factors minus the parent's, encoded.
 *
 * Stateless: what rounding takes away is not carried to a later delta. The bytes depend on the factors, the coding and
 * the lease alone. Format at the head of delta.c. The blob's digest protects the bytes; this module refuses
 * everything that is well transported but wrong: another shape, another length, a value that is not finite.
 */
#ifndef ADAPTER_DELTA_H
#define ADAPTER_DELTA_H

#include <stdint.h>

#include "adapter/adapter.h"
#include "base/buf.h"
#include "base/ids.h"
#include "base/status.h"

enum delta_coding {
    DELTA_F32 = 1,
    DELTA_BF16 = 2, /* round to nearest, ties to even */
    DELTA_INT8 = 3, /* blocks of 64 with an f32 scale; stochastic rounding (unbiased), seeded by the lease */
};
enum { DELTA_BLOCK = 64 };

struct delta_head {
    enum delta_coding coding;
    struct digest shape; /* delta_shape_digest() */
    uint64_t floats;
    uint64_t session, lease; /* whose work this is: the coordinator session that granted the lease, and the lease */
    uint32_t generation;
};

void delta_shape_digest(const struct adapter_shape *shape, struct digest *out);
uint64_t delta_bytes(const struct adapter_shape *shape, enum delta_coding coding); /* of the whole file */
/* "layers.3 self_attn.q_proj B" for the index of a float, for messages. */
void delta_place(const struct adapter_shape *shape, uint64_t index, char *out, size_t size);

/* Appends the encoded delta. `head` supplies coding, session, lease and generation; shape and floats are filled in here.
 * ST_BAD_DATA (with the place) when a difference is not finite: training diverged. */
enum status delta_encode(const struct adapter_shape *shape, const float *trained, const float *parent,
                         const struct delta_head *head, uint64_t seed, struct buf *out, struct err *err);

/* Reads a delta from a file, any part of it, in flat memory. The descriptor is borrowed. One thread. */
struct delta_reader {
    int fd;
    struct adapter_shape shape;
    struct delta_head head;
    struct buf raw; /* the encoded bytes of the piece being read */
};

/* Checks head, shape and exact length. ST_BAD_DATA, ST_UNSUPPORTED (version or coding), ST_IO. */
enum status delta_reader_open(struct delta_reader *reader, int fd, uint64_t bytes, const struct adapter_shape *shape,
                              struct err *err);
/* Decodes floats [first, first + n) of the block. ST_BAD_DATA names the place of a value that is not finite. */
enum status delta_read(struct delta_reader *reader, uint64_t first, size_t n, float *out, struct err *err);
void delta_reader_release(struct delta_reader *reader);

/* The whole check before a delta is accepted, in one reading: every value, its norm (L2 over all floats), and, unless NULL, the
 * blob's digest (ST_CORRUPT: its bytes are not what its name says). */
enum status delta_check(int fd, uint64_t bytes, const struct adapter_shape *shape, const struct digest *digest,
                        struct delta_head *head, double *norm, struct err *err);

#endif
