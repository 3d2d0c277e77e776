/* Files of a line whose format is ours (the signing keys: signing.c); integers little-endian.
 *
 *   line.json     {"format":1,"line":NAME,"rank":N,"alpha":N,"targets":N,"address":HOST,"port":N}
 *   seed          16 bytes, then the first 8 bytes of their BLAKE2b-256: another seed would split and replay differently
 *   lock          the pid of who holds the flock, as text
 */
#include "coordinator/dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <jansson.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/check.h"
#include "coordinator/signing.h"
#include "net/join.h"

static const char UNFINISHED[] = "init-unfinished";
enum { LINE_FORMAT = 1, SMALL_FILE_MAX = 1 << 16, CARD_FILE_MAX = 1 << 16, SEED_FILE_LEN = SIP_KEY_LEN + 8 };

enum status line_dir_path(const struct line_dir *dir, const char *name, char out[DIR_PATH_SIZE], struct err *err)
{
    int n = snprintf(out, DIR_PATH_SIZE, "%s/%s", dir->path, name);
    return n < 0 || n >= DIR_PATH_SIZE ? err_set(err, ST_LIMIT, "%s: the path is too long", dir->path) : ST_OK;
}

static bool exists(const struct line_dir *dir, const char *name)
{
    char path[DIR_PATH_SIZE];
    struct stat st;
    return !line_dir_path(dir, name, path, NULL) && !lstat(path, &st);
}

static enum status sync_dir(const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd)) {
        int e = errno;
        if (fd >= 0)
            close(fd);
        return err_set(err, ST_IO, "%s: cannot sync the directory: %s", path, strerror(e));
    }
    close(fd);
    return ST_OK;
}

enum status line_dir_write(const struct line_dir *dir, const char *name, const void *data, size_t len, unsigned mode,
                           struct err *err)
{
    char path[DIR_PATH_SIZE];
    enum status st = line_dir_path(dir, name, path, err);
    return st ? st : file_write_durable(path, data, len, mode, err);
}

enum status line_dir_write_secret(const struct line_dir *dir, const char *name, const void *data, size_t len,
                                  struct err *err)
{
    char path[DIR_PATH_SIZE];
    enum status st = line_dir_path(dir, name, path, err);
    return st ? st : secret_write(path, data, len, err);
}

enum status line_dir_read(const struct line_dir *dir, const char *name, bool secret, void *out, size_t len,
                          struct err *err)
{
    char path[DIR_PATH_SIZE];
    struct buf b = {0};
    enum status st = line_dir_path(dir, name, path, err);
    if (!st)
        st = secret ? secret_read(path, SMALL_FILE_MAX, &b, err) : file_read(path, SMALL_FILE_MAX, &b, err);
    if (!st && b.len != len)
        st = err_set(err, ST_CONFIG, "%s: %zu bytes instead of %zu", path, b.len, len);
    if (!st)
        memcpy(out, b.data, len);
    if (b.data)
        sodium_memzero(b.data, b.len);
    buf_release(&b);
    return st;
}

/* ---- the lock -------------------------------------------------------------------------------------------------- */

static enum status take_lock(struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE], pid[32] = "";
    enum status st = line_dir_path(dir, "lock", path, err);
    if (st)
        return st;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB)) {
        int e = errno;
        ssize_t n = read(fd, pid, sizeof pid - 1);
        close(fd);
        if (e != EWOULDBLOCK)
            return err_set(err, ST_IO, "%s: %s", path, strerror(e));
        pid[n > 0 ? strcspn(pid, "\n") : 0] = 0;
        return err_set(err, ST_CONFLICT, "%s is in use by process %s; one coordinator serves a directory at a time",
                       dir->path, *pid ? pid : "unknown");
    }
    int n = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) || pwrite(fd, pid, (size_t)n, 0) != n) { /* the lock holds all the same */
        st = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
        close(fd);
        return st;
    }
    dir->lock_fd = fd;
    return ST_OK;
}

