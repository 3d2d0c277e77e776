/* A lease trained on a toy base: same lease, same bytes, whatever the worker did before; and scores that are remembered
 * are the ones that would be computed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "adapter/delta.h"
#include "base/hash.h"
#include "harness.h"
#include "toy.h"
#include "worker/evaluate.h"
#include "worker/home.h"
#include "worker/train.h"

static const char *base_path;
static atomic_bool never, at_once = true;

static void no_progress(void *user, uint32_t done, uint32_t total, uint32_t tokens_per_s)
{
    (void)user, (void)done, (void)total, (void)tokens_per_s;
}

static void engine_up(struct engine *engine, enum ops_kind ops, uint32_t threads)
{
    struct engine_options options = {.threads = threads, .micro_rows = 48, .ops = ops};
    struct memory_plan plan;
    char fingerprint[LIMIT_TEXT_BYTES];
    struct err err;
    *engine = (struct engine){0};
    if (!EXPECT_ST(engine_open(base_path, &options, engine, &err), ST_OK, &err) ||
        !EXPECT_ST(engine_prepare(engine, 4, 8, LORA_ALL, &plan, fingerprint, &err), ST_OK, &err))
        exit(harness_end());
}

static float *parent_of(const struct engine *engine)
{
    float *block = xcalloc(adapter_floats(&engine->shape), sizeof *block);
    adapter_init(&engine->shape, 5, block);
    return block;
}

static struct view *new_view(void)
{
    static const struct sip_key seed = {{4}};
    return view_new(&seed);
}

/* Trains the lease; the caller releases the result. */
static enum status train(struct engine *engine, struct view *view, const Alv__Lease *lease, const atomic_bool *cancel,
                         struct train_result *out, struct err *err)
{
    struct lease_work work = {0};
    uint32_t fetched = 0;
    enum status status = train_ready(engine, view, lease, toy_segments, &fetched, &never, &work, err);
    if (EXPECT_EQ(status, ST_OK)) {
        work.parent = parent_of(engine);
        status = train_run(engine, lease, &work, cancel, no_progress, NULL, out, err);
    }
    if (status == ST_OK) {
        EXPECT(fetched > 19 && work.plan.n[MIX_FRESH] == 19);
        EXPECT_EQ(work.n_tokens, 2);
        EXPECT(work.tokens[0].domain.v == 1 && work.tokens[0].tokens == work.tokens[0].bytes); /* a character each */
    }
    lease_work_release(&work);
    return status;
}

static void test_same_lease_same_bytes(void)
{
    struct engine engine;
    struct train_result first = {0}, again = {0}, other = {0};
    struct err err;
    struct view *view = new_view();
    engine_up(&engine, OPS_BLAS, 1);
    EXPECT_ST(train(&engine, view, toy_lease(), &never, &first, &err), ST_OK, &err);
    EXPECT(first.delta.len > 1000 && first.steps >= 8);
    EXPECT_EQ(first.first_losses.len, 19 * 4);
    struct reader r = reader_of(first.first_losses.data, first.first_losses.len);
    float earliest = read_f32(&r);
    EXPECT(isfinite(earliest) && earliest > 0 && earliest < 3 * log(TOY_VOCAB));

    Alv__Lease *lease = toy_lease(); /* another lease in between, with another watermark and rate */
    lease->seed = 78;
    lease->domains[1]->watermark = 140;
    EXPECT_ST(train(&engine, view, lease, &never, &other, &err), ST_OK, &err);
    EXPECT(other.delta.len == first.delta.len && memcmp(other.delta.data, first.delta.data, first.delta.len) != 0);

    EXPECT_ST(train(&engine, view, toy_lease(), &never, &again, &err), ST_OK, &err);
    EXPECT(again.delta.len == first.delta.len && memcmp(again.delta.data, first.delta.data, first.delta.len) == 0);
    EXPECT(memcmp(again.first_losses.data, first.first_losses.data, first.first_losses.len) == 0);
    EXPECT_STR(again.fingerprint, first.fingerprint);
    EXPECT_EQ(again.target_tokens, first.target_tokens);
    train_result_release(&again);
    lease = toy_lease(); /* and other settings, which take another trainer */
    lease->train->lr = 3e-3f;
    EXPECT_ST(train(&engine, view, lease, &never, &again, &err), ST_OK, &err);
    EXPECT(memcmp(again.delta.data, first.delta.data, first.delta.len) != 0);
    train_result_release(&again);
    view_free(view);
    engine_close(&engine);

    engine_up(&engine, OPS_BLAS, 1); /* another worker */
    view = new_view();
    EXPECT_ST(train(&engine, view, toy_lease(), &never, &again, &err), ST_OK, &err);
    EXPECT(again.delta.len == first.delta.len && memcmp(again.delta.data, first.delta.data, first.delta.len) == 0);
    train_result_release(&again);
    EXPECT_ST(train(&engine, view, toy_lease(), &at_once, &again, &err), ST_STOPPED, &err);
    EXPECT_EQ(again.delta.len, 0);
    train_result_release(&first);
    train_result_release(&other);
    view_free(view);
    engine_close(&engine);
}

