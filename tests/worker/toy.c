#include "toy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/safetensors.h"
#include "base/buf.h"
#include "base/hash.h"
#include "harness.h"

enum { D = 32, FF = 48, HEADS = 4, KV = 2, HD = 8, LAYERS = 2, TENSORS = 3 + 9 * LAYERS };

static void add(struct safetensors_tensor *t, struct rng *rng, const char *name, uint64_t rows, uint64_t in)
{
    uint64_t n = (rows ? rows : 1) * in;
    float *data = xmalloc(n * sizeof *data);
    for (uint64_t i = 0; i < n; i++)
        data[i] = rows ? 0.15f * (float)rng_normal(rng) : 1.0f;
    *t = (struct safetensors_tensor){.name = xstrdup(name),
                                     .rank = rows ? 2 : 1,
                                     .shape = {rows ? rows : in, rows ? in : 1},
                                     .data = (const uint8_t *)data};
}

static void write_weights(const char *path)
{
    static const struct {
        const char *name;
        uint32_t rows, in;
    } layer[] = {
        {"input_layernorm", 0, D},
        {"self_attn.q_proj", HEADS * HD, D},
        {"self_attn.k_proj", KV * HD, D},
        {"self_attn.v_proj", KV * HD, D},
        {"self_attn.o_proj", D, HEADS * HD},
        {"post_attention_layernorm", 0, D},
        {"mlp.gate_proj", FF, D},
        {"mlp.up_proj", FF, D},
        {"mlp.down_proj", D, FF},
    };
    struct safetensors_tensor t[TENSORS];
    struct buf out = {0};
    struct rng rng;
    size_t n = 0;
    char name[96];
    rng_seed(&rng, 1);
    add(&t[n++], &rng, "lm_head.weight", TOY_VOCAB, D);
    add(&t[n++], &rng, "model.embed_tokens.weight", TOY_VOCAB, D);
    add(&t[n++], &rng, "model.norm.weight", 0, D);
    for (int l = 0; l < LAYERS; l++)
        for (size_t i = 0; i < sizeof layer / sizeof layer[0]; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", l, layer[i].name);
            add(&t[n++], &rng, name, layer[i].rows, layer[i].in);
        }
    safetensors_write(t, n, &out);
    file_write_durable(path, out.data, out.len, 0600, NULL);
    buf_release(&out);
    for (size_t i = 0; i < n; i++) {
        free((void *)t[i].data);
        free((void *)t[i].name);
    }
}

void toy_base_write(const char *dir)
{
    struct buf json = {0};
    write_weights(harness_path(dir, "model.safetensors"));
    buf_printf(&json,
               "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":%d,\"intermediate_size\":%d,"
               "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,"
               "\"vocab_size\":%d,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,"
               "\"hidden_act\":\"silu\",\"rope_scaling\":null,\"tie_word_embeddings\":false}",
               D, FF, LAYERS, HEADS, KV, HD, TOY_VOCAB);
    file_write_durable(harness_path(dir, "config.json"), json.data, json.len, 0600, NULL);
    buf_clear(&json);
    buf_printf(&json, "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false},\"added_tokens\":[],"
                      "\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{\"\\u0120\":0,\"\\u010a\":1");
    for (int c = 33; c < 127; c++)
        buf_printf(&json, ",\"%s%c\":%d", c == '"' || c == '\\' ? "\\" : "", c, c - 31);
    buf_printf(&json, "}}}");
    file_write_durable(harness_path(dir, "tokenizer.json"), json.data, json.len, 0600, NULL);
    buf_release(&json);
}

const char *toy_base(void)
{
    const char *dir = harness_tmpdir();
    toy_base_write(dir);
    return dir;
}

Alv__Segment *toy_segment(struct mix_segment at, bool probe)
{
    Alv__Segment s = ALV__SEGMENT__INIT;
    uint8_t group[8] = {0};
    char text[256];
    uint64_t o = at.offset;
    size_t len = (size_t)snprintf(text, sizeof text, "%s %u: the %llu-th line of a text that says %llu * 7 = %llu.\n",
                                  probe ? "probe" : "train", at.domain.v, (unsigned long long)o, (unsigned long long)o,
                                  (unsigned long long)(o * 7));
    len -= o % 9;
    group[0] = (uint8_t)(o / 4);
    s.offset = o;
    s.kind = ALV__RECORD_KIND__RECORD_TEXT;
    s.piece = (uint32_t)(o % 4);
    s.group = (ProtobufCBinaryData){8, group};
    s.text = (ProtobufCBinaryData){len, (uint8_t *)text};
    uint8_t packed[512];
    size_t n = alv__segment__pack(&s, packed);
    return alv__segment__unpack(NULL, n, packed);
}

static int compare(const void *a, const void *b)
{
    const struct mix_segment x = ((const struct placed_segment *)a)->at, y = ((const struct placed_segment *)b)->at;
    return x.domain.v != y.domain.v ? x.domain.v - y.domain.v : (x.offset > y.offset) - (x.offset < y.offset);
}

enum status toy_segments(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                         struct err *err)
{
    (void)err;
    for (uint32_t i = 0; i < n; i++) {
        if (segment_set_find(set, wanted[i]))
            continue;
        set->items = xrealloc_array(set->items, set->n + 1, sizeof *set->items);
        set->items[set->n++] = (struct placed_segment){wanted[i], toy_segment(wanted[i], set->probe)};
        qsort(set->items, set->n, sizeof *set->items, compare);
        ++*(uint32_t *)user;
    }
    return ST_OK;
}

Alv__Lease *toy_lease(void)
{
    static Alv__Lease lease;
    static Alv__TrainConfig train;
    static Alv__BlobRef parent;
    static Alv__Range ranges[2], *range_list[2];
    static Alv__DomainView views[3], *view_list[3];
    static char names[3][8] = {"general", "notes", "code"};
    static uint8_t incarnation[16] = {3}, digest[32];
    alv__lease__init(&lease);
    alv__train_config__init(&train);
    alv__blob_ref__init(&parent);
    parent.digest = (ProtobufCBinaryData){32, digest};
    parent.bytes = 1;
    train.seq_tokens = 32, train.step_tokens = 96;
    train.lr = 1e-2f, train.beta1 = 0.9f, train.beta2 = 0.99f, train.eps = 1e-8f, train.clip = 1;
    train.warmup_steps = 2, train.anchor_permille = 50, train.history_permille = 200, train.sample_k = 32;
    train.delta_coding = 3; /* int8: the one with randomness in it */
    for (uint32_t i = 0; i < 3; i++) {
        alv__domain_view__init(&views[i]);
        views[i].domain = i, views[i].watermark = 100, views[i].weight = i, views[i].name = names[i];
        view_list[i] = &views[i];
    }
    for (uint32_t i = 0; i < 2; i++) {
        alv__range__init(&ranges[i]);
        ranges[i].domain = i + 1, ranges[i].first = 100, ranges[i].count = 8 + 3 * i;
        range_list[i] = &ranges[i];
    }
    lease.id = 12, lease.generation = 1, lease.round = 1, lease.seed = 77, lease.progress_ms = 1000;
    lease.session_counter = 1;
    lease.session_incarnation = (ProtobufCBinaryData){16, incarnation};
    lease.parent_adapter = &parent;
    lease.n_fresh = 2, lease.fresh = range_list;
    lease.n_domains = 3, lease.domains = view_list;
    lease.train = &train;
    return &lease;
}
