#include "model/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/check.h"
#include "base/hash.h"
#include "model/tokenizer_spec.h"

enum {
    SHORT_PIECE = 48,  /* merged by rescanning; longer ones with a heap */
    TEXT_MAX = 1 << 30 /* positions are 32 bits wide */
};

#define NO_RANK UINT32_MAX

/* Texts of the tokens one after another, and a table from text to id (open addressing, half full at most). */
struct texts {
    struct buf bytes;
    uint32_t *start; /* (n + 1) */
    uint32_t *slots; /* id, or TOKEN_NONE */
    size_t mask;
};

struct merge { /* left == TOKEN_NONE: an empty slot */
    uint32_t left, right, rank, id;
};

struct tokenizer {
    enum pretoken pretoken;
    bool nfc;
    uint32_t n, bos, eos;
    struct texts names; /* as the file writes them; all but the unused ones are in the table */
    struct texts bytes; /* what they decode to; in the table: tokens that their own bytes encode to, all alone */
    uint32_t byte_id[256];
    struct merge *merges;
    size_t merges_mask;
    uint32_t *added; /* ids, longest text first */
    size_t n_added;
    bool added_first[256]; /* some added token begins with this byte */
    struct digest digest;
};

void token_buf_put(struct token_buf *buf, uint32_t id)
{
    if (buf->n == buf->cap) {
        buf->cap = buf->cap ? buf->cap + buf->cap / 2 : 256;
        buf->ids = xrealloc_array(buf->ids, buf->cap, sizeof *buf->ids);
    }
    buf->ids[buf->n++] = id;
}

void token_buf_release(struct token_buf *buf)
{
    free(buf->ids);
    *buf = (struct token_buf){0};
}

/* ---- tables ---- */

static uint64_t mix(uint64_t x) /* the finaliser of splitmix64 */
{
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

static uint64_t hash_text(const uint8_t *s, size_t len)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ len, word;
    for (; len >= 8; s += 8, len -= 8) {
        memcpy(&word, s, 8);
        h = mix(h ^ word);
    }
    word = 0;
    if (len)
        memcpy(&word, s, len);
    return mix(h ^ word);
}

static size_t table_size(size_t n)
{
    size_t size = 16;
    while (size < 2 * n)
        size *= 2;
    return size;
}

static void texts_init(struct texts *t, size_t n)
{
    size_t size = table_size(n);
    t->start = xcalloc(n + 1, sizeof *t->start);
    t->slots = xmalloc(size * sizeof *t->slots);
    memset(t->slots, 0xff, size * sizeof *t->slots);
    t->mask = size - 1;
}

static void texts_release(struct texts *t)
{
    buf_release(&t->bytes);
    free(t->start);
    free(t->slots);
}

static struct bytes text_of(const struct texts *t, uint32_t id)
{
    return (struct bytes){t->bytes.data + t->start[id], t->start[id + 1] - t->start[id]};
}

/* The slot that holds this text, or the empty one where it belongs. */
static uint32_t *texts_slot(const struct texts *t, const uint8_t *s, size_t len)
{
    for (size_t i = hash_text(s, len) & t->mask;; i = (i + 1) & t->mask) {
        uint32_t id = t->slots[i];
        if (id == TOKEN_NONE)
            return &t->slots[i];
        struct bytes have = text_of(t, id);
        if (have.len == len && !memcmp(have.data, s, len))
            return &t->slots[i];
    }
}

static struct merge *merge_slot(const struct tokenizer *tok, uint32_t left, uint32_t right)
{
    for (size_t i = mix((uint64_t)left << 32 | right) & tok->merges_mask;; i = (i + 1) & tok->merges_mask) {
        struct merge *m = &tok->merges[i];
        if (m->left == TOKEN_NONE || (m->left == left && m->right == right))
            return m;
    }
}

/* ---- GPT-2's alphabet: each byte as one printable character ---- */

