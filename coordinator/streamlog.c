/* Family meta holds one key of ours among the core's: MARK_KEY -> the witness mark (witness.h) of the newest group. */
#include "coordinator/streamlog.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "coordinator/core/state.h"
#include "store/witness.h"

static const char *const FAMILY_NAMES[FAMILIES] = {"meta",   "stream",   "dedupe", "leases",
                                                   "deltas", "versions", "matrix", "audit"};
static const enum db_shape FAMILY_SHAPES[FAMILIES] = {[FAMILY_STREAM] = DB_LOG, [FAMILY_DEDUPE] = DB_HASHED};
static const char MARK_KEY[] = "\xff"
                               "witness";

enum {
    WRITE_BUFFER = 32 << 20, /* larger: fewer files to merge; a restart replays up to four of these from the log */
    CACHE = 64 << 20,
    NO_SPACE_RETRY_MS = 500,
};

struct group { /* batches on their way to one commit */
    struct batch batch;
    uint64_t last_seq;
    uint32_t n;
};

struct streamlog {
    struct db *db;
    struct witness *witness;
    struct witness_mark mark; /* of what is committed; the committing thread's */
    struct group open;        /* the owner's */

    pthread_t thread;
    bool started;
    int notify_fd;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct group busy; /* the thread's while `has_work` */
    bool has_work, stop;
    uint64_t durable;
    enum status status;
    struct err err;
    struct streamlog_stats stats;

    struct push_facts *facts; /* scratch of one batch */
    struct bytes *keys, *values;
    size_t facts_cap;
    struct buf key_bytes, content_values, id_values, record;
};

static enum status read_mark(struct streamlog *log, struct err *err)
{
    struct buf b = {0};
    enum status st = db_get(log->db, FAMILY_META, MARK_KEY, sizeof MARK_KEY - 1, &b, err);
    if (st == ST_NOT_FOUND)
        st = ST_OK; /* a new database: the mark of nothing */
    else if (!st && !witness_mark_decode(b.data, b.len, &log->mark))
        st = err_set(err, ST_CORRUPT, "the database's own mark has %zu bytes; restore a backup", b.len);
    buf_release(&b);
    return st;
}

enum status streamlog_open(const char *db_path, const char *witness_path, uint64_t reserve_bytes, bool create,
                           struct streamlog **out, struct err *err)
{
    struct streamlog *log = xcalloc(1, sizeof *log);
    pthread_mutex_init(&log->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&log->wake, &attr);
    pthread_condattr_destroy(&attr);

    struct db_options options = {.families = FAMILY_NAMES,
                                 .shapes = FAMILY_SHAPES,
                                 .n_families = FAMILIES,
                                 .write_buffer_bytes = WRITE_BUFFER,
                                 .cache_bytes = CACHE,
                                 .reserve_bytes = reserve_bytes,
                                 .create = create};
    struct witness_mark seen = {0};
    enum status st = db_open(db_path, &options, &log->db, err);
    if (!st)
        st = read_mark(log, err);
    if (!st)
        st = witness_open(witness_path, create, &log->witness, &seen, err);
    if (!st)
        st = witness_compare(&seen, &log->mark, db_path, err);
    if (st) {
        streamlog_close(&log, NULL);
        return st;
    }
    log->durable = log->open.last_seq = log->mark.applied_seq;
    *out = log;
    return ST_OK;
}

struct db *streamlog_db(struct streamlog *log)
{
    return log->db;
}

/* Our own key is not the core's. */
static bool is_mark(uint8_t family, struct bytes key)
{
    return family == FAMILY_META && key.len == sizeof MARK_KEY - 1 && !memcmp(key.data, MARK_KEY, key.len);
}

