#include "coordinator/core/map.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

struct hash16 map_key(uint64_t a, uint64_t b)
{
    struct hash16 key;
    memcpy(key.b, &a, 8);
    memcpy(key.b + 8, &b, 8);
    return key;
}

static size_t home(const struct map *map, const struct hash16 *key)
{
    uint64_t a, b;
    memcpy(&a, key->b, 8);
    memcpy(&b, key->b + 8, 8);
    uint64_t h = (a ^ (b * 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;
    return (size_t)(h ^ (h >> 31)) & (map->cap - 1);
}

/* Where `key` is, or the free slot where it would go. */
static size_t find(const struct map *map, const struct hash16 *key)
{
    size_t i = home(map, key);
    while (map->slots[i].used && memcmp(&map->slots[i].key, key, sizeof *key))
        i = (i + 1) & (map->cap - 1);
    return i;
}

bool map_get(const struct map *map, const struct hash16 *key, uint64_t *out)
{
    if (!map->n)
        return false;
    const struct map_slot *slot = &map->slots[find(map, key)];
    if (slot->used)
        *out = slot->value;
    return slot->used;
}

static void grow(struct map *map)
{
    struct map bigger = {.cap = map->cap ? 2 * map->cap : 16, .n = map->n};
    bigger.slots = xcalloc(bigger.cap, sizeof *bigger.slots);
    for (size_t i = 0; i < map->cap; i++)
        if (map->slots[i].used)
            bigger.slots[find(&bigger, &map->slots[i].key)] = map->slots[i];
    free(map->slots);
    *map = bigger;
}

void map_put(struct map *map, const struct hash16 *key, uint64_t value)
{
    if (3 * map->cap < 4 * (map->n + 1))
        grow(map);
    struct map_slot *slot = &map->slots[find(map, key)];
    map->n += !slot->used;
    *slot = (struct map_slot){.key = *key, .value = value, .used = true};
}

void map_delete(struct map *map, const struct hash16 *key)
{
    if (!map->n)
        return;
    size_t hole = find(map, key), mask = map->cap - 1;
    if (!map->slots[hole].used)
        return;
    map->n--;
    for (size_t i = (hole + 1) & mask; map->slots[i].used; i = (i + 1) & mask) {
        size_t h = home(map, &map->slots[i].key);
        if (((i - h) & mask) >= ((i - hole) & mask)) { /* its home is not between the hole and it */
            map->slots[hole] = map->slots[i];
            hole = i;
        }
    }
    map->slots[hole].used = false;
}

void map_release(struct map *map)
{
    free(map->slots);
    *map = (struct map){0};
}
