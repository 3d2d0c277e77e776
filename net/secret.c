/* Files that hold secrets, and the CURVE keys in them (keys.h). */
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "net/keys.h"

void curve_pair_new(struct curve_pair *out)
{
    CHECK(zmq_curve_keypair(out->public_key.z85, out->secret.z85) == 0);
}

void curve_wipe(struct curve_key *secret)
{
    sodium_memzero(secret, sizeof *secret);
}

bool curve_key_valid(const char *z85)
{
    uint8_t raw[32];
    if (strnlen(z85, CURVE_Z85_SIZE) != CURVE_Z85_SIZE - 1)
        return false;
    for (const char *c = z85; *c; c++) /* the library's decoder does not look at the alphabet */
        if (!strchr("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#", *c))
            return false;
    bool ok = zmq_z85_decode(raw, z85) != NULL;
    sodium_memzero(raw, sizeof raw);
    return ok;
}

bool curve_public_of(const struct curve_key *secret, struct curve_key *out)
{
    return curve_key_valid(secret->z85) && zmq_curve_public(out->z85, secret->z85) == 0;
}

enum status secret_read(const char *path, size_t bytes_max, struct buf *out, struct err *err)
{
    struct stat at;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: cannot open: %s", path, strerror(errno));
    enum status st = ST_OK;
    size_t start = out->len;
    if (fstat(fd, &at) < 0)
        st = err_set(err, ST_IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(at.st_mode))
        st = err_set(err, ST_CONFIG, "%s: is not a regular file", path);
    else if (at.st_mode & (at.st_uid == 0 && geteuid() != 0 ? 037u : 077u))
        st = err_set(err, ST_CONFIG, "%s: holds a secret, but its mode is %03o; run: chmod 600 %s", path,
                     at.st_mode & 0777, path);
    else if (at.st_uid != geteuid() && at.st_uid != 0)
        st = err_set(err, ST_CONFIG, "%s: holds a secret, but belongs to user %u", path, (unsigned)at.st_uid);
    while (!st) {
        buf_reserve(out, 4096);
        ssize_t n = read(fd, out->data + out->len, out->cap - out->len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            st = err_set(err, ST_IO, "%s: cannot read: %s", path, strerror(errno));
        if (n <= 0)
            break;
        out->len += (size_t)n;
        if (out->len - start > bytes_max)
            st = err_set(err, ST_LIMIT, "%s: larger than %zu bytes", path, bytes_max);
    }
    close(fd);
    if (st)
        out->len = start;
    return st;
}

enum status secret_write(const char *path, const void *data, size_t len, struct err *err)
{
    return file_write_durable(path, data, len, 0600, err);
}

static void server_key_path(const char *dir, struct buf *out)
{
    buf_printf(out, "%s/server.key", dir);
}

enum status server_key_create(const char *dir, struct curve_pair *out, struct err *err)
{
    struct buf path = {0}, text = {0};
    struct curve_pair pair;
    enum status st;
    server_key_path(dir, &path);
    if (access(buf_cstr(&path), F_OK) == 0) {
        st = err_set(err, ST_CONFLICT, "%s: exists already", buf_cstr(&path));
        goto done;
    }
    curve_pair_new(&pair);
    buf_printf(&text, "%s\n%s\n", pair.public_key.z85, pair.secret.z85);
    st = secret_write(buf_cstr(&path), text.data, text.len, err);
    if (!st)
        *out = pair;
    curve_wipe(&pair.secret);
done:
    if (text.data)
        sodium_memzero(text.data, text.cap);
    buf_release(&text);
    buf_release(&path);
    return st;
}

enum status server_key_read(const char *dir, struct curve_pair *out, struct err *err)
{
    enum { LINE = CURVE_Z85_SIZE }; /* 40 characters and the newline */
    struct buf path = {0}, text = {0};
    struct curve_pair pair = {0};
    struct curve_key derived;
    server_key_path(dir, &path);
    enum status st = secret_read(buf_cstr(&path), 4096, &text, err);
    if (st)
        goto done;
    st = err_set(err, ST_CONFIG, "%s: is not a pair of CURVE keys", buf_cstr(&path));
    if (text.len != 2 * LINE || text.data[LINE - 1] != '\n' || text.data[2 * LINE - 1] != '\n')
        goto done;
    memcpy(pair.public_key.z85, text.data, LINE - 1);
    memcpy(pair.secret.z85, text.data + LINE, LINE - 1);
    if (!curve_public_of(&pair.secret, &derived) || strcmp(derived.z85, pair.public_key.z85))
        goto done;
    *out = pair;
    st = ST_OK;
done:
    curve_wipe(&pair.secret);
    if (text.data)
        sodium_memzero(text.data, text.cap);
    buf_release(&text);
    buf_release(&path);
    return st;
}
