/* alluvium replay: what a worker holds of the past, by domain and age, from its directory. */
#include <stdio.h>
#include <string.h>

#include "alluvium.pb-c.h"
#include "base/check.h"
#include "cli/cli.h"
#include "cli/print.h"
#include "client/admin.h"
#include "replay/keep.h"
#include "worker/home.h"

enum { TIMEOUT_MS = 30000 };

struct args {
    struct line_args line;
    const char *dir;
};

static const struct option_row rows[] = {
    OPTION(struct args, dir, OPTION_TEXT, "dir", 0, "DIR", "the worker's directory (alluvium worker --dir)",
           .why = "the directory one stands in"),
    LINE_ROWS(struct args),
};

static enum keep_rank no_rank(void *user, struct domain_id domain, uint64_t offset) /* nothing is evicted here */
{
    (void)user, (void)domain, (void)offset;
    return KEEP_PINNED;
}

/* The line's domains in the order of their ids, for names and watermarks. */
static enum status ask_domains(const struct options *o, const struct args *args, json_t **out, struct err *err)
{
    struct join join;
    struct buf text = {0};
    json_error_t error;
    Alv__Control control = ALV__CONTROL__INIT;
    control.verb = ALV__CONTROL_VERB__CONTROL_STATUS;
    enum status st = cli_join(o, &args->line, &join, err);
    if (st)
        return st;
    st = admin_call(&join, &control, TIMEOUT_MS, cli_stop_fd(), &text, err);
    join_wipe(&join);
    json_t *status = st ? NULL : json_loadb((const char *)text.data, text.len, 0, &error);
    if (!st && !json_is_array(json_object_get(status, "domains")))
        st = err_set(err, ST_BAD_DATA, "the coordinator's answer is no status");
    if (!st)
        *out = json_incref(json_object_get(status, "domains"));
    json_decref(status);
    buf_release(&text);
    return st;
}

static json_t *domain_row(struct domain_id id, const struct keep_stats *s, const json_t *domain)
{
    json_t *row = json_object(), *ages = json_array();
    const json_t *name = json_object_get(domain, "domain"), *watermark = json_object_get(domain, "watermark");
    for (int i = 0; i < KEEP_DECILES; i++)
        json_array_append_new(ages, json_integer((json_int_t)s->by_age[i]));
    json_object_set_new(row, "domain", name ? json_deep_copy(name) : json_sprintf("#%u", id.v));
    json_object_set_new(row, "id", json_integer(id.v));
    json_object_set_new(row, "segments", json_integer((json_int_t)s->segments));
    json_object_set_new(row, "bytes", json_integer((json_int_t)s->bytes));
    json_object_set_new(row, "oldest", json_integer((json_int_t)s->first));
    json_object_set_new(row, "newest", json_integer((json_int_t)s->last));
    json_object_set_new(row, "watermark", watermark ? json_deep_copy(watermark) : json_null());
    json_object_set_new(row, "by_age", ages);
    return row;
}

static enum status collect(struct keep *keep, const json_t *domains, json_t *out, struct err *err)
{
    uint64_t segments = 0;
    json_t *list = json_array();
    enum status st = ST_OK;
    struct domain_id id;
    for (uint32_t from = 0; !st && from <= UINT16_MAX; from = id.v + 1u) {
        st = keep_next_domain(keep, (struct domain_id){(uint16_t)from}, &id, err);
        if (st)
            break;
        const json_t *domain = json_array_get(domains, id.v);
        struct keep_stats s;
        st = keep_stats(keep, id, 0, &s, err);
        uint64_t watermark = (uint64_t)json_integer_value(json_object_get(domain, "watermark"));
        if (!st) /* without the line the newest held stands for the end of history */
            st = keep_stats(keep, id, watermark ? watermark : s.last + 1, &s, err);
        if (!st) {
            segments += s.segments;
            json_array_append_new(list, domain_row(id, &s, domain));
        }
    }
    json_object_set_new(out, "segments", json_integer((json_int_t)segments));
    json_object_set_new(out, "bytes", json_integer((json_int_t)keep_bytes(keep)));
    json_object_set_new(out, "domains", list);
    return st == ST_NOT_FOUND ? ST_OK : st;
}

/* A worker that runs may remove a file between our reading its name and opening it: then once more. */
static enum status look(const char *dir, const json_t *domains, json_t *out, struct err *err)
{
    enum { TRIES = 3 };
    enum status st = ST_IO;
    for (int i = 0; i < TRIES && (st == ST_IO || st == ST_CORRUPT); i++) {
        struct db *db = NULL;
        struct keep *keep = NULL;
        const struct keep_options options = {
            .family_payload = HOME_PAYLOAD, .family_meta = HOME_LENGTHS, .budget_bytes = UINT64_MAX, .rank = no_rank};
        st = home_look(dir, &db, err);
        if (!st)
            st = keep_open(db, &options, &keep, err);
        if (!st)
            st = collect(keep, domains, out, err);
        keep_close(&keep);
        db_close(&db);
    }
    return st;
}

static void print_people(json_t *held)
{
    size_t i;
    json_t *row;
    char size[32];
    human_bytes((uint64_t)json_integer_value(json_object_get(held, "bytes")), size, sizeof size);
    printf("%lld segments, %s in %s\n", (long long)json_integer_value(json_object_get(held, "segments")), size,
           json_string_value(json_object_get(held, "dir")));
    json_t *table = json_object_get(held, "domains");
    json_array_foreach(table, i, row)
    {
        human_bytes((uint64_t)json_integer_value(json_object_get(row, "bytes")), size, sizeof size);
        json_object_set_new(row, "bytes", json_string(size));
        json_object_del(row, "id");
    }
    if (!json_array_size(table)) {
        printf("Nothing is held yet: history comes with the first lease after a version.\n");
        return;
    }
    printf("\n");
    print_value(stdout, table);
    printf("\nby_age: segments in each tenth of the domain's history, oldest first; about level when the sample is "
           "fair.\nWhat is at or above the watermark is being learnt now, and is in no tenth.\n");
}

int cmd_replay(int argc, char **argv)
{
    struct args args = {.dir = "."};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "replay",
        .usage = "",
        .summary = "Shows what a worker holds of the past: segments and bytes by domain and age.",
        .examples = "alluvium replay --dir ./worker-1\nalluvium replay --dir ./worker-1 -C ./clinic --json",
        .notes = "It reads the directory only, and may be asked while the worker runs. With a line (-C or --join) "
                 "domains have\n"
                 "their names, and ages are counted up to the end of the domain's settled history.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    json_t *domains = NULL, *held = json_object();
    enum status st = o.n_rest ? cli_usage(&o, &err, "it takes no arguments") : ST_OK;
    json_object_set_new(held, "dir", json_string(args.dir));
    if (!st && (args.line.directory || args.line.join))
        st = ask_domains(&o, &args, &domains, &err);
    if (!st)
        st = look(args.dir, domains, held, &err);
    if (!st && common.json)
        print_json(json_incref(held));
    else if (!st)
        print_people(held);
    json_decref(held);
    json_decref(domains);
    return cli_end(&o, st, &err);
}
