#include "worker/core.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "proto/record.h"
#include "worker/plan.h"

enum {
    WAIT_MS = 250,         /* first wait between attempts; doubles */
    ASK_MS = 1000,         /* an empty answer is not asked for more often than this */
    PROGRESS_MS = 5000,    /* of a delta left by an earlier run, whose lease is not known any more */
    PROGRESS_MS_MIN = 200, /* whatever a task asks for */
    FAILURES_MAX = 5,      /* tasks failed in a row: it is this worker, not the tasks */
};

/* What is being asked. Hello goes before all else; progress travels beside the main question. */
enum slot { SLOT_HELLO, SLOT_MAIN, SLOT_PROGRESS, SLOTS };

struct call {
    ProtobufCMessage *message; /* NULL: nothing is asked */
    uint16_t verb;
    uint64_t id;
    uint64_t due; /* when it is sent (again) */
    uint32_t tries, refusals;
    bool greeted_for; /* a hello was said because this was refused: another refusal is final */
};

struct task {
    bool held, evaluate;
    uint64_t id, round;
    uint32_t generation, progress_ms;
    uint32_t done, total, tokens_per_s;
    Alv__Lease *lease; /* one of the two, or neither for a delta left by an earlier run */
    Alv__Evaluate *evaluation;
};

struct worker_core {
    struct worker_config config;
    struct rng rng;
    enum worker_phase phase;
    bool up, greeted, prepared, draining, line_known;
    uint64_t now, drain_due, progress_due, upload_due, asked_at, not_before;
    struct call calls[SLOTS];
    uint64_t next_request, job;
    uint8_t instance[16];
    uint64_t boot;
    uint64_t session_counter;
    uint8_t session_incarnation[16];
    struct worker_line line;
    char fingerprint[LIMIT_TEXT_BYTES];
    uint64_t exclusion_seq, exclusion_newest;
    uint64_t excluding; /* seq that is reached when EXCLUDED comes; 0: the entries were only asked for */
    struct task task;
    Alv__DeltaCommit *commit; /* computed and not yet answered */
    uint32_t failures;
    struct err failure;
    enum status failure_status;
    uint32_t tokens_per_s;
    uint64_t leases_done, deltas_refused, evaluations_done, returned;
};

static void next(struct worker_core *core, struct worker_effects *out);

/* Truncates to fit, between characters: the codec refuses what is not UTF-8, our own messages too. */
static void copy_text(char *out, size_t size, const char *text)
{
    size_t len = strlen(text);
    len = utf8_prefix(text, len < size ? len : size - 1);
    memcpy(out, text, len);
    out[len] = 0;
}

/* ---- effects */

static void *clone(const void *message)
{
    const ProtobufCMessage *m = message;
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *bytes = xmalloc(len + 1);
    protobuf_c_message_pack(m, bytes);
    ProtobufCMessage *copy = protobuf_c_message_unpack(m->descriptor, NULL, len, bytes);
    free(bytes);
    CHECK(copy != NULL);
    return copy;
}

