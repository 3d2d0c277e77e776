#include "worker/train.h"

#include <stdlib.h>
#include <string.h>

#include "adapter/delta.h"
#include "base/check.h"
#include "base/clock.h"

void lease_work_release(struct lease_work *work)
{
    for (int p = 0; p < MIX_POOLS; p++) {
        free(work->texts[p]);
        token_buf_release(&work->ids[p]);
        buf_release(&work->mask[p]);
    }
    plan_order_release(&work->order);
    plan_release(&work->plan);
    free(work->parent);
    *work = (struct lease_work){0};
}

void train_result_release(struct train_result *result)
{
    buf_release(&result->delta);
    buf_release(&result->first_losses);
    *result = (struct train_result){0};
}

/* ---- ready */

static void count_tokens(struct lease_work *work, struct domain_id domain, uint64_t tokens, uint64_t bytes)
{
    if (work->n_tokens == 0 || work->tokens[work->n_tokens - 1].domain.v != domain.v) /* lease order: rising */
        work->tokens[work->n_tokens++] = (struct worker_tokens){.domain = domain};
    work->tokens[work->n_tokens - 1].tokens += tokens;
    work->tokens[work->n_tokens - 1].bytes += bytes;
}

/* Tokenises the segments of a pool that were added since the last call. */
static enum status tokenise(const struct engine *engine, const struct segment_set *set, enum mix_pool pool,
                            struct lease_work *work, struct err *err)
{
    uint32_t n = work->plan.n[pool];
    work->texts[pool] = xrealloc_array(work->texts[pool], (size_t)n + 1, sizeof *work->texts[pool]);
    for (uint32_t i = work->n_texts[pool]; i < n; i++) {
        struct mix_segment at = work->plan.segments[pool][i];
        const Alv__Segment *segment = segment_set_find(set, at);
        CHECK(segment != NULL);
        size_t had = work->ids[pool].n;
        struct bytes text = {segment->text.data, segment->text.len};
        enum status status = engine_tokenise(engine, segment->kind, text, &work->ids[pool], &work->mask[pool], err);
        if (status != ST_OK)
            return err_prefix(err, status, "domain %u, segment %llu", at.domain.v, (unsigned long long)at.offset);
        struct reader group = reader_of(segment->group.data, segment->group.len);
        size_t tokens = work->ids[pool].n - had;
        CHECK(tokens < UINT32_MAX && work->mask[pool].len == work->ids[pool].n);
        work->texts[pool][i] =
            (struct plan_text){(uint32_t)tokens, read_u64(&group), segment->kind == ALV__RECORD_KIND__RECORD_TEXT};
        work->n_texts[pool] = i + 1;
        if (pool == MIX_FRESH)
            count_tokens(work, at.domain, tokens, text.len);
    }
    return ST_OK;
}

enum status train_ready(const struct engine *engine, struct view *view, const Alv__Lease *lease, segments_fn *segments,
                        void *user, const atomic_bool *cancel, struct lease_work *work, struct err *err)
{
    struct segment_set set = {0};
    enum status status = plan_begin(view, lease, &work->plan, err);
    for (bool again = true; again && status == ST_OK;) {
        for (enum mix_pool p = 0; p < MIX_POOLS && status == ST_OK; p++) {
            if (atomic_load(cancel))
                status = err_set(err, ST_STOPPED, "stopped");
            else
                status = segments(user, &set, work->plan.segments[p], work->plan.n[p], err);
            if (status == ST_OK)
                status = tokenise(engine, &set, p, work, err);
        }
        if (status != ST_OK)
            break;
        plan_order_release(&work->order);
        plan_order(&work->plan, (const struct plan_text *const *)work->texts, &work->order);
        again = false;
        for (enum mix_pool p = MIX_HISTORY; p < MIX_POOLS; p++)
            again |= work->order.ran_short[p] && plan_more(view, lease, &work->plan, p);
    }
    if (status == ST_OK && work->order.n_steps == 0)
        status = err_set(err, ST_BAD_DATA, "lease %llu holds no text to learn from", (unsigned long long)lease->id);
    work->from_cache = set.from_cache;
    work->from_log = set.from_log;
    segment_set_release(&set);
    return status;
}

