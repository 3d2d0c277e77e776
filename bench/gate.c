/* bench_gate: the gate's operating curve, by bootstrap from recorded losses.
 *
 *     bench_gate [--results FILE] [--apart STAGES] [--rounds N] [--lineages N] [--json FILE]
 *
 * FILE is of bench_continual. Two scores of one run on the same windows of a domain (right after its stage, and later) give
 * paired differences as real ones are: heavy tails, windows of one document alike. What the gate can decide depends on their
 * width, so it is printed; --apart takes scores at most so many stages apart (1: what one round does; a domain that is taught between
 * the two is left out, it gains far more than its budget). Recentred to a true harm of h nats, they are the population that rounds are drawn from: documents with replacement,
 * until the gate has its 256 windows; the product's own gate_judge() looks at 64, 128, 256 of them. "Refused" is then
 * known against the truth. The line has five domains; one is harmed, or all are.
 *
 * Lineages: the windows stay the same and every candidate is compared with the best version so far, as on a line, so a
 * lucky reference is hard on all that follow. Harmless ones show whether the gate ratchets shut; ones that lose a
 * little every round show how much is lost before it says no. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"
#include "base/hash.h"
#include "coordinator/core/gate.h"
#include "coordinator/core/settings.h"

enum { DOMAINS = 5, WINDOWS = 256, PAIRS_MAX = 256, LINEAGE_ROUNDS = 300 };

struct pair { /* differences of one domain, recentred */
    char name[160];
    double *diff;
    uint32_t *document;
    uint32_t n, n_documents;
    double mean, sd; /* before recentring */
};

struct bench {
    const char *results, *json;
    uint32_t rounds, lineages, apart;
    struct pair pairs[PAIRS_MAX];
    uint32_t n_pairs;
    struct settings settings;
    struct rng rng;
    struct buf out;
};

/* ---- what was recorded */

static const json_t *cell(const json_t *cells, const char *key)
{
    return json_object_get(cells, key);
}

static void add_pair(struct bench *b, const char *name, const json_t *before, const json_t *after, const json_t *base)
{
    const json_t *x = json_object_get(before, "windows"), *y = json_object_get(after, "windows"),
                 *documents = json_object_get(base, "documents");
    size_t n = json_array_size(x);
    if (!n || json_array_size(y) != n || json_array_size(documents) != n || b->n_pairs == PAIRS_MAX)
        return;
    struct pair *p = &b->pairs[b->n_pairs++];
    *p = (struct pair){.n = (uint32_t)n};
    snprintf(p->name, sizeof p->name, "%s", name);
    p->diff = xcalloc(n, sizeof *p->diff);
    p->document = xcalloc(n, sizeof *p->document);
    double square = 0;
    for (size_t i = 0; i < n; i++) {
        p->diff[i] = json_number_value(json_array_get(y, i)) - json_number_value(json_array_get(x, i));
        p->mean += p->diff[i] / (double)n;
        json_int_t id = json_integer_value(json_array_get(documents, i));
        uint32_t at = 0; /* documents counted densely, in the order they come */
        for (size_t j = 0; j < i; j++)
            if (json_integer_value(json_array_get(documents, j)) == id)
                break;
            else if (p->document[j] + 1 > at)
                at = p->document[j] + 1;
        for (size_t j = 0; j < i; j++)
            if (json_integer_value(json_array_get(documents, j)) == id)
                at = p->document[j];
        p->document[i] = at;
        p->n_documents = at + 1 > p->n_documents ? at + 1 : p->n_documents;
    }
    for (size_t i = 0; i < n; i++) {
        p->diff[i] -= p->mean;
        square += p->diff[i] * p->diff[i];
    }
    p->sd = sqrt(square / (double)(n - 1));
}

static bool is_taught(const json_t *orders, unsigned stage, const char *domain)
{
    size_t n = json_array_size(json_array_get(orders, 0));
    if (!n)
        return false;
    const json_t *order = json_array_get(orders, (stage - 1) / n);
    const char *name = json_string_value(json_array_get(order, (stage - 1) % n));
    return name && strcmp(name, domain) == 0;
}

