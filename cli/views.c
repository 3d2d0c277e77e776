#include "cli/views.h"

#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/table.h"

enum { SMALL = 64, LIST = 512, KEY_WIDTH = 9 };

/* ---- fields ------------------------------------------------------------------------------------------------------ */

static uint64_t number(const json_t *j, const char *name)
{
    json_int_t v = json_integer_value(json_object_get(j, name));
    return v > 0 ? (uint64_t)v : 0;
}

static double real(const json_t *j, const char *name)
{
    return json_number_value(json_object_get(j, name));
}

static bool is(const json_t *j, const char *name)
{
    return json_is_true(json_object_get(j, name));
}

static const char *text(const json_t *j, const char *name)
{
    const char *s = json_string_value(json_object_get(j, name));
    return s && *s ? s : "-";
}

/* Texts of the moment: each call has the next of a few buffers, enough for one line of output. */
static char *scratch(void)
{
    static char ring[16][LIST];
    static unsigned next;
    return ring[next++ % 16];
}

__attribute__((format(printf, 1, 2))) static const char *say(const char *format, ...)
{
    char *out = scratch();
    va_list args;
    va_start(args, format);
    vsnprintf(out, LIST, format, args);
    va_end(args);
    return out;
}

static const char *loss(const json_t *j, const char *name, bool sign)
{
    if (!json_is_number(json_object_get(j, name)))
        return "-";
    return say(sign ? "%+.4f" : "%.4f", real(j, name));
}

static const char *bytes(uint64_t n)
{
    char *out = scratch();
    human_bytes(n, out, LIST);
    return out;
}

static const char *span(double s)
{
    if (s > 0 && s < 9.95)
        return say("%.1f s", s);
    char *out = scratch();
    human_time(s, out, LIST);
    return out;
}

static const char *grouped(uint64_t n) /* 12,345,678 */
{
    char digits[32], *out = scratch(), *at = out;
    int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n);
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = 0;
    return out;
}

static const char *count(const json_t *j, const char *name)
{
    return json_is_integer(json_object_get(j, name)) ? grouped(number(j, name)) : "-";
}

static const char *or_none(const json_t *j, const char *name) /* 0 is not worth saying */
{
    return number(j, name) ? grouped(number(j, name)) : "-";
}

static const char *sum(const json_t *j, const char *a, const char *b)
{
    uint64_t n = number(j, a) + number(j, b);
    return n ? grouped(n) : "-";
}

static const char *version(const json_t *j, const char *name)
{
    if (!json_is_integer(json_object_get(j, name)))
        return "-";
    return say("v%llu", (unsigned long long)number(j, name));
}

static const char *when(uint64_t unix_s)
{
    char *out = scratch();
    time_t t = (time_t)unix_s;
    struct tm utc;
    if (!unix_s || !gmtime_r(&t, &utc) || !strftime(out, LIST, "%Y-%m-%d %H:%M UTC", &utc))
        return "-";
    return out;
}

static const char *age(uint64_t then_s, uint64_t now_s)
{
    uint64_t s = now_s > then_s ? now_s - then_s : 0;
    if (s >= 2 * 86400)
        return say("%llu days", (unsigned long long)(s / 86400));
    return span((double)s);
}

static const char *plural(uint64_t n, const char *one)
{
    return say("%s %s%s", grouped(n), one, n == 1 ? "" : "s");
}

/* Appends to a list with commas. */
static void also(char *list, const char *item)
{
    size_t n = strlen(list);
    if (n + strlen(item) + 3 < LIST)
        snprintf(list + n, LIST - n, "%s%s", n ? ", " : "", item);
}

static const char *join(const json_t *array)
{
    char *out = scratch();
    size_t i;
    json_t *item;
    *out = 0;
    json_array_foreach(array, i, item) also(out, json_is_string(item) ? json_string_value(item) : "-");
    return *out ? out : "-";
}

static const char *flags(const json_t *v)
{
    char *out = scratch();
    *out = 0;
    if (is(v, "withdrawn"))
        also(out, "WITHDRAWN");
    if (is(v, "tainted"))
        also(out, "TAINTED");
    if (json_is_integer(json_object_get(v, "rollback_of"))) {
        char back[SMALL];
        snprintf(back, sizeof back, "repeats v%llu", (unsigned long long)number(v, "rollback_of"));
        also(out, back);
    } else if (!is(v, "gated")) {
        also(out, "not gated");
    }
    if (is(v, "partial"))
        also(out, "partial");
    return out;
}