static void drop(void *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

void worker_effects_clear(struct worker_effects *effects)
{
    for (uint32_t i = 0; i < effects->n; i++)
        drop(effects->items[i].message);
    effects->n = 0;
}

void worker_effects_release(struct worker_effects *effects)
{
    worker_effects_clear(effects);
    free(effects->items);
    *effects = (struct worker_effects){0};
}

/* The new effect stays valid until the next one. `message` (may be NULL) is copied. */
static struct worker_effect *effect(struct worker_core *core, struct worker_effects *out, enum worker_effect_kind kind,
                                    const void *message)
{
    if (out->n == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 8;
        out->items = xrealloc_array(out->items, out->cap, sizeof *out->items);
    }
    struct worker_effect *e = &out->items[out->n++];
    *e = (struct worker_effect){.kind = kind, .job = core->job, .message = message ? clone(message) : NULL};
    return e;
}

static void end_call(struct worker_core *core, enum slot slot)
{
    drop(core->calls[slot].message);
    core->calls[slot] = (struct call){0};
}

static void stop(struct worker_core *core, struct worker_effects *out, enum status status, const char *text)
{
    for (enum slot slot = 0; slot < SLOTS; slot++)
        end_call(core, slot);
    core->phase = PHASE_STOPPED;
    struct worker_effect *e = effect(core, out, WORKER_STOPPED, NULL);
    e->stopped.status = status;
    copy_text(e->stopped.text, sizeof e->stopped.text, text);
}

/* ---- asking */

/* 250 ms, 500 ms, ... up to the bound, each shortened by up to a half so that workers do not march in step. */
static uint64_t pause_ms(struct worker_core *core, uint32_t tries)
{
    uint64_t ms = (uint64_t)WAIT_MS << (tries < 16 ? tries : 16);
    if (ms > core->config.wait_ms_max)
        ms = core->config.wait_ms_max;
    return ms / 2 + rng_below(&core->rng, ms / 2 + 1);
}

static void ask_at(struct worker_core *core, enum slot slot, uint16_t verb, const void *message, uint64_t due)
{
    end_call(core, slot);
    core->calls[slot] = (struct call){.message = clone(message), .verb = verb, .id = core->next_request++, .due = due};
}

static void ask(struct worker_core *core, enum slot slot, uint16_t verb, const void *message)
{
    ask_at(core, slot, verb, message, core->now);
}

/* The same question as a new request: it was answered, but not for good. */
static void ask_again(struct worker_core *core, struct call *call, uint64_t delay_ms)
{
    call->id = core->next_request++;
    call->due = core->now + delay_ms;
    call->tries = 0;
}

static void say_hello(struct worker_core *core)
{
    Alv__Hello hello = ALV__HELLO__INIT;
    struct digest card;
    card_digest_trained(&core->config.card, &card);
    hello.protocol_min = hello.protocol_max = 1;
    hello.line = core->config.line;
    hello.instance = (ProtobufCBinaryData){16, core->instance};
    hello.boot = core->boot;
    hello.software = core->config.software;
    hello.session_counter = core->session_counter;
    if (core->session_counter)
        hello.session_incarnation = (ProtobufCBinaryData){16, core->session_incarnation};
    hello.card_digest = (ProtobufCBinaryData){DIGEST_LEN, card.b};
    core->greeted = false;
    ask(core, SLOT_HELLO, VERB_HELLO, &hello);
}

static bool sendable(const struct worker_core *core, enum slot slot)
{
    return core->calls[slot].message && core->up && (slot == SLOT_HELLO || core->greeted);
}

static void send_due(struct worker_core *core, struct worker_effects *out)
{
    for (enum slot slot = 0; slot < SLOTS; slot++) {
        struct call *call = &core->calls[slot];
        if (!sendable(core, slot) || call->due > core->now)
            continue;
        struct worker_effect *e = effect(core, out, WORKER_SEND, call->message);
        e->send.verb = call->verb;
        e->send.request = call->id;
        uint64_t silence = core->config.request_ms;
        if (call->verb == VERB_TASK_REQUEST) {
            silence += core->config.poll_ms;
            core->asked_at = core->now;
        }
        call->due = core->now + silence + (call->tries ? pause_ms(core, call->tries) : 0);
        call->tries++;
    }
}

/* ---- the task in hand */

static void drop_task(struct worker_core *core)
{
    drop(core->task.lease);
    drop(core->task.evaluation);
    core->task = (struct task){0};
    end_call(core, SLOT_PROGRESS);
}

static bool works(const struct worker_core *core)
{
    return core->task.held && core->phase != PHASE_RETURN && core->phase != PHASE_STOPPED;
}

static void report_progress(struct worker_core *core)
{
    if (!works(core) || core->now < core->progress_due)
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

static void begin_progress(struct worker_core *core, uint32_t progress_ms)
{
    core->task.held = true;
    core->task.progress_ms = progress_ms > PROGRESS_MS_MIN ? progress_ms : PROGRESS_MS_MIN;
    core->progress_due = core->now + core->task.progress_ms / 2;
}

static void return_task(struct worker_core *core, const char *reason)
{
    Alv__TaskReturn back = ALV__TASK_RETURN__INIT;
    char text[LIMIT_TEXT_BYTES];
    copy_text(text, sizeof text, reason);
    back.task = core->task.id;
    back.generation = core->task.generation;
    back.evaluate = core->task.evaluate;
    back.reason = text;
    core->phase = PHASE_RETURN;
    core->job++; /* what the job still says is stale */
    end_call(core, SLOT_PROGRESS);
    ask(core, SLOT_MAIN, VERB_TASK_RETURN, &back);
}

static void settle(struct worker_core *core, struct worker_effects *out, bool accepted, const char *reason)
{
    struct worker_effect *e = effect(core, out, WORKER_SETTLED, NULL);
    memcpy(e->settled.delta.b, core->commit->delta->digest.data, DIGEST_LEN);
    e->settled.accepted = accepted;
    copy_text(e->settled.reason, sizeof e->settled.reason, reason);
    core->leases_done += accepted;
    core->deltas_refused += !accepted;
    drop(core->commit);
    core->commit = NULL;
}

/* The coordinator says that the task is no longer ours. */
static void abandon(struct worker_core *core, struct worker_effects *out)
{
    bool busy = core->phase == PHASE_EXCLUDE || core->phase == PHASE_FETCH || core->phase == PHASE_TRAIN ||
                core->phase == PHASE_SCORE || core->phase == PHASE_UPLOAD;
    if (!core->task.held || !busy)
        return; /* the answer to the question under way will say so */
    if (core->phase == PHASE_EXCLUDE) {
        drop_task(core); /* the exclusions are wanted all the same */
        return;
    }
    effect(core, out, WORKER_CANCEL, NULL);
    if (core->commit)
        settle(core, out, false, "the lease is no longer ours");
    drop_task(core);
    core->job++;
    next(core, out);
}

static void fetch(struct worker_core *core, struct worker_effects *out)
{
    core->phase = PHASE_FETCH;
    core->job++;
    const void *message = core->task.evaluate ? (void *)core->task.evaluation : (void *)core->task.lease;
    effect(core, out, WORKER_FETCH, message)->evaluate = core->task.evaluate;
}

static void upload(struct worker_core *core, struct worker_effects *out)
{
    core->phase = PHASE_UPLOAD;
    core->upload_due = UINT64_MAX;
    if (!core->task.held) { /* left by an earlier run */
        core->task.id = core->commit->lease;
        core->task.generation = core->commit->generation;
        begin_progress(core, PROGRESS_MS);
        core->job++;
    }
    effect(core, out, WORKER_UPLOAD, core->commit);
}

static void ask_exclusions(struct worker_core *core, uint64_t delay_ms)
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

/* What to do when nothing is under way. */
static void next(struct worker_core *core, struct worker_effects *out)
{
    end_call(core, SLOT_MAIN);
    if (core->draining) {
        stop(core, out, ST_OK, "drained");
    } else if (core->failures >= FAILURES_MAX) {
        struct err err = core->failure;
        err_prefix(&err, core->failure_status, "%u tasks failed in a row, the last: ", core->failures);
        stop(core, out, core->failure_status, err.text);
    } else if (!core->prepared) {
        core->phase = PHASE_PREPARE;
        core->job++;
        effect(core, out, WORKER_PREPARE, NULL)->line = core->line;
    } else if (core->commit) {
        upload(core, out);
    } else if (core->exclusion_newest > core->exclusion_seq) {
        ask_exclusions(core, 0);
    } else if (core->task.held) {
        fetch(core, out);
    } else {
        ask_task(core);
    }
}

static void task_failed(struct worker_core *core, enum status status, const char *text)
{
    core->failures++;
    core->failure_status = status == ST_OK ? ST_INTERNAL : status;
    copy_text(core->failure.text, sizeof core->failure.text, text);
    core->not_before = core->now + pause_ms(core, core->failures + 2);
    return_task(core, text);
}

/* ---- hello */

/* Names and files that may serve differ between cards of the same base; what is trained on must not. */
static bool same_base(const struct card *a, const struct card *b)
{
    struct digest left, right;
    card_digest_trained(a, &left);
    card_digest_trained(b, &right);
    return digest_eq(&left, &right);
}

static enum status other_base(const struct name *line, const struct card *theirs, const struct card *ours,
                              struct err *err)
{
    char theirs_hex[DIGEST_HEX_SIZE], ours_hex[DIGEST_HEX_SIZE];
    digest_hex(&theirs->base, theirs_hex);
    digest_hex(&ours->base, ours_hex);
    return err_set(
        err, ST_CONFIG,
        "line %s is trained on the base %s (%.12s), this worker holds another, %s (%.12s): start it with the "
        "base the line was made with",
        line->s, theirs->base_name[0] ? theirs->base_name : "without a name", theirs_hex,
        ours->base_name[0] ? ours->base_name : "without a name", ours_hex);
}

static enum status check_line(struct worker_core *core, const Alv__HelloOk *ok, struct err *err)
{
    struct worker_line line = {.rank = ok->adapter_rank, .alpha = ok->adapter_alpha, .targets = ok->adapter_targets};
    struct card card;
    if (!name_set(&line.name, ok->line, strlen(ok->line)) || ok->seed.len != sizeof line.seed ||
        ok->session_incarnation.len != 16 || ok->previous_incarnation.len != 16 || ok->session_counter == 0)
        return err_set(err, ST_BAD_DATA, "the coordinator's hello is incomplete");
    memcpy(line.seed, ok->seed.data, sizeof line.seed);
    if (core->config.line[0] && strcmp(core->config.line, line.name.s) != 0)
        return err_set(err, ST_CONFIG, "the coordinator serves line %s, this worker was sent to line %s", line.name.s,
                       core->config.line);
    enum status status = card_decode(ok->card.data, ok->card.len, &card, err);
    if (status != ST_OK)
        return err_prefix(err, status, "the coordinator's model card: ");
    if (!same_base(&card, &core->config.card))
        return other_base(&line.name, &card, &core->config.card, err);
    if (core->line_known &&
        (!name_eq(&core->line.name, &line.name) || core->line.rank != line.rank || core->line.alpha != line.alpha ||
         core->line.targets != line.targets || memcmp(core->line.seed, line.seed, sizeof line.seed) != 0))
        return err_set(err, ST_CONFLICT, "line %s changed its shape or seed under a running worker: restart it",
                       line.name.s);
    core->line = line;
    core->line_known = true;
    return ST_OK;
}

static enum status check_session(const struct worker_core *core, const Alv__HelloOk *ok, struct err *err)
{
    unsigned long long known = core->session_counter, now = ok->session_counter;
    if (known == 0)
        return ST_OK;
    if (now < known)
        return err_set(
            err, ST_CONFLICT,
            "the coordinator is in session %llu, but this worker has seen %llu: its data directory was set back. "
            "If that was meant, remove the worker's `session` file",
            now, known);
    const uint8_t *expected = now == known       ? ok->session_incarnation.data
                              : now == known + 1 ? ok->previous_incarnation.data
                                                 : core->session_incarnation; /* too far on to tell */
    if (memcmp(expected, core->session_incarnation, 16) != 0)
        return err_set(
            err, ST_CONFLICT,
            "session %llu of the coordinator is not of the chain this worker knows (%llu): two coordinators run "
            "on copies of one data directory. Stop one of them",
            now, known);
    return ST_OK;
}

static void hello_ok(struct worker_core *core, const Alv__HelloOk *ok, struct worker_effects *out)
{
    struct err err;
    enum status status = check_line(core, ok, &err);
    if (status == ST_OK)
        status = check_session(core, ok, &err);
    if (status != ST_OK) {
        stop(core, out, status, err.text);
        return;
    }
    if (ok->session_counter != core->session_counter) {
        core->session_counter = ok->session_counter;
        memcpy(core->session_incarnation, ok->session_incarnation.data, 16);
        struct worker_effect *e = effect(core, out, WORKER_REMEMBER, NULL);
        e->session.counter = ok->session_counter;
        memcpy(e->session.incarnation, ok->session_incarnation.data, 16);
    }
    if (ok->exclusion_seq > core->exclusion_newest)
        core->exclusion_newest = ok->exclusion_seq;
    core->greeted = true;
    for (enum slot slot = SLOT_MAIN; slot < SLOTS; slot++) /* what was under way goes on; what waits, waits */
        if (core->calls[slot].tries > 0)
            core->calls[slot].due = core->now;
    if (core->phase == PHASE_JOIN)
        next(core, out);
}

/* ---- replies */

static void got_task(struct worker_core *core, const Alv__Task *task, struct worker_effects *out)
{
    struct err err;
    if (!task->lease && !task->evaluate) {
        if (core->not_before < core->asked_at + ASK_MS)
            core->not_before = core->asked_at + ASK_MS;
        next(core, out);
        return;
    }
    drop_task(core);
    struct task *t = &core->task;
    enum status status;
    if (task->lease) {
        const Alv__Lease *lease = task->lease;
        t->id = lease->id, t->generation = lease->generation, t->round = lease->round;
        t->lease = clone(lease);
        begin_progress(core, lease->progress_ms);
        status = plan_check_lease(lease, &err);
        if (lease->exclusion_seq > core->exclusion_newest)
            core->exclusion_newest = lease->exclusion_seq;
    } else {
        const Alv__Evaluate *e = task->evaluate;
        t->id = e->id, t->generation = e->generation, t->round = e->round;
        t->evaluate = true;
        t->evaluation = clone(e);
        begin_progress(core, e->progress_ms);
        status = plan_check_evaluate(e, &err);
    }
    if (status != ST_OK)
        task_failed(core, status, err.text);
    else
        next(core, out);
}

static void got_exclusions(struct worker_core *core, const Alv__Exclusions *in, struct worker_effects *out)
{
    if (in->newest > core->exclusion_newest)
        core->exclusion_newest = in->newest;
    if (in->n_entries == 0 &&
        core->exclusion_newest > core->exclusion_seq) { /* not there yet: a restart lost nothing */
        ask_exclusions(core, pause_ms(core, core->calls[SLOT_MAIN].refusals));
        return;
    }
    uint64_t last = in->n_entries ? in->entries[in->n_entries - 1]->seq : core->exclusion_seq;
    end_call(core, SLOT_MAIN);
    if (last <= core->exclusion_seq) {
        next(core, out);
        return;
    }
    core->excluding = last;
    core->job++;
    effect(core, out, WORKER_EXCLUDE, in);
}

static void got_reply(struct worker_core *core, enum slot slot, const ProtobufCMessage *message,
                      struct worker_effects *out)
{
    uint16_t verb = core->calls[slot].verb;
    switch (verb) {
    case VERB_HELLO:
        end_call(core, slot);
        hello_ok(core, (const Alv__HelloOk *)message, out);
        break;
    case VERB_EXCLUSIONS_GET:
        got_exclusions(core, (const Alv__Exclusions *)message, out);
        break;
    case VERB_TASK_REQUEST:
        end_call(core, slot);
        got_task(core, (const Alv__Task *)message, out);
        break;
    case VERB_PROGRESS:
        end_call(core, slot);
        if (((const Alv__ProgressOk *)message)->abandon)
            abandon(core, out);
        break;
    case VERB_DELTA_COMMIT: {
        const Alv__DeltaAck *ack = (const Alv__DeltaAck *)message;
        settle(core, out, ack->accepted, ack->reason);
        core->failures = 0;
        drop_task(core);
        next(core, out);
        break;
    }
    case VERB_EVAL_RESULT:
        core->evaluations_done++;
        core->failures = 0;
        drop_task(core);
        next(core, out);
        break;
    case VERB_TASK_RETURN:
        core->returned++;
        drop_task(core);
        next(core, out);
        break;
    }
}

/* A request refused for good: hello was said anew, and it is refused still. */
static void refused(struct worker_core *core, enum slot slot, enum status status, const char *text,
                    struct worker_effects *out)
{
    switch (core->calls[slot].verb) {
    case VERB_PROGRESS:
        end_call(core, slot);
        break;
    case VERB_DELTA_COMMIT:
        settle(core, out, false, text);
        drop_task(core);
        next(core, out);
        break;
    case VERB_EVAL_RESULT:
    case VERB_TASK_RETURN:
        drop_task(core);
        next(core, out);
        break;
    case VERB_HELLO: { /* when it is the base that is wrong, both names are wanted */
        struct err err;
        err_set(&err, status, "the coordinator refuses this worker (base %s): %s",
                core->config.card.base_name[0] ? core->config.card.base_name : "without a name", text);
        stop(core, out, status, err.text);
        break;
    }
    default: /* TASK_REQUEST, EXCLUSIONS_GET: no way to go on */
        stop(core, out, status, text);
    }
}

static bool for_later(enum status status)
{
    return status == ST_AGAIN || status == ST_TIMEOUT || status == ST_NO_SPACE || status == ST_IO ||
           status == ST_INTERNAL || status == ST_EMPTY;
}

static void got_error(struct worker_core *core, enum slot slot, const Alv__Error *error, struct worker_effects *out)
{
    struct call *call = &core->calls[slot];
    enum status status = (enum status)error->status;
    if (for_later(status)) {
        if (slot == SLOT_PROGRESS) {
            end_call(core, slot); /* the next one is newer */
            return;
        }
        uint64_t delay = pause_ms(core, call->refusals++);
        uint64_t wanted = error->retry_ms < LIMIT_RETRY_MS ? error->retry_ms : LIMIT_RETRY_MS;
        ask_again(core, call, delay > wanted ? delay : wanted);
    } else if (slot != SLOT_HELLO && !call->greeted_for) {
        call->greeted_for = true;
        ask_again(core, call, 0);
        call->tries = 1; /* goes out with the hello's answer */
        if (slot == SLOT_PROGRESS)
            end_call(core, slot);
        say_hello(core);
    } else {
        refused(core, slot, status, error->text, out);
    }
}

static void on_reply(struct worker_core *core, const struct worker_event *event, struct worker_effects *out)
{
    for (enum slot slot = 0; slot < SLOTS; slot++) {
        struct call *call = &core->calls[slot];
        if (!call->message || call->id != event->reply.request)
            continue;
        if (event->reply.verb == VERB_ERROR)
            got_error(core, slot, (const Alv__Error *)event->reply.message, out);
        else if (event->reply.verb == call->verb + 1)
            got_reply(core, slot, event->reply.message, out);
        return;
    }
}

/* ---- what the shell reports */

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
    core->commit = clone(&commit);
    upload(core, out);
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
        stop(core, out, status, text);
        break;
    case PHASE_UPLOAD:
        if (for_later(status) || status == ST_STOPPED) {
            core->upload_due = core->now + pause_ms(core, 2);
        } else {
            settle(core, out, false, text);
            task_failed(core, status, text);
        }
        break;
    default:
        task_failed(core, status, text);
    }
}

