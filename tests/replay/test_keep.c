/* The payload cache: under its budget, honest about damage, empty where a tombstone fell. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"
#include "replay/keep.h"

static const char *const FAMILY[] = {"payload", "lengths"};
static const struct db_options OPTIONS = {.families = FAMILY, .n_families = 2, .create = true, .reserve_bytes = 1};
enum { BODY = 1000 };

struct world { /* what the rank function looks at */
    uint64_t members_below, pinned_below;
};

static enum keep_rank rank_of(void *user, struct domain_id domain, uint64_t offset)
{
    const struct world *w = user;
    (void)domain;
    return offset < w->pinned_below ? KEEP_PINNED : offset < w->members_below ? KEEP_MEMBER : KEEP_LOOSE;
}

static void body_of(struct mix_segment s, uint8_t body[BODY])
{
    struct rng rng;
    rng_seed(&rng, (uint64_t)s.domain.v << 48 ^ s.offset);
    for (int i = 0; i < BODY; i++)
        body[i] = (uint8_t)rng_u64(&rng);
}

static enum status put_one(struct keep *keep, uint16_t domain, uint64_t offset, struct err *err)
{
    struct mix_segment s = {{domain}, offset};
    uint8_t body[BODY];
    body_of(s, body);
    struct bytes bytes = {body, BODY};
    return keep_put(keep, 1, &s, &bytes, err);
}

/* 1 there and right, 0 missing, -1 wrong */
static int look(struct keep *keep, uint16_t domain, uint64_t offset)
{
    struct mix_segment s = {{domain}, offset};
    uint8_t body[BODY];
    struct buf values = {0};
    struct bytes out;
    struct err err;
    int found = -1;
    body_of(s, body);
    if (EXPECT_ST(keep_get(keep, 1, &s, &values, &out, &err), ST_OK, &err))
        found = !out.data ? 0 : out.len == BODY && !memcmp(out.data, body, BODY) ? 1 : -1;
    buf_release(&values);
    return found;
}

static struct keep *open_keep(struct db *db, uint64_t budget, struct world *world)
{
    struct keep *keep = NULL;
    struct err err;
    struct keep_options options = {.family_meta = 1, .budget_bytes = budget, .rank = rank_of, .user = world};
    EXPECT_ST(keep_open(db, &options, &keep, &err), ST_OK, &err);
    return keep;
}

static void test_put_get_reopen(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct world world = {0, 0};
    struct db *db;
    struct err err;
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    struct keep *keep = open_keep(db, 1 << 20, &world);
    for (uint64_t o = 0; o < 20; o++)
        EXPECT_ST(put_one(keep, 2, o * o, &err), ST_OK, &err);
    EXPECT_ST(put_one(keep, 2, 9, &err), ST_OK, &err); /* again: counted once */
    EXPECT_ST(put_one(keep, 3, 9, &err), ST_OK, &err);
    EXPECT_EQ(keep_bytes(keep), 21 * BODY);
    EXPECT(look(keep, 2, 9) == 1 && look(keep, 3, 9) == 1 && look(keep, 2, 10) == 0 && look(keep, 1, 9) == 0);
    keep_close(&keep);
    db_close(&db);

    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    keep = open_keep(db, 1 << 20, &world);
    EXPECT_EQ(keep_bytes(keep), 21 * BODY);
    EXPECT(look(keep, 2, 361) == 1);
    struct keep_stats stats;
    EXPECT_ST(keep_stats(keep, (struct domain_id){2}, 400, &stats, &err), ST_OK, &err);
    EXPECT(stats.segments == 20 && stats.bytes == 20 * BODY);
    EXPECT_EQ(stats.by_age[0], 7); /* 0 1 4 9 16 25 36 of [0, 40) */
    EXPECT_EQ(stats.by_age[9], 1); /* 361 of [360, 400) */
    EXPECT(stats.first == 0 && stats.last == 361);
    struct domain_id domain;
    EXPECT(keep_next_domain(keep, (struct domain_id){0}, &domain, &err) == ST_OK && domain.v == 2);
    EXPECT(keep_next_domain(keep, (struct domain_id){3}, &domain, &err) == ST_OK && domain.v > 2);
    EXPECT_ST(keep_next_domain(keep, (struct domain_id){UINT16_MAX}, &domain, &err), ST_NOT_FOUND, &err);
    keep_close(&keep);
    db_close(&db);
}

