#include "coordinator/core/state.h"

#include <stdlib.h>
#include <string.h>

/* One description serves both ways: `w` set: append the field; else read it. */
struct io {
    struct buf *w;
    struct reader r;
};

static void io_u8(struct io *io, uint8_t *v)
{
    if (io->w)
        buf_put_u8(io->w, *v);
    else
        *v = read_u8(&io->r);
}

static void io_u16(struct io *io, uint16_t *v)
{
    if (io->w)
        buf_put_u16(io->w, *v);
    else
        *v = read_u16(&io->r);
}

static void io_u32(struct io *io, uint32_t *v)
{
    if (io->w)
        buf_put_u32(io->w, *v);
    else
        *v = read_u32(&io->r);
}

static void io_u64(struct io *io, uint64_t *v)
{
    if (io->w)
        buf_put_u64(io->w, *v);
    else
        *v = read_u64(&io->r);
}

static void io_f64(struct io *io, double *v)
{
    if (io->w)
        buf_put_f64(io->w, *v);
    else
        *v = read_f64(&io->r);
}

static void io_raw(struct io *io, void *v, size_t len)
{
    if (io->w) {
        buf_put(io->w, v, len);
        return;
    }
    const uint8_t *p = read_raw(&io->r, len);
    if (p)
        memcpy(v, p, len);
    else
        memset(v, 0, len);
}

static void io_text(struct io *io, char *s, size_t size)
{
    if (io->w)
        buf_put_str(io->w, s);
    else if (!read_str(&io->r, s, size))
        s[0] = 0;
}

static void io_name(struct io *io, struct name *name)
{
    io_text(io, name->s, sizeof name->s);
    if (!io->w && name->s[0] && !name_valid(name->s, strlen(name->s)))
        io->r.failed = true;
}

static void io_blob(struct io *io, struct bytes *v) /* borrowed */
{
    if (io->w)
        buf_put_blob(io->w, v->data, v->len);
    else
        *v = read_blob(&io->r);
}

static void io_rest(struct io *io, struct bytes *v) /* borrowed: all that is left */
{
    if (io->w) {
        buf_put(io->w, v->data, v->len);
        return;
    }
    v->len = reader_left(&io->r);
    v->data = read_raw(&io->r, v->len);
}

/* A count of items of at least `least` bytes each: what is left of the value bounds it, so that memory is bounded. */
static void io_count(struct io *io, uint32_t *n, uint32_t max, size_t least)
{
    io_u32(io, n);
    if (!io->w && (*n > max || *n > reader_left(&io->r) / least)) {
        io->r.failed = true;
        *n = 0;
    }
}

static void io_limit(struct io *io, uint64_t v, uint64_t max)
{
    if (!io->w && v > max)
        io->r.failed = true;
}

static void io_hash(struct io *io, struct hash16 *v)
{
    io_raw(io, v->b, sizeof v->b);
}

static void io_files(struct io *io, struct version_files *v)
{
    io_raw(io, v->peft.b, DIGEST_LEN);
    io_raw(io, v->gguf.b, DIGEST_LEN);
    io_raw(io, v->state.b, DIGEST_LEN);
    io_u64(io, &v->peft_bytes);
    io_u64(io, &v->gguf_bytes);
    io_u64(io, &v->state_bytes);
    io_raw(io, v->peft_sha256, 32);
    io_raw(io, v->gguf_sha256, 32);
    io_raw(io, v->state_sha256, 32);
}

static void io_ranges(struct io *io, uint32_t *n, struct range **ranges)
{
    io_count(io, n, LIMIT_LEASE_RANGES, 14);
    if (!io->w)
        *ranges = *n ? xcalloc(*n, sizeof **ranges) : NULL;
    for (uint32_t i = 0; i < *n; i++) {
        struct range *r = &(*ranges)[i];
        io_u16(io, &r->domain.v);
        io_u64(io, &r->first);
        io_u32(io, &r->count);
        io_limit(io, r->domain.v, LIMIT_DOMAINS - 1);
    }
}

