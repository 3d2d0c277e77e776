/* Intake: positions, durability of acks, duplicates, revisions, the probe, backlog, restarts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "world.h"

static struct peer pusher(struct world *w)
{
    struct peer p = world_peer(PLANE_INGEST, 10);
    EXPECT_EQ(world_hello(w, p, 1, 1), ST_OK);
    return p;
}

static const Alv__PushAck *ack_of(const struct said *s)
{
    static const Alv__PushAck none = ALV__PUSH_ACK__INIT;
    EXPECT(s && s->verb == VERB_PUSH_ACK);
    return s && s->verb == VERB_PUSH_ACK ? (const Alv__PushAck *)s->message : &none;
}

static enum status error_of(const struct said *s)
{
    return s && s->verb == VERB_ERROR ? (enum status)((const Alv__Error *)s->message)->status : ST_OK;
}

static void test_unknown_peer_and_domain(void)
{
    struct world w;
    world_open(&w);
    Alv__PushOpen open = ALV__PUSH_OPEN__INIT;
    open.domain = (char[]){"code"};
    open.source = (char[]){"s"};
    EXPECT_EQ(error_of(world_send(&w, world_peer(PLANE_INGEST, 10), VERB_PUSH_OPEN, &open)), ST_CONFLICT);
    struct peer p = pusher(&w);
    open.domain = (char[]){"cobol"};
    const struct said *s = world_send(&w, p, VERB_PUSH_OPEN, &open);
    EXPECT_EQ(error_of(s), ST_NOT_FOUND);
    EXPECT(strstr(((const Alv__Error *)s->message)->text, "general, code") != NULL);
    world_close(&w);
}

static void test_positions(void)
{
    struct world w;
    world_open(&w);
    struct peer p = pusher(&w);
    uint64_t position, producer = world_push_open(&w, p, "src", "code", &position);
    EXPECT_EQ(position, 0);
    const Alv__PushAck *a = ack_of(world_push(&w, p, producer, 0, (struct text[]){{"a", "one\n"}, {"b", "two\n"}}, 2));
    EXPECT(a->position == 2 && a->accepted == 2 && a->train_first == 0 && a->train_end == 2);
    uint64_t seq = a->seq;
    a = ack_of(world_push(&w, p, producer, 0, (struct text[]){{"a", "one\n"}, {"b", "two\n"}}, 2)); /* a retry */
    EXPECT(a->position == 2 && a->accepted == 2 && a->seq == seq && a->train_end == 2);
    EXPECT_EQ(error_of(world_push(&w, p, producer, 0, (struct text[]){{"a", "other\n"}, {"b", "two\n"}}, 2)),
              ST_CONFLICT);
    EXPECT_EQ(error_of(world_push(&w, p, producer, 1, (struct text[]){{"c", "x\n"}}, 1)), ST_CONFLICT);
    EXPECT_EQ(error_of(world_push(&w, p, producer, 3, (struct text[]){{"c", "x\n"}}, 1)), ST_CONFLICT);
    uint64_t newer = world_push_open(&w, p, "src", "code", &position);
    EXPECT_EQ(position, 2);
    EXPECT_EQ(error_of(world_push(&w, p, producer, 2, (struct text[]){{"c", "x\n"}}, 1)), ST_CONFLICT); /* fenced */
    EXPECT_EQ(ack_of(world_push(&w, p, newer, 2, (struct text[]){{"c", "x\n"}}, 1))->accepted, 1);
    world_restart(&w);
    p = pusher(&w);
    EXPECT_EQ(ack_of(world_push(&w, p, newer, 2, (struct text[]){{"c", "x\n"}}, 1))->accepted,
              1); /* still the first answer */
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_ack_waits_for_the_disk(void)
{
    struct world w;
    world_open(&w);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    w.hold = true;
    EXPECT(world_push(&w, p, producer, 0, (struct text[]){{"a", "one\n"}}, 1) == NULL);
    uint64_t request = w.request;
    /* what is decided but not on disk is known to the next batch */
    EXPECT(world_push(&w, p, producer, 1, (struct text[]){{"b", "one\n"}, {"a", "two\n"}}, 2) == NULL);
    world_commit(&w);
    EXPECT_EQ(ack_of(world_reply(&w, request))->accepted, 1);
    const Alv__PushAck *a = ack_of(world_reply(&w, request + 1));
    EXPECT(a->duplicates == 1 && a->accepted == 1 && a->superseded == 1);
    EXPECT(world_push(&w, p, producer, 3, (struct text[]){{"z", "lost\n"}}, 1) == NULL);
    world_restart(&w); /* the batch was never acknowledged and is gone */
    w.hold = false;
    p = pusher(&w);
    uint64_t position;
    world_push_open(&w, p, "src", "code", &position);
    EXPECT_EQ(position, 3);
    world_close(&w);
}

