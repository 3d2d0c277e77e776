/* journal.c - the promises, asked of every batch as it becomes durable: what may follow what. The disk holds the state
 * before the batch; nothing that was committed may be taken back. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/manifest.h"
#include "world.h"

/* The last thing the batch says about a key; false: nothing. A deleted one has no data. */
static bool batch_get(const struct batch *batch, uint8_t family, struct state_key key, struct bytes *out)
{
    struct batch_op op;
    bool found = false;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.family == family && op.kind != BATCH_DELETE_RANGE && op.key.len == key.len &&
            !memcmp(op.key.data, key.b, key.len)) {
            *out = op.kind == BATCH_PUT ? op.value : (struct bytes){0};
            found = true;
        }
    return found && out->data;
}

static bool batch_domain(const struct world *w, const struct batch *batch, unsigned id, struct state_domain *out)
{
    struct bytes value;
    return batch_get(batch, FAMILY_META, key_u16('d', (uint16_t)id), &value) ? state_domain_get(value, out)
                                                                             : disk_domain(w, id, out);
}

/* ---- domains: H and the dense offsets never fall */

static void check_domain(struct world *w, const struct batch_op *op)
{
    struct state_domain new, old;
    unsigned id = (unsigned)(op->key.data[1] << 8 | op->key.data[2]);
    if (!state_domain_get(op->value, &new)) {
        fail(w, "domain %u does not read", id);
        return;
    }
    if (!disk_domain(w, id, &old))
        return;
    if (new.watermark < old.watermark || new.train_next < old.train_next || new.probe_next < old.probe_next)
        fail(w, "promise 3: domain %u goes back: watermark %" PRIu64 " to %" PRIu64 ", next %" PRIu64 " to %" PRIu64,
             id, old.watermark, new.watermark, old.train_next, new.train_next);
    if (new.watermark > new.train_next)
        fail(w, "promise 3: domain %u has watermark %" PRIu64 " of %" PRIu64 " segments", id, new.watermark,
             new.train_next);
}

/* ---- receipts: what an ack says is what its batch stored */

struct arrived {
    uint64_t train, probe; /* segments put by the batch */
    uint32_t records;      /* whole ones */
    bool torn;
};

static void count_segments(struct world *w, const struct batch *batch, struct domain_id domain, const Alv__PushAck *ack,
                           struct arrived *out)
{
    struct batch_op op;
    uint32_t next_piece[2] = {0, 0}, pieces[2] = {0, 0};
    for (size_t at = 0; batch_next(batch, &at, &op);) {
        struct state_segment s;
        if (op.kind != BATCH_PUT || op.family != FAMILY_STREAM || op.key.data[0] != 's')
            continue;
        struct reader r = reader_of(op.key.data + 1, op.key.len - 1);
        uint16_t d = read_u16_be(&r);
        bool probe = read_u8(&r);
        uint64_t offset = read_u64_be(&r), first = probe ? ack->probe_first : ack->train_first;
        uint64_t *n = probe ? &out->probe : &out->train;
        out->torn |= d != domain.v || offset != first + *n || !state_segment_get(op.value, &s) ||
                     s.piece != next_piece[probe] || (s.piece && s.pieces != pieces[probe]);
        ++*n;
        pieces[probe] = s.pieces;
        next_piece[probe] = s.piece + 1 == s.pieces ? 0 : s.piece + 1;
        out->records += s.piece + 1 == s.pieces;
    }
    out->torn |= next_piece[0] || next_piece[1];
    (void)w;
}

