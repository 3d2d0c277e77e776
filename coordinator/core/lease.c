/* Leases: granted with a generation that is stored before the task leaves, kept alive by progress, given to another when
 * their holder is silent. A delta counts while its lease has not been granted again.
 *
 * What is superseded or retracted while a round is open leaves a lease when it is granted next: each grant is planned from
 * the newest exclusions. A worker that misses text at a grant older than that has not failed. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"

enum { PROGRESS_PARTS = 4 /* reports asked for within the silence that ends a task */ };

struct lease *lease_find(struct core *core, uint64_t id, uint32_t *index)
{
    uint32_t low = 0, high = core->n_leases; /* ascending id */
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (core->leases[mid]->s.id < id)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == core->n_leases || core->leases[low]->s.id != id)
        return NULL;
    if (index)
        *index = low;
    return core->leases[low];
}

void lease_store(struct core *core, struct lease *l)
{
    PUT(core, FAMILY_LEASES, key_u64('l', l->s.id), state_lease, &l->s);
    core->pace_known = false;
}

static void set_all(struct core *core, struct lease *l, enum segment_state state, uint64_t ref)
{
    for (uint32_t i = 0; i < l->s.n_ranges; i++) {
        struct range r = l->s.ranges[i];
        domain_set(core, core->domains[r.domain.v], r.first, r.count, state, ref);
    }
}

static void forget(struct core *core, uint32_t index)
{
    struct lease *l = core->leases[index];
    core->n_open -= l->s.phase == LEASE_OPEN;
    core->n_accepted -= l->s.phase == LEASE_ACCEPTED;
    core->n_leases--;
    memmove(core->leases + index, core->leases + index + 1, (core->n_leases - index) * sizeof(struct lease *));
    state_lease_release(&l->s);
    free(l);
}

void lease_forget_all(struct core *core)
{
    while (core->n_leases)
        forget(core, core->n_leases - 1);
}

void lease_drop(struct core *core, uint32_t index, bool to_pending)
{
    struct lease *l = core->leases[index];
    if (to_pending)
        set_all(core, l, SEG_PENDING, 0);
    delete_key(core, FAMILY_LEASES, key_u64('l', l->s.id));
    if (l->s.phase == LEASE_ACCEPTED) {
        delete_key(core, FAMILY_DELTAS, key_u64('d', l->s.id));
        delete_key(core, FAMILY_DELTAS, key_u64('f', l->s.id));
    }
    forget(core, index);
}

void lease_hold(struct core *core, uint32_t index, const char *reason)
{
    struct lease *l = core->leases[index];
    struct held held = {.id = ++core->counters.quarantine};
    held.q =
        (struct state_quarantine){.lease = l->s.id, .round = l->s.round, .wall_s = core->wall_s, .n = l->s.n_ranges};
    held.q.ranges = xmemdup(l->s.ranges, l->s.n_ranges * sizeof *l->s.ranges);
    FORMAT(held.q.reason, "%s", reason);
    core->counters_dirty = true;
    for (uint32_t i = 0; i < l->s.n_ranges; i++) /* never replayed: recorded before it is settled */
        exclusion_add(core, core->domains[l->s.ranges[i].domain.v], l->s.ranges[i].first, l->s.ranges[i].count,
                      SEG_QUARANTINED);
    set_all(core, l, SEG_QUARANTINED, held.id);
    PUT(core, FAMILY_META, key_u64('q', held.id), state_quarantine, &held.q);
    GROW(core->held, core->held_n, core->held_cap);
    core->held[core->held_n++] = held;
    lease_drop(core, index, false);
}

/* Was all of it superseded or retracted since? Erased text would fail with every worker. */
static bool nothing_left(const struct core *core, const struct lease *l)
{
    for (uint32_t i = 0; i < l->s.n_ranges; i++)
        for (uint32_t j = 0; j < l->s.ranges[i].count; j++)
            if (!domain_slot(core->domains[l->s.ranges[i].domain.v], l->s.ranges[i].first + j)->excluded)
                return false;
    return true;
}

/* Open again, without blame; its generation stays until it is granted, so that a late delta still counts. */
static void take_back(struct core *core, uint32_t index)
{
    core->leases[index]->s.phase = LEASE_OPEN;
    core->n_open++;
    lease_store(core, core->leases[index]);
}

