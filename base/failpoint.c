#include "base/failpoint.h"

#ifdef ALLUVIUM_FAILPOINTS
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

bool failpoint_hit(const char *name)
{
    static atomic_long hits[64]; /* one per entry of the list, in its order */
    const char *list = getenv("ALLUVIUM_FAILPOINTS");
    size_t len = strlen(name), index = 0;
    for (const char *p = list; p && *p && index < 64; index++) {
        const char *end = strchrnul(p, ',');
        if (!strncmp(p, name, len) && p[len] == '=') {
            const char *at = memchr(p, '@', (size_t)(end - p));
            long wanted = at ? strtol(at + 1, NULL, 10) : 1;
            if (atomic_fetch_add(&hits[index], 1) + 1 == wanted) {
                if (!strncmp(p + len + 1, "kill", 4))
                    kill(getpid(), SIGKILL);
                return true;
            }
        }
        p = *end ? end + 1 : end;
    }
    return false;
}
#else
typedef int failpoint_is_empty;
#endif
