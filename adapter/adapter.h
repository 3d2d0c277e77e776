/* adapter.h - LoRA factors in memory: one flat f32 block whose layout follows from the shape.
 *
 * Order: layer 0 .. n_layers-1; in a layer the seven modules in the order below; of a module A (rank, in), then
 * B (out, rank), row-major, as PEFT stores them and in Hugging Face row order (q and k not permuted). A module outside
 * `targets` takes no room. W' = W + (alpha / rank) * B * A.   LoRA: Hu et al. 2021, arXiv 2106.09685.
 */
#ifndef ADAPTER_ADAPTER_H
#define ADAPTER_ADAPTER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "adapter/card.h"
#include "base/buf.h"
#include "base/status.h"

enum lora_module { LORA_Q, LORA_K, LORA_V, LORA_O, LORA_GATE, LORA_UP, LORA_DOWN, LORA_MODULES };
enum { LORA_ALL = (1 << LORA_MODULES) - 1, LORA_FIRST_LAYER = 8, LORA_RANK_MAX = 256 };

struct adapter_shape {
    uint32_t n_layers, rank, alpha;
    uint32_t targets; /* bit m: module m is adapted; from bit LORA_FIRST_LAYER on, the first layer in which it is */
    uint32_t in[LORA_MODULES], out[LORA_MODULES];
};

/* The shape over a base. ST_USAGE unless 1 <= rank <= LORA_RANK_MAX, 1 <= alpha <= 65536, some module among the targets, of
 * a layer that there is. */
enum status adapter_shape_of(const struct arch *arch, uint32_t rank, uint32_t alpha, uint32_t targets,
                             struct adapter_shape *out, struct err *err);
uint32_t adapter_first_layer(const struct adapter_shape *shape); /* those below it have no room in the block */
bool adapter_adapts(const struct adapter_shape *shape, uint32_t layer, unsigned m);
bool adapter_shape_eq(const struct adapter_shape *a, const struct adapter_shape *b);
size_t adapter_floats(const struct adapter_shape *shape); /* length of the block */
size_t adapter_at_a(const struct adapter_shape *shape, uint32_t layer,
                    enum lora_module m); /* index of A's first float */
size_t adapter_at_b(const struct adapter_shape *shape, uint32_t layer, enum lora_module m);
float adapter_scale(const struct adapter_shape *shape); /* alpha / rank */
const char *lora_module_peft(enum lora_module m);       /* "self_attn.q_proj" */
const char *lora_module_gguf(enum lora_module m);       /* "attn_q" */

/* The module that PEFT's target_modules calls by these `len` bytes ("q_proj"); LORA_MODULES: none. */
enum lora_module lora_module_of(const char *name, size_t len);
/* The targets of a shape: the modules in such a list, with commas between them, or all of "all", from layer `first` (up to 65535) on.
 * ST_USAGE names what is no module. */
enum status lora_targets(const char *list, uint32_t first, uint32_t *out, struct err *err);

/* Version 0: A from U(-1/sqrt(in), 1/sqrt(in)) (PEFT's kaiming_uniform(a=sqrt 5)), one rng stream per (layer, module)
 * so that the values do not depend on the other modules; B = 0. */
void adapter_init(const struct adapter_shape *shape, uint64_t seed, float *block);

/* The f32 master as PEFT's safetensors (the blob that is the version): keys
 * base_model.model.model.layers.N.<module>.lora_A.weight / .lora_B.weight, metadata {"format":"pt"}. Deterministic bytes.
 * Reading refuses: missing or extra tensors, other shapes, other dtypes than F32, non-finite values. */
void adapter_write_peft(const struct adapter_shape *shape, const float *block, struct buf *out);
enum status adapter_read_peft(const struct adapter_shape *shape, const void *data, size_t len, float *block,
                              struct err *err);

/* adapter_config.json of PEFT (ten keys) with the base's name as the server knows it. */
void adapter_peft_config(const struct adapter_shape *shape, const char *base_name, struct buf *out);

/* GGUF LoRA v3 of the same block; rows of B of q and k permuted for arch llama only. `card` supplies the architecture
 * and the base digest for our own key. */
void adapter_write_gguf(const struct adapter_shape *shape, const struct card *card, const float *block,
                        struct buf *out);

#endif
