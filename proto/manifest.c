/* Canonical bytes of a manifest (little-endian; name = u8 length, then that many bytes; all counts within manifest.h):
 *
 *   8       "ALVMANI1"
 *   name    line
 *   u64     number;  u64 parent;  32 digest of the parent's manifest (zeroes for version 0)
 *   u64     created, Unix seconds
 *   32      card
 *   u32     rank;  u32 alpha;  u32 targets
 *   u8      number of files, then each: u8 kind, 32 BLAKE2b, 32 SHA-256, u64 bytes         ascending kind
 *   u64     rollback_of;  u32 flags
 *   u64     round;  u64 session counter;  16 incarnation;  u64 exclusion sequence
 *   u32     number of leases, then each: u64 id, u32 generation, 32 delta, f64 weight,      ascending id
 *             u32 number of ranges, then each: u16 domain, u64 first, u32 count             ascending, disjoint
 *   f64     error rate, step factor, averaging error, update norm, clip norm
 *   name    verdict (UTF-8)
 *   u16     number of domains, then each: u16 id, name, u32 probe set, u32 windows,         ascending id
 *             u64 tokens, f64 nll, u64 reference, f64 reference nll, f64 forgetting, f64 its upper bound
 *
 * and of an alias statement:
 *
 *   8       "ALVALIA2"
 *   name    line
 *   u64     sequence;  u64 created
 *   u8      number of aliases, then each: name, u64 version, u64 expires                    ascending name
 *   u32     number of marks, then each: u64 version, u8 kind, name reason (UTF-8)           ascending
 */
#include "proto/manifest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "proto/record.h"

static const char manifest_magic[8] = "ALVMANI1", aliases_magic[8] = "ALVALIA2";

enum {
    RANGE_LEN = 14,
    LEASE_LEN = 56,
    DOMAIN_LEN_MIN = 2 + 2 + 4 + 4 + 6 * 8,
    DOMAIN_LEN_MAX = 2 + 64 + 4 + 4 + 6 * 8
};

static_assert(RANGE_LEN * MANIFEST_RANGES_MAX + LEASE_LEN * MANIFEST_LEASES_MAX + DOMAIN_LEN_MAX * LIMIT_DOMAINS +
                      4096 <
                  LIMIT_MANIFEST_BYTES,
              "the largest manifest keeps to its limit");
static_assert((10 + MARK_REASON_MAX) * MARKS_MAX + 80 * ALIASES_MAX + 256 < LIMIT_MANIFEST_BYTES,
              "and the largest alias statement");

/* ---- the rules, asked of what is encoded and of what was decoded */

#define BAD(what) err_set(err, ST_BAD_DATA, "manifest: %s", what)

static bool name_ok(const struct name *n)
{
    return memchr(n->s, 0, sizeof n->s) && name_valid(n->s, strlen(n->s));
}

static bool positive(double v)
{
    return isfinite(v) && v >= 0;
}

static enum status check_lease(const struct manifest_lease *lease, struct err *err)
{
    if (!isfinite(lease->weight) || lease->weight <= 0 || lease->weight > 1)
        return BAD("a lease's weight is not in (0, 1]");
    for (uint32_t i = 0; i < lease->n_ranges; i++) {
        const struct manifest_range *now = &lease->ranges[i], *before = i ? now - 1 : NULL;
        if (now->count == 0 || now->first > LIMIT_OFFSET || now->domain.v >= LIMIT_DOMAINS)
            return BAD("a range is empty or out of bounds");
        if (before && (before->domain.v > now->domain.v ||
                       (before->domain.v == now->domain.v && before->first + before->count > now->first)))
            return BAD("ranges overlap or are out of order");
    }
    return ST_OK;
}

static enum status check_leases(const struct manifest *m, struct err *err)
{
    uint64_t ranges = 0;
    if (m->n_leases > MANIFEST_LEASES_MAX)
        return err_set(err, ST_LIMIT, "manifest: %u leases; at most %d", m->n_leases, MANIFEST_LEASES_MAX);
    for (uint32_t i = 0; i < m->n_leases; i++) {
        if (i && m->leases[i - 1].id >= m->leases[i].id)
            return BAD("leases are out of order");
        ranges += m->leases[i].n_ranges;
        if (ranges > MANIFEST_RANGES_MAX)
            return err_set(err, ST_LIMIT, "manifest: more than %d ranges", MANIFEST_RANGES_MAX);
        enum status st = check_lease(&m->leases[i], err);
        if (st)
            return st;
    }
    return ST_OK;
}