/* What the anchor holds learns from the base as well, and history from the parent: another delta, the same one each time. */
static void test_distilled_lease(void)
{
    struct engine engine;
    struct train_result plain = {0}, first = {0}, again = {0};
    struct err err;
    struct view *view = new_view();
    Alv__Lease *lease = toy_lease();
    engine_up(&engine, OPS_BLAS, 1);
    EXPECT_ST(train(&engine, view, lease, &never, &plain, &err), ST_OK, &err);
    lease = toy_lease();
    lease->train->distil_permille = 500;
    EXPECT_ST(train(&engine, view, lease, &never, &first, &err), ST_OK, &err);
    EXPECT(first.delta.len == plain.delta.len && memcmp(first.delta.data, plain.delta.data, plain.delta.len) != 0);
    EXPECT(first.first_losses.len == plain.first_losses.len); /* of the text, whatever is learnt */
    EXPECT_EQ(first.target_tokens, plain.target_tokens);
    EXPECT_ST(train(&engine, view, lease, &never, &again, &err), ST_OK, &err);
    EXPECT(again.delta.len == first.delta.len && memcmp(again.delta.data, first.delta.data, first.delta.len) == 0);
    lease->train->history_distil_permille = 500;
    struct train_result both = {0};
    EXPECT_ST(train(&engine, view, lease, &never, &both, &err), ST_OK, &err);
    EXPECT(memcmp(both.delta.data, first.delta.data, first.delta.len) != 0);
    EXPECT_EQ(both.target_tokens, first.target_tokens);
    train_result_release(&again);
    EXPECT_ST(train(&engine, view, lease, &never, &again, &err), ST_OK, &err);
    EXPECT(memcmp(again.delta.data, both.delta.data, both.delta.len) == 0);
    train_result_release(&both);
    train_result_release(&again);
    train_result_release(&first);
    lease->train->history_distil_permille = 0;
    lease->train->distil_permille = 0;
    lease->train->decay_permille = 500; /* and a rate that falls: another delta, a smaller way */
    EXPECT_ST(train(&engine, view, lease, &never, &first, &err), ST_OK, &err);
    EXPECT(memcmp(first.delta.data, plain.delta.data, plain.delta.len) != 0);
    EXPECT(memcmp(first.first_losses.data, plain.first_losses.data, 4) == 0); /* the first step is as it was */
    train_result_release(&first);
    train_result_release(&plain);
    lease->train->anchor_permille = 0; /* history without an anchor: nobody to teach */
    EXPECT_ST(train(&engine, view, lease, &never, &plain, &err), ST_OK, &err);
    lease->train->distil_permille = 500;
    EXPECT_ST(train(&engine, view, lease, &never, &first, &err), ST_OK, &err);
    EXPECT(first.delta.len == plain.delta.len && memcmp(first.delta.data, plain.delta.data, plain.delta.len) == 0);
    lease->train->distil_permille = 1001;
    EXPECT_ST(plan_check_lease(lease, &err), ST_BAD_DATA, &err);
    train_result_release(&plain);
    train_result_release(&first);
    view_free(view);
    engine_close(&engine);
}

/* What is replayed may count for more: another delta, and a pool that a lease has none of counts for nothing. */
static void test_boosted_lease(void)
{
    struct engine engine;
    struct train_result plain = {0}, history = {0}, anchor = {0};
    struct err err;
    struct view *view = new_view();
    Alv__Lease *lease = toy_lease();
    engine_up(&engine, OPS_BLAS, 1);
    EXPECT_ST(train(&engine, view, lease, &never, &plain, &err), ST_OK, &err);
    lease->train->history_boost_permille = 1500;
    EXPECT_ST(train(&engine, view, lease, &never, &history, &err), ST_OK, &err);
    lease->train->history_boost_permille = 0;
    lease->train->anchor_boost_permille = 1500;
    EXPECT_ST(train(&engine, view, lease, &never, &anchor, &err), ST_OK, &err);
    EXPECT(memcmp(history.delta.data, plain.delta.data, plain.delta.len) != 0);
    EXPECT(memcmp(anchor.delta.data, plain.delta.data, plain.delta.len) != 0);
    EXPECT(memcmp(anchor.delta.data, history.delta.data, plain.delta.len) != 0);
    EXPECT_EQ(history.target_tokens, plain.target_tokens);
    train_result_release(&plain);
    train_result_release(&anchor);
    lease->train->anchor_permille = 0;
    EXPECT_ST(train(&engine, view, lease, &never, &anchor, &err), ST_OK, &err);
    lease->train->anchor_boost_permille = 0;
    EXPECT_ST(train(&engine, view, lease, &never, &plain, &err), ST_OK, &err);
    EXPECT(anchor.delta.len == plain.delta.len && memcmp(anchor.delta.data, plain.delta.data, plain.delta.len) == 0);
    lease->train->anchor_boost_permille = 100001;
    EXPECT_ST(plan_check_lease(lease, &err), ST_BAD_DATA, &err);
    train_result_release(&plain);
    train_result_release(&history);
    train_result_release(&anchor);
    view_free(view);
    engine_close(&engine);
}

