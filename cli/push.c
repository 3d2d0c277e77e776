/* alluvium push: files, directories or standard input into a domain. */
#include "client/push.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/print.h"
#include "client/source.h"

struct args {
    struct line_args line;
    const char *source, *text_field, *id_field, *group_field;
    uint32_t window, connect;
    bool restart;
};

static const struct option_row rows[] = {
    LINE_ROWS(struct args),
    OPTION(struct args, text_field, OPTION_TEXT, "text-field", 0, "NAME", "field of the text in JSON lines",
           .why = "what most data sets call it"),
    OPTION(struct args, id_field, OPTION_TEXT, "id-field", 0, "NAME",
           "field of the id; when given, a line without it is refused", .why = "what most data sets call it"),
    OPTION(struct args, group_field, OPTION_TEXT, "group-field", 0, "NAME",
           "field of the group: records of one document are held out together",
           .why = "few records have one; without, a record is its own document"),
    OPTION(struct args, source, OPTION_TEXT, "source", 0, "NAME",
           "the stream's name instead of the path (one path only)", .no_env = true),
    OPTION(struct args, restart, OPTION_FLAG, "restart", 0, NULL,
           "a source that changed since its last push is pushed again, under a new name", .no_env = true),
    OPTION(struct args, window, OPTION_U32, "window", 0, "N", "batches in flight", .low = 1, .high = PUSH_WINDOW_MAX,
           .why = "hides the way there and back; more only holds more memory"),
    OPTION(struct args, connect, OPTION_U32, "connect-timeout", 0, "SECONDS",
           "give up when there is no first connection", .low = 1, .high = 86400,
           .why = "longer than a coordinator takes to start"),
};

struct run {
    struct options *o;
    struct progress bar;
    struct source *source;
    uint64_t bytes_before, bytes_all; /* of the sources: those before this one, all of them; 0: not known */
    uint64_t refused_here, shown;
    enum push_state told;
};

static void on_refused(void *user, const char *where, const char *why)
{
    enum { SHOWN_MAX = 20 };
    struct run *run = user;
    progress_end(&run->bar);
    if (common.json)
        print_json_line(json_pack("{s:s,s:s,s:s}", "event", "refused", "where", where, "why", why));
    else if (run->shown++ < SHOWN_MAX || !common.quiet)
        fprintf(stderr, "%s: refused: %s\n", where, why);
}

static void on_refused_here(void *user, const char *where, const char *why)
{
    ((struct run *)user)->refused_here++;
    on_refused(user, where, why);
}

static void on_progress(void *user, enum push_state state, const struct push_totals *totals)
{
    static const char *const words[] = {"connecting", "comparing with what is stored", "", "asked to wait"};
    struct run *run = user;
    struct source_progress source = {0};
    char extra[120];
    if (run->source)
        source_progress(run->source, &source);
    if (state == PUSH_WAITING && run->told != PUSH_WAITING)
        print_note("push", "the coordinator asks to wait: %s (see: alluvium status)", totals->why);
    run->told = state;
    snprintf(extra, sizeof extra, "%llu records%s%s", (unsigned long long)(totals->records + totals->resumed),
             *words[state] ? ", " : "", words[state]);
    progress_draw(&run->bar, run->bytes_before + source.bytes_read, run->bytes_all, extra);
}

static enum status next(void *user, uint32_t records_max, size_t bytes_max, struct push_records *records, bool *end,
                        struct err *err)
{
    return source_read(((struct run *)user)->source, records_max, bytes_max, records, end, err);
}

static int wait_fd(void *user)
{
    return source_fd(((struct run *)user)->source);
}

static void where(void *user, struct push_place place, char *out, size_t size)
{
    source_where(((struct run *)user)->source, place, out, size);
}

static enum status push_once(struct run *run, struct pusher *pusher, const struct source_options *options,
                             const char *path, const char *name, struct err *err)
{
    struct push_input input = {.name = name, .next = next, .fd = wait_fd, .where = where, .user = run};
    uint64_t refused_before = run->refused_here;
    enum status st = source_open(path, options, &run->source, err);
    if (st != ST_OK)
        return st;
    st = pusher_push(pusher, &input, err);
    struct source_progress progress;
    source_progress(run->source, &progress);
    source_close(&run->source);
    if (st == ST_OK)
        run->bytes_before += progress.bytes_read;
    else if (st == ST_CONFLICT)
        run->refused_here = refused_before; /* they will be read, and named, again */
    return st;
}

/* A changed source gets a name of its own when asked: what is known already is dropped as duplicate there. */
static enum status push_path(struct run *run, struct pusher *pusher, const struct args *args,
                             const struct source_options *options, const char *path, struct err *err)
{
    const char *name = args->source ? args->source : strcmp(path, "-") ? path : "stdin";
    enum status st = push_once(run, pusher, options, path, name, err);
    if (st != ST_CONFLICT || !args->restart || !strcmp(path, "-"))
        return st;
    char fresh[LIMIT_SOURCE_BYTES + 64], stamp[32];
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &utc);
    snprintf(fresh, sizeof fresh, "%s@%s", name, stamp);
    progress_end(&run->bar);
    print_note("push", "%s changed: pushed again as %s", path, fresh);
    return push_once(run, pusher, options, path, fresh, err);
}

