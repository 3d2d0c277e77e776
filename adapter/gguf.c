/* GGUF v3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 *
 *   4  "GGUF"    4  version, 3    8  n_tensors    8  n_kv
 *   n_kv times:      key (string), 4 kind, value
 *                    string = 8 length, bytes without NUL; bool = 1 byte, 0 or 1;
 *                    array = 4 element kind (not array), 8 count, the elements
 *   n_tensors times: name (string), 4 n_dims (1 to 4), 8 each dimension, innermost first, 4 type, 8 offset
 *   zero bytes up to a multiple of general.alignment (u32, a power of two, default 32)
 *   the tensors; each offset counts from here and is the sum of the ones before, each padded to the alignment
 *
 * The last tensor's padding may be missing. The checks are those of ggml's own reader and some more.
 */
#include "adapter/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "adapter/mapping.h"
#include "base/check.h"

enum { KEY_MAX = 65535, STRING_MAX = 1 << 30, ALIGNMENT_MAX = 1 << 16 };

struct gguf {
    struct mapping map; /* empty when the bytes are borrowed */
    struct gguf_kv *kv;
    struct gguf_tensor *tensors;
    const struct gguf_kv **kv_sorted;
    const struct gguf_tensor **tensors_sorted;
    size_t n_kv, n_tensors;
    char *name;
};

static const struct {
    uint32_t type;
    const char *name;
    uint32_t values, bytes;
} types[] = {
    {GGUF_T_F32, "F32", 1, 4},
    {GGUF_T_F16, "F16", 1, 2},
    {GGUF_T_Q4_0, "Q4_0", 32, 18},
    {GGUF_T_Q4_1, "Q4_1", 32, 20},
    {GGUF_T_Q5_0, "Q5_0", 32, 22},
    {GGUF_T_Q5_1, "Q5_1", 32, 24},
    {GGUF_T_Q8_0, "Q8_0", 32, 34},
    {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110},
    {GGUF_T_Q4_K, "Q4_K", 256, 144},
    {GGUF_T_Q5_K, "Q5_K", 256, 176},
    {GGUF_T_Q6_K, "Q6_K", 256, 210},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8},
    {GGUF_T_BF16, "BF16", 1, 2},
};

static int type_index(uint32_t type)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type)
            return (int)i;
    return -1;
}

const char *gguf_type_name(uint32_t type)
{
    int i = type_index(type);
    return i < 0 ? NULL : types[i].name;
}

void gguf_type_block(uint32_t type, uint32_t *values, uint32_t *bytes)
{
    int i = type_index(type);
    CHECK(i >= 0);
    *values = types[i].values;
    *bytes = types[i].bytes;
}

static size_t kind_bytes(uint32_t kind) /* 0: not of fixed size */
{
    static const uint8_t sizes[GGUF_KINDS] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return kind < GGUF_KINDS ? sizes[kind] : 0;
}

/* A string of at most `max` bytes; fails the reader like any short read. */
static struct bytes read_string(struct reader *r, size_t max)
{
    uint64_t len = read_u64(r);
    if (len > max) {
        r->failed = true;
        return (struct bytes){0};
    }
    const uint8_t *p = read_raw(r, (size_t)len);
    return (struct bytes){p, p ? (size_t)len : 0};
}

/* Keys and names go into messages and are looked up: printable ASCII only. */
static bool printable(struct bytes s)
{
    for (size_t i = 0; i < s.len; i++)
        if (s.data[i] <= ' ' || s.data[i] > '~')
            return false;
    return s.len > 0;
}

