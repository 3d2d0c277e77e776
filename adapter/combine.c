#include "adapter/combine.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/check.h"
#include "base/hash.h"

struct part { /* one input, in the order in which it is added */
    uint32_t input;
    struct delta_reader reader;
    double weight, clip;
};

struct combination {
    const struct adapter_shape *shape;
    const float *parent;
    const struct combine_input *inputs;
    const struct combine_settings *settings;
    struct combine_row *rows;
    struct part *parts;
    uint32_t n, n_open; /* readers that are open */
};

struct combine_settings combine_defaults(void)
{
    return (struct combine_settings){.weight_cap = 2, .clip = 3, .step = 1, .sketches = 4};
}

static enum status check_settings(const struct combine_settings *s, struct err *err)
{
    if (!(s->weight_cap >= 1 && s->weight_cap < 1e9) || !(s->clip > 0 && s->clip < 1e9) ||
        !(s->step > 0 && s->step <= 1) || s->sketches > COMBINE_SKETCHES_MAX)
        return err_set(err, ST_USAGE,
                       "combine: weight cap %g (at least 1), clip %g (above 0), step %g (in (0, 1]) or %u sketches",
                       s->weight_cap, s->clip, s->step, s->sketches);
    return ST_OK;
}

/* ---- first pass: what is there, and how large ---- */

enum status combine_check(const struct adapter_shape *shape, const struct combine_input *in, struct combine_row *row,
                          struct err *err)
{
    return delta_check(in->fd, in->bytes, shape, &in->digest, &row->head, &row->norm, err);
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double lower_median(const struct combination *c)
{
    double *norms = xcalloc(c->n, sizeof *norms);
    for (uint32_t i = 0; i < c->n; i++)
        norms[i] = c->rows[i].norm;
    qsort(norms, c->n, sizeof *norms, compare_double);
    double median = norms[(c->n - 1) / 2];
    free(norms);
    return median;
}

struct share {
    uint64_t tokens;
    uint32_t input;
};

static int compare_share(const void *a, const void *b) /* most tokens first */
{
    const struct share *x = a, *y = b;
    return (x->tokens < y->tokens) - (x->tokens > y->tokens);
}

/* From the largest down: who is over the cap gets the cap, the rest divide what is left in proportion. */
static enum status set_weights(struct combination *c, uint64_t *total, struct err *err)
{
    struct share *shares = xcalloc(c->n, sizeof *shares);
    uint32_t counted = 0;
    *total = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        shares[i] = (struct share){c->inputs[i].target_tokens, i};
        counted += shares[i].tokens > 0;
        if (__builtin_add_overflow(*total, shares[i].tokens, total))
            counted = 0, i = c->n - 1;
    }
    if (counted == 0) {
        free(shares);
        return err_set(err, ST_USAGE, "combine: the target tokens sum to nothing, or overflow");
    }
    qsort(shares, c->n, sizeof *shares, compare_share);
    double cap = c->settings->weight_cap / counted, mass = 1;
    uint64_t left = *total;
    bool capped = true;
    for (uint32_t k = 0; k < c->n; k++) {
        double weight = left ? mass * ((double)shares[k].tokens / (double)left) : 0;
        capped = capped && weight > cap;
        if (capped) {
            mass -= weight = cap;
            left -= shares[k].tokens;
        }
        c->rows[shares[k].input].weight = weight;
    }
    free(shares);
    return ST_OK;
}

static int compare_part(const void *a, const void *b)
{
    const struct delta_head *x = &((const struct part *)a)->reader.head, *y = &((const struct part *)b)->reader.head;
    if (x->session != y->session)
        return x->session < y->session ? -1 : 1;
    return (x->lease > y->lease) - (x->lease < y->lease);
}

