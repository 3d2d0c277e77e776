#include "client/jsonl.h"

#include <string.h>

#include "proto/record.h"

struct scan {
    const uint8_t *at, *end;
};

static void blanks(struct scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

static bool take(struct scan *s, char c)
{
    blanks(s);
    if (s->at == s->end || *s->at != (uint8_t)c)
        return false;
    s->at++;
    return true;
}

/* Not a plain byte of a string: the quote, the backslash, a control character. */
static bool special(uint8_t c)
{
    return c == '"' || c == '\\' || c < 0x20;
}

/* Skips plain bytes. A byte of the eight is marked when it is under 0x20 or becomes zero by the xor; marks may run over into
 * higher bytes only, so none is missed, and the loop behind finds the first. */
static void plain_run(struct scan *s)
{
    const uint64_t ones = 0x0101010101010101u, tops = 0x80 * ones;
    while (s->end - s->at >= 8) {
        uint64_t v, quote, backslash;
        memcpy(&v, s->at, 8);
        quote = v ^ '"' * ones, backslash = v ^ '\\' * ones;
        uint64_t marks = ((v - 0x20 * ones) & ~v) | ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash);
        if (marks & tops)
            break;
        s->at += 8;
    }
    while (s->at < s->end && !special(*s->at))
        s->at++;
}

/* What stands for `c` behind a backslash; 0: nothing simple. */
static char unescape(uint8_t c)
{
    switch (c) {
    case '"':
    case '\\':
    case '/':
        return (char)c;
    case 'b':
        return '\b';
    case 'f':
        return '\f';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    default:
        return 0;
    }
}

/* The inside of a string, up to its closing quote. `out` may be NULL: only walked over. */
static bool string(struct scan *s, struct buf *out)
{
    for (;;) {
        const uint8_t *start = s->at;
        plain_run(s);
        if (out)
            buf_put(out, start, (size_t)(s->at - start));
        if (s->at == s->end)
            return false;
        uint8_t c = *s->at++;
        if (c == '"')
            return true;
        char plain = c == '\\' && s->at < s->end ? unescape(*s->at++) : 0;
        if (!plain)
            return false;
        if (out)
            buf_put_u8(out, (uint8_t)plain);
    }
}

static bool key(struct scan *s, struct bytes *out)
{
    if (!take(s, '"'))
        return false;
    const uint8_t *start = s->at;
    plain_run(s);
    *out = (struct bytes){start, (size_t)(s->at - start)};
    return s->at < s->end && *s->at++ == '"'; /* an escape in a name: not ours */
}

static bool number(struct scan *s, struct bytes *out)
{
    const uint8_t *start = s->at;
    s->at += *s->at == '-';
    const uint8_t *digits = s->at;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9')
        s->at++;
    size_t n = (size_t)(s->at - digits);
    *out = (struct bytes){start, (size_t)(s->at - start)};
    if (n == 0 || n > 18 || (*digits == '0' && out->len > 1)) /* "-0" is a number, but is printed otherwise */
        return false;
    return s->at == s->end || !memchr(".eE", *s->at, 3);
}

static bool word(struct scan *s, const char *w)
{
    size_t n = strlen(w);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, w, n) != 0)
        return false;
    s->at += n;
    return true;
}

/* One value, into `out` when it is wanted. */
static bool value(struct scan *s, struct buf *out, enum jsonl_kind *kind)
{
    struct bytes digits;
    blanks(s);
    if (s->at == s->end)
        return false;
    if (out)
        buf_clear(out);
    switch (*s->at) {
    case '"':
        s->at++;
        *kind = JSONL_STRING;
        return string(s, out);
    case 'n':
        *kind = JSONL_NULL;
        return word(s, "null");
    case 't':
        *kind = JSONL_OTHER;
        return word(s, "true");
    case 'f':
        *kind = JSONL_OTHER;
        return word(s, "false");
    default:
        *kind = JSONL_INTEGER;
        if (!number(s, &digits))
            return false;
        if (out)
            buf_put(out, digits.data, digits.len);
        return true;
    }
}

static bool is(struct bytes b, const char *name)
{
    return b.len == strlen(name) && !memcmp(b.data, name, b.len);
}

static bool member(struct scan *s, struct bytes *keys, unsigned n_keys, struct jsonl_field *fields, unsigned n)
{
    struct bytes *name = &keys[n_keys];
    struct jsonl_field *wanted = NULL;
    enum jsonl_kind kind;
    if (!key(s, name) || !take(s, ':'))
        return false;
    for (unsigned i = 0; i < n_keys; i++)
        if (keys[i].len == name->len && !memcmp(keys[i].data, name->data, name->len))
            return false;
    for (unsigned i = 0; i < n; i++)
        if (is(*name, fields[i].name)) {
            if (wanted)
                return false; /* two questions about one member */
            wanted = &fields[i];
        }
    if (!value(s, wanted ? wanted->text : NULL, &kind))
        return false;
    if (wanted)
        wanted->kind = kind;
    return true;
}

bool jsonl_read(struct bytes line, struct jsonl_field *fields, unsigned n)
{
    struct scan s = {line.data, line.data + line.len};
    struct bytes keys[JSONL_KEYS_MAX];
    for (unsigned i = 0; i < n; i++)
        fields[i].kind = JSONL_ABSENT;
    if (!take(&s, '{') || !utf8_valid(line.data, line.len))
        return false;
    for (unsigned n_keys = 0; n_keys < JSONL_KEYS_MAX; n_keys++) {
        if (!member(&s, keys, n_keys, fields, n))
            return false;
        if (take(&s, ','))
            continue;
        if (!take(&s, '}'))
            return false;
        blanks(&s);
        return s.at == s.end;
    }
    return false;
}
