/* The subscribe core against a release of our own: what is taken, what is refused, and what survives a restart. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "client/core.h"
#include "harness.h"
#include "proto/verbs.h"

enum { VERSIONS = 8 };

struct line { /* the coordinator's side; `parent` and the like are places in its lists */
    struct sign_secret root, release;
    struct sign_public root_public, release_public;
    uint8_t cert[CERT_LEN];
    struct name name;
    struct buf manifests[VERSIONS];
    uint8_t signatures[VERSIONS][SIGNATURE_LEN];
    struct digest digests[VERSIONS];
    uint64_t numbers[VERSIONS], next; /* of the next version */
    uint64_t n;
    struct aliases aliases;
};

static void publish(struct line *l, uint64_t parent)
{
    struct manifest m = {
        .line = l->name, .number = l->next, .parent = l->numbers[parent], .rank = 8, .alpha = 16, .targets = 127};
    struct err err;
    if (l->n)
        m.parent_manifest = l->digests[parent];
    else
        m.flags = MANIFEST_UNGATED;
    m.n_files = 1;
    m.files[0] = (struct manifest_file){.kind = FILE_PEFT, .bytes = 10};
    m.files[0].blake2b.b[0] = 1;
    m.card.b[0] = 7;
    m.session_counter = 1;
    m.session_incarnation[0] = 1;
    m.error_rate = 0.01;
    m.step_factor = 1;
    buf_clear(&l->manifests[l->n]);
    EXPECT_ST(manifest_encode(&m, &l->manifests[l->n], &err), ST_OK, &err);
    manifest_sign(&l->release, l->manifests[l->n].data, l->manifests[l->n].len, l->signatures[l->n]);
    l->numbers[l->n] = l->next++;
    manifest_digest(l->manifests[l->n].data, l->manifests[l->n].len, &l->digests[l->n]);
    l->n++;
}

static void point(struct line *l, uint64_t version)
{
    l->aliases.line = l->name;
    l->aliases.seq++;
    l->aliases.n_aliases = 1;
    name_set(&l->aliases.aliases[0].name, "stable", 6);
    l->aliases.aliases[0].version = version;
}

static void line_new(struct line *l)
{
    memset(l, 0, sizeof *l);
    name_set(&l->name, "clinic", 6);
    sign_keypair(&l->root_public, &l->root);
    sign_keypair(&l->release_public, &l->release);
    cert_sign(&l->root, &l->name, &l->release_public, 1, 0, l->cert);
    publish(l, 0);
}

static void line_release(struct line *l)
{
    for (int i = 0; i < VERSIONS; i++)
        buf_release(&l->manifests[i]);
}

/* What the subscriber's directory holds, and what happened. */
struct place {
    struct buf state;
    uint64_t current, hooked, watches;
    bool has_current;
    bool hook_fails, save_fails, stage_fails;
    unsigned swaps, hooks, reports;
    char last_error[512];
    uint64_t wall_s;
    /* how the line lies */
    bool bad_signature, old_aliases, wrong_cert;
};

static void answer_send(struct line *l, struct place *p, struct subscribe_core *core, const struct subscribe_effect *e,
                        uint64_t now)
{
    Alv__SignedManifest out[VERSIONS], *list[VERSIONS];
    for (uint64_t i = 0; i < VERSIONS; i++) {
        alv__signed_manifest__init(&out[i]);
        out[i].number = l->numbers[i];
        out[i].manifest = (ProtobufCBinaryData){l->manifests[i].len, l->manifests[i].data};
        out[i].signature = (ProtobufCBinaryData){SIGNATURE_LEN, l->signatures[p->bad_signature && i > 1 ? 0 : i]};
    }
    if (e->verb == VERB_MANIFEST_GET) {
        uint64_t i = 0;
        while (l->numbers[i] != ((const Alv__ManifestGet *)e->message)->number)
            i++;
        subscribe_answer(core, now, p->wall_s, ST_OK, "", &out[i].base);
    } else if (e->verb == VERB_SERVING) {
        p->reports++;
        snprintf(p->last_error, sizeof p->last_error, "%s", ((const Alv__Serving *)e->message)->error);
        Alv__Ok ok = ALV__OK__INIT;
        subscribe_answer(core, now, p->wall_s, ST_OK, "", &ok.base);
    } else {
        const Alv__Watch *w = (const Alv__Watch *)e->message;
        Alv__WatchReply reply = ALV__WATCH_REPLY__INIT;
        Alv__SignedAliases aliases = ALV__SIGNED_ALIASES__INIT;
        struct aliases table = l->aliases;
        struct buf statement = {0};
        uint8_t signature[SIGNATURE_LEN], cert[CERT_LEN];
        struct err err;
        p->watches++;
        for (uint64_t i = 0; i < l->n; i++)
            if (l->numbers[i] > w->from)
                list[reply.n_versions++] = &out[i];
        reply.versions = list;
        if (p->old_aliases)
            table.seq = 1;
        if (table.seq > w->alias_seq || p->old_aliases) {
            EXPECT_ST(aliases_encode(&table, &statement, &err), ST_OK, &err);
            aliases_sign(&l->release, statement.data, statement.len, signature);
            aliases.statement = (ProtobufCBinaryData){statement.len, statement.data};
            aliases.signature = (ProtobufCBinaryData){sizeof signature, signature};
            reply.aliases = &aliases;
        }
        memcpy(cert, l->cert, sizeof cert);
        cert[CERT_LEN - 1] ^= p->wrong_cert;
        reply.release_key = (ProtobufCBinaryData){SIGN_PUBLIC_LEN, l->release_public.b};
        reply.release_cert = (ProtobufCBinaryData){sizeof cert, cert};
        subscribe_answer(core, now, p->wall_s, ST_OK, "", &reply.base);
        buf_release(&statement);
    }
}

