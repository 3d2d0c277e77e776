/* Aggregation: against dense doubles, in any order, with hostile inputs; the sketch against the exact error. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/combine.h"
#include "base/hash.h"
#include "harness.h"

enum { MOST = 9 };

static const struct adapter_shape SHAPE = {.n_layers = 2,
                                           .rank = 3,
                                           .alpha = 6,
                                           .targets = 1 << LORA_Q | 1 << LORA_V | 1 << LORA_DOWN,
                                           .in = {20, 20, 20, 20, 20, 20, 31},
                                           .out = {25, 8, 8, 20, 31, 31, 20}};

struct world {
    size_t floats;
    uint32_t n;
    float *parent, *delta[MOST], *candidate;
    struct combine_input inputs[MOST];
    struct combine_row rows[MOST];
    struct combine_result result;
};

static float *random_block(uint64_t seed, double scale)
{
    struct rng rng;
    size_t n = adapter_floats(&SHAPE);
    float *block = xcalloc(n, sizeof *block);
    rng_seed(&rng, seed);
    for (size_t i = 0; i < n; i++)
        block[i] = (float)(scale * rng_normal(&rng));
    return block;
}

/* Encodes a delta as f32 (exactly, against a zero parent) and opens it as an input. */
static struct combine_input input_of(const float *delta, uint64_t lease, uint64_t tokens)
{
    struct buf bytes = {0};
    struct err err;
    struct combine_input in = {.target_tokens = tokens};
    struct delta_head head = {.coding = DELTA_F32, .session = 1, .lease = lease, .generation = 1};
    float *zero = xcalloc(adapter_floats(&SHAPE), sizeof *zero);
    const char *path = harness_path(harness_tmpdir(), "delta");
    EXPECT_ST(delta_encode(&SHAPE, delta, zero, &head, 0, &bytes, &err), ST_OK, &err);
    EXPECT_ST(file_write_durable(path, bytes.data, bytes.len, 0600, &err), ST_OK, &err);
    in.fd = open(path, O_RDWR | O_CLOEXEC);
    in.bytes = bytes.len;
    hash_blake2b(bytes.data, bytes.len, &in.digest);
    free(zero);
    buf_release(&bytes);
    return in;
}

static struct world make_world(uint32_t n, double drift)
{
    struct world w = {.floats = adapter_floats(&SHAPE), .n = n, .parent = random_block(99, 1)};
    w.candidate = xcalloc(w.floats, sizeof *w.candidate);
    for (uint32_t i = 0; i < n; i++) {
        w.delta[i] = random_block(i + 1, drift);
        w.inputs[i] = input_of(w.delta[i], 100 + i, 50 + 10 * i);
    }
    return w;
}

static void free_world(struct world *w)
{
    for (uint32_t i = 0; i < w->n; i++) {
        close(w->inputs[i].fd);
        free(w->delta[i]);
    }
    free(w->parent);
    free(w->candidate);
}

static enum status run(struct world *w, const struct combine_settings *settings, struct err *err)
{
    return combine(&SHAPE, w->parent, w->inputs, w->n, settings, w->candidate, w->rows, &w->result, err);
}

static void test_one_is_identity(void)
{
    struct world w = make_world(1, 0.1);
    struct combine_settings settings = combine_defaults();
    struct err err;
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    for (size_t i = 0; i < w.floats; i++)
        EXPECT(w.candidate[i] == w.parent[i] + w.delta[0][i]);
    EXPECT(w.rows[0].weight == 1 && w.rows[0].clip == 1 && w.result.factor_error == 0);
    EXPECT(w.rows[0].head.lease == 100 && w.result.target_tokens == 50);
    settings.step = 0.5;
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    for (size_t i = 0; i < w.floats; i++)
        EXPECT(w.candidate[i] == (float)((double)w.parent[i] + 0.5 * (double)w.delta[0][i]));
    free_world(&w);
}

static double norm_of(const float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i] * (double)v[i];
    return sqrt(sum);
}

