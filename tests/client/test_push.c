/* Pushing over real sockets: through the public API, with a server that refuses, is busy, and restarts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "client/alluvium.h"
#include "harness.h"
#include "proto/record.h"
#include "rig.h"

enum { RECORDS = 20000, TEXT = 1000 };

struct stream { /* the server's; read by the test after the push has ended */
    uint64_t producer, position, batches;
    struct digest rolling;
    bool busy_once, restart_once;
};

static void on_batch(struct rig *rig, struct stream *s, const struct incoming *in)
{
    const Alv__PushBatch *b = (const Alv__PushBatch *)in->message;
    Alv__PushAck ack = ALV__PUSH_ACK__INIT;
    Alv__Refused refused = ALV__REFUSED__INIT, *list[] = {&refused};
    if (b->producer != s->producer || b->position != s->position) {
        endpoint_send_error(rig->endpoint, &in->from, in->request_id, ST_CONFLICT, "another position", 0, NULL);
        return;
    }
    for (size_t i = 0; i < b->n_records; i++) {
        struct record_view view = record_of(b->records[i]);
        struct digest digest;
        record_digest(&view, &digest);
        record_chain(&s->rolling, &view, &digest);
        if (!strcmp(b->records[i]->id, "r777")) { /* what only the coordinator can judge */
            refused.index = (uint32_t)i;
            refused.reason = ALV__REFUSAL__REFUSAL_BAD_CHAT;
            ack.refused = list;
            ack.n_refused = 1;
        }
    }
    s->position += b->n_records;
    s->batches++;
    ack.position = s->position;
    ack.accepted = (uint32_t)(b->n_records - ack.n_refused);
    endpoint_send(rig->endpoint, &in->from, VERB_PUSH_ACK, in->request_id, &ack.base, NULL);
}

static bool handle(struct rig *rig, const struct incoming *in)
{
    struct stream *s = rig->user;
    if (in->verb == VERB_HELLO) {
        rig_hello_ok(rig, in);
    } else if (in->verb == VERB_PUSH_OPEN) {
        Alv__PushOpened opened = ALV__PUSH_OPENED__INIT;
        opened.producer = ++s->producer;
        opened.position = s->position;
        opened.rolling = (ProtobufCBinaryData){sizeof s->rolling.b, s->rolling.b};
        opened.record_bytes_max = LIMIT_RECORD_BYTES;
        opened.batch_records_max = LIMIT_BATCH_RECORDS;
        opened.batch_bytes_max = LIMIT_BATCH_BYTES;
        endpoint_send(rig->endpoint, &in->from, VERB_PUSH_OPENED, in->request_id, &opened.base, NULL);
    } else if (in->verb == VERB_PUSH_BATCH && s->busy_once) {
        s->busy_once = false;
        endpoint_send_error(rig->endpoint, &in->from, in->request_id, ST_AGAIN, "full", 60, NULL);
    } else if (in->verb == VERB_PUSH_BATCH) {
        bool restart = s->restart_once && s->batches == 5;
        on_batch(rig, s, in);
        if (restart) { /* this answer, and what is under way, may be lost */
            s->restart_once = false;
            return false;
        }
    }
    return true;
}

struct feed {
    unsigned at, n;
    char id[16], text[TEXT + 1];
    unsigned told;
    uint64_t number;
};

static int next_record(void *user, alv_record *out)
{
    struct feed *feed = user;
    if (feed->at == feed->n)
        return 0;
    snprintf(feed->id, sizeof feed->id, "r%u", feed->at);
    memset(feed->text, 'a' + (int)(feed->at % 26), TEXT);
    *out = (alv_record){.id = feed->id, .text = feed->text, .text_len = TEXT};
    if (feed->at == 5)
        out->text_len = 0; /* empty: refused on this side */
    feed->at++;
    return 1;
}

static void on_refused(void *user, uint64_t number, const char *why)
{
    struct feed *feed = user;
    feed->told++;
    feed->number = number;
    EXPECT(strlen(why) > 3);
}

static void test_all_arrive(bool trouble)
{
    struct stream stream = {.busy_once = trouble, .restart_once = trouble};
    struct rig rig;
    rig_start(&rig, NULL, handle, &stream);
    struct join join = rig_join(&rig, "notes", ROLE_PRODUCER, NULL);
    struct err err;
    const char *path = harness_path(rig.dir, "notes.join");
    EXPECT_ST(join_write(path, &join, &err), ST_OK, &err);
    struct feed feed = {.n = RECORDS};
    alv_push_report report;
    char error[512];
    EXPECT_EQ(alv_push(path, "notes", "s", next_record, on_refused, &feed, -1, &report, error, sizeof error), ALV_OK);
    EXPECT_EQ(report.records, RECORDS - 1);
    EXPECT_EQ(report.stored_before, 0);
    if (!trouble) { /* else the answer that names it may be the one that got lost */
        EXPECT(report.refused == 2 && feed.told == 2 && feed.number == 778);
        EXPECT_EQ(report.accepted, RECORDS - 2);
    }
    feed = (struct feed){.n = RECORDS + 10}; /* ten more at the end */
    EXPECT_EQ(alv_push(path, "notes", "s", next_record, on_refused, &feed, -1, &report, error, sizeof error), ALV_OK);
    EXPECT(report.stored_before == RECORDS - 1 && report.records == 10);
    feed = (struct feed){.n = 10};
    EXPECT_EQ(alv_push(path, "notes", "s", next_record, NULL, &feed, -1, &report, error, sizeof error), ALV_CONFLICT);
    EXPECT(strstr(error, "s: holds 9 records") != NULL);
    rig_stop(&rig);
    EXPECT_EQ(stream.position, RECORDS + 9);
}

static void test_without_trouble(void)
{
    test_all_arrive(false);
}

static void test_through_trouble(void)
{
    test_all_arrive(true);
}

int main(void)
{
    hash_start();
    RUN(test_without_trouble);
    RUN(test_through_trouble);
    return harness_end();
}
