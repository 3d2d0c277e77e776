/* The database: atomic batches, bounds, damage that is named, the lock, the reserve, the witness. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "store/db.h"
#include "store/witness.h"

static const char *const FAMILY[] = {"meta", "stream"};
enum { META, STREAM };
static const struct db_options OPTIONS = {.families = FAMILY, .n_families = 2, .create = true, .reserve_bytes = 1};

static struct db_options shaped(const enum db_shape shapes[2])
{
    struct db_options options = OPTIONS;
    options.shapes = shapes;
    return options;
}

static struct bytes bytes_of(const char *s)
{
    return (struct bytes){(const uint8_t *)s, strlen(s)};
}

static void put(struct batch *batch, uint8_t family, const char *key, const char *value)
{
    batch_put(batch, family, key, strlen(key), value, strlen(value));
}

static bool holds(struct db *db, uint8_t family, const char *key, const char *want)
{
    struct buf value = {0};
    struct err err;
    enum status status = db_get(db, family, key, strlen(key), &value, &err);
    bool ok = want ? status == ST_OK && value.len == strlen(want) && !memcmp(value.data, want, value.len)
                   : status == ST_NOT_FOUND;
    buf_release(&value);
    return ok;
}

/* n keys "key000..." with values that do not compress */
static void fill(struct db *db, int n, size_t value_len)
{
    struct batch batch = {0};
    struct rng rng;
    struct err err;
    char key[16];
    uint8_t *value = xmalloc(value_len);
    rng_seed(&rng, 1);
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "key%06d", i);
        for (size_t j = 0; j < value_len; j++)
            value[j] = (uint8_t)rng_u64(&rng);
        batch_put(&batch, STREAM, key, strlen(key), value, value_len);
    }
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    batch_release(&batch);
    free(value);
}

static void shell(const char *format, const char *a, const char *b)
{
    char line[8192];
    snprintf(line, sizeof line, format, a, b);
    EXPECT_EQ(system(line), 0); /* tidy: allowed, cp and grep of a test */
}

