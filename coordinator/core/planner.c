/* When a round opens, and what each of its leases holds.
 *
 * Every lease is a stratified slice: of each domain that has pending text it gets a share of equal bytes, so that workers
 * see the same mixture and nobody tokenises here. Segments are taken in the order of their offsets, so that nothing waits
 * for ever and the watermark moves. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/internal.h"

static bool fresh(const struct domain *d)
{
    return d->id.v && d->count[SEG_PENDING];
}

void planner_pending(struct core *core)
{
    bool any = false;
    for (uint32_t i = 0; i < core->n_domains && !any; i++)
        any = fresh(core->domains[i]);
    if (!any)
        core->pending_since = NEVER;
    else if (core->pending_since == NEVER)
        core->pending_since = core->now;
}

struct plan {
    uint32_t n;          /* leases */
    double part;         /* of all pending text that is taken */
    uint32_t ranges_max; /* per lease and domain */
};

static uint64_t isqrt(uint64_t v)
{
    uint64_t r = (uint64_t)sqrt((double)v);
    while (r && r * r > v)
        r--;
    while ((r + 1) * (r + 1) <= v)
        r++;
    return r;
}

/* What the round's leases share: the view of each domain's history. Weights go with the square root of its tokens; none is
 * below a twentieth of an equal share. */
void planner_view(struct core *core)
{
    uint64_t sum = 0, n = 0;
    struct state_round *r = &core->round;
    r->n_domains = core->n_domains;
    r->exclusion_seq = core->exclusions_n;
    for (uint32_t i = 0; i < core->n_domains; i++) {
        struct domain *d = core->domains[i];
        uint64_t weight = i ? isqrt(domain_tokens(core, d, d->d.settled_bytes)) : 0;
        r->domains[i].watermark = d->d.watermark;
        r->domains[i].weight = weight < UINT32_MAX ? (uint32_t)weight : UINT32_MAX;
        sum += r->domains[i].weight;
        n += r->domains[i].weight > 0;
    }
    for (uint32_t i = 1; i < core->n_domains && n; i++) {
        uint64_t floor_weight = sum / (20 * n) ? sum / (20 * n) : 1;
        if (r->domains[i].watermark && r->domains[i].weight < floor_weight)
            r->domains[i].weight = (uint32_t)floor_weight;
    }
}

void planner_add_segment(struct lease *l, struct domain_id domain, uint64_t offset, uint32_t *cap)
{
    struct range *last = l->s.n_ranges ? &l->s.ranges[l->s.n_ranges - 1] : NULL;
    if (last && last->domain.v == domain.v && last->first + last->count == offset) {
        last->count++;
        return;
    }
    if (l->s.n_ranges == *cap) {
        *cap = *cap ? 2 * *cap : 8;
        l->s.ranges = xrealloc_array(l->s.ranges, *cap, sizeof *l->s.ranges);
    }
    l->s.ranges[l->s.n_ranges++] = (struct range){domain, offset, 1};
}

/* Deals one domain's share out to the leases: contiguous slices of equal bytes. */
static void slice_domain(struct core *core, struct domain *d, const struct plan *plan, struct lease **leases,
                         uint32_t *caps)
{
    double want = plan->part * (double)d->bytes[SEG_PENDING], taken = 0;
    uint64_t offset = d->hint, end = d->d.watermark + d->n;
    uint32_t n_ranges = 0, index = 0;
    uint64_t last = NEVER;
    for (; offset < end; offset++) {
        struct slot *slot = domain_slot(d, offset);
        if (!slot || slot->state != SEG_PENDING)
            continue;
        if (taken >= want)
            break;
        uint32_t next = (uint32_t)(taken * plan->n / want);
        next = next < plan->n ? next : plan->n - 1;
        n_ranges = next != index ? 1 : n_ranges + (last + 1 != offset);
        index = next;
        if (n_ranges > plan->ranges_max) /* scattered text: the rest of this slice waits for another round */
            continue;
        planner_add_segment(leases[index], d->id, offset, &caps[index]);
        leases[index]->s.tokens += domain_tokens(core, d, slot->bytes);
        last = offset;
        taken += slot->bytes;
    }
}

