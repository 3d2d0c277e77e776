/* Commands of the control plane: each fills in one Control message. */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

#include "alluvium.pb-c.h"
#include "base/clock.h"
#include "cli/print.h"
#include "cli/views.h"
#include "client/admin.h"

enum { TIMEOUT_S = 30 };

struct control_args {
    struct line_args line;
    uint32_t timeout;
    const char *expect; /* promote */
    const char *reason; /* versions mark */
    bool keep;          /* rollback */
    bool round;         /* versions explain */
    uint64_t from;      /* versions list */
};

static void show_to_people(Alv__ControlVerb verb, const json_t *answer)
{
    uint64_t now_s = clock_wall_s();
    switch (verb) {
    case ALV__CONTROL_VERB__CONTROL_STATUS:
        view_status(stdout, answer);
        break;
    case ALV__CONTROL_VERB__CONTROL_VERSIONS:
        view_versions(stdout, answer, now_s);
        break;
    case ALV__CONTROL_VERB__CONTROL_SHOW:
        view_version(stdout, answer, now_s);
        break;
    case ALV__CONTROL_VERB__CONTROL_EXPLAIN:
        view_verdict(stdout, answer, now_s);
        break;
    case ALV__CONTROL_VERB__CONTROL_TRACE:
        view_trace(stdout, answer);
        break;
    case ALV__CONTROL_VERB__CONTROL_PROMOTE:
    case ALV__CONTROL_VERB__CONTROL_ROLLBACK:
    case ALV__CONTROL_VERB__CONTROL_MARK:
        view_change(stdout, answer);
        break;
    default:
        print_value(stdout, answer);
    }
}

/* Prints an answer: as it came with --json, else for people. */
static enum status show(Alv__ControlVerb verb, const struct buf *json, struct err *err)
{
    json_error_t error;
    json_t *root = json_loadb((const char *)json->data, json->len, JSON_DECODE_ANY, &error);
    if (!root)
        return err_set(err, ST_BAD_DATA, "the coordinator's answer is not JSON: %s", error.text);
    if (common.json) {
        print_json(root);
        return ST_OK;
    }
    show_to_people(verb, root);
    json_decref(root);
    return ST_OK;
}

/* Asks once, prints, and ends the command. */
static int ask(struct options *o, const struct control_args *args, Alv__Control *control)
{
    struct err err = {""};
    struct join join;
    struct buf json = {0};
    enum status st = cli_join(o, &args->line, &join, &err);
    if (st == ST_OK) {
        st = admin_call(&join, control, (int)args->timeout * 1000, cli_stop_fd(), &json, &err);
        join_wipe(&join);
    }
    if (st == ST_OK)
        st = show(control->verb, &json, &err);
    buf_release(&json);
    return cli_end(o, st, &err);
}

/* What the commands below have in common: the same options, and one Control message to fill in. */
#define COMMON_ROWS                                                                                                 \
    LINE_ROWS(struct control_args),                                                                                 \
        OPTION(struct control_args, timeout, OPTION_U32, "timeout", 0, "SECONDS", "how long to wait for an answer", \
               .low = 1, .high = 3600, .why = "longer than any answer of a coordinator that is alive")
static const struct option_row plain_rows[] = {COMMON_ROWS};
static const struct option_row promote_rows[] = {
    COMMON_ROWS,
    OPTION(struct control_args, expect, OPTION_TEXT, "expect", 0, "N|none",
           "refuse (exit code 4) unless the alias is there now", .no_env = true),
};
static const struct option_row list_rows[] = {
    COMMON_ROWS,
    OPTION(struct control_args, from, OPTION_U64, "from", 0, "VERSION", "begin below this one; 0: with the newest",
           .no_env = true, .why = "what was published last is asked for most"),
};
static const struct option_row explain_rows[] = {
    COMMON_ROWS,
    OPTION(struct control_args, round, OPTION_FLAG, "round", 0, NULL,
           "the number is a round's: refused rounds have no version", .no_env = true),
};
static const struct option_row mark_rows[] = {
    COMMON_ROWS,
    OPTION(struct control_args, reason, OPTION_TEXT, "reason", 0, "TEXT", "why; subscribers and people are told",
           .no_env = true),
};
static const struct option_row rollback_rows[] = {
    COMMON_ROWS,
    OPTION(struct control_args, keep, OPTION_FLAG, "keep", 0, NULL,
           "what the versions left behind have learned stays done; else it is pending again", .no_env = true),
};