static uint32_t
alphabet_of(unsigned byte) /* printable ones stand for themselves, the 68 others follow U+0100 in order */
{
    bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    if (itself)
        return byte;
    return 256 + (byte <= ' ' ? byte : byte < 0xa1 ? byte - 0x7f + 33 : 67);
}

static int byte_of(uint32_t c) /* -1: not in the alphabet */
{
    if (c < 256)
        return alphabet_of(c) == c ? (int)c : -1;
    c -= 256;
    return c < 33 ? (int)c : c < 67 ? (int)(c - 33 + 0x7f) : c == 67 ? 0xad : -1;
}

/* Appends what `text` stands for; false, and the text itself, when it is not all alphabet. */
static bool put_decoded(struct buf *out, struct bytes text)
{
    size_t begin = out->len;
    for (size_t at = 0; at < text.len;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(text.data + at, (utf8proc_ssize_t)(text.len - at), &c);
        int byte = n > 0 ? byte_of((uint32_t)c) : -1;
        if (byte < 0) {
            out->len = begin;
            buf_put(out, text.data, text.len);
            return false;
        }
        buf_put_u8(out, (uint8_t)byte);
        at += (size_t)n;
    }
    return true;
}

/* ---- merging ---- */

static uint32_t rank_of(const struct tokenizer *tok, uint32_t left, uint32_t right, uint32_t *id)
{
    const struct merge *m = merge_slot(tok, left, right);
    if (m->left == TOKEN_NONE)
        return NO_RANK;
    *id = m->id;
    return m->rank;
}

/* Symbols in an array; after each merge the rest moves down. `rank[i]` is that of the pair (i, i + 1). */
static void merge_short(const struct tokenizer *tok, const uint8_t *s, size_t len, struct token_buf *out)
{
    uint32_t sym[SHORT_PIECE], rank[SHORT_PIECE], made[SHORT_PIECE];
    size_t n = 0;
    for (size_t i = 0; i < len; i++)
        if (tok->byte_id[s[i]] != TOKEN_NONE)
            sym[n++] = tok->byte_id[s[i]];
    for (size_t i = 0; i < n; i++) {
        made[i] = 0;
        rank[i] = i + 1 < n ? rank_of(tok, sym[i], sym[i + 1], &made[i]) : NO_RANK;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best])
                best = i;
        if (rank[best] == NO_RANK)
            break;
        sym[best] = made[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            sym[i] = sym[i + 1];
            rank[i] = rank[i + 1];
            made[i] = made[i + 1];
        }
        if (best + 1 < n)
            rank[best] = rank_of(tok, sym[best], sym[best + 1], &made[best]);
        if (best > 0)
            rank[best - 1] = rank_of(tok, sym[best - 1], sym[best], &made[best - 1]);
    }
    for (size_t i = 0; i < n; i++)
        token_buf_put(out, sym[i]);
}

struct symbol { /* a doubly linked list in an array; rank and made are of the pair with the next one */
    uint32_t id, prev, next, rank, made;
};

struct heap { /* of (rank, position); the smallest is on top */
    uint64_t *at;
    size_t n;
};

static void heap_push(struct heap *h, uint64_t v)
{
    size_t i = h->n++;
    for (; i > 0 && h->at[(i - 1) / 2] > v; i = (i - 1) / 2)
        h->at[i] = h->at[(i - 1) / 2];
    h->at[i] = v;
}

static uint64_t heap_pop(struct heap *h)
{
    uint64_t top = h->at[0], v = h->at[--h->n];
    size_t i = 0, child;
    for (; (child = 2 * i + 1) < h->n; i = child) {
        if (child + 1 < h->n && h->at[child + 1] < h->at[child])
            child++;
        if (h->at[child] >= v)
            break;
        h->at[i] = h->at[child];
    }
    h->at[i] = v;
    return top;
}