/* Opens the readers and puts them into lease order, which no arrival order can change. */
static enum status open_parts(struct combination *c, struct err *err)
{
    for (uint32_t i = 0; i < c->n; i++) {
        const struct combine_input *in = &c->inputs[i];
        enum status status = delta_reader_open(&c->parts[i].reader, in->fd, in->bytes, c->shape, err);
        if (status != ST_OK)
            return err_prefix(err, status, "combine: input %u of %u", i, c->n);
        c->n_open++;
        c->parts[i].input = i;
        c->parts[i].weight = c->rows[i].weight;
        c->parts[i].clip = c->rows[i].clip;
    }
    qsort(c->parts, c->n, sizeof *c->parts, compare_part);
    for (uint32_t i = 1; i < c->n; i++)
        if (!compare_part(&c->parts[i - 1], &c->parts[i]))
            return err_set(err, ST_USAGE, "combine: inputs %u and %u are both of lease %llu", c->parts[i - 1].input,
                           c->parts[i].input, (unsigned long long)c->parts[i].reader.head.lease);
    return ST_OK;
}

/* ---- second pass: one module at a time ---- */

/* Chosen when the program starts; the sums are the same in each (no fused multiply-add is allowed here). */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COMBINE_CLONES __attribute__((target_clones("default", "avx2")))
#else
#define COMBINE_CLONES
#endif
enum { LANES = 4 };

/* All that one module needs; allocated once for the largest. S is the number of sketches. */
struct scratch {
    float *delta;                     /* A (r, in), B (out, r) of one delta */
    double *mean;                     /* the same, weighted mean */
    double *signs;                    /* (in, S): the random z */
    double *az;                       /* (r, S): A z */
    double *error;                    /* (out, S): sum w B_i A_i z - B A z */
    double *change;                   /* (out, S): what the mean does to B A, times z */
    uint32_t in, out, r, s, sketches; /* s: sketches, in whole lanes */
};

static struct scratch scratch_new(const struct adapter_shape *shape, uint32_t sketches)
{
    struct scratch x = {.r = shape->rank, .s = (sketches + LANES - 1) / LANES * LANES, .sketches = sketches};
    sketches = x.s;
    size_t in = 0, out = 0;
    for (int m = 0; m < LORA_MODULES; m++) {
        in = shape->in[m] > in ? shape->in[m] : in;
        out = shape->out[m] > out ? shape->out[m] : out;
    }
    x.delta = xcalloc((in + out) * shape->rank, sizeof *x.delta);
    x.mean = xcalloc((in + out) * shape->rank, sizeof *x.mean);
    x.signs = xcalloc(in * sketches, sizeof *x.signs);
    x.az = xcalloc((size_t)shape->rank * sketches, sizeof *x.az);
    x.error = xcalloc(out * sketches, sizeof *x.error);
    x.change = xcalloc(out * sketches, sizeof *x.change);
    return x;
}

static void scratch_release(struct scratch *x)
{
    free(x->delta);
    free(x->mean);
    free(x->signs);
    free(x->az);
    free(x->error);
    free(x->change);
}

/* az (r, S) = A (r, in) z (in, S), of floats, doubles or their sum: NULL is zero. Here and below four sketches at a time, one vector
 * of doubles; S is a multiple of it, what is beyond the wanted number is zero. */
COMBINE_CLONES static void apply_a(struct scratch *x, const float *a, const double *more)
{
    for (uint32_t k = 0; k < x->r; k++)
        for (uint32_t s = 0; s < x->s; s += LANES) {
            const double *z = x->signs + s;
            double sum[LANES] = {0};
            for (uint32_t j = 0; j < x->in; j++, z += x->s) {
                size_t at = (size_t)k * x->in + j;
                double v = (a ? (double)a[at] : 0) + (more ? more[at] : 0);
                for (int i = 0; i < LANES; i++)
                    sum[i] += v * z[i];
            }
            memcpy(x->az + (size_t)k * x->s + s, sum, sizeof sum);
        }
}

