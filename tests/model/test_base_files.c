/* Bases: the real one against gguf-py's dequantisation (tests/golden/base), toys of each architecture as GGUF and as a
 * Hugging Face directory with the same weights, and what must be refused. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/gguf.h"
#include "adapter/safetensors.h"
#include "base/hash.h"
#include "harness.h"
#include "model/base.h"
#include "model/quant.h"
#include "model/tokenizer.h"
#include "real_base.h"

static void test_quant_by_hand(void)
{
    float out[32];
    uint8_t block[34] = {0};
    static const uint8_t half[] = {0x00, 0x3e, 0x00, 0xc0, 0x01,
                                   0x00, 0xff, 0x03, 0x00, 0x7c}; /* 1.5 -2 and subnormals, inf */
    quant_expand(GGUF_T_F16, half, 5, out);
    EXPECT(out[0] == 1.5f && out[1] == -2 && out[2] == 0x1p-24f && out[3] == 1023 * 0x1p-24f && out[4] > 3e38f);
    static const uint8_t brain[] = {0xc0, 0x3f, 0x80, 0xbf};
    quant_expand(GGUF_T_BF16, brain, 2, out);
    EXPECT(out[0] == 1.5f && out[1] == -1);
    block[1] = 0x38; /* d = 0.5 */
    for (unsigned i = 0; i < 32; i++)
        block[2 + i] = (uint8_t)(i * 8 - 128);
    quant_expand(GGUF_T_Q8_0, block, 32, out);
    for (int i = 0; i < 32; i++)
        EXPECT(out[i] == 0.5f * (float)(i * 8 - 128));
    for (unsigned i = 0; i < 16; i++)
        block[2 + i] = (uint8_t)(i | (15 - i) << 4);
    quant_expand(GGUF_T_Q4_0, block, 32, out);
    for (int i = 0; i < 16; i++)
        EXPECT(out[i] == 0.5f * (float)(i - 8) && out[16 + i] == 0.5f * (float)(7 - i));
    memmove(block + 4, block + 2, 16);
    block[2] = 0x00, block[3] = 0xc0; /* m = -2 */
    quant_expand(GGUF_T_Q4_1, block, 32, out);
    for (int i = 0; i < 16; i++)
        EXPECT(out[i] == 0.5f * (float)i - 2 && out[16 + i] == 0.5f * (float)(15 - i) - 2);
    EXPECT_EQ(quant_row_bytes(GGUF_T_Q4_1, 576), 360);
}

/* Every quantisation against gguf-py, bit for bit (scripts/golden_quant.py). */
static void test_quant_is_the_reference(void)
{
    json_t *golden = json_load_file(SOURCE_DIR "/tests/golden/base/quant.json", 0, NULL), *one;
    const char *name;
    EXPECT_EQ(json_object_size(golden), 8);
    json_object_foreach(golden, name, one)
    {
        uint32_t type = (uint32_t)json_integer_value(json_object_get(one, "type"));
        size_t values = (size_t)json_integer_value(json_object_get(one, "values"));
        const char *hex = json_string_value(json_object_get(one, "bytes"));
        uint8_t raw[1024], sha[32];
        float out[1024];
        char got[65];
        REQUIRE(strlen(hex) <= 2 * sizeof raw && values <= 1024 && quant_known(type));
        EXPECT_STR(gguf_type_name(type), name);
        EXPECT_EQ(quant_row_bytes(type, values), strlen(hex) / 2);
        EXPECT(hex_decode(hex, strlen(hex), raw, strlen(hex) / 2));
        quant_expand(type, raw, values, out);
        hash_sha256(out, values * sizeof *out, sha);
        hex_encode(sha, 32, got);
        harness_expect(!strcmp(got, json_string_value(json_object_get(one, "sha256"))), __FILE__, __LINE__,
                       "%s as gguf-py dequantises it", name);
    }
    json_decref(golden);
}

/* ---- the real base ---- */

static const struct {
    enum base_tensor t;
    const char *name;
} in_layer[] = {
    {BASE_ATTN_NORM, "attn_norm"}, {BASE_Q, "attn_q"},          {BASE_K, "attn_k"},      {BASE_V, "attn_v"},
    {BASE_O, "attn_output"},       {BASE_FFN_NORM, "ffn_norm"}, {BASE_GATE, "ffn_gate"}, {BASE_UP, "ffn_up"},
    {BASE_DOWN, "ffn_down"}};

