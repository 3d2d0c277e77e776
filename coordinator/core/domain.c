/* Segments and their states. What is at or above the watermark is in memory, one slot each; what is below is on disk. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"

bool state_terminal(enum segment_state state)
{
    return state >= SEG_DONE;
}

struct domain *domain_new(struct core *core, const char *name)
{
    CHECK(core->n_domains < LIMIT_DOMAINS);
    struct domain *d = xcalloc(1, sizeof *d);
    d->id.v = (uint16_t)core->n_domains;
    d->settings = core->config.settings;
    d->dirty = true;
    CHECK(name_set(&d->d.name, name, strlen(name)));
    core->domains[core->n_domains++] = d;
    return d;
}

struct domain *domain_find(const struct core *core, const char *name)
{
    for (uint32_t i = 0; i < core->n_domains; i++)
        if (!strcmp(core->domains[i]->d.name.s, name))
            return core->domains[i];
    return NULL;
}

void domain_free(struct domain *d)
{
    if (!d)
        return;
    free(d->slots);
    free(d->appended);
    free(d->settled);
    free(d->windows);
    free(d->links);
    free(d->by_source);
    free(d);
}

enum status domain_override(struct domain *d, const char *name, const char *value, struct err *err)
{
    if (!settings_for_domain(name))
        return err_set(err, ST_CONFIG, "\"%.64s\" is no setting of a domain", name);
    struct settings next = d->settings;
    enum status st = settings_set(&next, name, value, err);
    if (!st)
        st = settings_check(&next, err);
    if (st)
        return st;
    uint32_t i = 0;
    while (i < d->d.n_overrides && strcmp(d->d.overrides[i].name, name))
        i++;
    if (i == OVERRIDES_MAX || strlen(value) >= sizeof d->d.overrides[0].value)
        return err_set(err, ST_LIMIT, "%s: value too long, or too many settings of this domain", name);
    if (i == d->d.n_overrides)
        d->d.n_overrides++;
    text_copy(d->d.overrides[i].name, sizeof d->d.overrides[i].name, name);
    text_copy(d->d.overrides[i].value, sizeof d->d.overrides[i].value, value);
    d->settings = next;
    d->dirty = true;
    return ST_OK;
}

struct slot *domain_slot(const struct domain *d, uint64_t offset)
{
    if (offset < d->d.watermark || offset - d->d.watermark >= d->n)
        return NULL;
    return &d->slots[d->head + (offset - d->d.watermark)];
}

static struct slot *add_slot(struct domain *d, uint16_t bytes)
{
    if (d->head + d->n == d->cap) {
        if (d->head > d->cap / 2) {
            memmove(d->slots, d->slots + d->head, d->n * sizeof *d->slots);
            d->head = 0;
        } else {
            d->cap = d->cap ? 2 * d->cap : 64;
            d->slots = xrealloc_array(d->slots, d->cap, sizeof *d->slots);
        }
    }
    struct slot *slot = &d->slots[d->head + d->n++];
    *slot = (struct slot){.bytes = bytes, .state = SEG_PENDING};
    d->count[SEG_PENDING]++;
    d->bytes[SEG_PENDING] += bytes;
    return slot;
}

static void add_appended(struct domain *d, uint64_t first, uint64_t wall_s, uint32_t count)
{
    if (d->appended_head > 64 && 2 * d->appended_head > d->appended_n) {
        d->appended_n -= d->appended_head;
        memmove(d->appended, d->appended + d->appended_head, d->appended_n * sizeof *d->appended);
        d->appended_head = 0;
    }
    GROW(d->appended, d->appended_n, d->appended_cap);
    d->appended[d->appended_n++] = (struct appended){first, wall_s, count};
}

void domain_load_slots(struct domain *d, uint64_t first, uint64_t wall_s, struct bytes sizes, uint32_t count)
{
    add_appended(d, first, wall_s, count);
    for (uint32_t i = 0; i < count; i++)
        if (first + i >= d->d.watermark)
            add_slot(d, (uint16_t)(sizes.data[2 * i] | sizes.data[2 * i + 1] << 8));
}

uint64_t domain_append(struct core *core, struct domain *d, const uint16_t *sizes, uint32_t count)
{
    uint64_t first = d->d.train_next;
    struct buf list = {0};
    for (uint32_t i = 0; i < count; i++) {
        buf_put_u16(&list, sizes[i]);
        add_slot(d, sizes[i]);
        d->d.train_bytes += sizes[i];
    }
    struct state_sizes v = {.wall_s = core->wall_s, .count = count, .sizes = buf_bytes(&list)};
    PUT(core, FAMILY_STREAM, key_domain('z', d->id, first), state_sizes, &v);
    buf_release(&list);
    add_appended(d, first, core->wall_s, count);
    d->d.train_next += count;
    d->dirty = true;
    return first;
}

/* One run of equal outcome. */
static void set_run(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state,
                    uint64_t ref)
{
    for (uint32_t i = 0; i < count; i++) {
        struct slot *slot = domain_slot(d, first + i);
        CHECK(slot && !state_terminal(slot->state)); /* every segment counts once */
        d->count[slot->state]--;
        d->bytes[slot->state] -= slot->bytes;
        slot->state = (uint8_t)state;
        d->count[state]++;
        d->bytes[state] += slot->bytes;
    }
    if (state == SEG_PENDING && first < d->hint)
        d->hint = first;
    if (!state_terminal(state))
        return;
    GROW(d->settled, d->settled_n, d->settled_cap);
    struct settled_range *r = &d->settled[d->settled_n++];
    *r = (struct settled_range){first, {count, (uint8_t)state, ref}};
    PUT(core, FAMILY_STREAM, key_domain('t', d->id, first), state_settled, &r->s);
    d->d.settled[state] += count;
    d->dirty = true;
}