static void heading(FILE *out, const char *title)
{
    fputc('\n', out);
    sentence(out, "%s", title);
}

/* ---- status ------------------------------------------------------------------------------------------------------ */

static const char *aliases(const json_t *object)
{
    char *out = scratch(), one[SMALL + 32];
    const char *name;
    json_t *v;
    *out = 0;
    json_object_foreach((json_t *)(uintptr_t)object, name, v)
    {
        snprintf(one, sizeof one, "%s v%lld", name, (long long)json_integer_value(v));
        also(out, one);
    }
    return *out ? out : "-";
}

static void status_round(FILE *out, const json_t *r)
{
    const char *phase = text(r, "phase");
    if (!strcmp(phase, "none")) {
        fact(out, KEY_WIDTH, "round", "none now; %s so far", grouped(number(r, "round")));
    } else if (!strcmp(phase, "evaluating")) {
        uint64_t all = number(r, "evaluations"), open = number(r, "evaluations_open");
        fact(out, KEY_WIDTH, "round", "%s: evaluating%s, look %llu; %llu of %s scored", grouped(number(r, "round")),
             number(r, "attempt") ? " half the step" : "", (unsigned long long)number(r, "look") + 1,
             (unsigned long long)(all - (open < all ? open : all)), plural(all, "task"));
    } else {
        fact(out, KEY_WIDTH, "round", "%s: %s; %llu of %s in", grouped(number(r, "round")), phase,
             (unsigned long long)number(r, "leases_accepted"), plural(number(r, "leases"), "lease"));
    }
    if (number(r, "refusals"))
        fact(out, KEY_WIDTH, "refused", "%s in a row (alluvium versions explain --round N)",
             plural(number(r, "refusals"), "round"));
}

static void status_domains(FILE *out, const json_t *list)
{
    struct table *t = table_new("domain|>text|>segments|>learnt|>waiting|>in work|>held|>skipped|>gone|>oldest|"
                                ">learnt in|>probe|reference");
    size_t i;
    json_t *d;
    json_array_foreach(list, i, d)
    {
        const json_t *s = json_object_get(d, "states");
        table_put(t, "%s", text(d, "domain"));
        table_put(t, "%s", bytes(number(d, "bytes")));
        table_put(t, "%s", count(d, "segments"));
        table_put(t, "%s", count(s, "done"));
        table_put(t, "%s", or_none(s, "pending"));
        table_put(t, "%s", sum(s, "leased", "accepted"));
        table_put(t, "%s", or_none(s, "quarantined"));
        table_put(t, "%s", or_none(s, "skipped"));
        table_put(t, "%s", sum(s, "superseded", "retracted"));
        table_put(t, "%s", number(d, "lag_ms") ? span((double)number(d, "lag_ms") / 1000) : "-");
        bool eta = number(s, "pending") + number(s, "leased") + number(s, "accepted") &&
                   json_is_integer(json_object_get(d, "eta_ms"));
        table_put(t, "%s", eta ? span((double)number(d, "eta_ms") / 1000) : "-");
        table_put(t, "%s", count(d, "gate_windows"));
        table_put(t, "%s", version(d, "reference"));
    }
    if (i)
        fputc('\n', out);
    table_print(&t, out);
}

static void status_leases(FILE *out, const json_t *r)
{
    struct table *t = table_new(">lease|phase|worker|>steps|>of|>failed tries");
    size_t i;
    json_t *l;
    json_array_foreach(json_object_get(r, "lease_list"), i, l)
    {
        table_put(t, "%s", count(l, "lease"));
        table_put(t, "%s", text(l, "phase"));
        table_put(t, "%s", text(l, "worker"));
        table_put(t, "%s", count(l, "done"));
        table_put(t, "%s", or_none(l, "total"));
        table_put(t, "%s", or_none(l, "failed_attempts"));
    }
    if (i)
        fputc('\n', out);
    table_print(&t, out);
}

static const char *seen(const json_t *m)
{
    return is(m, "here") ? "here" : say("gone %s", span((double)number(m, "seen_ms") / 1000));
}

