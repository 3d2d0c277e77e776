/* The card's canonical bytes, little-endian:
 *
 *   8  "alvcard1"
 *   4  length of base_name, then its bytes (at most 63, no NUL)
 *  32  base digest       32  tokenizer digest
 *   4  kind   4 x 8  n_layers d_model d_ff n_heads n_kv_heads head_dim vocab_size context_max
 *   4  rope_theta (f32)  4  rms_eps (f32)
 *   1  flags: 1 tied_head, 2 qkv_bias, 4 qk_norm; other bits zero
 *   4  n_serving (at most 16), then 32 bytes each
 *
 * Equal cards have equal bytes; nothing may follow. A later version gets another number in the magic.
 */
#include "adapter/card.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/hash.h"

static const char magic[8] = {'a', 'l', 'v', 'c', 'a', 'r', 'd', '1'};

enum { DIM_MAX = 1 << 20, LAYERS_MAX = 1024, SHARDS_MAX = 1024 };

static enum status in_range(const char *name, uint32_t v, uint32_t max, struct err *err)
{
    if (v < 1 || v > max)
        return err_set(err, ST_BAD_DATA, "%s %u is not between 1 and %u", name, v, max);
    return ST_OK;
}

enum status arch_check(const struct arch *arch, struct err *err)
{
    const struct {
        const char *name;
        uint32_t v, max;
    } fields[] = {
        {"n_layers", arch->n_layers, LAYERS_MAX},
        {"d_model", arch->d_model, DIM_MAX},
        {"d_ff", arch->d_ff, DIM_MAX},
        {"n_heads", arch->n_heads, DIM_MAX},
        {"n_kv_heads", arch->n_kv_heads, DIM_MAX},
        {"head_dim", arch->head_dim, DIM_MAX},
        {"vocab_size", arch->vocab_size, DIM_MAX},
        {"context_max", arch->context_max, UINT32_MAX},
    };
    if (arch->kind < ARCH_LLAMA || arch->kind > ARCH_QWEN3)
        return err_set(err, ST_BAD_DATA, "kind %d is not a known architecture", (int)arch->kind);
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        enum status st = in_range(fields[i].name, fields[i].v, fields[i].max, err);
        if (st)
            return st;
    }
    if (arch->n_heads % arch->n_kv_heads)
        return err_set(err, ST_BAD_DATA, "n_kv_heads %u does not divide n_heads %u", arch->n_kv_heads, arch->n_heads);
    if (arch->head_dim % 2)
        return err_set(err, ST_BAD_DATA, "head_dim %u is odd", arch->head_dim);
    if ((uint64_t)arch->n_heads * arch->head_dim > DIM_MAX)
        return err_set(err, ST_BAD_DATA, "n_heads x head_dim is larger than %d", DIM_MAX);
    if (!isfinite(arch->rope_theta) || arch->rope_theta <= 0)
        return err_set(err, ST_BAD_DATA, "rope_theta %g is not finite and positive", (double)arch->rope_theta);
    if (!isfinite(arch->rms_eps) || arch->rms_eps <= 0)
        return err_set(err, ST_BAD_DATA, "rms_eps %g is not finite and positive", (double)arch->rms_eps);
    return ST_OK;
}

void card_encode(const struct card *card, struct buf *out)
{
    const struct arch *a = &card->arch;
    const uint32_t dims[] = {a->kind,       a->n_layers, a->d_model,    a->d_ff,       a->n_heads,
                             a->n_kv_heads, a->head_dim, a->vocab_size, a->context_max};
    buf_put(out, magic, sizeof magic);
    buf_put_str(out, card->base_name);
    buf_put(out, card->base.b, DIGEST_LEN);
    buf_put(out, card->tokenizer.b, DIGEST_LEN);
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        buf_put_u32(out, dims[i]);
    buf_put_f32(out, a->rope_theta);
    buf_put_f32(out, a->rms_eps);
    buf_put_u8(out, (uint8_t)(a->tied_head | a->qkv_bias << 1 | a->qk_norm << 2));
    buf_put_u32(out, card->n_serving);
    for (uint32_t i = 0; i < card->n_serving; i++)
        buf_put(out, card->serving[i].b, DIGEST_LEN);
}

static void read_digest(struct reader *r, struct digest *out)
{
    const uint8_t *p = read_raw(r, DIGEST_LEN);
    if (p)
        memcpy(out->b, p, DIGEST_LEN);
}