enum status streamlog_load(struct streamlog *log, struct core *core, struct err *err)
{
    struct load_range range;
    while (core_load_next(core, &range)) {
        struct bytes key, value;
        struct db_iter *iter = db_iter_open(log->db, range.family, (struct bytes){range.from, range.from_len},
                                            (struct bytes){range.to_len ? range.to : NULL, range.to_len}, false);
        enum status st;
        while (!(st = db_iter_next(iter, &key, &value, err)))
            if (!is_mark(range.family, key) && (st = core_load(core, range.family, key, value, err)))
                break;
        db_iter_close(&iter);
        if (st != ST_EMPTY)
            return st;
    }
    return ST_OK;
}

/* ---- committing ------------------------------------------------------------------------------------------------ */

void streamlog_append(struct streamlog *log, uint64_t seq, struct batch *batch)
{
    CHECK_EQ(seq, log->open.last_seq + 1);
    if (log->open.batch.n) {
        batch_append(&log->open.batch, batch);
        batch_clear(batch);
    } else {
        struct batch empty = log->open.batch;
        log->open.batch = *batch;
        *batch = empty;
    }
    log->open.last_seq = seq;
    log->open.n++;
}

bool streamlog_full(const struct streamlog *log)
{
    return log->open.batch.ops.len >= STREAMLOG_GROUP_MAX;
}

/* The keys of the dedupe family are hashes, and inserting in random order is what a commit spends most of its time on: a
 * sorted group walks RocksDB's skip list along. What is said about one key keeps its order. */
struct dedupe_op {
    uint64_t head; /* of the key, big-endian: it decides almost always */
    struct bytes key;
    size_t at, len; /* of the whole operation in the batch */
};

static uint64_t head_of(struct bytes key)
{
    uint64_t head = 0;
    for (size_t i = 0; i < 8; i++)
        head = head << 8 | (i < key.len ? key.data[i] : 0);
    return head;
}

static int by_key(const void *a, const void *b)
{
    const struct dedupe_op *x = a, *y = b;
    if (x->head != y->head)
        return x->head < y->head ? -1 : 1;
    int order = memcmp(x->key.data, y->key.data, x->key.len < y->key.len ? x->key.len : y->key.len);
    if (!order && x->key.len != y->key.len)
        order = x->key.len < y->key.len ? -1 : 1;
    return order ? order : x->at < y->at ? -1 : 1;
}

static void sort_dedupe(struct group *group)
{
    struct batch *batch = &group->batch;
    struct dedupe_op *ops = xcalloc(batch->n + 1, sizeof *ops);
    struct buf sorted = {0};
    struct batch_op op;
    size_t n = 0, at = 0, next = 0;
    buf_reserve(&sorted, batch->ops.len + 128);
    for (; batch_next(batch, &next, &op); at = next)
        if (op.family == FAMILY_DEDUPE)
            ops[n++] = (struct dedupe_op){head_of(op.key), op.key, at, next - at};
        else
            buf_put(&sorted, batch->ops.data + at, next - at);
    qsort(ops, n, sizeof *ops, by_key);
    for (size_t i = 0; i < n; i++)
        buf_put(&sorted, batch->ops.data + ops[i].at, ops[i].len);
    buf_release(&batch->ops);
    batch->ops = sorted;
    free(ops);
}

/* One group to the disk. The failpoints are the three moments at which a crash could tell an ack from the truth. */
static enum status commit_group(struct streamlog *log, struct group *group, struct err *err)
{
    struct witness_mark next;
    uint8_t mark[WITNESS_MARK_LEN];
    struct batch last = {0};
    sort_dedupe(group);
    size_t ops_len = group->batch.ops.len;
    uint32_t ops_n = group->batch.n;

    double start = clock_s();
    witness_next(&log->mark, &group->batch, &next);
    next.applied_seq = group->last_seq; /* a group is several steps */
    witness_mark_encode(&next, mark);
    batch_put(&last, FAMILY_META, MARK_KEY, sizeof MARK_KEY - 1, mark, sizeof mark);
    batch_append(&group->batch, &last);
    batch_release(&last);