static enum status read_value(struct reader *r, const char *file, struct gguf_kv *kv, struct err *err)
{
    size_t at = r->at;
    kv->kind = kv->element = (enum gguf_kind)read_u32(r);
    kv->count = 1;
    if (kv->kind == GGUF_ARRAY) {
        kv->element = (enum gguf_kind)read_u32(r);
        kv->count = read_u64(r);
    }
    if (!r->failed && kv->element != GGUF_STRING && kind_bytes(kv->element) == 0)
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: %s of unknown kind %u", file, at,
                       kv->kind == GGUF_ARRAY ? "array" : "value", (unsigned)kv->element);
    if (kv->count > reader_left(r)) /* each element takes a byte at least */
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: an array of %llu elements does not fit the file", file, at,
                       (unsigned long long)kv->count);
    size_t begin = r->at;
    if (kv->element == GGUF_STRING) {
        for (uint64_t i = 0; i < kv->count && !r->failed; i++)
            read_string(r, STRING_MAX);
    } else {
        size_t bytes;
        if (__builtin_mul_overflow((size_t)kv->count, kind_bytes(kv->element), &bytes) || !read_raw(r, bytes))
            r->failed = true;
    }
    kv->raw = (struct bytes){r->data + begin, r->at - begin};
    if (r->failed)
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: value runs past the end of the file", file, begin);
    if (kv->element == GGUF_BOOL)
        for (size_t i = 0; i < kv->raw.len; i++)
            if (kv->raw.data[i] > 1)
                return err_set(err, ST_BAD_DATA, "%s: offset %zu: bool is neither 0 nor 1", file, begin + i);
    return ST_OK;
}

static int compare_bytes(struct bytes a, struct bytes b)
{
    int c = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

static int by_key(const void *a, const void *b)
{
    return compare_bytes((*(const struct gguf_kv *const *)a)->key, (*(const struct gguf_kv *const *)b)->key);
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(const struct gguf_tensor *const *)a)->name, (*(const struct gguf_tensor *const *)b)->name);
}

static enum status read_metadata(struct gguf *g, struct reader *r, struct err *err)
{
    g->kv = xcalloc(g->n_kv, sizeof *g->kv);
    g->kv_sorted = xcalloc(g->n_kv, sizeof *g->kv_sorted);
    for (size_t i = 0; i < g->n_kv; i++) {
        size_t at = r->at;
        g->kv[i].key = read_string(r, KEY_MAX);
        if (r->failed || !printable(g->kv[i].key))
            return err_set(err, ST_BAD_DATA, "%s: offset %zu: bad metadata key", g->name, at);
        enum status st = read_value(r, g->name, &g->kv[i], err);
        if (st)
            return st;
        g->kv_sorted[i] = &g->kv[i];
    }
    qsort(g->kv_sorted, g->n_kv, sizeof *g->kv_sorted, by_key);
    for (size_t i = 1; i < g->n_kv; i++)
        if (by_key(&g->kv_sorted[i - 1], &g->kv_sorted[i]) == 0)
            return err_set(err, ST_BAD_DATA, "%s: metadata key \"%.*s\" twice", g->name,
                           (int)(g->kv_sorted[i]->key.len % 200), (const char *)g->kv_sorted[i]->key.data);
    return ST_OK;
}

/* Name, shape and type of one tensor; its size from them; `*offset` as claimed. */
static enum status read_info(struct gguf *g, struct reader *r, struct gguf_tensor *t, uint64_t *offset, struct err *err)
{
    size_t at = r->at;
    struct bytes name = read_string(r, sizeof t->name - 1);
    if (r->failed || !printable(name))
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: bad tensor name", g->name, at);
    memcpy(t->name, name.data, name.len);
    t->n_dims = read_u32(r);
    if (r->failed || t->n_dims < 1 || t->n_dims > GGUF_DIMS_MAX)
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: tensor %s has %u dimensions", g->name, at, t->name,
                       t->n_dims);
    uint64_t values = 1;
    for (uint32_t d = 0; d < GGUF_DIMS_MAX; d++) {
        t->ne[d] = d < t->n_dims ? read_u64(r) : 1;
        if (t->ne[d] < 1 || t->ne[d] > INT64_MAX || __builtin_mul_overflow(values, t->ne[d], &values))
            return err_set(err, ST_BAD_DATA, "%s: offset %zu: tensor %s has an impossible shape", g->name, at, t->name);
    }
    t->type = read_u32(r);
    *offset = read_u64(r);
    if (r->failed)
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: tensor %s is cut short", g->name, at, t->name);
    int type = type_index(t->type);
    if (type < 0)
        return err_set(err, ST_UNSUPPORTED, "%s: offset %zu: tensor %s has the unknown type %u", g->name, at, t->name,
                       t->type);
    if (t->ne[0] % types[type].values)
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: rows of tensor %s are not whole %s blocks", g->name, at,
                       t->name, types[type].name);
    if (__builtin_mul_overflow(values / types[type].values, (uint64_t)types[type].bytes, &t->bytes))
        return err_set(err, ST_BAD_DATA, "%s: offset %zu: tensor %s is too large", g->name, at, t->name);
    return ST_OK;
}

