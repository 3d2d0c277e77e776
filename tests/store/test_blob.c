/* Blobs: whole or not there, resumed, verified, pinned. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "store/blob.h"

static const uint8_t TEXT[] = "the quick brown fox jumps over the lazy dog, and again, and again";
enum { LEN = sizeof TEXT - 1 };

static struct blob_store *open_store(const char *dir)
{
    struct blob_store *store = NULL;
    struct err err;
    EXPECT_ST(blob_store_open(dir, 0, &store, &err), ST_OK, &err);
    return store;
}

static enum status count(void *user, const struct digest *digest, uint64_t bytes, struct err *err)
{
    (void)digest, (void)bytes, (void)err;
    ++*(int *)user;
    return ST_OK;
}

static int blobs(struct blob_store *store)
{
    int n = 0;
    EXPECT_ST(blob_list(store, count, &n, NULL), ST_OK, NULL);
    return n;
}

static int partials(struct blob_store *store)
{
    int n = 0;
    EXPECT_ST(blob_list_partials(store, count, &n, NULL), ST_OK, NULL);
    return n;
}

static void test_put_and_read(void)
{
    struct err err;
    struct digest digest, again, other;
    struct buf out = {0};
    uint64_t bytes;
    struct blob_store *store = open_store(harness_path(harness_tmpdir(), "blobs"));
    EXPECT_ST(blob_put(store, TEXT, LEN, &digest, &err), ST_OK, &err);
    EXPECT_ST(blob_put(store, TEXT, LEN, &again, &err), ST_OK, &err);
    EXPECT(digest_eq(&digest, &again) && blobs(store) == 1 && partials(store) == 0);
    EXPECT_ST(blob_size(store, &digest, &bytes, &err), ST_OK, &err);
    EXPECT_EQ(bytes, LEN);
    EXPECT_ST(blob_load(store, &digest, LEN - 1, &out, &err), ST_LIMIT, &err);
    EXPECT_ST(blob_load(store, &digest, LEN, &out, &err), ST_OK, &err);
    EXPECT(out.len == LEN && !memcmp(out.data, TEXT, LEN));
    buf_clear(&out);
    EXPECT_ST(blob_read(store, &digest, 4, 5, &out, &err), ST_OK, &err);
    EXPECT(out.len == 5 && !memcmp(out.data, "quick", 5));
    EXPECT_ST(blob_read(store, &digest, LEN - 2, 1000, &out, &err), ST_OK, &err);
    EXPECT_EQ(out.len, 7);
    EXPECT_ST(blob_read(store, &digest, UINT64_MAX, SIZE_MAX, &out, &err), ST_OK, &err);
    EXPECT_EQ(out.len, 7);
    EXPECT_ST(blob_put(store, "", 0, &other, &err), ST_OK, &err);
    EXPECT(blob_has(store, &other));
    again.b[7] ^= 1;
    EXPECT(!blob_has(store, &again));
    EXPECT_ST(blob_load(store, &again, 100, &out, &err), ST_NOT_FOUND, &err);
    blob_store_close(&store);
    buf_release(&out);
}

static void test_pieces_resume_after_restart(void)
{
    const char *dir = harness_path(harness_tmpdir(), "blobs");
    struct err err;
    struct digest digest;
    struct blob_writer *w, *second;
    hash_blake2b(TEXT, LEN, &digest);
    struct blob_store *store = open_store(dir);
    EXPECT_ST(blob_writer_open(store, &digest, LEN, &w, &err), ST_OK, &err);
    EXPECT_ST(blob_writer_open(store, &digest, LEN, &second, &err), ST_CONFLICT, &err);
    EXPECT_ST(blob_writer_put(w, TEXT, 10, &err), ST_OK, &err);
    EXPECT_ST(blob_writer_commit(&w, &err), ST_USAGE, &err);
    EXPECT(w != NULL);
    blob_writer_close(&w);
    blob_store_close(&store);

    store = open_store(dir);
    EXPECT(!blob_has(store, &digest) && partials(store) == 1);
    EXPECT_ST(blob_writer_open(store, &digest, LEN, &w, &err), ST_OK, &err);
    EXPECT_EQ(blob_writer_at(w), 10);
    EXPECT_ST(blob_writer_put(w, TEXT + 10, LEN - 9, &err), ST_BAD_DATA, &err); /* one too many */
    EXPECT_ST(blob_writer_put(w, TEXT + 10, LEN - 10, &err), ST_OK, &err);
    EXPECT_ST(blob_writer_commit(&w, &err), ST_OK, &err);
    EXPECT(w == NULL && blob_has(store, &digest) && partials(store) == 0);
    EXPECT_ST(blob_verify(store, &digest, &err), ST_OK, &err);

    EXPECT_ST(blob_writer_open(store, &digest, LEN, &w, &err), ST_OK, &err); /* there already */
    EXPECT_EQ(blob_writer_at(w), LEN);
    EXPECT_ST(blob_writer_commit(&w, &err), ST_OK, &err);
    blob_store_close(&store);
}

