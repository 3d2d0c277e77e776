/* Files, integers little-endian:
 *
 *   root.key      64 bytes, ed25519 secret key        release.key   the same        release.next   the same
 *   release.cert  32 bytes root public key, 32 bytes release public key, CERT_LEN bytes certificate (manifest.h)
 *   release.old   for each key that was replaced, oldest first: 32 bytes public key, CERT_LEN bytes certificate
 */
#include "coordinator/signing.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"

enum {
    OLD_LEN = SIGN_PUBLIC_LEN + CERT_LEN,
    OLD_BYTES_MAX = 1 << 20, /* some 9,000 keys */
    GROUP_BYTES = 8 << 20,   /* of one commit */
};

static enum status write_cert(const struct line_dir *dir, struct err *err)
{
    struct buf b = {0};
    buf_put(&b, dir->root.b, sizeof dir->root.b);
    buf_put(&b, dir->release.b, sizeof dir->release.b);
    buf_put(&b, dir->cert, sizeof dir->cert);
    enum status st = line_dir_write(dir, "release.cert", b.data, b.len, 0644, err);
    buf_release(&b);
    return st;
}

enum status signing_create(struct line_dir *dir, struct err *err)
{
    struct sign_secret root;
    sign_keypair(&dir->root, &root);
    sign_keypair(&dir->release, &dir->release_secret);
    cert_sign(&root, &dir->line, &dir->release, 1, 0, dir->cert);
    enum status st = line_dir_write_secret(dir, "root.key", root.b, sizeof root.b, err);
    sign_wipe(&root);
    if (!st)
        st = line_dir_write_secret(dir, "release.key", dir->release_secret.b, sizeof dir->release_secret.b, err);
    return st ? st : write_cert(dir, err);
}

/* A rotation that was cut off: the new secret counts when the certificate is its own. */
static enum status finish_rotation(struct line_dir *dir, struct err *err)
{
    char next[DIR_PATH_SIZE], key[DIR_PATH_SIZE];
    struct sign_secret secret;
    enum status st = line_dir_path(dir, "release.next", next, err);
    if (!st)
        st = line_dir_path(dir, "release.key", key, err);
    if (st || access(next, F_OK) != 0)
        return st;
    bool whole = !line_dir_read(dir, "release.next", true, secret.b, SIGN_SECRET_LEN, NULL);
    bool counts = whole && sign_is_pair(&secret, &dir->release);
    sign_wipe(&secret);
    if (counts ? rename(next, key) : unlink(next))
        return err_set(err, ST_IO, "%s: %s", next, strerror(errno));
    return ST_OK;
}

enum status signing_read(struct line_dir *dir, struct err *err)
{
    uint8_t file[2 * SIGN_PUBLIC_LEN + CERT_LEN];
    enum status st = line_dir_read(dir, "release.cert", false, file, sizeof file, err);
    if (st)
        return st;
    memcpy(dir->root.b, file, SIGN_PUBLIC_LEN);
    memcpy(dir->release.b, file + SIGN_PUBLIC_LEN, SIGN_PUBLIC_LEN);
    memcpy(dir->cert, file + 2 * SIGN_PUBLIC_LEN, CERT_LEN);
    st = finish_rotation(dir, err);
    if (!st)
        st = line_dir_read(dir, "release.key", true, dir->release_secret.b, SIGN_SECRET_LEN, err);
    if (st)
        return st;
    if (!sign_is_pair(&dir->release_secret, &dir->release))
        return err_set(err, ST_CONFIG, "%s: release.key is not the key that release.cert certifies", dir->path);
    return cert_verify(&dir->root, &dir->line, &dir->release, dir->cert, CERT_LEN, 0, err);
}

/* ---- rotation */

static enum status read_old(const struct line_dir *dir, struct buf *out, struct err *err)
{
    char path[DIR_PATH_SIZE];
    enum status st = line_dir_path(dir, "release.old", path, err);
    if (!st && access(path, F_OK) == 0)
        st = file_read(path, OLD_BYTES_MAX, out, err);
    if (!st && out->len % OLD_LEN)
        st = err_set(err, ST_CONFIG, "%s: %zu bytes are no whole number of certificates", path, out->len);
    return st;
}

