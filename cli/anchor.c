/* alluvium anchor: text that a base writes by itself, for an anchor or a sentinel.
 *
 * The file grows by whole batches, each written in one piece; a record's id says its batch. Started again, the last batch
 * in the file is made anew (it may be torn) and the work goes on: the same file as without the interruption. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "cli/local.h"
#include "cli/print.h"
#include "model/selftext.h"

enum { BATCH = 32, FILE_MAX = 1 << 30, FRUITLESS_MAX = 20, TOKENS_MIN = 16 };

struct args {
    const char *base, *out;
    uint32_t texts, tokens, threads, chat_percent;
    uint64_t seed;
    bool self;
};

static const struct option_row rows[] = {
    OPTION(struct args, self, OPTION_FLAG, "self", 0, NULL, "drawn from the base at temperature 1", .no_env = true),
    OPTION(struct args, base, OPTION_TEXT, "base", 0, "PATH",
           "the base model: a GGUF file or a Hugging Face directory"),
    OPTION(struct args, out, OPTION_TEXT, "out", 'o', "FILE", "JSONL to write; what is there already is kept",
           .no_env = true),
    OPTION(struct args, texts, OPTION_U32, "texts", 'n', "N", "records in the file at the end", .low = 1, .high = 1e7,
           .why = "half of what a domain's sample holds: replay sees each now and then"),
    OPTION(struct args, tokens, OPTION_U32, "max-tokens", 0, "N", "of a text, or of a message", .low = 16,
           .high = 32768, .why = "about a segment of 2 KiB"),
    OPTION(struct args, chat_percent, OPTION_U32, "chat", 0, "PERCENT",
           "of the batches are chats, if the base has a template that is known; else none", .low = 0, .high = 100,
           .why = "a chat model's past is both"),
    OPTION(struct args, seed, OPTION_U64, "seed", 0, "N", "another seed, other texts: for an anchor and a sentinel",
           .why = "the first"),
    OPTION(struct args, threads, OPTION_U32, "threads", 't', "N", "0: the CPUs it may use", .low = 0, .high = 64,
           .why = "all that the scheduler or the control group gave it"),
};

struct writer {
    int fd;
    struct digest *seen; /* of the contents in the file */
    uint32_t n, cap, next_batch;
    uint32_t dropped; /* for all reasons */
};

static bool remember(struct writer *w, const struct digest *digest)
{
    for (uint32_t i = 0; i < w->n; i++)
        if (digest_eq(&w->seen[i], digest))
            return false;
    if (w->n == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 1024;
        w->seen = xrealloc_array(w->seen, w->cap, sizeof *w->seen);
    }
    w->seen[w->n++] = *digest;
    return true;
}

/* The part of a record that tells it from another: everything but the id. */
static void content_digest(const json_t *record, struct digest *out)
{
    const json_t *content = json_object_get(record, "text");
    char *text = json_dumps(content ? content : json_object_get(record, "messages"), JSON_ENCODE_ANY | JSON_COMPACT);
    hash_blake2b(text ? text : "", text ? strlen(text) : 0, out);
    free(text);
}

/* "self-1/12/3": seed, batch, index. */
static bool id_batch(const json_t *record, uint64_t seed, uint32_t *batch)
{
    unsigned long long s;
    unsigned b, i;
    const char *id = json_string_value(json_object_get(record, "id"));
    if (!id || sscanf(id, "self-%llu/%u/%u", &s, &b, &i) != 3 || s != seed)
        return false;
    *batch = b;
    return true;
}

