/* Blobs in chunks: whole, resumed, over a lost connection, and from a server that lies. */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/limits.h"
#include "harness.h"
#include "net/bulk.h"
#include "rig.h"

enum { BLOB = 9 * LIMIT_CHUNK_BYTES + 12345, LONG_MS = 60000 };

/* A server with one blob to give and one to take. */
struct shelf {
    uint8_t *give, *take;
    struct digest give_digest, take_digest;
    uint64_t taken;
    atomic_int gets, puts;
    atomic_int restart_at; /* at so many gets and puts: close all sockets, answer nothing */
    int revoke_at;         /* at so many gets: the key of the rig's conn is revoked, then answered */
    atomic_bool spoil_chunk, slow_to_settle;
    atomic_int late; /* the get of this number is answered after the next one */
    struct route held;
    uint64_t held_id;
    _Atomic uint64_t floor; /* where a resumed get should begin; what is asked below it is counted */
    atomic_int below;
};

static void give_chunk(struct rig *rig, struct shelf *s, const struct route *to, uint64_t request_id, uint64_t offset,
                       uint32_t len)
{
    Alv__BlobChunk chunk;
    struct digest d;
    bulk_fill_chunk(&chunk, offset, BLOB, s->give + offset, len, &d);
    if (s->spoil_chunk)
        d.b[0] ^= 1;
    endpoint_send(rig->endpoint, to, VERB_BLOB_CHUNK, request_id, &chunk.base, NULL);
}

static bool on_get(struct rig *rig, struct shelf *s, const struct incoming *in)
{
    const Alv__BlobGet *get = (const Alv__BlobGet *)in->message;
    if (memcmp(get->digest.data, s->give_digest.b, DIGEST_LEN)) {
        endpoint_send_error(rig->endpoint, &in->from, in->request_id, ST_NOT_FOUND, "no such blob", 0, NULL);
        return true;
    }
    CHECK(get->offset <= BLOB && get->len <= BLOB - get->offset);
    s->below += get->offset < s->floor;
    if (++s->gets + s->puts == s->restart_at) /* counted before the answer, which the test may be waiting for */
        return false;
    if (s->gets == s->revoke_at) {
        struct name pool;
        CHECK(name_set(&pool, "pool-a", 6) && keys_revoke(rig->keys, &pool, NULL) == ST_OK);
    }
    if (s->gets == s->late) {
        s->held = in->from;
        s->held_id = in->request_id;
        return true;
    }
    give_chunk(rig, s, &in->from, in->request_id, get->offset, get->len);
    if (s->late && s->gets == s->late + 1)
        give_chunk(rig, s, &s->held, s->held_id, get->offset - LIMIT_CHUNK_BYTES, LIMIT_CHUNK_BYTES);
    return true;
}

static bool on_put(struct rig *rig, struct shelf *s, const struct incoming *in)
{
    const Alv__BlobPut *put = (const Alv__BlobPut *)in->message;
    Alv__BlobPutOk ok = ALV__BLOB_PUT_OK__INIT;
    CHECK(bulk_check_put(put, NULL) == ST_OK && put->total == BLOB);
    if (put->data.len && put->offset == s->taken) {
        memcpy(s->take + put->offset, put->data.data, put->data.len);
        s->taken += put->data.len;
    }
    if (put->data.len && ++s->puts + s->gets == s->restart_at)
        return false;
    ok.next = s->taken;
    ok.complete = s->taken == BLOB && !s->slow_to_settle;
    if (s->taken == BLOB)
        s->slow_to_settle = false;
    endpoint_send(rig->endpoint, &in->from, VERB_BLOB_PUT_OK, in->request_id, &ok.base, NULL);
    return true;
}

static bool librarian(struct rig *rig, const struct incoming *in)
{
    if (in->verb == VERB_BLOB_GET)
        return on_get(rig, rig->user, in);
    if (in->verb == VERB_BLOB_PUT)
        return on_put(rig, rig->user, in);
    rig_hello_ok(rig, in);
    return true;
}

struct bench {
    struct rig rig;
    struct shelf shelf;
    struct conn *conn;
    int stop_fd;
};

