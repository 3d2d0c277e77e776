/* Versions after publication: watching, aliases, rollback, retraction, control tokens, sessions. */
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "proto/manifest.h"
#include "world.h"

enum { WORKERS = 2 };
static struct peer workers[WORKERS];
static struct snapshot *snap;
static const struct domain_id CODE = {1};

static struct snapshot *look(struct world *w)
{
    core_snapshot(w->core, w->now, snap);
    return snap;
}

static void push(struct world *w, const char *prefix)
{
    struct peer p = world_peer(PLANE_INGEST, 10);
    uint64_t position, producer;
    world_hello(w, p, 1, 1);
    producer = world_push_open(w, p, "a", "code", &position);
    world_push_many(w, p, producer, position, prefix, 50, 1900);
}

static void publish(struct world *w, const char *prefix)
{
    push(w, prefix);
    for (unsigned i = 0; i < WORKERS; i++) {
        workers[i] = world_peer(PLANE_WORK, 100 + i);
        world_hello(w, workers[i], (uint8_t)(50 + i), 1);
    }
    world_work(w, workers, WORKERS);
}

/* The workers go: what returns to pending stays there. */
static void leave(struct world *w)
{
    for (unsigned i = 0; i < WORKERS; i++) {
        struct event gone = {.kind = EVENT_PEER_GONE, .peer = workers[i]};
        world_step(w, &gone);
    }
}

static enum status error_of(const struct said *s)
{
    return !s ? ST_TIMEOUT : s->verb == VERB_ERROR ? (enum status)((const Alv__Error *)s->message)->status : ST_OK;
}

static const struct said *watch(struct world *w, struct peer p, uint64_t from, uint64_t alias_seq, uint32_t wait_ms)
{
    Alv__Watch m = ALV__WATCH__INIT;
    m.from = from;
    m.alias_seq = alias_seq;
    m.wait_ms = wait_ms;
    return world_send(w, p, VERB_WATCH, &m);
}

static void test_watch(void)
{
    struct world w;
    world_open(&w);
    publish(&w, "a");
    publish(&w, "b");
    REQUIRE(look(&w)->version == 2);
    struct peer p = world_peer(PLANE_MODELS, 20);
    EXPECT_EQ(world_hello(&w, p, 9, 1), ST_OK);
    const struct said *s = watch(&w, p, 0, 0, 1000);
    REQUIRE(s && s->verb == VERB_WATCH_REPLY);
    const Alv__WatchReply *r = (const Alv__WatchReply *)s->message;
    REQUIRE(r->n_versions == 2 && r->aliases);
    EXPECT(r->versions[0]->number == 1 && r->versions[1]->number == 2);
    struct manifest m[2];
    struct digest d;
    for (int i = 0; i < 2; i++)
        REQUIRE(!manifest_decode(r->versions[i]->manifest.data, r->versions[i]->manifest.len, &m[i], NULL));
    manifest_digest(r->versions[0]->manifest.data, r->versions[0]->manifest.len, &d);
    EXPECT(m[1].parent == 1 && digest_eq(&m[1].parent_manifest, &d)); /* the chain */
    for (int i = 0; i < 2; i++)
        manifest_release(&m[i]);
    struct aliases a;
    REQUIRE(!aliases_decode(r->aliases->statement.data, r->aliases->statement.len, &a, NULL));
    EXPECT_EQ(aliases_find(&a, "latest")->version, 2);
    EXPECT(aliases_find(&a, "latest")->expires_s > w.wall_s);
    uint64_t seq = a.seq;
    aliases_release(&a);

    EXPECT(watch(&w, p, 2, seq, 20000) == NULL); /* nothing newer: parked */
    uint64_t request = w.request;
    w.hold = true;
    publish(&w, "c");
    world_commit(&w);
    w.hold = false;
    publish(&w, "d");
    s = world_reply(&w, request);
    REQUIRE(s && s->verb == VERB_WATCH_REPLY);
    r = (const Alv__WatchReply *)s->message;
    EXPECT(r->n_versions >= 1 && r->versions[0]->number == 3);
    uint64_t newest = look(&w)->version;
    watch(&w, p, newest, look(&w)->aliases_seq, 5000);
    request = w.request;
    world_tick(&w, 6000);
    s = world_reply(&w, request);
    REQUIRE(s && s->verb == VERB_WATCH_REPLY);
    EXPECT_EQ(((const Alv__WatchReply *)s->message)->n_versions, 0);
    EXPECT_EQ(error_of(watch(&w, p, newest + 1, 0, 0)), ST_ROLLBACK); /* never backwards */
    EXPECT(strstr(look(&w)->alarm, "older than what was published") != NULL);
    world_close(&w);
}

