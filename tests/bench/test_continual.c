/* The continual-learning bench in its short form: three planted domains on a toy base. Each has letters of its own, so what
 * is learnt of one is unlearnt by the next unless it is replayed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "plan.h"
#include "toy.h"

enum { DOMAINS = 3, DOCUMENTS = 40, LETTERS = 8, RATE_PERCENT = 1 };

static const char *base_path, *text_path;
static atomic_bool never, at_once = true;

/* A letter is followed by its successor in the domain's own alphabet, sometimes by another one. */
static void write_domain(const char *name, char first)
{
    struct buf out = {0};
    struct rng rng;
    char file[64];
    rng_seed(&rng, (uint64_t)first);
    for (int d = 0; d < DOCUMENTS; d++) {
        buf_printf(&out, "{\"id\":\"%s/%d\",\"text\":\"", name, d);
        uint64_t at = rng_below(&rng, LETTERS);
        for (int i = 0; i < 480; i++) {
            at = rng_below(&rng, 10) ? (at + 3) % LETTERS : rng_below(&rng, LETTERS);
            buf_put_u8(&out, (uint8_t)(first + (char)at));
        }
        buf_printf(&out, "\"}\n");
    }
    snprintf(file, sizeof file, "%s.jsonl", name);
    file_write_durable(harness_path(text_path, file), out.data, out.len, 0600, NULL);
    buf_release(&out);
}

static struct lab_config config_in(const char *dir)
{
    struct lab_config c;
    lab_defaults(&c);
    c.base = base_path;
    c.text = c.grown = text_path;
    c.work = dir;
    c.results = harness_path(dir, "results.jsonl");
    c.n_domains = DOMAINS;
    memcpy(c.domains, (const char *[]){"reeds", "silt", "gravel"}, DOMAINS * sizeof c.domains[0]);
    memcpy(c.order, (uint32_t[LAB_PASSES][LAB_DOMAINS]){{0, 1, 2}, {2, 0, 1}}, sizeof c.order);
    c.sentinels[0] = "pebbles";
    c.sentinels[1] = NULL;
    c.fresh_tokens = 3000;
    c.seq_tokens = 32, c.step_tokens = 96, c.rank = 4, c.alpha = 8, c.warmup_steps = 2, c.micro_rows = 48;
    c.corpus = (struct corpus_options){
        .segment_bytes = 64, .heldout_permille = 400, .window_tokens = 32, .windows = {24, 4, 4}};
    c.quiet = true;
    return c;
}

static struct lab *open_in(const char *dir)
{
    struct lab_config c = config_in(dir);
    struct lab *lab = NULL;
    struct err err;
    if (!EXPECT_ST(lab_open(&c, &lab, &err), ST_OK, &err))
        exit(harness_end());
    return lab;
}

static struct cell train_cell(const char *arm, uint32_t stage)
{
    return (struct cell){CELL_TRAIN, arm_find(arm), RATE_PERCENT / 100.0, 1, stage, 0, 0};
}

/* The audit loss of a domain after a stage of an arm (NULL: the base). */
static double loss(struct lab *lab, const char *arm, uint32_t stage, uint32_t domain)
{
    struct cell cell = {.kind = CELL_EVAL, .domain = domain, .part = PART_AUDIT};
    struct err err;
    if (arm)
        cell.arm = arm_find(arm), cell.rate = RATE_PERCENT / 100.0, cell.seed = 1, cell.stage = stage;
    EXPECT_ST(lab_has(lab, &cell) ? ST_OK : lab_do(lab, &cell, &never, &err), ST_OK, &err);
    return lab_loss(lab, &cell);
}

static double mean_loss(struct lab *lab, const char *arm, uint32_t stage)
{
    double sum = 0;
    for (uint32_t d = 0; d < DOMAINS; d++)
        sum += loss(lab, arm, stage, d);
    return sum / DOMAINS;
}

