/* Stored values: what is written is read back, no truncation or flipped byte makes the decoder read outside; text is cut
 * and chats are checked. */
#include <stdlib.h>
#include <string.h>

#include "coordinator/core/map.h"
#include "coordinator/core/state.h"
#include "coordinator/core/text.h"
#include "harness.h"

static void test_lease_round_trip_and_hostile_bytes(void)
{
    struct range ranges[3] = {{{1}, 5, 6}, {{2}, 0, 1}, {{2}, 9, 65536}};
    struct state_lease v = {.id = 7,
                            .round = 3,
                            .seed = 9,
                            .generation = 2,
                            .phase = LEASE_GRANTED,
                            .n_ranges = 3,
                            .ranges = ranges,
                            .weight = 0.5};
    struct buf b = {0};
    name_set(&v.key, "pool", 4);
    state_lease_put(&b, &v);
    struct state_lease out;
    EXPECT(state_lease_get(buf_bytes(&b), &out));
    EXPECT(out.id == 7 && out.generation == 2 && out.n_ranges == 3 && out.ranges[2].count == 65536 &&
           out.weight == 0.5);
    EXPECT_STR(out.key.s, "pool");
    state_lease_release(&out);
    for (size_t cut = 0; cut < b.len; cut++)
        EXPECT(!state_lease_get((struct bytes){b.data, cut}, &out));
    for (size_t i = 0; i < b.len; i++) { /* must not crash; may decode to something else */
        b.data[i] ^= 0xff;
        if (state_lease_get(buf_bytes(&b), &out))
            state_lease_release(&out);
        b.data[i] ^= 0xff;
    }
    buf_put_u8(&b, 0); /* trailing bytes are not one value */
    EXPECT(!state_lease_get(buf_bytes(&b), &out));
    buf_release(&b);
}

static void test_keys_sort_as_numbers(void)
{
    struct state_key a = key_stream('s', (struct domain_id){1}, false, 255),
                     b = key_stream('s', (struct domain_id){1}, false, 256);
    struct state_key p = key_stream('s', (struct domain_id){1}, true, 0);
    EXPECT(memcmp(a.b, b.b, a.len) < 0 && memcmp(b.b, p.b, b.len) < 0);
    struct domain_id d;
    uint64_t first;
    struct state_key k = key_domain('t', (struct domain_id){513}, 1ull << 40);
    EXPECT(key_read_domain((struct bytes){k.b, k.len}, &d, &first) && d.v == 513 && first == 1ull << 40);
    EXPECT(!key_read_domain((struct bytes){k.b, k.len - 1}, &d, &first));
}

static void test_map(void)
{
    struct map m = {0};
    struct rng rng;
    bool *there = calloc(1000, 1);
    rng_seed(&rng, 3);
    for (int i = 0; i < 200000; i++) { /* against a plain table */
        uint64_t k = rng_below(&rng, 1000), v;
        struct hash16 key = map_key(k * 16, k);
        EXPECT(map_get(&m, &key, &v) == there[k]);
        if (there[k] && v != k)
            EXPECT(false);
        if (rng_below(&rng, 2))
            map_put(&m, &key, k), there[k] = true;
        else
            map_delete(&m, &key), there[k] = false;
    }
    map_release(&m);
    free(there);
}

static size_t cut(const char *s, size_t bytes)
{
    return text_cut((struct bytes){(const uint8_t *)s, strlen(s)}, bytes);
}

static void test_text_is_cut_at_lines_then_characters(void)
{
    EXPECT_EQ(cut("abc", 10), 3);
    EXPECT_EQ(cut("ab\ncd\nefgh\n", 8), 6);
    EXPECT_EQ(cut("ab\ncd\n", 6), 6);
    EXPECT_EQ(cut("abcdefgh\n", 4), 4);
    EXPECT_EQ(cut("\xc3\xa4\xc3\xa4\xc3\xa4", 5), 4);
    EXPECT_EQ(cut("\xf0\x9f\x98\x80\xf0\x9f\x98\x80", 7), 4);
}

static bool chat(const char *s)
{
    return chat_valid((struct bytes){(const uint8_t *)s, strlen(s)});
}

static void test_chats(void)
{
    EXPECT(
        chat("[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\",\"content\":\"a \\\"b\\\" \\u00e9\"}]"));
    EXPECT(chat(" [ { \"content\" : \"x\" , \"role\" : \"assistant\" } ] \n"));
    EXPECT(chat("[{\"role\":\"assistant\",\"content\":\"\\ud83d\\ude00\"}]"));
    const char *bad[] = {"",
                         "[]",
                         "{}",
                         "[{\"role\":\"user\",\"content\":\"hi\"}]", /* nothing to learn */
                         "[{\"role\":\"assistant\",\"content\":\"\"}]",
                         "[{\"role\":\"boss\",\"content\":\"x\"}]",
                         "[{\"role\":\"assistant\",\"content\":\"x\",\"name\":\"y\"}]",
                         "[{\"role\":\"assistant\"}]",
                         "[{\"role\":\"assistant\",\"role\":\"assistant\"}]",
                         "[{\"role\":\"assistant\",\"content\":\"x\"}",
                         "[{\"role\":\"assistant\",\"content\":\"x\"}] x",
                         "[{\"role\":\"assistant\",\"content\":\"\\x\"}]",
                         "[{\"role\":\"assistant\",\"content\":\"\\ud83d\"}]",
                         "[{\"role\":\"assistant\",\"content\":\"\n\"}]",
                         "[{\"role\":\"assistant\",\"content\":1}]",
                         "[{\"role\":\"assistant\",\"content\":\"x\"},]"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (!EXPECT(!chat(bad[i])))
            EXPECT_STR(bad[i], "");
}

int main(void)
{
    hash_start();
    RUN(test_lease_round_trip_and_hostile_bytes);
    RUN(test_keys_sort_as_numbers);
    RUN(test_map);
    RUN(test_text_is_cut_at_lines_then_characters);
    RUN(test_chats);
    return harness_end();
}
