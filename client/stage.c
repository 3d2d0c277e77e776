#include "client/stage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "client/subscribe.h"

struct stage {
    char dir[4096]; /* absolute */
    char own[4200]; /* dir/.alluvium */
    struct name line;
    int lock;
};

static const char *const version_files[] = {"adapter_model.safetensors",
                                            "adapter_config.json",
                                            "adapter.gguf",
                                            "manifest.json",
                                            "manifest.bin",
                                            "manifest.sig"};

static enum status sync_path(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, ST_IO, "%s: %s", path, strerror(errno));
    int rc = fsync(fd);
    int failed = errno;
    close(fd);
    return rc ? err_set(err, ST_IO, "%s: fsync: %s", path, strerror(failed)) : ST_OK;
}

static enum status make_dir(const char *path, struct err *err)
{
    if (mkdir(path, 0755) == 0 || errno == EEXIST)
        return ST_OK;
    return err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot be made: %s", path, strerror(errno));
}

enum status stage_open(const char *dir, const struct name *line, struct stage **out, struct err *err)
{
    struct stage *stage = xcalloc(1, sizeof *stage);
    char path[STAGE_PATH_SIZE];
    stage->lock = -1;
    stage->line = *line;
    enum status st = make_dir(dir, err);
    char *real = st == ST_OK ? realpath(dir, NULL) : NULL;
    if (st == ST_OK && (!real || strlen(real) >= sizeof stage->dir - 256))
        st = err_set(err, ST_IO, "%s: %s", dir, real ? "the path is too long" : strerror(errno));
    if (st == ST_OK) {
        snprintf(stage->dir, sizeof stage->dir, "%s", real);
        snprintf(stage->own, sizeof stage->own, "%s/.alluvium", real);
        st = make_dir(stage->own, err);
    }
    free(real);
    if (st == ST_OK) {
        snprintf(path, sizeof path, "%s/lock", stage->own);
        stage->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (stage->lock < 0)
            st = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
        else if (flock(stage->lock, LOCK_EX | LOCK_NB) != 0)
            st = err_set(err, ST_CONFLICT, "%s: another subscriber uses this directory", stage->dir);
    }
    if (st == ST_OK)
        *out = stage;
    else
        stage_close(&stage);
    return st;
}

void stage_close(struct stage **stage)
{
    if (!*stage)
        return;
    if ((*stage)->lock >= 0)
        close((*stage)->lock);
    free(*stage);
    *stage = NULL;
}

void stage_path(const struct stage *stage, uint64_t number, char out[STAGE_PATH_SIZE])
{
    snprintf(out, STAGE_PATH_SIZE, "%s/%s-v%llu", stage->dir, stage->line.s, (unsigned long long)number);
}

enum status stage_load_state(struct stage *stage, size_t bytes_max, struct buf *out, struct err *err)
{
    char path[STAGE_PATH_SIZE];
    snprintf(path, sizeof path, "%s/state", stage->own);
    enum status st = file_read(path, bytes_max, out, err);
    if (st == ST_OK &&
        !out->len) /* we never write that: not to be taken for a new subscriber's, which has seen nothing */
        return err_set(err, ST_CORRUPT, "the subscriber's state is empty");
    return st == ST_NOT_FOUND ? ST_OK : st;
}

enum status stage_identity(struct stage *stage, uint8_t instance[16], uint64_t *boot, struct err *err)
{
    char path[STAGE_PATH_SIZE], host[256] = "";
    struct buf file = {0};
    struct digest digest;
    snprintf(path, sizeof path, "%s/instance", stage->own); /* 16 random bytes, u64 the newest start */
    enum status st = file_read(path, 24, &file, err);
    if (st != ST_OK || file.len != 24) { /* missing, or no longer what we wrote: a new one does no harm */
        uint8_t fresh[24] = {0};
        random_bytes(fresh, 16);
        buf_clear(&file);
        buf_put(&file, fresh, sizeof fresh);
    }
    struct reader r = reader_of(file.data + 16, 8);
    *boot = read_u64(&r) + 1;
    if (*boot < clock_wall_s())
        *boot = clock_wall_s();
    file.len = 16;
    buf_put_u64(&file, *boot);
    st = file_write_durable(path, file.data, file.len, 0600, err);
    file.len = 16;
    gethostname(host, sizeof host - 1);
    buf_put(&file, host, strlen(host));
    hash_blake2b(file.data, file.len, &digest);
    memcpy(instance, digest.b, 16);
    buf_release(&file);
    return st;
}

enum status stage_save_state(struct stage *stage, struct bytes state, struct err *err)
{
    char path[STAGE_PATH_SIZE];
    snprintf(path, sizeof path, "%s/state", stage->own);
    return file_write_durable(path, state.data, state.len, 0600, err);
}

/* ---- one version ----------------------------------------------------------------------------------------------------- */

static const char *file_name(const struct manifest_file *file, unsigned forms)
{
    if (file->kind == FILE_PEFT && (forms & FORM_PEFT))
        return version_files[0];
    if (file->kind == FILE_GGUF && (forms & FORM_GGUF))
        return version_files[2];
    return NULL;
}

/* Both digests and the length, from the disk. */
static enum status check_file(const char *path, const struct manifest_file *file, struct err *err)
{
    struct digest digest;
    uint8_t sha256[32];
    uint64_t bytes;
    enum status st = hash_file(path, &digest, sha256, &bytes, err);
    if (st != ST_OK)
        return st;
    if (bytes != file->bytes || !digest_eq(&digest, &file->blake2b) || memcmp(sha256, file->sha256, sizeof sha256))
        return err_set(err, ST_VERIFY, "%s: is not the file its manifest names", path);
    return ST_OK;
}