static void io_state_line(struct io *io, struct state_line *v)
{
    io_name(io, &v->name);
    io_raw(io, v->card.b, DIGEST_LEN);
}

static void io_state_session(struct io *io, struct state_session *v)
{
    io_u64(io, &v->counter);
    io_raw(io, v->incarnation, 16);
    io_raw(io, v->previous, 16);
}

static void io_state_counters(struct io *io, struct state_counters *v)
{
    io_u64(io, &v->version);
    io_u64(io, &v->round);
    io_u64(io, &v->lease);
    io_u64(io, &v->stream);
    io_u64(io, &v->quarantine);
    io_u64(io, &v->exclusion);
    io_u64(io, &v->audit);
    io_u64(io, &v->erasures);
    io_u64(io, &v->purged);
    io_limit(io, v->purged, v->erasures);
    io_u64(io, &v->version_next);
    io_u32(io, &v->refusals);
    uint8_t stopped = v->stopped;
    io_u8(io, &stopped);
    v->stopped = stopped != 0;
    io_text(io, v->alarm, sizeof v->alarm);
}

static void io_state_domain(struct io *io, struct state_domain *v)
{
    io_name(io, &v->name);
    io_u64(io, &v->train_next);
    io_u64(io, &v->probe_next);
    io_u64(io, &v->watermark);
    io_limit(io, v->watermark, v->train_next);
    io_u64(io, &v->train_bytes);
    io_u64(io, &v->settled_bytes);
    io_u64(io, &v->tokens_seen);
    io_u64(io, &v->bytes_seen);
    io_u64(io, &v->reference);
    io_u64(io, &v->base);
    io_u32(io, &v->probe_set);
    for (unsigned i = 0; i < SEG_STATES; i++)
        io_u64(io, &v->settled[i]);
    io_u64(io, &v->relabelled);
    io_u64(io, &v->records);
    io_u64(io, &v->duplicates);
    io_u64(io, &v->refused);
    io_u64(io, &v->superseded);
    io_count(io, &v->n_overrides, OVERRIDES_MAX, 8);
    for (uint32_t i = 0; i < v->n_overrides; i++) {
        io_text(io, v->overrides[i].name, sizeof v->overrides[i].name);
        io_text(io, v->overrides[i].value, sizeof v->overrides[i].value);
    }
}

static void io_state_stream(struct io *io, struct state_stream *v)
{
    io_name(io, &v->key);
    io_text(io, v->source, sizeof v->source);
    io_u16(io, &v->domain.v);
    io_limit(io, v->domain.v, LIMIT_DOMAINS - 1);
    io_u32(io, &v->epoch);
    io_u64(io, &v->position);
    io_raw(io, v->rolling.b, DIGEST_LEN);
    io_u64(io, &v->last_position);
    io_raw(io, v->last_rolling.b, DIGEST_LEN);
    struct bytes ack = buf_bytes(&v->last_ack);
    io_blob(io, &ack);
    if (!io->w)
        buf_put(&v->last_ack, ack.data, ack.len);
}

static void io_state_exclusion(struct io *io, struct state_exclusion *v)
{
    io_u16(io, &v->domain.v);
    io_limit(io, v->domain.v, LIMIT_DOMAINS - 1);
    io_u64(io, &v->first);
    io_u32(io, &v->count);
    io_u64(io, &v->watermark);
    io_u8(io, &v->state);
    io_limit(io, v->state, SEG_STATES - 1);
}

static void io_state_quarantine(struct io *io, struct state_quarantine *v)
{
    io_u64(io, &v->lease);
    io_u64(io, &v->round);
    io_u64(io, &v->wall_s);
    io_text(io, v->reason, sizeof v->reason);
    io_ranges(io, &v->n, &v->ranges);
}

