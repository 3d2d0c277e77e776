#include "base/ids.h"

#include <string.h>

static bool name_char(char c, bool first)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (!first && (c == '.' || c == '_' || c == '-'));
}

bool name_valid(const char *s, size_t len)
{
    if (len == 0 || len > NAME_MAX_LEN)
        return false;
    for (size_t i = 0; i < len; i++)
        if (!name_char(s[i], i == 0))
            return false;
    return true;
}

bool name_set(struct name *out, const char *s, size_t len)
{
    if (!name_valid(s, len))
        return false;
    memset(out, 0, sizeof *out);
    memcpy(out->s, s, len);
    return true;
}

bool name_eq(const struct name *a, const struct name *b)
{
    return strcmp(a->s, b->s) == 0;
}

bool digest_eq(const struct digest *a, const struct digest *b)
{
    return memcmp(a->b, b->b, DIGEST_LEN) == 0;
}

bool digest_is_zero(const struct digest *d)
{
    static const struct digest zero;
    return digest_eq(d, &zero);
}

void digest_hex(const struct digest *d, char out[DIGEST_HEX_SIZE])
{
    hex_encode(d->b, DIGEST_LEN, out);
}

bool digest_parse(const char *hex, size_t len, struct digest *out)
{
    struct digest d;
    if (!hex_decode(hex, len, d.b, DIGEST_LEN))
        return false;
    *out = d;
    return true;
}

void hex_encode(const void *data, size_t len, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const uint8_t *p = data;
    for (size_t i = 0; i < len; i++) {
        out[2 * i] = digits[p[i] >> 4];
        out[2 * i + 1] = digits[p[i] & 15];
    }
    out[2 * len] = 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

bool hex_decode(const char *hex, size_t hex_len, uint8_t *out, size_t out_len)
{
    if (hex_len != 2 * out_len)
        return false;
    for (size_t i = 0; i < out_len; i++) {
        int hi = hex_value(hex[2 * i]), lo = hex_value(hex[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        out[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}
