/* alluvium subscribe: versions of a line into a directory, and a hook for the model server. */
#include "client/subscribe.h"

#include <stdio.h>
#include <string.h>

#include "base/notify.h"
#include "cli/cli.h"
#include "cli/print.h"

struct args {
    struct line_args line;
    const char *follow, *dir, *hook, *serve, *serve_dir, *serve_token, *base_name;
    unsigned form;
    uint32_t hook_timeout, drain, keep;
    bool once;
};

static const struct option_row rows[] = {
    LINE_ROWS(struct args),
    OPTION(struct args, follow, OPTION_TEXT, "follow", 0, "ALIAS", "which version is wanted",
           .why = "moved by every publication"),
    OPTION(struct args, dir, OPTION_TEXT, "dir", 'd', "DIR", "where versions are put; DIR/current is the newest"),
    OPTION(struct args, hook, OPTION_TEXT, "hook", 0, "PROGRAM", "run after each swap, until it exits 0"),
    OPTION(struct args, hook_timeout, OPTION_U32, "hook-timeout", 0, "SECONDS",
           "a hook, or a server's loading, that takes longer has failed", .low = 1, .high = 86400,
           .why = "a server that loads an adapter from a slow disk"),
    OPTION(struct args, serve, OPTION_TEXT, "serve", 0, "vllm=URL", "a vLLM server that is kept at the version"),
    OPTION(struct args, serve_dir, OPTION_TEXT, "serve-dir", 0, "DIR", "--dir as that server sees it, in a container"),
    OPTION(struct args, serve_token, OPTION_TEXT, "serve-token", 0, "FILE", "holds the server's API key, mode 0600"),
    OPTION(struct args, drain, OPTION_U32, "drain", 0, "SECONDS", "the version before stays loaded for so long",
           .high = 86400, .why = "longer than most answers take"),
    OPTION(struct args, base_name, OPTION_TEXT, "base-name", 0, "NAME",
           "base_model_name_or_path in adapter_config.json; without: what --serve's server says"),
    OPTION(struct args, form, OPTION_CHOICE, "form", 0, "both|peft|gguf", "which files are fetched",
           .why = "which server will load it is not known here"),
    OPTION(struct args, keep, OPTION_U32, "keep", 0, "N", "versions kept besides the current one", .low = 1,
           .high = 1e6, .why = "the one before may still be served, and the one before that be wanted back"),
    OPTION(struct args, once, OPTION_FLAG, "once", 0, NULL, "end when the wanted version is in place and served"),
};

struct run {
    struct progress bar;
};

static void on_note(void *user, enum status status, const char *text)
{
    struct run *run = user;
    progress_end(&run->bar);
    if (common.json)
        print_json_line(json_pack("{s:s,s:s,s:s}", "event", status == ST_OK ? "ok" : "problem", "status",
                                  status_name(status), "text", text));
    else if (status == ST_OK)
        print_note("subscribe", "%s", text);
    else
        print_error("subscribe", status, text);
}

static void on_progress(void *user, uint64_t version, uint64_t done, uint64_t total)
{
    struct run *run = user;
    char extra[40];
    snprintf(extra, sizeof extra, "version %llu", (unsigned long long)version);
    progress_draw(&run->bar, done, total, extra);
}

int cmd_subscribe(int argc, char **argv)
{
    struct args args = {.follow = "latest", .hook_timeout = 120, .drain = 30, .keep = 2};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "subscribe",
        .usage = "--dir DIR",
        .summary = "Follows an alias: fetches each version, verifies it, puts it in place and tells a model server.",
        .examples = "alluvium subscribe --join ward3.join --follow stable --dir ./adapters --hook ./reload.sh\n"
                    "alluvium subscribe --join ward3.join --dir /shared/adapters --serve vllm=http://127.0.0.1:8000\n"
                    "alluvium subscribe --join ward3.join --dir ./adapters --once",
        .notes =
            "The hook finds ALLUVIUM_VERSION, ALLUVIUM_PREVIOUS, ALLUVIUM_LINE, ALLUVIUM_DIR (a PEFT adapter),\n"
            "ALLUVIUM_PEFT and ALLUVIUM_GGUF in its environment. It may be run more than once for a version; when it\n"
            "fails, the version stays in place and the hook is run again later.\n"
            "With --serve, vLLM is asked every few seconds what it has: NAME-vN is loaded, and again when the server "
            "was\n"
            "restarted; older ones of this directory are unloaded after --drain. When told to stop, the server stays "
            "as is.\n"
            "A version is taken only when its signature, its chain and its hashes verify, and never a lower one than\n"
            "the one in place. Exit codes with --once: 6 does not verify, 7 goes backwards or has expired.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    static const unsigned forms[] = {FORM_PEFT | FORM_GGUF, FORM_PEFT, FORM_GGUF};
    struct run run = {.bar = {.what = "fetching", .unit = UNIT_BYTES}};
    struct subscribe_view view = {0};
    struct join join;
    enum status st = ST_OK;
    if (o.n_rest || !args.dir)
        st = cli_usage(&o, &err, o.n_rest ? "it takes no arguments" : "--dir says where versions are put");
    else if (args.serve && (args.hook || strncmp(args.serve, "vllm=", 5)))
        st = cli_usage(&o, &err, args.hook ? "--serve or --hook, not both" : "--serve takes vllm=URL");
    else if (args.serve && forms[args.form] == FORM_GGUF)
        st = cli_usage(&o, &err, "vLLM loads the form peft: --serve goes with --form both or peft");
    if (st == ST_OK)
        st = cli_join(&o, &args.line, &join, &err);
    if (st != ST_OK)
        return cli_end(&o, st, &err);
    struct subscribe_options options = {
        .join = &join,
        .follow = args.follow,
        .dir = args.dir,
        .base_name = args.base_name,
        .hook = args.hook,
        .hook_timeout_ms = args.hook_timeout * 1000,
        .serve = args.serve ? args.serve + 5 : NULL,
        .serve_dir = args.serve_dir,
        .serve_token = args.serve_token,
        .drain_ms = args.drain * 1000,
        .forms = forms[args.form],
        .keep = args.keep,
        .once = args.once,
        .stop_fd = cli_stop_fd(),
        .note = on_note,
        .progress = on_progress,
        .user = &run,
    };
    notify_ready(); /* it follows from here on, whether or not the coordinator is there yet */
    st = subscribe_run(&options, &view, &err);
    progress_end(&run.bar);
    join_wipe(&join);
    if (st == ST_STOPPED && !args.once)
        st = ST_OK; /* to follow until told to stop was all that was asked */
    if (common.json && st == ST_OK)
        print_json_line(json_pack("{s:s,s:I,s:I}", "event", "end", "current", (json_int_t)view.current, "served",
                                  (json_int_t)view.served));
    return cli_end(&o, st, &err);
}
