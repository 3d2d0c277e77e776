/* What the coordinator answers. */
#include <string.h>

#include "worker/internal.h"
#include "worker/plan.h"

enum { ASK_MS = 1000 /* an empty answer is not asked for more often than this */ };

void reply_remember(struct worker_core *core, struct worker_effects *out)
{
    struct worker_effect *e = ask_effect(core, out, WORKER_REMEMBER, NULL);
    e->session.counter = core->session_counter;
    memcpy(e->session.incarnation, core->session_incarnation, 16);
}

static void hello_ok(struct worker_core *core, const Alv__HelloOk *ok, struct worker_effects *out)
{
    struct err err;
    enum status status = hello_line(&core->config, core->line_known ? &core->line : NULL, ok, &core->line, &err);
    if (status == ST_OK)
        status = hello_session(core->session_counter, core->session_incarnation, ok, &err);
    if (status != ST_OK) {
        ask_stop(core, out, status, err.text);
        return;
    }
    core->line_known = true;
    uint64_t known = core->session_counter;
    bool afresh = known && ok->session_counter > known + 1; /* no telling how it came to be */
    core->session_counter = ok->session_counter;
    memcpy(core->session_incarnation, ok->session_incarnation.data, 16);
    core->afresh = core->afresh || afresh;
    if (core->session_counter != known && !core->afresh)
        reply_remember(core, out);
    if (afresh || ok->exclusion_seq > core->exclusion_newest)
        core->exclusion_newest = ok->exclusion_seq;
    core->greeted = true;
    for (enum slot slot = SLOT_MAIN; slot < SLOTS; slot++) /* what was under way goes on; what waits, waits */
        if (core->calls[slot].tries > 0)
            core->calls[slot].due = core->now;
    if (afresh && core->phase != PHASE_JOIN)
        task_afresh(core, out);
    else if (core->phase == PHASE_JOIN)
        task_next(core, out);
}

static void got_task(struct worker_core *core, const Alv__Task *task, struct worker_effects *out)
{
    struct err err;
    if (!task->lease && !task->evaluate) {
        if (task->exclusion_seq > core->exclusion_newest)
            core->exclusion_newest = task->exclusion_seq;
        if (core->not_before < core->asked_at + ASK_MS)
            core->not_before = core->asked_at + ASK_MS;
        task_next(core, out);
        return;
    }
    task_drop(core);
    struct task *t = &core->task;
    enum status status;
    if (task->lease) {
        const Alv__Lease *lease = task->lease;
        t->id = lease->id, t->generation = lease->generation, t->round = lease->round;
        t->lease = message_clone(lease);
        task_begin(core, lease->progress_ms);
        status = plan_check_lease(lease, &err);
        if (lease->exclusion_seq > core->exclusion_newest)
            core->exclusion_newest = lease->exclusion_seq;
    } else {
        const Alv__Evaluate *e = task->evaluate;
        t->id = e->id, t->generation = e->generation, t->round = e->round;
        t->evaluate = true;
        t->evaluation = message_clone(e);
        task_begin(core, e->progress_ms);
        status = plan_check_evaluate(e, &err);
    }
    if (status != ST_OK)
        task_failed(core, status, err.text);
    else
        task_next(core, out);
}

static void got_exclusions(struct worker_core *core, const Alv__Exclusions *in, struct worker_effects *out)
{
    if (in->newest > core->exclusion_newest)
        core->exclusion_newest = in->newest;
    if (in->n_entries == 0 &&
        core->exclusion_newest > core->exclusion_seq) { /* not there yet: a restart lost nothing */
        task_exclusions(core, ask_pause_ms(core, core->calls[SLOT_MAIN].refusals));
        return;
    }
    uint64_t last = in->n_entries ? in->entries[in->n_entries - 1]->seq : core->exclusion_seq;
    ask_end(core, SLOT_MAIN);
    if (last <= core->exclusion_seq) {
        task_next(core, out);
        return;
    }
    core->excluding = last;
    core->job++;
    ask_effect(core, out, WORKER_EXCLUDE, in);
}

static void got_reply(struct worker_core *core, enum slot slot, const ProtobufCMessage *message,
                      struct worker_effects *out)
{
    uint16_t verb = core->calls[slot].verb;
    switch (verb) {
    case VERB_HELLO:
        ask_end(core, slot);
        hello_ok(core, (const Alv__HelloOk *)message, out);
        break;
    case VERB_EXCLUSIONS_GET:
        got_exclusions(core, (const Alv__Exclusions *)message, out);
        break;
    case VERB_TASK_REQUEST:
        ask_end(core, slot);
        got_task(core, (const Alv__Task *)message, out);
        break;
    case VERB_PROGRESS:
        ask_end(core, slot);
        if (((const Alv__ProgressOk *)message)->abandon)
            task_abandon(core, out);
        break;
    case VERB_DELTA_COMMIT: {
        const Alv__DeltaAck *ack = (const Alv__DeltaAck *)message;
        task_settle(core, out, ack->accepted, ack->reason);
        core->failures = 0;
        task_drop(core);
        task_next(core, out);
        break;
    }
    case VERB_EVAL_RESULT:
        core->evaluations_done++;
        core->failures = 0;
        task_drop(core);
        task_next(core, out);
        break;
    case VERB_TASK_RETURN:
        core->returned++;
        task_drop(core);
        task_next(core, out);
        break;
    }
}

/* A request refused for good: hello was said anew, and it is refused still. */
static void refused(struct worker_core *core, enum slot slot, enum status status, const char *text,
                    struct worker_effects *out)
{
    switch (core->calls[slot].verb) {
    case VERB_PROGRESS:
        ask_end(core, slot);
        break;
    case VERB_DELTA_COMMIT:
        task_settle(core, out, false, text);
        task_drop(core);
        task_next(core, out);
        break;
    case VERB_EVAL_RESULT:
    case VERB_TASK_RETURN:
        task_drop(core);
        task_next(core, out);
        break;
    case VERB_HELLO: { /* when it is the base that is wrong, both names are wanted */
        struct err err;
        err_set(&err, status, "the coordinator refuses this worker (base %s): %s",
                core->config.card.base_name[0] ? core->config.card.base_name : "without a name", text);
        ask_stop(core, out, status, err.text);
        break;
    }
    default: /* TASK_REQUEST, EXCLUSIONS_GET: no way to go on */
        ask_stop(core, out, status, text);
    }
}

static void got_error(struct worker_core *core, enum slot slot, const Alv__Error *error, struct worker_effects *out)
{
    struct call *call = &core->calls[slot];
    enum status status = (enum status)error->status;
    if (ask_for_later(status)) {
        if (slot == SLOT_PROGRESS) {
            ask_end(core, slot); /* the next one is newer */
            return;
        }
        uint64_t delay = ask_pause_ms(core, call->refusals++);
        uint64_t wanted = error->retry_ms < LIMIT_RETRY_MS ? error->retry_ms : LIMIT_RETRY_MS;
        ask_again(core, call, delay > wanted ? delay : wanted);
    } else if (slot != SLOT_HELLO && !call->greeted_for) {
        call->greeted_for = true;
        ask_again(core, call, 0);
        call->tries = 1; /* goes out with the hello's answer */
        if (slot == SLOT_PROGRESS)
            ask_end(core, slot);
        ask_hello(core);
    } else {
        refused(core, slot, status, error->text, out);
    }
}

void reply_take(struct worker_core *core, const struct worker_event *event, struct worker_effects *out)
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
