#include "plan.h"

#include <math.h>
#include <string.h>

#define TUNED 0.0 /* the rate that plan_tuned_rate() finds */

static const double rates[] = {1e-4, 3e-4, 1e-3, 3e-3, 1e-2};
enum { N_RATES = sizeof rates / sizeof rates[0], FIRST_RATE = 2, SEEDS = 3 };

/* Called for every cell in order; true ends the walk. */
typedef bool visit_fn(void *user, const struct cell *cell);

struct walk {
    const struct lab *lab;
    visit_fn *visit;
    void *user;
    bool over;
};

static void visit(struct walk *w, struct cell cell)
{
    if (!w->over)
        w->over = w->visit(w->user, &cell);
}

/* The arms' names here are those of lab.c. */
static struct cell cell_of(const struct walk *w, const char *arm, double rate, uint32_t seed)
{
    struct cell cell = {.arm = arm_find(arm), .rate = rate, .seed = seed};
    if (rate == TUNED)
        cell.rate = plan_tuned_rate(w->lab, cell.arm);
    return cell;
}

static void train(struct walk *w, struct cell cell, uint32_t first, uint32_t last)
{
    cell.kind = CELL_TRAIN;
    for (cell.stage = first; cell.stage <= last; cell.stage++)
        visit(w, cell);
}

/* One row of the matrix: all domains after a stage. */
static void row(struct walk *w, struct cell cell, uint32_t stage, enum corpus_part part)
{
    cell.kind = CELL_EVAL;
    cell.stage = stage;
    cell.part = part;
    for (cell.domain = 0; cell.domain < lab_configuration(w->lab)->n_domains; cell.domain++)
        visit(w, cell);
}

/* Each domain right after its stage: what forgetting is measured from. The last one is in the pass's row. */
static void peaks(struct walk *w, struct cell cell, uint32_t pass)
{
    const struct lab_config *c = lab_configuration(w->lab);
    cell.kind = CELL_EVAL;
    cell.part = PART_AUDIT;
    for (uint32_t place = 0; place + 1 < c->n_domains && !cell.arm->joint; place++) {
        cell.stage = pass * c->n_domains + place + 1;
        cell.domain = c->order[pass][place];
        visit(w, cell);
    }
}

static void sentinels(struct walk *w, struct cell cell, uint32_t stage)
{
    const struct lab_config *c = lab_configuration(w->lab);
    cell.kind = CELL_EVAL;
    cell.stage = stage;
    cell.part = PART_AUDIT;
    for (uint32_t i = 0; i < LAB_SENTINELS && c->sentinels[i]; i++) {
        cell.domain = c->n_domains + i;
        visit(w, cell);
    }
}

static void own(struct walk *w, struct cell cell, uint32_t stage)
{
    cell.kind = CELL_OWN;
    cell.stage = stage;
    if (lab_has_own_text(w->lab))
        visit(w, cell);
}

/* Everything of one arm, rate and seed after a pass. A rate of 0 waits for its tuning. */
static void whole_pass(struct walk *w, struct cell cell, uint32_t pass)
{
    uint32_t D = lab_configuration(w->lab)->n_domains;
    if (cell.rate == TUNED)
        return;
    train(w, cell, pass * D + 1, (pass + 1) * D);
    row(w, cell, (pass + 1) * D, PART_AUDIT);
    peaks(w, cell, pass);
    sentinels(w, cell, (pass + 1) * D);
    own(w, cell, (pass + 1) * D);
}

/* Mean loss of the tuning parts after pass 1; NAN while one is missing. */
static double tuning_loss(const struct lab *lab, const struct arm *arm, double rate)
{
    uint32_t D = lab_configuration(lab)->n_domains;
    struct cell cell = {.kind = CELL_EVAL, .arm = arm, .rate = rate, .seed = 1, .stage = D, .part = PART_TUNING};
    double sum = 0;
    for (cell.domain = 0; cell.domain < D; cell.domain++)
        sum += lab_loss(lab, &cell);
    return sum / D;
}

/* Downhill over the rates until both neighbours are worse. Returns the best one, or 0 and the rate that is wanted next. */
static double find_rate(const struct lab *lab, const struct arm *arm, double *wanted)
{
    int at = FIRST_RATE;
    for (int step = -1; step <= 1; step += 2)
        while (at + step >= 0 && at + step < N_RATES) {
            double here = tuning_loss(lab, arm, rates[at]), there = tuning_loss(lab, arm, rates[at + step]);
            if (isnan(here) || isnan(there)) {
                *wanted = rates[isnan(here) ? at : at + step];
                return 0;
            }
            if (there >= here)
                break;
            at += step;
        }
    return rates[at];
}

/* The rates of an arm that are done, and the next one. */
static void tune(struct walk *w, const char *arm)
{
    uint32_t D = lab_configuration(w->lab)->n_domains;
    double wanted = 0;
    find_rate(w->lab, arm_find(arm), &wanted);
    for (int r = 0; r < N_RATES; r++) {
        struct cell cell = cell_of(w, arm, rates[r], 1);
        if (rates[r] != wanted && isnan(tuning_loss(w->lab, cell.arm, cell.rate)))
            continue;
        train(w, cell, 1, D);
        row(w, cell, D, PART_TUNING);
    }
}

