/* Every cell of role x verb x plane, against a second table written by hand. */
#include <string.h>

#include "harness.h"
#include "proto/verbs.h"

enum { P = ROLE_PRODUCER, W = ROLE_WORKER, S = ROLE_SUBSCRIBER, O = ROLE_OPERATOR };

static const struct {
    uint16_t verb;
    int plane;
    unsigned roles;
} allowed[] = {
    {VERB_HELLO, PLANE_INGEST, P | O},      {VERB_HELLO, PLANE_WORK, W},
    {VERB_HELLO, PLANE_MODELS, S | O},      {VERB_HELLO, PLANE_CONTROL, O},
    {VERB_HELLO, PLANE_BULK, W | S | O},    {VERB_PUSH_OPEN, PLANE_INGEST, P | O},
    {VERB_PUSH_BATCH, PLANE_INGEST, P | O}, {VERB_TASK_REQUEST, PLANE_WORK, W},
    {VERB_PROGRESS, PLANE_WORK, W},         {VERB_TASK_RETURN, PLANE_WORK, W},
    {VERB_DELTA_COMMIT, PLANE_WORK, W},     {VERB_EVAL_RESULT, PLANE_WORK, W},
    {VERB_EXCLUSIONS_GET, PLANE_WORK, W},   {VERB_BLOB_GET, PLANE_BULK, W | S | O},
    {VERB_BLOB_PUT, PLANE_BULK, W},         {VERB_SEGMENTS_GET, PLANE_BULK, W},
    {VERB_WATCH, PLANE_MODELS, S | O},      {VERB_MANIFEST_GET, PLANE_MODELS, S | O},
    {VERB_SERVING, PLANE_MODELS, S},        {VERB_CONTROL, PLANE_CONTROL, O},
};

static bool expected(uint16_t verb, enum plane plane, enum role role)
{
    for (size_t i = 0; i < sizeof allowed / sizeof allowed[0]; i++)
        if (allowed[i].verb == verb && allowed[i].plane == (int)plane)
            return allowed[i].roles & role;
    return false;
}

static void test_every_cell(void)
{
    int yes = 0;
    for (unsigned verb = 0; verb < 300; verb++)
        for (int plane = 0; plane < PLANES; plane++)
            for (int role = 0; role < 16; role = role ? role * 2 : 1) {
                bool want = expected((uint16_t)verb, plane, role);
                EXPECT_EQ(verb_allowed((uint16_t)verb, plane, role), want);
                yes += want;
            }
    EXPECT_EQ(yes, 2 + 1 + 2 + 1 + 3 + 4 + 6 + 5 + 4 + 1 + 1);
}

static void test_the_table_is_sound(void)
{
    unsigned n;
    const struct verb_info *table = verb_table(&n);
    for (unsigned i = 0; i < n; i++) {
        EXPECT(verb_find(table[i].verb) == &table[i]); /* no number twice */
        EXPECT(table[i].message && table[i].planes && strlen(table[i].name));
        if (table[i].roles) { /* a request's reply is the next number, spoken on the same planes */
            const struct verb_info *reply = verb_find((uint16_t)(table[i].verb + 1));
            REQUIRE(reply);
            EXPECT(reply->roles == 0 && reply->planes == table[i].planes);
        }
    }
}

static void test_role_names(void)
{
    enum role roles[] = {ROLE_PRODUCER, ROLE_WORKER, ROLE_SUBSCRIBER, ROLE_OPERATOR}, got;
    for (int i = 0; i < 4; i++)
        EXPECT(role_parse(role_name(roles[i]), &got) && got == roles[i]);
    EXPECT(!role_parse("none", &got) && !role_parse("", &got) && !role_parse("Worker", &got));
}

int main(void)
{
    RUN(test_every_cell);
    RUN(test_the_table_is_sound);
    RUN(test_role_names);
    return harness_end();
}