static void queue_pair(const struct tokenizer *tok, struct symbol *syms, uint32_t i, struct heap *h)
{
    struct symbol *a = &syms[i];
    a->rank = a->next == TOKEN_NONE ? NO_RANK : rank_of(tok, a->id, syms[a->next].id, &a->made);
    if (a->rank != NO_RANK)
        heap_push(h, (uint64_t)a->rank << 32 | i);
}

/* O(n log n): a run of letters without spaces may be as long as the record. An entry whose rank is no longer its
 * position's is stale. Each merge adds two entries at most, so that 3 n are enough. */
static void merge_long(const struct tokenizer *tok, const uint8_t *s, size_t len, struct token_buf *out)
{
    struct symbol *syms = xmalloc(len * sizeof *syms);
    struct heap h = {xmalloc(3 * len * sizeof *h.at), 0};
    uint32_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (tok->byte_id[s[i]] == TOKEN_NONE)
            continue;
        syms[n] = (struct symbol){.id = tok->byte_id[s[i]], .prev = n ? n - 1 : TOKEN_NONE, .next = n + 1};
        n++;
    }
    if (n)
        syms[n - 1].next = TOKEN_NONE;
    for (uint32_t i = 0; i < n; i++)
        queue_pair(tok, syms, i, &h);
    while (h.n) {
        uint64_t top = heap_pop(&h);
        uint32_t i = (uint32_t)top;
        struct symbol *a = &syms[i];
        if (a->rank != (uint32_t)(top >> 32))
            continue;
        struct symbol *b = &syms[a->next];
        a->id = a->made;
        a->next = b->next;
        b->rank = NO_RANK;
        if (a->next != TOKEN_NONE)
            syms[a->next].prev = i;
        queue_pair(tok, syms, i, &h);
        if (a->prev != TOKEN_NONE)
            queue_pair(tok, syms, a->prev, &h);
    }
    for (uint32_t i = n ? 0 : TOKEN_NONE; i != TOKEN_NONE; i = syms[i].next)
        token_buf_put(out, syms[i].id);
    free(syms);
    free(h.at);
}

static void encode_piece(const struct tokenizer *tok, const uint8_t *s, size_t len, struct token_buf *out)
{
    uint32_t whole = *texts_slot(&tok->bytes, s, len);
    if (whole != TOKEN_NONE)
        token_buf_put(out, whole);
    else if (len <= SHORT_PIECE)
        merge_short(tok, s, len, out);
    else
        merge_long(tok, s, len, out);
}

/* ---- building ---- */

static void put_text(struct texts *t, uint32_t id, size_t end)
{
    CHECK(end <= UINT32_MAX);
    t->start[id + 1] = (uint32_t)end;
}

static enum status index_names(struct tokenizer *tok, const struct tokenizer_spec *spec, const char *where,
                               struct err *err)
{
    texts_init(&tok->names, tok->n);
    for (uint32_t id = 0; id < tok->n; id++) {
        const struct token_spec *t = &spec->tokens[id];
        if (t->text.len > 65536 || tok->names.bytes.len > (1u << 30))
            return err_set(err, ST_LIMIT, "%s: token %u is too long", where, id);
        buf_put(&tok->names.bytes, t->text.data, t->text.len);
        put_text(&tok->names, id, tok->names.bytes.len);
        if (t->kind == TOKEN_UNUSED)
            continue;
        uint32_t *slot = texts_slot(&tok->names, t->text.data, t->text.len);
        if (*slot != TOKEN_NONE)
            return err_set(err, ST_BAD_DATA, "%s: tokens %u and %u have the same text", where, *slot, id);
        *slot = id;
    }
    return ST_OK;
}

static uint32_t normal_token(const struct tokenizer *tok, const struct tokenizer_spec *spec, const uint8_t *s,
                             size_t len)
{
    uint32_t id = *texts_slot(&tok->names, s, len);
    return id != TOKEN_NONE && spec->tokens[id].kind == TOKEN_NORMAL ? id : TOKEN_NONE;
}

