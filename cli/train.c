/* alluvium train: an adapter from files, in one process. */
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/hash.h"
#include "cli/local.h"
#include "cli/print.h"
#include "model/trainer.h"

enum { BATCHES_MAX = 1024 };

struct args {
    const char *base, *out, *adapter, *base_name, *targets;
    struct option_list data;
    uint32_t steps, seq, step_tokens, rank, alpha, warmup, threads, micro_rows, first_layer;
    double lr, clip, weight_decay, beta;
    uint64_t seed, memory;
    unsigned backend, objective;
    uint32_t vocab_size; /* of the base */
    bool dry_run;
};

static const struct option_row rows[] = {
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, data, OPTION_LIST, "data", 0, "PATH",
           "what to learn, as for push; for dpo and kl see docs/how-to/train-on-files.md; more may follow as arguments",
           .no_env = true),
    OPTION(struct args, objective, OPTION_CHOICE, "objective", 0, "lm|dpo|kl",
           "lm: text and chats; dpo: pairs of answers; kl: a teacher's logits", .why = "what a line's workers do"),
    OPTION(struct args, beta, OPTION_F64, "beta", 0, "X", "dpo: how close to the reference", .low = 1e-6, .high = 100,
           .why = "as in the paper, arXiv 2305.18290"),
    OPTION(struct args, out, OPTION_TEXT, "out", 'o', "DIR", "where the adapter is written: PEFT and GGUF",
           .no_env = true),
    OPTION(struct args, adapter, OPTION_TEXT, "adapter", 0, "PATH",
           "go on from this adapter; rank, alpha, modules and layers are its own", .no_env = true),
    OPTION(struct args, steps, OPTION_U32, "steps", 0, "N", "optimiser steps", .low = 1, .high = 1e6,
           .why = "a first impression in minutes"),
    OPTION(struct args, lr, OPTION_F64, "lr", 0, "X", "learning rate", .low = 1e-9, .high = 1,
           .why = "as a line's (settings)"),
    OPTION(struct args, rank, OPTION_U32, "rank", 0, "N", "rank", .low = 1, .high = LORA_RANK_MAX,
           .why = "as a line's (settings)"),
    OPTION(struct args, alpha, OPTION_U32, "alpha", 0, "N", "alpha: the adapter's scale is alpha / rank", .low = 1,
           .high = 65536, .why = "as a line's (settings)"),
    OPTION(struct args, targets, OPTION_TEXT, "target-modules", 0, "LIST", LOCAL_TARGETS_HELP,
           .why = "what few of them can learn, all can"),
    OPTION(struct args, first_layer, OPTION_U32, "first-layer", 0, "N", LOCAL_FIRST_LAYER_HELP, .low = 0, .high = 65535,
           .why = "what the upper layers can learn, all can"),
    OPTION(struct args, seq, OPTION_U32, "seq", 0, "N", "tokens of a window", .low = 2, .high = 65536,
           .why = "as a line's (settings)"),
    OPTION(struct args, step_tokens, OPTION_U32, "step-tokens", 0, "N", "tokens of an optimiser step", .low = 2,
           .high = 1e6, .why = "as a line's (settings)"),
    OPTION(struct args, micro_rows, OPTION_U32, "micro-rows", 0, "N", "tokens of a micro-batch: memory against speed",
           .low = 2, .high = 65536, .why = "larger is hardly faster; smaller loses speed in the products"),
    OPTION(struct args, warmup, OPTION_U32, "warmup", 0, "N", "steps of rising rate", .low = 0, .high = 1e6,
           .why = "as a line's (settings)"),
    OPTION(struct args, clip, OPTION_F64, "clip", 0, "X", "largest norm of the gradient; 0: any", .low = 0, .high = 1e6,
           .why = "as a line's (settings)"),
    OPTION(struct args, weight_decay, OPTION_F64, "weight-decay", 0, "X", "decoupled, as in AdamW", .low = 0, .high = 1,
           .why = "as a line's (settings)"),
    OPTION(struct args, seed, OPTION_U64, "seed", 0, "N", "of the factors and of the order",
           .why = "the same command gives the same adapter"),
    OPTION(struct args, threads, OPTION_U32, "threads", 't', "N", "0: the CPUs it may use", .low = 0, .high = 64,
           .why = "all that the scheduler or the control group gave it"),
    OPTION(struct args, backend, OPTION_CHOICE, "backend", 0, LOCAL_BACKENDS, LOCAL_BACKENDS_HELP,
           .why = LOCAL_BACKENDS_WHY),
    OPTION(struct args, memory, OPTION_BYTES, "memory", 0, "BYTES",
           "choose micro-batch and checkpoints to keep within; 0: no limit", .why = "the plan is shown first"),
    OPTION(struct args, base_name, OPTION_TEXT, "base-name", 0, "NAME",
           "base_model_name_or_path in adapter_config.json"),
    OPTION(struct args, dry_run, OPTION_FLAG, "dry-run", 0, NULL, "show the memory plan and end", .no_env = true),
};

