/* A round was refused with the full step and with half of it: whose data is it?
 *
 * The same text is learnt again in leases of one domain each, with twice the replay and half the rate, and each delta is
 * judged alone on all probes. A lease is to blame when the lower bound of some domain's forgetting is over its budget, at
 * the round's error rate divided by the leases; its data is held. The others' deltas together are the round's last
 * candidate. When every lease is to blame, and there are several, it is not the data: nothing is held, the round is refused. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"

enum {
    SUSPECTS_MAX = 32, /* leases of a diagnosis, unless more are needed to hold the text: each costs an evaluation */
    SHARES_MAX_PERMILLE = 900, /* anchor and history together, doubled */
};

_Static_assert(SUSPECTS_MAX + LIMIT_DOMAINS <= ROUND_LEASES_MAX, "a diagnosis fits a round");

static uint32_t doubled(uint32_t permille, uint32_t both)
{
    return 2 * both <= SHARES_MAX_PERMILLE ? 2 * permille : permille * SHARES_MAX_PERMILLE / both;
}

void diagnose_settings(const struct core *core, Alv__TrainConfig *t)
{
    uint32_t both = core->config.settings.anchor_permille + core->config.settings.history_permille;
    t->anchor_permille = doubled(t->anchor_permille, both);
    t->history_permille = doubled(t->history_permille, both);
    t->lr /= 2;
}

/* ---- dealing the text out again */

struct deal {
    struct lease *lease; /* being filled; of one domain */
    uint32_t cap, ranges_max, leases_max;
    uint64_t tokens, segments; /* in it; ... */
    uint64_t tokens_wanted;    /* after which another is begun */
};

static void close_lease(struct core *core, struct deal *deal)
{
    if (deal->lease)
        planner_add_lease(core, deal->lease);
    deal->lease = NULL;
}

static void deal_segment(struct core *core, struct deal *deal, struct domain *d, uint64_t offset)
{
    struct slot *slot = domain_slot(d, offset);
    struct lease *l = deal->lease;
    bool follows =
        l && l->s.n_ranges && l->s.ranges[l->s.n_ranges - 1].first + l->s.ranges[l->s.n_ranges - 1].count == offset;
    if (l && (l->s.ranges[0].domain.v != d->id.v || deal->tokens >= deal->tokens_wanted ||
              deal->segments == LIMIT_LEASE_SEGMENTS || (!follows && l->s.n_ranges == deal->ranges_max)))
        close_lease(core, deal);
    if (!deal->lease) {
        if (core->n_leases == deal->leases_max) { /* waits for another round */
            domain_set(core, d, offset, 1, SEG_PENDING, 0);
            return;
        }
        deal->lease = xcalloc(1, sizeof *deal->lease);
        deal->cap = 0, deal->tokens = deal->segments = 0;
    }
    uint64_t tokens = domain_tokens(core, d, slot->bytes);
    planner_add_segment(deal->lease, d->id, offset, &deal->cap);
    deal->lease->s.tokens += tokens;
    deal->tokens += tokens;
    deal->segments++;
}