static void test_batches_are_atomic_and_stay(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db, *other;
    struct batch batch = {0};
    struct db_options no_create = OPTIONS;
    no_create.create = false;
    EXPECT_ST(db_open(path, &no_create, &db, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    EXPECT_ST(db_open(path, &OPTIONS, &other, &err), ST_CONFLICT, &err);
    EXPECT(strstr(err.text, "another process has it open") != NULL);

    put(&batch, META, "a", "1");
    put(&batch, STREAM, "a", "2");
    put(&batch, STREAM, "b", "");
    put(&batch, STREAM, "c", "4");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    batch_clear(&batch);
    batch_delete(&batch, META, "a", 1);
    batch_delete_range(&batch, STREAM, "b", 1, "c", 1);
    EXPECT_ST(db_commit(db, &batch, false, &err), ST_OK, &err);
    db_close(&db);
    EXPECT(db == NULL);

    EXPECT_ST(db_open(path, &no_create, &db, &err), ST_OK, &err);
    EXPECT(holds(db, META, "a", NULL) && holds(db, STREAM, "a", "2"));
    EXPECT(holds(db, STREAM, "b", NULL) && holds(db, STREAM, "c", "4"));
    enum status status;
    EXPECT(db_has(db, STREAM, "a", 1, &status, &err) && status == ST_OK);
    EXPECT(!db_has(db, STREAM, "x", 1, &status, &err) && status == ST_OK);
    db_close(&db);
    batch_release(&batch);
}

static void test_second_process_is_refused(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    pid_t child = fork();
    if (child == 0) { /* a fresh program: the database's threads are not forked, the locks they hold are */
        execl("/proc/self/exe", "test_db", "--open", path, (char *)NULL);
        _exit(2);
    }
    int result;
    EXPECT(waitpid(child, &result, 0) == child && WIFEXITED(result) && WEXITSTATUS(result) == 0);
    db_close(&db);
}

static void test_reads_of_many_and_bounds(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    struct buf values = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    put(&batch, STREAM, "a", "1");
    put(&batch, STREAM, "b", "");
    put(&batch, STREAM, "d", "444");
    put(&batch, META, "c", "not in this family");
    EXPECT_ST(db_commit(db, &batch, false, &err), ST_OK, &err);

    struct bytes keys[] = {bytes_of("d"), bytes_of("c"), bytes_of("b"), bytes_of("a")}, out[4];
    enum status each[4];
    EXPECT_ST(db_multi_get(db, STREAM, 4, keys, &values, out, each, &err), ST_OK, &err);
    EXPECT(out[0].len == 3 && !memcmp(out[0].data, "444", 3));
    EXPECT(out[1].data == NULL && each[1] == ST_NOT_FOUND);
    EXPECT(out[2].data != NULL && out[2].len == 0);
    EXPECT(out[3].len == 1 && *out[3].data == '1');

    struct bytes key, value, none = {0};
    struct db_iter *iter = db_iter_open(db, STREAM, bytes_of("b"), bytes_of("d"), false);
    EXPECT_ST(db_iter_next(iter, &key, &value, &err), ST_OK, &err);
    EXPECT(key.len == 1 && *key.data == 'b');
    EXPECT_ST(db_iter_next(iter, &key, &value, &err), ST_EMPTY, &err);
    EXPECT_ST(db_iter_next(iter, &key, &value, &err), ST_EMPTY, &err);
    db_iter_close(&iter);
    iter = db_iter_open(db, STREAM, none, none, true);
    const char *want = "dba";
    for (int i = 0; i < 3; i++) {
        EXPECT_ST(db_iter_next(iter, &key, &value, &err), ST_OK, &err);
        EXPECT(*key.data == want[i]);
    }
    EXPECT_ST(db_iter_next(iter, &key, &value, &err), ST_EMPTY, &err);
    db_iter_close(&iter);
    db_close(&db);
    batch_release(&batch);
    buf_release(&values);
}

/* Flips one bit in the middle of the first file whose name ends so. */
static bool damage(const char *dir, const char *suffix)
{
    DIR *d = opendir(dir);
    struct dirent *entry;
    bool done = false;
    while (d && !done && (entry = readdir(d))) {
        size_t len = strlen(entry->d_name), tail = strlen(suffix);
        if (len < tail || strcmp(entry->d_name + len - tail, suffix))
            continue;
        int fd = openat(dirfd(d), entry->d_name, O_RDWR);
        off_t size = lseek(fd, 0, SEEK_END);
        uint8_t byte;
        if (size > 1000 && pread(fd, &byte, 1, size / 2) == 1) {
            byte ^= 4;
            done = pwrite(fd, &byte, 1, size / 2) == 1;
        }
        close(fd);
    }
    closedir(d);
    return done;
}

static void test_damaged_block_is_named(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct bytes none = {0};
    uint64_t keys = 0, bytes = 0;
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    fill(db, 1000, 1000);
    EXPECT_ST(db_purge(db, STREAM, none, none, &err), ST_OK, &err);
    EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, &bytes, &err), ST_OK, &err);
    EXPECT(keys == 1000 && bytes == 1000 * (9 + 1000));
    db_close(&db);

    REQUIRE(damage(path, ".sst"));
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, &bytes, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "stream: after key 6b6579") != NULL); /* hex of "key" */
    int bad = 0;
    for (int i = 0; i < 1000; i++) {
        char key[16];
        struct buf value = {0};
        snprintf(key, sizeof key, "key%06d", i);
        enum status status = db_get(db, STREAM, key, strlen(key), &value, &err);
        EXPECT(status == ST_OK || status == ST_CORRUPT);
        bad += status == ST_CORRUPT;
        if (status == ST_CORRUPT) { /* one bad key does not hide the good ones of a batched read */
            struct bytes wanted[] = {bytes_of(key), bytes_of("key000000")}, out[2];
            enum status each[2];
            EXPECT_ST(db_multi_get(db, STREAM, 2, wanted, &value, out, NULL, &err), ST_CORRUPT, &err);
            EXPECT_ST(db_multi_get(db, STREAM, 2, wanted, &value, out, each, &err), ST_OK, &err);
            EXPECT(each[0] == ST_CORRUPT && !out[0].data && each[1] == ST_OK && out[1].len == 1000);
        }
        buf_release(&value);
    }
    EXPECT(bad >= 1 && bad < 20);
    db_close(&db);
}

