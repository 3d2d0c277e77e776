/* Bulk plane, as a client. Sends BLOB_GET (inside bulk_get) and SEGMENTS_GET; receives BLOB_CHUNK and SEGMENTS. */
#include "worker/fetch.h"

#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "proto/codec.h"

enum { CALL_MS = 60000, CACHE_BATCH = 1024, ADAPTER_HEAD_MAX = 1 << 20 };

/* ---- adapters */

static enum status load_or_get(struct fetch *fetch, const Alv__BlobRef *ref, size_t bytes_max, struct buf *out,
                               struct err *err)
{
    struct digest digest, stored;
    memcpy(digest.b, ref->digest.data, DIGEST_LEN);
    if (blob_has(fetch->blobs, &digest)) {
        enum status status = blob_load(fetch->blobs, &digest, bytes_max, out, err);
        if (status != ST_CORRUPT)
            return status;
        blob_delete(fetch->blobs, &digest, NULL); /* ours is damaged: get it anew */
        buf_clear(out);
    }
    enum status status = bulk_get(fetch->bulk, &digest, ref->bytes, bytes_max, out, NULL, err);
    if (status == ST_OK && blob_put(fetch->blobs, out->data, out->len, &stored, err) != ST_OK)
        log_warn("fetch", "an adapter could not be kept why=\"%s\"", err ? err->text : "");
    return status;
}

enum status fetch_adapter(struct fetch *fetch, const Alv__BlobRef *ref, const struct adapter_shape *shape, float *block,
                          struct err *err)
{
    struct buf bytes = {0};
    size_t bytes_max = adapter_floats(shape) * sizeof(float) + ADAPTER_HEAD_MAX;
    if (ref->bytes > bytes_max)
        return err_set(err, ST_LIMIT, "an adapter of %llu bytes; this line's shape has at most %zu",
                       (unsigned long long)ref->bytes, bytes_max);
    enum status status = load_or_get(fetch, ref, bytes_max, &bytes, err);
    if (status == ST_OK)
        status = adapter_read_peft(shape, bytes.data, bytes.len, block, err);
    buf_release(&bytes);
    return status;
}

/* ---- segments */

static int compare_places(struct mix_segment a, struct mix_segment b)
{
    if (a.domain.v != b.domain.v)
        return a.domain.v < b.domain.v ? -1 : 1;
    return a.offset < b.offset ? -1 : a.offset > b.offset;
}

static int compare_wanted(const void *a, const void *b)
{
    return compare_places(*(const struct mix_segment *)a, *(const struct mix_segment *)b);
}

static int compare_items(const void *a, const void *b)
{
    return compare_places(((const struct placed_segment *)a)->at, ((const struct placed_segment *)b)->at);
}

const Alv__Segment *segment_set_find(const struct segment_set *set, struct mix_segment at)
{
    struct placed_segment key = {.at = at},
                          *found = set->n ? bsearch(&key, set->items, set->n, sizeof key, compare_items) : NULL;
    return found ? found->segment : NULL;
}

void segment_set_release(struct segment_set *set)
{
    for (uint32_t i = 0; i < set->n; i++)
        alv__segment__free_unpacked(set->items[i].segment, NULL);
    free(set->items);
    *set = (struct segment_set){.probe = set->probe};
}

static bool usable(const Alv__Segment *s, uint64_t offset)
{
    return s->offset == offset && !s->missing && s->text.len <= LIMIT_RECORD_BYTES && s->group.len == 8 &&
           (s->kind == ALV__RECORD_KIND__RECORD_TEXT || s->kind == ALV__RECORD_KIND__RECORD_CHAT);
}

/* Fills `got` from the cache where it can. */
static enum status from_cache(struct fetch *fetch, struct placed_segment *got, uint32_t n, struct err *err)
{
    struct mix_segment places[CACHE_BATCH];
    struct bytes bodies[CACHE_BATCH];
    struct buf values = {0};
    enum status status = ST_OK;
    for (uint32_t at = 0; at < n && status == ST_OK; at += CACHE_BATCH) {
        uint32_t m = n - at < CACHE_BATCH ? n - at : CACHE_BATCH;
        for (uint32_t i = 0; i < m; i++)
            places[i] = got[at + i].at;
        status = keep_get(fetch->keep, m, places, &values, bodies, err);
        for (uint32_t i = 0; i < m && status == ST_OK; i++) {
            if (!bodies[i].data)
                continue;
            Alv__Segment *s = alv__segment__unpack(NULL, bodies[i].len, bodies[i].data);
            if (s && usable(s, places[i].offset))
                got[at + i].segment = s;
            else if (s)
                alv__segment__free_unpacked(s, NULL);
        }
    }
    buf_release(&values);
    return status;
}

/* Into the cache. It may be full or the disk short: the text is here all the same. */
static void to_cache(struct fetch *fetch, const struct mix_segment *places, Alv__Segment *const *segments, size_t n)
{
    struct err err;
    struct buf all = {0};
    struct bytes *bodies = xcalloc(n, sizeof *bodies);
    size_t total = 0;
    for (size_t i = 0; i < n; i++)
        total += bodies[i].len = alv__segment__get_packed_size(segments[i]);
    buf_reserve(&all, total + 1);
    for (size_t i = 0; i < n; i++) {
        bodies[i].data = buf_extend(&all, bodies[i].len);
        alv__segment__pack(segments[i], all.data + (all.len - bodies[i].len));
    }
    if (keep_put(fetch->keep, n, places, bodies, &err) != ST_OK)
        log_debug("fetch", "segments were not cached n=%zu why=\"%s\"", n, err.text);
    free(bodies);
    buf_release(&all);
}