#define BEGIN(rows_, ...)                                                                                       \
    struct control_args args = {.timeout = TIMEOUT_S};                                                          \
    struct options o = {.rows = rows_, .n_rows = sizeof rows_ / sizeof rows_[0], .values = &args, __VA_ARGS__}; \
    struct err err = {""};                                                                                      \
    Alv__Control control = ALV__CONTROL__INIT;                                                                  \
    int code;                                                                                                   \
    if (!cli_begin(&o, argc, argv, &code))                                                                      \
        return code;
#define FAIL(text) return cli_end(&o, cli_usage(&o, &err, text), &err)
#define ASK(verb_)                                     \
    control.verb = ALV__CONTROL_VERB__CONTROL_##verb_; \
    return ask(&o, &args, &control)

/* "7" or "v7". */
static bool version_number(const char *text, uint64_t *out)
{
    return parse_number(text[0] == 'v' ? text + 1 : text, out);
}

int cmd_status(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "status", .usage = "",
          .summary = "Shows the line now: domains with backlog and losses, the round, workers, subscribers.",
          .examples = "alluvium status -C ./clinic\nalluvium status --join ops.join --json")
    if (o.n_rest)
        FAIL("it takes no arguments");
    ASK(STATUS);
}

int cmd_versions_list(int argc, char **argv)
{
    BEGIN(list_rows, .command = "versions list", .usage = "", .summary = "Lists what was published, with aliases.",
          .examples = "alluvium versions list -C ./clinic",
          .notes = "\"forgotten\" is the worst domain's loss less the loss at its reference, in nats per token.")
    if (o.n_rest)
        FAIL("it takes no arguments");
    control.number = args.from;
    ASK(VERSIONS);
}

int cmd_versions_show(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "versions show", .usage = "VERSION",
          .summary = "Shows one version: files with their hashes, parent, data, losses per domain.",
          .examples = "alluvium versions show 7 -C ./clinic")
    if (o.n_rest != 1 || !version_number(o.rest[0], &control.number))
        FAIL("it takes the number of a version");
    ASK(SHOW);
}

int cmd_versions_explain(int argc, char **argv)
{
    BEGIN(explain_rows, .command = "versions explain", .usage = "VERSION",
          .summary = "Explains the verdict on a version: each domain's difference with its bounds.",
          .examples = "alluvium versions explain 7 -C ./clinic\nalluvium versions explain --round 12 -C ./clinic")
    if (o.n_rest != 1 || !version_number(o.rest[0], &control.number))
        FAIL("it takes the number of a version");
    static char by_round[] = "round";
    if (args.round)
        control.name = by_round;
    ASK(EXPLAIN);
}

int cmd_versions_mark(int argc, char **argv)
{
    BEGIN(mark_rows, .command = "versions mark", .usage = "VERSION withdrawn|tainted|none",
          .summary = "Says of a version that it must not be used, or that something in it should not be.",
          .examples = "alluvium versions mark 7 withdrawn --reason 'repeats itself' -C ./clinic\n"
                      "alluvium versions mark 5 tainted --reason 'saw notes/8812' -C ./clinic\n"
                      "alluvium versions mark 5 none -C ./clinic",
          .notes =
              "A withdrawn version is not taken by subscribers any more; one that has it in place keeps it, and says "
              "so,\n"
              "until a higher number comes (alluvium rollback). A tainted one is still taken. none: both marks go.")
    if (o.n_rest != 2 || !version_number(o.rest[0], &control.number))
        FAIL("it takes the number of a version and a mark");
    if (strcmp(o.rest[1], "withdrawn") && strcmp(o.rest[1], "tainted") && strcmp(o.rest[1], "none"))
        FAIL("a mark is withdrawn, tainted or none");
    control.name = o.rest[1];
    if (args.reason)
        control.value = (char *)(uintptr_t)args.reason;
    ASK(MARK);
}

int cmd_promote(int argc, char **argv)
{
    BEGIN(promote_rows, .command = "promote", .usage = "VERSION ALIAS",
          .summary = "Points an alias (stable, canary, ...) at a version.",
          .examples = "alluvium promote 7 stable -C ./clinic\nalluvium promote 7 stable --expect 6 -C ./clinic")
    if (o.n_rest != 2 || !version_number(o.rest[0], &control.number))
        FAIL("it takes the number of a version and an alias");
    control.name = o.rest[1];
    if (args.expect) {
        control.has_expect = true;
        if (strcmp(args.expect, "none") && !version_number(args.expect, &control.expect))
            FAIL("--expect takes a number or \"none\"");
    }
    ASK(PROMOTE);
}

