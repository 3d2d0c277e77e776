/* sim.h - a whole line in one thread: one coordinator, workers, producers, a subscriber and an operator, on a simulated
 * network, disk and clock, from one seed.
 *
 * The same cores as the product (coordinator_core, worker_core, client_core) and the same frames and codec; around them a
 * network that loses, delays, duplicates and reorders, a disk that forgets what was not synced, and processes that crash
 * and come back. Training and scoring are pure functions of the lease and of the candidate. After the last fault the
 * world is given peace, and must then finish: all text stored, all of it settled, the subscriber at the newest version.
 *
 * The promises are checked as things happen (checks.h); the first broken one ends the run with a text. The seed is the
 * bug report: the same seed gives the same run.
 */
#ifndef SIM_H
#define SIM_H

#include <stdbool.h>
#include <stdint.h>

struct sim_options {
    uint64_t seed;
    unsigned planted; /* enum planted of coordinator/core/core.h: bugs on purpose */
    bool trace;       /* print every event on standard error */
    uint32_t records; /* of each producer; 0: chosen by the seed */
};

struct sim_result {
    bool ok;
    char failure[512]; /* which promise, at which simulated time */
    uint64_t simulated_ms, events, crashes, messages, lost;
    uint64_t records, segments, versions, leases_regranted, leases_missing, windows_missing, culprits, promoted;
    uint64_t actions, rollbacks, retractions, quarantines, skipped, links,
        copies_refused; /* so that none is forgotten */
};

void sim_run(const struct sim_options *options, struct sim_result *out);

#endif
