#include "coordinator/bulk.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "net/bulk.h"
#include "net/endpoint.h"

enum {
    UPLOADS_MAX = 256,         /* open files and table rows */
    IDLE_MS = 60 * 1000,       /* an unfinished upload this idle may make room */
    STALE_MS = 30 * 60 * 1000, /* a finished one this old was never recorded */
    STALE_QUEUE = 64,
    HOUSEKEEPING_MS = 5000,
    SEGMENTS_SLICE = 16, /* segments read at once: at the worst a record each */
    TURN = 64,           /* messages before the housekeeping gets its turn */
    RETRY_MS = 2000,
};

struct upload {
    bool used, whole;
    struct digest digest;
    uint64_t total;
    struct blob_writer *writer; /* NULL: a partial of a former run, or whole */
    uint64_t used_ms;
};

struct bulk {
    struct bulk_config config;
    struct endpoint *endpoint;
    int stop_fd;
    pthread_t thread;
    pthread_mutex_t lock; /* of the three below */
    enum status status;
    struct err err;
    struct digest stale[STALE_QUEUE];
    uint32_t n_stale;

    struct upload uploads[UPLOADS_MAX];
    uint64_t housekeeping_ms;
    struct buf chunk, values; /* scratch */
    struct buf card;
    struct series *out_bytes, *in_bytes, *segments;
};

/* ---- replies --------------------------------------------------------------------------------------------------- */

static void reply(struct bulk *b, const struct incoming *in, uint16_t verb, const ProtobufCMessage *message)
{
    (void)endpoint_send(b->endpoint, &in->from, verb, in->request_id, message, NULL); /* a lost reply is asked again */
}

static void refuse(struct bulk *b, const struct incoming *in, enum status status, const char *text, uint32_t retry_ms)
{
    (void)endpoint_send_error(b->endpoint, &in->from, in->request_id, status, text, retry_ms, NULL);
}

static void on_hello(struct bulk *b, const struct incoming *in)
{
    const Alv__Hello *hello = (const Alv__Hello *)in->message;
    const struct line_dir *dir = b->config.dir;
    const struct state_session *s = &b->config.session;
    if (hello->line[0] && strcmp(hello->line, dir->line.s)) {
        struct err err;
        err_set(&err, ST_DENIED, "this is line %s, not %s", dir->line.s, hello->line);
        refuse(b, in, ST_DENIED, err.text, 0);
        return;
    }
    uint16_t protocol = protocol_pick(hello->protocol_min, hello->protocol_max);
    if (!protocol) {
        refuse(b, in, ST_UNSUPPORTED, "this coordinator speaks another protocol: run releases next to each other", 0);
        return;
    }
    Alv__HelloOk ok = ALV__HELLO_OK__INIT;
    ok.protocol = protocol;
    ok.line = (char *)(uintptr_t)dir->line.s;
    ok.session_counter = s->counter;
    ok.session_incarnation = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)s->incarnation};
    ok.previous_incarnation = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)s->previous};
    ok.card = (ProtobufCBinaryData){b->card.len, b->card.data};
    ok.root_key = (ProtobufCBinaryData){SIGN_PUBLIC_LEN, (uint8_t *)(uintptr_t)dir->root.b};
    ok.adapter_rank = dir->shape.rank;
    ok.adapter_alpha = dir->shape.alpha;
    ok.adapter_targets = dir->shape.targets;
    reply(b, in, VERB_HELLO_OK, &ok.base);
}

/* ---- blobs out ------------------------------------------------------------------------------------------------- */

static void on_blob_get(struct bulk *b, const struct incoming *in)
{
    const Alv__BlobGet *get = (const Alv__BlobGet *)in->message;
    struct digest digest, chunk_digest;
    struct err err = {""};
    uint64_t total;
    memcpy(digest.b, get->digest.data, DIGEST_LEN);
    if (!roots_may_get(b->config.roots, &digest, in->role)) { /* same answer for "not yours": names nothing */
        refuse(b, in, ST_NOT_FOUND, "no such blob", 0);
        return;
    }
    buf_clear(&b->chunk);
    enum status st = blob_size(b->config.blobs, &digest, &total, &err);
    if (!st && get->offset > total)
        st = err_set(&err, ST_USAGE, "offset %llu is past the end", (unsigned long long)get->offset);
    if (!st)
        st = blob_read(b->config.blobs, &digest, get->offset, get->len, &b->chunk, &err);
    if (st) {
        refuse(b, in, st, err.text, 0);
        return;
    }
    Alv__BlobChunk chunk = ALV__BLOB_CHUNK__INIT;
    bulk_fill_chunk(&chunk, get->offset, total, b->chunk.data, b->chunk.len, &chunk_digest);
    series_add(b->out_bytes, (double)b->chunk.len);
    reply(b, in, VERB_BLOB_CHUNK, &chunk.base);
}