/* "eval ARM RATE SEED STAGE DOMAIN audit": later scores of the same run and domain beside it, until it is taught again. */
static void find_pairs(struct bench *b, const json_t *cells, const json_t *orders)
{
    const char *key;
    json_t *first;
    json_object_foreach((json_t *)cells, key, first)
    {
        char run[80], domain[64], base_key[200], other[200];
        unsigned stage;
        int at = 0;
        if (sscanf(key, "eval %n%*s %*s %*s %u %63s audit", &at, &stage, domain) != 2 ||
            strncmp(key, "eval base", 9) == 0)
            continue;
        const char *end = key + at;
        for (int words = 0; words < 3; end++)
            words += *end == ' ';
        snprintf(run, sizeof run, "%.*s", (int)(end - key - 1), key);
        snprintf(base_key, sizeof base_key, "eval base 0 0 0 %s audit", domain);
        for (unsigned later = stage + 1; later <= stage + b->apart && !is_taught(orders, later, domain); later++) {
            snprintf(other, sizeof other, "%s %u %s audit", run, later, domain);
            if (cell(cells, other))
                add_pair(b, other, first, cell(cells, other), cell(cells, base_key));
        }
    }
}

static void load(struct bench *b)
{
    struct buf file = {0};
    struct err err;
    json_t *cells = json_object(), *orders = NULL;
    if (file_read(b->results, 256 << 20, &file, &err) != ST_OK) {
        fprintf(stderr, "bench_gate: %s\n", err.text);
        exit(1);
    }
    for (size_t at = 0; at < file.len;) {
        const uint8_t *end = memchr(file.data + at, '\n', file.len - at);
        if (!end)
            break;
        json_error_t why;
        json_t *line = json_loadb((const char *)file.data + at, (size_t)(end - file.data) - at, 0, &why);
        const char *key = json_string_value(json_object_get(line, "cell"));
        if (key)
            json_object_set(cells, key, line);
        else if (!orders)
            orders = json_incref(json_object_get(json_object_get(line, "config"), "orders"));
        json_decref(line);
        at = (size_t)(end - file.data) + 1;
    }
    find_pairs(b, cells, orders);
    json_decref(orders);
    json_decref(cells);
    buf_release(&file);
    if (!b->n_pairs) {
        fprintf(stderr, "bench_gate: %s holds no two scores of one run and domain: run bench_continual further\n",
                b->results);
        exit(1);
    }
}

/* ---- rounds */

/* WINDOWS differences in random order: documents drawn with replacement, their windows all. */
static void draw_windows(struct bench *b, const struct pair *p, double *out)
{
    uint32_t n = 0, order[WINDOWS];
    double in_order[WINDOWS];
    while (n < WINDOWS) {
        uint32_t document = (uint32_t)rng_below(&b->rng, p->n_documents);
        for (uint32_t i = 0; i < p->n && n < WINDOWS; i++)
            if (p->document[i] == document)
                in_order[n++] = p->diff[i];
    }
    for (uint32_t i = 0; i < WINDOWS; i++)
        order[i] = i;
    for (uint32_t i = WINDOWS; i > 1; i--) {
        uint32_t j = (uint32_t)rng_below(&b->rng, i), t = order[i - 1];
        order[i - 1] = order[j];
        order[j] = t;
    }
    for (uint32_t i = 0; i < WINDOWS; i++)
        out[i] = in_order[order[i]];
}

struct verdict {
    bool refused;
    uint32_t windows;
};

/* All looks of one round over differences diff[domain][window]. `gates` tells which domains were better. */
static struct verdict judge(const struct bench *b, double diff[DOMAINS][WINDOWS], struct gate_domain gates[DOMAINS])
{
    struct verdict v = {0};
    enum gate_outcome outcome = GATE_LOOK;
    for (uint32_t d = 0; d < DOMAINS; d++)
        gates[d] = (struct gate_domain){.budget = b->settings.forget_budget, .available = WINDOWS, .diff = diff[d]};
    for (unsigned look = 0; look < GATE_LOOKS && outcome == GATE_LOOK; look++) {
        for (uint32_t d = 0; d < DOMAINS; d++)
            if (!gates[d].decided)
                gates[d].n = b->settings.looks[look] < WINDOWS ? b->settings.looks[look] : WINDOWS;
        outcome = gate_judge(gates, DOMAINS, b->settings.error_rate, look, look == GATE_LOOKS - 1);
        for (uint32_t d = 0; d < DOMAINS; d++)
            gates[d].decided = gates[d].outcome == GATE_PASS;
    }
    for (uint32_t d = 0; d < DOMAINS; d++)
        v.windows += gates[d].n;
    v.refused = outcome == GATE_REFUSE;
    return v;
}

