/* The newest values: the same answers as a plain list of all that was said, or "ask the database"; bounded. */
#include "store/recent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"

static struct bytes of(const char *s)
{
    return (struct bytes){(const uint8_t *)s, strlen(s)};
}

static enum recent_answer ask(struct recent *r, const char *key, struct buf *out)
{
    buf_clear(out);
    return recent_get(r, of(key), out);
}

static void test_words(void)
{
    struct recent *r = recent_new(0);
    struct buf out = {0};
    EXPECT_EQ(ask(r, "a", &out), RECENT_UNKNOWN);
    recent_put(r, of("a"), of("one"), false);
    recent_put(r, of("b"), of(""), false);
    EXPECT_EQ(ask(r, "a", &out), RECENT_VALUE);
    EXPECT_STR(buf_cstr(&out), "one");
    recent_put(r, of("a"), of("two"), false);
    EXPECT_EQ(ask(r, "a", &out), RECENT_VALUE);
    EXPECT_STR(buf_cstr(&out), "two");
    EXPECT_EQ(ask(r, "b", &out), RECENT_VALUE);
    EXPECT_EQ(out.len, 0);
    recent_put(r, of("a"), of("ignored"), true);
    EXPECT_EQ(ask(r, "a", &out), RECENT_DELETED);
    EXPECT_EQ(out.len, 0);
    recent_clear(r);
    EXPECT_EQ(ask(r, "a", &out), RECENT_UNKNOWN);
    EXPECT_EQ(ask(r, "b", &out), RECENT_UNKNOWN);
    recent_free(r);
    buf_release(&out);
}

/* What does not fit is not kept, and neither is what it replaces: an old value would be a wrong answer. */
static void test_large(void)
{
    struct recent *r = recent_new(1 << 16);
    struct buf out = {0};
    char *large = calloc(1, 1 << 16);
    recent_put(r, of("k"), of("small"), false);
    recent_put(r, of("k"), (struct bytes){(uint8_t *)large, 1 << 16}, false);
    EXPECT_EQ(ask(r, "k", &out), RECENT_UNKNOWN);
    free(large);
    recent_free(r);
    buf_release(&out);
}

/* Against an array that remembers everything: never another answer, and the newest entries are always there. */
static void test_against_a_list(void)
{
    enum { KEYS = 3000, VALUE_MAX = 90, STEPS = 200000, ROOM = 1 << 16, SURE = ROOM / 4 };
    static struct {
        int len; /* -1: gone, -2: never said */
        uint8_t fill;
        size_t at; /* bytes said before it */
    } list[KEYS];
    struct recent *r = recent_new(ROOM);
    struct buf out = {0};
    struct rng rng;
    size_t said = 0, known = 0, wrong = 0, missing = 0;
    rng_seed(&rng, 7);
    for (int i = 0; i < KEYS; i++)
        list[i].len = -2;
    for (int step = 0; step < STEPS; step++) {
        char key[16];
        uint8_t value[VALUE_MAX];
        uint64_t k = rng_below(&rng, KEYS);
        snprintf(key, sizeof key, "key%llu", (unsigned long long)k);
        if (step % 2) {
            bool gone = rng_below(&rng, 10) == 0;
            list[k].len = gone ? -1 : (int)rng_below(&rng, VALUE_MAX);
            list[k].fill = (uint8_t)step;
            list[k].at = said;
            memset(value, list[k].fill, sizeof value);
            recent_put(r, of(key), (struct bytes){value, gone ? 0 : (size_t)list[k].len}, gone);
            said += strlen(key) + (gone ? 0 : (size_t)list[k].len) + 8;
            continue;
        }
        enum recent_answer answer = ask(r, key, &out);
        known += answer != RECENT_UNKNOWN;
        if (answer == RECENT_UNKNOWN)
            missing += list[k].len != -2 && said - list[k].at < SURE;
        else if (answer == RECENT_DELETED)
            wrong += list[k].len != -1;
        else
            wrong += (int)out.len != list[k].len ||
                     (out.len && (out.data[0] != list[k].fill || out.data[out.len - 1] != list[k].fill));
    }
    EXPECT_EQ(wrong, 0);
    EXPECT_EQ(missing, 0);
    EXPECT(known > STEPS / 20 && known < STEPS / 2); /* some had fallen out */
    recent_free(r);
    buf_release(&out);
}

int main(void)
{
    hash_start();
    RUN(test_words);
    RUN(test_large);
    RUN(test_against_a_list);
    return harness_end();
}
