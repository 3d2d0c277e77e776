/* Family payload: key u16 domain, u64 offset (big-endian, so that a domain lies together in order). Value:
 *     0   1  version, 1
 *     1   8  u64 SipHash-2-4 (key "alluvium keep  1") of all that follows
 *     9  10  the key again: a value under a wrong key is damage too
 *    19   n  the segment's bytes
 * Family meta: the same key; value u32 n. Small, so that opening reads no payload.
 */
#include "replay/keep.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

enum { KEY_LEN = 10, HEAD_LEN = 19, VERSION = 1, EVICT_BATCH = 4096 };
static const struct sip_key SUM_KEY = {"alluvium keep  1"};

struct keep {
    struct db *db; /* borrowed */
    struct keep_options options;
    uint64_t bytes, damaged;
};

static void put_key(struct buf *out, struct domain_id domain, uint64_t offset)
{
    buf_put_u16_be(out, domain.v);
    buf_put_u64_be(out, offset);
}

static bool parse_key(struct bytes key, struct mix_segment *out)
{
    struct reader r = reader_of(key.data, key.len);
    out->domain.v = read_u16_be(&r);
    out->offset = read_u64_be(&r);
    return reader_done(&r);
}

/* The segment's bytes inside a stored value; false when it does not verify. */
static bool open_value(struct bytes key, struct bytes value, struct bytes *body)
{
    struct reader r = reader_of(value.data, value.len);
    uint8_t version = read_u8(&r);
    uint64_t sum = read_u64(&r);
    if (value.len < HEAD_LEN || version != VERSION || memcmp(value.data + 9, key.data, KEY_LEN) ||
        hash_sip(&SUM_KEY, value.data + 9, value.len - 9) != sum)
        return false;
    *body = (struct bytes){value.data + HEAD_LEN, value.len - HEAD_LEN};
    return true;
}

static struct bytes key_range(struct buf *out, struct domain_id domain, uint64_t offset)
{
    size_t at = out->len;
    put_key(out, domain, offset);
    return (struct bytes){out->data + at, KEY_LEN};
}

/* Walks the lengths of [from, to). */
typedef void (*each_fn)(void *user, struct mix_segment segment, struct bytes key, uint32_t bytes);
static enum status each_length(struct keep *k, struct bytes from, struct bytes to, each_fn each, void *user,
                               struct err *err)
{
    struct bytes key, value;
    enum status status;
    struct db_iter *iter = db_iter_open(k->db, k->options.family_meta, from, to, false);
    while ((status = db_iter_next(iter, &key, &value, err)) == ST_OK) {
        struct mix_segment segment;
        struct reader r = reader_of(value.data, value.len);
        uint32_t bytes = read_u32(&r);
        if (!parse_key(key, &segment) || !reader_done(&r)) {
            status =
                err_set(err, ST_CORRUPT, "replay cache: an entry does not parse: remove the cache, it fills again");
            break;
        }
        each(user, segment, key, bytes);
    }
    db_iter_close(&iter);
    return status == ST_EMPTY ? ST_OK : status;
}

static void add_bytes(void *user, struct mix_segment segment, struct bytes key, uint32_t bytes)
{
    (void)segment, (void)key;
    *(uint64_t *)user += bytes;
}

enum status keep_open(struct db *db, const struct keep_options *options, struct keep **out, struct err *err)
{
    CHECK(options->rank);
    struct keep *k = xcalloc(1, sizeof *k);
    k->db = db;
    k->options = *options;
    enum status status = each_length(k, (struct bytes){0}, (struct bytes){0}, add_bytes, &k->bytes, err);
    if (status == ST_OK)
        *out = k;
    else
        free(k);
    return status;
}

void keep_close(struct keep **kp)
{
    free(*kp);
    *kp = NULL;
}

static void delete_key(struct keep *k, struct batch *batch, struct bytes key)
{
    batch_delete(batch, k->options.family_payload, key.data, key.len);
    batch_delete(batch, k->options.family_meta, key.data, key.len);
}

struct eviction {
    struct keep *keep;
    enum keep_rank rank;
    uint64_t target, freed;
    struct batch batch;
};

static void evict_one(void *user, struct mix_segment segment, struct bytes key, uint32_t bytes)
{
    struct eviction *e = user;
    struct keep *k = e->keep;
    if (k->bytes - e->freed <= e->target || k->options.rank(k->options.user, segment.domain, segment.offset) != e->rank)
        return;
    delete_key(k, &e->batch, key);
    e->freed += bytes;
}

/* Deletes loose segments, then members, until at most `target` bytes are held or only pinned ones are left. */
static enum status evict(struct keep *k, uint64_t target, struct err *err)
{
    enum status status = ST_OK;
    for (int rank = KEEP_LOOSE; rank < KEEP_PINNED && k->bytes > target && status == ST_OK; rank++) {
        struct eviction e = {.keep = k, .rank = (enum keep_rank)rank, .target = target};
        status = each_length(k, (struct bytes){0}, (struct bytes){0}, evict_one, &e, err);
        if (status == ST_OK && (status = db_commit(k->db, &e.batch, false, err)) == ST_OK)
            k->bytes -= e.freed;
        batch_release(&e.batch);
    }
    return status;
}