static void io_state_holder(struct io *io, struct state_holder *v)
{
    io_name(io, &v->key);
    io_raw(io, v->instance, 16);
    io_u64(io, &v->applied);
    io_u64(io, &v->seen_s);
}

static void io_state_retraction(struct io *io, struct state_retraction *v)
{
    io_u64(io, &v->number);
    io_u64(io, &v->exclusion_seq);
    io_u64(io, &v->wall_s);
    io_name(io, &v->key);
}

static void io_state_link(struct io *io, struct state_link *v)
{
    io_u64(io, &v->source);
    io_u32(io, &v->count);
}

static void io_state_round(struct io *io, struct state_round *v)
{
    io_u64(io, &v->number);
    io_u8(io, &v->phase);
    io_limit(io, v->phase, ROUND_EVALUATING);
    io_u8(io, &v->attempt);
    io_limit(io, v->attempt, ROUND_ATTEMPTS - 1);
    io_u8(io, &v->look);
    io_limit(io, v->look, 2);
    io_u64(io, &v->parent);
    io_u64(io, &v->exclusion_seq);
    io_u64(io, &v->opened_s);
    io_u32(io, &v->n_leases);
    io_u32(io, &v->verdicts);
    io_u64(io, &v->suspect);
    io_files(io, &v->candidate);
    io_f64(io, &v->error_ratio);
    io_f64(io, &v->update_norm);
    io_f64(io, &v->clip_norm);
    io_count(io, &v->n_domains, LIMIT_DOMAINS, 12);
    for (uint32_t i = 0; i < v->n_domains; i++) {
        io_u64(io, &v->domains[i].watermark);
        io_u32(io, &v->domains[i].weight);
    }
}

static void io_state_lease(struct io *io, struct state_lease *v)
{
    io_u64(io, &v->id);
    io_u64(io, &v->round);
    io_u64(io, &v->seed);
    io_u32(io, &v->generation);
    io_u32(io, &v->attempts);
    io_u8(io, &v->phase);
    io_limit(io, v->phase, LEASE_ACCEPTED);
    io_raw(io, v->instance, 16);
    io_u64(io, &v->boot);
    io_name(io, &v->key);
    io_u64(io, &v->tokens);
    io_u64(io, &v->exclusion_seq);
    io_f64(io, &v->weight);
    io_u8(io, &v->blame);
    io_limit(io, v->blame, BLAME_FORGETS);
    io_ranges(io, &v->n_ranges, &v->ranges);
}

static void io_state_delta(struct io *io, struct state_delta *v)
{
    io_u64(io, &v->lease);
    io_u64(io, &v->round);
    io_u32(io, &v->generation);
    io_u32(io, &v->steps);
    io_u32(io, &v->train_ms);
    io_raw(io, v->digest.b, DIGEST_LEN);
    io_u64(io, &v->bytes);
    io_u64(io, &v->target_tokens);
    io_name(io, &v->key);
    io_raw(io, v->instance, 16);
    io_text(io, v->fingerprint, sizeof v->fingerprint);
}

static void io_state_settled(struct io *io, struct state_settled *v)
{
    io_u32(io, &v->count);
    io_u8(io, &v->state);
    io_limit(io, v->state, SEG_STATES - 1);
    io_u64(io, &v->ref);
}

static void io_state_sizes(struct io *io, struct state_sizes *v)
{
    io_u64(io, &v->wall_s);
    io_u32(io, &v->count);
    io_rest(io, &v->sizes);
    if (!io->w && v->sizes.len != 2 * (size_t)v->count)
        io->r.failed = true;
}

static void io_state_windows(struct io *io, struct state_windows *v)
{
    io_u32(io, &v->count);
    io_u8(io, &v->part);
    io_limit(io, v->part, PART_RESERVE - 1);
    io_u8(io, &v->waiting);
    io_limit(io, v->waiting, 1);
}

static void io_state_segment(struct io *io, struct state_segment *v)
{
    io_u8(io, &v->kind);
    io_u32(io, &v->piece);
    io_u32(io, &v->pieces);
    io_raw(io, v->group, 8);
    io_hash(io, &v->content);
    io_rest(io, &v->text);
}

