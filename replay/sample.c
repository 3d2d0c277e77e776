#include "replay/sample.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "replay/key.h"

/* Keys are 64 bits; should two ever be equal, the smaller offset is the smaller member. */
static bool above(struct sample_member a, struct sample_member b)
{
    return a.key != b.key ? a.key > b.key : a.offset > b.offset;
}

/* ---- where in the heap an offset is: linear probing, the key is the hash ---- */

static uint32_t slot_of(const struct sample *s, struct sample_member m)
{
    uint32_t mask = s->n_slots - 1, at = (uint32_t)m.key & mask;
    while (s->slots[at] && s->heap[s->slots[at] - 1].offset != m.offset)
        at = (at + 1) & mask;
    return at;
}

/* Empties a slot and moves up those behind it that had to walk past it. */
static void slot_clear(struct sample *s, uint32_t at)
{
    uint32_t mask = s->n_slots - 1;
    for (uint32_t next = (at + 1) & mask; s->slots[next]; next = (next + 1) & mask) {
        uint32_t home = (uint32_t)s->heap[s->slots[next] - 1].key & mask;
        if (((next - home) & mask) >= ((next - at) & mask)) {
            s->slots[at] = s->slots[next];
            at = next;
        }
    }
    s->slots[at] = 0;
}

static void grow(struct sample *s)
{
    s->heap_cap = s->heap_cap ? 2 * s->heap_cap : 16;
    s->heap = xrealloc_array(s->heap, s->heap_cap, sizeof *s->heap);
    s->n_slots = 2 * s->heap_cap;
    free(s->slots);
    s->slots = xcalloc(s->n_slots, sizeof *s->slots);
    for (uint32_t i = 0; i < s->n; i++)
        s->slots[slot_of(s, s->heap[i])] = i + 1;
}

/* ---- the heap: the largest member on top ---- */

static void place(struct sample *s, uint32_t i, struct sample_member m, uint32_t slot)
{
    s->heap[i] = m;
    s->slots[slot] = i + 1;
}

static void swap(struct sample *s, uint32_t i, uint32_t j)
{
    struct sample_member a = s->heap[i], b = s->heap[j];
    uint32_t slot_a = slot_of(s, a), slot_b = slot_of(s, b);
    place(s, i, b, slot_b);
    place(s, j, a, slot_a);
}