/* Windows that go together: an answer comes with its rival. */
static uint32_t unit(const struct args *args)
{
    return args->objective == OBJECTIVE_DPO ? 2 : 1;
}

/* Units of windows in a seeded order, another for each pass over the data. */
struct order {
    struct rng rng;
    size_t *index, n, at;
    uint32_t passes;
};

static size_t next_unit(struct order *order)
{
    if (order->at == order->n) {
        for (size_t i = order->n; i > 1; i--) {
            size_t k = (size_t)rng_below(&order->rng, i), kept = order->index[i - 1];
            order->index[i - 1] = order->index[k];
            order->index[k] = kept;
        }
        order->at = 0;
        order->passes++;
    }
    return order->index[order->at++];
}

/* Some windows as micro-batches, with what their objective needs. */
struct batches {
    struct packed packed[BATCHES_MAX];
    uint32_t n;
    double *reference;     /* (n_windows) */
    const float **teacher; /* (rows) */
};

static void batches_release(struct batches *b)
{
    for (uint32_t i = 0; i < b->n; i++)
        packed_release(&b->packed[i]);
    free(b->reference);
    free(b->teacher);
}

static enum status make_batches(const struct args *args, const struct corpus *corpus, const size_t *windows, uint32_t n,
                                uint32_t rows_max, struct batches *out, struct err *err)
{
    struct sample *samples = xcalloc((size_t)n + 1, sizeof *samples);
    uint64_t n_rows = 0;
    for (uint32_t i = 0; i < n; i++) {
        samples[i] = corpus_sample(corpus, windows[i]);
        n_rows += samples[i].n_tokens - 1;
    }
    out->n = 0;
    out->reference = xcalloc((size_t)n + 1, sizeof *out->reference);
    out->teacher = xcalloc(n_rows + 1, sizeof *out->teacher);
    const float **teacher = out->teacher;
    enum status st = ST_OK;
    for (uint32_t at = 0; at < n && st == ST_OK;) {
        if (out->n == BATCHES_MAX) {
            st = err_set(err, ST_LIMIT, "a step of more than %d micro-batches; raise --micro-rows", BATCHES_MAX);
            break;
        }
        struct packed *p = &out->packed[out->n++];
        uint32_t taken = unit(args) == 2 ? pack_pairs(samples + at, n - at, rows_max, p)
                                         : pack_samples(samples + at, n - at, rows_max, p);
        p->reference = out->reference + at;
        p->teacher = teacher;
        for (uint32_t i = at; i < at + taken; i++) {
            const struct window *w = &corpus->windows[windows[i]];
            out->reference[i] = w->reference;
            for (uint32_t m = 0; m + 1 < w->n; m++)
                *teacher++ = w->teacher ? w->teacher + (size_t)m * args->vocab_size : NULL;
        }
        at += taken;
    }
    free(samples);
    return st;
}

static enum status one_step(const struct args *args, const struct corpus *corpus, struct order *order,
                            struct trainer *trainer, uint32_t rows_max, struct step_result *out, struct err *err)
{
    uint32_t n = 0, cap = args->step_tokens + 2;
    size_t *windows = xcalloc(cap, sizeof *windows);
    uint64_t n_rows = 0;
    while (n_rows < args->step_tokens && n + unit(args) <= cap)
        for (size_t first = next_unit(order) * unit(args), i = 0; i < unit(args); i++) {
            windows[n++] = first + i;
            n_rows += corpus->windows[first + i].n - 1;
        }
    struct batches batches;
    enum status st = make_batches(args, corpus, windows, n, rows_max, &batches, err);
    if (st == ST_OK)
        st = trainer_step(trainer, batches.packed, batches.n, out, NULL, NULL, err);
    batches_release(&batches);
    free(windows);
    return st;
}

