/* The small files that people write and copy, of any bytes: a join file, a key table, line.conf, a JSONL source, a backup's index.
 * The first byte says which. Each is refused with a text, or gives values within their bounds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "base/limits.h"
#include "client/core.h"
#include "client/source.h"
#include "coordinator/backup.h"
#include "coordinator/core/settings.h"
#include "fuzz.h"
#include "net/join.h"
#include "net/keys.h"

enum { JOIN, KEYS, CONF, JSONL, INDEX, KINDS };
static const char *const names[KINDS] = {"join", "keys.json", "line.conf", "source.jsonl", "BACKUP"};
static char dir[] = "/dev/shm/alluvium-fuzz-XXXXXX"; /* memory: a disk would write back each truncated file */

static void clear_away(void)
{
    char path[64];
    for (int i = 0; i < KINDS; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

static const char *put(int kind, const uint8_t *data, size_t len)
{
    static char path[64];
    static bool made;
    if (!made) {
        CHECK(mkdtemp(dir));
        CHECK(atexit(clear_away) == 0);
        made = true;
    }
    snprintf(path, sizeof path, "%s/%s", dir, names[kind]);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len && close(fd) == 0);
    return path;
}

static void refused(void *user, const char *where, const char *why)
{
    (void)user;
    CHECK(where[0] && why[0]);
}

static void read_source(const char *path)
{
    struct source_options options = {.refused = refused};
    struct source *source = NULL;
    bool end = false;
    CHECK_EQ(source_open(path, &options, &source, NULL), ST_OK);
    for (int turns = 0; !end; turns++) {
        struct push_records *records = push_records_new();
        CHECK(turns < 100000 && source_read(source, 3, LIMIT_BATCH_BYTES, records, &end, NULL) == ST_OK);
        for (uint32_t i = 0; i < records->n; i++)
            CHECK(records->items[i]->text.len <= LIMIT_RECORD_BYTES && records->items[i]->id);
        push_records_free(&records);
    }
    source_close(&source);
}

/* One value has one text. */
static enum status read_index(const uint8_t *data, size_t len, struct err *err)
{
    struct backup_index index;
    struct buf again = {0};
    enum status st = backup_index_parse(data, len, &index, err);
    if (st)
        return st;
    backup_index_put(&index, &again);
    CHECK(again.len == len && !memcmp(again.data, data, len));
    for (size_t i = 0; i < index.n; i++)
        CHECK(index.files[i].path[0] != '/' && index.files[i].path[0] != '.' && !strstr(index.files[i].path, "/."));
    backup_index_release(&index);
    buf_release(&again);
    return ST_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (!len || data[0] >= KINDS)
        return 0;
    const char *path = put(data[0], data + 1, len - 1);
    struct err err = {""};
    struct keys *keys = NULL;
    struct settings settings;
    struct join join;
    enum status st = ST_OK;
    switch (data[0]) {
    case JOIN:
        st = join_read(path, &join, &err);
        CHECK(st || (curve_key_valid(join.server.z85) && name_valid(join.line.s, strlen(join.line.s))));
        break;
    case KEYS:
        st = keys_open(dir, &keys, &err);
        keys_free(keys);
        break;
    case CONF:
        settings_default(&settings);
        if (!(st = settings_read(path, &settings, &err)))
            st = settings_check(&settings, &err);
        CHECK(st || (settings.seq_tokens && settings.rank && settings.lr >= 0));
        break;
    case INDEX:
        st = read_index(data + 1, len - 1, &err);
        break;
    default:
        read_source(path);
    }
    CHECK(!st || err.text[0]);
    return 0;
}

static void seed(void (*use)(const uint8_t *data, size_t len), uint8_t kind, const char *text)
{
    struct buf b = {0};
    buf_put_u8(&b, kind);
    buf_put(&b, text, strlen(text));
    use(b.data, b.len);
    buf_release(&b);
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    struct curve_pair pair;
    char text[1024];
    curve_pair_new(&pair);
    snprintf(text, sizeof text,
             "alluvium-join 1\nline = notes\nhost = 127.0.0.1\nport = 7400\nserver = %s\nrole = worker\nname = pool\n"
             "secret = %s\nroot = %064d\n",
             pair.public_key.z85, pair.secret.z85, 7);
    seed(use, JOIN, text);
    snprintf(text, sizeof text,
             "{\"version\": 1, \"keys\": [{\"name\": \"pool\", \"role\": \"producer\", \"public\": \"%s\", "
             "\"created\": 1795438924, \"revoked\": 0, \"domains\": [\"notes\"]}]}",
             pair.public_key.z85);
    seed(use, KEYS, text);
    seed(use, CONF, "# a comment\nrank = 8\nlr = 0.001\nlook_1 = 16\nbacklog_sample = 1\n");
    struct backup_file files[] = {{(char[]){"db/000012.sst"}, 1234, {{1}}}, {(char[]){"line.json"}, 99, {{2}}}};
    struct backup_index index = {.line = {"notes"}, .created_s = 1795438924, .files = files, .n = 2};
    struct buf whole = {0};
    backup_index_put(&index, &whole);
    seed(use, INDEX, buf_cstr(&whole));
    buf_release(&whole);
    seed(use, JSONL,
         "{\"text\":\"one\",\"id\":\"a\",\"group\":\"g\"}\n\n{\"messages\":[{\"role\":\"user\",\"content\":"
         "\"hi\\u00e9\"},"
         "{\"role\":\"assistant\",\"content\":\"hello\"}]}\n{\"text\":\"\\ud83d\\ude00\",\"id\":7}\n");
}