static enum status check_version(const char *dir, const struct stage_files *files, struct err *err)
{
    for (uint32_t i = 0; i < files->manifest->n_files; i++) {
        char path[STAGE_PATH_SIZE + 64];
        const char *name = file_name(&files->manifest->files[i], files->forms);
        snprintf(path, sizeof path, "%s/%s", dir, name ? name : "");
        struct err why;
        if (name && check_file(path, &files->manifest->files[i], &why) != ST_OK)
            return err_set(err, ST_CORRUPT, "%.300s; remove the directory of that version, and it is fetched again",
                           why.text);
    }
    return ST_OK;
}

static enum status write_texts(const char *dir, const struct stage_files *files, struct err *err)
{
    struct buf config = {0}, json = {0};
    subscribe_peft_config(files->manifest, files->base_name ? files->base_name : "", &config);
    subscribe_manifest_json(files->manifest, &json);
    const struct {
        const char *name;
        struct bytes bytes;
    } texts[] = {
        {version_files[1], buf_bytes(&config)},
        {version_files[3], buf_bytes(&json)},
        {version_files[4], files->manifest_bytes},
        {version_files[5], files->signature},
    };
    enum status st = ST_OK;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && st == ST_OK; i++) {
        char path[STAGE_PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/%s", dir, texts[i].name);
        st = file_write_durable(path, texts[i].bytes.data, texts[i].bytes.len, 0644, err);
    }
    buf_release(&config);
    buf_release(&json);
    return st;
}

enum status stage_put(struct stage *stage, const struct stage_files *files, struct conn *bulk,
                      const struct bulk_options *options, struct err *err)
{
    char at[STAGE_PATH_SIZE], work[STAGE_PATH_SIZE];
    struct stat there;
    stage_path(stage, files->manifest->number, at);
    if (lstat(at, &there) == 0)
        return check_version(at, files, err);
    snprintf(work, sizeof work, "%s/v%llu", stage->own, (unsigned long long)files->manifest->number);
    enum status st = make_dir(work, err);
    for (uint32_t i = 0; i < files->manifest->n_files && st == ST_OK; i++) {
        const struct manifest_file *file = &files->manifest->files[i];
        const char *name = file_name(file, files->forms);
        if (!name)
            continue;
        char path[STAGE_PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/%s", work, name);
        if (access(path, F_OK) == 0 && check_file(path, file, NULL) == ST_OK)
            continue; /* from an earlier try */
        st = bulk_get_file(bulk, &file->blake2b, file->bytes, path, options, err);
        if (st == ST_OK && (st = check_file(path, file, err)) != ST_OK)
            unlink(path);
    }
    if (st == ST_OK)
        st = write_texts(work, files, err);
    if (st == ST_OK)
        st = sync_path(work, err);
    if (st == ST_OK && rename(work, at) != 0)
        st = err_set(err, ST_IO, "%s: cannot be renamed to %s: %s", work, at, strerror(errno));
    return st == ST_OK ? sync_path(stage->dir, err) : st;
}

enum status stage_swap(struct stage *stage, uint64_t number, struct err *err)
{
    char link[STAGE_PATH_SIZE], fresh[STAGE_PATH_SIZE], target[NAME_MAX_LEN + 32];
    snprintf(link, sizeof link, "%s/current", stage->dir);
    snprintf(fresh, sizeof fresh, "%s/current.new", stage->own);
    snprintf(target, sizeof target, "%s-v%llu", stage->line.s, (unsigned long long)number);
    unlink(fresh);
    if (symlink(target, fresh) != 0 || rename(fresh, link) != 0)
        return err_set(err, errno == ENOSPC ? ST_NO_SPACE : ST_IO, "%s: cannot be set to %s: %s", link, target,
                       strerror(errno));
    return sync_path(stage->dir, err);
}

static void remove_version(const char *dir)
{
    for (size_t i = 0; i < sizeof version_files / sizeof version_files[0]; i++) {
        char path[STAGE_PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/%s", dir, version_files[i]);
        unlink(path);
    }
    rmdir(dir); /* fails, rightly, when somebody put something of his own there */
}

static int falling(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x < y) - (x > y);
}

/* The number of an entry named "<line>-vN"; false for anything else. */
static bool version_of(const struct stage *stage, const char *name, uint64_t *out)
{
    size_t n = strlen(stage->line.s);
    char *end;
    if (strncmp(name, stage->line.s, n) || strncmp(name + n, "-v", 2) || name[n + 2] < '0' || name[n + 2] > '9')
        return false;
    errno = 0;
    *out = strtoull(name + n + 2, &end, 10);
    return !errno && !*end;
}

void stage_prune(struct stage *stage, uint64_t current, uint32_t keep)
{
    DIR *dir = opendir(stage->dir);
    if (!dir)
        return;
    uint64_t *numbers = NULL, number;
    size_t n = 0;
    for (struct dirent *entry; (entry = readdir(dir));)
        if (version_of(stage, entry->d_name, &number) && number != current) {
            numbers = xrealloc_array(numbers, n + 1, sizeof *numbers);
            numbers[n++] = number;
        }
    closedir(dir);
    if (n)
        qsort(numbers, n, sizeof *numbers, falling);
    for (size_t i = keep; i < n; i++) {
        char path[STAGE_PATH_SIZE];
        stage_path(stage, numbers[i], path);
        remove_version(path);
    }
    free(numbers);
}
