/* llama.cpp as the outside judge: on the base dequantised to F32 it must find the same tokens and the same mean loss as we
 * do, bare and under an adapter we exported; and the same adapter with the rows of q and k left unpermuted must be seen to
 * be wrong. (On the quantised base it would not do: llama.cpp quantises activations there, and is off by 0.01.) */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "adapter/adapter.h"
#include "adapter/gguf.h"
#include "base/hash.h"
#include "harness.h"
#include "model/base.h"
#include "model/evaluate.h"
#include "model/quant.h"
#include "model/tokenizer.h"
#include "real_base.h"

#define JUDGE SOURCE_DIR "/build/judge/node_modules"
#define TOLERANCE 1e-4 /* nats; f32 against f32 agrees to 1e-6, the wrong permutation is off by a hundred times this */

/* Every tensor as F32, in the file's own row order. */
static bool write_f32_base(const char *from, const char *to)
{
    struct gguf *g = NULL;
    struct gguf_writer w = {0};
    struct buf head = {0};
    if (!EXPECT(gguf_open(from, &g, NULL) == ST_OK))
        return false;
    for (size_t i = 0; i < gguf_n_kv(g); i++) {
        const struct gguf_kv *kv = gguf_kv_at(g, i);
        bool skip = kv == gguf_kv(g, "general.file_type") || kv == gguf_kv(g, "general.quantization_version");
        if (!skip)
            gguf_put_kv(&w, kv);
    }
    for (size_t i = 0; i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        gguf_put_tensor(&w, t->name, GGUF_T_F32, t->n_dims, t->ne);
    }
    gguf_put_header(&w, &head);
    FILE *f = fopen(to, "wb");
    bool ok = f && fwrite(head.data, head.len, 1, f) == 1;
    for (size_t i = 0; ok && i < gguf_n_tensors(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        static const uint8_t zeroes[GGUF_ALIGNMENT];
        size_t n = t->ne[0] * t->ne[1], padding = gguf_padding(n * 4);
        float *x = xcalloc(n, sizeof *x);
        quant_expand(t->type, t->data, n, x);
        ok = fwrite(x, 4, n, f) == n && fwrite(zeroes, 1, padding, f) == padding;
        free(x);
    }
    ok = f && fclose(f) == 0 && ok;
    gguf_close(g);
    gguf_writer_release(&w);
    buf_release(&head);
    return EXPECT(ok);
}

/* Rows of B of q and k moved so that the export's permutation leaves them in Hugging Face order: what a writer that forgot
 * to permute would publish. */
static void undo_permutation(const struct adapter_shape *s, uint32_t hd, float *block)
{
    for (uint32_t layer = 0; layer < s->n_layers; layer++)
        for (unsigned m = LORA_Q; m <= LORA_K; m++) {
            float *b = block + adapter_at_b(s, layer, (enum lora_module)m);
            float *copy = xmemdup(b, (size_t)s->out[m] * s->rank * sizeof *b);
            for (uint32_t row = 0; row < s->out[m]; row++) { /* row of the file */
                uint32_t within = row % hd, to = row - within + within % 2 * (hd / 2) + within / 2;
                memcpy(b + (size_t)to * s->rank, copy + (size_t)row * s->rank, s->rank * sizeof *b);
            }
            free(copy);
        }
}

static const char *write_adapter(const struct adapter_shape *s, const struct card *card, const float *block,
                                 const char *name)
{
    const char *path = harness_path(harness_tmpdir(), name);
    struct buf out = {0};
    struct err err;
    adapter_write_gguf(s, card, block, &out);
    EXPECT_ST(file_write_durable(path, out.data, out.len, 0600, &err), ST_OK, &err);
    buf_release(&out);
    return path;
}

static double our_loss(struct evaluator *e, const float *block, const struct token_buf *ids)
{
    struct sample sample = {.tokens = ids->ids, .n_tokens = (uint32_t)ids->n};
    struct err err;
    double nll = 0;
    uint32_t targets = 1;
    evaluator_set_adapter(e, block);
    EXPECT_ST(evaluator_score(e, &sample, 1, &nll, &targets, &err), ST_OK, &err);
    return nll / targets;
}

/* Ids and three losses from the judge. */
static bool ask_judge(const char *base, const char *text, const char *right, const char *wrong,
                      const struct token_buf *ids, double losses[3])
{
    char *command = NULL, *line = NULL;
    size_t size = 0, n = 0;
    if (asprintf(&command, "node '%s/tests/interop/judge.mjs' '%s' '%s' '%s' '%s' '%s'", SOURCE_DIR, JUDGE, base, text,
                 right, wrong) < 0)
        abort();
    FILE *p = popen(command, "r");
    bool ok = p && getline(&line, &size, p) > 0 && line[0] == '[';
    for (char *at = line; ok && at && *at && *at != ']'; n++) { /* "[1,2,3]" */
        unsigned long id = strtoul(at + 1, &at, 10);
        ok = n < ids->n && id == ids->ids[n];
    }
    harness_expect(ok && n == ids->n, __FILE__, __LINE__, "llama.cpp has our %zu token ids (first other at %zu)",
                   ids->n, n);
    for (int i = 0; i < 3 && ok; i++) {
        ok = getline(&line, &size, p) > 0;
        losses[i] = ok ? strtod(line, NULL) : NAN;
    }
    ok = p && pclose(p) == 0 && ok;
    free(line);
    free(command);
    return EXPECT(ok);
}

static void test_llama_cpp_agrees(void)
{
    const char *f32_base = harness_path(harness_tmpdir(), "base-f32.gguf"),
               *text_path = SOURCE_DIR "/tests/interop/text.txt";
    struct base *base = NULL;
    struct weights *weights = NULL;
    struct evaluator *evaluator = NULL;
    struct evaluator_config config;
    const struct tokenizer *tok = NULL;
    struct adapter_shape s;
    struct card card;
    struct buf text = {0};
    struct token_buf ids = {0};
    struct rng rng;
    struct err err;
    double theirs[3] = {NAN, NAN, NAN};
    if (!harness_expect(access(JUDGE, F_OK) == 0, __FILE__, __LINE__, "%s: run scripts/fetch-judge", JUDGE) ||
        !harness_expect(base_open(real_base_path(), &base, &err) == ST_OK, __FILE__, __LINE__,
                        "%s: run scripts/fetch-base, or set ALLUVIUM_BASE_GGUF", err.text))
        return;
    EXPECT_ST(base_tokenizer(base, &tok, &err), ST_OK, &err);
    EXPECT_ST(base_card(base, &card, &err), ST_OK, &err);
    EXPECT_ST(file_read(text_path, 1 << 20, &text, &err), ST_OK, &err);
    EXPECT_ST(tokenizer_encode(tok, (const char *)text.data, text.len, &ids, &err), ST_OK, &err);
    EXPECT_ST(adapter_shape_of(base_arch(base), 8, 16, LORA_ALL, &s, &err), ST_OK, &err);

    float *block = xcalloc(adapter_floats(&s), sizeof *block);
    rng_seed(&rng, 11);
    for (size_t i = 0; i < adapter_floats(&s); i++)
        block[i] = 0.05f * (float)rng_normal(&rng);
    evaluator_defaults(&s, &config);
    EXPECT_ST(weights_load(base, &ops_blas, &weights, &err), ST_OK, &err);
    EXPECT_ST(evaluator_new(weights, &config, &evaluator, &err), ST_OK, &err);
    REQUIRE(evaluator != NULL);
    double bare = our_loss(evaluator, NULL, &ids), adapted = our_loss(evaluator, block, &ids);
    evaluator_free(evaluator);
    weights_free(weights);

    const char *right = write_adapter(&s, &card, block, "right.gguf");
    undo_permutation(&s, card.arch.head_dim, block);
    const char *wrong = write_adapter(&s, &card, block, "wrong.gguf");
    if (write_f32_base(real_base_path(), f32_base) && ask_judge(f32_base, text_path, right, wrong, &ids, theirs)) {
        printf("    bare %.6f, llama.cpp %.6f; adapted %.6f, llama.cpp %.6f; unpermuted %.6f\n", bare, theirs[0],
               adapted, theirs[1], theirs[2]);
        EXPECT_NEAR(bare, theirs[0], TOLERANCE);
        EXPECT_NEAR(adapted, theirs[1], TOLERANCE);
        EXPECT(fabs(adapted - bare) > 100 * TOLERANCE); /* the adapter does something */
        EXPECT(fabs(adapted - theirs[2]) > 10 * TOLERANCE);
    }
    free(block);
    base_close(base);
    token_buf_release(&ids);
    buf_release(&text);
}

int main(void)
{
    hash_start();
    RUN(test_llama_cpp_agrees);
    return harness_end();
}
