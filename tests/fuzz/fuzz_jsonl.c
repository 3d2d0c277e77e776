/* The quick reader of JSON lines: any bytes; where it answers, the full parser gives the same. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "client/jsonl.h"
#include "fuzz.h"

static void compare(const struct jsonl_field *f, const json_t *value)
{
    char digits[32];
    snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(value));
    if (f->kind == JSONL_STRING) {
        CHECK(json_is_string(value) && json_string_length(value) == f->text->len);
        CHECK(!f->text->len || !memcmp(json_string_value(value), f->text->data, f->text->len));
    } else if (f->kind == JSONL_INTEGER) {
        CHECK(json_is_integer(value) && !strcmp(digits, buf_cstr(f->text)));
    } else {
        CHECK(!json_is_string(value) && !json_is_integer(value));
        CHECK_EQ(f->kind == JSONL_ABSENT, value == NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct buf text, id;
    struct jsonl_field fields[] = {{"text", &text, JSONL_ABSENT}, {"id", &id, JSONL_ABSENT}};
    uint8_t *exact = malloc(len ? len : 1); /* so that a sanitizer sees a read behind the end */
    CHECK(exact);
    if (len)
        memcpy(exact, data, len);
    if (jsonl_read((struct bytes){exact, len}, fields, 2)) {
        json_t *root = json_loadb((const char *)exact, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
        CHECK(json_is_object(root));
        compare(&fields[0], json_object_get(root, "text"));
        compare(&fields[1], json_object_get(root, "id"));
        json_decref(root);
    }
    free(exact);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    static const char *const lines[] = {
        "{\"text\":\"plain words that are longer than eight bytes\",\"id\":12}",
        "{\"id\": \"a/b\", \"text\": \"line\\none \\\"two\\\"\\t\\\\\", \"group\": null, \"n\": -7, \"ok\": true}",
        " {\"text\":\"\xc3\xa4\xe2\x82\xac\",\"id\":0,\"x\":false} ",
        "{\"text\":\"\\u00e4\",\"list\":[1,2.5],\"id\":\"z\"}",
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        use((const uint8_t *)lines[i], strlen(lines[i]));
}