static struct subscribe_core *core_following(const struct line *l, const struct place *p, const char *alias, bool hook,
                                             enum status want)
{
    struct subscribe_config config = {.line = l->name, .root = l->root_public, .hook = hook};
    struct subscribe_core *core = NULL;
    struct err err;
    name_set(&config.follow, alias, strlen(alias));
    EXPECT_ST(subscribe_new(&config, buf_bytes(&p->state), &core, &err), want, &err);
    return core;
}

static struct subscribe_core *core_new(const struct line *l, const struct place *p, bool hook, enum status want)
{
    return core_following(l, p, "stable", hook, want);
}

/* Runs until it has nothing to do but watch or wait for the `rounds`-th time. */
static void run(struct line *l, struct place *p, struct subscribe_core *core, unsigned rounds)
{
    static uint64_t now = 1000; /* goes on from run to run */
    for (unsigned i = 0; i < 300 && rounds; i++) {
        const struct subscribe_effect *e = subscribe_next(core, now, 1);
        EXPECT(e == subscribe_next(core, now, 1));
        switch (e->kind) {
        case SUBSCRIBE_SEND:
            if (e->verb == VERB_WATCH) {
                rounds--;
                now += 5000; /* a long poll */
            }
            if (rounds)
                answer_send(l, p, core, e, now);
            break;
        case SUBSCRIBE_SAVE:
            if (p->save_fails) {
                subscribe_answer(core, now, 1, ST_NO_SPACE, "full", NULL);
                break;
            }
            buf_clear(&p->state);
            buf_put(&p->state, e->state.data, e->state.len);
            subscribe_answer(core, now, 1, ST_OK, "", NULL);
            break;
        case SUBSCRIBE_STAGE:
            EXPECT_EQ(e->manifest->number, e->number);
            subscribe_answer(core, now, 1, p->stage_fails ? ST_VERIFY : ST_OK, "bad blob", NULL);
            break;
        case SUBSCRIBE_SWAP:
            EXPECT(!p->has_current || e->number >= p->current); /* never backwards */
            p->current = e->number;
            p->has_current = true;
            p->swaps++;
            subscribe_answer(core, now, 1, ST_OK, "", NULL);
            break;
        case SUBSCRIBE_HOOK:
            EXPECT_EQ(e->number, p->current);
            p->hooks++;
            if (!p->hook_fails)
                p->hooked = e->number;
            subscribe_answer(core, now, 1, p->hook_fails ? ST_IO : ST_OK, "ended with status 1", NULL);
            break;
        case SUBSCRIBE_WAIT:
            EXPECT(e->until_ms > now && e->until_ms <= now + 60000);
            now = e->until_ms;
            subscribe_answer(core, now, 1, ST_OK, "", NULL);
            break;
        }
    }
    EXPECT_EQ(rounds, 0);
}

static struct subscribe_view view_of(const struct subscribe_core *core)
{
    struct subscribe_view view;
    subscribe_view(core, &view);
    return view;
}