/* ---- deltas in ------------------------------------------------------------------------------------------------- */

static void upload_end(struct bulk *b, struct upload *u) /* and its bytes with it */
{
    if (u->writer)
        blob_writer_abandon(&u->writer);
    else if (!u->whole)
        (void)blob_delete_partial(b->config.blobs, &u->digest, NULL);
    *u = (struct upload){0};
}

static struct upload *find_upload(struct bulk *b, const struct digest *digest)
{
    for (uint32_t i = 0; i < UPLOADS_MAX; i++)
        if (b->uploads[i].used && digest_eq(&b->uploads[i].digest, digest))
            return &b->uploads[i];
    return NULL;
}

/* Whole uploads are no longer ours once they are recorded: the core's from then on. A round may have used one up and deleted
 * it since we last looked. Those that nobody recorded go to the loop to be deleted. */
static void forget_settled(struct bulk *b, uint64_t now)
{
    for (uint32_t i = 0; i < UPLOADS_MAX; i++) {
        struct upload *u = &b->uploads[i];
        if (!u->used || !u->whole)
            continue;
        bool settled = roots_find(b->config.roots, &u->digest) != ROOT_NONE || !blob_has(b->config.blobs, &u->digest);
        pthread_mutex_lock(&b->lock);
        bool stale = !settled && now - u->used_ms > STALE_MS && b->n_stale < STALE_QUEUE;
        if (stale)
            b->stale[b->n_stale++] = u->digest;
        pthread_mutex_unlock(&b->lock);
        if (settled || stale)
            *u = (struct upload){0};
    }
}

/* A free row with room for `total` bytes, made by ending idle unfinished uploads, oldest first; or NULL. */
static struct upload *make_room(struct bulk *b, uint64_t total)
{
    uint64_t now = clock_ms();
    forget_settled(b, now);
    for (;;) {
        uint64_t held = 0;
        struct upload *free_row = NULL, *idle = NULL;
        for (uint32_t i = 0; i < UPLOADS_MAX; i++) {
            struct upload *u = &b->uploads[i];
            if (!u->used) {
                free_row = free_row ? free_row : u;
                continue;
            }
            held += u->total;
            if (!u->whole && now - u->used_ms > IDLE_MS && (!idle || u->used_ms < idle->used_ms))
                idle = u;
        }
        if (free_row && total <= b->config.upload_bytes && held <= b->config.upload_bytes - total)
            return free_row;
        if (!idle)
            return NULL;
        upload_end(b, idle);
    }
}

static bool is_delta_size(const struct bulk *b, uint64_t total)
{
    const struct adapter_shape *shape = &b->config.dir->shape;
    return total == delta_bytes(shape, DELTA_F32) || total == delta_bytes(shape, DELTA_BF16) ||
           total == delta_bytes(shape, DELTA_INT8);
}

/* The upload that `put` belongs to, with an open writer. */
static enum status open_upload(struct bulk *b, const struct digest *digest, uint64_t total, struct upload **out,
                               struct err *err)
{
    struct upload *u = find_upload(b, digest);
    if (u && u->writer && u->total != total)
        return err_set(err, ST_CONFLICT, "this blob was begun with %llu bytes", (unsigned long long)u->total);
    if (u && !u->writer)
        *u = (struct upload){0}; /* a partial of a former run: counted anew */
    if (!u || !u->used) {
        if (!is_delta_size(b, total))
            return err_set(err, ST_LIMIT, "%llu bytes is not the size of a delta of this line",
                           (unsigned long long)total);
        if (!(u = make_room(b, total)))
            return err_set(err, ST_AGAIN, "too many uploads at once");
        enum status st = blob_writer_open(b->config.blobs, digest, total, &u->writer, err);
        if (st)
            return st;
        u->used = true;
        u->digest = *digest;
        u->total = total;
    }
    u->used_ms = clock_ms();
    *out = u;
    return ST_OK;
}