static void check_receipt(struct world *w, const struct batch *batch, const struct state_stream *s)
{
    Alv__PushAck *ack = alv__push_ack__unpack(NULL, s->last_ack.len, s->last_ack.data);
    struct state_domain before, after;
    struct arrived arrived = {0};
    CHECK(ack && disk_domain(w, s->domain.v, &before) && batch_domain(w, batch, s->domain.v, &after));
    count_segments(w, batch, s->domain, ack, &arrived);
    uint64_t n = s->position - s->last_position;
    if (ack->position != s->position || ack->train_first != before.train_next || ack->train_end != after.train_next ||
        ack->probe_first != before.probe_next || ack->probe_end != after.probe_next)
        fail(w,
             "promise 1: the receipt of a batch of domain %u says [%" PRIu64 ", %" PRIu64 "), stored is [%" PRIu64
             ", %" PRIu64 ")",
             s->domain.v, ack->train_first, ack->train_end, before.train_next, after.train_next);
    if (arrived.torn || arrived.train != ack->train_end - ack->train_first ||
        arrived.probe != ack->probe_end - ack->probe_first || arrived.records != ack->accepted)
        fail(w, "promise 1: a receipt for %u records comes with %u whole ones in %" PRIu64 " and %" PRIu64 " segments",
             ack->accepted, arrived.records, arrived.train, arrived.probe);
    if (ack->accepted + ack->duplicates + ack->n_refused != n || after.records - before.records != ack->accepted ||
        after.duplicates - before.duplicates != ack->duplicates || after.refused - before.refused != ack->n_refused ||
        after.superseded - before.superseded != ack->superseded)
        fail(w, "promise 2: of %" PRIu64 " records %u were stored, %u dropped, %zu refused; the domain counts %" PRIu64,
             n, ack->accepted, ack->duplicates, ack->n_refused, after.records - before.records);
    alv__push_ack__free_unpacked(ack, NULL);
    if (w->n_receipts == w->cap_receipts) {
        w->cap_receipts = w->cap_receipts ? 2 * w->cap_receipts : 64;
        w->receipts = xrealloc_array(w->receipts, w->cap_receipts, sizeof *w->receipts);
    }
    struct receipt *r = &w->receipts[w->n_receipts++];
    *r = (struct receipt){.key = s->key, .first = s->last_position, .end = s->position};
    buf_put(&r->ack, s->last_ack.data, s->last_ack.len);
}

static void check_stream(struct world *w, const struct batch *batch, const struct batch_op *op)
{
    struct state_stream new, old = {0};
    struct bytes value;
    uint64_t id;
    CHECK(key_read_u64(op->key, &id) && state_stream_get(op->value, &new));
    bool known = disk_get(w, FAMILY_META, key_u64('p', id), &value) && state_stream_get(value, &old);
    if (new.position < old.position)
        fail(w, "promise 1: a stream goes back from %" PRIu64 " to %" PRIu64, old.position, new.position);
    else if (new.position > old.position &&new.last_position != old.position)
        fail(w, "promise 1: a batch at %" PRIu64 " follows position %" PRIu64, new.last_position, old.position);
    else if (new.position > old.position)
        check_receipt(w, batch, &new);
    state_stream_release(&new);
    if (known)
        state_stream_release(&old);
}

void check_ack(struct world *w, const struct node *producer, const Alv__PushAck *ack)
{
    struct buf packed = {0};
    alv__push_ack__pack(ack, buf_extend(&packed, alv__push_ack__get_packed_size(ack)));
    const struct receipt *r = NULL;
    for (size_t i = 0; i < w->n_receipts && !r; i++)
        if (name_eq(&w->receipts[i].key, &producer->key) && w->receipts[i].end == ack->position)
            r = &w->receipts[i];
    if (!r || r->ack.len != packed.len || memcmp(r->ack.data, packed.data, packed.len))
        fail(w, "promise 1: the ack of node %d up to %" PRIu64 " is not the one that was stored", producer->index,
             ack->position);
    buf_release(&packed);
}

/* ---- rounds: one at a time, each ended by a verdict, or by a rollback, or because all its data is held */

static bool is_rollback(const struct batch_op *op)
{
    struct state_version v;
    struct manifest m;
    if (op->family != FAMILY_VERSIONS || op->key.data[0] != 'm' || !state_version_get(op->value, &v) ||
        manifest_decode(v.manifest.data, v.manifest.len, &m, NULL))
        return false;
    bool rollback = m.flags & MANIFEST_ROLLBACK;
    manifest_release(&m);
    return rollback;
}

static bool rolls_back(const struct batch *batch)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.kind == BATCH_PUT && is_rollback(&op))
            return true;
    return false;
}