static void expect_rows(const struct base *base, enum base_tensor t, uint32_t layer, const json_t *golden,
                        const char *name)
{
    uint32_t rows, in;
    char hex[65];
    uint8_t sha[32];
    base_shape(base, t, &rows, &in);
    float *all = xcalloc((size_t)rows * in, sizeof *all);
    uint32_t cut = rows / 3; /* in two calls: the cut lies inside a head */
    base_rows(base, t, layer, 0, cut, all);
    base_rows(base, t, layer, cut, rows - cut, all + (size_t)cut * in);
    hash_sha256(all, (size_t)rows * in * sizeof *all, sha);
    hex_encode(sha, 32, hex);
    EXPECT_STR(hex, json_string_value(json_object_get(golden, name)));
    free(all);
}

static void test_real_base(void)
{
    struct base *base = NULL;
    struct card card;
    struct err err;
    const struct tokenizer *tok = NULL;
    json_t *golden = json_load_file(SOURCE_DIR "/tests/golden/base/smollm2.json", 0, NULL);
    enum status st = base_open(real_base_path(), &base, &err);
    if (!harness_expect(st == ST_OK, __FILE__, __LINE__, "%s: run scripts/fetch-base, or set ALLUVIUM_BASE_GGUF",
                        err.text))
        return;
    const struct arch *a = base_arch(base);
    EXPECT(a->kind == ARCH_LLAMA && a->n_layers == 30 && a->d_model == 576 && a->d_ff == 1536 && a->n_heads == 9);
    EXPECT(a->n_kv_heads == 3 && a->head_dim == 64 && a->vocab_size == 49152 && a->context_max == 8192);
    EXPECT(a->rope_theta == 1e5f && a->rms_eps == 1e-5f && a->tied_head && !a->qkv_bias && !a->qk_norm);
    expect_rows(base, BASE_EMBED, 0, golden, "token_embd.weight");
    expect_rows(base, BASE_HEAD, 0, golden, "token_embd.weight");
    expect_rows(base, BASE_OUT_NORM, 0, golden, "output_norm.weight");
    for (uint32_t layer = 0; layer < 30; layer += 29)
        for (size_t i = 0; i < sizeof in_layer / sizeof in_layer[0]; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%u.%s.weight", layer, in_layer[i].name);
            expect_rows(base, in_layer[i].t, layer, golden, name);
        }
    EXPECT(!base_has(base, BASE_Q_BIAS, 3) && base_has(base, BASE_HEAD, 0));
    EXPECT_ST(base_tokenizer(base, &tok, &err), ST_OK, &err);
    EXPECT_ST(base_card(base, &card, &err), ST_OK, &err);
    EXPECT(card.arch.d_ff == 1536 && !digest_is_zero(&card.base) && !digest_is_zero(&card.tokenizer));
    EXPECT_STR(card.base_name, "Smollm2 135M 8k Lc100K Mix1 Ep2");
    base_close(base);
    json_decref(golden);
}

/* ---- toys ---- */

enum { LAYERS = 2, D = 8, FF = 12, HEADS = 4, KV = 2, HD = 6, VOCAB = 9, TENSORS_MAX = 32 };

struct toy_tensor {
    char gguf[64], hf[96];
    uint32_t rows, in; /* rows 0: of one dimension */
    bool permuted;     /* in a llama GGUF */
    float *data;       /* in Hugging Face order */
};

struct toy {
    enum arch_kind kind;
    bool tied;
    struct toy_tensor t[TENSORS_MAX];
    size_t n;
    const char *extra_key; /* one more u32 in the GGUF */
};

static void toy_add(struct toy *toy, struct rng *rng, int layer, const char *gguf, const char *hf, uint32_t rows,
                    uint32_t in)
{
    struct toy_tensor *t = &toy->t[toy->n++];
    size_t n = (size_t)(rows ? rows : 1) * in;
    snprintf(t->gguf, sizeof t->gguf, layer < 0 ? "%.0d%s" : "blk.%d.%s", layer < 0 ? 0 : layer, gguf);
    snprintf(t->hf, sizeof t->hf, layer < 0 ? "%.0d%s" : "model.layers.%d.%s", layer < 0 ? 0 : layer, hf);
    t->rows = rows;
    t->in = in;
    t->permuted = !strcmp(gguf, "attn_q.weight") || !strcmp(gguf, "attn_k.weight");
    t->data = xcalloc(n, sizeof *t->data);
    for (size_t i = 0; i < n; i++)
        t->data[i] = (float)rng_normal(rng);
}

