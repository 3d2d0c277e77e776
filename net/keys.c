/* keys.json:
 *
 *     {"version": 1, "keys": [{"name": "pool-a", "role": "worker", "public": "<Z85>", "created": 1760000000,
 *                              "revoked": 0, "domains": ["ocaml"]}, ...]}
 *
 * "domains" may be missing. Any other member is refused: a misspelt restriction must not widen what a key may do.
 */
#include "net/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <libgen.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

struct table {
    uint32_t n;
    struct key_entry *entries; /* file order */
    struct key_entry **by_key; /* live ones, by public key */
    uint32_t n_live;
};

struct keys {
    pthread_mutex_t lock;
    char *path, *lock_path;
    struct stat seen;  /* of the file the table was read from; zeroed: no file */
    enum status state; /* ST_OK, or why the file could not be read */
    struct err trouble;
    struct table table;
    uint64_t revocations; /* tables read in which a key had gone */
};

static void table_release(struct table *t)
{
    for (uint32_t i = 0; i < t->n; i++)
        free(t->entries[i].domains);
    free(t->entries);
    free(t->by_key);
    *t = (struct table){0};
}

/* ---- the file */

static bool get_name(const json_t *j, struct name *out)
{
    return json_is_string(j) && name_set(out, json_string_value(j), json_string_length(j));
}

static enum status entry_parse(const json_t *j, struct key_entry *e, struct err *err)
{
    static const char *const members[] = {"name", "role", "public", "created", "revoked", "domains"};
    const json_t *name = json_object_get(j, "name"), *role = json_object_get(j, "role"),
                 *public_key = json_object_get(j, "public"), *created = json_object_get(j, "created"),
                 *revoked = json_object_get(j, "revoked"), *domains = json_object_get(j, "domains");
    size_t known = 0;
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++)
        known += json_object_get(j, members[i]) != NULL;
    if (!json_is_object(j) || known != json_object_size(j))
        return err_set(err, ST_CONFIG, "unknown member");
    if (!get_name(name, &e->name))
        return err_set(err, ST_CONFIG, "name is missing or is no name");
    if (!json_is_string(role) || !role_parse(json_string_value(role), &e->role))
        return err_set(err, ST_CONFIG, "role is none of producer, worker, subscriber, operator");
    if (!json_is_string(public_key) || !curve_key_valid(json_string_value(public_key)))
        return err_set(err, ST_CONFIG, "public is no CURVE key");
    memcpy(e->public_key.z85, json_string_value(public_key), CURVE_Z85_SIZE);
    if (!json_is_integer(created) || !json_is_integer(revoked) || json_integer_value(created) < 0 ||
        json_integer_value(revoked) < 0)
        return err_set(err, ST_CONFIG, "created or revoked is no time");
    e->created_s = (uint64_t)json_integer_value(created);
    e->revoked_s = (uint64_t)json_integer_value(revoked);
    if (!domains)
        return ST_OK;
    size_t n = json_array_size(domains);
    if (!json_is_array(domains) || n == 0 || n > LIMIT_DOMAINS)
        return err_set(err, ST_CONFIG, "domains is no list of 1 to %d names", LIMIT_DOMAINS);
    e->domains = xcalloc(n, sizeof *e->domains);
    for (; e->n_domains < n; e->n_domains++)
        if (!get_name(json_array_get(domains, e->n_domains), &e->domains[e->n_domains]))
            return err_set(err, ST_CONFIG, "domains holds what is no name");
    return ST_OK;
}

static int compare_keys(const void *a, const void *b)
{
    const struct key_entry *const *x = a, *const *y = b;
    return strcmp((*x)->public_key.z85, (*y)->public_key.z85);
}