/* Back to be granted again. */
static void give_back(struct core *core, uint32_t index, bool failed)
{
    struct lease *l = core->leases[index];
    char reason[64];
    take_back(core, index);
    if (nothing_left(core, l)) {
        lease_drop(core, index, true);
        return;
    }
    l->s.attempts += failed;
    if (l->s.attempts >= core->config.settings.lease_attempts) {
        FORMAT(reason, "no worker finished it in %u attempts", l->s.attempts);
        lease_hold(core, index, reason);
        return;
    }
    lease_store(core, l);
}

void lease_none(struct core *core, struct member *m)
{
    Alv__Task *none = new_message(&alv__task__descriptor);
    none->exclusion_seq = core->exclusions_n;
    roster_unpark(core, m);
    reply(core, &m->peer, m->request, VERB_TASK, none);
}

void lease_expire(struct core *core)
{
    for (uint32_t i = core->n_leases; i-- > 0;) {
        struct lease *l = core->leases[i];
        if (l->s.phase != LEASE_GRANTED)
            continue;
        if (l->silent_at <= core->now)
            give_back(core, i, true);
        else
            wake(core, l->silent_at);
    }
}

void lease_tell(struct core *core)
{
    while (core->waiting_n[PLANE_WORK])
        lease_none(core, core->waiting[PLANE_WORK][0]);
}

void lease_newer_boot(struct core *core, const struct member *m)
{
    for (uint32_t i = core->n_leases; i-- > 0;) {
        struct state_lease *s = &core->leases[i]->s;
        if (s->phase == LEASE_GRANTED && !memcmp(s->instance, m->instance, 16) && name_eq(&s->key, &m->peer.key) &&
            s->boot < m->boot)
            give_back(core, i, true);
    }
}

/* ---- the task as a message */

static Alv__TrainConfig *train_config(const struct core *core)
{
    const struct settings *s = &core->config.settings;
    Alv__TrainConfig *t = new_message(&alv__train_config__descriptor);
    t->seq_tokens = s->seq_tokens;
    t->step_tokens = s->step_tokens;
    t->lr = (float)s->lr;
    t->beta1 = (float)s->beta1;
    t->beta2 = (float)s->beta2;
    t->eps = 1e-8f;
    t->weight_decay = (float)s->weight_decay;
    t->clip = (float)s->clip;
    t->warmup_steps = s->warmup_steps;
    t->anchor_permille = s->anchor_permille;
    t->history_permille = s->history_permille;
    t->decay_permille = s->decay_permille;
    t->average_permille = s->average_permille;
    t->distil_permille = s->distil_permille;
    t->history_distil_permille = s->history_distil_permille;
    t->history_boost_permille = s->history_boost_permille;
    t->anchor_boost_permille = s->anchor_boost_permille;
    t->sample_k = s->sample_k;
    t->delta_coding = s->delta_coding;
    if (core->round.attempt == ATTEMPT_DIAGNOSE)
        diagnose_settings(core, t);
    return t;
}

static void add_views(const struct core *core, Alv__Lease *out)
{
    out->domains = xcalloc(core->round.n_domains, sizeof *out->domains);
    for (; out->n_domains < core->round.n_domains; out->n_domains++) {
        const struct round_domain *view = &core->round.domains[out->n_domains];
        Alv__DomainView *d = out->domains[out->n_domains] = new_message(&alv__domain_view__descriptor);
        d->domain = (uint32_t)out->n_domains;
        d->name = xstrdup(core->domains[out->n_domains]->d.name.s);
        d->watermark = view->watermark;
        d->weight = view->weight;
    }
}

