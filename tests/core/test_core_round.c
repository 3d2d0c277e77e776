/* Rounds from open to verdict: publication, half steps, refusals, quorum, held deltas, and a crash at every batch. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "proto/manifest.h"
#include "world.h"

enum { WORKERS = 3 };
static struct peer workers[WORKERS];
static struct snapshot *snap;

static void hello_all(struct world *w)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = world_peer(PLANE_WORK, 100 + i);
        world_hello(w, workers[i], (uint8_t)(50 + i), 1);
    }
}

static struct snapshot *look(struct world *w)
{
    core_snapshot(w->core, w->now, snap);
    return snap;
}

/* `leases` full leases of text, about a fifth of it held out. */
static void fill(struct world *w, const char *prefix, unsigned leases)
{
    struct peer p = world_peer(PLANE_INGEST, 10);
    uint64_t position, producer;
    world_hello(w, p, 1, 1);
    world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "heldout_permille", "200", 0);
    producer = world_push_open(w, p, "a", "code", &position);
    world_push_many(w, p, producer, position, prefix, 30 * leases, 1900);
}

static void test_a_round_is_published(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    fill(&w, "a", 10);
    uint64_t trained = look(&w)->domains[1].segments;
    EXPECT(world_work(&w, workers, WORKERS) > 3);
    struct snapshot *s = look(&w);
    REQUIRE(s->version == 1);
    EXPECT_EQ(s->phase, ROUND_NONE);
    EXPECT_EQ(s->domains[1].count[SEG_DONE], trained);
    EXPECT_EQ(s->domains[1].watermark, trained);
    EXPECT_EQ(s->domains[1].reference, 1); /* significantly better */
    EXPECT_EQ(s->domains[0].reference, 0);
    EXPECT_EQ(w.n_dropped, 3); /* deltas are done with */
    EXPECT(world_counts_once(&w));

    struct bytes value;
    struct state_version *v = calloc(1, sizeof *v);
    struct manifest m;
    struct sign_public key;
    REQUIRE(world_has(&w, FAMILY_VERSIONS, key_u64('m', 1), &value) && state_version_get(value, v));
    memcpy(key.b, w.config.release_public, 32);
    EXPECT_ST(manifest_verify(&key, v->manifest.data, v->manifest.len, v->signature, SIGNATURE_LEN, NULL), ST_OK, NULL);
    REQUIRE(!manifest_decode(v->manifest.data, v->manifest.len, &m, NULL));
    EXPECT(m.number == 1 && m.parent == 0 && m.round == 1 && m.n_leases == 3 && m.flags == 0 && m.n_domains == 2);
    uint64_t n = 0;
    double weight = 0;
    for (uint32_t i = 0; i < m.n_leases; i++) {
        weight += m.leases[i].weight;
        for (uint32_t j = 0; j < m.leases[i].n_ranges; j++)
            n += m.leases[i].ranges[j].count;
    }
    EXPECT_EQ(n, trained);
    EXPECT_NEAR(weight, 1, 1e-12);
    EXPECT(m.domains[1].windows > 10 && m.domains[1].forgetting < -0.05 && m.domains[1].forgetting_high < 0);
    manifest_release(&m);
    EXPECT(world_has(&w, FAMILY_MATRIX, key_matrix(1, (struct domain_id){1}), &value));
    EXPECT(world_has(&w, FAMILY_VERSIONS, key_pair('v', 1, 0), &value));
    EXPECT_EQ(memstore_seek(&w.disk, FAMILY_LEASES, "", 0),
              memstore_seek(&w.disk, FAMILY_DELTAS, "", 0)); /* none left */
    EXPECT(!world_has(&w, FAMILY_STREAM, key_domain('t', (struct domain_id){1}, 0), &value));
    EXPECT(world_has(&w, FAMILY_STREAM, key_domain('T', (struct domain_id){1}, 0), &value));
    free(v);

    fill(&w, "b", 10);
    hello_all(&w);
    world_work(&w, workers, WORKERS);
    EXPECT_EQ(look(&w)->version, 2);
    world_restart(&w);
    EXPECT_EQ(look(&w)->version, 2);
    EXPECT_EQ(look(&w)->domains[1].count[SEG_DONE], look(&w)->domains[1].segments);
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_a_forgetting_candidate_is_refused(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    fill(&w, "a", 10);
    w.candidate_loss = 2.5;
    w.auto_aggregate = false;
    uint64_t trained = look(&w)->domains[1].segments;
    for (uint32_t round = 1; round <= 3; round++) {
        world_work(&w, workers, WORKERS);
        uint32_t attempt = 0;
        for (; w.aggregate_wanted; attempt++) { /* the step, half of it, then each lease alone: all of them forget */
            EXPECT_EQ(w.aggregate.aggregate.round, round);
            EXPECT_EQ(w.aggregate.aggregate.attempt, attempt);
            EXPECT_NEAR(w.aggregate.aggregate.step, attempt == 1 ? 0.5 : 1, 0);
            EXPECT(attempt < 2 || w.aggregate.aggregate.n == 1);
            world_aggregated(&w, ST_OK, -1);
            world_work(&w, workers, WORKERS);
        }
        EXPECT(attempt > 3);
        struct snapshot *s = look(&w);
        EXPECT_EQ(s->quarantined, 0); /* it is not the data */
        EXPECT(s->version == 0 && s->phase == ROUND_NONE && s->refusals == round && s->stopped == (round == 3));
        EXPECT_EQ(s->domains[1].count[SEG_PENDING], trained);
        EXPECT(world_counts_once(&w));
        EXPECT(world_task(&w, workers[0]) == NULL); /* it rests: no hot loop */
        world_tick(&w, 60000 * round);
        struct bytes value;
        EXPECT(world_has(&w, FAMILY_VERSIONS, key_pair('v', round, 0), &value));
        EXPECT(world_has(&w, FAMILY_VERSIONS, key_pair('v', round, 1), &value));
    }
    world_tick(&w, 3600000);
    world_restart(&w);
    hello_all(&w);
    EXPECT(look(&w)->stopped && strstr(look(&w)->alarm, "refused") != NULL);
    EXPECT_EQ(world_work(&w, workers, WORKERS), 0);
    w.candidate_loss = 1.9;
    w.auto_aggregate = true;
    world_control(&w, ALV__CONTROL_VERB__CONTROL_RESUME, "", "", "", 0);
    world_work(&w, workers, WORKERS);
    EXPECT_EQ(look(&w)->version, 1);
    EXPECT(!look(&w)->stopped && !look(&w)->alarm[0]);
    world_close(&w);
}

static struct state_verdict verdict_of(const struct world *w, uint64_t round, uint64_t n, bool *there)
{
    struct bytes value;
    struct state_verdict v = {0};
    *there = world_has(w, FAMILY_VERSIONS, key_pair('v', round, n), &value) && state_verdict_get(value, &v);
    return v;
}

static void test_the_culprit_is_found_and_the_rest_goes_on(void)
{
    struct world w;
    bool there;
    world_open(&w);
    hello_all(&w);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "manuals", "", "", 0);
    fill(&w, "a", 6);
    struct peer p = world_peer(PLANE_INGEST, 10);
    world_push_many(&w, p, world_push_open(&w, p, "b", "manuals", NULL), 0, "m", 100, 1900);
    uint64_t trained = look(&w)->domains[1].segments + snap->domains[2].segments;
    w.poison = 77;
    w.auto_aggregate = false;
    world_work(&w, workers, WORKERS);
    for (int i = 0; i < 2; i++) {
        world_aggregated(&w, ST_OK, -1);
        if (i == 0)
            world_work(&w, workers, WORKERS);
    }
    const Alv__Task *t = NULL;
    for (int i = 0; i < 100 && !(t && t->lease); i++) /* the half step is scored, and the text dealt out again */
        if ((t = world_task(&w, workers[i % WORKERS])) && t->evaluate)
            world_score(&w, workers[i % WORKERS], t->evaluate);
    REQUIRE(t && t->lease);
    EXPECT(look(&w)->round_attempt == ATTEMPT_DIAGNOSE && snap->phase == ROUND_OPEN && snap->round == 1);
    EXPECT_NEAR(t->lease->train->lr, w.config.settings.lr / 2, 1e-9);
    EXPECT(t->lease->train->anchor_permille == 100 && t->lease->train->history_permille == 400);
    for (size_t i = 0; i < t->lease->n_fresh; i++)
        EXPECT_EQ(t->lease->fresh[i]->domain, t->lease->fresh[0]->domain);
    uint32_t leases = snap->n_leases;
    EXPECT(leases > WORKERS);
    world_restart(&w);
    hello_all(&w);
    w.auto_aggregate = true;
    world_work(&w, workers, WORKERS);
    EXPECT(look(&w)->version == 1 && snap->quarantined == 1 && !snap->refusals && snap->phase == ROUND_NONE);
    uint64_t held = snap->domains[1].count[SEG_QUARANTINED];
    EXPECT(held && held < trained / 5 && !snap->domains[2].count[SEG_QUARANTINED]); /* one lease's */
    EXPECT_EQ(snap->domains[1].count[SEG_DONE] + snap->domains[2].count[SEG_DONE] + held, trained);
    unsigned alone = 0, bad = 0;
    for (uint64_t n = 0; n < leases + 3; n++) {
        struct state_verdict v = verdict_of(&w, 1, n, &there);
        REQUIRE(there);
        EXPECT_EQ(v.attempt, n < 2 ? n : n < leases + 2 ? ATTEMPT_DIAGNOSE : ATTEMPT_REST);
        EXPECT(v.published == (n == leases + 2));
        alone += v.lease != 0;
        bad += v.lease && memmem(v.text.data, v.text.len, "\"outcome\":\"refuse\"", 18) != NULL;
    }
    EXPECT(alone == leases && bad == 1);
    verdict_of(&w, 1, leases + 3, &there);
    EXPECT(!there && world_counts_once(&w));
    world_close(&w);
}

