/* What operators ask for, audited. A request with a token is carried out once; its retries get the first answer, a refusal
 * too: a copy that comes late must not do what the operator was told had not been done. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/internal.h"

enum status token_load(struct core *core, const struct state_token *t)
{
    if (core->tokens_n == TOKENS_KEPT)
        return ST_CORRUPT;
    core->tokens = xrealloc_array(core->tokens, TOKENS_KEPT, sizeof *core->tokens);
    struct token *slot = &core->tokens[core->tokens_n++];
    slot->t = *t;
    slot->reply = xcalloc(1, t->reply.len + 1);
    memcpy(slot->reply, t->reply.data, t->reply.len);
    if (t->order >= core->token_next)
        core->token_next = t->order + 1;
    return ST_OK;
}

static const char *token_find(const struct core *core, ProtobufCBinaryData token)
{
    for (size_t i = 0; i < core->tokens_n && token.len == 16; i++)
        if (!memcmp(core->tokens[i].t.token, token.data, 16))
            return core->tokens[i].reply;
    return NULL;
}

static void token_store(struct core *core, ProtobufCBinaryData token, struct buf *json)
{
    if (token.len != 16)
        return;
    struct state_token t = {.order = core->token_next, .reply = buf_bytes(json)};
    memcpy(t.token, token.data, 16);
    PUT(core, FAMILY_AUDIT, key_u16('t', (uint16_t)(t.order % TOKENS_KEPT)), state_token, &t);
    if (core->tokens_n == TOKENS_KEPT) { /* the oldest goes, on disk too: its slot was just written */
        size_t oldest = 0;
        for (size_t i = 1; i < core->tokens_n; i++)
            if (core->tokens[i].t.order < core->tokens[oldest].t.order)
                oldest = i;
        free(core->tokens[oldest].reply);
        core->tokens[oldest] = core->tokens[--core->tokens_n];
    }
    token_load(core, &t);
}

static void json_string(struct buf *out, const char *s)
{
    buf_put_u8(out, '"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_printf(out, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            buf_printf(out, "\\u%04x", *s);
        else
            buf_put_u8(out, (uint8_t)*s);
    }
    buf_put_u8(out, '"');
}

static void audit(struct core *core, const struct event *event)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    struct state_audit v = {.wall_s = core->wall_s, .key = event->peer.key, .verb = (uint32_t)c->verb};
    FORMAT(v.text, "number=%llu name=%.63s value=%.63s domain=%.63s record=%.255s keep=%d",
           (unsigned long long)c->number, c->name, c->value, c->domain, c->record, c->keep);
    PUT(core, FAMILY_AUDIT, key_u64('a', ++core->counters.audit), state_audit, &v);
    core->counters_dirty = true;
}

/* A domain that shows what is lost of what nobody trains: text kept aside, or text that the base itself wrote, on which the
 * loss gained is an unbiased estimate of KL(base || version). Compared with version 0 for ever. */
static enum status may_change_sentinel(const struct core *core, const struct domain *d, struct err *err)
{
    if (!d->id.v)
        return err_set(err, ST_USAGE, "%s is the anchor: it is replayed, so it cannot be a sentinel", d->d.name.s);
    if (d->d.train_next || d->d.probe_next)
        return err_set(err, ST_CONFLICT, "domain %s holds text: what is a sentinel is so from the first record on",
                       d->d.name.s);
    if (core->round.phase == ROUND_EVALUATING || core->round.phase == ROUND_AGGREGATING)
        return err_set(err, ST_AGAIN, "a round is being judged: change sentinel after it");
    if (!release_holds(core, 0))
        return err_set(err, ST_CONFLICT,
                       "the files of version 0 are gone (versions_kept = %u), and a sentinel is compared "
                       "with them: sentinels are set up while a line is young",
                       core->config.settings.versions_kept);
    return ST_OK;
}

