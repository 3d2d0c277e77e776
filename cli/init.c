/* alluvium init: a line from a base model and general text. The base is read here; the coordinator never needs it. */
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "cli/cli.h"
#include "cli/local.h"
#include "cli/print.h"
#include "coordinator/coordinator.h"
#include "model/base.h"

struct args {
    const char *directory, *base, *line, *address, *settings, *targets;
    struct option_list anchors, serving, set;
    uint32_t port, rank, alpha, first_layer;
    uint64_t seed;
};

static const struct option_row rows[] = {
    OPTION(struct args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's directory; made here",
           .no_env = true),
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, anchors, OPTION_LIST, "anchor", 0, "FILE",
           "general text, replayed for ever so that nothing is forgotten; may be repeated", .no_env = true),
    OPTION(struct args, line, OPTION_TEXT, "line", 0, "NAME", "the line's name; without: the directory's",
           .no_env = true),
    OPTION(struct args, address, OPTION_TEXT, "address", 0, "HOST", "host that peers connect to, for join files",
           .why = "a line that nobody set up for a network is not reachable from one"),
    OPTION(struct args, port, OPTION_U32, "port", 0, "N", "base port; a line takes five from here on", .low = 1,
           .high = 65530, .why = "unregistered, and the four above it are free on a plain machine"),
    OPTION(struct args, rank, OPTION_U32, "rank", 0, "N", "rank of the adapter; without: of the settings", .low = 0,
           .high = LORA_RANK_MAX, .why = "the settings say it, with their reason"),
    OPTION(struct args, alpha, OPTION_U32, "alpha", 0, "N", "alpha of the adapter; without: of the settings", .low = 0,
           .high = 65536, .why = "the settings say it, with their reason"),
    OPTION(struct args, targets, OPTION_TEXT, "target-modules", 0, "LIST", LOCAL_TARGETS_HELP,
           .why = "what few of them can learn, all can"),
    OPTION(struct args, first_layer, OPTION_U32, "first-layer", 0, "N", LOCAL_FIRST_LAYER_HELP, .low = 0, .high = 65535,
           .why = "what the upper layers can learn, all can"),
    OPTION(struct args, serving, OPTION_LIST, "serving", 0, "PATH",
           "another file with the same weights that servers use (bf16, Q8, ...); may be repeated", .no_env = true),
    OPTION(struct args, settings, OPTION_TEXT, "settings", 0, "FILE", "settings of the line: \"name = value\" lines"),
    OPTION(struct args, set, OPTION_LIST, "set", 0, "NAME=VALUE", "one setting of the line; may be repeated",
           .no_env = true),
    OPTION(struct args, seed, OPTION_U64, "seed", 0, "N", "of version 0's factors; 0: chosen",
           .why = "two lines need not begin alike"),
};

struct run {
    struct progress bar;
};

static void on_progress(void *user, const char *file, uint64_t records, uint64_t bytes)
{
    struct run *run = user;
    char extra[200];
    snprintf(extra, sizeof extra, "%llu records, %.120s", (unsigned long long)records, file ? file : "");
    progress_draw(&run->bar, bytes, 0, extra);
}

static enum status read_settings(const struct args *args, struct settings *out, struct err *err)
{
    char text[32];
    settings_default(out);
    enum status st = args->settings ? settings_read(args->settings, out, err) : ST_OK;
    for (uint32_t i = 0; i < args->set.n && st == ST_OK; i++) {
        char name[64];
        const char *equals = strchr(args->set.items[i], '=');
        if (!equals || (size_t)(equals - args->set.items[i]) >= sizeof name)
            return err_set(err, ST_USAGE, "--set %s: write NAME=VALUE", args->set.items[i]);
        snprintf(name, sizeof name, "%.*s", (int)(equals - args->set.items[i]), args->set.items[i]);
        st = settings_set(out, name, equals + 1, err);
    }
    snprintf(text, sizeof text, "%u", args->rank);
    if (st == ST_OK && args->rank)
        st = settings_set(out, "rank", text, err);
    snprintf(text, sizeof text, "%u", args->alpha);
    if (st == ST_OK && args->alpha)
        st = settings_set(out, "alpha", text, err);
    return st == ST_OK ? settings_check(out, err) : st;
}