/* Index of the live entries; the same live key or name twice is refused. */
static enum status table_index(struct table *t, struct err *err)
{
    t->by_key = xcalloc(t->n, sizeof(struct key_entry *));
    t->n_live = 0;
    for (uint32_t i = 0; i < t->n; i++) {
        if (t->entries[i].revoked_s)
            continue;
        for (uint32_t k = 0; k < t->n_live; k++)
            if (name_eq(&t->by_key[k]->name, &t->entries[i].name))
                return err_set(err, ST_CONFIG, "%s has two live keys", t->entries[i].name.s);
        t->by_key[t->n_live++] = &t->entries[i];
    }
    qsort(t->by_key, t->n_live, sizeof(struct key_entry *), compare_keys);
    for (uint32_t k = 1; k < t->n_live; k++)
        if (!compare_keys(&t->by_key[k - 1], &t->by_key[k]))
            return err_set(err, ST_CONFIG, "%s and %s share a key", t->by_key[k - 1]->name.s, t->by_key[k]->name.s);
    return ST_OK;
}

static enum status table_parse(const char *path, const struct buf *text, struct table *out, struct err *err)
{
    struct table t = {0};
    json_error_t where;
    enum status st;
    json_t *root = json_loadb((const char *)text->data, text->len, JSON_REJECT_DUPLICATES, &where);
    if (!root)
        return err_set(err, ST_CONFIG, "%s:%d: %s", path, where.line, where.text);
    const json_t *list = json_object_get(root, "keys");
    if (json_integer_value(json_object_get(root, "version")) != 1 || !json_is_array(list) ||
        json_object_size(root) != 2) {
        st = err_set(err, ST_CONFIG, "%s: is no key table of version 1", path);
        goto done;
    }
    if (json_array_size(list) > LIMIT_KEYS) {
        st = err_set(err, ST_LIMIT, "%s: more than %d keys", path, LIMIT_KEYS);
        goto done;
    }
    size_t n = json_array_size(list);
    t.entries = xcalloc(n, sizeof *t.entries);
    for (st = ST_OK; t.n < n && !st;) {
        t.n++;
        st = entry_parse(json_array_get(list, t.n - 1), &t.entries[t.n - 1], err);
        if (st)
            err_prefix(err, st, "%s: key %u", path, t.n);
    }
    if (!st && (st = table_index(&t, err)))
        err_prefix(err, st, "%s", path);
    if (!st) {
        *out = t;
        t = (struct table){0};
    }
done:
    table_release(&t);
    json_decref(root);
    return st;
}

static void table_print(const struct table *t, struct buf *out)
{
    buf_printf(out, "{\"version\": 1, \"keys\": [");
    for (uint32_t i = 0; i < t->n; i++) {
        const struct key_entry *e = &t->entries[i];
        /* names and Z85 hold no quote and no backslash, so nothing needs an escape */
        buf_printf(
            out, "%s\n  {\"name\": \"%s\", \"role\": \"%s\", \"public\": \"%s\", \"created\": %llu, \"revoked\": %llu",
            i ? "," : "", e->name.s, role_name(e->role), e->public_key.z85, (unsigned long long)e->created_s,
            (unsigned long long)e->revoked_s);
        for (uint32_t d = 0; d < e->n_domains; d++)
            buf_printf(out, "%s\"%s\"", d ? ", " : ", \"domains\": [", e->domains[d].s);
        buf_printf(out, "%s}", e->n_domains ? "]" : "");
    }
    buf_printf(out, "\n]}\n");
}

/* ---- staying up to date */

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_ino == b->st_ino && a->st_dev == b->st_dev && a->st_size == b->st_size && a->st_mode == b->st_mode &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec &&
           a->st_ctim.tv_sec == b->st_ctim.tv_sec && a->st_ctim.tv_nsec == b->st_ctim.tv_nsec;
}

static bool live(const struct table *t, const char *public_z85, const struct key_entry **out)
{
    struct key_entry probe = {0}, *p = &probe, **found = NULL;
    if (t->n_live && strnlen(public_z85, CURVE_Z85_SIZE) == CURVE_Z85_SIZE - 1) {
        memcpy(probe.public_key.z85, public_z85, CURVE_Z85_SIZE);
        found = bsearch(&p, t->by_key, t->n_live, sizeof(struct key_entry *), compare_keys);
    }
    if (found && out)
        *out = *found;
    return found;
}