static const struct said *control_version(struct world *w, Alv__ControlVerb verb, uint64_t number, const char *alias,
                                          const uint64_t *expect, bool keep, bool in_lineage)
{
    static struct done_range ranges[1000];
    struct version_facts facts = {.newest = look(w)->version, .files_held = true, .in_lineage = in_lineage};
    struct state_key key = key_u64('m', number);
    for (uint64_t v = number + 1; v <= facts.newest; v++) { /* what the versions left behind trained */
        struct bytes value;
        struct state_version *stored = malloc(sizeof *stored);
        struct manifest m;
        if (world_has(w, FAMILY_VERSIONS, key_u64('m', v), &value) && state_version_get(value, stored) &&
            !manifest_decode(stored->manifest.data, stored->manifest.len, &m, NULL)) {
            for (uint32_t i = 0; i < m.n_leases; i++)
                for (uint32_t j = 0; j < m.leases[i].n_ranges; j++)
                    ranges[facts.n++] = (struct done_range){m.leases[i].ranges[j].domain, m.leases[i].ranges[j].first,
                                                            m.leases[i].ranges[j].count};
            manifest_release(&m);
        }
        free(stored);
    }
    facts.ranges = ranges;
    Alv__Control c = ALV__CONTROL__INIT;
    c.verb = verb;
    c.number = number;
    c.name = (char *)(uintptr_t)alias;
    c.has_expect = expect != NULL;
    c.expect = expect ? *expect : 0;
    c.keep = keep;
    struct event event = {.kind = EVENT_MESSAGE,
                          .peer = world_peer(PLANE_CONTROL, 1),
                          .verb = VERB_CONTROL,
                          .request = ++w->request,
                          .message = &c.base};
    if (world_has(w, FAMILY_VERSIONS, key, &facts.value))
        event.version = &facts;
    world_step(w, &event);
    return world_reply(w, event.request);
}

static void test_aliases_by_compare_and_swap(void)
{
    struct world w;
    world_open(&w);
    publish(&w, "a");
    uint64_t none = 0, one = 1;
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 1, "stable", &one, false, true)),
              ST_CONFLICT);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 1, "stable", &none, false, true)),
              ST_OK);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 0, "stable", &one, false, true)), ST_OK);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 7, "stable", NULL, false, true)),
              ST_NOT_FOUND);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 0, "latest", NULL, false, true)),
              ST_USAGE);
    uint64_t seq = look(&w)->aliases_seq;
    world_restart(&w);
    EXPECT_EQ(look(&w)->aliases_seq, seq);
    EXPECT_EQ(look(&w)->n_aliases, 2);
    w.wall_s += 2 * 86400; /* `latest` is signed anew every day */
    world_tick(&w, 0);
    struct event event = {.kind = EVENT_TICK};
    world_step(&w, &event);
    EXPECT_EQ(look(&w)->aliases_seq, seq + 1);
    world_close(&w);
}

