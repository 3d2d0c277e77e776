/* bench_generate: tokens a second of one text at a time, and of its prompt, beside what reading the weights alone would allow.
 *
 * A token's products read every weight of the file once, so the limit is the machine's reading rate: the file's bytes are
 * summed by the same number of threads, alternating with the generation. Greedy, so that every run does the same work.
 *
 *     bench_generate --base FILE [--threads N] [--prompt P] [--tokens T] [--rounds K] [--json FILE]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/mapping.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "bench/lab.h"
#include "model/generate.h"

enum { ROUNDS_MAX = 100 };

struct bench {
    const char *base, *json;
    uint32_t threads, prompt, tokens, rounds;
    double first, last; /* when the first new token came, and the last */
    uint32_t n;
};

static bool on_token(void *arg, uint32_t token)
{
    struct bench *b = arg;
    (void)token;
    b->last = clock_s();
    if (!b->n++)
        b->first = b->last;
    return true;
}

struct reading {
    const uint8_t *data;
    size_t len;
    uint32_t threads;
    uint64_t sums[POOL_THREADS_MAX];
};

static void read_share(void *arg, uint32_t thread)
{
    struct reading *r = arg;
    size_t words = r->len / 8, begin = words * thread / r->threads, end = words * (thread + 1) / r->threads;
    uint64_t sum[4] = {0}, word[4];
    for (size_t i = begin; i + 4 <= end; i += 4) {
        memcpy(word, r->data + i * 8, sizeof word);
        for (int k = 0; k < 4; k++)
            sum[k] += word[k];
    }
    r->sums[thread] = sum[0] + sum[1] + sum[2] + sum[3];
}

static void options(struct bench *b, int argc, char **argv)
{
    *b = (struct bench){.threads = 2, .prompt = 64, .tokens = 128, .rounds = 5};
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--base"))
            b->base = value;
        else if (!strcmp(argv[i], "--json"))
            b->json = value;
        else if (!strcmp(argv[i], "--threads"))
            b->threads = lab_number(value, POOL_THREADS_MAX);
        else if (!strcmp(argv[i], "--prompt"))
            b->prompt = lab_number(value, 4096);
        else if (!strcmp(argv[i], "--tokens"))
            b->tokens = lab_number(value, 4096);
        else if (!strcmp(argv[i], "--rounds"))
            b->rounds = lab_number(value, ROUNDS_MAX);
        else
            b->base = NULL, i = argc;
    }
    if (!b->base || b->tokens < 2) {
        fprintf(stderr, "usage: bench_generate --base FILE [--threads N] [--prompt P] [--tokens T] [--rounds K] "
                        "[--json FILE]\n");
        exit(2);
    }
}

static void run(struct bench *b, const struct frozen *frozen, double *prompt_s, double *token_s)
{
    struct generate_options o;
    struct err err;
    uint32_t prompt[4096];
    for (uint32_t i = 0; i < b->prompt; i++)
        prompt[i] = 1000 + i * 37 % 40000 % frozen->arch.vocab_size;
    generate_defaults(&o);
    o.threads = b->threads;
    o.tokens_max = b->tokens;
    o.temperature = 0;
    b->n = 0;
    double begin = clock_s();
    if (generate(frozen, NULL, NULL, prompt, b->prompt, &o, on_token, b, &err) != ST_OK)
        lab_fail(&err);
    *prompt_s = b->first - begin;
    *token_s = (b->last - b->first) / (b->n - 1);
}

int main(int argc, char **argv)
{
    static double prompt[ROUNDS_MAX], token[ROUNDS_MAX], reading[ROUNDS_MAX];
    static struct bench b;
    struct mapping map = {0};
    struct base *base;
    struct frozen frozen;
    struct pool *pool;
    struct err err;
    options(&b, argc, argv);
    hash_start();
    if (base_open(b.base, &base, &err) != ST_OK || mapping_open(b.base, &map, &err) != ST_OK ||
        pool_new(b.threads, &pool, &err) != ST_OK)
        lab_fail(&err);
    frozen_open(base, &frozen);
    run(&b, &frozen, &prompt[0], &token[0]); /* warm */
    for (uint32_t i = 0; i < b.rounds; i++) {
        struct reading r = {.data = map.data, .len = map.len, .threads = b.threads};
        double begin = clock_s();
        pool_run(pool, UINT64_MAX, read_share, &r);
        reading[i] = clock_s() - begin;
        run(&b, &frozen, &prompt[i], &token[i]);
    }
    double p = b.prompt / lab_median(prompt, b.rounds), t = 1 / lab_median(token, b.rounds),
           r = 1 / lab_median(reading, b.rounds);
    printf("new tokens  %8.1f /s (%u after a prompt of %u, %u threads)\n", t, b.tokens, b.prompt, b.threads);
    printf("limit       %8.1f /s if reading the file's %.1f MB were all; ratio %.3f\n", r, (double)map.len / 1e6,
           t / r);
    printf("prompt      %8.1f tokens/s\n", p);
    printf("peak memory %8.1f MB, the mapped file included\n", lab_peak_bytes() / 1e6);
    if (b.json) {
        struct buf out = {0};
        buf_printf(&out,
                   "{\"bench\":\"generate\",\"threads\":%u,\"prompt\":%u,\"tokens\":%u,\"tokens_per_s\":%.2f,"
                   "\"read_limit_per_s\":%.2f,\"prompt_tokens_per_s\":%.2f,\"peak_mb\":%.1f}\n",
                   b.threads, b.prompt, b.tokens, t, r, p, lab_peak_bytes() / 1e6);
        if (file_write_durable(b.json, out.data, out.len, 0644, &err) != ST_OK)
            lab_fail(&err);
        buf_release(&out);
    }
    frozen_release(&frozen);
    pool_free(pool);
    mapping_close(&map);
    base_close(base);
    return 0;
}
