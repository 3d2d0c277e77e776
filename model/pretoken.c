/* gpt-2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * smollm   every numeric character (Nd, Nl, No) is a piece of its own, and an end of text for its neighbours, which
 *          are split as gpt-2
 * llama3   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
 *          \s+(?!\S)|\s+
 * qwen2    the same with \p{N} for \p{N}{1,3}
 */
#include "model/pretoken.h"

#include <stdbool.h>
#include <utf8proc.h>

enum char_class { END, LETTER, NUMBER, SPACE, OTHER };

struct range {
    uint32_t first, last;
};

static bool within(uint32_t c, const struct range *ranges, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (c <= ranges[i].last)
            return c >= ranges[i].first;
    return false;
}
#define WITHIN(c, ranges) within((c), (ranges), sizeof(ranges) / sizeof(ranges)[0])

/* Characters that utf8proc 2.8 does not know yet. */
static const struct range newer_letters[] = {
    {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},   {0x105c0, 0x105f3}, {0x10d4a, 0x10d65},
    {0x10d6f, 0x10d85}, {0x10ec2, 0x10ec4}, {0x11380, 0x11389}, {0x1138b, 0x1138b}, {0x1138e, 0x1138e},
    {0x11390, 0x113b5}, {0x113b7, 0x113b7}, {0x113d1, 0x113d1}, {0x113d3, 0x113d3}, {0x11bc0, 0x11be0},
    {0x13460, 0x143fa}, {0x16100, 0x1611d}, {0x16d40, 0x16d6c}, {0x18cff, 0x18cff}, {0x1e5d0, 0x1e5ed},
    {0x1e5f0, 0x1e5f0}, {0x2ebf0, 0x2ee5d}};
static const struct range newer_numbers[] = {{0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9},
                                             {0x16130, 0x16139}, {0x16d70, 0x16d79}, {0x1ccf0, 0x1ccf9},
                                             {0x1e5f1, 0x1e5fa}};
/* Unicode 17: numeric to Rust (the Digits step), unknown to Oniguruma (the regex). */
static const struct range newest_numbers[] = {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}};

static enum char_class class_of(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return NUMBER;
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
        return SPACE;
    case UTF8PROC_CATEGORY_CN:
        return WITHIN(c, newer_letters) ? LETTER : WITHIN(c, newer_numbers) ? NUMBER : OTHER;
    default:
        return c == 0x85 ? SPACE : OTHER;
    }
}

struct text {
    const uint8_t *s;
    size_t len;
    bool digits_alone; /* smollm: a numeric character ends the text for its neighbours */
};

static enum char_class ascii_class(uint8_t b)
{
    if ((uint8_t)((b | 0x20) - 'a') < 26)
        return LETTER;
    if ((uint8_t)(b - '0') < 10)
        return NUMBER;
    return b == ' ' || (uint8_t)(b - '\t') < 5 ? SPACE : OTHER;
}

/* Class of the character at s[at], END at the end; *next is where the following one begins. */
static enum char_class look(const struct text *t, size_t at, size_t *next)
{
    if (at >= t->len)
        return END;
    uint8_t b = t->s[at];
    if (b < 0x80) {
        *next = at + 1;
        return ascii_class(b);
    }
    unsigned n = b < 0xe0 ? 2 : b < 0xf0 ? 3 : 4; /* valid UTF-8: the rest is there */
    uint32_t c = b & (0xffu >> (n + 1));
    for (unsigned i = 1; i < n; i++)
        c = c << 6 | (t->s[at + i] & 0x3f);
    *next = at + n;
    enum char_class k = class_of(c);
    if (k == OTHER && t->digits_alone && WITHIN(c, newest_numbers))
        return NUMBER;
    return k;
}

/* The class as a neighbour sees it. */
static enum char_class look_ahead(const struct text *t, size_t at, size_t *next)
{
    enum char_class k = look(t, at, next);
    return k == NUMBER && t->digits_alone ? END : k;
}

