#include "store/db.h"

#include <errno.h>
#include <rocksdb/c.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/check.h"
#include "base/failpoint.h"
#include "base/ids.h"
#include "store/recent.h"

enum {
    WAL_RECOVERY_TOLERATE_TAIL = 0, /* rocksdb's numbers: refuse damage before the last record */
    INFO_LOG_FATAL_ONLY = 4,        /* a full disk under the info log aborts the process (7.8.3) */
    COMPRESSION_LZ4 = 4,
    COMPRESSION_NONE = 0,
    BLOOM_BITS_PER_KEY = 10, /* 1 % false positives */
    LOG_VALUE_MIN = 256,     /* smaller ones of a log stay beside their keys */
    UNIVERSAL_COMPACTION = 1,
    FREE_RECHECK_BYTES = 4 << 20, /* statvfs again after so many written bytes: the reserve is at least 4 times that */
    RESERVE_MIN = 16 << 20,
    PERF_DISABLE = 1,
    WAL_BUFFERS = 2, /* the log is at most so many write buffers: a restart replays it */
    LOG_BUFFERS = 3, /* of a log: one is filled while another is flushed; a third, so that a slow disk stops nobody */
    /* A hash lands anywhere, and keeping hashes sorted in memory costs more than all else about them. So a hashed family's
     * are kept as they come, in small portions: finding one in the portion that is being written sorts a copy of it, so a
     * filter answers for nearly all that are not there (its own hash has 32 bits: the larger the portion, the more often it
     * errs, and the dearer that is), and `recent`, which holds more than a portion, for those that are. A portion that is
     * full is sorted once; several are flushed as one file, so that there is less to merge later. */
    HASHED_PORTION = 3 << 20,
    HASHED_PORTIONS = 5,
    HASHED_PORTIONS_MAX = 8, /* with those that are being flushed */
};

struct db {
    rocksdb_t *rocks;
    rocksdb_options_t *options;
    rocksdb_cache_t *cache;
    rocksdb_readoptions_t *read;
    rocksdb_writeoptions_t *write_plain, *write_sync;
    rocksdb_column_family_handle_t *family[DB_FAMILIES_MAX];
    struct recent *recent[DB_FAMILIES_MAX]; /* of hashed families: what may be in their unsorted memory, and more */
    char *names[DB_FAMILIES_MAX];
    uint32_t n_families;
    char *path;
    uint64_t reserve_bytes;
    bool read_only;
    _Atomic(rocksdb_writebatch_t *) spare; /* the last commit's, emptied: its memory serves the next */
    _Atomic int64_t unchecked_bytes;       /* may be written before statvfs is asked again; <= 0: ask now */
    atomic_bool dead, no_purge;
};

/* RocksDB's C interface has error texts only: all are turned into codes here. `text` is consumed. */
static enum status classify(const struct db *db, char *text, const char *doing, struct err *err)
{
    static const struct {
        const char *part;
        enum status status;
    } table[] = {
        {"No space left", ST_NO_SPACE},
        {"NoSpace", ST_NO_SPACE},
        {"lock hold by current process", ST_CONFLICT},
        {"While lock file", ST_CONFLICT},
        {"Resource temporarily unavailable", ST_CONFLICT},
        {"does not exist (create_if_missing is false)", ST_NOT_FOUND},
        {"Column families not opened", ST_CONFIG},
        {"Corruption", ST_CORRUPT},
        {"checksum", ST_CORRUPT},
        {"No such file", ST_CORRUPT}, /* of its own files: the directory itself was checked before */
        {"NotFound", ST_NOT_FOUND},
    };
    enum status status = ST_IO;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (strstr(text, table[i].part)) {
            status = table[i].status;
            break;
        }
    const char *advice = status == ST_CONFLICT  ? "another process has it open; stop that one first"
                         : status == ST_CORRUPT ? "stored data is damaged; restore a backup"
                         : status == ST_CONFIG  ? "it was made by a newer alluvium"
                                                : NULL;
    err_set(err, status, "%s: %s: %s%s%s", db->path, doing, text, advice ? ": " : "", advice ? advice : "");
    rocksdb_free(text);
    return status;
}