static void status_members(FILE *out, const json_t *list)
{
    struct table *workers = table_new("worker|instance|seen|doing|>tokens/s"),
                 *servers = table_new("subscriber|instance|seen|serving|in place|target|trouble"),
                 *others = table_new("other peer|plane|instance|seen");
    size_t i;
    json_t *m;
    unsigned n_workers = 0, n_servers = 0, n_others = 0;
    json_array_foreach(list, i, m)
    {
        const char *plane = text(m, "plane");
        bool work = !strcmp(plane, "work"), models = !strcmp(plane, "models");
        struct table *t = work ? workers : models ? servers : others;
        *(work ? &n_workers : models ? &n_servers : &n_others) += 1;
        table_put(t, "%s", text(m, "key"));
        if (!work && !models)
            table_put(t, "%s", plane);
        table_put(t, "%.8s", text(m, "instance"));
        table_put(t, "%s", seen(m));
        if (work) {
            table_put(t, "%s", !is(m, "here") ? "-" : is(m, "waiting") ? "waiting for work" : "working");
            table_put(t, "%s", or_none(m, "tokens_per_s"));
        } else if (models) {
            table_put(t, "%s", version(m, "serving"));
            table_put(t, "%s", version(m, "staged"));
            table_put(t, "%s", text(m, "target"));
            table_put(t, "%s", text(m, "error"));
        }
    }
    fputs(n_workers ? "\n" : "", out);
    table_print(&workers, out);
    fputs(n_servers ? "\n" : "", out);
    table_print(&servers, out);
    fputs(n_others ? "\n" : "", out);
    table_print(&others, out);
}

void view_status(FILE *out, const json_t *s)
{
    const json_t *round = json_object_get(s, "round"), *members = json_object_get(s, "members");
    fact(out, KEY_WIDTH, "line", "%s, newest version %llu, session %s", text(s, "line"),
         (unsigned long long)number(s, "version"), count(s, "session"));
    if (is(s, "stopped") || json_is_string(json_object_get(s, "alarm")))
        fact(out, KEY_WIDTH, "ALARM", "%s%s", text(s, "alarm"),
             is(s, "stopped") ? "; leasing is stopped (alluvium resume)" : "");
    fact(out, KEY_WIDTH, "aliases", "%s", aliases(json_object_get(s, "aliases")));
    fact(out, KEY_WIDTH, "here", "%s, %s, %s; %s tokens/s", plural(number(s, "workers"), "worker"),
         plural(number(s, "subscribers"), "subscriber"), plural(number(s, "producers"), "producer"),
         count(s, "tokens_per_s"));
    fact(out, KEY_WIDTH, "disk", "%s free%s", bytes(number(s, "disk_free_bytes")),
         is(s, "disk_low") ? ": LOW, pushes are put off" : "");
    if (number(s, "quarantined"))
        fact(out, KEY_WIDTH, "held", "%s back (alluvium quarantine list)", plural(number(s, "quarantined"), "lease"));
    status_round(out, round);
    status_domains(out, json_object_get(s, "domains"));
    status_leases(out, round);
    status_members(out, members);
    if (number(s, "members_total") > json_array_size(members))
        sentence(out, "... and %s more peers", grouped(number(s, "members_total") - json_array_size(members)));
}

/* ---- versions ---------------------------------------------------------------------------------------------------- */

/* The domain that forgot most. */
static const json_t *worst(const json_t *v)
{
    const json_t *found = NULL;
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(v, "domains"), i,
                       d) if (json_is_number(json_object_get(d, "loss")) &&
                              (!found || real(d, "forgetting") > real(found, "forgetting"))) found = d;
    return found;
}

void view_versions(FILE *out, const json_t *answer, uint64_t now_s)
{
    struct table *t =
        table_new(">version|aliases|>age|>parent|>segments|>tokens|>training|>forgotten|>at most|in|remarks");
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(answer, "versions"), i, v)
    {
        const json_t *d = worst(v);
        table_put(t, "%s", count(v, "version"));
        table_put(t, "%s", join(json_object_get(v, "aliases")));
        table_put(t, "%s", age(number(v, "created_s"), now_s));
        /* a parent that is not the one before is worth a column */
        table_put(t, "%s", number(v, "parent") + 1 < number(v, "version") ? version(v, "parent") : "-");
        table_put(t, "%s", or_none(v, "segments"));
        table_put(t, "%s", or_none(v, "tokens"));
        table_put(t, "%s", real(v, "train_seconds") > 0 ? span(real(v, "train_seconds")) : "-");
        table_put(t, "%s", d ? loss(d, "forgetting", true) : "-");
        table_put(t, "%s", d ? loss(d, "forgetting_high", true) : "-");
        table_put(t, "%s", d ? text(d, "domain") : "-");
        table_put(t, "%s", flags(v));
    }
    table_print(&t, out);
    if (json_is_integer(json_object_get(answer, "next")))
        sentence(out, "older ones: alluvium versions list --from %s", count(answer, "next"));
}