/* out (out, S) += factor * B (out, r) az (r, S), with B of floats or of doubles. */
COMBINE_CLONES static void add_b(const struct scratch *x, double factor, const float *b, const double *b_mean,
                                 double *out)
{
    for (uint32_t o = 0; o < x->out; o++)
        for (uint32_t s = 0; s < x->s; s += LANES) {
            double sum[LANES] = {0}, *to = out + (size_t)o * x->s + s;
            for (uint32_t k = 0; k < x->r; k++) {
                size_t at = (size_t)o * x->r + k;
                double v = b ? (double)b[at] : b_mean[at];
                for (int i = 0; i < LANES; i++)
                    sum[i] += v * x->az[(size_t)k * x->s + s + i];
            }
            for (int i = 0; i < LANES; i++)
                to[i] += factor * sum[i];
        }
}

COMBINE_CLONES static void add_scaled(double *mean, double factor, const float *delta, size_t n)
{
    for (size_t i = 0; i < n; i++)
        mean[i] += factor * (double)delta[i];
}

static double sum_of_squares(const double *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += v[i] * v[i];
    return sum;
}

struct totals {
    double mean2, error2, change2;
};

/* E z = sum w B_i (A_i z) - B (A z): the parent cancels, so deltas will do. The change of B A when both factors move by
 * their means: (Bp + b)(Ap + a) - Bp Ap = Bp a + b (Ap + a). */
static void sketch_module(struct scratch *x, const float *parent_a, const float *parent_b, struct totals *totals)
{
    const double *a = x->mean, *b = x->mean + (size_t)x->r * x->in;
    size_t n = (size_t)x->out * x->s;
    memset(x->change, 0, n * sizeof *x->change);
    apply_a(x, NULL, a);
    add_b(x, -1, NULL, b, x->error);
    add_b(x, 1, parent_b, NULL, x->change);
    apply_a(x, parent_a, a);
    add_b(x, 1, NULL, b, x->change);
    totals->error2 += sum_of_squares(x->error, n) / x->sketches;
    totals->change2 += sum_of_squares(x->change, n) / x->sketches;
}

static enum status combine_module(struct combination *c, struct scratch *x, uint32_t layer, enum lora_module m,
                                  struct rng *rng, float *candidate, struct totals *totals, struct err *err)
{
    x->in = c->shape->in[m];
    x->out = c->shape->out[m];
    size_t first = adapter_at_a(c->shape, layer, m), n_a = (size_t)x->r * x->in, n = n_a + (size_t)x->out * x->r;
    CHECK(adapter_at_b(c->shape, layer, m) == first + n_a);
    memset(x->mean, 0, n * sizeof *x->mean);
    memset(x->error, 0, (size_t)x->out * x->s * sizeof *x->error);
    for (size_t j = 0; j < x->in; j++)
        for (uint32_t s = 0; s < x->sketches; s++)
            x->signs[j * x->s + s] = rng_u64(rng) >> 63 ? 1 : -1;

    for (uint32_t p = 0; p < c->n; p++) {
        struct part *part = &c->parts[p];
        double factor = part->weight * part->clip;
        if (part->weight == 0)
            continue;
        enum status status = delta_read(&part->reader, first, n, x->delta, err);
        if (status != ST_OK)
            return err_prefix(err, status, "combine: input %u of %u", part->input, c->n);
        add_scaled(x->mean, factor, x->delta, n);
        if (x->s == 0)
            continue;
        apply_a(x, x->delta, NULL);
        add_b(x, factor * part->clip, x->delta + n_a, NULL, x->error);
    }
    if (x->s > 0)
        sketch_module(x, c->parent + first, c->parent + first + n_a, totals);
    totals->mean2 += sum_of_squares(x->mean, n);
    for (size_t i = 0; i < n; i++) {
        candidate[first + i] = (float)((double)c->parent[first + i] + c->settings->step * x->mean[i]);
        if (!isfinite(candidate[first + i])) {
            char place[64];
            delta_place(c->shape, first + i, place, sizeof place);
            return err_set(err, ST_BAD_DATA, "combine: the candidate is not finite in %s", place);
        }
    }
    return ST_OK;
}