static void print_totals(const struct push_totals *t, uint64_t refused, const char *domain, double s)
{
    if (common.json) {
        print_json_line(json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:f}", "event", "done", "domain",
                                  domain, "sources", (json_int_t)t->sources, "already_stored", (json_int_t)t->resumed,
                                  "records", (json_int_t)t->records, "accepted", (json_int_t)t->accepted, "duplicates",
                                  (json_int_t)t->duplicates, "superseded", (json_int_t)t->superseded, "refused",
                                  (json_int_t)refused, "answers_lost", (json_int_t)t->unknown, "bytes",
                                  (json_int_t)t->bytes, "seconds", s));
        return;
    }
    char bytes[32];
    human_bytes(t->bytes, bytes, sizeof bytes);
    printf("%s: %llu records stored (%s) in %.1f s: %llu accepted, %llu duplicates, %llu replace earlier ones", domain,
           (unsigned long long)t->records, bytes, s, (unsigned long long)t->accepted, (unsigned long long)t->duplicates,
           (unsigned long long)t->superseded);
    if (t->resumed)
        printf(", %llu were there before", (unsigned long long)t->resumed);
    if (refused)
        printf(", %llu refused", (unsigned long long)refused);
    putchar('\n');
}

static enum status run_push(struct options *o, const struct args *args, struct err *err)
{
    struct run run = {.o = o, .bar = {.what = "push", .unit = UNIT_BYTES}};
    const struct source_options source_options = {
        .text_field = args->text_field,
        .id_field = args->id_field,
        .group_field = args->group_field,
        .id_required = options_origin(o, "id-field") != ORIGIN_DEFAULT,
        .refused = on_refused_here,
        .user = &run,
    };
    if (o->n_rest < 2)
        return cli_usage(o, err, "it takes a domain and what to push (a file, a directory or -)");
    if (args->source && o->n_rest > 2)
        return err_set(err, ST_USAGE, "--source names one stream, but %d paths are given", o->n_rest - 1);
    for (int i = 1; i < o->n_rest; i++) { /* a slip in the last path is told before anything is sent */
        struct source *source;
        enum status st = strcmp(o->rest[i], "-") ? source_open(o->rest[i], &source_options, &source, err) : ST_EMPTY;
        if (st == ST_EMPTY)
            continue;
        if (st != ST_OK)
            return st;
        struct source_progress progress;
        source_progress(source, &progress);
        run.bytes_all += progress.bytes_total;
        source_close(&source);
    }
    struct join join;
    enum status st = cli_join(o, &args->line, &join, err);
    if (st != ST_OK)
        return st;
    struct push_options options = {
        .join = &join,
        .domain = o->rest[0],
        .window = args->window,
        .connect_ms = (int)args->connect * 1000,
        .stop_fd = cli_stop_fd(),
        .refused = on_refused,
        .progress = on_progress,
        .user = &run,
    };
    struct pusher *pusher = NULL;
    double began = clock_s();
    st = pusher_open(&options, &pusher, err);
    for (int i = 1; i < o->n_rest && st == ST_OK; i++)
        st = push_path(&run, pusher, args, &source_options, o->rest[i], err);
    progress_end(&run.bar);
    if (pusher) {
        uint64_t refused = pusher_totals(pusher)->refused + run.refused_here;
        print_totals(pusher_totals(pusher), refused, o->rest[0], clock_s() - began);
        if (st == ST_OK && refused)
            st = err_set(err, ST_BAD_DATA, "%llu records were refused (named above); all others are stored",
                         (unsigned long long)refused);
        else if (st == ST_STOPPED)
            err_set(err, st, "stopped; what is counted above is stored, and the same command goes on from there");
    }
    pusher_close(&pusher);
    join_wipe(&join);
    return st;
}

int cmd_push(int argc, char **argv)
{
    struct args args = {
        .text_field = "text", .id_field = "id", .group_field = "group", .window = PUSH_WINDOW, .connect = 15};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "push",
        .usage = "DOMAIN FILE|DIR|-...",
        .summary = "Pushes text into a domain. Returns when all of it is stored for good.",
        .examples = "alluvium push -C ./clinic notes notes/*.jsonl --id-field note_id\n"
                    "alluvium push --join intake.join code ./src\n"
                    "journal --json | alluvium push --join intake.join journal -",
        .notes = "*.jsonl and - hold one JSON object a line: {\"text\": ...} or {\"messages\": [...]} (a chat), with "
                 "an id and a\n"
                 "group if you like. Any other file is one record, its id the name as given; a directory is its files "
                 "in the\n"
                 "order of their names, hidden ones left out. A push that was interrupted goes on where it stopped "
                 "when the\n"
                 "same command is given again; what was pushed before is recognised.\n"
                 "Exit code 65: some records were refused (each is named), all others are stored.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = run_push(&o, &args, &err);
    return cli_end(&o, st, &err);
}