static bool stopped(void)
{
    struct pollfd stop = {.fd = cli_stop_fd(), .events = POLLIN};
    return poll(&stop, 1, 0) > 0;
}

/* The reference's log-probabilities of pairs that came without: those of the adapter that training begins with. */
static enum status score_references(const struct args *args, struct corpus *corpus, struct trainer *trainer,
                                    uint32_t rows_max, struct err *err)
{
    struct progress bar = {.what = "reference", .unit = UNIT_STEPS};
    enum status st = ST_OK;
    for (size_t w = 0; w < corpus->n && st == ST_OK && !stopped(); w += 2) {
        if (!isnan(corpus->windows[w].reference))
            continue;
        const size_t pair[2] = {w, w + 1};
        struct batches batches;
        double nll[2];
        uint32_t targets[2];
        st = make_batches(args, corpus, pair, 2, rows_max, &batches, err);
        if (st == ST_OK)
            st = trainer_score(trainer, batches.packed, batches.n, nll, targets, err);
        for (int i = 0; i < 2 && st == ST_OK; i++)
            corpus->windows[w + (size_t)i].reference = -nll[i];
        batches_release(&batches);
        progress_draw(&bar, w / 2 + 1, corpus->n / 2, "pairs");
    }
    progress_end(&bar);
    return st;
}

static enum status write_adapter(const struct args *args, const struct local *engine, const struct adapter_shape *shape,
                                 const float *block, struct err *err)
{
    struct card card;
    struct buf peft = {0}, gguf = {0}, config = {0};
    enum status st = base_card(engine->base, &card, err);
    if (st != ST_OK)
        return st;
    if (mkdir(args->out, 0777) != 0 && errno != EEXIST)
        return err_set(err, ST_IO, "%s: cannot be made: %s", args->out, strerror(errno));
    adapter_write_peft(shape, block, &peft);
    adapter_write_gguf(shape, &card, block, &gguf);
    adapter_peft_config(shape, args->base_name ? args->base_name : card.base_name, &config);
    const struct {
        const char *name;
        const struct buf *bytes;
    } files[] = {{"adapter_model.safetensors", &peft}, {"adapter.gguf", &gguf}, {"adapter_config.json", &config}};
    for (size_t i = 0; i < sizeof files / sizeof files[0] && st == ST_OK; i++) {
        char path[4300];
        snprintf(path, sizeof path, "%s/%s", args->out, files[i].name);
        st = file_write_durable(path, files[i].bytes->data, files[i].bytes->len, 0644, err);
    }
    buf_release(&peft);
    buf_release(&gguf);
    buf_release(&config);
    return st;
}

static void print_plan(const struct memory_plan *plan, const struct trainer_config *config, const char *fingerprint)
{
    char text[5][32];
    const uint64_t parts[] = {plan->weights, plan->activations, plan->scratch, plan->adapter, plan->total};
    for (int i = 0; i < 5; i++)
        human_bytes(parts[i], text[i], sizeof text[i]);
    if (common.json)
        print_json_line(json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s}", "event", "plan", "weights",
                                  (json_int_t)plan->weights, "activations", (json_int_t)plan->activations, "scratch",
                                  (json_int_t)plan->scratch, "adapter", (json_int_t)plan->adapter, "total",
                                  (json_int_t)plan->total, "rows", (json_int_t)config->rows_max, "checkpoint_layers",
                                  (json_int_t)config->checkpoint_layers, "fingerprint", fingerprint));
    else
        printf("memory: %s weights + %s activations + %s scratch + %s adapter and optimiser = %s\n"
               "micro-batches of %u rows, checkpoints of %u layers\n",
               text[0], text[1], text[2], text[3], text[4], config->rows_max, config->checkpoint_layers);
}

