/* hash.h - the hashes of alluvium, all from libsodium, and the seeded stream made of one of them.
 *
 * BLAKE2b-256 addresses blobs, SipHash-2-4 decides replay membership and held-out groups, SHA-256 is for people who
 * check published files. hash_start() must be called once per process before anything else here.
 */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

#include "base/ids.h"
#include "base/status.h"

enum { SIP_KEY_LEN = 16 };

struct sip_key {
    uint8_t b[SIP_KEY_LEN];
};

void hash_start(void); /* initialises libsodium; idempotent; aborts if the library cannot start */

void hash_blake2b(const void *data, size_t len, struct digest *out);

struct hasher { /* incremental BLAKE2b-256; opaque */
    _Alignas(64) uint8_t state[384];
};
void hasher_init(struct hasher *h);
void hasher_put(struct hasher *h, const void *data, size_t len);
void hasher_end(struct hasher *h, struct digest *out);

/* SipHash-2-4 (Aumasson, Bernstein 2012) as a little-endian u64. */
uint64_t hash_sip(const struct sip_key *key, const void *data, size_t len);
/* Its form with 128 bits: for tables of hashes that nobody outside can make collide. */
void hash_sip128(const struct sip_key *key, const void *data, size_t len, uint8_t out[16]);

/* BLAKE2b-256 or SHA-256 of a whole file, read in pieces. */
enum status hash_file(const char *path, struct digest *blake2b, uint8_t sha256[32], uint64_t *bytes, struct err *err);
void hash_sha256(const void *data, size_t len, uint8_t out[32]);

/* xoshiro256** (Blackman, Vigna 2018), seeded by splitmix64: every random choice inside a lease comes from one. */
struct rng {
    uint64_t s[4];
};
void rng_seed(struct rng *rng, uint64_t seed);
uint64_t rng_u64(struct rng *rng);
uint64_t rng_below(struct rng *rng, uint64_t n); /* uniform in [0, n), n > 0, without bias */
double rng_unit(struct rng *rng);                /* uniform in [0, 1), 53 bits */
double rng_normal(struct rng *rng);              /* mean 0, variance 1 (Box-Muller, one value a call) */

void random_bytes(void *out, size_t len); /* from the operating system: keys and incarnations only */

#endif
