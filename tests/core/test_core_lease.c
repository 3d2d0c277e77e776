/* Leases: what a round's leases hold, generations, silence, lost answers, superseded deltas, held data, restarts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "world.h"

static struct peer worker(struct world *w, uint8_t i)
{
    struct peer p = world_peer(PLANE_WORK, 100 + i);
    EXPECT_EQ(world_hello(w, p, i, 1), ST_OK);
    return p;
}

/* Enough text in two domains for `leases` full leases. */
static void fill(struct world *w, unsigned leases)
{
    struct peer p = world_peer(PLANE_INGEST, 10);
    EXPECT_EQ(world_hello(w, p, 1, 1), ST_OK);
    world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "manuals", "", "", 0);
    world_control(w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "manuals", "heldout_permille", "0", 0);
    /* a full lease: 16 steps x 1,024 tokens x 0.75 fresh = 12,288 tokens = 41,943 bytes at 300 tokens per 1,024 bytes */
    uint64_t a = world_push_open(w, p, "a", "code", NULL), b = world_push_open(w, p, "b", "manuals", NULL);
    EXPECT(world_push_many(w, p, a, 0, "c", 15 * leases, 1900)->verb == VERB_PUSH_ACK);
    EXPECT(world_push_many(w, p, b, 0, "m", 15 * leases, 1000)->verb == VERB_PUSH_ACK);
}

static bool accepted(const struct said *s)
{
    return s && s->verb == VERB_DELTA_ACK && ((const Alv__DeltaAck *)s->message)->accepted;
}

static const Alv__Lease *lease_for(struct world *w, struct peer p)
{
    const Alv__Task *t = world_task(w, p);
    return t ? t->lease : NULL;
}

/* Workers must be seen before the round opens, so that it is made for all of them. */
static void gather(struct world *w, struct peer *workers, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        workers[i] = worker(w, (uint8_t)(50 + i));
        EXPECT(world_task(w, workers[i]) == NULL); /* parked */
    }
}

static const Alv__Lease *parked_lease(struct world *w, uint64_t request)
{
    const struct said *s = world_reply(w, request);
    return s && s->verb == VERB_TASK ? ((const Alv__Task *)s->message)->lease : NULL;
}

