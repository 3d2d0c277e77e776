#include "worker/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "replay/sample.h"

/* ---- the view */

struct domain_replay {
    struct exclusion *exclusions;
    size_t n, cap;
    struct sample sample; /* of sample_k of the last lease; k 0: none yet */
};

struct view {
    struct sip_key seed;
    uint64_t seq;
    struct domain_replay domains[LIMIT_DOMAINS];
};

struct view *view_new(const struct sip_key *seed)
{
    struct view *view = xcalloc(1, sizeof *view);
    view->seed = *seed;
    return view;
}

void view_free(struct view *view)
{
    if (!view)
        return;
    for (size_t d = 0; d < LIMIT_DOMAINS; d++) {
        free(view->domains[d].exclusions);
        sample_release(&view->domains[d].sample);
    }
    free(view);
}

static enum status check_exclusions(const struct view *view, const Alv__Exclusions *in, struct err *err)
{
    uint64_t seq = 0, at[LIMIT_DOMAINS];
    for (size_t d = 0; d < LIMIT_DOMAINS; d++) {
        const struct domain_replay *own = &view->domains[d];
        at[d] = own->n ? own->exclusions[own->n - 1].at : 0;
    }
    for (size_t i = 0; i < in->n_entries; i++) {
        const Alv__Exclusion *e = in->entries[i];
        if (e->seq <= seq)
            return err_set(err, ST_BAD_DATA, "exclusion %llu follows %llu", (unsigned long long)e->seq,
                           (unsigned long long)seq);
        seq = e->seq;
        if (e->domain >= LIMIT_DOMAINS || e->count == 0 || e->first > LIMIT_OFFSET || e->watermark > LIMIT_OFFSET)
            return err_set(err, ST_BAD_DATA, "exclusion %llu: domain or range out of bounds", (unsigned long long)seq);
        if (seq <= view->seq)
            continue;
        if (e->watermark < at[e->domain])
            return err_set(err, ST_BAD_DATA, "exclusion %llu: the watermark of domain %u falls",
                           (unsigned long long)seq, e->domain);
        at[e->domain] = e->watermark;
    }
    return ST_OK;
}

enum status view_exclude(struct view *view, const Alv__Exclusions *in, struct err *err)
{
    enum status status = check_exclusions(view, in, err);
    if (status != ST_OK)
        return status;
    for (size_t i = 0; i < in->n_entries; i++) {
        const Alv__Exclusion *e = in->entries[i];
        if (e->seq <= view->seq)
            continue;
        struct domain_replay *d = &view->domains[e->domain];
        if (d->n == d->cap) {
            d->cap = d->cap ? 2 * d->cap : 16;
            d->exclusions = xrealloc_array(d->exclusions, d->cap, sizeof *d->exclusions);
        }
        d->exclusions[d->n++] =
            (struct exclusion){.seq = e->seq, .at = e->watermark, .first = e->first, .count = e->count};
        view->seq = e->seq;
    }
    return ST_OK;
}

uint64_t view_seq(const struct view *view)
{
    return view->seq;
}

bool view_member(const struct view *view, struct domain_id domain, uint64_t offset)
{
    if (domain.v >= LIMIT_DOMAINS)
        return false;
    const struct sample *sample = &view->domains[domain.v].sample;
    return sample->k > 0 && sample_contains(sample, offset);
}

/* ---- the border */