static void test_damaged_log_is_refused(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    for (int i = 0; i < 100; i++) {
        char key[16];
        snprintf(key, sizeof key, "%d", i);
        batch_clear(&batch);
        batch_put(&batch, STREAM, key, strlen(key), key, strlen(key));
        EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    }
    db_close(&db);
    REQUIRE(damage(path, ".log"));
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "restore a backup") != NULL);
    batch_release(&batch);
}

static void test_reserve_refuses_before_writing(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    struct db_options greedy = OPTIONS;
    greedy.reserve_bytes = db_free_bytes(db) + (1ull << 40);
    put(&batch, META, "a", "1");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    db_close(&db);
    EXPECT_ST(db_open(path, &greedy, &db, &err), ST_OK, &err);
    batch_clear(&batch);
    put(&batch, META, "a", "2");
    for (int i = 0; i < 2; i++) { /* refused each time, and the handle lives on */
        EXPECT_ST(db_commit(db, &batch, true, &err), ST_NO_SPACE, &err);
        EXPECT(holds(db, META, "a", "1"));
    }
    db_close(&db);
    greedy.reserve_bytes = (greedy.reserve_bytes - (1ull << 40)) / 2 * 3; /* half of it is free: deleting goes on */
    EXPECT_ST(db_open(path, &greedy, &db, &err), ST_OK, &err);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_NO_SPACE, &err);
    batch_delete(&batch, META, "b", 1);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT(holds(db, META, "a", "2"));
    batch_clear(&batch);
    put(&batch, META, "a", "3");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_NO_SPACE, &err);
    db_close(&db);
    batch_release(&batch);
}

static void purge_leaves_no_bytes(const enum db_shape shapes[2])
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    struct bytes none = {0};
    uint8_t secret[256];
    struct db_options options = shaped(shapes);
    EXPECT_ST(db_open(path, &options, &db, &err), ST_OK, &err);
    fill(db, 200, 1000);
    random_bytes(secret, sizeof secret);
    char hex[2 * sizeof secret + 1];
    hex_encode(secret, sizeof secret, hex);
    put(&batch, STREAM, "secret", hex);
    put(&batch, META, "kept", "yes");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    char first[33];
    snprintf(first, sizeof first, "%.32s", hex);
    shell("grep -rqa %2$s %1$s", path, first); /* in the log, now */
    batch_clear(&batch);
    batch_delete(&batch, STREAM, "secret", 6);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT_ST(db_purge(db, STREAM, none, none, &err), ST_OK, &err);
    shell("! grep -rqa %2$s %1$s", path, first);
    EXPECT(holds(db, META, "kept", "yes") && holds(db, STREAM, "secret", NULL));
    db_close(&db);
    batch_release(&batch);
}

/* The secret is flushed beside what stays: its file must be rewritten for it to go. */
static void purge_of_old_files(const enum db_shape shapes[2])
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    struct bytes none = {0};
    struct db_options options = shaped(shapes);
    uint8_t secret[256];
    char hex[2 * sizeof secret + 1], first[33];
    uint64_t keys;
    random_bytes(secret, sizeof secret);
    hex_encode(secret, sizeof secret, hex);
    snprintf(first, sizeof first, "%.32s", hex);
    EXPECT_ST(db_open(path, &options, &db, &err), ST_OK, &err);
    fill(db, 200, 1000);
    put(&batch, STREAM, "secret", hex);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT_ST(db_purge(db, META, none, none, &err), ST_OK, &err); /* flushes all families */
    shell("grep -rqa %2$s %1$s", path, first);
    batch_clear(&batch);
    batch_delete(&batch, STREAM, "secret", 6);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT_ST(db_purge(db, STREAM, none, none, &err), ST_OK, &err);
    shell("! grep -rqa %2$s %1$s", path, first);
    EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, NULL, &err), ST_OK, &err);
    EXPECT_EQ(keys, 200);
    db_close(&db);
    batch_release(&batch);
}

