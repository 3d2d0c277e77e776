#include "base/options.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <ini.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"

enum { CODE_FIRST = 256, HELP_COLUMN = 30 }; /* getopt codes of long options: above every letter */

const struct option_row *options_row(const struct options *o, unsigned i)
{
    return i < o->n_rows ? &o->rows[i] : &o->common[i - o->n_rows];
}

static void *field_at(const struct options *o, unsigned i)
{
    return (char *)(i < o->n_rows ? o->values : o->common_values) + options_row(o, i)->offset;
}

unsigned options_count(const struct options *o)
{
    return o->n_rows + o->n_common;
}

/* ---- nearest word ---------------------------------------------------------------------------------------------- */

static unsigned distance(const char *a, const char *b)
{
    enum { LEN = 40 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= LEN || m >= LEN)
        return 1000;
    unsigned d[LEN + 1][LEN + 1];
    for (size_t i = 0; i <= n; i++)
        d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++)
        for (size_t j = 1; j <= m; j++) {
            unsigned best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[n][m];
}

const char *options_nearest(const char *word, const char *const *words, unsigned n)
{
    const char *nearest = NULL;
    unsigned best = strlen(word) < 4 ? 2 : 3; /* below this many slips it is a slip, not another word */
    for (unsigned i = 0; i < n; i++) {
        unsigned d = distance(word, words[i]);
        if (d < best && d < strlen(words[i])) {
            best = d;
            nearest = words[i];
        }
    }
    return nearest;
}

/* ---- one value ------------------------------------------------------------------------------------------------- */

static bool parse_flag(const char *s, bool *out)
{
    static const char *const words[] = {"1", "true", "yes", "on", "0", "false", "no", "off", ""};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strcmp(s, words[i])) {
            *out = i < 4;
            return true;
        }
    return false;
}

static bool in_range(const struct option_row *row, double v)
{
    return (row->low == 0 && row->high == 0) || (v >= row->low && v <= row->high);
}

static bool parse_whole(const char *s, uint64_t max, uint64_t *out, const char **end)
{
    if (!isdigit((unsigned char)*s))
        return false;
    char *stop;
    errno = 0;
    unsigned long long v = strtoull(s, &stop, 10);
    if (errno || v > max)
        return false;
    *out = v;
    *end = stop;
    return true;
}

static bool parse_bytes(const char *s, uint64_t *out)
{
    const char *end;
    uint64_t v;
    if (!parse_whole(s, UINT64_MAX, &v, &end))
        return false;
    unsigned shift = 0;
    if (*end) {
        const char *units = "KMG", *unit = strchr(units, toupper((unsigned char)*end));
        if (!unit || end[1])
            return false;
        shift = 10u * (unsigned)(unit - units + 1);
    }
    if (v > UINT64_MAX >> shift)
        return false;
    *out = v << shift;
    return true;
}

static bool parse_choice(const char *words, const char *s, unsigned *out)
{
    size_t len = strlen(s);
    for (unsigned i = 0; *words; i++) {
        size_t n = strcspn(words, "|");
        if (n == len && !memcmp(words, s, n)) {
            *out = i;
            return true;
        }
        words += n + (words[n] == '|');
    }
    return false;
}

static void list_add(struct options *o, struct option_list *list, const char *item)
{
    if (!list->items) {
        list->items = xcalloc(OPTION_LIST_MAX, sizeof *list->items);
        o->lists[o->n_lists++] = list;
    }
    list->items[list->n++] = item;
}

/* What the option takes, for the end of an error text. */
static void describe(const struct option_row *row, char *out, size_t size)
{
    switch (row->type) {
    case OPTION_FLAG:
        snprintf(out, size, "yes or no");
        break;
    case OPTION_CHOICE:
        snprintf(out, size, "one of %s", row->argument);
        break;
    case OPTION_BYTES:
        snprintf(out, size, "bytes, e.g. 512M");
        break;
    case OPTION_TEXT:
    case OPTION_LIST:
        snprintf(out, size, "%s", row->argument);
        break;
    default:
        if (row->low == 0 && row->high == 0)
            snprintf(out, size, "a number");
        else
            snprintf(out, size, "a number from %.10g to %.10g", row->low, row->high);
    }
}