static enum status put_data(struct bulk *b, const Alv__BlobPut *put, struct upload *u, Alv__BlobPutOk *ok,
                            struct err *err)
{
    uint64_t at = blob_writer_at(u->writer);
    enum status st = ST_OK;
    if (put->data.len && put->offset == at) { /* another offset: a repeat, or a gap; the answer says where to go on */
        st = blob_writer_put(u->writer, put->data.data, put->data.len, err);
        at = blob_writer_at(u->writer);
        series_add(b->in_bytes, (double)put->data.len);
    }
    if (!st && at == u->total) {
        st = blob_writer_commit(&u->writer, err);
        if (st == ST_VERIFY && !u->writer)
            *u = (struct upload){0};
        u->whole = !st;
        ok->complete = !st;
    }
    if (st && u->used && u->writer && st != ST_NO_SPACE)
        upload_end(b, u);
    ok->next = at;
    return st;
}

static void on_blob_put(struct bulk *b, const struct incoming *in)
{
    const Alv__BlobPut *put = (const Alv__BlobPut *)in->message;
    struct digest digest;
    struct err err = {""};
    struct upload *u = NULL;
    Alv__BlobPutOk ok = ALV__BLOB_PUT_OK__INIT;
    memcpy(digest.b, put->digest.data, DIGEST_LEN);
    enum status st = bulk_check_put(put, &err);
    if (!st && blob_has(b->config.blobs, &digest)) {
        ok.next = put->total;
        ok.complete = true;
    } else if (!st && !(st = open_upload(b, &digest, put->total, &u, &err))) {
        st = put_data(b, put, u, &ok, &err);
    }
    if (st)
        refuse(b, in, st == ST_NO_SPACE ? ST_AGAIN : st, err.text, st == ST_AGAIN || st == ST_NO_SPACE ? RETRY_MS : 0);
    else
        reply(b, in, VERB_BLOB_PUT_OK, &ok.base);
}

/* ---- segments out ---------------------------------------------------------------------------------------------- */

struct page { /* a reply in the making */
    Alv__Segments segments;
    Alv__Segment *items[LIMIT_SEGMENTS_GET], store[LIMIT_SEGMENTS_GET];
    struct buf bytes; /* groups and texts; the items point into it at the end */
    size_t group_at[LIMIT_SEGMENTS_GET], text_at[LIMIT_SEGMENTS_GET], text_bytes;
};

/* One stored segment, or NULL; false: it does not decode. */
static bool add_segment(struct page *page, uint64_t offset, struct bytes value)
{
    size_t i = page->segments.n_segments++;
    Alv__Segment *item = &page->store[i];
    alv__segment__init(item);
    page->items[i] = item;
    item->offset = offset;
    page->group_at[i] = page->text_at[i] = page->bytes.len;
    if (!value.data) {
        item->missing = true;
        return true;
    }
    struct state_segment seg;
    if (!state_segment_get(value, &seg))
        return false;
    item->kind = (Alv__RecordKind)seg.kind;
    item->piece = seg.piece;
    buf_put(&page->bytes, seg.group, sizeof seg.group);
    page->text_at[i] = page->bytes.len;
    buf_put(&page->bytes, seg.text.data, seg.text.len);
    item->group.len = sizeof seg.group;
    item->text.len = seg.text.len;
    page->text_bytes += seg.text.len;
    return true;
}

/* Text that was given back (rollback, released quarantine) stands at new offsets which link to the old, lower ones. ST_EMPTY:
 * no link covers the offset. */
static enum status follow_link(struct bulk *b, struct domain_id domain, uint64_t *offset, struct err *err)
{
    struct state_key from = key_domain('k', domain, 0), to = key_domain('k', domain, *offset + 1);
    struct db_iter *iter =
        db_iter_open(b->config.db, FAMILY_META, (struct bytes){from.b, from.len}, (struct bytes){to.b, to.len}, false);
    struct bytes key, value;
    struct state_link link = {0};
    struct domain_id d;
    uint64_t first = 0;
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err)))
        if (!key_read_domain(key, &d, &first) || !state_link_get(value, &link)) {
            st = err_set(err, ST_CORRUPT, "a stored link of domain %u does not decode", domain.v);
            break;
        }
    db_iter_close(&iter);
    if (st != ST_EMPTY)
        return st;
    if (!link.count || *offset - first >= link.count || link.source + (*offset - first) >= *offset)
        return ST_EMPTY;
    *offset = link.source + (*offset - first);
    return ST_OK;
}

