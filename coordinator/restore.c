/* From a backup to a line: everything is checked, then the numbers jump. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "coordinator/backup.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"
#include "coordinator/signing.h"
#include "coordinator/streamlog.h"
#include "coordinator/tree.h"

enum {
    JUMP = 1 << 20, /* sessions, rounds, leases, alias statements: more than a life has between two backups. Streams
                          * keep their numbers, which are places in a table: their positions are compared, not trusted */
    VERSION_JUMP = 1000, /* people read these */
    INDEX_BYTES_MAX = 256 << 20,
};

struct restoring {
    const struct restore_options *options;
    struct tree_stage stage;
    struct backup_index index;
    struct line_dir dir;
    struct blob_store *blobs;
    struct streamlog *log;
    struct restore_report report;
};

/* ---- the files */

static enum status read_index(struct restoring *r, struct err *err)
{
    char path[TREE_PATH_SIZE];
    struct buf text = {0};
    enum status st = tree_join(path, r->options->source, BACKUP_INDEX, err);
    if (!st && !tree_exists(path))
        st = err_set(err, ST_NOT_FOUND, "%s is no backup, or one that was not finished (it has no %s)",
                     r->options->source, BACKUP_INDEX);
    if (!st)
        st = file_read(path, INDEX_BYTES_MAX, &text, err);
    if (!st && (st = backup_index_parse(text.data, text.len, &r->index, err)))
        err_prefix(err, st, "%s", path);
    buf_release(&text);
    return st;
}

static enum status copy_files(struct restoring *r, struct err *err)
{
    char from[TREE_PATH_SIZE], to[TREE_PATH_SIZE];
    uint64_t total = 0, bytes;
    struct digest digest;
    enum status st = ST_OK;
    for (size_t i = 0; i < r->index.n; i++)
        total += r->index.files[i].bytes;
    for (size_t i = 0; !st && i < r->index.n; i++) {
        const struct backup_file *f = &r->index.files[i];
        st = tree_join(from, r->options->source, f->path, err);
        if (!st)
            st = tree_join(to, r->stage.tree, f->path, err);
        if (!st)
            st = tree_parents(r->stage.tree, f->path, err);
        if (!st)
            st = tree_copy(from, to, &digest, &bytes, err);
        if (st == ST_NOT_FOUND)
            st = err_set(err, ST_CORRUPT, "%s is missing from the backup", from);
        if (!st && (bytes != f->bytes || !digest_eq(&digest, &f->digest)))
            st = err_set(err, ST_CORRUPT, "%s is not what was backed up: it is damaged", from);
        r->report.files++;
        r->report.bytes += f->bytes;
        if (r->options->progress)
            r->options->progress(r->options->user, r->report.bytes, total);
    }
    return st;
}

/* ---- what must be true of them */

static enum status want_blob(struct restoring *r, const struct digest *digest, const char *what, uint64_t number,
                             struct err *err)
{
    char hex[DIGEST_HEX_SIZE];
    digest_hex(digest, hex);
    return digest_is_zero(digest) || blob_has(r->blobs, digest)
               ? ST_OK
               : err_set(err, ST_CORRUPT, "a file of %s %llu (blob %.16s) is missing from the backup", what,
                         (unsigned long long)number, hex);
}

static enum status want_files(struct restoring *r, uint64_t number, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = facts_version(streamlog_db(r->log), number, &value, v, err);
    if (!st)
        st = want_blob(r, &v->files.peft, "version", number, err);
    if (!st)
        st = want_blob(r, &v->files.gguf, "version", number, err);
    if (!st)
        st = want_blob(r, &v->files.state, "version", number, err);
    free(v);
    buf_release(&value);
    return st;
}