/* Bytes that are overwritten are not held twice. */
static enum status bytes_there(struct keep *k, size_t n, const struct bytes *keys, uint64_t *out, struct err *err)
{
    struct buf values = {0};
    struct bytes *lengths = xcalloc(n, sizeof *lengths);
    enum status status = db_multi_get(k->db, k->options.family_meta, n, keys, &values, lengths, NULL, err);
    *out = 0;
    for (size_t i = 0; i < n && status == ST_OK; i++) {
        struct reader r = reader_of(lengths[i].data, lengths[i].len);
        *out += lengths[i].data ? read_u32(&r) : 0;
    }
    free(lengths);
    buf_release(&values);
    return status;
}

static void encode_value(struct buf *out, const struct mix_segment *segment, struct bytes body)
{
    buf_clear(out);
    buf_put_u8(out, VERSION);
    buf_put_u64(out, 0);
    put_key(out, segment->domain, segment->offset);
    buf_put(out, body.data, body.len);
    uint64_t sum = hash_sip(&SUM_KEY, out->data + 9, out->len - 9);
    for (int i = 0; i < 8; i++)
        out->data[1 + i] = (uint8_t)(sum >> (8 * i));
}

static struct bytes *make_keys(size_t n, const struct mix_segment *segments, struct buf *memory)
{
    struct bytes *keys = xcalloc(n, sizeof *keys);
    buf_reserve(memory, n * KEY_LEN);
    for (size_t i = 0; i < n; i++)
        keys[i] = key_range(memory, segments[i].domain, segments[i].offset);
    return keys;
}

enum status keep_put(struct keep *k, size_t n, const struct mix_segment *segments, const struct bytes *bodies,
                     struct err *err)
{
    uint64_t more = 0, replaced = 0;
    for (size_t i = 0; i < n; i++) {
        if (bodies[i].len > KEEP_SEGMENT_MAX)
            return err_set(err, ST_LIMIT, "replay cache: a segment of %zu bytes; at most %d", bodies[i].len,
                           KEEP_SEGMENT_MAX);
        more += bodies[i].len;
    }
    uint64_t budget = k->options.budget_bytes;
    enum status status = ST_OK;
    if (more > budget || k->bytes > budget - more)
        status = evict(k, more < budget / 10 * 9 ? budget / 10 * 9 - more : 0, err);
    if (status != ST_OK)
        return status;
    if (more > budget || k->bytes > budget - more)
        return err_set(err, ST_LIMIT, "replay cache: %llu bytes do not fit beside the %llu held, budget %llu: raise it",
                       (unsigned long long)more, (unsigned long long)k->bytes, (unsigned long long)budget);
    struct buf memory = {0}, value = {0};
    struct batch batch = {0};
    struct bytes *keys = make_keys(n, segments, &memory);
    status = bytes_there(k, n, keys, &replaced, err);
    for (size_t i = 0; i < n && status == ST_OK; i++) {
        struct buf length = {0};
        encode_value(&value, &segments[i], bodies[i]);
        buf_put_u32(&length, (uint32_t)bodies[i].len);
        batch_put(&batch, k->options.family_payload, keys[i].data, keys[i].len, value.data, value.len);
        batch_put(&batch, k->options.family_meta, keys[i].data, keys[i].len, length.data, length.len);
        buf_release(&length);
    }
    if (status == ST_OK && (status = db_commit(k->db, &batch, false, err)) == ST_OK)
        k->bytes = k->bytes - replaced + more;
    free(keys);
    buf_release(&memory);
    buf_release(&value);
    batch_release(&batch);
    return status;
}

/* Drops a value that did not verify, with its length. */
static enum status drop_damaged(struct keep *k, struct bytes key, struct err *err)
{
    uint64_t bytes;
    struct batch batch = {0};
    enum status status = bytes_there(k, 1, &key, &bytes, err);
    delete_key(k, &batch, key);
    if (status == ST_OK && (status = db_commit(k->db, &batch, false, err)) == ST_OK) {
        k->bytes -= bytes;
        k->damaged++;
    }
    batch_release(&batch);
    return status;
}

enum status keep_get(struct keep *k, size_t n, const struct mix_segment *segments, struct buf *values,
                     struct bytes *out, struct err *err)
{
    struct buf memory = {0};
    struct bytes *keys = make_keys(n, segments, &memory), *raw = xcalloc(n, sizeof *raw);
    enum status *each = xcalloc(n, sizeof *each);
    enum status status = db_multi_get(k->db, k->options.family_payload, n, keys, values, raw, each, err);
    for (size_t i = 0; i < n && status == ST_OK; i++) {
        out[i] = (struct bytes){0};
        if (each[i] == ST_NOT_FOUND)
            continue;
        if (each[i] != ST_OK && each[i] != ST_CORRUPT)
            status = err_set(err, each[i], "replay cache: cannot read");
        else if (each[i] == ST_CORRUPT || !open_value(keys[i], raw[i], &out[i]))
            status = drop_damaged(k, keys[i], err);
    }
    free(keys);
    free(raw);
    free(each);
    buf_release(&memory);
    return status;
}