/* Takes over what an earlier run left, but for its last batch. */
static enum status take_over(struct writer *w, const struct args *args, struct err *err)
{
    struct buf file = {0};
    size_t last_at = 0; /* where the newest batch begins */
    uint32_t last = 0, n_before = 0, line = 0;
    enum status status = file_read(args->out, FILE_MAX, &file, err);
    for (size_t at = 0; status == ST_OK && at < file.len;) {
        const uint8_t *end = memchr(file.data + at, '\n', file.len - at);
        if (!end)
            break; /* torn: of the last batch */
        json_error_t why;
        json_t *record = json_loadb((const char *)file.data + at, (size_t)(end - file.data) - at, 0, &why);
        struct digest digest;
        uint32_t batch;
        line++;
        if (!id_batch(record, args->seed, &batch) || batch < last) {
            status = err_set(err, ST_CONFLICT,
                             "%s, line %u: not a record of `anchor --self` with seed %llu: name another --out",
                             args->out, line, (unsigned long long)args->seed);
        } else {
            if (batch > last || line == 1)
                last = batch, last_at = at, n_before = w->n;
            content_digest(record, &digest);
            remember(w, &digest);
        }
        json_decref(record);
        at = (size_t)(end - file.data) + 1;
    }
    if (status == ST_OK && w->n >= args->texts && file.len && file.data[file.len - 1] == '\n')
        w->next_batch = last + 1; /* complete */
    else if (status == ST_OK) {
        w->n = n_before;
        w->next_batch = last;
        if (ftruncate(w->fd, (off_t)last_at))
            status = err_set(err, ST_IO, "%s: %s", args->out, strerror(errno));
    }
    buf_release(&file);
    return status;
}

static json_t *record_of(const struct selftext *item, bool chat, const char *id)
{
    const char *text = (const char *)item->text.data, *answer = (const char *)item->answer.data;
    if (!chat)
        return json_pack("{s:s, s:s%}", "id", id, "text", text, item->text.len);
    return json_pack("{s:s, s:[{s:s, s:s%}, {s:s, s:s%}]}", "id", id, "messages", "role", "user", "content", text,
                     item->text.len, "role", "assistant", "content", answer, item->answer.len);
}

/* Appends what is new of a batch, in one write. */
static enum status put_batch(struct writer *w, const struct args *args, const struct selftext_batch *batch, bool chat,
                             struct err *err)
{
    struct buf lines = {0};
    enum status status = ST_OK;
    for (uint32_t i = 0; i < batch->n && w->n < args->texts; i++) {
        char id[80];
        struct digest digest;
        snprintf(id, sizeof id, "self-%llu/%u/%u", (unsigned long long)args->seed, w->next_batch, i);
        json_t *record = record_of(&batch->items[i], chat, id);
        if (!record) { /* a NUL that JSON cannot carry */
            w->dropped++;
            continue;
        }
        content_digest(record, &digest);
        if (remember(w, &digest)) {
            char *text = json_dumps(record, JSON_COMPACT);
            buf_printf(&lines, "%s\n", text);
            free(text);
        } else {
            w->dropped++;
        }
        json_decref(record);
    }
    if (lines.len && (write(w->fd, lines.data, lines.len) != (ssize_t)lines.len || fdatasync(w->fd)))
        status = err_set(err, ST_IO, "%s: %s", args->out, strerror(errno));
    w->next_batch++;
    buf_release(&lines);
    return status;
}

static bool asked_to_stop(int fd)
{
    struct pollfd stop = {.fd = fd, .events = POLLIN};
    return poll(&stop, 1, 0) > 0;
}

/* Batch b is of chats when the share of chats among the first b + 1 batches would otherwise fall behind. */
static bool is_chat(uint32_t b, uint32_t percent)
{
    return (uint64_t)(b + 1) * percent / 100 > (uint64_t)b * percent / 100;
}

