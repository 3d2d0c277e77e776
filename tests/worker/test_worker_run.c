/* The whole worker against a coordinator of a few lines, over real sockets: joins, erases, trains, uploads, commits
 * through a restart of the server, evaluates, drains; and a second worker makes the same delta. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "base/hash.h"
#include "harness.h"
#include "net/bulk.h"
#include "rig.h"
#include "toy.h"
#include "worker/engine.h"
#include "worker/worker.h"

enum { ADAPTERS = 2, STORE_MAX = 1 << 20 };

static const char *base_path;
static uint8_t seed[16] = {4}, incarnation[16] = {3}, zeroes[32];

struct coordinator {
    struct card card;
    struct adapter_shape shape;
    struct buf adapters[ADAPTERS];
    struct digest digests[ADAPTERS];
    int stop_fd; /* the worker's */
    Alv__ReturnReason why;
    uint32_t tasks, restarts_left, segments, evaluations, missing_from;
    uint64_t applied; /* exclusions the worker says it has applied, at its first request for a task */
    struct buf delta; /* received */
    struct digest committed;
    uint32_t commits, returns;
    uint64_t nll_len;
    char reason[256];
};

static void answer(struct rig *rig, const struct incoming *in, const void *message)
{
    struct err err;
    EXPECT_ST(endpoint_send(rig->endpoint, &in->from, in->verb + 1, in->request_id, message, &err), ST_OK, &err);
}

static void hello(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    Alv__HelloOk ok = ALV__HELLO_OK__INIT;
    struct buf card = {0};
    card_encode(&c->card, &card);
    ok.protocol = 1;
    ok.line = (char *)"notes";
    ok.session_counter = 1;
    ok.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    ok.previous_incarnation = (ProtobufCBinaryData){16, zeroes};
    ok.card = (ProtobufCBinaryData){card.len, card.data};
    ok.root_key = (ProtobufCBinaryData){32, zeroes};
    ok.seed = (ProtobufCBinaryData){16, seed};
    ok.exclusion_seq = 1;
    ok.adapter_rank = 4, ok.adapter_alpha = 8, ok.adapter_targets = LORA_ALL;
    answer(rig, in, &ok);
    buf_release(&card);
}

static void exclusions(struct rig *rig, const struct incoming *in)
{
    Alv__Exclusions list = ALV__EXCLUSIONS__INIT;
    Alv__Exclusion e = ALV__EXCLUSION__INIT, *pointer = &e;
    e.seq = 1, e.domain = 2, e.first = 20, e.count = 10, e.watermark = 100, e.erase = true;
    list.n_entries = 1, list.entries = &pointer, list.newest = 1;
    answer(rig, in, &list);
}

static void task(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    Alv__Task none = ALV__TASK__INIT, some = ALV__TASK__INIT;
    Alv__Evaluate e = ALV__EVALUATE__INIT;
    Alv__Range range = ALV__RANGE__INIT, *ranges = &range;
    Alv__AdapterRef refs[ADAPTERS], *ref_list[ADAPTERS];
    Alv__BlobRef blobs[ADAPTERS];
    Alv__Lease *lease = toy_lease();
    for (int i = 0; i < ADAPTERS; i++) {
        alv__adapter_ref__init(&refs[i]);
        alv__blob_ref__init(&blobs[i]);
        blobs[i].digest = (ProtobufCBinaryData){32, c->digests[i].b};
        blobs[i].bytes = c->adapters[i].len;
        refs[i].adapter = &blobs[i];
        ref_list[i] = &refs[i];
    }
    c->applied = c->tasks ? c->applied : ((const Alv__TaskRequest *)in->message)->exclusion_seq;
    lease->parent_adapter = &blobs[0];
    lease->exclusion_seq = 1;
    range.domain = 1, range.count = 5;
    e.id = 90, e.generation = 1, e.window_tokens = 24, e.progress_ms = 1000, e.session_counter = 1;
    e.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    e.n_adapters = ADAPTERS, e.adapters = ref_list;
    e.n_windows = 1, e.windows = &ranges;
    if (c->tasks == 0)
        some.lease = lease;
    if (c->tasks == 1 && !c->missing_from)
        some.evaluate = &e;
    if (some.lease || some.evaluate)
        answer(rig, in, &some);
    else if (c->tasks++ < 3)
        CHECK(write(c->stop_fd, "x", 1) == 1); /* and no answer: a drain ends the wait */
    else
        answer(rig, in, &none);
}

