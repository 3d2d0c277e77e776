#include "worker/core.h"

#include <stdlib.h>
#include <string.h>

#include "worker/internal.h"

static void drain(struct worker_core *core, struct worker_effects *out)
{
    if (core->draining) {
        ask_stop(core, out, ST_STOPPED, "stopped at once");
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
            ask_stop(core, out, ST_OK, "drained");
            break;
        }
        if (core->phase != PHASE_EXCLUDE)
            ask_effect(core, out, WORKER_CANCEL, NULL);
        task_return(core, ALV__RETURN_REASON__RETURN_DRAINING, "the worker is draining");
    }
}

static void on_tick(struct worker_core *core, struct worker_effects *out)
{
    if (core->draining && core->now >= core->drain_due)
        ask_stop(core, out, ST_OK,
                 core->commit ? "drained; a delta is left for the next start"
                              : "drained; the task was not handed back in time");
    else if (core->phase == PHASE_UPLOAD && core->now >= core->upload_due)
        task_upload(core, out);
}

static void start(struct worker_core *core, const struct worker_event *event)
{
    memcpy(core->instance, event->start.instance, 16);
    core->boot = event->start.boot;
    core->session_counter = event->start.session_counter;
    memcpy(core->session_incarnation, event->start.session_incarnation, 16);
    if (event->start.pending)
        core->commit = message_clone(event->start.pending);
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
        ask_end(core, slot);
    task_drop(core);
    message_drop(core->commit);
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
        ask_hello(core);
        break;
    case WORKER_DOWN:
        core->up = core->greeted = false;
        ask_end(core, SLOT_HELLO);
        break;
    case WORKER_REPLY:
        reply_take(core, event, out);
        break;
    case WORKER_TICK:
        break;
    case WORKER_DRAIN:
        drain(core, out);
        break;
    default:
        task_job(core, event, out);
    }
    if (core->phase != PHASE_STOPPED)
        on_tick(core, out);
    if (core->phase != PHASE_STOPPED) {
        task_report(core);
        ask_send(core, out);
    }
}

uint64_t worker_deadline(const struct worker_core *core)
{
    uint64_t due = UINT64_MAX;
    if (core->phase == PHASE_STOPPED)
        return due;
    for (enum slot slot = 0; slot < SLOTS; slot++)
        if (ask_sendable(core, slot) && core->calls[slot].due < due)
            due = core->calls[slot].due;
    if (task_works(core) && core->progress_due < due)
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