static enum status read_root(const struct line_dir *dir, const char *path, struct sign_secret *out, struct err *err)
{
    char own[DIR_PATH_SIZE];
    struct buf b = {0};
    enum status st = path ? ST_OK : line_dir_path(dir, "root.key", own, err);
    path = path ? path : own;
    if (!st)
        st = secret_read(path, SIGN_SECRET_LEN, &b, err);
    if (!st && b.len == SIGN_SECRET_LEN)
        memcpy(out->b, b.data, SIGN_SECRET_LEN);
    if (!st && (b.len != SIGN_SECRET_LEN || !sign_is_pair(out, &dir->root)))
        st = err_set(err, ST_CONFIG, "%s is not the secret of this line's root key", path);
    if (b.data)
        sodium_memzero(b.data, b.len);
    buf_release(&b);
    return st;
}

enum status signing_rotate(struct line_dir *dir, const char *root_path, uint64_t not_after_s, struct err *err)
{
    struct sign_secret root;
    struct buf old = {0};
    char next[DIR_PATH_SIZE], key[DIR_PATH_SIZE];
    enum status st = read_root(dir, root_path, &root, err);
    if (!st)
        st = read_old(dir, &old, err);
    if (!st)
        st = line_dir_path(dir, "release.next", next, err);
    if (!st)
        st = line_dir_path(dir, "release.key", key, err);
    if (st)
        goto done;
    buf_put(&old, dir->release.b, sizeof dir->release.b);
    buf_put(&old, dir->cert, sizeof dir->cert);
    uint64_t serial = cert_serial(dir->cert) + 1;
    sign_keypair(&dir->release, &dir->release_secret);
    cert_sign(&root, &dir->line, &dir->release, serial, not_after_s, dir->cert);
    st = line_dir_write(dir, "release.old", old.data, old.len, 0644, err);
    if (!st)
        st = line_dir_write_secret(dir, "release.next", dir->release_secret.b, SIGN_SECRET_LEN, err);
    if (!st)
        st = write_cert(dir, err);
    if (!st && rename(next, key))
        st = err_set(err, ST_IO, "%s: %s", key, strerror(errno));
done:
    sign_wipe(&root);
    buf_release(&old);
    return st;
}

/* ---- signing anew */

struct renewal {
    struct streamlog *log;
    const struct line_dir *dir;
    struct buf old;
    struct batch batch;
    size_t batch_bytes;
    uint64_t n;
};

/* Signed by a key that was ours once? */
static bool signed_before(const struct line_dir *dir, const struct buf *old, bool manifest, struct bytes text,
                          const uint8_t *signature)
{
    for (size_t at = 0; at < old->len; at += OLD_LEN) {
        struct sign_public key;
        memcpy(key.b, old->data + at, SIGN_PUBLIC_LEN);
        if (!cert_verify(&dir->root, &dir->line, &key, old->data + at + SIGN_PUBLIC_LEN, CERT_LEN, 0, NULL) &&
            !(manifest ? manifest_verify : aliases_verify)(&key, text.data, text.len, signature, SIGNATURE_LEN, NULL))
            return true;
    }
    return false;
}

enum status signing_check(const struct line_dir *dir, struct bytes manifest, const uint8_t *signature, struct err *err)
{
    struct buf old = {0};
    enum status st = manifest_verify(&dir->release, manifest.data, manifest.len, signature, SIGNATURE_LEN, err);
    if (st && !read_old(dir, &old, NULL) && signed_before(dir, &old, true, manifest, signature))
        st = ST_OK;
    buf_release(&old);
    return st;
}

static enum status commit(struct renewal *r, struct err *err)
{
    r->batch_bytes = 0;
    return r->batch.n ? streamlog_amend(r->log, &r->batch, err) : ST_OK;
}

