/* map.h - a hash map from 16 bytes to a number: open addressing, linear probing, deletion by shifting back.
 * Keys are hashes under the line's secret or small numbers mixed here, so nobody outside can make them collide. */
#ifndef COORDINATOR_CORE_MAP_H
#define COORDINATOR_CORE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "coordinator/core/core.h"

struct map { /* zeroed is empty */
    struct map_slot {
        struct hash16 key;
        uint64_t value;
        bool used;
    } * slots;
    size_t n, cap; /* cap: a power of two or 0 */
};

struct hash16 map_key(uint64_t a, uint64_t b);
bool map_get(const struct map *map, const struct hash16 *key, uint64_t *out);
void map_put(struct map *map, const struct hash16 *key, uint64_t value);
void map_delete(struct map *map, const struct hash16 *key); /* absent is fine */
void map_release(struct map *map);

#endif