uint64_t db_free_bytes(struct db *db)
{
    struct statvfs fs;
    return statvfs(db->path, &fs) ? 0 : (uint64_t)fs.f_bavail * fs.f_frsize;
}

/* Asked before each write; costs a system call only every FREE_RECHECK_BYTES. What frees room may use half of the
 * reserve, else a full disk could never be left. */
static enum status check_reserve(struct db *db, uint64_t bytes, bool frees, struct err *err)
{
    if (atomic_fetch_sub(&db->unchecked_bytes, (int64_t)bytes) > (int64_t)bytes)
        return ST_OK;
    uint64_t free_bytes = db_free_bytes(db), reserve = frees ? db->reserve_bytes / 2 : db->reserve_bytes;
    bool enough = free_bytes >= reserve && free_bytes - reserve >= bytes;
    atomic_store(&db->unchecked_bytes, enough && !frees ? FREE_RECHECK_BYTES : 0);
    if (enough)
        return ST_OK;
    return err_set(err, ST_NO_SPACE,
                   "%s: %llu MiB free, and %llu MiB are kept in reserve: free room on this file system", db->path,
                   (unsigned long long)(free_bytes >> 20), (unsigned long long)(reserve >> 20));
}

/* RocksDB counts key comparisons and the like for each thread until it is told not to: a tenth of a commit's time. */
static void count_nothing(void)
{
    static _Thread_local bool told;
    if (!told)
        rocksdb_set_perf_level(PERF_DISABLE);
    told = true;
}

static rocksdb_options_t *make_options(const struct db_options *o, rocksdb_cache_t *cache)
{
    uint64_t buffer = o->write_buffer_bytes ? o->write_buffer_bytes : 8 << 20;
    rocksdb_options_t *options = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options, o->create);
    rocksdb_options_set_create_missing_column_families(options, 1);
    rocksdb_options_set_wal_recovery_mode(options, WAL_RECOVERY_TOLERATE_TAIL);
    rocksdb_options_set_paranoid_checks(options, 1);
    rocksdb_options_set_info_log_level(options, INFO_LOG_FATAL_ONLY);
    rocksdb_options_set_keep_log_file_num(options, 2);
    rocksdb_options_set_max_log_file_size(options, 1 << 20);
    rocksdb_options_set_stats_dump_period_sec(options, 0);
    rocksdb_options_set_stats_persist_period_sec(options, 0);
    rocksdb_options_set_write_buffer_size(options, buffer);
    rocksdb_options_set_max_total_wal_size(options, WAL_BUFFERS * buffer);
    rocksdb_options_set_max_background_jobs(options, 2);
    rocksdb_options_set_max_open_files(options, 256);
    rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 1);
    rocksdb_options_set_compression(options, COMPRESSION_LZ4);
    rocksdb_options_set_allow_concurrent_memtable_write(options, 0); /* one thread commits; and vectors cannot */

    rocksdb_block_based_table_options_t *table = rocksdb_block_based_options_create();
    rocksdb_block_based_options_set_block_cache(table, cache);
    rocksdb_block_based_options_set_filter_policy(table, rocksdb_filterpolicy_create_bloom_full(BLOOM_BITS_PER_KEY));
    rocksdb_block_based_options_set_cache_index_and_filter_blocks(table, 1); /* so that the cache bounds the memory */
    rocksdb_block_based_options_set_pin_l0_filter_and_index_blocks_in_cache(table, 1);
    rocksdb_options_set_block_based_table_factory(options, table);
    rocksdb_block_based_options_destroy(table);
    return options;
}