/* The steps. On a stop what was learned so far is kept: *done tells how much. */
static enum status learn(const struct args *args, const struct corpus *corpus, struct trainer *trainer,
                         uint32_t rows_max, uint32_t *done, struct err *err)
{
    struct progress bar = {.what = "train", .unit = UNIT_STEPS};
    size_t units = corpus->n / unit(args);
    struct order order = {.n = units, .at = units, .index = xcalloc(units, sizeof *order.index)};
    enum status st = ST_OK;
    double loss = NAN, began = clock_s();
    uint64_t tokens = 0;
    rng_seed(&order.rng, args->seed);
    for (size_t i = 0; i < units; i++)
        order.index[i] = i;
    for (*done = 0; *done < args->steps && st == ST_OK && !stopped();) {
        struct step_result result;
        double at = clock_s();
        st = one_step(args, corpus, &order, trainer, rows_max, &result, err);
        if (st != ST_OK)
            break;
        ++*done;
        tokens += result.n_targets;
        loss = isnan(loss) ? result.loss : 0.9 * loss + 0.1 * result.loss;
        char extra[100], preferred[32] = "";
        if (unit(args) == 2)
            snprintf(preferred, sizeof preferred, ", preferred %.0f %%", 100 * result.preferred);
        snprintf(extra, sizeof extra, "loss %.4f%s, %.0f tok/s", loss, preferred, (double)tokens / (clock_s() - began));
        progress_draw(&bar, *done, args->steps, extra);
        if (common.json)
            print_json_line(json_pack("{s:s,s:I,s:f,s:f,s:I,s:f,s:o*}", "event", "step", "step", (json_int_t)*done,
                                      "loss", result.loss, "grad_norm", result.grad_norm, "tokens",
                                      (json_int_t)result.n_targets, "seconds", clock_s() - at, "preferred",
                                      unit(args) == 2 ? json_real(result.preferred) : NULL));
    }
    progress_end(&bar);
    free(order.index);
    double s = clock_s() - began;
    if (st == ST_OK && !common.json)
        printf("%u steps, %llu tokens in %.1f s (%.0f tok/s), %u passes over the data, loss %.4f\n", *done,
               (unsigned long long)tokens, s, (double)tokens / s, order.passes, loss);
    return st;
}

static enum status start_factors(const struct args *args, const struct arch *arch, struct lora *lora, struct err *err)
{
    uint32_t targets;
    enum status st = lora_targets(args->targets, args->first_layer, &targets, err);
    if (st == ST_OK && args->adapter) {
        if (targets != LORA_ALL)
            return err_set(err, ST_USAGE,
                           "--adapter brings its modules and layers: leave --target-modules and "
                           "--first-layer out");
        return lora_read(args->adapter, arch, lora, err);
    }
    if (st == ST_OK)
        st = adapter_shape_of(arch, args->rank, args->alpha, targets, &lora->shape, err);
    if (st == ST_OK) {
        lora->block = xcalloc(adapter_floats(&lora->shape), sizeof *lora->block);
        adapter_init(&lora->shape, args->seed, lora->block);
    }
    return st;
}

static enum status read_data(const struct options *o, const struct args *args, const struct local *engine,
                             struct corpus *corpus, struct err *err)
{
    enum status st = ST_OK;
    for (uint32_t i = 0; i < args->data.n + (uint32_t)o->n_rest && st == ST_OK; i++) {
        const char *path = i < args->data.n ? args->data.items[i] : o->rest[i - args->data.n];
        if (args->objective == OBJECTIVE_DPO)
            st = corpus_add_pairs(corpus, engine, path, i, args->seq, err);
        else if (args->objective == OBJECTIVE_KL)
            st = corpus_add_teacher(corpus, path, args->vocab_size, i, args->seq, err);
        else
            st = corpus_add(corpus, engine, path, i, args->seq, err);
    }
    if (st == ST_OK && !corpus->n)
        st = err_set(err, ST_BAD_DATA, "there is nothing to learn from in %s",
                     args->data.n ? args->data.items[0] : o->rest[0]);
    if (st == ST_OK)
        print_note("train", "%llu records, %zu tokens in %zu windows%s", (unsigned long long)corpus->records,
                   corpus->tokens.n, corpus->n, corpus->refused ? " (some were refused, see above)" : "");
    return st;
}