static void on_job(struct worker_core *core, const struct worker_event *event, struct worker_effects *out)
{
    enum worker_phase phase = core->phase;
    if (event->job != core->job)
        return;
    if (event->kind == WORKER_FAILED &&
        (phase == PHASE_PREPARE || (phase == PHASE_EXCLUDE && core->excluding) || phase == PHASE_FETCH ||
         phase == PHASE_TRAIN || phase == PHASE_SCORE || phase == PHASE_UPLOAD)) {
        job_failed(core, event->failed.status, event->failed.text, out);
    } else if (event->kind == WORKER_PROGRESSED && core->task.held) {
        core->task.done = event->progress.done;
        core->task.total = event->progress.total;
        core->task.tokens_per_s = event->progress.tokens_per_s;
        if (!core->task.evaluate && event->progress.tokens_per_s)
            core->tokens_per_s = event->progress.tokens_per_s;
    } else if (event->kind == WORKER_PREPARED && phase == PHASE_PREPARE) {
        copy_text(core->fingerprint, sizeof core->fingerprint, event->fingerprint);
        core->prepared = true;
        next(core, out);
    } else if (event->kind == WORKER_EXCLUDED && phase == PHASE_EXCLUDE && core->excluding) {
        core->exclusion_seq = core->excluding;
        core->excluding = 0;
        next(core, out);
    } else if (event->kind == WORKER_FETCHED && phase == PHASE_FETCH) {
        core->phase = core->task.evaluate ? PHASE_SCORE : PHASE_TRAIN;
        if (core->task.evaluate)
            effect(core, out, WORKER_SCORE, core->task.evaluation);
        else
            effect(core, out, WORKER_TRAIN, core->task.lease);
    } else if (event->kind == WORKER_TRAINED && phase == PHASE_TRAIN) {
        trained(core, event->trained, out);
    } else if (event->kind == WORKER_SCORED && phase == PHASE_SCORE) {
        scored(core, event->scored);
    } else if (event->kind == WORKER_UPLOADED && phase == PHASE_UPLOAD) {
        core->phase = PHASE_COMMIT;
        ask(core, SLOT_MAIN, VERB_DELTA_COMMIT, core->commit);
    }
}

