/* The plan of a lease: the same list whoever computes it, every fresh token once, and the border. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "harness.h"
#include "worker/plan.h"

static const struct sip_key seed = {{1, 2, 3}};
static uint8_t sixteen[16], thirty_two[32];

/* A lease over three domains: `general` (anchor) and two others, with history below the watermarks. */
struct fixture {
    Alv__Lease lease;
    Alv__TrainConfig train;
    Alv__BlobRef parent;
    Alv__Range ranges[3], *range_list[3];
    Alv__DomainView views[3], *view_list[3];
};

static void fixture_init(struct fixture *f, uint64_t watermark, uint64_t exclusion_seq)
{
    alv__lease__init(&f->lease);
    alv__train_config__init(&f->train);
    alv__blob_ref__init(&f->parent);
    f->parent.digest = (ProtobufCBinaryData){32, thirty_two};
    f->parent.bytes = 100;
    f->train.seq_tokens = 64;
    f->train.step_tokens = 128;
    f->train.lr = 1e-3f, f->train.beta1 = 0.9f, f->train.beta2 = 0.99f, f->train.eps = 1e-8f;
    f->train.clip = 1, f->train.warmup_steps = 4;
    f->train.anchor_permille = 50, f->train.history_permille = 200, f->train.sample_k = 64;
    const uint32_t counts[3] = {5, 17, 40};
    for (uint32_t i = 0; i < 3; i++) {
        alv__range__init(&f->ranges[i]);
        alv__domain_view__init(&f->views[i]);
        f->ranges[i].domain = i == 0 ? 1 : i; /* 1, 1, 2 */
        f->ranges[i].first = watermark + 100 * i;
        f->ranges[i].count = counts[i];
        f->views[i].domain = i;
        f->views[i].watermark = watermark;
        f->views[i].weight = i;
        f->range_list[i] = &f->ranges[i];
        f->view_list[i] = &f->views[i];
    }
    f->lease.id = 7, f->lease.generation = 1, f->lease.seed = 99, f->lease.exclusion_seq = exclusion_seq;
    f->lease.session_incarnation = (ProtobufCBinaryData){16, sixteen};
    f->lease.parent_adapter = &f->parent;
    f->lease.train = &f->train;
    f->lease.n_fresh = 3, f->lease.fresh = f->range_list;
    f->lease.n_domains = 3, f->lease.domains = f->view_list;
}

/* The text of a segment is a function of where it is, as it would be from the log. */
static struct plan_text text_of(struct mix_segment s)
{
    return (struct plan_text){.n_tokens = 1 + (uint32_t)((s.offset * 37 + s.domain.v * 11) % 150),
                              .group = s.offset / 6,
                              .joins = s.offset % 5 != 0};
}

