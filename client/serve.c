#include "client/serve.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"

enum { N_FACTS = 6, FACT_SIZE = 4300, KILL_MS = 5000 };

extern char **environ;

struct environment {
    char facts[N_FACTS][FACT_SIZE];
    char **list;
};

static void make_environment(const struct hook_facts *f, struct environment *e)
{
    snprintf(e->facts[0], FACT_SIZE, "ALLUVIUM_VERSION=%llu", (unsigned long long)f->version);
    if (f->has_previous)
        snprintf(e->facts[1], FACT_SIZE, "ALLUVIUM_PREVIOUS=%llu", (unsigned long long)f->previous);
    else
        snprintf(e->facts[1], FACT_SIZE, "ALLUVIUM_PREVIOUS=");
    snprintf(e->facts[2], FACT_SIZE, "ALLUVIUM_LINE=%s", f->line);
    snprintf(e->facts[3], FACT_SIZE, "ALLUVIUM_DIR=%s", f->dir);
    snprintf(e->facts[4], FACT_SIZE, "ALLUVIUM_PEFT=%s", f->peft);
    snprintf(e->facts[5], FACT_SIZE, "ALLUVIUM_GGUF=%s", f->gguf);
    size_t n = 0, at = 0;
    while (environ[n])
        n++;
    e->list = xcalloc(n + N_FACTS + 1, sizeof *e->list);
    for (size_t i = 0; i < N_FACTS; i++)
        e->list[at++] = e->facts[i];
    for (size_t i = 0; i < n; i++) { /* ours go before an inherited one of the same name */
        bool ours = false;
        for (size_t k = 0; k < N_FACTS; k++)
            ours = ours || !strncmp(environ[i], e->facts[k], strcspn(e->facts[k], "=") + 1);
        if (!ours)
            e->list[at++] = environ[i];
    }
}

static enum status start(const char *path, char **environment, pid_t *pid, struct err *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    char *argv[] = {(char *)(uintptr_t)path, NULL};
    int rc = posix_spawn(pid, path, &files, &attributes, argv, environment);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return rc ? err_set(err, ST_IO, "%s cannot be started: %s", path, strerror(rc)) : ST_OK;
}

/* ST_OK when the process ended (not yet reaped), ST_TIMEOUT, ST_STOPPED. */
static enum status wait_end(int pidfd, int timeout_ms, int stop_fd)
{
    struct pollfd fds[2] = {{.fd = pidfd, .events = POLLIN}, {.fd = stop_fd, .events = POLLIN}};
    uint64_t until = clock_ms() + (uint64_t)timeout_ms;
    for (;;) {
        uint64_t now = clock_ms();
        int n = poll(fds, 2, now < until ? (int)(until - now) : 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (fds[0].revents)
            return ST_OK;
        if (fds[1].revents)
            return ST_STOPPED;
        if (clock_ms() >= until)
            return ST_TIMEOUT;
    }
}

enum status hook_run(const char *path, const struct hook_facts *facts, uint32_t timeout_ms, int stop_fd,
                     struct err *err)
{
    struct environment *environment = xmalloc(sizeof *environment);
    make_environment(facts, environment);
    pid_t pid;
    int status = 0;
    enum status st = start(path, environment->list, &pid, err);
    free(environment->list);
    free(environment);
    if (st != ST_OK)
        return st;
    int pidfd = pidfd_open(pid, 0);
    if (pidfd < 0) {
        st = err_set(err, ST_IO, "pidfd_open: %s", strerror(errno));
        kill(-pid, SIGKILL);
    } else {
        st = wait_end(pidfd, (int)timeout_ms, stop_fd);
        if (st != ST_OK) { /* what it started goes with it */
            kill(-pid, SIGTERM);
            wait_end(pidfd, KILL_MS, -1);
            kill(-pid, SIGKILL);
        }
        close(pidfd);
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (st == ST_TIMEOUT)
        return err_set(err, st, "%s did not end within %u s", path, timeout_ms / 1000);
    if (st != ST_OK)
        return st;
    if (WIFSIGNALED(status))
        return err_set(err, ST_IO, "%s was ended by signal %d", path, WTERMSIG(status));
    if (WEXITSTATUS(status))
        return err_set(err, ST_IO, "%s ended with status %d", path, WEXITSTATUS(status));
    return ST_OK;
}
