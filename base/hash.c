#include "base/hash.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "base/check.h"

_Static_assert(sizeof(crypto_generichash_state) <= sizeof(((struct hasher *)0)->state), "hasher too small");

void hash_start(void)
{
    CHECK(sodium_init() >= 0);
}

void hash_blake2b(const void *data, size_t len, struct digest *out)
{
    crypto_generichash(out->b, DIGEST_LEN, data, len, NULL, 0);
}

void hasher_init(struct hasher *h)
{
    crypto_generichash_init((void *)h->state, NULL, 0, DIGEST_LEN);
}

void hasher_put(struct hasher *h, const void *data, size_t len)
{
    crypto_generichash_update((void *)h->state, data, len);
}

void hasher_end(struct hasher *h, struct digest *out)
{
    crypto_generichash_final((void *)h->state, out->b, DIGEST_LEN);
}

uint64_t hash_sip(const struct sip_key *key, const void *data, size_t len)
{
    uint8_t out[8];
    _Static_assert(crypto_shorthash_BYTES == 8 && crypto_shorthash_KEYBYTES == SIP_KEY_LEN, "SipHash-2-4");
    crypto_shorthash(out, data, len, key->b);
    struct reader r = reader_of(out, sizeof out);
    return read_u64(&r);
}

void hash_sip128(const struct sip_key *key, const void *data, size_t len, uint8_t out[16])
{
    _Static_assert(crypto_shorthash_siphashx24_BYTES == 16 && crypto_shorthash_siphashx24_KEYBYTES == SIP_KEY_LEN,
                   "SipHash-2-4-128");
    crypto_shorthash_siphashx24(out, data, len, key->b);
}

void hash_sha256(const void *data, size_t len, uint8_t out[32])
{
    crypto_hash_sha256(out, data, len);
}

enum status hash_file(const char *path, struct digest *blake2b, uint8_t sha256[32], uint64_t *bytes, struct err *err)
{
    int fd;
    enum status st = file_open(path, &fd, err);
    if (st)
        return st;
    FILE *f = fdopen(fd, "rb");
    CHECK(f);
    struct hasher h;
    crypto_hash_sha256_state sha;
    uint8_t *piece = xmalloc(1 << 20);
    uint64_t total = 0;
    size_t n;
    hasher_init(&h);
    crypto_hash_sha256_init(&sha);
    while ((n = fread(piece, 1, 1 << 20, f)) > 0) {
        if (blake2b)
            hasher_put(&h, piece, n);
        if (sha256)
            crypto_hash_sha256_update(&sha, piece, n);
        total += n;
    }
    int failed = ferror(f);
    fclose(f);
    free(piece);
    if (failed)
        return err_set(err, ST_IO, "%s: cannot read", path);
    if (blake2b)
        hasher_end(&h, blake2b);
    if (sha256)
        crypto_hash_sha256_final(&sha, sha256);
    if (bytes)
        *bytes = total;
    return ST_OK;
}

void rng_seed(struct rng *rng, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t z = seed;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        rng->s[i] = z ^ z >> 31;
    }
}

static uint64_t rotl(uint64_t x, int k)
{
    return x << k | x >> (64 - k);
}

uint64_t rng_u64(struct rng *rng)
{
    uint64_t *s = rng->s, result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t rng_below(struct rng *rng, uint64_t n)
{
    CHECK(n > 0);
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, v;
    do
        v = rng_u64(rng);
    while (v >= limit);
    return v % n;
}

double rng_unit(struct rng *rng)
{
    return (double)(rng_u64(rng) >> 11) * 0x1p-53;
}

double rng_normal(struct rng *rng)
{
    double u = 1.0 - rng_unit(rng), v = rng_unit(rng);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586476925 * v);
}

void random_bytes(void *out, size_t len)
{
    randombytes_buf(out, len);
}