static void measure_harm(struct bench *b, double budgets, bool everywhere)
{
    static double diff[DOMAINS][WINDOWS];
    struct gate_domain gates[DOMAINS];
    uint64_t refused = 0, windows = 0;
    for (uint32_t r = 0; r < b->rounds; r++) {
        for (uint32_t d = 0; d < DOMAINS; d++) {
            draw_windows(b, &b->pairs[rng_below(&b->rng, b->n_pairs)], diff[d]);
            double h = d == 0 || everywhere ? budgets * b->settings.forget_budget : 0;
            for (uint32_t i = 0; i < WINDOWS; i++)
                diff[d][i] += h;
        }
        struct verdict v = judge(b, diff, gates);
        refused += v.refused;
        windows += v.windows;
    }
    double share = (double)refused / b->rounds, mean = (double)windows / b->rounds / DOMAINS;
    printf("  %5.2f budgets in %-11s refused %6.2f %%   windows a domain %.0f\n", budgets,
           everywhere ? "all domains" : "one domain", 100 * share, mean);
    buf_printf(&b->out, "%s{\"budgets\": %g, \"domains\": %d, \"refused\": %.5f, \"windows\": %.1f}",
               b->out.data[b->out.len - 1] == '[' ? "" : ", ", budgets, everywhere ? DOMAINS : 1, share, mean);
}

/* ---- lineages */

struct lineage {
    double refused_first, refused_last; /* share of the first and last third of the rounds */
    double lost;                        /* true loss in nats when a round is first refused; the largest domain's */
    uint32_t first_refusal;
};

/* Each version's window errors are half a recorded difference's variance, so that the difference of two is as recorded. */
static struct lineage run_lineage(struct bench *b, double drift)
{
    static double reference[DOMAINS][WINDOWS], candidate[DOMAINS][WINDOWS], diff[DOMAINS][WINDOWS];
    struct gate_domain gates[DOMAINS];
    struct lineage out = {.first_refusal = LINEAGE_ROUNDS};
    const struct pair *pairs[DOMAINS];
    double truth[DOMAINS] = {0}; /* of the newest published version */
    for (uint32_t d = 0; d < DOMAINS; d++) {
        pairs[d] = &b->pairs[rng_below(&b->rng, b->n_pairs)];
        draw_windows(b, pairs[d], reference[d]);
        for (uint32_t i = 0; i < WINDOWS; i++)
            reference[d][i] *= M_SQRT1_2;
    }
    for (uint32_t r = 0; r < LINEAGE_ROUNDS; r++) {
        for (uint32_t d = 0; d < DOMAINS; d++) {
            draw_windows(b, pairs[d], candidate[d]);
            for (uint32_t i = 0; i < WINDOWS; i++) {
                candidate[d][i] = candidate[d][i] * M_SQRT1_2 + truth[d] + drift;
                diff[d][i] = candidate[d][i] - reference[d][i];
            }
        }
        struct verdict v = judge(b, diff, gates);
        if (v.refused && out.first_refusal == LINEAGE_ROUNDS) {
            out.first_refusal = r;
            out.lost = truth[0];
        }
        out.refused_first += v.refused && r < LINEAGE_ROUNDS / 3 ? 3.0 / LINEAGE_ROUNDS : 0;
        out.refused_last += v.refused && r >= 2 * LINEAGE_ROUNDS / 3 ? 3.0 / LINEAGE_ROUNDS : 0;
        for (uint32_t d = 0; d < DOMAINS && !v.refused; d++) {
            truth[d] += drift;
            if (gates[d].better)
                memcpy(reference[d], candidate[d], sizeof reference[d]);
        }
    }
    if (out.first_refusal == LINEAGE_ROUNDS)
        out.lost = truth[0];
    return out;
}