    (void)FAILPOINT("streamlog.before_commit");
    enum status st = db_commit(log->db, &group->batch, true, err);
    (void)FAILPOINT("streamlog.after_commit");
    if (!st)
        st = witness_write(log->witness, &next, err);
    (void)FAILPOINT("streamlog.after_witness");
    if (st) {
        group->batch.ops.len = ops_len; /* without the mark: it is made anew when this is tried again */
        group->batch.n = ops_n;
        return st;
    }
    log->mark = next;
    pthread_mutex_lock(&log->lock);
    log->durable = group->last_seq;
    log->stats.groups++;
    log->stats.batches += group->n;
    log->stats.bytes += ops_len;
    log->stats.seconds += clock_s() - start;
    pthread_mutex_unlock(&log->lock);
    batch_clear(&group->batch);
    group->n = 0;
    return ST_OK;
}

enum status streamlog_commit(struct streamlog *log, struct err *err)
{
    CHECK(!log->started);
    return log->open.batch.n ? commit_group(log, &log->open, err) : ST_OK;
}

/* Waits a little for space; false when told to stop. */
static bool wait_for_space(struct streamlog *log)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += NO_SPACE_RETRY_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&log->lock);
    while (!log->stop && !pthread_cond_timedwait(&log->wake, &log->lock, &until))
        ;
    bool go_on = !log->stop;
    pthread_mutex_unlock(&log->lock);
    return go_on;
}

static void notify(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    CHECK(n == sizeof one); /* an eventfd: full only after 2^64 - 2 groups nobody looked at */
}

static void *commit_thread(void *arg)
{
    struct streamlog *log = arg;
    pthread_setname_np(pthread_self(), "commit");
    for (;;) {
        pthread_mutex_lock(&log->lock);
        while (!log->has_work && !log->stop)
            pthread_cond_wait(&log->wake, &log->lock);
        bool work = log->has_work;
        pthread_mutex_unlock(&log->lock);
        if (!work)
            return NULL;

        struct err err;
        enum status st;
        while ((st = commit_group(log, &log->busy, &err)) == ST_NO_SPACE) {
            log_error("streamlog", "no space, acks wait error=\"%s\"", err.text);
            if (!wait_for_space(log))
                break;
        }
        pthread_mutex_lock(&log->lock);
        log->has_work = false;
        if (st) {
            log->status = st;
            log->err = err;
        }
        pthread_mutex_unlock(&log->lock);
        notify(log->notify_fd);
        if (st)
            return NULL;
    }
}

enum status streamlog_start(struct streamlog *log, int notify_fd, struct err *err)
{
    log->notify_fd = notify_fd;
    log->busy.last_seq = log->open.last_seq;
    int rc = pthread_create(&log->thread, NULL, commit_thread, log);
    if (rc)
        return err_set(err, ST_IO, "cannot start the commit thread: %s", strerror(rc));
    log->started = true;
    return ST_OK;
}

void streamlog_handover(struct streamlog *log)
{
    if (!log->open.batch.n)
        return;
    pthread_mutex_lock(&log->lock);
    if (!log->has_work && !log->status) {
        struct batch empty = log->busy.batch;
        log->busy = log->open;
        log->open.batch = empty;
        log->open.n = 0;
        log->has_work = true;
        pthread_cond_signal(&log->wake);
    }
    pthread_mutex_unlock(&log->lock);
}

enum status streamlog_durable(struct streamlog *log, uint64_t *seq, struct err *err)
{
    pthread_mutex_lock(&log->lock);
    *seq = log->durable;
    enum status st = log->status;
    if (st && err)
        *err = log->err;
    pthread_mutex_unlock(&log->lock);
    return st;
}

void streamlog_stats(struct streamlog *log, struct streamlog_stats *out)
{
    pthread_mutex_lock(&log->lock);
    *out = log->stats;
    pthread_mutex_unlock(&log->lock);
}

