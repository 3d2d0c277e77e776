/* gguf.h - the GGUF v3 container: a checked reader over mapped bytes, and a writer with deterministic bytes.
 *
 * The layout is at the head of gguf.c. The reader trusts nothing: every length is compared with what is left of the file
 * before it is used, keys and tensor names are unique, tensors lie in file order without gaps, and the file ends where
 * the last one does. Errors name the file and the offset. Everything returned points into the mapping and lives until
 * gguf_close(). A reader is read-only after it was opened: threads may share it.
 */
#ifndef ADAPTER_GGUF_H
#define ADAPTER_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

enum gguf_kind { /* of a metadata value */
                 GGUF_U8,
                 GGUF_I8,
                 GGUF_U16,
                 GGUF_I16,
                 GGUF_U32,
                 GGUF_I32,
                 GGUF_F32,
                 GGUF_BOOL,
                 GGUF_STRING,
                 GGUF_ARRAY,
                 GGUF_U64,
                 GGUF_I64,
                 GGUF_F64,
                 GGUF_KINDS
};

/* Tensor types whose block size we know; model/quant.h says which of them can be dequantised. */
enum gguf_type {
    GGUF_T_F32 = 0,
    GGUF_T_F16 = 1,
    GGUF_T_Q4_0 = 2,
    GGUF_T_Q4_1 = 3,
    GGUF_T_Q5_0 = 6,
    GGUF_T_Q5_1 = 7,
    GGUF_T_Q8_0 = 8,
    GGUF_T_Q4_K = 12,
    GGUF_T_Q5_K = 13,
    GGUF_T_Q6_K = 14,
    GGUF_T_BF16 = 30
};

enum { GGUF_DIMS_MAX = 4, GGUF_TENSORS_MAX = 65536, GGUF_KEYS_MAX = 65536, GGUF_ALIGNMENT = 32 };

struct gguf_kv {
    struct bytes key;
    enum gguf_kind kind, element; /* element: of an array */
    uint64_t count;               /* of an array; else 1 */
    struct bytes raw;             /* the value as in the file; of an array the elements alone */
};

struct gguf_tensor {
    char name[64];
    uint32_t n_dims;
    uint64_t ne[GGUF_DIMS_MAX]; /* innermost first; 1 beyond n_dims */
    uint32_t type;              /* enum gguf_type, or another of the known ones */
    const uint8_t *data;
    uint64_t bytes;
};

struct gguf;

enum status gguf_open(const char *path, struct gguf **out, struct err *err);
/* The same over borrowed memory; `name` stands for the path in messages. */
enum status gguf_parse(const void *data, size_t len, const char *name, struct gguf **out, struct err *err);
void gguf_rest(const struct gguf *gguf); /* as mapping_rest() */
void gguf_close(struct gguf *gguf);

size_t gguf_n_kv(const struct gguf *gguf);
const struct gguf_kv *gguf_kv_at(const struct gguf *gguf, size_t i); /* in file order */
const struct gguf_kv *gguf_kv(const struct gguf *gguf, const char *key);
size_t gguf_n_tensors(const struct gguf *gguf);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *gguf, size_t i); /* in file order */
const struct gguf_tensor *gguf_tensor(const struct gguf *gguf, const char *name);

/* Typed values: ST_NOT_FOUND when the key is missing, ST_BAD_DATA when it is of another kind. */
enum status gguf_get_u32(const struct gguf *gguf, const char *key, uint32_t *out, struct err *err);
enum status gguf_get_f32(const struct gguf *gguf, const char *key, float *out, struct err *err);
enum status gguf_get_bool(const struct gguf *gguf, const char *key, bool *out, struct err *err);
enum status gguf_get_string(const struct gguf *gguf, const char *key, struct bytes *out, struct err *err);
/* An array of strings as `*n` views, to be freed by the caller. */
enum status gguf_get_strings(const struct gguf *gguf, const char *key, struct bytes **out, size_t *n, struct err *err);

/* "Q4_1"; NULL for a type the container does not know. Values and bytes of one block of it. */
const char *gguf_type_name(uint32_t type);
void gguf_type_block(uint32_t type, uint32_t *values, uint32_t *bytes);

/* Writer. Zeroed memory is an empty file; declare metadata and tensors in order, then take the header and append each
 * tensor's bytes followed by gguf_padding(bytes) zero bytes. */
struct gguf_writer {
    struct buf kv, infos;
    uint64_t n_kv, n_tensors, data_bytes;
};
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_put_f32(struct gguf_writer *w, const char *key, float v);
void gguf_put_string(struct gguf_writer *w, const char *key, const char *v);
void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv); /* copies one from a reader */
/* `name` below 64 bytes, ne[0] a multiple of the type's block. Returns the tensor's bytes. */
uint64_t gguf_put_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *ne);
void gguf_put_header(struct gguf_writer *w, struct buf *out); /* up to the first tensor's first byte */
size_t gguf_padding(uint64_t bytes);
void gguf_writer_release(struct gguf_writer *w);

#endif