/* What an evaluation may cost of the round's training decides the looks before anything is scored. */
static void test_an_evaluation_costs_no_more_than_it_may(void)
{
    for (int big = 0; big < 2; big++) {
        struct world w;
        bool there;
        world_open(&w);
        hello_all(&w);
        w.target_tokens = big ? 10000000 : 1000;
        w.candidate_loss = 2.02; /* on the edge of the budget: as many looks as there are */
        fill(&w, "a", 20);
        world_work(&w, workers, WORKERS);
        struct state_verdict v = verdict_of(&w, 1, 0, &there);
        REQUIRE(there && v.text.len);
        char *text = strndup((const char *)v.text.data, v.text.len);
        EXPECT((strstr(text, "\"cut\":true") != NULL) == !big);
        EXPECT((strstr(text, "\"looks\":[64,64,64]") != NULL) == !big);
        EXPECT((strstr(text, "\"looks\":[64,128,256]") != NULL) == big);
        free(text);
        world_close(&w);
    }
}

static uint32_t in_set(const struct world *w, uint64_t offset) /* 0: no window; else 1 + waiting */
{
    struct bytes value;
    struct state_windows v;
    if (!world_has(w, FAMILY_STREAM, key_domain('w', (struct domain_id){1}, offset), &value) ||
        !state_windows_get(value, &v))
        return 0;
    return 1u + v.waiting;
}

