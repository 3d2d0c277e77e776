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
    if (key.data[0] != 'p' || !state_stream_get(value, &s))
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
    disk_scan(w, FAMILY_META, find_stream, &f);
    if (f.position < position)
        fail(w, "promise 1: node %d was told that %" PRIu64 " records are stored; %" PRIu64 " are durable",
             producer->index, position, f.position);
}

struct stored { /* piece 0 of a record in the log */
    struct hash16 content;
    uint32_t times;
};

struct audit {
    struct world *w;
    struct stored *stored;
    size_t n, cap;
    struct domain_audit {
        bool there;
        struct state_domain d;
        uint8_t *state; /* [train_next]: enum segment_state + 1 of the settled; 0: none */
        uint64_t *ref;
        uint8_t *leased;
        uint64_t *in_version; /* version whose manifest lists it, + 1 */
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
    if (key.data[0] != 'd')
        return true;
    uint16_t id = (uint16_t)(key.data[1] << 8 | key.data[2]);
    if (id > TRAIN_DOMAINS || !state_domain_get(value, &a->domains[id].d)) {
        fail(a->w, "domain %u does not read", id);
        return false;
    }
    struct domain_audit *d = &a->domains[id];
    d->there = true;
    d->state = xcalloc(d->d.train_next + 1, 1);
    d->leased = xcalloc(d->d.train_next + 1, 1);
    d->ref = xcalloc(d->d.train_next + 1, sizeof *d->ref);
    d->in_version = xcalloc(d->d.train_next + 1, sizeof *d->in_version);
    return true;
}

static bool collect_segment(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_segment s;
    if (key.data[0] != 's')
        return true;
    if (!state_segment_get(value, &s)) {
        fail(a->w, "a stored segment does not read");
        return false;
    }
    a->segments++;
    if (s.piece)
        return true;
    if (a->n == a->cap) {
        a->cap = a->cap ? 2 * a->cap : 256;
        a->stored = xrealloc_array(a->stored, a->cap, sizeof *a->stored);
    }
    a->stored[a->n++] = (struct stored){s.content, 1};
    return true;
}

static bool collect_settled(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct domain_id domain;
    uint64_t first;
    struct state_settled s;
    if (key.data[0] != 't' && key.data[0] != 'T')
        return true;
    if (!key_read_domain(key, &domain, &first) || !state_settled_get(value, &s) || domain.v > TRAIN_DOMAINS) {
        fail(a->w, "a settled range does not read");
        return false;
    }
    struct domain_audit *d = &a->domains[domain.v];
    for (uint64_t o = first; o < first + s.count; o++) {
        if (!d->there || o >= d->d.train_next) {
            fail(a->w, "promise 2: segment %u/%" PRIu64 " is settled but was never appended", domain.v, o);
            return false;
        }
        if (d->state[o]) {
            fail(a->w, "promise 2: segment %u/%" PRIu64 " is in two terminal states: %s and %s", domain.v, o,
                 segment_state_name((enum segment_state)(d->state[o] - 1)),
                 segment_state_name((enum segment_state)s.state));
            return false;
        }
        d->state[o] = (uint8_t)(s.state + 1);
        d->ref[o] = s.ref;
    }
    return true;
}

static bool collect_lease(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_lease lease;
    if (key.data[0] != 'l')
        return true;
    if (!state_lease_get(value, &lease)) {
        fail(a->w, "a stored lease does not read");
        return false;
    }
    for (uint32_t i = 0; i < lease.n_ranges; i++)
        for (uint32_t j = 0; j < lease.ranges[i].count; j++) {
            struct domain_audit *d = &a->domains[lease.ranges[i].domain.v];
            uint64_t o = lease.ranges[i].first + j;
            if (!d->there || o >= d->d.train_next || d->leased[o] || d->state[o])
                fail(a->w, "promise 2: segment %u/%" PRIu64 " of lease %" PRIu64 " is %s", lease.ranges[i].domain.v, o,
                     lease.id,
                     !d->there || o >= d->d.train_next ? "not in the log"
                     : d->leased[o]                    ? "in another lease too"
                                                       : "settled already");
            else
                d->leased[o] = 1;
        }
    state_lease_release(&lease);
    return a->w->result->ok;
}

static bool collect_version(void *user, struct bytes key, struct bytes value)
{
    struct audit *a = user;
    struct state_version v;
    struct manifest m;
    struct err err;
    uint64_t number;
    if (key.data[0] != 'm')
        return true;
    if (!key_read_u64(key, &number) || !state_version_get(value, &v)) {
        fail(a->w, "a stored version does not read");
        return false;
    }
    check_manifest(a->w, number, v.manifest, (struct bytes){v.signature, sizeof v.signature});
    if (!blob_held(a->w, &v.files.peft))
        fail(a->w, "promise 5: version %" PRIu64 " is published, its file is not there", number);
    if (manifest_decode(v.manifest.data, v.manifest.len, &m, &err)) {
        fail(a->w, "version %" PRIu64 ": %s", number, err.text);
        return false;
    }
    for (uint32_t l = 0; l < m.n_leases; l++)
        for (uint32_t r = 0; r < m.leases[l].n_ranges; r++)
            for (uint32_t i = 0; i < m.leases[l].ranges[r].count; i++) {
                struct domain_audit *d = &a->domains[m.leases[l].ranges[r].domain.v];
                uint64_t o = m.leases[l].ranges[r].first + i;
                if (d->in_version[o])
                    fail(a->w, "promise 2: segment %u/%" PRIu64 " is in versions %" PRIu64 " and %" PRIu64,
                         m.leases[l].ranges[r].domain.v, o, d->in_version[o] - 1, number);
                d->in_version[o] = number + 1;
            }
    manifest_release(&m);
    return a->w->result->ok;
}

static void check_states(struct audit *a)
{
    struct world *w = a->w;
    for (unsigned id = 0; id <= TRAIN_DOMAINS && w->result->ok; id++) {
        const struct domain_audit *d = &a->domains[id];
        for (uint64_t o = 0; d->there && o < d->d.train_next && w->result->ok; o++) {
            bool done = d->state[o] == SEG_DONE + 1;
            if (o < d->d.watermark && !d->state[o])
                fail(w, "promise 2: segment %u/%" PRIu64 " is below the watermark %" PRIu64 " and in no terminal state",
                     id, o, d->d.watermark);
            else if (id && done && d->in_version[o] != d->ref[o] + 1)
                fail(w,
                     "promise 2: segment %u/%" PRIu64 " is done in version %" PRIu64
                     ", whose manifest does not list it",
                     id, o, d->ref[o]);
            else if (d->in_version[o] && !done)
                fail(w, "promise 2: segment %u/%" PRIu64 " is in version %" PRIu64 " but not done", id, o,
                     d->in_version[o] - 1);
        }
    }
}

static void check_records(struct audit *a)
{
    struct world *w = a->w;
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
            if (times != 1)
                fail(w, "promise %d: record %u of node %d was acknowledged and is in the log %zu times", times ? 2 : 1,
                     r, i, times);
        }
    }
}