static void test_refusals_consume_their_position(void)
{
    struct world w;
    world_open(&w);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    const Alv__PushAck *a = ack_of(world_push(
        &w, p, producer, 0,
        (struct text[]){{"a", ""}, {"b", "\xff\xfe"}, {"c", "[1]"}, {"d", "good\n"}, {"e\x01", "x"}, {"f", "good\n"}},
        6));
    EXPECT_EQ(a->position, 6);
    EXPECT_EQ(a->accepted, 1);
    EXPECT_EQ(a->duplicates, 1);
    REQUIRE(a->n_refused == 4);
    EXPECT_EQ(a->refused[0]->reason, ALV__REFUSAL__REFUSAL_EMPTY);
    EXPECT_EQ(a->refused[1]->reason, ALV__REFUSAL__REFUSAL_NOT_UTF8);
    EXPECT_EQ(a->refused[2]->reason, ALV__REFUSAL__REFUSAL_BAD_CHAT);
    EXPECT_EQ(a->refused[3]->reason, ALV__REFUSAL__REFUSAL_BAD_ID);
    EXPECT_EQ(a->refused[3]->index, 4);
    world_close(&w);
}

static void test_segments_are_the_text(void)
{
    struct world w;
    world_open(&w);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    char text[10001];
    for (int i = 0; i < 10000; i++)
        text[i] = i % 37 == 36 ? '\n' : (char)('a' + i % 26);
    text[10000] = 0;
    const Alv__PushAck *a = ack_of(world_push(&w, p, producer, 0, (struct text[]){{"a", text}}, 1));
    struct buf joined = {0};
    for (uint64_t o = a->train_first; o < a->train_end; o++) {
        struct bytes value;
        struct state_segment s;
        REQUIRE(world_has(&w, FAMILY_STREAM, key_stream('s', (struct domain_id){1}, false, o), &value));
        REQUIRE(state_segment_get(value, &s));
        EXPECT(s.piece == o && s.pieces == a->train_end && s.text.len <= 2048);
        EXPECT(o + 1 == a->train_end || s.text.data[s.text.len - 1] == '\n');
        buf_put(&joined, s.text.data, s.text.len);
    }
    EXPECT(a->train_end == 5 && joined.len == 10000 && !memcmp(joined.data, text, 10000));
    buf_release(&joined);
    world_close(&w);
}

static void test_probe_is_by_group_bounded_and_apart(void)
{
    struct world w;
    world_open(&w);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "heldout_permille", "200", 0);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_gate", "20", 0);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_tuning", "5", 0);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "probe_audit", "6", 0);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    const Alv__PushAck *a = NULL;
    for (unsigned i = 0; i < 5; i++) {
        char prefix[8];
        snprintf(prefix, sizeof prefix, "r%u-", i);
        a = ack_of(world_push_many(&w, p, producer, 200 * i, prefix, 200, 50));
    }
    struct snapshot *s = calloc(1, sizeof *s);
    core_snapshot(w.core, w.now, s);
    struct snapshot_domain *d = &s->domains[1];
    EXPECT_EQ(d->probe_segments + d->segments, 1000);
    EXPECT(d->probe_segments > 150 && d->probe_segments < 250); /* 5 sigma of 200 */
    EXPECT(!d->probe[PART_GATE] && !d->probe_set); /* no set was frozen yet: that is done when a round opens */
    EXPECT_EQ(d->probe[PART_RESERVE], d->probe_segments);
    EXPECT_EQ(a->probe_end, d->probe_segments);
    uint32_t before[PROBE_PARTS];
    memcpy(before, d->probe, sizeof before);
    world_restart(&w);
    core_snapshot(w.core, w.now, s);
    EXPECT(!memcmp(before, s->domains[1].probe, sizeof before));
    free(s);
    world_close(&w);
}

