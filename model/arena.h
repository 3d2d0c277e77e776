/* arena.h - memory taken once, after counting: run the same layout function twice, first to count, then to hand out.
 *
 *     struct arena a = {0};
 *     layout(&a, ...);         every pointer NULL, a.used the bytes needed
 *     arena_map(&a, err);      one mapping of a.used bytes, zeroed, large pages where the system gives them
 *     layout(&a, ...);         the same calls again: real pointers
 *     arena_release(&a);
 */
#ifndef MODEL_ARENA_H
#define MODEL_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "model/ops.h"

struct arena {
    unsigned char *memory;
    uint64_t size, used;
};

void *arena_take(struct arena *arena, uint64_t bytes); /* 64-byte aligned; NULL while counting */
real *arena_reals(struct arena *arena, uint64_t n);
enum status arena_map(struct arena *arena, struct err *err); /* ST_NO_MEMORY */
void arena_release(struct arena *arena);

#endif
