/* checks.c - DESIGN's promises, asked of what is durable and of what peers were told. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/manifest.h"
#include "replay/key.h"
#include "world.h"

/* ---- 1: acknowledged means durable, and counts once */

struct find_stream {
    const struct node *node;
    bool found;
    uint64_t position;
};

static bool find_stream(void *user, struct bytes key, struct bytes value)
{
    struct find_stream *f = user;
    struct state_stream s;
    (void)key;
    if (!state_stream_get(value, &s))
        return true;
    if (name_eq(&s.key, &f->node->key)) {
        f->found = true;
        f->position = s.position;
    }
    state_stream_release(&s);
    return !f->found;
}

void check_acked(struct world *w, const struct node *producer, uint64_t position)
{
    struct find_stream f = {.node = producer};
    disk_scan(w, FAMILY_META, 'p', find_stream, &f);
    if (f.position < position)
        fail(w, "promise 1: node %d was told that %" PRIu64 " records are stored; %" PRIu64 " are durable",
             producer->index, position, f.position);
}

struct stored { /* piece 0 of a record in the log */
    struct hash16 content;
};

enum { EXCLUDED_S = 1, EXCLUDED_R = 2, EXCLUDED_Q = 4 }; /* by an exclusion: superseded, retracted, quarantined */

struct audit {
    struct world *w;
    struct stored *stored;
    size_t n, cap;
    struct domain_audit {
        bool there;
        struct state_domain d;
        struct segment_audit {
            uint8_t state, later; /* settled, and later state: enum segment_state + 1; 0: none */
            uint8_t excluded;     /* EXCLUDED_ bits */
            bool leased, text, repeats, repeated;
            uint64_t ref;
            uint64_t in_version; /* version whose manifest lists it, + 1 */
        } * segments;            /* [train_next] */
    } domains[TRAIN_DOMAINS + 1];
    uint64_t segments;
};

static int by_content(const void *a, const void *b)
{
    return memcmp(((const struct stored *)a)->content.b, ((const struct stored *)b)->content.b, 16);
}

static bool collect_domain(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    uint16_t id = (uint16_t)(key.data[1] << 8 | key.data[2]);
    if (id > TRAIN_DOMAINS || !state_domain_get(value, &a->domains[id].d)) {
        fail(a->w, "domain %u does not read", id);
        return false;
    }
    struct domain_audit *d = &a->domains[id];
    d->there = true;
    d->segments = xcalloc(d->d.train_next + 1, sizeof *d->segments);
    return true;
}

/* The segment at a place that something stored names. */
static struct segment_audit *at(struct audit *a, const char *who, struct domain_id domain, uint64_t offset)
{
    struct domain_audit *d = domain.v <= TRAIN_DOMAINS ? &a->domains[domain.v] : NULL;
    if (d && d->there && offset < d->d.train_next)
        return &d->segments[offset];
    fail(a->w, "promise 2: a stored %s names segment %u/%" PRIu64 ", which was never appended", who, domain.v, offset);
    return NULL;
}

static bool collect_segment(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_segment s;
    struct reader r = reader_of(key.data + 1, key.len - 1);
    struct domain_id domain = {read_u16_be(&r)};
    bool probe = read_u8(&r);
    uint64_t offset = read_u64_be(&r);
    if (!reader_done(&r) || !state_segment_get(value, &s)) {
        fail(a->w, "a stored segment does not read");
        return false;
    }
    a->segments++;
    struct segment_audit *g = probe ? NULL : at(a, "text", domain, offset);
    if (g)
        g->text = true;
    if (s.piece)
        return true;
    if (a->n == a->cap) {
        a->cap = a->cap ? 2 * a->cap : 256;
        a->stored = xrealloc_array(a->stored, a->cap, sizeof *a->stored);
    }
    a->stored[a->n++] = (struct stored){s.content};
    return true;
}