static void test_replay_forgets_less_than_none(void)
{
    struct lab *lab = open_in(harness_tmpdir());
    double base = loss(lab, NULL, 0, 0), peak = loss(lab, "floor", 1, 0);
    double floor_lost = loss(lab, "floor", 3, 0) - peak;
    double replay_lost = loss(lab, "replay25", 3, 0) - loss(lab, "replay25", 1, 0);
    double joint = mean_loss(lab, "joint", 3), replay = mean_loss(lab, "replay25", 3),
           plain = mean_loss(lab, "floor", 3), untouched = mean_loss(lab, NULL, 0);
    printf("base %.3f, after its stage %.3f; lost without replay %.3f, with %.3f; at the end base %.3f, floor %.3f, "
           "replay %.3f, joint %.3f\n",
           base, peak, floor_lost, replay_lost, untouched, plain, replay, joint);
    EXPECT(base - peak > 0.5); /* it learns */
    EXPECT(floor_lost > 0.2);  /* and forgets: else the test has no power */
    EXPECT(replay_lost < floor_lost / 2);
    EXPECT(replay < plain && joint < plain);
    EXPECT(loss(lab, "replay25-w4", 3, 1) < loss(lab, NULL, 0, 1) - 0.2); /* four workers learn too */
    EXPECT(isfinite(loss(lab, "floor", 3, DOMAINS)));                     /* a sentinel */
    lab_close(lab);
}

static void test_resumes_to_the_same_bytes(void)
{
    const char *whole = harness_tmpdir(), *torn = harness_tmpdir();
    struct cell last = train_cell("replay25", 3), second = train_cell("replay25", 2);
    struct err err;
    struct lab *lab = open_in(whole);
    EXPECT_ST(lab_do(lab, &last, &never, &err), ST_OK, &err);
    EXPECT(lab_has(lab, &second)); /* what it needs is done and written first */
    char want[17];
    snprintf(want, sizeof want, "%s", lab_adapter(lab, &last));
    EXPECT_EQ(strlen(want), 16);
    lab_close(lab);

    lab = open_in(torn);
    EXPECT_ST(lab_do(lab, &second, &never, &err), ST_OK, &err);
    EXPECT_ST(lab_do(lab, &last, &at_once, &err), ST_STOPPED, &err);
    EXPECT(!lab_has(lab, &last) && *lab_adapter(lab, &last) == 0);
    lab_close(lab);
    FILE *f = fopen(harness_path(torn, "results.jsonl"), "ae"); /* killed while it wrote */
    REQUIRE(f != NULL);
    fputs("{\"cell\":\"train replay25 0.01 1 3\",\"ste", f);
    fclose(f);
    EXPECT_EQ(unlink(harness_path(torn, "replay25-0.01-1-2.safetensors")), 0); /* and an adapter is lost */
    lab = open_in(torn);
    EXPECT(!lab_has(lab, &last));
    EXPECT_ST(lab_do(lab, &last, &never, &err), ST_OK, &err);
    EXPECT_STR(lab_adapter(lab, &last), want);
    lab_close(lab);
    lab = open_in(torn); /* the line after the torn one is whole */
    EXPECT_STR(lab_adapter(lab, &last), want);
    lab_close(lab);
}

static void test_results_are_of_one_configuration(void)
{
    const char *dir = harness_tmpdir();
    struct lab *lab = open_in(dir), *other = NULL;
    struct lab_config config = config_in(dir);
    struct err err;
    EXPECT_ST(lab_open(&config, &other, &err), ST_CONFLICT, &err); /* two at once */
    lab_close(lab);
    config.fresh_tokens += 96;
    EXPECT_ST(lab_open(&config, &other, &err), ST_CONFLICT, &err);
    EXPECT(strstr(err.text, "fresh_tokens") != NULL);
    config = config_in(dir);
    config.corpus.windows[PART_AUDIT] = 1000;
    EXPECT_ST(lab_open(&config, &other, &err), ST_LIMIT, &err);
}

