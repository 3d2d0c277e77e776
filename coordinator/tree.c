#include "coordinator/tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/hash.h"

enum { CHUNK = 1 << 20, DEPTH_MAX = 8 };

static enum status failed(struct err *err, const char *path)
{
    int e = errno;
    enum status st = e == ENOSPC || e == EDQUOT ? ST_NO_SPACE : e == ENOENT ? ST_NOT_FOUND : ST_IO;
    return err_set(err, st, "%s: %s", path, strerror(e));
}

enum status tree_join(char out[TREE_PATH_SIZE], const char *dir, const char *name, struct err *err)
{
    int n = snprintf(out, TREE_PATH_SIZE, "%s/%s", dir, name);
    return n < 0 || n >= TREE_PATH_SIZE ? err_set(err, ST_LIMIT, "%s: the path is too long", dir) : ST_OK;
}

bool tree_exists(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0;
}

bool tree_empty(const char *path)
{
    DIR *d = opendir(path);
    bool empty = d != NULL;
    for (struct dirent *e; d && (e = readdir(d));)
        empty = empty && (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || !strcmp(e->d_name, "lost+found"));
    if (d)
        closedir(d);
    return empty;
}

enum status tree_mkdir(const char *path, struct err *err)
{
    return mkdir(path, 0700) && errno != EEXIST ? failed(err, path) : ST_OK;
}

enum status tree_parents(const char *root, const char *path, struct err *err)
{
    char full[TREE_PATH_SIZE];
    enum status st = tree_join(full, root, path, err);
    for (char *slash = full + strlen(root) + 1; !st && (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        st = tree_mkdir(full, err);
    }
    return st;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type, (void)at;
    return remove(path);
}

enum status tree_remove(const char *path, struct err *err)
{
    if (!tree_exists(path))
        return ST_OK;
    return nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT) ? failed(err, path) : ST_OK;
}

static enum status tree_sync(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    enum status st = fd < 0 || fsync(fd) ? failed(err, dir) : ST_OK;
    if (fd >= 0)
        close(fd);
    return st;
}

enum status tree_link(const char *from, const char *to, struct err *err)
{
    return link(from, to) ? failed(err, from) : ST_OK;
}

static enum status copy_bytes(int in, int out, const char *from, const char *to, struct hasher *hasher, uint64_t *bytes,
                              struct err *err)
{
    uint8_t *chunk = xmalloc(CHUNK);
    enum status st = ST_OK;
    ssize_t n;
    *bytes = 0;
    while (!st && (n = read(in, chunk, CHUNK)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            st = failed(err, from);
            break;
        }
        hasher_put(hasher, chunk, (size_t)n);
        *bytes += (uint64_t)n;
        for (ssize_t at = 0, put; out >= 0 && !st && at < n; at += put) {
            put = write(out, chunk + at, (size_t)(n - at));
            if (put < 0 && errno == EINTR)
                put = 0;
            else if (put < 0)
                st = failed(err, to);
        }
    }
    free(chunk);
    return st;
}

enum status tree_copy(const char *from, const char *to, struct digest *digest, uint64_t *bytes, struct err *err)
{
    struct hasher hasher;
    struct stat s;
    int in = -1, out = -1;
    enum status st = file_open(from, &in, err);
    if (st)
        return st;
    if (fstat(in, &s))
        st = failed(err, from);
    if (!st && to && (out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600)) < 0)
        st = failed(err, to);
    hasher_init(&hasher);
    if (!st)
        st = copy_bytes(in, out, from, to, &hasher, bytes, err);
    if (!st && to && (fchmod(out, s.st_mode & 0644) || fsync(out)))
        st = failed(err, to);
    if (out >= 0 && close(out) && !st)
        st = failed(err, to);
    close(in);
    hasher_end(&hasher, digest);
    return st;
}

/* ---- walking */

struct walk {
    char path[TREE_PATH_SIZE]; /* of the entry, from the root on */
    size_t root;               /* length of the root with its slash */
    tree_each_fn each;
    tree_each_fn each_dir; /* called after what is in it */
    void *user;
};