static void audit_release(struct audit *a)
{
    free(a->stored);
    for (unsigned i = 0; i <= TRAIN_DOMAINS; i++) {
        free(a->domains[i].state);
        free(a->domains[i].leased);
        free(a->domains[i].ref);
        free(a->domains[i].in_version);
    }
}

void check_store(struct world *w)
{
    struct audit a = {.w = w};
    const struct {
        uint8_t family;
        pair_fn *collect;
    } passes[] = {{FAMILY_META, collect_domain},
                  {FAMILY_STREAM, collect_segment},
                  {FAMILY_STREAM, collect_settled},
                  {FAMILY_LEASES, collect_lease},
                  {FAMILY_VERSIONS, collect_version}};
    for (size_t i = 0; i < sizeof passes / sizeof passes[0] && w->result->ok; i++)
        disk_scan(w, passes[i].family, passes[i].collect, &a);
    if (w->result->ok)
        check_states(&a);
    if (w->result->ok)
        check_records(&a);
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
    if (key.data[0] == 'd' && state_domain_get(value, &d) && d.watermark < d.train_next)
        *(bool *)user = true;
    return true;
}

bool all_settled(struct world *w)
{
    bool open = false;
    disk_scan(w, FAMILY_META, unsettled, &open);
    return !open;
}

