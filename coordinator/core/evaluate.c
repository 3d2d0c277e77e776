/* Candidate and references scored side by side on the gate windows, as tasks for the workers.
 *
 * Losses are a measurement, not a contribution: whoever reports a task's losses first is believed, whichever grant it had,
 * and a restart only repeats the tasks whose results were not stored. Windows are looked at in a seeded order, so that a
 * look is a sample of all documents. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/internal.h"

enum { TASK_WINDOWS_LEAST = 8, TASK_ATTEMPTS = 6 };
/* Of the candidate's training FLOPs an evaluation may cost: a step is a forward pass and a backward one of twice its cost,
 * a window two forward passes, the candidate's and the reference's. */
static const double COST_SHARE = 0.25, TRAIN_PASSES = 3, WINDOW_PASSES = 2;
static const double NOT_FINITE_NATS = 50; /* per token: what a candidate's loss that is not a number counts as */

static void free_task(struct evaluation *e, uint32_t at)
{
    e->n_open -= !e->tasks[at].granted;
    free(e->tasks[at].windows);
    e->tasks[at] = e->tasks[--e->n_tasks];
}

void evaluate_release(struct core *core)
{
    struct evaluation *e = &core->eval;
    while (e->n_tasks)
        free_task(e, e->n_tasks - 1);
    for (uint32_t i = 0; i < e->n_domains; i++) {
        free(e->domains[i].windows);
        free(e->domains[i].diff);
    }
    free(e->domains);
    free(e->tasks);
    free(e->loaded);
    free(e->stored);
    *e = (struct evaluation){.next_task = e->next_task};
}

void evaluate_forget(struct core *core)
{
    for (uint32_t i = 0; i < core->eval.n_stored; i++)
        delete_key(core, FAMILY_MATRIX, key_pair('e', core->round.number, core->eval.stored[i]));
    evaluate_release(core);
}

static void note_stored(struct evaluation *e, uint64_t task)
{
    e->stored = xrealloc_array(e->stored, e->n_stored + 1, sizeof *e->stored);
    e->stored[e->n_stored++] = task;
}

void evaluate_load(struct core *core, uint64_t task, const struct state_losses *losses)
{
    struct evaluation *e = &core->eval;
    note_stored(e, task);
    FORMAT(e->fingerprint, "%s", losses->fingerprint);
    if (losses->second || !losses->n)
        return;
    e->loaded = xrealloc_array(e->loaded, e->n_loaded + losses->n, sizeof *e->loaded);
    memcpy(e->loaded + e->n_loaded, losses->items, losses->n * sizeof *e->loaded);
    e->n_loaded += losses->n;
}

/* ---- which windows */

struct ordered {
    uint64_t key;
    struct scored window;
};

static int by_key(const void *a, const void *b)
{
    const struct ordered *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key;
}

static void take_windows(const struct domain *d, struct eval_domain *out)
{
    struct ordered *all = xcalloc(d->windows_n + 1, sizeof *all);
    uint32_t n = 0;
    for (size_t i = 0; i < d->windows_n; i++) {
        const struct window *w = &d->windows[i];
        if (w->waiting || w->part != (d->settings.sentinel ? PART_AUDIT : PART_GATE))
            continue;
        all[n++] = (struct ordered){d->windows[i].key, {.offset = d->windows[i].offset}};
    }
    qsort(all, n, sizeof *all, by_key);
    out->available = n;
    out->windows = xcalloc(n + 1, sizeof *out->windows);
    out->diff = xcalloc(n + 1, sizeof *out->diff);
    for (uint32_t i = 0; i < n; i++)
        out->windows[i] = all[i].window;
    free(all);
}