/* ---- the rest */

static void drain(struct worker_core *core, struct worker_effects *out)
{
    if (core->draining) {
        stop(core, out, ST_STOPPED, "stopped at once");
        return;
    }
    core->draining = true;
    core->drain_due = core->now + core->config.drain_ms;
    switch (core->phase) {
    case PHASE_UPLOAD: /* computed: see it through */
    case PHASE_COMMIT:
    case PHASE_REPORT:
    case PHASE_RETURN:
        break;
    default:
        if (!core->task.held) {
            stop(core, out, ST_OK, "drained");
            break;
        }
        if (core->phase != PHASE_EXCLUDE)
            effect(core, out, WORKER_CANCEL, NULL);
        return_task(core, "the worker is draining");
    }
}

static void on_tick(struct worker_core *core, struct worker_effects *out)
{
    if (core->draining && core->now >= core->drain_due)
        stop(core, out, ST_OK,
             core->commit ? "drained; a delta is left for the next start"
                          : "drained; the task was not handed back in time");
    else if (core->phase == PHASE_UPLOAD && core->now >= core->upload_due)
        upload(core, out);
}

static void start(struct worker_core *core, const struct worker_event *event)
{
    memcpy(core->instance, event->start.instance, 16);
    core->boot = event->start.boot;
    core->session_counter = event->start.session_counter;
    memcpy(core->session_incarnation, event->start.session_incarnation, 16);
    if (event->start.pending)
        core->commit = clone(event->start.pending);
    core->not_before = 0;
}

