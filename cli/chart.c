#include "cli/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    WIDTH = 1040,
    LEFT = 130, /* of the plots: names of domains stand before it */
    RIGHT = 830,
    CURVES_TOP = 92,
    CURVES_HEIGHT = 260,
    ROW = 22, /* of the heat map */
    FRONTIER_HEIGHT = 280,
    GAP = 96, /* between panels: labels and a heading */
    COLOURS = 8,
    LEVELS = 5, /* of the heat map, each way */
};

static const double LEAST = 1e-9, MOST = 1e6; /* nats: what an axis can still tell apart; more is no loss */

struct point {
    double loss, learnt;
};

struct chart {
    struct buf *out;
    size_t n, n_domains; /* versions, oldest first */
    const json_t **versions;
    const char **domains;
    struct point *points; /* (n, n_domains) */
    double top;           /* largest |learnt| */
    double alias_x;       /* of the last alias written over its version, and its row: names must not cover each other */
    int alias_row;
};

struct axis { /* value low..high at from..to */
    double low, high, from, to, step;
};

static double place(const struct axis *a, double v)
{
    return a->from + (v - a->low) / (a->high - a->low) * (a->to - a->from);
}

/* About `ticks` round steps; the ends are multiples of the step (Heckbert 1990, Nice numbers for graph labels). */
static struct axis nice(double low, double high, double from, double to, int ticks)
{
    if (!(high - low > LEAST)) { /* all alike: steps would be lost in rounding */
        low -= 0.5;
        high = low + 1;
    }
    double raw = (high - low) / ticks, unit = pow(10, floor(log10(raw))), f = raw / unit;
    double step = unit * (f <= 1 ? 1 : f <= 2 ? 2 : f <= 5 ? 5 : 10);
    return (struct axis){step * floor(low / step), step * ceil(high / step), from, to, step};
}

static void put_text(struct buf *out, const char *s)
{
    for (; *s; s++) {
        const char *as = *s == '&' ? "&amp;" : *s == '<' ? "&lt;" : *s == '>' ? "&gt;" : *s == '"' ? "&quot;" : NULL;
        if (as)
            buf_put(out, as, strlen(as));
        else
            buf_put_u8(out, (unsigned char)*s < 0x20 || *s == 0x7f ? '?' : (uint8_t)*s);
    }
}

/* ---- what the versions say ------------------------------------------------------------------------------------------ */

static double number(const json_t *object, const char *name)
{
    double v = json_number_value(json_object_get(object, name));
    return json_is_number(json_object_get(object, name)) && fabs(v) < MOST ? v : NAN;
}

static const char *string(const json_t *object, const char *name)
{
    const char *s = json_string_value(json_object_get(object, name));
    return s ? s : "";
}

static size_t domain_index(struct chart *c, const char *name)
{
    for (size_t d = 0; d < c->n_domains; d++)
        if (!strcmp(c->domains[d], name))
            return d;
    if (c->n_domains == CHART_DOMAINS_MAX)
        return CHART_DOMAINS_MAX;
    c->domains[c->n_domains] = name;
    return c->n_domains++;
}

static enum status read_versions(struct chart *c, const json_t *versions, struct err *err)
{
    size_t i, k;
    json_t *v, *d;
    if (!json_is_array(versions) || !json_array_size(versions))
        return err_set(err, ST_BAD_DATA, "there is no list of versions in it");
    if (json_array_size(versions) > CHART_VERSIONS_MAX)
        return err_set(err, ST_LIMIT, "%zu versions are more than the %d a picture can show", json_array_size(versions),
                       CHART_VERSIONS_MAX);
    c->n = json_array_size(versions);
    c->versions = xcalloc(c->n, sizeof *c->versions);
    c->domains = xcalloc(CHART_DOMAINS_MAX, sizeof *c->domains);
    json_array_foreach(versions, i, v)
    {
        if (!json_is_integer(json_object_get(v, "version")) || !json_is_array(json_object_get(v, "domains")))
            return err_set(err, ST_BAD_DATA,
                           "item %zu of the list is no version: it has no \"version\" and \"domains\"", i);
        c->versions[c->n - 1 - i] = v;
    }
    for (i = 0; i < c->n; i++)
        json_array_foreach(json_object_get(c->versions[i], "domains"), k, d) domain_index(c, string(d, "domain"));
    c->points = xcalloc(c->n * (c->n_domains ? c->n_domains : 1), sizeof *c->points);
    for (i = 0; i < c->n * c->n_domains; i++)
        c->points[i] = (struct point){NAN, NAN};
    for (i = 0; i < c->n; i++)
        json_array_foreach(json_object_get(c->versions[i], "domains"), k, d)
        {
            size_t at = domain_index(c, string(d, "domain"));
            if (at == CHART_DOMAINS_MAX)
                continue;
            struct point p = {number(d, "loss"), number(d, "learnt")};
            c->points[i * c->n_domains + at] = p;
            if (fabs(p.learnt) > c->top)
                c->top = fabs(p.learnt);
        }
    return ST_OK;
}

