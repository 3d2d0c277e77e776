#include "net/census.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/check.h"
#include "proto/verbs.h"

#ifndef SO_COOKIE
#define SO_COOKIE 57 /* Linux 4.12; not in every libc's headers */
#endif

enum { FDS_MAX = 1 << 20 /* descriptors above are never noted: their connections end at a sweep, and come back */ };

struct speaker {
    uint64_t cookie; /* 0: nobody has spoken over this descriptor */
    struct curve_key key;
};

struct census {
    struct speaker *by_fd;
    size_t n;
    char bound[PLANES][128]; /* path of a Unix socket, or empty */
    uint16_t ports[PLANES];  /* or a port */
    unsigned n_bound;
};

struct census *census_new(void)
{
    return xcalloc(1, sizeof(struct census));
}

void census_free(struct census *c)
{
    if (c)
        free(c->by_fd);
    free(c);
}

void census_bound(struct census *c, const char *address)
{
    CHECK(c->n_bound < PLANES);
    const char *colon = strrchr(address, ':');
    if (!strncmp(address, "ipc://", 6))
        snprintf(c->bound[c->n_bound], sizeof c->bound[0], "%s", address + 6);
    else if (colon)
        c->ports[c->n_bound] = (uint16_t)strtoul(colon + 1, NULL, 10);
    c->n_bound++;
}

static uint64_t cookie_of(int fd) /* 0: no socket (any more) */
{
    uint64_t cookie = 0;
    socklen_t len = sizeof cookie;
    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &len) < 0 ? 0 : cookie;
}

void census_note(struct census *c, int fd, const char *public_z85)
{
    if (fd < 0 || fd >= FDS_MAX)
        return;
    if ((size_t)fd >= c->n) {
        size_t n = 2 * (size_t)fd + 64;
        c->by_fd = xrealloc_array(c->by_fd, n, sizeof *c->by_fd);
        memset(c->by_fd + c->n, 0, (n - c->n) * sizeof *c->by_fd);
        c->n = n;
    }
    struct speaker *s = &c->by_fd[fd];
    s->cookie = cookie_of(fd);
    if (strncmp(s->key.z85, public_z85, CURVE_Z85_SIZE))
        snprintf(s->key.z85, sizeof s->key.z85, "%s", public_z85);
}

/* A connected socket whose near end is one of our addresses: not a listener, a file or a connection to elsewhere. */
static bool is_ours(const struct census *c, int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_un local;
        struct sockaddr_storage room;
    } near = {0}, far;
    socklen_t near_len = sizeof near, far_len = sizeof far;
    if (getpeername(fd, &far.any, &far_len) < 0 || getsockname(fd, &near.any, &near_len) < 0)
        return false;
    uint16_t port = near.any.sa_family == AF_INET    ? ntohs(near.v4.sin_port)
                    : near.any.sa_family == AF_INET6 ? ntohs(near.v6.sin6_port)
                                                     : 0;
    bool ours = false;
    for (unsigned i = 0; i < c->n_bound && !ours; i++)
        ours = c->ports[i] ? c->ports[i] == port
                           : near.any.sa_family == AF_UNIX && !strcmp(near.local.sun_path, c->bound[i]);
    return ours;
}

static bool may_stay(const struct census *c, struct keys *keys, int fd, uint64_t cookie)
{
    struct key_grant grant;
    const struct speaker *s = (size_t)fd < c->n ? &c->by_fd[fd] : NULL;
    return s && s->cookie == cookie && keys_find(keys, s->key.z85, &grant, NULL) != ST_DENIED;
}

static bool end_unless_known(const struct census *c, struct keys *keys, int fd)
{
    int mine = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (mine < 0)
        return false;
    uint64_t cookie = cookie_of(mine);
    bool end = cookie && is_ours(c, mine) && !may_stay(c, keys, fd, cookie);
    if (end)
        shutdown(mine, SHUT_RDWR);
    close(mine);
    return end;
}

unsigned census_sweep(struct census *c, struct keys *keys)
{
    struct key_grant grant;
    DIR *dir = opendir("/proc/self/fd");
    unsigned ended = 0;
    if (!dir || keys_find(keys, "", &grant, NULL) == ST_AGAIN) {
        if (dir)
            closedir(dir);
        return 0;
    }
    for (const struct dirent *d; (d = readdir(dir));)
        if (d->d_name[0] >= '0' && d->d_name[0] <= '9')
            ended += end_unless_known(c, keys, (int)strtol(d->d_name, NULL, 10));
    closedir(dir);
    return ended;
}
