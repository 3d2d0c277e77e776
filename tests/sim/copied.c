/* copied.c - a coordinator that is started on a copy of the data directory: another history under session numbers that
 * are taken. Whoever has seen the true one must refuse it, and it must refuse them. */
#include <inttypes.h>
#include <string.h>

#include "base/check.h"
#include "world.h"

void copied_take(struct world *w)
{
    if (w->knobs.copies && !w->copy.n && chance(w, 0.5))
        memstore_copy(&w->copy, &w->disk);
}

static uint64_t newest_session(const struct memstore *store)
{
    struct state_key end = key_plain('T');
    size_t at = memstore_seek(store, FAMILY_META, end.b, end.len);
    uint64_t counter = 0;
    if (at && store->items[at - 1].family == FAMILY_META && store->items[at - 1].key.data[0] == 'S')
        key_read_u64(buf_bytes(&store->items[at - 1].key), &counter);
    return counter;
}

static struct core *start_copy(struct world *w, struct effects *effects)
{
    struct core *core = core_new(&w->config);
    struct err err;
    if (memstore_load(&w->copy, core, &err))
        fail(w, "a copied directory does not load: %s", err.text);
    struct event event = {.kind = EVENT_START, .now_ms = w->now_ms, .wall_s = 1700000000 + w->now_ms / 1000};
    memset(event.incarnation, 0xee, sizeof event.incarnation);
    core_step(core, &event, effects);
    return core;
}

/* The copy's answer to a worker's hello; `forget`: as if the worker had kept its session to itself. */
static struct worker_effects converse(struct world *w, const struct node *node, bool forget, bool *refused)
{
    struct worker_config config = {.line = "sim", .software = "sim", .card = w->config.card, .first_request = 1};
    struct worker_core *worker = worker_core_new(&config);
    struct worker_effects said = {0}, heard = {0};
    struct effects effects = {0};
    struct core *core = start_copy(w, &effects);
    struct worker_event event = {.kind = WORKER_START, .now_ms = w->now_ms};
    memcpy(event.start.instance, node->instance, sizeof node->instance);
    event.start.boot = node->boot + 1;
    event.start.session_counter = node->session_counter;
    memcpy(event.start.session_incarnation, node->session_incarnation, sizeof node->session_incarnation);
    worker_step(worker, &event, &said);
    worker_step(worker, &(struct worker_event){.kind = WORKER_UP, .now_ms = w->now_ms}, &said);
    CHECK(said.n && said.items[said.n - 1].send.verb == VERB_HELLO);
    Alv__Hello *hello = (Alv__Hello *)said.items[said.n - 1].message;
    if (forget)
        hello->session_counter = 0;
    struct event message = {.kind = EVENT_MESSAGE,
                            .now_ms = w->now_ms,
                            .peer = {.conn = 1, .plane = PLANE_WORK, .role = ROLE_WORKER, .key = node->key},
                            .verb = VERB_HELLO,
                            .request = said.items[said.n - 1].send.request,
                            .message = &hello->base};
    core_step(core, &message, &effects);
    for (uint32_t i = 0, n = effects.n; i < n; i++)
        if (effects.items[i].kind == EFFECT_PERSIST)
            core_step(
                core,
                &(struct event){.kind = EVENT_COMMITTED, .now_ms = w->now_ms, .seq = effects.items[i].persist.seq},
                &effects);
    *refused = false;
    for (uint32_t i = 0; i < effects.n; i++) {
        const struct effect *e = &effects.items[i];
        if (e->kind != EFFECT_SEND)
            continue;
        *refused |= e->send.verb == VERB_ERROR;
        struct worker_event reply = {.kind = WORKER_REPLY, .now_ms = w->now_ms};
        reply.reply.verb = e->send.verb;
        reply.reply.request = e->send.request;
        reply.reply.message = e->send.message;
        worker_step(worker, &reply, &heard);
    }
    worker_effects_release(&said);
    effects_release(&effects);
    core_free(core);
    worker_core_free(worker);
    return heard;
}

static bool stopped(const struct worker_effects *effects)
{
    for (uint32_t i = 0; i < effects->n; i++)
        if (effects->items[i].kind == WORKER_STOPPED)
            return true;
    return false;
}

void copied_probe(struct world *w)
{
    uint64_t session = newest_session(&w->copy) + 1; /* that the copy calls its own */
    const struct node *node = NULL;
    for (int i = 0; i < WORKERS && w->copy.n; i++)
        if (w->nodes[i].session_counter >= session)
            node = &w->nodes[i];
    if (!node)
        return;
    for (int forget = 0; forget < 2; forget++) {
        bool refused;
        struct worker_effects heard = converse(w, node, forget, &refused);
        if (!forget && !refused)
            fail(w, "a coordinator on a copied directory admits worker %d, which knows another session %" PRIu64,
                 node->index, node->session_counter);
        if (!stopped(&heard))
            fail(w, "worker %d, of session %" PRIu64 ", works for a coordinator on a copied directory", node->index,
                 node->session_counter);
        worker_effects_release(&heard);
    }
    w->result->copies_refused++;
    memstore_release(&w->copy);
}
