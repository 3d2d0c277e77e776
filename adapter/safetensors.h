/* safetensors.h - the safetensors container: a checked reader over mapped bytes, and a writer with deterministic bytes.
 *
 * The layout is at the head of safetensors.c. Everything returned points into the mapping or the reader and lives until
 * safetensors_close(). Read-only after it was opened: threads may share it.
 */
#ifndef ADAPTER_SAFETENSORS_H
#define ADAPTER_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

enum { SAFETENSORS_RANK_MAX = 4 };

struct safetensors_limits {
    size_t header_bytes, tensors;
};
/* For an adapter (a peer's file), and for a base model (the operator's own; the format's own header limit). */
#define SAFETENSORS_ADAPTER ((struct safetensors_limits){1 << 20, 4096})
#define SAFETENSORS_BASE ((struct safetensors_limits){100000000, 65536})

struct safetensors_tensor {
    const char *name;                     /* printable ASCII */
    char dtype[8];                        /* "F32", "BF16", ...; one of those whose size we know */
    uint32_t rank;                        /* 0: a scalar */
    uint64_t shape[SAFETENSORS_RANK_MAX]; /* outermost first; 1 beyond rank */
    const uint8_t *data;
    uint64_t bytes;
};

struct safetensors;

enum status safetensors_open(const char *path, struct safetensors_limits limits, struct safetensors **out,
                             struct err *err);
/* The same over borrowed memory; `name` stands for the path in messages. */
enum status safetensors_parse(const void *data, size_t len, const char *name, struct safetensors_limits limits,
                              struct safetensors **out, struct err *err);
void safetensors_rest(const struct safetensors *file); /* as mapping_rest() */
void safetensors_close(struct safetensors *file);

size_t safetensors_n(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t i); /* in file order */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);

/* Writes `n` F32 tensors and the metadata {"format":"pt"}; the same tensors give the same bytes whatever their order in
 * `tensors` (they are sorted by name in place), and the bytes the reference library writes. Of each entry name, rank,
 * shape and data are read; `data` is f32 in the machine's order, which is little-endian. */
void safetensors_write(struct safetensors_tensor *tensors, size_t n, struct buf *out);

#endif