static enum status make_card(const struct args *args, struct card *out, struct err *err)
{
    struct base *base = NULL;
    print_note("init", "reading %s", args->base);
    enum status st = base_open(args->base, &base, err);
    if (st == ST_OK)
        st = base_card(base, out, err);
    base_close(base);
    if (args->serving.n > CARD_SERVING_MAX)
        return err_set(err, ST_USAGE, "--serving: at most %d", CARD_SERVING_MAX);
    for (uint32_t i = 0; i < args->serving.n && st == ST_OK; i++) {
        st = card_digest_base(args->serving.items[i], &out->serving[i], err);
        out->n_serving = i + 1;
    }
    return st;
}

static enum status run_init(const struct options *o, const struct args *args, struct err *err)
{
    struct settings settings;
    uint32_t targets;
    struct card card;
    struct adapter_shape shape;
    struct coordinator_init_report report = {0};
    struct run run = {.bar = {.what = "anchor", .unit = UNIT_BYTES}};
    char dir[4096], line[256];
    if (o->n_rest || !args->directory || !args->base)
        return cli_usage(o, err, o->n_rest ? "it takes no arguments" : "-C and --base are needed");
    snprintf(dir, sizeof dir, "%s", args->directory);
    snprintf(line, sizeof line, "%s", args->line ? args->line : basename(dir));
    if (!name_valid(line, strlen(line)))
        return err_set(err, ST_USAGE,
                       "\"%s\" is no name of a line (a-z 0-9 . _ - , beginning with a letter or digit); give "
                       "one with --line",
                       line);
    enum status st = read_settings(args, &settings, err);
    if (st == ST_OK)
        st = lora_targets(args->targets, args->first_layer, &targets, err);
    if (st == ST_OK)
        st = make_card(args, &card, err);
    if (st == ST_OK)
        st = adapter_shape_of(&card.arch, settings.rank, settings.alpha, targets, &shape, err);
    if (st != ST_OK)
        return st;
    struct coordinator_init_options options = {
        .dir = args->directory,
        .line = line,
        .card = &card,
        .shape = &shape,
        .settings = &settings,
        .address = args->address,
        .port = (uint16_t)args->port,
        .seed = args->seed,
        .anchors = args->anchors.items,
        .n_anchors = args->anchors.n,
        .progress = on_progress,
        .user = &run,
    };
    st = coordinator_init(&options, &report, err);
    progress_end(&run.bar);
    if (st != ST_OK)
        return st;
    if (common.json)
        print_json(json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I}", "line", line, "directory", args->directory, "base",
                             card.base_name, "records", (json_int_t)report.records, "duplicates",
                             (json_int_t)report.duplicates, "refused", (json_int_t)report.refused, "segments",
                             (json_int_t)report.segments, "held_out", (json_int_t)report.held_out));
    else
        printf("line \"%s\" over %s: %llu records of general text in %llu segments, %llu more held out\n"
               "next: alluvium coordinator -C %s\n"
               "move %s/root.key to a safe place: nothing here needs it while the line runs\n",
               line, card.base_name, (unsigned long long)report.records, (unsigned long long)report.segments,
               (unsigned long long)report.held_out, args->directory, args->directory);
    return ST_OK;
}

int cmd_init(int argc, char **argv)
{
    struct args args = {.address = "127.0.0.1", .port = COORDINATOR_PORT, .targets = "all"};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "init",
        .usage = "-C DIR --base PATH",
        .summary = "Makes a line: its directory, keys, model card and version 0.",
        .examples = "alluvium init -C ./clinic --base base.gguf --anchor general.jsonl\n"
                    "alluvium init -C ./clinic --base ./Qwen2-0.5B --anchor general.jsonl --address 10.0.0.5 --rank 8",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = run_init(&o, &args, &err);
    return cli_end(&o, st, &err);
}
