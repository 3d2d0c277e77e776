/* alluvium: one program, a command for each thing people do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "base/log.h"
#include "cli/cli.h"
#include "cli/print.h"

const struct command commands[] = {
    {"init", cmd_init, "make a line: its directory, keys and version 0"},
    {"coordinator", cmd_coordinator, "serve a line"},
    {"keys add", cmd_keys_add, "let a producer, worker, subscriber or operator in"},
    {"keys list", cmd_keys_list, "who may connect"},
    {"keys revoke", cmd_keys_revoke, "shut a key out, at once"},
    {"keys rotate", cmd_keys_rotate, "replace the key that signs versions"},
    {"backup", cmd_backup, "copy a whole line, while it is served"},
    {"restore", cmd_restore, "make a line from a backup, verified"},
    {"worker", cmd_worker, "train and evaluate for a line"},
    {"push", cmd_push, "push text into a domain"},
    {"subscribe", cmd_subscribe, "follow the versions of a line and tell a model server"},
    {"versions list", cmd_versions_list, "what was published"},
    {"versions show", cmd_versions_show, "one version: files, lineage, losses"},
    {"versions explain", cmd_versions_explain, "why it was published, or was not"},
    {"versions mark", cmd_versions_mark, "say that a version must not be used, or is tainted"},
    {"promote", cmd_promote, "point an alias at a version"},
    {"rollback", cmd_rollback, "publish an earlier version's content under a new number"},
    {"status", cmd_status, "the line now: backlog, round, workers, subscribers"},
    {"trace", cmd_trace, "which versions saw a record, which data is in a version"},
    {"retract", cmd_retract, "withdraw a record"},
    {"domains set", cmd_domains_set, "make a domain, or change its settings"},
    {"quarantine list", cmd_quarantine_list, "data that was set aside"},
    {"quarantine release", cmd_quarantine_release, "give it another chance"},
    {"quarantine drop", cmd_quarantine_drop, "leave it out for good"},
    {"round", cmd_round, "start a round now with what is pending"},
    {"resume", cmd_resume, "lease again after an alarm stopped it"},
    {"plot", cmd_plot, "the versions as a picture: losses, what was learnt and forgotten"},
    {"replay", cmd_replay, "what a worker holds of the past, by domain and age"},
    {"train", cmd_train, "train an adapter here, without a network"},
    {"eval", cmd_eval, "loss of a base and adapter on files"},
    {"generate", cmd_generate, "text from a base and adapter"},
    {"anchor", cmd_anchor, "text that the base writes by itself, for an anchor or a sentinel"},
};
const unsigned n_commands = sizeof commands / sizeof commands[0];

static int usage(FILE *out)
{
    fprintf(out,
            "alluvium %s: keeps a language model up to date with a stream of text.\n\n"
            "Examples:\n"
            "  alluvium init -C ./clinic --base base.gguf --anchor general.jsonl\n"
            "  alluvium coordinator -C ./clinic\n"
            "  alluvium keys add worker pool-a -C ./clinic --out pool-a.join\n"
            "  alluvium worker --join pool-a.join --base base.gguf\n"
            "  alluvium push -C ./clinic notes notes/*.jsonl\n"
            "  alluvium subscribe --join ward3.join --follow stable --dir ./adapters --hook ./reload.sh\n\n"
            "Commands:\n",
            ALLUVIUM_VERSION);
    for (unsigned i = 0; i < n_commands; i++)
        fprintf(out, "  %-20s %s\n", commands[i].name, commands[i].summary);
    fprintf(out, "\nalluvium COMMAND --help shows examples, options and their defaults.\n");
    return out == stdout ? 0 : status_exit_code(ST_USAGE);
}

static int usage_json(void)
{
    json_t *list = json_array();
    for (unsigned i = 0; i < n_commands; i++)
        json_array_append_new(list, json_pack("{s:s,s:s}", "name", commands[i].name, "summary", commands[i].summary));
    print_json(json_pack("{s:s,s:o}", "version", ALLUVIUM_VERSION, "commands", list));
    return 0;
}

static int unknown(const char *word)
{
    const char *names[2 * sizeof commands / sizeof commands[0]];
    char firsts[sizeof commands / sizeof commands[0]][32];
    unsigned n = 0;
    for (unsigned i = 0; i < n_commands; i++) {
        names[n++] = commands[i].name;
        snprintf(firsts[i], sizeof firsts[i], "%.*s", (int)strcspn(commands[i].name, " "), commands[i].name);
        if (strcmp(firsts[i], commands[i].name))
            names[n++] = firsts[i];
    }
    const char *nearest = options_nearest(word, names, n);
    char text[300];
    snprintf(text, sizeof text, "unknown command \"%.80s\"%s%s%s (see: alluvium --help)", word,
             nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
    print_error("", ST_USAGE, text);
    return status_exit_code(ST_USAGE);
}

/* "keys" alone, or with --help: its commands. */
static int group(const char *word, bool asked)
{
    FILE *out = asked ? stdout : stderr;
    fprintf(out, "Commands:\n");
    for (unsigned i = 0; i < n_commands; i++)
        if (!strncmp(commands[i].name, word, strlen(word)) && commands[i].name[strlen(word)] == ' ')
            fprintf(out, "  alluvium %-20s %s\n", commands[i].name, commands[i].summary);
    return asked ? 0 : status_exit_code(ST_USAGE);
}

int main(int argc, char **argv)
{
    hash_start();
    log_set_level(LOG_WARN);
    if (argc < 2)
        return usage(stderr);
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help"))
        return argc > 2 && !strcmp(argv[2], "--json") ? usage_json() : usage(stdout);
    if (!strcmp(argv[1], "--version")) {
        printf("alluvium %s\n", ALLUVIUM_VERSION);
        return 0;
    }
    char two[80];
    snprintf(two, sizeof two, "%.39s %.39s", argv[1], argc > 2 ? argv[2] : "");
    bool is_group = false;
    for (unsigned i = 0; i < n_commands; i++) {
        if (!strcmp(commands[i].name, argv[1]))
            return commands[i].run(argc - 1, argv + 1);
        if (!strcmp(commands[i].name, two))
            return commands[i].run(argc - 2, argv + 2);
        is_group = is_group ||
                   (!strncmp(commands[i].name, argv[1], strlen(argv[1])) && commands[i].name[strlen(argv[1])] == ' ');
    }
    if (is_group && (argc == 2 || argv[2][0] == '-'))
        return group(argv[1], argc > 2 && (!strcmp(argv[2], "--help") || !strcmp(argv[2], "-h")));
    return unknown(is_group ? two : argv[1]);
}
