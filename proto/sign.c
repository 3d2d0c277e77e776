/* The signatures of manifest.h. Contexts end in a NUL, so that none is a prefix of another. */
#include <sodium.h>
#include <string.h>

#include "base/check.h"
#include "proto/manifest.h"

static_assert(SIGN_PUBLIC_LEN == crypto_sign_PUBLICKEYBYTES && SIGN_SECRET_LEN == crypto_sign_SECRETKEYBYTES &&
                  SIGNATURE_LEN == crypto_sign_BYTES,
              "libsodium's Ed25519");

static const char cert_context[] = "alluvium release key 2";
static const char manifest_context[] = "alluvium manifest 1";
static const char aliases_context[] = "alluvium aliases 1";

void sign_keypair(struct sign_public *public_key, struct sign_secret *secret)
{
    CHECK(crypto_sign_keypair(public_key->b, secret->b) == 0);
}

bool sign_is_pair(const struct sign_secret *secret, const struct sign_public *public_key)
{
    struct sign_public real;
    struct sign_secret whole; /* from the first half, which signs; the second is a copy of the public key */
    CHECK(crypto_sign_seed_keypair(real.b, whole.b, secret->b) == 0);
    bool same = !memcmp(real.b, public_key->b, sizeof real.b) && !sodium_memcmp(whole.b, secret->b, sizeof whole.b);
    sign_wipe(&whole);
    return same;
}

void sign_wipe(struct sign_secret *secret)
{
    sodium_memzero(secret, sizeof *secret);
}

static struct buf in_context(const char *context, size_t context_size, const void *data, size_t len)
{
    struct buf b = {0};
    buf_put(&b, context, context_size);
    buf_put(&b, data, len);
    return b;
}

static void sign_in(const char *context, size_t context_size, const struct sign_secret *secret, const void *data,
                    size_t len, uint8_t signature[SIGNATURE_LEN])
{
    struct buf b = in_context(context, context_size, data, len);
    CHECK(crypto_sign_detached(signature, NULL, b.data, b.len, secret->b) == 0);
    buf_release(&b);
}

static enum status verify_in(const char *context, size_t context_size, const struct sign_public *key, const void *data,
                             size_t len, const void *signature, size_t signature_len, const char *what, struct err *err)
{
    if (signature_len != SIGNATURE_LEN || len > LIMIT_MANIFEST_BYTES)
        return err_set(err, ST_VERIFY, "%s: the signature has a wrong length, or the bytes are too many", what);
    struct buf b = in_context(context, context_size, data, len);
    int wrong = crypto_sign_verify_detached(signature, b.data, b.len, key->b);
    buf_release(&b);
    return wrong ? err_set(err, ST_VERIFY, "%s: the signature does not verify", what) : ST_OK;
}

static struct buf cert_statement(const struct name *line, uint64_t serial, uint64_t not_after_s,
                                 const struct sign_public *release)
{
    struct buf b = {0};
    size_t len = strlen(line->s);
    buf_put_u8(&b, (uint8_t)len);
    buf_put(&b, line->s, len);
    buf_put_u64(&b, serial);
    buf_put_u64(&b, not_after_s);
    buf_put(&b, release->b, SIGN_PUBLIC_LEN);
    return b;
}

void cert_sign(const struct sign_secret *root, const struct name *line, const struct sign_public *release,
               uint64_t serial, uint64_t not_after_s, uint8_t cert[CERT_LEN])
{
    struct buf b = cert_statement(line, serial, not_after_s, release), head = {0};
    buf_put_u64(&head, serial);
    buf_put_u64(&head, not_after_s);
    memcpy(cert, head.data, head.len);
    sign_in(cert_context, sizeof cert_context, root, b.data, b.len, cert + head.len);
    buf_release(&head);
    buf_release(&b);
}

uint64_t cert_serial(const uint8_t cert[CERT_LEN])
{
    struct reader r = reader_of(cert, CERT_LEN);
    return read_u64(&r);
}

enum status cert_verify(const struct sign_public *root, const struct name *line, const struct sign_public *release,
                        const void *cert, size_t cert_len, uint64_t now_s, struct err *err)
{
    if (cert_len != CERT_LEN)
        return err_set(err, ST_VERIFY, "certificate of the release key: %zu bytes, not %d", cert_len, CERT_LEN);
    struct reader r = reader_of(cert, cert_len);
    uint64_t serial = read_u64(&r), not_after_s = read_u64(&r);
    struct buf b = cert_statement(line, serial, not_after_s, release);
    enum status st = verify_in(cert_context, sizeof cert_context, root, b.data, b.len, r.data + r.at, SIGNATURE_LEN,
                               "certificate of the release key", err);
    buf_release(&b);
    if (!st && not_after_s && now_s > not_after_s)
        st = err_set(err, ST_VERIFY, "the release key of line %s ended at Unix time %llu: ask for a new certificate",
                     line->s, (unsigned long long)not_after_s);
    return st;
}

void manifest_sign(const struct sign_secret *release, const void *data, size_t len, uint8_t signature[SIGNATURE_LEN])
{
    sign_in(manifest_context, sizeof manifest_context, release, data, len, signature);
}

enum status manifest_verify(const struct sign_public *release, const void *data, size_t len, const void *signature,
                            size_t signature_len, struct err *err)
{
    return verify_in(manifest_context, sizeof manifest_context, release, data, len, signature, signature_len,
                     "manifest", err);
}

void aliases_sign(const struct sign_secret *release, const void *data, size_t len, uint8_t signature[SIGNATURE_LEN])
{
    sign_in(aliases_context, sizeof aliases_context, release, data, len, signature);
}

enum status aliases_verify(const struct sign_public *release, const void *data, size_t len, const void *signature,
                           size_t signature_len, struct err *err)
{
    return verify_in(aliases_context, sizeof aliases_context, release, data, len, signature, signature_len, "aliases",
                     err);
}
