/* The push core against a coordinator of a few lines, over a network that loses, repeats and delays. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "client/core.h"
#include "harness.h"
#include "proto/record.h"
#include "proto/verbs.h"

enum { RECORDS_MAX = 4000, QUEUE = 64 };

/* What the coordinator's contract says of one stream: a batch is taken iff it continues the position; one that was taken
 * already gets its first answer; an older session is fenced. */
struct server {
    uint64_t producer, position;
    struct digest rolling;
    char ids[RECORDS_MAX][16]; /* every record ever applied, in order */
    struct answer {
        uint64_t from, to;
    } answers[RECORDS_MAX];
    unsigned n_answers;
    unsigned busy; /* so many batches are put off */
};

struct packet {
    uint16_t verb;
    uint64_t request, due_ms;
    ProtobufCMessage *message;   /* to the client: owned */
    uint64_t position, producer; /* of a batch, to the server */
    unsigned n;
    char (*ids)[16];
};

struct net {
    struct packet up[QUEUE], down[QUEUE];
    unsigned n_up, n_down;
    struct rng rng;
    unsigned loss, twice, delay; /* percent, percent, ms */
};

static ProtobufCMessage *error_message(enum status status, uint32_t retry_ms)
{
    Alv__Error *e = xcalloc(1, sizeof *e);
    alv__error__init(e);
    e->status = status;
    e->text = xstrdup("no");
    e->retry_ms = retry_ms;
    return &e->base;
}

static void send_down(struct net *net, uint16_t verb, uint64_t request, ProtobufCMessage *message, uint64_t now)
{
    if (net->n_down == QUEUE || rng_below(&net->rng, 100) < net->loss) {
        protobuf_c_message_free_unpacked(message, NULL);
        return;
    }
    net->down[net->n_down++] =
        (struct packet){.verb = verb, .request = request, .message = message, .due_ms = now + net->delay};
}

static void serve(struct server *s, struct net *net, const struct packet *p, uint64_t now)
{
    if (p->verb == VERB_PUSH_OPEN) {
        Alv__PushOpened *o = xcalloc(1, sizeof *o);
        alv__push_opened__init(o);
        o->producer = ++s->producer;
        o->position = s->position;
        o->rolling.data = xmemdup(s->rolling.b, sizeof s->rolling.b);
        o->rolling.len = sizeof s->rolling.b;
        o->batch_records_max = 7;
        o->batch_bytes_max = 100;
        send_down(net, VERB_PUSH_OPENED, p->request, &o->base, now);
        return;
    }
    bool repeated = false;
    for (unsigned i = 0; i < s->n_answers; i++)
        repeated = repeated || (s->answers[i].from == p->position && s->answers[i].to == p->position + p->n);
    if (p->producer != s->producer || (p->position != s->position && !repeated)) {
        send_down(net, VERB_ERROR, p->request, error_message(ST_CONFLICT, 0), now);
    } else if (!repeated && s->busy) {
        s->busy--;
        send_down(net, VERB_ERROR, p->request, error_message(ST_AGAIN, 70), now);
    } else {
        for (unsigned i = 0; !repeated && i < p->n; i++) {
            struct record_view view = {ALV__RECORD_KIND__RECORD_TEXT,
                                       {(const uint8_t *)p->ids[i], strlen(p->ids[i])},
                                       {NULL, 0},
                                       {(const uint8_t *)p->ids[i], strlen(p->ids[i])}};
            struct digest digest;
            record_digest(&view, &digest);
            record_chain(&s->rolling, &view, &digest);
            memcpy(s->ids[s->position++], p->ids[i], sizeof s->ids[0]);
        }
        if (!repeated)
            s->answers[s->n_answers++] = (struct answer){p->position, p->position + p->n};
        Alv__PushAck *a = xcalloc(1, sizeof *a);
        alv__push_ack__init(a);
        a->position = p->position + p->n;
        a->accepted = p->n;
        send_down(net, VERB_PUSH_ACK, p->request, &a->base, now);
    }
}

struct client {
    struct push_core *core;
    struct push_effects effects;
    unsigned total, next; /* of the source, from which records are made */
    const char *prefix;
    bool needing, ended;
    unsigned need;
    enum status failed;
    char text[512];
    uint64_t resumed, acked;
};

static void post(struct net *net, const struct push_effect *e, uint64_t now)
{
    for (unsigned copy = 0; copy < 1 + (rng_below(&net->rng, 100) < net->twice); copy++) {
        if (net->n_up == QUEUE || rng_below(&net->rng, 100) < net->loss)
            continue;
        struct packet *p = &net->up[net->n_up++];
        *p = (struct packet){.verb = e->send.verb, .request = e->send.request, .due_ms = now + net->delay};
        if (e->send.verb != VERB_PUSH_BATCH)
            continue;
        const Alv__PushBatch *b = (const Alv__PushBatch *)e->send.message;
        p->position = b->position;
        p->producer = b->producer;
        p->n = (unsigned)b->n_records;
        p->ids = xcalloc(b->n_records, sizeof *p->ids);
        for (size_t i = 0; i < b->n_records; i++)
            snprintf(p->ids[i], sizeof p->ids[i], "%s", b->records[i]->id);
    }
}

