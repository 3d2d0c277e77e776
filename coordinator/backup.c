#include "coordinator/backup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "coordinator/streamlog.h"
#include "coordinator/tree.h"

enum { INDEX_BYTES_MAX = 256 << 20 };

/* Every file of the directory but database, blobs and witness. */
static const struct {
    const char *name;
    bool may_lack;
} files[] = {
    {"line.json", false},  {"line.conf", false},   {"card.bin", false},     {"seed", false},
    {"root.key", true},    {"release.key", false}, {"release.cert", false}, {"release.old", true},
    {"server.key", false}, {"keys.json", false},   {"operator.join", true},
};

/* ---- the snapshot */

struct linking {
    const char *to; /* DIR/snapshot.part */
    struct blob_store *blobs;
};

static enum status link_blob(void *user, const struct digest *digest, uint64_t bytes, struct err *err)
{
    const struct linking *l = user;
    char from[BLOB_PATH_SIZE], hex[DIGEST_HEX_SIZE], name[DIGEST_HEX_SIZE + 16], to[TREE_PATH_SIZE];
    (void)bytes;
    digest_hex(digest, hex);
    snprintf(name, sizeof name, "blobs/%.2s/%s", hex, hex + 2);
    blob_path(l->blobs, digest, from);
    enum status st = tree_parents(l->to, name, err);
    if (!st)
        st = tree_join(to, l->to, name, err);
    if (!st)
        st = tree_link(from, to, err);
    return st == ST_NOT_FOUND && !tree_exists(from) ? ST_OK
                                                    : st; /* an upload that was just dropped; no root goes now */
}

static enum status link_files(const struct line_dir *dir, const char *to, struct err *err)
{
    char from[DIR_PATH_SIZE], path[TREE_PATH_SIZE];
    enum status st = ST_OK;
    for (size_t i = 0; !st && i < sizeof files / sizeof files[0]; i++) {
        st = line_dir_path(dir, files[i].name, from, err);
        if (!st)
            st = tree_join(path, to, files[i].name, err);
        if (!st && !(files[i].may_lack && !tree_exists(from)))
            st = tree_link(from, path, err);
    }
    return st;
}

enum status backup_snapshot(const struct line_dir *dir, struct db *db, struct blob_store *blobs, struct err *err)
{
    char part[DIR_PATH_SIZE], whole[DIR_PATH_SIZE], from[DIR_PATH_SIZE], to[TREE_PATH_SIZE];
    struct digest digest;
    uint64_t bytes;
    enum status st = line_dir_path(dir, BACKUP_SNAPSHOT, whole, err);
    if (!st)
        st = line_dir_path(dir, BACKUP_SNAPSHOT ".part", part, err);
    if (!st)
        st = line_dir_path(dir, "witness", from, err);
    if (!st)
        st = backup_snapshot_drop(dir->path, err);
    if (!st)
        st = tree_mkdir(part, err);
    if (!st)
        st = tree_join(to, part, "witness", err);
    if (!st) /* first: what it has seen is in the checkpoint */
        st = tree_copy(from, to, &digest, &bytes, err);
    if (!st)
        st = tree_join(to, part, "db", err);
    if (!st)
        st = db_checkpoint(db, to, err);
    struct linking l = {part, blobs};
    if (!st)
        st = blob_list(blobs, link_blob, &l, err);
    if (!st)
        st = link_files(dir, part, err);
    if (!st)
        st = tree_replace(part, whole, err);
    if (st) /* its links would keep files on a disk that may be full */
        (void)backup_snapshot_drop(dir->path, NULL);
    return st;
}

enum status backup_snapshot_offline(const char *path, struct err *err)
{
    char db[DIR_PATH_SIZE], witness[DIR_PATH_SIZE], blobs_path[DIR_PATH_SIZE];
    struct line_dir dir = {.lock_fd = -1};
    struct streamlog *log = NULL;
    struct blob_store *blobs = NULL;
    enum status st = line_dir_open(path, &dir, err);
    if (st)
        return st;
    st = line_dir_path(&dir, "db", db, err);
    if (!st)
        st = line_dir_path(&dir, "witness", witness, err);
    if (!st)
        st = line_dir_path(&dir, "blobs", blobs_path, err);
    if (!st)
        st = blob_store_open(blobs_path, 0, &blobs, err);
    if (!st)
        st = streamlog_open(db, witness, 0, false, &log, err);
    if (!st)
        st = backup_snapshot(&dir, streamlog_db(log), blobs, err);
    if (log) {
        enum status closed = streamlog_close(&log, st ? NULL : err);
        st = st ? st : closed;
    }
    if (blobs)
        blob_store_close(&blobs);
    line_dir_close(&dir);
    return st;
}

enum status backup_snapshot_drop(const char *dir, struct err *err)
{
    char path[TREE_PATH_SIZE];
    enum status st = tree_join(path, dir, BACKUP_SNAPSHOT, err);
    if (!st)
        st = tree_remove(path, err);
    if (!st)
        st = tree_join(path, dir, BACKUP_SNAPSHOT ".part", err);
    return st ? st : tree_remove(path, err);
}

/* ---- the copy */

struct copying {
    char from[TREE_PATH_SIZE];
    struct tree_stage stage;
    const char *dest;
    struct backup_index index, before;
    uint64_t total, done;
    backup_progress_fn progress;
    void *user;
    struct backup_report report;
};

