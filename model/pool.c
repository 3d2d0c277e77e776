#include "model/pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"

/* Products follow each other within microseconds: look for the next one a while (some 20 us) before going to sleep. Longer
 * helps nobody: where cores are free the next round has begun by then, where they are not the spinner holds up the others. */
enum { SPINS_MAX = 1000 };

/* A round of fewer multiplications, some microseconds, is over before another thread has begun. */
static const uint64_t WORK_MIN = 1u << 17;

/* The ticket holds the round's number above and the next unclaimed piece below. Claiming by compare-and-swap on both at
 * once keeps a thread that wakes late from taking a piece of a later round with the arguments of an earlier one. */
enum { PIECE_BITS = 8 };
_Static_assert(POOL_THREADS_MAX < 1 << PIECE_BITS, "a piece fits its bits");

struct pool {
    uint32_t threads;
    uint32_t started;
    pthread_t ids[POOL_THREADS_MAX];
    void (*fn)(void *arg, uint32_t thread);
    void *arg;
    atomic_uint_fast64_t ticket;
    atomic_uint left; /* pieces of the round that are not done */
    atomic_bool stop;
    pthread_mutex_t lock;
    pthread_cond_t begun, done;
    atomic_uint idle;    /* workers asleep, or about to be, on `begun` */
    atomic_bool waiting; /* the caller, on `done` */
    unsigned char *memory;
    size_t memory_each;
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Takes pieces as long as there are some. Whoever is awake does the work: on a crowded machine the caller does not wait
 * for threads that have no core. */
static void claim_pieces(struct pool *pool)
{
    uint64_t ticket = atomic_load(&pool->ticket);
    for (;;) {
        uint32_t piece = ticket & ((1u << PIECE_BITS) - 1);
        if (piece >= pool->threads)
            return;
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + 1))
            continue;
        pool->fn(pool->arg, piece);
        if (atomic_fetch_sub(&pool->left, 1) == 1 && atomic_load(&pool->waiting)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
        ticket = atomic_load(&pool->ticket);
    }
}

static uint64_t round_of(struct pool *pool)
{
    return atomic_load(&pool->ticket) >> PIECE_BITS;
}

/* A sleeper announces itself before it looks a last time, a waker acts before it looks for sleepers: one sees the other. */
static void *serve(void *arg)
{
    struct pool *pool = arg;
    for (uint64_t seen = 0; !atomic_load(&pool->stop); seen = round_of(pool)) {
        for (int i = 0; i < SPINS_MAX && round_of(pool) == seen; i++)
            relax();
        if (round_of(pool) == seen) {
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->idle, 1);
            while (round_of(pool) == seen)
                pthread_cond_wait(&pool->begun, &pool->lock);
            atomic_fetch_sub(&pool->idle, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        claim_pieces(pool);
    }
    return NULL;
}

static void begin_round(struct pool *pool, uint32_t pieces)
{
    atomic_store(&pool->left, pieces);
    atomic_store(&pool->ticket, (round_of(pool) + 1) << PIECE_BITS | (pool->threads - pieces));
    if (atomic_load(&pool->idle)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->begun);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void end_round(struct pool *pool)
{
    for (int i = 0; i < SPINS_MAX && atomic_load(&pool->left); i++)
        relax();
    if (!atomic_load(&pool->left))
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->waiting, true);
    while (atomic_load(&pool->left))
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->waiting, false);
    pthread_mutex_unlock(&pool->lock);
}

enum status pool_new(uint32_t threads, struct pool **out, struct err *err)
{
    if (threads < 1 || threads > POOL_THREADS_MAX)
        return err_set(err, ST_USAGE, "threads must be between 1 and %d, not %u", POOL_THREADS_MAX, threads);
    struct pool *pool = xcalloc(1, sizeof *pool);
    pool->threads = threads;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->begun, NULL);
    pthread_cond_init(&pool->done, NULL);
    atomic_store(&pool->ticket, threads); /* round 0: nothing left to claim */
    for (; pool->started + 1 < threads; pool->started++) {
        int rc = pthread_create(&pool->ids[pool->started], NULL, serve, pool);
        if (rc) {
            pool_free(pool);
            return err_set(err, ST_IO, "cannot start a compute thread: %s", strerror(rc));
        }
    }
    *out = pool;
    return ST_OK;
}

void pool_free(struct pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stop, true);
    begin_round(pool, 0);
    for (uint32_t i = 0; i < pool->started; i++)
        pthread_join(pool->ids[i], NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->begun);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

uint32_t pool_threads(const struct pool *pool)
{
    return pool->threads;
}

void pool_lend(struct pool *pool, void *memory, size_t bytes)
{
    pool->memory = memory;
    pool->memory_each = bytes;
}

void *pool_workspace(const struct pool *pool, uint32_t thread)
{
    return pool->memory + thread * pool->memory_each;
}

void pool_run(struct pool *pool, uint64_t work, void (*fn)(void *arg, uint32_t thread), void *arg)
{
    if (pool->threads == 1 || work < WORK_MIN) {
        for (uint32_t i = 0; i < pool->threads; i++)
            fn(arg, i);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    begin_round(pool, pool->threads);
    claim_pieces(pool);
    end_round(pool);
}

void pool_share(uint32_t n, uint32_t grain, uint32_t thread, uint32_t threads, uint32_t *begin, uint32_t *end)
{
    uint64_t pieces = ((uint64_t)n + grain - 1) / grain;
    uint64_t b = pieces * thread / threads * grain, e = pieces * (thread + 1) / threads * grain;
    *begin = (uint32_t)(b < n ? b : n);
    *end = (uint32_t)(e < n ? e : n);
}