/* Marks are kept, told to watchers at once, and keep a version from being pointed at or gone back to. */
static void test_marks(void)
{
    struct world w;
    struct peer p = world_peer(PLANE_MODELS, 500);
    world_open(&w);
    world_hello(&w, p, 9, 1);
    publish(&w, "a");
    publish(&w, "b");
    uint64_t seq = look(&w)->aliases_seq;
    struct {
        uint64_t version;
        const char *kind, *reason;
        enum status want;
    } marks[] = {{1, "withdrawn", "it swears", ST_OK},
                 {1, "tainted", "", ST_OK},
                 {3, "withdrawn", "", ST_NOT_FOUND},
                 {1, "bad", "", ST_USAGE}};
    EXPECT(watch(&w, p, 2, seq, 30000) == NULL); /* parked: nothing is new */
    for (unsigned i = 0; i < sizeof marks / sizeof marks[0]; i++)
        EXPECT_EQ(error_of(world_control(&w, ALV__CONTROL_VERB__CONTROL_MARK, "", marks[i].kind, marks[i].reason,
                                         marks[i].version)),
                  marks[i].want);
    EXPECT_EQ(look(&w)->aliases_seq, seq + 2);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 1, "stable", NULL, false, true)),
              ST_CONFLICT);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 1, "", NULL, false, true)),
              ST_CONFLICT);
    world_restart(&w);
    world_hello(&w, p, 9, 2);
    const struct said *s = watch(&w, p, 2, seq, 0);
    REQUIRE(s && s->verb == VERB_WATCH_REPLY);
    const Alv__WatchReply *r = (const Alv__WatchReply *)s->message;
    struct aliases told;
    REQUIRE(r->aliases != NULL);
    EXPECT_ST(aliases_decode(r->aliases->statement.data, r->aliases->statement.len, &told, NULL), ST_OK, NULL);
    EXPECT_EQ(told.n_marks, 2);
    REQUIRE(aliases_mark(&told, 1, MARK_WITHDRAWN) != NULL);
    EXPECT_STR(aliases_mark(&told, 1, MARK_WITHDRAWN)->reason, "it swears");
    aliases_release(&told);
    EXPECT_EQ(error_of(world_control(&w, ALV__CONTROL_VERB__CONTROL_MARK, "", "none", "", 1)), ST_OK);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_PROMOTE, 1, "stable", NULL, false, true)), ST_OK);
    world_close(&w);
}

/* A restored line: numbers go on where nobody has been, and who has seen what it forgot may wait for them. */
static void test_numbers_jump(void)
{
    struct world w;
    struct peer p = world_peer(PLANE_MODELS, 500);
    struct bytes value;
    struct state_counters counters;
    struct batch batch = {0};
    struct buf stored = {0};
    struct state_key key = key_plain('c');
    world_open(&w);
    publish(&w, "a");
    REQUIRE(world_has(&w, FAMILY_META, key, &value) && state_counters_get(value, &counters));
    counters.version_next = 1000;
    state_counters_put(&stored, &counters);
    batch_put(&batch, FAMILY_META, key.b, key.len, stored.data, stored.len);
    memstore_apply(&w.disk, &batch);
    batch_release(&batch);
    buf_release(&stored);
    world_restart(&w);
    world_hello(&w, p, 9, 1);
    EXPECT_EQ(error_of(watch(&w, p, 1000, 0, 0)), ST_ROLLBACK);
    EXPECT_EQ(error_of(watch(&w, p, 999, 0, 0)), ST_OK);
    publish(&w, "b");
    EXPECT_EQ(look(&w)->version, 1000);
    const struct said *s = watch(&w, p, 999, 0, 0);
    REQUIRE(s && s->verb == VERB_WATCH_REPLY);
    EXPECT_EQ(((const Alv__WatchReply *)s->message)->n_versions, 1);
    publish(&w, "c");
    EXPECT_EQ(look(&w)->version, 1001);
    world_close(&w);
}

static bool stored_version(struct world *w, uint64_t number, struct state_version *out)
{
    struct bytes value;
    return world_has(w, FAMILY_VERSIONS, key_u64('m', number), &value) && state_version_get(value, out);
}