static bool all_live(const struct table *old, const struct table *now)
{
    for (uint32_t i = 0; i < old->n; i++)
        if (!old->entries[i].revoked_s && !live(now, old->entries[i].public_key.z85, NULL))
            return false;
    return true;
}

/* Under the lock. Looks at the file and reads it when it is another than before. */
static enum status refresh(struct keys *k, struct err *err)
{
    struct stat now = {0};
    if (stat(k->path, &now) < 0) {
        if (errno != ENOENT)
            return err_set(err, ST_IO, "%s: cannot stat: %s", k->path, strerror(errno));
        memset(&now, 0, sizeof now);
    }
    if (!same_file(&now, &k->seen)) { /* taken before reading: a later change is seen next time */
        struct buf text = {0};
        struct table fresh = {0};
        enum status before = k->state;
        k->state = now.st_ino ? secret_read(k->path, LIMIT_KEY_FILE_BYTES, &text, &k->trouble) : ST_OK;
        if (!k->state && now.st_ino)
            k->state = table_parse(k->path, &text, &fresh, &k->trouble);
        if (k->state)
            log_error("keys", "key table cannot be read, nobody is admitted: %s", k->trouble.text);
        k->revocations += !k->state && (before || !all_live(&k->table, &fresh));
        table_release(&k->table);
        k->table = fresh;
        k->seen = now;
        buf_release(&text);
    }
    return k->state ? err_set(err, k->state, "%s", k->trouble.text) : ST_OK;
}

enum status keys_open(const char *dir, struct keys **out, struct err *err)
{
    struct keys *k = xcalloc(1, sizeof *k);
    struct buf path = {0};
    pthread_mutex_init(&k->lock, NULL);
    buf_printf(&path, "%s/keys.json", dir);
    k->path = xstrdup(buf_cstr(&path));
    buf_clear(&path);
    buf_printf(&path, "%s/keys.lock", dir);
    k->lock_path = xstrdup(buf_cstr(&path));
    buf_release(&path);
    enum status st = refresh(k, err);
    if (st)
        keys_free(k);
    else
        *out = k;
    return st;
}

void keys_free(struct keys *k)
{
    if (!k)
        return;
    table_release(&k->table);
    pthread_mutex_destroy(&k->lock);
    free(k->path);
    free(k->lock_path);
    free(k);
}

/* ---- changing */