/* The matrix's rows after every stage of a pass: a round's differences, for bench_gate. */
static void all_rows(struct walk *w, struct cell cell, uint32_t pass)
{
    uint32_t D = lab_configuration(w->lab)->n_domains;
    if (cell.rate == TUNED)
        return;
    for (uint32_t stage = pass * D + 1; stage <= (pass + 1) * D; stage++)
        row(w, cell, stage, PART_AUDIT);
}

static void walk(struct walk *w)
{
    static const char *const first[] = {"floor", "replay25", "joint"};
    static const char *const second[] = {"replay25-own-h2a4-p50-avg-ema30-92", "replay10", "replay25-w4",
                                         "replay25-dp4"};
    enum { N_SECOND = sizeof second / sizeof *second };
    static const char *const third[] = {"replay25-int8-w4", "replay25-mlp"};
    uint32_t D = lab_configuration(w->lab)->n_domains;
    /* One rate, one seed: the shape of the answer. */
    row(w, (struct cell){0}, 0, PART_AUDIT);
    for (int i = 0; i < 3; i++) {
        struct cell arm = cell_of(w, first[i], rates[FIRST_RATE], 1);
        train(w, arm, 1, D);
        row(w, arm, D, PART_AUDIT);
        peaks(w, arm, 0);
    }
    sentinels(w, (struct cell){0}, 0);
    for (int i = 0; i < 3; i++)
        sentinels(w, cell_of(w, first[i], rates[FIRST_RATE], 1), D);
    /* Every arm its own rate. */
    for (int i = 0; i < 3; i++)
        tune(w, first[i]);
    for (int i = 0; i < 2; i++)
        whole_pass(w, cell_of(w, first[i], TUNED, 1), 0);
    all_rows(w, cell_of(w, "replay25", TUNED, 1), 0);
    whole_pass(w, cell_of(w, "joint", TUNED, 1), 0);
    for (int i = 0; i < N_SECOND; i++) {
        tune(w, second[i]);
        whole_pass(w, cell_of(w, second[i], TUNED, 1), 0);
    }
    /* Further seeds, the second pass, then what refines the answer. */
    for (uint32_t seed = 2; seed <= SEEDS; seed++)
        for (int i = 0; i < 3; i++)
            whole_pass(w, cell_of(w, first[i], TUNED, seed), 0);
    for (uint32_t seed = 1; seed <= SEEDS; seed++)
        for (int i = 0; i < 3; i++)
            whole_pass(w, cell_of(w, first[i], TUNED, seed), 1);
    for (uint32_t seed = 2; seed <= SEEDS; seed++)
        for (int i = 0; i < N_SECOND; i++)
            whole_pass(w, cell_of(w, second[i], TUNED, seed), 0);
    for (uint32_t seed = 1; seed <= SEEDS; seed++)
        for (int i = 0; i < N_SECOND; i++)
            whole_pass(w, cell_of(w, second[i], TUNED, seed), 1);
    for (int i = 0; i < 2; i++) {
        tune(w, third[i]);
        for (uint32_t seed = 1; seed <= SEEDS; seed++)
            whole_pass(w, cell_of(w, third[i], TUNED, seed), 0);
    }
    for (uint32_t seed = 1; seed <= SEEDS; seed++) {
        for (uint32_t pass = 0; pass < LAB_PASSES; pass++) {
            all_rows(w, cell_of(w, "floor", TUNED, seed), pass);
            all_rows(w, cell_of(w, "replay25", TUNED, seed), pass);
        }
    }
}

double plan_tuned_rate(const struct lab *lab, const struct arm *arm)
{
    double wanted;
    return find_rate(lab, arm, &wanted);
}

struct search {
    const struct lab *lab;
    struct cell *out;
};

static bool find_missing(void *user, const struct cell *cell)
{
    struct search *s = user;
    if (lab_has(s->lab, cell))
        return false;
    *s->out = *cell;
    return true;
}

bool plan_next(const struct lab *lab, struct cell *out)
{
    struct search search = {lab, out};
    struct walk w = {lab, find_missing, &search, false};
    walk(&w);
    return w.over;
}

bool plan_next_of(const struct lab *lab, const char *arm, double rate, uint32_t seed, uint32_t passes, struct cell *out)
{
    struct search search = {lab, out};
    struct walk w = {lab, find_missing, &search, false};
    for (uint32_t pass = 0; pass < passes; pass++)
        whole_pass(&w, cell_of(&w, arm, rate, seed), pass);
    if (seed == 1) /* as tune() wants it */
        row(&w, cell_of(&w, arm, rate, seed), lab_configuration(lab)->n_domains, PART_TUNING);
    return w.over;
}

struct count {
    const struct lab *lab;
    uint32_t done, all;
};

static bool count_cell(void *user, const struct cell *cell)
{
    struct count *c = user;
    c->all++;
    c->done += lab_has(c->lab, cell);
    return false;
}

void plan_count(const struct lab *lab, uint32_t *done, uint32_t *all)
{
    struct count count = {.lab = lab};
    struct walk w = {lab, count_cell, &count, false};
    walk(&w);
    *done = count.done;
    *all = count.all;
}