/* A state that came after the segment was settled. One entry a segment: a later one (superseded, then retracted) replaces
 * it exactly, however the two ranges overlap. */
static void relabel(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state,
                    uint64_t ref)
{
    struct state_settled v = {1, (uint8_t)state, ref};
    for (uint32_t i = 0; i < count; i++)
        PUT(core, FAMILY_STREAM, key_stream('x', d->id, false, first + i), state_settled, &v);
    d->d.relabelled += count;
    d->dirty = true;
}

void domain_set(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state,
                uint64_t ref)
{
    for (uint32_t i = 0, run; i < count; i += run) {
        uint8_t excluded = domain_slot(d, first + i)->excluded;
        for (run = 1; i + run < count && domain_slot(d, first + i + run)->excluded == excluded; run++)
            ;
        if (excluded && (state == SEG_PENDING || state == SEG_QUARANTINED)) /* nothing to give back or to hold */
            set_run(core, d, first + i, run, excluded, 0);                  /* its exclusion is in the log already */
        else
            set_run(core, d, first + i, run, state, ref);
        if (excluded && state == SEG_DONE)
            relabel(core, d, first + i, run, excluded, 0);
    }
    domain_settle(core, d);
}

void domain_settle(struct core *core, struct domain *d)
{
    uint64_t before = d->d.watermark;
    while (d->n && state_terminal(d->slots[d->head].state)) {
        struct slot *slot = &d->slots[d->head];
        d->count[slot->state]--;
        d->bytes[slot->state] -= slot->bytes;
        d->d.settled_bytes += slot->bytes;
        d->d.watermark++;
        d->head++, d->n--;
    }
    if (d->d.watermark == before)
        return;
    d->dirty = true;
    if (d->hint < d->d.watermark)
        d->hint = d->d.watermark;
    size_t kept = 0;
    for (size_t i = 0; i < d->settled_n; i++) { /* a range is settled as a whole: it never straddles the watermark */
        struct settled_range *r = &d->settled[i];
        if (r->first >= d->d.watermark) {
            d->settled[kept++] = *r;
            continue;
        }
        delete_key(core, FAMILY_STREAM, key_domain('t', d->id, r->first));
        PUT(core, FAMILY_STREAM, key_domain('T', d->id, r->first), state_settled, &r->s);
    }
    d->settled_n = kept;
    for (; d->appended_head < d->appended_n; d->appended_head++) {
        struct appended *a = &d->appended[d->appended_head];
        if (a->first + a->count > d->d.watermark)
            break;
        delete_key(core, FAMILY_STREAM, key_domain('z', d->id, a->first));
    }
}

