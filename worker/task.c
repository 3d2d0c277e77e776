/* The task in hand: fetch, train or score, upload, commit or report, hand back. */
#include <string.h>

#include "base/check.h"
#include "worker/internal.h"

enum {
    PROGRESS_MS = 5000,    /* of a delta left by an earlier run, whose lease is not known any more */
    PROGRESS_MS_MIN = 200, /* whatever a task asks for */
    FAILURES_MAX = 5,      /* tasks failed in a row: it is this worker, not the tasks */
};

/* What this machine lacks: the next task would meet it too, so the first one ends the worker. */
static bool is_lacking(enum status status)
{
    return status == ST_NO_SPACE || status == ST_NO_MEMORY;
}

/* This machine failed, not the lease. */
static bool is_local(enum status status)
{
    return is_lacking(status) || status == ST_IO;
}

void task_drop(struct worker_core *core)
{
    message_drop(core->task.lease);
    message_drop(core->task.evaluation);
    core->task = (struct task){0};
    ask_end(core, SLOT_PROGRESS);
}

bool task_works(const struct worker_core *core)
{
    return core->task.held && core->phase != PHASE_RETURN && core->phase != PHASE_STOPPED;
}

void task_report(struct worker_core *core)
{
    if (!task_works(core) || core->now < core->progress_due)
        return;
    core->progress_due = core->now + core->task.progress_ms / 2;
    if (core->calls[SLOT_PROGRESS].message)
        return; /* the last one is not answered yet and will be sent again by itself */
    Alv__Progress progress = ALV__PROGRESS__INIT;
    progress.task = core->task.id;
    progress.generation = core->task.generation;
    progress.evaluate = core->task.evaluate;
    progress.done = core->task.done;
    progress.total = core->task.total;
    progress.tokens_per_s = core->task.tokens_per_s;
    ask(core, SLOT_PROGRESS, VERB_PROGRESS, &progress);
}

void task_begin(struct worker_core *core, uint32_t progress_ms)
{
    core->task.held = true;
    core->task.progress_ms = progress_ms > PROGRESS_MS_MIN ? progress_ms : PROGRESS_MS_MIN;
    core->progress_due = core->now + core->task.progress_ms / 2;
}

void task_return(struct worker_core *core, Alv__ReturnReason why, const char *reason)
{
    Alv__TaskReturn back = ALV__TASK_RETURN__INIT;
    char text[LIMIT_TEXT_BYTES];
    ask_text(text, sizeof text, reason);
    back.task = core->task.id;
    back.generation = core->task.generation;
    back.evaluate = core->task.evaluate;
    back.reason = text;
    back.why = why;
    core->phase = PHASE_RETURN;
    core->job++; /* what the job still says is stale */
    ask_end(core, SLOT_PROGRESS);
    ask(core, SLOT_MAIN, VERB_TASK_RETURN, &back);
}

void task_settle(struct worker_core *core, struct worker_effects *out, bool accepted, const char *reason)
{
    struct worker_effect *e = ask_effect(core, out, WORKER_SETTLED, NULL);
    memcpy(e->settled.delta.b, core->commit->delta->digest.data, DIGEST_LEN);
    e->settled.accepted = accepted;
    ask_text(e->settled.reason, sizeof e->settled.reason, reason);
    core->leases_done += accepted;
    core->deltas_refused += !accepted;
    message_drop(core->commit);
    core->commit = NULL;
}

void task_abandon(struct worker_core *core, struct worker_effects *out)
{
    bool busy = core->phase == PHASE_EXCLUDE || core->phase == PHASE_FETCH || core->phase == PHASE_TRAIN ||
                core->phase == PHASE_SCORE || core->phase == PHASE_UPLOAD;
    if (!core->task.held || !busy)
        return; /* the answer to the question under way will say so */
    if (core->phase == PHASE_EXCLUDE) {
        task_drop(core); /* the exclusions are wanted all the same */
        return;
    }
    ask_effect(core, out, WORKER_CANCEL, NULL);
    if (core->commit)
        task_settle(core, out, false, "the lease is no longer ours");
    task_drop(core);
    core->job++;
    task_next(core, out);
}

static void fetch(struct worker_core *core, struct worker_effects *out)
{
    core->phase = PHASE_FETCH;
    core->job++;
    const void *message = core->task.evaluate ? (void *)core->task.evaluation : (void *)core->task.lease;
    ask_effect(core, out, WORKER_FETCH, message)->evaluate = core->task.evaluate;
}

