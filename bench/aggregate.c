/* What aggregation costs: N deltas of one shape from files, checked, normed and combined, with the sketch.
 *
 *     bench_aggregate [--rank R] [--most N] [--coding f32|bf16|int8] [--dir DIR] [--json FILE]
 *
 * The shape is the default model's (30 layers, 576 / 1536, all seven linears). Peak memory should not grow with N. The
 * limit beside it is reading the same files once without looking at them. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "adapter/combine.h"
#include "base/clock.h"
#include "base/hash.h"

enum { MOST = COMBINE_DELTAS_MAX };

struct bench {
    uint32_t rank, most;
    enum delta_coding coding;
    const char *dir, *json;
    struct adapter_shape shape;
    float *parent, *candidate;
    struct combine_input inputs[MOST];
    struct combine_row rows[MOST];
    struct buf out;
};

static void must(enum status status, const struct err *err)
{
    if (status == ST_OK)
        return;
    fprintf(stderr, "bench_aggregate: %s\n", err->text);
    exit(1);
}

static struct adapter_shape smollm2_shape(uint32_t rank)
{
    return (struct adapter_shape){.n_layers = 30,
                                  .rank = rank,
                                  .alpha = 2 * rank,
                                  .targets = LORA_ALL,
                                  .in = {576, 576, 576, 576, 576, 576, 1536},
                                  .out = {576, 192, 192, 576, 1536, 1536, 576}};
}

static void make_input(struct bench *b, uint32_t i)
{
    size_t n = adapter_floats(&b->shape);
    float *trained = xmalloc(n * sizeof *trained);
    struct delta_head head = {.coding = b->coding, .session = 1, .lease = i + 1, .generation = 1};
    struct buf bytes = {0};
    struct err err;
    struct rng rng;
    char path[4096];
    rng_seed(&rng, i + 1);
    for (size_t f = 0; f < n; f++)
        trained[f] = b->parent[f] + 0.001f * (float)(rng_unit(&rng) - 0.5);
    must(delta_encode(&b->shape, trained, b->parent, &head, i, &bytes, &err), &err);
    snprintf(path, sizeof path, "%s/delta-%u", b->dir, i);
    must(file_write_durable(path, bytes.data, bytes.len, 0600, &err), &err);
    b->inputs[i] =
        (struct combine_input){.fd = open(path, O_RDONLY | O_CLOEXEC), .bytes = bytes.len, .target_tokens = 1000};
    hash_blake2b(bytes.data, bytes.len, &b->inputs[i].digest);
    unlink(path); /* the descriptor holds it */
    free(trained);
    buf_release(&bytes);
}

static double cpu_s(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* Peak resident memory since the last call, in MB. */
static double peak_mb(void)
{
    char line[256];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "VmHWM:", 6))
            kb = strtod(line + 6, NULL);
    if (f)
        fclose(f);
    f = fopen("/proc/self/clear_refs", "we"); /* 5 resets the peak */
    if (f) {
        fputs("5", f);
        fclose(f);
    }
    return kb * 1024 / 1e6;
}

static double read_only_s(const struct bench *b, uint32_t n)
{
    uint8_t *piece = xmalloc(1 << 20);
    double t = clock_s();
    for (uint32_t i = 0; i < n; i++)
        for (uint64_t at = 0; at < b->inputs[i].bytes; at += 1 << 20)
            if (pread(b->inputs[i].fd, piece, 1 << 20, (off_t)at) <= 0)
                break;
    t = clock_s() - t;
    free(piece);
    return t;
}

static void measure(struct bench *b, uint32_t n)
{
    struct combine_settings settings = combine_defaults();
    struct combine_result result;
    struct err err;
    double read_s = read_only_s(b, n);
    peak_mb();
    double t = clock_s(), cpu = cpu_s();
    must(combine(&b->shape, b->parent, b->inputs, n, &settings, b->candidate, b->rows, &result, &err), &err);
    t = clock_s() - t;
    cpu = cpu_s() - cpu;
    double peak = peak_mb();
    printf(
        "N %3u   %.2f deltas/s   %.3f CPU s a delta   reading alone %.1f x faster   peak %.0f MB   factor error %.3g\n",
        n, n / t, cpu / n, t / read_s, peak, result.factor_error);
    buf_printf(&b->out,
               "%s{\"n\": %u, \"deltas_per_s\": %.3f, \"cpu_s_per_delta\": %.4f, \"read_only_ratio\": %.2f, "
               "\"peak_mb\": %.1f}",
               n == 1 ? "" : ", ", n, n / t, cpu / n, t / read_s, peak);
}

static bool parse(struct bench *b, int argc, char **argv)
{
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--rank"))
            b->rank = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--most"))
            b->most = (uint32_t)strtoul(value, NULL, 10);
        else if (!strcmp(argv[i], "--coding"))
            b->coding = !strcmp(value, "f32")    ? DELTA_F32
                        : !strcmp(value, "bf16") ? DELTA_BF16
                                                 : (strcmp(value, "int8") ? 0 : DELTA_INT8);
        else if (!strcmp(argv[i], "--dir"))
            b->dir = value;
        else if (!strcmp(argv[i], "--json"))
            b->json = value;
        else
            return false;
    }
    return b->rank >= 1 && b->rank <= LORA_RANK_MAX && b->most >= 1 && b->most <= MOST && b->coding;
}

int main(int argc, char **argv)
{
    static struct bench b = {.rank = 16, .most = 32, .coding = DELTA_F32, .dir = "/tmp"};
    struct err err;
    if (!parse(&b, argc, argv)) {
        fprintf(stderr,
                "usage: bench_aggregate [--rank R] [--most 1..%d] [--coding f32|bf16|int8] [--dir DIR] "
                "[--json FILE]\n",
                MOST);
        return 2;
    }
    hash_start();
    b.shape = smollm2_shape(b.rank);
    size_t n = adapter_floats(&b.shape);
    b.parent = xmalloc(n * sizeof *b.parent);
    b.candidate = xcalloc(n, sizeof *b.candidate);
    adapter_init(&b.shape, 1, b.parent);
    for (uint32_t i = 0; i < b.most; i++)
        make_input(&b, i);
    printf("rank %u: %zu floats, %llu bytes a delta\n", b.rank, n, (unsigned long long)b.inputs[0].bytes);
    buf_printf(&b.out, "{\"bench\": \"aggregate\", \"rank\": %u, \"floats\": %zu, \"delta_bytes\": %llu, \"rows\": [",
               b.rank, n, (unsigned long long)b.inputs[0].bytes);
    for (uint32_t k = 1; k <= b.most; k *= 2)
        measure(&b, k);
    buf_printf(&b.out, "]}\n");
    if (b.json)
        must(file_write_durable(b.json, b.out.data, b.out.len, 0644, &err), &err);
    for (uint32_t i = 0; i < b.most; i++)
        close(b.inputs[i].fd);
    free(b.parent);
    free(b.candidate);
    buf_release(&b.out);
    return 0;
}
