/* Sources: what becomes a record, what is refused and named, and that the order is always the same. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/source.h"
#include "harness.h"

struct seen {
    char refused[1000];
    char records[4000]; /* "kind:id:group:text\n" */
    unsigned n, calls;
};

static void on_refused(void *user, const char *where, const char *why)
{
    struct seen *seen = user;
    size_t n = strlen(seen->refused);
    const char *name = strrchr(where, '/');
    snprintf(seen->refused + n, sizeof seen->refused - n, "%s %.24s\n", name ? name + 1 : where, why);
}

static void read_all(const char *path, struct source_options options, uint32_t records_max, struct seen *seen)
{
    struct source *source = NULL;
    struct err err;
    bool end = false;
    *seen = (struct seen){0};
    options.refused = on_refused;
    options.user = seen;
    EXPECT_ST(source_open(path, &options, &source, &err), ST_OK, &err);
    while (source && !end) {
        struct push_records *records = push_records_new();
        EXPECT_ST(source_read(source, records_max, LIMIT_BATCH_BYTES, records, &end, &err), ST_OK, &err);
        EXPECT(records->n <= records_max);
        for (uint32_t i = 0; i < records->n; i++) {
            const Alv__Record *r = records->items[i];
            const char *name = strrchr(r->id, '/');
            size_t n = strlen(seen->records);
            snprintf(seen->records + n, sizeof seen->records - n, "%d:%s:%s:%.60s\n", (int)r->kind,
                     name ? name + 1 : r->id, r->group, (const char *)r->text.data);
        }
        seen->n += records->n;
        seen->calls++;
        push_records_free(&records);
    }
    source_close(&source);
}

static const char *put(const char *dir, const char *name, const void *data, size_t len)
{
    const char *path = harness_path(dir, name);
    struct err err;
    EXPECT_ST(file_write_durable(path, data, len, 0644, &err), ST_OK, &err);
    return path;
}

static void test_lines(void)
{
    static const char text[] = "\xef\xbb\xbf{\"text\":\"one\",\"id\":\"a\",\"group\":\"g\"}\r\n"
                               "\n"
                               "{\"text\":\"two\",\"id\":7}\n"
                               "{\"text\":\n"
                               "[1]\n"
                               "{\"id\":\"x\"}\n"
                               "{\"text\":\"\"}\n"
                               "{\"text\":\"bad \xff\"}\n"
                               "{\"text\":\"t\",\"id\":{}}\n"
                               "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\",\"extra\":1}]}\n"
                               "{\"messages\":[{\"role\":\"user\"}]}\n"
                               "{\"text\":\"last, no newline\"}";
    struct seen seen;
    const char *path = put(harness_tmpdir(), "a.jsonl", text, sizeof text - 1);
    for (uint32_t max = 1; max < 6; max += 2) {
        read_all(path, (struct source_options){0}, max, &seen);
        EXPECT_STR(seen.records,
                   "1:a:g:one\n1:7::two\n2:::[{\"role\":\"user\",\"content\":\"hi\"}]\n1:::last, no newline\n");
        EXPECT(strstr(seen.refused, "a.jsonl:4 not JSON") && strstr(seen.refused, "a.jsonl:5 not a JSON object"));
        EXPECT(strstr(seen.refused, "a.jsonl:6 no string \"text\"") && strstr(seen.refused, "a.jsonl:7 empty"));
        EXPECT(strstr(seen.refused, "a.jsonl:8 ") && strstr(seen.refused, "a.jsonl:9 id and group"));
        EXPECT(strstr(seen.refused, "a.jsonl:11 a message lacks"));
    }
    read_all(path, (struct source_options){.id_required = true}, 10, &seen);
    EXPECT_STR(seen.records, "1:a:g:one\n1:7::two\n");
}