/* A set is frozen when a round opens and only loses windows until the next one, which takes up who waited. */
static void test_probe_sets(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_gate", "20", 0);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_tuning", "0", 0);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_audit", "0", 0);
    fill(&w, "a", 8);
    world_work(&w, workers, WORKERS);
    EXPECT(look(&w)->version == 1 && snap->domains[1].probe_set == 1 && snap->domains[1].probe[PART_GATE] == 20);
    uint64_t held_out = snap->domains[1].probe_segments, member = 0;
    while (in_set(&w, member) != 1)
        member++;
    char record[16] = "", *at = NULL;
    struct bytes value; /* the record whose text that window is: "a7a7a7..." */
    struct state_segment s;
    REQUIRE(world_has(&w, FAMILY_STREAM, key_stream('s', (struct domain_id){1}, true, member), &value) &&
            state_segment_get(value, &s));
    memcpy(record, s.text.data, 8);
    if ((at = strchr(record + 1, 'a')))
        *at = 0;
    struct peer p = world_peer(PLANE_INGEST, 10);
    uint64_t position, producer = world_push_open(&w, p, "a", "code", &position);
    world_push(&w, p, producer, position, (struct text[]){{record, "a new text of this record\n"}}, 1);
    EXPECT(!in_set(&w, member) && in_set(&w, held_out) == 2); /* it left; its successor waits */
    EXPECT(look(&w)->domains[1].probe_set == 1 && snap->domains[1].probe[PART_GATE] == 19);
    world_restart(&w);
    hello_all(&w);
    EXPECT(look(&w)->domains[1].probe_set == 1 && snap->domains[1].probe[PART_GATE] == 19);
    fill(&w, "b", 8);
    world_work(&w, workers, WORKERS);
    EXPECT(look(&w)->version == 2 && snap->domains[1].probe_set == 2 && snap->domains[1].probe[PART_GATE] == 20);
    bool there;
    struct state_verdict v = verdict_of(&w, 2, 0, &there);
    EXPECT(there && memmem(v.text.data, v.text.len, "\"probe_set\":2", 13));
    EXPECT(memmem(v.text.data, v.text.len, "\"available\":20", 14)); /* who waits is not looked at */
    fill(&w, "c", 8);                                                /* nothing is missing: the set stays */
    world_work(&w, workers, WORKERS);
    EXPECT(look(&w)->version == 3 && snap->domains[1].probe_set == 2);
    world_close(&w);
}