/* Signed by a key that root certified, and built on the version it names. */
static enum status check_version(struct restoring *r, uint64_t number, struct bytes value, struct err *err)
{
    struct state_version *v = xmalloc(sizeof *v), *parent = xmalloc(sizeof *parent);
    struct manifest *m = xcalloc(1, sizeof *m);
    struct buf parent_value = {0};
    struct digest digest = {{0}};
    enum status st = state_version_get(value, v) ? ST_OK : err_set(err, ST_CORRUPT, "it does not decode");
    if (!st)
        st = signing_check(&r->dir, v->manifest, v->signature, err);
    if (!st)
        st = manifest_decode(v->manifest.data, v->manifest.len, m, err);
    if (!st && number)
        st = facts_version(streamlog_db(r->log), m->parent, &parent_value, parent, err);
    if (!st && number)
        manifest_digest(parent->manifest.data, parent->manifest.len, &digest);
    if (!st && (m->number != number || !digest_eq(&digest, &m->parent_manifest)))
        st = err_set(err, ST_VERIFY, "it is not built on the version %llu that is here", (unsigned long long)m->parent);
    if (st)
        err_prefix(err, st, "version %llu", (unsigned long long)number);
    manifest_release(m);
    free(m);
    free(v);
    free(parent);
    buf_release(&parent_value);
    return st;
}

/* The blob of an accepted delta is wanted until its round is over; then its lease is gone, and the record stays. */
static enum status check_delta(struct restoring *r, struct bytes value, struct err *err)
{
    struct state_delta d;
    enum status st = ST_OK;
    if (!state_delta_get(value, &d))
        return err_set(err, ST_CORRUPT, "a delta does not decode");
    struct state_key lease = key_u64('l', d.lease);
    bool wanted = db_has(streamlog_db(r->log), FAMILY_LEASES, lease.b, lease.len, &st, err);
    return !st && wanted ? want_blob(r, &d.digest, "the delta of lease", d.lease, err) : st;
}

struct seen {
    struct restoring *r;
    uint8_t family;
};

static enum status check_pair(void *user, struct bytes key, struct bytes value, struct err *err)
{
    struct seen *s = user;
    uint64_t number;
    char tag = key.len ? (char)key.data[0] : 0;
    if (s->family == FAMILY_VERSIONS && tag == 'm') {
        if (!key_read_u64(key, &number))
            return err_set(err, ST_CORRUPT, "a version's key does not decode");
        s->r->report.versions++;
        s->r->report.newest = number;
        return check_version(s->r, number, value, err);
    }
    if (s->family == FAMILY_DELTAS && tag == 'd')
        return check_delta(s->r, value, err);
    return ST_OK;
}

static enum status read_aliases(struct restoring *r, struct aliases *out, struct err *err)
{
    struct buf b = {0};
    struct state_key key = key_plain('a');
    enum status st = db_get(streamlog_db(r->log), FAMILY_META, key.b, key.len, &b, err);
    if (!st && b.len <= SIGNATURE_LEN)
        st = err_set(err, ST_CORRUPT, "the aliases do not decode");
    if (!st)
        st = aliases_decode(b.data, b.len - SIGNATURE_LEN, out, err);
    buf_release(&b);
    return st;
}

static enum status check_all(struct restoring *r, const struct aliases *aliases, struct err *err)
{
    enum status st = ST_OK;
    for (uint8_t family = 0; !st && family < FAMILIES; family++) {
        struct seen s = {r, family};
        uint64_t keys = 0, bytes = 0;
        st = db_scrub(streamlog_db(r->log), family, check_pair, &s, &keys, &bytes, err);
        r->report.keys += keys;
    }
    if (!st)
        st = want_files(r, r->report.newest, err);
    for (uint32_t i = 0; !st && i < aliases->n_aliases; i++)
        st = want_files(r, aliases->aliases[i].version, err);
    return st;
}

/* ---- the jump */

static enum status jump_counters(struct restoring *r, struct batch *batch, struct err *err)
{
    struct state_key key = key_plain('c');
    struct state_counters *c = xmalloc(sizeof *c);
    struct buf out = {0};
    enum status st = facts_counters(r->log, c, err);
    if (!st) {
        c->round += JUMP;
        c->lease += JUMP;
        c->quarantine += JUMP;
        uint64_t beyond = c->version + VERSION_JUMP, seen = r->options->version_seen;
        c->version_next = beyond > seen ? beyond : seen + 1;
        r->report.next = c->version_next;
        state_counters_put(&out, c);
        batch_put(batch, FAMILY_META, key.b, key.len, out.data, out.len);
    }
    free(c);
    buf_release(&out);
    return st;
}

/* A session that nobody served ends the chain that was: the gap before it tells the core what is forgotten, and that the work
 * that was given out before is not to be taken any more. */