static void give_chunk(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    const Alv__BlobGet *get = (const Alv__BlobGet *)in->message;
    for (int i = 0; i < ADAPTERS; i++) {
        if (memcmp(get->digest.data, c->digests[i].b, 32) != 0)
            continue;
        Alv__BlobChunk chunk;
        struct digest digest;
        size_t len = c->adapters[i].len - get->offset < get->len ? c->adapters[i].len - get->offset : get->len;
        bulk_fill_chunk(&chunk, get->offset, c->adapters[i].len, c->adapters[i].data + get->offset, len, &digest);
        answer(rig, in, &chunk);
    }
}

static void take_chunk(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    const Alv__BlobPut *put = (const Alv__BlobPut *)in->message;
    Alv__BlobPutOk ok = ALV__BLOB_PUT_OK__INIT;
    struct err err;
    if (!EXPECT_ST(bulk_check_put(put, &err), ST_OK, &err) || !EXPECT(put->total < STORE_MAX))
        return;
    if (put->data.len && put->offset == c->delta.len)
        buf_put(&c->delta, put->data.data, put->data.len);
    ok.next = c->delta.len;
    ok.complete = c->delta.len == put->total;
    answer(rig, in, &ok);
}

static void segments(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    const Alv__SegmentsGet *get = (const Alv__SegmentsGet *)in->message;
    Alv__Segments list = ALV__SEGMENTS__INIT;
    Alv__Segment *items[7];
    struct reader r = reader_of(get->offsets.data, get->offsets.len);
    for (list.segments = items; list.n_segments < 7 && reader_left(&r) > 0; list.n_segments++) { /* a part each time */
        struct mix_segment at = {{(uint16_t)get->domain}, read_u64(&r)};
        EXPECT(get->probe || at.domain.v != 2 || at.offset < 20 || at.offset >= 30); /* retracted: never asked for */
        items[list.n_segments] = toy_segment(at, get->probe);
        items[list.n_segments]->missing = c->missing_from && at.offset >= c->missing_from;
        c->segments++;
    }
    answer(rig, in, &list);
    for (size_t i = 0; i < list.n_segments; i++)
        alv__segment__free_unpacked(items[i], NULL);
}

static bool commit(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    const Alv__DeltaCommit *m = (const Alv__DeltaCommit *)in->message;
    Alv__DeltaAck ack = ALV__DELTA_ACK__INIT;
    c->commits++;
    if (c->restarts_left) { /* the answer is lost with the server */
        c->restarts_left--;
        return false;
    }
    EXPECT_EQ(m->lease, 12);
    EXPECT_EQ(m->first_losses.len, 19 * 4);
    EXPECT_EQ(m->n_fresh, 2);
    EXPECT(m->steps >= 8 && m->target_tokens > 500 && m->fingerprint[0]);
    memcpy(c->committed.b, m->delta->digest.data, 32);
    c->tasks++;
    ack.accepted = true;
    answer(rig, in, &ack);
    return true;
}

static bool handle(struct rig *rig, const struct incoming *in)
{
    struct coordinator *c = rig->user;
    Alv__Ok ok = ALV__OK__INIT;
    Alv__ProgressOk progress = ALV__PROGRESS_OK__INIT;
    switch (in->verb) {
    case VERB_HELLO:
        hello(rig, in);
        break;
    case VERB_EXCLUSIONS_GET:
        exclusions(rig, in);
        break;
    case VERB_TASK_REQUEST:
        task(rig, in);
        break;
    case VERB_PROGRESS:
        answer(rig, in, &progress);
        break;
    case VERB_BLOB_GET:
        give_chunk(rig, in);
        break;
    case VERB_BLOB_PUT:
        take_chunk(rig, in);
        break;
    case VERB_SEGMENTS_GET:
        segments(rig, in);
        break;
    case VERB_DELTA_COMMIT:
        return commit(rig, in);
    case VERB_EVAL_RESULT:
        c->nll_len = ((const Alv__EvalResult *)in->message)->nll.len;
        c->evaluations++;
        c->tasks++;
        answer(rig, in, &ok);
        break;
    case VERB_TASK_RETURN:
        snprintf(c->reason, sizeof c->reason, "%s", ((const Alv__TaskReturn *)in->message)->reason);
        c->why = ((const Alv__TaskReturn *)in->message)->why;
        c->returns++;
        c->tasks++;
        answer(rig, in, &ok);
        break;
    default:
        EXPECT(!"an unexpected verb");
    }
    return true;
}

