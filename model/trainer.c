#include "model/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "model/arena.h"
#include "model/optimizer.h"
#include "model/transformer.h"

struct trainer {
    struct trainer_config config;
    struct transformer *transformer;
    struct arena arena;
    size_t n;            /* floats of the adapter */
    float *block, *grad; /* (n) */
    struct optimizer optimizer;
    double *nll; /* (nll_cap) used when the caller wants none */
    uint32_t *n_targets;
    uint32_t nll_cap;
};

void trainer_defaults(const struct adapter_shape *shape, struct trainer_config *out)
{
    *out = (struct trainer_config){
        .shape = *shape,
        .lr = 1e-3f,
        .beta1 = 0.9f,
        .beta2 = 0.99f,
        .eps = 1e-8f,
        .clip = 1,
        .warmup_steps = 4,
        .rows_max = 2048,
        .seq_max = 512,
        .threads = 1,
        .ops = OPS_BLAS,
    };
}

static const char *checkpoint_name(enum checkpoint checkpoint)
{
    return checkpoint == CHECKPOINT_BLOCK ? "block" : "none";
}

static bool within(float x, float low, float high)
{
    return x >= low && x < high; /* false for NaN */
}

static enum status check_config(const struct trainer_config *c, struct err *err)
{
    if (!within(c->lr, 0, 1) || !within(c->beta1, 0, 1) || !within(c->beta2, 0, 1) || !within(c->weight_decay, 0, 1))
        return err_set(err, ST_USAGE, "learning rate, betas and weight decay must be at least 0 and below 1");
    if (!(c->eps > 0 && c->eps < 1) || !within(c->clip, 0, 1e6f))
        return err_set(err, ST_USAGE, "eps must be above 0 and below 1, clip between 0 and 1e6");
    if (c->ops != OPS_REF && c->ops != OPS_BLAS)
        return err_set(err, ST_USAGE, "unknown back end %d", (int)c->ops);
    if (c->checkpoint != CHECKPOINT_NONE && c->checkpoint != CHECKPOINT_BLOCK)
        return err_set(err, ST_USAGE, "unknown checkpoint policy %d", (int)c->checkpoint);
    return ST_OK;
}

static struct transformer_config transformer_config_of(const struct trainer_config *c)
{
    return (struct transformer_config){ops_of(c->ops), c->shape, c->rows_max,  c->seq_max,
                                       c->threads,     true,     c->checkpoint};
}

static void layout(struct trainer *t, struct arena *arena)
{
    t->block = arena_reals(arena, t->n);
    t->grad = arena_reals(arena, t->n);
    t->optimizer.m = arena_reals(arena, t->n);
    t->optimizer.v = arena_reals(arena, t->n);
}

enum status trainer_plan(const struct arch *arch, const struct trainer_config *config, struct memory_plan *out,
                         struct err *err)
{
    enum status st = check_config(config, err);
    if (st != ST_OK)
        return st;
    struct transformer_config c = transformer_config_of(config);
    struct memory_plan plan = {0};
    st = transformer_plan(arch, &c, &plan.activations, &plan.scratch, err);
    if (st != ST_OK)
        return st;
    struct trainer t = {.n = adapter_floats(&config->shape)};
    struct arena arena = {0};
    layout(&t, &arena);
    plan.adapter = arena.used;
    plan.weights = weights_bytes(arch);
    plan.total = plan.weights + plan.activations + plan.scratch + plan.adapter;
    *out = plan;
    return ST_OK;
}

static enum status too_large(const struct memory_plan *plan, const struct trainer_config *c, struct err *err)
{
    return err_set(err, ST_NO_MEMORY,
                   "training would take %llu MiB (weights %llu, activations %llu of them) and %llu are allowed, with "
                   "%u rows in a micro-batch and checkpoint=%s",
                   (unsigned long long)(plan->total >> 20), (unsigned long long)(plan->weights >> 20),
                   (unsigned long long)(plan->activations >> 20), (unsigned long long)(c->memory_max >> 20),
                   c->rows_max, checkpoint_name(c->checkpoint));
}

/* Half the rows cost next to nothing down to ROWS_GOOD, where the merged weight no longer pays; running each layer forward
 * twice costs a quarter of the step. So rows go first, then the saved activations, then the rest of the rows. */
enum { ROWS_GOOD = 512 };

enum status trainer_fit(const struct arch *arch, struct trainer_config *config, struct memory_plan *out,
                        struct err *err)
{
    struct trainer_config c = *config;
    const uint32_t wanted = c.rows_max, seq = c.seq_max, good = seq > ROWS_GOOD ? seq : ROWS_GOOD;
    struct memory_plan plan;
    enum status st;
    for (c.checkpoint = CHECKPOINT_NONE;; c.checkpoint = CHECKPOINT_BLOCK) {
        uint32_t floor = c.checkpoint == CHECKPOINT_BLOCK ? seq : good < wanted ? good : wanted;
        for (c.rows_max = wanted;; c.rows_max = c.rows_max / 2 > floor ? c.rows_max / 2 : floor) {
            st = trainer_plan(arch, &c, &plan, err);
            if (st != ST_OK)
                return st;
            if (!c.memory_max || plan.total <= c.memory_max) {
                *config = c;
                *out = plan;
                return ST_OK;
            }
            if (c.rows_max <= floor)
                break;
        }
        if (c.checkpoint == CHECKPOINT_BLOCK)
            return too_large(&plan, &c, err);
    }
}

