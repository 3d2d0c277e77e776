/* Retraction: a record's text goes from the log, from every copy and from replay at once; then from the files of the
 * database (EFFECT_PURGE), and from the disks of the workers, of whom each that ever asked for work is remembered with how
 * far the erasures on its disk went. What was learnt stays learnt. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/internal.h"

enum { HOLDERS_MAX = MEMBERS_MAX /* beyond it the instance that was heard of longest ago is forgotten */ };

/* ---- who may hold text */

static void holder_put(struct core *core, size_t at)
{
    struct state_key key = key_hash('h', &core->holders[at].id);
    PUT(core, FAMILY_META, key, state_holder, &core->holders[at].h);
}

static void holder_add(struct core *core, const struct hash16 *id, const struct state_holder *h)
{
    GROW(core->holders, core->holders_n, core->holders_cap);
    map_put(&core->holder_by_id, id, core->holders_n);
    core->holders[core->holders_n++] = (struct holder){*id, *h};
}

bool retract_load(struct core *core, const struct hash16 *id, const struct state_holder *h)
{
    if (core->holders_n == HOLDERS_MAX)
        return false;
    holder_add(core, id, h);
    return true;
}

/* The last one moves to its place. Those that owe nothing go first. */
static void holder_forget_oldest(struct core *core)
{
    size_t oldest = 0;
    for (size_t i = 1; i < core->holders_n; i++) {
        const struct state_holder *a = &core->holders[i].h, *b = &core->holders[oldest].h;
        bool owes = a->applied < core->erase_seq, other_owes = b->applied < core->erase_seq;
        if (owes == other_owes ? a->seen_s < b->seen_s : !owes)
            oldest = i;
    }
    map_delete(&core->holder_by_id, &core->holders[oldest].id);
    delete_key(core, FAMILY_META, key_hash('h', &core->holders[oldest].id));
    core->holders[oldest] = core->holders[--core->holders_n];
    if (oldest < core->holders_n)
        map_put(&core->holder_by_id, &core->holders[oldest].id, oldest);
}

void retract_applied(struct core *core, const struct member *m)
{
    struct hash16 id = roster_id(core, &m->peer, m->instance);
    struct state_holder now = {.key = m->peer.key, .applied = m->exclusion_seq, .seen_s = core->wall_s};
    uint64_t at;
    memcpy(now.instance, m->instance, 16);
    if (now.applied > core->exclusions_n)
        now.applied = core->exclusions_n;
    if (!map_get(&core->holder_by_id, &id, &at)) {
        if (core->holders_n == HOLDERS_MAX)
            holder_forget_oldest(core);
        at = core->holders_n;
        holder_add(core, &id, &now);
    } else if (core->holders[at].h.applied >= core->erase_seq || now.applied <= core->holders[at].h.applied) {
        return; /* nothing that anybody waits for */
    }
    core->holders[at].h = now;
    holder_put(core, at);
}

uint32_t core_holders(const struct core *core, uint64_t seq, struct state_holder *out, uint32_t max)
{
    uint32_t n = 0;
    for (size_t i = 0; i < core->holders_n; i++)
        if (core->holders[i].h.applied < seq && n++ < max)
            out[n - 1] = core->holders[i].h;
    return n;
}

/* ---- the database's files */

static void ask_purge(struct core *core)
{
    add_effect(core, EFFECT_PURGE)->purge = core->counters.erasures; /* leaves when the deletion is durable */
}

void retract_start(struct core *core)
{
    if (core->counters.purged < core->counters.erasures)
        ask_purge(core);
}

void retract_purged(struct core *core, uint64_t erasures)
{
    if (erasures <= core->counters.purged || erasures > core->counters.erasures)
        return;
    core->counters.purged = erasures;
    core->counters_dirty = true;
}

/* ---- the operator's word */

static void retract_place(struct core *core, struct domain *d, const struct state_place *p)
{
    struct state_key from = key_stream('s', d->id, p->probe, p->first);
    struct state_key to = key_stream('s', d->id, p->probe, p->first + p->count);
    struct state_settled v = {p->count, SEG_RETRACTED, 0};
    if (p->probe) {
        domain_drop_windows(core, d, p->first, p->count);
        PUT(core, FAMILY_STREAM, key_stream('x', d->id, true, p->first), state_settled, &v);
    } else {
        domain_exclude(core, d, p->first, p->count, SEG_RETRACTED);
    }
    batch_delete_range(&core->batch, FAMILY_STREAM, from.b, from.len, to.b, to.len);
}

enum status retract(struct core *core, const struct event *event, struct buf *json, struct err *err)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    struct domain *d = domain_find(core, c->domain);
    struct state_id id;
    struct hash16 hash;
    const struct overlay *o;
    uint64_t segments = 0, before = core->exclusions_n;
    if (!d)
        return err_set(err, ST_NOT_FOUND, "no domain \"%.64s\"", c->domain);
    id_hash(&core->config.seed, d->id, (struct bytes){(const uint8_t *)c->record, strlen(c->record)}, &hash);
    if (overlay_find(core, true, &hash, &o))
        memcpy(&id, o->id, ID_BYTES(o->id));
    else if (!event->record_value.len)
        return err_set(err, ST_NOT_FOUND, "no record \"%.256s\" in domain %s", c->record, d->d.name.s);
    else if (!state_id_get(event->record_value, &id))
        return err_set(err, ST_CORRUPT, "what is stored about record \"%.256s\" does not parse", c->record);
    buf_printf(json, "{\"domain\":\"%s\",\"revisions\":%u,\"places\":[", d->d.name.s, id.revision);
    for (uint32_t i = 0; i < id.n; i++) {
        struct state_place *p = &id.places[i];
        retract_place(core, d, p);
        segments += p->count;
        buf_printf(json, "%s{\"part\":\"%s\",\"first\":%llu,\"count\":%u}", i ? "," : "", p->probe ? "probe" : "train",
                   (unsigned long long)p->first, p->count);
    }
    struct state_retraction r = {.number = ++core->counters.erasures,
                                 .exclusion_seq = core->exclusions_n > before ? core->exclusions_n : 0,
                                 .wall_s = core->wall_s,
                                 .key = event->peer.key};
    core->counters_dirty = true;
    buf_printf(json, "],\"segments\":%llu,\"exclusion_seq\":%llu,\"holders\":%u}", (unsigned long long)segments,
               (unsigned long long)r.exclusion_seq, core_holders(core, r.exclusion_seq, NULL, 0));
    if (id.live) {
        delete_key(core, FAMILY_DEDUPE, key_hash('c', &id.content));
        overlay_content(core, &id.content, false);
    }
    id.live = 0;
    PUT(core, FAMILY_DEDUPE, key_hash('i', &hash), state_id, &id);
    PUT(core, FAMILY_AUDIT, key_hash('r', &hash), state_retraction, &r);
    overlay_id(core, &hash, &id);
    planner_pending(core);
    ask_purge(core);
    lease_tell(core); /* who waits for work erases first */
    return ST_OK;
}
