#include "model/selftext.h"

#include <stdlib.h>
#include <string.h>

enum { STOPS_MAX = 5 };

struct maker {
    const struct frozen *w;
    const struct tokenizer *tok;
    const struct selftext_options *o;
    struct generate_options draw;
    uint32_t stop[STOPS_MAX];
    struct generate_text texts[GENERATE_BATCH_MAX];
    uint32_t *room; /* (texts, tokens_max) */
};

static void set_up(struct maker *m)
{
    const uint32_t names[STOPS_MAX] = {
        tokenizer_token_id(m->tok, "<|endoftext|>"), tokenizer_token_id(m->tok, "<|im_start|>"),
        tokenizer_token_id(m->tok, "<|im_end|>"), tokenizer_eos(m->tok), tokenizer_bos(m->tok)};
    generate_defaults(&m->draw);
    m->draw.tokens_max = m->o->tokens_max;
    m->draw.temperature = 1;
    m->draw.top_k = 0;
    m->draw.seed = m->o->seed;
    m->draw.threads = m->o->threads;
    m->draw.ops = m->o->ops;
    for (int i = 0; i < STOPS_MAX; i++)
        if (names[i] != TOKEN_NONE)
            m->stop[m->draw.n_stop++] = names[i];
    m->draw.stop = m->stop;
    m->room = xcalloc((size_t)m->o->texts * m->o->tokens_max, sizeof *m->room);
    for (uint32_t i = 0; i < m->o->texts; i++)
        m->texts[i].tokens = m->room + (size_t)i * m->o->tokens_max;
}

/* Appends the ids' text unless it is not UTF-8 (cut inside a character) or reads as other tokens. */
static bool faithful(const struct maker *m, const uint32_t *ids, uint32_t n, struct buf *out)
{
    struct token_buf again = {0};
    tokenizer_decode(m->tok, ids, n, out);
    bool same = tokenizer_encode(m->tok, (const char *)out->data, out->len, &again, NULL) == ST_OK && again.n == n &&
                memcmp(again.ids, ids, n * sizeof *ids) == 0;
    token_buf_release(&again);
    return same;
}

static struct selftext *next_item(struct selftext_batch *out)
{
    return &out->items[out->n];
}

static void drop(struct selftext_batch *out, uint32_t *count)
{
    buf_release(&next_item(out)->text);
    buf_release(&next_item(out)->answer);
    *next_item(out) = (struct selftext){0};
    ++*count;
}

/* ---- without the template */

static enum status draw_plain(struct maker *m, struct selftext_batch *out, struct err *err)
{
    uint32_t begin = tokenizer_token_id(m->tok, "<|endoftext|>"), n = m->o->texts, first[GENERATE_BATCH_MAX];
    if (begin == TOKEN_NONE)
        begin = tokenizer_bos(m->tok);
    if (begin == TOKEN_NONE)
        return err_set(err, ST_UNSUPPORTED,
                       "this base has no <|endoftext|> and no bos token that a text could begin after");
    for (uint32_t i = 0; i < n; i++)
        m->texts[i].prompt = &begin, m->texts[i].n_prompt = 1;
    m->draw.tokens_max = 1;
    enum status status = generate_batch(m->w, m->texts, n, &m->draw, err);
    if (status != ST_OK)
        return status;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < n; i++)
        if (m->texts[i].n_tokens == 1)
            first[kept++] = m->texts[i].tokens[0];
        else
            out->short_ones++;
    if (kept == 0)
        return ST_OK;
    for (uint32_t i = 0; i < kept; i++)
        m->texts[i].prompt = &first[i];
    m->draw.tokens_max = m->o->tokens_max - 1;
    m->draw.seed += n; /* other streams than the first tokens' */
    status = generate_batch(m->w, m->texts, kept, &m->draw, err);
    for (uint32_t i = 0; i < kept && status == ST_OK; i++) {
        const struct generate_text *text = &m->texts[i];
        uint32_t *ids = xmalloc((text->n_tokens + 1) * sizeof *ids), n_ids = text->n_tokens + 1;
        ids[0] = first[i];
        memcpy(ids + 1, text->tokens, text->n_tokens * sizeof *ids);
        if (n_ids < m->o->tokens_min)
            drop(out, &out->short_ones);
        else if (!faithful(m, ids, n_ids, &next_item(out)->text))
            drop(out, &out->unfaithful);
        else
            next_item(out)->n_tokens = n_ids, out->n++;
        free(ids);
    }
    return status;
}

/* ---- with it */

static struct chat_message message_of(enum chat_role role, const struct buf *text)
{
    return (struct chat_message){role, text->data ? (const char *)text->data : "", text->len};
}

