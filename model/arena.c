#include "model/arena.h"

#include <sys/mman.h>

#include "base/check.h"

void *arena_take(struct arena *arena, uint64_t bytes)
{
    uint64_t at = arena->used;
    arena->used += (bytes + 63) / 64 * 64;
    if (!arena->memory)
        return NULL;
    CHECK(arena->used <= arena->size);
    return arena->memory + at;
}

real *arena_reals(struct arena *arena, uint64_t n)
{
    return arena_take(arena, n * sizeof(real));
}

enum status arena_map(struct arena *arena, struct err *err)
{
    arena->size = arena->used ? arena->used : 64;
    void *p = MAP_FAILED;
    if (arena->size <= SIZE_MAX / 2)
        p = mmap(NULL, arena->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return err_set(err, ST_NO_MEMORY, "cannot take %llu MiB of memory", (unsigned long long)(arena->size >> 20));
    madvise(p, arena->size, MADV_HUGEPAGE);
    arena->memory = p;
    arena->used = 0;
    return ST_OK;
}

void arena_release(struct arena *arena)
{
    if (arena->memory)
        munmap(arena->memory, arena->size);
    *arena = (struct arena){0};
}
