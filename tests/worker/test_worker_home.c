/* A worker's directory: it stays the same worker, every start is newer, and a computed delta outlives a restart. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "worker/home.h"

static struct err err;

static void test_identity_and_session(void)
{
    const char *dir = harness_path(harness_tmpdir(), "a/b/worker");
    struct home home, second;
    uint8_t instance[16], incarnation[16] = {7, 8};
    uint64_t erased = 9;
    if (!EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err))
        return;
    EXPECT_EQ(home.boot, 1);
    EXPECT_EQ(home.session_counter, 0);
    EXPECT(home.pending == NULL);
    memcpy(instance, home.instance, 16);
    EXPECT_ST(home_open(dir, 1, &second, &err), ST_CONFLICT, &err);
    EXPECT_ST(home_remember(&home, 12, incarnation, &err), ST_OK, &err);
    EXPECT_ST(home_erased(&home, &erased, &err), ST_OK, &err);
    EXPECT_EQ(erased, 0);
    EXPECT_ST(home_set_erased(&home, 31, &err), ST_OK, &err);
    home_close(&home);

    if (!EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err))
        return;
    EXPECT_EQ(home.boot, 2); /* the refused start did not count, this one does */
    EXPECT(memcmp(instance, home.instance, 16) == 0);
    EXPECT_EQ(home.session_counter, 12);
    EXPECT(memcmp(incarnation, home.session_incarnation, 16) == 0);
    EXPECT_ST(home_erased(&home, &erased, &err), ST_OK, &err);
    EXPECT_EQ(erased, 31);
    const uint8_t root[32] = {7}, other[32] = {8};
    EXPECT_ST(home_belongs(&home, root, &err), ST_OK, &err);
    EXPECT_ST(home_belongs(&home, root, &err), ST_OK, &err);
    EXPECT_ST(home_belongs(&home, other, &err), ST_CONFLICT, &err); /* another line's worker */
    EXPECT_EQ(truncate(harness_path(dir, "root"), 5), 0);
    EXPECT_ST(home_belongs(&home, root, &err), ST_CONFLICT, &err);
    home_close(&home);

    static const char *const files[] = {"boot", "instance", "session"};
    for (size_t i = 0; i < 3; i++) {
        const char *path = harness_path(dir, files[i]);
        struct buf good = {0};
        EXPECT_ST(file_read(path, 256, &good, &err), ST_OK, &err);
        EXPECT_ST(file_write_durable(path, "x\n", 2, 0600, &err), ST_OK, &err);
        EXPECT_ST(home_open(dir, 1, &home, &err), ST_CORRUPT, &err);
        EXPECT(strstr(err.text, files[i]) != NULL);
        EXPECT_ST(file_write_durable(path, good.data, good.len, 0600, &err), ST_OK, &err);
        buf_release(&good);
    }
    EXPECT_ST(file_write_durable(harness_path(dir, "cache/CURRENT"), "x", 1, 0600, &err), ST_OK, &err);
    EXPECT_ST(home_open(dir, 1, &home, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "cache is damaged. Remove it") != NULL);
}

static void test_a_kept_delta(void)
{
    const char *dir = harness_path(harness_tmpdir(), "w");
    struct home home;
    struct digest delta, other;
    uint8_t incarnation[16] = {1};
    Alv__DeltaCommit commit = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef ref = ALV__BLOB_REF__INIT;
    if (!EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err))
        return;
    EXPECT_ST(blob_put(home.blobs, "delta", 5, &delta, &err), ST_OK, &err);
    EXPECT_ST(blob_put(home.blobs, "other", 5, &other, &err), ST_OK, &err);
    ref.digest = (ProtobufCBinaryData){32, delta.b};
    ref.bytes = 5;
    commit.lease = 44;
    commit.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    commit.delta = &ref;
    EXPECT_ST(home_keep_commit(&home, &commit, &err), ST_OK, &err);
    home_close(&home);

    if (!EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err) || !EXPECT(home.pending != NULL))
        return;
    EXPECT_EQ(home.pending->lease, 44);
    home_collect(&home, NULL, 0); /* its blob stays, what nobody needs goes */
    EXPECT(blob_has(home.blobs, &delta) && !blob_has(home.blobs, &other));
    home_close(&home);

    const char *path = harness_path(dir, "commit"); /* damaged: dropped, and the worker starts all the same */
    struct buf bytes = {0};
    EXPECT_ST(file_read(path, 4096, &bytes, &err), ST_OK, &err);
    for (size_t i = 0; i < bytes.len; i++) {
        struct buf bad = {0};
        buf_put(&bad, bytes.data, bytes.len);
        bad.data[i] ^= 1;
        EXPECT_ST(file_write_durable(path, bad.data, i % 3 ? bad.len : i, 0600, &err), ST_OK, &err);
        buf_release(&bad);
        if (i % 16 == 0 && EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err)) {
            EXPECT(home.pending == NULL);
            home_close(&home);
        }
    }
    EXPECT_ST(file_write_durable(path, bytes.data, bytes.len, 0600, &err), ST_OK, &err);
    if (EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err) && EXPECT(home.pending != NULL)) {
        home_drop_commit(&home, &delta);
        EXPECT(!blob_has(home.blobs, &delta));
        home_close(&home);
        EXPECT_ST(home_open(dir, 1, &home, &err), ST_OK, &err);
        EXPECT(home.pending == NULL);
        home_close(&home);
    }
    buf_release(&bytes);
}

int main(void)
{
    hash_start();
    RUN(test_identity_and_session);
    RUN(test_a_kept_delta);
    return harness_end();
}
