#include "worker/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/check.h"
#include "base/log.h"
#include "net/bulk.h"
#include "replay/keep.h"
#include "worker/evaluate.h"
#include "worker/fetch.h"
#include "worker/plan.h"
#include "worker/train.h"

enum { RECENT_BLOBS = 8 }; /* adapters that stay on disk: parent, candidate, references of an evaluation */

struct answer { /* an event with what it points to */
    struct answer *next;
    struct worker_event event;
    struct worker_trained trained;
    struct worker_scored scored;
    struct worker_tokens tokens[LIMIT_DOMAINS];
    struct buf first, second;
    char text[LIMIT_TEXT_BYTES];
};

struct job {
    struct job *next;
    struct worker_effect effect; /* owns its message */
};

struct jobs {
    struct jobs_config config;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    struct job *queue, **queue_end;        /* under the mutex, and so the next six */
    struct answer *answers, **answers_end; /* for jobs_next() */
    uint64_t running;                      /* job; 0: none */
    bool quit, progress_news;
    struct worker_event progress;
    struct answer *given; /* the last one handed out */
    atomic_bool cancel;
    int cancel_fd, answers_fd;

    /* the thread's own */
    struct conn *bulk;
    struct keep *keep;
    struct view *view;
    struct lease_work lease;
    struct eval_work eval;
    struct digest recent[RECENT_BLOBS];
    uint32_t n_recent;
    uint64_t erased;
    bool missing; /* this job failed because a segment is no longer in the log */
};

/* ---- answers */

static void answer_free(struct answer *answer)
{
    if (!answer)
        return;
    buf_release(&answer->first);
    buf_release(&answer->second);
    free(answer);
}

static void ring(int fd)
{
    uint64_t one = 1;
    ssize_t n = write(fd, &one, sizeof one);
    CHECK(n == sizeof one || errno == EAGAIN);
}

static void silence(int fd)
{
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof count);
    CHECK(n == sizeof count || errno == EAGAIN);
}

static void post(struct jobs *jobs, struct answer *answer)
{
    pthread_mutex_lock(&jobs->mutex);
    *jobs->answers_end = answer;
    jobs->answers_end = &answer->next;
    pthread_mutex_unlock(&jobs->mutex);
    ring(jobs->answers_fd);
}

static struct answer *answer_of(enum worker_event_kind kind, uint64_t job)
{
    struct answer *answer = xcalloc(1, sizeof *answer);
    answer->event.kind = kind;
    answer->event.job = job;
    return answer;
}

/* Only the newest progress counts, so it has one place instead of a queue. */
static void on_progress(void *user, uint32_t done, uint32_t total, uint32_t tokens_per_s)
{
    struct jobs *jobs = user;
    pthread_mutex_lock(&jobs->mutex);
    jobs->progress = (struct worker_event){.kind = WORKER_PROGRESSED, .job = jobs->running};
    jobs->progress.progress.done = done;
    jobs->progress.progress.total = total;
    jobs->progress.progress.tokens_per_s = tokens_per_s;
    jobs->progress_news = true;
    pthread_mutex_unlock(&jobs->mutex);
    ring(jobs->answers_fd);
}

bool jobs_next(struct jobs *jobs, struct worker_event *out)
{
    answer_free(jobs->given);
    jobs->given = NULL;
    silence(jobs->answers_fd);
    pthread_mutex_lock(&jobs->mutex);
    bool some = true;
    if (jobs->progress_news) {
        *out = jobs->progress;
        jobs->progress_news = false;
    } else if (jobs->answers) {
        jobs->given = jobs->answers;
        jobs->answers = jobs->given->next;
        if (!jobs->answers)
            jobs->answers_end = &jobs->answers;
        *out = jobs->given->event;
    } else {
        some = false;
    }
    pthread_mutex_unlock(&jobs->mutex);
    return some;
}

int jobs_fd(const struct jobs *jobs)
{
    return jobs->answers_fd;
}

/* ---- the jobs */

static enum keep_rank rank(void *user, struct domain_id domain, uint64_t offset)
{
    const struct jobs *jobs = user;
    return jobs->view && view_member(jobs->view, domain, offset) ? KEEP_MEMBER : KEEP_LOOSE;
}