/* The reply's own goes with the reply. */
static Alv__Segment *copy_segment(const Alv__Segment *from)
{
    Alv__Segment *s = xmalloc(sizeof *s);
    alv__segment__init(s);
    s->offset = from->offset;
    s->kind = from->kind;
    s->group = (ProtobufCBinaryData){from->group.len, xmemdup(from->group.data, from->group.len)};
    s->text = (ProtobufCBinaryData){from->text.len, xmemdup(from->text.data, from->text.len)};
    return s;
}

/* One request: the longest piece of [from, n) that is missing, of one domain, in order. Takes what the reply holds. */
static enum status ask_log(struct fetch *fetch, bool probe, struct placed_segment *const *missing, uint32_t n,
                           uint32_t *taken, struct err *err)
{
    Alv__SegmentsGet get = ALV__SEGMENTS_GET__INIT;
    struct mix_segment places[LIMIT_SEGMENTS_GET];
    Alv__Segment *segments[LIMIT_SEGMENTS_GET];
    struct buf offsets = {0};
    ProtobufCMessage *reply = NULL;
    uint16_t domain = missing[0]->at.domain.v;
    uint32_t asked = 0;
    for (; asked < n && asked < LIMIT_SEGMENTS_GET && missing[asked]->at.domain.v == domain; asked++)
        buf_put_u64(&offsets, missing[asked]->at.offset);
    get.domain = domain;
    get.probe = probe;
    get.offsets = (ProtobufCBinaryData){offsets.len, offsets.data};
    enum status status = conn_call(fetch->bulk, VERB_SEGMENTS_GET, &get.base, CALL_MS, &reply, err);
    buf_release(&offsets);
    if (status != ST_OK)
        return status;

    Alv__Segments *list = (Alv__Segments *)reply;
    uint32_t n_got = list->n_segments < asked ? (uint32_t)list->n_segments : asked;
    if (n_got == 0)
        status = err_set(err, ST_BAD_DATA, "the log answered %u segments of domain %u with none", asked, domain);
    uint32_t n_good = 0; /* what came is kept, though one be gone: the task is planned anew with most of it */
    for (uint32_t i = 0; i < n_got && status != ST_BAD_DATA; i++) {
        Alv__Segment *s = list->segments[i];
        places[n_good] = missing[i]->at;
        if (s->missing && status == ST_OK) { /* the first is named */
            status = err_set(err, ST_NOT_FOUND, "domain %u: %s segment %llu is no longer in the log", domain,
                             probe ? "probe" : "train", (unsigned long long)missing[i]->at.offset);
        } else if (!s->missing && !usable(s, missing[i]->at.offset)) {
            status = err_set(err, ST_BAD_DATA, "domain %u: the log's answer for segment %llu is malformed", domain,
                             (unsigned long long)missing[i]->at.offset);
        } else if (!s->missing) {
            segments[n_good++] = s;
        }
    }
    if (!probe && n_good)
        to_cache(fetch, places, segments, n_good);
    if (status == ST_OK) {
        for (uint32_t i = 0; i < n_got; i++)
            missing[i]->segment = copy_segment(list->segments[i]);
        *taken = n_got;
    }
    codec_free(reply);
    return status;
}

enum status fetch_segments(struct fetch *fetch, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                           struct err *err)
{
    enum status status = ST_OK;
    struct mix_segment *places = xcalloc((size_t)n + 1, sizeof *places);
    struct placed_segment *got = xcalloc((size_t)n + 1, sizeof *got),
                          **missing = xcalloc((size_t)n + 1, sizeof *missing);
    uint32_t n_got = 0, n_missing = 0;
    memcpy(places, wanted, n * sizeof *places);
    qsort(places, n, sizeof *places, compare_wanted);
    for (uint32_t i = 0; i < n; i++)
        if ((i == 0 || compare_places(places[i], places[i - 1]) != 0) && !segment_set_find(set, places[i]))
            got[n_got++].at = places[i];
    if (!set->probe)
        status = from_cache(fetch, got, n_got, err);
    for (uint32_t i = 0; i < n_got && status == ST_OK; i++)
        if (!got[i].segment)
            missing[n_missing++] = &got[i];
    set->from_cache += n_got - n_missing;
    for (uint32_t at = 0, taken; at < n_missing && status == ST_OK; at += taken)
        status = ask_log(fetch, set->probe, missing + at, n_missing - at, &taken, err);
    if (status == ST_OK) {
        set->from_log += n_missing;
        set->items = xrealloc_array(set->items, (size_t)set->n + n_got + 1, sizeof *set->items);
        memcpy(set->items + set->n, got, n_got * sizeof *got);
        set->n += n_got;
        qsort(set->items, set->n, sizeof *set->items, compare_items);
    } else {
        for (uint32_t i = 0; i < n_got; i++)
            if (got[i].segment)
                alv__segment__free_unpacked(got[i].segment, NULL);
    }
    free(missing);
    free(got);
    free(places);
    return status;
}