static bool collect_settled(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct domain_id domain;
    uint64_t first;
    struct state_settled s;
    if (!key_read_domain(key, &domain, &first) || !state_settled_get(value, &s)) {
        fail(a->w, "a settled range does not read");
        return false;
    }
    for (uint64_t o = first; o < first + s.count; o++) {
        struct segment_audit *g = at(a, "state", domain, o);
        if (!g)
            return false;
        if (g->state) {
            fail(a->w, "promise 2: segment %u/%" PRIu64 " is in two terminal states: %s and %s", domain.v, o,
                 segment_state_name((enum segment_state)(g->state - 1)),
                 segment_state_name((enum segment_state)s.state));
            return false;
        }
        g->state = (uint8_t)(s.state + 1);
        g->ref = s.ref;
    }
    return true;
}

static bool collect_later(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_settled s;
    struct reader r = reader_of(key.data + 1, key.len - 1);
    struct domain_id domain = {read_u16_be(&r)};
    bool probe = read_u8(&r);
    uint64_t first = read_u64_be(&r);
    if (!reader_done(&r) || !state_settled_get(value, &s)) {
        fail(a->w, "a later state does not read");
        return false;
    }
    for (uint64_t o = first; !probe && o < first + s.count; o++) {
        struct segment_audit *g = at(a, "later state", domain, o);
        if (!g)
            return false;
        if (g->later)
            fail(a->w, "promise 2: segment %u/%" PRIu64 " has two later states", domain.v, o);
        g->later = (uint8_t)(s.state + 1);
    }
    return true;
}

static bool collect_lease(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_lease lease;
    (void)key;
    if (!state_lease_get(value, &lease)) {
        fail(a->w, "a stored lease does not read");
        return false;
    }
    for (uint32_t i = 0; i < lease.n_ranges; i++)
        for (uint32_t j = 0; j < lease.ranges[i].count; j++) {
            uint64_t o = lease.ranges[i].first + j;
            struct segment_audit *g = at(a, "lease", lease.ranges[i].domain, o);
            if (g && (g->leased || g->state))
                fail(a->w, "promise 2: segment %u/%" PRIu64 " of lease %" PRIu64 " is %s", lease.ranges[i].domain.v, o,
                     lease.id, g->leased ? "in another lease too" : "settled already");
            if (g)
                g->leased = true;
        }
    state_lease_release(&lease);
    return a->w->result->ok;
}

static bool collect_version(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct world *w = a->w;
    struct state_version v;
    struct manifest m;
    struct err err;
    uint64_t number;
    if (!key_read_u64(key, &number) || !state_version_get(value, &v)) {
        fail(w, "a stored version does not read");
        return false;
    }
    check_manifest(w, number, v.manifest, (struct bytes){v.signature, sizeof v.signature});
    if (manifest_decode(v.manifest.data, v.manifest.len, &m, &err)) {
        fail(w, "version %" PRIu64 ": %s", number, err.text);
        return false;
    }
    for (uint32_t l = 0; l < m.n_leases; l++)
        for (uint32_t r = 0; r < m.leases[l].n_ranges; r++)
            for (uint32_t i = 0; i < m.leases[l].ranges[r].count; i++) {
                uint64_t o = m.leases[l].ranges[r].first + i;
                struct segment_audit *g = at(a, "version", m.leases[l].ranges[r].domain, o);
                if (g && g->in_version)
                    fail(w, "promise 2: segment %u/%" PRIu64 " is in versions %" PRIu64 " and %" PRIu64,
                         m.leases[l].ranges[r].domain.v, o, g->in_version - 1, number);
                if (g)
                    g->in_version = number + 1;
            }
    manifest_release(&m);
    return w->result->ok;
}

static bool collect_excluded(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_exclusion e;
    (void)key;
    CHECK(state_exclusion_get(value, &e));
    for (uint32_t i = 0; i < e.count; i++) {
        struct segment_audit *g = at(a, "exclusion", e.domain, e.first + i);
        if (g)
            g->excluded |= e.state == SEG_RETRACTED ? EXCLUDED_R : e.state == SEG_SUPERSEDED ? EXCLUDED_S : EXCLUDED_Q;
    }
    return a->w->result->ok;
}