static void check_transition(struct world *w, const struct batch *batch, const struct state_round *a,
                             const struct state_round *b)
{
    struct bytes value;
    struct state_verdict verdict = {0};
    bool judged = batch_get(batch, FAMILY_VERSIONS, key_pair('v', a->number, a->verdicts), &value) &&
                  state_verdict_get(value, &verdict);
    bool same = b->number == a->number, judging = a->phase == ROUND_EVALUATING && b->phase != ROUND_EVALUATING;
    bool half =
        same && judging && b->phase == ROUND_AGGREGATING && a->attempt == ATTEMPT_FULL && b->attempt == ATTEMPT_HALF;
    bool diagnose =
        same && judging && b->phase == ROUND_OPEN && a->attempt == ATTEMPT_HALF && b->attempt == ATTEMPT_DIAGNOSE;
    bool suspect = same && b->phase == ROUND_AGGREGATING && a->attempt == ATTEMPT_DIAGNOSE &&
                   a->suspect != b->suspect && b->attempt == (b->suspect ? ATTEMPT_DIAGNOSE : ATTEMPT_REST);
    bool next = b->number == a->number + 1 && a->phase == ROUND_NONE && b->phase == ROUND_OPEN && !b->attempt;
    bool onward = same && b->attempt == a->attempt && b->suspect == a->suspect && b->phase >= a->phase && a->phase;
    bool over = same && b->phase == ROUND_NONE;
    if (!half && !diagnose && !suspect && !next && !onward && !over)
        fail(w, "round %" PRIu64 " in phase %u, attempt %u is followed by %" PRIu64 " in %u, %u", a->number, a->phase,
             a->attempt, b->number, b->phase, b->attempt);
    if (judging && !judged && !rolls_back(batch))
        fail(w, "promise 4: round %" PRIu64 ", attempt %u, has no verdict", a->number, a->attempt);
    if (judging && judged && verdict.lease != a->suspect)
        fail(w, "the verdict on lease %" PRIu64 " says it is on %" PRIu64, a->suspect, verdict.lease);
    if (judged && verdict.published && !batch_get(batch, FAMILY_VERSIONS, key_u64('m', verdict.version), &value))
        fail(w, "promise 4: the verdict of round %" PRIu64 " names version %" PRIu64 ", which is not published",
             a->number, verdict.version);
}

static void check_rounds(struct world *w, const struct batch *batch)
{
    struct state_round now, next;
    struct bytes value;
    struct batch_op op;
    CHECK(disk_get(w, FAMILY_META, key_plain('r'), &value) && state_round_get(value, &now));
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.kind == BATCH_PUT && op.family == FAMILY_META && op.key.data[0] == 'r') {
            CHECK(state_round_get(op.value, &next));
            check_transition(w, batch, &now, &next);
            now = next;
        }
}

/* ---- leases */

static void check_stored_lease(struct world *w, const struct batch *batch, const struct batch_op *op, uint64_t *newest)
{
    struct state_lease new, old = {0};
    struct bytes value;
    CHECK(state_lease_get(op->value, &new));
    bool known = disk_get(w, FAMILY_LEASES, key_u64('l', new.id), &value) && state_lease_get(value, &old);
    if (!known && new.id <= w->lease_last)
        fail(w, "lease %" PRIu64 " comes back", new.id);
    if (new.id > *newest) /* the batch may store it several times */
        *newest = new.id;
    if (new.generation < old.generation || new.attempts < old.attempts)
        fail(w, "promise 2: lease %" PRIu64 " goes back from generation %u to %u", new.id, old.generation,
             new.generation);
    if (new.attempts >= w->config.settings.lease_attempts &&new.phase != LEASE_ACCEPTED)
        fail(w, "lease %" PRIu64 " has failed %u times and is not held", new.id, new.attempts);
    if (known && new.phase == LEASE_GRANTED &&new.generation == old.generation &&
        (old.phase != LEASE_GRANTED || new.boot != old.boot || memcmp(new.instance, old.instance, 16)))
        fail(w, "promise 2: lease %" PRIu64 " is granted twice at generation %u", new.id, new.generation);
    if (new.phase == LEASE_ACCEPTED && old.phase != LEASE_ACCEPTED &&
        !batch_get(batch, FAMILY_DELTAS, key_u64('d', new.id), &value))
        fail(w, "promise 1: lease %" PRIu64 " is accepted without its delta", new.id);
    state_lease_release(&new);
    if (known)
        state_lease_release(&old);
}

