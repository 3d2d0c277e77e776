/* The coordinator's answers for people: what must be readable, that no line is over the terminal's width, and that an answer
 * which is not what it should be is shown as it is, without harm. answers.json was printed by a real line. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "cli/table.h"
#include "cli/views.h"
#include "harness.h"

static const char *const names[] = {"status", "versions", "show", "explain", "trace", "lineage"};
enum { VIEWS = sizeof names / sizeof names[0], NOW_S = 1800000000 };
static json_t *answers;

static char *print(unsigned view, const json_t *answer, unsigned columns)
{
    char width[16], *text = NULL;
    size_t len = 0;
    snprintf(width, sizeof width, "%u", columns);
    setenv("COLUMNS", width, 1);
    FILE *out = open_memstream(&text, &len);
    switch (view) {
    case 0:
        view_status(out, answer);
        break;
    case 1:
        view_versions(out, answer, NOW_S);
        break;
    case 2:
        view_version(out, answer, NOW_S);
        break;
    case 3:
        view_verdict(out, answer, NOW_S);
        break;
    default:
        view_trace(out, answer);
    }
    fclose(out);
    return text;
}

/* Widest line; 0 and a message when a control character got through. */
static unsigned widest(const char *text)
{
    unsigned most = 0;
    char *copy = strdup(text), *line = copy, *next;
    for (; line; line = next) {
        if ((next = strchr(line, '\n')))
            *next++ = 0;
        for (const char *c = line; *c; c++)
            EXPECT((unsigned char)*c >= 0x20 && *c != 0x7f);
        if (text_width(line) > most)
            most = text_width(line);
    }
    free(copy);
    return most;
}

static void test_lines_fit(void)
{
    for (unsigned view = 0; view < VIEWS; view++) {
        const json_t *answer = json_object_get(answers, names[view]);
        REQUIRE(json_is_object(answer));
        for (unsigned columns = 40; columns <= 130; columns += 3) {
            char *text = print(view, answer, columns);
            if (!EXPECT(widest(text) <= columns) || !EXPECT(strstr(text, "{") == NULL))
                printf("%s at %u columns:\n%s", names[view], columns, text);
            free(text);
        }
    }
}

static void test_what_must_be_readable(void)
{
    static const char *const parts[VIEWS][8] = {
        {"line       test, newest version 1", "latest v1", "code", "granted", "waiting for work|working", "v1",
         "GiB free"},
        {"version  aliases", "7  latest", "repeats v1", "not gated"},
        {"2 of test", "2 leases, 11 segments", "sha256|SHA-256", "5.5002", "+0.0786", "general delta +0.0040",
         "4979560d9d20c995", "state  77665544332211000"},
        {"published as version 1", "2 of 2 leases", "-0.0516", "better than its reference"},
        {"code/model/arena.c#300: revision 1, live", "version 1", "v1-v7"},
        {"ancestors", "trained for this version", "scripts"},
    };
    for (unsigned view = 0; view < VIEWS; view++) {
        char *text = print(view, json_object_get(answers, names[view]), 200);
        for (unsigned i = 0; i < 8 && parts[view][i]; i++) {
            char *copy = strdup(parts[view][i]), *other = strchr(copy, '|');
            if (other)
                *other++ = 0;
            if (!EXPECT(strstr(text, copy) || (other && strstr(text, other))))
                printf("%s lacks \"%s\":\n%s", names[view], parts[view][i], text);
            free(copy);
        }
        free(text);
    }
}

/* Every value of an answer in turn is another kind of thing, or hostile text. */
static void spoil(unsigned view, json_t *root, json_t *at)
{
    size_t n = json_is_array(at) ? json_array_size(at) : 0, i = 0;
    const char *key = NULL;
    void *it = json_object_iter(at);
    while (json_is_array(at) ? i < n : it != NULL) {
        json_t *value = json_is_array(at) ? json_array_get(at, i) : json_object_iter_value(it);
        json_t *odd[] = {
            json_null(),
            json_integer(INT64_MIN),
            json_integer(INT64_MAX),
            json_real(1e300),
            json_string("\x1b[31m\n|%s%n a long text that no column was made for, and then some more of it"),
            json_pack("[{s:[]}]", "x"),
            json_pack("{s:{s:n}}", "a", "b")};
        json_incref(value);
        key = json_is_array(at) ? NULL : json_object_iter_key(it);
        for (unsigned k = 0; k < sizeof odd / sizeof odd[0]; k++) {
            if (key)
                json_object_set_new(at, key, odd[k]);
            else
                json_array_set_new(at, i, odd[k]);
            char *text = print(view, root, 80);
            EXPECT(widest(text) <= 80);
            free(text);
        }
        if (key)
            json_object_set(at, key, value);
        else
            json_array_set(at, i, value);
        spoil(view, root, value);
        json_decref(value);
        if (key) /* the iterator was of the object before it was changed */
            it = json_object_iter_next(at, json_object_iter_at(at, key));
        i++;
    }
}

static void test_odd_answers_do_no_harm(void)
{
    for (unsigned view = 0; view < VIEWS; view++) {
        json_t *copy = json_deep_copy(json_object_get(answers, names[view]));
        spoil(view, copy, copy);
        EXPECT(json_equal(copy, json_object_get(answers, names[view])));
        json_decref(copy);
    }
}

static void test_facts_are_broken_at_blanks(void)
{
    char *text = NULL;
    size_t len;
    setenv("COLUMNS", "40", 1);
    FILE *out = open_memstream(&text, &len);
    fact(out, 5, "key", "%s",
         "several words that need more than one line, and averyveryverylongwordthatfitsonnolineatallhere");
    fclose(out);
    EXPECT_STR(text, "key    several words that need more than\n"
                     "       one line, and\n"
                     "       averyveryverylongwordthatfitsonno\n"
                     "       lineatallhere\n");
    free(text);
}

int main(void)
{
    json_error_t error;
    answers = json_load_file(SOURCE_DIR "/tests/cli/answers.json", 0, &error);
    EXPECT(answers != NULL);
    RUN(test_facts_are_broken_at_blanks);
    RUN(test_what_must_be_readable);
    RUN(test_lines_fit);
    RUN(test_odd_answers_do_no_harm);
    json_decref(answers);
    return harness_end();
}