static void bench_start(struct bench *b)
{
    struct err err = {{0}};
    struct rng rng;
    rng_seed(&rng, 5);
    b->shelf = (struct shelf){.give = xmalloc(BLOB), .take = xcalloc(1, BLOB)};
    for (size_t i = 0; i < BLOB; i++)
        b->shelf.give[i] = (uint8_t)(i % 8 ? (uint64_t)b->shelf.give[i - 1] * 5 + 1 : rng_u64(&rng));
    hash_blake2b(b->shelf.give, BLOB, &b->shelf.give_digest);
    b->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    rig_start(&b->rig, NULL, librarian, &b->shelf);
    struct join join = rig_join(&b->rig, "pool-a", ROLE_WORKER, NULL);
    EXPECT_ST(conn_open(b->rig.zmq, &join, PLANE_BULK, b->stop_fd, &b->conn, &err), ST_OK, &err);
}

static void bench_stop(struct bench *b)
{
    conn_close(b->conn);
    rig_stop(&b->rig);
    close(b->stop_fd);
    free(b->shelf.give);
    free(b->shelf.take);
}

static bool same_file(const char *path, const uint8_t *data, size_t len)
{
    struct buf b = {0};
    bool same = !file_read(path, len, &b, NULL) && b.len == len && !memcmp(b.data, data, len);
    buf_release(&b);
    return same;
}

static void test_get_and_put(void)
{
    struct bench b;
    struct err err = {{0}};
    struct buf out = {0};
    bench_start(&b);
    EXPECT_ST(bulk_get(b.conn, &b.shelf.give_digest, BLOB, BLOB, &out, NULL, &err), ST_OK, &err);
    EXPECT(out.len == BLOB && !memcmp(out.data, b.shelf.give, BLOB));
    EXPECT_EQ(b.shelf.gets, 10);
    b.shelf.slow_to_settle = true;
    EXPECT_ST(bulk_put(b.conn, &b.shelf.give_digest, out.data, out.len, NULL, &err), ST_OK, &err);
    EXPECT(b.shelf.taken == BLOB && !memcmp(b.shelf.take, b.shelf.give, BLOB));
    EXPECT_EQ(b.shelf.puts, 10);
    EXPECT_ST(bulk_put(b.conn, &b.shelf.give_digest, out.data, out.len, NULL, &err), ST_OK, &err); /* held already */
    EXPECT_EQ(b.shelf.puts, 10);
    out.len = 3;
    struct digest other = {{1}};
    EXPECT_ST(bulk_get(b.conn, &other, BLOB, BLOB, &out, NULL, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(bulk_get(b.conn, &b.shelf.give_digest, BLOB, BLOB - 1, &out, NULL, &err), ST_LIMIT, &err);
    EXPECT_EQ(out.len, 3);
    buf_release(&out);
    bench_stop(&b);
}

static void test_a_lost_connection_resumes(void)
{
    struct bench b;
    struct err err = {{0}};
    const char *path = harness_path(harness_tmpdir(), "blob");
    bench_start(&b);
    b.shelf.restart_at = 4;
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_OK, &err);
    EXPECT(same_file(path, b.shelf.give, BLOB));
    EXPECT_EQ(conn_generation(b.conn), 2);
    EXPECT(b.shelf.gets >= 10 && b.shelf.gets <= 10 + 4 + LIMIT_CHUNKS_IN_FLIGHT); /* not all again */

    b.shelf.gets = 0;
    b.shelf.restart_at = 5;
    EXPECT_ST(bulk_put_file(b.conn, &b.shelf.give_digest, path, NULL, &err), ST_OK, &err);
    EXPECT(b.shelf.taken == BLOB && !memcmp(b.shelf.take, b.shelf.give, BLOB));
    EXPECT_EQ(conn_generation(b.conn), 3);
    EXPECT(b.shelf.puts <= 10 + LIMIT_CHUNKS_IN_FLIGHT);
    bench_stop(&b);
}

/* Between two chunks the key is revoked: what is on its way is not finished. */
static void test_a_revoked_key_s_transfer_ends(void)
{
    struct bench b;
    struct err err = {{0}};
    struct buf out = {0};
    bench_start(&b);
    b.shelf.revoke_at = 3;
    EXPECT_ST(bulk_get(b.conn, &b.shelf.give_digest, BLOB, BLOB, &out, NULL, &err), ST_DENIED, &err);
    EXPECT_EQ(out.len, 0);
    EXPECT_EQ(b.shelf.gets, 3);
    EXPECT(!conn_is_up(b.conn));
    buf_release(&out);
    bench_stop(&b);
}

static void test_answers_out_of_order(void)
{
    struct bench b;
    struct err err = {{0}};
    struct buf out = {0};
    bench_start(&b);
    b.shelf.late = 3;
    EXPECT_ST(bulk_get(b.conn, &b.shelf.give_digest, BLOB, BLOB, &out, NULL, &err), ST_OK, &err);
    EXPECT(out.len == BLOB && !memcmp(out.data, b.shelf.give, BLOB));
    EXPECT(b.shelf.gets > 10); /* what came after the gap was asked for again */
    buf_release(&out);
    bench_stop(&b);
}

static void stop_halfway(void *user, uint64_t done, uint64_t total)
{
    uint64_t one = 1;
    if (done > total / 2)
        EXPECT(write(*(int *)user, &one, sizeof one) == sizeof one);
}

static void test_a_stopped_get_goes_on_later(void)
{
    struct bench b;
    struct err err = {{0}};
    const char *dir = harness_tmpdir(), *path = harness_path(dir, "blob"), *part = harness_path(dir, "blob.part");
    uint64_t drain;
    struct stat at;
    bench_start(&b);
    struct bulk_options options = {.progress = stop_halfway, .user = &b.stop_fd};
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, &options, &err), ST_STOPPED, &err);
    EXPECT(access(path, F_OK) < 0 && stat(part, &at) == 0 && at.st_size > BLOB / 2);
    EXPECT(read(b.stop_fd, &drain, sizeof drain) == sizeof drain);
    EXPECT(at.st_size % LIMIT_CHUNK_BYTES == 0 &&
           truncate(part, at.st_size - 100) == 0); /* a torn last chunk is asked for again */
    b.shelf.below = 0;
    b.shelf.floor = (uint64_t)(at.st_size / LIMIT_CHUNK_BYTES - 1) * LIMIT_CHUNK_BYTES;
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_OK, &err);
    EXPECT(same_file(path, b.shelf.give, BLOB));
    EXPECT(access(part, F_OK) < 0);
    EXPECT_EQ(b.shelf.below, 0);

    /* a part that was damaged meanwhile: found at the end, thrown away, the next attempt is clean */
    EXPECT(unlink(path) == 0);
    EXPECT_ST(file_write_durable(part, b.shelf.give + 1, 2 * LIMIT_CHUNK_BYTES, 0644, &err), ST_OK, &err);
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_VERIFY, &err);
    EXPECT(access(part, F_OK) < 0 && access(path, F_OK) < 0);
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_OK, &err);
    bench_stop(&b);
}