static enum status add_linked(struct bulk *b, struct page *page, struct domain_id domain, uint64_t offset,
                              struct err *err)
{
    struct buf value = {0};
    uint64_t at = offset;
    enum status st = ST_NOT_FOUND;
    while (st == ST_NOT_FOUND && !(st = follow_link(b, domain, &at, err))) {
        struct state_key key = key_stream('s', domain, false, at);
        st = db_get(b->config.db, FAMILY_STREAM, key.b, key.len, &value, err);
    }
    struct bytes found = st ? (struct bytes){0} : buf_bytes(&value);
    if (st == ST_EMPTY || st == ST_NOT_FOUND)
        st = ST_OK; /* trimmed, erased, or never was: the page says that it is missing */
    if (!st && !add_segment(page, offset, found))
        st = err_set(err, ST_CORRUPT, "segment %u/%llu does not decode", domain.v, (unsigned long long)at);
    buf_release(&value);
    return st;
}

static enum status read_slice(struct bulk *b, const Alv__SegmentsGet *get, size_t first, size_t n, struct page *page,
                              struct err *err)
{
    struct state_key keys[SEGMENTS_SLICE];
    struct bytes views[SEGMENTS_SLICE], values[SEGMENTS_SLICE];
    uint64_t offsets[SEGMENTS_SLICE];
    struct reader r = reader_of(get->offsets.data + 8 * first, 8 * n);
    struct domain_id domain = {(uint16_t)get->domain};
    for (size_t i = 0; i < n; i++) {
        offsets[i] = read_u64(&r);
        keys[i] = key_stream('s', domain, get->probe, offsets[i]);
        views[i] = (struct bytes){keys[i].b, keys[i].len};
    }
    enum status st = db_multi_get(b->config.db, FAMILY_STREAM, n, views, &b->values, values, NULL, err);
    for (size_t i = 0; !st && i < n && page->text_bytes < LIMIT_SEGMENTS_BYTES; i++)
        if (!values[i].data && !get->probe)
            st = add_linked(b, page, domain, offsets[i], err);
        else if (!add_segment(page, offsets[i], values[i]))
            st = err_set(err, ST_CORRUPT, "segment %u/%llu does not decode", get->domain,
                         (unsigned long long)offsets[i]);
    return st;
}

static void on_segments_get(struct bulk *b, const struct incoming *in)
{
    const Alv__SegmentsGet *get = (const Alv__SegmentsGet *)in->message;
    size_t n = get->offsets.len / 8;
    struct err err = {""};
    enum status st = ST_OK;
    struct page *page = xcalloc(1, sizeof *page);
    alv__segments__init(&page->segments);
    if (get->offsets.len % 8 || n > LIMIT_SEGMENTS_GET || get->domain > UINT16_MAX)
        st = err_set(&err, ST_BAD_DATA, "segments-get: offsets or domain out of range");
    for (size_t i = 0; !st && i < n && page->text_bytes < LIMIT_SEGMENTS_BYTES; i += SEGMENTS_SLICE)
        st = read_slice(b, get, i, n - i < SEGMENTS_SLICE ? n - i : SEGMENTS_SLICE, page, &err);
    if (st) {
        if (st == ST_CORRUPT)
            log_error("bulk", "%s", err.text);
        refuse(b, in, st, err.text, 0);
    } else {
        for (size_t i = 0; i < page->segments.n_segments; i++) {
            page->store[i].group.data = page->bytes.data + page->group_at[i];
            page->store[i].text.data = page->bytes.data + page->text_at[i];
        }
        page->segments.segments = page->items;
        series_add(b->segments, (double)page->segments.n_segments);
        reply(b, in, VERB_SEGMENTS, &page->segments.base);
    }
    buf_release(&page->bytes);
    free(page);
}

/* ---- the thread ------------------------------------------------------------------------------------------------ */

static void housekeeping(struct bulk *b)
{
    uint64_t now = clock_ms();
    if (now - b->housekeeping_ms < HOUSEKEEPING_MS)
        return;
    b->housekeeping_ms = now;
    forget_settled(b, now);
}

static void dispatch(struct bulk *b, const struct incoming *in)
{
    switch (in->verb) {
    case VERB_HELLO:
        on_hello(b, in);
        break;
    case VERB_BLOB_GET:
        on_blob_get(b, in);
        break;
    case VERB_BLOB_PUT:
        on_blob_put(b, in);
        break;
    case VERB_SEGMENTS_GET:
        on_segments_get(b, in);
        break;
    default: /* the endpoint admits the table's verbs only */
        refuse(b, in, ST_UNSUPPORTED, "not on this plane", 0);
    }
}

