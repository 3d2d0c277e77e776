/* clock.h - the edge's clocks. Cores never call these: they are given `now_ms`. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

uint64_t clock_ms(void);     /* monotonic milliseconds: deadlines and durations */
double clock_s(void);        /* monotonic seconds: measuring */
uint64_t clock_wall_s(void); /* Unix time: for people and manifests only, never for order */

#endif