static void toy_make(struct toy *toy, enum arch_kind kind, bool tied)
{
    struct rng rng;
    rng_seed(&rng, kind);
    *toy = (struct toy){.kind = kind, .tied = tied};
    toy_add(toy, &rng, -1, "token_embd.weight", "model.embed_tokens.weight", VOCAB, D);
    toy_add(toy, &rng, -1, "output_norm.weight", "model.norm.weight", 0, D);
    if (!tied)
        toy_add(toy, &rng, -1, "output.weight", "lm_head.weight", VOCAB, D);
    for (int l = 0; l < LAYERS; l++) {
        toy_add(toy, &rng, l, "attn_norm.weight", "input_layernorm.weight", 0, D);
        toy_add(toy, &rng, l, "attn_q.weight", "self_attn.q_proj.weight", HEADS * HD, D);
        toy_add(toy, &rng, l, "attn_k.weight", "self_attn.k_proj.weight", KV * HD, D);
        toy_add(toy, &rng, l, "attn_v.weight", "self_attn.v_proj.weight", KV * HD, D);
        toy_add(toy, &rng, l, "attn_output.weight", "self_attn.o_proj.weight", D, HEADS * HD);
        toy_add(toy, &rng, l, "ffn_norm.weight", "post_attention_layernorm.weight", 0, D);
        toy_add(toy, &rng, l, "ffn_gate.weight", "mlp.gate_proj.weight", FF, D);
        toy_add(toy, &rng, l, "ffn_up.weight", "mlp.up_proj.weight", FF, D);
        toy_add(toy, &rng, l, "ffn_down.weight", "mlp.down_proj.weight", D, FF);
        if (kind == ARCH_QWEN2) {
            toy_add(toy, &rng, l, "attn_q.bias", "self_attn.q_proj.bias", 0, HEADS * HD);
            toy_add(toy, &rng, l, "attn_k.bias", "self_attn.k_proj.bias", 0, KV * HD);
            toy_add(toy, &rng, l, "attn_v.bias", "self_attn.v_proj.bias", 0, KV * HD);
        }
        if (kind == ARCH_QWEN3) {
            toy_add(toy, &rng, l, "attn_q_norm.weight", "self_attn.q_norm.weight", 0, HD);
            toy_add(toy, &rng, l, "attn_k_norm.weight", "self_attn.k_norm.weight", 0, HD);
        }
    }
}

static void toy_free(struct toy *toy)
{
    for (size_t i = 0; i < toy->n; i++)
        free(toy->t[i].data);
}

static const char *toy_gguf(const struct toy *toy, const char *name)
{
    static const char *const archs[] = {"", "llama", "qwen2", "qwen3"};
    const struct {
        const char *key;
        uint32_t v;
    } numbers[] = {{"context_length", 64},       {"embedding_length", D},         {"block_count", LAYERS},
                   {"feed_forward_length", FF},  {"attention.head_count", HEADS}, {"attention.head_count_kv", KV},
                   {"attention.key_length", HD}, {"attention.value_length", HD}};
    const char *arch = archs[toy->kind], *path = harness_path(harness_tmpdir(), name);
    struct gguf_writer w = {0};
    struct buf out = {0};
    char key[96];
    gguf_put_string(&w, "general.architecture", arch);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, numbers[i].key);
        gguf_put_u32(&w, key, numbers[i].v);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    gguf_put_f32(&w, key, 1e-6f);
    if (toy->extra_key)
        gguf_put_u32(&w, toy->extra_key, 4);
    for (size_t i = 0; i < toy->n; i++)
        gguf_put_tensor(&w, toy->t[i].gguf, GGUF_T_F32, toy->t[i].rows ? 2 : 1,
                        (const uint64_t[]){toy->t[i].in, toy->t[i].rows});
    gguf_put_header(&w, &out);
    for (size_t i = 0; i < toy->n; i++) {
        const struct toy_tensor *t = &toy->t[i];
        uint32_t rows = t->rows ? t->rows : 1;
        size_t begin = out.len;
        float *to = (float *)(void *)buf_extend(&out, (size_t)rows * t->in * 4);
        for (uint32_t h = 0; t->permuted && toy->kind == ARCH_LLAMA && h < rows / HD; h++)
            for (uint32_t half = 0; half < 2; half++) /* (heads, 2, HD/2) becomes (heads, HD/2, 2) */
                for (uint32_t j = 0; j < HD / 2; j++)
                    memcpy(to + (size_t)(h * HD + 2 * j + half) * t->in,
                           t->data + (size_t)(h * HD + half * (HD / 2) + j) * t->in, t->in * 4);
        if (!t->permuted || toy->kind != ARCH_LLAMA)
            memcpy(to, t->data, (size_t)rows * t->in * 4);
        size_t padding = gguf_padding(out.len - begin);
        memset(buf_extend(&out, padding), 0, padding);
    }
    file_write_durable(path, out.data, out.len, 0600, NULL);
    gguf_writer_release(&w);
    buf_release(&out);
    return path;
}