/* A digest of the whole result, drawing further until nothing runs short. `begin_with_more`: another first draw. */
static struct digest list_digest(struct view *view, const Alv__Lease *lease, bool begin_with_more, uint32_t *steps)
{
    struct plan plan = {0};
    struct plan_order order = {0};
    struct plan_text *texts[MIX_POOLS] = {0};
    struct err err;
    struct digest digest = {{0}};
    if (!EXPECT_ST(plan_begin(view, lease, &plan, &err), ST_OK, &err))
        return digest;
    if (begin_with_more)
        EXPECT(plan_more(view, lease, &plan, MIX_HISTORY) && plan_more(view, lease, &plan, MIX_ANCHOR));
    for (bool again = true; again;) {
        for (int p = 0; p < MIX_POOLS; p++) {
            texts[p] = xrealloc_array(texts[p], plan.n[p] + 1, sizeof *texts[p]);
            for (uint32_t i = 0; i < plan.n[p]; i++)
                texts[p][i] = text_of(plan.segments[p][i]);
        }
        plan_order_release(&order);
        plan_order(&plan, (const struct plan_text *const *)texts, &order);
        again = false;
        for (int p = MIX_HISTORY; p < MIX_POOLS; p++)
            again |= order.ran_short[p] && plan_more(view, lease, &plan, (enum mix_pool)p);
    }
    struct buf all = {0}; /* samples by segment, so that a longer draw's unused tail does not count */
    for (uint32_t s = 0; s < order.n_samples; s++) {
        const struct plan_sample *sample = &order.samples[s];
        uint64_t at = 0;
        for (uint32_t i = 0; i < plan.n[sample->pool]; i++) {
            uint64_t end = at + texts[sample->pool][i].n_tokens;
            if (sample->begin < end && sample->begin + sample->n_tokens > at) {
                buf_put_u16(&all, plan.segments[sample->pool][i].domain.v);
                buf_put_u64(&all, plan.segments[sample->pool][i].offset);
                buf_put_u64(&all, sample->begin - at);
            }
            at = end;
        }
        buf_put_u32(&all, sample->n_tokens);
    }
    for (uint32_t t = 0; t <= order.n_steps; t++)
        buf_put_u32(&all, order.steps[t]);
    hash_blake2b(all.data, all.len, &digest);
    *steps = order.n_steps;
    buf_release(&all);
    for (int p = 0; p < MIX_POOLS; p++)
        free(texts[p]);
    plan_order_release(&order);
    plan_release(&plan);
    return digest;
}

/* Exclusions 1 .. 3: two of domain 1, one of domain 2. */
static void exclude(struct view *view, uint64_t up_to)
{
    Alv__Exclusions list = ALV__EXCLUSIONS__INIT;
    Alv__Exclusion entries[3], *pointers[3];
    const uint64_t at[3] = {100, 200, 300}, first[3] = {3, 50, 10};
    for (uint32_t i = 0; i < up_to; i++) {
        alv__exclusion__init(&entries[i]);
        entries[i].seq = i + 1;
        entries[i].domain = i == 2 ? 2 : 1;
        entries[i].first = first[i];
        entries[i].count = 40;
        entries[i].watermark = at[i];
        pointers[i] = &entries[i];
    }
    list.n_entries = up_to;
    list.entries = pointers;
    struct err err;
    EXPECT_ST(view_exclude(view, &list, &err), ST_OK, &err);
    EXPECT_EQ(view_seq(view), up_to);
}

static void test_same_lease_same_list(void)
{
    struct fixture f, newer;
    fixture_init(&f, 400, 2);
    fixture_init(&newer, 900, 3);
    newer.lease.seed = 5;
    uint32_t steps, other;
    struct view *fresh = view_new(&seed), *used = view_new(&seed);
    exclude(fresh, 2);
    exclude(used, 3); /* knows more already, and has planned a later lease */
    struct digest later = list_digest(used, &newer.lease, false, &other);
    struct digest a = list_digest(fresh, &f.lease, false, &steps), b = list_digest(used, &f.lease, false, &other);
    EXPECT(digest_eq(&a, &b));
    EXPECT_EQ(steps, other);
    EXPECT(steps > 10);
    b = list_digest(used, &f.lease, true, &other); /* what was drawn at first does not matter */
    EXPECT(digest_eq(&a, &b));
    b = list_digest(used, &newer.lease, false, &other); /* forward again, after the step back */
    EXPECT(digest_eq(&later, &b));

    f.lease.exclusion_seq = 1; /* one exclusion fewer, another list */
    b = list_digest(used, &f.lease, false, &other);
    EXPECT(!digest_eq(&a, &b));
    f.lease.exclusion_seq = 2;
    f.lease.seed = 100;
    b = list_digest(used, &f.lease, false, &other);
    EXPECT(!digest_eq(&a, &b));

    struct plan plan;
    struct err err;
    f.lease.exclusion_seq = 3; /* not known to the first view yet */
    EXPECT_ST(plan_begin(fresh, &f.lease, &plan, &err), ST_AGAIN, &err);
    view_free(fresh);
    view_free(used);
}