static void use_loaded(struct evaluation *e)
{
    for (uint32_t i = 0; i < e->n_loaded; i++) {
        const struct window_loss *w = &e->loaded[i];
        struct eval_domain *d = w->domain.v < e->n_domains ? &e->domains[w->domain.v] : NULL;
        for (uint32_t j = 0; d && j < d->available; j++)
            if (d->windows[j].offset == w->offset)
                d->windows[j] = (struct scored){w->offset, w->candidate, w->reference, w->tokens, true};
    }
    free(e->loaded);
    e->loaded = NULL, e->n_loaded = 0;
}

/* ---- tasks */

static struct eval_task *add_task(struct core *core, uint64_t reference)
{
    struct evaluation *e = &core->eval;
    GROW(e->tasks, e->n_tasks, e->tasks_cap);
    struct eval_task *t = &e->tasks[e->n_tasks++];
    *t = (struct eval_task){.id = session_now(core)->counter << 32 | ++e->next_task, .reference = reference};
    t->windows = xcalloc(EVAL_TASK_WINDOWS, sizeof *t->windows);
    e->n_open++;
    return t;
}

static uint64_t missing(const struct evaluation *e)
{
    uint64_t n = 0;
    for (uint32_t i = 0; i < e->n_domains; i++)
        for (uint32_t j = 0; j < e->domains[i].n; j++)
            n += !e->domains[i].windows[j].done;
    return n;
}

/* How many windows of each domain at each look. Known before the first loss, so that the error rate can be spent over the
 * looks there will be; the first look is made whatever it costs, since a gate that sees nothing is none. */
static void plan_looks(struct core *core)
{
    struct evaluation *e = &core->eval;
    const struct settings *s = &core->config.settings;
    e->training_tokens = 0;
    for (uint32_t i = 0; i < core->n_leases; i++)
        if (!core->round.suspect || core->leases[i]->s.id == core->round.suspect)
            e->training_tokens += core->leases[i]->delta.target_tokens;
    double most = COST_SHARE * TRAIN_PASSES * (double)e->training_tokens / WINDOW_PASSES / s->window_tokens;
    for (unsigned i = 0; i < GATE_LOOKS; i++) {
        double each = most / (e->n_domains ? e->n_domains : 1);
        e->looks[i] = each < s->looks[i] ? (uint32_t)each : s->looks[i];
        e->looks[i] = e->looks[i] < s->looks[0] ? s->looks[0] : e->looks[i];
    }
    for (e->n_looks = 1; e->n_looks < GATE_LOOKS && e->looks[e->n_looks] > e->looks[e->n_looks - 1];)
        e->n_looks++;
}

void evaluate_cost(const struct core *core, struct buf *json)
{
    const struct evaluation *e = &core->eval;
    const struct settings *s = &core->config.settings;
    uint64_t windows = 0;
    for (uint32_t i = 0; i < e->n_domains; i++)
        windows += e->domains[i].n;
    double training = TRAIN_PASSES * (double)(e->training_tokens ? e->training_tokens : 1);
    buf_printf(json,
               "{\"training_tokens\":%llu,\"windows\":%llu,\"of_training_flops\":%.4g,\"bound\":%.4g,"
               "\"looks\":[%u,%u,%u],\"cut\":%s}",
               (unsigned long long)e->training_tokens, (unsigned long long)windows,
               (double)windows * WINDOW_PASSES * s->window_tokens / training, COST_SHARE, e->looks[0], e->looks[1],
               e->looks[2], e->looks[GATE_LOOKS - 1] < s->looks[GATE_LOOKS - 1] ? "true" : "false");
}