static enum status jump_session(struct restoring *r, struct batch *batch, struct err *err)
{
    struct state_session last;
    struct buf out = {0};
    enum status st = facts_session(r->log, &last, err);
    if (st)
        return st;
    struct state_session next = {.counter = last.counter + JUMP};
    memcpy(next.previous, last.incarnation, sizeof next.previous);
    random_bytes(next.incarnation, sizeof next.incarnation);
    struct state_key key = key_u64('S', next.counter);
    state_session_put(&out, &next);
    batch_put(batch, FAMILY_META, key.b, key.len, out.data, out.len);
    buf_release(&out);
    return ST_OK;
}

static enum status jump_aliases(struct restoring *r, struct aliases *aliases, struct batch *batch, struct err *err)
{
    struct state_key key = key_plain('a');
    struct buf out = {0};
    uint8_t signature[SIGNATURE_LEN];
    aliases->seq += JUMP;
    aliases->created_s = clock_wall_s();
    enum status st = aliases_encode(aliases, &out, err);
    if (!st) {
        aliases_sign(&r->dir.release_secret, out.data, out.len, signature);
        buf_put(&out, signature, sizeof signature);
        batch_put(batch, FAMILY_META, key.b, key.len, out.data, out.len);
    }
    buf_release(&out);
    return st;
}

static enum status jump(struct restoring *r, struct aliases *aliases, struct err *err)
{
    struct batch batch = {0};
    enum status st = jump_counters(r, &batch, err);
    if (!st)
        st = jump_session(r, &batch, err);
    if (!st)
        st = jump_aliases(r, aliases, &batch, err);
    if (!st)
        st = streamlog_amend(r->log, &batch, err);
    batch_release(&batch);
    return st;
}

/* ---- the whole */

static enum status begin(struct restoring *r, struct err *err)
{
    const char *dir = r->options->dir;
    if (tree_exists(dir) && !tree_empty(dir))
        return err_set(err, ST_CONFLICT, "%s is not empty; choose another directory", dir);
    return tree_stage_begin(&r->stage, dir, "restore", err);
}

static enum status open_line(struct restoring *r, struct err *err)
{
    char db[DIR_PATH_SIZE], witness[DIR_PATH_SIZE], blobs[DIR_PATH_SIZE];
    enum status st = line_dir_open(r->stage.tree, &r->dir, err);
    if (!st)
        st = line_dir_path(&r->dir, "db", db, err);
    if (!st)
        st = line_dir_path(&r->dir, "witness", witness, err);
    if (!st)
        st = line_dir_path(&r->dir, "blobs", blobs, err);
    if (!st)
        st = blob_store_open(blobs, 0, &r->blobs, err);
    if (!st)
        st = streamlog_open(db, witness, 0, false, &r->log, err);
    return st;
}

static enum status close_line(struct restoring *r, struct err *err)
{
    enum status st = r->log ? streamlog_close(&r->log, err) : ST_OK;
    if (r->blobs)
        blob_store_close(&r->blobs);
    line_dir_close(&r->dir);
    return st;
}

static enum status finish(struct restoring *r, struct err *err)
{
    enum status st = tree_sync_all(r->stage.tree, err);
    return st ? st : tree_stage_end(&r->stage, r->options->dir, err);
}

enum status backup_restore(const struct restore_options *options, struct restore_report *report, struct err *err)
{
    hash_start();
    struct restoring *r = xcalloc(1, sizeof *r);
    struct aliases *aliases = xcalloc(1, sizeof *aliases);
    r->options = options;
    r->dir.lock_fd = -1;
    enum status st = read_index(r, err);
    bool begun = false;
    if (!st) {
        st = begin(r, err);
        begun = !st;
    }
    if (!st)
        st = copy_files(r, err);
    if (!st)
        st = open_line(r, err);
    if (!st)
        st = read_aliases(r, aliases, err);
    if (!st)
        st = check_all(r, aliases, err);
    if (!st)
        st = jump(r, aliases, err);
    enum status closed = close_line(r, st ? NULL : err);
    st = st ? st : closed;
    if (!st)
        st = finish(r, err);
    if (st && begun)
        tree_stage_drop(&r->stage, NULL);
    r->report.line = r->index.line;
    r->report.created_s = r->index.created_s;
    if (!st)
        *report = r->report;
    aliases_release(aliases);
    free(aliases);
    backup_index_release(&r->index);
    free(r);
    return st;
}
