/* alluvium worker: trains and evaluates for a line until it is told to stop. */
#include "worker/worker.h"

#include <stdio.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/local.h"

struct args {
    const char *join, *base, *dir;
    uint32_t threads, micro_rows;
    uint64_t memory, keep, reserve;
    unsigned backend;
    bool check;
};

static const struct option_row rows[] = {
    OPTION(struct args, join, OPTION_TEXT, "join", 0, "FILE", "join file (alluvium keys add worker)"),
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the line's base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, dir, OPTION_TEXT, "dir", 'd', "DIR",
           "its own directory, kept between runs; without: ~/.local/state/alluvium/worker-<line>"),
    OPTION(struct args, threads, OPTION_U32, "threads", 't', "N", "0: the CPUs it may use", .low = 0, .high = 64,
           .why = "all that the scheduler or the control group gave it"),
    OPTION(struct args, memory, OPTION_BYTES, "memory", 0, "BYTES",
           "refuse a larger plan; 0: nine tenths of what there is",
           .why = "a worker that swaps is slower than none, and the rest of the machine needs a tenth"),
    OPTION(struct args, micro_rows, OPTION_U32, "micro-rows", 0, "N", "tokens of a micro-batch: memory against speed",
           .low = 0, .high = 65536, .why = "larger is hardly faster; smaller loses speed in the products"),
    OPTION(struct args, keep, OPTION_BYTES, "keep", 0, "BYTES", "replayed text kept on disk",
           .why = "the replay sample of a hundred domains (4,096 segments of 2 KiB each) and more"),
    OPTION(struct args, reserve, OPTION_BYTES, "reserve", 0, "BYTES", "disk space that is left free",
           .why = "the database needs room to open again after a crash"),
    OPTION(struct args, backend, OPTION_CHOICE, "backend", 0, LOCAL_BACKENDS, LOCAL_BACKENDS_HELP,
           .why = LOCAL_BACKENDS_WHY),
    OPTION(struct args, check, OPTION_FLAG, "check", 0, NULL, "set everything up, show the memory plan, say hello, end",
           .no_env = true),
};

int cmd_worker(int argc, char **argv)
{
    struct args args = {.micro_rows = 1024, .keep = 1ull << 30, .reserve = 256ull << 20};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "worker",
        .usage = "--join FILE --base PATH",
        .summary = "Trains and evaluates for a line.",
        .examples = "alluvium worker --join pool-a.join --base /shared/base.gguf\n"
                    "alluvium worker --join pool-a.join --base /shared/base.gguf --check",
        .notes =
            "The first SIGTERM or SIGINT drains (the task is finished or handed back), the second ends it at once.\n"
            "Killing it loses nothing: its work is given to another. With --json every event is a line.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    common.log = LOG_INFO;
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    struct worker_options options = {
        .join = args.join,
        .dir = args.dir,
        .base = args.base,
        .threads = args.threads,
        .micro_rows = args.micro_rows,
        .memory_max = args.memory,
        .keep_bytes = args.keep,
        .reserve_bytes = args.reserve,
        .ops = local_ops(args.backend),
        .check = args.check,
        .quiet = common.quiet,
        .events = common.json ? stdout : NULL,
        .progress = !common.quiet && !common.json && isatty(STDERR_FILENO) ? stderr : NULL,
        .stop_fd = cli_stop_fd(), /* a signal may reach one of OpenBLAS's threads, which no mask covers */
    };
    enum status st;
    if (o.n_rest || !args.join || !args.base)
        st = cli_usage(&o, &err, o.n_rest ? "it takes no arguments" : "--join and --base are needed");
    else
        st = worker_run(&options, &err);
    return cli_end(&o, st, &err);
}
