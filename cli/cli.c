#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/print.h"
#include "coordinator/dir.h"

struct common common = {.log = LOG_WARN};

static const struct option_row common_rows[] = {
    OPTION(struct common, json, OPTION_FLAG, "json", 0, NULL, "results as JSON, an error as a JSON object"),
    OPTION(struct common, quiet, OPTION_FLAG, "quiet", 'q', NULL, "no progress and no remarks"),
    OPTION(struct common, log, OPTION_CHOICE, "log", 0, "error|warn|info|debug", "what is logged on standard error"),
    OPTION(struct common, show_settings, OPTION_FLAG, "show-settings", 0, NULL,
           "print every option's value and where it came from, and end", .no_env = true),
};

static const char *const type_names[] = {
    [OPTION_FLAG] = "flag", [OPTION_TEXT] = "text",   [OPTION_U32] = "number",    [OPTION_U64] = "number",
    [OPTION_F64] = "real",  [OPTION_BYTES] = "bytes", [OPTION_CHOICE] = "choice", [OPTION_LIST] = "list"};

static json_t *describe_option(const struct options *o, unsigned i)
{
    const struct option_row *row = options_row(o, i);
    char letter[2] = {row->letter, 0}, variable[OPTION_VARIABLE_SIZE];
    struct buf value = {0};
    options_value(o, i, &value);
    json_t *out = json_pack("{s:s,s:s,s:s,s:s,s:s*,s:s,s:s*,s:s*,s:b}", "name", row->name, "letter", letter, "type",
                            type_names[row->type], "help", row->help, "argument", row->argument, "default",
                            value.len ? buf_cstr(&value) : "", "why", row->why, "variable",
                            options_variable(row, variable) ? variable : NULL, "common", (int)(i >= o->n_rows));
    if (row->low != 0 || row->high != 0)
        json_object_set_new(out, "range", json_pack("[f,f]", row->low, row->high));
    buf_release(&value);
    return out;
}

/* --help --json: the tables that man pages, completions and the example settings file are made from. */
static void print_description(const struct options *o)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < options_count(o); i++)
        if (*options_row(o, i)->help)
            json_array_append_new(list, describe_option(o, i));
    print_json(json_pack("{s:s,s:s,s:s,s:s,s:s*,s:s,s:o}", "command", o->command, "usage", o->usage, "summary",
                         o->summary, "examples", o->examples ? o->examples : "", "notes", o->notes, "config",
                         o->config_path, "options", list));
}

bool cli_begin(struct options *o, int argc, char **argv, int *code)
{
    struct err err;
    o->common = common_rows;
    o->n_common = sizeof common_rows / sizeof common_rows[0];
    o->common_values = &common;
    o->config_path = "/etc/alluvium/alluvium.conf";
    enum status st = options_parse(o, argc, argv, &err);
    for (int i = 1; i < argc && (st != ST_OK || o->help); i++) /* help and wrong options are told as asked, too */
        common.json = common.json || !strcmp(argv[i], "--json");
    struct buf text = {0};
    if (st == ST_OK && o->help && common.json) {
        common.json = false; /* as it is by default */
        print_description(o);
        *code = 0;
    } else if (st == ST_OK && o->help) {
        options_help(o, "alluvium", &text);
        *code = 0;
    } else if (st == ST_OK && common.show_settings) {
        options_show(o, &text);
        *code = 0;
    } else if (st == ST_OK) {
        log_set_level((enum log_level)common.log);
        return true;
    } else {
        print_error(o->command, st, err.text);
        *code = status_exit_code(st);
    }
    if (text.len)
        fwrite(text.data, 1, text.len, stdout);
    buf_release(&text);
    options_release(o);
    return false;
}

int cli_end(struct options *o, enum status status, const struct err *err)
{
    options_release(o);
    if (status != ST_OK)
        print_error(o->command, status, err->text[0] ? err->text : status_name(status));
    if (fflush(stdout) != 0 && status == ST_OK) {
        print_error(o->command, ST_IO, "standard output cannot be written");
        status = ST_IO;
    }
    return status_exit_code(status);
}

enum status cli_usage(const struct options *o, struct err *err, const char *what)
{
    return err_set(err, ST_USAGE, "%s; usage: alluvium %s %s (see --help)", what, o->command, o->usage);
}

bool parse_number(const char *text, uint64_t *out)
{
    char *end;
    if (!*text || strspn(text, "0123456789") != strlen(text))
        return false;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno)
        return false;
    *out = v;
    return true;
}

/* ---- stopping -------------------------------------------------------------------------------------------------------- */

static int stop_pipe[2] = {-1, -1};
static volatile sig_atomic_t stops;

static void on_signal(int signal_number)
{
    int kept = errno;
    if (stops++)
        _exit(128 + signal_number);
    if (write(stop_pipe[1], "", 1) < 0)
        _exit(128 + signal_number);
    errno = kept;
}

int cli_stop_fd(void)
{
    if (stop_pipe[0] < 0 && pipe2(stop_pipe, O_CLOEXEC | O_NONBLOCK) == 0) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigaction(SIGTERM, &action, NULL);
        sigaction(SIGINT, &action, NULL);
    }
    return stop_pipe[0];
}

/* ---- which line -------------------------------------------------------------------------------------------------------- */

enum status cli_join(const struct options *o, const struct line_args *args, struct join *out, struct err *err)
{
    char path[4200];
    const char *dir = args->directory, *join = args->join;
    if (dir && join) {
        enum option_origin d = options_origin(o, "directory"), j = options_origin(o, "join");
        if (d == j)
            return err_set(err, ST_USAGE, "both -C (%s) and --join (%s) are given; one of them says which line", dir,
                           join);
        if (d > j)
            join = NULL;
    }
    if (!join) {
        snprintf(path, sizeof path, "%s/operator.join", dir ? dir : ".");
        if (!dir && access(path, F_OK) != 0)
            return err_set(err, ST_USAGE,
                           "which line? Give -C DIR (the line's directory, on the coordinator's machine) "
                           "or --join FILE (made by: alluvium keys add)");
        enum status st = join_read(path, out, err); /* where the line is may have changed since this file was made */
        if (st != ST_OK)
            return st;
        st = line_dir_where(dir ? dir : ".", out->host, &out->port, err);
        return st == ST_NOT_FOUND ? ST_OK : st; /* the file alone, copied here */
    }
    return join_read(join, out, err);
}

bool cli_record(char *text, char **domain, char **record)
{
    char *slash = strchr(text, '/');
    if (!slash || slash == text || !slash[1])
        return false;
    *slash = 0;
    *domain = text;
    *record = slash + 1;
    return true;
}
