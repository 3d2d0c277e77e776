#include "adapter/mapping.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum status mapping_open(const char *path, struct mapping *out, struct err *err)
{
    enum status st = ST_OK;
    struct stat s;
    struct mapping map = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: cannot open: %s", path, strerror(errno));
    if (fstat(fd, &s) || !S_ISREG(s.st_mode)) {
        st = err_set(err, ST_IO, "%s: not a regular file", path);
        goto done;
    }
    map.len = (size_t)s.st_size;
    if (map.len) {
        void *p = mmap(NULL, map.len, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            st = err_set(err, ST_IO, "%s: cannot map %zu bytes: %s", path, map.len, strerror(errno));
            goto done;
        }
        map.data = p;
    }
    *out = map;
done:
    close(fd);
    return st;
}

void mapping_close(struct mapping *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->len);
    *map = (struct mapping){0};
}