/* ---- exclusions: dense, at a watermark that does not fall */

static void check_exclusion(struct world *w, const struct batch *batch, const struct batch_op *op)
{
    struct state_exclusion e;
    struct state_domain d;
    uint64_t seq;
    CHECK(key_read_u64(op->key, &seq) && state_exclusion_get(op->value, &e));
    if (seq != w->exclusion_last + 1)
        fail(w, "exclusion %" PRIu64 " follows %" PRIu64, seq, w->exclusion_last);
    w->exclusion_last = seq;
    if (e.domain.v > TRAIN_DOMAINS || e.watermark < w->exclusion_at[e.domain.v])
        fail(w,
             "promise 3: exclusion %" PRIu64 " takes effect at %" PRIu64 ", an earlier one of its domain at %" PRIu64,
             seq, e.watermark, w->exclusion_at[e.domain.v % (TRAIN_DOMAINS + 1)]);
    else
        w->exclusion_at[e.domain.v] = e.watermark;
    struct state_domain before = {0};
    disk_domain(w, e.domain.v, &before);
    if (!batch_domain(w, batch, e.domain.v, &d) || e.first + e.count > d.train_next || e.watermark > d.watermark ||
        e.watermark < before.watermark)
        fail(w, "exclusion %" PRIu64 " is outside of its domain", seq);
}

struct covers {
    const struct batch *batch;
    struct domain_id domain;
    uint64_t first;
    uint32_t count;
    bool all;
};

static bool batch_retracts(const struct batch *batch, struct domain_id domain, uint64_t offset)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);) {
        struct state_exclusion e;
        if (op.kind == BATCH_PUT && op.family == FAMILY_META && op.key.data[0] == 'e' &&
            state_exclusion_get(op.value, &e) && e.domain.v == domain.v && e.state == SEG_RETRACTED &&
            offset >= e.first && offset - e.first < e.count)
            return true;
    }
    return false;
}

static bool batch_erases(const struct batch *batch, struct state_key key)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.kind == BATCH_DELETE_RANGE && op.family == FAMILY_STREAM &&
            memcmp(op.key.data, key.b, op.key.len < key.len ? op.key.len : key.len) <= 0 &&
            memcmp(op.value.data, key.b, op.value.len < key.len ? op.value.len : key.len) > 0)
            return true;
    return false;
}

static bool copy_covered(void *user, struct bytes key, struct bytes value)
{
    struct covers *c = user;
    struct state_link link;
    struct domain_id d;
    uint64_t first;
    CHECK(key_read_domain(key, &d, &first) && state_link_get(value, &link));
    for (uint32_t i = 0; i < link.count && d.v == c->domain.v; i++)
        if (link.source + i >= c->first && link.source + i - c->first < c->count)
            c->all &= batch_retracts(c->batch, d, first + i);
    return c->all;
}

/* A record that is forgotten goes from every place it ever had, its text from the log, its probes from the comparison. */
static void check_retracted(struct world *w, const struct batch *batch, const struct state_id *id)
{
    struct bytes value;
    for (uint32_t i = 0; i < id->n; i++) {
        const struct state_place *p = &id->places[i];
        struct covers covers = {batch, p->domain, p->first, p->count, true};
        if (!p->probe)
            disk_scan(w, FAMILY_META, 'k', copy_covered, &covers);
        for (uint32_t j = 0; j < p->count; j++) {
            uint64_t o = p->first + j;
            bool marked = p->probe ? batch_get(batch, FAMILY_STREAM, key_stream('x', p->domain, true, p->first), &value)
                                   : batch_retracts(batch, p->domain, o);
            bool window = p->probe && disk_get(w, FAMILY_STREAM, key_domain('w', p->domain, o), &value) &&
                          (batch_get(batch, FAMILY_STREAM, key_domain('w', p->domain, o), &value) || value.data);
            if (!marked || window || !covers.all || !batch_erases(batch, key_stream('s', p->domain, p->probe, o)))
                fail(w, "promise 2: a retracted record's %s segment %u/%" PRIu64 " stays%s",
                     p->probe ? "probe" : "train", p->domain.v, o, covers.all ? "" : " in a copy");
        }
    }
    w->result->retractions++;
}

