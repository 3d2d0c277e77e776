/* What replay costs: an arrival and a draw for histories of growing length, and reading payload against RocksDB's own
 * batched reads of the same values, in the same process.
 *
 *     bench_replay [--longest N] [--k K] [--dir DIR] [--json FILE]
 *
 * Ratios within one run mean something; absolute figures drift with the machine. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "replay/keep.h"
#include "replay/sample.h"
#include "store/db.h"

enum { BATCH = 256, PAYLOAD = 2048, SEGMENTS = 20000, DRAWS = 1 << 20, PASSES = 5 };

struct bench {
    uint64_t longest;
    uint32_t k;
    const char *dir, *json;
    struct buf out;
};

static void must(enum status status, const struct err *err)
{
    if (status == ST_OK)
        return;
    fprintf(stderr, "bench_replay: %s\n", err->text);
    exit(1);
}

static double peak_mb(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024 / 1e6;
}

static void measure_sample(struct bench *b, uint64_t length)
{
    struct sip_key seed = {"a seed for bench"};
    struct sample sample;
    struct err err;
    struct rng rng;
    uint64_t sum = 0;
    rng_seed(&rng, 1);
    sample_init(&sample, &seed, (struct domain_id){1}, b->k);
    double t = clock_s();
    must(sample_to(&sample, length, 0, NULL, 0, &err), &err);
    double arrival_ns = (clock_s() - t) * 1e9 / (double)length;
    t = clock_s();
    for (int i = 0; i < DRAWS; i++)
        sum += sample_draw(&sample, &rng);
    double draw_ns = (clock_s() - t) * 1e9 / DRAWS;
    CHECK(sum > 0); /* keeps the loop */
    printf("history %9llu   k %u   held %u   arrival %.1f ns   draw %.1f ns   (%.1f M draws/s)\n",
           (unsigned long long)length, b->k, sample.n, arrival_ns, draw_ns, 1e3 / draw_ns);
    buf_printf(&b->out, "%s{\"history\": %llu, \"k\": %u, \"arrival_ns\": %.2f, \"draw_ns\": %.2f}",
               b->out.data[b->out.len - 1] == '[' ? "" : ", ", (unsigned long long)length, b->k, arrival_ns, draw_ns);
    sample_release(&sample);
}

static enum keep_rank all_members(void *user, struct domain_id domain, uint64_t offset)
{
    (void)user, (void)domain, (void)offset;
    return KEEP_MEMBER;
}

static struct mix_segment segment_at(uint64_t i)
{
    return (struct mix_segment){{1}, i * 7};
}

static void fill(struct keep *keep)
{
    struct rng rng;
    struct err err;
    uint8_t *body = xmalloc((size_t)BATCH * PAYLOAD);
    rng_seed(&rng, 2);
    for (uint64_t i = 0; i < SEGMENTS; i += BATCH) {
        struct mix_segment segments[BATCH];
        struct bytes bodies[BATCH];
        for (size_t j = 0; j < BATCH; j++) {
            segments[j] = segment_at(i + j);
            bodies[j] = (struct bytes){body + j * PAYLOAD, PAYLOAD};
            for (size_t c = 0; c < PAYLOAD; c++)
                body[j * PAYLOAD + c] = (uint8_t)('a' + rng_below(&rng, 26));
        }
        must(keep_put(keep, BATCH, segments, bodies, &err), &err);
    }
    free(body);
}