static enum status train_check(const Alv__TrainConfig *t, struct err *err)
{
    const struct {
        const char *name;
        double value, low, high;
    } fields[] = {
        {"seq_tokens", t->seq_tokens, 2, 1 << 20},
        {"step_tokens", t->step_tokens, 2, 1 << 24},
        {"lr", t->lr, 0, 1},
        {"beta1", t->beta1, 0, 0.999999},
        {"beta2", t->beta2, 0, 0.999999},
        {"eps", t->eps, 1e-20, 1},
        {"weight_decay", t->weight_decay, 0, 10},
        {"clip", t->clip, 0, 1e9},
        {"warmup_steps", t->warmup_steps, 0, 1 << 20},
        {"anchor_permille + history_permille", (double)t->anchor_permille + t->history_permille, 0, 999},
        {"sample_k", t->sample_k, 1, SAMPLE_K_MAX},
        {"decay_permille", t->decay_permille, 0, 1000},
        {"distil_permille", t->distil_permille, 0, 1000},
        {"history_distil_permille", t->history_distil_permille, 0, 1000},
        {"history_boost_permille", t->history_boost_permille, 0, 100000},
        {"average_permille", t->average_permille, 0, 1000},
        {"anchor_boost_permille", t->anchor_boost_permille, 0, 100000},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
        if (!(fields[i].value >= fields[i].low && fields[i].value <= fields[i].high))
            return err_set(err, ST_BAD_DATA, "lease: train.%s = %g is not within %g .. %g", fields[i].name,
                           fields[i].value, fields[i].low, fields[i].high);
    return ST_OK;
}

static enum status ranges_check(Alv__Range *const *ranges, size_t n, bool ordered, uint64_t total_max,
                                const char *where, struct err *err)
{
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        const Alv__Range *r = ranges[i], *before = ordered && i ? ranges[i - 1] : NULL;
        if (r->domain >= LIMIT_DOMAINS || r->count == 0 || r->first > LIMIT_OFFSET)
            return err_set(err, ST_BAD_DATA, "%s: range %zu is out of bounds", where, i);
        if (before &&
            (r->domain < before->domain || (r->domain == before->domain && r->first < before->first + before->count)))
            return err_set(err, ST_BAD_DATA, "%s: range %zu overlaps or is out of order", where, i);
        total += r->count;
    }
    if (total == 0 || total > total_max)
        return err_set(err, ST_BAD_DATA, "%s: %llu segments, not within 1 .. %llu", where, (unsigned long long)total,
                       (unsigned long long)total_max);
    return ST_OK;
}

static bool blob_ref_ok(const Alv__BlobRef *ref)
{
    return ref && ref->digest.len == DIGEST_LEN && ref->bytes > 0 && ref->bytes <= LIMIT_BLOB_BYTES;
}

enum status plan_check_lease(const Alv__Lease *lease, struct err *err)
{
    if (!lease->train || !blob_ref_ok(lease->parent_adapter) || lease->session_incarnation.len != 16)
        return err_set(err, ST_BAD_DATA, "lease: settings, parent or session are missing");
    if (lease->n_domains > LIMIT_DOMAINS)
        return err_set(err, ST_BAD_DATA, "lease: %zu domains, at most %d", lease->n_domains, LIMIT_DOMAINS);
    for (size_t i = 0; i < lease->n_domains; i++) {
        const Alv__DomainView *d = lease->domains[i];
        if (d->domain >= LIMIT_DOMAINS || d->watermark > LIMIT_OFFSET ||
            (i && d->domain <= lease->domains[i - 1]->domain))
            return err_set(err, ST_BAD_DATA, "lease: domain %zu is out of bounds or order", i);
    }
    enum status status = ranges_check(lease->fresh, lease->n_fresh, true, LIMIT_LEASE_SEGMENTS, "lease: fresh", err);
    return status != ST_OK ? status : train_check(lease->train, err);
}

enum status plan_check_evaluate(const Alv__Evaluate *e, struct err *err)
{
    if (e->n_adapters < 1 || e->n_adapters > LIMIT_EVAL_ADAPTERS || e->session_incarnation.len != 16)
        return err_set(err, ST_BAD_DATA, "evaluation: %zu adapters, not within 1 .. %d", e->n_adapters,
                       LIMIT_EVAL_ADAPTERS);
    for (size_t i = 0; i < e->n_adapters; i++)
        if (!blob_ref_ok(e->adapters[i]->adapter))
            return err_set(err, ST_BAD_DATA, "evaluation: adapter %zu has no blob", i);
    if (e->window_tokens < 2 || e->window_tokens > 65536)
        return err_set(err, ST_BAD_DATA, "evaluation: window_tokens = %u is not within 2 .. 65536", e->window_tokens);
    return ranges_check(e->windows, e->n_windows, false, LIMIT_EVAL_WINDOWS, "evaluation: windows", err);
}

/* ---- which segments */

static enum status advance(struct view *view, const Alv__Lease *lease, struct err *err)
{
    for (size_t i = 0; i < lease->n_domains; i++) {
        const Alv__DomainView *in = lease->domains[i];
        struct domain_id id = {(uint16_t)in->domain};
        struct domain_replay *d = &view->domains[id.v];
        if (d->sample.k != lease->train->sample_k) { /* another k is another sample */
            sample_release(&d->sample);
            sample_init(&d->sample, &view->seed, id, lease->train->sample_k);
        }
        enum status status = sample_to(&d->sample, in->watermark, lease->exclusion_seq, d->exclusions, d->n, err);
        if (status != ST_OK)
            return err_prefix(err, ST_BAD_DATA, "lease %llu: domain %u", (unsigned long long)lease->id, in->domain);
    }
    return ST_OK;
}