struct worker_core *worker_core_new(const struct worker_config *config)
{
    struct worker_core *core = xcalloc(1, sizeof *core);
    struct worker_config *c = &core->config;
    *c = *config;
    c->request_ms = c->request_ms ? c->request_ms : 10000;
    c->poll_ms = c->poll_ms && c->poll_ms < LIMIT_WAIT_MS ? c->poll_ms : LIMIT_WAIT_MS;
    c->wait_ms_max = c->wait_ms_max ? c->wait_ms_max : 30000;
    c->drain_ms = c->drain_ms ? c->drain_ms : 10000;
    core->next_request = c->first_request ? c->first_request : 1;
    core->upload_due = UINT64_MAX;
    rng_seed(&core->rng, c->seed);
    return core;
}

void worker_core_free(struct worker_core *core)
{
    if (!core)
        return;
    for (enum slot slot = 0; slot < SLOTS; slot++)
        end_call(core, slot);
    drop_task(core);
    drop(core->commit);
    free(core);
}

void worker_step(struct worker_core *core, const struct worker_event *event, struct worker_effects *out)
{
    if (core->phase == PHASE_STOPPED)
        return;
    core->now = event->now_ms;
    switch (event->kind) {
    case WORKER_START:
        start(core, event);
        break;
    case WORKER_UP:
        core->up = true;
        say_hello(core);
        break;
    case WORKER_DOWN:
        core->up = core->greeted = false;
        end_call(core, SLOT_HELLO);
        break;
    case WORKER_REPLY:
        on_reply(core, event, out);
        break;
    case WORKER_TICK:
        break;
    case WORKER_DRAIN:
        drain(core, out);
        break;
    default:
        on_job(core, event, out);
    }
    if (core->phase != PHASE_STOPPED)
        on_tick(core, out);
    if (core->phase != PHASE_STOPPED) {
        report_progress(core);
        send_due(core, out);
    }
}