/* ---- run */

struct step_batches {
    struct sample *samples;
    struct packed *batches;
    uint8_t *taught; /* of each sample: its teacher */
    float *weights;  /* of each sample */
    uint32_t n_samples, n_batches;
};

static void pack_step(const struct lease_work *work, const Alv__TrainConfig *train, uint32_t step, uint32_t rows_max,
                      struct step_batches *out)
{
    static const uint8_t teacher_of[MIX_POOLS] = {[MIX_HISTORY] = TEACHER_START, [MIX_ANCHOR] = TEACHER_BASE};
    const float weight_of[MIX_POOLS] = {
        [MIX_FRESH] = 1,
        [MIX_HISTORY] = 1 + (float)train->history_boost_permille / 1000,
        [MIX_ANCHOR] = 1 + (float)train->anchor_boost_permille / 1000,
    };
    uint32_t first = work->order.steps[step], n = work->order.steps[step + 1] - first;
    *out = (struct step_batches){.samples = xcalloc(n, sizeof *out->samples), .n_samples = n};
    for (uint32_t i = 0; i < n; i++) {
        const struct plan_sample *s = &work->order.samples[first + i];
        out->samples[i] =
            (struct sample){work->ids[s->pool].ids + s->begin, work->mask[s->pool].data + s->begin, s->n_tokens};
    }
    out->batches = xcalloc(n, sizeof *out->batches);
    out->taught = xcalloc(n, sizeof *out->taught);
    out->weights = xcalloc(n, sizeof *out->weights);
    for (uint32_t i = 0; i < n; i++) {
        out->taught[i] = teacher_of[work->order.samples[first + i].pool];
        out->weights[i] = weight_of[work->order.samples[first + i].pool];
    }
    for (uint32_t at = 0, taken; at < n; at += taken) {
        struct packed *batch = &out->batches[out->n_batches++];
        taken = pack_samples(out->samples + at, n - at, rows_max, batch);
        batch->distilled = out->taught + at;
        batch->weights = out->weights + at;
    }
}

static void step_batches_release(struct step_batches *b)
{
    for (uint32_t i = 0; i < b->n_batches; i++)
        packed_release(&b->batches[i]);
    free(b->batches);
    free(b->taught);
    free(b->weights);
    free(b->samples);
}

struct trail {         /* what the steps leave behind */
    double *nll;       /* (samples) */
    uint32_t *targets; /* (samples) */
    float *mean;       /* of the last states (Izmailov et al. 2018, arXiv 1803.05407); NULL: not wanted */
    size_t floats;
    uint32_t states; /* in the mean */
};

static void add_state(struct trail *trail, const float *block)
{
    const float share = 1 / (float)++trail->states;
    for (size_t i = 0; i < trail->floats; i++)
        trail->mean[i] += share * (block[i] - trail->mean[i]);
}

/* How many of T steps are the last `permille` of them. */
static uint32_t last_steps(uint32_t T, uint32_t permille)
{
    return (uint32_t)((uint64_t)T * permille / 1000);
}

/* The rate of step t of T: it falls over the last `falling` steps, and would be nothing at the one after the last. */
static float rate_of(const Alv__TrainConfig *train, uint32_t t, uint32_t T)
{
    const uint32_t falling = last_steps(T, train->decay_permille), left = T - t;
    return left > falling ? train->lr : train->lr * (float)left / (float)(falling + 1);
}