static void check_retraction(struct world *w, const struct batch *batch)
{
    struct batch_op op;
    bool erases = false;
    struct state_id id;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        erases |= op.kind == BATCH_DELETE_RANGE && op.family == FAMILY_STREAM && op.key.data[0] == 's';
    for (size_t at = 0; erases && batch_next(batch, &at, &op);)
        if (op.kind == BATCH_PUT && op.family == FAMILY_DEDUPE && op.key.data[0] == 'i' &&
            state_id_get(op.value, &id) && !id.live)
            check_retracted(w, batch, &id);
}

/* ---- versions and aliases */

/* The version's row of the matrix, and its leases as they were accepted. */
static void check_gated(struct world *w, const struct batch *batch, const struct manifest *m)
{
    struct bytes value;
    double weight = 0;
    for (uint32_t i = 0; i < m->n_domains; i++) {
        struct state_losses losses = {0};
        uint64_t tokens = 0;
        if (batch_get(batch, FAMILY_MATRIX, key_matrix(m->number, m->domains[i].id), &value))
            CHECK(state_losses_get(value, &losses));
        for (uint32_t j = 0; j < losses.n; j++)
            tokens += losses.items[j].tokens;
        if (losses.n != m->domains[i].windows || tokens != m->domains[i].tokens)
            fail(w, "promise 5: version %" PRIu64 " was measured on %u windows of domain %u; its matrix row has %u",
                 m->number, m->domains[i].windows, m->domains[i].id.v, losses.n);
        state_losses_release(&losses);
    }
    for (uint32_t i = 0; i < m->n_leases; i++) {
        struct state_delta delta;
        const struct manifest_lease *l = &m->leases[i];
        if (!disk_get(w, FAMILY_DELTAS, key_u64('d', l->id), &value) || !state_delta_get(value, &delta) ||
            delta.generation != l->generation || !digest_eq(&delta.digest, &l->delta))
            fail(w, "promise 2: version %" PRIu64 " holds lease %" PRIu64 ", whose delta was not accepted", m->number,
                 l->id);
        weight += l->weight;
    }
    if (!m->n_leases || fabs(weight - 1) > 1e-9)
        fail(w, "version %" PRIu64 ": the weights of its leases sum to %g", m->number, weight);
}

struct walk {
    struct world *w;
    const struct batch *batch;
    struct domain_id domain;
    uint64_t offset;
    bool found;
};

static bool excludes(void *user, struct bytes key, struct bytes value)
{
    struct walk *walk = user;
    struct state_exclusion e;
    (void)key;
    walk->found = state_exclusion_get(value, &e) && e.domain.v == walk->domain.v && e.state != SEG_QUARANTINED &&
                  walk->offset >= e.first && walk->offset - e.first < e.count;
    return !walk->found;
}

static bool linked_by(const struct batch *batch, struct domain_id domain, uint64_t offset)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);) {
        struct domain_id d;
        struct state_link link;
        uint64_t first;
        if (op.kind == BATCH_PUT && op.family == FAMILY_META && op.key.data[0] == 'k' &&
            key_read_domain(op.key, &d, &first) && state_link_get(op.value, &link) && d.v == domain.v &&
            offset >= link.source && offset - link.source < link.count)
            return true;
    }
    return false;
}

/* What was trained in the versions left behind is pending again, once, unless the operator keeps it done. */
static void check_rollback(struct world *w, const struct batch *batch, const struct manifest *m)
{
    struct state_version v;
    struct manifest left;
    bool keep = w->action.keep;
    w->result->rollbacks++;
    if (m->parent != m->rollback_of || !w->has_action || w->action.verb != ALV__CONTROL_VERB__CONTROL_ROLLBACK ||
        m->parent != w->action.number)
        fail(w, "promise 5: version %" PRIu64 " goes back to %" PRIu64 ", which nobody asked for", m->number,
             m->parent);
    for (uint64_t at = m->number - 1; at > m->parent; at = v.parent) {
        CHECK(disk_version(w, at, &v) && !manifest_decode(v.manifest.data, v.manifest.len, &left, NULL));
        for (uint32_t l = 0; l < left.n_leases; l++)
            for (uint32_t r = 0; r < left.leases[l].n_ranges; r++)
                for (uint32_t i = 0; i < left.leases[l].ranges[r].count; i++) {
                    struct walk walk = {.w = w, .domain = left.leases[l].ranges[r].domain};
                    walk.offset = left.leases[l].ranges[r].first + i;
                    disk_scan(w, FAMILY_META, 'e', excludes, &walk);
                    bool again = linked_by(batch, walk.domain, walk.offset);
                    if (again != (!keep && !walk.found))
                        fail(w, "promise 2: the rollback to %" PRIu64 " %s segment %u/%" PRIu64 " of version %" PRIu64,
                             m->parent, again ? "gives back" : "loses", walk.domain.v, walk.offset, at);
                }
        manifest_release(&left);
    }
}