static rocksdb_options_t *shape_options(const rocksdb_options_t *plain, enum db_shape shape)
{
    rocksdb_options_t *options = rocksdb_options_create_copy((rocksdb_options_t *)(uintptr_t)plain);
    if (shape != DB_PLAIN) { /* a level would be written again with each merge into it, however little is new */
        rocksdb_options_set_compaction_style(options, UNIVERSAL_COMPACTION);
        rocksdb_options_set_level_compaction_dynamic_level_bytes(options, 0);
    }
    if (shape == DB_LOG) {
        rocksdb_options_set_max_write_buffer_number(options, LOG_BUFFERS);
        rocksdb_options_set_enable_blob_files(options, 1);
        rocksdb_options_set_min_blob_size(options, LOG_VALUE_MIN);
        rocksdb_options_set_blob_compression_type(options, COMPRESSION_LZ4);
        rocksdb_options_set_enable_blob_gc(options,
                                           1); /* in a purge only: else each compaction copies old text again */
        rocksdb_options_set_blob_gc_age_cutoff(options, 0);
    } else if (shape == DB_HASHED) {
        rocksdb_options_set_memtable_vector_rep(options);
        rocksdb_options_set_memtable_prefix_bloom_size_ratio(options, 0.1);
        rocksdb_options_set_memtable_whole_key_filtering(options, 1); /* "is this a duplicate" is mostly "no" */
        rocksdb_options_set_write_buffer_size(options, HASHED_PORTION);
        rocksdb_options_set_min_write_buffer_number_to_merge(options, HASHED_PORTIONS);
        rocksdb_options_set_max_write_buffer_number(options, HASHED_PORTIONS_MAX);
        rocksdb_options_set_compression(options, COMPRESSION_NONE);
    }
    return options;
}

/* "default" must be opened with the rest; it stays empty. */
static enum status open_families(struct db *db, const struct db_options *o, struct err *err)
{
    const char *names[DB_FAMILIES_MAX + 1] = {"default"};
    rocksdb_options_t *options[DB_FAMILIES_MAX + 1] = {db->options};
    rocksdb_column_family_handle_t *handles[DB_FAMILIES_MAX + 1] = {0};
    char *text = NULL;
    for (uint32_t i = 0; i < o->n_families; i++) {
        enum db_shape shape = o->shapes ? o->shapes[i] : DB_PLAIN;
        names[i + 1] = o->families[i], options[i + 1] = shape_options(db->options, shape);
        if (shape == DB_HASHED && !o->read_only)
            db->recent[i] = recent_new(HASHED_PORTION * 3 / 2);
    }
    db->rocks =
        o->read_only
            ? rocksdb_open_for_read_only_column_families(db->options, db->path, (int)o->n_families + 1, names,
                                                         (const rocksdb_options_t *const *)options, handles, 0, &text)
            : rocksdb_open_column_families(db->options, db->path, (int)o->n_families + 1, names,
                                           (const rocksdb_options_t *const *)options, handles, &text);
    for (uint32_t i = 0; i < o->n_families; i++)
        rocksdb_options_destroy(options[i + 1]);
    if (text)
        return classify(db, text, "cannot open", err);
    rocksdb_column_family_handle_destroy(handles[0]);
    for (uint32_t i = 0; i < o->n_families; i++)
        db->family[i] = handles[i + 1];
    return ST_OK;
}

enum status db_open(const char *path, const struct db_options *o, struct db **out, struct err *err)
{
    CHECK(o->n_families >= 1 && o->n_families <= DB_FAMILIES_MAX);
    char current[4096];
    snprintf(current, sizeof current, "%s/CURRENT", path);
    struct stat st;
    if (!o->create && stat(current, &st))
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: no database here: %s", path, strerror(errno));
    if (o->create && mkdir(path, 0700) && errno != EEXIST)
        return err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot make: %s", path, strerror(errno));

    struct db *db = xcalloc(1, sizeof *db);
    db->path = xstrdup(path);
    db->read_only = o->read_only;
    db->n_families = o->n_families;
    for (uint32_t i = 0; i < o->n_families; i++)
        db->names[i] = xstrdup(o->families[i]);
    db->reserve_bytes = o->reserve_bytes ? o->reserve_bytes : 256 << 20;
    if (db->reserve_bytes < RESERVE_MIN)
        db->reserve_bytes = RESERVE_MIN;
    db->cache = rocksdb_cache_create_lru(o->cache_bytes ? o->cache_bytes : 32 << 20);
    db->options = make_options(o, db->cache);
    db->read = rocksdb_readoptions_create();
    rocksdb_readoptions_set_verify_checksums(db->read, 1);
    db->write_plain = rocksdb_writeoptions_create();
    db->write_sync = rocksdb_writeoptions_create();
    rocksdb_writeoptions_set_sync(db->write_sync, 1);
    enum status status = open_families(db, o, err);
    if (status == ST_OK)
        *out = db;
    else
        db_close(&db);
    return status;
}