int cmd_rollback(int argc, char **argv)
{
    BEGIN(rollback_rows, .command = "rollback", .usage = "VERSION",
          .summary = "Publishes an earlier version's content again, under a new and higher number.",
          .examples = "alluvium rollback 6 -C ./clinic",
          .notes = "Subscribers never go back to a lower number; they follow the new one.")
    if (o.n_rest != 1 || !version_number(o.rest[0], &control.number))
        FAIL("it takes the number of a version");
    control.keep = args.keep;
    ASK(ROLLBACK);
}

int cmd_trace(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "trace", .usage = "DOMAIN/RECORD | VERSION",
          .summary = "Which versions saw a record; or, for a number, which data is in a version.",
          .examples = "alluvium trace notes/8812 -C ./clinic\nalluvium trace 7 -C ./clinic")
    if (o.n_rest != 1 ||
        (!version_number(o.rest[0], &control.number) && !cli_record(o.rest[0], &control.domain, &control.record)))
        FAIL("it takes DOMAIN/RECORD or the number of a version");
    ASK(TRACE);
}

/* Each setting is a request of its own, in the order given; the first refusal ends it. */
int cmd_domains_set(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "domains set", .usage = "NAME [SETTING=VALUE...]",
          .summary = "Makes a domain, or changes its settings.",
          .examples = "alluvium domains set notes -C ./clinic\n"
                      "alluvium domains set notes forget_budget=0.01 backlog_bytes=268435456 -C ./clinic")
    if (o.n_rest < 1)
        FAIL("it takes the name of a domain");
    for (int i = 1; i < o.n_rest; i++)
        if (!strchr(o.rest[i], '=') || o.rest[i][0] == '=')
            FAIL("a setting is written NAME=VALUE");
    control.verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
    control.domain = o.rest[0];
    struct join join;
    struct buf json = {0};
    enum status st = cli_join(&o, &args.line, &join, &err);
    for (int i = 1; (i < o.n_rest || i == 1) && st == ST_OK; i++) {
        if (i < o.n_rest) {
            char *equals = strchr(o.rest[i], '=');
            *equals = 0;
            control.name = o.rest[i];
            control.value = equals + 1;
        }
        buf_clear(&json);
        st = admin_call(&join, &control, (int)args.timeout * 1000, cli_stop_fd(), &json, &err);
    }
    if (st == ST_OK)
        st = show(control.verb, &json, &err);
    join_wipe(&join);
    buf_release(&json);
    return cli_end(&o, st, &err);
}

int cmd_quarantine_list(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "quarantine list", .usage = "",
          .summary = "Lists the data that was set aside, and why.", .examples = "alluvium quarantine list -C ./clinic")
    if (o.n_rest)
        FAIL("it takes no arguments");
    ASK(QUARANTINE_LIST);
}

int cmd_quarantine_release(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "quarantine release", .usage = "ID",
          .summary = "Appends the data again, to be trained at new offsets.",
          .examples = "alluvium quarantine release 3 -C ./clinic")
    if (o.n_rest != 1 || !parse_number(o.rest[0], &control.number))
        FAIL("it takes an id from: alluvium quarantine list");
    ASK(QUARANTINE_RELEASE);
}

int cmd_quarantine_drop(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "quarantine drop", .usage = "ID", .summary = "Leaves the data out for good.",
          .examples = "alluvium quarantine drop 3 -C ./clinic")
    if (o.n_rest != 1 || !parse_number(o.rest[0], &control.number))
        FAIL("it takes an id from: alluvium quarantine list");
    ASK(QUARANTINE_DROP);
}

int cmd_round(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "round", .usage = "",
          .summary = "Starts a round now with what is pending, instead of waiting for more text.",
          .examples = "alluvium round -C ./clinic")
    if (o.n_rest)
        FAIL("it takes no arguments");
    ASK(ROUND);
}

int cmd_resume(int argc, char **argv)
{
    BEGIN(plain_rows, .command = "resume", .usage = "", .summary = "Leases again after an alarm stopped it.",
          .examples = "alluvium resume -C ./clinic",
          .notes = "Look first at: alluvium status, alluvium versions explain")
    if (o.n_rest)
        FAIL("it takes no arguments");
    ASK(RESUME);
}