static void check_version(struct world *w, const struct batch *batch, const struct batch_op *op)
{
    struct state_version v;
    struct manifest m;
    uint64_t number, newest = disk_newest(w);
    CHECK(key_read_u64(op->key, &number) && state_version_get(op->value, &v));
    if (number != newest + 1 || manifest_decode(v.manifest.data, v.manifest.len, &m, NULL)) {
        fail(w, "promise 5: version %" PRIu64 " follows %" PRIu64, number, newest);
        return;
    }
    if (m.flags & MANIFEST_ROLLBACK) {
        check_rollback(w, batch, &m);
    } else if (m.flags & MANIFEST_UNGATED || m.parent != newest) {
        fail(w, "promise 4: version %" PRIu64 " of parent %" PRIu64 " was not gated", number, m.parent);
    } else {
        check_gated(w, batch, &m);
    }
    if (!files_held(w, &v.files))
        fail(w, "promise 5: version %" PRIu64 " is published, a file of it is not there", number);
    manifest_release(&m);
}

/* Marks change only on the version that the operator asks for. */
static void check_marks(struct world *w, const struct aliases *new)
{
    struct aliases old;
    bool asked = w->has_action && w->action.verb == ALV__CONTROL_VERB__CONTROL_MARK;
    if (!disk_aliases(w, &old))
        return;
    for (int way = 0; way < 2; way++) {
        const struct aliases *here = way ? &old : new, *there = way ? new : &old;
        for (uint32_t i = 0; i < here->n_marks; i++)
            if (!aliases_mark(there, here->marks[i].version, here->marks[i].kind) &&
                !(asked && w->action.number == here->marks[i].version))
                fail(w, "promise 5: version %" PRIu64 " %s %s by itself", here->marks[i].version,
                     way ? "is no longer" : "becomes", mark_name(here->marks[i].kind));
    }
    aliases_release(&old);
}

static void check_aliases(struct world *w, const struct batch *batch, const struct batch_op *op)
{
    struct aliases new, old;
    struct bytes value;
    struct state_counters counters;
    struct sign_public release;
    memcpy(release.b, w->config.release_public, sizeof release.b);
    size_t len = op->value.len - SIGNATURE_LEN;
    CHECK(op->value.len > SIGNATURE_LEN);
    if (aliases_verify(&release, op->value.data, len, op->value.data + len, SIGNATURE_LEN, NULL) ||
        aliases_decode(op->value.data, len, &new, NULL)) {
        fail(w, "promise 5: the alias statement does not verify");
        return;
    }
    uint64_t newest = disk_newest(w);
    if (batch_get(batch, FAMILY_META, key_plain('c'), &value) && state_counters_get(value, &counters))
        newest = counters.version;
    const struct alias *latest = aliases_find(&new, "latest");
    if (!latest || latest->version != newest)
        fail(w, "promise 5: latest is not the newest version %" PRIu64, newest);
    if (disk_aliases(w, &old)) {
        if (new.seq <= old.seq)
            fail(w, "promise 5: alias statement %" PRIu64 " follows %" PRIu64, new.seq, old.seq);
        aliases_release(&old);
    }
    check_marks(w, &new);
    for (unsigned i = 0; i < OPERATOR_ALIASES; i++) {
        const struct alias *a = aliases_find(&new, operator_alias(i));
        bool asked = w->has_action && w->action.verb == ALV__CONTROL_VERB__CONTROL_PROMOTE &&
                     !strcmp(w->action.name, operator_alias(i)) && a && a->version == w->action.number;
        if (!asked && (a != NULL) != w->aliases[i].set)
            fail(w, "promise 5: alias %s %s by itself", operator_alias(i), a ? "appears" : "goes");
        else if (!asked && a && a->version != w->aliases[i].version)
            fail(w, "promise 5: alias %s moves by itself from %" PRIu64 " to %" PRIu64, operator_alias(i),
                 w->aliases[i].version, a->version);
    }
    aliases_release(&new);
}