static void measure_lineages(struct bench *b, double drift)
{
    double first = 0, last = 0, lost = 0, most = -INFINITY, rounds = 0;
    for (uint32_t i = 0; i < b->lineages; i++) {
        struct lineage l = run_lineage(b, drift);
        first += l.refused_first / b->lineages;
        last += l.refused_last / b->lineages;
        lost += l.lost / b->lineages;
        most = l.lost > most ? l.lost : most;
        rounds += (double)l.first_refusal / b->lineages;
    }
    printf("  %+.4f nats a round   refused: first third %.2f %%, last third %.2f %%   first refusal after %.0f rounds, "
           "%+.4f "
           "nats (at most %+.4f) from the start\n",
           drift, 100 * first, 100 * last, rounds, lost, most);
    buf_printf(&b->out,
               "%s{\"drift\": %g, \"refused_first\": %.5f, \"refused_last\": %.5f, \"rounds\": %.1f, \"lost\": "
               "%.5f, \"lost_most\": %.5f}",
               b->out.data[b->out.len - 1] == '[' ? "" : ", ", drift, first, last, rounds, lost, most);
}

/* ---- */

static bool parse(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--results"))
            b->results = value;
        else if (!strcmp(argv[i], "--rounds"))
            b->rounds = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--lineages"))
            b->lineages = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--apart"))
            b->apart = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--json"))
            b->json = value;
        else
            return false;
    }
    return b->rounds > 0 && b->lineages > 0 && b->apart > 0;
}

int main(int argc, char **argv)
{
    static const double harms[] = {0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3}, drifts[] = {0, -0.002, 0.001, 0.005};
    static struct bench b = {
        .results = "bench/continual/results/smollm2-135m-30k.jsonl", .rounds = 4000, .lineages = 40, .apart = 1};
    struct err err;
    if (!parse(&b, argc, argv)) {
        fprintf(stderr,
                "usage: bench_gate [--results FILE] [--apart STAGES] [--rounds N] [--lineages N] [--json FILE]\n");
        return 2;
    }
    hash_start();
    settings_default(&b.settings);
    rng_seed(&b.rng, 1);
    load(&b);
    double sd = 0;
    uint32_t documents = 0;
    for (uint32_t i = 0; i < b.n_pairs; i++) {
        sd += b.pairs[i].sd / b.n_pairs;
        documents += b.pairs[i].n_documents;
    }
    printf("%u recorded pairs, %.1f documents each, standard deviation of a window's difference %.4f nats on average\n"
           "budget %.3f, error rate %.3f, looks %u %u %u, %d domains, %u rounds each\n",
           b.n_pairs, (double)documents / b.n_pairs, sd, b.settings.forget_budget, b.settings.error_rate,
           b.settings.looks[0], b.settings.looks[1], b.settings.looks[2], DOMAINS, b.rounds);
    buf_printf(&b.out, "{\"bench\": \"gate\", \"pairs\": %u, \"sd\": %.5f, \"budget\": %g, \"rounds\": %u, \"harm\": [",
               b.n_pairs, sd, b.settings.forget_budget, b.rounds);
    for (size_t i = 0; i < sizeof harms / sizeof harms[0]; i++)
        measure_harm(&b, harms[i], false);
    for (size_t i = 0; i < sizeof harms / sizeof harms[0]; i++)
        measure_harm(&b, harms[i], true);
    printf("lineages of %d rounds, %u each:\n", LINEAGE_ROUNDS, b.lineages);
    buf_printf(&b.out, "], \"lineages\": [");
    for (size_t i = 0; i < sizeof drifts / sizeof drifts[0]; i++)
        measure_lineages(&b, drifts[i]);
    buf_printf(&b.out, "]}\n");
    if (b.json && file_write_durable(b.json, b.out.data, b.out.len, 0644, &err) != ST_OK) {
        fprintf(stderr, "bench_gate: %s\n", err.text);
        return 1;
    }
    for (uint32_t i = 0; i < b.n_pairs; i++) {
        free(b.pairs[i].diff);
        free(b.pairs[i].document);
    }
    buf_release(&b.out);
    return 0;
}
