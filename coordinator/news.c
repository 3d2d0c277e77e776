#include "coordinator/news.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

static void tell(const struct news *old, const struct snapshot *now)
{
    if (now->version != old->version)
        log_info("line", "published version=%" PRIu64, now->version);
    if (now->refusals > old->refusals)
        log_warn("line", "a candidate was refused round=%" PRIu64 " in_a_row=%u; versions explain says why", now->round,
                 now->refusals);
    if (now->quarantined > old->quarantined)
        log_warn("line", "text was set aside leases_held=%" PRIu64 "; see quarantine list", now->quarantined);
    if (now->quarantined < old->quarantined)
        log_info("line", "text set aside was decided upon leases_held=%" PRIu64, now->quarantined);
    if (now->n_workers != old->workers)
        log_info("line", "workers here=%u before=%u", now->n_workers, old->workers);
    if (now->n_subscribers != old->subscribers)
        log_info("line", "subscribers here=%u before=%u", now->n_subscribers, old->subscribers);
    if (strcmp(now->alarm, old->alarm))
        now->alarm[0] ? log_error("line", "alarm why=\"%s\"", now->alarm) : log_info("line", "the alarm is over");
}

void news_look(struct news *news, const struct snapshot *now)
{
    if (news->looked)
        tell(news, now);
    *news = (struct news){.looked = true,
                          .version = now->version,
                          .quarantined = now->quarantined,
                          .refusals = now->refusals,
                          .workers = now->n_workers,
                          .subscribers = now->n_subscribers};
    snprintf(news->alarm, sizeof news->alarm, "%s", now->alarm);
}

void news_asked(const Alv__Control *control, const struct name *key)
{
    const ProtobufCEnumValue *verb =
        protobuf_c_enum_descriptor_get_value(&alv__control_verb__descriptor, (int)control->verb);
    log_info("line", "asked verb=%s number=%" PRIu64 " by=%s", verb ? verb->name : "unknown", control->number, key->s);
}