/* The opening of a user's turn: a chat with an empty message, without that message's end. */
static enum status opening(const struct maker *m, struct token_buf *out, struct err *err)
{
    struct chat_message empty = {CHAT_USER, "", 0};
    uint32_t end = tokenizer_token_id(m->tok, "<|im_end|>");
    enum status status = chat_render(m->o->template, m->tok, &empty, 1, false, out, NULL, err);
    if (status != ST_OK)
        return status;
    while (out->n > 0 && out->ids[out->n - 1] != end)
        out->n--;
    out->n -= out->n > 0;
    return ST_OK;
}

/* Is the whole chat, rendered as a line would, prompt + answer + what closes the turn? */
static bool same_chat(const struct maker *m, const struct selftext *item, const struct token_buf *prompt,
                      const struct generate_text *text)
{
    struct chat_message both[2] = {message_of(CHAT_USER, &item->text), message_of(CHAT_ASSISTANT, &item->answer)};
    struct token_buf all = {0};
    bool same = chat_render(m->o->template, m->tok, both, 2, false, &all, NULL, NULL) == ST_OK &&
                all.n > prompt->n + text->n_tokens && memcmp(all.ids, prompt->ids, prompt->n * sizeof *all.ids) == 0 &&
                memcmp(all.ids + prompt->n, text->tokens, text->n_tokens * sizeof *all.ids) == 0;
    token_buf_release(&all);
    return same;
}

static enum status draw_users(struct maker *m, struct selftext_batch *out, struct err *err)
{
    struct token_buf begin = {0};
    enum status status = opening(m, &begin, err);
    for (uint32_t i = 0; i < m->o->texts; i++)
        m->texts[i].prompt = begin.ids, m->texts[i].n_prompt = (uint32_t)begin.n;
    if (status == ST_OK)
        status = generate_batch(m->w, m->texts, m->o->texts, &m->draw, err);
    token_buf_release(&begin);
    for (uint32_t i = 0; i < m->o->texts && status == ST_OK; i++) {
        const struct generate_text *text = &m->texts[i];
        if (!text->stopped)
            drop(out, &out->unfinished);
        else if (text->n_tokens == 0)
            drop(out, &out->short_ones);
        else if (!faithful(m, text->tokens, text->n_tokens, &next_item(out)->text))
            drop(out, &out->unfaithful);
        else
            out->n++;
    }
    return status;
}

static enum status draw_chat(struct maker *m, struct selftext_batch *out, struct err *err)
{
    struct token_buf prompts[GENERATE_BATCH_MAX] = {0};
    enum status status = draw_users(m, out, err);
    uint32_t users = out->n;
    for (uint32_t i = 0; i < users && status == ST_OK; i++) {
        struct chat_message user = message_of(CHAT_USER, &out->items[i].text);
        status = chat_render(m->o->template, m->tok, &user, 1, true, &prompts[i], NULL, err);
        m->texts[i].prompt = prompts[i].ids, m->texts[i].n_prompt = (uint32_t)prompts[i].n;
    }
    m->draw.seed += m->o->texts;
    if (status == ST_OK && users > 0)
        status = generate_batch(m->w, m->texts, users, &m->draw, err);
    out->n = 0;
    for (uint32_t i = 0; i < users && status == ST_OK; i++) {
        const struct generate_text *text = &m->texts[i];
        struct selftext item = out->items[i];
        out->items[i] = (struct selftext){0};
        *next_item(out) = item;
        if (!text->stopped)
            drop(out, &out->unfinished);
        else if (text->n_tokens < m->o->tokens_min)
            drop(out, &out->short_ones);
        else if (!faithful(m, text->tokens, text->n_tokens, &next_item(out)->answer) ||
                 !same_chat(m, next_item(out), &prompts[i], text))
            drop(out, &out->unfaithful);
        else
            next_item(out)->n_tokens = text->n_tokens, out->n++;
    }
    for (uint32_t i = 0; i < GENERATE_BATCH_MAX; i++)
        token_buf_release(&prompts[i]);
    return status;
}

enum status selftext_draw(const struct frozen *base, const struct tokenizer *tok,
                          const struct selftext_options *options, struct selftext_batch *out, struct err *err)
{
    struct maker m = {.w = base, .tok = tok, .o = options};
    struct selftext_batch batch = {0};
    if (options->texts < 1 || options->texts > GENERATE_BATCH_MAX || options->tokens_max < 2)
        return err_set(err, ST_USAGE, "a batch is of 1 .. %d texts of at least 2 tokens", GENERATE_BATCH_MAX);
    batch.items = xcalloc(options->texts + 1, sizeof *batch.items);
    set_up(&m);
    enum status status = options->chat ? draw_chat(&m, &batch, err) : draw_plain(&m, &batch, err);
    free(m.room);
    if (status == ST_OK)
        *out = batch;
    else
        selftext_release(&batch);
    return status;
}

void selftext_release(struct selftext_batch *batch)
{
    for (uint32_t i = 0; i < batch->n; i++) {
        buf_release(&batch->items[i].text);
        buf_release(&batch->items[i].answer);
    }
    free(batch->items);
    *batch = (struct selftext_batch){0};
}