uint64_t worker_deadline(const struct worker_core *core)
{
    uint64_t due = UINT64_MAX;
    if (core->phase == PHASE_STOPPED)
        return due;
    for (enum slot slot = 0; slot < SLOTS; slot++)
        if (sendable(core, slot) && core->calls[slot].due < due)
            due = core->calls[slot].due;
    if (works(core) && core->progress_due < due)
        due = core->progress_due;
    if (core->draining && core->drain_due < due)
        due = core->drain_due;
    if (core->phase == PHASE_UPLOAD && core->upload_due < due)
        due = core->upload_due;
    return due;
}

const char *worker_phase_name(enum worker_phase phase)
{
    static const char *const names[] = {"join",  "prepare", "exclude", "ask",    "fetch",  "train",
                                        "score", "upload",  "commit",  "report", "return", "stopped"};
    return phase <= PHASE_STOPPED ? names[phase] : "?";
}

void worker_status(const struct worker_core *core, struct worker_status *out)
{
    *out = (struct worker_status){
        .phase = core->phase,
        .up = core->up,
        .greeted = core->greeted,
        .draining = core->draining,
        .task = core->task.id,
        .round = core->task.round,
        .generation = core->task.generation,
        .evaluate = core->task.evaluate,
        .done = core->task.done,
        .total = core->task.total,
        .tokens_per_s = core->tokens_per_s,
        .exclusion_seq = core->exclusion_seq,
        .leases_done = core->leases_done,
        .deltas_refused = core->deltas_refused,
        .evaluations_done = core->evaluations_done,
        .returned = core->returned,
    };
}