void db_close(struct db **dbp)
{
    struct db *db = *dbp;
    *dbp = NULL;
    if (!db)
        return;
    for (uint32_t i = 0; i < db->n_families; i++) { /* before the database, which asserts it */
        if (db->family[i])
            rocksdb_column_family_handle_destroy(db->family[i]);
        recent_free(db->recent[i]);
        free(db->names[i]);
    }
    if (atomic_load(&db->spare))
        rocksdb_writebatch_destroy(atomic_load(&db->spare));
    if (db->rocks)
        rocksdb_close(db->rocks);
    rocksdb_writeoptions_destroy(db->write_plain);
    rocksdb_writeoptions_destroy(db->write_sync);
    rocksdb_readoptions_destroy(db->read);
    rocksdb_options_destroy(db->options);
    rocksdb_cache_destroy(db->cache);
    free(db->path);
    free(db);
}

static rocksdb_column_family_handle_t *family_of(const struct db *db, uint8_t family)
{
    CHECK(family < db->n_families);
    return db->family[family];
}

/* `frees`: does it delete? An empty one, that only syncs, counts as such. */
static rocksdb_writebatch_t *translate(struct db *db, const struct batch *batches, size_t n, uint64_t *bytes,
                                       bool *frees)
{
    rocksdb_writebatch_t *rocks = atomic_exchange(&db->spare, NULL);
    if (!rocks)
        rocks = rocksdb_writebatch_create();
    struct batch_op op;
    bool empty = true, deletes = false;
    *bytes = 0;
    for (size_t i = 0; i < n; i++) {
        *bytes += batches[i].ops.len;
        for (size_t at = 0; batch_next(&batches[i], &at, &op); empty = false) {
            rocksdb_column_family_handle_t *family = family_of(db, op.family);
            const char *key = (const char *)op.key.data, *value = (const char *)op.value.data;
            CHECK(op.key.len <= DB_KEY_MAX && op.value.len <= DB_VALUE_MAX);
            deletes |= op.kind != BATCH_PUT;
            if (op.kind == BATCH_PUT)
                rocksdb_writebatch_put_cf(rocks, family, key, op.key.len, value, op.value.len);
            else if (op.kind == BATCH_DELETE)
                rocksdb_writebatch_delete_cf(rocks, family, key, op.key.len);
            else
                rocksdb_writebatch_delete_range_cf(rocks, family, key, op.key.len, value, op.value.len);
        }
    }
    *frees = empty || deletes;
    return rocks;
}

/* After the write and before anybody is told of it. */
static void remember(struct db *db, const struct batch *batches, size_t n)
{
    struct batch_op op;
    for (size_t i = 0; i < n; i++)
        for (size_t at = 0; batch_next(&batches[i], &at, &op);) {
            struct recent *recent = db->recent[op.family];
            if (recent && op.kind == BATCH_DELETE_RANGE)
                recent_clear(recent);
            else if (recent)
                recent_put(recent, op.key, op.value, op.kind == BATCH_DELETE);
        }
}

static void put_back(struct db *db, rocksdb_writebatch_t *rocks)
{
    rocksdb_writebatch_clear(rocks);
    rocks = atomic_exchange(&db->spare, rocks);
    if (rocks)
        rocksdb_writebatch_destroy(rocks);
}

