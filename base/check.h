/* check.h - for our own mistakes only: always on, no side effects, both values printed, then abort.
 * Input, disk and peers are never checked with it; they get a status. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: CHECK failed: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                      \
        }                                                                                 \
    } while (0)

/* Compares two integers; both are printed when they differ. */
#define CHECK_EQ(a, b)                                                                                             \
    do {                                                                                                           \
        long long check_a_ = (long long)(a), check_b_ = (long long)(b);                                            \
        if (check_a_ != check_b_) {                                                                                \
            fprintf(stderr, "%s:%d: CHECK failed: %s (%lld) == %s (%lld)\n", __FILE__, __LINE__, #a, check_a_, #b, \
                    check_b_);                                                                                     \
            abort();                                                                                               \
        }                                                                                                          \
    } while (0)

#endif
