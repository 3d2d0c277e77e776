/* An entry in the ring: u32 hash of the key, u32 key length, u32 value length (DELETED: none, and gone), key, value. Entries
 * are not cut at the ring's end: what is left there is skipped (its key length is SKIP, or there is no room for a head).
 *
 * The ring holds [tail, head), both counted from the beginning of time; a byte's place is its count modulo the size. The table
 * leads from a key's hash to the place of its newest entry (open addressing, linear probing); it holds the hashes too, so that
 * a look at the ring is needed for the right entry only. */
#include "store/recent.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

enum { HEAD = 12, BYTES_MIN = 1 << 16, BYTES_MAX = 1 << 30 };
static const uint32_t SKIP = UINT32_MAX, DELETED = UINT32_MAX;

struct head {
    uint32_t hash, key_len, value_len;
};

struct slot {
    uint32_t hash, place; /* place + 1; 0: free */
};

struct recent {
    pthread_mutex_t lock;
    struct sip_key seed;
    uint8_t *ring;
    size_t size;
    uint64_t head, tail;
    struct slot *slots;
    size_t n, cap; /* cap: a power of two, at most two thirds full */
};

struct recent *recent_new(size_t bytes_max)
{
    struct recent *r = xcalloc(1, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    random_bytes(&r->seed, sizeof r->seed);
    r->size = bytes_max < BYTES_MIN ? BYTES_MIN : bytes_max;
    CHECK(r->size <= BYTES_MAX);
    r->ring = xmalloc(r->size);
    r->cap = 1024;
    r->slots = xcalloc(r->cap, sizeof *r->slots);
    return r;
}

void recent_free(struct recent *r)
{
    if (!r)
        return;
    pthread_mutex_destroy(&r->lock);
    free(r->slots);
    free(r->ring);
    free(r);
}

static struct head head_at(const struct recent *r, size_t place)
{
    struct head h;
    memcpy(&h, r->ring + place, HEAD);
    return h;
}

static uint32_t hash_of(const struct recent *r, struct bytes key)
{
    return (uint32_t)hash_sip(&r->seed, key.data, key.len);
}

/* The key's slot, or the free one it would take. */
static size_t find(const struct recent *r, uint32_t hash, struct bytes key)
{
    size_t i = hash & (r->cap - 1);
    for (; r->slots[i].place; i = (i + 1) & (r->cap - 1)) {
        if (r->slots[i].hash != hash)
            continue;
        size_t place = r->slots[i].place - 1;
        if (head_at(r, place).key_len == key.len && !memcmp(r->ring + place + HEAD, key.data, key.len))
            break;
    }
    return i;
}

static void grow(struct recent *r)
{
    struct slot *old = r->slots;
    size_t cap = r->cap;
    r->cap *= 2;
    r->slots = xcalloc(r->cap, sizeof *r->slots);
    for (size_t i = 0; i < cap; i++) {
        size_t to = old[i].hash & (r->cap - 1);
        while (old[i].place && r->slots[to].place)
            to = (to + 1) & (r->cap - 1);
        if (old[i].place)
            r->slots[to] = old[i];
    }
    free(old);
}

/* Frees a slot; what probed past it moves up. */
static void forget(struct recent *r, size_t hole)
{
    size_t mask = r->cap - 1;
    r->n--;
    for (size_t i = (hole + 1) & mask; r->slots[i].place; i = (i + 1) & mask)
        if (((i - r->slots[i].hash) & mask) >= ((i - hole) & mask)) {
            r->slots[hole] = r->slots[i];
            hole = i;
        }
    r->slots[hole].place = 0;
}

/* The oldest entry, or the gap at the ring's end, goes. */
static void drop_oldest(struct recent *r)
{
    size_t at = r->tail % r->size, left = r->size - at, mask = r->cap - 1;
    struct head h = {.key_len = SKIP};
    if (left >= HEAD)
        h = head_at(r, at);
    if (h.key_len == SKIP) {
        r->tail += left;
        return;
    }
    size_t i = h.hash & mask;
    while (r->slots[i].place && r->slots[i].place != at + 1)
        i = (i + 1) & mask;
    if (r->slots[i].place) /* else a newer entry of the key took its slot */
        forget(r, i);
    r->tail += HEAD + h.key_len + (h.value_len == DELETED ? 0 : h.value_len);
}

static uint8_t *make_room(struct recent *r, size_t len)
{
    size_t at = r->head % r->size, left = r->size - at, gap = left < len ? left : 0;
    while (r->head + gap + len - r->tail > r->size)
        drop_oldest(r);
    if (gap >= HEAD)
        memcpy(r->ring + at, &(struct head){.key_len = SKIP}, HEAD);
    r->head += gap;
    return r->ring + r->head % r->size;
}

void recent_put(struct recent *r, struct bytes key, struct bytes value, bool deleted)
{
    size_t len = HEAD + key.len + (deleted ? 0 : value.len);
    struct head h = {hash_of(r, key), (uint32_t)key.len, deleted ? DELETED : (uint32_t)value.len};
    pthread_mutex_lock(&r->lock);
    if (len > r->size / 8) {
        size_t slot = find(r, h.hash, key);
        if (r->slots[slot].place)
            forget(r, slot);
        goto done;
    }
    uint8_t *entry = make_room(r, len);
    memcpy(entry, &h, HEAD);
    memcpy(entry + HEAD, key.data, key.len);
    if (!deleted && value.len)
        memcpy(entry + HEAD + key.len, value.data, value.len);
    if (3 * (r->n + 1) > 2 * r->cap)
        grow(r);
    size_t slot = find(r, h.hash, key);
    r->n += !r->slots[slot].place;
    r->slots[slot] = (struct slot){h.hash, (uint32_t)(entry - r->ring) + 1};
    r->head += len;
done:
    pthread_mutex_unlock(&r->lock);
}

void recent_clear(struct recent *r)
{
    pthread_mutex_lock(&r->lock);
    memset(r->slots, 0, r->cap * sizeof *r->slots);
    r->n = 0;
    r->head = r->tail = 0;
    pthread_mutex_unlock(&r->lock);
}

enum recent_answer recent_get(struct recent *r, struct bytes key, struct buf *out)
{
    enum recent_answer answer = RECENT_UNKNOWN;
    uint32_t hash = hash_of(r, key);
    pthread_mutex_lock(&r->lock);
    uint32_t found = r->slots[find(r, hash, key)].place;
    if (found) {
        struct head h = head_at(r, found - 1);
        answer = h.value_len == DELETED ? RECENT_DELETED : RECENT_VALUE;
        if (answer == RECENT_VALUE)
            buf_put(out, r->ring + found - 1 + HEAD + key.len, h.value_len);
    }
    pthread_mutex_unlock(&r->lock);
    return answer;
}