static void test_every_fresh_token_once_and_steps_full(void)
{
    struct fixture f;
    struct err err;
    fixture_init(&f, 400, 0);
    struct view *view = view_new(&seed);
    struct plan plan = {0};
    struct plan_order order;
    if (!EXPECT_ST(plan_begin(view, &f.lease, &plan, &err), ST_OK, &err))
        return;
    EXPECT_EQ(plan.n[MIX_FRESH], 62);
    EXPECT(plan.n[MIX_HISTORY] > 0 && plan.n[MIX_ANCHOR] > 0);
    struct plan_text *texts[MIX_POOLS];
    uint64_t total = 0;
    for (int p = 0; p < MIX_POOLS; p++) {
        texts[p] = xcalloc(plan.n[p] + 1, sizeof *texts[p]);
        for (uint32_t i = 0; i < plan.n[p]; i++) {
            texts[p][i] = text_of(plan.segments[p][i]);
            EXPECT((p == MIX_ANCHOR) == (plan.segments[p][i].domain.v == 0));
            EXPECT((p == MIX_FRESH) == (plan.segments[p][i].offset >= 400));
            total += p == MIX_FRESH ? texts[p][i].n_tokens : 0;
        }
    }
    plan_order(&plan, (const struct plan_text *const *)texts, &order);

    /* How often each fresh token is a target: once, but for the first of a run, which nothing precedes. */
    uint8_t *asked = xcalloc(total, 1);
    uint64_t targets = 0;
    for (uint32_t s = 0; s < order.n_samples; s++) {
        const struct plan_sample *sample = &order.samples[s];
        EXPECT(sample->n_tokens >= 2 && sample->n_tokens <= 65);
        if (sample->pool == MIX_FRESH)
            for (uint32_t t = 1; t < sample->n_tokens; t++)
                asked[sample->begin + t]++, targets++;
    }
    EXPECT_EQ(targets, order.rows[MIX_FRESH]);
    uint64_t at = 0;
    for (uint32_t i = 0; i < plan.n[MIX_FRESH]; i++) {
        const struct mix_segment *seg = plan.segments[MIX_FRESH];
        bool starts = i == 0 || seg[i].domain.v != seg[i - 1].domain.v || seg[i].offset != seg[i - 1].offset + 1 ||
                      seg[i].offset / 6 != seg[i - 1].offset / 6 || seg[i].offset % 5 == 0 ||
                      seg[i - 1].offset % 5 == 0;
        for (uint32_t t = 0; t < texts[MIX_FRESH][i].n_tokens; t++)
            EXPECT_EQ(asked[at + t], !(t == 0 && starts));
        at += texts[MIX_FRESH][i].n_tokens;
    }

    /* Steps: full to the last sample that fits, none empty, all samples in one. */
    EXPECT_EQ(order.steps[0], 0);
    EXPECT_EQ(order.steps[order.n_steps], order.n_samples);
    for (uint32_t t = 0; t < order.n_steps; t++) {
        uint32_t rows = 0;
        for (uint32_t s = order.steps[t]; s < order.steps[t + 1]; s++)
            rows += order.samples[s].n_tokens - 1;
        EXPECT(rows > 0 && rows <= 128);
        if (t + 1 < order.n_steps)
            EXPECT(rows + order.samples[order.steps[t + 1]].n_tokens - 1 > 128);
    }
    double all = (double)(order.rows[0] + order.rows[1] + order.rows[2]);
    EXPECT_NEAR((double)order.rows[MIX_HISTORY] / all, 0.2, 0.05);
    EXPECT_NEAR((double)order.rows[MIX_ANCHOR] / all, 0.05, 0.05);

    /* Losses: when every sample's mean is c, so is every segment's; a sample without targets gives none. */
    double *nll = xcalloc(order.n_samples, sizeof *nll);
    uint32_t *n_targets = xcalloc(order.n_samples, sizeof *n_targets);
    float *losses = xcalloc(plan.n[MIX_FRESH], sizeof *losses);
    for (uint32_t s = 0; s < order.n_samples; s++) {
        n_targets[s] = order.samples[s].n_tokens - 1;
        nll[s] = 2.5 * n_targets[s];
    }
    plan_losses(&plan, texts[MIX_FRESH], &order, nll, n_targets, losses);
    at = 0;
    for (uint32_t i = 0; i < plan.n[MIX_FRESH]; i++) {
        bool any = false;
        for (uint32_t t = 0; t < texts[MIX_FRESH][i].n_tokens; t++)
            any |= asked[at + t] > 0;
        EXPECT_NEAR(losses[i], any ? 2.5 : 0, 1e-6);
        at += texts[MIX_FRESH][i].n_tokens;
    }
    free(losses);
    free(n_targets);
    free(nll);
    free(asked);
    for (int p = 0; p < MIX_POOLS; p++)
        free(texts[p]);
    plan_order_release(&order);
    plan_release(&plan);
    view_free(view);
}

