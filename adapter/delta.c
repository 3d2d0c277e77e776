/* The file:
 *     0   8  "alvdelta"
 *     8   2  u16 version, 1
 *    10   2  u16 coding: 1 f32, 2 bf16, 3 int8
 *    12   4  u32 generation of the lease
 *    16   8  u64 session
 *    24   8  u64 lease
 *    32   8  u64 number of floats
 *    40  32  BLAKE2b-256 of the shape
 *    72   -  the floats in the block's order (adapter.h), little-endian:
 *            f32   4 bytes each
 *            bf16  2 bytes each, the upper half of the f32
 *            int8  in blocks of 64 (the last may be shorter): f32 scale >= 0, then i8 each in [-127, 127]; value = scale * i8
 * The shape's digest is over u32 n_layers, rank, alpha, targets, then u32 in and out of each of the seven modules.
 */
#include "adapter/delta.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"

enum { HEAD_LEN = 72, VERSION = 1, CHECK_FLOATS = 1 << 16 };
static const char MAGIC[8] = {'a', 'l', 'v', 'd', 'e', 'l', 't', 'a'};

void delta_shape_digest(const struct adapter_shape *shape, struct digest *out)
{
    struct buf b = {0};
    buf_put_u32(&b, shape->n_layers);
    buf_put_u32(&b, shape->rank);
    buf_put_u32(&b, shape->alpha);
    buf_put_u32(&b, shape->targets);
    for (int m = 0; m < LORA_MODULES; m++) {
        buf_put_u32(&b, shape->in[m]);
        buf_put_u32(&b, shape->out[m]);
    }
    hash_blake2b(b.data, b.len, out);
    buf_release(&b);
}

/* Bytes of the first n floats; n ends a block or the file. */
static uint64_t payload_bytes(enum delta_coding coding, uint64_t n)
{
    switch (coding) {
    case DELTA_F32:
        return 4 * n;
    case DELTA_BF16:
        return 2 * n;
    default:
        return n + 4 * ((n + DELTA_BLOCK - 1) / DELTA_BLOCK);
    }
}

uint64_t delta_bytes(const struct adapter_shape *shape, enum delta_coding coding)
{
    return HEAD_LEN + payload_bytes(coding, adapter_floats(shape));
}

void delta_place(const struct adapter_shape *shape, uint64_t index, char *out, size_t size)
{
    snprintf(out, size, "float %llu", (unsigned long long)index);
    for (uint32_t layer = 0; layer < shape->n_layers; layer++)
        for (int m = 0; m < LORA_MODULES; m++) {
            if (!adapter_adapts(shape, layer, (unsigned)m))
                continue;
            uint64_t a = adapter_at_a(shape, layer, (enum lora_module)m);
            uint64_t b = adapter_at_b(shape, layer, (enum lora_module)m);
            if (index >= a && index < b + (uint64_t)shape->out[m] * shape->rank)
                snprintf(out, size, "layers.%u %s %s", layer, lora_module_peft((enum lora_module)m),
                         index < b ? "A" : "B");
        }
}

/* ---- encoding ---- */