static void io_state_place(struct io *io, struct state_place *v)
{
    io_u16(io, &v->domain.v);
    io_limit(io, v->domain.v, LIMIT_DOMAINS - 1);
    io_u8(io, &v->probe);
    io_limit(io, v->probe, 1);
    io_u64(io, &v->first);
    io_u32(io, &v->count);
}

static void io_state_id(struct io *io, struct state_id *v)
{
    io_u32(io, &v->revision);
    io_u8(io, &v->live);
    io_hash(io, &v->content);
    io_count(io, &v->n, REVISIONS_MAX, 15);
    for (uint32_t i = 0; i < v->n; i++)
        io_state_place(io, &v->places[i]);
}

static void io_state_version(struct io *io, struct state_version *v)
{
    io_u64(io, &v->parent);
    io_u64(io, &v->round);
    io_u64(io, &v->rollback_of);
    io_u64(io, &v->created_s);
    io_u64(io, &v->tokens);
    io_u64(io, &v->train_ms);
    io_blob(io, &v->manifest);
    io_raw(io, v->signature, SIGNATURE_LEN);
    io_files(io, &v->files);
    io_count(io, &v->n_domains, LIMIT_DOMAINS, 48);
    for (uint32_t i = 0; i < v->n_domains; i++) {
        io_u64(io, &v->references[i].version);
        io_raw(io, v->references[i].peft.b, DIGEST_LEN);
        io_u64(io, &v->references[i].peft_bytes);
    }
}

static void io_state_verdict(struct io *io, struct state_verdict *v)
{
    io_u64(io, &v->round);
    io_u64(io, &v->version);
    io_u64(io, &v->lease);
    io_u64(io, &v->wall_s);
    io_u8(io, &v->published);
    io_u8(io, &v->attempt);
    io_blob(io, &v->text);
}

static void io_state_losses(struct io *io, struct state_losses *v)
{
    io_count(io, &v->n, LIMIT_EVAL_WINDOWS, 30);
    if (!io->w)
        v->items = v->n ? xcalloc(v->n, sizeof *v->items) : NULL;
    for (uint32_t i = 0; i < v->n; i++) {
        struct window_loss *w = &v->items[i];
        io_u16(io, &w->domain.v);
        io_limit(io, w->domain.v, LIMIT_DOMAINS - 1);
        io_u64(io, &w->offset);
        io_f64(io, &w->candidate);
        io_f64(io, &w->reference);
        io_u32(io, &w->tokens);
    }
    io_text(io, v->fingerprint, sizeof v->fingerprint);
    io_u8(io, &v->second);
}

static void io_state_audit(struct io *io, struct state_audit *v)
{
    io_u64(io, &v->wall_s);
    io_name(io, &v->key);
    io_u32(io, &v->verb);
    io_text(io, v->text, sizeof v->text);
}

static void io_state_token(struct io *io, struct state_token *v)
{
    io_raw(io, v->token, 16);
    io_u64(io, &v->order);
    io_blob(io, &v->reply);
}

static void nothing_owned(void *v)
{
    (void)v;
}

#define STATE(type, release)                                                  \
    void type##_put(struct buf *out, const struct type *v)                    \
    {                                                                         \
        struct io io = {.w = out};                                            \
        io_##type(&io, (struct type *)(uintptr_t)v); /* not written when w */ \
    }                                                                         \
    bool type##_get(struct bytes value, struct type *out)                     \
    {                                                                         \
        struct io io = {.r = reader_of(value.data, value.len)};               \
        memset(out, 0, sizeof *out);                                          \
        io_##type(&io, out);                                                  \
        if (reader_done(&io.r))                                               \
            return true;                                                      \
        release(out);                                                         \
        return false;                                                         \
    }

void state_stream_release(struct state_stream *v)
{
    buf_release(&v->last_ack);
}

