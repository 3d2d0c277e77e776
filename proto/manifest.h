/* manifest.h - the facts of a version as canonical bytes, the table of aliases, and the signatures over both.
 *
 * Canonical: one value has one encoding, written byte by byte at the head of manifest.c; decoding refuses everything
 * else (trailing bytes, wrong order, bounds, numbers that are not finite), so decode and encode are inverse. A digest
 * or signature is always of the bytes as received, never of a re-encoding.
 *
 * Trust (shaped after TUF, theupdateframework.io): the root key, kept off the machine, certifies the release key of one
 * line for a time; the release key signs manifests and alias statements. Each kind of signature has its own context, so
 * none can pass for another. Everything here is pure: keys come in as bytes.
 */
#ifndef PROTO_MANIFEST_H
#define PROTO_MANIFEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"

enum {
    MANIFEST_FILES_MAX = 8,
    MANIFEST_LEASES_MAX = 2048,
    MANIFEST_RANGES_MAX = 32 * 1024, /* over all leases */
    MANIFEST_TEXT_MAX = 255,
    ALIASES_MAX = 64,
    MARKS_MAX = 4096,
    MARK_REASON_MAX = 200,
    SIGN_PUBLIC_LEN = 32,
    SIGN_SECRET_LEN = 64,
    SIGNATURE_LEN = 64,
    CERT_LEN = 8 + 8 + SIGNATURE_LEN,
};

enum file_kind { FILE_PEFT = 1, FILE_GGUF = 2, FILE_STATE = 3 /* training state, when it is not the weights */ };

struct manifest_file {
    enum file_kind kind;
    struct digest blake2b; /* its address */
    uint8_t sha256[32];    /* for people with sha256sum */
    uint64_t bytes;
};

struct manifest_range {
    struct domain_id domain;
    uint64_t first;
    uint32_t count;
};

struct manifest_lease {
    uint64_t id;
    uint32_t generation;
    struct digest delta;
    double weight;     /* share in the mean, in (0, 1] */
    uint32_t n_ranges; /* of fresh segments, ascending (domain, first), not overlapping */
    struct manifest_range *ranges;
};

struct manifest_domain { /* the version's row of the evaluation matrix: one line a domain, sums in nats */
    struct domain_id id; /* ascending */
    struct name name;
    uint32_t probe_set;
    uint32_t windows;
    uint64_t tokens;
    double nll;             /* of this version, summed */
    uint64_t reference;     /* version compared with */
    double reference_nll;   /* of the reference on the same windows */
    double forgetting;      /* nats per token, > 0 is worse */
    double forgetting_high; /* upper confidence bound */
};

enum manifest_flag {
    MANIFEST_UNGATED = 1,  /* published without a gate: version 0, or a rollback */
    MANIFEST_PARTIAL = 2,  /* some leases of the round were left out or quarantined */
    MANIFEST_ROLLBACK = 4, /* repeats the content of rollback_of */
};

struct manifest {
    struct name line;
    uint64_t number, parent;       /* version 0 is its own parent, with a zero digest */
    struct digest parent_manifest; /* of the parent's canonical bytes */
    uint64_t created_s;            /* Unix time, for people */
    struct digest card;
    uint32_t rank, alpha, targets;
    uint32_t n_files; /* ascending kind */
    struct manifest_file files[MANIFEST_FILES_MAX];
    uint64_t rollback_of; /* with MANIFEST_ROLLBACK the version repeated (and the parent); else 0 */
    uint32_t flags;
    /* lineage */
    uint64_t round, session_counter;
    uint8_t session_incarnation[16];
    uint64_t exclusion_seq;
    uint32_t n_leases; /* ascending id */
    struct manifest_lease *leases;
    /* verdict */
    double error_rate;      /* of the gate, one-sided, for the whole round */
    double step_factor;     /* 1, or what halving left */
    double averaging_error; /* relative Frobenius norm, of averaging factors rather than products */
    double update_norm;     /* of the aggregated delta */
    double clip_norm;       /* bound the deltas were clipped to; 0: none */
    char verdict[MANIFEST_TEXT_MAX + 1];
    uint32_t n_domains;
    struct manifest_domain *domains;
};

