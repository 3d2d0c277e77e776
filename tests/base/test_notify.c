/* What the service manager hears: a socket of our own plays its part. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/notify.h"
#include "harness.h"

static int listen_at(const char *name)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    size_t len = strlen(name);
    memcpy(at.sun_path, name, len);
    if (name[0] == '@')
        at.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    EXPECT(fd >= 0 && bind(fd, (struct sockaddr *)&at, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) == 0);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static const char *heard(int fd)
{
    static char text[64];
    ssize_t n = recv(fd, text, sizeof text - 1, MSG_DONTWAIT);
    text[n < 0 ? 0 : n] = 0;
    return text;
}

static void hears_all(const char *name)
{
    int fd = listen_at(name);
    notify_ready();
    EXPECT_STR(heard(fd), "READY=1");
    notify_beat();
    EXPECT_STR(heard(fd), "WATCHDOG=1");
    notify_stopping();
    EXPECT_STR(heard(fd), "STOPPING=1");
    close(fd);
}

static void test_path_and_abstract_name(void)
{
    char name[64];
    hears_all(harness_path(harness_tmpdir(), "notify"));
    snprintf(name, sizeof name, "@alluvium-test-%ld", (long)getpid());
    hears_all(name);
}

/* The manager reads nothing for now: a beat does not wait for it. */
static void test_beat_never_waits(void)
{
    int fd = listen_at(harness_path(harness_tmpdir(), "notify"));
    alarm(60); /* would end the test */
    for (int i = 0; i < 20000; i++)
        notify_beat();
    alarm(0);
    EXPECT_STR(heard(fd), "WATCHDOG=1");
    close(fd);
}

static void test_nobody_there(void)
{
    char longer[300];
    memset(longer, 'x', sizeof longer);
    longer[0] = '/', longer[sizeof longer - 1] = 0;
    const char *const names[] = {"", "/", "relative", "/nowhere/at/all", longer};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        setenv("NOTIFY_SOCKET", names[i], 1);
        notify_ready();
    }
    unsetenv("NOTIFY_SOCKET");
    notify_ready();
    EXPECT(true);
}

int main(void)
{
    RUN(test_path_and_abstract_name);
    RUN(test_beat_never_waits);
    RUN(test_nobody_there);
    return harness_end();
}
