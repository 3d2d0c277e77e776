#include "coordinator/aggregate.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "adapter/combine.h"
#include "adapter/delta.h"
#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

enum { CONTAINER_EXTRA = 8 << 20 }; /* names and padding of a safetensors file beyond its floats */

struct job {
    struct job *next;
    uint64_t round;
    uint32_t attempt;
    double step;
    struct publish_rule rule;
    struct digest published, state; /* the parent's */
    uint32_t n;
    struct aggregate_delta *deltas;
};

struct result {
    struct aggregated aggregated; /* first: a result is handed out as this */
    struct result *next;
    bool pinned;
};

struct aggregator {
    struct aggregator_config config;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop;
    struct job *jobs, **jobs_end;
    struct result *results, **results_end;
};

/* ---- one job --------------------------------------------------------------------------------------------------- */

static enum status store_peft(struct blob_store *blobs, const struct adapter_shape *shape, const float *block,
                              struct digest *digest, uint64_t *bytes, uint8_t sha256[32], struct err *err)
{
    struct buf b = {0};
    adapter_write_peft(shape, block, &b);
    *bytes = b.len;
    hash_sha256(b.data, b.len, sha256);
    enum status st = blob_put(blobs, b.data, b.len, digest, err);
    buf_release(&b);
    return st;
}

enum status aggregate_store(struct blob_store *blobs, const struct card *card, const struct adapter_shape *shape,
                            const float *block, struct version_files *out, struct err *err)
{
    struct buf b = {0};
    enum status st = store_peft(blobs, shape, block, &out->peft, &out->peft_bytes, out->peft_sha256, err);
    if (!st) {
        adapter_write_gguf(shape, card, block, &b);
        out->gguf_bytes = b.len;
        hash_sha256(b.data, b.len, out->gguf_sha256);
        st = blob_put(blobs, b.data, b.len, &out->gguf, err);
    }
    buf_release(&b);
    return st;
}

static enum status load(struct aggregator *a, const struct digest *digest, float *block, struct err *err)
{
    struct buf b = {0};
    size_t bytes_max = adapter_floats(&a->config.shape) * sizeof(float) + CONTAINER_EXTRA;
    enum status st = blob_load(a->config.blobs, digest, bytes_max, &b, err);
    if (!st)
        st = adapter_read_peft(&a->config.shape, b.data, b.len, block, err);
    buf_release(&b);
    return st;
}

/* Opens delta i and reads all of it. What is wrong with the delta itself is ST_BAD_DATA. */
static enum status admit(struct aggregator *a, const struct aggregate_delta *delta, struct combine_input *input,
                         struct combine_row *row, struct err *err)
{
    enum status st = blob_open(a->config.blobs, &delta->digest, &input->fd, &input->bytes, err);
    if (st)
        return st;
    input->digest = delta->digest;
    input->target_tokens = delta->target_tokens;
    st = combine_check(&a->config.shape, input, row, err);
    if (st == ST_UNSUPPORTED)
        st = ST_BAD_DATA;
    if (!st && row->head.lease != delta->lease)
        st = err_set(err, ST_BAD_DATA, "the delta says lease %llu", (unsigned long long)row->head.lease);
    if (!st && !delta->target_tokens)
        st = err_set(err, ST_BAD_DATA, "no target tokens");
    return st;
}

/* Stores the new training state as a file of its own; `candidate` becomes what is published of it. */
static enum status part_from_state(struct aggregator *a, const struct job *job, const float *state, float *candidate,
                                   struct version_files *files, struct err *err)
{
    enum status st = store_peft(a->config.blobs, &a->config.shape, state, &files->state, &files->state_bytes,
                                files->state_sha256, err);
    if (!st)
        st = load(a, &job->published, candidate, err);
    if (!st)
        publish_next(&a->config.shape, &job->rule, state, candidate);
    return st;
}

