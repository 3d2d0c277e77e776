/* bench.h - what several measurements share: numbers from the command line, the middle of a list. */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* A whole number from 1 to max, or the program ends with 2 and says what is wanted. */
static inline uint32_t bench_number(const char *option, const char *value, uint32_t max)
{
    char *end;
    unsigned long v = strtoul(value, &end, 10);
    if (*end || !*value || v < 1 || v > max) {
        fprintf(stderr, "%s %s: a number from 1 to %u is wanted\n", option, value, max);
        exit(2);
    }
    return (uint32_t)v;
}

static inline int bench_ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double bench_median(double *x, uint32_t n) /* sorts x */
{
    qsort(x, n, sizeof *x, bench_ascending);
    return x[n / 2];
}

#endif