static void test_a_bad_delta_is_held_and_the_rest_goes_on(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    fill(&w, "a", 10);
    w.auto_aggregate = false;
    world_work(&w, workers, WORKERS);
    REQUIRE(w.aggregate_wanted && w.aggregate.aggregate.n == 3);
    world_aggregated(&w, ST_OK, 1);
    world_work(&w, workers, WORKERS);
    struct snapshot *s = look(&w);
    EXPECT_EQ(s->version, 1);
    EXPECT_EQ(s->quarantined, 1);
    EXPECT(s->domains[1].count[SEG_QUARANTINED] > 0);
    EXPECT_EQ(s->domains[1].count[SEG_QUARANTINED] + s->domains[1].count[SEG_DONE], s->domains[1].segments);
    world_close(&w);
}

static const struct manifest_domain *row_of(const struct world *w, uint64_t version, uint32_t domain,
                                            struct state_version *v, struct manifest *m)
{
    struct bytes value;
    if (!EXPECT(world_has(w, FAMILY_VERSIONS, key_u64('m', version), &value) && state_version_get(value, v) &&
                manifest_decode(v->manifest.data, v->manifest.len, m, NULL) == ST_OK && m->n_domains > domain))
        exit(harness_end());
    return &m->domains[domain];
}

static enum status set_sentinel(struct world *w, const char *domain)
{
    const struct said *said = world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, domain, "sentinel", "1", 0);
    return said->verb == VERB_ERROR ? (enum status)((const Alv__Error *)said->message)->status : ST_OK;
}

