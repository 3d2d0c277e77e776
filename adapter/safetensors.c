/* safetensors (https://github.com/huggingface/safetensors):
 *
 *   8  N, little-endian    N  header, JSON, beginning with '{', padded with spaces    then the data up to the file's end
 *   header: {"__metadata__": {string: string}, NAME: {"dtype": D, "shape": [...], "data_offsets": [begin, end]}, ...}
 *
 * Offsets count from the data's start; ordered by them the tensors touch, overlap nowhere and fill the file exactly.
 * Row-major. The writer orders by name (one dtype) and pads the header to 8 bytes, as the reference does.
 */
#include "adapter/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "adapter/mapping.h"
#include "base/check.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is copied as it lies in memory");

struct safetensors {
    struct mapping map; /* empty when the bytes are borrowed */
    json_t *header;     /* owns the names */
    struct safetensors_tensor *tensors;
    const struct safetensors_tensor **sorted;
    size_t n;
    char *name;
};

static unsigned dtype_bytes(const char *dtype) /* 0: unknown */
{
    static const struct {
        const char *name;
        unsigned bytes;
    } known[] = {{"F64", 8}, {"I64", 8}, {"U64", 8},     {"F32", 4},     {"I32", 4},
                 {"U32", 4}, {"F16", 2}, {"BF16", 2},    {"I16", 2},     {"U16", 2},
                 {"I8", 1},  {"U8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (!strcmp(known[i].name, dtype))
            return known[i].bytes;
    return 0;
}

static bool printable(const char *s)
{
    for (const char *c = s; *c; c++)
        if (*c <= ' ' || *c > '~')
            return false;
    return *s != 0;
}

static bool get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* One entry of the header; `t->data` is left at NULL, the place goes to [*begin, *end). */
static enum status read_entry(const struct safetensors *f, const char *name, const json_t *entry,
                              struct safetensors_tensor *t, uint64_t *begin, struct err *err)
{
    if (!printable(name))
        return err_set(err, ST_BAD_DATA, "%s: a tensor's name is not printable ASCII", f->name);
    const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (json_object_size(entry) != 3 || !json_is_string(dtype) || !json_is_array(shape) ||
        json_array_size(offsets) != 2)
        return err_set(err, ST_BAD_DATA, "%s: tensor %.200s: expected dtype, shape and data_offsets", f->name, name);
    t->name = name;
    unsigned size = dtype_bytes(json_string_value(dtype));
    if (!size)
        return err_set(err, ST_UNSUPPORTED, "%s: tensor %.200s has an unknown dtype", f->name, name);
    snprintf(t->dtype, sizeof t->dtype, "%s", json_string_value(dtype)); /* a known one: it fits */
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return err_set(err, ST_LIMIT, "%s: tensor %.200s has %zu dimensions, at most %d", f->name, name,
                       json_array_size(shape), SAFETENSORS_RANK_MAX);
    t->rank = (uint32_t)json_array_size(shape);
    uint64_t bytes = size, end;
    for (uint32_t d = 0; d < SAFETENSORS_RANK_MAX; d++) {
        t->shape[d] = 1;
        if ((d < t->rank && !get_u64(json_array_get(shape, d), &t->shape[d])) ||
            __builtin_mul_overflow(bytes, t->shape[d], &bytes))
            return err_set(err, ST_BAD_DATA, "%s: tensor %.200s has an impossible shape", f->name, name);
    }
    if (!get_u64(json_array_get(offsets, 0), begin) || !get_u64(json_array_get(offsets, 1), &end) || end < *begin ||
        end - *begin != bytes)
        return err_set(err, ST_BAD_DATA,
                       "%s: tensor %.200s: data_offsets do not span the %" PRIu64 " bytes of its shape", f->name, name,
                       bytes);
    t->bytes = bytes;
    return ST_OK;
}

static enum status check_metadata(const struct safetensors *f, json_t *metadata, struct err *err)
{
    const char *key;
    json_t *value;
    bool ok = json_is_object(metadata);
    json_object_foreach(metadata, key, value) ok = ok && json_is_string(value);
    return ok ? ST_OK : err_set(err, ST_BAD_DATA, "%s: __metadata__ is not a map of strings", f->name);
}

static int by_place(const void *a, const void *b)
{
    const struct safetensors_tensor *x = a, *y = b; /* empty ones first where two begin at one place */
    return x->data != y->data ? (x->data > y->data) - (x->data < y->data)
                              : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct safetensors_tensor *const *)a)->name,
                  (*(const struct safetensors_tensor *const *)b)->name);
}

