/* The factor block, its two published forms, and the model card. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "adapter/gguf.h"
#include "adapter/safetensors.h"
#include "base/hash.h"
#include "harness.h"

static const struct arch arch = {.kind = ARCH_LLAMA, /* heads of 6, unlike d_model / n_heads; 4 of them share 2 */
                                 .n_layers = 2,
                                 .d_model = 10,
                                 .d_ff = 7,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 6,
                                 .vocab_size = 50,
                                 .context_max = 64,
                                 .rope_theta = 10000,
                                 .rms_eps = 1e-5f,
                                 .tied_head = true};

static struct card a_card(void)
{
    struct card card = {.base_name = "toy", .arch = arch, .n_serving = 1};
    memset(card.base.b, 1, DIGEST_LEN);
    memset(card.serving[0].b, 3, DIGEST_LEN);
    return card;
}

static float *numbered(const struct adapter_shape *shape) /* 0, 1, 2 ... */
{
    size_t n = adapter_floats(shape);
    float *block = xcalloc(n, sizeof *block);
    for (size_t i = 0; i < n; i++)
        block[i] = (float)i;
    return block;
}

static void test_layout(void)
{
    struct adapter_shape s, t;
    struct err err;
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, LORA_ALL, &s, &err), ST_OK, &err);
    EXPECT_EQ(s.out[LORA_Q], 24);
    EXPECT_EQ(s.out[LORA_V], 12);
    EXPECT_EQ(s.in[LORA_O], 24);
    EXPECT_EQ(s.in[LORA_DOWN], 7);
    EXPECT_EQ(adapter_scale(&s), 2);
    size_t at = 0; /* A then B, module by module, without a gap */
    for (uint32_t layer = 0; layer < 2; layer++)
        for (unsigned m = 0; m < LORA_MODULES; m++) {
            EXPECT_EQ(adapter_at_a(&s, layer, (enum lora_module)m), at);
            at += 3 * s.in[m];
            EXPECT_EQ(adapter_at_b(&s, layer, (enum lora_module)m), at);
            at += 3 * s.out[m];
        }
    EXPECT_EQ(adapter_floats(&s), at);
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, 1 << LORA_K | 1 << LORA_UP, &t, &err), ST_OK, &err);
    EXPECT_EQ(adapter_at_a(&t, 0, LORA_UP), 3 * (10 + 12));
    EXPECT_EQ(adapter_floats(&t), 2 * 3 * (10 + 12 + 10 + 7));
    EXPECT(!adapter_shape_eq(&s, &t) && adapter_shape_eq(&s, &s));
    EXPECT_ST(adapter_shape_of(&arch, 0, 6, LORA_ALL, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, LORA_RANK_MAX + 1, 6, LORA_ALL, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, 3, 0, LORA_ALL, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, 0, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, LORA_ALL + 1, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, LORA_ALL | 2 << LORA_FIRST_LAYER, &t, &err), ST_USAGE, &err);
    EXPECT_ST(adapter_shape_of(&arch, 3, 6, LORA_ALL | 1 << LORA_FIRST_LAYER, &t, &err), ST_OK, &err);
    EXPECT_EQ(adapter_floats(&t), at / 2);
    EXPECT_EQ(adapter_at_a(&t, 1, LORA_Q), 0);
    EXPECT(!adapter_adapts(&t, 0, LORA_Q) && adapter_adapts(&t, 1, LORA_Q) && !adapter_shape_eq(&s, &t));
}