static void test_mean_against_doubles(void)
{
    struct world w = make_world(5, 0.1);
    struct combine_settings settings = combine_defaults();
    struct err err;
    for (size_t i = 0; i < w.floats; i++) /* one is ten times too large */
        w.delta[2][i] *= 10;
    close(w.inputs[2].fd);
    w.inputs[2] = input_of(w.delta[2], 102, 70);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    double norms[5], sorted[5], weight[5], clip[5];
    for (int i = 0; i < 5; i++) {
        norms[i] = norm_of(w.delta[i], w.floats);
        weight[i] = (50 + 10 * i) / 350.0;
        int at = i;
        for (; at > 0 && sorted[at - 1] > norms[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = norms[i];
    }
    for (int i = 0; i < 5; i++) {
        clip[i] = norms[i] > 3 * sorted[2] ? 3 * sorted[2] / norms[i] : 1;
        EXPECT_NEAR(w.rows[i].norm, norms[i], 1e-12 * norms[i]);
        EXPECT_NEAR(w.rows[i].clip, clip[i], 1e-12);
        EXPECT_NEAR(w.rows[i].weight, weight[i], 1e-12);
    }
    EXPECT(clip[2] < 0.4 && clip[0] == 1);
    double norm = 0;
    for (size_t i = 0; i < w.floats; i++) {
        double mean = 0;
        for (int k = 0; k < 5; k++)
            mean += weight[k] * clip[k] * (double)w.delta[k][i];
        norm += mean * mean;
        EXPECT_NEAR(w.candidate[i], (double)w.parent[i] + mean, ldexp(fabs((double)w.candidate[i]), -23));
    }
    EXPECT_NEAR(w.result.norm, sqrt(norm), 1e-9);
    EXPECT_NEAR(w.result.median_norm, sorted[2], 1e-9);
    free_world(&w);
}

static void test_weights_are_capped_and_sum_to_one(void)
{
    struct world w = make_world(8, 0.1);
    struct combine_settings settings = combine_defaults();
    struct err err;
    const uint64_t tokens[][8] = {{1000, 1, 1, 1, 1, 1, 1, 1},
                                  {1000, 900, 1, 1, 1, 1, 1, 1},
                                  {0, 10, 10, 10, 10, 0, 0, 0},
                                  {0, 0, 0, 0, 0, 0, 0, 7},
                                  {5, 5, 5, 5, 5, 5, 5, 5}};
    const double first[] = {0.25, 0.25, 0, 0, 0.125}, second[] = {0.75 / 7, 0.25, 0.25, 0, 0.125};
    for (int t = 0; t < 5; t++) {
        double sum = 0;
        for (int i = 0; i < 8; i++)
            w.inputs[i].target_tokens = tokens[t][i];
        EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
        for (int i = 0; i < 8; i++) {
            sum += w.rows[i].weight;
            EXPECT(t == 3 || w.rows[i].weight <= (t == 2 ? 0.5 : 0.25) + 1e-12);
        }
        EXPECT_NEAR(sum, 1, 1e-12);
        EXPECT_NEAR(w.rows[0].weight, first[t], 1e-12);
        EXPECT_NEAR(w.rows[1].weight, second[t], 1e-12);
    }
    for (int i = 0; i < 8; i++)
        w.inputs[i].target_tokens = 0;
    EXPECT_ST(run(&w, &settings, &err), ST_USAGE, &err);
    w.inputs[0].target_tokens = w.inputs[1].target_tokens = UINT64_MAX;
    EXPECT_ST(run(&w, &settings, &err), ST_USAGE, &err);
    free_world(&w);
}

static void test_order_of_arrival_changes_no_bit(void)
{
    struct world w = make_world(MOST, 0.3);
    struct combine_settings settings = combine_defaults();
    struct err err;
    struct rng rng;
    rng_seed(&rng, 4);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    float *want = xmemdup(w.candidate, w.floats * sizeof *want);
    struct combine_result result = w.result;
    for (int round = 0; round < 20; round++) {
        for (uint64_t i = MOST; i > 1; i--) {
            uint64_t j = rng_below(&rng, i);
            struct combine_input t = w.inputs[i - 1];
            w.inputs[i - 1] = w.inputs[j];
            w.inputs[j] = t;
        }
        EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
        EXPECT(!memcmp(want, w.candidate, w.floats * sizeof *want));
        EXPECT(result.norm == w.result.norm && result.factor_error == w.result.factor_error);
    }
    free(want);
    free_world(&w);
}

/* ||sum w (B_i - B)(A_i - A)||^2 and ||(Bp+b)(Ap+a) - Bp Ap||^2 of all modules, element by element. */
static double exact_error(const struct world *w, const double *weight)
{
    double error2 = 0, change2 = 0;
    for (uint32_t layer = 0; layer < SHAPE.n_layers; layer++)
        for (int m = 0; m < LORA_MODULES; m++) {
            if (!(SHAPE.targets >> m & 1))
                continue;
            size_t at_a = adapter_at_a(&SHAPE, layer, (enum lora_module)m), r = SHAPE.rank;
            size_t at_b = adapter_at_b(&SHAPE, layer, (enum lora_module)m), in = SHAPE.in[m], out = SHAPE.out[m];
            for (size_t o = 0; o < out; o++)
                for (size_t j = 0; j < in; j++) {
                    double mean_of_products = 0, product_of_means = 0, before = 0;
                    for (size_t k = 0; k < r; k++) {
                        double a = (double)w->parent[at_a + k * in + j], b = (double)w->parent[at_b + o * r + k];
                        before += a * b;
                        for (uint32_t i = 0; i < w->n; i++) {
                            double da = (double)w->delta[i][at_a + k * in + j],
                                   db = (double)w->delta[i][at_b + o * r + k];
                            mean_of_products += weight[i] * ((double)w->parent[at_b + o * r + k] + db) *
                                                ((double)w->parent[at_a + k * in + j] + da);
                            a += weight[i] * da;
                            b += weight[i] * db;
                        }
                        product_of_means += a * b;
                    }
                    error2 += pow(mean_of_products - product_of_means, 2);
                    change2 += pow(product_of_means - before, 2);
                }
        }
    return sqrt(error2 / change2);
}

/* Mean of estimate / exact over many seeds. */
static void check_sketch(struct world *w, double exact)
{
    enum { TRIALS = 400 };
    struct combine_settings settings = combine_defaults();
    struct err err;
    double sum = 0, sum2 = 0;
    settings.sketches = 16;
    for (uint64_t seed = 0; seed < TRIALS; seed++) {
        settings.seed = seed;
        EXPECT_ST(run(w, &settings, &err), ST_OK, &err);
        double ratio = w->result.factor_error / exact;
        EXPECT(ratio > 0.5 && ratio < 2); /* each single one is of the right size */
        sum += ratio;
        sum2 += ratio * ratio;
    }
    double mean = sum / TRIALS, deviation = sqrt(sum2 / TRIALS - mean * mean);
    EXPECT(deviation < 0.15);
    /* A ratio of two estimates is biased by about its variance; beyond that only the error of the mean is allowed. */
    EXPECT_NEAR(mean, 1, deviation * deviation + 4 * deviation / sqrt(TRIALS));
}

static void test_sketch_estimates_the_factor_error(void)
{
    struct world w = make_world(4, 0.4);
    struct combine_settings settings = combine_defaults();
    struct err err;
    double weight[4];
    for (int i = 0; i < 4; i++)
        weight[i] = (50 + 10 * i) / 260.0;
    check_sketch(&w, exact_error(&w, weight));
    settings.sketches = 0;
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    EXPECT(w.result.factor_error == 0);

    for (size_t i = 0; i < w.floats; i++) /* what counts is the delta as clipped */
        w.delta[2][i] *= 10;
    close(w.inputs[2].fd);
    w.inputs[2] = input_of(w.delta[2], 102, 70);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    EXPECT(w.rows[2].clip < 0.4);
    for (size_t i = 0; i < w.floats; i++)
        w.delta[2][i] = (float)(w.rows[2].clip * (double)w.delta[2][i]);
    check_sketch(&w, exact_error(&w, weight));
    free_world(&w);
}

static void test_same_delta_twice_has_no_factor_error(void)
{
    struct world w = make_world(2, 0.4);
    struct combine_settings settings = combine_defaults();
    struct err err;
    close(w.inputs[1].fd);
    w.inputs[1] = input_of(w.delta[0], 200, 1000);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    EXPECT(w.result.factor_error < 1e-12);
    free_world(&w);
}

static void test_hostile_inputs(void)
{
    struct world w = make_world(3, 0.1);
    struct combine_settings settings = combine_defaults(), bad;
    struct combine_input keep = w.inputs[1];
    struct err err;
    uint8_t byte;

    EXPECT(pread(keep.fd, &byte, 1, 500) == 1); /* a bit of a blob turned over */
    byte ^= 1;
    EXPECT(pwrite(keep.fd, &byte, 1, 500) == 1);
    EXPECT_ST(run(&w, &settings, &err), ST_CORRUPT, &err);
    EXPECT(strstr(err.text, "input 1 of 3") != NULL);
    byte ^= 1;
    EXPECT(pwrite(keep.fd, &byte, 1, 500) == 1);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);

    struct buf bytes = {0}; /* a blob that is what its name says, with a NaN in it */
    buf_extend(&bytes, keep.bytes);
    EXPECT(pread(keep.fd, bytes.data, bytes.len, 0) == (ssize_t)bytes.len);
    memcpy(bytes.data + 72 + 4 * 77, "\0\0\xc0\x7f", 4);
    EXPECT(pwrite(keep.fd, bytes.data, bytes.len, 0) == (ssize_t)bytes.len);
    hash_blake2b(bytes.data, bytes.len, &w.inputs[1].digest);
    EXPECT_ST(run(&w, &settings, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "input 1 of 3") && strstr(err.text, "lease 101"));
    buf_release(&bytes);
    close(keep.fd);

    w.inputs[1] = input_of(w.delta[1], 100, 50); /* lease 100 again */
    EXPECT_ST(run(&w, &settings, &err), ST_USAGE, &err);
    EXPECT(strstr(err.text, "both of lease 100") != NULL);
    close(w.inputs[1].fd);

    for (size_t i = 0; i < w.floats; i++) /* enormous but finite: bounded by the clip */
        w.delta[1][i] = i % 2 ? 3e38f : -3e38f;
    w.inputs[1] = input_of(w.delta[1], 101, 50);
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    EXPECT(w.result.norm <= 3 * w.result.median_norm && w.rows[1].clip < 1e-30);

    bad = settings, bad.step = 0;
    EXPECT_ST(run(&w, &bad, &err), ST_USAGE, &err);
    bad = settings, bad.clip = NAN;
    EXPECT_ST(run(&w, &bad, &err), ST_USAGE, &err);
    bad = settings, bad.weight_cap = 0.5;
    EXPECT_ST(run(&w, &bad, &err), ST_USAGE, &err);
    bad = settings, bad.sketches = COMBINE_SKETCHES_MAX + 1;
    EXPECT_ST(run(&w, &bad, &err), ST_USAGE, &err);
    free_world(&w);
}

static void test_idle_deltas_do_not_clip_the_others(void)
{
    struct world w = make_world(3, 0.1);
    struct combine_settings settings = combine_defaults();
    struct err err;
    memset(w.delta[0], 0, w.floats * sizeof(float));
    memset(w.delta[1], 0, w.floats * sizeof(float));
    for (uint32_t i = 0; i < 2; i++) {
        close(w.inputs[i].fd);
        w.inputs[i] = input_of(w.delta[i], 100 + i, 50);
    }
    EXPECT_ST(run(&w, &settings, &err), ST_OK, &err);
    EXPECT(w.result.median_norm == 0 && w.rows[2].clip == 1 && w.result.norm > 0);
    free_world(&w);
}

/* After two versions, written out: A is a mean, and so is the scaled B. */
static void test_what_is_published_is_a_mean(void)
{
    const struct publish_rule rule = {.ema = 0.25, .scale = 0.8}, plain = {.ema = 0, .scale = 1};
    float *first = random_block(1, 1), *second = random_block(2, 1), *start = random_block(3, 1);
    float *published = xmemdup(start, adapter_floats(&SHAPE) * sizeof *start);
    EXPECT(publish_rule_plain(&plain) && !publish_rule_plain(&rule));
    publish_next(&SHAPE, &rule, first, published);
    publish_next(&SHAPE, &rule, second, published);
    size_t seen = 0;
    for (uint32_t l = 0; l < SHAPE.n_layers; l++)
        for (int m = 0; m < LORA_MODULES; m++) {
            if (!(SHAPE.targets & 1u << m))
                continue;
            size_t a = adapter_at_a(&SHAPE, l, (enum lora_module)m), b = adapter_at_b(&SHAPE, l, (enum lora_module)m);
            size_t end = b + (size_t)SHAPE.out[m] * SHAPE.rank;
            for (size_t i = a; i < end; i++, seen++)
                EXPECT_NEAR(published[i], 0.75 * (i < b ? 1 : 0.8) * (second[i] + 0.25 * first[i]) + 0.0625 * start[i],
                            1e-6);
        }
    EXPECT_EQ(seen, adapter_floats(&SHAPE));
    publish_next(&SHAPE, &plain, second, published);
    EXPECT(!memcmp(published, second, adapter_floats(&SHAPE) * sizeof *second));
    free(first), free(second), free(start), free(published);
}

int main(void)
{
    hash_start();
    RUN(test_one_is_identity);
    RUN(test_mean_against_doubles);
    RUN(test_weights_are_capped_and_sum_to_one);
    RUN(test_order_of_arrival_changes_no_bit);
    RUN(test_sketch_estimates_the_factor_error);
    RUN(test_same_delta_twice_has_no_factor_error);
    RUN(test_hostile_inputs);
    RUN(test_idle_deltas_do_not_clip_the_others);
    RUN(test_what_is_published_is_a_mean);
    return harness_end();
}