static void test_budget_and_order_of_eviction(void)
{
    struct world world = {.members_below = 60, .pinned_below = 10};
    struct db *db;
    struct err err;
    EXPECT_ST(db_open(harness_path(harness_tmpdir(), "db"), &OPTIONS, &db, &err), ST_OK, &err);
    struct keep *keep = open_keep(db, 100 * BODY, &world);
    for (uint64_t o = 0; o < 100; o++)
        EXPECT_ST(put_one(keep, 1, o, &err), ST_OK, &err);
    EXPECT_EQ(keep_bytes(keep), 100 * BODY);
    EXPECT_ST(put_one(keep, 1, 100, &err), ST_OK, &err);
    EXPECT(keep_bytes(keep) <= 90 * BODY);
    for (uint64_t o = 0; o < 60; o++) /* only loose ones went */
        EXPECT_EQ(look(keep, 1, o), 1);
    EXPECT_EQ(look(keep, 1, 100), 1);

    world.members_below = 20; /* the sample moved on: 20..59 are loose now */
    for (uint64_t o = 200; o < 280; o++)
        EXPECT_ST(put_one(keep, 1, o, &err), ST_OK, &err);
    EXPECT(keep_bytes(keep) <= 100 * BODY);
    for (uint64_t o = 0; o < 20; o++)
        EXPECT_EQ(look(keep, 1, o), 1);

    world.members_below = 300; /* all are members: they go too, but never the pinned */
    for (uint64_t o = 300; o < 400; o++)
        EXPECT_ST(put_one(keep, 1, o, &err), ST_OK, &err);
    EXPECT(keep_bytes(keep) <= 100 * BODY);
    for (uint64_t o = 0; o < 10; o++)
        EXPECT_EQ(look(keep, 1, o), 1);

    world.pinned_below = UINT64_MAX;
    uint64_t held = keep_bytes(keep);
    enum status status = ST_OK;
    for (uint64_t o = 500; o < 700 && status == ST_OK; o++)
        status = put_one(keep, 1, o, &err);
    EXPECT_EQ(status, ST_LIMIT);
    EXPECT(keep_bytes(keep) >= held && keep_bytes(keep) <= 100 * BODY);
    keep_close(&keep);
    keep = open_keep(db, 100 * BODY, &world);
    EXPECT(keep_bytes(keep) >= held); /* the count in memory and the one on disk agree */
    keep_close(&keep);
    db_close(&db);
}

/* Overwrites the stored value behind the cache's back. */
static void spoil(struct db *db, uint16_t domain, uint64_t offset, size_t at, int cut)
{
    struct buf key = {0}, value = {0};
    struct batch batch = {0};
    struct err err;
    buf_put_u16_be(&key, domain);
    buf_put_u64_be(&key, offset);
    EXPECT_ST(db_get(db, 0, key.data, key.len, &value, &err), ST_OK, &err);
    if (!cut)
        value.data[at] ^= 1;
    batch_put(&batch, 0, key.data, key.len, value.data, cut ? at : value.len);
    EXPECT_ST(db_commit(db, &batch, false, &err), ST_OK, &err);
    buf_release(&key);
    buf_release(&value);
    batch_release(&batch);
}