/* Between processes: whoever changes the table holds this lock from reading to writing. */
static enum status begin_change(struct keys *k, int *fd, struct err *err)
{
    *fd = open(k->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    int rc;
    do
        rc = *fd < 0 ? -1 : flock(*fd, LOCK_EX);
    while (rc < 0 && *fd >= 0 && errno == EINTR);
    if (rc < 0)
        return err_set(err, ST_IO, "%s: cannot lock: %s", k->lock_path, strerror(errno));
    return refresh(k, err);
}

static enum status write_table(struct keys *k, struct err *err)
{
    struct buf text = {0};
    table_print(&k->table, &text);
    enum status st = secret_write(k->path, text.data, text.len, err);
    buf_release(&text);
    return st;
}

static struct key_entry *find_live_name(struct keys *k, const struct name *name)
{
    for (uint32_t i = 0; i < k->table.n_live; i++)
        if (name_eq(&k->table.by_key[i]->name, name))
            return k->table.by_key[i];
    return NULL;
}

enum status keys_add(struct keys *k, const struct name *name, enum role role, const struct name *domains,
                     uint32_t n_domains, struct curve_pair *out, struct err *err)
{
    int fd = -1;
    struct curve_pair pair;
    if (n_domains > LIMIT_DOMAINS || (n_domains && role != ROLE_PRODUCER))
        return err_set(err, ST_USAGE, "domains are for producers, at most %d of them", LIMIT_DOMAINS);
    pthread_mutex_lock(&k->lock);
    enum status st = begin_change(k, &fd, err);
    if (st)
        goto done;
    if (find_live_name(k, name)) {
        st = err_set(err, ST_CONFLICT, "%s has a key already: revoke it first, or take another name", name->s);
        goto done;
    }
    struct table *t = &k->table;
    if (t->n >= LIMIT_KEYS) {
        st = err_set(err, ST_LIMIT, "%s: holds %d keys already", k->path, LIMIT_KEYS);
        goto done;
    }
    curve_pair_new(&pair);
    t->entries = xrealloc_array(t->entries, t->n + 1, sizeof *t->entries);
    struct key_entry *e = &t->entries[t->n++];
    *e = (struct key_entry){*name, role, pair.public_key, clock_wall_s(), 0, n_domains, NULL};
    if (n_domains)
        e->domains = xmemdup(domains, n_domains * sizeof *domains);
    st = write_table(k, err);
    memset(&k->seen, 0xff, sizeof k->seen); /* what is in memory is void: read it back, written or not */
    if (!st)
        st = refresh(k, err);
    if (!st)
        *out = pair;
    curve_wipe(&pair.secret);
done:
    if (fd >= 0)
        close(fd);
    pthread_mutex_unlock(&k->lock);
    return st;
}

enum status keys_revoke(struct keys *k, const struct name *name, struct err *err)
{
    int fd = -1;
    pthread_mutex_lock(&k->lock);
    enum status st = begin_change(k, &fd, err);
    if (st)
        goto done;
    struct key_entry *e = find_live_name(k, name);
    if (!e) {
        st = err_set(err, ST_NOT_FOUND, "%s has no live key", name->s);
        goto done;
    }
    uint64_t now = clock_wall_s();
    e->revoked_s = now ? now : 1;
    k->revocations++;
    st = write_table(k, err);
    memset(&k->seen, 0xff, sizeof k->seen);
    if (!st)
        st = refresh(k, err);
done:
    if (fd >= 0)
        close(fd);
    pthread_mutex_unlock(&k->lock);
    return st;
}

/* ---- asking */

enum status keys_find(struct keys *k, const char *public_z85, struct key_grant *out, struct err *err)
{
    pthread_mutex_lock(&k->lock);
    struct err why;
    enum status st = refresh(k, &why);
    if (st) {
        st = err_set(err, ST_AGAIN, "the key table cannot be read now");
        goto done;
    }
    const struct key_entry *found;
    if (live(&k->table, public_z85, &found))
        *out = (struct key_grant){found->name, found->role};
    else
        st = err_set(err, ST_DENIED, "this key is unknown or revoked");
done:
    pthread_mutex_unlock(&k->lock);
    return st;
}

bool keys_may_push(struct keys *k, const struct name *name, const struct name *domain)
{
    pthread_mutex_lock(&k->lock);
    struct err why;
    const struct key_entry *e = refresh(k, &why) ? NULL : find_live_name(k, name);
    bool may = e && (e->role & (ROLE_PRODUCER | ROLE_OPERATOR)) && e->n_domains == 0;
    for (uint32_t i = 0; e && e->role == ROLE_PRODUCER && i < e->n_domains && !may; i++)
        may = name_eq(&e->domains[i], domain);
    pthread_mutex_unlock(&k->lock);
    return may;
}

uint64_t keys_revocations(struct keys *k)
{
    pthread_mutex_lock(&k->lock);
    struct err why;
    (void)refresh(k, &why); /* one that cannot be read revokes nobody, yet */
    uint64_t n = k->revocations;
    pthread_mutex_unlock(&k->lock);
    return n;
}

int keys_watch(const struct keys *k)
{
    char *dir = xstrdup(k->path);
    int fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (fd >= 0 && inotify_add_watch(fd, dirname(dir), IN_MOVED_TO | IN_CLOSE_WRITE | IN_DELETE) < 0) {
        close(fd);
        fd = -1;
    }
    free(dir);
    return fd;
}

enum status keys_each(struct keys *k, void (*each)(void *user, const struct key_entry *entry), void *user,
                      struct err *err)
{
    pthread_mutex_lock(&k->lock);
    enum status st = refresh(k, err);
    for (uint32_t i = 0; !st && i < k->table.n; i++)
        each(user, &k->table.entries[i]);
    pthread_mutex_unlock(&k->lock);
    return st;
}