/* Whose data is held because it makes the model forget: there is poison in it, as far as its text can still be read. */
static void check_culprit(struct world *w, const struct batch_op *op)
{
    struct state_quarantine q;
    bool poison = false, known = true;
    CHECK(state_quarantine_get(op->value, &q));
    bool culprit = !strncmp(q.reason, "learnt alone", 12);
    for (uint32_t i = 0; i < q.n && culprit; i++)
        for (uint32_t j = 0; j < q.ranges[i].count; j++) {
            struct state_segment segment;
            if (segment_read(w, q.ranges[i].domain, false, q.ranges[i].first + j, &segment))
                poison |= segment_poisons(w, &segment);
            else
                known = false;
        }
    w->result->culprits += culprit;
    if (culprit && w->knobs.poison && known && !poison)
        fail(w, "promise 4: lease %" PRIu64 " is held for what it taught, and holds nothing harmful", q.lease);
    state_quarantine_release(&q);
}

/* ---- the probe: frozen in a numbered set when a round opens; until the next one windows only leave it */

static bool opens_round(const struct batch *batch)
{
    struct batch_op op;
    struct state_round round;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.kind == BATCH_PUT && op.family == FAMILY_META && op.key.data[0] == 'r' &&
            state_round_get(op.value, &round) && round.phase == ROUND_OPEN && round.attempt == ATTEMPT_FULL)
            return true;
    return false;
}

static void check_window(struct world *w, const struct batch *batch, const struct batch_op *op)
{
    struct state_windows new, old;
    struct bytes value;
    struct state_domain before, after;
    struct domain_id domain;
    uint64_t offset;
    CHECK(key_read_domain(op->key, &domain, &offset) && state_windows_get(op->value, &new));
    bool known = disk_get(w, FAMILY_STREAM, key_domain('w', domain, offset), &value) && state_windows_get(value, &old);
    if (known && (old.part != new.part || !old.waiting))
        fail(w, "probe window %u/%" PRIu64 " changes its part", domain.v, offset);
    if (new.waiting)
        return;
    w->result->promoted++;
    if (!opens_round(batch) || !disk_domain(w, domain.v, &before) || !batch_domain(w, batch, domain.v, &after) ||
        after.probe_set != before.probe_set + 1)
        fail(w, "probe window %u/%" PRIu64 " enters a set that is frozen", domain.v, offset);
}

/* ---- all of a batch */

void check_batch(struct world *w, const struct batch *batch)
{
    struct batch_op op;
    uint64_t newest_lease = w->lease_last;
    for (size_t at = 0; w->result->ok && batch_next(batch, &at, &op);) {
        if (op.kind != BATCH_PUT)
            continue;
        if (op.family == FAMILY_LEASES)
            check_stored_lease(w, batch, &op, &newest_lease);
        else if (op.family == FAMILY_VERSIONS && op.key.data[0] == 'm')
            check_version(w, batch, &op);
        else if (op.family == FAMILY_STREAM && op.key.data[0] == 'w')
            check_window(w, batch, &op);
        else if (op.family == FAMILY_STREAM && op.key.data[0] == 'x' && !op.key.data[3]) {
            struct state_settled s;
            CHECK(state_settled_get(op.value, &s));
            w->relabels[op.key.data[2] % (TRAIN_DOMAINS + 1)] += s.count;
        } else if (op.family == FAMILY_META) {
            switch (op.key.data[0]) {
            case 'a':
                check_aliases(w, batch, &op);
                break;
            case 'd':
                check_domain(w, &op);
                break;
            case 'e':
                check_exclusion(w, batch, &op);
                break;
            case 'p':
                check_stream(w, batch, &op);
                break;
            case 'q':
                check_culprit(w, &op);
                break;
            }
        }
    }
    w->lease_last = newest_lease;
    if (w->result->ok)
        check_rounds(w, batch);
    if (w->result->ok)
        check_retraction(w, batch);
}

