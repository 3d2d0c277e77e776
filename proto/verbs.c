#include "proto/verbs.h"

#include <string.h>

#include "alluvium.pb-c.h"

#define ANY_ROLE (ROLE_PRODUCER | ROLE_WORKER | ROLE_SUBSCRIBER | ROLE_OPERATOR)
#define ON(plane) (1u << (plane))
#define EVERYWHERE ((1u << PLANES) - 1)

static const struct verb_info table[] = {
    {VERB_ERROR, "error", EVERYWHERE, 0, &alv__error__descriptor},
    {VERB_HELLO, "hello", EVERYWHERE, ANY_ROLE, &alv__hello__descriptor},
    {VERB_HELLO_OK, "hello-ok", EVERYWHERE, 0, &alv__hello_ok__descriptor},
    {VERB_PUSH_OPEN, "push-open", ON(PLANE_INGEST), ROLE_PRODUCER | ROLE_OPERATOR, &alv__push_open__descriptor},
    {VERB_PUSH_OPENED, "push-opened", ON(PLANE_INGEST), 0, &alv__push_opened__descriptor},
    {VERB_PUSH_BATCH, "push-batch", ON(PLANE_INGEST), ROLE_PRODUCER | ROLE_OPERATOR, &alv__push_batch__descriptor},
    {VERB_PUSH_ACK, "push-ack", ON(PLANE_INGEST), 0, &alv__push_ack__descriptor},
    {VERB_TASK_REQUEST, "task-request", ON(PLANE_WORK), ROLE_WORKER, &alv__task_request__descriptor},
    {VERB_TASK, "task", ON(PLANE_WORK), 0, &alv__task__descriptor},
    {VERB_PROGRESS, "progress", ON(PLANE_WORK), ROLE_WORKER, &alv__progress__descriptor},
    {VERB_PROGRESS_OK, "progress-ok", ON(PLANE_WORK), 0, &alv__progress_ok__descriptor},
    {VERB_TASK_RETURN, "task-return", ON(PLANE_WORK), ROLE_WORKER, &alv__task_return__descriptor},
    {VERB_TASK_RETURN_OK, "task-return-ok", ON(PLANE_WORK), 0, &alv__ok__descriptor},
    {VERB_DELTA_COMMIT, "delta-commit", ON(PLANE_WORK), ROLE_WORKER, &alv__delta_commit__descriptor},
    {VERB_DELTA_ACK, "delta-ack", ON(PLANE_WORK), 0, &alv__delta_ack__descriptor},
    {VERB_EVAL_RESULT, "eval-result", ON(PLANE_WORK), ROLE_WORKER, &alv__eval_result__descriptor},
    {VERB_EVAL_OK, "eval-ok", ON(PLANE_WORK), 0, &alv__ok__descriptor},
    {VERB_EXCLUSIONS_GET, "exclusions-get", ON(PLANE_WORK), ROLE_WORKER, &alv__exclusions_get__descriptor},
    {VERB_EXCLUSIONS, "exclusions", ON(PLANE_WORK), 0, &alv__exclusions__descriptor},
    {VERB_BLOB_GET, "blob-get", ON(PLANE_BULK), ROLE_WORKER | ROLE_SUBSCRIBER | ROLE_OPERATOR,
     &alv__blob_get__descriptor},
    {VERB_BLOB_CHUNK, "blob-chunk", ON(PLANE_BULK), 0, &alv__blob_chunk__descriptor},
    {VERB_BLOB_PUT, "blob-put", ON(PLANE_BULK), ROLE_WORKER, &alv__blob_put__descriptor},
    {VERB_BLOB_PUT_OK, "blob-put-ok", ON(PLANE_BULK), 0, &alv__blob_put_ok__descriptor},
    {VERB_SEGMENTS_GET, "segments-get", ON(PLANE_BULK), ROLE_WORKER, &alv__segments_get__descriptor},
    {VERB_SEGMENTS, "segments", ON(PLANE_BULK), 0, &alv__segments__descriptor},
    {VERB_WATCH, "watch", ON(PLANE_MODELS), ROLE_SUBSCRIBER | ROLE_OPERATOR, &alv__watch__descriptor},
    {VERB_WATCH_REPLY, "watch-reply", ON(PLANE_MODELS), 0, &alv__watch_reply__descriptor},
    {VERB_MANIFEST_GET, "manifest-get", ON(PLANE_MODELS), ROLE_SUBSCRIBER | ROLE_OPERATOR,
     &alv__manifest_get__descriptor},
    {VERB_MANIFEST, "manifest", ON(PLANE_MODELS), 0, &alv__signed_manifest__descriptor},
    {VERB_SERVING, "serving", ON(PLANE_MODELS), ROLE_SUBSCRIBER, &alv__serving__descriptor},
    {VERB_SERVING_OK, "serving-ok", ON(PLANE_MODELS), 0, &alv__ok__descriptor},
    {VERB_CONTROL, "control", ON(PLANE_CONTROL), ROLE_OPERATOR, &alv__control__descriptor},
    {VERB_CONTROL_REPLY, "control-reply", ON(PLANE_CONTROL), 0, &alv__control_reply__descriptor},
};

static const struct {
    enum role role;
    const char *name;
} roles[] = {
    {ROLE_PRODUCER, "producer"}, {ROLE_WORKER, "worker"}, {ROLE_SUBSCRIBER, "subscriber"}, {ROLE_OPERATOR, "operator"}};

const struct verb_info *verb_table(unsigned *n)
{
    *n = sizeof table / sizeof table[0];
    return table;
}

const struct verb_info *verb_find(uint16_t verb)
{
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].verb == (enum verb)verb)
            return &table[i];
    return NULL;
}

bool verb_allowed(uint16_t verb, enum plane plane, enum role role)
{
    const struct verb_info *info = verb_find(verb);
    if (!info || !(info->planes & ON(plane)) || !(info->roles & (unsigned)role))
        return false;
    if (info->planes != EVERYWHERE)
        return true;
    /* What is said everywhere is for those with business on this plane: to be greeted as a worker is to be told the seed. */
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].planes == ON(plane) && (table[i].roles & (unsigned)role))
            return true;
    return false;
}

const char *role_name(enum role role)
{
    for (unsigned i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (roles[i].role == role)
            return roles[i].name;
    return "none";
}

bool role_parse(const char *s, enum role *out)
{
    for (unsigned i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (!strcmp(roles[i].name, s)) {
            *out = roles[i].role;
            return true;
        }
    return false;
}

const char *plane_name(enum plane plane)
{
    static const char *const names[PLANES] = {"ingest", "work", "models", "control", "bulk"};
    return names[plane];
}