void planner_add_lease(struct core *core, struct lease *l)
{
    uint8_t id[8];
    l->s.id = ++core->counters.lease;
    core->counters_dirty = true;
    l->s.round = core->round.number;
    l->s.exclusion_seq = core->round.exclusion_seq;
    for (unsigned j = 0; j < 8; j++)
        id[j] = (uint8_t)(l->s.id >> (8 * j));
    l->s.seed = hash_sip(&core->config.seed, id, sizeof id);
    core->leases[core->n_leases++] = l;
    core->n_open++;
    lease_store(core, l);
    for (uint32_t j = 0; j < l->s.n_ranges; j++) {
        struct range r = l->s.ranges[j];
        domain_set(core, core->domains[r.domain.v], r.first, r.count, SEG_LEASED, 0);
    }
}

static void add_leases(struct core *core, struct lease **leases, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (leases[i]->s.n_ranges)
            planner_add_lease(core, leases[i]);
        else
            free(leases[i]);
    core->round.n_leases = core->n_leases;
}

static void open_round(struct core *core, const struct plan *plan)
{
    struct lease **leases = xcalloc(plan->n, sizeof(struct lease *));
    uint32_t *caps = xcalloc(plan->n, sizeof *caps);
    for (uint32_t i = 0; i < plan->n; i++)
        leases[i] = xcalloc(1, sizeof **leases);
    core->round = (struct state_round){.number = ++core->counters.round,
                                       .phase = ROUND_OPEN,
                                       .parent = core->counters.version,
                                       .opened_s = core->wall_s};
    core->counters_dirty = true;
    core->round_granted_ms = core->quorum_ms = NEVER;
    core->round_wanted = false;
    planner_view(core);
    for (uint32_t i = 0; i < core->n_domains; i++)
        domain_freeze_probe(core, core->domains[i]);
    for (uint32_t i = 1; i < core->n_domains; i++)
        if (fresh(core->domains[i]))
            slice_domain(core, core->domains[i], plan, leases, caps);
    add_leases(core, leases, plan->n);
    round_store(core);
    for (uint32_t i = 1; i < core->n_domains; i++) { /* what was taken need not be looked at again */
        struct domain *d = core->domains[i];
        struct slot *slot;
        while ((slot = domain_slot(d, d->hint)) && slot->state != SEG_PENDING)
            d->hint++;
    }
    core->pending_since = NEVER;
    planner_pending(core);
    free(leases);
    free(caps);
}

uint32_t planner_ranges(uint32_t n_leases)
{
    uint32_t share = MANIFEST_RANGES_MAX / (n_leases ? n_leases : 1);
    return share < LIMIT_LEASE_RANGES ? share : LIMIT_LEASE_RANGES;
}

void planner_open_round(struct core *core)
{
    const struct settings *s = &core->config.settings;
    if (core->round.phase != ROUND_NONE || core->counters.stopped || core->disk_low || !core->waiting_n[PLANE_WORK] ||
        core->pending_since == NEVER || core->rest_until > core->now || core->gather_until > core->now ||
        core->held_n >= QUARANTINES_MAX)
        return;
    uint64_t tokens = 0, segments = 0;
    uint32_t n_fresh = 0;
    for (uint32_t i = 1; i < core->n_domains; i++)
        if (fresh(core->domains[i])) {
            tokens += domain_tokens(core, core->domains[i], core->domains[i]->bytes[SEG_PENDING]);
            segments += core->domains[i]->count[SEG_PENDING];
            n_fresh++;
        }
    double share = (1000 - s->anchor_permille - s->history_permille) / 1000.0;
    double least = share * s->step_tokens * s->lease_steps_min, most = share * s->step_tokens * s->lease_steps_max;
    bool full = (double)tokens >= least;
    if (!full && !core->round_wanted && core->now < core->pending_since + s->round_wait_ms) {
        wake(core, core->pending_since + s->round_wait_ms);
        return;
    }
    uint32_t workers = roster_workers(core);
    double n = full ? (double)tokens / least : 1;
    n = n > workers ? workers : n;
    n = n > ROUND_LEASES_MAX ? ROUND_LEASES_MAX : n < 1 ? 1 : n;
    struct plan plan = {.n = (uint32_t)n, .part = 1};
    if ((double)tokens > plan.n * most)
        plan.part = plan.n * most / (double)tokens;
    double segments_most = 0.9 * plan.n * LIMIT_LEASE_SEGMENTS;
    if ((double)segments * plan.part > segments_most)
        plan.part = segments_most / (double)segments;
    uint32_t ranges = planner_ranges(plan.n);
    plan.ranges_max = ranges / n_fresh ? ranges / n_fresh : 1;
    open_round(core, &plan);
}