static void write_text(const char *dir, const char *name, const char *text)
{
    file_write_durable(harness_path(dir, name), text, strlen(text), 0600, NULL);
}

/* Tensors [from, to) as a safetensors file. */
static void toy_shard(const struct toy *toy, size_t from, size_t to, const char *path)
{
    struct safetensors_tensor t[TENSORS_MAX];
    struct buf out = {0};
    for (size_t i = from; i < to; i++) {
        const struct toy_tensor *x = &toy->t[i];
        t[i - from] = (struct safetensors_tensor){.name = x->hf,
                                                  .rank = x->rows ? 2 : 1,
                                                  .shape = {x->rows ? x->rows : x->in, x->rows ? x->in : 1},
                                                  .data = (const uint8_t *)x->data};
    }
    safetensors_write(t, to - from, &out);
    file_write_durable(path, out.data, out.len, 0600, NULL);
    buf_release(&out);
}

static const char *toy_config(const struct toy *toy, const char *more, char out[1024])
{
    static const char *const classes[] = {"", "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"};
    snprintf(out, 1024,
             "{\"architectures\":[\"%s\"],\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
             "\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,\"vocab_size\":%d,"
             "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
             "\"rope_scaling\":null,\"tie_word_embeddings\":%s%s}",
             classes[toy->kind], D, FF, LAYERS, HEADS, KV, HD, VOCAB, toy->tied ? "true" : "false", more);
    return out;
}

static const char *toy_hf(const struct toy *toy, bool sharded)
{
    char text[1024];
    const char *dir = harness_path(harness_tmpdir(), sharded ? "sharded" : "single");
    char command[600];
    snprintf(command, sizeof command, "rm -rf '%s' && mkdir '%s'", dir, dir);
    EXPECT(system(command) == 0);
    write_text(dir, "config.json", toy_config(toy, "", text));
    if (!sharded) {
        toy_shard(toy, 0, toy->n, harness_path(dir, "model.safetensors"));
        return dir;
    }
    size_t half = toy->n / 2;
    toy_shard(toy, 0, half, harness_path(dir, "model-1.safetensors"));
    toy_shard(toy, half, toy->n, harness_path(dir, "model-2.safetensors"));
    json_t *map = json_object();
    for (size_t i = 0; i < toy->n; i++)
        json_object_set_new(map, toy->t[i].hf, json_string(i < half ? "model-1.safetensors" : "model-2.safetensors"));
    json_t *index = json_pack("{s:o}", "weight_map", map);
    json_dump_file(index, harness_path(dir, "model.safetensors.index.json"), 0);
    json_decref(index);
    return dir;
}

static void expect_same_bases(const struct base *a, const struct base *b)
{
    EXPECT(!memcmp(base_arch(a), base_arch(b), sizeof(struct arch)));
    for (unsigned t = 0; t < BASE_TENSORS; t++)
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            uint32_t rows, in;
            float x[512], y[512];
            EXPECT_EQ(base_has(a, (enum base_tensor)t, layer), base_has(b, (enum base_tensor)t, layer));
            if (!base_has(a, (enum base_tensor)t, layer))
                continue;
            base_shape(a, (enum base_tensor)t, &rows, &in);
            base_rows(a, (enum base_tensor)t, layer, 0, rows, x);
            base_rows(b, (enum base_tensor)t, layer, 0, rows, y);
            EXPECT(!memcmp(x, y, (size_t)rows * in * 4));
        }
}