static void sift(struct sample *s, uint32_t i)
{
    for (; i > 0 && above(s->heap[i], s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        swap(s, i, (i - 1) / 2);
    for (uint32_t child; (child = 2 * i + 1) < s->n; i = child) {
        if (child + 1 < s->n && above(s->heap[child + 1], s->heap[child]))
            child++;
        if (!above(s->heap[child], s->heap[i]))
            break;
        swap(s, i, child);
    }
}

static void insert(struct sample *s, struct sample_member m)
{
    if (s->n == s->heap_cap)
        grow(s);
    uint32_t slot = slot_of(s, m);
    place(s, s->n++, m, slot);
    sift(s, s->n - 1);
}

static void remove_at(struct sample *s, uint32_t i)
{
    if (i != s->n - 1)
        swap(s, i, s->n - 1);
    slot_clear(s, slot_of(s, s->heap[s->n - 1]));
    s->n--;
    if (i < s->n)
        sift(s, i);
}

/* tau falls when more than k are held, and is then the largest that stays. */
static void shrink_to_k(struct sample *s)
{
    while (s->n > s->k)
        remove_at(s, 0);
    if (s->n == s->k)
        s->tau = s->heap[0];
}

/* ---- exclusions ---- */

static void remove_range(struct sample *s, uint64_t first, uint64_t count)
{
    if (count <= s->n) { /* whichever is shorter: look up each offset, or look at each member */
        for (uint64_t o = first; o - first < count; o++) {
            struct sample_member m = {replay_key(&s->seed, s->domain, o), o};
            uint32_t at = s->n_slots ? s->slots[slot_of(s, m)] : 0;
            if (at)
                remove_at(s, at - 1);
        }
        return;
    }
    if (s->n == 0)
        return;
    uint32_t n = s->n;
    s->n = 0;
    memset(s->slots, 0, s->n_slots * sizeof *s->slots);
    for (uint32_t i = 0; i < n; i++) { /* in place: what is put back lies at or before i */
        struct sample_member m = s->heap[i];
        if (m.offset - first >= count)
            insert(s, m);
    }
}

/* Remembers a range that has not arrived yet; the list stays sorted and disjoint. */
static void add_ahead(struct sample *s, uint64_t first, uint64_t end)
{
    uint32_t from = 0, to;
    while (from < s->n_ahead && s->ahead[from].first + s->ahead[from].count < first)
        from++;
    for (to = from; to < s->n_ahead && s->ahead[to].first <= end; to++) { /* touches the new one: becomes part of it */
        uint64_t other_end = s->ahead[to].first + s->ahead[to].count;
        first = s->ahead[to].first < first ? s->ahead[to].first : first;
        end = other_end > end ? other_end : end;
    }
    if (to == from && s->n_ahead == s->ahead_cap) {
        s->ahead_cap = s->ahead_cap ? 2 * s->ahead_cap : 8;
        s->ahead = xrealloc_array(s->ahead, s->ahead_cap, sizeof *s->ahead);
    }
    memmove(s->ahead + from + 1, s->ahead + to, (s->n_ahead - to) * sizeof *s->ahead);
    s->n_ahead = s->n_ahead - (to - from) + 1;
    s->ahead[from] = (struct exclusion){.first = first, .count = end - first};
}

static void apply(struct sample *s, const struct exclusion *x)
{
    uint64_t end = x->first + x->count;
    uint64_t past_end = end < s->watermark ? end : s->watermark;
    if (x->first < past_end)
        remove_range(s, x->first, past_end - x->first);
    if (end > s->watermark)
        add_ahead(s, x->first > s->watermark ? x->first : s->watermark, end);
    s->seq = x->seq;
}

/* ---- arrivals ---- */

static void arrive(struct sample *s, uint64_t end)
{
    uint32_t passed = 0; /* ranges ahead that lie behind us now */
    for (uint64_t o = s->watermark; o < end; o++) {
        while (passed < s->n_ahead && s->ahead[passed].first + s->ahead[passed].count <= o)
            passed++;
        if (passed < s->n_ahead && s->ahead[passed].first <= o)
            continue;
        struct sample_member m = {replay_key(&s->seed, s->domain, o), o};
        if (above(m, s->tau))
            continue;
        insert(s, m);
        shrink_to_k(s);
    }
    s->n_ahead -= passed;
    if (s->n_ahead > 0)
        memmove(s->ahead, s->ahead + passed, s->n_ahead * sizeof *s->ahead);
    s->watermark = end;
}

static void reset(struct sample *s)
{
    s->watermark = s->start;
    s->seq = 0;
    s->tau = (struct sample_member){UINT64_MAX, UINT64_MAX};
    s->n = s->n_ahead = 0;
    if (s->n_slots)
        memset(s->slots, 0, s->n_slots * sizeof *s->slots);
}

void sample_init(struct sample *sample, const struct sip_key *seed, struct domain_id domain, uint32_t k)
{
    CHECK(k >= 1 && k <= SAMPLE_K_MAX);
    *sample = (struct sample){.seed = *seed, .domain = domain, .k = k};
    reset(sample);
}

void sample_start_at(struct sample *sample, uint64_t start)
{
    CHECK(sample->watermark == sample->start && sample->seq == 0);
    sample->start = sample->watermark = start;
}

void sample_release(struct sample *sample)
{
    if (!sample)
        return;
    free(sample->heap);
    free(sample->slots);
    free(sample->ahead);
    *sample = (struct sample){0};
}

static enum status check_exclusions(const struct exclusion *x, size_t n, uint64_t watermark, uint64_t seq,
                                    struct err *err)
{
    uint64_t last_seq = 0, last_at = 0, end;
    for (size_t i = 0; i < n; i++) {
        if (x[i].seq <= last_seq || x[i].at < last_at)
            return err_set(err, ST_BAD_DATA,
                           "exclusion %llu (watermark %llu) after %llu (watermark %llu): out of order",
                           (unsigned long long)x[i].seq, (unsigned long long)x[i].at, (unsigned long long)last_seq,
                           (unsigned long long)last_at);
        if (__builtin_add_overflow(x[i].first, x[i].count, &end))
            return err_set(err, ST_BAD_DATA, "exclusion %llu: its range overflows", (unsigned long long)x[i].seq);
        if (x[i].seq <= seq && x[i].at > watermark)
            return err_set(err, ST_USAGE,
                           "exclusion %llu takes effect at %llu, after the watermark %llu that is asked for",
                           (unsigned long long)x[i].seq, (unsigned long long)x[i].at, (unsigned long long)watermark);
        last_seq = x[i].seq;
        last_at = x[i].at;
    }
    return ST_OK;
}

enum status sample_to(struct sample *s, uint64_t watermark, uint64_t seq, const struct exclusion *exclusions, size_t n,
                      struct err *err)
{
    enum status status = check_exclusions(exclusions, n, watermark, seq, err);
    if (status != ST_OK)
        return status;
    bool forward = watermark >= s->watermark && seq >= s->seq;
    for (size_t i = 0; i < n && forward; i++) /* one that we have passed by without it */
        forward = exclusions[i].seq <= s->seq || exclusions[i].seq > seq || exclusions[i].at >= s->watermark;
    if (!forward)
        reset(s);
    for (size_t i = 0; i < n && exclusions[i].seq <= seq; i++) {
        if (exclusions[i].seq <= s->seq)
            continue;
        if (exclusions[i].at > s->watermark)
            arrive(s, exclusions[i].at);
        apply(s, &exclusions[i]);
    }
    arrive(s, watermark);
    s->seq = seq;
    return ST_OK;
}

bool sample_contains(const struct sample *s, uint64_t offset)
{
    if (offset < s->start || offset >= s->watermark || s->n == 0)
        return false;
    struct sample_member m = {replay_key(&s->seed, s->domain, offset), offset};
    return !above(m, s->tau) && s->slots[slot_of(s, m)] != 0;
}

bool sample_retains(const struct sample *s, uint64_t offset)
{
    return offset >= s->watermark || sample_contains(s, offset);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void sample_members(const struct sample *s, uint64_t *out)
{
    for (uint32_t i = 0; i < s->n; i++)
        out[i] = s->heap[i].offset;
    qsort(out, s->n, sizeof *out, compare_u64);
}

uint64_t sample_draw(const struct sample *s, struct rng *rng)
{
    CHECK(s->n > 0);
    return s->heap[rng_below(rng, s->n)].offset;
}

void sample_merge(struct sample *into, const struct sample *from)
{
    CHECK(from->start == into->watermark && from->k == into->k && from->domain.v == into->domain.v);
    CHECK(!memcmp(&from->seed, &into->seed, sizeof into->seed));
    if (above(into->tau, from->tau))
        into->tau = from->tau;
    while (into->n > 0 && above(into->heap[0], into->tau))
        remove_at(into, 0);
    for (uint32_t i = 0; i < from->n; i++)
        if (!above(from->heap[i], into->tau))
            insert(into, from->heap[i]);
    shrink_to_k(into);
    for (uint32_t i = 0; i < from->n_ahead; i++)
        add_ahead(into, from->ahead[i].first, from->ahead[i].first + from->ahead[i].count);
    into->watermark = from->watermark;
    into->seq = from->seq > into->seq ? from->seq : into->seq;
}