/* ---- making ---------------------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)st, (void)type;
    const char *name = path + at->base;
    if (at->level == 0 || (at->level == 1 && (!strcmp(name, UNFINISHED) || !strcmp(name, "lock"))))
        return 0;
    return remove(path);
}

/* ST_OK when nothing but a lock (ours) and what a file system puts there is in it. */
static enum status check_empty(const struct line_dir *dir, struct err *err)
{
    static const char *const ours[] = {".", "..", "lost+found", "lock"};
    if (exists(dir, "line.json"))
        return err_set(err, ST_CONFLICT, "%s holds a line already", dir->path);
    DIR *d = opendir(dir->path);
    if (!d)
        return err_set(err, ST_IO, "%s: %s", dir->path, strerror(errno));
    enum status st = ST_OK;
    struct dirent *e;
    while (!st && (e = readdir(d))) {
        bool known = false;
        for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
            known = known || !strcmp(e->d_name, ours[i]);
        if (!known)
            st = err_set(err, ST_CONFLICT, "%s is not empty (it has %s); choose another directory", dir->path,
                         e->d_name);
    }
    closedir(d);
    return st;
}

static enum status begin(struct line_dir *dir, struct err *err)
{
    char mark[DIR_PATH_SIZE];
    if (mkdir(dir->path, 0700) && errno != EEXIST)
        return err_set(err, ST_IO, "%s: %s", dir->path, strerror(errno));
    enum status st = exists(dir, UNFINISHED) ? ST_OK : check_empty(dir, err); /* before a lock is left in it */
    if (!st)
        st = take_lock(dir, err);
    if (st)
        return st;
    if (exists(dir, UNFINISHED)) {
        if (nftw(dir->path, remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT))
            return err_set(err, ST_IO, "%s: cannot clear away an unfinished init: %s", dir->path, strerror(errno));
        return ST_OK;
    }
    st = check_empty(dir, err);
    if (!st)
        st = line_dir_path(dir, UNFINISHED, mark, err);
    return st ? st : file_mark_durable(mark, 0600, err);
}

enum status line_dir_finish(struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE];
    enum status st = line_dir_path(dir, UNFINISHED, path, err);
    if (!st && unlink(path))
        st = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
    return st ? st : sync_dir(dir->path, err);
}

static enum status write_identity(const struct line_dir *dir, struct err *err)
{
    json_t *j = json_pack("{s:i,s:s,s:I,s:I,s:I,s:s,s:i}", "format", LINE_FORMAT, "line", dir->line.s, "rank",
                          (json_int_t)dir->shape.rank, "alpha", (json_int_t)dir->shape.alpha, "targets",
                          (json_int_t)dir->shape.targets, "address", dir->address, "port", (int)dir->port);
    if (!j)
        return err_set(err, ST_USAGE, "the address is not UTF-8");
    char *text = json_dumps(j, JSON_INDENT(2));
    json_decref(j);
    CHECK(text);
    enum status st = line_dir_write(dir, "line.json", text, strlen(text), 0644, err);
    free(text);
    return st;
}

/* Every setting with its reason, so that the file is its own manual. */
static enum status write_settings(const struct line_dir *dir, struct err *err)
{
    struct buf b = {0};
    const struct setting_info *info;
    buf_printf(&b, "# Settings of line %s. Edit, then restart the coordinator. rank and alpha are fixed.\n",
               dir->line.s);
    for (unsigned i = 0; (info = settings_info(i)); i++) {
        char value[64];
        settings_value(&dir->settings, info->name, value, sizeof value);
        buf_printf(&b, "\n# %s\n%s = %s\n", info->reason, info->name, value);
    }
    enum status st = line_dir_write(dir, "line.conf", b.data, b.len, 0644, err);
    buf_release(&b);
    return st;
}