enum status streamlog_close(struct streamlog **logp, struct err *err)
{
    struct streamlog *log = *logp;
    if (!log)
        return ST_OK;
    *logp = NULL;
    if (log->started) { /* the thread finishes the group it has, and leaves */
        pthread_mutex_lock(&log->lock);
        log->stop = true;
        pthread_cond_signal(&log->wake);
        pthread_mutex_unlock(&log->lock);
        pthread_join(log->thread, NULL);
        log->started = false;
    }
    enum status st = log->status;
    if (st && err)
        *err = log->err;
    if (!st && log->witness)
        st = streamlog_commit(log, err);
    witness_close(&log->witness);
    db_close(&log->db);
    batch_release(&log->open.batch);
    batch_release(&log->busy.batch);
    free(log->facts);
    free(log->keys);
    free(log->values);
    buf_release(&log->key_bytes);
    buf_release(&log->content_values);
    buf_release(&log->id_values);
    buf_release(&log->record);
    pthread_mutex_destroy(&log->lock);
    pthread_cond_destroy(&log->wake);
    free(log);
    return st;
}

/* ---- reading ahead --------------------------------------------------------------------------------------------- */

static void reserve_facts(struct streamlog *log, size_t n)
{
    if (n <= log->facts_cap)
        return;
    log->facts = xrealloc_array(log->facts, n, sizeof *log->facts);
    log->keys = xrealloc_array(log->keys, n, sizeof *log->keys);
    log->values = xrealloc_array(log->values, n, sizeof *log->values);
    log->facts_cap = n;
}

/* Looks up one hash of every record at once. The keys of new records are in no file: bloom filters answer. */
static enum status look_up(struct streamlog *log, char tag, size_t n, struct buf *values, struct err *err)
{
    buf_clear(&log->key_bytes);
    for (size_t i = 0; i < n; i++) {
        struct state_key key = key_hash(tag, tag == 'c' ? &log->facts[i].content : &log->facts[i].id);
        buf_put(&log->key_bytes, key.b, key.len);
        log->keys[i].len = key.len;
    }
    const uint8_t *at = log->key_bytes.data; /* only now: the buffer may have moved while it grew */
    for (size_t i = 0; i < n; at += log->keys[i++].len)
        log->keys[i].data = at;
    return db_multi_get(log->db, FAMILY_DEDUPE, n, log->keys, values, log->values, NULL, err);
}

const struct push_facts *streamlog_facts(struct streamlog *log, const struct sip_key *seed, struct domain_id domain,
                                         const Alv__PushBatch *batch, struct err *err)
{
    size_t n = batch->n_records;
    reserve_facts(log, n + 1);
    memset(log->facts, 0, (n + 1) * sizeof *log->facts);
    for (size_t i = 0; i < n; i++)
        record_facts(seed, domain, batch->records[i], &log->facts[i]);
    if (look_up(log, 'c', n, &log->content_values, err))
        return NULL;
    for (size_t i = 0; i < n; i++)
        log->facts[i].content_live = log->values[i].data != NULL;
    if (look_up(log, 'i', n, &log->id_values, err))
        return NULL;
    for (size_t i = 0; i < n; i++) {
        log->facts[i].id_known = log->values[i].data != NULL;
        log->facts[i].id_value = log->values[i];
    }
    return log->facts;
}

enum status streamlog_record(struct streamlog *log, const struct sip_key *seed, struct domain_id domain, const char *id,
                             struct bytes *value, struct err *err)
{
    Alv__Record record = ALV__RECORD__INIT; /* its id alone decides the id's hash */
    struct hash16 content, hash;
    record.kind = ALV__RECORD_KIND__RECORD_TEXT;
    record.id = (char *)(uintptr_t)id;
    record_hashes(seed, domain, &record, &content, &hash);
    struct state_key key = key_hash('i', &hash);
    buf_clear(&log->record);
    *value = (struct bytes){0};
    enum status st = db_get(log->db, FAMILY_DEDUPE, key.b, key.len, &log->record, err);
    if (!st)
        *value = buf_bytes(&log->record);
    return st == ST_NOT_FOUND ? ST_OK : st;
}
