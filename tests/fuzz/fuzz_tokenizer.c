/* tokenizer.json. */
#include <string.h>

#include "base/check.h"
#include "fuzz.h"
#include "model/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct tokenizer *tok = NULL;
    struct err err;
    if (tokenizer_from_json(data, len, 0, TOKEN_NONE, &tok, &err)) {
        CHECK(err.text[0]);
        return 0;
    }
    struct token_buf ids = {0};
    struct buf back = {0};
    tokenizer_encode(tok, "ab  12 abba <s>", 15, &ids, &err);
    tokenizer_encode_special(tok, (const char *)data, len, &ids, &err); /* ST_BAD_DATA or ids, never a crash */
    tokenizer_decode(tok, ids.ids, ids.n, &back);
    buf_release(&back);
    token_buf_release(&ids);
    tokenizer_free(tok);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    static const char *const seeds[] = {
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<s>\"}],\"normalizer\":null,\"pre_tokenizer\":{\"type\":"
        "\"ByteLevel\","
        "\"add_prefix_space\":false},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":2,\"ab\":3,\"\\u0120\":4},"
        "\"merges\":[\"a b\"]}}",
        "{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
        "\"Digits\","
        "\"individual_digits\":true},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]},\"model\":{\"type\":\"BPE\","
        "\"ignore_merges\":true,\"vocab\":{\"a\":0,\"b\":9,\"ba\":5},\"merges\":[[\"b\",\"a\"]]}}"};
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++) {
        struct tokenizer *tok;
        CHECK(tokenizer_from_json(seeds[i], strlen(seeds[i]), 0, TOKEN_NONE, &tok, NULL) == ST_OK);
        tokenizer_free(tok);
        use((const uint8_t *)seeds[i], strlen(seeds[i]));
    }
}