static void test_purge_leaves_no_bytes(void)
{
    for (enum db_shape shape = DB_PLAIN; shape <= DB_HASHED; shape++) {
        purge_leaves_no_bytes((enum db_shape[]){DB_PLAIN, shape});
        purge_of_old_files((enum db_shape[]){DB_PLAIN, shape});
    }
}

/* What one shape wrote every other reads; damage in a log's own files is found like any other. */
static void test_shapes(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct bytes none = {0};
    uint64_t keys, bytes;
    const enum db_shape order[] = {DB_PLAIN, DB_LOG, DB_HASHED, DB_PLAIN, DB_LOG};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++) {
        struct db_options options = shaped((enum db_shape[]){DB_PLAIN, order[i]});
        REQUIRE(db_open(path, &options, &db, &err) == ST_OK);
        fill(db, 100 * (int)(i + 1), 1000); /* over the old ones, and new ones */
        EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, &bytes, &err), ST_OK, &err);
        EXPECT(keys == 100 * (i + 1) && bytes == keys * (9 + 1000));
        EXPECT_ST(db_purge(db, i == 4 ? STREAM : META, none, none, &err), ST_OK, &err);
        db_close(&db);
    }
    REQUIRE(damage(path, ".blob"));
    struct db_options options = shaped((enum db_shape[]){DB_PLAIN, DB_LOG});
    EXPECT_ST(db_open(path, &options, &db, &err), ST_OK, &err);
    int bad = 0;
    for (int i = 0; i < 500; i++) {
        char key[16];
        struct buf value = {0};
        snprintf(key, sizeof key, "key%06d", i);
        enum status status = db_get(db, STREAM, key, strlen(key), &value, &err);
        EXPECT(status == ST_OK || status == ST_CORRUPT);
        bad += status == ST_CORRUPT;
        buf_release(&value);
    }
    EXPECT_EQ(bad, 1);
    EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, &bytes, &err), ST_CORRUPT, &err);
    db_close(&db);
}

/* A hashed family against a list of what was said: written, replaced, deleted; asked one by one, many at once and by a walk;
 * while it is in memory unsorted, in portions, in files, and after another opening. */
struct said {
    int value; /* 0: not there */
};

static void ask_hashed(struct db *db, const struct said *said, size_t n)
{
    enum { ASKED = 512 };
    struct bytes keys[ASKED], out[ASKED], none = {0}, key, value;
    char names[ASKED][12];
    struct buf values = {0};
    struct err err;
    size_t wrong = 0, there = 0, walked = 0;
    for (size_t at = 0; at < n; at += ASKED) {
        for (size_t i = 0; i < ASKED; i++) {
            snprintf(names[i], sizeof names[i], "%08zx", (at + i) * 2654435761u % (1u << 31));
            keys[i] = bytes_of(names[i]);
        }
        EXPECT_ST(db_multi_get(db, STREAM, ASKED, keys, &values, out, NULL, &err), ST_OK, &err);
        for (size_t i = 0; i < ASKED; i++) {
            int v = said[at + i].value;
            wrong += (out[i].data != NULL) != (v != 0) ||
                     (v && (out[i].len != sizeof v || memcmp(out[i].data, &v, sizeof v)));
            there += v != 0;
        }
        struct buf one = {0};
        enum status st = db_get(db, STREAM, names[0], 8, &one, &err);
        wrong += said[at].value
                     ? st != ST_OK || one.len != sizeof(int) || memcmp(one.data, &said[at].value, sizeof(int))
                     : st != ST_NOT_FOUND;
        buf_release(&one);
    }
    struct db_iter *iter = db_iter_open(db, STREAM, none, none, false);
    while (db_iter_next(iter, &key, &value, &err) == ST_OK)
        walked++;
    db_iter_close(&iter);
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(walked, there);
    buf_release(&values);
}