static bool collect_link(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct domain_id domain;
    struct state_link link;
    uint64_t first;
    CHECK(key_read_domain(key, &domain, &first) && state_link_get(value, &link));
    a->w->result->links++;
    for (uint32_t i = 0; i < link.count; i++) {
        struct segment_audit *copy = at(a, "link", domain, first + i), *source = at(a, "link", domain, link.source + i);
        if (!copy || !source)
            return false;
        if (copy->repeats || source->repeated || link.source + i >= first + i)
            fail(a->w, "promise 2: segment %u/%" PRIu64 " is given back twice", domain.v, link.source + i);
        copy->repeats = source->repeated = true;
    }
    return a->w->result->ok;
}

static bool collect_quarantine(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_quarantine q;
    uint64_t id;
    CHECK(key_read_u64(key, &id) && state_quarantine_get(value, &q));
    for (uint32_t i = 0; i < q.n; i++)
        for (uint32_t j = 0; j < q.ranges[i].count; j++) {
            const struct segment_audit *g = at(a, "quarantine", q.ranges[i].domain, q.ranges[i].first + j);
            bool held = g && g->state == SEG_QUARANTINED + 1 && g->ref == id;
            bool gone = g && g->excluded & (EXCLUDED_R | EXCLUDED_S);
            if (g && ((!held && !gone) || g->repeated))
                fail(a->w, "promise 2: segment %u/%" PRIu64 " is held under %" PRIu64 " and is not quarantined",
                     q.ranges[i].domain.v, q.ranges[i].first + j, id);
        }
    state_quarantine_release(&q);
    return a->w->result->ok;
}

/* The states one by one: the law that a trace relies on. */
static void check_segment(struct world *w, unsigned id, uint64_t o, const struct segment_audit *g, uint64_t watermark)
{
    const char *wrong = NULL;
    unsigned state = g->later ? g->later : g->state;
    bool done = g->state == SEG_DONE + 1;
    if (!g->state && o < watermark)
        wrong = "is below the watermark and in no terminal state";
    else if (!g->state && g->later)
        wrong = "is not settled, but has a later state";
    else if (id && done && g->in_version != g->ref + 1)
        wrong = "is done in a version whose manifest does not list it";
    else if (g->in_version && !done)
        wrong = "is in a version but not done";
    else if (g->state && g->excluded & EXCLUDED_R && state != SEG_RETRACTED + 1)
        wrong = "was retracted and is in another state";
    else if (g->state && g->excluded == EXCLUDED_S && state != SEG_SUPERSEDED + 1)
        wrong = "was superseded and is in another state";
    else if (state == SEG_RETRACTED + 1 && !(g->excluded & EXCLUDED_R))
        wrong = "is retracted without an exclusion";
    else if (state == SEG_SUPERSEDED + 1 && !(g->excluded & EXCLUDED_S))
        wrong = "is superseded without an exclusion";
    else if (g->state == SEG_QUARANTINED + 1 && !(g->excluded & EXCLUDED_Q))
        wrong = "is quarantined without an exclusion";
    else if (!g->state && !g->leased && g->excluded)
        wrong = "is excluded and still pending";
    else if (g->repeated && !g->excluded)
        wrong = "was given back at a new offset and counts here too";
    else if (g->text && g->repeats)
        wrong = "repeats another and has a text of its own";
    else if (g->text && g->excluded & EXCLUDED_R)
        wrong = "was retracted and its text is there";
    else if (!g->text && !g->repeats && !(g->excluded & EXCLUDED_R))
        wrong = "has no text";
    if (wrong)
        fail(w, "promise 2: segment %u/%" PRIu64 " %s (%s, later %s, version %" PRIu64 ", watermark %" PRIu64 ")", id,
             o, wrong, g->state ? segment_state_name((enum segment_state)(g->state - 1)) : "open",
             g->later ? segment_state_name((enum segment_state)(g->later - 1)) : "none", g->in_version - 1, watermark);
}