static void test_damage_becomes_missing(void)
{
    struct world world = {0, 0};
    struct db *db;
    struct err err;
    EXPECT_ST(db_open(harness_path(harness_tmpdir(), "db"), &OPTIONS, &db, &err), ST_OK, &err);
    struct keep *keep = open_keep(db, 1 << 20, &world);
    for (uint64_t o = 0; o < 40; o++)
        EXPECT_ST(put_one(keep, 1, o, &err), ST_OK, &err);
    for (size_t at = 0; at < 20; at++) { /* every byte of the head, and one of the body */
        spoil(db, 1, at, at, 0);
        EXPECT_EQ(look(keep, 1, at), 0);
    }
    EXPECT_EQ(keep_damaged(keep), 20);
    EXPECT_EQ(keep_bytes(keep), 20 * BODY);
    spoil(db, 1, 30, BODY, 0);
    spoil(db, 1, 31, 500, 1);
    spoil(db, 1, 32, 3, 1);
    spoil(db, 1, 33, 0, 1);
    struct buf key = {0}, value = {0}; /* a whole value under another's key */
    struct batch batch = {0};
    buf_put_u16_be(&key, 1);
    buf_put_u64_be(&key, 35);
    EXPECT_ST(db_get(db, 0, key.data, key.len, &value, &err), ST_OK, &err);
    key.data[key.len - 1]++;
    batch_put(&batch, 0, key.data, key.len, value.data, value.len);
    EXPECT_ST(db_commit(db, &batch, false, &err), ST_OK, &err);
    buf_release(&key);
    buf_release(&value);
    batch_release(&batch);
    uint64_t verified, dropped;
    EXPECT_ST(keep_scrub(keep, &verified, &dropped, &err), ST_OK, &err);
    EXPECT(verified == 15 && dropped == 5);
    EXPECT_EQ(keep_bytes(keep), 15 * BODY);
    EXPECT(look(keep, 1, 34) == 1 && look(keep, 1, 33) == 0);
    keep_close(&keep);
    db_close(&db);
}

static void test_erased_bytes_are_gone_from_disk(void)
{
    const char *path = harness_path(harness_tmpdir(), "db");
    struct world world = {0, 0};
    struct db *db;
    struct err err;
    char line[8192];
    EXPECT_ST(db_open(path, &OPTIONS, &db, &err), ST_OK, &err);
    struct keep *keep = open_keep(db, 1 << 20, &world);
    for (uint64_t o = 0; o < 50; o++)
        EXPECT_ST(put_one(keep, 1, o, &err), ST_OK, &err);
    struct mix_segment s = {{1}, 50};
    struct bytes secret = {(const uint8_t *)"4111-1111-retracted-1111", 24};
    EXPECT_ST(keep_put(keep, 1, &s, &secret, &err), ST_OK, &err);
    snprintf(line, sizeof line, "grep -rqa 1111-retracted %s", path);
    EXPECT_EQ(system(line), 0); /* tidy: allowed, grep of a test */
    EXPECT_ST(keep_erase(keep, (struct domain_id){1}, 45, 6, &err), ST_OK, &err);
    EXPECT(system(line) != 0); /* tidy: allowed, grep of a test */
    EXPECT(look(keep, 1, 44) == 1 && look(keep, 1, 45) == 0 && look(keep, 1, 50) == 0);
    EXPECT_EQ(keep_bytes(keep), 45 * BODY);
    EXPECT_ST(put_one(keep, 1, UINT64_MAX, &err), ST_OK, &err);
    EXPECT_ST(put_one(keep, 2, 0, &err), ST_OK, &err);
    EXPECT_ST(keep_erase(keep, (struct domain_id){1}, 40, UINT64_MAX, &err), ST_OK, &err); /* to the end, not beyond */
    EXPECT(look(keep, 1, UINT64_MAX) == 0 && look(keep, 1, 39) == 1 && look(keep, 2, 0) == 1);
    EXPECT_EQ(keep_bytes(keep), 41 * BODY);
    keep_close(&keep);
    db_close(&db);
}

int main(void)
{
    hash_start();
    RUN(test_put_get_reopen);
    RUN(test_budget_and_order_of_eviction);
    RUN(test_damage_becomes_missing);
    RUN(test_erased_bytes_are_gone_from_disk);
    return harness_end();
}