enum status db_commit_all(struct db *db, const struct batch *batches, size_t n, bool sync, struct err *err)
{
    CHECK(!db->read_only);
    if (atomic_load(&db->dead))
        return err_set(err, ST_IO, "%s: an earlier write failed: the database must be closed and opened again",
                       db->path);
    uint64_t bytes;
    bool frees;
    rocksdb_writebatch_t *rocks = translate(db, batches, n, &bytes, &frees);
    enum status status = check_reserve(db, bytes, frees, err);
    if (status != ST_OK) {
        put_back(db, rocks);
        return status;
    }
    char *text = NULL;
    bool failed = FAILPOINT("db.commit.before");
    count_nothing();
    if (!failed)
        rocksdb_write(db->rocks, sync ? db->write_sync : db->write_plain, rocks, &text);
    put_back(db, rocks);
    if (!text && !failed)
        remember(db, batches, n);
    if (text)
        status = classify(db, text, "cannot write", err);
    else if (FAILPOINT("db.commit.after") || failed)
        status = err_set(err, ST_IO, "%s: cannot write: failpoint", db->path);
    if (status == ST_NO_SPACE) /* past the reserve: the handle is dead, so ST_NO_SPACE would promise too much */
        status = ST_IO;
    if (status != ST_OK)
        atomic_store(&db->dead, true);
    return status;
}

enum status db_commit(struct db *db, const struct batch *batch, bool sync, struct err *err)
{
    return db_commit_all(db, batch, 1, sync, err);
}

/* What the newest entries say about a key; RECENT_UNKNOWN: RocksDB is to be asked. */
static enum recent_answer ask_recent(struct db *db, uint8_t family, struct bytes key, struct buf *out)
{
    CHECK(family < db->n_families);
    return db->recent[family] ? recent_get(db->recent[family], key, out) : RECENT_UNKNOWN;
}

enum status db_get(struct db *db, uint8_t family, const void *key, size_t key_len, struct buf *out, struct err *err)
{
    char *text = NULL;
    enum recent_answer recent = ask_recent(db, family, (struct bytes){key, key_len}, out);
    if (recent == RECENT_VALUE)
        return ST_OK;
    if (recent == RECENT_DELETED)
        return err_set(err, ST_NOT_FOUND, "%s: %s: no such key", db->path, db->names[family]);
    count_nothing();
    rocksdb_pinnableslice_t *slice =
        rocksdb_get_pinned_cf(db->rocks, db->read, family_of(db, family), key, key_len, &text);
    if (text)
        return classify(db, text, db->names[family], err);
    if (!slice)
        return err_set(err, ST_NOT_FOUND, "%s: %s: no such key", db->path, db->names[family]);
    size_t len;
    const char *value = rocksdb_pinnableslice_value(slice, &len);
    buf_put(out, value, len);
    rocksdb_pinnableslice_destroy(slice);
    return ST_OK;
}

bool db_has(struct db *db, uint8_t family, const void *key, size_t key_len, enum status *status, struct err *err)
{
    struct buf value = {0};
    *status = db_get(db, family, key, key_len, &value, err);
    bool found = *status == ST_OK;
    if (*status == ST_NOT_FOUND)
        *status = ST_OK;
    buf_release(&value);
    return found;
}

/* The keys that only RocksDB knows about. `asked` is which of the caller's they are. */
struct questions {
    size_t n;
    size_t *asked, *key_len;
    const char **key;
    rocksdb_pinnableslice_t **slice;
    char **text;
};

static void questions_init(struct questions *q, size_t n)
{
    *q = (struct questions){.asked = xcalloc(n, sizeof *q->asked),
                            .key_len = xcalloc(n, sizeof *q->key_len),
                            .key = xcalloc(n, sizeof *q->key),
                            .slice = xcalloc(n, sizeof *q->slice),
                            .text = xcalloc(n, sizeof *q->text)};
}

static void questions_release(struct questions *q)
{
    free(q->asked);
    free(q->key_len);
    free(q->key);
    free(q->slice);
    free(q->text);
}