/* ST_LIMIT or ST_BAD_DATA when `m` breaks a rule a decoder enforces; `out` is then untouched. */
enum status manifest_encode(const struct manifest *m, struct buf *out, struct err *err);
/* Fills `out` (zeroed or uninitialised memory; released by manifest_release). */
enum status manifest_decode(const void *data, size_t len, struct manifest *out, struct err *err);
void manifest_release(struct manifest *m);
void manifest_digest(const void *data, size_t len, struct digest *out); /* BLAKE2b-256 of the canonical bytes */

enum mark_kind { MARK_WITHDRAWN = 1, MARK_TAINTED = 2 };

struct alias {
    struct name name;
    uint64_t version;
    uint64_t expires_s; /* Unix time after which a subscriber calls it frozen; 0: never */
};

/* A version stays a fact whatever is said of it. Withdrawn: it must not be taken into service any more; a subscriber that has
 * it in place keeps it until a higher number comes. Tainted: something in it should not be (a retracted record, a doubtful
 * source); people are told, programs go on. */
struct mark {
    uint64_t version;
    enum mark_kind kind;
    char reason[MARK_REASON_MAX + 1]; /* UTF-8, for people; may be empty */
};

struct aliases {
    struct name line;
    uint64_t seq; /* a subscriber refuses a lower one */
    uint64_t created_s;
    uint32_t n_aliases; /* ascending name */
    struct alias aliases[ALIASES_MAX];
    uint32_t n_marks; /* ascending (version, kind) */
    struct mark *marks;
};

enum status aliases_encode(const struct aliases *a, struct buf *out, struct err *err);
enum status aliases_decode(const void *data, size_t len, struct aliases *out, struct err *err);
void aliases_release(struct aliases *a);
const struct alias *aliases_find(const struct aliases *a, const char *name);                     /* NULL */
const struct mark *aliases_mark(const struct aliases *a, uint64_t version, enum mark_kind kind); /* NULL */
const char *mark_name(enum mark_kind kind);

/* ---- signatures: Ed25519 (RFC 8032) over context | bytes */

struct sign_public {
    uint8_t b[SIGN_PUBLIC_LEN];
};
struct sign_secret { /* wipe with sign_wipe() */
    uint8_t b[SIGN_SECRET_LEN];
};

void sign_keypair(struct sign_public *public_key, struct sign_secret *secret);
/* Is the secret, every byte of it, the one of this public key? Ask of a key that comes from disk: a damaged one signs, but what
 * it signs does not verify. */
bool sign_is_pair(const struct sign_secret *secret, const struct sign_public *public_key);
void sign_wipe(struct sign_secret *secret);

/* Root says: this key releases for this line until not_after_s (Unix time; 0: no end), and no certificate with a lower serial
 * counts any more. cert = u64 serial | u64 not_after | signature over
 * "alluvium release key 2\0" | u8 length | line | u64 serial | u64 not_after | key. */
void cert_sign(const struct sign_secret *root, const struct name *line, const struct sign_public *release,
               uint64_t serial, uint64_t not_after_s, uint8_t cert[CERT_LEN]);
uint64_t cert_serial(const uint8_t cert[CERT_LEN]); /* of one that verifies */
/* ST_VERIFY; also when now_s is past the end. */
enum status cert_verify(const struct sign_public *root, const struct name *line, const struct sign_public *release,
                        const void *cert, size_t cert_len, uint64_t now_s, struct err *err);

void manifest_sign(const struct sign_secret *release, const void *data, size_t len, uint8_t signature[SIGNATURE_LEN]);
enum status manifest_verify(const struct sign_public *release, const void *data, size_t len, const void *signature,
                            size_t signature_len, struct err *err);
void aliases_sign(const struct sign_secret *release, const void *data, size_t len, uint8_t signature[SIGNATURE_LEN]);
enum status aliases_verify(const struct sign_public *release, const void *data, size_t len, const void *signature,
                           size_t signature_len, struct err *err);

#endif
