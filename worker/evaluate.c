#include "worker/evaluate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"

enum { KEY_LEN = DIGEST_LEN + 2 + 8 + 4 + 16, VALUE_LEN = 12 };

void eval_work_release(struct eval_work *work)
{
    for (uint32_t i = 0; i < work->n_adapters; i++)
        free(work->blocks[i]);
    free(work->blocks);
    free(work->windows);
    token_buf_release(&work->ids);
    buf_release(&work->mask);
    *work = (struct eval_work){0};
}

void eval_result_release(struct eval_result *result)
{
    buf_release(&result->nll);
    buf_release(&result->tokens);
    *result = (struct eval_result){0};
}

static enum status add_window(const struct engine *engine, const struct segment_set *set, struct mix_segment at,
                              uint32_t window_tokens, struct eval_work *work, struct err *err)
{
    const Alv__Segment *segment = segment_set_find(set, at);
    CHECK(segment != NULL);
    size_t begin = work->ids.n;
    struct bytes text = {segment->text.data, segment->text.len};
    enum status status = engine_tokenise(engine, segment->kind, text, &work->ids, &work->mask, err);
    if (status != ST_OK)
        return err_prefix(err, status, "domain %u, probe segment %llu", at.domain.v, (unsigned long long)at.offset);
    if (work->ids.n - begin > window_tokens)
        work->ids.n = work->mask.len = begin + window_tokens;
    struct eval_window window = {at.domain, at.offset, begin, (uint32_t)(work->ids.n - begin), 0};
    for (uint32_t i = 1; i < window.n_tokens; i++)
        window.n_targets += work->mask.data[begin + i] != 0;
    work->windows[work->n_windows++] = window;
    return ST_OK;
}

enum status eval_ready(const struct engine *engine, const Alv__Evaluate *task, segments_fn *segments, void *user,
                       struct eval_work *work, struct err *err)
{
    struct segment_set set = {.probe = true};
    uint32_t n = 0;
    for (size_t r = 0; r < task->n_windows; r++)
        n += task->windows[r]->count;
    struct mix_segment *places = xcalloc((size_t)n + 1, sizeof *places);
    n = 0;
    for (size_t r = 0; r < task->n_windows; r++)
        for (uint32_t i = 0; i < task->windows[r]->count; i++)
            places[n++] = (struct mix_segment){{(uint16_t)task->windows[r]->domain}, task->windows[r]->first + i};
    work->windows = xcalloc((size_t)n + 1, sizeof *work->windows);
    enum status status = segments(user, &set, places, n, err);
    for (uint32_t i = 0; i < n && status == ST_OK; i++)
        status = add_window(engine, &set, places[i], task->window_tokens, work, err);
    segment_set_release(&set);
    free(places);
    return status;
}

/* ---- scores */

struct scorer {
    struct engine *engine;
    const Alv__Evaluate *task;
    const struct eval_work *work;
    struct db *db;
    uint8_t family;
    struct digest fingerprint;
};

static void key_of(const struct scorer *s, uint32_t adapter, const struct eval_window *w, struct buf *key)
{
    buf_clear(key);
    buf_put(key, s->task->adapters[adapter]->adapter->digest.data, DIGEST_LEN);
    buf_put_u16_be(key, w->domain.v);
    buf_put_u64_be(key, w->offset);
    buf_put_u32_be(key, s->task->window_tokens);
    buf_put(key, s->fingerprint.b, 16);
    CHECK_EQ(key->len, KEY_LEN);
}

static bool remembered(const struct scorer *s, const struct buf *key, const struct eval_window *w, double *nll)
{
    struct buf value = {0};
    enum status status = db_get(s->db, s->family, key->data, key->len, &value, NULL);
    struct reader r = reader_of(value.data, value.len);
    double stored = read_f64(&r);
    uint32_t targets = read_u32(&r);
    bool good = status == ST_OK && reader_done(&r) && targets == w->n_targets && isfinite(stored);
    if (good)
        *nll = stored;
    buf_release(&value);
    return good;
}

/* All windows of one adapter; new scores are put into the cache at the end. */
static enum status score_adapter(const struct scorer *s, uint32_t adapter, const atomic_bool *cancel,
                                 train_progress *progress, void *user, double begun, uint64_t *rows,
                                 struct eval_result *out, struct err *err)
{
    struct buf key = {0}, value = {0};
    struct batch batch = {0};
    bool set = false;
    enum status status = ST_OK;
    uint32_t n = s->work->n_windows;
    for (uint32_t i = 0; i < n && status == ST_OK; i++) {
        const struct eval_window *w = &s->work->windows[i];
        double nll = 0;
        uint32_t targets;
        key_of(s, adapter, w, &key);
        if (atomic_load(cancel)) {
            status = err_set(err, ST_STOPPED, "stopped");
        } else if (w->n_targets > 0 && remembered(s, &key, w, &nll)) {
            out->remembered++;
        } else if (w->n_targets > 0) {
            struct sample sample = {s->work->ids.ids + w->begin, s->work->mask.data + w->begin, w->n_tokens};
            if (!set)
                evaluator_set_adapter(s->engine->evaluator, s->work->blocks[adapter]);
            set = true;
            status = evaluator_score(s->engine->evaluator, &sample, 1, &nll, &targets, err);
            out->scored++;
            *rows += w->n_tokens - 1;
            buf_clear(&value);
            buf_put_f64(&value, nll);
            buf_put_u32(&value, w->n_targets);
            batch_put(&batch, s->family, key.data, key.len, value.data, value.len);
        }
        buf_put_f64(&out->nll, nll);
        double seconds = clock_s() - begun;
        progress(user, adapter * n + i + 1, s->work->n_adapters * n,
                 seconds > 0 ? (uint32_t)((double)*rows / seconds) : 0);
    }
    struct err why;
    if (status == ST_OK && db_commit(s->db, &batch, false, &why) != ST_OK)
        log_debug("evaluate", "scores were not kept why=\"%s\"", why.text);
    batch_release(&batch);
    buf_release(&value);
    buf_release(&key);
    return status;
}

enum status eval_run(struct engine *engine, const Alv__Evaluate *task, const struct eval_work *work, struct db *db,
                     uint8_t family, const atomic_bool *cancel, train_progress *progress, void *user,
                     struct eval_result *out, struct err *err)
{
    struct eval_result result = {0};
    struct scorer scorer = {engine, task, work, db, family, {{0}}};
    uint64_t rows = 0;
    double begun = clock_s();
    CHECK_EQ(work->n_adapters, task->n_adapters);
    enum status status = engine_evaluator(engine, task->window_tokens, err);
    if (status != ST_OK)
        return status;
    evaluator_fingerprint(engine->evaluator, result.fingerprint, sizeof result.fingerprint);
    hash_blake2b(result.fingerprint, strlen(result.fingerprint), &scorer.fingerprint);
    for (uint32_t a = 0; a < work->n_adapters && status == ST_OK; a++)
        status = score_adapter(&scorer, a, cancel, progress, user, begun, &rows, &result, err);
    for (uint32_t i = 0; i < work->n_windows; i++)
        buf_put_u32(&result.tokens, work->windows[i].n_targets);
    if (status == ST_OK) {
        *out = result;
        result = (struct eval_result){0};
    }
    eval_result_release(&result);
    return status;
}
