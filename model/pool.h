/* pool.h - a few threads that do one thing at a time.
 *
 * The engine's only threads: the BLAS library runs single-threaded inside them, so two pools never fight for cores.
 * Which thread does a piece never changes its result.
 */
#ifndef MODEL_POOL_H
#define MODEL_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { POOL_THREADS_MAX = 64 };

struct pool;

/* `threads` counts the caller: 1 makes none. ST_IO when the system gives no thread. */
enum status pool_new(uint32_t threads, struct pool **out, struct err *err);
void pool_free(struct pool *pool);
uint32_t pool_threads(const struct pool *pool);

/* Runs fn(arg, i) once for every i in [0, threads) and returns when all are done. The caller works too, and takes over what
 * no other thread has begun; waiting is a short spin, then sleep. `work` is about how many multiplications all of it takes:
 * a small round wakes nobody and the caller runs every piece. Not re-entrant. */
void pool_run(struct pool *pool, uint64_t work, void (*fn)(void *arg, uint32_t thread), void *arg);

/* `bytes` of memory for each thread, one after the other at `memory` (64-byte aligned, outlives the pool): scratch of whoever
 * runs as that thread. */
void pool_lend(struct pool *pool, void *memory, size_t bytes);
void *pool_workspace(const struct pool *pool, uint32_t thread);

/* The part of [0, n) that belongs to `thread`: contiguous, as equal as multiples of `grain` allow. */
void pool_share(uint32_t n, uint32_t grain, uint32_t thread, uint32_t threads, uint32_t *begin, uint32_t *end);

#endif