static void seal_seed(const struct sip_key *seed, uint8_t out[SEED_FILE_LEN])
{
    struct digest check;
    hash_blake2b(seed->b, SIP_KEY_LEN, &check);
    memcpy(out, seed->b, SIP_KEY_LEN);
    memcpy(out + SIP_KEY_LEN, check.b, SEED_FILE_LEN - SIP_KEY_LEN);
}

static enum status write_seed(struct line_dir *dir, struct err *err)
{
    uint8_t file[SEED_FILE_LEN];
    random_bytes(dir->seed.b, sizeof dir->seed.b);
    seal_seed(&dir->seed, file);
    enum status st = line_dir_write_secret(dir, "seed", file, sizeof file, err);
    sodium_memzero(file, sizeof file);
    return st;
}

static enum status write_operator(const struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE];
    struct keys *keys = NULL;
    struct curve_pair pair = {0};
    struct join join = {.line = dir->line, .port = dir->port, .role = ROLE_OPERATOR, .root = dir->root};
    name_set(&join.name, "operator", strlen("operator"));
    snprintf(join.host, sizeof join.host, "%s", dir->address);
    join.server = dir->server.public_key;
    enum status st = keys_open(dir->path, &keys, err);
    if (!st)
        st = keys_add(keys, &join.name, ROLE_OPERATOR, NULL, 0, &pair, err);
    if (!st) {
        join.secret = pair.secret;
        st = line_dir_path(dir, "operator.join", path, err);
    }
    if (!st)
        st = join_write(path, &join, err);
    join_wipe(&join);
    curve_wipe(&pair.secret);
    keys_free(keys);
    return st;
}

static enum status take_options(const struct coordinator_init_options *o, struct line_dir *dir, struct err *err)
{
    if (snprintf(dir->path, sizeof dir->path, "%s", o->dir) >= (int)sizeof dir->path)
        return err_set(err, ST_LIMIT, "the path is too long: %s", o->dir);
    if (!name_set(&dir->line, o->line, strlen(o->line)))
        return err_set(err, ST_USAGE, "\"%s\" is no name for a line: [a-z0-9][a-z0-9._-]{0,62}", o->line);
    if (!o->address || snprintf(dir->address, sizeof dir->address, "%s", o->address) >= (int)sizeof dir->address)
        return err_set(err, ST_USAGE, "the address is missing or too long");
    dir->port = o->port ? o->port : COORDINATOR_PORT;
    dir->card = *o->card;
    dir->shape = *o->shape;
    dir->settings = *o->settings;
    char endpoint[ENDPOINT_SIZE];
    enum status st = join_endpoint(dir->address, dir->port, PLANE_BULK, endpoint, err);
    if (!st)
        st = settings_check(&dir->settings, err);
    if (!st)
        st = settings_fit(&dir->settings, dir->card.arch.context_max, err);
    if (!st && (dir->settings.rank != dir->shape.rank || dir->settings.alpha != dir->shape.alpha))
        st = err_set(err, ST_USAGE, "rank and alpha of settings and shape differ");
    return st;
}

enum status line_dir_create(const struct coordinator_init_options *options, struct line_dir *out, struct err *err)
{
    struct line_dir dir = {.lock_fd = -1};
    struct buf card = {0};
    char path[DIR_PATH_SIZE];
    enum status st = take_options(options, &dir, err);
    if (!st)
        st = begin(&dir, err);
    if (st)
        goto done;
    card_encode(&dir.card, &card);
    st = write_seed(&dir, err);
    if (!st)
        st = line_dir_write(&dir, "card.bin", card.data, card.len, 0644, err);
    if (!st)
        st = write_settings(&dir, err);
    if (!st)
        st = signing_create(&dir, err);
    if (!st)
        st = server_key_create(dir.path, &dir.server, err);
    if (!st)
        st = write_operator(&dir, err);
    if (!st)
        st = write_identity(&dir, err);
    if (!st && !(st = line_dir_path(&dir, "blobs", path, err)) && mkdir(path, 0700))
        st = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
    if (!st)
        st = sync_dir(dir.path, err);
done:
    buf_release(&card);
    if (st)
        line_dir_close(&dir);
    else
        *out = dir;
    return st;
}