static enum status domain_set_up(struct core *core, const Alv__Control *c, struct buf *json, struct err *err)
{
    struct domain *d = domain_find(core, c->domain);
    if (!c->name[0] && !d) {
        if (!name_valid(c->domain, strlen(c->domain)))
            return err_set(err, ST_USAGE, "\"%.64s\" is no name: a-z, 0-9 and ._- after the first, at most 63",
                           c->domain);
        if (core->n_domains == LIMIT_DOMAINS)
            return err_set(err, ST_LIMIT, "this line has %u domains, the most there may be", LIMIT_DOMAINS);
        if (core->round.phase == ROUND_EVALUATING || core->round.phase == ROUND_AGGREGATING)
            return err_set(err, ST_AGAIN, "a round is being judged: create the domain after it");
        d = domain_new(core, c->domain);
        d->d.reference = d->d.base = core->counters.version;
    }
    if (!d)
        return err_set(err, ST_NOT_FOUND, "no domain \"%.64s\"", c->domain);
    if (c->name[0]) {
        bool sentinel = !strcmp(c->name, "sentinel");
        enum status st = sentinel ? may_change_sentinel(core, d, err) : ST_OK;
        if (!st)
            st = domain_override(d, c->name, c->value, err);
        if (st)
            return st;
        if (sentinel)
            d->d.reference = d->d.base = d->settings.sentinel ? 0 : core->counters.version;
    }
    buf_printf(json, "{\"domain\":\"%s\",\"id\":%u}", d->d.name.s, d->id.v);
    return ST_OK;
}

static void quarantine_list(const struct core *core, struct buf *json)
{
    buf_printf(json, "{\"quarantine\":[");
    for (size_t i = 0; i < core->held_n && json->len < LIMIT_JSON_BYTES / 2; i++) {
        const struct held *h = &core->held[i];
        uint64_t segments = 0;
        for (uint32_t j = 0; j < h->q.n; j++)
            segments += h->q.ranges[j].count;
        buf_printf(json, "%s{\"id\":%llu,\"lease\":%llu,\"round\":%llu,\"since_s\":%llu,\"segments\":%llu,\"reason\":",
                   i ? "," : "", (unsigned long long)h->id, (unsigned long long)h->q.lease,
                   (unsigned long long)h->q.round, (unsigned long long)h->q.wall_s, (unsigned long long)segments);
        json_string(json, h->q.reason);
        buf_printf(json, "}");
    }
    buf_printf(json, "],\"total\":%zu}", core->held_n);
}

static enum status quarantine_end(struct core *core, uint64_t id, bool release, struct buf *json, struct err *err)
{
    size_t at = 0;
    uint64_t segments = 0;
    while (at < core->held_n && core->held[at].id != id)
        at++;
    if (at == core->held_n)
        return err_set(err, ST_NOT_FOUND, "nothing is held under %llu", (unsigned long long)id);
    struct state_quarantine *q = &core->held[at].q;
    enum status st = release ? release_repeat(core, q->ranges, q->n, false, &segments, err) : ST_OK;
    if (st)
        return st;
    delete_key(core, FAMILY_META, key_u64('q', id));
    state_quarantine_release(q);
    memmove(core->held + at, core->held + at + 1, (--core->held_n - at) * sizeof *core->held);
    buf_printf(json, "{\"id\":%llu,\"pending_again\":%llu}", (unsigned long long)id, (unsigned long long)segments);
    return ST_OK;
}