static void test_leases_are_stratified_and_disjoint(void)
{
    struct world w;
    struct peer workers[3];
    world_open(&w);
    gather(&w, workers, 3);
    uint64_t request = w.request;
    w.hold = false;
    /* all text arrives in one go: hold the workers' polls until both domains are there */
    for (unsigned i = 0; i < 3; i++) {
        struct event gone = {.kind = EVENT_PEER_GONE, .peer = workers[i]};
        world_step(&w, &gone);
    }
    fill(&w, 3);
    for (unsigned i = 0; i < 3; i++)
        EXPECT_EQ(world_hello(&w, workers[i], (uint8_t)(50 + i), 1), ST_OK);
    const Alv__Lease *l[3] = {lease_for(&w, workers[0]), lease_for(&w, workers[1]), lease_for(&w, workers[2])};
    (void)request;
    REQUIRE(l[0] && l[1] && l[2]);
    bool seen[3][200] = {{0}};
    for (int i = 0; i < 3; i++) {
        uint32_t per_domain[3] = {0};
        EXPECT(l[i]->generation == 1 && l[i]->round == 1 && l[i]->parent == 0);
        EXPECT(!i || (l[i]->id != l[i - 1]->id && l[i]->seed != l[i - 1]->seed));
        EXPECT_EQ(l[i]->n_domains, 3);
        for (size_t r = 0; r < l[i]->n_fresh; r++) {
            const Alv__Range *x = l[i]->fresh[r];
            per_domain[x->domain] += x->count;
            for (uint32_t k = 0; k < x->count; k++) {
                EXPECT(!seen[x->domain][x->first + k]);
                seen[x->domain][x->first + k] = true;
            }
        }
        EXPECT(per_domain[0] == 0 && per_domain[1] == 15 && per_domain[2] == 15);
    }
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_little_text_waits_then_goes_to_one(void)
{
    struct world w;
    world_open(&w);
    struct peer p = world_peer(PLANE_INGEST, 10), a = worker(&w, 51);
    EXPECT_EQ(world_hello(&w, p, 1, 1), ST_OK);
    EXPECT(world_task(&w, a) == NULL);
    uint64_t request = w.request;
    world_push_many(&w, p, world_push_open(&w, p, "a", "code", NULL), 0, "c", 3, 100);
    EXPECT(world_reply(&w, request) == NULL);
    world_tick(&w, 25000); /* the poll ends empty */
    REQUIRE(world_reply(&w, request) != NULL);
    EXPECT(parked_lease(&w, request) == NULL);
    for (int i = 0; i < 2; i++) {
        world_task(&w, a);
        request = w.request;
        world_tick(&w, 20000);
    }
    const Alv__Lease *l = parked_lease(&w, request);
    REQUIRE(l != NULL);
    EXPECT(l->n_fresh == 1 && l->fresh[0]->count == 3);
    world_close(&w);
}

static void test_grant_is_durable_before_it_leaves(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    w.hold = true;
    EXPECT(world_task(&w, a) == NULL);
    uint64_t request = w.request;
    world_commit(&w);
    const Alv__Lease *l = parked_lease(&w, request);
    REQUIRE(l != NULL);
    struct bytes value;
    struct state_lease stored;
    REQUIRE(world_has(&w, FAMILY_LEASES, key_u64('l', l->id), &value) && state_lease_get(value, &stored));
    EXPECT(stored.generation == 1 && stored.phase == LEASE_GRANTED);
    state_lease_release(&stored);
    world_close(&w);
}

static void test_duplicate_and_stale_deltas(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    w.auto_aggregate = false;
    struct peer a = worker(&w, 51), b = worker(&w, 52);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    EXPECT(lease_for(&w, a)->generation == 1);          /* asked again before any progress: the same lease */
    EXPECT(!accepted(world_commit_delta(&w, b, l, 1))); /* not b's */
    world_tick(&w, 61000);                              /* silence */
    const Alv__Lease *again = lease_for(&w, b);
    REQUIRE(again && again->id == l->id);
    EXPECT_EQ(again->generation, 2);
    EXPECT_EQ(again->seed, l->seed); /* same lease, same bytes */
    EXPECT(!accepted(world_commit_delta(&w, a, l, 1)));
    EXPECT(!accepted(world_commit_delta(&w, b, l, 3)));
    EXPECT(accepted(world_commit_delta(&w, b, l, 2)));
    EXPECT(accepted(world_commit_delta(&w, b, l, 2))); /* the ack was lost */
    EXPECT(!accepted(world_commit_delta(&w, a, l, 1)));
    world_restart(&w);
    b = worker(&w, 52);
    EXPECT(accepted(world_commit_delta(&w, b, l, 2)));
    EXPECT(w.aggregate_wanted && w.aggregate.aggregate.n == 1);
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_late_delta_counts_until_another_has_it(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    world_tick(&w, 61000); /* given back, but nobody took it */
    EXPECT(accepted(world_commit_delta(&w, a, l, 1)));
    world_close(&w);
}

static void test_progress_keeps_and_boot_returns(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    Alv__Progress p = ALV__PROGRESS__INIT;
    p.task = l->id;
    p.generation = 1;
    p.total = 16;
    for (int i = 0; i < 5; i++) {
        p.done++;
        const struct said *s = world_send(&w, a, VERB_PROGRESS, &p);
        EXPECT(s && !((const Alv__ProgressOk *)s->message)->abandon);
        world_tick(&w, 50000);
    }
    struct event gone = {.kind = EVENT_PEER_GONE, .peer = a};
    world_step(&w, &gone); /* a lost connection is no lost worker */
    a.conn++;
    EXPECT_EQ(world_hello(&w, a, 51, 1), ST_OK);
    const struct said *s = world_send(&w, a, VERB_PROGRESS, &p);
    EXPECT(s && !((const Alv__ProgressOk *)s->message)->abandon);
    struct peer newer = a;
    newer.conn++;
    EXPECT_EQ(world_hello(&w, newer, 51, 2), ST_OK); /* started again: what it had is gone */
    EXPECT_EQ(lease_for(&w, newer)->generation, 2);
    EXPECT_EQ(world_hello(&w, a, 51, 1), ST_CONFLICT); /* the older start is fenced */
    world_close(&w);
}

/* A worker was killed while it waited: its lease was granted to a connection that is gone, and goes to the next at once. */
static void test_an_undelivered_lease_is_granted_again(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51), b = worker(&w, 52);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    uint64_t id = l->id;
    EXPECT(world_task(&w, b) == NULL); /* parked: there is one lease */
    uint64_t request = w.request;
    struct event gone = {.kind = EVENT_PEER_GONE, .peer = a};
    world_step(&w, &gone);
    l = parked_lease(&w, request);
    REQUIRE(l != NULL);
    EXPECT_EQ(l->id, id);
    EXPECT_EQ(l->generation, 2);
    EXPECT(world_counts_once(&w));
    a.conn++;
    EXPECT_EQ(world_hello(&w, a, 51, 1), ST_OK); /* it lived: what it began in the meantime is another's */
    Alv__Progress p = ALV__PROGRESS__INIT;
    p.task = id;
    p.generation = 1;
    p.total = 16;
    const struct said *s = world_send(&w, a, VERB_PROGRESS, &p);
    EXPECT(s && ((const Alv__ProgressOk *)s->message)->abandon);
    world_close(&w);
}

static void test_leases_survive_a_restart(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    world_restart(&w);
    EXPECT(world_counts_once(&w));
    a = worker(&w, 51);
    EXPECT(accepted(world_commit_delta(&w, a, l, 1))); /* an earlier session of the chain granted it */
    uint8_t other[16] = {9};
    Alv__Lease forged = *l;
    forged.session_incarnation = (ProtobufCBinaryData){16, other};
    EXPECT(!accepted(world_commit_delta(&w, a, &forged, 1)));
    world_close(&w);
}

static void test_data_nobody_finishes_is_held(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    for (int i = 0; i < 3; i++) {
        const Alv__Lease *l = lease_for(&w, a);
        REQUIRE(l && l->generation == (uint32_t)i + 1);
        world_tick(&w, 61000);
    }
    struct snapshot *s = calloc(1, sizeof *s);
    for (int again = 0; again < 2; again++) {
        core_snapshot(w.core, w.now, s);
        EXPECT_EQ(s->quarantined, 1);
        EXPECT_EQ(s->domains[1].count[SEG_QUARANTINED], 15);
        EXPECT_EQ(s->phase, ROUND_NONE);
        EXPECT(s->exclusions >= 2); /* never replayed */
        EXPECT(world_counts_once(&w));
        world_restart(&w);
    }
    const struct said *r = world_control(&w, ALV__CONTROL_VERB__CONTROL_QUARANTINE_RELEASE, "", "", "", 1);
    EXPECT(r && r->verb == VERB_CONTROL_REPLY);
    for (int again = 0; again < 2; again++) {
        core_snapshot(w.core, w.now, s);
        EXPECT_EQ(s->quarantined, 0);
        EXPECT_EQ(s->domains[1].count[SEG_QUARANTINED], 15);
        EXPECT_EQ(s->domains[1].count[SEG_PENDING], 15); /* at new offsets */
        EXPECT(world_counts_once(&w));
        world_restart(&w);
    }
    free(s);
    world_close(&w);
}

static void test_drain_is_no_failure(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    for (uint32_t i = 0; i < 5; i++) {
        const Alv__Lease *l = lease_for(&w, a);
        REQUIRE(l && l->generation == i + 1);
        Alv__TaskReturn t = ALV__TASK_RETURN__INIT;
        t.task = l->id;
        t.generation = l->generation;
        t.why = i % 2 ? ALV__RETURN_REASON__RETURN_LOCAL : ALV__RETURN_REASON__RETURN_DRAINING;
        t.reason = (char[]){""};
        EXPECT(world_send(&w, a, VERB_TASK_RETURN, &t)->verb == VERB_TASK_RETURN_OK);
    }
    world_close(&w);
}

static const struct said *hand_back(struct world *w, struct peer p, const Alv__Lease *l, Alv__ReturnReason why)
{
    Alv__TaskReturn t = ALV__TASK_RETURN__INIT;
    t.task = l->id;
    t.generation = l->generation;
    t.why = why;
    t.reason = (char[]){"domain 1: train segment 3 is no longer in the log"};
    return world_send(w, p, VERB_TASK_RETURN, &t);
}

static bool lists(const Alv__Lease *l, uint32_t domain, uint64_t offset)
{
    for (size_t i = 0; i < l->n_fresh; i++)
        if (l->fresh[i]->domain == domain && offset >= l->fresh[i]->first &&
            offset - l->fresh[i]->first < l->fresh[i]->count)
            return true;
    return false;
}

static void test_a_silent_worker_is_not_here(void)
{
    struct world w;
    struct snapshot *s = xcalloc(1, sizeof *s);
    world_open(&w);
    worker(&w, 51);
    core_snapshot(w.core, w.now + 80000, s);
    EXPECT(s->n_workers == 1 && s->n_members == 1 && s->members[0].here);
    core_snapshot(w.core, w.now + 100000, s); /* three polls missed, and no word that the connection is closed */
    EXPECT(s->n_workers == 0 && s->n_members == 1 && !s->members[0].here);
    free(s);
    world_close(&w);
}

static void test_text_that_went_since_the_grant_is_no_failure(void)
{
    struct world w;
    struct bytes value;
    struct state_lease stored;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l && l->n_fresh == 2);
    for (unsigned i = 1; i < 7; i++) { /* more often than a lease may fail */
        char record[] = "c0";
        record[1] = (char)('0' + 2 * (i % 5) + i / 5);
        EXPECT(world_retract(&w, "code", (struct domain_id){1}, record)->verb == VERB_CONTROL_REPLY);
        EXPECT(hand_back(&w, a, l, ALV__RETURN_REASON__RETURN_MISSING)->verb == VERB_TASK_RETURN_OK);
        const Alv__Lease *next = lease_for(&w, a);
        REQUIRE(next && next->id == l->id && next->generation == l->generation + 1);
        EXPECT(next->exclusion_seq == l->exclusion_seq + 1 && next->seed == l->seed);
        EXPECT(lists(l, 1, (uint64_t)record[1] - '0') && !lists(next, 1, (uint64_t)record[1] - '0'));
        l = next;
    }
    REQUIRE(world_has(&w, FAMILY_LEASES, key_u64('l', l->id), &value) && state_lease_get(value, &stored));
    EXPECT_EQ(stored.attempts, 0);
    state_lease_release(&stored);
    EXPECT(world_counts_once(&w));
    /* nothing was taken out since the last grant: the log has a hole, or the worker is wrong */
    for (unsigned i = 0; i < 3; i++) {
        REQUIRE(l != NULL);
        hand_back(&w, a, l, ALV__RETURN_REASON__RETURN_MISSING);
        l = lease_for(&w, a);
    }
    EXPECT(!l);
    struct snapshot *s = calloc(1, sizeof *s);
    core_snapshot(w.core, w.now, s);
    EXPECT_EQ(s->quarantined, 1);
    EXPECT(world_counts_once(&w));
    free(s);
    world_close(&w);
}