/* `where` names the source for the error text: "--steps", "ALLUVIUM_STEPS", "file:3: steps". */
static enum status set_value(struct options *o, unsigned i, const char *text, enum status wrong, const char *where,
                             struct err *err)
{
    const struct option_row *row = options_row(o, i);
    void *field = field_at(o, i);
    const char *end = "";
    uint64_t whole = 0;
    bool ok = true;
    switch (row->type) {
    case OPTION_FLAG:
        ok = parse_flag(text, field);
        break;
    case OPTION_TEXT:
        *(const char **)field = text;
        break;
    case OPTION_LIST:
        if (((struct option_list *)field)->n == OPTION_LIST_MAX)
            return err_set(err, ST_LIMIT, "%s: more than %d times", where, OPTION_LIST_MAX);
        list_add(o, field, text);
        break;
    case OPTION_U32:
        ok = parse_whole(text, UINT32_MAX, &whole, &end) && !*end && in_range(row, (double)whole);
        if (ok)
            *(uint32_t *)field = (uint32_t)whole;
        break;
    case OPTION_U64:
        ok = parse_whole(text, UINT64_MAX, &whole, &end) && !*end && in_range(row, (double)whole);
        if (ok)
            *(uint64_t *)field = whole;
        break;
    case OPTION_BYTES:
        ok = parse_bytes(text, &whole) && in_range(row, (double)whole);
        if (ok)
            *(uint64_t *)field = whole;
        break;
    case OPTION_F64: {
        char *stop;
        double v = strtod(text, &stop);
        ok = stop != text && !*stop && isfinite(v) && in_range(row, v);
        if (ok)
            *(double *)field = v;
        break;
    }
    case OPTION_CHOICE:
        ok = parse_choice(row->argument, text, field);
        break;
    }
    if (ok)
        return ST_OK;
    char takes[160];
    describe(row, takes, sizeof takes);
    return err_set(err, wrong, "%s: \"%.80s\" does not fit; it takes %s", where, text, takes);
}

/* ---- environment and file -------------------------------------------------------------------------------------- */

bool options_variable(const struct option_row *row, char out[OPTION_VARIABLE_SIZE])
{
    if (row->no_env)
        return false;
    snprintf(out, OPTION_VARIABLE_SIZE, "ALLUVIUM_%s", row->name);
    for (char *p = out; *p; p++)
        *p = *p == '-' ? '_' : (char)toupper((unsigned char)*p);
    return true;
}

static enum status read_environment(struct options *o, struct err *err)
{
    for (unsigned i = 0; i < options_count(o); i++) {
        const struct option_row *row = options_row(o, i);
        char name[OPTION_VARIABLE_SIZE];
        const char *text = options_variable(row, name) ? getenv(name) : NULL;
        if (!text || (!*text && row->type != OPTION_FLAG))
            continue;
        enum status st = set_value(o, i, text, ST_CONFIG, name, err);
        if (st != ST_OK)
            return st;
        o->origin[i] = ORIGIN_ENVIRONMENT;
    }
    return ST_OK;
}

struct file_pair { /* offsets into o->file */
    size_t key, value;
    bool common;
    int line;
};

struct file_reader {
    struct options *o;
    const char *path;
    FILE *stream;
    int line; /* of the last line handed out: the library as packaged does not count */
    struct file_pair pairs[OPTIONS_MAX * 4];
    unsigned n;
    enum status status;
    struct err *err;
};

static char *next_line(char *out, int size, void *user)
{
    struct file_reader *f = user;
    char *line = fgets(out, size, f->stream);
    if (!line)
        return NULL;
    f->line++;
    size_t blank = strspn(line, " \t"); /* an indented line would continue the value before it */
    memmove(line, line + blank, strlen(line + blank) + 1);
    return line;
}

static int on_pair(void *user, const char *section, const char *key, const char *value)
{
    struct file_reader *f = user;
    int line = f->line;
    bool common = !*section;
    if (!key || (!common && strcmp(section, f->o->command)))
        return 1; /* a new section, or another command's */
    if (f->n == sizeof f->pairs / sizeof f->pairs[0]) {
        f->status = err_set(f->err, ST_CONFIG, "%s:%d: too many keys", f->path, line);
        return 0;
    }
    f->pairs[f->n].key = f->o->file.len;
    buf_put(&f->o->file, key, strlen(key) + 1);
    f->pairs[f->n].value = f->o->file.len;
    buf_put(&f->o->file, value, strlen(value) + 1);
    f->pairs[f->n].line = line;
    f->pairs[f->n++].common = common;
    return 1;
}

