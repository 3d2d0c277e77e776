/* Options: where a value comes from, what is refused and how it is said, and that the exit codes' page is true. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "harness.h"

enum { ARGS_MAX = 32 };

struct values {
    const char *base;
    uint32_t steps;
    double lr;
    uint64_t memory;
    unsigned backend;
    bool once;
    struct option_list files;
};

struct shared {
    bool json;
};

static const struct option_row rows[] = {
    OPTION(struct values, base, OPTION_TEXT, "base", 'b', "PATH", "the base"),
    OPTION(struct values, steps, OPTION_U32, "steps", 0, "N", "steps", .low = 1, .high = 100),
    OPTION(struct values, lr, OPTION_F64, "learn-rate", 0, "X", "rate", .low = 0, .high = 1),
    OPTION(struct values, memory, OPTION_BYTES, "memory", 0, "BYTES", "memory"),
    OPTION(struct values, backend, OPTION_CHOICE, "backend", 0, "blas|ref", "back end"),
    OPTION(struct values, once, OPTION_FLAG, "once", 0, NULL, "once", .no_env = true),
    OPTION(struct values, files, OPTION_LIST, "file", 'f', "FILE", "files"),
};
static const struct option_row common[] = {
    OPTION(struct shared, json, OPTION_FLAG, "json", 0, NULL, "JSON"),
};

struct parsed {
    struct values values;
    struct shared shared;
    struct options o;
    char *argv[ARGS_MAX];
    char text[ARGS_MAX][200];
    struct err err;
    enum status status;
};

/* `line`: the arguments, separated by blanks. */
static void parse(struct parsed *p, const char *line)
{
    memset(p, 0, sizeof *p);
    p->values = (struct values){.steps = 64, .lr = 0.5, .memory = 2048};
    p->o = (struct options){.command = "train",
                            .usage = "FILE",
                            .summary = "Trains.",
                            .examples = "alluvium train x",
                            .rows = rows,
                            .n_rows = sizeof rows / sizeof rows[0],
                            .values = &p->values,
                            .common = common,
                            .n_common = 1,
                            .common_values = &p->shared};
    int argc = 1;
    p->argv[0] = p->text[0];
    while (*line && argc < ARGS_MAX - 1) {
        size_t n = strcspn(line, " ");
        snprintf(p->text[argc], sizeof p->text[argc], "%.*s", (int)n, line);
        p->argv[argc] = p->text[argc];
        argc++;
        line += n + (line[n] == ' ');
    }
    p->status = options_parse(&p->o, argc, p->argv, &p->err);
}

static void test_values(void)
{
    struct parsed p;
    parse(&p, "one --steps 7 -b base.gguf --memory=3M two --backend ref --once -f a -f b --learn-rate 1e-3 -- --three");
    EXPECT_ST(p.status, ST_OK, &p.err);
    EXPECT(p.values.steps == 7 && p.values.memory == 3u << 20 && p.values.backend == 1 && p.values.once);
    EXPECT_STR(p.values.base, "base.gguf");
    EXPECT_NEAR(p.values.lr, 1e-3, 0);
    EXPECT(p.values.files.n == 2 && !strcmp(p.values.files.items[1], "b"));
    EXPECT(p.o.n_rest == 3 && !strcmp(p.o.rest[0], "one") && !strcmp(p.o.rest[2], "--three"));
    EXPECT_EQ(options_origin(&p.o, "steps"), ORIGIN_COMMAND);
    EXPECT_EQ(options_origin(&p.o, "json"), ORIGIN_DEFAULT);
    options_release(&p.o);
}

static void expect_refusal(const char *line, enum status want, const char *part)
{
    struct parsed p;
    parse(&p, line);
    EXPECT_EQ(p.status, want);
    if (!strstr(p.err.text, part))
        EXPECT_STR(p.err.text, part);
    options_release(&p.o);
}

static void test_refusals(void)
{
    expect_refusal("--stesp 3", ST_USAGE, "did you mean --steps?");
    expect_refusal("--xyzzy", ST_USAGE, "unknown option --xyzzy");
    expect_refusal("-x", ST_USAGE, "unknown option -x");
    expect_refusal("--steps", ST_USAGE, "needs a value");
    expect_refusal("--once=1", ST_USAGE, "takes no value");
    expect_refusal("--steps 0", ST_USAGE, "1 to 100");
    expect_refusal("--steps 101", ST_USAGE, "1 to 100");
    expect_refusal("--steps -5", ST_USAGE, "1 to 100");
    expect_refusal("--steps 7x", ST_USAGE, "--steps");
    expect_refusal("--steps 99999999999999999999", ST_USAGE, "--steps");
    expect_refusal("--learn-rate nan", ST_USAGE, "--learn-rate");
    expect_refusal("--memory 5T", ST_USAGE, "bytes");
    expect_refusal("--memory 99999999999999999G", ST_USAGE, "bytes");
    expect_refusal("--backend gpu", ST_USAGE, "blas|ref");
    expect_refusal("--config /nonexistent/c", ST_CONFIG, "/nonexistent/c");
}