static void check_states(struct audit *a)
{
    struct world *w = a->w;
    w->result->skipped = 0;
    for (unsigned id = 0; id <= TRAIN_DOMAINS && w->result->ok; id++) {
        const struct domain_audit *d = &a->domains[id];
        uint64_t count[SEG_STATES] = {0};
        for (uint64_t o = 0; d->there && o < d->d.train_next && w->result->ok; o++) {
            check_segment(w, id, o, &d->segments[o], d->d.watermark);
            if (d->segments[o].state)
                count[d->segments[o].state - 1]++;
        }
        for (unsigned s = 0; d->there && s < SEG_STATES; s++)
            if (count[s] != d->d.settled[s])
                fail(w, "promise 2: domain %u counts %" PRIu64 " segments %s; there are %" PRIu64, id, d->d.settled[s],
                     segment_state_name((enum segment_state)s), count[s]);
        if (d->there && d->d.relabelled != w->relabels[id])
            fail(w, "promise 2: domain %u counts %" PRIu64 " later states; %" PRIu64 " were written", id,
                 d->d.relabelled, w->relabels[id]);
        w->result->skipped += count[SEG_SKIPPED];
    }
}

static void check_records(struct audit *a)
{
    struct world *w = a->w;
    if (a->n)
        qsort(a->stored, a->n, sizeof *a->stored, by_content);
    for (int i = WORKERS; i < SUBSCRIBER; i++) {
        const struct node *node = &w->nodes[i];
        for (uint32_t r = 0; r < node->acked && w->result->ok; r++) {
            const struct record_fact *fact = &node->facts[r];
            if (fact->refused)
                continue;
            struct stored key = {.content = fact->content};
            struct stored *hit = a->n ? bsearch(&key, a->stored, a->n, sizeof key, by_content) : NULL;
            size_t times = 0;
            for (struct stored *p = hit; p && p >= a->stored && !by_content(p, &key); p--)
                times++;
            for (struct stored *p = hit ? hit + 1 : NULL; p && p < a->stored + a->n && !by_content(p, &key); p++)
                times++;
            if (times > 1 || (times == 0 && !fact->retracted)) /* forgotten, and perhaps pushed anew */
                fail(w, "promise %d: record %u of node %d was acknowledged and is in the log %zu times", times ? 2 : 1,
                     r, i, times);
        }
    }
}

static void audit_release(struct audit *a)
{
    free(a->stored);
    for (unsigned i = 0; i <= TRAIN_DOMAINS; i++) {
        free(a->domains[i].segments);
    }
}

struct pass {
    uint8_t family;
    char tag;
    pair_fn *collect;
};

static void run_passes(struct audit *a, const struct pass *passes, size_t n)
{
    for (size_t i = 0; i < n && a->w->result->ok; i++)
        disk_scan(a->w, passes[i].family, passes[i].tag, passes[i].collect, a);
}

void check_store(struct world *w)
{
    static const struct pass passes[] = {
        {FAMILY_META, 'd', collect_domain},      {FAMILY_STREAM, 's', collect_segment},
        {FAMILY_STREAM, 't', collect_settled},   {FAMILY_STREAM, 'T', collect_settled},
        {FAMILY_STREAM, 'x', collect_later},     {FAMILY_LEASES, 'l', collect_lease},
        {FAMILY_VERSIONS, 'm', collect_version}, {FAMILY_META, 'e', collect_excluded},
        {FAMILY_META, 'k', collect_link},        {FAMILY_META, 'q', collect_quarantine}};
    struct audit a = {.w = w};
    w->result->links = 0;
    run_passes(&a, passes, sizeof passes / sizeof passes[0]);
    if (w->result->ok)
        check_states(&a);
    if (w->result->ok)
        check_records(&a);
    struct state_counters counters;
    struct bytes value;
    CHECK(disk_get(w, FAMILY_META, key_plain('c'), &value) && state_counters_get(value, &counters));
    w->result->quarantines = counters.quarantine;
    w->result->segments = a.segments;
    w->result->records = 0;
    for (int i = WORKERS; i < SUBSCRIBER; i++)
        w->result->records += w->nodes[i].acked;
    w->result->versions = w->n_versions;
    audit_release(&a);
}

