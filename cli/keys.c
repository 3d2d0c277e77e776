/* alluvium keys add|list|revoke|rotate: who may connect, and what signs. Works on the line's directory; a running coordinator hears it at once. */
#include "net/keys.h"

#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "cli/print.h"
#include "coordinator/dir.h"
#include "coordinator/signing.h"

enum { DOMAINS_MAX = 64 };

struct args {
    const char *directory, *out, *address;
    uint32_t port;
    struct option_list domains;
};

#define DIRECTORY_ROW                                                                            \
    OPTION(struct args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's directory", \
           .why = "the directory one stands in")

static const struct option_row add_rows[] = {
    DIRECTORY_ROW,
    OPTION(struct args, out, OPTION_TEXT, "out", 'o', "FILE", "the join file to write (must not be there)",
           .no_env = true),
    OPTION(struct args, domains, OPTION_LIST, "domain", 0, "NAME",
           "producers: may push only this one; may be repeated; without: any", .no_env = true),
    OPTION(struct args, address, OPTION_TEXT, "address", 0, "HOST",
           "host the peer connects to, when it is not the line's (line.json)"),
    OPTION(struct args, port, OPTION_U32, "port", 0, "N", "base port, likewise; 0: the line's", .low = 0, .high = 65530,
           .why = "told once, to init"),
};
static const struct option_row dir_rows[] = {DIRECTORY_ROW};

static enum status add(const struct options *o, const struct args *args, struct err *err)
{
    enum role role;
    struct name name, domains[DOMAINS_MAX];
    struct join join;
    struct curve_pair pair;
    struct keys *keys = NULL;
    char path[4200];
    if (o->n_rest != 2 || !args->out)
        return cli_usage(o, err, args->out ? "it takes a role and a name" : "--out says where the join file goes");
    if (!role_parse(o->rest[0], &role))
        return err_set(err, ST_USAGE, "\"%s\" is no role: producer, worker, subscriber or operator", o->rest[0]);
    if (!name_set(&name, o->rest[1], strlen(o->rest[1])))
        return err_set(err, ST_USAGE, "\"%s\" is no name: a-z 0-9 . _ - , at most 63, beginning with a letter or digit",
                       o->rest[1]);
    if (args->domains.n > DOMAINS_MAX || (args->domains.n && role != ROLE_PRODUCER))
        return err_set(err, ST_USAGE, "--domain is for producers, at most %d times", DOMAINS_MAX);
    for (uint32_t i = 0; i < args->domains.n; i++)
        if (!name_set(&domains[i], args->domains.items[i], strlen(args->domains.items[i])))
            return err_set(err, ST_USAGE, "\"%s\" is no name of a domain", args->domains.items[i]);
    if (access(args->out, F_OK) == 0)
        return err_set(err, ST_CONFLICT, "%s is there already; a secret is never overwritten", args->out);
    snprintf(path, sizeof path, "%s/operator.join", args->directory);
    enum status st = join_read(path, &join, err); /* knows the server's key and the root's */
    if (st == ST_OK)
        st = line_dir_where(args->directory, join.host, &join.port, err);
    if (st != ST_OK)
        return err_prefix(err, st, "is %s a line's directory? (-C DIR)", args->directory);
    st = keys_open(args->directory, &keys, err);
    if (st == ST_OK)
        st = keys_add(keys, &name, role, domains, args->domains.n, &pair, err);
    if (st == ST_OK) {
        join.role = role;
        join.name = name;
        join.secret = pair.secret;
        if (args->address && snprintf(join.host, sizeof join.host, "%s", args->address) >= (int)sizeof join.host)
            st = err_set(err, ST_USAGE, "--address is too long");
        if (args->port)
            join.port = (uint16_t)args->port;
        if (st == ST_OK)
            st = join_write(args->out, &join, err);
        if (st != ST_OK) /* nobody has the secret: the key must not stay */
            keys_revoke(keys, &name, NULL);
        curve_wipe(&pair.secret);
    }
    if (st == ST_OK && common.json)
        print_json(json_pack("{s:s,s:s,s:s,s:s}", "name", name.s, "role", role_name(role), "public_key",
                             pair.public_key.z85, "join", args->out));
    else if (st == ST_OK)
        printf("%s: join file of %s \"%s\"; it holds a secret: give it to that peer and nobody else\n", args->out,
               role_name(role), name.s);
    join_wipe(&join);
    keys_free(keys);
    return st;
}

int cmd_keys_add(int argc, char **argv)
{
    struct args args = {.directory = "."};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "keys add",
        .usage = "producer|worker|subscriber|operator NAME --out FILE",
        .summary = "Makes a key and its join file: all that a peer needs to connect. A pool of workers may share one.",
        .examples = "alluvium keys add worker pool-a -C ./clinic --out pool-a.join\n"
                    "alluvium keys add producer intake -C ./clinic --domain notes --out intake.join",
        .rows = add_rows,
        .n_rows = sizeof add_rows / sizeof add_rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = add(&o, &args, &err);
    return cli_end(&o, st, &err);
}

struct rotate_args {
    const char *directory, *root;
    uint32_t days;
};
static const struct option_row rotate_rows[] = {
    OPTION(struct rotate_args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's directory",
           .why = "the directory one stands in"),
    OPTION(struct rotate_args, root, OPTION_TEXT, "root", 0, "FILE",
           "root's secret, wherever it is kept; without: root.key of the directory", .no_env = true),
    OPTION(struct rotate_args, days, OPTION_U32, "days", 0, "N", "the new key is good for so long; 0: until replaced",
           .low = 0, .high = 36500, .no_env = true, .why = "a line that nobody looks after goes on"),
};

int cmd_keys_rotate(int argc, char **argv)
{
    struct rotate_args args = {.directory = "."};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "keys rotate",
        .usage = "",
        .summary = "Makes a new release key, certified by root; the old one has no say any more.",
        .examples = "alluvium keys rotate -C ./clinic --root /media/safe/clinic-root.key\n"
                    "alluvium keys rotate -C ./clinic --days 365",
        .notes = "Stop the coordinator first. Its next start signs all versions anew; subscribers go on by themselves, "
                 "since\n"
                 "they trust root. When a key may be stolen, rotate it and revoke what else was on that machine.",
        .rows = rotate_rows,
        .n_rows = sizeof rotate_rows / sizeof rotate_rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    struct line_dir dir = {.lock_fd = -1};
    uint64_t end = args.days ? clock_wall_s() + args.days * UINT64_C(86400) : 0;
    enum status st =
        o.n_rest ? cli_usage(&o, &err, "it takes no arguments") : line_dir_open(args.directory, &dir, &err);
    if (st == ST_CONFLICT)
        err_prefix(&err, st, "stop the coordinator first");
    if (st == ST_OK)
        st = signing_rotate(&dir, args.root, end, &err);
    if (st == ST_OK && common.json)
        print_json(json_pack("{s:I,s:o}", "serial", (json_int_t)cert_serial(dir.cert), "not_after_s",
                             end ? json_integer((json_int_t)end) : json_null()));
    else if (st == ST_OK)
        printf(
            "release key %llu of line %s is in place; the next start of the coordinator signs every version with it\n",
            (unsigned long long)cert_serial(dir.cert), dir.line.s);
    line_dir_close(&dir);
    return cli_end(&o, st, &err);
}

static void put_time(json_t *row, const char *key, uint64_t unix_s)
{
    char text[32];
    time_t t = (time_t)unix_s;
    struct tm utc;
    gmtime_r(&t, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    json_object_set_new(row, key, unix_s ? json_string(text) : json_null());
}

static void list_entry(void *user, const struct key_entry *entry)
{
    json_t *domains = json_array();
    for (uint32_t i = 0; i < entry->n_domains; i++)
        json_array_append_new(domains, json_string(entry->domains[i].s));
    json_t *row = json_pack("{s:s,s:s,s:b}", "name", entry->name.s, "role", role_name(entry->role), "live",
                            entry->revoked_s == 0);
    put_time(row, "created", entry->created_s);
    put_time(row, "revoked", entry->revoked_s);
    json_object_set_new(row, "domains", domains);
    json_object_set_new(row, "public_key", json_string(entry->public_key.z85));
    json_array_append_new(user, row);
}

/* keys_open() takes a missing table for an empty one; a slip in -C must not look like that. */
static enum status open_table(const char *dir, struct keys **out, struct err *err)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/keys.json", dir);
    if (access(path, F_OK) != 0)
        return err_set(err, ST_NOT_FOUND, "%s is not there; is %s a line's directory? (-C DIR)", path, dir);
    return keys_open(dir, out, err);
}

int cmd_keys_list(int argc, char **argv)
{
    struct args args = {.directory = "."};
    struct err err = {""};
    int code;
    struct options o = {.command = "keys list",
                        .usage = "",
                        .summary = "Lists the keys of a line, the revoked ones too.",
                        .examples = "alluvium keys list -C ./clinic",
                        .rows = dir_rows,
                        .n_rows = 1,
                        .values = &args};
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    struct keys *keys = NULL;
    json_t *rows = json_array();
    enum status st = open_table(args.directory, &keys, &err);
    if (st == ST_OK)
        st = keys_each(keys, list_entry, rows, &err);
    if (st == ST_OK && common.json)
        print_json(json_incref(rows));
    else if (st == ST_OK)
        print_value(stdout, rows);
    json_decref(rows);
    keys_free(keys);
    return cli_end(&o, st, &err);
}

int cmd_keys_revoke(int argc, char **argv)
{
    struct args args = {.directory = "."};
    struct err err = {""};
    int code;
    struct options o = {.command = "keys revoke",
                        .usage = "NAME",
                        .summary = "Revokes a key: its connections end at once, and it is refused from then on.",
                        .examples = "alluvium keys revoke pool-a -C ./clinic",
                        .rows = dir_rows,
                        .n_rows = 1,
                        .values = &args};
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    struct keys *keys = NULL;
    struct name name;
    enum status st = ST_OK;
    if (o.n_rest != 1 || !name_set(&name, o.rest[0], strlen(o.rest[0])))
        st = cli_usage(&o, &err, "it takes the name of a key");
    if (st == ST_OK)
        st = open_table(args.directory, &keys, &err);
    if (st == ST_OK)
        st = keys_revoke(keys, &name, &err);
    if (st == ST_OK && common.json)
        print_json(json_pack("{s:s,s:b}", "name", name.s, "live", 0));
    else if (st == ST_OK)
        printf("%s is revoked\n", name.s);
    keys_free(keys);
    return cli_end(&o, st, &err);
}