static bool of_pool(const Alv__DomainView *domain, enum mix_pool pool)
{
    return (domain->domain == 0) == (pool == MIX_ANCHOR);
}

/* Draws `wanted` segments of a replay pool from the first on; the pool stays empty when nothing can be drawn. */
static void draw(const struct view *view, const Alv__Lease *lease, struct plan *plan, enum mix_pool pool,
                 uint32_t wanted)
{
    struct mix_domain *domains = xcalloc(lease->n_domains, sizeof *domains);
    uint32_t n = 0;
    for (size_t i = 0; i < lease->n_domains; i++) {
        const Alv__DomainView *in = lease->domains[i];
        const struct sample *sample = &view->domains[in->domain].sample;
        if (!of_pool(in, pool) || sample->n == 0)
            continue;
        uint64_t *members = xmalloc(sample->n * sizeof *members);
        sample_members(sample, members);
        domains[n++] = (struct mix_domain){.domain = sample->domain,
                                           .weight = pool == MIX_ANCHOR ? 1 : in->weight,
                                           .members = members,
                                           .n = sample->n};
    }
    plan->segments[pool] = xrealloc_array(plan->segments[pool], wanted, sizeof *plan->segments[pool]);
    plan->n[pool] = mix_draw(plan->seed, pool, domains, n, wanted, plan->segments[pool]);
    for (uint32_t i = 0; i < n; i++)
        free((void *)domains[i].members);
    free(domains);
}

enum status plan_begin(struct view *view, const Alv__Lease *lease, struct plan *out, struct err *err)
{
    const Alv__TrainConfig *train = lease->train;
    if (lease->exclusion_seq > view->seq)
        return err_set(err, ST_AGAIN, "lease %llu needs exclusions up to %llu, this worker has %llu",
                       (unsigned long long)lease->id, (unsigned long long)lease->exclusion_seq,
                       (unsigned long long)view->seq);
    enum status status = advance(view, lease, err);
    if (status != ST_OK)
        return status;

    struct plan plan = {.seed = lease->seed, .step_rows = train->step_tokens};
    plan.sample_rows = train->seq_tokens < train->step_tokens ? train->seq_tokens : train->step_tokens;
    plan.share_permille[MIX_ANCHOR] = train->anchor_permille;
    plan.share_permille[MIX_HISTORY] = train->history_permille;
    uint32_t total = 0;
    for (size_t i = 0; i < lease->n_fresh; i++)
        total += lease->fresh[i]->count;
    plan.segments[MIX_FRESH] = xmalloc(total * sizeof *plan.segments[MIX_FRESH]);
    for (size_t i = 0; i < lease->n_fresh; i++)
        for (uint32_t j = 0; j < lease->fresh[i]->count; j++)
            plan.segments[MIX_FRESH][plan.n[MIX_FRESH]++] =
                (struct mix_segment){{(uint16_t)lease->fresh[i]->domain}, lease->fresh[i]->first + j};

    for (enum mix_pool pool = MIX_HISTORY; pool <= MIX_ANCHOR; pool++) {
        uint32_t share = plan.share_permille[pool], other = plan.share_permille[MIX_HISTORY + MIX_ANCHOR - pool];
        if (share == 0)
            continue;
        /* As many segments as the share asks for if all were equally long, and some to spare. */
        uint64_t wanted = mix_tokens_wanted(total, share, other) * 5 / 4 + 4;
        draw(view, lease, &plan, pool, (uint32_t)(wanted < PLAN_DRAW_MAX ? wanted : PLAN_DRAW_MAX));
    }
    *out = plan;
    return ST_OK;
}

bool plan_more(const struct view *view, const Alv__Lease *lease, struct plan *plan, enum mix_pool pool)
{
    uint32_t had = plan->n[pool];
    if (pool == MIX_FRESH || had == 0 || had >= PLAN_DRAW_MAX)
        return false;
    draw(view, lease, plan, pool, had > PLAN_DRAW_MAX / 2 ? PLAN_DRAW_MAX : 2 * had);
    CHECK(plan->n[pool] > had);
    return true;
}