static bool unsettled(void *user, struct bytes key, struct bytes value)
{
    struct state_domain d;
    (void)key;
    if (state_domain_get(value, &d) && d.watermark < d.train_next)
        *(bool *)user = true;
    return !*(bool *)user;
}

bool all_settled(struct world *w)
{
    bool open = false;
    disk_scan(w, FAMILY_META, 'd', unsettled, &open);
    return !open;
}

/* ---- rounds: leases of the round in progress are disjoint and hold nothing that is settled */

void check_round(struct world *w)
{
    static const struct pass passes[] = {{FAMILY_META, 'd', collect_domain},
                                         {FAMILY_STREAM, 't', collect_settled},
                                         {FAMILY_STREAM, 'T', collect_settled},
                                         {FAMILY_LEASES, 'l', collect_lease}};
    struct audit a = {.w = w};
    run_passes(&a, passes, sizeof passes / sizeof passes[0]);
    audit_release(&a);
}

/* ---- 2, 3 and 6: a lease counts at its newest grant only, is the same work whoever does it, and replays from the law's sample */

static struct lease_seen *lease_seen(struct world *w, uint64_t id)
{
    for (size_t i = w->n_leases; i-- > 0;)
        if (w->leases[i].id == id)
            return &w->leases[i];
    if (w->n_leases == w->cap_leases) {
        w->cap_leases = w->cap_leases ? 2 * w->cap_leases : 64;
        w->leases = xrealloc_array(w->leases, w->cap_leases, sizeof *w->leases);
    }
    w->leases[w->n_leases] = (struct lease_seen){.id = id};
    return &w->leases[w->n_leases++];
}

void check_grant(struct world *w, const struct node *worker, const Alv__Lease *lease)
{
    struct lease_seen *seen = lease_seen(w, lease->id);
    uint8_t holder[24];
    memcpy(holder, worker->instance, 16);
    memcpy(holder + 16, &worker->boot, 8);
    if (lease->generation == seen->held_generation && memcmp(holder, seen->holder, sizeof holder))
        fail(w, "promise 2: lease %" PRIu64 " is granted to two at generation %u", lease->id, lease->generation);
    seen->held_generation = lease->generation;
    memcpy(seen->holder, holder, sizeof holder);
    if (lease->generation < seen->generation)
        fail(w, "promise 2: lease %" PRIu64 " is granted at generation %u after %u", lease->id, lease->generation,
             seen->generation);
    for (size_t i = 0; i < lease->n_domains; i++) {
        struct state_domain d;
        if (!disk_domain(w, lease->domains[i]->domain, &d) || lease->domains[i]->watermark > d.watermark)
            fail(w, "promise 3: lease %" PRIu64 " replays domain %u below %" PRIu64 ", which is not settled", lease->id,
                 lease->domains[i]->domain, lease->domains[i]->watermark);
    }
    w->result->leases_regranted += seen->generation && lease->generation > seen->generation;
    seen->generation = lease->generation;
}

/* Of two processes of one instance the newer is let in, the older not any more. */
void check_admitted(struct world *w, const struct node *node)
{
    if (node->index != 0 && node->index != TWIN)
        return;
    if (node->boot < w->twin_admitted)
        fail(w, "start %" PRIu64 " of an instance is let in after start %" PRIu64, node->boot, w->twin_admitted);
    w->twin_admitted = node->boot;
}

void check_lease(struct world *w, const Alv__Lease *lease, const struct digest *work)
{
    struct lease_seen *seen = lease_seen(w, lease->id);
    if (seen->done && seen->exclusion_seq == lease->exclusion_seq && !digest_eq(&seen->work, work))
        fail(w, "promise 6: lease %" PRIu64 " was other work when it was done again", lease->id);
    seen->done = true;
    seen->exclusion_seq = lease->exclusion_seq;
    seen->work = *work;
}

struct erasure {
    struct domain_id domain;
    uint64_t offset, seq;
};