static uint64_t pad_to(uint64_t n, uint64_t alignment)
{
    return (n + alignment - 1) & ~(alignment - 1);
}

static enum status read_tensors(struct gguf *g, struct reader *r, uint32_t alignment, struct err *err)
{
    enum status st;
    uint64_t offset = 0, sum = 0, end = 0;
    g->tensors = xcalloc(g->n_tensors, sizeof *g->tensors);
    g->tensors_sorted = xcalloc(g->n_tensors, sizeof *g->tensors_sorted);
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if ((st = read_info(g, r, t, &offset, err)))
            return st;
        if (offset != sum)
            return err_set(err, ST_BAD_DATA, "%s: tensor %s lies at %llu, expected %llu", g->name, t->name,
                           (unsigned long long)offset, (unsigned long long)sum);
        end = sum + t->bytes;
        if (t->bytes > r->len || end > r->len)
            return err_set(err, ST_BAD_DATA, "%s: tensor %s (%llu bytes) runs past the end of the file", g->name,
                           t->name, (unsigned long long)t->bytes);
        t->data = r->data + sum; /* the data's start is added below, once it is known */
        sum = pad_to(end, alignment);
        g->tensors_sorted[i] = t;
    }
    qsort(g->tensors_sorted, g->n_tensors, sizeof *g->tensors_sorted, by_name);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (by_name(&g->tensors_sorted[i - 1], &g->tensors_sorted[i]) == 0)
            return err_set(err, ST_BAD_DATA, "%s: tensor %s twice", g->name, g->tensors_sorted[i]->name);
    if (g->n_tensors == 0)
        return ST_OK;
    uint64_t start = pad_to(r->at, alignment);
    if (start > r->len || end > r->len - start)
        return err_set(err, ST_BAD_DATA, "%s: cut short: %zu bytes, the tensors need %llu", g->name, r->len,
                       (unsigned long long)(start + end));
    if (r->len - start > sum)
        return err_set(err, ST_BAD_DATA, "%s: %llu bytes after the last tensor", g->name,
                       (unsigned long long)(r->len - start - sum));
    for (size_t i = 0; i < g->n_tensors; i++)
        g->tensors[i].data += start;
    return ST_OK;
}

static enum status parse(struct gguf *g, const void *data, size_t len, struct err *err)
{
    struct reader r = reader_of(data, len);
    const uint8_t *head = read_raw(&r, 4);
    if (!head || memcmp(head, "GGUF", 4))
        return err_set(err, ST_BAD_DATA, "%s: not a GGUF file (no \"GGUF\" at its start)", g->name);
    uint32_t version = read_u32(&r), alignment = GGUF_ALIGNMENT;
    uint64_t n_tensors = read_u64(&r), n_kv = read_u64(&r);
    if (r.failed)
        return err_set(err, ST_BAD_DATA, "%s: cut short at %zu bytes", g->name, len);
    if (version != 3)
        return err_set(err, ST_UNSUPPORTED, "%s: GGUF version %u; only 3 is read", g->name, version);
    if (n_tensors > GGUF_TENSORS_MAX || n_kv > GGUF_KEYS_MAX)
        return err_set(err, ST_LIMIT, "%s: %llu tensors and %llu keys; at most %d and %d", g->name,
                       (unsigned long long)n_tensors, (unsigned long long)n_kv, GGUF_TENSORS_MAX, GGUF_KEYS_MAX);
    g->n_tensors = (size_t)n_tensors;
    g->n_kv = (size_t)n_kv;
    enum status st = read_metadata(g, &r, err);
    if (st)
        return st;
    st = gguf_get_u32(g, "general.alignment", &alignment, err);
    if (st != ST_OK && st != ST_NOT_FOUND)
        return st;
    if (alignment == 0 || alignment > ALIGNMENT_MAX || (alignment & (alignment - 1)))
        return err_set(err, ST_BAD_DATA, "%s: alignment %u is not a power of two up to %d", g->name, alignment,
                       ALIGNMENT_MAX);
    return read_tensors(g, &r, alignment, err);
}