static void test_rollback(void)
{
    struct world w;
    world_open(&w);
    publish(&w, "a");
    uint64_t first = look(&w)->domains[1].segments;
    publish(&w, "b");
    publish(&w, "c");
    uint64_t all = look(&w)->domains[1].segments;
    REQUIRE(look(&w)->version == 3);
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "self", "", "", 0); /* younger than what is gone back to */
    world_control(&w, ALV__CONTROL_VERB__CONTROL_DOMAIN_SET, "self", "sentinel", "1", 0);
    leave(&w);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 3, "", NULL, false, true)),
              ST_CONFLICT);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 9, "", NULL, false, true)),
              ST_NOT_FOUND);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 1, "", NULL, false, false)),
              ST_CONFLICT);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 1, "", NULL, false, true)), ST_OK);
    struct state_version *v1 = malloc(sizeof *v1), *v4 = malloc(sizeof *v4);
    REQUIRE(stored_version(&w, 1, v1) && stored_version(&w, 4, v4));
    EXPECT(v4->parent == 1 && v4->rollback_of == 1 && digest_eq(&v4->files.peft, &v1->files.peft));
    free(v1), free(v4);
    for (int again = 0; again < 2; again++) {
        struct snapshot *s = look(&w);
        EXPECT_EQ(s->version, 4);
        EXPECT(s->domains[2].sentinel && s->domains[2].reference == 0);
        EXPECT_EQ(s->domains[1].count[SEG_PENDING], all - first); /* at new offsets */
        EXPECT_EQ(s->domains[1].relabelled, all - first);         /* the old ones */
        EXPECT_EQ(s->domains[1].segments, all + (all - first));
        EXPECT(world_counts_once(&w));
        world_restart(&w);
    }
    publish(&w, "d");
    EXPECT_EQ(look(&w)->version, 5); /* the text given back and the new one, in one round */
    leave(&w);
    /* rolling back again does not give text back twice: only what version 5 trained is pending */
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 4, "", NULL, true, true)), ST_OK);
    EXPECT_EQ(look(&w)->domains[1].count[SEG_PENDING], 0); /* keep */
    EXPECT_EQ(look(&w)->version, 6);
    world_close(&w);
}

/* What the next lease trains on from: all leases come from one parent. */
static void expect_parent(struct world *w, const char *prefix, const struct version_files *files)
{
    push(w, prefix);
    workers[0] = world_peer(PLANE_WORK, 100);
    world_hello(w, workers[0], 50, 1);
    const Alv__Task *t = world_task(w, workers[0]);
    REQUIRE(t && t->lease);
    bool apart = !digest_is_zero(&files->state);
    EXPECT(!memcmp(t->lease->parent_adapter->digest.data, apart ? files->state.b : files->peft.b, DIGEST_LEN));
    EXPECT_EQ(t->lease->parent_adapter->bytes, apart ? files->state_bytes : files->peft_bytes);
    leave(w);
}

/* With `ema_permille` what is published is not what training goes on from: that is a file of its own, which a rollback brings back and
 * which goes when its version's files go. */
static void test_training_state_apart(void)
{
    struct world w;
    struct state_version *v1 = malloc(sizeof *v1), *v2 = malloc(sizeof *v2), *v = malloc(sizeof *v);
    struct manifest m;
    world_open(&w);
    w.config.settings.ema_permille = 300;
    w.config.settings.publish_permille = 1000;
    w.config.settings.versions_kept = 3;
    world_restart(&w);
    publish(&w, "a");
    publish(&w, "b");
    leave(&w);
    REQUIRE(stored_version(&w, 1, v1) && stored_version(&w, 2, v2));
    EXPECT(digest_is_zero(&v1->files.state)); /* nothing before it counts, and all of it is published */
    EXPECT(!digest_is_zero(&v2->files.state) && !digest_eq(&v2->files.state, &v2->files.peft));
    REQUIRE(!manifest_decode(v2->manifest.data, v2->manifest.len, &m, NULL));
    EXPECT(m.n_files == 3 && m.files[2].kind == FILE_STATE && digest_eq(&m.files[2].blake2b, &v2->files.state));
    manifest_release(&m);
    world_restart(&w);
    expect_parent(&w, "c", &v2->files);
    EXPECT_EQ(error_of(control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 1, "", NULL, false, true)), ST_OK);
    REQUIRE(stored_version(&w, 3, v));
    EXPECT(digest_eq(&v->files.peft, &v1->files.peft) && digest_is_zero(&v->files.state));
    expect_parent(&w, "d", &v1->files);
    w.n_dropped = 0;
    for (char prefix[2] = "e"; look(&w)->version < 5 && prefix[0] < 'k'; prefix[0]++)
        publish(&w, prefix); /* until version 2 is dropped; version 1's files are still version 3's */
    REQUIRE(look(&w)->version == 5);
    bool dropped = false;
    for (size_t i = 0; i < w.n_dropped; i++) {
        dropped |= digest_eq(&w.dropped[i], &v2->files.state);
        EXPECT(!digest_eq(&w.dropped[i], &v1->files.peft));
    }
    EXPECT(dropped);
    world_close(&w);
    free(v1), free(v2), free(v);
}