static enum status unknown_key(const struct options *o, const char *path, const struct file_pair *pair, const char *key,
                               struct err *err)
{
    const char *names[OPTIONS_MAX];
    unsigned n = 0;
    for (unsigned i = pair->common ? o->n_rows : 0; i < options_count(o); i++)
        if (!options_row(o, i)->no_env)
            names[n++] = options_row(o, i)->name;
    const char *nearest = options_nearest(key, names, n);
    return err_set(err, ST_CONFIG, "%s:%d: unknown setting \"%s\"%s%s%s%s", path, pair->line, key,
                   nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "",
                   pair->common ? " (before the first [command] only common settings are allowed)" : "");
}

static enum status read_file(struct options *o, const char *path, bool must, struct err *err)
{
    if (!must && access(path, F_OK) != 0)
        return ST_OK;
    struct file_reader f = {.o = o, .path = path, .status = ST_OK, .err = err};
    int fd;
    struct err why;
    if (file_open(path, &fd, &why))
        return err_set(err, ST_CONFIG, "%.*s", (int)sizeof why.text, why.text);
    f.stream = fdopen(fd, "r");
    CHECK(f.stream);
    int rc = ini_parse_stream(next_line, &f, on_pair, &f);
    fclose(f.stream);
    if (f.status != ST_OK)
        return f.status;
    if (rc > 0)
        return err_set(err, ST_CONFIG, "%s:%d: neither \"[command]\" nor \"name = value\"", path, rc);
    snprintf(o->config_used, sizeof o->config_used, "%s", path);
    for (unsigned p = 0; p < f.n; p++) {
        const char *key = (const char *)o->file.data + f.pairs[p].key;
        unsigned i = f.pairs[p].common ? o->n_rows : 0;
        while (i < options_count(o) && (options_row(o, i)->no_env || strcmp(options_row(o, i)->name, key)))
            i++;
        if (i == options_count(o))
            return unknown_key(o, path, &f.pairs[p], key, err);
        char where[400];
        snprintf(where, sizeof where, "%s:%d: %s", path, f.pairs[p].line, key);
        enum status st = set_value(o, i, (const char *)o->file.data + f.pairs[p].value, ST_CONFIG, where, err);
        if (st != ST_OK)
            return st;
        o->origin[i] = ORIGIN_FILE;
    }
    return ST_OK;
}

/* ---- command line ---------------------------------------------------------------------------------------------- */

struct getopt_table {
    struct option longs[OPTIONS_MAX + 3];
    char shorts[2 * OPTIONS_MAX + 8];
};

enum { CODE_HELP = CODE_FIRST + OPTIONS_MAX, CODE_CONFIG };

static void build_table(const struct options *o, struct getopt_table *t)
{
    size_t s = 0;
    unsigned n = options_count(o);
    CHECK(n <= OPTIONS_MAX);
    t->shorts[s++] = ':'; /* tell a missing argument from an unknown option */
    for (unsigned i = 0; i < n; i++) {
        const struct option_row *row = options_row(o, i);
        bool takes = row->type != OPTION_FLAG;
        t->longs[i] = (struct option){row->name, takes ? required_argument : no_argument, NULL, CODE_FIRST + (int)i};
        if (row->letter) {
            t->shorts[s++] = row->letter;
            if (takes)
                t->shorts[s++] = ':';
        }
    }
    t->shorts[s++] = 'h';
    t->shorts[s] = 0;
    t->longs[n] = (struct option){"help", no_argument, NULL, CODE_HELP};
    t->longs[n + 1] = (struct option){"config", required_argument, NULL, CODE_CONFIG};
    t->longs[n + 2] = (struct option){0};
}