enum status db_multi_get(struct db *db, uint8_t family, size_t n, const struct bytes *keys, struct buf *values,
                         struct bytes *out, enum status *each, struct err *err)
{
    enum status first = ST_OK;
    struct questions q;
    size_t *at = xcalloc(n, sizeof *at); /* of each value, while the buffer may move */
    questions_init(&q, n);
    buf_clear(values);
    for (size_t i = 0; i < n; i++) {
        size_t start = values->len;
        enum recent_answer recent = ask_recent(db, family, keys[i], values);
        at[i] = recent == RECENT_VALUE ? start : SIZE_MAX;
        out[i] = (struct bytes){NULL, values->len - start};
        if (each)
            each[i] = recent == RECENT_VALUE ? ST_OK : ST_NOT_FOUND;
        if (recent == RECENT_UNKNOWN) {
            q.key[q.n] = (const char *)keys[i].data, q.key_len[q.n] = keys[i].len;
            q.asked[q.n++] = i;
        }
    }
    count_nothing();
    rocksdb_batched_multi_get_cf(db->rocks, db->read, family_of(db, family), q.n, q.key, q.key_len, q.slice, q.text,
                                 false);
    for (size_t j = 0; j < q.n; j++) {
        size_t i = q.asked[j];
        enum status status = q.slice[j] ? ST_OK : ST_NOT_FOUND;
        if (q.text[j])
            status = classify(db, q.text[j], db->names[family], first == ST_OK ? err : NULL);
        if (status == ST_OK) {
            const char *value = rocksdb_pinnableslice_value(q.slice[j], &out[i].len);
            at[i] = values->len;
            buf_put(values, value, out[i].len);
        }
        if (q.slice[j])
            rocksdb_pinnableslice_destroy(q.slice[j]);
        if (each)
            each[i] = status;
        if (first == ST_OK && status != ST_OK && status != ST_NOT_FOUND)
            first = status;
    }
    buf_reserve(values, 1); /* an empty value still has an address */
    for (size_t i = 0; i < n; i++)
        if (at[i] != SIZE_MAX)
            out[i].data = values->data + at[i];
    questions_release(&q);
    free(at);
    return each ? ST_OK : first;
}

struct db_iter {
    struct db *db;
    uint8_t family;
    bool backwards, started;
    struct buf from, to; /* RocksDB borrows the bounds */
    struct buf last;     /* the last good key, for the message */
    rocksdb_readoptions_t *read;
    rocksdb_iterator_t *rocks;
};

static struct db_iter *iter_open(struct db *db, uint8_t family, struct bytes from, struct bytes to, bool backwards,
                                 bool fill_cache)
{
    struct db_iter *iter = xcalloc(1, sizeof *iter);
    iter->db = db;
    iter->family = family;
    iter->backwards = backwards;
    iter->read = rocksdb_readoptions_create();
    rocksdb_readoptions_set_verify_checksums(iter->read, 1);
    rocksdb_readoptions_set_fill_cache(iter->read, fill_cache);
    buf_put(&iter->from, from.data, from.len);
    buf_put(&iter->to, to.data, to.len);
    if (from.data)
        rocksdb_readoptions_set_iterate_lower_bound(iter->read, (const char *)iter->from.data, iter->from.len);
    if (to.data)
        rocksdb_readoptions_set_iterate_upper_bound(iter->read, (const char *)iter->to.data, iter->to.len);
    iter->rocks = rocksdb_create_iterator_cf(db->rocks, iter->read, family_of(db, family));
    return iter;
}

struct db_iter *db_iter_open(struct db *db, uint8_t family, struct bytes from, struct bytes to, bool backwards)
{
    return iter_open(db, family, from, to, backwards, true);
}

enum status db_iter_next(struct db_iter *iter, struct bytes *key, struct bytes *value, struct err *err)
{
    if (!iter->started && iter->backwards)
        rocksdb_iter_seek_to_last(iter->rocks);
    else if (!iter->started)
        rocksdb_iter_seek_to_first(iter->rocks);
    else if (rocksdb_iter_valid(iter->rocks) && iter->backwards)
        rocksdb_iter_prev(iter->rocks);
    else if (rocksdb_iter_valid(iter->rocks))
        rocksdb_iter_next(iter->rocks);
    iter->started = true;
    if (rocksdb_iter_valid(iter->rocks)) {
        key->data = (const uint8_t *)rocksdb_iter_key(iter->rocks, &key->len);
        value->data = (const uint8_t *)rocksdb_iter_value(iter->rocks, &value->len);
        buf_clear(&iter->last);
        buf_put(&iter->last, key->data, key->len);
        return ST_OK;
    }
    char *text = NULL, doing[128], hex[2 * 24 + 1];
    rocksdb_iter_get_error(iter->rocks, &text);
    if (!text)
        return ST_EMPTY;
    hex_encode(iter->last.data, iter->last.len < 24 ? iter->last.len : 24, hex);
    snprintf(doing, sizeof doing, "%s: after key %s", iter->db->names[iter->family], iter->last.len ? hex : "(none)");
    return classify(iter->db, text, doing, err);
}