void plan_release(struct plan *plan)
{
    for (int p = 0; p < MIX_POOLS; p++)
        free(plan->segments[p]);
    *plan = (struct plan){0};
}

/* ---- which samples, in which order */

struct samples {
    struct plan_sample *items;
    uint32_t n, cap;
};

static void add_sample(struct samples *list, struct plan_sample sample)
{
    if (list->n == list->cap) {
        list->cap = list->cap ? 2 * list->cap : 256;
        list->items = xrealloc_array(list->items, list->cap, sizeof *list->items);
    }
    list->items[list->n++] = sample;
}

/* Cuts a run of `n_tokens` tokens at `begin`; returns the rows. */
static uint32_t cut_run(struct samples *list, enum mix_pool pool, uint64_t begin, uint64_t n_tokens, uint32_t rows_max)
{
    uint32_t rows = 0;
    for (uint64_t at = 0; at + 1 < n_tokens; at += rows_max) {
        uint64_t left = n_tokens - at;
        uint32_t n = left > rows_max ? rows_max + 1 : (uint32_t)left;
        add_sample(list, (struct plan_sample){pool, begin + at, n});
        rows += n - 1;
    }
    return rows;
}

static bool continues(const struct mix_segment *segments, const struct plan_text *texts, uint32_t i)
{
    return texts[i].joins && texts[i - 1].joins && texts[i].group == texts[i - 1].group &&
           segments[i].domain.v == segments[i - 1].domain.v && segments[i].offset == segments[i - 1].offset + 1;
}

static void fresh_samples(const struct plan *plan, const struct plan_text *texts, struct samples *out)
{
    uint64_t begin = 0, at = 0;
    for (uint32_t i = 0; i < plan->n[MIX_FRESH]; i++) {
        if (i > 0 && !continues(plan->segments[MIX_FRESH], texts, i)) {
            cut_run(out, MIX_FRESH, begin, at - begin, plan->sample_rows);
            begin = at;
        }
        at += texts[i].n_tokens;
    }
    cut_run(out, MIX_FRESH, begin, at - begin, plan->sample_rows);
}

/* Items of the mix: a fresh one is a sample, a replayed one is a drawn segment with all its samples. */
struct items {
    struct samples samples[MIX_POOLS];
    uint32_t *first[MIX_POOLS]; /* replay: (n + 1) first sample of each item */
    uint32_t *rows[MIX_POOLS];  /* of each item, at least 1 */
    uint32_t *shuffled;
    uint32_t n[MIX_POOLS];
};

static void make_items(const struct plan *plan, const struct plan_text *const texts[MIX_POOLS], struct items *items)
{
    struct samples fresh = {0};
    fresh_samples(plan, texts[MIX_FRESH], &fresh);
    items->n[MIX_FRESH] = fresh.n;
    items->shuffled = xmalloc((fresh.n + 1) * sizeof *items->shuffled);
    mix_shuffle(plan->seed, fresh.n, items->shuffled);
    items->rows[MIX_FRESH] = xmalloc((fresh.n + 1) * sizeof *items->rows[MIX_FRESH]);
    for (uint32_t i = 0; i < fresh.n; i++) {
        add_sample(&items->samples[MIX_FRESH], fresh.items[items->shuffled[i]]);
        items->rows[MIX_FRESH][i] = fresh.items[items->shuffled[i]].n_tokens - 1;
    }
    free(fresh.items);
    for (enum mix_pool pool = MIX_HISTORY; pool <= MIX_ANCHOR; pool++) {
        uint32_t n = items->n[pool] = plan->n[pool];
        items->first[pool] = xcalloc(n + 1, sizeof *items->first[pool]);
        items->rows[pool] = xcalloc(n + 1, sizeof *items->rows[pool]);
        uint64_t at = 0;
        for (uint32_t i = 0; i < n; i++) {
            uint32_t rows = cut_run(&items->samples[pool], pool, at, texts[pool][i].n_tokens, plan->sample_rows);
            items->first[pool][i + 1] = items->samples[pool].n;
            items->rows[pool][i] = rows ? rows : 1; /* a segment of one token is drawn, counted, and gives nothing */
            at += texts[pool][i].n_tokens;
        }
    }
}

