#include "model/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"

/* Products follow each other within microseconds: look for the next one a while before going to sleep. */
enum { SPINS_MAX = 4000 };

struct pool {
    uint32_t threads;
    uint32_t started;
    pthread_t ids[POOL_THREADS_MAX];
    void (*fn)(void *arg, uint32_t thread);
    void *arg;
    atomic_uint round;   /* rises with every pool_run */
    atomic_uint working; /* threads that have not finished the round */
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

struct seat {
    struct pool *pool;
    uint32_t thread;
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void *work(void *arg)
{
    struct seat seat = *(struct seat *)arg;
    free(arg);
    struct pool *pool = seat.pool;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPINS_MAX && atomic_load(&pool->round) == seen; i++)
            relax();
        if (atomic_load(&pool->round) == seen) {
            pthread_mutex_lock(&pool->lock);
            while (atomic_load(&pool->round) == seen)
                pthread_cond_wait(&pool->wake, &pool->lock);
            pthread_mutex_unlock(&pool->lock);
        }
        seen++;
        if (atomic_load(&pool->stop))
            return NULL;
        pool->fn(pool->arg, seat.thread);
        atomic_fetch_sub(&pool->working, 1);
    }
}

static void start_round(struct pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->working, pool->started);
    atomic_fetch_add(&pool->round, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

enum status pool_new(uint32_t threads, struct pool **out, struct err *err)
{
    if (threads < 1 || threads > POOL_THREADS_MAX)
        return err_set(err, ST_USAGE, "threads must be between 1 and %d, not %u", POOL_THREADS_MAX, threads);
    struct pool *pool = xcalloc(1, sizeof *pool);
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (uint32_t i = 1; i < threads; i++) {
        struct seat *seat = xmalloc(sizeof *seat);
        *seat = (struct seat){pool, i};
        int rc = pthread_create(&pool->ids[pool->started], NULL, work, seat);
        if (rc) {
            free(seat);
            pool_free(pool);
            return err_set(err, ST_IO, "cannot start a compute thread: %s", strerror(rc));
        }
        pool->started++;
    }
    *out = pool;
    return ST_OK;
}

void pool_free(struct pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    start_round(pool);
    for (uint32_t i = 0; i < pool->started; i++)
        pthread_join(pool->ids[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

uint32_t pool_threads(const struct pool *pool)
{
    return pool->threads;
}

void pool_run(struct pool *pool, void (*fn)(void *arg, uint32_t thread), void *arg)
{
    if (pool->threads == 1) {
        fn(arg, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    start_round(pool);
    fn(arg, 0);
    for (int i = 0; atomic_load(&pool->working); i++)
        if (i < SPINS_MAX)
            relax();
        else
            sched_yield(); /* more threads than free cores: let them run */
}

void pool_share(uint32_t n, uint32_t grain, uint32_t thread, uint32_t threads, uint32_t *begin, uint32_t *end)
{
    uint64_t pieces = ((uint64_t)n + grain - 1) / grain;
    uint64_t b = pieces * thread / threads * grain, e = pieces * (thread + 1) / threads * grain;
    *begin = (uint32_t)(b < n ? b : n);
    *end = (uint32_t)(e < n ? e : n);
}