static void test_init(void)
{
    struct arch wide = arch;
    struct adapter_shape s, t;
    wide.d_model = 1000;
    adapter_shape_of(&wide, 8, 16, LORA_ALL, &s, NULL);
    adapter_shape_of(&wide, 8, 16, 1 << LORA_K, &t, NULL);
    float *a = xcalloc(adapter_floats(&s), sizeof *a), *b = xcalloc(adapter_floats(&t), sizeof *b);
    adapter_init(&s, 5, a);
    adapter_init(&t, 5, b);
    const float *k = a + adapter_at_a(&s, 1, LORA_K), *v = a + adapter_at_a(&s, 1, LORA_V);
    EXPECT(!memcmp(k, b + adapter_at_a(&t, 1, LORA_K), 8000 * sizeof *k)); /* whatever the other modules */
    EXPECT(memcmp(k, v, 8000 * sizeof *k) != 0);
    double sum = 0, squares = 0, bound = 1 / sqrt(1000);
    for (size_t i = 0; i < 8000; i++) {
        EXPECT(fabs((double)k[i]) <= bound);
        sum += (double)k[i] / bound, squares += (double)k[i] * (double)k[i] / bound / bound;
    }
    EXPECT(fabs(sum / 8000) < 0.026);               /* 4 standard errors of a uniform mean */
    EXPECT(fabs(squares / 8000 - 1.0 / 3) < 0.014); /* and of its variance */
    for (size_t i = 0; i < 8 * 12; i++)
        EXPECT(a[adapter_at_b(&s, 1, LORA_K) + i] == 0);
    free(a);
    free(b);
}

static void test_peft_round_trip(void)
{
    struct adapter_shape s;
    struct buf file = {0};
    struct safetensors *f = NULL;
    struct err err;
    adapter_shape_of(&arch, 3, 6, LORA_ALL, &s, NULL);
    float *block = numbered(&s), *back = xcalloc(adapter_floats(&s), sizeof *back);
    adapter_write_peft(&s, block, &file);
    EXPECT_ST(adapter_read_peft(&s, file.data, file.len, back, &err), ST_OK, &err);
    EXPECT(!memcmp(block, back, adapter_floats(&s) * sizeof *block));
    EXPECT_ST(safetensors_parse(file.data, file.len, "x", SAFETENSORS_ADAPTER, &f, &err), ST_OK, &err);
    REQUIRE(f != NULL);
    const struct safetensors_tensor *t =
        safetensors_find(f, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    REQUIRE(t != NULL);
    EXPECT(t->shape[0] == 10 && t->shape[1] == 3 && !memcmp(t->data, block + adapter_at_b(&s, 1, LORA_DOWN), 120));
    safetensors_close(f);

    char hex[65]; /* the bytes that safetensors 0.8.0 (Python, save with metadata {"format":"pt"}) writes */
    uint8_t sha[32];
    hash_sha256(file.data, file.len, sha);
    hex_encode(sha, 32, hex);
    EXPECT_STR(hex, "cd401085233d8d65d8396d2ef616c807419fc0166823b18146cd7a1db7e87682");
    free(block);
    free(back);
    buf_release(&file);
}

/* One tensor replaced, left out or added: refused, and the block is untouched. */
static void test_peft_refusals(void)
{
    struct adapter_shape s;
    float a[4] = {1, 2, 3, 4}, b[3] = {5, 6, 7}, bad[3] = {5, NAN, 7}, block[14] = {0};
    struct arch small = arch;
    struct err err;
    small.n_layers = 1, small.d_model = 4, small.d_ff = 3;
    adapter_shape_of(&small, 1, 1, 1 << LORA_UP, &s, NULL);
#define KEY(half) "base_model.model.model.layers.0.mlp.up_proj.lora_" half ".weight"
    struct safetensors_tensor ta = {.name = KEY("A"), .rank = 2, .shape = {1, 4}, .data = (const uint8_t *)a};
    struct safetensors_tensor tb = {.name = KEY("B"), .rank = 2, .shape = {3, 1}, .data = (const uint8_t *)b};
    struct safetensors_tensor extra = tb, flipped = tb, infinite = tb;
    extra.name = "base_model.model.lm_head.lora_B.weight";
    flipped.shape[0] = 1, flipped.shape[1] = 3;
    infinite.data = (const uint8_t *)bad;
    struct {
        struct safetensors_tensor t[3];
        size_t n;
        enum status want;
    } cases[] = {{{ta, tb}, 2, ST_OK},
                 {{ta}, 1, ST_BAD_DATA},
                 {{ta, tb, extra}, 3, ST_BAD_DATA},
                 {{ta, flipped}, 2, ST_BAD_DATA},
                 {{ta, infinite}, 2, ST_BAD_DATA},
                 {{ta, extra}, 2, ST_BAD_DATA}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct buf file = {0};
        block[0] = 99;
        safetensors_write(cases[i].t, cases[i].n, &file);
        EXPECT_ST(adapter_read_peft(&s, file.data, file.len, block, &err), cases[i].want, &err);
        EXPECT_EQ(block[0], cases[i].want ? 99 : 1);
        if (i == 0) { /* the same bytes under another dtype of the same size */
            memcpy(memmem(file.data, file.len, "F32", 3), "I32", 3);
            EXPECT_ST(adapter_read_peft(&s, file.data, file.len, block, &err), ST_BAD_DATA, &err);
        }
        buf_release(&file);
    }
}

static void test_peft_config(void)
{
    struct adapter_shape s;
    struct buf text = {0};
    adapter_shape_of(&arch, 3, 6, 1 << LORA_Q | 1 << LORA_GATE, &s, NULL);
    adapter_peft_config(&s, "org/\"base\"", &text);
    json_t *config = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    REQUIRE(config != NULL);
    EXPECT_EQ(json_object_size(config), 10);
    EXPECT_STR(json_string_value(json_object_get(config, "base_model_name_or_path")), "org/\"base\"");
    EXPECT_EQ(json_integer_value(json_object_get(config, "r")), 3);
    EXPECT_EQ(json_integer_value(json_object_get(config, "lora_alpha")), 6);
    const json_t *modules = json_object_get(config, "target_modules");
    EXPECT_EQ(json_array_size(modules), 2);
    EXPECT_STR(json_string_value(json_array_get(modules, 1)), "gate_proj");
    json_decref(config);
    buf_clear(&text);
    adapter_shape_of(&arch, 3, 6, LORA_ALL | 1 << LORA_FIRST_LAYER, &s, NULL);
    adapter_peft_config(&s, "base", &text);
    config = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, NULL);
    REQUIRE(config != NULL);
    const json_t *layers = json_object_get(config, "layers_to_transform");
    EXPECT(json_array_size(layers) == 1 && json_integer_value(json_array_get(layers, 0)) == 1);
    json_decref(config);
    buf_release(&text);
}

