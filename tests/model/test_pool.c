/* Every piece once, in its own round, with more threads than the machine has cores. */
#include <stdatomic.h>
#include <string.h>

#include "harness.h"
#include "model/pool.h"

enum { ROUNDS = 20000 };

struct round {
    atomic_uint runs[POOL_THREADS_MAX];
    atomic_uint late; /* pieces that ran with the arguments of a round that had ended */
    atomic_bool open;
};

static void piece(void *arg, uint32_t thread)
{
    struct round *r = arg;
    if (!atomic_load(&r->open))
        atomic_fetch_add(&r->late, 1);
    atomic_fetch_add(&r->runs[thread], 1);
}

static void run_rounds(uint32_t threads, uint64_t work)
{
    struct err err;
    struct pool *pool;
    static struct round rounds[2]; /* in turns, so that a late piece meets a closed round */
    memset(rounds, 0, sizeof rounds);
    REQUIRE(EXPECT_ST(pool_new(threads, &pool, &err), ST_OK, &err));
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        struct round *r = &rounds[i % 2];
        atomic_store(&r->open, true);
        pool_run(pool, work, piece, r);
        atomic_store(&r->open, false);
        for (uint32_t t = 0; t < threads; t++)
            wrong += atomic_load(&r->runs[t]) != i / 2 + 1;
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(atomic_load(&rounds[0].late) + atomic_load(&rounds[1].late), 0);
    EXPECT_EQ(pool_threads(pool), threads);
    pool_free(pool);
}

static void test_every_piece_once(void)
{
    for (uint32_t threads = 1; threads <= 7; threads += 2)
        run_rounds(threads, UINT64_MAX);
    run_rounds(3, 0); /* by the caller alone */
}

/* Born and ended without work, and with threads that have just gone to sleep. */
static void test_life_cycle(void)
{
    struct err err;
    struct pool *pool = NULL;
    static struct round r;
    for (int i = 0; i < 200; i++) {
        REQUIRE(EXPECT_ST(pool_new(4, &pool, &err), ST_OK, &err));
        if (i % 2) {
            atomic_store(&r.open, true);
            pool_run(pool, UINT64_MAX, piece, &r);
        }
        pool_free(pool);
    }
    for (int t = 0; t < 4; t++)
        EXPECT_EQ(atomic_load(&r.runs[t]), 100);
    pool_free(NULL);
    EXPECT_ST(pool_new(0, &pool, &err), ST_USAGE, &err);
    EXPECT_ST(pool_new(POOL_THREADS_MAX + 1, &pool, &err), ST_USAGE, &err);
}

int main(void)
{
    RUN(test_every_piece_once);
    RUN(test_life_cycle);
    return harness_end();
}