/* It is never trained, is worse with every version, blocks none of them, and stays compared with version 0. */
static void test_a_sentinel_is_measured_and_not_judged(void)
{
    struct world w;
    struct state_version *v = calloc(1, sizeof *v);
    struct manifest m;
    uint64_t position;
    world_open(&w);
    hello_all(&w);
    w.worse = 2;
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "self", "", "", 0);
    EXPECT_EQ(set_sentinel(&w, "general"), ST_USAGE);
    EXPECT_EQ(set_sentinel(&w, "self"), ST_OK);
    struct peer p = world_peer(PLANE_INGEST, 11);
    world_hello(&w, p, 2, 1);
    uint64_t producer = world_push_open(&w, p, "s", "self", &position);
    world_push_many(&w, p, producer, position, "s", 100, 500);
    fill(&w, "a", 10);
    EXPECT_EQ(set_sentinel(&w, "code"), ST_CONFLICT); /* it holds text */
    EXPECT(world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "self", "sentinel", "0", 0)->verb == VERB_ERROR);
    struct snapshot *s = look(&w);
    EXPECT(s->domains[2].sentinel && s->domains[2].segments == 0 && s->domains[2].probe_segments == 100);
    for (uint64_t version = 1; version <= 2; version++) {
        hello_all(&w);
        world_work(&w, workers, WORKERS);
        REQUIRE(look(&w)->version == version);
        EXPECT(s->domains[2].probe[PART_GATE] == 0 && s->domains[2].probe[PART_AUDIT] == 100);
        const struct manifest_domain *row = row_of(&w, version, 2, v, &m);
        EXPECT(row->reference == 0 && row->windows == w.config.settings.looks[0]);
        double change = w.candidate_loss + 1 - 2;
        EXPECT(row->forgetting > change && row->forgetting < change + 0.016); /* see world_score() */
        EXPECT(m.domains[1].reference == version - 1 && m.domains[1].forgetting < 0);
        EXPECT_EQ(look(&w)->domains[2].reference, 0);
        manifest_release(&m);
        fill(&w, "b", 10);
    }
    world_restart(&w);
    EXPECT(look(&w)->domains[2].sentinel && look(&w)->domains[2].reference == 0);
    EXPECT(world_counts_once(&w));
    free(v);
    world_close(&w);
}