void state_quarantine_release(struct state_quarantine *v)
{
    free(v->ranges);
    v->ranges = NULL, v->n = 0;
}

void state_lease_release(struct state_lease *v)
{
    free(v->ranges);
    v->ranges = NULL, v->n_ranges = 0;
}

void state_losses_release(struct state_losses *v)
{
    free(v->items);
    v->items = NULL, v->n = 0;
}

STATE(state_line, nothing_owned)
STATE(state_session, nothing_owned)
STATE(state_counters, nothing_owned)
STATE(state_domain, nothing_owned)
STATE(state_stream, state_stream_release)
STATE(state_exclusion, nothing_owned)
STATE(state_quarantine, state_quarantine_release)
STATE(state_holder, nothing_owned)
STATE(state_retraction, nothing_owned)
STATE(state_link, nothing_owned)
STATE(state_round, nothing_owned)
STATE(state_lease, state_lease_release)
STATE(state_delta, nothing_owned)
STATE(state_settled, nothing_owned)
STATE(state_sizes, nothing_owned)
STATE(state_windows, nothing_owned)
STATE(state_segment, nothing_owned)
STATE(state_place, nothing_owned)
STATE(state_id, nothing_owned)
STATE(state_version, nothing_owned)
STATE(state_verdict, nothing_owned)
STATE(state_losses, state_losses_release)
STATE(state_audit, nothing_owned)
STATE(state_token, nothing_owned)

/* ---- keys */

static void add_be(struct state_key *key, uint64_t v, unsigned bytes)
{
    for (unsigned i = bytes; i-- > 0;)
        key->b[key->len++] = (uint8_t)(v >> (8 * i));
}

struct state_key key_plain(char tag)
{
    return (struct state_key){.b = {(uint8_t)tag}, .len = 1};
}

struct state_key key_u16(char tag, uint16_t v)
{
    struct state_key key = key_plain(tag);
    add_be(&key, v, 2);
    return key;
}

struct state_key key_u64(char tag, uint64_t v)
{
    struct state_key key = key_plain(tag);
    add_be(&key, v, 8);
    return key;
}

struct state_key key_domain(char tag, struct domain_id domain, uint64_t first)
{
    struct state_key key = key_u16(tag, domain.v);
    add_be(&key, first, 8);
    return key;
}

struct state_key key_stream(char tag, struct domain_id domain, bool probe, uint64_t offset)
{
    struct state_key key = key_u16(tag, domain.v);
    add_be(&key, probe, 1);
    add_be(&key, offset, 8);
    return key;
}

struct state_key key_hash(char tag, const struct hash16 *hash)
{
    struct state_key key = key_plain(tag);
    memcpy(key.b + 1, hash->b, sizeof hash->b);
    key.len += sizeof hash->b;
    return key;
}

struct state_key key_pair(char tag, uint64_t a, uint64_t b)
{
    struct state_key key = key_u64(tag, a);
    add_be(&key, b, 8);
    return key;
}

struct state_key key_matrix(uint64_t version, struct domain_id domain)
{
    struct state_key key = key_u64('r', version);
    add_be(&key, domain.v, 2);
    return key;
}

bool key_read_u64(struct bytes key, uint64_t *out)
{
    struct reader r = reader_of(key.data, key.len);
    read_u8(&r);
    *out = read_u64_be(&r);
    return reader_done(&r);
}

bool key_read_domain(struct bytes key, struct domain_id *domain, uint64_t *first)
{
    struct reader r = reader_of(key.data, key.len);
    read_u8(&r);
    domain->v = read_u16_be(&r);
    *first = read_u64_be(&r);
    return reader_done(&r);
}

const char *segment_state_name(enum segment_state state)
{
    static const char *const names[SEG_STATES] = {"pending",     "leased",  "accepted",   "done",
                                                  "quarantined", "skipped", "superseded", "retracted"};
    return (unsigned)state < SEG_STATES ? names[state] : "unknown";
}