static void test_sources_in_order(void)
{
    static const char text[] =
        "json = yes\n# remark\n[push]\nunknown = 1\n[train]\nsteps = 5\n  memory = 1K\nlearn-rate = 0.25\n";
    const char *path = harness_path(harness_tmpdir(), "alluvium.conf");
    struct parsed p;
    char line[300];
    EXPECT_ST(file_write_durable(path, text, strlen(text), 0644, &p.err), ST_OK, &p.err);
    setenv("ALLUVIUM_MEMORY", "2K", 1);
    setenv("ALLUVIUM_LEARN_RATE", "0.75", 1);
    setenv("ALLUVIUM_ONCE", "1", 1); /* not from the environment */
    snprintf(line, sizeof line, "--learn-rate 1 --config %s", path);
    parse(&p, line);
    EXPECT_ST(p.status, ST_OK, &p.err);
    EXPECT(p.values.steps == 5 && p.values.memory == 2048 && p.values.lr == 1 && p.shared.json && !p.values.once);
    EXPECT(options_origin(&p.o, "steps") == ORIGIN_FILE && options_origin(&p.o, "memory") == ORIGIN_ENVIRONMENT);
    EXPECT(options_origin(&p.o, "learn-rate") == ORIGIN_COMMAND);
    struct buf shown = {0};
    options_show(&p.o, &shown);
    EXPECT(strstr(buf_cstr(&shown), "memory = 2K  # environment") && strstr(buf_cstr(&shown), "steps = 5  # file /"));
    buf_release(&shown);
    options_release(&p.o);
    setenv("ALLUVIUM_CONFIG", path, 1); /* the same, asked for otherwise */
    parse(&p, "");
    EXPECT_EQ(p.values.steps, 5);
    options_release(&p.o);
    unsetenv("ALLUVIUM_CONFIG");

    static const struct {
        const char *text, *part;
    } bad[] = {
        {"[train]\nsteps = 5\nstepps = 6\n", ":3: unknown setting \"stepps\"; did you mean \"steps\"?"},
        {"steps = 5\n", ":1: unknown setting \"steps\""},
        {"[train]\nonce = 1\n", ":2: unknown setting \"once\""},
        {"[train]\n\nsteps = 500\n", ":3: steps: \"500\""},
        {"[train]\nrubbish\n", ":2: "},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        EXPECT_ST(file_write_durable(path, bad[i].text, strlen(bad[i].text), 0644, &p.err), ST_OK, &p.err);
        snprintf(line, sizeof line, "--config %s", path);
        expect_refusal(line, ST_CONFIG, bad[i].part);
    }
    setenv("ALLUVIUM_MEMORY", "much", 1);
    expect_refusal("", ST_CONFIG, "ALLUVIUM_MEMORY");
    unsetenv("ALLUVIUM_MEMORY");
}

static void test_help(void)
{
    struct parsed p;
    struct buf text = {0};
    parse(&p, "--steps rubbish --help");
    EXPECT(p.status == ST_OK && p.o.help);
    options_help(&p.o, "alluvium", &text);
    const char *s = buf_cstr(&text);
    EXPECT(!strncmp(s, "Examples:", 9)); /* first of all */
    EXPECT(strstr(s, "Usage: alluvium train FILE [options]") && strstr(s, "--steps N") && strstr(s, "[64]"));
    EXPECT(strstr(s, "-b, --base PATH") && strstr(s, "[2K]"));
    buf_release(&text);
    options_release(&p.o);
    const char *words[] = {"push", "status", "trace"};
    EXPECT_STR(options_nearest("psuh", words, 3), "push");
    EXPECT_STR(options_nearest("stauts", words, 3), "status");
    EXPECT(options_nearest("zebra", words, 3) == NULL);
}

/* docs/reference/exit-codes.md has a row for every status, with the code the program gives. */
static void test_the_page_of_exit_codes(void)
{
    struct buf page = {0};
    struct err err;
    EXPECT_ST(file_read(SOURCE_DIR "/docs/reference/exit-codes.md", 1 << 20, &page, &err), ST_OK, &err);
    for (int code = ST_INTERNAL; code <= ST_OK; code++) {
        char row[80];
        snprintf(row, sizeof row, "| %d | %s |", status_exit_code((enum status)code), status_name((enum status)code));
        if (!strstr(buf_cstr(&page), row))
            EXPECT_STR("missing", row);
    }
    buf_release(&page);
}

int main(void)
{
    RUN(test_values);
    RUN(test_refusals);
    RUN(test_sources_in_order);
    RUN(test_help);
    RUN(test_the_page_of_exit_codes);
    return harness_end();
}