uint64_t exclusion_add(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state)
{
    struct state_exclusion v = {d->id, first, count, d->d.watermark, (uint8_t)state};
    GROW(core->exclusions, core->exclusions_n, core->exclusions_cap);
    core->exclusions[core->exclusions_n++] =
        (struct state_exclusion_packed){first, v.watermark, count, d->id.v, (uint8_t)state};
    core->counters.exclusion = core->exclusions_n;
    core->erase_seq = state == SEG_RETRACTED ? core->exclusions_n : core->erase_seq;
    core->counters_dirty = true;
    PUT(core, FAMILY_META, key_u64('e', core->exclusions_n), state_exclusion, &v);
    return core->exclusions_n;
}

/* The part of a range that is one kind of thing: below the watermark, pending, leased, or terminal above it. */
static void exclude_run(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state,
                        uint64_t seq)
{
    struct slot *slot = domain_slot(d, first);
    if (slot && slot->state == SEG_PENDING) {
        set_run(core, d, first, count, state, seq);
        return;
    }
    if (slot && !state_terminal(slot->state)) {
        for (uint32_t i = 0; i < count; i++)
            domain_slot(d, first + i)->excluded = (uint8_t)state;
        return;
    }
    relabel(core, d, first, count, state, seq);
}

static int kind_at(const struct domain *d, uint64_t offset)
{
    const struct slot *slot = domain_slot(d, offset);
    return !slot || state_terminal(slot->state) ? 0 : slot->state == SEG_PENDING ? 1 : 2;
}

static void exclude_here(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state)
{
    uint64_t seq = exclusion_add(core, d, first, count, state);
    for (uint32_t i = 0, run; i < count; i += run) {
        int kind = kind_at(d, first + i);
        for (run = 1; i + run < count && kind_at(d, first + i + run) == kind; run++)
            ;
        exclude_run(core, d, first + i, run, state, seq);
    }
}