static int by_place(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    if (x->domain.v != y->domain.v)
        return x->domain.v < y->domain.v ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static struct range *all_ranges(const struct core *core, uint32_t *n, uint64_t *tokens)
{
    *n = 0, *tokens = 0;
    for (uint32_t i = 0; i < core->n_leases; i++) {
        *n += core->leases[i]->s.n_ranges;
        *tokens += core->leases[i]->s.tokens;
    }
    struct range *all = xcalloc(*n + 1, sizeof *all);
    *n = 0;
    for (uint32_t i = 0; i < core->n_leases; i++)
        for (uint32_t j = 0; j < core->leases[i]->s.n_ranges; j++)
            all[(*n)++] = core->leases[i]->s.ranges[j];
    if (*n)
        qsort(all, *n, sizeof *all, by_place);
    return all;
}

void diagnose_start(struct core *core, const char *text)
{
    const struct settings *s = &core->config.settings;
    uint32_t n, both = s->anchor_permille + s->history_permille,
                shares = doubled(s->anchor_permille, both) + doubled(s->history_permille, both);
    uint64_t tokens;
    struct range *ranges = all_ranges(core, &n, &tokens);
    evaluate_forget(core);
    round_forget_leases(core, false);
    core->round.attempt = ATTEMPT_DIAGNOSE;
    core->round.phase = ROUND_OPEN;
    core->round.suspect = 0;
    core->round_granted_ms = core->quorum_ms = NEVER;
    planner_view(core);
    uint64_t least = (uint64_t)(1000 - shares) * s->step_tokens * s->lease_steps_min / 1000;
    uint32_t leases = SUSPECTS_MAX + core->n_domains;
    struct deal deal = {
        .leases_max = leases, .ranges_max = planner_ranges(leases), .tokens_wanted = tokens / SUSPECTS_MAX};
    deal.tokens_wanted = deal.tokens_wanted > least ? deal.tokens_wanted : least;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < ranges[i].count; j++) {
            struct domain *d = core->domains[ranges[i].domain.v];
            if (domain_slot(d, ranges[i].first + j)->excluded) /* superseded or retracted meanwhile */
                domain_set(core, d, ranges[i].first + j, 1, SEG_PENDING, 0);
            else
                deal_segment(core, &deal, d, ranges[i].first + j);
        }
    close_lease(core, &deal);
    free(ranges);
    core->round.n_leases = core->n_leases;
    round_store(core);
    planner_pending(core);
    if (!core->n_leases)
        round_final_refusal(core, text);
}

/* ---- judging */

static void take_next(struct core *core, uint64_t suspect)
{
    core->round.suspect = suspect;
    core->round.attempt = suspect ? ATTEMPT_DIAGNOSE : ATTEMPT_REST;
    core->round.phase = ROUND_AGGREGATING;
    round_store(core);
    round_aggregate(core);
}

static void hold_culprits(struct core *core)
{
    char reason[STATE_TEXT_MAX + 1];
    for (uint32_t i = core->n_leases; i-- > 0;) {
        struct lease *l = core->leases[i];
        if (l->s.blame != BLAME_FORGETS)
            continue;
        FORMAT(reason, "learnt alone it made the model forget: alluvium versions explain --round %llu, lease %llu",
               (unsigned long long)core->round.number, (unsigned long long)l->s.id);
        drop_blob(core, &l->delta.digest);
        lease_hold(core, i, reason);
    }
}

void diagnose_next(struct core *core)
{
    uint32_t blamed = 0;
    for (uint32_t i = 0; i < core->n_leases; i++) {
        if (core->leases[i]->s.blame == BLAME_UNKNOWN) {
            take_next(core, core->leases[i]->s.id);
            return;
        }
        blamed += core->leases[i]->s.blame == BLAME_FORGETS;
    }
    if (blamed > 1 && blamed == core->n_leases) {
        round_final_refusal(core, "every lease alone makes the model forget: it is not the data. Look at the rate, "
                                  "the replay shares and the budgets");
        return;
    }
    hold_culprits(core);
    if (core->n_leases)
        take_next(core, 0);
    else
        round_final_refusal(core, "its only lease alone makes the model forget; its data is held");
}

void diagnose_judged(struct core *core, enum gate_outcome outcome)
{
    struct lease *l = lease_find(core, core->round.suspect, NULL);
    struct buf json = {0};
    CHECK(l);
    l->s.blame = BLAME_NONE;
    for (uint32_t i = 0; i < core->eval.n_domains && outcome == GATE_REFUSE; i++) {
        const struct gate_domain *g = &core->eval.domains[i].gate;
        if (!g->sentinel && g->n > 1 && !(g->low <= g->budget)) /* undecided is no proof */
            l->s.blame = BLAME_FORGETS;
    }
    lease_store(core, l);
    verdict_json(core, outcome, &json);
    round_verdict(core, 0, &json);
    buf_release(&json);
    round_drop_candidate(core);
    memset(&core->round.candidate, 0, sizeof core->round.candidate);
    evaluate_forget(core);
    core->round.suspect = 0;
    diagnose_next(core);
}