/* Domains compared with the same version share tasks, since a task names its adapters once. */
static void make_tasks(struct core *core)
{
    struct evaluation *e = &core->eval;
    uint32_t wanted = e->looks[core->round.look < e->n_looks ? core->round.look : e->n_looks - 1];
    for (uint32_t i = 0; i < e->n_domains; i++) {
        struct eval_domain *d = &e->domains[i];
        if (!d->gate.decided)
            d->n = d->available < wanted ? d->available : wanted;
    }
    uint64_t size = missing(e) / (2 * (uint64_t)(roster_workers(core) + 1));
    size = size < TASK_WINDOWS_LEAST ? TASK_WINDOWS_LEAST : size > EVAL_TASK_WINDOWS ? EVAL_TASK_WINDOWS : size;
    bool *seen = xcalloc(e->n_domains + 1, sizeof *seen);
    for (uint32_t i = 0; i < e->n_domains; i++) {
        if (seen[i])
            continue;
        uint64_t reference = core->domains[i]->d.reference;
        struct eval_task *t = NULL;
        for (uint32_t j = i; j < e->n_domains; j++) {
            if (core->domains[j]->d.reference != reference)
                continue;
            seen[j] = true;
            for (uint32_t k = 0; k < e->domains[j].n; k++) {
                if (e->domains[j].windows[k].done)
                    continue;
                if (!t || t->n >= size)
                    t = add_task(core, reference);
                t->windows[t->n++] = (struct eval_window){core->domains[j]->id, k};
            }
        }
    }
    free(seen);
}

void evaluate_start(struct core *core)
{
    struct evaluation *e = &core->eval;
    e->n_domains = core->n_domains;
    e->domains = xcalloc(e->n_domains, sizeof *e->domains);
    e->second_until = NEVER;
    for (uint32_t i = 0; i < e->n_domains; i++)
        take_windows(core->domains[i], &e->domains[i]);
    plan_looks(core);
    use_loaded(e);
    make_tasks(core);
}

static void send_task(struct core *core, const struct eval_task *t, struct member *m)
{
    const struct version *reference = version_find(core, t->reference);
    Alv__Evaluate *out = new_message(&alv__evaluate__descriptor);
    out->id = t->id;
    out->generation = t->generation;
    out->round = core->round.number;
    out->session_counter = session_now(core)->counter;
    set_bytes(&out->session_incarnation, session_now(core)->incarnation, 16);
    const struct version_files *files[2] = {&core->round.candidate, &reference->files};
    out->adapters = xcalloc(2, sizeof *out->adapters);
    for (; out->n_adapters < 2; out->n_adapters++) {
        Alv__AdapterRef *a = out->adapters[out->n_adapters] = new_message(&alv__adapter_ref__descriptor);
        a->candidate = out->n_adapters == 0;
        a->version = a->candidate ? 0 : t->reference;
        a->adapter = new_message(&alv__blob_ref__descriptor);
        set_bytes(&a->adapter->digest, files[out->n_adapters]->peft.b, DIGEST_LEN);
        a->adapter->bytes = files[out->n_adapters]->peft_bytes;
    }
    out->windows = xcalloc(t->n, sizeof *out->windows);
    for (; out->n_windows < t->n; out->n_windows++) {
        const struct eval_window *w = &t->windows[out->n_windows];
        Alv__Range *r = out->windows[out->n_windows] = new_message(&alv__range__descriptor);
        r->domain = w->domain.v;
        r->first = core->eval.domains[w->domain.v].windows[w->index].offset;
        r->count = 1;
    }
    out->window_tokens = core->config.settings.window_tokens;
    out->progress_ms = core->config.settings.lease_silence_ms / 4;
    Alv__Task *task = new_message(&alv__task__descriptor);
    task->evaluate = out;
    roster_unpark(core, m);
    reply(core, &m->peer, m->request, VERB_TASK, task);
}

static bool held_by(const struct eval_task *t, const struct member *m)
{
    return t->granted && !memcmp(t->instance, m->instance, 16);
}

bool evaluate_grant(struct core *core, struct member *m)
{
    struct evaluation *e = &core->eval;
    struct eval_task *found = NULL;
    for (uint32_t i = 0; i < e->n_tasks && !found; i++) /* it asks again: the answer was lost */
        if (held_by(&e->tasks[i], m))
            found = &e->tasks[i];
    for (uint32_t i = 0; i < e->n_tasks && !found; i++) {
        struct eval_task *t = &e->tasks[i];
        if (t->granted || (t->second && !memcmp(t->avoid, m->instance, 16)))
            continue;
        found = t;
        t->granted = true;
        t->generation++;
        memcpy(t->instance, m->instance, 16);
        e->n_open--;
    }
    if (!found)
        return false;
    found->silent_at = core->now + core->config.settings.lease_silence_ms;
    wake(core, found->silent_at);
    send_task(core, found, m);
    return true;
}