/* Over all domains, see docs/metrics.md; only what was measured. */
static void version_measures(FILE *out, size_t width, const json_t *m)
{
    static const struct {
        const char *name, *words;
    } measures[] = {{"learnt_mean", "learnt"},
                    {"peak_forgetting", "forgotten since the best"},
                    {"backward_transfer", "backward transfer"},
                    {"forward_transfer", "forward transfer"},
                    {"general_delta", "general delta"},
                    {"sentinel", "sentinel"}};
    char line[LIST] = "";
    for (size_t i = 0; i < sizeof measures / sizeof measures[0]; i++)
        if (json_is_number(json_object_get(m, measures[i].name)))
            also(line, say("%s %s", measures[i].words, loss(m, measures[i].name, true)));
    if (*line)
        fact(out, (int)width, "measures", "%s", line);
}

static void version_domains(FILE *out, const json_t *list)
{
    struct table *t =
        table_new("domain|>windows|>tokens|>loss|reference|>its loss|>forgotten|>at most|>learnt since the "
                  "base");
    size_t i;
    json_t *d;
    json_array_foreach(list, i, d)
    {
        table_put(t, "%s", text(d, "domain"));
        table_put(t, "%s", count(d, "windows"));
        table_put(t, "%s", count(d, "tokens"));
        table_put(t, "%s", loss(d, "loss", false));
        table_put(t, "%s", version(d, "reference"));
        table_put(t, "%s", loss(d, "reference_loss", false));
        table_put(t, "%s", loss(d, "forgetting", true));
        table_put(t, "%s", loss(d, "forgetting_high", true));
        table_put(t, "%s", loss(d, "learnt", true));
    }
    if (i)
        heading(out, "losses, nats per token");
    table_print(&t, out);
}

void view_version(FILE *out, const json_t *v, uint64_t now_s)
{
    enum { WIDTH = 10 };
    const char *remarks = flags(v);
    fact(out, WIDTH, "version", "%s of %s", count(v, "version"), text(v, "line"));
    fact(out, WIDTH, "published", "%s, %s ago", when(number(v, "created_s")), age(number(v, "created_s"), now_s));
    if (*remarks)
        fact(out, WIDTH, "remarks", "%s", remarks);
    if (json_is_string(json_object_get(v, "withdrawn_reason")))
        fact(out, WIDTH, "withdrawn", "%s", text(v, "withdrawn_reason"));
    if (json_is_string(json_object_get(v, "tainted_reason")))
        fact(out, WIDTH, "tainted", "%s", text(v, "tainted_reason"));
    fact(out, WIDTH, "aliases", "%s", join(json_object_get(v, "aliases")));
    if (number(v, "version"))
        fact(out, WIDTH, "parent", "%s", version(v, "parent"));
    if (number(v, "round"))
        fact(out, WIDTH, "trained", "round %s: %s, %s, %s, %s of training", count(v, "round"),
             plural(number(v, "leases"), "lease"), plural(number(v, "segments"), "segment"),
             plural(number(v, "tokens"), "token"), span(real(v, "train_seconds")));
    fact(out, WIDTH, "verdict", "%s", text(v, "verdict"));
    if (number(v, "leases"))
        fact(out, WIDTH, "update", "%g of the step, norm %.4g, error of averaging %.3g", real(v, "step_factor"),
             real(v, "update_norm"), real(v, "averaging_error"));
    fact(out, WIDTH, "adapter", "rank %s, alpha %s", count(v, "rank"), count(v, "alpha"));
    version_measures(out, WIDTH, json_object_get(v, "metrics"));
    fact(out, WIDTH, "manifest", "%s", text(v, "manifest"));
    version_domains(out, json_object_get(v, "domains"));
    size_t i;
    json_t *f;
    heading(out, "files, with SHA-256");
    json_array_foreach(json_object_get(v, "files"), i, f)
    {
        const char *kind = text(f, "kind");
        fact(out, 5,
             !strcmp(kind, "peft")    ? "peft"
             : !strcmp(kind, "gguf")  ? "gguf"
             : !strcmp(kind, "state") ? "state"
                                      : "file",
             "%s  %s", text(f, "sha256"), bytes(number(f, "bytes")));
    }
    struct table *t = table_new(">lease|>generation|>weight|>ranges|delta");
    json_array_foreach(json_object_get(v, "deltas"), i, f)
    {
        table_put(t, "%s", count(f, "lease"));
        table_put(t, "%s", count(f, "generation"));
        table_put(t, "%.3f", real(f, "weight"));
        table_put(t, "%s", count(f, "ranges"));
        table_put(t, "%.16s", text(f, "delta"));
    }
    if (i)
        heading(out, "deltas");
    table_print(&t, out);
}