void task_upload(struct worker_core *core, struct worker_effects *out)
{
    core->phase = PHASE_UPLOAD;
    core->upload_due = UINT64_MAX;
    if (!core->task.held) { /* left by an earlier run */
        core->task.id = core->commit->lease;
        core->task.generation = core->commit->generation;
        task_begin(core, PROGRESS_MS);
        core->job++;
    }
    ask_effect(core, out, WORKER_UPLOAD, core->commit);
}

void task_exclusions(struct worker_core *core, uint64_t delay_ms)
{
    Alv__ExclusionsGet get = ALV__EXCLUSIONS_GET__INIT;
    get.since = core->exclusion_seq;
    core->phase = PHASE_EXCLUDE;
    core->excluding = 0;
    ask_at(core, SLOT_MAIN, VERB_EXCLUSIONS_GET, &get, core->now + delay_ms);
}

static void ask_task(struct worker_core *core)
{
    Alv__TaskRequest request = ALV__TASK_REQUEST__INIT;
    request.wait_ms = core->config.poll_ms;
    request.fingerprint = core->fingerprint;
    request.exclusion_seq = core->exclusion_seq;
    request.tokens_per_s = core->tokens_per_s;
    core->phase = PHASE_ASK;
    uint64_t due = core->not_before > core->now ? core->not_before : core->now;
    ask_at(core, SLOT_MAIN, VERB_TASK_REQUEST, &request, due);
}

void task_next(struct worker_core *core, struct worker_effects *out)
{
    ask_end(core, SLOT_MAIN);
    if (core->draining) {
        ask_stop(core, out, ST_OK, "drained");
    } else if (core->failures >= FAILURES_MAX) {
        struct err err = core->failure;
        if (!is_lacking(core->failure_status))
            err_prefix(&err, core->failure_status, "%u tasks failed in a row, the last", core->failures);
        ask_stop(core, out, core->failure_status, err.text);
    } else if (!core->prepared) {
        core->phase = PHASE_PREPARE;
        core->job++;
        struct worker_effect *e = ask_effect(core, out, WORKER_PREPARE, NULL);
        e->line = core->line;
        e->afresh = core->afresh;
    } else if (core->commit) {
        task_upload(core, out);
    } else if (core->exclusion_newest > core->exclusion_seq) {
        task_exclusions(core, 0);
    } else if (core->task.held) {
        fetch(core, out);
    } else {
        ask_task(core);
    }
}

void task_afresh(struct worker_core *core, struct worker_effects *out)
{
    if (core->phase != PHASE_ASK)
        ask_effect(core, out, WORKER_CANCEL, NULL);
    core->job++;
    task_drop(
        core); /* a delta that was computed is seen through all the same: the answer to it says what it is worth */
    core->prepared = false;
    core->excluding = core->exclusion_seq = 0;
    task_next(core, out);
}

void task_failed(struct worker_core *core, enum status status, const char *text)
{
    core->failures = is_lacking(status) ? FAILURES_MAX : core->failures + 1;
    core->failure_status = status == ST_OK ? ST_INTERNAL : status;
    ask_text(core->failure.text, sizeof core->failure.text, text);
    core->not_before = core->now + ask_pause_ms(core, core->failures + 2);
    task_return(core, is_local(status) ? ALV__RETURN_REASON__RETURN_LOCAL : ALV__RETURN_REASON__RETURN_FAILED, text);
}

static void trained(struct worker_core *core, const struct worker_trained *r, struct worker_effects *out)
{
    const Alv__Lease *lease = core->task.lease;
    Alv__DeltaCommit commit = ALV__DELTA_COMMIT__INIT;
    Alv__BlobRef delta = ALV__BLOB_REF__INIT;
    Alv__DomainTokens tokens[LIMIT_DOMAINS], *list[LIMIT_DOMAINS];
    CHECK(r->n_fresh <= LIMIT_DOMAINS);
    for (uint32_t i = 0; i < r->n_fresh; i++) {
        alv__domain_tokens__init(&tokens[i]);
        tokens[i].domain = r->fresh[i].domain.v;
        tokens[i].tokens = r->fresh[i].tokens;
        tokens[i].bytes = r->fresh[i].bytes;
        list[i] = &tokens[i];
    }
    delta.digest = (ProtobufCBinaryData){DIGEST_LEN, (uint8_t *)r->delta.b};
    delta.bytes = r->bytes;
    commit.lease = lease->id;
    commit.generation = lease->generation;
    commit.session_counter = lease->session_counter;
    commit.session_incarnation = lease->session_incarnation;
    commit.delta = &delta;
    commit.target_tokens = r->target_tokens;
    commit.steps = r->steps;
    commit.n_fresh = r->n_fresh;
    commit.fresh = list;
    commit.first_losses = (ProtobufCBinaryData){r->first_losses.len, (uint8_t *)r->first_losses.data};
    commit.fingerprint = (char *)r->fingerprint;
    commit.train_ms = r->train_ms;
    core->commit = message_clone(&commit);
    task_upload(core, out);
}

