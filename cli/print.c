#include "cli/print.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "cli/cli.h"

enum { REAL_DIGITS = 10 /* 0.05, not 0.050000000000000003 */ };

void print_json(json_t *root)
{
    json_dumpf(root, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(REAL_DIGITS));
    putchar('\n');
    json_decref(root);
}

void print_json_line(json_t *root)
{
    json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(REAL_DIGITS));
    putchar('\n');
    fflush(stdout);
    json_decref(root);
}

/* ---- values for people ------------------------------------------------------------------------------------------- */

static bool is_flat(const json_t *value)
{
    return !json_is_object(value) && !json_is_array(value);
}

static void put_flat(struct buf *out, const json_t *value)
{
    if (json_is_string(value))
        put_clean(out, json_string_value(value));
    else if (json_is_integer(value))
        buf_printf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        buf_printf(out, "%.5g", json_real_value(value));
    else if (json_is_boolean(value))
        buf_printf(out, "%s", json_is_true(value) ? "yes" : "no");
    else
        buf_printf(out, "-");
}

/* One cell: a flat value, a list with commas, an object as "key value" pairs. */
static void put_cell(struct buf *out, const json_t *value)
{
    size_t i, before = out->len;
    json_t *item;
    const char *key;
    if (is_flat(value)) {
        put_flat(out, value);
        return;
    }
    json_array_foreach(value, i, item)
    {
        buf_printf(out, "%s", i ? ", " : "");
        put_cell(out, item);
    }
    json_object_foreach((json_t *)(uintptr_t)value, key, item)
    {
        buf_printf(out, "%s%s ", out->len > before ? ", " : "", key);
        put_cell(out, item);
    }
    if (out->len == before)
        buf_printf(out, "-");
}

static bool all_numbers(const json_t *rows, const char *key)
{
    size_t i;
    json_t *row;
    json_array_foreach(rows, i, row)
    {
        const json_t *value = json_object_get(row, key);
        if (value && !json_is_number(value) && !json_is_null(value))
            return false;
    }
    return true;
}

static void print_table(FILE *out, const json_t *rows)
{
    const char *names[TABLE_COLUMNS_MAX], *key;
    size_t n = 0, i, k;
    json_t *row, *value;
    struct buf text = {0};
    json_array_foreach(rows, i, row)
    {
        json_object_foreach(row, key, value)
        {
            for (k = 0; k < n && strcmp(names[k], key); k++)
                ;
            if (k == n && n < TABLE_COLUMNS_MAX)
                names[n++] = key;
        }
    }
    for (k = 0; k < n; k++)
        buf_printf(&text, "%s%s%s", k ? "|" : "", all_numbers(rows, names[k]) ? ">" : "", names[k]);
    struct table *t = table_new(buf_cstr(&text));
    json_array_foreach(rows, i, row)
    {
        for (k = 0; k < n; k++) {
            buf_clear(&text);
            put_cell(&text, json_object_get(row, names[k]));
            table_put(t, "%s", buf_cstr(&text));
        }
    }
    table_print(&t, out);
    buf_release(&text);
}

static bool is_table(const json_t *value)
{
    return json_is_array(value) && json_array_size(value) && json_is_object(json_array_get(value, 0));
}

static void print_object(FILE *out, const json_t *object)
{
    const char *key;
    json_t *value;
    unsigned width = 0;
    struct buf cell = {0};
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (!is_table(value) && text_width(key) > width)
            width = text_width(key);
    }
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (is_table(value))
            continue;
        buf_clear(&cell);
        put_cell(&cell, value);
        fact(out, width, key, "%s", buf_cstr(&cell));
    }
    json_object_foreach((json_t *)(uintptr_t)object, key, value)
    {
        if (!is_table(value))
            continue;
        fprintf(out, "\n%s\n", key);
        print_table(out, value);
    }
    buf_release(&cell);
}

void print_value(FILE *out, const json_t *value)
{
    if (is_table(value)) {
        print_table(out, value);
    } else if (json_is_object(value)) {
        print_object(out, value);
    } else {
        struct buf cell = {0};
        put_cell(&cell, value);
        fprintf(out, "%s\n", buf_cstr(&cell));
        buf_release(&cell);
    }
}

/* ---- messages ------------------------------------------------------------------------------------------------------ */