static enum status index_bytes(struct tokenizer *tok, const struct tokenizer_spec *spec, const char *where,
                               struct err *err)
{
    for (unsigned b = 0; b < 256; b++) {
        uint8_t s[4];
        size_t n = (size_t)utf8proc_encode_char((utf8proc_int32_t)alphabet_of(b), s);
        tok->byte_id[b] = normal_token(tok, spec, s, n);
        if (tok->byte_id[b] == TOKEN_NONE && spec->unknown_token)
            return err_set(err, ST_UNSUPPORTED, "%s: an unknown token in place of byte %02x, which has no token", where,
                           b);
    }
    return ST_OK;
}

static enum status index_merges(struct tokenizer *tok, const struct tokenizer_spec *spec, const char *where,
                                struct err *err)
{
    size_t size = table_size(spec->n_merges);
    struct buf joined = {0};
    enum status st = ST_OK;
    tok->merges = xmalloc(size * sizeof *tok->merges);
    memset(tok->merges, 0xff, size * sizeof *tok->merges);
    tok->merges_mask = size - 1;
    for (size_t i = 0; i < spec->n_merges && st == ST_OK; i++) {
        struct bytes l = spec->merges[i].left, r = spec->merges[i].right;
        buf_clear(&joined);
        buf_put(&joined, l.data, l.len);
        buf_put(&joined, r.data, r.len);
        uint32_t left = normal_token(tok, spec, l.data, l.len), right = normal_token(tok, spec, r.data, r.len);
        uint32_t id = normal_token(tok, spec, joined.data, joined.len);
        if (!l.len || !r.len || left == TOKEN_NONE || right == TOKEN_NONE || id == TOKEN_NONE) {
            st = err_set(err, ST_BAD_DATA, "%s: merge %zu: one of its parts or their sum is no token", where, i);
            break;
        }
        struct merge *m = merge_slot(tok, left, right);
        if (m->left != TOKEN_NONE) /* readers disagree which of the two would count */
            st = err_set(err, ST_BAD_DATA, "%s: merge %zu repeats merge %u", where, i, m->rank);
        *m = (struct merge){left, right, (uint32_t)i, id};
    }
    buf_release(&joined);
    return st;
}

/* Decoded texts, and the table of those tokens that their own bytes become again: most words need one look-up then. */
static void index_whole(struct tokenizer *tok, const struct tokenizer_spec *spec)
{
    struct token_buf ids = {0};
    bool *alphabet = xcalloc(tok->n, 1);
    texts_init(&tok->bytes, tok->n);
    for (uint32_t id = 0; id < tok->n; id++) {
        const struct token_spec *t = &spec->tokens[id];
        if (t->kind == TOKEN_NORMAL)
            alphabet[id] = put_decoded(&tok->bytes.bytes, t->text) && t->text.len;
        else
            buf_put(&tok->bytes.bytes, t->text.data, t->text.len);
        put_text(&tok->bytes, id, tok->bytes.bytes.len);
    }
    for (uint32_t id = 0; id < tok->n; id++) {
        struct bytes b = text_of(&tok->bytes, id);
        if (!alphabet[id])
            continue;
        ids.n = 0;
        if (!spec->ignore_merges)
            encode_piece(tok, b.data, b.len, &ids);
        if (spec->ignore_merges || (ids.n == 1 && ids.ids[0] == id))
            *texts_slot(&tok->bytes, b.data, b.len) = id;
    }
    token_buf_release(&ids);
    free(alphabet);
}

static int longest_first(const void *a, const void *b, void *context)
{
    const struct texts *t = context;
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    size_t lx = text_of(t, x).len, ly = text_of(t, y).len;
    return lx != ly ? (lx < ly) - (lx > ly) : (x > y) - (x < y);
}