void view_change(FILE *out, const json_t *v)
{
    fact(out, KEY_WIDTH, "version", "%s", count(v, "version"));
    if (json_is_string(json_object_get(v, "mark")))
        fact(out, KEY_WIDTH, "mark", "%s", text(v, "mark"));
    if (number(v, "aliases"))
        fact(out, KEY_WIDTH, "aliases", "signed anew, number %s", count(v, "aliases"));
    if (number(v, "before") > number(v, "version"))
        fact(out, KEY_WIDTH, "careful",
             "it was at version %s: subscribers that have that do not go back; to undo a version, use rollback",
             count(v, "before"));
}

/* ---- verdict ----------------------------------------------------------------------------------------------------- */

void view_verdict(FILE *out, const json_t *v, uint64_t now_s)
{
    const json_t *work = json_object_get(v, "gate"), *gate = json_object_get(work, "gate"),
                 *twice = json_object_get(work, "scored_twice");
    char what[SMALL];
    snprintf(what, sizeof what, "%s%s", is(v, "published") ? "published as version " : "not published",
             is(v, "published") ? count(v, "version") : "");
    if (!json_is_object(work)) { /* version 0, a rollback */
        fact(out, KEY_WIDTH, "verdict", "%s: %s", what, text(v, "reason"));
        return;
    }
    fact(out, KEY_WIDTH, "verdict", "%s, %s ago", what, age(number(v, "time_s"), now_s));
    fact(out, KEY_WIDTH, "round", "%s: %s of %s, %s", count(v, "round"), count(work, "leases"),
         plural(number(work, "opened_with"), "lease"), real(work, "step") < 1 ? "half the step" : "the full step");
    fact(out, KEY_WIDTH, "gate", "%s after look %llu, error rate %g over all domains", text(gate, "outcome"),
         (unsigned long long)number(gate, "look") + 1, real(gate, "error_rate"));
    fact(out, KEY_WIDTH, "update", "norm %.4g, error of averaging %.3g", real(work, "update_norm"),
         real(work, "averaging_error"));
    if (number(twice, "windows"))
        fact(out, KEY_WIDTH, "twice", "%s scored by two workers, largest difference %.3g nats",
             plural(number(twice, "windows"), "window"), real(twice, "largest_difference"));
    if (number(work, "unscored_windows"))
        fact(out, KEY_WIDTH, "unscored", "%s", plural(number(work, "unscored_windows"), "window"));
    struct table *t = table_new("domain|reference|>windows|>of|>difference|>at least|>at most|>budget|outcome|remark");
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(gate, "domains"), i, d)
    {
        table_put(t, "%s", text(d, "domain"));
        table_put(t, "%s", version(d, "reference"));
        table_put(t, "%s", count(d, "windows"));
        table_put(t, "%s", count(d, "available"));
        table_put(t, "%s", loss(d, "mean", true));
        table_put(t, "%s", loss(d, "low", true));
        table_put(t, "%s", loss(d, "high", true));
        table_put(t, "%s", loss(d, "budget", false));
        table_put(t, "%s", text(d, "outcome"));
        table_put(t, "%s", text(d, "remark"));
    }
    if (i)
        heading(out, "loss now less loss at the reference, nats per token; more is worse");
    table_print(&t, out);
}

/* ---- trace ------------------------------------------------------------------------------------------------------- */