static void test_retract_reaches_every_copy(void)
{
    struct world w;
    world_open(&w);
    publish(&w, "a");
    leave(&w);
    control_version(&w, ALV__CONTROL_VERB__CONTROL_ROLLBACK, 0, "", NULL, false, true); /* all text is there twice */
    uint64_t pending = look(&w)->domains[1].count[SEG_PENDING], exclusions = look(&w)->exclusions;
    EXPECT_EQ(error_of(world_retract(&w, "code", CODE, "nobody")), ST_NOT_FOUND);
    EXPECT_EQ(error_of(world_retract(&w, "code", CODE, "a7")), ST_OK);
    EXPECT_EQ(look(&w)->domains[1].count[SEG_PENDING], pending - 1);
    EXPECT_EQ(look(&w)->exclusions, exclusions + 2);
    struct bytes value;
    struct state_settled x;
    EXPECT(!world_has(&w, FAMILY_STREAM, key_stream('s', CODE, false, 7), &value)); /* the text is gone */
    REQUIRE(world_has(&w, FAMILY_STREAM, key_stream('x', CODE, false, 7), &value) && state_settled_get(value, &x));
    EXPECT_EQ(x.state, SEG_RETRACTED);
    struct peer p = workers[0];
    world_hello(&w, p, 50, 1);
    Alv__ExclusionsGet get = ALV__EXCLUSIONS_GET__INIT;
    get.since = exclusions;
    const struct said *s = world_send(&w, p, VERB_EXCLUSIONS_GET, &get);
    REQUIRE(s && s->verb == VERB_EXCLUSIONS);
    const Alv__Exclusions *e = (const Alv__Exclusions *)s->message;
    REQUIRE(e->n_entries == 2 && e->newest == exclusions + 2);
    EXPECT(e->entries[0]->erase && e->entries[0]->first == 7 && e->entries[1]->erase && e->entries[1]->first == 57);
    EXPECT(e->entries[0]->seq == exclusions + 1 && e->entries[0]->watermark <= e->entries[1]->watermark);
    publish(&w, "b");
    EXPECT(world_counts_once(&w));
    world_restart(&w);
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static const struct said *ask_work(struct world *w, struct peer p, uint64_t exclusion_seq)
{
    Alv__TaskRequest r = ALV__TASK_REQUEST__INIT;
    r.wait_ms = 20000;
    r.fingerprint = (char[]){"ref"};
    r.exclusion_seq = exclusion_seq;
    return world_send(w, p, VERB_TASK_REQUEST, &r);
}

static void purged(struct world *w, uint64_t number)
{
    struct event event = {.kind = EVENT_PURGED, .seq = number};
    world_step(w, &event);
}

static void test_a_retraction_is_seen_through(void)
{
    struct world w;
    struct state_holder held[4];
    world_open(&w);
    publish(&w, "a"); /* two workers asked for work */
    ask_work(&w, workers[0], look(&w)->exclusions);
    uint64_t idle = w.request;
    w.hold = true;
    world_retract(&w, "code", CODE, "a7");
    uint64_t request = w.request;
    EXPECT(!world_reply(&w, request) && !w.purge && !world_reply(&w, idle)); /* nothing before it is durable */
    world_commit(&w);
    w.hold = false;
    const struct said *s = world_reply(&w, request), *told = world_reply(&w, idle);
    REQUIRE(s && s->verb == VERB_CONTROL_REPLY && told && told->verb == VERB_TASK);
    EXPECT(strstr(((const Alv__ControlReply *)s->message)->json, "\"holders\":2") != NULL);
    uint64_t seq = look(&w)->exclusions;
    EXPECT_EQ(((const Alv__Task *)told->message)->exclusion_seq, seq); /* an idle worker hears of it at once */
    EXPECT_EQ(w.purge, 1);
    EXPECT(snap->erasures == 1 && !snap->purged && snap->n_holders == 2);

    world_restart(&w); /* the files were not rewritten: asked for again; who holds text is remembered */
    EXPECT_EQ(w.purge, 1);
    EXPECT_EQ(core_holders(w.core, seq, held, 4), 2);
    EXPECT(held[0].applied < seq && held[0].instance[0] != held[1].instance[0] && !strcmp(held[0].key.s, "key"));
    for (unsigned i = 0; i < WORKERS; i++) {
        world_hello(&w, workers[i], (uint8_t)(50 + i), 1);
        ask_work(&w, workers[i], seq);
        EXPECT_EQ(look(&w)->n_holders, WORKERS - 1 - i);
    }
    purged(&w, 2); /* there is none of that number */
    EXPECT(look(&w)->purged == 0);
    purged(&w, 1);
    EXPECT(look(&w)->purged == 1);
    w.purge = 0;
    world_restart(&w);
    EXPECT(!w.purge && look(&w)->n_holders == 0 && snap->purged == 1);
    world_close(&w);
}

static void test_superseded_while_leased(void)
{
    struct world w;
    world_open(&w);
    struct peer p = world_peer(PLANE_INGEST, 10), a = world_peer(PLANE_WORK, 100);
    world_hello(&w, p, 1, 1);
    world_hello(&w, a, 50, 1);
    uint64_t producer = world_push_open(&w, p, "a", "code", NULL);
    world_push_many(&w, p, producer, 0, "a", 50, 1900);
    const Alv__Task *t = world_task(&w, a);
    REQUIRE(t && t->lease);
    world_push(&w, p, producer, 50, (struct text[]){{"a3", "new text\n"}}, 1);
    world_restart(&w); /* the mark on the leased segment is found again */
    world_hello(&w, a, 50, 1);
    world_commit_delta(&w, a, t->lease, 1);
    world_work(&w, &a, 1);
    struct bytes value;
    struct state_settled x;
    EXPECT_EQ(look(&w)->version, 1);
    REQUIRE(world_has(&w, FAMILY_STREAM, key_stream('x', CODE, false, 3), &value) && state_settled_get(value, &x));
    EXPECT_EQ(x.state, SEG_SUPERSEDED); /* it is in version 1, and replayed no more */
    EXPECT(world_counts_once(&w));
    world_close(&w);
}

static void test_tokens_make_control_idempotent(void)
{
    struct world w;
    world_open(&w);
    uint8_t token[16] = {3};
    Alv__Control c = ALV__CONTROL__INIT;
    c.verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
    c.domain = (char[]){"x1"};
    c.token = (ProtobufCBinaryData){16, token};
    struct peer p = world_peer(PLANE_CONTROL, 1);
    for (int i = 0; i < 3; i++) {
        const struct said *s = world_send(&w, p, VERB_CONTROL, &c);
        REQUIRE(s && s->verb == VERB_CONTROL_REPLY);
        EXPECT_STR(((const Alv__ControlReply *)s->message)->json, "{\"domain\":\"x1\",\"id\":2}");
        c.domain = (char[]){"x2"}; /* the token decides: the first answer again */
        if (i == 1)
            world_restart(&w);
    }
    EXPECT_EQ(look(&w)->n_domains, 3);
    c.token.len = 0;
    c.domain = (char[]){"Bad Name"};
    EXPECT_EQ(error_of(world_send(&w, p, VERB_CONTROL, &c)), ST_USAGE);
    for (int i = 0; i < 3000; i++) { /* answers are bounded */
        memcpy(token, &i, sizeof i);
        c.token = (ProtobufCBinaryData){16, token};
        c.domain = (char[]){"x1"};
        EXPECT_EQ(error_of(world_send(&w, p, VERB_CONTROL, &c)), ST_OK);
    }
    world_restart(&w);
    size_t n = memstore_seek(&w.disk, FAMILY_AUDIT, "u", 1) - memstore_seek(&w.disk, FAMILY_AUDIT, "t", 1);
    EXPECT_EQ(n, 1024);
    world_close(&w);
}

static void test_a_copied_directory_is_refused(void)
{
    struct world w;
    world_open(&w);
    Alv__Hello h = ALV__HELLO__INIT;
    uint8_t id[16] = {77}, other[16] = {1};
    struct peer p = world_peer(PLANE_MODELS, 30);
    h.protocol_min = h.protocol_max = 1;
    h.line = (char[]){""};
    h.instance = (ProtobufCBinaryData){16, id};
    h.session_counter = 1;
    h.session_incarnation = (ProtobufCBinaryData){16, other};
    EXPECT_EQ(error_of(world_send(&w, p, VERB_HELLO, &h)), ST_VERIFY);
    EXPECT(look(&w)->alarm[0]);
    h.session_counter = 5; /* a session this directory never had */
    EXPECT_EQ(error_of(world_send(&w, p, VERB_HELLO, &h)), ST_VERIFY);
    h.session_counter = 0;
    const struct said *s = world_send(&w, p, VERB_HELLO, &h);
    REQUIRE(s && s->verb == VERB_HELLO_OK);
    const Alv__HelloOk *ok = (const Alv__HelloOk *)s->message;
    memcpy(other, ok->session_incarnation.data, 16);
    EXPECT_EQ(ok->seed.len, 0); /* the line's secret is for workers */
    world_restart(&w);
    h.session_counter = 1; /* an earlier session of the same chain */
    s = world_send(&w, p, VERB_HELLO, &h);
    REQUIRE(s && s->verb == VERB_HELLO_OK);
    EXPECT_EQ(((const Alv__HelloOk *)s->message)->session_counter, 2);
    EXPECT(!memcmp(((const Alv__HelloOk *)s->message)->previous_incarnation.data, other, 16));
    h.line = (char[]){"other"};
    EXPECT_EQ(error_of(world_send(&w, p, VERB_HELLO, &h)), ST_CONFLICT);
    h.line = (char[]){"test"};
    p.plane = PLANE_WORK; /* a worker must hold the line's base */
    EXPECT_EQ(error_of(world_send(&w, p, VERB_HELLO, &h)), ST_CONFLICT);
    world_close(&w);
}

static void test_damaged_values_are_named(void)
{
    struct world w;
    world_open(&w);
    publish(&w, "a");
    unsigned refused = 0;
    for (size_t i = 0; i < w.disk.n; i++) { /* cut every value short: loading fails in words or does not need it */
        struct buf *v = &w.disk.items[i].value;
        if (!v->len)
            continue;
        v->len--;
        struct core *core = core_new(&w.config);
        struct err err = {0};
        enum status st = memstore_load(&w.disk, core, &err);
        EXPECT(st == ST_OK || (st == ST_CORRUPT && err.text[0]));
        refused += st == ST_CORRUPT;
        core_free(core);
        v->len++;
    }
    EXPECT(refused > 10);
    world_close(&w);
}

int main(void)
{
    hash_start();
    snap = calloc(1, sizeof *snap);
    RUN(test_watch);
    RUN(test_aliases_by_compare_and_swap);
    RUN(test_marks);
    RUN(test_numbers_jump);
    RUN(test_rollback);
    RUN(test_training_state_apart);
    RUN(test_retract_reaches_every_copy);
    RUN(test_a_retraction_is_seen_through);
    RUN(test_superseded_while_leased);
    RUN(test_tokens_make_control_idempotent);
    RUN(test_a_copied_directory_is_refused);
    RUN(test_damaged_values_are_named);
    free(snap);
    return harness_end();
}