static enum status train_steps(struct engine *engine, const Alv__TrainConfig *train, const struct lease_work *work,
                               const atomic_bool *cancel, train_progress *progress, void *user, struct trail *trail,
                               struct train_result *out, struct err *err)
{
    uint64_t rows = 0;
    double begun = clock_s();
    for (uint32_t t = 0; t < work->order.n_steps; t++) {
        if (atomic_load(cancel))
            return err_set(err, ST_STOPPED, "stopped at step %u of %u", t, work->order.n_steps);
        struct step_batches b;
        struct step_result result;
        trainer_set_rate(engine->trainer, rate_of(train, t, work->order.n_steps));
        uint32_t first = work->order.steps[t];
        pack_step(work, train, t, engine->trainer_config.rows_max, &b);
        for (uint32_t i = 0; i < b.n_batches; i++)
            rows += b.batches[i].n_rows;
        enum status status = trainer_step(engine->trainer, b.batches, b.n_batches, &result, trail->nll + first,
                                          trail->targets + first, err);
        step_batches_release(&b);
        if (status != ST_OK)
            return err_prefix(err, status, "step %u of %u", t + 1, work->order.n_steps);
        if (trail->mean && work->order.n_steps - t <= last_steps(work->order.n_steps, train->average_permille))
            add_state(trail, trainer_adapter(engine->trainer));
        out->target_tokens += result.n_targets;
        out->loss = result.loss;
        double seconds = clock_s() - begun;
        progress(user, t + 1, work->order.n_steps, seconds > 0 ? (uint32_t)((double)rows / seconds) : 0);
    }
    out->steps = work->order.n_steps;
    out->train_ms = (uint32_t)((clock_s() - begun) * 1000);
    return ST_OK;
}

static enum status encode(const struct engine *engine, const Alv__Lease *lease, const struct lease_work *work,
                          const float *state, struct train_result *out, struct err *err)
{
    struct delta_head head = {.coding = (enum delta_coding)lease->train->delta_coding,
                              .session = lease->session_counter,
                              .lease = lease->id,
                              .generation = lease->generation};
    if (head.coding < DELTA_F32 || head.coding > DELTA_INT8)
        return err_set(err, ST_UNSUPPORTED, "delta coding %u", lease->train->delta_coding);
    return delta_encode(&engine->shape, state, work->parent, &head, lease->seed, &out->delta, err);
}

enum status train_run(struct engine *engine, const Alv__Lease *lease, const struct lease_work *work,
                      const atomic_bool *cancel, train_progress *progress, void *user, struct train_result *out,
                      struct err *err)
{
    uint32_t n_samples = work->order.n_samples, n_fresh = work->plan.n[MIX_FRESH];
    struct trail trail = {.nll = xcalloc((size_t)n_samples + 1, sizeof *trail.nll),
                          .targets = xcalloc((size_t)n_samples + 1, sizeof *trail.targets),
                          .floats = adapter_floats(&engine->shape)};
    float *losses = xcalloc((size_t)n_fresh + 1, sizeof *losses);
    struct train_result result = {0};
    enum status status = engine_trainer(engine, lease->train, work->plan.sample_rows, err);
    if (status != ST_OK)
        goto done;
    if (last_steps(work->order.n_steps, lease->train->average_permille))
        trail.mean = xcalloc(trail.floats, sizeof *trail.mean);
    trainer_set_adapter(engine->trainer, work->parent);
    trainer_fingerprint(engine->trainer, result.fingerprint, sizeof result.fingerprint);
    status = train_steps(engine, lease->train, work, cancel, progress, user, &trail, &result, err);
    if (status == ST_OK)
        status = encode(engine, lease, work, trail.mean ? trail.mean : trainer_adapter(engine->trainer), &result, err);
    if (status != ST_OK)
        goto done;
    plan_losses(&work->plan, work->texts[MIX_FRESH], &work->order, trail.nll, trail.targets, losses);
    for (uint32_t i = 0; i < n_fresh; i++)
        buf_put_f32(&result.first_losses, losses[i]);
    *out = result;
    result = (struct train_result){0};
done:
    train_result_release(&result);
    free(losses);
    free(trail.mean);
    free(trail.targets);
    free(trail.nll);
    return status;
}
