/* plan.h - what is done in which order: the most informative cells first, so that an interrupted run says the most. */
#ifndef CONTINUAL_PLAN_H
#define CONTINUAL_PLAN_H

#include "lab.h"

/* The first cell of the plan that is not done; false: all are, or what is left waits for a rate that is not tuned. */
bool plan_next(const struct lab *lab, struct cell *out);
/* The first cell that is missing of the first `passes` of one run. */
bool plan_next_of(const struct lab *lab, const char *arm, double rate, uint32_t seed, uint32_t passes,
                  struct cell *out);
/* How many cells the plan has now and how many of them are done. */
void plan_count(const struct lab *lab, uint32_t *done, uint32_t *all);

/* The rate at which an arm learnt best: the lowest mean loss over the domains' tuning parts after pass 1, seed 1, found by going
 * downhill from 1e-3 over 1e-4, 3e-4, 1e-3, 3e-3 and 1e-2 until both neighbours are worse. 0 while that search is open. */
double plan_tuned_rate(const struct lab *lab, const struct arm *arm);

#endif