static bool erased_by(void *user, struct bytes key, struct bytes value)
{
    struct erasure *e = user;
    struct state_exclusion x;
    uint64_t seq;
    if (key_read_u64(key, &seq) && state_exclusion_get(value, &x) && x.state == SEG_RETRACTED &&
        x.domain.v == e->domain.v && e->offset >= x.first && e->offset - x.first < x.count)
        e->seq = seq;
    return !e->seq;
}

/* A lease names a segment without text: it was retracted after the lease was made, never before. */
void check_erased(struct world *w, const Alv__Lease *lease, struct domain_id domain, uint64_t offset)
{
    struct erasure e = {domain, offset, 0};
    disk_scan(w, FAMILY_META, 'e', erased_by, &e);
    if (!e.seq)
        fail(w, "lease %" PRIu64 " names segment %u/%" PRIu64 ", which is not in the log", lease->id, domain.v, offset);
    else if (e.seq <= lease->exclusion_seq)
        fail(w,
             "promise 2: lease %" PRIu64 " of exclusions up to %" PRIu64 " names segment %u/%" PRIu64
             ", retracted by %" PRIu64,
             lease->id, lease->exclusion_seq, domain.v, offset, e.seq);
}

struct law { /* DESIGN section 5, computed the slow way */
    struct world *w;
    const Alv__Lease *lease;
    struct domain_id domain;
    struct state_exclusion *exclusions;
    uint64_t *seqs;
    size_t n, cap;
};

static bool collect_exclusion(void *user, struct bytes key, struct bytes value)
{
    struct law *law = user;
    struct state_exclusion e;
    uint64_t seq;
    if (!key_read_u64(key, &seq) || !state_exclusion_get(value, &e) || e.domain.v != law->domain.v ||
        seq > law->lease->exclusion_seq)
        return true;
    if (law->n == law->cap) {
        law->cap = law->cap ? 2 * law->cap : 16;
        law->exclusions = xrealloc_array(law->exclusions, law->cap, sizeof *law->exclusions);
        law->seqs = xrealloc_array(law->seqs, law->cap, sizeof *law->seqs);
    }
    law->seqs[law->n] = seq;
    law->exclusions[law->n++] = e;
    return true;
}

static bool excluded(const struct law *law, uint64_t offset, size_t upto)
{
    for (size_t i = 0; i < upto; i++)
        if (offset >= law->exclusions[i].first && offset < law->exclusions[i].first + law->exclusions[i].count)
            return true;
    return false;
}