/* The answer with the lease was lost, and text went before it was asked for again: it is granted anew. */
static void test_a_lost_grant_is_planned_anew(void)
{
    struct world w;
    world_open(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    world_retract(&w, "code", (struct domain_id){1}, "c4");
    EXPECT(lease_for(&w, a)->generation == 1); /* the same work: whoever has the text may do it */
    world_retract(&w, "manuals", (struct domain_id){2}, "m4");
    hand_back(&w, a, l, ALV__RETURN_REASON__RETURN_MISSING);
    const Alv__Lease *next = lease_for(&w, a);
    REQUIRE(next && next->generation == 2);
    EXPECT(!lists(next, 1, 4) && !lists(next, 2, 4) && lists(next, 1, 5));
    EXPECT(!accepted(world_commit_delta(&w, a, l, 1)));
    world_restart(&w);
    a = worker(&w, 51);
    EXPECT(accepted(world_commit_delta(&w, a, next, 2)));
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_a_lease_of_nothing_goes(void)
{
    struct world w;
    world_open(&w);
    struct peer p = world_peer(PLANE_INGEST, 10), a = worker(&w, 51);
    EXPECT_EQ(world_hello(&w, p, 1, 1), ST_OK);
    world_push_many(&w, p, world_push_open(&w, p, "a", "code", NULL), 0, "c", 3, 100);
    world_task(&w, a);
    world_tick(&w, 61000);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    for (char record[] = "c0"; record[1] < '3'; record[1]++)
        world_retract(&w, "code", (struct domain_id){1}, record);
    hand_back(&w, a, l, ALV__RETURN_REASON__RETURN_MISSING);
    EXPECT(!lease_for(&w, a));
    struct snapshot *s = calloc(1, sizeof *s);
    core_snapshot(w.core, w.now, s);
    EXPECT(s->phase == ROUND_NONE && !s->quarantined && s->domains[1].count[SEG_RETRACTED] == 3);
    free(s);
    world_close(&w);
}

/* What is looked at one by one while five workers and five subscribers wait, text comes and time passes, in a line where
 * `gone` workers have been before. */
static uint64_t scanned_by(unsigned gone)
{
    struct world w;
    struct snapshot *s = calloc(1, sizeof *s);
    world_open(&w);
    for (unsigned i = 0; i < gone; i++) {
        struct peer p = world_peer(PLANE_WORK, 1000 + i);
        snprintf(p.key.s, sizeof p.key.s, "pool-%u", i);
        EXPECT_EQ(world_hello(&w, p, 60, 1), ST_OK);
        struct event event = {.kind = EVENT_PEER_GONE, .peer = p};
        world_step(&w, &event);
    }
    for (uint8_t i = 0; i < 5; i++) {
        struct peer a = world_peer(PLANE_WORK, 100 + i), b = world_peer(PLANE_MODELS, 200 + i);
        Alv__Watch watch = ALV__WATCH__INIT;
        EXPECT(world_hello(&w, a, 10 + i, 1) == ST_OK && world_hello(&w, b, 20 + i, 1) == ST_OK);
        world_task(&w, a);
        watch.alias_seq = 1000;
        watch.wait_ms = 20000;
        world_send(&w, b, VERB_WATCH, &watch);
    }
    core_snapshot(w.core, w.now, s);
    uint64_t before = s->scanned;
    struct peer p = world_peer(PLANE_INGEST, 10);
    EXPECT_EQ(world_hello(&w, p, 1, 1), ST_OK);
    uint64_t producer = world_push_open(&w, p, "a", "code", NULL);
    for (unsigned i = 0; i < 50; i++) {
        char prefix[16];
        snprintf(prefix, sizeof prefix, "r%u-", i);
        world_push_many(&w, p, producer, 3 * i, prefix, 3, 100);
        world_tick(&w, 100);
    }
    world_tick(&w, 60000);
    core_snapshot(w.core, w.now, s);
    uint64_t after = s->scanned;
    free(s);
    world_close(&w);
    return after - before;
}

static void test_a_step_costs_the_same_whoever_was_there_before(void)
{
    uint64_t few = scanned_by(5), many = scanned_by(2000);
    EXPECT(few > 0 && few < 200);
    EXPECT_EQ(many, few);
}

static void test_planted_stale_generation(void)
{
    struct world w;
    world_open(&w);
    w.config.planted = PLANT_STALE_GENERATION;
    world_restart(&w);
    fill(&w, 1);
    struct peer a = worker(&w, 51), b = worker(&w, 52);
    const Alv__Lease *l = lease_for(&w, a);
    REQUIRE(l != NULL);
    world_tick(&w, 61000);
    REQUIRE(lease_for(&w, b) != NULL);
    EXPECT(accepted(world_commit_delta(&w, a, l, 1)));
    world_close(&w);
}

int main(void)
{
    hash_start();
    RUN(test_leases_are_stratified_and_disjoint);
    RUN(test_little_text_waits_then_goes_to_one);
    RUN(test_grant_is_durable_before_it_leaves);
    RUN(test_duplicate_and_stale_deltas);
    RUN(test_late_delta_counts_until_another_has_it);
    RUN(test_progress_keeps_and_boot_returns);
    RUN(test_an_undelivered_lease_is_granted_again);
    RUN(test_leases_survive_a_restart);
    RUN(test_data_nobody_finishes_is_held);
    RUN(test_drain_is_no_failure);
    RUN(test_a_silent_worker_is_not_here);
    RUN(test_text_that_went_since_the_grant_is_no_failure);
    RUN(test_a_lost_grant_is_planned_anew);
    RUN(test_a_lease_of_nothing_goes);
    RUN(test_a_step_costs_the_same_whoever_was_there_before);
    RUN(test_planted_stale_generation);
    return harness_end();
}