/* What is cached may be of another life of the line: the same offsets, other text. */
static enum status drop_cache(struct jobs *jobs, struct err *err)
{
    struct keep_options keep = {HOME_PAYLOAD, HOME_LENGTHS, jobs->config.keep_bytes, rank, jobs};
    log_warn("worker", "the line may have been restored from a backup: all that is cached is dropped");
    keep_close(&jobs->keep);
    enum status status = home_forget(jobs->config.home, err);
    return status == ST_OK ? keep_open(jobs->config.home->db, &keep, &jobs->keep, err) : status;
}

static enum status prepare(struct jobs *jobs, const struct worker_effect *effect, struct answer *answer,
                           struct err *err)
{
    struct memory_plan plan;
    struct sip_key seed;
    enum status status = engine_prepare(jobs->config.engine, effect->line.rank, effect->line.alpha,
                                        effect->line.targets, &plan, answer->text, err);
    if (status == ST_OK && effect->afresh)
        status = drop_cache(jobs, err);
    if (status == ST_OK)
        status = home_erased(jobs->config.home, &jobs->erased, err);
    if (status != ST_OK)
        return status;
    memcpy(seed.b, effect->line.seed, sizeof seed.b);
    view_free(jobs->view);
    jobs->view = view_new(&seed);
    const double mb = 1e6;
    log_info("worker",
             "ready line=%s rank=%u weights_mb=%.0f activations_mb=%.0f scratch_mb=%.0f adapter_mb=%.0f total_mb=%.0f "
             "fingerprint=\"%s\"",
             effect->line.name.s, effect->line.rank, (double)plan.weights / mb, (double)plan.activations / mb,
             (double)plan.scratch / mb, (double)plan.adapter / mb, (double)plan.total / mb, answer->text);
    answer->event.fingerprint = answer->text;
    return ST_OK;
}

static enum status exclude(struct jobs *jobs, const Alv__Exclusions *in, struct err *err)
{
    enum status status = view_exclude(jobs->view, in, err);
    uint64_t last = jobs->erased;
    for (size_t i = 0; i < in->n_entries && status == ST_OK; i++) {
        const Alv__Exclusion *e = in->entries[i];
        if (!e->erase || e->seq <= jobs->erased)
            continue;
        struct domain_id domain = {(uint16_t)e->domain};
        status = keep_erase(jobs->keep, domain, e->first, e->count, err);
        last = e->seq;
    }
    if (status == ST_OK && last > jobs->erased) {
        status = home_set_erased(jobs->config.home, last, err);
        jobs->erased = last;
    }
    return status;
}

static struct fetch fetch_of(struct jobs *jobs)
{
    return (struct fetch){.bulk = jobs->bulk, .blobs = jobs->config.home->blobs, .keep = jobs->keep};
}

static enum status get_segments(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                                struct err *err)
{
    struct jobs *jobs = user;
    struct fetch fetch = fetch_of(jobs);
    enum status status = fetch_segments(&fetch, set, wanted, n, err);
    jobs->missing = status == ST_NOT_FOUND;
    return status;
}

/* Notes that a blob was used; what was not used for a while goes. */
static void use_blob(struct jobs *jobs, const struct digest *digest)
{
    for (uint32_t i = 0; i < jobs->n_recent; i++)
        if (digest_eq(&jobs->recent[i], digest))
            return;
    if (jobs->n_recent == RECENT_BLOBS) {
        memmove(jobs->recent, jobs->recent + 1, (RECENT_BLOBS - 1) * sizeof *jobs->recent);
        jobs->n_recent--;
    }
    jobs->recent[jobs->n_recent++] = *digest;
    home_collect(jobs->config.home, jobs->recent, jobs->n_recent);
}

static enum status get_adapter(struct jobs *jobs, const Alv__BlobRef *ref, float **out, struct err *err)
{
    struct fetch fetch = fetch_of(jobs);
    struct digest digest;
    const struct adapter_shape *shape = &jobs->config.engine->shape;
    memcpy(digest.b, ref->digest.data, DIGEST_LEN);
    float *block = xcalloc(adapter_floats(shape), sizeof *block);
    enum status status = fetch_adapter(&fetch, ref, shape, block, err);
    if (status != ST_OK) {
        free(block);
        return status;
    }
    use_blob(jobs, &digest);
    *out = block;
    return ST_OK;
}