/* The members of the sample below `watermark`, by arrivals one after the other and a plain list. */
static void law_members(struct law *law, uint64_t watermark, uint32_t k, bool *member)
{
    uint64_t *held = xcalloc((size_t)k + 1, sizeof *held);
    size_t active = 0;
    uint64_t tau = UINT64_MAX;
    uint32_t n = 0;
    for (uint64_t o = 0; o <= watermark; o++) {
        for (; active < law->n && law->exclusions[active].watermark <= o; active++)
            for (uint32_t i = n; i-- > 0;)
                if (excluded(law, held[i], active + 1))
                    held[i] = held[--n];
        if (o == watermark || replay_key(&law->w->config.seed, law->domain, o) > tau || excluded(law, o, active))
            continue;
        held[n++] = o;
        uint32_t largest = 0;
        for (int pass = 0; pass < 2 && n >= k; pass++) { /* the largest leaves; the next one is the threshold */
            for (uint32_t i = largest = 0; i < n; i++)
                if (replay_key(&law->w->config.seed, law->domain, held[i]) >=
                    replay_key(&law->w->config.seed, law->domain, held[largest]))
                    largest = i;
            if (n > k)
                held[largest] = held[--n];
            else
                pass = 2;
        }
        if (n == k) {
            uint64_t key = replay_key(&law->w->config.seed, law->domain, held[largest]);
            tau = key < tau ? key : tau;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        member[held[i]] = true;
    free(held);
}

/* What a worker holds for a sample is the law's, member by member, and what it replays is of it. */
void check_sample(struct world *w, const Alv__Lease *lease, const struct plan *plan, const struct view *view)
{
    if (!chance(w, 0.2)) /* the slow way is slow */
        return;
    for (size_t d = 0; d < lease->n_domains; d++) {
        struct law law = {.w = w, .lease = lease, .domain = {(uint16_t)lease->domains[d]->domain}};
        uint64_t watermark = lease->domains[d]->watermark;
        bool *member = xcalloc(watermark + 1, sizeof *member);
        disk_scan(w, FAMILY_META, 'e', collect_exclusion, &law);
        law_members(&law, watermark, lease->train->sample_k, member);
        for (uint64_t o = 0; o < watermark; o++)
            if (member[o] != view_member(view, law.domain, o))
                fail(w, "promise 3: segment %u/%" PRIu64 " is %s the law's sample below %" PRIu64 " for lease %" PRIu64,
                     law.domain.v, o, member[o] ? "missing from" : "not in", watermark, lease->id);
        for (int pool = MIX_HISTORY; pool <= MIX_ANCHOR; pool++)
            for (uint32_t i = 0; i < plan->n[pool]; i++) {
                const struct mix_segment *s = &plan->segments[pool][i];
                if (s->domain.v == law.domain.v && (s->offset >= watermark || !member[s->offset]))
                    fail(w,
                         "promise 3: lease %" PRIu64 " replays %u/%" PRIu64 ", which the law's sample below %" PRIu64
                         " does not hold",
                         lease->id, s->domain.v, s->offset, watermark);
            }
        free(member);
        free(law.exclusions);
        free(law.seqs);
    }
}

/* ---- 5: versions are facts */

void check_manifest(struct world *w, uint64_t number, struct bytes manifest, struct bytes signature)
{
    struct digest d;
    struct manifest m;
    struct err err;
    struct sign_public release;
    manifest_digest(manifest.data, manifest.len, &d);
    if (number < w->n_versions && w->versions[number].known) {
        if (!digest_eq(&w->versions[number].manifest, &d))
            fail(w, "promise 5: version %" PRIu64 " was another one before", number);
        return;
    }
    memcpy(release.b, w->config.release_public, sizeof release.b);
    if (manifest_verify(&release, manifest.data, manifest.len, signature.data, signature.len, &err) ||
        manifest_decode(manifest.data, manifest.len, &m, &err)) {
        fail(w, "promise 5: version %" PRIu64 ": %s", number, err.text);
        return;
    }
    if (m.number != number || (number && m.parent >= number))
        fail(w, "promise 5: the manifest of version %" PRIu64 " says %" PRIu64 ", parent %" PRIu64, number, m.number,
             m.parent);
    else if (number && m.parent < w->n_versions && w->versions[m.parent].known &&
             !digest_eq(&m.parent_manifest, &w->versions[m.parent].manifest))
        fail(w, "promise 5: version %" PRIu64 " does not continue the parent %" PRIu64 " that was published", number,
             m.parent);
    for (uint32_t i = 0; i < m.n_leases; i++)
        if (m.leases[i].generation != lease_seen(w, m.leases[i].id)->generation)
            fail(w,
                 "promise 2: version %" PRIu64 " holds lease %" PRIu64
                 " at generation %u, but it was granted to another at %u",
                 number, m.leases[i].id, m.leases[i].generation, lease_seen(w, m.leases[i].id)->generation);
    manifest_release(&m);
    if (number >= w->n_versions) {
        w->versions = xrealloc_array(w->versions, number + 1, sizeof *w->versions);
        memset(w->versions + w->n_versions, 0, (number + 1 - w->n_versions) * sizeof *w->versions);
        w->n_versions = number + 1;
    }
    w->versions[number] = (struct version_seen){true, d};
}

void check_swap(struct world *w, const struct node *subscriber, uint64_t number)
{
    if (subscriber->has_current && number < subscriber->current)
        fail(w, "promise 5: the subscriber went back from version %" PRIu64 " to %" PRIu64, subscriber->current,
             number);
}
