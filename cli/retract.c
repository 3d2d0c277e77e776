/* alluvium retract: withdraws a record, then says what is left of it and where. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "alluvium.pb-c.h"
#include "cli/print.h"
#include "client/admin.h"

enum { TIMEOUT_S = 30, LISTED_MAX = 20 };

struct retract_args {
    struct line_args line;
    uint32_t timeout;
    bool taint;
};

static const struct option_row rows[] = {
    LINE_ROWS(struct retract_args),
    OPTION(struct retract_args, timeout, OPTION_U32, "timeout", 0, "SECONDS", "how long to wait for an answer",
           .low = 1, .high = 3600, .why = "longer than any answer of a coordinator that is alive"),
    OPTION(struct retract_args, taint, OPTION_FLAG, "taint", 0, NULL,
           "mark every version that saw it as tainted, for all who use them to see", .no_env = true),
};

/* Asks and parses. */
static enum status ask(const struct join *join, const struct retract_args *args, Alv__Control *control, json_t **out,
                       struct err *err)
{
    struct buf json = {0};
    json_error_t error;
    enum status st = admin_call(join, control, (int)args->timeout * 1000, cli_stop_fd(), &json, err);
    if (st == ST_OK && !(*out = json_loadb((const char *)json.data, json.len, 0, &error)))
        st = err_set(err, ST_BAD_DATA, "the coordinator's answer is not JSON: %s", error.text);
    buf_release(&json);
    return st;
}

static uint64_t count(const json_t *object, const char *name)
{
    return (uint64_t)json_integer_value(json_object_get(object, name));
}

/* Who has read the trace knows the record; who is told of the mark need not. */
static enum status taint(const struct join *join, const struct retract_args *args, const json_t *trace, struct err *err)
{
    size_t i;
    json_t *version;
    enum status st = ST_OK;
    json_array_foreach(json_object_get(trace, "seen_by"), i, version)
    {
        Alv__Control mark = ALV__CONTROL__INIT;
        json_t *answer = NULL;
        mark.verb = ALV__CONTROL_VERB__CONTROL_MARK;
        mark.number = (uint64_t)json_integer_value(version);
        mark.name = (char[]){"tainted"};
        mark.value = (char[]){"it saw a record that was retracted"};
        if (st == ST_OK)
            st = ask(join, args, &mark, &answer, err);
        json_decref(answer);
    }
    return st;
}

static void print_holders(const json_t *retraction)
{
    const json_t *list = json_object_get(retraction, "holders");
    uint64_t total = count(retraction, "holders_total"), wanted = count(retraction, "exclusion_seq");
    printf("workers   ");
    if (!wanted)
        printf("it was held out: no worker kept it\n");
    else if (!total)
        printf("none holds it any more\n");
    else
        printf("%" PRIu64 " may hold it until they report exclusion %" PRIu64 " applied:\n", total, wanted);
    size_t i;
    json_t *h;
    json_array_foreach(list, i, h)
    {
        char when[32] = "";
        time_t at = (time_t)count(h, "reported_s");
        struct tm tm;
        if (gmtime_r(&at, &tm))
            strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        if (i < LISTED_MAX)
            printf("          %s %.8s at %" PRIu64 ", %s\n", json_string_value(json_object_get(h, "key")),
                   json_string_value(json_object_get(h, "instance")), count(h, "applied"), when);
    }
}

static void print_versions(const json_t *trace, bool tainted)
{
    const json_t *seen = json_object_get(trace, "seen_by");
    size_t n = json_array_size(seen);
    printf("versions  ");
    if (!n) {
        printf("none saw it\n");
        return;
    }
    for (size_t i = 0; i < n && i < LISTED_MAX; i++)
        printf("%s%" PRIu64, i ? ", " : "", (uint64_t)json_integer_value(json_array_get(seen, i)));
    printf("%s saw it, directly or through their ancestors; their weights keep what they learnt\n",
           n > LISTED_MAX ? ", ..." : "");
    printf("          %s\n          to be rid of that: alluvium rollback %" PRIu64 ", the newest that did not\n",
           tainted ? "they are marked as tainted"
                   : "to mark them for all who use them: alluvium versions mark N tainted",
           count(trace, "clean"));
}

static void print_people(const Alv__Control *control, const json_t *answer, const json_t *trace, bool tainted)
{
    const json_t *retraction = json_object_get(trace, "retraction");
    printf("%s/%s is retracted: %" PRIu64 " segments; they are never trained or replayed again\n", control->domain,
           control->record, count(answer, "segments"));
    printf("text      deleted from the log, %s\n", json_is_true(json_object_get(retraction, "purged"))
                                                       ? "and gone from the files of its database"
                                                       : "the files of its database are being rewritten");
    print_holders(retraction);
    print_versions(trace, tainted);
}

int cmd_retract(int argc, char **argv)
{
    struct retract_args args = {.timeout = TIMEOUT_S};
    struct options o = {.rows = rows,
                        .n_rows = sizeof rows / sizeof rows[0],
                        .values = &args,
                        .command = "retract",
                        .usage = "DOMAIN/RECORD",
                        .summary = "Withdraws a record: it is deleted, and never trained or replayed again.",
                        .examples = "alluvium retract notes/8812 -C ./clinic\n"
                                    "alluvium retract notes/8812 --taint -C ./clinic",
                        .notes =
                            "Says which workers have yet to erase it and which versions saw it; later: alluvium trace"};
    Alv__Control control = ALV__CONTROL__INIT;
    struct join join;
    struct err err = {""};
    json_t *answer = NULL, *trace = NULL;
    int code;
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    if (o.n_rest != 1 || !cli_record(o.rest[0], &control.domain, &control.record))
        return cli_end(&o, cli_usage(&o, &err, "it takes DOMAIN/RECORD"), &err);
    enum status st = cli_join(&o, &args.line, &join, &err);
    if (st != ST_OK)
        return cli_end(&o, st, &err);
    control.verb = ALV__CONTROL_VERB__CONTROL_RETRACT;
    st = ask(&join, &args, &control, &answer, &err);
    if (st == ST_OK) {
        control.verb = ALV__CONTROL_VERB__CONTROL_TRACE;
        st = ask(&join, &args, &control, &trace, &err);
    }
    if (st == ST_OK && args.taint)
        st = taint(&join, &args, trace, &err);
    join_wipe(&join);
    if (st == ST_OK && common.json) {
        json_object_set(answer, "trace", trace);
        print_json(json_incref(answer));
    } else if (st == ST_OK) {
        print_people(&control, answer, trace, args.taint);
    }
    json_decref(answer);
    json_decref(trace);
    return cli_end(&o, st, &err);
}