static enum status check_domains(const struct manifest *m, struct err *err)
{
    if (m->n_domains > LIMIT_DOMAINS)
        return err_set(err, ST_LIMIT, "manifest: %u domains; at most %d", m->n_domains, LIMIT_DOMAINS);
    for (uint32_t i = 0; i < m->n_domains; i++) {
        const struct manifest_domain *d = &m->domains[i];
        if (d->id.v >= LIMIT_DOMAINS || (i && d[-1].id.v >= d->id.v))
            return BAD("domains are out of order");
        if (!name_ok(&d->name))
            return BAD("a domain's name is not a name");
        if (!positive(d->nll) || !positive(d->reference_nll) || !isfinite(d->forgetting) ||
            !isfinite(d->forgetting_high))
            return BAD("a domain's losses are not finite");
        if (d->reference > m->number)
            return BAD("a domain is compared with a later version");
    }
    return ST_OK;
}

static enum status check_lineage(const struct manifest *m, struct err *err)
{
    const bool first = m->number == 0, back = m->flags & MANIFEST_ROLLBACK;
    if (first && (m->parent || !digest_is_zero(&m->parent_manifest)))
        return BAD("version 0 has a parent");
    if (!first && (m->parent >= m->number || digest_is_zero(&m->parent_manifest)))
        return BAD("the parent is not an earlier version");
    if (m->flags & ~(uint32_t)(MANIFEST_UNGATED | MANIFEST_PARTIAL | MANIFEST_ROLLBACK))
        return BAD("unknown flags");
    if (back ? m->rollback_of != m->parent || first : m->rollback_of != 0)
        return BAD("rollback_of does not go with flags and parent");
    return ST_OK;
}

static enum status manifest_check(const struct manifest *m, struct err *err)
{
    enum status st = check_lineage(m, err);
    if (st)
        return st;
    if (!name_ok(&m->line))
        return BAD("the line's name is not a name");
    if (!m->rank || m->rank > 65536 || !m->alpha || m->alpha > 65536 || !m->targets)
        return BAD("the adapter's shape is out of bounds");
    if (m->n_files == 0 || m->n_files > MANIFEST_FILES_MAX)
        return BAD("no files, or too many");
    for (uint32_t i = 0; i < m->n_files; i++) {
        const struct manifest_file *f = &m->files[i];
        if (f->kind < FILE_PEFT || f->kind > FILE_STATE || (i && f[-1].kind >= f->kind))
            return BAD("files are out of order or of unknown kind");
        if (!f->bytes || f->bytes > LIMIT_BLOB_BYTES)
            return BAD("a file's size is out of bounds");
    }
    if (!positive(m->error_rate) || m->error_rate >= 1 || !positive(m->step_factor) || m->step_factor > 1 ||
        !positive(m->averaging_error) || !positive(m->update_norm) || !positive(m->clip_norm))
        return BAD("a number of the verdict is out of bounds");
    if (!memchr(m->verdict, 0, sizeof m->verdict) || !utf8_valid(m->verdict, strlen(m->verdict)))
        return BAD("the verdict is not UTF-8");
    st = check_leases(m, err);
    return st ? st : check_domains(m, err);
}

/* ---- encode */

static void put_name(struct buf *out, const char *s)
{
    size_t len = strlen(s);
    buf_put_u8(out, (uint8_t)len);
    buf_put(out, s, len);
}

static void put_lease(struct buf *out, const struct manifest_lease *lease)
{
    buf_put_u64(out, lease->id);
    buf_put_u32(out, lease->generation);
    buf_put(out, lease->delta.b, DIGEST_LEN);
    buf_put_f64(out, lease->weight);
    buf_put_u32(out, lease->n_ranges);
    for (uint32_t i = 0; i < lease->n_ranges; i++) {
        buf_put_u16(out, lease->ranges[i].domain.v);
        buf_put_u64(out, lease->ranges[i].first);
        buf_put_u32(out, lease->ranges[i].count);
    }
}

