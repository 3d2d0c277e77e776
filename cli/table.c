#include "cli/table.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/check.h"

enum { GAP = 2, TEXT_MIN = 8 /* a text column is not shortened further */, WIDTH_MIN = 40 };
static const char more[] = "\xe2\x80\xa6"; /* … */

struct table {
    char *titles;
    unsigned n;
    struct column {
        const char *title;
        bool right, said;
        unsigned width;
    } columns[TABLE_COLUMNS_MAX];
    char **cells;
    size_t n_cells, cap;
};

void put_clean(struct buf *out, const char *text)
{
    for (; *text; text++)
        buf_put_u8(out, (unsigned char)*text < 0x20 || *text == 0x7f ? '?' : (uint8_t)*text);
}

void human_bytes(uint64_t bytes, char *out, size_t size)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    unsigned u = 0;
    while (v >= 1024 && u < 4)
        v /= 1024, u++;
    snprintf(out, size, u ? "%.1f %s" : "%.0f %s", v, units[u]);
}

void human_time(double s, char *out, size_t size)
{
    if (s < 60)
        snprintf(out, size, "%.0f s", s);
    else if (s < 3600)
        snprintf(out, size, "%d:%02d min", (int)s / 60, (int)s % 60);
    else
        snprintf(out, size, "%d:%02d h", (int)(s / 3600), (int)(s / 60) % 60);
}

/* Bytes of the first `width` characters. */
static size_t bytes_of(const char *text, unsigned width)
{
    size_t at = 0;
    for (; text[at]; at++)
        if ((text[at] & 0xc0) != 0x80 && width-- == 0)
            break;
    return at;
}

unsigned text_width(const char *text)
{
    unsigned n = 0;
    for (; *text; text++)
        n += (*text & 0xc0) != 0x80;
    return n;
}

static unsigned columns_of(FILE *out)
{
    struct winsize size;
    unsigned n = 0;
    const char *columns = getenv("COLUMNS");
    if (isatty(fileno(out)) && ioctl(fileno(out), TIOCGWINSZ, &size) == 0)
        n = size.ws_col;
    if (!n && columns)
        n = (unsigned)strtoul(columns, NULL, 10);
    return !n ? UINT16_MAX : n < WIDTH_MIN ? WIDTH_MIN : n;
}

struct table *table_new(const char *titles)
{
    struct table *t = xcalloc(1, sizeof *t);
    char *at = t->titles = xstrdup(titles), *next;
    for (; at; at = next) {
        if ((next = strchr(at, '|')))
            *next++ = 0;
        CHECK(t->n < TABLE_COLUMNS_MAX);
        struct column *c = &t->columns[t->n++];
        c->right = *at == '>';
        c->title = at + c->right;
        c->width = text_width(c->title);
    }
    return t;
}

void table_put(struct table *t, const char *format, ...)
{
    struct buf raw = {0}, clean = {0};
    va_list args;
    va_start(args, format);
    buf_vprintf(&raw, format, args);
    va_end(args);
    put_clean(&clean, buf_cstr(&raw));
    if (t->n_cells == t->cap)
        t->cells = xrealloc_array(t->cells, t->cap = t->cap ? 2 * t->cap : 64, sizeof *t->cells);
    struct column *c = &t->columns[t->n_cells % t->n];
    const char *text = buf_cstr(&clean);
    t->cells[t->n_cells++] = xstrdup(text);
    c->said = c->said || (*text && strcmp(text, "-"));
    if (text_width(text) > c->width)
        c->width = text_width(text);
    buf_release(&raw);
    buf_release(&clean);
}

static unsigned total(const struct table *t)
{
    unsigned n = 0;
    for (unsigned i = 0; i < t->n; i++)
        n += t->columns[i].said ? t->columns[i].width + GAP : 0;
    return n - GAP;
}

/* Shortens the widest text column until all fit. */
static bool fit(struct table *t, unsigned columns)
{
    while (total(t) > columns) {
        struct column *widest = NULL;
        for (unsigned i = 0; i < t->n; i++) {
            struct column *c = &t->columns[i];
            if (c->said && !c->right && c->width > TEXT_MIN && c->width > text_width(c->title) &&
                (!widest || c->width > widest->width))
                widest = c;
        }
        if (!widest)
            return false;
        widest->width--;
    }
    return true;
}

