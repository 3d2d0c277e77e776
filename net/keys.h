/* keys.h - who may speak: the key table of a line, and files that hold secrets.
 *
 * A line's directory holds keys.json (the table) and server.key (the CURVE key pair of the coordinator), both 0600; a
 * looser mode or another owner is refused. The table maps a CURVE public key to a name and a role. It is asked
 * at the handshake (zap.h) and again on every message (endpoint.h), each time after a look at the file: whoever changes
 * the file (the `keys` command, in another process) is heard at the next message, and a revocation at once (census.h). A table that cannot be read admits
 * nobody until it is mended.
 *
 * A name has at most one live key. A revoked entry stays in the file; its name may get a new key (rotation).
 * Thread-safe. CURVE: https://rfc.zeromq.org/spec/26
 */
#ifndef NET_KEYS_H
#define NET_KEYS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "proto/verbs.h"

enum { CURVE_Z85_SIZE = 41 };

struct curve_key { /* 32 bytes as Z85 text */
    char z85[CURVE_Z85_SIZE];
};
struct curve_pair {
    struct curve_key public_key, secret;
};

void curve_pair_new(struct curve_pair *out);
void curve_wipe(struct curve_key *secret);
bool curve_key_valid(const char *z85); /* 40 Z85 characters that decode */
bool curve_public_of(const struct curve_key *secret, struct curve_key *out);

struct key_entry {
    struct name name;
    enum role role;
    struct curve_key public_key;
    uint64_t created_s, revoked_s; /* Unix time; revoked_s 0: live */
    uint32_t n_domains;            /* producers: may push only these; 0: any */
    struct name *domains;
};

struct keys;

/* Opens the table of `dir`. A missing keys.json is an empty table. ST_CONFIG (the text names file and entry) when it is
 * malformed or its mode is loose. */
enum status keys_open(const char *dir, struct keys **out, struct err *err);
void keys_free(struct keys *keys);

/* Makes a key pair, writes the table durably (serialised between processes by a lock file), gives the pair back: the
 * secret is stored nowhere. ST_CONFLICT: the name has a live key. ST_LIMIT: table full. */
enum status keys_add(struct keys *keys, const struct name *name, enum role role, const struct name *domains,
                     uint32_t n_domains, struct curve_pair *out, struct err *err);
enum status keys_revoke(struct keys *keys, const struct name *name, struct err *err); /* ST_NOT_FOUND: no live key */

struct key_grant { /* what a live key may do now */
    struct name name;
    enum role role;
};

/* ST_OK; ST_DENIED: unknown or revoked; ST_AGAIN: the table cannot be read now (logged once per change). */
enum status keys_find(struct keys *keys, const char *public_z85, struct key_grant *out, struct err *err);
/* May the live key of this name push into `domain`? (operators: yes; producers: see `domains`) */
bool keys_may_push(struct keys *keys, const struct name *name, const struct name *domain);

/* Grows whenever a table was read in which a key that was live no longer is (or may no longer be: the one before could not
 * be read). Looks at the file, as every question does. */
uint64_t keys_revocations(struct keys *keys);
/* A descriptor that becomes readable when the table's file may have changed (inotify; read it empty). -1: this system gives
 * none, changes are then found by asking. The caller closes it. */
int keys_watch(const struct keys *keys);

/* Calls `each` for every entry, in file order, under the table's lock (do not call keys_* from it). */
enum status keys_each(struct keys *keys, void (*each)(void *user, const struct key_entry *entry), void *user,
                      struct err *err);

/* server.key of `dir`: two lines, public then secret. create: ST_CONFLICT when there is one. */
enum status server_key_create(const char *dir, struct curve_pair *out, struct err *err);
enum status server_key_read(const char *dir, struct curve_pair *out, struct err *err);

/* A file that holds a secret: regular, ours or root's, mode without group and other (ST_CONFIG otherwise; ST_NOT_FOUND, ST_IO,
 * ST_LIMIT). What root hands to a user through its group may be readable by that group, as PostgreSQL has it for its key:
 * systemd's credentials and Kubernetes' secrets come so. Writing is durable, with mode 0600. */
enum status secret_read(const char *path, size_t bytes_max, struct buf *out, struct err *err);
enum status secret_write(const char *path, const void *data, size_t len, struct err *err);

#endif