static void test_a_lying_server(void)
{
    struct bench b;
    struct err err = {{0}};
    const char *path = harness_path(harness_tmpdir(), "blob");
    bench_start(&b);
    b.shelf.spoil_chunk = true;
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_VERIFY, &err);
    b.shelf.spoil_chunk = false;
    b.shelf.give[BLOB - 1] ^= 1; /* each chunk is sound, the whole is another blob */
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB, path, NULL, &err), ST_VERIFY, &err);
    EXPECT(access(path, F_OK) < 0);
    EXPECT_ST(bulk_get_file(b.conn, &b.shelf.give_digest, BLOB - 5, path, NULL, &err), ST_VERIFY, &err);
    bench_stop(&b);
}

static void test_server_side_checks(void)
{
    Alv__BlobPut put = ALV__BLOB_PUT__INIT;
    struct digest d;
    uint8_t data[100] = {0};
    put.total = 150;
    put.offset = 50;
    put.data = (ProtobufCBinaryData){100, data};
    hash_blake2b(data, 100, &d);
    put.chunk_digest = (ProtobufCBinaryData){DIGEST_LEN, d.b};
    EXPECT_ST(bulk_check_put(&put, NULL), ST_OK, NULL);
    put.offset = 51;
    EXPECT_ST(bulk_check_put(&put, NULL), ST_BAD_DATA, NULL);
    put.offset = UINT64_MAX;
    EXPECT_ST(bulk_check_put(&put, NULL), ST_BAD_DATA, NULL);
    put.offset = 0;
    data[99] = 1;
    EXPECT_ST(bulk_check_put(&put, NULL), ST_VERIFY, NULL);
}

int main(void)
{
    hash_start();
    RUN(test_get_and_put);
    RUN(test_a_lost_connection_resumes);
    RUN(test_a_revoked_key_s_transfer_ends);
    RUN(test_answers_out_of_order);
    RUN(test_a_stopped_get_goes_on_later);
    RUN(test_a_lying_server);
    RUN(test_server_side_checks);
    return harness_end();
}