static void test_hashed(void)
{
    enum { KEYS = 64 * 1024, ROUNDS = 4, PER_ROUND = 60000, PER_BATCH = 3000 };
    const char *path = harness_path(harness_tmpdir(), "db");
    struct db_options options = shaped((enum db_shape[]){DB_PLAIN, DB_HASHED});
    struct said *said = xcalloc(KEYS, sizeof *said);
    struct err err;
    struct db *db;
    struct rng rng;
    rng_seed(&rng, 3);
    EXPECT_ST(db_open(path, &options, &db, &err), ST_OK, &err);
    for (int round = 0; round < ROUNDS; round++) {
        struct batch batch = {0};
        for (int i = 1; i <= PER_ROUND; i++) {
            char name[12];
            size_t k = rng_below(&rng, KEYS);
            said[k].value = rng_below(&rng, 4) ? round * PER_ROUND + i : 0;
            snprintf(name, sizeof name, "%08zx", k * 2654435761u % (1u << 31));
            if (said[k].value)
                batch_put(&batch, STREAM, name, 8, &said[k].value, sizeof said[k].value);
            else
                batch_delete(&batch, STREAM, name, 8);
            if (i % PER_BATCH == 0) {
                EXPECT_ST(db_commit(db, &batch, false, &err), ST_OK, &err);
                batch_clear(&batch);
            }
        }
        batch_release(&batch);
        ask_hashed(db, said, KEYS);
        if (round == 1)
            EXPECT_ST(db_purge(db, STREAM, (struct bytes){0}, (struct bytes){0}, &err), ST_OK, &err);
        if (round == 2) {
            db_close(&db);
            EXPECT_ST(db_open(path, &options, &db, &err), ST_OK, &err);
            ask_hashed(db, said, KEYS);
        }
    }
    db_close(&db);
    free(said);
}

static void test_checkpoint(void)
{
    const char *dir = harness_tmpdir(), *path = harness_path(dir, "db"), *copy = harness_path(dir, "copy");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    put(&batch, META, "a", "1");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT_ST(db_checkpoint(db, copy, &err), ST_OK, &err);
    put(&batch, META, "a", "2");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    db_close(&db);
    EXPECT_ST(db_open(copy, &OPTIONS, &db, &err), ST_OK, &err);
    EXPECT(holds(db, META, "a", "1"));
    db_close(&db);
    batch_release(&batch);
}

static void flip(int fd, off_t at)
{
    uint8_t byte;
    EXPECT(pread(fd, &byte, 1, at) == 1);
    byte ^= 0x10;
    EXPECT(pwrite(fd, &byte, 1, at) == 1);
}

/* One step as the coordinator takes it. */
static void step(struct db *db, struct witness *witness, struct witness_mark *mark)
{
    struct batch batch = {0};
    struct err err;
    uint8_t encoded[WITNESS_MARK_LEN];
    put(&batch, STREAM, "k", "v");
    witness_next(mark, &batch, mark);
    witness_mark_encode(mark, encoded);
    batch_put(&batch, META, "mark", 4, encoded, sizeof encoded);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT_ST(witness_write(witness, mark, &err), ST_OK, &err);
    batch_release(&batch);
}

static struct witness_mark mark_of(const char *path)
{
    struct db *db;
    struct err err;
    struct buf value = {0};
    struct witness_mark mark = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    EXPECT_ST(db_get(db, META, "mark", 4, &value, &err), ST_OK, &err);
    EXPECT(witness_mark_decode(value.data, value.len, &mark));
    db_close(&db);
    buf_release(&value);
    return mark;
}