static enum status list_file(void *user, const char *path, uint64_t bytes, struct err *err)
{
    struct copying *c = user;
    struct backup_index *x = &c->index;
    (void)err;
    if (!strcmp(path, "db/LOCK")) /* the checkpoint has none; an opened copy has */
        return ST_OK;
    if (x->n == x->cap)
        x->files = xrealloc_array(x->files, x->cap = x->cap ? 2 * x->cap : 256, sizeof *x->files);
    x->files[x->n++] = (struct backup_file){.path = xstrdup(path), .bytes = bytes};
    c->total += bytes;
    return ST_OK;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct backup_file *)a)->path, ((const struct backup_file *)b)->path);
}

static enum status take_file(struct copying *c, struct backup_file *f, struct err *err)
{
    char from[TREE_PATH_SIZE], to[TREE_PATH_SIZE], old[TREE_PATH_SIZE];
    const struct backup_file *before =
        c->before.n ? bsearch(f, c->before.files, c->before.n, sizeof *c->before.files, by_path) : NULL;
    bool linked = false;
    enum status st = tree_join(from, c->from, f->path, err);
    if (!st)
        st = tree_join(to, c->stage.tree, f->path, err);
    if (!st)
        st = tree_parents(c->stage.tree, f->path, err);
    if (!st && before && before->bytes == f->bytes) {
        st = tree_copy(from, NULL, &f->digest, &f->bytes, err);
        if (!st && digest_eq(&before->digest, &f->digest))
            linked = !tree_join(old, c->dest, f->path, NULL) && !tree_link(old, to, NULL);
    }
    if (!st && !linked) {
        st = tree_copy(from, to, &f->digest, &f->bytes, err);
        c->report.written_bytes += f->bytes;
    }
    c->done += f->bytes;
    if (c->progress)
        c->progress(c->user, c->done, c->total);
    return st;
}

/* What is in DEST now: nothing, or a backup of this line whose unchanged files may be linked. */
static enum status look_at_dest(struct copying *c, struct err *err)
{
    char path[TREE_PATH_SIZE];
    struct buf text = {0};
    enum status st = tree_join(path, c->dest, BACKUP_INDEX, err);
    if (st || !tree_exists(c->dest) || tree_empty(c->dest))
        return st;
    if (!tree_exists(path))
        return err_set(err, ST_CONFLICT, "%s holds something else; choose another directory", c->dest);
    st = file_read(path, INDEX_BYTES_MAX, &text, err);
    if (!st && backup_index_parse(text.data, text.len, &c->before, NULL))
        c->before = (struct backup_index){0}; /* damaged: nothing of it is trusted, all is written anew */
    if (!st && c->before.n && !name_eq(&c->before.line, &c->index.line))
        st = err_set(err, ST_CONFLICT, "%s is a backup of line %s", c->dest, c->before.line.s);
    buf_release(&text);
    return st;
}

static enum status finish(struct copying *c, struct err *err)
{
    char path[TREE_PATH_SIZE];
    struct buf text = {0};
    enum status st = tree_sync_all(c->stage.tree, err);
    backup_index_put(&c->index, &text);
    if (!st)
        st = tree_join(path, c->stage.tree, BACKUP_INDEX, err);
    if (!st)
        st = file_write_durable(path, text.data, text.len, 0600, err);
    buf_release(&text);
    return st ? st : tree_stage_end(&c->stage, c->dest, err);
}

enum status backup_begin(const char *dir, int *fd, struct err *err)
{
    char path[TREE_PATH_SIZE];
    enum status st = tree_join(path, dir, "backup.lock", err);
    *fd = -1;
    if (st)
        return st;
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (*fd < 0)
        return err_set(err, ST_IO, "%s: cannot be opened", path);
    if (flock(*fd, LOCK_EX | LOCK_NB))
        return err_set(err, ST_CONFLICT, "%s: another backup of this line is being made", dir);
    return ST_OK;
}

enum status backup_copy(const char *dir, const char *dest, backup_progress_fn progress, void *user,
                        struct backup_report *report, struct err *err)
{
    struct copying *c = xcalloc(1, sizeof *c);
    struct line_dir identity;
    c->dest = dest, c->progress = progress, c->user = user;
    enum status st = line_dir_identity(dir, &identity, err);
    if (!st)
        c->index.line = identity.line;
    c->index.created_s = clock_wall_s();
    if (!st)
        st = tree_join(c->from, dir, BACKUP_SNAPSHOT, err);
    if (!st)
        st = look_at_dest(c, err);
    if (!st)
        st = tree_each(c->from, list_file, c, err);
    if (!st)
        st = tree_stage_begin(&c->stage, dest, "backup", err);
    if (c->index.n)
        qsort(c->index.files, c->index.n, sizeof *c->index.files, by_path);
    for (size_t i = 0; !st && i < c->index.n; i++)
        st = take_file(c, &c->index.files[i], err);
    if (!st)
        st = finish(c, err);
    c->report.files = c->index.n;
    c->report.bytes = c->done;
    if (!st)
        *report = c->report;
    backup_index_release(&c->index);
    backup_index_release(&c->before);
    free(c);
    return st;
}
