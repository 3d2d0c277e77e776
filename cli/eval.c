/* alluvium eval: mean loss per token of a base, with or without an adapter, on files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/local.h"
#include "cli/print.h"
#include "model/evaluate.h"

struct args {
    const char *base, *adapter;
    uint32_t seq, threads;
    unsigned backend;
    bool exact;
};

static const struct option_row rows[] = {
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, adapter, OPTION_TEXT, "adapter", 0, "PATH", "a PEFT directory or its adapter_model.safetensors",
           .no_env = true),
    OPTION(struct args, seq, OPTION_U32, "seq", 0, "N", "tokens of a window; each starts without context", .low = 2,
           .high = 65536, .why = "as a line's (settings)"),
    OPTION(struct args, exact, OPTION_FLAG, "exact", 0, NULL,
           "also count the chats whose answers it would give word for word (greedy)", .no_env = true),
    OPTION(struct args, threads, OPTION_U32, "threads", 't', "N", "0: the CPUs it may use", .low = 0, .high = 64,
           .why = "all that the scheduler or the control group gave it"),
    OPTION(struct args, backend, OPTION_CHOICE, "backend", 0, LOCAL_BACKENDS, LOCAL_BACKENDS_HELP,
           .why = "exact: the loss that other programs give"),
};

static void print_row(json_t *list, const char *file, double nll, uint64_t tokens)
{
    json_array_append_new(list, json_pack("{s:s,s:I,s:o}", "file", file, "tokens", (json_int_t)tokens, "nll_per_token",
                                          tokens ? json_real(nll / (double)tokens) : json_null()));
}

/* In portions, so that progress shows; one portion is many windows, packed together. */
static enum status score(struct evaluator *evaluator, const struct corpus *corpus, double *nll, uint32_t *targets,
                         struct err *err)
{
    enum { PORTION = 64 };
    struct progress bar = {.what = "eval", .unit = UNIT_STEPS};
    enum status st = ST_OK;
    for (size_t at = 0; at < corpus->n && st == ST_OK;) {
        struct sample samples[PORTION];
        uint32_t n = 0;
        while (n < PORTION && at + n < corpus->n) {
            samples[n] = corpus_sample(corpus, at + n);
            n++;
        }
        st = evaluator_score(evaluator, samples, n, nll + at, targets + at, err);
        at += n;
        progress_draw(&bar, at, corpus->n, "windows");
    }
    progress_end(&bar);
    return st;
}

/* Chats are told by what is no target in them: their questions. One longer than a window counts window by window. */
static bool is_chat(const struct sample *sample)
{
    for (uint32_t i = 0; i < sample->n_tokens; i++)
        if (sample->mask && !sample->mask[i])
            return true;
    return false;
}

static enum status count_exact(struct evaluator *evaluator, const struct corpus *corpus, uint32_t path,
                               uint64_t *answers, uint64_t *exact, struct err *err)
{
    enum status st = ST_OK;
    for (size_t w = 0; w < corpus->n && st == ST_OK; w++) {
        struct sample sample = corpus_sample(corpus, w);
        bool same = false;
        if (corpus->windows[w].path != path || !is_chat(&sample))
            continue;
        st = evaluator_exact(evaluator, &sample, &same, err);
        ++*answers;
        *exact += same;
    }
    return st;
}

static enum status run_eval(const struct options *o, const struct args *args, struct err *err)
{
    struct local engine = {0};
    struct lora lora = {0};
    struct corpus corpus = {0};
    struct evaluator *evaluator = NULL;
    struct evaluator_config config;
    double *nll = NULL, all_nll = 0;
    uint32_t *targets = NULL;
    uint64_t all_tokens = 0;
    json_t *list = json_array();
    if (!args->base || !o->n_rest) {
        json_decref(list);
        return cli_usage(o, err, "--base and at least one file are needed");
    }
    enum status st = local_open(args->base, &engine, err);
    if (st == ST_OK && args->adapter)
        st = lora_read(args->adapter, base_arch(engine.base), &lora, err);
    else if (st == ST_OK) /* the evaluator wants a shape, although nothing will have it */
        st = adapter_shape_of(base_arch(engine.base), 1, 1, LORA_ALL, &lora.shape, err);
    for (int i = 0; i < o->n_rest && st == ST_OK; i++)
        st = corpus_add(&corpus, &engine, o->rest[i], (uint32_t)i, args->seq, err);
    if (st == ST_OK)
        st = local_load(&engine, local_ops(args->backend), err);
    if (st != ST_OK)
        goto done;
    evaluator_defaults(&lora.shape, &config);
    config.seq_max = args->seq;
    config.rows_max = args->seq > config.rows_max ? args->seq : config.rows_max;
    config.threads = local_threads(args->threads);
    config.ops = local_ops(args->backend);
    st = evaluator_new(engine.weights, &config, &evaluator, err);
    if (st != ST_OK)
        goto done;
    evaluator_set_adapter(evaluator, lora.block);
    nll = xcalloc(corpus.n + 1, sizeof *nll);
    targets = xcalloc(corpus.n + 1, sizeof *targets);
    st = score(evaluator, &corpus, nll, targets, err);
    if (st != ST_OK)
        goto done;
    for (int i = 0; i < o->n_rest; i++) {
        double sum = 0;
        uint64_t tokens = 0;
        for (size_t w = 0; w < corpus.n; w++)
            if (corpus.windows[w].path == (uint32_t)i) {
                sum += nll[w];
                tokens += targets[w];
            }
        print_row(list, o->rest[i], sum, tokens);
        if (args->exact) {
            uint64_t answers = 0, exact = 0;
            json_t *row = json_array_get(list, json_array_size(list) - 1);
            st = count_exact(evaluator, &corpus, (uint32_t)i, &answers, &exact, err);
            if (st != ST_OK)
                goto done;
            json_object_set_new(row, "answers", json_integer((json_int_t)answers));
            json_object_set_new(row, "exact", json_integer((json_int_t)exact));
        }
        all_nll += sum;
        all_tokens += tokens;
    }
    if (o->n_rest > 1)
        print_row(list, "all", all_nll, all_tokens);
    if (common.json)
        print_json(json_incref(list));
    else
        print_value(stdout, list);
    if (corpus.refused)
        st = err_set(err, ST_BAD_DATA, "%llu records were refused (named above)", (unsigned long long)corpus.refused);
done:
    evaluator_free(evaluator);
    json_decref(list);
    free(nll);
    free(targets);
    corpus_release(&corpus);
    lora_release(&lora);
    local_release(&engine);
    return st;
}

int cmd_eval(int argc, char **argv)
{
    struct args args = {.backend = LOCAL_BLAS, .seq = 512};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "eval",
        .usage = "--base PATH FILE|DIR...",
        .summary = "Mean loss per token (nats) of a base, with or without an adapter, on files.",
        .examples = "alluvium eval --base base.gguf held-out.jsonl\n"
                    "alluvium eval --base base.gguf --adapter ./adapters/current held-out.jsonl general.txt\n"
                    "alluvium eval --base base.gguf --adapter ./adapters/current --exact questions.jsonl",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = run_eval(&o, &args, &err);
    return cli_end(&o, st, &err);
}
