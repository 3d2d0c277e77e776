/* alluvium backup and restore: a line's directory as a whole, into another directory and back. */
#include "coordinator/backup.h"

#include <stdio.h>
#include <unistd.h>

#include "alluvium.pb-c.h"
#include "cli/cli.h"
#include "cli/print.h"
#include "client/admin.h"

enum { ANSWER_S = 600 /* a snapshot first writes out what is in memory, to a slow disk perhaps */ };

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    progress_draw(user, done, total, "");
}

/* ---- backup */

struct backup_args {
    const char *directory;
};
static const struct option_row backup_rows[] = {
    OPTION(struct backup_args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's directory",
           .why = "the directory one stands in"),
};

/* By whoever has the directory's lock: this process, or the coordinator that serves it. */
static enum status snapshot(const struct options *o, const char *dir, struct err *err)
{
    struct line_args line = {.directory = dir};
    struct join join;
    struct buf json = {0};
    Alv__Control control = ALV__CONTROL__INIT;
    enum status st = backup_snapshot_offline(dir, err);
    if (st != ST_CONFLICT)
        return st;
    control.verb = ALV__CONTROL_VERB__CONTROL_BACKUP;
    st = cli_join(o, &line, &join, err);
    if (st == ST_OK) {
        st = admin_call(&join, &control, ANSWER_S * 1000, cli_stop_fd(), &json, err);
        join_wipe(&join);
    }
    buf_release(&json);
    return st;
}

static enum status take(const struct options *o, const struct backup_args *args, struct err *err)
{
    struct backup_report report;
    struct progress bar = {.what = "backup", .unit = UNIT_BYTES};
    char size[32], written[32];
    int lock;
    if (o->n_rest != 1)
        return cli_usage(o, err, "it takes the directory of the backup");
    const char *dir = args->directory, *dest = o->rest[0];
    enum status st = backup_begin(dir, &lock, err);
    if (st == ST_OK)
        st = snapshot(o, dir, err);
    if (st == ST_OK) {
        st = backup_copy(dir, dest, on_progress, &bar, &report, err);
        enum status dropped = backup_snapshot_drop(dir, st == ST_OK ? err : NULL);
        st = st == ST_OK ? dropped : st;
    }
    progress_end(&bar);
    if (lock >= 0)
        close(lock);
    if (st != ST_OK)
        return st;
    human_bytes(report.bytes, size, sizeof size);
    human_bytes(report.written_bytes, written, sizeof written);
    if (common.json)
        print_json(json_pack("{s:s,s:I,s:I,s:I}", "backup", dest, "files", (json_int_t)report.files, "bytes",
                             (json_int_t)report.bytes, "written_bytes", (json_int_t)report.written_bytes));
    else
        printf("%s: %llu files, %s, of which %s are new; it holds the line's secrets\n", dest,
               (unsigned long long)report.files, size, written);
    return ST_OK;
}

int cmd_backup(int argc, char **argv)
{
    struct backup_args args = {.directory = "."};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "backup",
        .usage = "DEST",
        .summary = "Copies a whole line, served or not, into a directory that restore makes a line from.",
        .examples = "alluvium backup /backup/clinic -C ./clinic",
        .notes =
            "Run it on the coordinator's machine. DEST is new, or a backup of the same line, which is replaced in one\n"
            "step; what has not changed is linked there, not written again. Until the end DEST.part is written; a\n"
            "backup that was killed leaves DEST as it was. The text, all keys and, if it is still there, root.key are\n"
            "in it.",
        .rows = backup_rows,
        .n_rows = sizeof backup_rows / sizeof backup_rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = take(&o, &args, &err);
    return cli_end(&o, st, &err);
}

/* ---- restore */

struct restore_args {
    const char *directory;
    uint64_t seen;
};
static const struct option_row restore_rows[] = {
    OPTION(struct restore_args, directory, OPTION_TEXT, "directory", 'C', "DIR", "the line's new directory; made here",
           .no_env = true),
    OPTION(struct restore_args, seen, OPTION_U64, "version-seen", 0, "N",
           "highest version that any subscriber has; 0: less than 1,000 were published since the backup",
           .no_env = true, .why = "a thousand versions are days at the least"),
};

static enum status restore(const struct options *o, const struct restore_args *args, struct err *err)
{
    struct progress bar = {.what = "restore", .unit = UNIT_BYTES};
    struct restore_report report;
    char size[32];
    if (o->n_rest != 1 || !args->directory)
        return cli_usage(o, err,
                         args->directory ? "it takes the directory of the backup" : "-C says where the line goes");
    struct restore_options options = {.source = o->rest[0],
                                      .dir = args->directory,
                                      .version_seen = args->seen,
                                      .progress = on_progress,
                                      .user = &bar};
    enum status st = backup_restore(&options, &report, err);
    progress_end(&bar);
    if (st != ST_OK)
        return st;
    human_bytes(report.bytes, size, sizeof size);
    if (common.json)
        print_json(json_pack("{s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "line", report.line.s, "directory",
                             args->directory, "files", (json_int_t)report.files, "bytes", (json_int_t)report.bytes,
                             "keys", (json_int_t)report.keys, "versions", (json_int_t)report.versions, "newest",
                             (json_int_t)report.newest, "next", (json_int_t)report.next, "backup_created_s",
                             (json_int_t)report.created_s));
    else
        printf("line \"%s\" of the backup: %llu files, %s, %llu database entries and %llu versions verified\n"
               "newest version %llu; the next one will be %llu, so that no number is given out twice\n"
               "next: be sure that the old coordinator is gone for good, then: alluvium coordinator -C %s\n",
               report.line.s, (unsigned long long)report.files, size, (unsigned long long)report.keys,
               (unsigned long long)report.versions, (unsigned long long)report.newest, (unsigned long long)report.next,
               args->directory);
    return ST_OK;
}

int cmd_restore(int argc, char **argv)
{
    struct restore_args args = {0};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "restore",
        .usage = "BACKUP -C DIR",
        .summary = "Makes a line from a backup, after checking every byte, signature and blob of it.",
        .examples = "alluvium restore /backup/clinic -C ./clinic\n"
                    "alluvium restore /backup/clinic -C ./clinic --version-seen 1204",
        .notes = "DIR must not exist, or be empty. What was pushed, published and decided after the backup is gone; "
                 "numbers of\n"
                 "that time are never used again. Workers and subscribers go on by themselves; push again what may be\n"
                 "missing: what is there is recognised. See docs/how-to/recover.md.",
        .rows = restore_rows,
        .n_rows = sizeof restore_rows / sizeof restore_rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = restore(&o, &args, &err);
    return cli_end(&o, st, &err);
}
