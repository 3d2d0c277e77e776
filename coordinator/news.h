/* news.h - what happens on a line, for those who read its log: one line for each change that somebody might look for later.
 * Called about once a second by the loop, so several changes of one kind within a second are one line. One thread. */
#ifndef COORDINATOR_NEWS_H
#define COORDINATOR_NEWS_H

#include "alluvium.pb-c.h"
#include "coordinator/core/snapshot.h"

struct news { /* zeroed knows nothing: the first look is remembered and not told */
    bool looked;
    uint64_t version, quarantined;
    uint32_t refusals, workers, subscribers;
    char alarm[sizeof((struct snapshot *)0)->alarm];
};
void news_look(struct news *news, const struct snapshot *now);

/* An operator's act that the core is asked for. No text of the message is logged. */
void news_asked(const Alv__Control *control, const struct name *key);

#endif