static enum status walk_dir(struct walk *w, unsigned depth, struct err *err)
{
    size_t len = strlen(w->path);
    DIR *d = opendir(w->path);
    enum status st = d ? ST_OK : failed(err, w->path);
    for (struct dirent *e; !st && (e = readdir(d)); w->path[len] = 0) {
        struct stat s;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        if (len + strlen(e->d_name) + 2 > sizeof w->path || depth == DEPTH_MAX)
            st = err_set(err, ST_LIMIT, "%s: too deep or too long", w->path);
        else if (snprintf(w->path + len, sizeof w->path - len, "/%s", e->d_name) < 0 || lstat(w->path, &s))
            st = errno == ENOENT ? ST_OK : failed(err, w->path);
        else if (S_ISDIR(s.st_mode))
            st = walk_dir(w, depth + 1, err);
        else if (S_ISREG(s.st_mode) && w->each)
            st = w->each(w->user, w->path + w->root, (uint64_t)s.st_size, err);
    }
    if (d)
        closedir(d);
    if (!st && w->each_dir)
        st = w->each_dir(w->user, w->path, 0, err);
    return st;
}

static enum status walk(const char *root, struct walk *w, struct err *err)
{
    w->root = strlen(root) + 1;
    if (snprintf(w->path, sizeof w->path, "%s", root) >= (int)sizeof w->path)
        return err_set(err, ST_LIMIT, "%s: the path is too long", root);
    return walk_dir(w, 0, err);
}

enum status tree_each(const char *root, tree_each_fn each, void *user, struct err *err)
{
    struct walk w = {.each = each, .user = user};
    return walk(root, &w, err);
}

static enum status sync_one(void *user, const char *path, uint64_t bytes, struct err *err)
{
    (void)user, (void)bytes;
    return tree_sync(path, err);
}

enum status tree_sync_all(const char *dir, struct err *err)
{
    struct walk w = {.each_dir = sync_one};
    return walk(dir, &w, err);
}

/* ---- replacing */

static enum status sync_parent(const char *path, struct err *err)
{
    char parent[TREE_PATH_SIZE];
    snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (slash == parent)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    return tree_sync(slash ? parent : ".", err);
}

enum status tree_replace(const char *from, const char *to, struct err *err)
{
    char old[TREE_PATH_SIZE];
    enum status st = ST_OK;
    if (!tree_exists(to) || tree_empty(to)) {
        st = rename(from, to) ? failed(err, to) : ST_OK;
    } else if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) {
        st = sync_parent(to, err);
        return st ? st : tree_remove(from, err);
    } else {
        if (snprintf(old, sizeof old, "%s.old", to) >= (int)sizeof old)
            return err_set(err, ST_LIMIT, "%s: the path is too long", to);
        st = tree_remove(old, err);
        if (!st && (rename(to, old) || rename(from, to)))
            st = failed(err, to);
        if (!st)
            st = tree_remove(old, err);
    }
    return st ? st : sync_parent(to, err);
}

enum status tree_stage_begin(struct tree_stage *stage, const char *dest, const char *what, struct err *err)
{
    if (snprintf(stage->part, sizeof stage->part, "%s.part", dest) >= (int)sizeof stage->part)
        return err_set(err, ST_LIMIT, "%s: the path is too long", dest);
    enum status st = tree_join(stage->mark, stage->part, "unfinished", err);
    if (!st)
        st = tree_join(stage->tree, stage->part, "tree", err);
    if (st)
        return st;
    if (tree_exists(stage->part) && !tree_exists(stage->mark) && !tree_empty(stage->part))
        return err_set(err, ST_CONFLICT, "%s is in the way, and is no unfinished %s", stage->part, what);
    st = tree_mkdir(stage->part, err);
    if (st)
        return st;
    st = file_mark_durable(stage->mark, 0600, err);
    if (!st)
        st = tree_remove(stage->tree, err);
    return st ? st : tree_mkdir(stage->tree, err);
}

enum status tree_stage_end(const struct tree_stage *stage, const char *dest, struct err *err)
{
    enum status st = tree_replace(stage->tree, dest, err);
    return st ? st : tree_stage_drop(stage, err);
}

enum status tree_stage_drop(const struct tree_stage *stage, struct err *err)
{
    enum status st = tree_remove(stage->tree, err);
    return st ? st : tree_remove(stage->part, err);
}
