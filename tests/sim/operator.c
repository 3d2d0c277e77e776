/* operator.c - the operator: creates the domains, then does one thing after another, each until it is answered, and knows
 * what the answers may be. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "world.h"

enum { JOB_OPERATE = 101, ROLLBACKS_MAX = 3, SETTLE_MS = 3200 /* later than any frame that was sent before */ };

static const char *const domain_names[TRAIN_DOMAINS] = {"alpha", "beta"};

const char *operator_alias(unsigned i)
{
    static const char *const names[OPERATOR_ALIASES] = {"stable", "canary"};
    return names[i];
}

static void set_value(struct action *a, const char *value)
{
    snprintf(a->value, sizeof a->value, "%s", value);
}

static void want_promote(struct world *w, struct action *a)
{
    uint64_t newest = disk_newest(w), back = between(w, 0, 4);
    unsigned i = (unsigned)between(w, 0, OPERATOR_ALIASES - 1);
    a->verb = ALV__CONTROL_VERB__CONTROL_PROMOTE;
    a->name = operator_alias(i);
    a->number = chance(w, 0.05) ? newest + 3 : newest > back ? newest - back : 0;
    a->has_expect = chance(w, 0.6);
    a->expect = w->aliases[i].version + chance(w, 0.3);
}

static void want_rollback(struct world *w, struct action *a)
{
    uint64_t newest = disk_newest(w), back = between(w, 0, 4);
    a->verb = ALV__CONTROL_VERB__CONTROL_ROLLBACK;
    a->number = newest > back ? newest - back : 0;
    a->keep = chance(w, 0.4);
}

static void want_mark(struct world *w, struct action *a)
{
    static const char *const marks[] = {"withdrawn", "tainted", "none"};
    uint64_t newest = disk_newest(w), back = between(w, 0, 3);
    a->verb = ALV__CONTROL_VERB__CONTROL_MARK;
    a->number = chance(w, 0.05) ? newest + 3 : newest > back ? newest - back : 0;
    a->name = marks[between(w, 0, 2)];
    set_value(a, "because");
}

/* Whoever has the text under this id, or under another id with the same text, loses it. */
static void want_retract(struct world *w, struct action *a)
{
    struct node *node = &w->nodes[between(w, WORKERS, SUBSCRIBER - 1)];
    uint32_t at = (uint32_t)between(w, 0, node->n_records - 1);
    if (node->acked && chance(w, 0.5)) /* what is being learnt or is a probe, perhaps */
        at = (uint32_t)(node->acked - 1 - between(w, 0, node->acked < 40 ? node->acked - 1 : 39));
    uint32_t id = source_id(node, at);
    a->verb = ALV__CONTROL_VERB__CONTROL_RETRACT;
    a->domain = domain_names[node->index - WORKERS];
    snprintf(a->record, sizeof a->record, "%u", id);
    for (uint32_t i = 0; i < node->n_records; i++)
        for (uint32_t j = 0; source_id(node, i) == id && j < node->n_records; j++)
            node->facts[j].retracted |= !memcmp(&node->facts[i].content, &node->facts[j].content, 16);
}

static bool any_quarantine(void *user, struct bytes key, struct bytes value)
{
    (void)value;
    return !key_read_u64(key, user);
}

static void want_setting(struct world *w, struct action *a)
{
    static const char *const settings[][2] = {
        {"backlog_bytes", "4096"}, {"backlog_bytes", "16384"}, {"backlog_sample", "1"},      {"backlog_sample", "0"},
        {"segment_bytes", "64"},   {"segment_bytes", "1024"},  {"backlog_bytes", "1000000"}, {"forget_budget", "0.6"}};
    static const char *const skipping[][2] = {{"backlog_sample", "1"}, {"backlog_bytes", "4096"}};
    bool skip = chance(w, 0.5); /* only both together, on one domain, make text be skipped */
    const char *const *s =
        skip ? skipping[w->operator_step % 2] : settings[between(w, 0, sizeof settings / sizeof settings[0] - 1)];
    a->verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
    a->domain = domain_names[skip ? 0 : between(w, 0, TRAIN_DOMAINS - 1)];
    a->name = s[0];
    set_value(a, s[1]);
}

static void choose(struct world *w, struct action *a)
{
    *a = (struct action){.verb = ALV__CONTROL_VERB__CONTROL_RESUME, .name = "", .domain = ""};
    if (w->operator_step < TRAIN_DOMAINS) {
        a->verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
        a->domain = domain_names[w->operator_step];
        return;
    }
    if (w->operator_step == TRAIN_DOMAINS && w->options.seed % 8 == 3) { /* nobody trains the last one's text then */
        a->verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
        a->domain = domain_names[TRAIN_DOMAINS - 1];
        a->name = "sentinel";
        set_value(a, "1");
        return;
    }
    if (!w->faults)
        return;
    switch (between(w, 0, 10)) {
    case 0:
    case 1:
        want_promote(w, a);
        break;
    case 2:
        if (w->rollbacks < ROLLBACKS_MAX)
            want_rollback(w, a);
        break;
    case 3:
    case 4:
    case 9:
        want_retract(w, a);
        break;
    case 5:
    case 6:
        disk_scan(w, FAMILY_META, 'q', any_quarantine, &a->number);
        if (a->number)
            a->verb = chance(w, 0.7) ? ALV__CONTROL_VERB__CONTROL_QUARANTINE_RELEASE
                                     : ALV__CONTROL_VERB__CONTROL_QUARANTINE_DROP;
        break;
    case 7:
        want_setting(w, a);
        break;
    case 8:
        a->verb = ALV__CONTROL_VERB__CONTROL_ROUND;
        break;
    default:
        if (chance(w, 0.5))
            want_mark(w, a);
        break;
    }
}