/* Seconds for one pass of random batches through the cache, or straight from the database. */
static double read_pass(struct keep *keep, struct db *db, bool through_keep, uint64_t seed)
{
    enum { BATCHES = 200 };
    struct rng rng;
    struct err err;
    struct buf values = {0}, memory = {0};
    struct bytes out[BATCH], keys[BATCH];
    uint64_t found = 0;
    rng_seed(&rng, seed);
    double t = clock_s();
    for (int i = 0; i < BATCHES; i++) {
        struct mix_segment segments[BATCH];
        for (int j = 0; j < BATCH; j++)
            segments[j] = segment_at(rng_below(&rng, SEGMENTS));
        if (through_keep)
            must(keep_get(keep, BATCH, segments, &values, out, &err), &err);
        else {
            buf_clear(&memory);
            for (int j = 0; j < BATCH; j++) {
                buf_put_u16_be(&memory, segments[j].domain.v);
                buf_put_u64_be(&memory, segments[j].offset);
            }
            for (size_t j = 0; j < BATCH; j++)
                keys[j] = (struct bytes){memory.data + 10 * j, 10};
            must(db_multi_get(db, 0, BATCH, keys, &values, out, NULL, &err), &err);
        }
        for (int j = 0; j < BATCH; j++)
            found += out[j].data != NULL;
    }
    t = clock_s() - t;
    CHECK_EQ(found, (uint64_t)BATCHES * BATCH);
    buf_release(&values);
    buf_release(&memory);
    return (double)BATCHES * BATCH / t;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure_payload(struct bench *b)
{
    static const char *const names[] = {"payload", "lengths"};
    struct db_options options = {.families = names, .n_families = 2, .create = true};
    struct keep_options keep_options = {.family_meta = 1, .budget_bytes = 1ull << 32, .rank = all_members};
    struct bytes none = {0};
    struct db *db;
    struct keep *keep;
    struct err err;
    must(db_open(b->dir, &options, &db, &err), &err);
    must(keep_open(db, &keep_options, &keep, &err), &err);
    fill(keep);
    must(db_purge(db, 0, none, none, &err), &err);
    double cached[PASSES], plain[PASSES];
    for (uint64_t p = 0; p < PASSES; p++) { /* in turns, so that both see the same machine */
        plain[p] = read_pass(keep, db, false, p);
        cached[p] = read_pass(keep, db, true, p);
    }
    qsort(cached, PASSES, sizeof *cached, compare);
    qsort(plain, PASSES, sizeof *plain, compare);
    double through = cached[PASSES / 2], direct = plain[PASSES / 2];
    printf("payload %d x %d bytes, batches of %d: verified reads %.0f k/s, database alone %.0f k/s, ratio %.2f\n",
           SEGMENTS, PAYLOAD, BATCH, through / 1e3, direct / 1e3, through / direct);
    buf_printf(&b->out,
               "], \"payload_bytes\": %d, \"batch\": %d, \"reads_per_s\": %.0f, \"rocksdb_per_s\": %.0f, "
               "\"ratio\": %.3f, \"peak_mb\": %.0f}\n",
               PAYLOAD, BATCH, through, direct, through / direct, peak_mb());
    keep_close(&keep);
    db_close(&db);
}

/* A database directory holds files only. */
static void remove_dir(const char *path)
{
    struct dirent *entry;
    DIR *d = opendir(path);
    while (d && (entry = readdir(d)))
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(d), entry->d_name, 0);
    if (d)
        closedir(d);
    rmdir(path);
}

int main(int argc, char **argv)
{
    struct bench b = {.longest = 1000000, .k = 4096};
    struct err err;
    char dir[] = "/tmp/bench-replay-XXXXXX";
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--longest"))
            b.longest = strtoull(value, NULL, 10);
        else if (!strcmp(argv[i], "--k"))
            b.k = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--dir"))
            b.dir = value;
        else if (!strcmp(argv[i], "--json"))
            b.json = value;
        else
            b.k = 0;
    }
    if (b.k < 1 || b.k > SAMPLE_K_MAX || b.longest < 1000) {
        fprintf(stderr, "usage: bench_replay [--longest N >= 1000] [--k K] [--dir DIR] [--json FILE]\n");
        return 2;
    }
    if (!b.dir && !(b.dir = mkdtemp(dir))) {
        fprintf(stderr, "bench_replay: cannot make %s\n", dir);
        return 1;
    }
    hash_start();
    buf_printf(&b.out, "{\"bench\": \"replay\", \"sample\": [");
    for (uint64_t n = 1000; n <= b.longest; n *= 10)
        measure_sample(&b, n);
    measure_payload(&b);
    if (b.json)
        must(file_write_durable(b.json, b.out.data, b.out.len, 0644, &err), &err);
    if (b.dir == dir)
        remove_dir(dir);
    buf_release(&b.out);
    return 0;
}