static bool fancy(FILE *to)
{
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    return isatty(fileno(to)) && !(no_color && *no_color) && term && strcmp(term, "dumb");
}

void print_error(const char *command, enum status status, const char *text)
{
    if (common.json) {
        static const char form[] = "{s:{s:s,s:i,s:s}}";
        const char *name = status_name(status);
        const int code = status_exit_code(status);
        json_t *root = json_pack(form, "error", "status", name, "exit", code, "text", text);
        if (!root) { /* not UTF-8: a path or an argument, or one that was cut */
            char *ascii = xmemdup(text, strlen(text) + 1);
            for (char *c = ascii; *c; c++)
                *c = (unsigned char)*c < 0x80 ? *c : '?';
            root = json_pack(form, "error", "status", name, "exit", code, "text", ascii);
            free(ascii);
        }
        char *line = root ? json_dumps(root, JSON_COMPACT) : NULL;
        fprintf(stderr, "%s\n", line ? line : "{\"error\":{}}");
        free(line);
        json_decref(root);
        return;
    }
    struct buf clean = {0};
    put_clean(&clean, text);
    const char *on = fancy(stderr) ? "\033[1;31m" : "", *off = *on ? "\033[0m" : "";
    fprintf(stderr, "alluvium%s%s: %serror:%s %s\n", *command ? " " : "", command, on, off, buf_cstr(&clean));
    buf_release(&clean);
}

void print_note(const char *command, const char *format, ...)
{
    struct buf clean = {0};
    char text[5000];
    va_list args;
    if (common.quiet)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    put_clean(&clean, text);
    fprintf(stderr, "alluvium %s: %s\n", command, buf_cstr(&clean));
    buf_release(&clean);
}

/* ---- progress ------------------------------------------------------------------------------------------------------ */

static void count(enum progress_unit unit, uint64_t v, char *out, size_t size)
{
    if (unit == UNIT_BYTES)
        human_bytes(v, out, size);
    else
        snprintf(out, size, "%llu", (unsigned long long)v);
}

static void per_second(enum progress_unit unit, double v, char *out, size_t size)
{
    if (unit == UNIT_BYTES)
        human_bytes((uint64_t)v, out, size);
    else
        snprintf(out, size, v < 10 ? "%.2f" : "%.0f", v);
}

void progress_draw(struct progress *p, uint64_t done, uint64_t total, const char *extra)
{
    enum { BAR = 24 };
    double now = clock_s();
    bool tty = isatty(STDERR_FILENO);
    if (!p->began_s) {
        p->began_s = now;
        p->drawn_s = tty ? 0 : now;
        p->first = done;
    }
    if (common.quiet || now - p->drawn_s < (tty ? 0.1 : 10))
        return;
    p->drawn_s = now;
    static const char *const suffix[] = {"", " steps", " records"};
    char have[32], all[32], rate[32], left[32] = "", bar[BAR + 1];
    double speed = now > p->began_s ? (double)(done - p->first) / (now - p->began_s) : 0;
    count(p->unit, done, have, sizeof have);
    count(p->unit, total, all, sizeof all);
    per_second(p->unit, speed, rate, sizeof rate);
    if (total && speed > 0 && done <= total)
        human_time((double)(total - done) / speed, left, sizeof left);
    int filled = total ? (int)(BAR * (done < total ? done : total) / total) : 0;
    for (int i = 0; i < BAR; i++)
        bar[i] = i < filled ? '=' : i == filled && total ? '>' : ' ';
    bar[BAR] = 0;
    char line[400];
    if (total)
        snprintf(line, sizeof line, "%s [%s] %3d%% %s of %s%s, %s%s/s, %s left%s%s", p->what, bar,
                 (int)(100 * (done < total ? done : total) / total), have, all, suffix[p->unit], rate, suffix[p->unit],
                 *left ? left : "?", *extra ? ", " : "", extra);
    else
        snprintf(line, sizeof line, "%s %s%s, %s%s/s%s%s", p->what, have, suffix[p->unit], rate, suffix[p->unit],
                 *extra ? ", " : "", extra);
    if (tty)
        fprintf(stderr, "\r\033[K%s", line);
    else
        fprintf(stderr, "%s\n", line);
    p->drawn = tty;
}

void progress_end(struct progress *p)
{
    if (p->drawn)
        fprintf(stderr, "\r\033[K");
    p->drawn = false;
}