enum status keep_erase(struct keep *k, struct domain_id domain, uint64_t first, uint64_t count, struct err *err)
{
    if (count == 0)
        return ST_OK;
    struct buf memory = {0};
    struct batch batch = {0};
    uint64_t freed = 0, last = count - 1 > UINT64_MAX - first ? UINT64_MAX : first + (count - 1);
    buf_reserve(&memory, 2 * KEY_LEN + 1);
    struct bytes from = key_range(&memory, domain, first), to = key_range(&memory, domain, last);
    buf_put_u8(&memory, 0); /* the first key after `last` */
    to.len = KEY_LEN + 1;
    enum status status = each_length(k, from, to, add_bytes, &freed, err);
    if (status != ST_OK)
        goto done;
    batch_delete_range(&batch, k->options.family_payload, from.data, from.len, to.data, to.len);
    batch_delete_range(&batch, k->options.family_meta, from.data, from.len, to.data, to.len);
    status = db_commit(k->db, &batch, true, err);
    if (status != ST_OK)
        goto done;
    k->bytes -= freed;
    status = db_purge(k->db, k->options.family_payload, from, to, err);
done:
    buf_release(&memory);
    batch_release(&batch);
    return status;
}

static void collect_key(void *user, struct mix_segment segment, struct bytes key, uint32_t bytes)
{
    (void)key, (void)bytes;
    buf_put(user, &segment, sizeof segment);
}

enum status keep_scrub(struct keep *k, uint64_t *verified, uint64_t *dropped, struct err *err)
{
    struct buf list = {0}, values = {0};
    uint64_t before = k->damaged, good = 0;
    struct bytes out[64];
    enum status status = each_length(k, (struct bytes){0}, (struct bytes){0}, collect_key, &list, err);
    size_t n = list.len / sizeof(struct mix_segment);
    const struct mix_segment *segments = (const void *)list.data;
    for (size_t at = 0; at < n && status == ST_OK; at += 64) {
        size_t some = n - at < 64 ? n - at : 64;
        status = keep_get(k, some, segments + at, &values, out, err);
        for (size_t i = 0; i < some && status == ST_OK; i++)
            good += out[i].data != NULL;
    }
    if (status == ST_OK)
        *verified = good, *dropped = k->damaged - before;
    buf_release(&list);
    buf_release(&values);
    return status;
}

uint64_t keep_bytes(const struct keep *keep)
{
    return keep->bytes;
}

uint64_t keep_damaged(const struct keep *keep)
{
    return keep->damaged;
}

struct tally {
    struct keep_stats stats;
    uint64_t watermark;
};

static void count_segment(void *user, struct mix_segment segment, struct bytes key, uint32_t bytes)
{
    (void)key;
    struct tally *t = user;
    t->stats.first = t->stats.segments ? t->stats.first : segment.offset;
    t->stats.last = segment.offset;
    t->stats.segments++;
    t->stats.bytes += bytes;
    if (segment.offset < t->watermark)
        t->stats.by_age[(unsigned)((double)segment.offset / (double)t->watermark * KEEP_DECILES) % KEEP_DECILES]++;
}

enum status keep_stats(struct keep *k, struct domain_id domain, uint64_t watermark, struct keep_stats *out,
                       struct err *err)
{
    struct buf memory = {0};
    struct tally t = {.watermark = watermark};
    buf_reserve(&memory, 2 * KEY_LEN + 1);
    struct bytes from = key_range(&memory, domain, 0), to = key_range(&memory, domain, UINT64_MAX);
    buf_put_u8(&memory, 0);
    to.len = KEY_LEN + 1;
    enum status status = each_length(k, from, to, count_segment, &t, err);
    if (status == ST_OK)
        *out = t.stats;
    buf_release(&memory);
    return status;
}

enum status keep_next_domain(struct keep *k, struct domain_id from, struct domain_id *out, struct err *err)
{
    struct buf memory = {0};
    struct bytes key, value, first = key_range(&memory, from, 0);
    struct mix_segment segment;
    struct db_iter *iter = db_iter_open(k->db, k->options.family_meta, first, (struct bytes){0}, false);
    enum status status = db_iter_next(iter, &key, &value, err);
    if (status == ST_OK && !parse_key(key, &segment))
        status = err_set(err, ST_CORRUPT, "replay cache: an entry does not parse: remove the cache, it fills again");
    if (status == ST_OK)
        *out = segment.domain;
    db_iter_close(&iter);
    buf_release(&memory);
    return status == ST_EMPTY ? ST_NOT_FOUND : status;
}
