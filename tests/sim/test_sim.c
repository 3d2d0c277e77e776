/* The whole line under faults, seed after seed; and three bugs on purpose, each of which must be found.
 *
 *   test_sim                  seeds 1 .. 1,000 and the planted bugs
 *   test_sim SEED [trace]     one seed, with every event on standard error
 *   test_sim FROM - TO        those seeds
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "coordinator/core/core.h"
#include "harness.h"
#include "sim.h"

enum { SEEDS = 1000, PLANTED_SEEDS = 100 };

static void add(struct sim_result *total, const struct sim_result *r)
{
    total->crashes += r->crashes;
    total->messages += r->messages;
    total->lost += r->lost;
    total->records += r->records;
    total->segments += r->segments;
    total->versions += r->versions;
    total->leases_regranted += r->leases_regranted;
    total->leases_missing += r->leases_missing;
    total->windows_missing += r->windows_missing;
    total->culprits += r->culprits;
    total->promoted += r->promoted;
    total->actions += r->actions;
    total->rollbacks += r->rollbacks;
    total->retractions += r->retractions;
    total->quarantines += r->quarantines;
    total->skipped += r->skipped;
    total->links += r->links;
    total->copies_refused += r->copies_refused;
}

static void run_seeds(uint64_t first, uint64_t last, struct sim_result *total)
{
    struct sim_result r;
    *total = (struct sim_result){0};
    for (uint64_t seed = first; seed <= last; seed++) {
        sim_run(&(struct sim_options){.seed = seed}, &r);
        harness_expect(r.ok, __FILE__, __LINE__, "seed %" PRIu64 " to hold (test_sim %" PRIu64 " trace): %s", seed,
                       seed, r.failure);
        add(total, &r);
    }
    fprintf(stderr,
            "%" PRIu64 " seeds: %" PRIu64 " crashes, %" PRIu64 " messages (%" PRIu64 " lost), %" PRIu64
            " records, %" PRIu64 " segments (%" PRIu64 " skipped), %" PRIu64 " versions, %" PRIu64
            " leases granted again (%" PRIu64 " for text that was missing, %" PRIu64 " evaluations), %" PRIu64
            " actions: %" PRIu64 " rollbacks, %" PRIu64 " retractions; %" PRIu64 " leases held (%" PRIu64
            " found to be harmful), %" PRIu64 " ranges given back, %" PRIu64 " copied directories refused\n",
            last - first + 1, total->crashes, total->messages, total->lost, total->records, total->segments,
            total->skipped, total->versions, total->leases_regranted, total->leases_missing, total->windows_missing,
            total->actions, total->rollbacks, total->retractions, total->quarantines, total->culprits, total->links,
            total->copies_refused);
}

static void test_promises_hold(void)
{
    struct sim_result total;
    run_seeds(1, SEEDS, &total);
    EXPECT(total.crashes > SEEDS && total.lost > SEEDS && total.versions > 3 * SEEDS); /* it all did happen */
    EXPECT(total.promoted && total.culprits && total.leases_regranted && total.leases_missing &&
           total.windows_missing && total.rollbacks && total.retractions && total.quarantines && total.skipped &&
           total.links && total.copies_refused);
}

static void expect_found(unsigned planted, const char *what)
{
    struct sim_result r;
    uint64_t seed = 1;
    for (; seed <= PLANTED_SEEDS; seed++) {
        sim_run(&(struct sim_options){.seed = seed, .planted = planted}, &r);
        if (!r.ok)
            break;
    }
    harness_expect(seed <= PLANTED_SEEDS, __FILE__, __LINE__, "the planted bug \"%s\" to be found within %d seeds",
                   what, PLANTED_SEEDS);
    fprintf(stderr, "    %s: found by seed %" PRIu64 ": %s\n", what, seed, r.failure);
}

static void test_planted_bugs_are_found(void)
{
    expect_found(PLANT_ACK_BEFORE_COMMIT, "ack before commit");
    expect_found(PLANT_NO_DUPLICATE_CHECK, "no duplicate check");
    expect_found(PLANT_STALE_GENERATION, "stale generation accepted");
}

static void test_a_seed_repeats(void)
{
    struct sim_result a, b;
    sim_run(&(struct sim_options){.seed = 7}, &a);
    sim_run(&(struct sim_options){.seed = 7}, &b);
    EXPECT(a.events == b.events && a.messages == b.messages && a.simulated_ms == b.simulated_ms &&
           a.versions == b.versions);
}

int main(int argc, char **argv)
{
    hash_start();
    if (argc == 4 && !strcmp(argv[2], "-")) {
        struct sim_result total;
        run_seeds(strtoull(argv[1], NULL, 10), strtoull(argv[3], NULL, 10), &total);
        return harness_end();
    }
    if (argc > 1) {
        struct sim_result r;
        sim_run(&(struct sim_options){.seed = strtoull(argv[1], NULL, 10),
                                      .trace = argc > 2,
                                      .planted = argc > 3 ? (unsigned)strtoul(argv[3], NULL, 10) : 0},
                &r);
        printf("%s %s (%" PRIu64 " events, %" PRIu64 " simulated ms, %" PRIu64 " crashes, %" PRIu64 " records, %" PRIu64
               " segments, %" PRIu64 " versions)\n",
               r.ok ? "ok" : "FAILED", r.failure, r.events, r.simulated_ms, r.crashes, r.records, r.segments,
               r.versions);
        return !r.ok;
    }
    RUN(test_a_seed_repeats);
    RUN(test_planted_bugs_are_found);
    RUN(test_promises_hold);
    return harness_end();
}
