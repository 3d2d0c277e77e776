/* What the base writes by itself: kept only when it reads as the tokens that were drawn. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"
#include "model/base.h"
#include "model/selftext.h"
#include "real_base.h"

static struct base *base;
static const struct tokenizer *tok;
static struct frozen frozen;

static struct selftext_options options_of(bool chat)
{
    return (struct selftext_options){.texts = 4,
                                     .tokens_max = 6,
                                     .tokens_min = 2,
                                     .chat = chat,
                                     .template = CHAT_SMOLLM2,
                                     .seed = 77,
                                     .threads = 1,
                                     .ops = OPS_BLAS};
}

static void test_plain(void)
{
    struct selftext_options options = options_of(false);
    struct selftext_batch a, b;
    struct err err;
    REQUIRE(EXPECT_ST(selftext_draw(&frozen, tok, &options, &a, &err), ST_OK, &err));
    REQUIRE(EXPECT_ST(selftext_draw(&frozen, tok, &options, &b, &err), ST_OK, &err));
    EXPECT(a.n > 0);
    EXPECT_EQ(a.n + a.unfinished + a.short_ones + a.unfaithful, options.texts);
    EXPECT_EQ(a.n, b.n);
    for (uint32_t i = 0; i < a.n && i < b.n; i++) {
        struct token_buf ids = {0};
        const struct buf *text = &a.items[i].text;
        EXPECT_ST(tokenizer_encode(tok, (const char *)text->data, text->len, &ids, &err), ST_OK, &err);
        EXPECT_EQ(ids.n, a.items[i].n_tokens);
        EXPECT(ids.n >= options.tokens_min && ids.n <= options.tokens_max && a.items[i].answer.len == 0);
        EXPECT(text->len == b.items[i].text.len && !memcmp(text->data, b.items[i].text.data, text->len));
        token_buf_release(&ids);
    }
    selftext_release(&a);
    selftext_release(&b);
    options.tokens_min = options.tokens_max + 1; /* nothing is long enough */
    REQUIRE(EXPECT_ST(selftext_draw(&frozen, tok, &options, &a, &err), ST_OK, &err));
    EXPECT(a.n == 0 && a.short_ones + a.unfaithful == options.texts);
    selftext_release(&a);
    options.texts = 0;
    EXPECT_ST(selftext_draw(&frozen, tok, &options, &a, &err), ST_USAGE, &err);
}

static void test_chat(void)
{
    struct selftext_options options = options_of(true);
    struct selftext_batch batch;
    struct err err;
    options.texts = 16;
    options.tokens_max = 40;
    REQUIRE(EXPECT_ST(selftext_draw(&frozen, tok, &options, &batch, &err), ST_OK, &err));
    EXPECT_EQ(batch.n + batch.unfinished + batch.short_ones + batch.unfaithful, options.texts);
    EXPECT(batch.n > 0 && batch.unfinished > 0); /* some end within 40 tokens, some do not */
    for (uint32_t i = 0; i < batch.n; i++)
        EXPECT(batch.items[i].text.len > 0 && batch.items[i].answer.len > 0);
    if (batch.n > 0)
        printf("\"%.*s\" - \"%.*s\"", (int)batch.items[0].text.len, batch.items[0].text.data,
               (int)batch.items[0].answer.len, batch.items[0].answer.data);
    selftext_release(&batch);
}

int main(void)
{
    struct err err;
    hash_start();
    if (!EXPECT_ST(base_open(real_base_path(), &base, &err), ST_OK, &err) ||
        !EXPECT_ST(base_tokenizer(base, &tok, &err), ST_OK, &err))
        return harness_end();
    frozen_open(base, &frozen);
    RUN(test_plain);
    RUN(test_chat);
    frozen_release(&frozen);
    base_close(base);
    return harness_end();
}
