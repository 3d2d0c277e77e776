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
    float *start;        /* (n) what the adapter was when it was set, if it teaches */
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
    if (c->objective.kind >= OBJECTIVES)
        return err_set(err, ST_USAGE, "unknown objective %d", (int)c->objective.kind);
    if (c->objective.kind == OBJECTIVE_DPO && !(c->objective.beta > 0 && c->objective.beta <= 100))
        return err_set(err, ST_USAGE, "dpo: beta must be above 0 and at most 100, not %g", c->objective.beta);
    for (enum teacher by = TEACHER_NONE; by < TEACHERS; by++)
        if (!(c->objective.distil[by] >= 0 && c->objective.distil[by] <= (by != TEACHER_NONE)))
            return err_set(err, ST_USAGE, "a teacher's share must be 0 to 1");
    if (objective_distils(&c->objective) && c->objective.kind != OBJECTIVE_LM)
        return err_set(err, ST_USAGE, "teachers are of the objective lm alone");
    if (c->objective.kind == OBJECTIVE_DPO && c->seq_max > c->rows_max / 2)
        return err_set(err, ST_USAGE, "dpo: a micro-batch of %u rows does not hold two samples of %u", c->rows_max,
                       c->seq_max);
    return ops_check(c->ops, err);
}

/* Rows of what must not be torn apart: a sample, or DPO's two. */
static uint32_t longest_unit(const struct trainer_config *c)
{
    return c->objective.kind == OBJECTIVE_DPO ? 2 * c->seq_max : c->seq_max;
}

static struct transformer_config transformer_config_of(const struct trainer_config *c)
{
    return (struct transformer_config){
        ops_of(c->ops), c->shape, c->rows_max,          c->seq_max,
        c->threads,     true,     c->checkpoint_layers, objective_distils(&c->objective)};
}

static void layout(struct trainer *t, struct arena *arena)
{
    t->block = arena_reals(arena, t->n);
    t->grad = arena_reals(arena, t->n);
    t->start = t->config.objective.distil[TEACHER_START] > 0 ? arena_reals(arena, t->n) : NULL;
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
    struct trainer t = {.config = *config, .n = adapter_floats(&config->shape)};
    struct arena arena = {0};
    layout(&t, &arena);
    plan.adapter = arena.used;
    plan.weights = weights_bytes(arch, c.ops->packed);
    plan.total = plan.weights + plan.activations + plan.scratch + plan.adapter;
    *out = plan;
    return ST_OK;
}

static enum status too_large(const struct memory_plan *plan, const struct trainer_config *c, struct err *err)
{
    return err_set(err, ST_NO_MEMORY,
                   "training would take %llu MiB (weights %llu, activations %llu of them) and %llu are allowed, with "
                   "%u rows in a micro-batch and checkpoints of %u layers",
                   (unsigned long long)(plan->total >> 20), (unsigned long long)(plan->weights >> 20),
                   (unsigned long long)(plan->activations >> 20), (unsigned long long)(c->memory_max >> 20),
                   c->rows_max, c->checkpoint_layers);
}

/* Half the rows cost next to nothing down to ROWS_GOOD, where the merged weight no longer pays; running every layer forward
 * twice costs a quarter of the step. So rows go first, then the saved activations of as many layers as it takes, then the rest
 * of the rows. */
enum { ROWS_GOOD = 512 };