/* Nobody manages to score it: its windows are left out, and the verdict says so. */
static void give_up(struct core *core, uint32_t at)
{
    struct eval_task *t = &core->eval.tasks[at];
    for (uint32_t i = 0; i < t->n && !t->second; i++) {
        struct scored *w = &core->eval.domains[t->windows[i].domain.v].windows[t->windows[i].index];
        w->done = true;
        w->tokens = 0;
        core->eval.unscored++;
    }
    free_task(&core->eval, at);
}

static void back(struct core *core, uint32_t at)
{
    struct eval_task *t = &core->eval.tasks[at];
    t->granted = false;
    core->eval.n_open++;
    if (++t->attempts >= TASK_ATTEMPTS)
        give_up(core, at);
}

void evaluate_expire(struct core *core)
{
    for (uint32_t i = core->eval.n_tasks; i-- > 0;) {
        struct eval_task *t = &core->eval.tasks[i];
        if (t->granted && t->silent_at <= core->now)
            back(core, i);
        else if (t->granted)
            wake(core, t->silent_at);
    }
    if (core->eval.n_tasks)
        wake(core, core->eval.second_until);
}

void evaluate_newer_boot(struct core *core, const struct member *m)
{
    for (uint32_t i = core->eval.n_tasks;
         i-- > 0;) /* said at every hello: a task not yet reported is simply asked again */
        if (held_by(&core->eval.tasks[i], m)) {
            core->eval.tasks[i].granted = false;
            core->eval.n_open++;
        }
}

static struct eval_task *find_task(struct core *core, uint64_t id, uint32_t *at)
{
    for (*at = 0; *at < core->eval.n_tasks; ++*at)
        if (core->eval.tasks[*at].id == id)
            return &core->eval.tasks[*at];
    return NULL;
}

bool evaluate_progress(struct core *core, const struct member *m, uint64_t id, uint32_t generation)
{
    uint32_t at;
    struct eval_task *t = find_task(core, id, &at);
    if (!t || t->generation != generation || !held_by(t, m))
        return false;
    t->silent_at = core->now + core->config.settings.lease_silence_ms;
    return true;
}

void evaluate_give_back(struct core *core, const struct member *m, uint64_t id, uint32_t generation)
{
    uint32_t at;
    struct eval_task *t = find_task(core, id, &at);
    if (t && t->generation == generation && held_by(t, m))
        back(core, at);
}

/* A window's text went: it leaves the comparison, and tasks that name it go out anew without it, under a new number, since
 * losses are matched to windows by their order. */
static void drop_window(struct core *core, struct domain_id domain, uint32_t index)
{
    struct evaluation *e = &core->eval;
    struct eval_domain *d = &e->domains[domain.v];
    d->n -= index < d->n;
    d->available--;
    memmove(d->windows + index, d->windows + index + 1, (d->available - index) * sizeof *d->windows);
    for (uint32_t i = e->n_tasks; i-- > 0;) {
        struct eval_task *t = &e->tasks[i];
        uint32_t kept = 0, before = t->n;
        for (uint32_t j = 0; j < t->n; j++) {
            struct eval_window w = t->windows[j];
            if (w.domain.v == domain.v && w.index == index)
                continue;
            w.index -= w.domain.v == domain.v && w.index > index;
            t->windows[kept++] = w;
        }
        t->n = kept;
        if (t->n == before)
            continue;
        e->n_open += t->granted;
        t->granted = false;
        t->id = session_now(core)->counter << 32 | ++e->next_task;
        if (!t->n)
            free_task(e, i);
    }
}