static enum status read_tensors(struct safetensors *f, const uint8_t *data, size_t data_len, struct err *err)
{
    const char *name;
    json_t *entry;
    uint64_t begin = 0, sum = 0;
    f->tensors = xcalloc(json_object_size(f->header), sizeof *f->tensors);
    f->sorted = xcalloc(json_object_size(f->header), sizeof *f->sorted);
    json_object_foreach(f->header, name, entry)
    {
        bool metadata = !strcmp(name, "__metadata__");
        struct safetensors_tensor *t = &f->tensors[f->n];
        enum status st = metadata ? check_metadata(f, entry, err) : read_entry(f, name, entry, t, &begin, err);
        if (st)
            return st;
        if (metadata)
            continue;
        if (begin > data_len || t->bytes > data_len - begin)
            return err_set(err, ST_BAD_DATA, "%s: tensor %.200s runs past the end of the file", f->name, name);
        t->data = data + begin;
        f->n++;
    }
    qsort(f->tensors, f->n, sizeof *f->tensors, by_place);
    for (size_t i = 0; i < f->n; i++) {
        if (f->tensors[i].data != data + sum)
            return err_set(err, ST_BAD_DATA, "%s: tensor %.200s: a hole or an overlap before it", f->name,
                           f->tensors[i].name);
        sum += f->tensors[i].bytes;
        f->sorted[i] = &f->tensors[i];
    }
    if (sum != data_len)
        return err_set(err, ST_BAD_DATA, "%s: %zu bytes of data, the tensors have %" PRIu64, f->name, data_len, sum);
    qsort(f->sorted, f->n, sizeof *f->sorted, by_name);
    return ST_OK;
}

static enum status parse(struct safetensors *f, const void *data, size_t len, struct safetensors_limits limits,
                         struct err *err)
{
    struct reader r = reader_of(data, len);
    uint64_t header_len = read_u64(&r);
    if (!r.failed && header_len > limits.header_bytes)
        return err_set(err, ST_LIMIT, "%s: header of %" PRIu64 " bytes, at most %zu", f->name, header_len,
                       limits.header_bytes);
    const uint8_t *header = r.failed ? NULL : read_raw(&r, (size_t)header_len);
    if (!header || header_len < 2 || header[0] != '{')
        return err_set(err, ST_BAD_DATA, "%s: not a safetensors file (%zu bytes, header of %" PRIu64 ")", f->name, len,
                       header_len);
    json_error_t e;
    f->header = json_loadb((const char *)header, (size_t)header_len, JSON_REJECT_DUPLICATES, &e);
    if (!f->header || !json_is_object(f->header))
        return err_set(err, ST_BAD_DATA, "%s: header: offset %d: bad JSON", f->name, f->header ? 0 : e.position);
    if (json_object_size(f->header) > limits.tensors)
        return err_set(err, ST_LIMIT, "%s: %zu tensors, at most %zu", f->name, json_object_size(f->header),
                       limits.tensors);
    return read_tensors(f, r.data + r.at, reader_left(&r), err);
}

enum status safetensors_parse(const void *data, size_t len, const char *name, struct safetensors_limits limits,
                              struct safetensors **out, struct err *err)
{
    struct safetensors *f = xcalloc(1, sizeof *f);
    f->name = xstrdup(name);
    enum status st = parse(f, data, len, limits, err);
    if (st == ST_OK)
        *out = f;
    else
        safetensors_close(f);
    return st;
}

enum status safetensors_open(const char *path, struct safetensors_limits limits, struct safetensors **out,
                             struct err *err)
{
    struct mapping map;
    enum status st = mapping_open(path, &map, err);
    if (st)
        return st;
    st = safetensors_parse(map.data, map.len, path, limits, out, err);
    if (st)
        mapping_close(&map);
    else
        (*out)->map = map;
    return st;
}

void safetensors_rest(const struct safetensors *f)
{
    mapping_rest(&f->map);
}

void safetensors_close(struct safetensors *f)
{
    if (!f)
        return;
    mapping_close(&f->map);
    json_decref(f->header);
    free(f->tensors);
    free(f->sorted);
    free(f->name);
    free(f);
}

size_t safetensors_n(const struct safetensors *f)
{
    return f->n;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *f, size_t i)
{
    CHECK(i < f->n);
    return &f->tensors[i];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *f, const char *name)
{
    struct safetensors_tensor wanted = {.name = name}, *p = &wanted;
    const struct safetensors_tensor **found = bsearch(&p, f->sorted, f->n, sizeof *f->sorted, by_name);
    return found ? *found : NULL;
}

static int entries_by_name(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_tensor *)a)->name, ((const struct safetensors_tensor *)b)->name);
}

void safetensors_write(struct safetensors_tensor *tensors, size_t n, struct buf *out)
{
    struct buf header = {0};
    uint64_t at = 0;
    qsort(tensors, n, sizeof *tensors, entries_by_name);
    buf_printf(&header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        struct safetensors_tensor *t = &tensors[i];
        t->bytes = 4;
        buf_printf(&header, ",\"%s\":{\"dtype\":\"F32\",\"shape\":[", t->name);
        for (uint32_t d = 0; d < t->rank; d++) {
            buf_printf(&header, "%s%" PRIu64, d ? "," : "", t->shape[d]);
            CHECK(!__builtin_mul_overflow(t->bytes, t->shape[d], &t->bytes));
        }
        buf_printf(&header, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + t->bytes);
        at += t->bytes;
    }
    buf_put_u8(&header, '}');
    while (header.len % 8)
        buf_put_u8(&header, ' ');
    buf_reserve(out, 8 + header.len + (size_t)at);
    buf_put_u64(out, header.len);
    buf_put(out, header.data, header.len);
    for (size_t i = 0; i < n; i++)
        buf_put(out, tensors[i].data, (size_t)tensors[i].bytes);
    buf_release(&header);
}