static void *thread_main(void *arg)
{
    struct bulk *b = arg;
    pthread_setname_np(pthread_self(), "bulk");
    struct err err;
    enum status st = ST_OK;
    for (;;) {
        unsigned ready = 0;
        st = endpoint_wait(b->endpoint, true, &b->stop_fd, 1, HOUSEKEEPING_MS, &ready, &err);
        if (st && st != ST_TIMEOUT)
            break;
        if (ready & 1) {
            st = ST_OK;
            break;
        }
        for (int i = 0; i < TURN; i++) {
            struct incoming in;
            st = endpoint_recv(b->endpoint, &in, &err);
            if (st)
                break;
            dispatch(b, &in);
            incoming_release(&in);
        }
        if (st && st != ST_EMPTY)
            break;
        housekeeping(b);
    }
    pthread_mutex_lock(&b->lock);
    b->status = st;
    b->err = err;
    pthread_mutex_unlock(&b->lock);
    return NULL;
}

/* Partials of a former run may be resumed; until then they count against the bound and make room first. */
static enum status note_partial(void *user, const struct digest *digest, uint64_t bytes, struct err *err)
{
    struct bulk *b = user;
    for (uint32_t i = 0; i < UPLOADS_MAX; i++)
        if (!b->uploads[i].used) {
            b->uploads[i] = (struct upload){.used = true, .digest = *digest, .total = bytes};
            return ST_OK;
        }
    return blob_delete_partial(b->config.blobs, digest, err);
}

static void bulk_free(struct bulk *b)
{
    for (uint32_t i = 0; i < UPLOADS_MAX; i++)
        blob_writer_close(&b->uploads[i].writer);
    endpoint_close(b->endpoint);
    if (b->stop_fd >= 0)
        close(b->stop_fd);
    buf_release(&b->chunk);
    buf_release(&b->values);
    buf_release(&b->card);
    pthread_mutex_destroy(&b->lock);
    free(b);
}

enum status bulk_start(const struct bulk_config *config, struct bulk **out, struct err *err)
{
    struct bulk *b = xcalloc(1, sizeof *b);
    b->config = *config;
    pthread_mutex_init(&b->lock, NULL);
    card_encode(&config->dir->card, &b->card);
    b->out_bytes = metrics_counter(config->metrics, "alluvium_bulk_sent_bytes_total", "Blob bytes sent", NULL);
    b->in_bytes = metrics_counter(config->metrics, "alluvium_bulk_received_bytes_total", "Delta bytes received", NULL);
    b->segments = metrics_counter(config->metrics, "alluvium_segments_sent_total", "Segments sent to workers", NULL);
    struct endpoint_config ec = {.zmq = config->zmq,
                                 .keys = config->keys,
                                 .server = config->dir->server,
                                 .host = config->host,
                                 .port = config->port,
                                 .planes = 1u << PLANE_BULK,
                                 .metrics = config->metrics};
    enum status st = ST_OK;
    if ((b->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        st = err_set(err, ST_IO, "eventfd: %s", strerror(errno));
    if (!st)
        st = blob_list_partials(config->blobs, note_partial, b, err);
    if (!st)
        st = endpoint_open(&ec, &b->endpoint, err);
    if (!st) {
        int rc = pthread_create(&b->thread, NULL, thread_main, b);
        if (rc)
            st = err_set(err, ST_IO, "cannot start the bulk thread: %s", strerror(rc));
    }
    if (st)
        bulk_free(b);
    else
        *out = b;
    return st;
}

void bulk_stop(struct bulk **bp)
{
    struct bulk *b = *bp;
    if (!b)
        return;
    *bp = NULL;
    uint64_t one = 1;
    ssize_t n = write(b->stop_fd, &one, sizeof one);
    CHECK(n == sizeof one);
    pthread_join(b->thread, NULL);
    bulk_free(b);
}

enum status bulk_status(struct bulk *b, struct err *err)
{
    pthread_mutex_lock(&b->lock);
    enum status st = b->status;
    if (st && err)
        *err = b->err;
    pthread_mutex_unlock(&b->lock);
    return st;
}

bool bulk_take_stale(struct bulk *b, struct digest *out)
{
    pthread_mutex_lock(&b->lock);
    bool any = b->n_stale > 0;
    if (any)
        *out = b->stale[--b->n_stale];
    pthread_mutex_unlock(&b->lock);
    return any;
}
