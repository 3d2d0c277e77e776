#include "base/notify.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* `must`: wait for room in the manager's queue. A beat need not: the next one comes soon. */
static void tell(const char *text, bool must)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    size_t len = path ? strlen(path) : 0;
    if (len < 2 || len >= sizeof to.sun_path || (path[0] != '/' && path[0] != '@'))
        return;
    memcpy(to.sun_path, path, len);
    if (path[0] == '@') /* the abstract name space */
        to.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
    (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL | (must ? 0 : MSG_DONTWAIT), (struct sockaddr *)&to, size);
    close(fd);
}

void notify_ready(void)
{
    tell("READY=1", true);
}

void notify_stopping(void)
{
    tell("STOPPING=1", true);
}

void notify_beat(void)
{
    tell("WATCHDOG=1", false);
}