static void send_lease(struct core *core, struct lease *l, struct member *m)
{
    const struct version *parent = version_find(core, core->round.parent);
    CHECK(parent);
    Alv__Lease *out = new_message(&alv__lease__descriptor);
    out->id = l->s.id;
    out->generation = l->s.generation;
    out->round = l->s.round;
    out->session_counter = session_now(core)->counter;
    set_bytes(&out->session_incarnation, session_now(core)->incarnation, 16);
    out->parent = core->round.parent;
    out->parent_adapter = new_message(&alv__blob_ref__descriptor);
    set_bytes(&out->parent_adapter->digest, training_state(&parent->files, &out->parent_adapter->bytes)->b, DIGEST_LEN);
    out->fresh = xcalloc(l->s.n_ranges, sizeof *out->fresh);
    for (; out->n_fresh < l->s.n_ranges; out->n_fresh++) {
        Alv__Range *r = out->fresh[out->n_fresh] = new_message(&alv__range__descriptor);
        r->domain = l->s.ranges[out->n_fresh].domain.v;
        r->first = l->s.ranges[out->n_fresh].first;
        r->count = l->s.ranges[out->n_fresh].count;
    }
    add_views(core, out);
    out->exclusion_seq = l->s.exclusion_seq;
    out->seed = l->s.seed;
    out->train = train_config(core);
    out->progress_ms = core->config.settings.lease_silence_ms / PROGRESS_PARTS;
    Alv__Task *task = new_message(&alv__task__descriptor);
    task->lease = out;
    roster_unpark(core, m);
    reply(core, &m->peer, m->request, VERB_TASK, task);
}

/* ---- granting */

/* Puts [first, +count) into the lease if it has room for it. */
static bool add_range(struct lease *l, struct domain_id domain, uint64_t first, uint32_t count, uint32_t ranges_max)
{
    if (l->s.n_ranges == ranges_max)
        return false;
    l->s.ranges = xrealloc_array(l->s.ranges, l->s.n_ranges + 1, sizeof *l->s.ranges);
    l->s.ranges[l->s.n_ranges++] = (struct range){domain, first, count};
    return true;
}

/* The lease without what was superseded or retracted since it was planned. What no longer fits, because ranges were split,
 * waits for another round. */
static void leave_out(struct core *core, struct lease *l)
{
    uint32_t n = l->s.n_ranges, ranges_max = planner_ranges(core->round.n_leases);
    struct range *old = l->s.ranges;
    l->s.ranges = NULL, l->s.n_ranges = 0, l->s.tokens = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct domain *d = core->domains[old[i].domain.v];
        for (uint32_t j = 0, run; j < old[i].count; j += run) {
            uint64_t first = old[i].first + j, bytes = 0;
            bool out = domain_slot(d, first)->excluded;
            for (run = 0; j + run < old[i].count && (domain_slot(d, first + run)->excluded != 0) == out; run++)
                bytes += domain_slot(d, first + run)->bytes;
            if (!out && add_range(l, d->id, first, run, ranges_max))
                l->s.tokens += domain_tokens(core, d, bytes);
            else
                domain_set(core, d, first, run, SEG_PENDING, 0);
        }
    }
    free(old);
    planner_pending(core);
}

/* Before each grant. false: nothing is left of the lease, it is gone. */
static bool plan_anew(struct core *core, uint32_t index)
{
    struct lease *l = core->leases[index];
    if (l->s.exclusion_seq == core->exclusions_n)
        return true;
    leave_out(core, l);
    if (core->round.exclusion_seq != core->exclusions_n) {
        planner_view(core);
        round_store(core);
    }
    l->s.exclusion_seq = core->exclusions_n;
    if (l->s.n_ranges)
        return true;
    lease_drop(core, index, false);
    wake(core, core->now); /* it may have been the round's last */
    return false;
}

static bool grant(struct core *core, uint32_t index, struct member *m)
{
    if (!plan_anew(core, index))
        return false;
    struct lease *l = core->leases[index];
    l->s.phase = LEASE_GRANTED;
    l->s.generation++;
    l->s.boot = m->boot;
    l->s.key = m->peer.key;
    memcpy(l->s.instance, m->instance, 16);
    l->done = l->total = 0;
    l->tokens_per_s = m->tokens_per_s;
    l->granted_ms = core->now;
    l->silent_at = core->now + core->config.settings.lease_silence_ms;
    if (core->round_granted_ms == NEVER)
        core->round_granted_ms = core->now;
    wake(core, l->silent_at);
    core->n_open--;
    lease_store(core, l);
    send_lease(core, l, m);
    return true;
}

static bool holds(const struct lease *l, const struct member *m)
{
    return l->s.phase == LEASE_GRANTED && l->s.boot == m->boot && !memcmp(l->s.instance, m->instance, 16) &&
           name_eq(&l->s.key, &m->peer.key);
}