static size_t run_of(const struct text *t, size_t at, enum char_class wanted)
{
    size_t next = at;
    while (look_ahead(t, at, &next) == wanted)
        at = next;
    return at;
}

static bool ascii_letter_is(uint8_t b, char letter, bool any_case)
{
    return b == (uint8_t)letter || (any_case && b == (uint8_t)(letter - 'a' + 'A'));
}

/* 's|'t|'re|'ve|'m|'ll|'d at s[at]: its end, or 0. */
static size_t contraction(const struct text *t, size_t at, bool any_case)
{
    static const char tails[][3] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (t->s[at] != '\'')
        return 0;
    for (size_t i = 0; i < sizeof tails / sizeof tails[0]; i++) {
        size_t n = tails[i][1] ? 2 : 1;
        if (t->len - at > n && ascii_letter_is(t->s[at + 1], tails[i][0], any_case) &&
            (n == 1 || ascii_letter_is(t->s[at + 2], tails[i][1], any_case)))
            return at + 1 + n;
    }
    if (any_case && t->len - at > 2 && t->s[at + 1] == 0xc5 && t->s[at + 2] == 0xbf)
        return at + 3; /* U+017F, the long s, folds to s */
    return 0;
}

/* \s+(?!\S)|\s+ on a run of white space [at, end): all of it at the end of the text, else without its last character, unless
 * that is the only one. */
static size_t white_space(const struct text *t, size_t at, size_t end)
{
    size_t next, last = end;
    if (look_ahead(t, end, &next) == END)
        return end;
    do
        last--;
    while ((t->s[last] & 0xc0) == 0x80);
    return last > at ? last : end;
}

static size_t next_gpt2(const struct text *t, size_t at)
{
    size_t next, begin = at, end = contraction(t, at, false);
    if (end)
        return end;
    enum char_class k = look(t, at, &next);
    if (k == NUMBER && t->digits_alone)
        return next;
    if (t->s[at] == ' ') {
        begin = at + 1;
        k = look_ahead(t, begin, &next);
        if (k == SPACE || k == END)
            return white_space(t, at, run_of(t, at, SPACE));
    }
    if (k == SPACE)
        return white_space(t, at, run_of(t, at, SPACE));
    return run_of(t, begin, k);
}

static bool is_line_end(const struct text *t, size_t at)
{
    return at < t->len && (t->s[at] == '\r' || t->s[at] == '\n');
}

static size_t next_llama3(const struct text *t, size_t at, unsigned digits_max)
{
    size_t next = at, after, end = contraction(t, at, true);
    if (end)
        return end;
    enum char_class k = look(t, at, &next);
    if (k == LETTER)
        return run_of(t, at, LETTER);
    if (k == NUMBER) {
        for (unsigned i = 0; i < digits_max && look(t, at, &next) == NUMBER; i++)
            at = next;
        return at;
    }
    if (!is_line_end(t, at) && look(t, next, &after) == LETTER)
        return run_of(t, next, LETTER);
    size_t begin = t->s[at] == ' ' ? at + 1 : at;
    if (look(t, begin, &after) == OTHER) {
        end = run_of(t, begin, OTHER);
        while (is_line_end(t, end))
            end++;
        return end;
    }
    size_t run = run_of(t, at, SPACE);
    for (end = run; end > at; end--) /* \s*[\r\n]+ ends behind the last line end of the run */
        if (is_line_end(t, end - 1))
            return end;
    return white_space(t, at, run);
}

size_t pretoken_next(enum pretoken kind, const uint8_t *s, size_t len, size_t at)
{
    struct text t = {s, len, kind == PRETOKEN_SMOLLM};
    switch (kind) {
    case PRETOKEN_LLAMA3:
        return next_llama3(&t, at, 3);
    case PRETOKEN_QWEN2:
        return next_llama3(&t, at, 1);
    default:
        return next_gpt2(&t, at);
    }
}