static enum status run_train(const struct options *o, struct args *args, struct err *err)
{
    struct local engine = {0};
    struct lora lora = {0};
    struct corpus corpus = {0};
    struct trainer *trainer = NULL;
    struct trainer_config config;
    struct memory_plan plan;
    char fingerprint[256] = "";
    uint32_t done = 0;
    if (!args->base || (!args->dry_run && (!args->out || (!args->data.n && !o->n_rest))))
        return cli_usage(o, err, "--base, --data and --out are needed");
    enum status st = local_open(args->base, &engine, err);
    if (st == ST_OK)
        st = start_factors(args, base_arch(engine.base), &lora, err);
    if (st != ST_OK)
        goto finish;
    args->vocab_size = base_arch(engine.base)->vocab_size;
    trainer_defaults(&lora.shape, &config);
    config.objective = (struct objective){.kind = (enum objective_kind)args->objective, .beta = args->beta};
    config.lr = (float)args->lr;
    config.clip = (float)args->clip;
    config.weight_decay = (float)args->weight_decay;
    config.warmup_steps = args->warmup;
    config.seq_max = args->seq;
    config.rows_max = args->micro_rows;
    config.threads = local_threads(args->threads);
    config.ops = local_ops(args->backend);
    config.memory_max = args->memory;
    st = trainer_fit(base_arch(engine.base), &config, &plan, err);
    if (st == ST_OK && args->dry_run)
        print_plan(&plan, &config, fingerprint);
    if (st != ST_OK || args->dry_run)
        goto finish;
    st = read_data(o, args, &engine, &corpus, err);
    if (st == ST_OK)
        st = local_load(&engine, local_ops(args->backend), err);
    if (st == ST_OK)
        st = trainer_new(engine.weights, &config, &trainer, err);
    if (st != ST_OK)
        goto finish;
    trainer_fingerprint(trainer, fingerprint, sizeof fingerprint);
    if (common.json)
        print_plan(&plan, &config, fingerprint);
    trainer_set_adapter(trainer, lora.block);
    free(lora.block); /* it is no part of the plan */
    lora.block = NULL;
    if (args->objective == OBJECTIVE_DPO)
        st = score_references(args, &corpus, trainer, config.rows_max, err);
    if (st == ST_OK)
        st = learn(args, &corpus, trainer, config.rows_max, &done, err);
    if (st == ST_OK && done)
        st = write_adapter(args, &engine, &lora.shape, trainer_adapter(trainer), err);
    if (st == ST_OK && !common.json && done)
        printf("%s: adapter_model.safetensors with adapter_config.json (PEFT), adapter.gguf (llama.cpp)\n", args->out);
    if (st == ST_OK && done < args->steps)
        st = err_set(err, ST_STOPPED, "stopped after %u of %u steps; the adapter is what was learned until then", done,
                     args->steps);
finish:
    trainer_free(trainer);
    corpus_release(&corpus);
    lora_release(&lora);
    local_release(&engine);
    return st;
}

int cmd_train(int argc, char **argv)
{
    struct args args = {.steps = 64,
                        .lr = 1e-3,
                        .rank = 16,
                        .alpha = 32,
                        .targets = "all",
                        .seq = 512,
                        .step_tokens = 1024,
                        .micro_rows = 1024,
                        .warmup = 4,
                        .clip = 1,
                        .beta = 0.1,
                        .seed = 1};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "train",
        .usage = "--base PATH --data PATH... --out DIR",
        .summary = "Trains a LoRA adapter on files: the engine by itself, one process, no network.",
        .examples = "alluvium train --base base.gguf --data notes.jsonl --steps 200 --out ./adapter\n"
                    "alluvium train --base base.gguf --data ./src --lr 5e-4 --out ./adapter --threads 4\n"
                    "alluvium train --base base.gguf --objective dpo --data pairs.jsonl --lr 2e-4 --out ./adapter\n"
                    "alluvium train --base base.gguf --dry-run",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    if (args.micro_rows < args.seq * unit(&args))
        args.micro_rows = args.seq * unit(&args);
    enum status st = run_train(&o, &args, &err);
    return cli_end(&o, st, &err);
}