static void put_padded(struct buf *line, const struct column *c, const char *text)
{
    unsigned width = text_width(text);
    if (line->len)
        buf_printf(line, "%*s", GAP, "");
    if (width > c->width) {
        buf_put(line, text, bytes_of(text, c->width - 1));
        buf_printf(line, "%s", more);
        return;
    }
    unsigned pad = c->width - width;
    buf_printf(line, "%*s%s%*s", c->right ? (int)pad : 0, "", text, c->right ? 0 : (int)pad, "");
}

static void put_line(FILE *out, struct buf *line)
{
    while (line->len && line->data[line->len - 1] == ' ')
        line->len--;
    fprintf(out, "%s\n", buf_cstr(line));
    buf_clear(line);
}

static void print_rows(struct table *t, FILE *out)
{
    struct buf line = {0};
    for (unsigned i = 0; i < t->n; i++)
        if (t->columns[i].said)
            put_padded(&line, &t->columns[i], t->columns[i].title);
    put_line(out, &line);
    for (size_t row = 0; row < t->n_cells; row += t->n) {
        for (unsigned i = 0; i < t->n; i++)
            if (t->columns[i].said)
                put_padded(&line, &t->columns[i], t->cells[row + i]);
        put_line(out, &line);
    }
    buf_release(&line);
}

static void print_facts(const struct table *t, FILE *out)
{
    unsigned width = 0;
    for (unsigned i = 0; i < t->n; i++)
        if (t->columns[i].said && text_width(t->columns[i].title) > width)
            width = text_width(t->columns[i].title);
    for (size_t row = 0; row < t->n_cells; row += t->n) {
        if (row)
            fputc('\n', out);
        for (unsigned i = 0; i < t->n; i++)
            if (t->columns[i].said)
                fact(out, width, t->columns[i].title, "%s", t->cells[row + i]);
    }
}

void table_print(struct table **table, FILE *out)
{
    struct table *t = *table;
    CHECK_EQ(t->n_cells % t->n, 0);
    if (t->n_cells) {
        t->columns[0].said = true;
        if (fit(t, columns_of(out)))
            print_rows(t, out);
        else
            print_facts(t, out);
    }
    for (size_t i = 0; i < t->n_cells; i++)
        free(t->cells[i]);
    free(t->cells);
    free(t->titles);
    free(t);
    *table = NULL;
}

/* The first line is begun, `indent` characters of it; those that follow are indented. */
static void wrap(FILE *out, unsigned indent, const char *at)
{
    unsigned columns = columns_of(out), room = columns > indent + TEXT_MIN ? columns - indent : TEXT_MIN;
    while (*at) {
        size_t n = bytes_of(at, room), blank = n;
        if (at[n]) { /* more follows: break at the last blank, if there is one */
            while (blank && at[blank] != ' ')
                blank--;
            n = blank ? blank : n;
        }
        fprintf(out, "%.*s\n", (int)n, at);
        at += n;
        at += *at == ' ';
        if (*at)
            fprintf(out, "%*s", (int)indent, "");
    }
}

void sentence(FILE *out, const char *format, ...)
{
    struct buf raw = {0}, clean = {0};
    va_list args;
    va_start(args, format);
    buf_vprintf(&raw, format, args);
    va_end(args);
    put_clean(&clean, buf_cstr(&raw));
    wrap(out, 0, buf_cstr(&clean));
    buf_release(&raw);
    buf_release(&clean);
}

void fact(FILE *out, unsigned width, const char *key, const char *format, ...)
{
    struct buf raw = {0}, clean = {0};
    va_list args;
    va_start(args, format);
    buf_vprintf(&raw, format, args);
    va_end(args);
    put_clean(&clean, buf_cstr(&raw));
    fprintf(out, "%s%*s", key, (int)(width + GAP - text_width(key)), "");
    wrap(out, width + GAP, clean.len ? buf_cstr(&clean) : "-");
    buf_release(&raw);
    buf_release(&clean);
}
