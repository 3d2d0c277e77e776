/* The quick reader of lines against the full parser: whatever both take they read alike. */
#include "client/jsonl.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"

struct read {
    bool mine;
    struct jsonl_field fields[2];
    struct buf text, id;
};

static void read_line(const char *line, size_t len, struct read *r)
{
    r->fields[0] = (struct jsonl_field){"text", &r->text, JSONL_ABSENT};
    r->fields[1] = (struct jsonl_field){"id", &r->id, JSONL_ABSENT};
    r->mine = jsonl_read((struct bytes){(const uint8_t *)line, len}, r->fields, 2);
}

static void read_release(struct read *r)
{
    buf_release(&r->text);
    buf_release(&r->id);
}

static bool mine(const char *line)
{
    struct read r = {0};
    read_line(line, strlen(line), &r);
    read_release(&r);
    return r.mine;
}

static void test_values(void)
{
    struct read r = {0};
    const char *line =
        " { \"text\" : \"a\\n\\\"b\\\\\\/\\t\xc3\xa4 and a longer run of plain bytes\" , \"id\": -12 ,\"x\":true}\t";
    read_line(line, strlen(line), &r);
    EXPECT(r.mine);
    EXPECT_STR(buf_cstr(&r.text), "a\n\"b\\/\t\xc3\xa4 and a longer run of plain bytes");
    EXPECT_STR(buf_cstr(&r.id), "-12");
    EXPECT(r.fields[0].kind == JSONL_STRING && r.fields[1].kind == JSONL_INTEGER);
    read_line("{\"id\":null,\"text\":\"\"}", 21, &r);
    EXPECT(r.mine && r.fields[1].kind == JSONL_NULL && r.fields[0].kind == JSONL_STRING && r.text.len == 0);
    read_release(&r);
}

static void test_not_mine(void)
{
    static const char *const lines[] = {
        "",
        "{}",
        "[]",
        "{\"text\":\"a\"",
        "{\"text\":\"a\"}}",
        "{\"text\":\"a\"} x",
        "{\"text\":\"\\u00e4\"}",
        "{\"text\":\"a\\x\"}",
        "{\"te\\u0078t\":\"a\"}",
        "{\"text\":\"a\nb\"}",
        "{\"text\":\"\xff\"}",
        "{\"text\":[\"a\"]}",
        "{\"text\":\"a\",\"text\":\"b\"}",
        "{\"text\":\"a\",}",
        "{\"text\":\"a\" \"id\":1}",
        "{\"id\":1.5}",
        "{\"id\":1e3}",
        "{\"id\":01}",
        "{\"id\":-0}",
        "{\"id\":-}",
        "{\"id\":1234567890123456789}",
        "{\"id\":nul}",
        "{\"id\":truee}",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (mine(lines[i]))
            EXPECT_STR(lines[i], "refused");
    EXPECT(mine("{\"text\":\"a\",\"id\":123456789012345678}"));
}

/* What the full parser makes of the line's member: its text, or NULL when it is no string and no whole number. */
static char *by_jansson(const json_t *value)
{
    char digits[32];
    if (json_is_string(value)) {
        char *s = malloc(json_string_length(value) + 1);
        memcpy(s, json_string_value(value), json_string_length(value) + 1);
        return s;
    }
    snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(value));
    return json_is_integer(value) ? strdup(digits) : NULL;
}

static void compare(const struct jsonl_field *field, const json_t *value, size_t *wrong)
{
    char *other = by_jansson(value);
    if (field->kind == JSONL_STRING || field->kind == JSONL_INTEGER)
        *wrong += !other || strcmp(other, buf_cstr(field->text)) != 0;
    else
        *wrong += other != NULL;
    free(other);
}

/* Lines put together of pieces that mean something, so that many are nearly right. */
static void test_against_the_full_parser(void)
{
    static const char *const pieces[] = {"{",
                                         "}",
                                         "\"text\"",
                                         "\"id\"",
                                         ":",
                                         ",",
                                         "\"a\"",
                                         "\"\\n b\"",
                                         "12",
                                         "-3",
                                         "0",
                                         "1.5",
                                         "null",
                                         "true",
                                         " ",
                                         "\"",
                                         "\\",
                                         "\\u0041",
                                         "[",
                                         "]",
                                         "\xc3\xa4",
                                         "\xff",
                                         "\x01",
                                         "plain text",
                                         "{\"text\":\"",
                                         "\",\"id\":7}",
                                         "{\"id\":\"x\",\"text\":\"",
                                         "\"}"};
    enum { LINES = 300000, PIECES = sizeof pieces / sizeof pieces[0] };
    struct rng rng;
    size_t wrong = 0, both = 0;
    rng_seed(&rng, 11);
    for (int i = 0; i < LINES; i++) {
        struct read r = {0};
        struct buf line = {0};
        if (i % 2) /* a good beginning */
            buf_put(&line, pieces[24], strlen(pieces[24]));
        for (uint64_t n = 1 + rng_below(&rng, 8); n; n--) {
            const char *piece = pieces[rng_below(&rng, PIECES)];
            buf_put(&line, piece, strlen(piece));
        }
        read_line((const char *)line.data, line.len, &r);
        json_t *root = json_loadb((const char *)line.data, line.len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        if (r.mine && !json_is_object(root))
            wrong++;
        else if (r.mine) {
            both++;
            compare(&r.fields[0], json_object_get(root, "text"), &wrong);
            compare(&r.fields[1], json_object_get(root, "id"), &wrong);
        }
        json_decref(root);
        read_release(&r);
        buf_release(&line);
    }
    EXPECT_EQ(wrong, 0);
    EXPECT(both > LINES / 100);
}

int main(void)
{
    hash_start();
    RUN(test_values);
    RUN(test_not_mine);
    RUN(test_against_the_full_parser);
    return harness_end();
}