static enum status draw_all(struct writer *w, const struct args *args, const struct local *engine,
                            const struct frozen *frozen, struct err *err)
{
    size_t len;
    const char *source = base_chat_template(engine->base, &len);
    enum chat_template kind = CHAT_SMOLLM2;
    struct err why;
    bool has_chat = chat_template_find(source, source ? len : 0, &kind, &why) == ST_OK;
    struct progress bar = {.what = "anchor", .unit = UNIT_RECORDS};
    uint32_t fruitless = 0;
    enum status status = ST_OK;
    if (args->chat_percent && !has_chat)
        print_note("anchor", "without chats: %s", why.text);
    while (status == ST_OK && w->n < args->texts) {
        struct selftext_batch batch;
        struct selftext_options options = {.texts = BATCH,
                                           .tokens_max = args->tokens,
                                           .tokens_min = TOKENS_MIN,
                                           .chat = has_chat && is_chat(w->next_batch, args->chat_percent),
                                           .template = kind,
                                           .seed = (args->seed << 32) + w->next_batch * 4ull * BATCH,
                                           .threads = local_threads(args->threads)};
        uint32_t had = w->n;
        char extra[100];
        snprintf(extra, sizeof extra, "%u dropped", w->dropped);
        progress_draw(&bar, w->n, args->texts, extra);
        if (asked_to_stop(cli_stop_fd())) {
            status =
                err_set(err, ST_STOPPED, "stopped with %u of %u records: start it again to go on", w->n, args->texts);
            break;
        }
        options.ops = OPS_BLAS;
        status = selftext_draw(frozen, engine->tokenizer, &options, &batch, err);
        if (status != ST_OK)
            break;
        w->dropped += batch.unfinished + batch.short_ones + batch.unfaithful;
        status = put_batch(w, args, &batch, options.chat, err);
        selftext_release(&batch);
        fruitless = w->n > had ? 0 : fruitless + 1;
        if (status == ST_OK && fruitless == FRUITLESS_MAX)
            status = err_set(err, ST_EMPTY, "%d batches in a row gave nothing new: %u records are in %s", FRUITLESS_MAX,
                             w->n, args->out);
    }
    progress_end(&bar);
    return status;
}

static enum status run_anchor(const struct options *o, const struct args *args, struct err *err)
{
    struct local engine = {0};
    struct writer w = {.fd = -1};
    if (!args->self || !args->base || !args->out || o->n_rest)
        return cli_usage(o, err, o->n_rest ? "it takes no arguments" : "--self, --base and --out are needed");
    enum status status = local_open(args->base, &engine, err);
    if (status == ST_OK) {
        w.fd = open(args->out, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        status = w.fd < 0 ? err_set(err, ST_IO, "%s: %s", args->out, strerror(errno)) : take_over(&w, args, err);
    }
    if (status == ST_OK) {
        struct frozen frozen;
        frozen_open(engine.base, &frozen);
        status = draw_all(&w, args, &engine, &frozen, err);
        frozen_release(&frozen);
    }
    if (status == ST_OK && common.json)
        print_json(json_pack("{s:s, s:I, s:I, s:I}", "out", args->out, "records", (json_int_t)w.n, "batches",
                             (json_int_t)w.next_batch, "dropped", (json_int_t)w.dropped));
    else if (status == ST_OK)
        printf("%s: %u records in %u batches\n", args->out, w.n, w.next_batch);
    if (w.fd >= 0)
        close(w.fd);
    free(w.seen);
    local_release(&engine);
    return status;
}

int cmd_anchor(int argc, char **argv)
{
    struct args args = {.texts = 2048, .tokens = 256, .chat_percent = 50, .seed = 1};
    struct err err = {""};
    int code;
    struct options o = {
        .command = "anchor",
        .usage = "--self --base PATH --out FILE",
        .summary = "Text that the base writes by itself: an anchor when nothing of its past is at hand, or a sentinel.",
        .examples = "alluvium anchor --self --base base.gguf --out general.jsonl\n"
                    "alluvium anchor --self --base base.gguf --out self.jsonl --texts 512 --seed 2",
        .notes = "Interrupted, it goes on where it was: start it again with the same options.",
        .rows = rows,
        .n_rows = sizeof rows / sizeof rows[0],
        .values = &args,
    };
    if (!cli_begin(&o, argc, argv, &code))
        return code;
    enum status st = run_anchor(&o, &args, &err);
    return cli_end(&o, st, &err);
}