static void test_witness_sees_a_lost_tail(void)
{
    const char *dir = harness_tmpdir(), *path = harness_path(dir, "db"), *old = harness_path(dir, "old");
    const char *file = harness_path(dir, "witness");
    struct err err;
    struct db *db;
    struct witness *witness;
    struct witness_mark mark, seen;
    EXPECT_ST(witness_open(file, false, &witness, &seen, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(witness_open(file, true, &witness, &mark, &err), ST_OK, &err);
    EXPECT_EQ(mark.applied_seq, 0);
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    for (int i = 0; i < 5; i++)
        step(db, witness, &mark);
    shell("cp -r %s %s", path, old);
    step(db, witness, &mark);
    db_close(&db);
    witness_close(&witness);

    EXPECT_ST(witness_open(file, false, &witness, &seen, &err), ST_OK, &err);
    EXPECT_EQ(seen.applied_seq, 6);
    struct witness_mark whole = mark_of(path), cut = mark_of(old);
    EXPECT_ST(witness_compare(&seen, &whole, path, &err), ST_OK, &err);
    EXPECT_ST(witness_compare(&seen, &cut, old, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "a tail of the log is missing") != NULL);
    EXPECT_ST(witness_compare(&cut, &whole, path, &err), ST_OK, &err); /* database ahead: killed before the witness */
    whole.digest.b[0] ^= 1;
    EXPECT_ST(witness_compare(&seen, &whole, path, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "different histories") != NULL);
    witness_close(&witness);

    int fd = open(file, O_RDWR);
    for (off_t at = 0; at < 88; at++) { /* a slot torn at any byte leaves the other; both torn is damage */
        flip(fd, at);
        EXPECT_ST(witness_open(file, false, &witness, &seen, &err), ST_OK, &err);
        EXPECT(seen.applied_seq == 5 || seen.applied_seq == 6);
        witness_close(&witness);
        flip(fd, 4096 + at);
        EXPECT_ST(witness_open(file, false, &witness, &seen, &err), ST_CORRUPT, &err);
        flip(fd, at);
        flip(fd, 4096 + at);
    }
    close(fd);
}

/* Somebody who only looks sees what was committed before, disturbs nothing, and leaves no file behind. */
static void test_looking_beside_the_owner(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct db_options look = OPTIONS;
    struct db *db, *other, *third;
    struct batch batch = {0};
    struct err err;
    look.create = false;
    look.read_only = true;
    EXPECT_ST(db_open(path, &look, &other, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    put(&batch, META, "a", "1");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    shell("ls -A %s | grep -v '^LOG' | sort >%s-before", path, path);
    EXPECT_ST(db_open(path, &look, &other, &err), ST_OK, &err);
    EXPECT_ST(db_open(path, &look, &third, &err), ST_OK, &err);
    batch_clear(&batch);
    put(&batch, META, "a", "2");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    EXPECT(holds(db, META, "a", "2") && holds(other, META, "a", "1") && holds(third, META, "a", "1"));
    db_close(&other);
    db_close(&third);
    EXPECT_ST(db_open(path, &look, &other, &err), ST_OK, &err);
    EXPECT(holds(other, META, "a", "2"));
    db_close(&other);
    shell("ls -A %s | grep -v '^LOG' | sort | cmp - %s-before", path, path);
    db_close(&db);
    batch_release(&batch);
}

/* The second process: 0 when it is refused. */
static int open_as_second(const char *path)
{
    struct db *db;
    return db_open(path, &OPTIONS, &db, NULL) == ST_CONFLICT ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--open"))
        return open_as_second(argv[2]);
    hash_start();
    RUN(test_batches_are_atomic_and_stay);
    RUN(test_second_process_is_refused);
    RUN(test_looking_beside_the_owner);
    RUN(test_reads_of_many_and_bounds);
    RUN(test_damaged_block_is_named);
    RUN(test_damaged_log_is_refused);
    RUN(test_reserve_refuses_before_writing);
    RUN(test_purge_leaves_no_bytes);
    RUN(test_shapes);
    RUN(test_hashed);
    RUN(test_checkpoint);
    RUN(test_witness_sees_a_lost_tail);
    return harness_end();
}