void lease_serve(struct core *core)
{
    bool leases = core->round.phase == ROUND_OPEN && core->n_open;
    bool tasks = core->round.phase == ROUND_EVALUATING && core->eval.n_open;
    for (size_t i = core->waiting_n[PLANE_WORK]; i-- > 0 && (leases || tasks);) { /* who is answered leaves his place
                                                                                   * to one that was looked at */
        struct member *m = core->waiting[PLANE_WORK][i];
        core->scanned++;
        if (tasks)
            evaluate_grant(core, m);
        for (uint32_t j = 0; leases && core->n_open && j < core->n_leases;)
            if (core->leases[j]->s.phase != LEASE_OPEN)
                j++;
            else if (grant(core, j, m))
                break;
        leases = leases && core->n_open;
        tasks = tasks && core->eval.n_open;
    }
}

/* The answer that granted it had nowhere to go, or went down with the connection. Nobody is to blame, and nobody else should wait
 * until it has been silent for long; a holder that lives after all asks again, or is told to abandon it. */
void lease_undelivered(struct core *core, const struct member *m)
{
    for (uint32_t i = core->n_leases; i-- > 0;)
        if (holds(core->leases[i], m) && !core->leases[i]->total)
            give_back(core, i, false);
}

void lease_request(struct core *core, const struct event *event, struct member *m)
{
    const Alv__TaskRequest *r = (const Alv__TaskRequest *)event->message;
    FORMAT(m->fingerprint, "%s", r->fingerprint[0] ? r->fingerprint : "unknown");
    m->exclusion_seq = r->exclusion_seq;
    retract_applied(core, m);
    m->tokens_per_s = r->tokens_per_s;
    roster_park(core, m, event->request, r->wait_ms);
    if (core->round.phase == ROUND_EVALUATING) {
        evaluate_grant(core, m);
        return;
    }
    for (uint32_t i = 0; i < core->n_leases; i++) { /* granted, but the answer seems to have been lost */
        struct lease *l = core->leases[i];
        if (!holds(l, m) || l->total)
            continue;
        if (core->round.exclusion_seq == l->s.exclusion_seq) /* the same again */
            send_lease(core, l, m);
        else
            take_back(core, i);
        return;
    }
}

/* ---- from the holder */

void lease_progress(struct core *core, const struct event *event, struct member *m)
{
    const Alv__Progress *p = (const Alv__Progress *)event->message;
    Alv__ProgressOk *ok = new_message(&alv__progress_ok__descriptor);
    if (p->tokens_per_s)
        m->tokens_per_s = p->tokens_per_s;
    if (p->evaluate) {
        ok->abandon = !evaluate_progress(core, m, p->task, p->generation);
    } else {
        struct lease *l = lease_find(core, p->task, NULL);
        ok->abandon = !l || l->s.generation != p->generation || !holds(l, m);
        if (!ok->abandon) {
            core->pace_known &= l->tokens_per_s == m->tokens_per_s;
            l->tokens_per_s = m->tokens_per_s;
            l->done = p->done;
            l->total = p->total ? p->total : 1;
            l->silent_at = core->now + core->config.settings.lease_silence_ms;
        }
    }
    reply(core, &event->peer, event->request, VERB_PROGRESS_OK, ok);
}

void lease_return_task(struct core *core, const struct event *event, struct member *m)
{
    const Alv__TaskReturn *r = (const Alv__TaskReturn *)event->message;
    uint32_t index;
    struct lease *l = r->evaluate ? NULL : lease_find(core, r->task, &index);
    if (r->evaluate)
        evaluate_give_back(core, m, r->task, r->generation);
    else if (l && l->s.generation == r->generation && holds(l, m)) /* text goes missing by an exclusion only */
        give_back(core, index,
                  r->why == ALV__RETURN_REASON__RETURN_MISSING
                      ? l->s.exclusion_seq == core->exclusions_n
                      : r->why != ALV__RETURN_REASON__RETURN_DRAINING && r->why != ALV__RETURN_REASON__RETURN_LOCAL);
    reply_ok(core, &event->peer, event->request, VERB_TASK_RETURN_OK);
}

static void acknowledge(struct core *core, const struct event *event, const char *why_not)
{
    Alv__DeltaAck *ack = new_message(&alv__delta_ack__descriptor);
    ack->accepted = !why_not;
    ack->reason = xstrdup(why_not ? why_not : "");
    reply(core, &event->peer, event->request, VERB_DELTA_ACK, ack);
}

