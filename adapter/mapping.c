#include "adapter/mapping.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"

enum status mapping_open(const char *path, struct mapping *out, struct err *err)
{
    struct stat s;
    struct mapping map = {0};
    int fd;
    enum status st = file_open(path, &fd, err);
    if (st)
        return st;
    if (fstat(fd, &s)) {
        st = err_set(err, ST_IO, "%s: cannot ask for its size: %s", path, strerror(errno));
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

void mapping_rest(const struct mapping *map)
{
    if (map->data)
        madvise((void *)(uintptr_t)map->data, map->len, MADV_DONTNEED);
}

void mapping_close(struct mapping *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->len);
    *map = (struct mapping){0};
}
