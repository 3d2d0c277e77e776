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
    WRITE_BUFFER = 32 << 20, /* larger: fewer files to merge; a restart replays up to two of these from the log */
    CACHE = 64 << 20,
    NO_SPACE_RETRY_MS = 500,
};

struct group {             /* batches on their way to one commit */
    struct batch *batches; /* by seq; the first n are set, the others empty with their memory */
    size_t n, cap, bytes;
    uint64_t last_seq;
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

static struct batch *group_slot(struct group *group)
{
    if (group->n == group->cap) {
        size_t cap = group->cap ? 2 * group->cap : 8;
        group->batches = xrealloc_array(group->batches, cap, sizeof *group->batches);
        memset(group->batches + group->cap, 0, (cap - group->cap) * sizeof *group->batches);
        group->cap = cap;
    }
    return &group->batches[group->n];
}

static void group_clear(struct group *group)
{
    for (size_t i = 0; i < group->n; i++)
        batch_release(&group->batches[i]);
    group->n = group->bytes = 0;
}

static void group_release(struct group *group)
{
    group_clear(group);
    free(group->batches);
    *group = (struct group){0};
}

void streamlog_append(struct streamlog *log, uint64_t seq, struct batch *batch)
{
    CHECK_EQ(seq, log->open.last_seq + 1);
    struct batch *slot = group_slot(&log->open);
    *slot = *batch;
    *batch = (struct batch){0};
    log->open.bytes += slot->ops.len;
    log->open.last_seq = seq;
    log->open.n++;
}

bool streamlog_full(const struct streamlog *log)
{
    return log->open.bytes >= STREAMLOG_GROUP_MAX;
}

/* One group to the disk. The failpoints are the three moments at which a crash could tell an ack from the truth. */
static enum status commit_group(struct streamlog *log, struct group *group, struct err *err)
{
    struct witness_mark next = log->mark;
    uint8_t mark[WITNESS_MARK_LEN];
    double start = clock_s();
    for (size_t i = 0; i < group->n; i++)
        witness_next(&next, &group->batches[i], &next);
    CHECK_EQ(next.applied_seq, group->last_seq);
    witness_mark_encode(&next, mark);
    struct batch *last = group_slot(group); /* beside the n: it is made anew when this is tried again */
    batch_put(last, FAMILY_META, MARK_KEY, sizeof MARK_KEY - 1, mark, sizeof mark);

    (void)FAILPOINT("streamlog.before_commit");
    enum status st = db_commit_all(log->db, group->batches, group->n + 1, true, err);
    (void)FAILPOINT("streamlog.after_commit");
    batch_release(last);
    if (!st)
        st = witness_write(log->witness, &next, err);
    (void)FAILPOINT("streamlog.after_witness");
    if (st)
        return st;
    log->mark = next;
    pthread_mutex_lock(&log->lock);
    log->durable = group->last_seq;
    log->stats.groups++;
    log->stats.batches += group->n;
    log->stats.bytes += group->bytes;
    log->stats.seconds += clock_s() - start;
    pthread_mutex_unlock(&log->lock);
    group_clear(group);
    return ST_OK;
}

enum status streamlog_commit(struct streamlog *log, struct err *err)
{
    CHECK(!log->started);
    return log->open.n ? commit_group(log, &log->open, err) : ST_OK;
}

enum status streamlog_amend(struct streamlog *log, struct batch *batch, struct err *err)
{
    struct state_key key = key_plain('s'); /* the core's own count of steps */
    struct buf seq = {0};
    buf_put_u64(&seq, log->open.last_seq + 1);
    batch_put(batch, FAMILY_META, key.b, key.len, seq.data, seq.len);
    streamlog_append(log, log->open.last_seq + 1, batch);
    buf_release(&seq);
    return streamlog_commit(log, err);
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
    if (!log->open.n)
        return;
    pthread_mutex_lock(&log->lock);
    if (!log->has_work && !log->status) {
        struct group empty = log->busy;
        log->busy = log->open;
        log->open = empty;
        log->open.last_seq = log->busy.last_seq;
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
    group_release(&log->open);
    group_release(&log->busy);
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
