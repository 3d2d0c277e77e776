/* bench_tokenize: text to tokens on one thread, beside reading the same bytes.
 *
 * Each file is encoded as plain text, whole; the fastest of K rounds counts, since nothing but noise makes one slower.
 *
 *     bench_tokenize --base FILE [--rounds K] [--json FILE] [--ids FILE] TEXT...
 *
 * --ids writes the last text's ids (u32, little-endian), for a comparison with somebody else's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "bench/lab.h"
#include "model/base.h"
#include "model/tokenizer.h"

enum { TEXT_MAX = 256 << 20 };

/* What touching every byte costs: a sum that the compiler may vectorise. */
static double read_seconds(struct bytes text)
{
    double begin = clock_s();
    uint64_t sum = 0;
    for (size_t i = 0; i < text.len; i++)
        sum += text.data[i];
    volatile uint64_t sink = sum;
    (void)sink;
    return clock_s() - begin;
}

int main(int argc, char **argv)
{
    const char *base_path = NULL, *json = NULL, *ids_path = NULL;
    uint32_t rounds = 3;
    int at = 1;
    for (; at + 1 < argc && !strncmp(argv[at], "--", 2); at += 2) {
        if (!strcmp(argv[at], "--base"))
            base_path = argv[at + 1];
        else if (!strcmp(argv[at], "--json"))
            json = argv[at + 1];
        else if (!strcmp(argv[at], "--ids"))
            ids_path = argv[at + 1];
        else if (!strcmp(argv[at], "--rounds"))
            rounds = lab_number(argv[at + 1], 1000);
        else
            break;
    }
    if (!base_path || at >= argc) {
        fprintf(stderr, "usage: bench_tokenize --base FILE [--rounds K] [--json FILE] [--ids FILE] TEXT...\n");
        return 2;
    }
    struct base *base;
    const struct tokenizer *tokenizer;
    struct err err;
    hash_start();
    if (base_open(base_path, &base, &err) != ST_OK || base_tokenizer(base, &tokenizer, &err) != ST_OK)
        lab_fail(&err);
    double seconds = 0, reading = 0;
    uint64_t bytes = 0, tokens = 0;
    for (; at < argc; at++) {
        struct buf text = {0};
        struct token_buf ids = {0};
        if (file_read(argv[at], TEXT_MAX, &text, &err) != ST_OK)
            lab_fail(&err);
        double best = 1e30, read = 1e30;
        for (uint32_t k = 0; k < rounds; k++) {
            double r = read_seconds(buf_bytes(&text));
            read = r < read ? r : read;
            ids.n = 0;
            double begin = clock_s();
            if (tokenizer_encode(tokenizer, (const char *)text.data, text.len, &ids, &err) != ST_OK)
                lab_fail(&err);
            double s = clock_s() - begin;
            best = s < best ? s : best;
        }
        seconds += best, reading += read, bytes += text.len, tokens += ids.n;
        if (ids_path && file_write_durable(ids_path, ids.ids, ids.n * sizeof *ids.ids, 0644, &err) != ST_OK)
            lab_fail(&err);
        token_buf_release(&ids);
        buf_release(&text);
    }
    printf("%.1f MB/s, %.0f tokens/s (%.1f MB, %llu tokens); reading alone is %.0f times as fast\n",
           (double)bytes / 1e6 / seconds, (double)tokens / seconds, (double)bytes / 1e6, (unsigned long long)tokens,
           seconds / reading);
    if (json) {
        struct buf out = {0};
        buf_printf(&out, "{\"bench\":\"tokenize\",\"bytes\":%llu,\"tokens\":%llu,\"mb_per_s\":%.2f}\n",
                   (unsigned long long)bytes, (unsigned long long)tokens, (double)bytes / 1e6 / seconds);
        if (file_write_durable(json, out.data, out.len, 0644, &err) != ST_OK)
            lab_fail(&err);
        buf_release(&out);
    }
    base_close(base);
    return 0;
}