/* "v3-v5, v8" from rising numbers. */
static const char *runs(const json_t *array)
{
    char *out = scratch(), one[SMALL];
    *out = 0;
    for (size_t i = 0, n = json_array_size(array), end; i < n; i = end) {
        long long first = json_integer_value(json_array_get(array, i)), last = first;
        for (end = i + 1; end < n && last < LLONG_MAX && json_integer_value(json_array_get(array, end)) == last + 1;
             end++)
            last++;
        snprintf(one, sizeof one, last > first ? "v%lld-v%lld" : "v%lld", first, last);
        also(out, one);
    }
    return *out ? out : "-";
}

static const char *offsets(const json_t *j)
{
    unsigned long long first = number(j, "first"), n = number(j, "count");
    return n > 1 ? say("%llu-%llu", first, first + n - 1) : say("%llu", first);
}

static const char *because(const json_t *run)
{
    static const char *const names[] = {"version", "lease", "quarantine", "exclusion"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (json_is_integer(json_object_get(run, names[i])))
            return say("%s %s", names[i], count(run, names[i]));
    return "-";
}

static void trace_record(FILE *out, const json_t *answer)
{
    struct table *t = table_new(">revision|part|offsets|state|by|seen by|remark");
    size_t i, k;
    json_t *place, *run;
    sentence(out, "%s/%s: revision %s, %s", text(answer, "domain"), text(answer, "record"), count(answer, "revision"),
             is(answer, "live") ? "live" : "no longer live");
    fputc('\n', out);
    json_array_foreach(json_object_get(answer, "places"), i, place)
        json_array_foreach(json_object_get(place, "segments"), k, run)
    {
        table_put(t, "%s", count(place, "revision"));
        table_put(t, "%s", is(place, "probe") ? "probe" : "train");
        table_put(t, "%s", offsets(run));
        table_put(t, "%s", text(run, "state"));
        table_put(t, "%s", because(run));
        table_put(t, "%s%s", runs(json_object_get(run, "seen_by")), is(run, "seen_by_more") ? ", ..." : "");
        if (json_is_integer(json_object_get(place, "copy_of")))
            table_put(t, "copy of %s", count(place, "copy_of"));
        else
            table_put(t, "-");
    }
    table_print(&t, out);
    const json_t *gone = json_object_get(answer, "retraction");
    if (json_is_object(gone)) {
        uint64_t holders = number(gone, "holders_total");
        fputc('\n', out);
        fact(out, KEY_WIDTH, "retracted", "%s",
             is(gone, "purged") ? "gone from the files of the database"
                                : "the files of the database are being rewritten");
        fact(out, KEY_WIDTH, "workers", "%s",
             holders ? say("%s may hold it yet", plural(holders, "worker")) : "none holds it any more");
    }
    if (json_array_size(json_object_get(answer, "seen_by")))
        fact(out, KEY_WIDTH, "seen by", "%s; the newest that did not see it is %s",
             runs(json_object_get(answer, "seen_by")), version(answer, "clean"));
}

static void trace_ranges(FILE *out, const char *title, const json_t *list)
{
    struct table *t = table_new("domain|offsets|>segments");
    size_t i;
    json_t *r;
    json_array_foreach(list, i, r)
    {
        table_put(t, "%s", json_is_string(json_object_get(r, "name")) ? text(r, "name") : count(r, "domain"));
        table_put(t, "%s", offsets(r));
        table_put(t, "%s", count(r, "count"));
    }
    heading(out, title);
    if (!i)
        fprintf(out, "none\n");
    table_print(&t, out);
}

void view_trace(FILE *out, const json_t *answer)
{
    if (json_is_string(json_object_get(answer, "record"))) {
        trace_record(out, answer);
        return;
    }
    json_t *rising = json_array();
    const json_t *ancestors = json_object_get(answer, "ancestors");
    for (size_t i = json_array_size(ancestors); i-- > 0;)
        json_array_append(rising, json_array_get(ancestors, i));
    fact(out, KEY_WIDTH, "version", "%s", count(answer, "version"));
    fact(out, KEY_WIDTH, "ancestors", "%s", runs(rising));
    json_decref(rising);
    trace_ranges(out, "trained for this version", json_object_get(answer, "direct"));
    trace_ranges(out, "trained for its ancestors", json_object_get(answer, "inherited"));
    if (json_is_false(json_object_get(answer, "complete")))
        sentence(out, "... and more: the lineage is too long to list");
}