static float gguf_at(const struct gguf *g, const char *name, uint64_t row, uint64_t column)
{
    const struct gguf_tensor *t = gguf_tensor(g, name);
    float v = -1;
    if (EXPECT(t != NULL))
        memcpy(&v, t->data + (row * t->ne[0] + column) * 4, 4);
    return v;
}

static void test_gguf_permutes_b_of_q_and_k_only(void)
{
    struct adapter_shape s;
    struct card card = a_card();
    struct err err;
    float alpha = 0;
    adapter_shape_of(&arch, 3, 6, LORA_ALL, &s, NULL);
    float *block = numbered(&s);
    for (int qwen = 0; qwen < 2; qwen++) {
        struct buf file = {0};
        struct gguf *g = NULL;
        card.arch.kind = qwen ? ARCH_QWEN3 : ARCH_LLAMA;
        adapter_write_gguf(&s, &card, block, &file);
        EXPECT_ST(gguf_parse(file.data, file.len, "x", &g, &err), ST_OK, &err);
        REQUIRE(g != NULL);
        EXPECT_EQ(gguf_n_tensors(g), 2 * 7 * 2);
        EXPECT(gguf_get_f32(g, "adapter.lora.alpha", &alpha, NULL) == ST_OK && alpha == 6);
        const struct gguf_tensor *a = gguf_tensor(g, "blk.1.attn_q.weight.lora_a");
        REQUIRE(a != NULL);
        EXPECT(a->ne[0] == 10 && a->ne[1] == 3);
        EXPECT(!memcmp(a->data, block + adapter_at_a(&s, 1, LORA_Q), 120));
        for (uint32_t row = 0; row < 24; row++) { /* of Hugging Face: head h, half i, place j */
            uint32_t h = row / 6, i = row % 6 / 3, j = row % 3, there = qwen ? row : h * 6 + 2 * j + i;
            float want = block[adapter_at_b(&s, 1, LORA_Q) + row * 3 + 1];
            EXPECT(gguf_at(g, "blk.1.attn_q.weight.lora_b", there, 1) == want);
            if (row < 12) {
                want = block[adapter_at_b(&s, 0, LORA_K) + row * 3];
                EXPECT(gguf_at(g, "blk.0.attn_k.weight.lora_b", there, 0) == want);
                want = block[adapter_at_b(&s, 0, LORA_V) + row * 3];
                EXPECT(gguf_at(g, "blk.0.attn_v.weight.lora_b", row, 0) == want);
            }
        }
        gguf_close(g);
        buf_release(&file);
    }
    free(block);
}

