#include "adapter/adapter.h"

#include <math.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"

static const char *const peft_names[LORA_MODULES] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                     "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                     "mlp.down_proj"};
static const char *const gguf_names[LORA_MODULES] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                     "ffn_gate", "ffn_up", "ffn_down"};

enum status adapter_shape_of(const struct arch *arch, uint32_t rank, uint32_t alpha, uint32_t targets,
                             struct adapter_shape *out, struct err *err)
{
    if (rank < 1 || rank > LORA_RANK_MAX)
        return err_set(err, ST_USAGE, "LoRA rank %u is not between 1 and %d", rank, LORA_RANK_MAX);
    if (alpha < 1 || alpha > 65536)
        return err_set(err, ST_USAGE, "LoRA alpha %u is not between 1 and 65536", alpha);
    const uint32_t modules = targets & ((1u << LORA_FIRST_LAYER) - 1), first = targets >> LORA_FIRST_LAYER;
    if (modules == 0 || modules & ~(uint32_t)LORA_ALL)
        return err_set(err, ST_USAGE, "LoRA targets 0x%x: at least one of the bits 0 to %d", targets, LORA_MODULES - 1);
    if (first >= arch->n_layers)
        return err_set(err, ST_USAGE, "%u as the first layer that learns: the base has layers 0 to %u", first,
                       arch->n_layers - 1);
    uint32_t d = arch->d_model, ff = arch->d_ff, q = arch->n_heads * arch->head_dim;
    uint32_t kv = arch->n_kv_heads * arch->head_dim;
    *out = (struct adapter_shape){
        .n_layers = arch->n_layers,
        .rank = rank,
        .alpha = alpha,
        .targets = targets,
        .in = {d, d, d, q, d, d, ff},
        .out = {q, kv, kv, d, ff, ff, d},
    };
    return ST_OK;
}

uint32_t adapter_first_layer(const struct adapter_shape *shape)
{
    return shape->targets >> LORA_FIRST_LAYER;
}

bool adapter_adapts(const struct adapter_shape *shape, uint32_t layer, unsigned m)
{
    return layer >= adapter_first_layer(shape) && shape->targets >> m & 1;
}

bool adapter_shape_eq(const struct adapter_shape *a, const struct adapter_shape *b)
{
    return a->n_layers == b->n_layers && a->rank == b->rank && a->alpha == b->alpha && a->targets == b->targets &&
           !memcmp(a->in, b->in, sizeof a->in) && !memcmp(a->out, b->out, sizeof a->out);
}

/* Floats of the modules below `end` in one layer. */
static size_t layer_floats(const struct adapter_shape *shape, unsigned end)
{
    size_t n = 0;
    for (unsigned m = 0; m < end; m++)
        if (shape->targets >> m & 1)
            n += (size_t)shape->rank * ((size_t)shape->in[m] + shape->out[m]);
    return n;
}

size_t adapter_floats(const struct adapter_shape *shape)
{
    return (shape->n_layers - adapter_first_layer(shape)) * layer_floats(shape, LORA_MODULES);
}

size_t adapter_at_a(const struct adapter_shape *shape, uint32_t layer, enum lora_module m)
{
    CHECK(layer < shape->n_layers && m < LORA_MODULES && adapter_adapts(shape, layer, m));
    return (layer - adapter_first_layer(shape)) * layer_floats(shape, LORA_MODULES) + layer_floats(shape, m);
}

size_t adapter_at_b(const struct adapter_shape *shape, uint32_t layer, enum lora_module m)
{
    return adapter_at_a(shape, layer, m) + (size_t)shape->rank * shape->in[m];
}

float adapter_scale(const struct adapter_shape *shape)
{
    return (float)shape->alpha / (float)shape->rank;
}

const char *lora_module_peft(enum lora_module m)
{
    CHECK(m < LORA_MODULES);
    return peft_names[m];
}

const char *lora_module_gguf(enum lora_module m)
{
    CHECK(m < LORA_MODULES);
    return gguf_names[m];
}

enum lora_module lora_module_of(const char *name, size_t len)
{
    unsigned m = 0;
    for (; m < LORA_MODULES; m++) {
        const char *known = strchr(peft_names[m], '.') + 1;
        if (strlen(known) == len && !memcmp(known, name, len))
            break;
    }
    return (enum lora_module)m;
}

enum status lora_targets(const char *list, uint32_t first, uint32_t *out, struct err *err)
{
    *out = first << LORA_FIRST_LAYER;
    if (!strcmp(list, "all")) {
        *out |= LORA_ALL;
        return ST_OK;
    }
    for (const char *name = list;;) {
        size_t len = strcspn(name, ",");
        enum lora_module m = lora_module_of(name, len);
        if (m == LORA_MODULES)
            return err_set(
                err, ST_USAGE,
                "target modules: \"%.*s\" is none of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; "
                "or \"all\" alone",
                len > 40 ? 40 : (int)len, name);
        *out |= 1u << m;
        name += len;
        if (!*name++)
            return ST_OK;
    }
}

void adapter_init(const struct adapter_shape *shape, uint64_t seed, float *block)
{
    for (uint32_t layer = 0; layer < shape->n_layers; layer++) {
        for (unsigned m = 0; m < LORA_MODULES; m++) {
            if (!adapter_adapts(shape, layer, m))
                continue;
            struct rng rng; /* the odd factor keeps the streams' seeds apart */
            rng_seed(&rng, seed ^ 0xd1342543de82ef95u * ((uint64_t)layer * LORA_MODULES + m + 1));
            size_t n_a = (size_t)shape->rank * shape->in[m], n_b = (size_t)shape->rank * shape->out[m];
            float *a = block + adapter_at_a(shape, layer, m);
            double bound = 1 / sqrt(shape->in[m]);
            for (size_t i = 0; i < n_a; i++)
                a[i] = (float)((2 * rng_unit(&rng) - 1) * bound);
            memset(a + n_a, 0, n_b * sizeof *a);
        }
    }
}