static enum status unknown_option(const struct options *o, const char *arg, struct err *err)
{
    const char *names[OPTIONS_MAX + 2];
    unsigned n = 0;
    for (unsigned i = 0; i < options_count(o); i++)
        names[n++] = options_row(o, i)->name;
    names[n++] = "help";
    names[n++] = "config";
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(arg + 2, "="), arg + 2);
    unsigned starts = 0;
    for (unsigned i = 0; i < n; i++)
        starts += !strncmp(names[i], word, strlen(word));
    if (starts > 1)
        return err_set(err, ST_USAGE, "option --%s could be several; write it out", word);
    const char *nearest = options_nearest(word, names, n);
    return err_set(err, ST_USAGE, "unknown option --%s%s%s%s (see: alluvium %s --help)", word,
                   nearest ? "; did you mean --" : "", nearest ? nearest : "", nearest ? "?" : "", o->command);
}

/* Walks argv once. `values`: set what was given; else only look for --help and --config, so that the order of sources
 * is kept although the command line is the last of them. */
static enum status walk(struct options *o, const struct getopt_table *t, int argc, char **argv, bool values,
                        const char **config, struct err *err)
{
    bool listed[OPTIONS_MAX] = {false};
    opterr = 0;
    optind = 0; /* GNU: start afresh, argv permuted again */
    int code;
    while ((code = getopt_long(argc, argv, t->shorts, t->longs, NULL)) != -1) {
        unsigned i = OPTIONS_MAX;
        if (code == CODE_HELP || code == 'h') {
            o->help = true;
            continue;
        } else if (code == CODE_CONFIG) {
            *config = optarg;
            continue;
        } else if (code == ':') {
            const char *given = argv[optind - 1];
            return err_set(err, ST_USAGE, "option %s needs a value (see: alluvium %s --help)", given, o->command);
        } else if (code == '?') {
            const char *given = argv[optind - 1];
            if (optopt >= CODE_FIRST)
                return err_set(err, ST_USAGE, "option %.*s takes no value", (int)strcspn(given, "="), given);
            if (optopt)
                return err_set(err, ST_USAGE, "unknown option -%c (see: alluvium %s --help)", optopt, o->command);
            return unknown_option(o, given, err);
        } else if (code >= CODE_FIRST) {
            i = (unsigned)(code - CODE_FIRST);
        } else {
            for (i = 0; options_row(o, i)->letter != code;)
                i++;
        }
        if (!values)
            continue;
        const struct option_row *row = options_row(o, i);
        char where[80];
        snprintf(where, sizeof where, "--%s", row->name);
        if (row->type == OPTION_LIST && !listed[i]) { /* a list on the command line replaces the file's */
            ((struct option_list *)field_at(o, i))->n = 0;
            listed[i] = true;
        }
        enum status st = set_value(o, i, row->type == OPTION_FLAG ? "yes" : optarg, ST_USAGE, where, err);
        if (st != ST_OK)
            return st;
        o->origin[i] = ORIGIN_COMMAND;
    }
    o->rest = argv + optind;
    o->n_rest = argc - optind;
    return ST_OK;
}

enum status options_parse(struct options *o, int argc, char **argv, struct err *err)
{
    struct getopt_table table;
    build_table(o, &table);
    const char *config = NULL;
    enum status st = walk(o, &table, argc, argv, false, &config, err);
    if (st != ST_OK || o->help)
        return st;
    if (!config)
        config = getenv("ALLUVIUM_CONFIG");
    if (config && *config)
        st = read_file(o, config, true, err);
    else if (o->config_path)
        st = read_file(o, o->config_path, false, err);
    if (st == ST_OK)
        st = read_environment(o, err);
    if (st == ST_OK)
        st = walk(o, &table, argc, argv, true, &config, err);
    return st;
}

void options_release(struct options *o)
{
    for (unsigned i = 0; i < o->n_lists; i++) {
        free(o->lists[i]->items);
        *o->lists[i] = (struct option_list){0};
    }
    o->n_lists = 0;
    buf_release(&o->file);
}

/* ---- help ------------------------------------------------------------------------------------------------------ */