static void index_added(struct tokenizer *tok, const struct tokenizer_spec *spec)
{
    tok->added = xcalloc(tok->n, sizeof *tok->added);
    for (uint32_t id = 0; id < tok->n; id++) {
        if (spec->tokens[id].kind != TOKEN_ADDED || spec->tokens[id].text.len == 0)
            continue;
        tok->added[tok->n_added++] = id;
        tok->added_first[spec->tokens[id].text.data[0]] = true;
    }
    qsort_r(tok->added, tok->n_added, sizeof *tok->added, longest_first, &tok->names);
}

static void make_digest(struct tokenizer *tok, const struct tokenizer_spec *spec)
{
    struct buf b = {0};
    buf_put_str(&b, "alvtok1");
    buf_put_u8(&b, (uint8_t)spec->pretoken);
    buf_put_u8(&b, (uint8_t)(spec->nfc | spec->ignore_merges << 1));
    buf_put_u32(&b, spec->bos);
    buf_put_u32(&b, spec->eos);
    buf_put_u32(&b, tok->n);
    for (uint32_t id = 0; id < tok->n; id++) {
        buf_put_u8(&b, (uint8_t)spec->tokens[id].kind);
        buf_put_blob(&b, spec->tokens[id].text.data, spec->tokens[id].text.len);
    }
    for (size_t i = 0; i < spec->n_merges; i++) {
        buf_put_blob(&b, spec->merges[i].left.data, spec->merges[i].left.len);
        buf_put_blob(&b, spec->merges[i].right.data, spec->merges[i].right.len);
    }
    hash_blake2b(b.data, b.len, &tok->digest);
    buf_release(&b);
}

enum status tokenizer_build(const struct tokenizer_spec *spec, const char *where, struct tokenizer **out,
                            struct err *err)
{
    if (spec->n_tokens < 1 || spec->n_tokens > TOKENIZER_VOCAB_MAX || spec->n_merges > TOKENIZER_VOCAB_MAX)
        return err_set(err, ST_LIMIT, "%s: %zu tokens and %zu merges, at most %d each", where, spec->n_tokens,
                       spec->n_merges, TOKENIZER_VOCAB_MAX);
    struct tokenizer *tok = xcalloc(1, sizeof *tok);
    tok->n = (uint32_t)spec->n_tokens;
    tok->pretoken = spec->pretoken;
    tok->nfc = spec->nfc;
    tok->bos = spec->bos;
    tok->eos = spec->eos;
    enum status st = ST_OK;
    if ((tok->bos != TOKEN_NONE && tok->bos >= tok->n) || (tok->eos != TOKEN_NONE && tok->eos >= tok->n))
        st = err_set(err, ST_BAD_DATA, "%s: bos %u or eos %u is outside the vocabulary of %u", where, tok->bos,
                     tok->eos, tok->n);
    if (st == ST_OK)
        st = index_names(tok, spec, where, err);
    if (st == ST_OK)
        st = index_bytes(tok, spec, where, err);
    if (st == ST_OK)
        st = index_merges(tok, spec, where, err);
    if (st) {
        tokenizer_free(tok);
        return st;
    }
    index_whole(tok, spec);
    index_added(tok, spec);
    make_digest(tok, spec);
    *out = tok;
    return ST_OK;
}

void tokenizer_free(struct tokenizer *tok)
{
    if (!tok)
        return;
    texts_release(&tok->names);
    texts_release(&tok->bytes);
    free(tok->merges);
    free(tok->added);
    free(tok);
}

/* ---- use ---- */

static enum status check_utf8(const uint8_t *s, size_t len, bool *plain_ascii, struct err *err)
{
    *plain_ascii = true;
    if (len > TEXT_MAX)
        return err_set(err, ST_LIMIT, "text of %zu bytes, at most %d", len, TEXT_MAX);
    for (size_t at = 0; at < len;) {
        if (s[at] < 0x80) {
            at++;
            continue;
        }
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(s + at, (utf8proc_ssize_t)(len - at), &c);
        if (n <= 0)
            return err_set(err, ST_BAD_DATA, "text: offset %zu: not valid UTF-8", at);
        *plain_ascii = false;
        at += (size_t)n;
    }
    return ST_OK;
}