void operate(struct world *w, struct node *node)
{
    struct action *a = &w->action;
    if (!w->has_action) {
        choose(w, a);
        w->has_action = true;
        trace(w, "the operator wants %d: number %" PRIu64 " expect %d/%" PRIu64 " keep %d %s %s %s %s", (int)a->verb,
              a->number, a->has_expect, a->expect, a->keep, a->name, a->domain, a->value, a->record);
    }
    uint64_t token[2] = {w->options.seed, w->operator_step};
    Alv__Control m;
    alv__control__init(&m);
    m.token = (ProtobufCBinaryData){sizeof token, (uint8_t *)token};
    m.verb = a->verb;
    m.number = a->number;
    m.expect = a->expect;
    m.has_expect = a->has_expect;
    m.keep = a->keep;
    m.name = (char *)(uintptr_t)a->name;
    m.domain = (char *)(uintptr_t)a->domain;
    m.value = a->value;
    m.record = a->record;
    if (node->greeted)
        send_frame(w, node, VERB_CONTROL, CONTROL + w->operator_step, &m.base);
    schedule(
        w, RETRY,
        (struct happen){.what = HAPPEN_OPERATOR, .node = node->index, .life = node->life, .number = w->operator_step});
}

/* ---- answers */

void operator_told(struct world *w, uint64_t request, const char *json)
{
    uint64_t n = request - CONTROL;
    if (n >= w->n_answers) {
        w->answers = xrealloc_array(w->answers, n + 1, sizeof *w->answers);
        memset(w->answers + w->n_answers, 0, (n + 1 - w->n_answers) * sizeof *w->answers);
        w->n_answers = (uint32_t)n + 1;
    }
    struct buf *first = &w->answers[n];
    if (first->len && strcmp((const char *)first->data, json))
        fail(w, "action %" PRIu64 " was answered %s, now %s", n, (const char *)first->data, json);
    buf_clear(first);
    buf_put(first, json, strlen(json) + 1);
}

static unsigned alias_of(const struct action *a)
{
    return !strcmp(a->name, operator_alias(1));
}

/* Compare-and-swap against our own book: nobody else moves these aliases. */
static void promoted(struct world *w, const struct action *a, enum status st)
{
    struct alias_model *alias = &w->aliases[alias_of(a)];
    bool matches = !a->has_expect || a->expect == alias->version;
    struct state_version v;
    if (!st && !matches)
        fail(w, "promote: %s was moved to %" PRIu64 " though it was at %" PRIu64 ", not at %" PRIu64, a->name,
             a->number, alias->version, a->expect);
    if (!st && disk_withdrawn(w, a->number))
        fail(w, "promote: %s was moved to %" PRIu64 ", which is withdrawn", a->name, a->number);
    if (st == ST_CONFLICT && matches && !disk_withdrawn(w, a->number))
        fail(w, "promote: %s is at %" PRIu64 " as expected, and was not moved", a->name, alias->version);
    if (st == ST_NOT_FOUND && disk_version(w, a->number, &v) && blob_held(w, &v.files.peft))
        fail(w, "promote: version %" PRIu64 " is here, and was not found", a->number);
    if (!st)
        *alias = (struct alias_model){true, a->number};
}

static void answered(struct world *w, const struct action *a, enum status st, const char *text)
{
    bool may_fail = false;
    switch (a->verb) {
    case ALV__CONTROL_VERB__CONTROL_PROMOTE:
        promoted(w, a, st);
        may_fail = st == ST_CONFLICT || st == ST_NOT_FOUND;
        break;
    case ALV__CONTROL_VERB__CONTROL_ROLLBACK:
        w->rollbacks += !st;
        may_fail = st == ST_CONFLICT || st == ST_NOT_FOUND;
        break;
    case ALV__CONTROL_VERB__CONTROL_MARK:
        may_fail = st == ST_NOT_FOUND && a->number > disk_newest(w);
        if (!st && disk_withdrawn(w, a->number) != !strcmp(a->name, "withdrawn") && strcmp(a->name, "tainted") != 0)
            fail(w, "mark: version %" PRIu64 " was marked %s, and is not", a->number, a->name);
        break;
    case ALV__CONTROL_VERB__CONTROL_RETRACT: /* not pushed yet, or never: refused, or its text was another's */
        may_fail = st == ST_NOT_FOUND;
        break;
    case ALV__CONTROL_VERB__CONTROL_DOMAIN_SET: /* its first text was there before */
        may_fail = st == ST_CONFLICT && !strcmp(a->name, "sentinel");
        break;
    default:
        break;
    }
    if (st && !may_fail)
        fail(w, "the operator's action %d was refused: %s", (int)a->verb, text);
}

void operator_message(struct world *w, struct node *node, uint16_t verb, uint64_t request,
                      const ProtobufCMessage *message)
{
    const Alv__Error *error = verb == VERB_ERROR ? (const Alv__Error *)message : NULL;
    if (request != CONTROL + w->operator_step || !w->has_action)
        return;
    if (error && error->status == ST_AGAIN)
        return; /* asked again by the timer */
    bool early = w->operator_step < TRAIN_DOMAINS;
    answered(w, &w->action, error ? (enum status)error->status : ST_OK, error ? error->text : "");
    w->has_action = false;
    w->operator_step++;
    w->result->actions++;
    uint64_t wait = early ? 1 : error ? SETTLE_MS : w->faults ? between(w, 100, 4000) : 4000;
    schedule(w, wait,
             (struct happen){.what = HAPPEN_JOB, .node = node->index, .life = node->life, .number = JOB_OPERATE});
}