void evaluate_drop(struct core *core, struct domain_id domain, uint64_t first, uint32_t count)
{
    struct eval_domain *d = domain.v < core->eval.n_domains ? &core->eval.domains[domain.v] : NULL;
    for (uint32_t i = d ? d->available : 0; i-- > 0;)
        if (d->windows[i].offset >= first && d->windows[i].offset - first < count)
            drop_window(core, domain, i);
}

/* ---- results */

static bool read_losses(const struct core *core, const struct eval_task *t, const Alv__EvalResult *r,
                        struct state_losses *out)
{
    if (r->nll.len != 16 * (size_t)t->n || r->tokens.len != 4 * (size_t)t->n)
        return false;
    struct reader candidate = reader_of(r->nll.data, 8 * (size_t)t->n);
    struct reader reference = reader_of(r->nll.data + 8 * (size_t)t->n, 8 * (size_t)t->n);
    struct reader tokens = reader_of(r->tokens.data, r->tokens.len);
    out->items = xcalloc(t->n, sizeof *out->items);
    out->n = t->n;
    for (uint32_t i = 0; i < t->n; i++) {
        struct window_loss *w = &out->items[i];
        w->domain = t->windows[i].domain;
        w->offset = core->eval.domains[w->domain.v].windows[t->windows[i].index].offset;
        w->candidate = read_f64(&candidate);
        w->reference = read_f64(&reference);
        w->tokens = read_u32(&tokens);
        if (w->tokens > core->config.settings.window_tokens || !isfinite(w->reference) || w->reference < 0) {
            state_losses_release(out);
            return false;
        }
        if (!isfinite(w->candidate) || w->candidate < 0 || w->candidate > w->reference + NOT_FINITE_NATS * w->tokens)
            w->candidate = w->reference + NOT_FINITE_NATS * w->tokens;
    }
    FORMAT(out->fingerprint, "%s", r->fingerprint);
    out->second = t->second;
    return true;
}

static void apply(struct core *core, const struct eval_task *t, const struct state_losses *losses)
{
    for (uint32_t i = 0; i < t->n; i++) {
        struct scored *w = &core->eval.domains[t->windows[i].domain.v].windows[t->windows[i].index];
        const struct window_loss *l = &losses->items[i];
        if (!t->second) {
            *w = (struct scored){w->offset, l->candidate, l->reference, l->tokens, true};
        } else if (w->tokens && w->tokens == l->tokens) {
            double diff = fabs(w->candidate - l->candidate) / w->tokens;
            core->eval.second_max = diff > core->eval.second_max ? diff : core->eval.second_max;
            core->eval.second_n++;
        }
    }
}

static void ask_twice(struct core *core, const struct eval_task *done, const struct member *m)
{
    uint64_t h = hash_sip(&core->config.seed, &done->id, sizeof done->id);
    if (done->second || (double)(h >> 11) * 0x1p-53 >= core->config.settings.double_score || roster_workers(core) < 2)
        return;
    struct eval_task copy = *done; /* add_task may move the tasks */
    struct eval_task *t = add_task(core, copy.reference);
    t->second = true;
    t->n = copy.n;
    memcpy(t->windows, copy.windows, copy.n * sizeof *t->windows);
    memcpy(t->avoid, m->instance, 16);
}