static long long version_number(const struct chart *c, size_t i)
{
    return (long long)json_integer_value(json_object_get(c->versions[i], "version"));
}

/* Middle of a version's column. */
static double column(const struct chart *c, size_t i)
{
    return LEFT + (RIGHT - LEFT) * ((double)i + 0.5) / (double)c->n;
}

/* ---- drawing -------------------------------------------------------------------------------------------------------- */

static void words(struct chart *c, double x, double y, const char *kind, const char *text)
{
    buf_printf(c->out, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, kind);
    put_text(c->out, text);
    buf_printf(c->out, "</text>\n");
}

static void upright(struct chart *c, double x, double y, const char *text)
{
    buf_printf(c->out, "<text transform=\"translate(%.1f %.1f) rotate(-90)\" class=\"label middle\">", x, y);
    put_text(c->out, text);
    buf_printf(c->out, "</text>\n");
}

static void line(struct chart *c, double x1, double y1, double x2, double y2, const char *kind)
{
    buf_printf(c->out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>\n", x1, y1, x2, y2, kind);
}

static int decimals(double step)
{
    int n = (int)ceil(-log10(step) - 1e-9);
    return n < 0 ? 0 : n;
}

static void y_axis(struct chart *c, const struct axis *a, const char *label)
{
    char text[32];
    for (double v = a->low; v <= a->high + a->step / 2; v += a->step) {
        line(c, LEFT, place(a, v), RIGHT, place(a, v), "grid");
        snprintf(text, sizeof text, "%.*f", decimals(a->step), fabs(v) < a->step / 1e6 ? 0 : v);
        words(c, LEFT - 8, place(a, v) + 4, "tick end", text);
    }
    upright(c, LEFT - 62, (a->from + a->to) / 2, label);
}

/* Numbers of versions under the columns, as many as there is room for. */
static void version_axis(struct chart *c, double y)
{
    char text[32];
    size_t every = 1 + (c->n - 1) / 20;
    for (size_t i = 0; i < c->n; i += every) {
        snprintf(text, sizeof text, "v%lld", version_number(c, i));
        words(c, column(c, i), y + 16, "tick middle", text);
    }
    words(c, (LEFT + RIGHT) / 2.0, y + 34, "label middle", "version");
}

static void mark(struct chart *c, size_t i, double y)
{
    const json_t *aliases = json_object_get(c->versions[i], "aliases"),
                 *created = json_object_get(c->versions[i], "created_s");
    time_t t = json_is_integer(created) ? (time_t)json_integer_value(created) : 0;
    char when[64] = "";
    struct tm tm;
    if (t && gmtime_r(&t, &tm))
        strftime(when, sizeof when, ", published %Y-%m-%d %H:%M:%S UTC", &tm);
    buf_printf(c->out, "<path class=\"mark\" d=\"M%.1f %.1fl-4 8h8z\"><title>version %lld%s", column(c, i), y,
               version_number(c, i), when);
    struct buf names = {0};
    for (size_t k = 0; k < json_array_size(aliases); k++)
        buf_printf(&names, "%s%s", k ? ", " : "",
                   json_string_value(json_array_get(aliases, k)) ? json_string_value(json_array_get(aliases, k)) : "");
    if (names.len) {
        buf_printf(c->out, ", ");
        put_text(c->out, buf_cstr(&names));
    }
    buf_printf(c->out, "</title></path>\n");
    if (names.len) {
        c->alias_row = column(c, i) - c->alias_x < 6.0 * (double)names.len + 40 ? (c->alias_row + 1) % 2 : 0;
        c->alias_x = column(c, i);
        words(c, c->alias_x, CURVES_TOP - 6 - 13 * c->alias_row, "tick middle alias", buf_cstr(&names));
    }
    buf_release(&names);
}

static void curve(struct chart *c, size_t domain, const struct axis *y)
{
    bool pen = false;
    buf_printf(c->out, "<path class=\"curve c%zu d%zu\" d=\"", domain % COLOURS, domain / COLOURS % 3);
    for (size_t i = 0; i < c->n; i++) {
        double v = c->points[i * c->n_domains + domain].loss;
        if (isfinite(v))
            buf_printf(c->out, "%c%.1f %.1f", pen ? 'L' : 'M', column(c, i), place(y, v));
        pen = isfinite(v);
    }
    buf_printf(c->out, "\"><title>");
    put_text(c->out, c->domains[domain]);
    buf_printf(c->out, "</title></path>\n");
    for (size_t i = 0; i < c->n; i++) { /* a lone value would leave no line */
        double v = c->points[i * c->n_domains + domain].loss;
        if (isfinite(v))
            buf_printf(c->out, "<circle class=\"dot c%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"%s\"/>\n", domain % COLOURS,
                       column(c, i), place(y, v), c->n > 60 ? "1" : "2.2");
    }
}

static double draw_curves(struct chart *c)
{
    double low = INFINITY, high = -INFINITY, bottom = CURVES_TOP + CURVES_HEIGHT;
    for (size_t i = 0; i < c->n * c->n_domains; i++)
        if (isfinite(c->points[i].loss)) {
            low = fmin(low, c->points[i].loss);
            high = fmax(high, c->points[i].loss);
        }
    words(c, LEFT, CURVES_TOP - 42, "heading", "Loss of each domain's probe, version by version (lower is better)");
    if (low > high) {
        words(c, LEFT, CURVES_TOP + 30, "label", "No losses have been measured yet.");
        low = 0, high = 1;
    }
    struct axis y = nice(low, high, bottom, CURVES_TOP, 6);
    y_axis(c, &y, "loss, nats per token");
    for (size_t d = 0; d < c->n_domains; d++)
        curve(c, d, &y);
    for (size_t i = 0; i < c->n; i++)
        mark(c, i, bottom);
    version_axis(c, bottom + 6);
    for (size_t d = 0; d < c->n_domains && d < 16; d++) {
        double at = CURVES_TOP + 8 + 20.0 * (double)d;
        buf_printf(c->out, "<path class=\"curve c%zu d%zu\" d=\"M%d %.1fh26\"/>\n", d % COLOURS, d / COLOURS % 3,
                   RIGHT + 16, at);
        words(c, RIGHT + 50, at + 4, "label", c->domains[d]);
    }
    if (c->n_domains > 16)
        words(c, RIGHT + 16, CURVES_TOP + 8 + 20 * 16, "label", "and more: see the map");
    buf_printf(c->out, "<path class=\"mark\" d=\"M%d %.1fl-4 8h8z\"/>\n", RIGHT + 28, bottom);
    words(c, RIGHT + 50, bottom + 8, "label", "published");
    return bottom;
}

static double draw_heat(struct chart *c, double top)
{
    double w = (RIGHT - LEFT) / (double)c->n;
    words(c, LEFT, top - 16, "heading", "Learnt since the base, domain by version");
    for (size_t d = 0; d < c->n_domains; d++) {
        double y = top + ROW * (double)d;
        words(c, LEFT - 8, y + 15, "tick end", c->domains[d]);
        for (size_t i = 0; i < c->n; i++) {
            double v = c->points[i * c->n_domains + d].learnt;
            char kind[8] = "none";
            if (isfinite(v) && c->top > 0)
                snprintf(kind, sizeof kind, "%c%d", v >= 0 ? 'g' : 'b',
                         (int)fmin(LEVELS, fmax(1, ceil(LEVELS * fabs(v) / c->top))));
            buf_printf(c->out, "<rect class=\"cell %s\" x=\"%.1f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\"><title>",
                       kind, LEFT + w * (double)i, y, w > 6 ? w - 1.5 : w, ROW - 2);
            put_text(c->out, c->domains[d]);
            if (isfinite(v))
                buf_printf(c->out, ", version %lld: %+.3f nats per token</title></rect>\n", version_number(c, i), v);
            else
                buf_printf(c->out, ", version %lld: not measured</title></rect>\n", version_number(c, i));
        }
    }
    double bottom = top + ROW * (double)c->n_domains;
    version_axis(c, bottom);
    for (int k = -LEVELS; k <= LEVELS; k++) {
        char kind[8] = "none", text[32];
        double y = top + 14 * (LEVELS - k);
        if (k)
            snprintf(kind, sizeof kind, "%c%d", k > 0 ? 'g' : 'b', abs(k));
        buf_printf(c->out, "<rect class=\"key %s\" x=\"%d\" y=\"%.1f\" width=\"22\" height=\"13\"/>\n", kind,
                   RIGHT + 18, y);
        snprintf(text, sizeof text, k ? "%+.2f%s" : "not measured", c->top * k / LEVELS,
                 k == LEVELS ? " nats per token" : "");
        if (k == LEVELS || k == -LEVELS || !k)
            words(c, RIGHT + 46, y + 11, "tick", text);
    }
    return fmax(bottom, top + 14 * (2 * LEVELS + 1) - 20);
}

static double draw_frontier(struct chart *c, double top)
{
    double bottom = top + FRONTIER_HEIGHT, *x = xcalloc(c->n, sizeof *x), *y = xcalloc(c->n, sizeof *y);
    double low_x = 0, high_x = -INFINITY, low_y = 0, high_y = -INFINITY;
    size_t points = 0;
    for (size_t i = 0; i < c->n; i++) {
        const json_t *m = json_object_get(c->versions[i], "metrics");
        x[i] = number(m, "learnt_mean");
        y[i] = number(m, "peak_forgetting");
        if (!isfinite(x[i]) || !isfinite(y[i]))
            continue;
        points++;
        low_x = fmin(low_x, x[i]), high_x = fmax(high_x, x[i]);
        low_y = fmin(low_y, y[i]), high_y = fmax(high_y, y[i]);
    }
    words(c, LEFT, top - 16, "heading", "Learning and forgetting: a point a version (right and down is better)");
    if (!points) {
        words(c, LEFT, top + 30, "label", "No version has been compared with an earlier one yet.");
        high_x = high_y = 1;
    }
    struct axis ax = nice(low_x, high_x, LEFT, RIGHT, 8), ay = nice(low_y, high_y, bottom, top, 6);
    y_axis(c, &ay, "forgotten, nats per token");
    for (double v = ax.low; v <= ax.high + ax.step / 2; v += ax.step) {
        char text[32];
        line(c, place(&ax, v), top, place(&ax, v), bottom, "grid");
        snprintf(text, sizeof text, "%.*f", decimals(ax.step), fabs(v) < ax.step / 1e6 ? 0 : v);
        words(c, place(&ax, v), bottom + 16, "tick middle", text);
    }
    words(c, (LEFT + RIGHT) / 2.0, bottom + 34, "label middle",
          "learnt since the base, nats per token, mean over domains");
    words(c, RIGHT + 16, top + 12, "label", "forgotten: from each");
    words(c, RIGHT + 16, top + 30, "label", "domain's best, mean");
    bool pen = false;
    buf_printf(c->out, "<path class=\"trail\" d=\"");
    for (size_t i = 0; i < c->n; i++)
        if (isfinite(x[i]) && isfinite(y[i])) {
            buf_printf(c->out, "%c%.1f %.1f", pen ? 'L' : 'M', place(&ax, x[i]), place(&ay, y[i]));
            pen = true;
        }
    buf_printf(c->out, "%s\"/>\n", pen ? "" : "M0 0");
    for (size_t i = 0; i < c->n; i++) {
        char text[32];
        if (!isfinite(x[i]) || !isfinite(y[i]))
            continue;
        bool newest = i + 1 == c->n;
        buf_printf(
            c->out,
            "<circle class=\"point%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"%d\"><title>version %lld: learnt %+.3f, forgotten "
            "%+.3f nats per token</title></circle>\n",
            newest ? " newest" : "", place(&ax, x[i]), place(&ay, y[i]), newest ? 6 : 4, version_number(c, i), x[i],
            y[i]);
        snprintf(text, sizeof text, "v%lld", version_number(c, i));
        if (newest || i % (1 + c->n / 8) == 0)
            words(c, place(&ax, x[i]) + 8, place(&ay, y[i]) - 7, "tick", text);
    }
    free(x);
    free(y);
    return bottom;
}

/* Both themes; colour is never alone: dashes, places and titles say it too. */
static const char STYLE[] =
    "<style>\n"
    "svg{--ground:#fff;--ink:#1b2327;--soft:#566269;--line:#e3e1da;--none:#efeee9;"
    "--g1:#e3f1ef;--g2:#bfe0dc;--g3:#8cc7c1;--g4:#2a827d;--g5:#0b5b59;"
    "--b1:#fbece1;--b2:#f6d2b6;--b3:#eba879;--b4:#b3561b;--b5:#8a3a08;"
    "--c0:#1f4e5f;--c1:#b07a17;--c2:#2a827d;--c3:#8a5a9e;--c4:#b3561b;--c5:#5b7d2e;--c6:#4a6fb5;--c7:#a34560}\n"
    "@media(prefers-color-scheme:dark){svg{--ground:#182227;--ink:#e8ecec;--soft:#a3b0b5;--line:#2d3b41;--none:#27343a;"
    "--g1:#1b3335;--g2:#1c4a4a;--g3:#1f6c6a;--g4:#2f9a95;--g5:#69d0c8;"
    "--b1:#3a2a20;--b2:#573621;--b3:#854b22;--b4:#bf6c2f;--b5:#f0a467;"
    "--c0:#6fb1c8;--c1:#e0b155;--c2:#55c0b8;--c3:#c196d6;--c4:#ea9460;--c5:#9cc266;--c6:#8fb0ef;--c7:#e08aa3}}\n"
    "text{font:12px system-ui,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif;fill:var(--ink)}"
    ".heading{font-size:15px;font-weight:600}.tick{fill:var(--soft);font-size:11px}.label{fill:var(--soft)}"
    ".title{font-size:19px;font-weight:650}.middle{text-anchor:middle}.end{text-anchor:end}.alias{font-weight:600}\n"
    ".ground{fill:var(--ground)}.grid{stroke:var(--line)}.curve{fill:none;stroke-width:2}.d1{stroke-dasharray:7 4}"
    ".d2{stroke-dasharray:2 "
    "4}.mark{fill:var(--ink)}.none{fill:var(--none)}.trail{fill:none;stroke:var(--line);stroke-width:2}"
    ".point{fill:var(--c2)}.newest{fill:var(--c4)}\n"
    ".g1{fill:var(--g1)}.g2{fill:var(--g2)}.g3{fill:var(--g3)}.g4{fill:var(--g4)}.g5{fill:var(--g5)}"
    ".b1{fill:var(--b1)}.b2{fill:var(--b2)}.b3{fill:var(--b3)}.b4{fill:var(--b4)}.b5{fill:var(--b5)}\n"
    ".curve.c0{stroke:var(--c0)}.curve.c1{stroke:var(--c1)}.curve.c2{stroke:var(--c2)}.curve.c3{stroke:var(--c3)}"
    ".curve.c4{stroke:var(--c4)}.curve.c5{stroke:var(--c5)}.curve.c6{stroke:var(--c6)}.curve.c7{stroke:var(--c7)}\n"
    ".dot.c0{fill:var(--c0)}.dot.c1{fill:var(--c1)}.dot.c2{fill:var(--c2)}.dot.c3{fill:var(--c3)}"
    ".dot.c4{fill:var(--c4)}.dot.c5{fill:var(--c5)}.dot.c6{fill:var(--c6)}.dot.c7{fill:var(--c7)}\n"
    "</style>\n";

static void draw(struct chart *c)
{
    double heat_top = CURVES_TOP + CURVES_HEIGHT + GAP;
    double heat_rows = fmax(ROW * (double)c->n_domains, 14 * (2 * LEVELS + 1) - 20);
    double height = heat_top + heat_rows + GAP + FRONTIER_HEIGHT + 60;
    buf_printf(
        c->out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" height=\"%.0f\" role=\"img\" "
        "aria-label=\"%zu versions and %zu domains: losses, what was learnt, what was forgotten\">\n",
        WIDTH, height, WIDTH, height, c->n, c->n_domains);
    buf_put(c->out, STYLE, sizeof STYLE - 1);
    buf_printf(c->out, "<rect class=\"ground\" width=\"%d\" height=\"%.0f\"/>\n", WIDTH, height);
    draw_curves(c);
    double bottom = draw_heat(c, heat_top);
    draw_frontier(c, bottom + GAP);
    buf_printf(c->out, "</svg>\n");
}

enum status chart_draw(const json_t *versions, struct buf *out, struct err *err)
{
    struct chart c = {.out = out};
    enum status st = read_versions(&c, versions, err);
    if (!st)
        draw(&c);
    free(c.versions);
    free(c.domains);
    free(c.points);
    return st;
}
