/* ChatML: <|im_start|>ROLE\nCONTENT<|im_end|>\n for each message. "ROLE\nCONTENT" is encoded as one text, as it is when the
 * reference parses the rendered string; so a token may begin in the newline and end in the content. */
#include "model/template.h"

#include <stdio.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/ids.h"

static const struct {
    const char *sha256;
    enum chat_template kind;
} known[] = {{"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", CHAT_SMOLLM2}};

static const char smollm2_system[] = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
static const char *const role_names[] = {"system", "user", "assistant"};

enum status chat_template_find(const char *source, size_t len, enum chat_template *out, struct err *err)
{
    uint8_t sha[32];
    char hex[65];
    if (!source)
        return err_set(err, ST_NOT_FOUND, "the base has no chat template");
    hash_sha256(source, len, sha);
    hex_encode(sha, sizeof sha, hex);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].sha256, hex))
            continue;
        *out = known[i].kind;
        return ST_OK;
    }
    return err_set(err, ST_UNSUPPORTED, "the base's chat template (SHA-256 %s) is not a known one", hex);
}

struct render {
    const struct tokenizer *tok;
    uint32_t start, end; /* <|im_start|>, <|im_end|> */
    struct token_buf *ids;
    struct buf mask;
    struct buf text; /* scratch */
    struct err *err;
};

/* Encodes `head` and `body` as one text; the tokens that hold nothing of `body` are not learnt. */
static enum status put_text(struct render *r, const char *head, const char *body, size_t body_len, bool learn)
{
    struct token_buf head_ids = {0};
    size_t before = r->ids->n, same = 0, head_len = strlen(head);
    buf_clear(&r->text);
    buf_put(&r->text, head, head_len);
    buf_put(&r->text, body, body_len);
    enum status st = tokenizer_encode(r->tok, (const char *)r->text.data, r->text.len, r->ids, r->err);
    if (st == ST_OK)
        st = tokenizer_encode(r->tok, head, head_len, &head_ids, r->err);
    if (st == ST_OK) {
        size_t n = r->ids->n - before;
        while (same < n && same < head_ids.n && r->ids->ids[before + same] == head_ids.ids[same])
            same++;
        memset(buf_extend(&r->mask, same), 0, same);
        memset(buf_extend(&r->mask, n - same), learn, n - same);
    }
    token_buf_release(&head_ids);
    return st;
}

static void put_special(struct render *r, uint32_t id, bool learn)
{
    token_buf_put(r->ids, id);
    buf_put_u8(&r->mask, learn);
}

static enum status put_message(struct render *r, enum chat_role role, const char *content, size_t len)
{
    bool learn = role == CHAT_ASSISTANT;
    char head[16];
    CHECK(role >= CHAT_SYSTEM && role <= CHAT_ASSISTANT);
    snprintf(head, sizeof head, "%s\n", role_names[role]);
    put_special(r, r->start, false);
    enum status st = put_text(r, head, content, len, learn);
    if (st)
        return st;
    put_special(r, r->end, learn);
    return put_text(r, "\n", "", 0, false);
}

enum status chat_render(enum chat_template kind, const struct tokenizer *tok, const struct chat_message *messages,
                        size_t n, bool ask, struct token_buf *ids, struct buf *mask, struct err *err)
{
    struct render r = {.tok = tok, .ids = ids, .err = err};
    size_t before = ids->n;
    enum status st = ST_OK;
    CHECK(kind == CHAT_SMOLLM2);
    r.start = tokenizer_token_id(tok, "<|im_start|>");
    r.end = tokenizer_token_id(tok, "<|im_end|>");
    if (r.start == TOKEN_NONE || r.end == TOKEN_NONE)
        return err_set(err, ST_BAD_DATA, "the tokenizer has no <|im_start|> or <|im_end|>");
    if (n == 0)
        return err_set(err, ST_BAD_DATA, "a chat without messages");
    if (messages[0].role != CHAT_SYSTEM)
        st = put_message(&r, CHAT_SYSTEM, smollm2_system, strlen(smollm2_system));
    for (size_t i = 0; i < n && st == ST_OK; i++) {
        st = put_message(&r, messages[i].role, messages[i].content, messages[i].len);
        if (st)
            err_prefix(err, st, "message %zu", i);
    }
    if (st == ST_OK && ask) {
        put_special(&r, r.start, false);
        st = put_text(&r, "assistant\n", "", 0, false);
    }
    if (st)
        ids->n = before;
    else if (mask)
        buf_put(mask, r.mask.data, r.mask.len);
    buf_release(&r.mask);
    buf_release(&r.text);
    return st;
}