static void test_wrong_bytes_never_become_a_blob(void)
{
    const char *dir = harness_path(harness_tmpdir(), "blobs");
    struct err err;
    struct digest digest;
    struct blob_writer *w;
    hash_blake2b(TEXT, LEN, &digest);
    struct blob_store *store = open_store(dir);
    EXPECT_ST(blob_writer_open(store, &digest, LEN, &w, &err), ST_OK, &err);
    uint8_t wrong[LEN];
    memcpy(wrong, TEXT, LEN);
    wrong[LEN / 2] ^= 1;
    EXPECT_ST(blob_writer_put(w, wrong, LEN, &err), ST_OK, &err);
    EXPECT_ST(blob_writer_commit(&w, &err), ST_VERIFY, &err);
    EXPECT(w == NULL && blobs(store) == 0 && partials(store) == 0);

    /* A partial longer than announced (left by something else) starts from nothing. */
    char hex[DIGEST_HEX_SIZE];
    digest_hex(&digest, hex);
    EXPECT_ST(file_write_durable(harness_path(harness_path(dir, "partial"), hex), TEXT, LEN, 0600, &err), ST_OK, &err);
    EXPECT_ST(blob_writer_open(store, &digest, LEN - 1, &w, &err), ST_OK, &err);
    EXPECT_EQ(blob_writer_at(w), 0);
    blob_writer_abandon(&w);
    EXPECT_EQ(partials(store), 0);

    /* blob_put does not trust a partial */
    EXPECT_ST(file_write_durable(harness_path(harness_path(dir, "partial"), hex), wrong, LEN, 0600, &err), ST_OK, &err);
    EXPECT_ST(blob_put(store, TEXT, LEN, &digest, &err), ST_OK, &err);
    EXPECT_ST(blob_verify(store, &digest, &err), ST_OK, &err);
    blob_store_close(&store);
}

static void test_damage_is_named(void)
{
    struct err err;
    struct digest digest;
    struct buf out = {0};
    char path[BLOB_PATH_SIZE];
    struct blob_store *store = open_store(harness_path(harness_tmpdir(), "blobs"));
    EXPECT_ST(blob_put(store, TEXT, LEN, &digest, &err), ST_OK, &err);
    blob_path(store, &digest, path);
    int fd = open(path, O_WRONLY);
    EXPECT(pwrite(fd, "T", 1, 0) == 1);
    EXPECT_ST(blob_verify(store, &digest, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, path) != NULL);
    EXPECT_ST(blob_load(store, &digest, 1000, &out, &err), ST_CORRUPT, &err);
    EXPECT_EQ(out.len, 0);
    EXPECT(!ftruncate(fd, LEN - 1));
    EXPECT_ST(blob_verify(store, &digest, &err), ST_CORRUPT, &err);
    close(fd);
    blob_store_close(&store);
    buf_release(&out);
}

static void test_pins_and_reserve(void)
{
    const char *dir = harness_path(harness_tmpdir(), "blobs");
    struct err err;
    struct digest digest, other;
    struct blob_store *store = open_store(dir), *full;
    EXPECT_ST(blob_put(store, TEXT, LEN, &digest, &err), ST_OK, &err);
    blob_pin(store, &digest);
    blob_pin(store, &digest);
    EXPECT_ST(blob_delete(store, &digest, &err), ST_AGAIN, &err);
    blob_unpin(store, &digest);
    EXPECT_ST(blob_delete(store, &digest, &err), ST_AGAIN, &err);
    blob_unpin(store, &digest);
    EXPECT_ST(blob_delete(store, &digest, &err), ST_OK, &err);
    EXPECT_ST(blob_delete(store, &digest, &err), ST_NOT_FOUND, &err);
    EXPECT_EQ(blobs(store), 0);
    EXPECT_ST(blob_store_open(dir, 1ull << 62, &full, &err), ST_OK, &err);
    EXPECT_ST(blob_put(full, TEXT, LEN, &other, &err), ST_NO_SPACE, &err);
    EXPECT_EQ(partials(full), 0);
    blob_store_close(&full);
    blob_store_close(&store);
}

int main(void)
{
    hash_start();
    RUN(test_put_and_read);
    RUN(test_pieces_resume_after_restart);
    RUN(test_wrong_bytes_never_become_a_blob);
    RUN(test_damage_is_named);
    RUN(test_pins_and_reserve);
    return harness_end();
}