static void test_follows_the_alias(void)
{
    struct line l;
    struct place p = {0};
    line_new(&l);
    publish(&l, 0);
    publish(&l, 1);
    point(&l, 1);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT(p.has_current && p.current == 1 && p.hooked == 1 && p.swaps == 1 && p.hooks == 1);
    EXPECT(view_of(core).settled && view_of(core).newest == 2);
    publish(&l, 2);
    point(&l, 3);
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK); /* a restart */
    run(&l, &p, core, 4);
    EXPECT(p.current == 3 && p.hooked == 3);
    EXPECT(p.reports > 0 && p.last_error[0] == 0);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

static void test_never_goes_back(void)
{
    struct line l;
    struct place p = {0};
    line_new(&l);
    publish(&l, 0);
    publish(&l, 1);
    point(&l, 2);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 2);
    point(&l, 1);
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 5);
    EXPECT_EQ(p.current, 2);
    EXPECT_EQ(view_of(core).problem, ST_ROLLBACK);
    EXPECT(strstr(p.last_error, "rollback 1") != NULL); /* reported, with the remedy */
    publish(&l, 1);                                     /* the rollback: a new number */
    point(&l, 3);
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 3);
    p.old_aliases = true; /* a replayed statement, after a restart */
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 2);
    EXPECT_EQ(view_of(core).problem, ST_ROLLBACK);
    EXPECT_EQ(p.current, 3);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

/* One mark, on `version`; NULL: none. */
static void withdraw(struct line *l, struct mark *mark, uint64_t version)
{
    if (mark)
        *mark = (struct mark){.version = version, .kind = MARK_WITHDRAWN, .reason = "it swears"};
    l->aliases.marks = mark;
    l->aliases.n_marks = mark != NULL;
    l->aliases.seq++;
}

static void test_a_withdrawn_version_is_not_taken(void)
{
    struct line l;
    struct place p = {0}, fresh = {0};
    struct mark mark;
    line_new(&l);
    publish(&l, 0);
    publish(&l, 1);
    publish(&l, 2);
    point(&l, 2);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 2);
    point(&l, 3);
    withdraw(&l, &mark, 3);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 2); /* kept */
    EXPECT_EQ(view_of(core).problem, ST_DENIED);
    EXPECT(strstr(p.last_error, "version 3") && strstr(p.last_error, "it swears"));
    mark.kind = MARK_TAINTED; /* people are told; it is taken */
    l.aliases.seq++;
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 3);
    withdraw(&l, &mark, 3); /* what is in place stays, and is told of */
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 3);
    EXPECT_EQ(view_of(core).problem, ST_DENIED);
    publish(&l, 2); /* a rollback's new number ends it */
    point(&l, 4);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 4);
    EXPECT_EQ(view_of(core).problem, ST_OK);
    subscribe_free(core);

    name_set(&l.aliases.aliases[0].name, "latest", 6);
    withdraw(&l, &mark, 4);
    core = core_following(&l, &fresh, "latest", false, ST_OK); /* has nothing yet: the newest sound one */
    run(&l, &fresh, core, 4);
    EXPECT_EQ(fresh.current, 3);
    EXPECT(view_of(core).settled && view_of(core).problem == ST_OK);
    publish(&l, 4);
    l.aliases.aliases[0].version = 5;
    withdraw(&l, &mark, 5);
    run(&l, &fresh, core, 4);
    EXPECT_EQ(fresh.current, 4); /* no longer withdrawn; 5 is */
    withdraw(&l, &mark, 4);
    run(&l, &fresh, core, 4);
    EXPECT_EQ(fresh.current, 5);
    subscribe_free(core);
    buf_release(&p.state);
    buf_release(&fresh.state);
    withdraw(&l, NULL, 0);
    line_release(&l);
}

/* A line that was restored goes on under higher numbers: what it lost stays known, what it makes is taken. */
static void test_numbers_may_have_a_gap(void)
{
    struct line l;
    struct place p = {0};
    line_new(&l);
    for (uint64_t i = 0; i < 3; i++)
        publish(&l, i);
    point(&l, 3);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 3);
    l.n = 2; /* a backup of the time of version 1 */
    l.next = 1003;
    point(&l, 1);
    run(&l, &p, core, 4);
    EXPECT_EQ(p.current, 3);
    EXPECT_EQ(view_of(core).problem, ST_ROLLBACK); /* until something newer comes */
    publish(&l, 1);
    point(&l, 1003);
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT(p.current == 1003 && view_of(core).newest == 1003 && view_of(core).problem == ST_OK);
    publish(&l, 2); /* 1004, whose parent 1003 is to be withheld */
    l.numbers[2] = 900;
    publish(&l, 3);
    l.numbers[3] = 900;
    point(&l, 1005);
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT(p.current == 1003 && view_of(core).problem == ST_VERIFY);
    EXPECT(strstr(view_of(core).text, "was not seen") != NULL);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