static void test_quorum_and_grace(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    fill(&w, "a", 10);
    w.auto_aggregate = false;
    const Alv__Task *t[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        t[i] = world_task(&w, workers[i]);
        REQUIRE(t[i] && t[i]->lease);
    }
    world_tick(&w, 10000);
    world_commit_delta(&w, workers[0], t[0]->lease, 1);
    world_commit_delta(&w, workers[1], t[1]->lease, 1);
    EXPECT(!w.aggregate_wanted); /* the quorum is there after 10 s, so the third has until 20 s */
    world_tick(&w, 9000);
    EXPECT(!w.aggregate_wanted);
    world_tick(&w, 1100);
    REQUIRE(w.aggregate_wanted && w.aggregate.aggregate.n == 2);
    EXPECT(look(&w)->domains[1].count[SEG_PENDING] > 0); /* the third's text waits for the next round */
    const struct said *late = world_commit_delta(&w, workers[2], t[2]->lease, 1);
    EXPECT(late && !((const Alv__DeltaAck *)late->message)->accepted);
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_aggregation_is_retried(void)
{
    struct world w;
    world_open(&w);
    hello_all(&w);
    fill(&w, "a", 3);
    w.auto_aggregate = false;
    world_work(&w, workers, WORKERS);
    REQUIRE(w.aggregate_wanted);
    world_aggregated(&w, ST_NO_SPACE, -1);
    EXPECT(!w.aggregate_wanted && strstr(look(&w)->alarm, "aggregation") != NULL);
    world_tick(&w, 6000);
    EXPECT(w.aggregate_wanted);
    world_restart(&w); /* and asked for again after a crash */
    REQUIRE(w.aggregate_wanted);
    world_aggregated(&w, ST_OK, -1);
    hello_all(&w);
    world_work(&w, workers, WORKERS);
    EXPECT_EQ(look(&w)->version, 1);
    world_close(&w);
}

/* What versions claim is what the states say, each segment once. */
static void check_claims(struct world *w)
{
    uint64_t done = 0, newest = look(w)->version;
    struct bytes value;
    struct state_version *v = calloc(1, sizeof *v);
    struct manifest m;
    for (uint64_t n = 1; n <= newest; n++) {
        REQUIRE(world_has(w, FAMILY_VERSIONS, key_u64('m', n), &value) && state_version_get(value, v));
        REQUIRE(!manifest_decode(v->manifest.data, v->manifest.len, &m, NULL));
        for (uint32_t i = 0; i < m.n_leases; i++)
            for (uint32_t j = 0; j < m.leases[i].n_ranges; j++)
                done += m.leases[i].ranges[j].count;
        manifest_release(&m);
    }
    EXPECT_EQ(done, look(w)->domains[1].count[SEG_DONE]);
    free(v);
}

static unsigned keys_read_by_a_restart(const struct world *w)
{
    unsigned n = 0;
    struct load_range r;
    struct core *core = core_new(&w->config);
    while (core_load_next(core, &r)) {
        size_t i = memstore_seek(&w->disk, r.family, r.from, r.from_len);
        for (; i < memstore_seek(&w->disk, r.family, r.to, r.to_len); i++)
            n += !core_load(core, r.family, buf_bytes(&w->disk.items[i].key), buf_bytes(&w->disk.items[i].value), NULL);
    }
    core_free(core);
    return n;
}

static void test_a_restart_does_not_read_history(void)
{
    struct world w;
    unsigned first = 0, after = 0;
    world_open(&w);
    hello_all(&w);
    for (int i = 0; i < 12; i++) {
        char prefix[2] = {(char)('a' + i), 0};
        world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_gate", "20", 0);
        world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_tuning", "0", 0);
        world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_audit", "0", 0);
        fill(&w, prefix, 4);
        world_work(&w, workers, WORKERS);
        after = keys_read_by_a_restart(&w);
        first = i ? first : after;
    }
    EXPECT_EQ(look(&w)->version, 12);
    EXPECT(look(&w)->domains[1].segments > 1000);
    EXPECT(after <= first + 11 + 20); /* a version each; as many windows wait as the set has; not a key per segment */
    world_close(&w);
}

/* Runs push, round and publication; the crash_at-th batch and all after it are lost. Then goes on until version 1. */
static uint64_t run_with_crash(uint64_t crash_at)
{
    struct world w;
    world_open(&w);
    w.crash_at = crash_at ? w.n_batches + crash_at : 0;
    uint64_t start = w.n_batches, acked_train = 0;
    for (int i = 0; i < 20 && look(&w)->version < 1; i++) {
        struct peer p = world_peer(PLANE_INGEST, 10);
        uint64_t position, producer;
        if (w.crashed)
            world_restart(&w);
        EXPECT(look(&w)->domains[1].segments >= acked_train); /* nothing acknowledged was lost */
        EXPECT(world_counts_once(&w));
        world_hello(&w, p, 1, 1);
        world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "heldout_permille", "200", 0);
        producer = world_push_open(&w, p, "a", "code", &position);
        if (!w.crashed && position == 0) {
            const struct said *s = world_push_many(&w, p, producer, 0, "x", 300, 1900);
            if (s && s->verb == VERB_PUSH_ACK)
                acked_train = ((const Alv__PushAck *)s->message)->train_end;
        }
        hello_all(&w);
        if (!w.crashed)
            world_work(&w, workers, WORKERS);
        if (!w.crashed)
            world_tick(&w, 61000);
    }
    if (w.crashed)
        world_restart(&w);
    struct snapshot *s = look(&w);
    EXPECT(s->version == 1 || crash_at);
    EXPECT(world_counts_once(&w));
    check_claims(&w);
    uint64_t batches = w.n_batches - start;
    world_close(&w);
    return batches;
}

static void test_a_crash_at_every_batch(void)
{
    uint64_t n = run_with_crash(0);
    EXPECT(n >= 12);
    for (uint64_t at = 1; at <= n; at++)
        run_with_crash(at);
}

int main(void)
{
    hash_start();
    snap = calloc(1, sizeof *snap);
    RUN(test_a_round_is_published);
    RUN(test_a_forgetting_candidate_is_refused);
    RUN(test_a_sentinel_is_measured_and_not_judged);
    RUN(test_the_culprit_is_found_and_the_rest_goes_on);
    RUN(test_an_evaluation_costs_no_more_than_it_may);
    RUN(test_probe_sets);
    RUN(test_a_bad_delta_is_held_and_the_rest_goes_on);
    RUN(test_quorum_and_grace);
    RUN(test_aggregation_is_retried);
    RUN(test_a_crash_at_every_batch);
    RUN(test_a_restart_does_not_read_history);
    free(snap);
    return harness_end();
}