enum status trainer_fit(const struct arch *arch, struct trainer_config *config, struct memory_plan *out,
                        struct err *err)
{
    struct trainer_config c = *config;
    const uint32_t seq = longest_unit(config), good = seq > ROWS_GOOD ? seq : ROWS_GOOD;
    struct memory_plan plan;
    for (;;) {
        enum status st = trainer_plan(arch, &c, &plan, err);
        if (st != ST_OK)
            return st;
        if (!c.memory_max || plan.total <= c.memory_max) {
            *config = c;
            *out = plan;
            return ST_OK;
        }
        const bool all = c.checkpoint_layers == arch->n_layers;
        if (c.rows_max > good || (all && c.rows_max > seq)) {
            const uint32_t floor = all ? seq : good;
            c.rows_max = c.rows_max / 2 > floor ? c.rows_max / 2 : floor;
        } else if (!all) {
            c.checkpoint_layers++;
        } else {
            return too_large(&plan, &c, err);
        }
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
    if (trainer->start)
        memcpy(trainer->start, block, trainer->n * sizeof *block);
    trainer->optimizer.lr = trainer->config.lr;
    optimizer_reset(&trainer->optimizer);
}

void trainer_set_rate(struct trainer *trainer, float lr)
{
    trainer->optimizer.lr = lr;
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

/* Checks all batches before anything is computed; *n_samples is their sum. */
static enum status accept(const struct trainer *trainer, const struct objective *objective,
                          const struct packed *batches, uint32_t n_batches, uint32_t *n_samples, struct err *err)
{
    uint64_t samples = 0;
    for (uint32_t b = 0; b < n_batches; b++) {
        enum status st = transformer_accepts(trainer->transformer, &batches[b], err);
        if (st == ST_OK)
            st = objective_accepts(objective, &batches[b], err);
        if (st != ST_OK)
            return err_prefix(err, st, "micro-batch %u", b);
        samples += batches[b].n_samples;
    }
    if (samples > TRANSFORMER_ROWS_MAX)
        return err_set(err, ST_LIMIT, "%llu samples in one step; at most %d", (unsigned long long)samples,
                       TRANSFORMER_ROWS_MAX);
    *n_samples = (uint32_t)samples;
    return ST_OK;
}

static enum status not_finite(const struct trainer *trainer, const struct step_result *r, struct err *err)
{
    return err_set(err, ST_BAD_DATA,
                   "the %s is not finite after %llu steps: the adapter has diverged (a smaller rate), or the base "
                   "holds NaN or huge values",
                   isfinite(r->loss) ? "gradient" : "loss", (unsigned long long)trainer->optimizer.step);
}

static void hand_out(const struct trainer *trainer, uint32_t samples, double *sample_nll, uint32_t *sample_targets)
{
    if (sample_nll)
        memcpy(sample_nll, trainer->nll, samples * sizeof *sample_nll);
    if (sample_targets)
        memcpy(sample_targets, trainer->n_targets, samples * sizeof *sample_targets);
}

enum status trainer_step(struct trainer *trainer, const struct packed *batches, uint32_t n_batches,
                         struct step_result *out, double *sample_nll, uint32_t *sample_targets, struct err *err)
{
    const struct objective *objective = &trainer->config.objective;
    uint32_t samples;
    enum status st = accept(trainer, objective, batches, n_batches, &samples, err);
    if (st != ST_OK)
        return st;
    reserve_samples(trainer, samples);
    memset(trainer->grad, 0, trainer->n * sizeof *trainer->grad);

    struct step_result r = {0};
    uint64_t preferred = 0;
    double count = 0;
    for (uint32_t b = 0; b < n_batches; b++) {
        r.n_targets += batches[b].n_targets;
        count += objective_count(objective, &batches[b]);
    }
    if (r.n_targets) {
        for (uint32_t b = 0, at = 0; b < n_batches; at += batches[b++].n_samples) {
            if (objective_distils(objective))
                transformer_teach(trainer->transformer, trainer->start, &batches[b], objective);
            transformer_run(trainer->transformer, trainer->block, trainer->grad, &batches[b], objective,
                            1 / (float)count, trainer->nll + at, trainer->n_targets + at);
            r.loss += objective_sum(objective, &batches[b], trainer->nll + at);
            if (objective->kind == OBJECTIVE_DPO)
                preferred += objective_preferred(&batches[b], trainer->nll + at);
        }
        r.loss /= count;
        r.preferred = (double)preferred / count;
        r.grad_norm = optimizer_norm(trainer->grad, trainer->n);
        if (!isfinite(r.loss) || !isfinite(r.grad_norm))
            return not_finite(trainer, &r, err);
        optimizer_step(&trainer->optimizer, trainer->block, trainer->grad, r.grad_norm);
    }
    hand_out(trainer, samples, sample_nll, sample_targets);
    *out = r;
    return ST_OK;
}

enum status trainer_score(struct trainer *trainer, const struct packed *batches, uint32_t n_batches, double *sample_nll,
                          uint32_t *sample_targets, struct err *err)
{
    const struct objective plain = {.kind = OBJECTIVE_LM};
    struct step_result r = {0};
    uint32_t samples;
    enum status st = accept(trainer, &plain, batches, n_batches, &samples, err);
    if (st != ST_OK)
        return st;
    reserve_samples(trainer, samples);
    for (uint32_t b = 0, at = 0; b < n_batches; at += batches[b++].n_samples) {
        transformer_run(trainer->transformer, trainer->block, NULL, &batches[b], &plain, 0, trainer->nll + at,
                        trainer->n_targets + at);
        r.loss += objective_sum(&plain, &batches[b], trainer->nll + at);
    }
    if (!isfinite(r.loss))
        return not_finite(trainer, &r, err);
    hand_out(trainer, samples, sample_nll, sample_targets);
    return ST_OK;
}

void trainer_fingerprint(const struct trainer *trainer, char *out, size_t size)
{
    char back_end[256];
    ops_describe(trainer->config.ops, back_end, sizeof back_end);
    snprintf(out, size, "%s threads=%u rows=%u checkpoints=%u", back_end, trainer->config.threads,
             trainer->config.rows_max, trainer->config.checkpoint_layers);
}