static enum status second_pass(struct combination *c, float *candidate, struct combine_result *result, struct err *err)
{
    struct scratch x = scratch_new(c->shape, c->n > 1 ? c->settings->sketches : 0);
    struct totals totals = {0};
    struct rng rng;
    rng_seed(&rng, c->settings->seed);
    enum status status = ST_OK;
    for (uint32_t layer = 0; layer < c->shape->n_layers; layer++)
        for (int m = 0; m < LORA_MODULES && status == ST_OK; m++)
            if (adapter_adapts(c->shape, layer, (unsigned)m))
                status = combine_module(c, &x, layer, (enum lora_module)m, &rng, candidate, &totals, err);
    result->norm = sqrt(totals.mean2);
    result->factor_error = totals.change2 > 0 ? sqrt(totals.error2 / totals.change2) : 0;
    scratch_release(&x);
    return status;
}

enum status combine_checked(const struct adapter_shape *shape, const float *parent, const struct combine_input *inputs,
                            uint32_t n, const struct combine_settings *settings, float *candidate,
                            struct combine_row *rows, struct combine_result *result, struct err *err)
{
    if (n < 1 || n > COMBINE_DELTAS_MAX)
        return err_set(err, ST_USAGE, "combine: %u deltas; 1 to %d", n, COMBINE_DELTAS_MAX);
    struct combination c = {shape, parent, inputs, settings, rows, xcalloc(n, sizeof(struct part)), n, 0};
    struct combine_result got = {0};
    enum status status = check_settings(settings, err);
    if (status != ST_OK)
        goto done;
    got.median_norm = lower_median(&c);
    for (uint32_t i = 0; i < n; i++) {
        double most = settings->clip * got.median_norm;
        rows[i].clip = got.median_norm > 0 && rows[i].norm > most ? most / rows[i].norm : 1;
    }
    if ((status = set_weights(&c, &got.target_tokens, err)) != ST_OK || (status = open_parts(&c, err)) != ST_OK)
        goto done;
    status = second_pass(&c, candidate, &got, err);
    if (status == ST_OK)
        *result = got;
done:
    for (uint32_t i = 0; i < c.n_open; i++)
        delta_reader_release(&c.parts[i].reader);
    free(c.parts);
    return status;
}

enum status combine(const struct adapter_shape *shape, const float *parent, const struct combine_input *inputs,
                    uint32_t n, const struct combine_settings *settings, float *candidate, struct combine_row *rows,
                    struct combine_result *result, struct err *err)
{
    for (uint32_t i = 0; i < n && n <= COMBINE_DELTAS_MAX; i++) {
        rows[i] = (struct combine_row){0};
        enum status status = combine_check(shape, &inputs[i], &rows[i], err);
        if (status != ST_OK)
            return err_prefix(err, status, "combine: input %u of %u", i, n);
    }
    return combine_checked(shape, parent, inputs, n, settings, candidate, rows, result, err);
}

static void mix(float *published, const float *state, size_t n, double ema, double scale)
{
    const float keep = (float)ema, take = (float)((1 - ema) * scale);
    for (size_t i = 0; i < n; i++)
        published[i] = take * state[i] + keep * published[i];
}

void publish_next(const struct adapter_shape *shape, const struct publish_rule *rule, const float *state,
                  float *published)
{
    for (uint32_t l = 0; l < shape->n_layers; l++)
        for (int m = 0; m < LORA_MODULES; m++) {
            if (!adapter_adapts(shape, l, (unsigned)m))
                continue;
            size_t a = adapter_at_a(shape, l, (enum lora_module)m), b = adapter_at_b(shape, l, (enum lora_module)m);
            mix(published + a, state + a, b - a, rule->ema, 1);
            mix(published + b, state + b, (size_t)shape->out[m] * shape->rank, rule->ema, rule->scale);
        }
}