static void test_toys_in_both_kinds_of_file(void)
{
    struct err err;
    for (unsigned kind = ARCH_LLAMA; kind <= ARCH_QWEN3; kind++)
        for (int tied = 0; tied < 2; tied++) {
            struct toy toy;
            struct base *g = NULL, *single = NULL, *sharded = NULL;
            const struct tokenizer *tok;
            toy_make(&toy, (enum arch_kind)kind, tied);
            EXPECT_ST(base_open(toy_gguf(&toy, "toy.gguf"), &g, &err), ST_OK, &err);
            EXPECT_ST(base_open(toy_hf(&toy, false), &single, &err), ST_OK, &err);
            EXPECT_ST(base_open(toy_hf(&toy, true), &sharded, &err), ST_OK, &err);
            REQUIRE(g && single && sharded);
            expect_same_bases(g, single);
            expect_same_bases(g, sharded);
            EXPECT_EQ(base_has(g, BASE_K_BIAS, 1), kind == ARCH_QWEN2);
            EXPECT_EQ(base_has(g, BASE_Q_NORM, 1), kind == ARCH_QWEN3);
            float q[HEADS * HD * D]; /* what was put in, not only the same in both */
            base_rows(g, BASE_Q, 0, 0, HEADS * HD, q);
            for (size_t i = 0; i < toy.n; i++)
                if (!strcmp(toy.t[i].gguf, "blk.0.attn_q.weight"))
                    EXPECT(!memcmp(q, toy.t[i].data, sizeof q));
            EXPECT_ST(base_tokenizer(g, &tok, &err), ST_NOT_FOUND, &err);
            EXPECT_ST(base_tokenizer(single, &tok, &err), ST_NOT_FOUND, &err);
            base_close(g);
            base_close(single);
            base_close(sharded);
            toy_free(&toy);
        }
}

static void expect_refused(const char *path, enum status want, const char *word)
{
    struct base *base = NULL;
    struct err err = {{0}};
    EXPECT_ST(base_open(path, &base, &err), want, &err);
    harness_expect(base == NULL && strstr(err.text, word) != NULL, __FILE__, __LINE__, "\"%s\" names %s", err.text,
                   word);
    base_close(base);
}

/* Llama 3's scaling, from the formula in config.json and from the factors in a GGUF. theta 1e4 and heads of 6: waves of 6, 135
 * and 2,916 positions, below, between and above context / high and context / low. */
static void test_llama3_rope_in_both_kinds_of_file(void)
{
    static const char scaling[] = ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
                                  "\"high_freq_factor\":4,\"original_max_position_embeddings\":200}";
    struct err err;
    struct toy toy;
    struct rng rng;
    struct base *hf = NULL, *gguf = NULL;
    char text[1024];
    toy_make(&toy, ARCH_LLAMA, true);
    const char *dir = toy_hf(&toy, false);
    write_text(dir, "config.json", toy_config(&toy, scaling, text));
    REQUIRE(EXPECT_ST(base_open(dir, &hf, &err), ST_OK, &err));
    const float *f = base_rope_factors(hf);
    REQUIRE(f != NULL);
    double wave = 2 * 3.14159265358979323846 * 21.544346900318837, stays = (200 / wave - 1) / 3;
    EXPECT(f[0] == 1 && f[2] == 8);
    EXPECT_NEAR(f[1], 1 / ((1 - stays) / 8 + stays), 1e-6);

    rng_seed(&rng, 9);
    toy_add(&toy, &rng, -1, "rope_freqs.weight", "-", 0, HD / 2);
    memcpy(toy.t[toy.n - 1].data, f, HD / 2 * sizeof *f);
    REQUIRE(EXPECT_ST(base_open(toy_gguf(&toy, "scaled.gguf"), &gguf, &err), ST_OK, &err));
    EXPECT(!memcmp(base_rope_factors(gguf), f, HD / 2 * sizeof *f));
    base_close(gguf);
    toy.t[toy.n - 1].data[1] = 0;
    expect_refused(toy_gguf(&toy, "scaled.gguf"), ST_BAD_DATA, "number 1 of rope_freqs.weight");
    base_close(hf);
    toy_free(&toy);
}

