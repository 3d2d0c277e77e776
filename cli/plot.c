/* alluvium plot: the versions of a line as one SVG. */
#include <stdio.h>
#include <string.h>

#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "base/check.h"
#include "cli/chart.h"
#include "cli/cli.h"
#include "cli/print.h"
#include "client/admin.h"

enum { TIMEOUT_S = 30, PAGE = 250, FILE_MAX = 256 << 20 };

struct args {
    struct line_args line;
    const char *from, *out;
    uint32_t last, timeout;
};

static const struct option_row rows[] = {
    LINE_ROWS(struct args),
    OPTION(struct args, from, OPTION_TEXT, "from", 0, "FILE",
           "what `alluvium versions list --json` printed, instead of a line; - for standard input", .no_env = true),
    OPTION(struct args, out, OPTION_TEXT, "out", 'o', "FILE", "where to; else to standard output", .no_env = true),
    OPTION(struct args, last, OPTION_U32, "last", 0, "N", "newest versions to show", .low = 1,
           .high = CHART_VERSIONS_MAX, .why = "columns that can still be told apart"),
    OPTION(struct args, timeout, OPTION_U32, "timeout", 0, "SECONDS", "how long to wait for an answer", .low = 1,
           .high = 3600, .why = "no answer takes longer on a line that is well"),
};

/* The list out of what the verb VERSIONS answers, or a bare list; a new reference. */
static enum status parse(const struct buf *text, const char *where, json_t **list, json_t **next, struct err *err)
{
    json_error_t error;
    json_t *root = json_loadb((const char *)text->data, text->len, 0, &error);
    if (!root)
        return err_set(err, ST_BAD_DATA, "%s:%d: no JSON: %s", where, error.line, error.text);
    json_t *versions = json_is_object(root) ? json_object_get(root, "versions") : root;
    enum status st =
        json_is_array(versions) ? ST_OK : err_set(err, ST_BAD_DATA, "%s: there is no list of versions in it", where);
    if (!st) {
        *list = json_incref(versions);
        *next = json_incref(json_object_get(root, "next"));
    }
    json_decref(root);
    return st;
}

static enum status read_stdin(struct buf *out, struct err *err)
{
    size_t n;
    do {
        buf_reserve(out, 1 << 16);
        n = fread(out->data + out->len, 1, out->cap - out->len, stdin);
        out->len += n;
    } while (n && out->len <= FILE_MAX);
    if (ferror(stdin) || out->len > FILE_MAX)
        return err_set(err, ferror(stdin) ? ST_IO : ST_LIMIT, "standard input cannot be read, or is over %d bytes",
                       FILE_MAX);
    return ST_OK;
}

static enum status from_file(const char *path, uint32_t last, json_t **out, struct err *err)
{
    struct buf text = {0};
    json_t *list = NULL, *next = NULL;
    bool pipe = !strcmp(path, "-");
    enum status st = pipe ? read_stdin(&text, err) : file_read(path, FILE_MAX, &text, err);
    if (!st)
        st = parse(&text, pipe ? "standard input" : path, &list, &next, err);
    for (size_t i = 0; !st && i < json_array_size(list) && i < last; i++)
        json_array_append(*out, json_array_get(list, i));
    json_decref(list);
    json_decref(next);
    buf_release(&text);
    return st;
}

/* Page after page, until there are enough or no more. */
static enum status from_line(const struct options *o, const struct args *args, json_t **out, struct err *err)
{
    struct join join;
    struct buf text = {0};
    Alv__Control control = ALV__CONTROL__INIT;
    char size[16];
    snprintf(size, sizeof size, "%d", PAGE);
    control.verb = ALV__CONTROL_VERB__CONTROL_VERSIONS;
    control.value = size;
    enum status st = cli_join(o, &args->line, &join, err);
    if (st)
        return st;
    for (bool more = true; !st && more;) {
        json_t *list = NULL, *next = NULL;
        buf_clear(&text);
        st = admin_call(&join, &control, (int)args->timeout * 1000, cli_stop_fd(), &text, err);
        if (!st)
            st = parse(&text, "the coordinator's answer", &list, &next, err);
        for (size_t i = 0; !st && i < json_array_size(list) && json_array_size(*out) < args->last; i++)
            json_array_append(*out, json_array_get(list, i));
        more = json_is_integer(next) && json_array_size(*out) < args->last;
        control.number = more ? (uint64_t)json_integer_value(next) : 0;
        json_decref(list);
        json_decref(next);
    }
    join_wipe(&join);
    buf_release(&text);
    return st;
}

static enum status deliver(const struct args *args, const struct buf *svg, size_t versions, struct err *err)
{
    if (!args->out)
        return fwrite(svg->data, 1, svg->len, stdout) == svg->len ? ST_OK
                                                                  : err_set(err, ST_IO, "standard output is gone");
    enum status st = file_write_durable(args->out, svg->data, svg->len, 0644, err);
    if (!st && common.json)
        print_json(json_pack("{s:s,s:I,s:I}", "file", args->out, "versions", (json_int_t)versions, "bytes",
                             (json_int_t)svg->len));
    else if (!st)
        print_note("plot", "%s: %zu versions", args->out, versions);
    return st;
}

int cmd_plot(int argc, char **argv)
{
    struct args args = {.last = 100, .timeout = TIMEOUT_S};
    struct err err = {""};
    struct buf svg = {0};
    int code;
    struct options o = {
        .command = "plot",
        .usage = "",
        .summary = "Draws the versions of a line: loss curves, what was learnt by domain, learning against forgetting.",
        .examples = "alluvium plot -C ./clinic --out clinic.svg\n"
                    "alluvium versions list --json -C ./clinic | alluvium plot --from - >clinic.svg",
        .notes = "One SVG that needs nothing else; light or dark as its reader's screen is. docs/metrics.md has the "
                 "formulas.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    json_t *versions = json_array();
    enum status st = ST_OK;
    if (o.n_rest)
        st = cli_usage(&o, &err, "it takes no arguments");
    else if (common.json && !args.out)
        st = cli_usage(&o, &err, "with --json the picture needs a place of its own: --out FILE");
    else
        st = args.from ? from_file(args.from, args.last, &versions, &err) : from_line(&o, &args, &versions, &err);
    if (!st)
        st = chart_draw(versions, &svg, &err);
    if (!st)
        st = deliver(&args, &svg, json_array_size(versions), &err);
    json_decref(versions);
    buf_release(&svg);
    return cli_end(&o, st, &err);
}