static void items_release(struct items *items)
{
    for (int p = 0; p < MIX_POOLS; p++) {
        free(items->samples[p].items);
        free(items->first[p]);
        free(items->rows[p]);
    }
    free(items->shuffled);
}

static void cut_steps(const struct plan *plan, struct plan_order *order)
{
    order->steps = xcalloc((size_t)order->n_samples + 1, sizeof *order->steps);
    uint32_t rows = 0;
    for (uint32_t i = 0; i < order->n_samples; i++) {
        uint32_t more = order->samples[i].n_tokens - 1;
        if (rows > 0 && rows + more > plan->step_rows) {
            order->steps[++order->n_steps] = i;
            rows = 0;
        }
        rows += more;
    }
    if (order->n_samples > 0)
        order->steps[++order->n_steps] = order->n_samples;
}

void plan_order(const struct plan *plan, const struct plan_text *const texts[MIX_POOLS], struct plan_order *out)
{
    struct items items = {0};
    struct mix_input input = {0};
    struct mix_result result;
    struct samples samples = {0};
    size_t n = 0;
    make_items(plan, texts, &items);
    for (int p = 0; p < MIX_POOLS; p++) {
        input.tokens[p] = items.rows[p];
        input.n[p] = items.n[p];
        input.share_permille[p] = plan->share_permille[p];
        n += items.n[p];
    }
    struct mix_item *mixed = xmalloc((n + 1) * sizeof *mixed);
    mix_order(&input, mixed, &result);

    struct plan_order order = {0};
    for (uint32_t i = 0; i < result.n; i++) {
        enum mix_pool pool = mixed[i].pool;
        uint32_t at = mixed[i].index;
        uint32_t first = pool == MIX_FRESH ? at : items.first[pool][at];
        uint32_t end = pool == MIX_FRESH ? at + 1 : items.first[pool][at + 1];
        for (; first < end; first++) {
            add_sample(&samples, items.samples[pool].items[first]);
            order.rows[pool] += items.samples[pool].items[first].n_tokens - 1;
        }
    }
    order.samples = samples.items;
    order.n_samples = samples.n;
    memcpy(order.ran_short, result.ran_short, sizeof order.ran_short);
    cut_steps(plan, &order);
    free(mixed);
    items_release(&items);
    *out = order;
}

void plan_order_release(struct plan_order *order)
{
    free(order->samples);
    free(order->steps);
    *order = (struct plan_order){0};
}

/* ---- losses */

void plan_losses(const struct plan *plan, const struct plan_text *fresh, const struct plan_order *order,
                 const double *sample_nll, const uint32_t *sample_targets, float *out)
{
    uint32_t n = plan->n[MIX_FRESH];
    uint64_t *begin = xmalloc(((size_t)n + 1) * sizeof *begin); /* first token of each segment */
    double *sum = xcalloc((size_t)n + 1, sizeof *sum), *weight = xcalloc((size_t)n + 1, sizeof *weight);
    begin[0] = 0;
    for (uint32_t i = 0; i < n; i++)
        begin[i + 1] = begin[i] + fresh[i].n_tokens;

    for (uint32_t s = 0; s < order->n_samples; s++) {
        const struct plan_sample *sample = &order->samples[s];
        if (sample->pool != MIX_FRESH || sample_targets[s] == 0)
            continue;
        uint64_t first = sample->begin + 1, end = sample->begin + sample->n_tokens; /* the tokens asked for */
        double mean = sample_nll[s] / sample_targets[s];
        double share = (double)sample_targets[s] / (sample->n_tokens - 1); /* of its rows that are targets */
        uint32_t low = 0, high = n; /* the last segment that begins at or before `first` */
        while (high - low > 1) {
            uint32_t middle = low + (high - low) / 2;
            if (begin[middle] <= first)
                low = middle;
            else
                high = middle;
        }
        for (uint32_t i = low; i < n && begin[i] < end; i++) {
            uint64_t from = begin[i] > first ? begin[i] : first, to = begin[i + 1] < end ? begin[i + 1] : end;
            if (from < to) {
                sum[i] += mean * share * (double)(to - from);
                weight[i] += share * (double)(to - from);
            }
        }
    }
    for (uint32_t i = 0; i < n; i++)
        out[i] = weight[i] > 0 ? (float)(sum[i] / weight[i]) : 0;
    free(weight);
    free(sum);
    free(begin);
}