static uint32_t bits_of(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static uint16_t to_bf16(float v) /* v finite; may become infinite */
{
    uint32_t bits = bits_of(v);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The scale is rounded up, so that nothing is beyond 127 and the rounding stays unbiased. */
static void put_int8_block(struct buf *out, const float *delta, size_t n, struct rng *rng)
{
    float most = 0;
    for (size_t i = 0; i < n; i++)
        most = fabsf(delta[i]) > most ? fabsf(delta[i]) : most;
    float scale = (float)((double)most / 127);
    if ((double)scale * 127 < (double)most)
        scale = nextafterf(scale, INFINITY);
    buf_put_f32(out, scale);
    for (size_t i = 0; i < n; i++) {
        double q = scale > 0 ? floor((double)delta[i] / (double)scale + rng_unit(rng)) : 0;
        buf_put_u8(out, (uint8_t)(int8_t)q);
    }
}

static enum status put_block(struct buf *out, const struct adapter_shape *shape, enum delta_coding coding,
                             const float *trained, const float *parent, uint64_t at, size_t n, struct rng *rng,
                             struct err *err)
{
    float delta[DELTA_BLOCK];
    for (size_t i = 0; i < n; i++) {
        delta[i] = trained[at + i] - parent[at + i];
        if (!isfinite(delta[i]) || (coding == DELTA_BF16 && !isfinite(float_of((uint32_t)to_bf16(delta[i]) << 16)))) {
            char place[64];
            delta_place(shape, at + i, place, sizeof place);
            return err_set(err, ST_BAD_DATA, "delta: not finite in %s: training diverged", place);
        }
    }
    for (size_t i = 0; i < n && coding == DELTA_F32; i++)
        buf_put_f32(out, delta[i]);
    for (size_t i = 0; i < n && coding == DELTA_BF16; i++)
        buf_put_u16(out, to_bf16(delta[i]));
    if (coding == DELTA_INT8)
        put_int8_block(out, delta, n, rng);
    return ST_OK;
}

enum status delta_encode(const struct adapter_shape *shape, const float *trained, const float *parent,
                         const struct delta_head *head, uint64_t seed, struct buf *out, struct err *err)
{
    CHECK(head->coding >= DELTA_F32 && head->coding <= DELTA_INT8);
    uint64_t floats = adapter_floats(shape);
    size_t before = out->len;
    struct digest digest;
    struct rng rng;
    rng_seed(&rng, seed);
    delta_shape_digest(shape, &digest);
    buf_reserve(out, delta_bytes(shape, head->coding));
    buf_put(out, MAGIC, sizeof MAGIC);
    buf_put_u16(out, VERSION);
    buf_put_u16(out, (uint16_t)head->coding);
    buf_put_u32(out, head->generation);
    buf_put_u64(out, head->session);
    buf_put_u64(out, head->lease);
    buf_put_u64(out, floats);
    buf_put(out, digest.b, DIGEST_LEN);
    enum status status = ST_OK;
    for (uint64_t at = 0; at < floats && status == ST_OK; at += DELTA_BLOCK) {
        size_t n = floats - at < DELTA_BLOCK ? (size_t)(floats - at) : DELTA_BLOCK;
        status = put_block(out, shape, head->coding, trained, parent, at, n, &rng, err);
    }
    if (status != ST_OK)
        out->len = before;
    return status;
}

/* ---- decoding ---- */

static enum status read_bytes(int fd, uint64_t offset, void *out, size_t len, struct err *err)
{
    for (size_t got = 0; got < len;) {
        ssize_t n = pread(fd, (uint8_t *)out + got, len - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, ST_IO, "delta: cannot read: %s", strerror(errno));
        if (n == 0)
            return err_set(err, ST_BAD_DATA, "delta: ends at byte %llu", (unsigned long long)(offset + got));
        got += (size_t)n;
    }
    return ST_OK;
}

enum status delta_reader_open(struct delta_reader *reader, int fd, uint64_t bytes, const struct adapter_shape *shape,
                              struct err *err)
{
    uint8_t raw[HEAD_LEN];
    struct delta_head head = {0};
    struct digest want;
    if (bytes < HEAD_LEN)
        return err_set(err, ST_BAD_DATA, "delta: %llu bytes are less than a head", (unsigned long long)bytes);
    enum status status = read_bytes(fd, 0, raw, HEAD_LEN, err);
    if (status != ST_OK)
        return status;
    struct reader r = reader_of(raw, HEAD_LEN);
    const uint8_t *magic = read_raw(&r, sizeof MAGIC);
    uint16_t version = read_u16(&r), coding = read_u16(&r);
    head.generation = read_u32(&r);
    head.session = read_u64(&r);
    head.lease = read_u64(&r);
    head.floats = read_u64(&r);
    memcpy(head.shape.b, read_raw(&r, DIGEST_LEN), DIGEST_LEN);
    if (memcmp(magic, MAGIC, sizeof MAGIC))
        return err_set(err, ST_BAD_DATA, "delta: not a delta (magic)");
    if (version != VERSION || coding < DELTA_F32 || coding > DELTA_INT8)
        return err_set(err, ST_UNSUPPORTED, "delta: version %u, coding %u: known are version 1, codings 1 to 3",
                       version, coding);
    head.coding = (enum delta_coding)coding;
    delta_shape_digest(shape, &want);
    if (!digest_eq(&head.shape, &want))
        return err_set(err, ST_BAD_DATA, "delta: of an adapter of another shape than this line's");
    if (head.floats != adapter_floats(shape) || bytes != delta_bytes(shape, head.coding))
        return err_set(err, ST_BAD_DATA, "delta: %llu floats in %llu bytes; expected %zu in %llu",
                       (unsigned long long)head.floats, (unsigned long long)bytes, adapter_floats(shape),
                       (unsigned long long)delta_bytes(shape, head.coding));
    *reader = (struct delta_reader){.fd = fd, .shape = *shape, .head = head};
    return ST_OK;
}

void delta_reader_release(struct delta_reader *reader)
{
    buf_release(&reader->raw);
}

static uint32_t load_le32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* One block of int8, of which [skip, skip + n) are wanted. False: a scale or value that the encoder never writes. */
static bool decode_int8(const uint8_t *block, size_t skip, size_t n, float *out)
{
    float scale = float_of(load_le32(block));
    if (!isfinite(scale) || scale < 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        int8_t q = (int8_t)block[4 + skip + i];
        if (q == -128)
            return false;
        out[i] = scale * (float)q;
    }
    return true;
}

static bool all_finite(const float *v, size_t n)
{
    uint32_t bad = 0; /* without a branch, so that it runs at the speed of memory */
    for (size_t i = 0; i < n; i++)
        bad |= (bits_of(v[i]) & 0x7f800000u) == 0x7f800000u;
    return !bad;
}

enum status delta_read(struct delta_reader *reader, uint64_t first, size_t n, float *out, struct err *err)
{
    enum delta_coding coding = reader->head.coding;
    CHECK(first <= reader->head.floats && n <= reader->head.floats - first);
    if (n == 0)
        return ST_OK;
    uint64_t from = coding == DELTA_INT8 ? first / DELTA_BLOCK * DELTA_BLOCK : first, end = first + n;
    if (coding == DELTA_INT8 && end % DELTA_BLOCK)
        end += DELTA_BLOCK - end % DELTA_BLOCK;
    end = end < reader->head.floats ? end : reader->head.floats;
    uint64_t start = payload_bytes(coding, from);
    size_t len = (size_t)(payload_bytes(coding, end) - start);
    buf_clear(&reader->raw);
    const uint8_t *raw = buf_extend(&reader->raw, len);
    enum status status = read_bytes(reader->fd, HEAD_LEN + start, reader->raw.data, len, err);
    if (status != ST_OK)
        return status;

    bool good = true;
    if (coding == DELTA_F32) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        memcpy(out, raw, n * sizeof *out);
#else
        for (size_t i = 0; i < n; i++)
            out[i] = float_of(load_le32(raw + 4 * i));
#endif
    }
    for (size_t i = 0; i < n && coding == DELTA_BF16; i++)
        out[i] = float_of((uint32_t)raw[2 * i] << 16 | (uint32_t)raw[2 * i + 1] << 24);
    for (size_t i = 0; i < n && coding == DELTA_INT8 && good;) {
        size_t skip = (size_t)((first + i) % DELTA_BLOCK);
        size_t some = DELTA_BLOCK - skip < n - i ? DELTA_BLOCK - skip : n - i;
        uint64_t block = first + i - skip;
        good = decode_int8(raw + (payload_bytes(coding, block) - start), skip, some, out + i);
        if (!good)
            out[i] = NAN; /* so that the place is found below */
        i += some;
    }
    if (good && all_finite(out, n))
        return ST_OK;
    size_t bad = 0;
    while (bad < n && isfinite(out[bad]))
        bad++;
    char place[64];
    delta_place(&reader->shape, first + bad, place, sizeof place);
    return err_set(err, ST_BAD_DATA, "delta of lease %llu: a value in %s is not finite or out of range",
                   (unsigned long long)reader->head.lease, place);
}

enum { LANES = 8 }; /* sums side by side, because one would wait for itself */

static void add_squares(double sum[LANES], const float *v, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t k = 0; k < LANES; k++)
            sum[k] += (double)v[i + k] * (double)v[i + k];
    for (; i < n; i++)
        sum[i % LANES] += (double)v[i] * (double)v[i];
}

