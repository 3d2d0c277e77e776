#include "memstore.h"

#include <stdlib.h>
#include <string.h>

#include "coordinator/core/state.h"

static int compare(uint8_t fa, struct bytes a, uint8_t fb, struct bytes b)
{
    if (fa != fb)
        return fa < fb ? -1 : 1;
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.data, b.data, n) : 0;
    return c ? c : a.len < b.len ? -1 : a.len > b.len;
}

size_t memstore_seek(const struct memstore *store, uint8_t family, const void *key, size_t key_len)
{
    size_t low = 0, high = store->n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct mem_item *item = &store->items[mid];
        if (compare(item->family, buf_bytes(&item->key), family, (struct bytes){key, key_len}) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static bool is_at(const struct memstore *store, size_t at, uint8_t family, struct bytes key)
{
    return at < store->n && !compare(store->items[at].family, buf_bytes(&store->items[at].key), family, key);
}

static void put(struct memstore *store, uint8_t family, struct bytes key, struct bytes value)
{
    size_t at = memstore_seek(store, family, key.data, key.len);
    if (!is_at(store, at, family, key)) {
        if (store->n == store->cap) {
            store->cap = store->cap ? 2 * store->cap : 64;
            store->items = xrealloc_array(store->items, store->cap, sizeof *store->items);
        }
        memmove(store->items + at + 1, store->items + at, (store->n - at) * sizeof *store->items);
        store->items[at] = (struct mem_item){.family = family};
        buf_put(&store->items[at].key, key.data, key.len);
        store->n++;
    }
    buf_clear(&store->items[at].value);
    buf_put(&store->items[at].value, value.data, value.len);
}

static void delete_from(struct memstore *store, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        buf_release(&store->items[i].key);
        buf_release(&store->items[i].value);
    }
    memmove(store->items + from, store->items + to, (store->n - to) * sizeof *store->items);
    store->n -= to - from;
}

void memstore_apply(struct memstore *store, const struct batch *batch)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);) {
        size_t i = memstore_seek(store, op.family, op.key.data, op.key.len);
        if (op.kind == BATCH_PUT)
            put(store, op.family, op.key, op.value);
        else if (op.kind == BATCH_DELETE && is_at(store, i, op.family, op.key))
            delete_from(store, i, i + 1);
        else if (op.kind == BATCH_DELETE_RANGE)
            delete_from(store, i, memstore_seek(store, op.family, op.value.data, op.value.len));
    }
}

void memstore_copy(struct memstore *to, const struct memstore *from)
{
    memstore_release(to);
    to->items = xcalloc(from->n + 1, sizeof *to->items);
    to->cap = from->n + 1;
    for (; to->n < from->n; to->n++) {
        struct mem_item *a = &to->items[to->n], *b = &from->items[to->n];
        a->family = b->family;
        buf_put(&a->key, b->key.data, b->key.len);
        buf_put(&a->value, b->value.data, b->value.len);
    }
}

void memstore_release(struct memstore *store)
{
    if (store->n)
        delete_from(store, 0, store->n);
    free(store->items);
    *store = (struct memstore){0};
}

bool memstore_get(const struct memstore *store, uint8_t family, const void *key, size_t key_len, struct bytes *out)
{
    size_t at = memstore_seek(store, family, key, key_len);
    if (!is_at(store, at, family, (struct bytes){key, key_len}))
        return false;
    *out = buf_bytes(&store->items[at].value);
    return true;
}

enum status memstore_load(const struct memstore *store, struct core *core, struct err *err)
{
    struct load_range r;
    while (core_load_next(core, &r)) {
        size_t i = memstore_seek(store, r.family, r.from, r.from_len),
               end = memstore_seek(store, r.family, r.to, r.to_len);
        for (; i < end; i++) {
            enum status st =
                core_load(core, r.family, buf_bytes(&store->items[i].key), buf_bytes(&store->items[i].value), err);
            if (st)
                return st;
        }
    }
    return ST_OK;
}

struct push_facts *memstore_facts(const struct memstore *store, const struct sip_key *seed, struct domain_id domain,
                                  const Alv__PushBatch *batch)
{
    struct push_facts *facts = xcalloc(batch->n_records + 1, sizeof *facts);
    for (size_t i = 0; i < batch->n_records; i++) {
        struct bytes ignored;
        record_facts(seed, domain, batch->records[i], &facts[i]);
        struct state_key c = key_hash('c', &facts[i].content), d = key_hash('i', &facts[i].id);
        facts[i].content_live = memstore_get(store, FAMILY_DEDUPE, c.b, c.len, &ignored);
        facts[i].id_known = memstore_get(store, FAMILY_DEDUPE, d.b, d.len, &facts[i].id_value);
    }
    return facts;
}
