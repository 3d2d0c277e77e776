/* failpoint.h - named places where a test can kill the process or make a call fail.
 *
 * Compiled to nothing unless ALLUVIUM_FAILPOINTS is defined. Armed by the environment:
 * ALLUVIUM_FAILPOINTS="streamlog.commit=kill@3,blob.rename=error" (kill: SIGKILL; error: FAILPOINT() is true;
 * @N: at the N-th hit, default the first).
 */
#ifndef BASE_FAILPOINT_H
#define BASE_FAILPOINT_H

#include <stdbool.h>

#ifdef ALLUVIUM_FAILPOINTS
bool failpoint_hit(const char *name);
#define FAILPOINT(name) failpoint_hit(name)
#else
#define FAILPOINT(name) false
#endif

#endif