/* Combines the deltas that can be used into the new training state; `out->deltas` says of each what became of it. */
static enum status combine_job(struct aggregator *a, const struct job *job, struct combine_input *inputs, float *parent,
                               float *state, struct aggregated *out, struct err *err)
{
    uint32_t n = 0, *at = xcalloc(job->n + 1, sizeof *at);
    struct combine_row *rows = xcalloc(job->n + 1, sizeof *rows);
    struct combine_result result;
    enum status st = load(a, &job->state, parent, err);
    for (uint32_t i = 0; !st && i < job->n; i++) {
        struct err why;
        st = admit(a, &job->deltas[i], &inputs[n], &rows[n], &why);
        if (!st) {
            at[n++] = i;
            continue;
        }
        if (inputs[n].fd >= 0)
            close(inputs[n].fd);
        inputs[n].fd = -1;
        if (st == ST_BAD_DATA) {
            log_warn("aggregate", "delta refused round=%llu lease=%llu why=\"%s\"", (unsigned long long)job->round,
                     (unsigned long long)job->deltas[i].lease, why.text);
            out->deltas[i].refused = true;
            st = ST_OK;
        } else if (err) {
            *err = why;
        }
    }
    if (!st && !n)
        st = err_set(err, ST_EMPTY, "no delta of round %llu can be used", (unsigned long long)job->round);
    struct combine_settings settings = combine_defaults();
    if (!st) {
        settings.clip = a->config.settings.clip_norm;
        settings.weight_cap = a->config.settings.weight_cap;
        settings.step = job->step;
        settings.seed = a->config.seed ^ job->round;
        st = combine_checked(&a->config.shape, parent, inputs, n, &settings, state, rows, &result, err);
    }
    if (!st) {
        out->error_ratio = result.factor_error;
        out->update_norm = result.norm;
        out->clip_norm = settings.clip * result.median_norm;
        for (uint32_t i = 0; i < n; i++) {
            out->deltas[at[i]].norm = rows[i].norm;
            out->deltas[at[i]].clip = rows[i].clip;
            out->deltas[at[i]].weight = rows[i].weight;
        }
    }
    free(at);
    free(rows);
    return st;
}

static struct result *work(struct aggregator *a, const struct job *job)
{
    struct err err = {""};
    double start = clock_s();
    size_t floats = adapter_floats(&a->config.shape);
    float *parent = xcalloc(floats, sizeof *parent), *state = xcalloc(floats, sizeof *state);
    struct combine_input *inputs = xcalloc(job->n + 1, sizeof *inputs);
    struct result *r = xcalloc(1, sizeof *r);
    struct aggregated *out = &r->aggregated;
    out->round = job->round;
    out->attempt = job->attempt;
    out->n = job->n;
    out->deltas = xcalloc(job->n + 1, sizeof *out->deltas);
    for (uint32_t i = 0; i < job->n; i++)
        inputs[i].fd = -1;

    enum status st = combine_job(a, job, inputs, parent, state, out, &err);
    const bool plain = publish_rule_plain(&job->rule);
    float *candidate = plain ? state : parent;
    if (!st && !plain)
        st = part_from_state(a, job, state, candidate, &out->files, &err);
    if (!st)
        st = aggregate_store(a->config.blobs, &a->config.card, &a->config.shape, candidate, &out->files, &err);
    if (!st) {
        blob_pin(a->config.blobs, &out->files.peft);
        blob_pin(a->config.blobs, &out->files.gguf);
        if (!plain)
            blob_pin(a->config.blobs, &out->files.state);
        r->pinned = true;
        log_info("aggregate", "candidate round=%llu attempt=%u deltas=%u seconds=%.2f", (unsigned long long)job->round,
                 job->attempt, job->n, clock_s() - start);
    } else {
        snprintf(out->text, sizeof out->text, "%s", err.text);
        log_error("aggregate", "failed round=%llu attempt=%u error=\"%s\"", (unsigned long long)job->round,
                  job->attempt, err.text);
    }
    out->status = st;
    for (uint32_t i = 0; i < job->n; i++)
        if (inputs[i].fd >= 0)
            close(inputs[i].fd);
    free(inputs);
    free(parent);
    free(state);
    return r;
}