static enum status fetch_lease(struct jobs *jobs, const Alv__Lease *lease, struct err *err)
{
    lease_work_release(&jobs->lease);
    enum status status =
        train_ready(jobs->config.engine, jobs->view, lease, get_segments, jobs, &jobs->cancel, &jobs->lease, err);
    if (status == ST_OK)
        status = get_adapter(jobs, lease->parent_adapter, &jobs->lease.parent, err);
    if (status == ST_OK)
        log_info("worker", "lease ready lease=%llu segments=%u steps=%u cached=%llu fetched=%llu",
                 (unsigned long long)lease->id, jobs->lease.plan.n[MIX_FRESH], jobs->lease.order.n_steps,
                 (unsigned long long)jobs->lease.from_cache, (unsigned long long)jobs->lease.from_log);
    return status;
}

static enum status fetch_evaluate(struct jobs *jobs, const Alv__Evaluate *task, struct err *err)
{
    eval_work_release(&jobs->eval);
    enum status status = eval_ready(jobs->config.engine, task, get_segments, jobs, &jobs->eval, err);
    jobs->eval.blocks = xcalloc(task->n_adapters, sizeof *jobs->eval.blocks);
    for (size_t i = 0; i < task->n_adapters && status == ST_OK; i++) {
        status = get_adapter(jobs, task->adapters[i]->adapter, &jobs->eval.blocks[i], err);
        jobs->eval.n_adapters += status == ST_OK;
    }
    return status;
}

static enum status train(struct jobs *jobs, const Alv__Lease *lease, struct answer *answer, struct err *err)
{
    struct train_result result = {0};
    enum status status =
        train_run(jobs->config.engine, lease, &jobs->lease, &jobs->cancel, on_progress, jobs, &result, err);
    if (status == ST_OK)
        status = blob_put(jobs->config.home->blobs, result.delta.data, result.delta.len, &answer->trained.delta, err);
    if (status == ST_OK) {
        struct worker_trained *t = &answer->trained;
        log_info("worker", "trained lease=%llu steps=%u targets=%llu loss=%.4f ms=%u bytes=%zu",
                 (unsigned long long)lease->id, result.steps, (unsigned long long)result.target_tokens, result.loss,
                 result.train_ms, result.delta.len);
        answer->first = result.first_losses;
        result.first_losses = (struct buf){0};
        memcpy(answer->tokens, jobs->lease.tokens, sizeof answer->tokens);
        memcpy(answer->text, result.fingerprint, sizeof answer->text);
        t->bytes = result.delta.len;
        t->target_tokens = result.target_tokens;
        t->steps = result.steps;
        t->train_ms = result.train_ms;
        t->n_fresh = jobs->lease.n_tokens;
        t->fresh = answer->tokens;
        t->first_losses = buf_bytes(&answer->first);
        t->fingerprint = answer->text;
        answer->event.trained = t;
    }
    lease_work_release(&jobs->lease);
    train_result_release(&result);
    return status;
}

static enum status score(struct jobs *jobs, const Alv__Evaluate *task, struct answer *answer, struct err *err)
{
    struct eval_result result = {0};
    enum status status = eval_run(jobs->config.engine, task, &jobs->eval, jobs->config.home->db, HOME_SCORES,
                                  &jobs->cancel, on_progress, jobs, &result, err);
    if (status == ST_OK) {
        log_info("worker", "evaluated task=%llu windows=%u adapters=%u scored=%llu remembered=%llu",
                 (unsigned long long)task->id, jobs->eval.n_windows, jobs->eval.n_adapters,
                 (unsigned long long)result.scored, (unsigned long long)result.remembered);
        answer->first = result.nll;
        answer->second = result.tokens;
        result.nll = result.tokens = (struct buf){0};
        memcpy(answer->text, result.fingerprint, sizeof answer->text);
        answer->scored = (struct worker_scored){buf_bytes(&answer->first), buf_bytes(&answer->second), answer->text};
        answer->event.scored = &answer->scored;
    }
    eval_work_release(&jobs->eval);
    eval_result_release(&result);
    return status;
}

