/* cli.h - what every command shares: its table row, the common options, how it begins and ends.
 *
 * A command is one function in one file: parse, call, print. Standard output is for results, standard error for
 * messages; --json makes the result one JSON document (or one object a line, where things happen over time) and an error
 * one JSON object on standard error. The exit code is status_exit_code() (docs/reference/exit-codes.md).
 */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <jansson.h>

#include "base/options.h"
#include "net/join.h"

typedef int command_fn(int argc, char **argv);

struct command {
    const char *name; /* "push", "keys add" */
    command_fn *run;
    const char *summary; /* for the list of commands */
};

extern const struct command commands[];
extern const unsigned n_commands;

struct common {
    bool json, quiet, show_settings;
    unsigned log; /* enum log_level */
};
extern struct common common;

/* Parses. False: the command ends now with *code (help, settings shown, or an error that was printed). */
bool cli_begin(struct options *o, int argc, char **argv, int *code);
/* Prints the error unless ST_OK, releases the options, gives the exit code. */
int cli_end(struct options *o, enum status status, const struct err *err);
/* For cli_end: the number of arguments is wrong. */
enum status cli_usage(const struct options *o, struct err *err, const char *what);

/* A file descriptor that becomes readable at SIGTERM or SIGINT; a second signal ends the process at once. */
int cli_stop_fd(void);

/* Which line: --join FILE, or -C DIR with its operator.join; the one from the stronger source, else ./operator.join. */
struct line_args {
    const char *directory, *join;
};
#define LINE_ROWS(struct_)                                                \
    OPTION(struct_, line.directory, OPTION_TEXT, "directory", 'C', "DIR", \
           "the line's directory: its operator.join is used"),            \
        OPTION(struct_, line.join, OPTION_TEXT, "join", 0, "FILE",        \
               "join file, elsewhere than on the coordinator's machine")
enum status cli_join(const struct options *o, const struct line_args *args, struct join *out, struct err *err);

command_fn cmd_versions_mark, cmd_keys_rotate, cmd_backup, cmd_restore;

bool parse_number(const char *text, uint64_t *out); /* all digits */
/* "notes/8812": the domain ends at the first slash, for names of domains hold none. Cuts `text`. */
bool cli_record(char *text, char **domain, char **record);

command_fn cmd_init, cmd_coordinator, cmd_keys_add, cmd_keys_list, cmd_keys_revoke, cmd_worker, cmd_push, cmd_subscribe,
    cmd_versions_list, cmd_versions_show, cmd_versions_explain, cmd_promote, cmd_rollback, cmd_status, cmd_trace,
    cmd_retract, cmd_domains_set, cmd_quarantine_list, cmd_quarantine_release, cmd_quarantine_drop, cmd_resume,
    cmd_round, cmd_train, cmd_eval, cmd_generate, cmd_plot, cmd_replay, cmd_anchor;

#endif
