/* Killed at every durable step, and what is found afterwards. (Killing leaves the page cache behind: this tests order and
 * atomicity, not fsync.) */
#include <signal.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "store/blob.h"
#include "store/db.h"
#include "store/witness.h"

static const char *const FAMILY[] = {"meta", "stream"};
enum { META, STREAM, STEPS = 8 };
static const struct db_options OPTIONS = {.families = FAMILY, .n_families = 2, .create = true, .reserve_bytes = 1};

/* Runs `work` in a child with the failpoint armed; true when the failpoint killed it. */
static bool killed_at(const char *failpoint, void (*work)(const char *dir), const char *dir)
{
    pid_t child = fork();
    if (child == 0) {
        setenv("ALLUVIUM_FAILPOINTS", failpoint, 1);
        work(dir);
        _exit(0);
    }
    int result;
    return waitpid(child, &result, 0) == child && WIFSIGNALED(result) && WTERMSIG(result) == SIGKILL;
}

static void make_body(uint8_t *body, size_t len)
{
    struct rng rng;
    rng_seed(&rng, 5);
    for (size_t i = 0; i < len; i++)
        body[i] = (uint8_t)rng_u64(&rng);
}

enum { BODY = 100000, PIECE = 30000 };

static void write_blob(const char *dir)
{
    static uint8_t body[BODY];
    struct blob_store *store;
    struct blob_writer *w;
    struct digest digest;
    make_body(body, BODY);
    hash_blake2b(body, BODY, &digest);
    if (blob_store_open(dir, 0, &store, NULL) || blob_writer_open(store, &digest, BODY, &w, NULL))
        _exit(1);
    while (blob_writer_at(w) < BODY) {
        size_t at = (size_t)blob_writer_at(w), n = BODY - at < PIECE ? BODY - at : PIECE;
        if (blob_writer_put(w, body + at, n, NULL))
            _exit(1);
    }
    if (blob_writer_commit(&w, NULL))
        _exit(1);
    blob_store_close(&store);
}

static void test_blob_killed_between_steps(void)
{
    static uint8_t body[BODY];
    const char *points[] = {"blob.write=kill", "blob.write=kill@3", "blob.sync=kill", "blob.rename=kill",
                            "blob.sync_dir=kill"};
    make_body(body, BODY);
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        const char *dir = harness_path(harness_tmpdir(), "blobs");
        struct blob_store *store;
        struct digest digest;
        struct err err;
        hash_blake2b(body, BODY, &digest);
        EXPECT(killed_at(points[i], write_blob, dir));
        EXPECT_ST(blob_store_open(dir, 0, &store, &err), ST_OK, &err);
        bool renamed = !strncmp(points[i], "blob.sync_dir", 13);
        EXPECT_EQ(blob_has(store, &digest), renamed); /* whole, or not there */
        if (renamed)
            EXPECT_ST(blob_verify(store, &digest, &err), ST_OK, &err);
        write_blob(dir); /* goes on where it was */
        EXPECT_ST(blob_verify(store, &digest, &err), ST_OK, &err);
        blob_store_close(&store);
    }
}

/* Each step puts its number into both families, then the witness, then "acknowledges" it in a file. */
static void run_steps(const char *dir)
{
    char path[4096];
    struct db *db;
    struct witness *witness;
    struct witness_mark mark;
    struct buf value = {0};
    snprintf(path, sizeof path, "%s/witness", dir);
    if (witness_open(path, true, &witness, &mark, NULL))
        _exit(1);
    snprintf(path, sizeof path, "%s/db", dir);
    if (db_open(path, &OPTIONS, &db, NULL))
        _exit(1);
    if (db_get(db, META, "mark", 4, &value, NULL) == ST_OK && !witness_mark_decode(value.data, value.len, &mark))
        _exit(1);
    snprintf(path, sizeof path, "%s/acked", dir);
    for (int i = 0; i < STEPS; i++) {
        struct batch batch = {0};
        uint8_t encoded[WITNESS_MARK_LEN];
        batch_put(&batch, STREAM, &i, sizeof i, &i, sizeof i);
        witness_next(&mark, &batch, &mark);
        witness_mark_encode(&mark, encoded);
        batch_put(&batch, META, "mark", 4, encoded, sizeof encoded);
        if (db_commit(db, &batch, true, NULL) || witness_write(witness, &mark, NULL) ||
            file_write_durable(path, &mark.applied_seq, 8, 0600, NULL))
            _exit(1);
        batch_release(&batch);
    }
    db_close(&db);
    witness_close(&witness);
}

static void test_steps_killed_anywhere(void)
{
    const char *points[] = {"db.commit.before=kill@4", "db.commit.after=kill@4", "witness.write=kill@4",
                            "witness.sync=kill@4"};
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        const char *dir = harness_tmpdir();
        struct err err;
        struct db *db;
        struct witness *witness;
        struct witness_mark seen, mark;
        struct buf value = {0}, acked = {0};
        EXPECT(killed_at(points[i], run_steps, dir));
        EXPECT_ST(witness_open(harness_path(dir, "witness"), false, &witness, &seen, &err), ST_OK, &err);
        EXPECT_ST(db_open(harness_path(dir, "db"), &OPTIONS, &db, &err), ST_OK, &err);
        EXPECT_ST(db_get(db, META, "mark", 4, &value, &err), ST_OK, &err);
        REQUIRE(witness_mark_decode(value.data, value.len, &mark));
        EXPECT_ST(witness_compare(&seen, &mark, "db", &err), ST_OK, &err);
        EXPECT_ST(file_read(harness_path(dir, "acked"), 8, &acked, &err), ST_OK, &err);
        struct reader r = reader_of(acked.data, acked.len);
        EXPECT_EQ(read_u64(&r), 3);
        EXPECT_EQ(mark.applied_seq, strcmp(points[i], "db.commit.before=kill@4") ? 4 : 3);
        uint64_t keys;
        EXPECT_ST(db_scrub(db, STREAM, NULL, NULL, &keys, NULL, &err), ST_OK, &err);
        EXPECT_EQ(keys, mark.applied_seq); /* both families at the same step */
        db_close(&db);
        witness_close(&witness);
        buf_release(&value);
        buf_release(&acked);
    }
}

static void test_failed_write_kills_the_handle(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct err err;
    struct db *db;
    struct batch batch = {0};
    struct buf value = {0};
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    batch_put(&batch, META, "a", 1, "1", 1);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    setenv("ALLUVIUM_FAILPOINTS", "db.commit.before=error", 1);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_IO, &err);
    unsetenv("ALLUVIUM_FAILPOINTS");
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_IO, &err); /* still */
    EXPECT(strstr(err.text, "closed and opened again") != NULL);
    EXPECT_ST(db_get(db, META, "a", 1, &value, &err), ST_OK, &err);
    db_close(&db);
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    EXPECT_ST(db_commit(db, &batch, true, &err), ST_OK, &err);
    db_close(&db);
    batch_release(&batch);
    buf_release(&value);
}

int main(void)
{
    hash_start();
    RUN(test_blob_killed_between_steps);
    RUN(test_steps_killed_anywhere);
    RUN(test_failed_write_kills_the_handle);
    return harness_end();
}