static void put_domain(struct buf *out, const struct manifest_domain *d)
{
    buf_put_u16(out, d->id.v);
    put_name(out, d->name.s);
    buf_put_u32(out, d->probe_set);
    buf_put_u32(out, d->windows);
    buf_put_u64(out, d->tokens);
    buf_put_f64(out, d->nll);
    buf_put_u64(out, d->reference);
    buf_put_f64(out, d->reference_nll);
    buf_put_f64(out, d->forgetting);
    buf_put_f64(out, d->forgetting_high);
}

enum status manifest_encode(const struct manifest *m, struct buf *out, struct err *err)
{
    enum status st = manifest_check(m, err);
    if (st)
        return st;
    buf_put(out, manifest_magic, sizeof manifest_magic);
    put_name(out, m->line.s);
    buf_put_u64(out, m->number);
    buf_put_u64(out, m->parent);
    buf_put(out, m->parent_manifest.b, DIGEST_LEN);
    buf_put_u64(out, m->created_s);
    buf_put(out, m->card.b, DIGEST_LEN);
    buf_put_u32(out, m->rank);
    buf_put_u32(out, m->alpha);
    buf_put_u32(out, m->targets);
    buf_put_u8(out, (uint8_t)m->n_files);
    for (uint32_t i = 0; i < m->n_files; i++) {
        buf_put_u8(out, (uint8_t)m->files[i].kind);
        buf_put(out, m->files[i].blake2b.b, DIGEST_LEN);
        buf_put(out, m->files[i].sha256, 32);
        buf_put_u64(out, m->files[i].bytes);
    }
    buf_put_u64(out, m->rollback_of);
    buf_put_u32(out, m->flags);
    buf_put_u64(out, m->round);
    buf_put_u64(out, m->session_counter);
    buf_put(out, m->session_incarnation, 16);
    buf_put_u64(out, m->exclusion_seq);
    buf_put_u32(out, m->n_leases);
    for (uint32_t i = 0; i < m->n_leases; i++)
        put_lease(out, &m->leases[i]);
    buf_put_f64(out, m->error_rate);
    buf_put_f64(out, m->step_factor);
    buf_put_f64(out, m->averaging_error);
    buf_put_f64(out, m->update_norm);
    buf_put_f64(out, m->clip_norm);
    put_name(out, m->verdict);
    buf_put_u16(out, (uint16_t)m->n_domains);
    for (uint32_t i = 0; i < m->n_domains; i++)
        put_domain(out, &m->domains[i]);
    return ST_OK;
}

/* ---- decode: failures are sticky in the reader; counts are checked against the bytes left before memory is taken */

static void get_text(struct reader *r, char *out, size_t size)
{
    size_t len = read_u8(r);
    const uint8_t *p = read_raw(r, len);
    if (!p || len >= size || memchr(p, 0, len)) {
        r->failed = true;
        return;
    }
    memcpy(out, p, len);
    memset(out + len, 0, size - len);
}

static void get_raw(struct reader *r, void *out, size_t len)
{
    const uint8_t *p = read_raw(r, len);
    if (p)
        memcpy(out, p, len);
}

static uint32_t get_count(struct reader *r, uint32_t n, size_t max, size_t each)
{
    if (r->failed || n > max || n > reader_left(r) / each) {
        r->failed = true;
        return 0;
    }
    return n;
}

static void get_lease(struct reader *r, struct manifest_lease *lease)
{
    lease->id = read_u64(r);
    lease->generation = read_u32(r);
    get_raw(r, lease->delta.b, DIGEST_LEN);
    lease->weight = read_f64(r);
    lease->n_ranges = get_count(r, read_u32(r), MANIFEST_RANGES_MAX, RANGE_LEN);
    lease->ranges = xcalloc(lease->n_ranges, sizeof *lease->ranges);
    for (uint32_t i = 0; i < lease->n_ranges; i++) {
        lease->ranges[i].domain.v = read_u16(r);
        lease->ranges[i].first = read_u64(r);
        lease->ranges[i].count = read_u32(r);
    }
}

static void get_domain(struct reader *r, struct manifest_domain *d)
{
    d->id.v = read_u16(r);
    get_text(r, d->name.s, sizeof d->name.s);
    d->probe_set = read_u32(r);
    d->windows = read_u32(r);
    d->tokens = read_u64(r);
    d->nll = read_f64(r);
    d->reference = read_u64(r);
    d->reference_nll = read_f64(r);
    d->forgetting = read_f64(r);
    d->forgetting_high = read_f64(r);
}