/* An anchor that the base wrote is another text, named in the cell, and teaches the base's predictions. */
static void test_own_anchor(void)
{
    const char *dir = harness_tmpdir();
    struct lab *lab = open_in(dir);
    struct cell given = train_cell("replay25", 1), own = train_cell("replay25-own", 1);
    struct err err;
    struct buf file = {0};
    EXPECT_ST(lab_do(lab, &given, &never, &err), ST_OK, &err);
    EXPECT_ST(lab_do(lab, &own, &never, &err), ST_NOT_FOUND, &err); /* nothing was grown yet */
    write_domain("self", 'G');
    EXPECT_ST(lab_do(lab, &own, &never, &err), ST_OK, &err);
    EXPECT(strcmp(lab_adapter(lab, &own), lab_adapter(lab, &given)) != 0);
    EXPECT(strlen(lab_adapter(lab, &own)) == 16);
    given.arm = arm_find("replay25"), given.stage = 2; /* and back to the given one */
    EXPECT_ST(lab_do(lab, &given, &never, &err), ST_OK, &err);
    lab_close(lab);
    REQUIRE(file_read(harness_path(dir, "results.jsonl"), 1 << 20, &file, &err) == ST_OK);
    buf_put_u8(&file, 0);
    const char *line = strstr((const char *)file.data, "train replay25-own");
    const char *text = line ? strstr(line, "\"text\":") : NULL;
    EXPECT(text && text < strchr(line, '\n'));
    EXPECT(strstr((const char *)file.data, "\"text\":") == text); /* nothing else names one */
    buf_release(&file);

    struct cell kl = own; /* and what is measured on, and never taught */
    kl.kind = CELL_OWN;
    lab = open_in(dir);
    EXPECT(!lab_has_own_text(lab));
    file_write_durable(harness_path(text_path, "own.jsonl"), "{\"id\":\"o/0\",\"text\":\"GHIJKL\"}\n", 29, 0600, NULL);
    EXPECT(lab_has_own_text(lab));
    EXPECT_ST(lab_do(lab, &kl, &never, &err), ST_OK, &err);
    EXPECT(lab_has(lab, &kl));
    lab_close(lab);
    unlink(harness_path(text_path, "own.jsonl"));
}

static void test_chats_are_not_cut(void)
{
    const struct corpus_options options = {.segment_bytes = 64};
    struct buf out = {0};
    struct corpus corpus;
    struct segment_set set = {0};
    struct err err;
    buf_printf(&out, "{\"id\":\"c/0\",\"messages\":[{\"role\":\"user\",\"content\":\"%0100d\"}]}\n", 7);
    file_write_durable(harness_path(text_path, "chats.jsonl"), out.data, out.len, 0600, NULL);
    if (EXPECT_ST(corpus_read(text_path, "chats", &options, 0, NULL, &corpus, &err), ST_OK, &err)) {
        const struct mix_segment wanted = {.offset = 0};
        corpus_order(&corpus, &options, 1);
        EXPECT_EQ(corpus.n_train, 1);
        EXPECT_ST(corpus_segments(&corpus, &set, &wanted, 1, &err), ST_OK, &err);
        EXPECT(set.items[0].segment->kind == ALV__RECORD_KIND__RECORD_CHAT && set.items[0].segment->text.len > 100);
        segment_set_release(&set);
        corpus_release(&corpus);
    }
    file_write_durable(harness_path(text_path, "chats.jsonl"), "{\"id\":\"c/0\"}\n", 13, 0600, NULL);
    EXPECT_ST(corpus_read(text_path, "chats", &options, 0, NULL, &corpus, &err), ST_BAD_DATA, &err);
    buf_release(&out);
}

static void test_plan_goes_on_where_it_was(void)
{
    struct lab *lab = open_in(harness_tmpdir());
    struct cell first, next, again;
    struct err err;
    uint32_t done, all;
    char text[200];
    REQUIRE(plan_next(lab, &first));
    cell_text(lab, &first, text, sizeof text);
    EXPECT_STR(text, "eval base 0 0 0 reeds audit");
    EXPECT_ST(lab_do(lab, &first, &never, &err), ST_OK, &err);
    REQUIRE(plan_next(lab, &next));
    cell_text(lab, &next, text, sizeof text);
    EXPECT_STR(text, "eval base 0 0 0 silt audit");
    plan_count(lab, &done, &all);
    EXPECT(done == 1 && all > 50);
    EXPECT(plan_tuned_rate(lab, arm_find("floor")) == 0); /* not tuned yet: nothing of it is planned */
    EXPECT(plan_next(lab, &again) && memcmp(&again.domain, &next.domain, sizeof next.domain) == 0);
    lab_close(lab);
}

int main(void)
{
    hash_start();
    base_path = toy_base();
    text_path = harness_tmpdir();
    write_domain("general", 'P');
    write_domain("reeds", 'A');
    write_domain("silt", 'a');
    write_domain("gravel", '0');
    write_domain("pebbles", 'p');
    RUN(test_replay_forgets_less_than_none);
    RUN(test_resumes_to_the_same_bytes);
    RUN(test_results_are_of_one_configuration);
    RUN(test_own_anchor);
    RUN(test_chats_are_not_cut);
    RUN(test_plan_goes_on_where_it_was);
    return harness_end();
}