static void test_revisions_supersede(void)
{
    struct world w;
    world_open(&w);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    ack_of(world_push(&w, p, producer, 0, (struct text[]){{"a", "first\n"}, {"b", "stays\n"}}, 2));
    const Alv__PushAck *a =
        ack_of(world_push(&w, p, producer, 2, (struct text[]){{"a", "second\n"}, {"a", "third\n"}}, 2));
    EXPECT_EQ(a->superseded, 2);
    a = ack_of(
        world_push(&w, p, producer, 4, (struct text[]){{"c", "first\n"}}, 1)); /* no longer live: not a duplicate */
    EXPECT_EQ(a->accepted, 1);
    a = ack_of(world_push(&w, p, producer, 5, (struct text[]){{"a", "stays\n"}}, 1)); /* a leaves, b's text is there */
    EXPECT(a->duplicates == 1 && a->superseded == 1);
    struct snapshot *s = calloc(1, sizeof *s);
    for (int again = 0; again < 2; again++) {
        core_snapshot(w.core, w.now, s);
        EXPECT_EQ(s->domains[1].count[SEG_SUPERSEDED], 3);
        EXPECT_EQ(s->domains[1].count[SEG_PENDING], 2);
        EXPECT_EQ(s->exclusions, 3);
        EXPECT_EQ(s->domains[1].watermark, 1); /* offset 0 is settled, 1 is pending */
        EXPECT(world_counts_once(&w));
        world_restart(&w);
    }
    free(s);
    world_close(&w);
}

static void test_backlog(void)
{
    struct world w;
    world_open(&w);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "backlog_bytes", "10000", 0);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL), at = 0;
    while (world_push_many(&w, p, producer, at, at ? "x" : "y", 10, 500)->verb == VERB_PUSH_ACK && at < 1000)
        at += 10;
    EXPECT_EQ(at, 20);
    size_t keys = w.disk.n;
    EXPECT_EQ(error_of(world_push_many(&w, p, producer, at, "z", 10, 500)), ST_AGAIN);
    EXPECT_EQ(w.disk.n, keys); /* nothing stored */
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "code", "backlog_sample", "1", 0);
    EXPECT_EQ(ack_of(world_push_many(&w, p, producer, at, "z", 10, 500))->accepted, 10);
    struct snapshot *s = calloc(1, sizeof *s);
    core_snapshot(w.core, w.now, s);
    EXPECT_EQ(s->domains[1].count[SEG_SKIPPED], 10);
    EXPECT(world_counts_once(&w));
    struct event low = {.kind = EVENT_DISK_LOW, .low = true};
    world_step(&w, &low);
    EXPECT_EQ(error_of(world_push_many(&w, p, producer, at + 10, "q", 10, 500)), ST_AGAIN);
    free(s);
    world_close(&w);
}

static void test_anchor_is_done_at_once(void)
{
    struct world w;
    world_open(&w);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "general", "heldout_permille", "0", 0);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "general", NULL);
    ack_of(world_push_many(&w, p, producer, 0, "g", 100, 300));
    struct snapshot *s = calloc(1, sizeof *s);
    core_snapshot(w.core, w.now, s);
    EXPECT_EQ(s->domains[0].watermark, 100);
    EXPECT_EQ(s->domains[0].count[SEG_DONE], 100);
    free(s);
    world_close(&w);
}

static void test_planted_bugs_show(void)
{
    struct world w;
    world_open(&w);
    w.config.planted = PLANT_ACK_BEFORE_COMMIT | PLANT_NO_DUPLICATE_CHECK;
    world_restart(&w);
    struct peer p = pusher(&w);
    uint64_t producer = world_push_open(&w, p, "src", "code", NULL);
    w.hold = true;
    EXPECT(world_push(&w, p, producer, 0, (struct text[]){{"a", "one\n"}}, 1) != NULL);
    EXPECT_EQ(ack_of(world_push(&w, p, producer, 0, (struct text[]){{"a", "one\n"}}, 1))->train_end, 2);
    world_close(&w);
}

int main(void)
{
    hash_start();
    RUN(test_unknown_peer_and_domain);
    RUN(test_positions);
    RUN(test_ack_waits_for_the_disk);
    RUN(test_refusals_consume_their_position);
    RUN(test_segments_are_the_text);
    RUN(test_probe_is_by_group_bounded_and_apart);
    RUN(test_revisions_supersede);
    RUN(test_backlog);
    RUN(test_anchor_is_done_at_once);
    RUN(test_planted_bugs_show);
    return harness_end();
}