/* ---- reading --------------------------------------------------------------------------------------------------- */

/* Of the shape only what the file says: the rest follows from the card. */
static enum status read_identity(struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE];
    struct buf b = {0};
    json_error_t at;
    int format = 0;
    json_int_t rank = 0, alpha = 0, targets = 0, port = 0;
    const char *line = "", *address = "";
    enum status st = line_dir_path(dir, "line.json", path, err);
    if (!st)
        st = file_read(path, SMALL_FILE_MAX, &b, err);
    if (st) {
        buf_release(&b);
        return st;
    }
    json_t *j = json_loadb((const char *)b.data, b.len, JSON_REJECT_DUPLICATES, &at);
    if (!j || json_unpack_ex(j, &at, JSON_STRICT, "{s:i,s:s,s:I,s:I,s:I,s:s,s:I}", "format", &format, "line", &line,
                             "rank", &rank, "alpha", &alpha, "targets", &targets, "address", &address, "port", &port))
        st = err_set(err, ST_CONFIG, "%s:%d: %s", path, at.line, at.text);
    else if (format != LINE_FORMAT)
        st = err_set(err, ST_UNSUPPORTED, "%s: format %d; this alluvium reads %d", path, format, LINE_FORMAT);
    else if (!name_set(&dir->line, line, strlen(line)) || strlen(address) >= sizeof dir->address || port < 1 ||
             port > UINT16_MAX - PLANES || rank < 1 || rank > LORA_RANK_MAX || alpha < 1 || alpha > 1 << 16 ||
             targets < 1 || targets > UINT32_MAX)
        st = err_set(err, ST_CONFIG, "%s: a value is out of range", path);
    if (!st) {
        snprintf(dir->address, sizeof dir->address, "%s", address);
        dir->port = (uint16_t)port;
        dir->shape.rank = (uint32_t)rank, dir->shape.alpha = (uint32_t)alpha, dir->shape.targets = (uint32_t)targets;
    }
    json_decref(j);
    buf_release(&b);
    return st;
}

static enum status read_card(struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE];
    struct buf b = {0};
    enum status st = line_dir_path(dir, "card.bin", path, err);
    if (!st)
        st = file_read(path, CARD_FILE_MAX, &b, err);
    if (!st && (st = card_decode(b.data, b.len, &dir->card, err)))
        st = err_prefix(err, st, "%s", path);
    buf_release(&b);
    return st;
}

static enum status read_settings(struct line_dir *dir, struct err *err)
{
    char path[DIR_PATH_SIZE];
    settings_default(&dir->settings);
    enum status st = line_dir_path(dir, "line.conf", path, err);
    if (!st)
        st = settings_read(path, &dir->settings, err);
    if (!st)
        st = settings_check(&dir->settings, err);
    if (!st)
        st = settings_fit(&dir->settings, dir->card.arch.context_max, err);
    if (!st && (dir->settings.rank != dir->shape.rank || dir->settings.alpha != dir->shape.alpha))
        st = err_set(err, ST_CONFIG, "%s: rank and alpha were fixed at init: %u and %u", path, dir->shape.rank,
                     dir->shape.alpha);
    return st;
}

static enum status read_seed(struct line_dir *dir, struct err *err)
{
    uint8_t file[SEED_FILE_LEN], sound[SEED_FILE_LEN];
    enum status st = line_dir_read(dir, "seed", true, file, sizeof file, err);
    if (st)
        return st;
    memcpy(dir->seed.b, file, SIP_KEY_LEN);
    seal_seed(&dir->seed, sound);
    if (memcmp(file, sound, sizeof file))
        st = err_set(err, ST_CORRUPT, "%s/seed is damaged: restore it", dir->path);
    sodium_memzero(file, sizeof file);
    sodium_memzero(sound, sizeof sound);
    return st;
}