enum status gguf_parse(const void *data, size_t len, const char *name, struct gguf **out, struct err *err)
{
    struct gguf *g = xcalloc(1, sizeof *g);
    g->name = xstrdup(name);
    enum status st = parse(g, data, len, err);
    if (st == ST_OK)
        *out = g;
    else
        gguf_close(g);
    return st;
}

enum status gguf_open(const char *path, struct gguf **out, struct err *err)
{
    struct mapping map;
    enum status st = mapping_open(path, &map, err);
    if (st)
        return st;
    st = gguf_parse(map.data, map.len, path, out, err);
    if (st)
        mapping_close(&map);
    else
        (*out)->map = map;
    return st;
}

void gguf_rest(const struct gguf *g)
{
    mapping_rest(&g->map);
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    mapping_close(&g->map);
    free(g->kv);
    free(g->tensors);
    free(g->kv_sorted);
    free(g->tensors_sorted);
    free(g->name);
    free(g);
}

size_t gguf_n_kv(const struct gguf *g)
{
    return g->n_kv;
}

const struct gguf_kv *gguf_kv_at(const struct gguf *g, size_t i)
{
    CHECK(i < g->n_kv);
    return &g->kv[i];
}

const struct gguf_kv *gguf_kv(const struct gguf *g, const char *key)
{
    struct gguf_kv wanted = {.key = {(const uint8_t *)key, strlen(key)}}, *p = &wanted;
    const struct gguf_kv **found = bsearch(&p, g->kv_sorted, g->n_kv, sizeof *g->kv_sorted, by_key);
    return found ? *found : NULL;
}

size_t gguf_n_tensors(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t i)
{
    CHECK(i < g->n_tensors);
    return &g->tensors[i];
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    struct gguf_tensor wanted, *p = &wanted;
    size_t len = strlen(name);
    if (len >= sizeof wanted.name)
        return NULL;
    memcpy(wanted.name, name, len + 1);
    const struct gguf_tensor **found = bsearch(&p, g->tensors_sorted, g->n_tensors, sizeof *g->tensors_sorted, by_name);
    return found ? *found : NULL;
}

static enum status find_kind(const struct gguf *g, const char *key, enum gguf_kind kind, const char *what,
                             struct reader *out, struct err *err)
{
    const struct gguf_kv *kv = gguf_kv(g, key);
    if (!kv)
        return err_set(err, ST_NOT_FOUND, "%s: no metadata key %s", g->name, key);
    if (kv->kind != kind)
        return err_set(err, ST_BAD_DATA, "%s: metadata key %s is of kind %d, expected %s", g->name, key, (int)kv->kind,
                       what);
    *out = reader_of(kv->raw.data, kv->raw.len);
    return ST_OK;
}

enum status gguf_get_u32(const struct gguf *g, const char *key, uint32_t *out, struct err *err)
{
    struct reader r;
    enum status st = find_kind(g, key, GGUF_U32, "a u32", &r, err);
    if (st == ST_OK)
        *out = read_u32(&r);
    return st;
}

enum status gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *err)
{
    struct reader r;
    enum status st = find_kind(g, key, GGUF_F32, "an f32", &r, err);
    if (st == ST_OK)
        *out = read_f32(&r);
    return st;
}

enum status gguf_get_bool(const struct gguf *g, const char *key, bool *out, struct err *err)
{
    struct reader r;
    enum status st = find_kind(g, key, GGUF_BOOL, "a bool", &r, err);
    if (st == ST_OK)
        *out = read_u8(&r);
    return st;
}