void db_iter_close(struct db_iter **iterp)
{
    struct db_iter *iter = *iterp;
    *iterp = NULL;
    if (!iter)
        return;
    rocksdb_iter_destroy(iter->rocks);
    rocksdb_readoptions_destroy(iter->read);
    buf_release(&iter->from);
    buf_release(&iter->to);
    buf_release(&iter->last);
    free(iter);
}

enum status db_checkpoint(struct db *db, const char *dir, struct err *err)
{
    char *text = NULL;
    rocksdb_checkpoint_t *checkpoint = rocksdb_checkpoint_object_create(db->rocks, &text);
    if (!text)
        rocksdb_checkpoint_create(checkpoint, dir, 0, &text);
    if (checkpoint)
        rocksdb_checkpoint_object_destroy(checkpoint);
    return text ? classify(db, text, "cannot make a checkpoint", err) : ST_OK;
}

/* Compaction moves the living values out of this share of the oldest files of a log, which then are deleted. */
static char *set_cleaning(struct db *db, uint8_t family, const char *share)
{
    const char *name[] = {"blob_garbage_collection_age_cutoff"}, *value[] = {share};
    char *text = NULL;
    rocksdb_set_options_cf(db->rocks, family_of(db, family), 1, name, value, &text);
    return text;
}

enum status db_purge(struct db *db, uint8_t family, struct bytes from, struct bytes to, struct err *err)
{
    enum status status = check_reserve(db, 0, true, err);
    if (status != ST_OK)
        return status;
    char *text = NULL;
    rocksdb_flushoptions_t *flush = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(flush, 1);
    for (uint32_t i = 0; i < db->n_families && !text; i++) /* a log file goes when no family needs it any more */
        rocksdb_flush_cf(db->rocks, flush, db->family[i], &text);
    rocksdb_flushoptions_destroy(flush);
    if (text)
        return classify(db, text, "cannot flush", err);
    if ((text = set_cleaning(db, family, "1.0")))
        return classify(db, text, "cannot purge", err);
    rocksdb_compactoptions_t *compact = rocksdb_compactoptions_create();
    rocksdb_compactoptions_set_bottommost_level_compaction(compact, 3); /* forced, each file once */
    rocksdb_compact_range_cf_opt(db->rocks, family_of(db, family), compact, (const char *)from.data, from.len,
                                 (const char *)to.data, to.len);
    rocksdb_compactoptions_destroy(compact);
    text = set_cleaning(db, family, "0.0");
    if (text)
        return classify(db, text, "cannot purge", err);
    return atomic_load(&db->no_purge) ? err_set(err, ST_STOPPED, "the purge was broken off") : ST_OK;
}

void db_purge_stop(struct db *db)
{
    atomic_store(&db->no_purge, true); /* before: a purge that still ends well is then said to have been broken off */
    rocksdb_disable_manual_compaction(db->rocks);
}

enum status db_scrub(struct db *db, uint8_t family, db_each_fn each, void *user, uint64_t *keys, uint64_t *bytes,
                     struct err *err)
{
    struct bytes key, value;
    enum status status;
    uint64_t n = 0, total = 0;
    struct db_iter *iter = iter_open(db, family, (struct bytes){0}, (struct bytes){0}, false, false);
    while ((status = db_iter_next(iter, &key, &value, err)) == ST_OK) {
        n++;
        total += key.len + value.len;
        if (each && (status = each(user, key, value, err)) != ST_OK)
            break;
    }
    db_iter_close(&iter);
    if (status != ST_EMPTY && status != ST_OK)
        return status;
    if (keys)
        *keys = n;
    if (bytes)
        *bytes = total;
    return ST_OK;
}

bool db_property(struct db *db, uint8_t family, const char *suffix, uint64_t *out)
{
    char name[128];
    snprintf(name, sizeof name, "rocksdb.%s", suffix);
    return rocksdb_property_int_cf(db->rocks, family_of(db, family), name, out) == 0;
}