static void test_losses_go_to_their_segments(void)
{
    /* Three segments of 3, 4 and 3 tokens; one sample over the first two, one of the third. */
    struct mix_segment segments[3] = {{{1}, 0}, {{1}, 1}, {{1}, 9}};
    struct plan_text texts[3] = {{3, 1, true}, {4, 1, true}, {3, 2, true}};
    struct plan plan = {.segments = {segments}, .n = {3}, .sample_rows = 100, .step_rows = 100};
    struct plan_sample samples[2] = {{MIX_FRESH, 7, 3}, {MIX_FRESH, 0, 7}};
    struct plan_order order = {.samples = samples, .n_samples = 2};
    double nll[2] = {8, 6};
    uint32_t targets[2] = {2, 6};
    float out[3];
    plan_losses(&plan, texts, &order, nll, targets, out);
    EXPECT_NEAR(out[0], 1, 0);
    EXPECT_NEAR(out[1], 1, 0);
    EXPECT_NEAR(out[2], 4, 0);
}

static void test_border(void)
{
    struct fixture f;
    struct err err;
    fixture_init(&f, 400, 0);
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_OK, &err);
    f.ranges[1].first = f.ranges[0].first + 4;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);
    fixture_init(&f, 400, 0);
    f.views[2].domain = 1;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);
    fixture_init(&f, 400, 0);
    f.ranges[2].domain = LIMIT_DOMAINS;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);
    fixture_init(&f, 400, 0);
    f.train.anchor_permille = 800;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);
    fixture_init(&f, 400, 0);
    f.ranges[2].count = LIMIT_LEASE_SEGMENTS;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);
    fixture_init(&f, 400, 0);
    f.train.lr = -1;
    EXPECT_ST(plan_check_lease(&f.lease, &err), ST_BAD_DATA, &err);

    struct view *view = view_new(&seed);
    exclude(view, 3);
    Alv__Exclusions list = ALV__EXCLUSIONS__INIT;
    Alv__Exclusion e = ALV__EXCLUSION__INIT, *pointer = &e;
    list.n_entries = 1, list.entries = &pointer;
    e.seq = 4, e.domain = 1, e.first = 0, e.count = 1, e.watermark = 150; /* falls from 200 */
    EXPECT_ST(view_exclude(view, &list, &err), ST_BAD_DATA, &err);
    e.watermark = 200, e.domain = LIMIT_DOMAINS;
    EXPECT_ST(view_exclude(view, &list, &err), ST_BAD_DATA, &err);
    EXPECT_EQ(view_seq(view), 3);
    e.domain = 1, e.seq = 3; /* known: passed over */
    EXPECT_ST(view_exclude(view, &list, &err), ST_OK, &err);
    EXPECT_EQ(view_seq(view), 3);
    view_free(view);
}

int main(void)
{
    hash_start();
    RUN(test_same_lease_same_list);
    RUN(test_every_fresh_token_once_and_steps_full);
    RUN(test_losses_go_to_their_segments);
    RUN(test_border);
    return harness_end();
}