static void get_manifest(struct reader *r, struct manifest *m)
{
    get_text(r, m->line.s, sizeof m->line.s);
    m->number = read_u64(r);
    m->parent = read_u64(r);
    get_raw(r, m->parent_manifest.b, DIGEST_LEN);
    m->created_s = read_u64(r);
    get_raw(r, m->card.b, DIGEST_LEN);
    m->rank = read_u32(r);
    m->alpha = read_u32(r);
    m->targets = read_u32(r);
    m->n_files = get_count(r, read_u8(r), MANIFEST_FILES_MAX, 1);
    for (uint32_t i = 0; i < m->n_files; i++) {
        m->files[i].kind = (enum file_kind)read_u8(r);
        get_raw(r, m->files[i].blake2b.b, DIGEST_LEN);
        get_raw(r, m->files[i].sha256, 32);
        m->files[i].bytes = read_u64(r);
    }
    m->rollback_of = read_u64(r);
    m->flags = read_u32(r);
    m->round = read_u64(r);
    m->session_counter = read_u64(r);
    get_raw(r, m->session_incarnation, 16);
    m->exclusion_seq = read_u64(r);
    m->n_leases = get_count(r, read_u32(r), MANIFEST_LEASES_MAX, LEASE_LEN);
    m->leases = xcalloc(m->n_leases, sizeof *m->leases);
    for (uint32_t i = 0; i < m->n_leases; i++)
        get_lease(r, &m->leases[i]);
    m->error_rate = read_f64(r);
    m->step_factor = read_f64(r);
    m->averaging_error = read_f64(r);
    m->update_norm = read_f64(r);
    m->clip_norm = read_f64(r);
    get_text(r, m->verdict, sizeof m->verdict);
    m->n_domains = get_count(r, read_u16(r), LIMIT_DOMAINS, DOMAIN_LEN_MIN);
    m->domains = xcalloc(m->n_domains, sizeof *m->domains);
    for (uint32_t i = 0; i < m->n_domains; i++)
        get_domain(r, &m->domains[i]);
}

/* What both kinds of statement begin with. */
static enum status open_statement(struct reader *r, const char *magic, const char *what, struct err *err)
{
    if (r->len > LIMIT_MANIFEST_BYTES)
        return err_set(err, ST_LIMIT, "%s of %zu bytes; at most %d", what, r->len, LIMIT_MANIFEST_BYTES);
    const uint8_t *head = read_raw(r, 8);
    if (!head || memcmp(head, magic, 7))
        return err_set(err, ST_BAD_DATA, "%s: the magic is missing", what);
    if (head[7] != (uint8_t)magic[7])
        return err_set(err, ST_UNSUPPORTED, "%s: format %c; this program reads %c", what,
                       head[7] >= ' ' && head[7] < 0x7f ? head[7] : '?', magic[7]);
    return ST_OK;
}

enum status manifest_decode(const void *data, size_t len, struct manifest *out, struct err *err)
{
    struct reader r = reader_of(data, len);
    struct manifest m = {0};
    enum status st = open_statement(&r, manifest_magic, "manifest", err);
    if (st)
        return st;
    get_manifest(&r, &m);
    if (!reader_done(&r))
        st = err_set(err, ST_BAD_DATA, "manifest of %zu bytes is malformed near offset %zu", len, r.at);
    if (!st)
        st = manifest_check(&m, err);
    if (st)
        manifest_release(&m);
    else
        *out = m;
    return st;
}

void manifest_release(struct manifest *m)
{
    if (!m)
        return;
    for (uint32_t i = 0; m->leases && i < m->n_leases; i++)
        free(m->leases[i].ranges);
    free(m->leases);
    free(m->domains);
    memset(m, 0, sizeof *m);
}

void manifest_digest(const void *data, size_t len, struct digest *out)
{
    hash_blake2b(data, len, out);
}

/* ---- aliases */