static void test_long_lines(void)
{
    size_t big = (8u << 20) + 100000;
    char *text = malloc(big + 200);
    size_t n = (size_t)sprintf(text, "{\"text\":\"a\"}\n");
    memset(text + n, 'x', big);
    n += big;
    n += (size_t)sprintf(text + n, "\n{\"text\":\"b\"}\n");
    struct seen seen;
    read_all(put(harness_tmpdir(), "long.jsonl", text, n), (struct source_options){0}, 100, &seen);
    EXPECT_STR(seen.records, "1:::a\n1:::b\n");
    EXPECT_STR(seen.refused, "long.jsonl:2 the line is longer than \n");
    n = (size_t)sprintf(text, "{\"text\":\"");
    memset(text + n, 'y', LIMIT_RECORD_BYTES + 1);
    n += LIMIT_RECORD_BYTES + 1;
    n += (size_t)sprintf(text + n, "\"}\n{\"text\":\"b\"}");
    read_all(put(harness_tmpdir(), "record.jsonl", text, n), (struct source_options){0}, 100, &seen);
    EXPECT_STR(seen.records, "1:::b\n");
    EXPECT_STR(seen.refused, "record.jsonl:1 too long\n");
    free(text);
}

static void test_directories(void)
{
    const char *dir = harness_path(harness_tmpdir(), "tree");
    EXPECT(mkdir(dir, 0755) == 0 && mkdir(harness_path(dir, "b"), 0755) == 0 &&
           mkdir(harness_path(dir, ".git"), 0755) == 0);
    put(dir, "c.txt", "see", 3);
    put(dir, "a.ml", "let", 3);
    put(dir, "empty", "", 0);
    put(dir, "b/x.jsonl", "{\"text\":\"line\",\"id\":\"q\"}\n", 25);
    put(dir, ".git/config", "secret", 6);
    put(dir, "b/bin", "\xff\xfe\x00", 3);
    EXPECT(symlink("/etc/passwd", harness_path(dir, "link")) == 0);
    struct seen seen;
    read_all(dir, (struct source_options){0}, 2, &seen);
    EXPECT_STR(seen.records, "1:a.ml::let\n1:q::line\n1:c.txt::see\n");
    EXPECT_STR(seen.refused, "bin not UTF-8\n");
    struct source *source = NULL;
    struct err err;
    EXPECT_ST(source_open("/nonexistent/x", &(struct source_options){0}, &source, &err), ST_NOT_FOUND, &err);
    EXPECT(strstr(err.text, "/nonexistent/x") != NULL);
}

static void test_a_pipe_hands_out_what_it_has(void)
{
    int fds[2], kept = dup(STDIN_FILENO);
    struct source *source = NULL;
    struct err err;
    bool end;
    EXPECT(pipe(fds) == 0 && dup2(fds[0], STDIN_FILENO) == STDIN_FILENO);
    EXPECT_ST(source_open("-", &(struct source_options){0}, &source, &err), ST_OK, &err);
    struct push_records *records = push_records_new();
    EXPECT_ST(source_read(source, 100, 1000, records, &end, &err), ST_EMPTY, &err);
    EXPECT(write(fds[1], "{\"text\":\"a\"}\n{\"te", 17) == 17);
    EXPECT_ST(source_read(source, 100, 1000, records, &end, &err), ST_OK, &err);
    EXPECT(records->n == 1 && !end);
    EXPECT(write(fds[1], "xt\":\"b\"}", 8) == 8);
    close(fds[1]);
    EXPECT_ST(source_read(source, 100, 1000, records, &end, &err), ST_OK, &err);
    EXPECT(records->n == 2 && end);
    push_records_free(&records);
    source_close(&source);
    dup2(kept, STDIN_FILENO);
    close(kept);
    close(fds[0]);
}

int main(void)
{
    RUN(test_lines);
    RUN(test_long_lines);
    RUN(test_directories);
    RUN(test_a_pipe_hands_out_what_it_has);
    return harness_end();
}
