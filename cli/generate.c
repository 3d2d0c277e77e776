/* alluvium generate: text from a base, with or without an adapter. */
#include "model/generate.h"

#include <poll.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include "cli/local.h"
#include "cli/print.h"

struct args {
    const char *base, *adapter, *prompt;
    uint32_t tokens, top_k, threads;
    double temperature;
    uint64_t seed;
    unsigned backend;
    bool chat;
};

static const struct option_row rows[] = {
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, adapter, OPTION_TEXT, "adapter", 0, "PATH", "a PEFT directory or its adapter_model.safetensors",
           .no_env = true),
    OPTION(struct args, prompt, OPTION_TEXT, "prompt", 'p', "TEXT", "what the text begins with", .no_env = true),
    OPTION(struct args, chat, OPTION_FLAG, "chat", 0, NULL, "the prompt is a user's message: answer it",
           .no_env = true),
    OPTION(struct args, tokens, OPTION_U32, "max-tokens", 'n', "N", "at most so many new tokens", .low = 1, .high = 1e6,
           .why = "a paragraph or two"),
    OPTION(struct args, temperature, OPTION_F64, "temperature", 0, "X", "0: always the likeliest", .low = 0, .high = 10,
           .why = "varied, but to the point"),
    OPTION(struct args, top_k, OPTION_U32, "top-k", 0, "N", "draw among the N likeliest; 0: among all", .low = 0,
           .high = 1e6, .why = "keeps the tail of unlikely words out"),
    OPTION(struct args, seed, OPTION_U64, "seed", 0, "N", "of every draw",
           .why = "the same command gives the same text"),
    OPTION(struct args, threads, OPTION_U32, "threads", 't', "N", "0: the CPUs it may use", .low = 0, .high = 64,
           .why = "all that the scheduler or the control group gave it"),
    OPTION(struct args, backend, OPTION_CHOICE, "backend", 0, "blas|ref", "ref: plain loops, slow, for comparison",
           .why = "the library is many times faster"),
};

struct run {
    const struct tokenizer *tokenizer;
    struct buf text;
    uint32_t n;
    int stop_fd;
};

static bool on_token(void *arg, uint32_t token)
{
    struct run *run = arg;
    size_t before = run->text.len;
    tokenizer_decode(run->tokenizer, &token, 1, &run->text);
    run->n++;
    if (!common.json) {
        fwrite(run->text.data + before, 1, run->text.len - before, stdout);
        fflush(stdout);
    }
    struct pollfd stop = {.fd = run->stop_fd, .events = POLLIN};
    return poll(&stop, 1, 0) <= 0;
}

static enum status make_prompt(const struct args *args, const struct local *engine, struct token_buf *ids,
                               struct err *err)
{
    if (!args->chat) {
        uint32_t bos = tokenizer_bos(engine->tokenizer);
        if (!*args->prompt && bos != TOKEN_NONE)
            token_buf_put(ids, bos);
        return tokenizer_encode(engine->tokenizer, args->prompt, strlen(args->prompt), ids, err);
    }
    json_t *messages = json_pack("[{s:s,s:s}]", "role", "user", "content", args->prompt);
    char *text = messages ? json_dumps(messages, JSON_COMPACT) : NULL;
    enum status st = text ? render_chat(engine, text, strlen(text), true, ids, NULL, err)
                          : err_set(err, ST_BAD_DATA, "the prompt is not UTF-8");
    free(text);
    json_decref(messages);
    return st;
}

static enum status run_generate(const struct options *o, const struct args *args, struct err *err)
{
    struct local engine = {0};
    struct lora lora = {0};
    struct token_buf prompt = {0};
    struct generate_options options;
    uint32_t stop[2], n_stop = 0;
    if (!args->base || !args->prompt || o->n_rest)
        return cli_usage(o, err,
                         o->n_rest ? "it takes no arguments (--prompt TEXT)" : "--base and --prompt are needed");
    enum status st = local_open(args->base, &engine, err);
    if (st == ST_OK && args->adapter)
        st = lora_read(args->adapter, base_arch(engine.base), &lora, err);
    if (st == ST_OK)
        st = make_prompt(args, &engine, &prompt, err);
    if (st == ST_OK) {
        struct frozen frozen;
        struct run run = {.tokenizer = engine.tokenizer, .stop_fd = cli_stop_fd()};
        if (tokenizer_eos(engine.tokenizer) != TOKEN_NONE)
            stop[n_stop++] = tokenizer_eos(engine.tokenizer);
        generate_defaults(&options);
        options.tokens_max = args->tokens;
        options.temperature = (float)args->temperature;
        options.top_k = args->top_k;
        options.seed = args->seed;
        options.stop = stop;
        options.n_stop = n_stop;
        options.threads = local_threads(args->threads);
        options.ops = args->backend ? OPS_REF : OPS_BLAS;
        frozen_open(engine.base, &frozen);
        st = generate(&frozen, &lora.shape, lora.block, prompt.ids, (uint32_t)prompt.n, &options, on_token, &run, err);
        if (st == ST_OK && common.json) {
            json_t *text = json_stringn((const char *)run.text.data, run.text.len);
            print_json(json_pack("{s:o,s:I,s:I}", "text", text ? text : json_null(), "prompt_tokens",
                                 (json_int_t)prompt.n, "tokens", (json_int_t)run.n));
        } else if (!common.json) {
            putchar('\n');
        }
        frozen_release(&frozen);
        buf_release(&run.text);
    }
    token_buf_release(&prompt);
    lora_release(&lora);
    local_release(&engine);
    return st;
}

int cmd_generate(int argc, char **argv)
{
    struct args args = {.tokens = 256, .top_k = 40, .temperature = 0.8, .seed = 1};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "generate",
        .usage = "--base PATH --prompt TEXT",
        .summary = "Text from a base, with or without an adapter: to see what a version says.",
        .examples =
            "alluvium generate --base base.gguf --prompt 'Once upon a time' --max-tokens 64\n"
            "alluvium generate --base base.gguf --adapter ./adapters/current --chat --prompt 'What is a delta?'",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = run_generate(&o, &args, &err);
    return cli_end(&o, st, &err);
}