static double length_of(const struct engine *engine, const struct buf *delta)
{
    struct delta_head head;
    struct err err;
    double norm = NAN;
    int fd = memfd_create("delta", MFD_CLOEXEC);
    EXPECT(fd >= 0 && write(fd, delta->data, delta->len) == (ssize_t)delta->len);
    EXPECT_ST(delta_check(fd, delta->len, &engine->shape, NULL, &head, &norm, &err), ST_OK, &err);
    close(fd);
    return norm;
}

/* A lease that ends at the mean of its last states: over one of them it is that state; over more the way is shorter and what
 * was measured on the way is the same. */
static void test_averaged_lease(void)
{
    struct engine engine;
    struct train_result plain = {0}, one = {0}, many = {0};
    struct err err;
    struct view *view = new_view();
    Alv__Lease *lease = toy_lease();
    engine_up(&engine, OPS_BLAS, 1);
    EXPECT_ST(train(&engine, view, lease, &never, &plain, &err), ST_OK, &err);
    lease->train->average_permille = 1000 / plain.steps + 1;
    EXPECT_ST(train(&engine, view, lease, &never, &one, &err), ST_OK, &err);
    lease->train->average_permille = 1000;
    EXPECT_ST(train(&engine, view, lease, &never, &many, &err), ST_OK, &err);
    EXPECT(one.delta.len == plain.delta.len && memcmp(one.delta.data, plain.delta.data, plain.delta.len) == 0);
    EXPECT(length_of(&engine, &many.delta) < 0.9 * length_of(&engine, &plain.delta));
    EXPECT(memcmp(many.first_losses.data, plain.first_losses.data, plain.first_losses.len) == 0);
    lease->train->average_permille = 1001;
    EXPECT_ST(plan_check_lease(lease, &err), ST_BAD_DATA, &err);
    train_result_release(&plain);
    train_result_release(&one);
    train_result_release(&many);
    view_free(view);
    engine_close(&engine);
}

static void test_segments_that_cannot_be_learnt(void)
{
    struct engine engine;
    struct token_buf ids = {0};
    struct buf mask = {0};
    struct err err;
    engine_up(&engine, OPS_REF, 1);
    struct bytes chat = {(const uint8_t *)"[{\"role\":\"user\",\"content\":\"hi\"}]", 33};
    EXPECT_ST(engine_tokenise(&engine, ALV__RECORD_KIND__RECORD_CHAT, chat, &ids, &mask, &err), ST_UNSUPPORTED, &err);
    EXPECT_ST(engine_tokenise(&engine, ALV__RECORD_KIND__RECORD_NONE, chat, &ids, &mask, &err), ST_UNSUPPORTED, &err);
    struct bytes torn = {(const uint8_t *)"\xc3", 1};
    EXPECT_ST(engine_tokenise(&engine, ALV__RECORD_KIND__RECORD_TEXT, torn, &ids, &mask, &err), ST_BAD_DATA, &err);
    EXPECT(ids.n == 0 && mask.len == 0);
    token_buf_release(&ids);
    buf_release(&mask);
    engine_close(&engine);
}

/* ---- evaluation */

struct evaluation {
    Alv__Evaluate task;
    Alv__Range ranges[2], *range_list[2];
    Alv__AdapterRef adapters[2], *adapter_list[2];
    Alv__BlobRef blobs[2];
    uint8_t digests[2][32];
};