static void test_card(void)
{
    struct card card = a_card(), back;
    struct buf bytes = {0};
    struct err err;
    struct digest one, two;
    card_encode(&card, &bytes);
    EXPECT_ST(card_decode(bytes.data, bytes.len, &back, &err), ST_OK, &err);
    card_digest(&card, &one);
    card_digest(&back, &two);
    EXPECT(digest_eq(&one, &two) && back.arch.tied_head && back.n_serving == 1 && back.arch.head_dim == 6);
    for (size_t cut = 0; cut < bytes.len; cut++)
        EXPECT_ST(card_decode(bytes.data, cut, &back, &err), ST_BAD_DATA, &err);
    for (size_t bit = 0; bit < bytes.len * 8; bit++) { /* refused, or other bytes of another card: never the same one */
        bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (card_decode(bytes.data, bytes.len, &back, NULL) == ST_OK) {
            card_digest(&back, &two);
            EXPECT(!digest_eq(&one, &two));
        }
        bytes.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    buf_put_u8(&bytes, 0);
    EXPECT_ST(card_decode(bytes.data, bytes.len, &back, &err), ST_BAD_DATA, &err);
    struct arch bad = arch;
    bad.n_kv_heads = 3;
    EXPECT_ST(arch_check(&bad, &err), ST_BAD_DATA, &err);
    EXPECT(strstr(err.text, "n_kv_heads") != NULL);
    bad = arch, bad.rope_theta = NAN;
    EXPECT_ST(arch_check(&bad, &err), ST_BAD_DATA, &err);
    bad = arch, bad.d_model = (1 << 20) + 1;
    EXPECT_ST(arch_check(&bad, &err), ST_BAD_DATA, &err);
    buf_release(&bytes);
}

static void test_digest_of_a_directory(void)
{
    const char *dir = harness_tmpdir();
    struct digest one, two, three;
    struct err err;
    EXPECT_ST(card_digest_base(harness_path(dir, "none"), &one, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(card_digest_base(dir, &one, &err), ST_NOT_FOUND, &err);
    file_write_durable(harness_path(dir, "config.json"), "{}", 2, 0600, &err);
    file_write_durable(harness_path(dir, "model.safetensors"), "w", 1, 0600, &err);
    EXPECT_ST(card_digest_base(dir, &one, &err), ST_OK, &err);
    file_write_durable(harness_path(dir, "README.md"), "x", 1, 0600, &err);
    EXPECT_ST(card_digest_base(dir, &two, &err), ST_OK, &err);
    file_write_durable(harness_path(dir, "model.safetensors"), "v", 1, 0600, &err);
    EXPECT_ST(card_digest_base(dir, &three, &err), ST_OK, &err);
    EXPECT(digest_eq(&one, &two) && !digest_eq(&one, &three));
}

int main(void)
{
    hash_start();
    RUN(test_layout);
    RUN(test_init);
    RUN(test_peft_round_trip);
    RUN(test_peft_refusals);
    RUN(test_peft_config);
    RUN(test_gguf_permutes_b_of_q_and_k_only);
    RUN(test_card);
    RUN(test_digest_of_a_directory);
    return harness_end();
}