static enum status aliases_check(const struct aliases *a, struct err *err)
{
    if (!name_ok(&a->line))
        return err_set(err, ST_BAD_DATA, "aliases: the line's name is not a name");
    if (a->n_aliases > ALIASES_MAX || a->n_marks > MARKS_MAX)
        return err_set(err, ST_LIMIT, "aliases: at most %d aliases and %d marks", ALIASES_MAX, MARKS_MAX);
    for (uint32_t i = 0; i < a->n_aliases; i++) {
        if (!name_ok(&a->aliases[i].name))
            return err_set(err, ST_BAD_DATA, "aliases: an alias is not a name");
        if (i && strcmp(a->aliases[i - 1].name.s, a->aliases[i].name.s) >= 0)
            return err_set(err, ST_BAD_DATA, "aliases: out of order");
    }
    for (uint32_t i = 0; i < a->n_marks; i++) {
        const struct mark *now = &a->marks[i], *before = i ? now - 1 : NULL;
        if (now->kind != MARK_WITHDRAWN && now->kind != MARK_TAINTED)
            return err_set(err, ST_BAD_DATA, "aliases: unknown mark");
        if (!memchr(now->reason, 0, sizeof now->reason) || !utf8_valid(now->reason, strlen(now->reason)))
            return err_set(err, ST_BAD_DATA, "aliases: a mark's reason is not UTF-8");
        if (before &&
            (before->version > now->version || (before->version == now->version && before->kind >= now->kind)))
            return err_set(err, ST_BAD_DATA, "aliases: marks are out of order");
    }
    return ST_OK;
}

enum status aliases_encode(const struct aliases *a, struct buf *out, struct err *err)
{
    enum status st = aliases_check(a, err);
    if (st)
        return st;
    buf_put(out, aliases_magic, sizeof aliases_magic);
    put_name(out, a->line.s);
    buf_put_u64(out, a->seq);
    buf_put_u64(out, a->created_s);
    buf_put_u8(out, (uint8_t)a->n_aliases);
    for (uint32_t i = 0; i < a->n_aliases; i++) {
        put_name(out, a->aliases[i].name.s);
        buf_put_u64(out, a->aliases[i].version);
        buf_put_u64(out, a->aliases[i].expires_s);
    }
    buf_put_u32(out, a->n_marks);
    for (uint32_t i = 0; i < a->n_marks; i++) {
        buf_put_u64(out, a->marks[i].version);
        buf_put_u8(out, (uint8_t)a->marks[i].kind);
        put_name(out, a->marks[i].reason);
    }
    return ST_OK;
}

enum status aliases_decode(const void *data, size_t len, struct aliases *out, struct err *err)
{
    struct reader r = reader_of(data, len);
    struct aliases a = {0};
    enum status st = open_statement(&r, aliases_magic, "aliases", err);
    if (st)
        return st;
    get_text(&r, a.line.s, sizeof a.line.s);
    a.seq = read_u64(&r);
    a.created_s = read_u64(&r);
    a.n_aliases = get_count(&r, read_u8(&r), ALIASES_MAX, 18);
    for (uint32_t i = 0; i < a.n_aliases; i++) {
        get_text(&r, a.aliases[i].name.s, sizeof a.aliases[i].name.s);
        a.aliases[i].version = read_u64(&r);
        a.aliases[i].expires_s = read_u64(&r);
    }
    a.n_marks = get_count(&r, read_u32(&r), MARKS_MAX, 10);
    a.marks = xcalloc(a.n_marks, sizeof *a.marks);
    for (uint32_t i = 0; i < a.n_marks; i++) {
        a.marks[i].version = read_u64(&r);
        a.marks[i].kind = (enum mark_kind)read_u8(&r);
        get_text(&r, a.marks[i].reason, sizeof a.marks[i].reason);
    }
    if (!reader_done(&r))
        st = err_set(err, ST_BAD_DATA, "aliases of %zu bytes are malformed near offset %zu", len, r.at);
    if (!st)
        st = aliases_check(&a, err);
    if (st)
        aliases_release(&a);
    else
        *out = a;
    return st;
}

void aliases_release(struct aliases *a)
{
    if (!a)
        return;
    free(a->marks);
    memset(a, 0, sizeof *a);
}

const struct alias *aliases_find(const struct aliases *a, const char *name)
{
    for (uint32_t i = 0; i < a->n_aliases; i++)
        if (!strcmp(a->aliases[i].name.s, name))
            return &a->aliases[i];
    return NULL;
}

const struct mark *aliases_mark(const struct aliases *a, uint64_t version, enum mark_kind kind)
{
    for (uint32_t i = 0; i < a->n_marks; i++)
        if (a->marks[i].version == version && a->marks[i].kind == kind)
            return &a->marks[i];
    return NULL;
}

const char *mark_name(enum mark_kind kind)
{
    return kind == MARK_WITHDRAWN ? "withdrawn" : "tainted";
}