static void evaluation_fill(struct evaluation *e, uint32_t first, uint32_t count)
{
    static uint8_t incarnation[16];
    alv__evaluate__init(&e->task);
    for (uint32_t i = 0; i < 2; i++) {
        alv__range__init(&e->ranges[i]);
        alv__adapter_ref__init(&e->adapters[i]);
        alv__blob_ref__init(&e->blobs[i]);
        e->ranges[i].domain = 2 - i; /* in no order */
        e->ranges[i].first = first, e->ranges[i].count = count;
        memset(e->digests[i], (int)i + 1, 32);
        e->blobs[i].digest = (ProtobufCBinaryData){32, e->digests[i]};
        e->blobs[i].bytes = 1;
        e->adapters[i].adapter = &e->blobs[i];
        e->range_list[i] = &e->ranges[i];
        e->adapter_list[i] = &e->adapters[i];
    }
    e->task.n_adapters = 2, e->task.adapters = e->adapter_list;
    e->task.n_windows = 2, e->task.windows = e->range_list;
    e->task.window_tokens = 24;
    e->task.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    struct err err;
    EXPECT_ST(plan_check_evaluate(&e->task, &err), ST_OK, &err);
}

static void evaluate(struct engine *engine, struct home *home, uint32_t first, uint32_t count, struct eval_result *out)
{
    struct evaluation e;
    struct eval_work work = {0};
    struct err err;
    uint32_t fetched = 0;
    evaluation_fill(&e, first, count);
    EXPECT_ST(eval_ready(engine, &e.task, toy_segments, &fetched, &work, &err), ST_OK, &err);
    EXPECT_EQ(work.n_windows, 2 * count);
    work.n_adapters = 2;
    work.blocks = xcalloc(2, sizeof *work.blocks);
    for (uint32_t a = 0; a < 2; a++) {
        work.blocks[a] = parent_of(engine);
        for (size_t i = 0; i < adapter_floats(&engine->shape); i++)
            work.blocks[a][i] += 0.01f * (float)a; /* B is no longer 0 in the second */
    }
    EXPECT_ST(eval_run(engine, &e.task, &work, home->db, HOME_SCORES, &never, no_progress, NULL, out, &err), ST_OK,
              &err);
    EXPECT_EQ(out->nll.len, 8 * 2 * 2 * count);
    EXPECT_EQ(out->tokens.len, 4 * 2 * count);
    eval_work_release(&work);
}

static bool same_bytes(const struct buf *a, const struct buf *b)
{
    return a->len == b->len && memcmp(a->data, b->data, a->len) == 0;
}

static void test_remembered_scores_are_the_computed_ones(void)
{
    struct engine engine;
    struct home home, empty;
    struct err err;
    struct eval_result first = {0}, again = {0}, part = {0}, fresh = {0};
    engine_up(&engine, OPS_BLAS, 1);
    if (!EXPECT_ST(home_open(harness_path(harness_tmpdir(), "w"), 1, &home, &err), ST_OK, &err) ||
        !EXPECT_ST(home_open(harness_path(harness_tmpdir(), "w"), 1, &empty, &err), ST_OK, &err))
        return;
    evaluate(&engine, &home, 10, 6, &part); /* some windows first, in another company */
    EXPECT(part.scored == 24 && part.remembered == 0);
    evaluate(&engine, &home, 8, 12, &first);
    EXPECT(first.scored == 24 && first.remembered == 24);
    evaluate(&engine, &home, 8, 12, &again);
    EXPECT(again.scored == 0 && again.remembered == 48);
    EXPECT(same_bytes(&first.nll, &again.nll) && same_bytes(&first.tokens, &again.tokens));
    engine_close(&engine);
    engine_up(&engine, OPS_BLAS, 1);
    evaluate(&engine, &empty, 8, 12, &fresh); /* a worker that remembers nothing */
    EXPECT(fresh.scored == 48);
    EXPECT(same_bytes(&first.nll, &fresh.nll));
    EXPECT_STR(first.fingerprint, fresh.fingerprint);

    struct reader r = reader_of(first.nll.data, first.nll.len), t = reader_of(first.tokens.data, first.tokens.len);
    for (int i = 0; i < 24; i++) {
        EXPECT_EQ(read_u32(&t), 23);
        double nll = read_f64(&r);
        EXPECT(isfinite(nll) && nll > 0 && nll < 23 * 3 * log(TOY_VOCAB));
    }
    EXPECT(memcmp(first.nll.data, first.nll.data + first.nll.len / 2, first.nll.len / 2) != 0); /* two adapters */
    eval_result_release(&first);
    eval_result_release(&again);
    eval_result_release(&part);
    eval_result_release(&fresh);
    home_close(&home);
    home_close(&empty);
    engine_close(&engine);
}

int main(void)
{
    hash_start();
    base_path = toy_base();
    RUN(test_same_lease_same_bytes);
    RUN(test_distilled_lease);
    RUN(test_boosted_lease);
    RUN(test_averaged_lease);
    RUN(test_segments_that_cannot_be_learnt);
    RUN(test_remembered_scores_are_the_computed_ones);
    return harness_end();
}