static void coordinator_init(struct coordinator *c)
{
    struct engine_options options = {.threads = 1, .micro_rows = 48};
    struct engine engine;
    struct err err;
    *c = (struct coordinator){0};
    CHECK(engine_open(base_path, &options, &engine, &err) == ST_OK);
    c->card = engine.card;
    CHECK(adapter_shape_of(base_arch(engine.base), 4, 8, LORA_ALL, &c->shape, &err) == ST_OK);
    float *block = xcalloc(adapter_floats(&c->shape), sizeof *block);
    for (int i = 0; i < ADAPTERS; i++) {
        adapter_init(&c->shape, (uint64_t)i + 1, block);
        adapter_write_peft(&c->shape, block, &c->adapters[i]);
        hash_blake2b(c->adapters[i].data, c->adapters[i].len, &c->digests[i]);
    }
    free(block);
    engine_close(&engine);
}

static void coordinator_release(struct coordinator *c)
{
    for (int i = 0; i < ADAPTERS; i++)
        buf_release(&c->adapters[i]);
    buf_release(&c->delta);
}

/* One worker's life in `dir`, which ends when the coordinator has it stopped. */
static void live(struct coordinator *c, const char *dir, enum status want)
{
    struct rig rig;
    struct err err;
    int fds[2];
    CHECK(pipe(fds) == 0);
    c->stop_fd = fds[1];
    rig_start(&rig, NULL, handle, c);
    struct join join = rig_join(&rig, "worker", ROLE_WORKER, NULL);
    const char *path = harness_path(rig.dir, "join");
    EXPECT_ST(join_write(path, &join, &err), ST_OK, &err);
    struct worker_options options = {.join = path,
                                     .dir = dir,
                                     .base = base_path,
                                     .threads = 1,
                                     .ops = OPS_BLAS,
                                     .micro_rows = 48,
                                     .reserve_bytes = 1,
                                     .quiet = true};
    options.stop_fd = fds[0];
    EXPECT_ST(worker_run(&options, &err), want, &err);
    rig_stop(&rig);
    close(fds[0]);
    close(fds[1]);
}

static void test_a_worker_s_life(void)
{
    struct coordinator first, second;
    const char *dir = harness_tmpdir();
    struct digest digest;
    coordinator_init(&first);
    coordinator_init(&second);
    first.restarts_left = 1;
    live(&first, harness_path(dir, "one"), ST_OK);
    EXPECT_EQ(first.applied, 1);
    EXPECT_EQ(first.commits, 2); /* the second after the restart */
    EXPECT_EQ(first.evaluations, 1);
    EXPECT_EQ(first.nll_len, 8 * ADAPTERS * 5);
    EXPECT_EQ(first.returns, 0);
    hash_blake2b(first.delta.data, first.delta.len, &digest);
    EXPECT(digest_eq(&digest, &first.committed));
    EXPECT_EQ(first.delta.len, delta_bytes(&first.shape, DELTA_INT8));
    EXPECT(access(harness_path(dir, "one/commit"), F_OK) != 0);

    live(&second, harness_path(dir, "two"), ST_OK); /* someone else, the same bytes */
    EXPECT(digest_eq(&first.committed, &second.committed));
    EXPECT(second.segments > 24); /* or more: a slow answer is asked for again */

    buf_clear(&second.delta);
    second.tasks = second.segments = second.evaluations = 0;
    live(&second, harness_path(dir, "two"), ST_OK); /* again in the same directory: the text is cached */
    EXPECT(digest_eq(&first.committed, &second.committed));
    EXPECT(second.segments >= 5 && second.segments < 24); /* the probe's alone */
    EXPECT_EQ(second.evaluations, 1);
    coordinator_release(&first);
    coordinator_release(&second);
}

static void test_what_is_missing_is_named(void)
{
    struct coordinator c;
    coordinator_init(&c);
    c.missing_from = 105;
    live(&c, harness_path(harness_tmpdir(), "w"), ST_OK);
    EXPECT_EQ(c.commits, 0);
    EXPECT_EQ(c.returns, 1);
    EXPECT(strstr(c.reason, "105") != NULL);
    EXPECT_EQ(c.why, ALV__RETURN_REASON__RETURN_MISSING);
    coordinator_release(&c);
}

static void test_another_base(void)
{
    struct coordinator c;
    coordinator_init(&c);
    c.card.base.b[0] ^= 1;
    live(&c, harness_path(harness_tmpdir(), "w"), ST_CONFIG);
    EXPECT_EQ(c.tasks, 0);
    coordinator_release(&c);
}

int main(void)
{
    hash_start();
    base_path = toy_base();
    RUN(test_a_worker_s_life);
    RUN(test_what_is_missing_is_named);
    RUN(test_another_base);
    return harness_end();
}
