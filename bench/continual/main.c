/* bench_continual: does it keep what it knew while it learns? Real domains one after another, then in another order.
 *
 *     bench_continual [--base GGUF|DIR] [--text DIR] [--work DIR] [--results FILE] [--fresh TOKENS] [--cells N] [--plan]
 *                     [--threads N] [--arm NAME --rate RATE --seed N [--passes N]]
 *
 * Does the cells of plan.c that the results file does not hold yet, one after the other, and may be interrupted at any
 * moment: TERM or INT drops the cell in hand (minutes), STOP and CONT pause. --cells N ends after N cells, --plan
 * only says how many are done; --arm does one run instead, pass 1 or more. The text is that of scripts/fetch-text;
 * bench/continual/report makes the page and the pictures from results files. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "plan.h"

static atomic_bool cancel;

static void on_signal(int signal_number)
{
    (void)signal_number;
    atomic_store(&cancel, true);
}

struct args {
    struct lab_config config;
    unsigned long cells;
    const char *arm;
    double rate;
    uint32_t seed, passes;
    bool plan;
};

static bool parse(struct args *a, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--plan")) {
            a->plan = true;
            continue;
        }
        if (i + 1 == argc)
            return false;
        const char *name = argv[i], *value = argv[++i];
        if (!strcmp(name, "--base"))
            a->config.base = value;
        else if (!strcmp(name, "--text"))
            a->config.text = value;
        else if (!strcmp(name, "--work"))
            a->config.work = value;
        else if (!strcmp(name, "--results"))
            a->config.results = value;
        else if (!strcmp(name, "--threads"))
            a->config.threads = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(name, "--fresh"))
            a->config.fresh_tokens = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(name, "--arm"))
            a->arm = value;
        else if (!strcmp(name, "--rate"))
            a->rate = strtod(value, NULL);
        else if (!strcmp(name, "--seed"))
            a->seed = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(name, "--passes"))
            a->passes = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(name, "--cells"))
            a->cells = strtoul(value, NULL, 10);
        else
            return false;
    }
    return a->config.fresh_tokens > 0 && a->passes >= 1 && a->passes <= LAB_PASSES &&
           (!a->arm || (arm_find(a->arm) && a->rate > 0 && a->seed > 0));
}

static bool next(const struct args *a, const struct lab *lab, struct cell *cell)
{
    return a->arm ? plan_next_of(lab, a->arm, a->rate, a->seed, a->passes, cell) : plan_next(lab, cell);
}

int main(int argc, char **argv)
{
    struct args args = {.cells = (unsigned long)-1, .rate = 1e-3, .seed = 1, .passes = 1};
    struct lab *lab;
    struct err err;
    struct cell cell;
    uint32_t done, all;
    lab_defaults(&args.config);
    args.config.base = "build/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
    args.config.text = "build/text";
    args.config.grown = "bench/continual/grown";
    args.config.work = "build/continual";
    args.config.results = "bench/continual/results/smollm2-135m.jsonl";
    if (!parse(&args, argc, argv)) {
        fprintf(stderr,
                "usage: bench_continual [--base PATH] [--text DIR] [--work DIR] [--results FILE] [--fresh TOKENS] "
                "[--cells N] [--plan] [--threads N] [--arm NAME --rate RATE --seed N [--passes N]]\n");
        return 2;
    }
    hash_start();
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    enum status status = lab_open(&args.config, &lab, &err);
    if (status == ST_OK) {
        while (!args.plan && status == ST_OK && args.cells-- > 0 && next(&args, lab, &cell))
            status = lab_do(lab, &cell, &cancel, &err);
        plan_count(lab, &done, &all);
        printf("%u of %u cells are done\n", done, all);
        lab_close(lab);
    }
    if (status != ST_OK)
        fprintf(stderr, "bench_continual: %s\n", err.text);
    return status == ST_OK || status == ST_STOPPED ? 0 : 1;
}