static void step(struct client *c, struct net *net, struct push_event event, uint64_t now)
{
    event.now_ms = now;
    push_core_step(c->core, &event, &c->effects);
    for (uint32_t i = 0; i < c->effects.n; i++) {
        const struct push_effect *e = &c->effects.items[i];
        switch (e->kind) {
        case PUSH_SEND:
            post(net, e, now);
            break;
        case PUSH_NEED:
            c->needing = true;
            c->need = e->need.records_max;
            break;
        case PUSH_RESUMED:
            c->resumed = e->position;
            break;
        case PUSH_ACKED:
            EXPECT_EQ(e->acked.position, (c->acked ? c->acked : c->resumed) + e->acked.records);
            c->acked = e->acked.position;
            break;
        case PUSH_DONE:
            c->ended = true;
            break;
        case PUSH_FAILED:
            c->ended = true;
            c->failed = e->failed.status;
            snprintf(c->text, sizeof c->text, "%s", e->failed.text);
            break;
        case PUSH_REFUSED:
            break;
        }
    }
}

static void give_records(struct client *c, struct net *net, uint64_t now)
{
    struct push_records *records = push_records_new();
    c->needing = false;
    for (unsigned i = 0; i < c->need && c->next < c->total; i++) {
        char id[16];
        int n = snprintf(id, sizeof id, "%s%u", c->prefix, c->next);
        struct bytes bytes = {(const uint8_t *)id, (size_t)n};
        if (!push_records_add(records, 1000, ALV__RECORD_KIND__RECORD_TEXT, bytes, (struct bytes){NULL, 0}, bytes,
                              (struct push_place){0, c->next + 1}))
            break;
        c->next++;
    }
    step(c, net, (struct push_event){.kind = PUSH_RECORDS, .records = &records, .end = c->next == c->total}, now);
}

/* Runs one push to its end. `cut_percent`: how often, per step, the connection breaks. */
static void run(struct client *c, struct server *server, struct net *net, const char *prefix, unsigned total,
                unsigned cut_percent)
{
    struct push_config config = {.source = "s.jsonl", .window = 3, .request_ms = 500};
    name_set(&config.domain, "notes", 5);
    *c = (struct client){.core = push_core_new(&config), .total = total, .prefix = prefix};
    uint64_t now = 1000;
    step(c, net, (struct push_event){.kind = PUSH_UP}, now);
    for (unsigned turn = 0; turn < 200000 && !c->ended; turn++) {
        now += 5;
        if (rng_below(&net->rng, 100) < cut_percent)
            step(c, net, (struct push_event){.kind = PUSH_UP}, now);
        for (unsigned i = 0; i < net->n_up;) {
            if (net->up[i].due_ms > now) {
                i++;
                continue;
            }
            struct packet p = net->up[i];
            memmove(&net->up[i], &net->up[i + 1], (--net->n_up - i) * sizeof p);
            serve(server, net, &p, now);
            free(p.ids);
        }
        for (unsigned i = 0; i < net->n_down && !c->ended;) {
            if (net->down[i].due_ms > now) {
                i++;
                continue;
            }
            struct packet p = net->down[i];
            memmove(&net->down[i], &net->down[i + 1], (--net->n_down - i) * sizeof p);
            step(c, net,
                 (struct push_event){.kind = PUSH_MESSAGE, .verb = p.verb, .request = p.request, .message = p.message},
                 now);
            protobuf_c_message_free_unpacked(p.message, NULL);
        }
        if (c->needing && !c->ended)
            give_records(c, net, now);
        if (!c->ended && now >= push_core_deadline(c->core))
            step(c, net, (struct push_event){.kind = PUSH_TICK}, now);
    }
    EXPECT(c->ended);
    push_core_free(c->core);
    push_effects_release(&c->effects);
    while (net->n_up)
        free(net->up[--net->n_up].ids);
    while (net->n_down)
        protobuf_c_message_free_unpacked(net->down[--net->n_down].message, NULL);
}

static void expect_exactly(const struct server *s, const char *prefix, unsigned total)
{
    EXPECT_EQ(s->position, total);
    for (unsigned i = 0; i < s->position; i++) {
        char id[16];
        snprintf(id, sizeof id, "%s%u", prefix, i);
        if (strcmp(s->ids[i], id))
            EXPECT_STR(s->ids[i], id);
    }
}