/* Place in by_source of the first link whose source ends behind `offset`. */
static size_t first_link(const struct domain *d, uint64_t offset)
{
    size_t low = 0, high = d->links_n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct state_link *l = &d->links[d->by_source[mid]].l;
        if (l->source + l->count <= offset)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

void domain_add_link(struct domain *d, const struct link *link)
{
    size_t at = first_link(d, link->l.source);
    GROW(d->links, d->links_n, d->links_cap);
    if (d->by_source_cap < d->links_cap)
        d->by_source = xrealloc_array(d->by_source, d->by_source_cap = d->links_cap, sizeof *d->by_source);
    memmove(d->by_source + at + 1, d->by_source + at, (d->links_n - at) * sizeof *d->by_source);
    d->by_source[at] = (uint32_t)d->links_n;
    d->links[d->links_n++] = *link;
}

void domain_exclude(struct core *core, struct domain *d, uint64_t first, uint32_t count, enum segment_state state)
{
    exclude_here(core, d, first, count, state);
    for (size_t i = first_link(d, first); i < d->links_n; i++) { /* a link's source is lower than itself: this ends */
        struct link l = d->links[d->by_source[i]];
        uint64_t from = first > l.l.source ? first : l.l.source;
        uint64_t to = first + count < l.l.source + l.l.count ? first + count : l.l.source + l.l.count;
        core->scanned++;
        if (from >= to)
            break;
        domain_exclude(core, d, l.first + (from - l.l.source), (uint32_t)(to - from), state);
    }
    domain_settle(core, d);
}

void domain_repeat(struct core *core, struct domain *d, uint64_t first, uint32_t count, bool supersede)
{
    uint64_t mean = d->d.train_next ? d->d.train_bytes / d->d.train_next : 1;
    uint16_t *sizes = xcalloc(count, sizeof *sizes);
    for (uint32_t i = 0; i < count; i++)
        sizes[i] = (uint16_t)(mean ? mean : 1); /* for balance only: the true sizes are history */
    struct link link = {d->d.train_next, {first, count}};
    if (supersede)
        exclude_here(core, d, first, count, SEG_SUPERSEDED);
    domain_append(core, d, sizes, count);
    free(sizes);
    domain_add_link(d, &link);
    PUT(core, FAMILY_META, key_domain('k', d->id, link.first), state_link, &link.l);
    domain_settle(core, d);
}

/* ---- the probe */

static uint32_t part_most(const struct domain *d, enum probe_part part)
{
    const struct settings *s = &d->settings;
    return part == PART_GATE ? s->probe_gate : part == PART_TUNING ? s->probe_tuning : s->probe_audit;
}

static void count_window(struct domain *d, const struct window *w, uint32_t by)
{
    *(w->waiting ? &d->waiting_n[w->part] : &d->part_n[w->part]) += by;
}

static uint64_t window_key(const struct core *core, struct domain_id domain, uint64_t offset)
{
    uint8_t b[10] = {(uint8_t)domain.v, (uint8_t)(domain.v >> 8)};
    memcpy(b + 2, &offset, 8);
    return hash_sip(&core->config.seed, b, sizeof b);
}

void domain_load_window(const struct core *core, struct domain *d, uint64_t offset, const struct state_windows *v)
{
    GROW(d->windows, d->windows_n, d->windows_cap);
    d->windows[d->windows_n] = (struct window){offset, window_key(core, d->id, offset), v->part, v->waiting};
    count_window(d, &d->windows[d->windows_n++], 1);
}

static void put_window(struct core *core, const struct domain *d, const struct window *w)
{
    struct state_windows v = {1, w->part, w->waiting};
    PUT(core, FAMILY_STREAM, key_domain('w', d->id, w->offset), state_windows, &v);
}

static void remove_window(struct core *core, struct domain *d, size_t at)
{
    count_window(d, &d->windows[at], UINT32_MAX); /* one less */
    delete_key(core, FAMILY_STREAM, key_domain('w', d->id, d->windows[at].offset));
    d->windows_n--;
    memmove(d->windows + at, d->windows + at + 1, (d->windows_n - at) * sizeof *d->windows);
}

void domain_hold_out(struct core *core, struct domain *d, uint64_t offset, enum probe_part part)
{
    uint64_t key = window_key(core, d->id, offset);
    if (part == PART_RESERVE || !part_most(d, part))
        return;
    while (d->waiting_n[part] >= part_most(d, part)) {
        size_t last = SIZE_MAX;
        for (size_t i = 0; i < d->windows_n; i++)
            if (d->windows[i].waiting && d->windows[i].part == part &&
                (last == SIZE_MAX || d->windows[i].key > d->windows[last].key))
                last = i;
        if (key > d->windows[last].key)
            return;
        remove_window(core, d, last);
    }
    struct state_windows v = {1, (uint8_t)part, 1};
    domain_load_window(core, d, offset, &v);
    put_window(core, d, &d->windows[d->windows_n - 1]);
}

void domain_freeze_probe(struct core *core, struct domain *d)
{
    bool any = false;
    for (size_t i = 0; i < d->windows_n; i++) {
        struct window *w = &d->windows[i];
        if (!w->waiting || d->part_n[w->part] >= part_most(d, w->part))
            continue;
        count_window(d, w, UINT32_MAX);
        w->waiting = false;
        count_window(d, w, 1);
        put_window(core, d, w);
        any = true;
    }
    d->d.probe_set += any;
    d->dirty |= any;
}

void domain_drop_windows(struct core *core, struct domain *d, uint64_t first, uint32_t count)
{
    for (size_t i = d->windows_n; i-- > 0;)
        if (d->windows[i].offset >= first && d->windows[i].offset - first < count)
            remove_window(core, d, i);
    evaluate_drop(core, d->id, first, count);
}

uint64_t domain_tokens(const struct core *core, const struct domain *d, uint64_t bytes)
{
    double per_byte = d->d.bytes_seen ? (double)d->d.tokens_seen / (double)d->d.bytes_seen
                                      : core->config.settings.base_tokens_per_kb / 1024.0;
    return (uint64_t)((double)bytes * per_byte);
}

uint64_t domain_age_ms(const struct core *core, const struct domain *d)
{
    if (d->appended_head == d->appended_n)
        return 0;
    uint64_t since = d->appended[d->appended_head].wall_s;
    return core->wall_s > since ? (core->wall_s - since) * 1000 : 0;
}