static uint64_t segments(const struct lease *l)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < l->s.n_ranges; i++)
        n += l->s.ranges[i].count;
    return n;
}

/* Reported tokens per byte; what is not plausible is not used. Old reports fade, since a domain's text changes. */
static void learn_tokens(struct core *core, const Alv__DeltaCommit *c)
{
    for (size_t i = 0; i < c->n_fresh; i++) {
        const Alv__DomainTokens *t = c->fresh[i];
        if (t->domain >= core->n_domains || !t->bytes || t->tokens > 4 * t->bytes || t->bytes > (1u << 30) ||
            t->tokens < t->bytes / 64)
            continue;
        struct domain *d = core->domains[t->domain];
        if (d->d.bytes_seen > 64u << 20) {
            d->d.bytes_seen /= 2;
            d->d.tokens_seen /= 2;
        }
        d->d.bytes_seen += t->bytes;
        d->d.tokens_seen += t->tokens;
        d->dirty = true;
    }
}

static void accept_delta(struct core *core, struct lease *l, const struct event *event, const struct member *m)
{
    const Alv__DeltaCommit *c = (const Alv__DeltaCommit *)event->message;
    struct state_delta *d = &l->delta;
    *d = (struct state_delta){.lease = l->s.id,
                              .round = l->s.round,
                              .generation = c->generation,
                              .steps = c->steps,
                              .train_ms = c->train_ms,
                              .bytes = c->delta->bytes,
                              .target_tokens = c->target_tokens,
                              .key = m->peer.key};
    memcpy(d->digest.b, c->delta->digest.data, DIGEST_LEN);
    memcpy(d->instance, m->instance, 16);
    FORMAT(d->fingerprint, "%s", c->fingerprint);
    core->n_open -= l->s.phase == LEASE_OPEN;
    core->n_accepted++;
    l->s.phase = LEASE_ACCEPTED;
    l->s.generation = c->generation;
    set_all(core, l, SEG_ACCEPTED, 0);
    lease_store(core, l);
    PUT(core, FAMILY_DELTAS, key_u64('d', l->s.id), state_delta, d);
    struct state_key key = key_u64('f', l->s.id);
    batch_put(&core->batch, FAMILY_DELTAS, key.b, key.len, c->first_losses.data, c->first_losses.len);
    learn_tokens(core, c);
}

void lease_commit(struct core *core, const struct event *event, struct member *m)
{
    const Alv__DeltaCommit *c = (const Alv__DeltaCommit *)event->message;
    struct lease *l = lease_find(core, c->lease, NULL);
    bool stale_too = core->config.planted & PLANT_STALE_GENERATION;
    if (!c->delta || c->delta->digest.len != DIGEST_LEN || !c->delta->bytes || !c->target_tokens ||
        (l && c->first_losses.len != 4 * segments(l))) {
        refuse(core, event, ST_BAD_DATA, 0,
               "delta of lease %llu: digest, bytes, target tokens and one loss for each segment "
               "are needed",
               (unsigned long long)c->lease);
        return;
    }
    if (!session_grants(core, c->session_counter, c->session_incarnation)) {
        acknowledge(core, event, "superseded: not granted by this coordinator");
        return;
    }
    for (size_t i = 0; i < core->old_acks_n; i++)
        if (core->old_acks[i].lease == c->lease && core->old_acks[i].generation == c->generation) {
            acknowledge(core, event, NULL); /* the first answer was lost; the round is over by now */
            return;
        }
    if (l && l->s.phase == LEASE_ACCEPTED && l->s.generation == c->generation) {
        acknowledge(core, event, NULL);
        return;
    }
    if (!l || l->s.phase == LEASE_ACCEPTED || core->round.phase != ROUND_OPEN) {
        acknowledge(core, event, "superseded: the round went on without this lease");
        return;
    }
    bool granted_to = c->generation && l->s.generation == c->generation && !memcmp(l->s.instance, m->instance, 16);
    if (!granted_to && !stale_too) {
        acknowledge(core, event, "superseded: the lease was planned anew or given to another worker");
        return;
    }
    if (!event->blob_held) {
        refuse(core, event, ST_AGAIN, 0, "the delta's blob is not here yet: upload it first");
        return;
    }
    accept_delta(core, l, event, m);
    acknowledge(core, event, NULL);
}