/* A new release key: everything is signed again with it, and root says so. */
static void rotate(struct line *l, const struct sign_secret *root, uint64_t serial, uint64_t not_after_s)
{
    sign_keypair(&l->release_public, &l->release);
    cert_sign(root, &l->name, &l->release_public, serial, not_after_s, l->cert);
    for (uint64_t i = 0; i < l->n; i++)
        manifest_sign(&l->release, l->manifests[i].data, l->manifests[i].len, l->signatures[i]);
    l->aliases.seq++;
}

static void test_the_release_key_may_change(void)
{
    struct line l, old;
    struct place p = {0}, fresh = {0};
    struct sign_public other_public;
    struct sign_secret other;
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    old = l;
    rotate(&l, &l.root, 2, 1000);
    publish(&l, 1);
    point(&l, 2);
    run(&l, &p, core, 4);
    EXPECT(p.current == 2 && view_of(core).problem == ST_OK);
    subscribe_free(core);
    core = core_new(&l, &fresh, true, ST_OK); /* knows the new key only: the old versions verify all the same */
    run(&l, &fresh, core, 4);
    EXPECT_EQ(fresh.current, 2);
    subscribe_free(core);
    buf_release(&fresh.state);

    core = core_new(&l, &p, true, ST_OK); /* the key that was given up has no say any more, after a restart either */
    run(&old, &p, core, 3);
    EXPECT_EQ(view_of(core).problem, ST_ROLLBACK);
    EXPECT(strstr(view_of(core).text, "was replaced") != NULL);
    p.wall_s = 1001;
    run(&l, &p, core, 3);
    EXPECT_EQ(view_of(core).problem, ST_VERIFY);
    EXPECT(strstr(view_of(core).text, "ended at Unix time 1000") != NULL);
    p.wall_s = 0;
    sign_keypair(&other_public, &other);
    rotate(&l, &other, 3, 0); /* certified by somebody else */
    publish(&l, 2);
    point(&l, 3);
    run(&l, &p, core, 3);
    EXPECT(p.current == 2 && view_of(core).problem == ST_VERIFY);
    rotate(&l, &l.root, 3, 0);
    run(&l, &p, core, 4);
    EXPECT(p.current == 3 && view_of(core).problem == ST_OK);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

/* An alias that expired says so: whoever holds answers back is noticed. What is in place stays. */
static void test_an_alias_expires(void)
{
    struct line l;
    struct place p = {.wall_s = 900};
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    l.aliases.aliases[0].expires_s = 1000;
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 4);
    EXPECT(p.current == 1 && view_of(core).problem == ST_OK);
    p.wall_s = 1001;
    run(&l, &p, core, 3);
    EXPECT(p.current == 1 && view_of(core).problem == ST_ROLLBACK);
    EXPECT(strstr(view_of(core).text, "has expired") != NULL);
    l.aliases.aliases[0].expires_s = 2000; /* signed anew */
    l.aliases.seq++;
    run(&l, &p, core, 3);
    EXPECT_EQ(view_of(core).problem, ST_OK);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

static void test_refuses_what_does_not_verify(void)
{
    struct line l;
    line_new(&l);
    publish(&l, 0);
    publish(&l, 1);
    publish(&l, 2);
    point(&l, 3);
    for (int kind = 0; kind < 4; kind++) {
        struct place p = {.bad_signature = kind == 0, .wrong_cert = kind == 1, .stage_fails = kind == 2};
        struct digest kept = l.digests[0];
        struct line other = l;
        if (kind == 3) { /* version 3 claims another parent, well signed */
            memset(&other.manifests[3], 0, sizeof other.manifests[3]);
            other.n = 3;
            memset(other.digests[2].b, 9, sizeof other.digests[2].b);
            publish(&other, 2);
        }
        struct subscribe_core *core = core_new(&other, &p, false, ST_OK);
        run(&other, &p, core, 4);
        EXPECT(!p.has_current);
        EXPECT_EQ(view_of(core).problem, ST_VERIFY);
        EXPECT_EQ(view_of(core).newest, kind == 1 ? 0 : kind == 0 ? 1 : kind == 2 ? 3 : 2);
        EXPECT(digest_eq(&kept, &l.digests[0]));
        subscribe_free(core);
        buf_release(&p.state);
        if (kind == 3)
            buf_release(&other.manifests[3]);
    }
    line_release(&l);
}

static void test_nothing_is_done_before_it_is_saved(void)
{
    struct line l;
    struct place p = {.save_fails = true};
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    struct subscribe_core *core = core_new(&l, &p, false, ST_OK);
    uint64_t now = 0;
    for (int i = 0; i < 40; i++) {
        const struct subscribe_effect *e = subscribe_next(core, now, 1);
        EXPECT(e->kind == SUBSCRIBE_SEND || e->kind == SUBSCRIBE_SAVE || e->kind == SUBSCRIBE_WAIT);
        if (e->kind == SUBSCRIBE_SEND)
            answer_send(&l, &p, core, e, now);
        else
            subscribe_answer(core, now, 1, e->kind == SUBSCRIBE_SAVE ? ST_NO_SPACE : ST_OK, "full", NULL);
        now += 1000;
    }
    EXPECT(!p.has_current && view_of(core).problem == ST_NO_SPACE);
    subscribe_free(core);
    line_release(&l);
}

static void test_a_failing_hook_is_repeated(void)
{
    struct line l;
    struct place p = {.hook_fails = true};
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    struct subscribe_core *core = core_new(&l, &p, true, ST_OK);
    run(&l, &p, core, 8);
    EXPECT(p.current == 1 && p.swaps == 1 && p.hooks > 1 && !view_of(core).has_served);
    EXPECT(strstr(p.last_error, "hook") != NULL);
    p.hook_fails = false;
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK); /* a restart does not forget that it was not served */
    run(&l, &p, core, 4);
    EXPECT(p.hooked == 1 && view_of(core).settled && p.last_error[0] == 0);
    unsigned hooks = p.hooks;
    subscribe_free(core);
    core = core_new(&l, &p, true, ST_OK); /* nor that it was */
    run(&l, &p, core, 4);
    EXPECT_EQ(p.hooks, hooks);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

/* A server is reconciled again and again; what it lost is told, and only a change is saved or reported. */
static void test_a_server_is_looked_after(void)
{
    struct line l;
    struct place p = {0};
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    struct subscribe_config config = {.line = l.name, .root = l.root_public, .hook = true, .recheck_ms = 5000};
    struct subscribe_core *core = NULL;
    struct err err;
    name_set(&config.follow, "stable", 6);
    EXPECT_ST(subscribe_new(&config, buf_bytes(&p.state), &core, &err), ST_OK, &err);
    run(&l, &p, core, 10);
    EXPECT(p.hooks >= 5 && p.swaps == 1 && view_of(core).settled);
    EXPECT_EQ(p.reports, 1);
    p.hook_fails = true;
    run(&l, &p, core, 4);
    EXPECT(!view_of(core).settled && strstr(p.last_error, "server") != NULL);
    p.hook_fails = false;
    run(&l, &p, core, 8);
    EXPECT(view_of(core).settled && p.last_error[0] == 0 && view_of(core).served == 1);
    subscribe_free(core);
    buf_release(&p.state);
    line_release(&l);
}

static void test_state_is_checked(void)
{
    struct line l;
    struct place p = {0};
    line_new(&l);
    publish(&l, 0);
    point(&l, 1);
    struct subscribe_core *core = core_new(&l, &p, false, ST_OK);
    run(&l, &p, core, 4);
    subscribe_free(core);
    for (size_t at = 0; at < p.state.len; at += 3) { /* any damage is noticed */
        p.state.data[at] ^= 0x40;
        core_new(&l, &p, false, ST_CORRUPT);
        p.state.data[at] ^= 0x40;
    }
    name_set(&l.name, "other", 5);
    core_new(&l, &p, false, ST_CONFLICT);
    buf_release(&p.state);
    line_release(&l);
}

int main(void)
{
    hash_start();
    RUN(test_follows_the_alias);
    RUN(test_never_goes_back);
    RUN(test_a_withdrawn_version_is_not_taken);
    RUN(test_numbers_may_have_a_gap);
    RUN(test_the_release_key_may_change);
    RUN(test_an_alias_expires);
    RUN(test_refuses_what_does_not_verify);
    RUN(test_nothing_is_done_before_it_is_saved);
    RUN(test_a_failing_hook_is_repeated);
    RUN(test_a_server_is_looked_after);
    RUN(test_state_is_checked);
    return harness_end();
}