static enum status upload(struct jobs *jobs, const Alv__DeltaCommit *commit, struct err *err)
{
    struct digest digest;
    char path[BLOB_PATH_SIZE];
    memcpy(digest.b, commit->delta->digest.data, DIGEST_LEN);
    if (!blob_has(jobs->config.home->blobs, &digest))
        return err_set(err, ST_NOT_FOUND, "the delta of lease %llu is no longer on this worker's disk",
                       (unsigned long long)commit->lease);
    enum status status = home_keep_commit(jobs->config.home, commit, err);
    if (status != ST_OK)
        return status;
    blob_path(jobs->config.home->blobs, &digest, path);
    return bulk_put_file(jobs->bulk, &digest, path, NULL, err);
}

static void run_job(struct jobs *jobs, const struct worker_effect *effect)
{
    static const enum worker_event_kind answers[] = {
        [WORKER_PREPARE] = WORKER_PREPARED, [WORKER_EXCLUDE] = WORKER_EXCLUDED, [WORKER_FETCH] = WORKER_FETCHED,
        [WORKER_TRAIN] = WORKER_TRAINED,    [WORKER_SCORE] = WORKER_SCORED,     [WORKER_UPLOAD] = WORKER_UPLOADED,
    };
    struct err err = {{0}};
    enum status status = ST_OK;
    jobs->missing = false;
    if (effect->kind == WORKER_SETTLED) {
        home_drop_commit(jobs->config.home, &effect->settled.delta);
        return;
    }
    struct answer *answer = answer_of(answers[effect->kind], effect->job);
    const ProtobufCMessage *m = effect->message;
    switch (effect->kind) {
    case WORKER_PREPARE:
        status = prepare(jobs, effect, answer, &err);
        break;
    case WORKER_EXCLUDE:
        status = exclude(jobs, (const Alv__Exclusions *)m, &err);
        break;
    case WORKER_FETCH:
        status = effect->evaluate ? fetch_evaluate(jobs, (const Alv__Evaluate *)m, &err)
                                  : fetch_lease(jobs, (const Alv__Lease *)m, &err);
        break;
    case WORKER_TRAIN:
        status = train(jobs, (const Alv__Lease *)m, answer, &err);
        break;
    case WORKER_SCORE:
        status = score(jobs, (const Alv__Evaluate *)m, answer, &err);
        break;
    case WORKER_UPLOAD:
        status = upload(jobs, (const Alv__DeltaCommit *)m, &err);
        break;
    default:
        CHECK(!"an effect that is no job");
    }
    if (status != ST_OK) {
        answer->event.kind = WORKER_FAILED;
        memcpy(answer->text, err.text, sizeof err.text);
        answer->event.failed.status = status;
        answer->event.failed.text = answer->text;
        answer->event.failed.missing = jobs->missing;
    }
    post(jobs, answer);
}

static void job_free(struct job *job)
{
    if (job->effect.message)
        protobuf_c_message_free_unpacked(job->effect.message, NULL);
    free(job);
}

static void *job_thread(void *arg)
{
    struct jobs *jobs = arg;
    pthread_mutex_lock(&jobs->mutex);
    while (!jobs->quit) {
        struct job *job = jobs->queue;
        if (!job) {
            pthread_cond_wait(&jobs->wake, &jobs->mutex);
            continue;
        }
        jobs->queue = job->next;
        if (!jobs->queue)
            jobs->queue_end = &jobs->queue;
        jobs->running = job->effect.job;
        jobs->progress_news = false;
        atomic_store(&jobs->cancel, false);
        silence(jobs->cancel_fd);
        pthread_mutex_unlock(&jobs->mutex);
        run_job(jobs, &job->effect);
        job_free(job);
        pthread_mutex_lock(&jobs->mutex);
        jobs->running = 0;
    }
    pthread_mutex_unlock(&jobs->mutex);
    return NULL;
}

/* ---- from the session's thread */

