/* options.h - command lines from a table: one row per option says its names, type, default, help and environment.
 *
 * A value comes from the first of: the command line, the environment (ALLUVIUM_<NAME>, dashes as underscores), the
 * configuration file, the default; options_origin() says which. The values live in the command's own struct: a row
 * holds the offset of its field, and what the field holds before parsing is the default that --help shows.
 *
 *     struct args { const char *base; uint32_t steps; bool json; } args = {.steps = 64};
 *     static const struct option_row rows[] = {
 *         OPTION(struct args, base, OPTION_TEXT, "base", 'b', "PATH", "the base model"),
 *         OPTION(struct args, steps, OPTION_U32, "steps", 0, "N", "optimiser steps", .low = 1, .high = 1e6),
 *     };
 *
 * The configuration file is INI: keys before the first section are for every command and must be among the common rows;
 * `[push]` is for that command. An unknown key is an error with its line. Sections of other commands are passed over.
 * No file in the working directory is read unasked: it could name a hook to run.
 *
 * Uses getopt_long, so one thread. Nothing is printed; help comes as text.
 */
#ifndef BASE_OPTIONS_H
#define BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"

enum option_type {
    OPTION_FLAG,   /* bool; no argument; in the environment and the file 1/0, true/false, yes/no, on/off */
    OPTION_TEXT,   /* const char * */
    OPTION_U32,    /* uint32_t in [low, high] */
    OPTION_U64,    /* uint64_t in [low, high] */
    OPTION_F64,    /* double in [low, high] */
    OPTION_BYTES,  /* uint64_t with an optional suffix K, M, G (powers of 1024) */
    OPTION_CHOICE, /* unsigned: index of the word in `argument`, "ref|blas" */
    OPTION_LIST,   /* struct option_list: every occurrence adds one */
};

enum { OPTIONS_MAX = 64, OPTION_LIST_MAX = 4096 };

struct option_list { /* items are borrowed from argv or from the options; the array is owned by the options */
    const char **items;
    uint32_t n;
};

struct option_row {
    const char *name;     /* long name, without dashes */
    char letter;          /* short name; 0: none */
    const char *argument; /* its name in the help; NULL for a flag; the words of a choice */
    enum option_type type;
    size_t offset;    /* of the field in the command's struct */
    const char *help; /* one line; empty: not shown */
    double low, high; /* numbers; both 0: any */
    bool no_env;      /* not from environment or file (makes no sense to set once and for all) */
    const char *why; /* why the default is what it is: for the manual and the example settings file; NULL: no default */
};

/* A row: OPTION(struct args, steps, OPTION_U32, "steps", 0, "N", "optimiser steps", .low = 1, .high = 1e6). */
#define OPTION(struct_, field_, type_, name_, letter_, argument_, help_, ...)                                        \
    {                                                                                                                \
        .name = name_, .letter = letter_, .argument = argument_, .type = type_, .offset = offsetof(struct_, field_), \
        .help = help_, __VA_ARGS__                                                                                   \
    }

enum option_origin { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_ENVIRONMENT, ORIGIN_COMMAND };

struct options {
    /* set by the caller */
    const char *command;  /* "push", "keys add": the words after the program's name */
    const char *usage;    /* "DOMAIN FILE|DIR|-..." */
    const char *summary;  /* one sentence */
    const char *examples; /* lines shown first, without indent; may be NULL */
    const char *notes;    /* shown last; may be NULL */
    const struct option_row *rows;
    unsigned n_rows;
    void *values;
    const struct option_row *common; /* rows that every command has; their values are in common_values */
    unsigned n_common;
    void *common_values;
    const char *config_path; /* of the file to read when neither --config nor ALLUVIUM_CONFIG names one; NULL: none;
                                 a missing default file is not an error */
    /* set by options_parse */
    bool help;   /* --help was given: print options_help() and leave */
    char **rest; /* the arguments that are no options; borrowed from argv */
    int n_rest;
    enum option_origin origin[OPTIONS_MAX]; /* rows, then common */
    struct option_list *lists[OPTIONS_MAX]; /* to be freed */
    unsigned n_lists;
    struct buf file;       /* text of values that came from the file */
    char config_used[256]; /* path of the file that was read; empty: none */
};

/* argv[0] is passed over. ST_USAGE names the option and what it takes (with the nearest known name for an unknown one);
 * ST_CONFIG names file and line, or the variable. The caller may call options_help() in either case. */
enum status options_parse(struct options *o, int argc, char **argv, struct err *err);
void options_release(struct options *o);

/* "examples, usage, summary, options with defaults and variables, notes"; 100 columns, no colour. */
void options_help(const struct options *o, const char *program, struct buf *out);

/* For programs that describe the options (man pages, completions): the rows, then the common ones, with the value as the
 * settings file would have it. options_variable() is false
 * for a row that neither environment nor file may set. */
unsigned options_count(const struct options *o);
const struct option_row *options_row(const struct options *o, unsigned i);
void options_value(const struct options *o, unsigned i, struct buf *out);
enum { OPTION_VARIABLE_SIZE = 96 };
bool options_variable(const struct option_row *row, char out[OPTION_VARIABLE_SIZE]); /* "ALLUVIUM_LIKE_THIS" */

/* Every option with its value and where it came from, one a line: for --show-settings. */
void options_show(const struct options *o, struct buf *out);

enum option_origin options_origin(const struct options *o, const char *name); /* CHECKs that the name is known */
const char *option_origin_name(enum option_origin origin);

/* The word of `words` that is nearest to `word` (optimal string alignment distance), if near enough to suggest; else
 * NULL. */
const char *options_nearest(const char *word, const char *const *words, unsigned n);

#endif