static bool alias_files(struct world *w, const char *name, uint64_t number)
{
    struct state_version v;
    if (disk_version(w, number, &v) && files_held(w, &v.files))
        return true;
    fail(w, "promise 5: %s points to version %" PRIu64 ", whose files are gone", name, number);
    return false;
}

void check_applied(struct world *w, const struct batch *batch)
{
    struct bytes value;
    struct state_round round;
    struct aliases aliases;
    if (batch_get(batch, FAMILY_META, key_plain('r'), &value) && state_round_get(value, &round) &&
        round.phase == ROUND_OPEN)
        check_round(w);
    if (batch_get(batch, FAMILY_META, key_plain('a'), &value) && disk_aliases(w, &aliases)) {
        for (uint32_t i = 0; i < aliases.n_aliases && w->result->ok; i++)
            alias_files(w, aliases.aliases[i].name.s, aliases.aliases[i].version);
        aliases_release(&aliases);
    }
}

/* ---- files */

static bool file_of(const struct version_files *files, const struct digest *digest)
{
    return digest_eq(&files->peft, digest) || digest_eq(&files->gguf, digest) || digest_eq(&files->state, digest);
}

void check_drop(struct world *w, const struct digest *digest)
{
    struct state_version v;
    struct aliases aliases;
    uint64_t newest = disk_newest(w), kept = w->config.settings.versions_kept;
    for (uint64_t n = newest + 1 > kept ? newest + 1 - kept : 0; n <= newest; n++)
        if (disk_version(w, n, &v) && file_of(&v.files, digest))
            fail(w, "promise 5: a file of version %" PRIu64 " is dropped, the newest is %" PRIu64, n, newest);
    for (unsigned i = 0; i <= TRAIN_DOMAINS; i++) {
        struct state_domain d;
        if (disk_domain(w, i, &d) && disk_version(w, d.reference, &v) && digest_eq(&v.files.peft, digest))
            fail(w, "the file of version %" PRIu64 " is dropped, to which domain %u is compared", d.reference, i);
    }
    if (!disk_aliases(w, &aliases))
        return;
    for (uint32_t i = 0; i < aliases.n_aliases; i++)
        if (disk_version(w, aliases.aliases[i].version, &v) && file_of(&v.files, digest))
            fail(w, "promise 5: a file of version %" PRIu64 " is dropped, where %s points", aliases.aliases[i].version,
                 aliases.aliases[i].name.s);
    aliases_release(&aliases);
}

/* ---- retraction: the files, and the workers */

static bool disk_counters(const struct world *w, struct state_counters *out)
{
    struct bytes value;
    return disk_get(w, FAMILY_META, key_plain('c'), &value) && state_counters_get(value, out);
}

void check_purge(struct world *w, uint64_t number)
{
    struct state_counters c;
    CHECK(disk_counters(w, &c));
    if (number > c.erasures)
        fail(w, "retraction %" PRIu64 " is to leave the files, which the disk does not know yet", number);
}

struct holders {
    struct world *w;
    uint64_t erased; /* newest exclusion that is a retraction */
    unsigned n;
};

static bool newest_erasure(void *user, struct bytes key, struct bytes value)
{
    struct holders *h = user;
    struct state_exclusion e;
    uint64_t seq;
    CHECK(key_read_u64(key, &seq) && state_exclusion_get(value, &e));
    h->erased = e.state == SEG_RETRACTED ? seq : h->erased;
    return true;
}

static bool holder_done(void *user, struct bytes key, struct bytes value)
{
    struct holders *h = user;
    struct state_holder s;
    (void)key;
    CHECK(state_holder_get(value, &s));
    h->n += s.applied >= h->erased;
    return true;
}

/* Every worker instance did ask for work at some time, so each of them is known. */
bool all_erased(struct world *w)
{
    struct state_counters c;
    struct holders h = {.w = w};
    CHECK(disk_counters(w, &c));
    disk_scan(w, FAMILY_META, 'e', newest_erasure, &h);
    disk_scan(w, FAMILY_META, 'h', holder_done, &h);
    return c.purged == c.erasures && h.n == WORKERS;
}