enum status line_dir_open(const char *path, struct line_dir *out, struct err *err)
{
    struct line_dir dir = {.lock_fd = -1};
    struct stat s;
    enum status st = ST_OK;
    if (snprintf(dir.path, sizeof dir.path, "%s", path) >= (int)sizeof dir.path)
        return err_set(err, ST_LIMIT, "the path is too long: %s", path);
    if (stat(path, &s) || !S_ISDIR(s.st_mode))
        return err_set(err, ST_NOT_FOUND, "%s: no such directory", path);
    if (exists(&dir, UNFINISHED))
        return err_set(err, ST_CONFIG, "%s: its init was not finished; run `alluvium init` again", path);
    if (!exists(&dir, "line.json"))
        return err_set(err, ST_NOT_FOUND, "%s holds no line; `alluvium init` makes one", path);
    if (!exists(&dir,
                "keys.json")) /* the key table itself begins empty: nobody could come in, and nobody would know why */
        return err_set(err, ST_NOT_FOUND, "%s/keys.json is missing: restore it", path);
    st = take_lock(&dir, err);
    if (!st)
        st = read_card(&dir, err);
    if (!st)
        st = read_identity(&dir, err);
    if (!st)
        st = adapter_shape_of(&dir.card.arch, dir.shape.rank, dir.shape.alpha, dir.shape.targets, &dir.shape, err);
    if (st == ST_USAGE)
        st = err_prefix(err, ST_CONFIG, "%s/line.json", path);
    if (!st)
        st = read_settings(&dir, err);
    if (!st)
        st = read_seed(&dir, err);
    if (!st)
        st = signing_read(&dir, err);
    if (!st)
        st = server_key_read(dir.path, &dir.server, err);
    if (st)
        line_dir_close(&dir);
    else
        *out = dir;
    return st;
}

enum status line_dir_identity(const char *path, struct line_dir *out, struct err *err)
{
    struct line_dir dir = {.lock_fd = -1};
    if (snprintf(dir.path, sizeof dir.path, "%s", path) >= (int)sizeof dir.path)
        return err_set(err, ST_LIMIT, "the path is too long: %s", path);
    if (!exists(&dir, "line.json"))
        return err_set(err, ST_NOT_FOUND, "%s holds no line; `alluvium init` makes one", path);
    enum status st = read_identity(&dir, err);
    if (!st)
        *out = dir;
    return st;
}

enum status line_dir_where(const char *path, char address[LIMIT_HOST_BYTES + 1], uint16_t *port, struct err *err)
{
    struct line_dir dir;
    enum status st = line_dir_identity(path, &dir, err);
    if (!st) {
        snprintf(address, LIMIT_HOST_BYTES + 1, "%s", dir.address);
        *port = dir.port;
    }
    return st;
}

void line_dir_close(struct line_dir *dir)
{
    if (dir->lock_fd >= 0 && dir->path[0])
        close(dir->lock_fd);
    dir->lock_fd = -1;
    sign_wipe(&dir->release_secret);
    curve_wipe(&dir->server.secret);
    sodium_memzero(&dir->seed, sizeof dir->seed);
}

void line_dir_core_config(const struct line_dir *dir, struct core_config *out)
{
    *out = (struct core_config){
        .line = dir->line, .card = dir->card, .shape = dir->shape, .settings = dir->settings, .seed = dir->seed};
    memcpy(out->release_secret, dir->release_secret.b, SIGN_SECRET_LEN);
    memcpy(out->release_public, dir->release.b, SIGN_PUBLIC_LEN);
    memcpy(out->release_cert, dir->cert, sizeof out->release_cert);
    memcpy(out->root_public, dir->root.b, SIGN_PUBLIC_LEN);
    _Static_assert(sizeof out->release_cert == CERT_LEN, "the core sends the certificate as it is");
}