static enum status renew_version(struct renewal *r, struct bytes key, struct bytes value, struct err *err)
{
    struct buf out = {0};
    uint64_t number = 0;
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = ST_OK;
    if (!key_read_u64(key, &number) || !state_version_get(value, v))
        st = err_set(err, ST_CORRUPT, "a stored version does not decode; restore a backup");
    else if (!manifest_verify(&r->dir->release, v->manifest.data, v->manifest.len, v->signature, SIGNATURE_LEN, NULL))
        ; /* by an earlier try */
    else if (!signed_before(r->dir, &r->old, true, v->manifest, v->signature))
        st = err_set(err, ST_CORRUPT, "version %llu is signed by no key that root certified; restore a backup",
                     (unsigned long long)number);
    else {
        manifest_sign(&r->dir->release_secret, v->manifest.data, v->manifest.len, v->signature);
        state_version_put(&out, v);
        batch_put(&r->batch, FAMILY_VERSIONS, key.data, key.len, out.data, out.len);
        r->batch_bytes += out.len;
        r->n++;
        if (r->batch_bytes > GROUP_BYTES)
            st = commit(r, err);
    }
    free(v);
    buf_release(&out);
    return st;
}

static enum status renew_versions(struct renewal *r, struct err *err)
{
    struct bytes key, value;
    struct db_iter *iter = db_iter_open(streamlog_db(r->log), FAMILY_VERSIONS, (struct bytes){(const uint8_t *)"m", 1},
                                        (struct bytes){(const uint8_t *)"n", 1}, false);
    enum status st;
    while (!(st = db_iter_next(iter, &key, &value, err)))
        if ((st = renew_version(r, key, value, err)))
            break;
    db_iter_close(&iter);
    return st == ST_EMPTY ? ST_OK : st;
}

static enum status renew_aliases(struct renewal *r, const struct state_key *key, struct bytes stored, uint64_t wall_s,
                                 struct err *err)
{
    struct bytes text = {stored.data, stored.len - SIGNATURE_LEN};
    struct aliases *a = xmalloc(sizeof *a);
    struct buf out = {0};
    uint8_t signature[SIGNATURE_LEN];
    enum status st = ST_OK;
    if (!signed_before(r->dir, &r->old, false, text, stored.data + text.len))
        st = err_set(err, ST_CORRUPT, "the aliases are signed by no key that root certified; restore a backup");
    if (!st)
        st = aliases_decode(text.data, text.len, a, err);
    if (st)
        goto done;
    a->seq++;
    a->created_s = wall_s;
    st = aliases_encode(a, &out, err);
    aliases_release(a);
    if (st)
        goto done;
    aliases_sign(&r->dir->release_secret, out.data, out.len, signature);
    buf_put(&out, signature, sizeof signature);
    batch_put(&r->batch, FAMILY_META, key->b, key->len, out.data, out.len);
    st = commit(r, err);
done:
    free(a);
    buf_release(&out);
    return st;
}

enum status signing_renew(struct streamlog *log, const struct line_dir *dir, uint64_t wall_s, uint64_t *n,
                          struct err *err)
{
    struct renewal r = {.log = log, .dir = dir};
    struct state_key key = key_plain('a');
    struct buf stored = {0};
    *n = 0;
    enum status st = db_get(streamlog_db(log), FAMILY_META, key.b, key.len, &stored, err);
    if (!st && stored.len <= SIGNATURE_LEN)
        st = err_set(err, ST_CORRUPT, "the stored aliases do not decode; restore a backup");
    size_t len = stored.len - SIGNATURE_LEN;
    if (st || !aliases_verify(&dir->release, stored.data, len, stored.data + len, SIGNATURE_LEN, NULL))
        goto done;
    st = read_old(dir, &r.old, err);
    if (!st)
        st = renew_versions(&r, err);
    if (!st)
        st = renew_aliases(&r, &key, buf_bytes(&stored), wall_s, err);
    *n = r.n;
done:
    batch_release(&r.batch);
    buf_release(&r.old);
    buf_release(&stored);
    return st;
}
