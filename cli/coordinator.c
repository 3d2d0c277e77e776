/* alluvium coordinator: serves a line until it is told to stop. */
#include "coordinator/coordinator.h"

#include <signal.h>

#include "base/log.h"
#include "cli/cli.h"

struct args {
    const char *directory, *host, *http_host, *http_name;
    uint32_t port, http_port;
    uint64_t reserve, upload;
};

static const struct option_row rows[] = {
    OPTION(struct args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's directory (alluvium init)",
           .why = "the directory one stands in"),
    OPTION(struct args, host, OPTION_TEXT, "host", 0, "HOST", "address to listen on; * for all",
           .why = "whoever opens a line to a network does so knowingly"),
    OPTION(struct args, port, OPTION_U32, "port", 0, "N", "base port; 0: the line's (line.json), which join files name",
           .low = 0, .high = 65530, .why = "told once, to init"),
    OPTION(struct args, http_port, OPTION_U32, "http-port", 0, "N",
           "port of /livez /readyz /metrics and the dashboard; 0: none", .low = 0, .high = 65535,
           .why = "beside the planes, and in no other use that we know"),
    OPTION(struct args, http_host, OPTION_TEXT, "http-host", 0, "ADDRESS", "address they listen on; * for all",
           .why = "they need no key: whoever opens them to a network does so knowingly"),
    OPTION(struct args, http_name, OPTION_TEXT, "http-name", 0, "NAME",
           "name they may be asked for by, beside addresses and localhost",
           .why = "none: a page elsewhere could reach a name of its own choice (DNS rebinding)"),
    OPTION(struct args, reserve, OPTION_BYTES, "reserve", 0, "BYTES", "disk space that is left free",
           .why = "the database needs room to open again after a crash: more than its write-ahead log"),
    OPTION(struct args, upload, OPTION_BYTES, "upload", 0, "BYTES", "deltas on their way in, all workers together",
           .why = "200 deltas of a 135M model in f32 at rank 16, or 25 of a 7B model"),
};

static void heard(int signal_number)
{
    (void)signal_number;
}

/* The program links a BLAS library that starts threads before main(). They do not have the signals blocked which
 * coordinator_run() waits for, so a signal may reach one of them, and its default action would end the process: a handler
 * that tells the loop (or, for SIGHUP, does nothing: the keys are looked at before every message) is what they get. */
static int signals_for_any_thread(void)
{
    struct sigaction action = {.sa_handler = heard, .sa_flags = SA_RESTART};
    sigaction(SIGHUP, &action, NULL);
    return cli_stop_fd();
}

int cmd_coordinator(int argc, char **argv)
{
    struct args args = {.directory = ".",
                        .host = "127.0.0.1",
                        .http_host = "127.0.0.1",
                        .http_port = 7480,
                        .reserve = 256ull << 20,
                        .upload = 4ull << 30};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "coordinator",
        .usage = "",
        .summary = "Serves a line: takes in text, gives out work, publishes versions.",
        .examples = "alluvium coordinator -C ./clinic\n"
                    "alluvium coordinator -C ./clinic --host '*' --http-port 9100",
        .notes =
            "SIGTERM and SIGINT stop it after the commit in flight; SIGHUP reads the keys again. Killing it loses\n"
            "nothing that was acknowledged. Metrics and dashboard need no key and change nothing; they listen on "
            "loopback\n"
            "unless --http-host says otherwise.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    common.log = LOG_INFO;
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    struct coordinator_options options = {
        .dir = args.directory,
        .host = args.host,
        .port = (uint16_t)args.port,
        .http_port = (uint16_t)args.http_port,
        .http_host = args.http_host,
        .http_name = args.http_name,
        .reserve_bytes = args.reserve,
        .upload_bytes = args.upload,
        .stop_fd = signals_for_any_thread(),
    };
    enum status st = o.n_rest ? cli_usage(&o, &err, "it takes no arguments") : coordinator_run(&options, &err);
    return cli_end(&o, st, &err);
}