enum status delta_check(int fd, uint64_t bytes, const struct adapter_shape *shape, const struct digest *digest,
                        struct delta_head *head, double *norm, struct err *err)
{
    struct delta_reader reader;
    struct hasher hasher;
    struct digest got;
    uint8_t raw[HEAD_LEN];
    enum status status = delta_reader_open(&reader, fd, bytes, shape, err);
    if (status == ST_OK && digest)
        status = read_bytes(fd, 0, raw, HEAD_LEN, err);
    if (status != ST_OK)
        return status;
    hasher_init(&hasher);
    hasher_put(&hasher, raw, digest ? HEAD_LEN : 0);
    float *piece = xmalloc(CHECK_FLOATS * sizeof *piece);
    double sum[LANES] = {0};
    bool sound = true; /* a value that the encoder never writes may be the disk's doing: the digest tells */
    for (uint64_t at = 0; at < reader.head.floats && (status == ST_OK || (!sound && digest)); at += CHECK_FLOATS) {
        uint64_t left = reader.head.floats - at;
        size_t n = left < CHECK_FLOATS ? (size_t)left : CHECK_FLOATS;
        struct err first;
        enum status st = delta_read(&reader, at, n, piece, sound ? err : &first);
        status = sound ? st : status;
        sound = sound && st == ST_OK;
        if (st != ST_OK && st != ST_BAD_DATA)
            break;
        if (digest)
            hasher_put(&hasher, reader.raw.data, reader.raw.len);
        add_squares(sum, piece, st == ST_OK ? n : 0);
    }
    hasher_end(&hasher, &got);
    if (digest && (status == ST_OK || status == ST_BAD_DATA) && !digest_eq(&got, digest))
        status = err_set(err, ST_CORRUPT, "blob: its bytes are not what its name says");
    if (status == ST_OK) {
        *head = reader.head;
        *norm = sqrt(((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])));
    }
    free(piece);
    delta_reader_release(&reader);
    return status;
}