static enum status carry_out(struct core *core, const struct event *event, struct buf *json, struct err *err)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    enum status st = ST_OK;
    const struct alias *alias;
    uint64_t before;
    switch (c->verb) {
    case ALV__CONTROL_VERB__CONTROL_PROMOTE:
        alias = aliases_find(&core->aliases, c->name);
        before = alias ? alias->version : 0;
        if (!event->version || !event->version->files_held)
            return err_set(err, ST_NOT_FOUND, "version %llu is not here, or its files are no longer kept",
                           (unsigned long long)c->number);
        st = release_promote(core, c->name, c->number, c->has_expect ? &c->expect : NULL, err);
        buf_printf(json, "{\"version\":%llu,\"before\":%llu,\"aliases\":%llu}", (unsigned long long)c->number,
                   (unsigned long long)before, (unsigned long long)core->aliases.seq);
        return st;
    case ALV__CONTROL_VERB__CONTROL_MARK:
        st = release_mark(core, c->number, c->name, c->value, err);
        buf_printf(json, "{\"version\":%llu,\"mark\":\"%s\",\"aliases\":%llu}", (unsigned long long)c->number, c->name,
                   (unsigned long long)core->aliases.seq);
        return st;
    case ALV__CONTROL_VERB__CONTROL_ROLLBACK:
        st = release_rollback(core, event, err);
        buf_printf(json, "{\"version\":%llu}", (unsigned long long)core->counters.version);
        return st;
    case ALV__CONTROL_VERB__CONTROL_DOMAIN_SET:
        return domain_set_up(core, c, json, err);
    case ALV__CONTROL_VERB__CONTROL_RETRACT:
        return retract(core, event, json, err);
    case ALV__CONTROL_VERB__CONTROL_QUARANTINE_RELEASE:
    case ALV__CONTROL_VERB__CONTROL_QUARANTINE_DROP:
        return quarantine_end(core, c->number, c->verb == ALV__CONTROL_VERB__CONTROL_QUARANTINE_RELEASE, json, err);
    case ALV__CONTROL_VERB__CONTROL_RESUME:
        core->counters.stopped = false;
        core->counters.refusals = 0;
        core->counters.alarm[0] = core->refused_alarm[0] = 0;
        core->counters_dirty = true;
        core->rest_until = 0;
        buf_printf(json, "{}");
        return ST_OK;
    case ALV__CONTROL_VERB__CONTROL_ROUND:
        core->round_wanted = core->pending_since != NEVER && core->round.phase == ROUND_NONE;
        buf_printf(json, "{\"asked\":%s}", core->round_wanted ? "true" : "false");
        return ST_OK;
    default:
        return err_set(err, ST_UNSUPPORTED, "control verb %d is not carried out here", (int)c->verb);
    }
}

static void answer(struct core *core, const struct event *event, const char *json)
{
    Alv__ControlReply *out = new_message(&alv__control_reply__descriptor);
    out->json = xstrdup(json);
    reply(core, &event->peer, event->request, VERB_CONTROL_REPLY, out);
}

enum { REFUSED = '!' }; /* begins a kept refusal, "!status text"; no JSON does */

static void answer_again(struct core *core, const struct event *event, const char *before)
{
    char *text;
    if (before[0] != REFUSED) {
        answer(core, event, before);
        return;
    }
    long status = strtol(before + 1, &text, 10);
    refuse(core, event, (enum status)status, 0, "%s", *text ? text + 1 : text);
}

static void refuse_for_good(struct core *core, const struct event *event, enum status status, const char *text)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    struct buf kept = {0};
    buf_printf(&kept, "%c%d %s", REFUSED, (int)status, text);
    token_store(core, c->token, &kept);
    buf_release(&kept);
    refuse(core, event, status, 0, "%s", text);
}

void control(struct core *core, const struct event *event, struct member *m)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    const char *before = token_find(core, c->token);
    struct buf json = {0};
    struct err err = {0};
    (void)m;
    if (before) {
        answer_again(core, event, before);
    } else if (c->verb == ALV__CONTROL_VERB__CONTROL_QUARANTINE_LIST) {
        quarantine_list(core, &json);
        answer(core, event, buf_cstr(&json));
    } else {
        enum status st = carry_out(core, event, &json, &err);
        if (st == ST_AGAIN) {
            refuse(core, event, st, RETRY_MS, "%s", err.text);
        } else if (st) {
            refuse_for_good(core, event, st, err.text);
        } else {
            audit(core, event);
            token_store(core, c->token, &json);
            answer(core, event, buf_cstr(&json));
        }
    }
    buf_release(&json);
}
