#include "coordinator/core/text.h"

#include <string.h>

static bool starts_character(uint8_t c)
{
    return (c & 0xc0) != 0x80;
}

size_t text_cut(struct bytes text, size_t bytes)
{
    if (text.len <= bytes)
        return text.len;
    for (size_t at = bytes; at > 0; at--)
        if (text.data[at - 1] == '\n')
            return at;
    size_t at = bytes;
    while (at > 1 && !starts_character(text.data[at]))
        at--;
    return at;
}

void text_copy(char *out, size_t size, const char *s)
{
    size_t n = strlen(s);
    if (n >= size)
        for (n = size - 1; n > 0 && !starts_character((uint8_t)s[n]); n--)
            ;
    memmove(out, s, n);
    out[n] = 0;
}

struct scan {
    const uint8_t *at, *end;
};

static void blanks(struct scan *s)
{
    while (s->at < s->end && strchr(" \t\r\n", *s->at) && *s->at)
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

static bool four_hex(struct scan *s, unsigned *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        if (s->at == s->end)
            return false;
        unsigned c = *s->at, lower = c | 0x20;
        if (c >= '0' && c <= '9')
            *out = *out * 16 + c - '0';
        else if (lower >= 'a' && lower <= 'f')
            *out = *out * 16 + lower - 'a' + 10;
        else
            return false;
    }
    return true;
}

/* A string; its bytes between the quotes, escapes as they stand. */
static bool string(struct scan *s, struct bytes *out)
{
    if (!take(s, '"'))
        return false;
    out->data = s->at;
    while (s->at < s->end && *s->at != '"') {
        uint8_t c = *s->at++;
        if (c < 0x20)
            return false;
        if (c != '\\')
            continue;
        if (s->at == s->end)
            return false;
        c = *s->at++;
        unsigned unit, low;
        if (c == 'u') {
            if (!four_hex(s, &unit) || (unit >= 0xdc00 && unit < 0xe000))
                return false;
            if (unit >= 0xd800 && unit < 0xdc00) { /* the second half of a pair must follow */
                if (s->end - s->at < 6 || s->at[0] != '\\' || s->at[1] != 'u')
                    return false;
                s->at += 2;
                if (!four_hex(s, &low) || low < 0xdc00 || low >= 0xe000)
                    return false;
            }
        } else if (!c || !strchr("\"\\/bfnrt", c)) {
            return false;
        }
    }
    out->len = (size_t)(s->at - out->data);
    return take(s, '"');
}

static bool is(struct bytes b, const char *word)
{
    return b.len == strlen(word) && !memcmp(b.data, word, b.len);
}

static bool chat_message(struct scan *s, bool *answer)
{
    struct bytes role = {0}, content = {0}, name, value;
    if (!take(s, '{'))
        return false;
    for (int i = 0; i < 2; i++) {
        if ((i && !take(s, ',')) || !string(s, &name) || !take(s, ':') || !string(s, &value))
            return false;
        struct bytes *member = is(name, "role") ? &role : is(name, "content") ? &content : NULL;
        if (!member || member->data)
            return false;
        *member = value;
    }
    bool assistant = is(role, "assistant");
    *answer |= assistant && content.len;
    return take(s, '}') && (assistant || is(role, "system") || is(role, "user") || is(role, "tool"));
}

bool chat_valid(struct bytes text)
{
    struct scan s = {text.data, text.data + text.len};
    bool answer = false;
    if (!take(&s, '['))
        return false;
    for (int n = 0; n < CHAT_MESSAGES_MAX; n++) {
        if (!chat_message(&s, &answer))
            return false;
        if (take(&s, ','))
            continue;
        bool closed = take(&s, ']');
        blanks(&s);
        return closed && s.at == s.end && answer;
    }
    return false;
}
