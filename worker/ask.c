/* Effects, and requests until they are answered. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/frame.h"
#include "proto/record.h"
#include "worker/internal.h"

enum { WAIT_MS = 250 /* first wait between attempts; doubles */ };

void ask_text(char *out, size_t size, const char *text)
{
    size_t len = strlen(text);
    len = utf8_prefix(text, len < size ? len : size - 1);
    memcpy(out, text, len);
    out[len] = 0;
}

/* ---- effects */

void *message_clone(const void *message)
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

void message_drop(void *message)
{
    if (message)
        protobuf_c_message_free_unpacked(message, NULL);
}

void worker_effects_clear(struct worker_effects *effects)
{
    for (uint32_t i = 0; i < effects->n; i++)
        message_drop(effects->items[i].message);
    effects->n = 0;
}

void worker_effects_release(struct worker_effects *effects)
{
    worker_effects_clear(effects);
    free(effects->items);
    *effects = (struct worker_effects){0};
}

struct worker_effect *ask_effect(struct worker_core *core, struct worker_effects *out, enum worker_effect_kind kind,
                                 const void *message)
{
    if (out->n == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 8;
        out->items = xrealloc_array(out->items, out->cap, sizeof *out->items);
    }
    struct worker_effect *e = &out->items[out->n++];
    *e = (struct worker_effect){.kind = kind, .job = core->job, .message = message ? message_clone(message) : NULL};
    return e;
}

void ask_end(struct worker_core *core, enum slot slot)
{
    message_drop(core->calls[slot].message);
    core->calls[slot] = (struct call){0};
}

void ask_stop(struct worker_core *core, struct worker_effects *out, enum status status, const char *text)
{
    for (enum slot slot = 0; slot < SLOTS; slot++)
        ask_end(core, slot);
    core->phase = PHASE_STOPPED;
    struct worker_effect *e = ask_effect(core, out, WORKER_STOPPED, NULL);
    e->stopped.status = status;
    ask_text(e->stopped.text, sizeof e->stopped.text, text);
}

/* ---- asking */

uint64_t ask_pause_ms(struct worker_core *core, uint32_t tries)
{
    uint64_t ms = (uint64_t)WAIT_MS << (tries < 16 ? tries : 16);
    if (ms > core->config.wait_ms_max)
        ms = core->config.wait_ms_max;
    return ms / 2 + rng_below(&core->rng, ms / 2 + 1);
}

void ask_at(struct worker_core *core, enum slot slot, uint16_t verb, const void *message, uint64_t due)
{
    ask_end(core, slot);
    core->calls[slot] =
        (struct call){.message = message_clone(message), .verb = verb, .id = core->next_request++, .due = due};
}

void ask(struct worker_core *core, enum slot slot, uint16_t verb, const void *message)
{
    ask_at(core, slot, verb, message, core->now);
}

void ask_again(struct worker_core *core, struct call *call, uint64_t delay_ms)
{
    call->id = core->next_request++;
    call->due = core->now + delay_ms;
    call->tries = 0;
}

void ask_hello(struct worker_core *core)
{
    Alv__Hello hello = ALV__HELLO__INIT;
    struct digest card;
    card_digest_trained(&core->config.card, &card);
    hello.protocol_min = PROTOCOL_MIN;
    hello.protocol_max = PROTOCOL_VERSION;
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

bool ask_sendable(const struct worker_core *core, enum slot slot)
{
    return core->calls[slot].message && core->up && (slot == SLOT_HELLO || core->greeted);
}

void ask_send(struct worker_core *core, struct worker_effects *out)
{
    for (enum slot slot = 0; slot < SLOTS; slot++) {
        struct call *call = &core->calls[slot];
        if (!ask_sendable(core, slot) || call->due > core->now)
            continue;
        struct worker_effect *e = ask_effect(core, out, WORKER_SEND, call->message);
        e->send.verb = call->verb;
        e->send.request = call->id;
        uint64_t silence = core->config.request_ms;
        if (call->verb == VERB_TASK_REQUEST) {
            silence += core->config.poll_ms;
            core->asked_at = core->now;
        }
        call->due = core->now + silence + (call->tries ? ask_pause_ms(core, call->tries) : 0);
        call->tries++;
    }
}

bool ask_for_later(enum status status)
{
    return status == ST_AGAIN || status == ST_TIMEOUT || status == ST_NO_SPACE || status == ST_IO ||
           status == ST_INTERNAL || status == ST_EMPTY;
}