/* ---- the thread ------------------------------------------------------------------------------------------------ */

static void job_free(struct job *job)
{
    free(job->deltas);
    free(job);
}

static void result_free(struct aggregator *a, struct result *r)
{
    if (r->pinned) {
        const struct version_files *f = &r->aggregated.files;
        blob_unpin(a->config.blobs, &f->peft);
        blob_unpin(a->config.blobs, &f->gguf);
        if (!digest_is_zero(&f->state))
            blob_unpin(a->config.blobs, &f->state);
    }
    free(r->aggregated.deltas);
    free(r);
}

static void *thread_main(void *arg)
{
    struct aggregator *a = arg;
    pthread_setname_np(pthread_self(), "aggregate");
    for (;;) {
        pthread_mutex_lock(&a->lock);
        while (!a->jobs && !a->stop)
            pthread_cond_wait(&a->wake, &a->lock);
        struct job *job = a->stop ? NULL : a->jobs;
        if (job && !(a->jobs = job->next))
            a->jobs_end = &a->jobs;
        pthread_mutex_unlock(&a->lock);
        if (!job)
            return NULL;

        struct result *r = work(a, job);
        job_free(job);
        pthread_mutex_lock(&a->lock);
        *a->results_end = r;
        a->results_end = &r->next;
        pthread_mutex_unlock(&a->lock);
        uint64_t one = 1;
        ssize_t n = write(a->config.notify_fd, &one, sizeof one);
        CHECK(n == sizeof one);
    }
}

enum status aggregator_start(const struct aggregator_config *config, struct aggregator **out, struct err *err)
{
    struct aggregator *a = xcalloc(1, sizeof *a);
    a->config = *config;
    a->jobs_end = &a->jobs;
    a->results_end = &a->results;
    pthread_mutex_init(&a->lock, NULL);
    pthread_cond_init(&a->wake, NULL);
    int rc = pthread_create(&a->thread, NULL, thread_main, a);
    if (rc) {
        free(a);
        return err_set(err, ST_IO, "cannot start the aggregator: %s", strerror(rc));
    }
    *out = a;
    return ST_OK;
}

void aggregator_stop(struct aggregator **ap)
{
    struct aggregator *a = *ap;
    if (!a)
        return;
    *ap = NULL;
    pthread_mutex_lock(&a->lock);
    a->stop = true;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->lock);
    pthread_join(a->thread, NULL);
    for (struct job *job = a->jobs, *next; job; job = next) {
        next = job->next;
        job_free(job);
    }
    for (struct result *r = a->results, *next; r; r = next) {
        next = r->next;
        result_free(a, r);
    }
    pthread_mutex_destroy(&a->lock);
    pthread_cond_destroy(&a->wake);
    free(a);
}

void aggregator_submit(struct aggregator *a, const struct effect *effect)
{
    CHECK_EQ(effect->kind, EFFECT_AGGREGATE);
    struct job *job = xcalloc(1, sizeof *job);
    job->round = effect->aggregate.round;
    job->attempt = effect->aggregate.attempt;
    job->step = effect->aggregate.step;
    job->rule = effect->aggregate.rule;
    job->published = effect->aggregate.parent_peft;
    job->state = effect->aggregate.parent_state;
    job->n = effect->aggregate.n;
    if (job->n)
        job->deltas = xmemdup(effect->aggregate.deltas, job->n * sizeof *job->deltas);
    pthread_mutex_lock(&a->lock);
    *a->jobs_end = job;
    a->jobs_end = &job->next;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->lock);
}

struct aggregated *aggregator_take(struct aggregator *a)
{
    pthread_mutex_lock(&a->lock);
    struct result *r = a->results;
    if (r && !(a->results = r->next))
        a->results_end = &a->results;
    pthread_mutex_unlock(&a->lock);
    return r ? &r->aggregated : NULL;
}

void aggregator_done(struct aggregator *a, struct aggregated *result)
{
    result_free(a, (struct result *)result);
}
