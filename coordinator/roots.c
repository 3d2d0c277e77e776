#include "coordinator/roots.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/log.h"
#include "coordinator/core/state.h"

struct slot {
    struct digest digest;
    enum root_kind kind; /* ROOT_NONE: free */
};

struct roots { /* open addressing; the digest's own bits are the hash */
    pthread_mutex_t lock;
    struct slot *slots;
    size_t n, cap; /* cap is a power of two, at most half full */
};

struct roots *roots_new(void)
{
    struct roots *r = xcalloc(1, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    r->cap = 64;
    r->slots = xcalloc(r->cap, sizeof *r->slots);
    return r;
}

void roots_free(struct roots *r)
{
    if (!r)
        return;
    pthread_mutex_destroy(&r->lock);
    free(r->slots);
    free(r);
}

static size_t home(const struct roots *r, const struct digest *d)
{
    uint64_t h;
    memcpy(&h, d->b, sizeof h);
    return h & (r->cap - 1);
}

static struct slot *find(struct roots *r, const struct digest *d) /* the digest's slot, or the free one it would take */
{
    size_t i = home(r, d);
    while (r->slots[i].kind && !digest_eq(&r->slots[i].digest, d))
        i = (i + 1) & (r->cap - 1);
    return &r->slots[i];
}

static void grow(struct roots *r)
{
    struct slot *old = r->slots;
    size_t cap = r->cap;
    r->cap *= 2;
    r->slots = xcalloc(r->cap, sizeof *r->slots);
    for (size_t i = 0; i < cap; i++)
        if (old[i].kind)
            *find(r, &old[i].digest) = old[i];
    free(old);
}

void roots_add(struct roots *r, const struct digest *digest, enum root_kind kind)
{
    pthread_mutex_lock(&r->lock);
    if (2 * (r->n + 1) > r->cap)
        grow(r);
    struct slot *s = find(r, digest);
    if (!s->kind)
        r->n++;
    s->digest = *digest;
    if (kind > s->kind)
        s->kind = kind;
    pthread_mutex_unlock(&r->lock);
}

void roots_remove(struct roots *r, const struct digest *digest)
{
    pthread_mutex_lock(&r->lock);
    struct slot *s = find(r, digest);
    if (s->kind) { /* what follows in the run may have probed past it: put it back in */
        s->kind = ROOT_NONE;
        r->n--;
        size_t i = (size_t)(s - r->slots);
        while (r->slots[i = (i + 1) & (r->cap - 1)].kind) {
            struct slot moved = r->slots[i];
            r->slots[i].kind = ROOT_NONE;
            *find(r, &moved.digest) = moved;
        }
    }
    pthread_mutex_unlock(&r->lock);
}

enum root_kind roots_find(struct roots *r, const struct digest *digest)
{
    pthread_mutex_lock(&r->lock);
    enum root_kind kind = find(r, digest)->kind;
    pthread_mutex_unlock(&r->lock);
    return kind;
}

bool roots_may_get(struct roots *r, const struct digest *digest, enum role role)
{
    enum root_kind kind = roots_find(r, digest);
    return kind == ROOT_PUBLISHED || (kind == ROOT_WORK && role == ROLE_WORKER);
}

/* ---- from the database ------------------------------------------------------------------------------------------ */

void roots_add_files(struct roots *r, const struct version_files *files, enum root_kind kind)
{
    if (!digest_is_zero(&files->peft))
        roots_add(r, &files->peft, kind);
    if (!digest_is_zero(&files->gguf))
        roots_add(r, &files->gguf, kind);
    if (!digest_is_zero(&files->state))
        roots_add(r, &files->state, ROOT_WORK);
}

/* One stored pair; most are nothing to us. */
static bool see(struct roots *r, uint8_t family, struct bytes key, struct bytes value)
{
    char tag = key.len ? (char)key.data[0] : 0;
    if (family == FAMILY_VERSIONS && tag == 'm') {
        struct state_version *v = xmalloc(sizeof *v); /* 2 KiB of references */
        bool ok = state_version_get(value, v);
        if (ok)
            roots_add_files(r, &v->files, ROOT_PUBLISHED);
        free(v);
        return ok;
    }
    if (family == FAMILY_META && tag == 'r' && key.len == 1) {
        struct state_round *v = xmalloc(sizeof *v);
        bool ok = state_round_get(value, v);
        if (ok && v->phase != ROUND_NONE)
            roots_add_files(r, &v->candidate, ROOT_WORK);
        free(v);
        return ok;
    }
    if (family == FAMILY_DELTAS && tag == 'd') {
        struct state_delta v;
        if (!state_delta_get(value, &v))
            return false;
        roots_add(r, &v.digest, ROOT_WORK);
    }
    return true;
}

static enum status corrupt(uint8_t family, struct bytes key, struct err *err)
{
    char hex[2 * 32 + 1];
    hex_encode(key.data, key.len < 32 ? key.len : 32, hex);
    return err_set(err, ST_CORRUPT, "family %u, key %s does not decode; restore a backup", family, hex);
}

enum status roots_load(struct roots *r, struct db *db, struct err *err)
{
    static const struct {
        uint8_t family;
        char from, to;
    } ranges[] = {{FAMILY_META, 'r', 's'}, {FAMILY_DELTAS, 'd', 'e'}, {FAMILY_VERSIONS, 'm', 'n'}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        struct bytes key, value;
        struct db_iter *iter = db_iter_open(db, ranges[i].family, (struct bytes){(const uint8_t *)&ranges[i].from, 1},
                                            (struct bytes){(const uint8_t *)&ranges[i].to, 1}, false);
        enum status st;
        while (!(st = db_iter_next(iter, &key, &value, err)))
            if (!see(r, ranges[i].family, key, value)) {
                st = corrupt(ranges[i].family, key, err);
                break;
            }
        db_iter_close(&iter);
        if (st != ST_EMPTY)
            return st;
    }
    return ST_OK;
}

enum status roots_follow(struct roots *r, const struct batch *batch, struct err *err)
{
    struct batch_op op;
    for (size_t at = 0; batch_next(batch, &at, &op);)
        if (op.kind == BATCH_PUT && !see(r, op.family, op.key, op.value))
            return corrupt(op.family, op.key, err);
    return ST_OK;
}

/* ---- collection ------------------------------------------------------------------------------------------------- */

struct collection {
    struct roots *roots;
    struct blob_store *blobs;
    uint64_t deleted;
};

static enum status collect_one(void *user, const struct digest *digest, uint64_t bytes, struct err *err)
{
    struct collection *c = user;
    (void)bytes;
    if (roots_find(c->roots, digest))
        return ST_OK;
    c->deleted++;
    return blob_delete(c->blobs, digest, err);
}

enum status roots_collect(struct roots *r, struct blob_store *blobs, uint64_t *deleted, struct err *err)
{
    struct collection c = {.roots = r, .blobs = blobs};
    enum status st = blob_list(blobs, collect_one, &c, err);
    if (!st)
        *deleted = c.deleted;
    return st;
}