enum status gguf_get_string(const struct gguf *g, const char *key, struct bytes *out, struct err *err)
{
    struct reader r;
    enum status st = find_kind(g, key, GGUF_STRING, "a string", &r, err);
    if (st == ST_OK)
        *out = read_string(&r, STRING_MAX);
    return st;
}

enum status gguf_get_strings(const struct gguf *g, const char *key, struct bytes **out, size_t *n, struct err *err)
{
    struct reader r;
    enum status st = find_kind(g, key, GGUF_ARRAY, "an array", &r, err);
    if (st)
        return st;
    const struct gguf_kv *kv = gguf_kv(g, key);
    if (kv->element != GGUF_STRING)
        return err_set(err, ST_BAD_DATA, "%s: metadata key %s is not an array of strings", g->name, key);
    *n = (size_t)kv->count; /* the parser saw them all: 8 bytes of file each at least */
    *out = xcalloc(*n, sizeof **out);
    for (size_t i = 0; i < *n; i++)
        (*out)[i] = read_string(&r, STRING_MAX);
    return ST_OK;
}

static void put_string(struct buf *out, const void *s, size_t len)
{
    buf_put_u64(out, len);
    buf_put(out, s, len);
}

static void put_key(struct gguf_writer *w, const char *key, enum gguf_kind kind)
{
    put_string(&w->kv, key, strlen(key));
    buf_put_u32(&w->kv, kind);
    w->n_kv++;
}

void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    put_key(w, key, GGUF_U32);
    buf_put_u32(&w->kv, v);
}

void gguf_put_f32(struct gguf_writer *w, const char *key, float v)
{
    put_key(w, key, GGUF_F32);
    buf_put_f32(&w->kv, v);
}

void gguf_put_string(struct gguf_writer *w, const char *key, const char *v)
{
    put_key(w, key, GGUF_STRING);
    put_string(&w->kv, v, strlen(v));
}

void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv)
{
    put_string(&w->kv, kv->key.data, kv->key.len);
    buf_put_u32(&w->kv, kv->kind);
    if (kv->kind == GGUF_ARRAY) {
        buf_put_u32(&w->kv, kv->element);
        buf_put_u64(&w->kv, kv->count);
    }
    buf_put(&w->kv, kv->raw.data, kv->raw.len);
    w->n_kv++;
}

uint64_t gguf_put_tensor(struct gguf_writer *w, const char *name, uint32_t type, uint32_t n_dims, const uint64_t *ne)
{
    uint32_t block_values, block_bytes;
    gguf_type_block(type, &block_values, &block_bytes);
    CHECK(strlen(name) < 64 && n_dims >= 1 && n_dims <= GGUF_DIMS_MAX && ne[0] % block_values == 0);
    put_string(&w->infos, name, strlen(name));
    buf_put_u32(&w->infos, n_dims);
    uint64_t bytes = block_bytes;
    for (uint32_t d = 0; d < n_dims; d++) {
        buf_put_u64(&w->infos, ne[d]);
        CHECK(!__builtin_mul_overflow(bytes, d ? ne[d] : ne[d] / block_values, &bytes));
    }
    buf_put_u32(&w->infos, type);
    buf_put_u64(&w->infos, w->data_bytes);
    w->data_bytes += bytes + gguf_padding(bytes);
    w->n_tensors++;
    return bytes;
}

size_t gguf_padding(uint64_t bytes)
{
    return (size_t)(pad_to(bytes, GGUF_ALIGNMENT) - bytes);
}

void gguf_put_header(struct gguf_writer *w, struct buf *out)
{
    size_t begin = out->len;
    buf_put(out, "GGUF", 4);
    buf_put_u32(out, 3);
    buf_put_u64(out, w->n_tensors);
    buf_put_u64(out, w->n_kv);
    buf_put(out, w->kv.data, w->kv.len);
    buf_put(out, w->infos.data, w->infos.len);
    size_t padding = gguf_padding(out->len - begin);
    memset(buf_extend(out, padding), 0, padding);
}

void gguf_writer_release(struct gguf_writer *w)
{
    buf_release(&w->kv);
    buf_release(&w->infos);
    *w = (struct gguf_writer){0};
}