enum status card_decode(const void *data, size_t len, struct card *out, struct err *err)
{
    struct reader r = reader_of(data, len);
    struct card card = {0};
    const uint8_t *head = read_raw(&r, sizeof magic);
    if (!head || memcmp(head, magic, sizeof magic))
        return err_set(err, ST_BAD_DATA, "model card: does not begin with \"alvcard1\"");
    read_str(&r, card.base_name, sizeof card.base_name);
    read_digest(&r, &card.base);
    read_digest(&r, &card.tokenizer);
    uint32_t kind = read_u32(&r);
    uint32_t *dims[] = {&card.arch.n_layers,   &card.arch.d_model,  &card.arch.d_ff,       &card.arch.n_heads,
                        &card.arch.n_kv_heads, &card.arch.head_dim, &card.arch.vocab_size, &card.arch.context_max};
    for (size_t i = 0; i < sizeof dims / sizeof dims[0]; i++)
        *dims[i] = read_u32(&r);
    card.arch.rope_theta = read_f32(&r);
    card.arch.rms_eps = read_f32(&r);
    uint8_t flags = read_u8(&r);
    card.n_serving = read_u32(&r);
    if (r.failed)
        return err_set(err, ST_BAD_DATA, "model card: cut short at %zu bytes", len);
    if (kind < ARCH_LLAMA || kind > ARCH_QWEN3)
        return err_set(err, ST_BAD_DATA, "model card: kind %u is not a known architecture", kind);
    if (flags & ~7u)
        return err_set(err, ST_BAD_DATA, "model card: unknown flags 0x%x", flags);
    if (card.n_serving > CARD_SERVING_MAX)
        return err_set(err, ST_BAD_DATA, "model card: %u serving digests, at most %d", card.n_serving,
                       CARD_SERVING_MAX);
    for (uint32_t i = 0; i < card.n_serving; i++)
        read_digest(&r, &card.serving[i]);
    if (!reader_done(&r))
        return err_set(err, ST_BAD_DATA, "model card: wrong length %zu", len);
    card.arch.kind = (enum arch_kind)kind;
    card.arch.tied_head = flags & 1;
    card.arch.qkv_bias = flags & 2;
    card.arch.qk_norm = flags & 4;
    enum status st = arch_check(&card.arch, err);
    if (st)
        return err_prefix(err, st, "model card");
    *out = card;
    return ST_OK;
}

void card_digest(const struct card *card, struct digest *out)
{
    struct buf b = {0};
    card_encode(card, &b);
    hash_blake2b(b.data, b.len, out);
    buf_release(&b);
}

void card_digest_trained(const struct card *card, struct digest *out)
{
    struct card trained = *card;
    memset(trained.base_name, 0, sizeof trained.base_name);
    trained.n_serving = 0;
    card_digest(&trained, out);
}

static int is_weight_file(const struct dirent *e)
{
    const char *dot = strrchr(e->d_name, '.');
    return (dot && !strcmp(dot, ".safetensors")) || !strcmp(e->d_name, "config.json") ||
           !strcmp(e->d_name, "tokenizer.json");
}

static int by_bytes(const struct dirent **a, const struct dirent **b) /* not by locale, as alphasort would */
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static enum status digest_directory(const char *path, struct digest *out, struct err *err)
{
    struct dirent **names = NULL;
    struct buf all = {0};
    enum status st = ST_OK;
    int n = scandir(path, &names, is_weight_file, by_bytes);
    if (n < 0)
        return err_set(err, ST_IO, "%s: cannot list: %s", path, strerror(errno));
    if (n == 0)
        st = err_set(err, ST_NOT_FOUND, "%s: no *.safetensors, config.json or tokenizer.json in it", path);
    if (n > SHARDS_MAX)
        st = err_set(err, ST_LIMIT, "%s: %d weight files, at most %d", path, n, SHARDS_MAX);
    for (int i = 0; i < n; i++) {
        if (st == ST_OK) {
            struct buf file = {0};
            struct digest d;
            uint64_t bytes;
            buf_printf(&file, "%s/%s", path, names[i]->d_name);
            st = hash_file(buf_cstr(&file), &d, NULL, &bytes, err);
            if (st == ST_OK) {
                buf_put_str(&all, names[i]->d_name);
                buf_put_u64(&all, bytes);
                buf_put(&all, d.b, DIGEST_LEN);
            }
            buf_release(&file);
        }
        free(names[i]);
    }
    free(names);
    if (st == ST_OK)
        hash_blake2b(all.data, all.len, out);
    buf_release(&all);
    return st;
}

enum status card_digest_base(const char *path, struct digest *out, struct err *err)
{
    struct stat s;
    if (stat(path, &s))
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(s.st_mode))
        return digest_directory(path, out, err);
    return hash_file(path, out, NULL, NULL, err);
}
