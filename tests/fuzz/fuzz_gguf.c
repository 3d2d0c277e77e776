/* GGUF, and the tokenizer in its metadata. */
#include <string.h>

#include "adapter/gguf.h"
#include "base/check.h"
#include "fuzz.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct gguf *g = NULL;
    struct tokenizer *tok = NULL;
    struct err err;
    volatile uint8_t touched = 0;
    if (gguf_parse(data, len, "fuzz", &g, &err)) {
        CHECK(err.text[0]);
        return 0;
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        CHECK(gguf_tensor(g, t->name) == t);
        touched = t->data[0];
        touched = t->data[t->bytes - 1];
    }
    (void)touched;
    if (tokenizer_from_gguf(g, &tok, &err) == ST_OK) {
        struct token_buf ids = {0};
        tokenizer_encode(tok, "ab  12 abba", 11, &ids, NULL);
        token_buf_release(&ids);
    }
    tokenizer_free(tok);
    gguf_close(g);
    return 0;
}

static void put_strings(struct gguf_writer *w, const char *key, const char *const *s, size_t n)
{
    struct buf raw = {0};
    for (size_t i = 0; i < n; i++) {
        buf_put_u64(&raw, strlen(s[i]));
        buf_put(&raw, s[i], strlen(s[i]));
    }
    struct gguf_kv kv = {{(const uint8_t *)key, strlen(key)}, GGUF_ARRAY, GGUF_STRING, n, buf_bytes(&raw)};
    gguf_put_kv(w, &kv);
    buf_release(&raw);
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    static const char *const tokens[] = {"<s>", "a", "b", "ab", "1", "\xc4\xa0", "abba"};
    static const char *const merges[] = {"a b", "ab ba"};
    const char *key = "tokenizer.ggml.token_type";
    struct gguf_writer w = {0};
    struct buf out = {0}, types = {0};
    for (uint32_t i = 0; i < 7; i++)
        buf_put_u32(&types, i ? 1 : 3);
    gguf_put_string(&w, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(&w, "tokenizer.ggml.pre", "smollm");
    put_strings(&w, "tokenizer.ggml.tokens", tokens, 7);
    put_strings(&w, "tokenizer.ggml.merges", merges, 1);
    struct gguf_kv kv = {{(const uint8_t *)key, strlen(key)}, GGUF_ARRAY, GGUF_I32, 7, buf_bytes(&types)};
    gguf_put_kv(&w, &kv);
    gguf_put_u32(&w, "tokenizer.ggml.eos_token_id", 0);
    gguf_put_f32(&w, "x.f", 1.5f);
    uint64_t bytes = gguf_put_tensor(&w, "one", GGUF_T_F32, 2, (const uint64_t[]){2, 3});
    bytes += gguf_padding(bytes) + gguf_put_tensor(&w, "two", GGUF_T_Q4_1, 2, (const uint64_t[]){32, 2});
    gguf_put_header(&w, &out);
    memset(buf_extend(&out, bytes), 0x11, bytes);
    struct gguf *g;
    struct tokenizer *tok;
    CHECK(gguf_parse(out.data, out.len, "seed", &g, NULL) == ST_OK && tokenizer_from_gguf(g, &tok, NULL) == ST_OK);
    tokenizer_free(tok);
    gguf_close(g);
    use(out.data, out.len);
    gguf_writer_release(&w);
    buf_release(&out);
    buf_release(&types);
}