void jobs_add(struct jobs *jobs, struct worker_effect *effect)
{
    struct job *job = xcalloc(1, sizeof *job);
    job->effect = *effect;
    effect->message = NULL;
    pthread_mutex_lock(&jobs->mutex);
    *jobs->queue_end = job;
    jobs->queue_end = &job->next;
    pthread_cond_signal(&jobs->wake);
    pthread_mutex_unlock(&jobs->mutex);
}

/* Under the mutex. */
static void drop_queued(struct jobs *jobs, uint64_t number, bool all)
{
    for (struct job **at = &jobs->queue; *at;) {
        struct job *job = *at;
        if (all || (job->effect.job == number && job->effect.kind != WORKER_SETTLED)) {
            *at = job->next;
            job_free(job);
        } else {
            at = &job->next;
        }
    }
    jobs->queue_end = &jobs->queue;
    while (*jobs->queue_end)
        jobs->queue_end = &(*jobs->queue_end)->next;
}

static void cancel_running(struct jobs *jobs)
{
    atomic_store(&jobs->cancel, true);
    ring(jobs->cancel_fd);
}

void jobs_cancel(struct jobs *jobs, uint64_t job)
{
    pthread_mutex_lock(&jobs->mutex);
    drop_queued(jobs, job, false);
    if (jobs->running == job)
        cancel_running(jobs);
    pthread_mutex_unlock(&jobs->mutex);
}

static void release(struct jobs *jobs)
{
    for (struct answer *a = jobs->answers, *next; a; a = next) {
        next = a->next;
        answer_free(a);
    }
    answer_free(jobs->given);
    lease_work_release(&jobs->lease);
    eval_work_release(&jobs->eval);
    view_free(jobs->view);
    keep_close(&jobs->keep);
    conn_close(jobs->bulk);
    if (jobs->cancel_fd >= 0)
        close(jobs->cancel_fd);
    if (jobs->answers_fd >= 0)
        close(jobs->answers_fd);
    pthread_cond_destroy(&jobs->wake);
    pthread_mutex_destroy(&jobs->mutex);
    free(jobs);
}

enum status jobs_start(const struct jobs_config *config, struct jobs **out, struct err *err)
{
    struct jobs *jobs = xcalloc(1, sizeof *jobs);
    struct keep_options keep = {HOME_PAYLOAD, HOME_LENGTHS, config->keep_bytes, rank, jobs};
    jobs->config = *config;
    jobs->queue_end = &jobs->queue;
    jobs->answers_end = &jobs->answers;
    pthread_mutex_init(&jobs->mutex, NULL);
    pthread_cond_init(&jobs->wake, NULL);
    jobs->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    jobs->answers_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum status status = ST_OK;
    if (jobs->cancel_fd < 0 || jobs->answers_fd < 0)
        status = err_set(err, ST_IO, "eventfd: %s", strerror(errno));
    if (status == ST_OK)
        status = keep_open(config->home->db, &keep, &jobs->keep, err);
    if (status == ST_OK)
        status = conn_open(config->zmq, config->join, PLANE_BULK, jobs->cancel_fd, &jobs->bulk, err);
    if (status == ST_OK) {
        conn_set_hello(jobs->bulk, config->hello, NULL, NULL);
        int failed = pthread_create(&jobs->thread, NULL, job_thread, jobs);
        if (failed)
            status = err_set(err, ST_IO, "pthread_create: %s", strerror(failed));
    }
    if (status != ST_OK) {
        release(jobs);
        return status;
    }
    home_collect(config->home, NULL, 0); /* what an earlier run left, but a pending delta */
    *out = jobs;
    return ST_OK;
}

void jobs_stop(struct jobs *jobs)
{
    if (!jobs)
        return;
    pthread_mutex_lock(&jobs->mutex);
    jobs->quit = true;
    /* What was settled is forgotten on disk even when the stop came right behind it. */
    for (struct job *job = jobs->queue; job; job = job->next)
        if (job->effect.kind == WORKER_SETTLED)
            home_drop_commit(jobs->config.home, &job->effect.settled.delta);
    drop_queued(jobs, 0, true);
    cancel_running(jobs);
    pthread_cond_signal(&jobs->wake);
    pthread_mutex_unlock(&jobs->mutex);
    pthread_join(jobs->thread, NULL);
    release(jobs);
}