static void test_gguf_refusals(void)
{
    struct toy toy;
    toy_make(&toy, ARCH_LLAMA, true);
    toy.extra_key = "llama.attention.sliding_window";
    expect_refused(toy_gguf(&toy, "key.gguf"), ST_UNSUPPORTED, "sliding_window");
    toy.extra_key = "llama.rope.scaling.factor";
    expect_refused(toy_gguf(&toy, "key.gguf"), ST_UNSUPPORTED, "rope.scaling.factor");
    toy.extra_key = "llama.vocab_size";
    expect_refused(toy_gguf(&toy, "key.gguf"), ST_BAD_DATA, "vocab_size");
    toy.extra_key = "llama.rope.dimension_count";
    expect_refused(toy_gguf(&toy, "key.gguf"), ST_UNSUPPORTED, "rotated");
    toy.extra_key = NULL;
    struct toy_tensor *last = &toy.t[toy.n - 1];
    snprintf(last->gguf, sizeof last->gguf, "rope_freqs.weight");
    expect_refused(toy_gguf(&toy, "name.gguf"), ST_UNSUPPORTED, "rope_freqs"); /* of the wrong shape */
    snprintf(last->gguf, sizeof last->gguf, "blk.0.attn_q.bias");
    expect_refused(toy_gguf(&toy, "name.gguf"), ST_UNSUPPORTED, "attn_q.bias");
    snprintf(last->gguf, sizeof last->gguf, "blk.2.ffn_down.weight");
    expect_refused(toy_gguf(&toy, "name.gguf"), ST_UNSUPPORTED, "blk.2.ffn_down.weight");
    snprintf(last->gguf, sizeof last->gguf, "blk.01.ffn_down.weight");
    expect_refused(toy_gguf(&toy, "name.gguf"), ST_UNSUPPORTED, "blk.01.ffn_down.weight");
    snprintf(last->gguf, sizeof last->gguf, "blk.1.ffn_down.weight");
    uint32_t rows = last->rows;
    last->rows = rows - 1;
    expect_refused(toy_gguf(&toy, "shape.gguf"), ST_BAD_DATA, "blk.1.ffn_down.weight is (7, 12), expected (8, 12)");
    last->rows = rows;
    toy.n--;
    expect_refused(toy_gguf(&toy, "missing.gguf"), ST_BAD_DATA, "blk.1.ffn_down.weight is missing");
    toy.n++;
    toy_free(&toy);
    expect_refused(harness_path(harness_tmpdir(), "none"), ST_NOT_FOUND, "none");
}

static void test_hf_refusals(void)
{
    static const struct {
        const char *more, *word;
    } cases[] = {{",\"rope_scaling2\":1,\"mlp_bias\":true", "mlp_bias"},
                 {",\"attention_bias\":true", "attention_bias"},
                 {",\"use_sliding_window\":true", "use_sliding_window"},
                 {",\"rope_interleaved\":true", "rope_interleaved"},
                 {",\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
                 {",\"quantization_config\":{}", "quantization_config"},
                 {",\"rope_parameters\":{\"rope_type\":\"yarn\"}", "rope_parameters"},
                 {",\"rope_parameters\":{\"type\":\"linear\",\"factor\":2}", "rope_parameters"},
                 {",\"layer_types\":[\"full_attention\",\"sliding_attention\"]", "layer_types"}};
    struct toy toy;
    char text[1024];
    toy_make(&toy, ARCH_LLAMA, true);
    const char *dir = toy_hf(&toy, false);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        write_text(dir, "config.json", toy_config(&toy, cases[i].more, text));
        expect_refused(dir, ST_UNSUPPORTED, cases[i].word);
    }
    write_text(dir, "config.json", toy_config(&toy, ",\"rope_parameters\":{\"rope_type\":\"llama3\"}", text));
    expect_refused(dir, ST_BAD_DATA, "factor is missing");
    write_text(dir, "config.json",
               toy_config(&toy,
                          ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,"
                          "\"high_freq_factor\":4,\"original_max_position_embeddings\":16}",
                          text));
    expect_refused(dir, ST_BAD_DATA, "do not fit");
    write_text(dir, "config.json", "{\"architectures\":[\"MistralForCausalLM\"]}");
    expect_refused(dir, ST_UNSUPPORTED, "MistralForCausalLM");
    write_text(dir, "config.json", "{\"architectures\":[\"LlamaForCausalLM\"]}");
    expect_refused(dir, ST_BAD_DATA, "max_position_embeddings");
    write_text(dir, "config.json", "{");
    expect_refused(dir, ST_BAD_DATA, "config.json");
    dir = toy_hf(&toy, true);
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"x\":\"../model-1.safetensors\"}}");
    expect_refused(dir, ST_BAD_DATA, "file name");
    write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{\"x\":\"model-1.safetensors\"}}");
    expect_refused(dir, ST_BAD_DATA, "index names 1");
    toy_free(&toy);
}

int main(void)
{
    hash_start();
    RUN(test_quant_by_hand);
    RUN(test_quant_is_the_reference);
    RUN(test_real_base);
    RUN(test_toys_in_both_kinds_of_file);
    RUN(test_llama3_rope_in_both_kinds_of_file);
    RUN(test_gguf_refusals);
    RUN(test_hf_refusals);
    return harness_end();
}