static void test_every_record_arrives_once_and_in_order(void)
{
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct server *s = xcalloc(1, sizeof *s);
        struct net net = {.loss = seed % 3 * 8, .twice = seed % 4 * 7, .delay = seed % 5 * 4};
        struct client c;
        rng_seed(&net.rng, seed);
        s->busy = (unsigned)(seed % 6);
        unsigned total = (unsigned)(seed * 13 % 200);
        run(&c, s, &net, "r", total, seed % 7 == 0 ? 2 : 0);
        EXPECT_EQ(c.failed, ST_OK);
        expect_exactly(s, "r", total);
        free(s);
    }
}

static void test_a_second_push_goes_on_and_appends(void)
{
    struct server *s = xcalloc(1, sizeof *s);
    struct net net = {.delay = 1};
    struct client c;
    rng_seed(&net.rng, 1);
    run(&c, s, &net, "r", 30, 0);
    run(&c, s, &net, "r", 30, 0); /* nothing new */
    EXPECT_EQ(c.failed, ST_OK);
    EXPECT_EQ(c.resumed, 30);
    EXPECT_EQ(c.acked, 0);
    run(&c, s, &net, "r", 50, 0);
    EXPECT_EQ(c.failed, ST_OK);
    EXPECT_EQ(c.resumed, 30);
    expect_exactly(s, "r", 50);
    free(s);
}

static void test_a_source_that_changed_is_refused_by_name(void)
{
    struct server *s = xcalloc(1, sizeof *s);
    struct net net = {0};
    struct client c;
    rng_seed(&net.rng, 1);
    run(&c, s, &net, "r", 30, 0);
    run(&c, s, &net, "x", 40, 0);
    EXPECT_EQ(c.failed, ST_CONFLICT);
    EXPECT(strstr(c.text, "s.jsonl") && strstr(c.text, "30"));
    run(&c, s, &net, "r", 20, 0); /* cut short */
    EXPECT_EQ(c.failed, ST_CONFLICT);
    EXPECT(strstr(c.text, "20") && strstr(c.text, "30"));
    expect_exactly(s, "r", 30);
    free(s);
}

static void test_another_push_of_the_same_source_is_noticed(void)
{
    struct server *s = xcalloc(1, sizeof *s);
    struct net net = {0};
    struct client c;
    rng_seed(&net.rng, 1);
    struct push_config config = {.source = "s"};
    name_set(&config.domain, "notes", 5);
    c = (struct client){.core = push_core_new(&config), .total = 10, .prefix = "r"};
    step(&c, &net, (struct push_event){.kind = PUSH_UP}, 1);
    serve(s, &net, &net.up[0], 1);
    step(&c, &net,
         (struct push_event){.kind = PUSH_MESSAGE,
                             .verb = VERB_PUSH_OPENED,
                             .request = net.down[0].request,
                             .message = net.down[0].message},
         2);
    protobuf_c_message_free_unpacked(net.down[0].message, NULL);
    net.n_down = net.n_up = 0;
    s->position = 5; /* somebody else's records */
    step(&c, &net, (struct push_event){.kind = PUSH_UP}, 3);
    serve(s, &net, &net.up[0], 3);
    step(&c, &net,
         (struct push_event){.kind = PUSH_MESSAGE,
                             .verb = VERB_PUSH_OPENED,
                             .request = net.down[0].request,
                             .message = net.down[0].message},
         4);
    EXPECT(c.ended && c.failed == ST_CONFLICT);
    protobuf_c_message_free_unpacked(net.down[0].message, NULL);
    push_core_free(c.core);
    push_effects_release(&c.effects);
    free(s);
}

static void test_batches_are_bounded(void)
{
    static uint8_t text[LIMIT_RECORD_BYTES];
    struct push_records *records = push_records_new();
    struct bytes big = {text, sizeof text}, none = {NULL, 0};
    EXPECT(push_records_add(records, 10, ALV__RECORD_KIND__RECORD_TEXT, none, none, big, (struct push_place){0}));
    EXPECT(!push_records_add(records, 10, ALV__RECORD_KIND__RECORD_TEXT, none, none, big, (struct push_place){0}));
    push_records_free(&records);
    records = push_records_new();
    unsigned n = 0;
    while (push_records_add(records, LIMIT_BATCH_BYTES, ALV__RECORD_KIND__RECORD_TEXT, none, none,
                            (struct bytes){text, 1}, (struct push_place){0}))
        n++;
    EXPECT_EQ(n, LIMIT_BATCH_RECORDS);
    push_records_free(&records);
}

int main(void)
{
    hash_start();
    RUN(test_every_record_arrives_once_and_in_order);
    RUN(test_a_second_push_goes_on_and_appends);
    RUN(test_a_source_that_changed_is_refused_by_name);
    RUN(test_another_push_of_the_same_source_is_noticed);
    RUN(test_batches_are_bounded);
    return harness_end();
}