void evaluate_result(struct core *core, const struct event *event, struct member *m)
{
    const Alv__EvalResult *r = (const Alv__EvalResult *)event->message;
    uint32_t at;
    struct eval_task *t = find_task(core, r->id, &at);
    struct state_losses losses = {0};
    if (!t) { /* reported before, or of an earlier session: nothing is missing */
        reply_ok(core, &event->peer, event->request, VERB_EVAL_OK);
        return;
    }
    if (!read_losses(core, t, r, &losses)) {
        refuse(core, event, ST_BAD_DATA, 0,
               "evaluation %llu: %u windows times two losses, finite for the reference, are "
               "expected",
               (unsigned long long)r->id, t->n);
        if (held_by(t, m))
            back(core, at);
        return;
    }
    apply(core, t, &losses);
    if (!core->eval.fingerprint[0])
        FORMAT(core->eval.fingerprint, "%s", losses.fingerprint);
    PUT(core, FAMILY_MATRIX, key_pair('e', core->round.number, t->id), state_losses, &losses);
    note_stored(&core->eval, t->id);
    ask_twice(core, t, m);
    state_losses_release(&losses);
    free_task(&core->eval, at);
    reply_ok(core, &event->peer, event->request, VERB_EVAL_OK);
}

/* ---- verdict */

static bool complete(struct core *core)
{
    struct evaluation *e = &core->eval;
    for (uint32_t i = 0; i < e->n_tasks; i++)
        if (!e->tasks[i].second)
            return false;
    if (e->n_tasks && e->second_until == NEVER) {
        e->second_until = core->now + core->config.settings.lease_silence_ms;
        wake(core, e->second_until);
    }
    if (e->n_tasks && core->now < e->second_until && roster_workers(core) > 1)
        return false;
    while (e->n_tasks)
        free_task(e, e->n_tasks - 1);
    e->second_until = NEVER;
    return true;
}

static void fill_gate(struct core *core, uint32_t i, struct gate_domain *g)
{
    struct eval_domain *d = &core->eval.domains[i];
    if (g->decided)
        return;
    *g = (struct gate_domain){.name = core->domains[i]->d.name,
                              .reference = core->domains[i]->d.reference,
                              .probe_set = core->domains[i]->d.probe_set,
                              .budget = core->domains[i]->settings.forget_budget,
                              .sentinel = core->domains[i]->settings.sentinel,
                              .available = d->available,
                              .diff = d->diff};
    for (uint32_t j = 0; j < d->n; j++)
        if (d->windows[j].tokens)
            d->diff[g->n++] = (d->windows[j].candidate - d->windows[j].reference) / d->windows[j].tokens;
    if (d->n == d->available) /* windows without a target or a score will not come back at another look */
        g->available = g->n;
}

void evaluate_numbers(const struct core *core, uint32_t domain, uint32_t *windows, uint64_t *tokens, double *candidate,
                      double *reference)
{
    *windows = 0, *tokens = 0, *candidate = *reference = 0;
    if (domain >= core->eval.n_domains)
        return;
    const struct eval_domain *d = &core->eval.domains[domain];
    for (uint32_t i = 0; i < d->n; i++) {
        if (!d->windows[i].tokens)
            continue;
        ++*windows;
        *tokens += d->windows[i].tokens;
        *candidate += d->windows[i].candidate;
        *reference += d->windows[i].reference;
    }
}

void evaluate_check(struct core *core)
{
    struct evaluation *e = &core->eval;
    if (core->round.phase != ROUND_EVALUATING || !complete(core))
        return;
    struct gate_domain *gates = xcalloc(e->n_domains, sizeof *gates);
    for (uint32_t i = 0; i < e->n_domains; i++) {
        fill_gate(core, i, &e->domains[i].gate);
        gates[i] = e->domains[i].gate;
    }
    unsigned look = core->round.look;
    enum gate_outcome outcome = gate_judge(gates, e->n_domains, round_error_rate(core), look, look + 1 >= e->n_looks);
    for (uint32_t i = 0; i < e->n_domains; i++) {
        gates[i].decided = gates[i].outcome == GATE_PASS;
        e->domains[i].gate = gates[i];
    }
    if (outcome == GATE_LOOK) {
        core->round.look++;
        round_store(core);
        make_tasks(core);
        wake(core, core->now); /* there may be nothing left to score */
    } else if (core->round.suspect) {
        diagnose_judged(core, outcome);
    } else {
        release_publish(core, outcome);
    }
    free(gates);
}