static void scored(struct worker_core *core, const struct worker_scored *r)
{
    const Alv__Evaluate *e = core->task.evaluation;
    Alv__EvalResult result = ALV__EVAL_RESULT__INIT;
    result.id = e->id;
    result.generation = e->generation;
    result.session_counter = e->session_counter;
    result.session_incarnation = e->session_incarnation;
    result.nll = (ProtobufCBinaryData){r->nll.len, (uint8_t *)r->nll.data};
    result.tokens = (ProtobufCBinaryData){r->tokens.len, (uint8_t *)r->tokens.data};
    result.fingerprint = (char *)r->fingerprint;
    core->phase = PHASE_REPORT;
    ask(core, SLOT_MAIN, VERB_EVAL_RESULT, &result);
}

static void job_failed(struct worker_core *core, enum status status, const char *text, struct worker_effects *out)
{
    switch (core->phase) {
    case PHASE_PREPARE:
    case PHASE_EXCLUDE: /* text that must go would stay: do not go on */
        ask_stop(core, out, status, text);
        break;
    case PHASE_UPLOAD:
        if (ask_for_later(status) || status == ST_STOPPED) {
            core->upload_due = core->now + ask_pause_ms(core, 2);
        } else {
            task_settle(core, out, false, text);
            task_failed(core, status, text);
        }
        break;
    default:
        task_failed(core, status, text);
    }
}

void task_job(struct worker_core *core, const struct worker_event *event, struct worker_effects *out)
{
    enum worker_phase phase = core->phase;
    if (event->job != core->job)
        return;
    if (event->kind == WORKER_FAILED &&
        (phase == PHASE_PREPARE || (phase == PHASE_EXCLUDE && core->excluding) || phase == PHASE_FETCH ||
         phase == PHASE_TRAIN || phase == PHASE_SCORE || phase == PHASE_UPLOAD)) {
        if (event->failed.missing) /* neither the worker's fault nor the lease's: it is planned anew */
            task_return(core, ALV__RETURN_REASON__RETURN_MISSING, event->failed.text);
        else
            job_failed(core, event->failed.status, event->failed.text, out);
    } else if (event->kind == WORKER_PROGRESSED && core->task.held) {
        core->task.done = event->progress.done;
        core->task.total = event->progress.total;
        core->task.tokens_per_s = event->progress.tokens_per_s;
        if (!core->task.evaluate && event->progress.tokens_per_s)
            core->tokens_per_s = event->progress.tokens_per_s;
    } else if (event->kind == WORKER_PREPARED && phase == PHASE_PREPARE) {
        ask_text(core->fingerprint, sizeof core->fingerprint, event->fingerprint);
        core->prepared = true;
        if (core->afresh) { /* only now: a crash before must find the cache suspect still */
            core->afresh = false;
            reply_remember(core, out);
        }
        task_next(core, out);
    } else if (event->kind == WORKER_EXCLUDED && phase == PHASE_EXCLUDE && core->excluding) {
        core->exclusion_seq = core->excluding;
        core->excluding = 0;
        task_next(core, out);
    } else if (event->kind == WORKER_FETCHED && phase == PHASE_FETCH) {
        core->phase = core->task.evaluate ? PHASE_SCORE : PHASE_TRAIN;
        if (core->task.evaluate)
            ask_effect(core, out, WORKER_SCORE, core->task.evaluation);
        else
            ask_effect(core, out, WORKER_TRAIN, core->task.lease);
    } else if (event->kind == WORKER_TRAINED && phase == PHASE_TRAIN) {
        trained(core, event->trained, out);
    } else if (event->kind == WORKER_SCORED && phase == PHASE_SCORE) {
        scored(core, event->scored);
    } else if (event->kind == WORKER_UPLOADED && phase == PHASE_UPLOAD) {
        core->phase = PHASE_COMMIT;
        ask(core, SLOT_MAIN, VERB_DELTA_COMMIT, core->commit);
    }
}
