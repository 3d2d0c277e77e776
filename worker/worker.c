#include "worker/worker.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

#include "base/hash.h"
#include "base/log.h"
#include "worker/session.h"

enum { DEFAULT_ROWS = 1024 };
static const uint64_t default_keep = 1ull << 30, default_reserve = 256ull << 20;

static uint32_t cpus(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
    return n < 1 ? 1 : n > OPS_THREADS_MAX ? OPS_THREADS_MAX : (uint32_t)n;
}

/* Of the machine, or of the control group where that is less. */
static uint64_t memory_there_is(void)
{
    uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    struct buf text = {0};
    if (file_read("/sys/fs/cgroup/memory.max", 64, &text, NULL) == ST_OK) {
        char *end;
        uint64_t limit = strtoull(buf_cstr(&text), &end, 10);
        if (end != (char *)text.data && limit < bytes)
            bytes = limit;
    }
    buf_release(&text);
    return bytes;
}

static enum status default_dir(const struct name *line, char *out, size_t size, struct err *err)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n = state && state[0] == '/' ? snprintf(out, size, "%s/alluvium/worker-%s", state, line->s)
            : home && home[0] == '/' ? snprintf(out, size, "%s/.local/state/alluvium/worker-%s", home, line->s)
                                     : -1;
    if (n < 0 || (size_t)n >= size)
        return err_set(err, ST_USAGE, "no directory for the worker: name one, or set HOME");
    return ST_OK;
}

/* SIGTERM and SIGINT as something to read: blocked in this thread and in all that it starts. */
struct signals {
    int fd;
    sigset_t before;
};

static enum status signals_take(struct signals *s, struct err *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, &s->before);
    s->fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s->fd < 0) {
        pthread_sigmask(SIG_SETMASK, &s->before, NULL);
        return err_set(err, ST_IO, "signalfd failed");
    }
    return ST_OK;
}

static void signals_give(struct signals *s)
{
    if (s->fd < 0)
        return;
    close(s->fd);
    pthread_sigmask(SIG_SETMASK, &s->before, NULL);
}

static void fill_hello(const struct home *home, const struct join *join, const struct digest *card, Alv__Hello *hello)
{
    alv__hello__init(hello);
    hello->protocol_min = PROTOCOL_MIN;
    hello->protocol_max = PROTOCOL_VERSION;
    hello->line = (char *)join->line.s;
    hello->instance = (ProtobufCBinaryData){16, (uint8_t *)home->instance};
    hello->boot = home->boot;
    hello->software = (char *)"alluvium " ALLUVIUM_VERSION;
    hello->card_digest = (ProtobufCBinaryData){DIGEST_LEN, (uint8_t *)card->b};
}

static enum status run(const struct worker_options *options, const struct join *join, struct home *home,
                       struct engine *engine, const struct signals *signals, struct err *err)
{
    struct jobs *jobs = NULL;
    struct digest card;
    Alv__Hello hello;
    void *zmq = zmq_ctx_new();
    if (!zmq)
        return err_set(err, ST_IO, "zmq_ctx_new: %s", zmq_strerror(zmq_errno()));
    card_digest_trained(&engine->card, &card);
    fill_hello(home, join, &card, &hello);
    struct jobs_config jobs_config = {zmq,  join,   &hello,
                                      home, engine, options->keep_bytes ? options->keep_bytes : default_keep};
    struct session_config session = {.zmq = zmq, .join = join, .home = home};
    session.core = (struct worker_config){.software = "alluvium " ALLUVIUM_VERSION, .card = engine->card};
    snprintf(session.core.line, sizeof session.core.line, "%s", join->line.s);
    random_bytes(&session.core.seed, sizeof session.core.seed);
    session.core.first_request = home->boot << 32; /* ids of two starts do not meet */
    session.stop_fd = options->stop_fd >= 0 ? options->stop_fd : signals->fd;
    session.stop_size = options->stop_fd >= 0 ? 1 : sizeof(struct signalfd_siginfo);
    session.check = options->check;
    session.events = options->events;
    session.progress = options->quiet ? NULL : options->progress;

    enum status status = jobs_start(&jobs_config, &jobs, err);
    if (status == ST_OK) {
        session.jobs = jobs;
        status = session_run(&session, err);
    }
    jobs_stop(jobs);
    zmq_ctx_term(zmq);
    return status;
}

enum status worker_run(const struct worker_options *options, struct err *err)
{
    struct join join = {0};
    struct home home = {.lock_fd = -1};
    struct engine engine = {0};
    struct signals signals = {.fd = -1};
    char dir[BLOB_PATH_SIZE];
    struct engine_options engine_options = {
        .threads = options->threads ? options->threads : cpus(),
        .micro_rows = options->micro_rows ? options->micro_rows : DEFAULT_ROWS,
        .memory_max = options->memory_max ? options->memory_max : memory_there_is() / 10 * 9,
        .ops = options->ops,
    };
    hash_start();
    enum status status = join_read(options->join, &join, err);
    if (status != ST_OK)
        return status;
    if (join.role != ROLE_WORKER) {
        status = err_set(err, ST_CONFIG, "%s is for the role %s; a worker takes a worker's", options->join,
                         role_name(join.role));
        goto done;
    }
    if (options->dir)
        snprintf(dir, sizeof dir, "%s", options->dir);
    else if ((status = default_dir(&join.line, dir, sizeof dir, err)) != ST_OK)
        goto done;
    if (options->stop_fd < 0 && (status = signals_take(&signals, err)) != ST_OK)
        goto done;
    status = engine_open(options->base, &engine_options, &engine, err);
    if (status != ST_OK)
        goto done;
    status = home_open(dir, options->reserve_bytes ? options->reserve_bytes : default_reserve, &home, err);
    if (status != ST_OK)
        goto done;
    status = home_belongs(&home, join.root.b, err);
    if (status != ST_OK)
        goto done;
    log_info("worker", "starting line=%s base=\"%s\" dir=%s threads=%u boot=%llu", join.line.s, engine.card.base_name,
             dir, engine_options.threads, (unsigned long long)home.boot);
    status = run(options, &join, &home, &engine, &signals, err);
done:
    home_close(&home);
    engine_close(&engine);
    signals_give(&signals);
    join_wipe(&join);
    return status;
}