static void encode_pieces(const struct tokenizer *tok, const uint8_t *s, size_t len, struct token_buf *out)
{
    for (size_t at = 0, end; at < len; at = end) {
        end = pretoken_next(tok->pretoken, s, len, at);
        encode_piece(tok, s + at, end - at, out);
    }
}

/* Valid UTF-8 without added tokens. */
static enum status encode_plain(const struct tokenizer *tok, const uint8_t *s, size_t len, bool plain_ascii,
                                struct token_buf *out, struct err *err)
{
    if (!tok->nfc || plain_ascii || len == 0) {
        encode_pieces(tok, s, len, out);
        return ST_OK;
    }
    utf8proc_uint8_t *composed = NULL;
    utf8proc_ssize_t n = utf8proc_map(s, (utf8proc_ssize_t)len, &composed, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (n < 0)
        return err_set(err, ST_NO_MEMORY, "text of %zu bytes: %s", len, utf8proc_errmsg(n));
    encode_pieces(tok, composed, (size_t)n, out);
    free(composed);
    return ST_OK;
}

enum status tokenizer_encode(const struct tokenizer *tok, const char *text, size_t len, struct token_buf *out,
                             struct err *err)
{
    bool plain_ascii;
    enum status st = check_utf8((const uint8_t *)text, len, &plain_ascii, err);
    return st ? st : encode_plain(tok, (const uint8_t *)text, len, plain_ascii, out, err);
}

static uint32_t added_at(const struct tokenizer *tok, const uint8_t *s, size_t len)
{
    if (!tok->added_first[s[0]])
        return TOKEN_NONE;
    for (size_t i = 0; i < tok->n_added; i++) {
        struct bytes name = text_of(&tok->names, tok->added[i]);
        if (name.len <= len && !memcmp(name.data, s, name.len))
            return tok->added[i];
    }
    return TOKEN_NONE;
}

enum status tokenizer_encode_special(const struct tokenizer *tok, const char *text, size_t len, struct token_buf *out,
                                     struct err *err)
{
    const uint8_t *s = (const uint8_t *)text;
    bool plain_ascii;
    enum status st = check_utf8(s, len, &plain_ascii, err);
    size_t before = out->n;
    for (size_t at = 0, begin = 0; st == ST_OK && at <= len; at++) {
        uint32_t id = at < len ? added_at(tok, s + at, len - at) : TOKEN_NONE;
        if (id == TOKEN_NONE && at < len)
            continue;
        st = encode_plain(tok, s + begin, at - begin, plain_ascii, out, err);
        if (id == TOKEN_NONE)
            break;
        token_buf_put(out, id);
        begin = at + text_of(&tok->names, id).len;
        at = begin - 1;
    }
    if (st)
        out->n = before;
    return st;
}

void tokenizer_decode(const struct tokenizer *tok, const uint32_t *ids, size_t n, struct buf *out)
{
    for (size_t i = 0; i < n; i++) {
        if (ids[i] >= tok->n)
            continue;
        struct bytes b = text_of(&tok->bytes, ids[i]);
        buf_put(out, b.data, b.len);
    }
}

uint32_t tokenizer_vocab_size(const struct tokenizer *tok)
{
    return tok->n;
}

uint32_t tokenizer_token_id(const struct tokenizer *tok, const char *name)
{
    return *texts_slot(&tok->names, (const uint8_t *)name, strlen(name));
}

uint32_t tokenizer_bos(const struct tokenizer *tok)
{
    return tok->bos;
}

uint32_t tokenizer_eos(const struct tokenizer *tok)
{
    return tok->eos;
}

void tokenizer_digest(const struct tokenizer *tok, struct digest *out)
{
    *out = tok->digest;
}
