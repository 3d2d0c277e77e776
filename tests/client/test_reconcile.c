/* What a model server is told next, for every state of its list. */
#include <stdio.h>
#include <string.h>

#include "client/reconcile.h"
#include "harness.h"

static const struct served_model base = {"SmolLM2", "/models/SmolLM2", NULL};

static struct reconcile_action next(const char *dir, uint64_t version, bool drained, size_t n,
                                    const char *const (*have)[2])
{
    struct served_model models[8] = {base};
    struct reconcile_wanted wanted = {"notes", dir, version, drained};
    struct reconcile_action action;
    for (size_t i = 0; i < n; i++)
        models[i + 1] = (struct served_model){have[i][0], have[i][1], "SmolLM2"};
    reconcile_next(&wanted, models, n + 1, &action);
    return action;
}

#define NEXT(drained, ...)                                                                       \
    next("/a", 7, drained, sizeof((const char *const[][2]){__VA_ARGS__}) / (2 * sizeof(char *)), \
         (const char *const[][2]){__VA_ARGS__})

static void test_loads_beside_then_unloads(void)
{
    struct reconcile_action a = next("/a", 7, false, 0, NULL);
    EXPECT(a.kind == RECONCILE_LOAD);
    EXPECT_STR(a.name, "notes-v7");
    EXPECT_STR(a.path, "/a/notes-v7");
    a = NEXT(true, {"notes-v6", "/a/notes-v6"}); /* the new one first */
    EXPECT(a.kind == RECONCILE_LOAD);
    a = NEXT(false, {"notes-v6", "/a/notes-v6"}, {"notes-v7", "/a/notes-v7"});
    EXPECT(a.kind == RECONCILE_DRAIN);
    a = NEXT(true, {"notes-v6", "/a/notes-v6"}, {"notes-v7", "/a/notes-v7"});
    EXPECT(a.kind == RECONCILE_UNLOAD);
    EXPECT_STR(a.name, "notes-v6");
    a = NEXT(true, {"notes-v7", "/a/notes-v7"});
    EXPECT(a.kind == RECONCILE_NOTHING);
    a = NEXT(true, {"notes-v9", "/a/notes-v9"},
             {"notes-v7", "/a/notes-v7"}); /* a number is only ever reached upwards */
    EXPECT(a.kind == RECONCILE_UNLOAD);
}

static void test_touches_only_what_is_ours(void)
{
    static const char *const foreign[][2] = {
        {"notes-v6", "/b/notes-v6"},   {"notes-vx", "/a/notes-vx"},   {"notes-v", "/a/notes-v"}, {"notes", "/a/notes"},
        {"notes2-v6", "/a/notes2-v6"}, {"notes-v6x", "/a/notes-v6x"}, {NULL, "/a/notes-v6"},     {"notes-v6", NULL}};
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++) {
        const char *const have[][2] = {{"notes-v7", "/a/notes-v7"}, {foreign[i][0], foreign[i][1]}};
        EXPECT(next("/a", 7, true, 2, have).kind == RECONCILE_NOTHING);
    }
    struct reconcile_action a = NEXT(true, {"notes-v7", "/b/notes-v7"});
    EXPECT(a.kind == RECONCILE_CONFLICT);
    EXPECT_STR(a.path, "/b/notes-v7");
    a = NEXT(true, {"notes-v7", NULL}); /* a server that does not say from where is believed */
    EXPECT(a.kind == RECONCILE_NOTHING);
}

int main(void)
{
    RUN(test_loads_beside_then_unloads);
    RUN(test_touches_only_what_is_ours);
    return harness_end();
}
