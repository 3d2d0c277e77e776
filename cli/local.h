/* local.h - what train, eval and generate share: a base in memory, an adapter from a file, text as windows of tokens. */
#ifndef CLI_LOCAL_H
#define CLI_LOCAL_H

#include "adapter/adapter.h"
#include "adapter/safetensors.h"
#include "cli/cli.h"
#include "model/base.h"
#include "model/pack.h"
#include "model/template.h"
#include "model/tokenizer.h"
#include "model/weights.h"

struct local {
    struct base *base;
    const struct tokenizer *tokenizer; /* of the base */
    struct weights *weights;           /* NULL until local_load() */
};
enum status local_open(const char *path, struct local *out, struct err *err);
enum status local_load(struct local *engine, enum ops_kind ops, struct err *err); /* dequantises: seconds */
void local_release(struct local *engine);

uint32_t local_threads(uint32_t wanted); /* 0: the CPUs this process may use */

#define LOCAL_BACKENDS "auto|blas|bf16|dnnl|ref"
#define LOCAL_BACKENDS_HELP                                                                                        \
    "auto: bf16 where the CPU has AMX or AVX512-BF16, else blas; bf16: factors of products rounded; dnnl: oneDNN " \
    "(libdnnl2); "                                                                                                 \
    "ref: plain loops, slow"
#define LOCAL_BACKENDS_WHY "bf16 is several times faster and moves a loss by less than a thousandth of a nat"
enum { LOCAL_AUTO, LOCAL_BLAS };
enum ops_kind local_ops(unsigned choice); /* of --backend, one of these */

#define LOCAL_FIRST_LAYER_HELP "layers below it learn nothing, and no gradient goes there: faster, and less memory"
#define LOCAL_TARGETS_HELP \
    "which linears of a layer learn: PEFT's names with commas between them (q_proj,v_proj), or all"

struct lora { /* zeroed: none */
    struct adapter_shape shape;
    float *block;
};
/* A PEFT directory, or its adapter_model.safetensors (the config beside it is read). */
enum status lora_read(const char *path, const struct arch *arch, struct lora *out, struct err *err);
void lora_release(struct lora *lora);

/* All text of some paths as windows of at most seq + 1 tokens; the last token of one is the first of the next, so that
 * every token but a text's first is predicted once. */
struct corpus {
    struct token_buf tokens;
    struct buf mask;
    struct window {
        size_t at;
        uint32_t n, path;     /* path: index of the argument it came from */
        double reference;     /* pairs: log-probability of the answer under the reference; NAN: to be scored */
        const float *teacher; /* (n - 1, vocabulary) logits, or NULL */
    } * windows;
    size_t n, cap;
    uint64_t records, bytes, refused;
    struct safetensors **teachers; /* (n_teachers) files that windows point into */
    size_t n_teachers;
};
/* What is refused is named on standard error and counted. Chats are rendered with the base's template. */
enum status corpus_add(struct corpus *corpus, const struct local *engine, const char *path, uint32_t index,
                       uint32_t seq, struct err *err);
void corpus_refuse(struct corpus *corpus, const char *where, const char *why);
struct window *corpus_window(struct corpus *corpus, size_t from, size_t n,
                             uint32_t index); /* of tokens [from, from + n) */

/* The other objectives' data (docs/how-to/train-on-files.md says what the files hold). Pairs: windows 2i and 2i + 1 are
 * the chosen and the rejected answer of one prompt. Teacher: one window for each ids tensor. */
enum status corpus_add_pairs(struct corpus *corpus, const struct local *engine, const char *path, uint32_t index,
                             uint32_t seq, struct err *err);
enum status corpus_add_teacher(struct corpus *corpus, const char *path, uint32_t vocab_size, uint32_t index,
                               uint32_t seq, struct err *err);
struct sample corpus_sample(const struct corpus *corpus, size_t window);
void corpus_release(struct corpus *corpus);

/* Chat messages as JSON ([{"role","content"}]) to ids and mask. */
enum status render_chat(const struct local *engine, const char *json, size_t len, bool ask, struct token_buf *ids,
                        struct buf *mask, struct err *err);

#endif