void options_value(const struct options *o, unsigned i, struct buf *out)
{
    const struct option_row *row = options_row(o, i);
    const void *field = field_at(o, i);
    switch (row->type) {
    case OPTION_FLAG:
        buf_printf(out, "%s", *(const bool *)field ? "yes" : "no");
        break;
    case OPTION_TEXT:
        buf_printf(out, "%s", *(const char *const *)field ? *(const char *const *)field : "");
        break;
    case OPTION_U32:
        buf_printf(out, "%u", *(const uint32_t *)field);
        break;
    case OPTION_U64:
        buf_printf(out, "%llu", (unsigned long long)*(const uint64_t *)field);
        break;
    case OPTION_BYTES: {
        uint64_t v = *(const uint64_t *)field;
        int unit = 0;
        while (v && v % 1024 == 0 && unit < 3)
            v /= 1024, unit++;
        buf_printf(out, "%llu%.*s", (unsigned long long)v, unit > 0, &" KMG"[unit]);
        break;
    }
    case OPTION_F64:
        buf_printf(out, "%.10g", *(const double *)field);
        break;
    case OPTION_CHOICE: {
        const char *word = row->argument;
        for (unsigned k = 0; k < *(const unsigned *)field; k++)
            word += strcspn(word, "|") + 1;
        buf_printf(out, "%.*s", (int)strcspn(word, "|"), word);
        break;
    }
    case OPTION_LIST: {
        const struct option_list *list = field;
        for (uint32_t k = 0; k < list->n; k++)
            buf_printf(out, "%s%s", k ? " " : "", list->items[k]);
        break;
    }
    }
}

static void help_row(const struct options *o, unsigned i, struct buf *out)
{
    const struct option_row *row = options_row(o, i);
    if (!*row->help)
        return;
    size_t start = out->len;
    if (row->letter)
        buf_printf(out, "  -%c, --%s", row->letter, row->name);
    else
        buf_printf(out, "      --%s", row->name);
    if (row->argument && row->type != OPTION_FLAG)
        buf_printf(out, " %s", row->argument);
    size_t width = out->len - start;
    if (width >= HELP_COLUMN)
        buf_printf(out, "\n%*s", HELP_COLUMN, "");
    else
        buf_printf(out, "%*s", (int)(HELP_COLUMN - width), "");
    buf_printf(out, "%s", row->help);
    struct buf value = {0};
    options_value(o, i, &value);
    if (row->type != OPTION_FLAG && value.len)
        buf_printf(out, " [%s]", buf_cstr(&value));
    buf_release(&value);
    buf_put_u8(out, '\n');
}

void options_help(const struct options *o, const char *program, struct buf *out)
{
    if (o->examples) {
        buf_printf(out, "Examples:\n");
        for (const char *line = o->examples; *line;) {
            size_t n = strcspn(line, "\n");
            buf_printf(out, "  %.*s\n", (int)n, line);
            line += n + (line[n] == '\n');
        }
        buf_printf(out, "\n");
    }
    buf_printf(out, "Usage: %s %s%s%s%s\n\n%s\n", program, o->command, *o->usage ? " " : "", o->usage,
               options_count(o) ? " [options]" : "", o->summary);
    if (o->n_rows)
        buf_printf(out, "\nOptions:\n");
    for (unsigned i = 0; i < o->n_rows; i++)
        help_row(o, i, out);
    buf_printf(out, "\nCommon options:\n");
    for (unsigned i = o->n_rows; i < options_count(o); i++)
        help_row(o, i, out);
    buf_printf(out, "      --config FILE           settings file: \"name = value\" under [%s]", o->command);
    if (o->config_path)
        buf_printf(out, " [%s]", o->config_path);
    buf_printf(out, "\n  -h, --help                  this text\n");
    if (o->notes)
        buf_printf(out, "\n%s\n", o->notes);
    buf_printf(
        out, "\nAn option --like-this may also be given as ALLUVIUM_LIKE_THIS in the environment or as \"like-this = "
             "...\" in the\nsettings file; the command line goes before the environment, and that before the file.\n");
}

void options_show(const struct options *o, struct buf *out)
{
    for (unsigned i = 0; i < options_count(o); i++) {
        buf_printf(out, "%s = ", options_row(o, i)->name);
        options_value(o, i, out);
        buf_printf(out, "  # %s", option_origin_name(o->origin[i]));
        if (o->origin[i] == ORIGIN_FILE)
            buf_printf(out, " %s", o->config_used);
        buf_put_u8(out, '\n');
    }
}

enum option_origin options_origin(const struct options *o, const char *name)
{
    unsigned i = 0;
    while (i < options_count(o) && strcmp(options_row(o, i)->name, name))
        i++;
    CHECK(i < options_count(o));
    return o->origin[i];
}

const char *option_origin_name(enum option_origin origin)
{
    static const char *const names[] = {"default", "file", "environment", "command line"};
    return names[origin];
}