enum status trainer_new(const struct weights *weights, const struct trainer_config *config, struct trainer **out,
                        struct err *err)
{
    struct memory_plan plan;
    enum status st = trainer_plan(&weights->arch, config, &plan, err);
    if (st != ST_OK)
        return st;
    if (config->memory_max && plan.total > config->memory_max)
        return too_large(&plan, config, err);
    struct trainer *t = xcalloc(1, sizeof *t);
    struct transformer_config c = transformer_config_of(config);
    t->config = *config;
    t->n = adapter_floats(&config->shape);
    t->arena.used = plan.adapter;
    st = arena_map(&t->arena, err);
    if (st == ST_OK)
        st = transformer_new(weights, &c, &t->transformer, err);
    if (st != ST_OK) {
        trainer_free(t);
        return st;
    }
    layout(t, &t->arena);
    t->optimizer = (struct optimizer){config->lr,
                                      config->beta1,
                                      config->beta2,
                                      config->eps,
                                      config->weight_decay,
                                      config->clip,
                                      config->warmup_steps,
                                      0,
                                      t->n,
                                      t->optimizer.m,
                                      t->optimizer.v};
    *out = t;
    return ST_OK;
}

void trainer_free(struct trainer *trainer)
{
    if (!trainer)
        return;
    transformer_free(trainer->transformer);
    arena_release(&trainer->arena);
    free(trainer->nll);
    free(trainer->n_targets);
    free(trainer);
}

void trainer_set_adapter(struct trainer *trainer, const float *block)
{
    memcpy(trainer->block, block, trainer->n * sizeof *block);
    optimizer_reset(&trainer->optimizer);
}

const float *trainer_adapter(const struct trainer *trainer)
{
    return trainer->block;
}

const float *trainer_gradient(const struct trainer *trainer)
{
    return trainer->grad;
}

/* Room for the losses of `n` samples; the first step sizes it, later steps rarely grow it. */
static void reserve_samples(struct trainer *t, uint32_t n)
{
    if (n > t->nll_cap) {
        t->nll = xrealloc_array(t->nll, n, sizeof *t->nll);
        t->n_targets = xrealloc_array(t->n_targets, n, sizeof *t->n_targets);
        t->nll_cap = n;
    }
    memset(t->nll, 0, n * sizeof *t->nll);
    memset(t->n_targets, 0, n * sizeof *t->n_targets);
}

enum status trainer_step(struct trainer *trainer, const struct packed *batches, uint32_t n_batches,
                         struct step_result *out, double *sample_nll, uint32_t *sample_targets, struct err *err)
{
    uint64_t targets = 0, samples = 0;
    for (uint32_t b = 0; b < n_batches; b++) {
        enum status st = transformer_accepts(trainer->transformer, &batches[b], err);
        if (st != ST_OK)
            return err_prefix(err, st, "micro-batch %u", b);
        targets += batches[b].n_targets;
        samples += batches[b].n_samples;
    }
    if (samples > TRANSFORMER_ROWS_MAX)
        return err_set(err, ST_LIMIT, "%llu samples in one step; at most %d", (unsigned long long)samples,
                       TRANSFORMER_ROWS_MAX);
    reserve_samples(trainer, (uint32_t)samples);
    memset(trainer->grad, 0, trainer->n * sizeof *trainer->grad);

    struct step_result r = {.n_targets = targets};
    if (targets) {
        uint32_t at = 0;
        for (uint32_t b = 0; b < n_batches; at += batches[b++].n_samples)
            transformer_run(trainer->transformer, trainer->block, trainer->grad, &batches[b], 1 / (float)targets,
                            trainer->nll + at, trainer->n_targets + at);
        for (uint32_t s = 0; s < samples; s++)
            r.loss += trainer->nll[s];
        r.loss /= (double)targets;
        r.grad_norm = optimizer_norm(trainer->grad, trainer->n);
        if (!isfinite(r.loss) || !isfinite(r.grad_norm))
            return err_set(
                err, ST_BAD_DATA,
                "the %s is not finite after %llu steps: the adapter has diverged (a smaller rate), or the base "
                "holds NaN or huge values",
                isfinite(r.loss) ? "gradient" : "loss", (unsigned long long)trainer->optimizer.step);
        optimizer_step(&trainer->optimizer, trainer->block, trainer->grad, r.grad_norm);
    }
    if (sample_nll)
        memcpy(sample_nll, trainer->nll, samples * sizeof *sample_nll);
    if (sample_targets)
        memcpy(sample_targets, trainer->n_targets, samples * sizeof *sample_targets);
    *out = r;
    return ST_OK;
}

void trainer_fingerprint(const struct trainer *trainer, char *out, size_t size)
{
    char back_end[256];
    ops_describe(trainer->config.ops, back_end, sizeof back_end);
    snprintf(out, size, "%s threads=%u rows=%u checkpoint=%s", back_end, trainer->config.threads,
             trainer->config.rows_max, checkpoint_name(trainer->config.checkpoint));
}