/* ---- rounds: leases of the round in progress are disjoint and hold nothing that is settled */

void check_round(struct world *w)
{
    struct audit a = {.w = w};
    disk_scan(w, FAMILY_META, collect_domain, &a);
    disk_scan(w, FAMILY_STREAM, collect_settled, &a);
    disk_scan(w, FAMILY_LEASES, collect_lease, &a);
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

void check_grant(struct world *w, const Alv__Lease *lease)
{
    struct lease_seen *seen = lease_seen(w, lease->id);
    if (lease->generation < seen->generation)
        fail(w, "promise 2: lease %" PRIu64 " is granted at generation %u after %u", lease->id, lease->generation,
             seen->generation);
    w->result->leases_regranted += seen->generation && lease->generation > seen->generation;
    seen->generation = lease->generation;
}

void check_lease(struct world *w, const Alv__Lease *lease, const struct digest *work)
{
    struct lease_seen *seen = lease_seen(w, lease->id);
    if (seen->done && !digest_eq(&seen->work, work))
        fail(w, "promise 6: lease %" PRIu64 " was other work when it was done again", lease->id);
    seen->done = true;
    seen->work = *work;
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
    if (key.data[0] != 'e' || !key_read_u64(key, &seq) || !state_exclusion_get(value, &e) ||
        e.domain.v != law->domain.v || seq > law->lease->exclusion_seq)
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
    size_t active = 0;
    uint64_t tau = UINT64_MAX, n = 0;
    for (uint64_t o = 0; o <= watermark; o++) {
        for (; active < law->n && law->exclusions[active].watermark <= o; active++)
            for (uint64_t x = 0; x < o; x++)
                if (member[x] && excluded(law, x, active + 1))
                    member[x] = false, n--;
        uint64_t key = o < watermark ? replay_key(&law->w->config.seed, law->domain, o) : UINT64_MAX;
        if (o == watermark || key > tau || excluded(law, o, active))
            continue;
        member[o] = true;
        n++;
        uint64_t largest = 0, at = 0;
        for (uint64_t x = 0; x <= o && n >= k; x++)
            if (member[x] && replay_key(&law->w->config.seed, law->domain, x) >= largest)
                largest = replay_key(&law->w->config.seed, law->domain, x), at = x;
        if (n > k) {
            member[at] = false;
            n--;
            largest = 0;
            for (uint64_t x = 0; x <= o; x++)
                if (member[x] && replay_key(&law->w->config.seed, law->domain, x) > largest)
                    largest = replay_key(&law->w->config.seed, law->domain, x);
        }
        if (n == k)
            tau = largest < tau ? largest : tau;
    }
}

void check_sample(struct world *w, const Alv__Lease *lease, const struct plan *plan)
{
    if (!chance(w, 0.1)) /* the slow way is slow */
        return;
    for (size_t d = 0; d < lease->n_domains; d++) {
        struct law law = {.w = w, .lease = lease, .domain = {(uint16_t)lease->domains[d]->domain}};
        uint64_t watermark = lease->domains[d]->watermark;
        bool *member = xcalloc(watermark + 1, sizeof *member);
        disk_scan(w, FAMILY_META, collect_exclusion, &law);
        law_members(&law, watermark, lease->train->sample_k, member);
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
