#include "proto/record.h"

#include <string.h>

#include "base/hash.h"
#include "base/limits.h"

static struct bytes of_string(const char *s)
{
    return (struct bytes){(const uint8_t *)s, strlen(s)};
}

struct record_view record_of(const Alv__Record *record)
{
    return (struct record_view){
        record->kind, of_string(record->id), of_string(record->group), {record->text.data, record->text.len}};
}

size_t utf8_prefix(const void *text, size_t len)
{
    const uint8_t *start = text, *s = start, *end = start + len;
    while (s < end) {
        uint64_t eight;
        while (end - s >= 8 && (memcpy(&eight, s, 8), !(eight & 0x8080808080808080u))) /* most text is ASCII */
            s += 8;
        if (s == end)
            break;
        uint8_t c = *s;
        if (c < 0x80) {
            s++;
            continue;
        }
        int more = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        if (c < 0xc2 || c > 0xf4 || end - s <= more)
            break;
        uint8_t low = 0x80, high = 0xbf; /* of the second byte: no overlong form, no surrogate, not above U+10FFFF */
        if (c == 0xe0)
            low = 0xa0;
        else if (c == 0xed)
            high = 0x9f;
        else if (c == 0xf0)
            low = 0x90;
        else if (c == 0xf4)
            high = 0x8f;
        if (s[1] < low || s[1] > high || (more > 1 && (s[2] & 0xc0) != 0x80) || (more > 2 && (s[3] & 0xc0) != 0x80))
            break;
        s += 1 + more;
    }
    return (size_t)(s - start);
}

bool utf8_valid(const void *text, size_t len)
{
    return utf8_prefix(text, len) == len;
}

static bool name_bytes_valid(struct bytes b)
{
    if (b.len > LIMIT_RECORD_ID_BYTES || !utf8_valid(b.data, b.len))
        return false;
    for (size_t i = 0; i < b.len; i++)
        if (b.data[i] < 0x20 || b.data[i] == 0x7f)
            return false;
    return true;
}

Alv__Refusal record_check(const struct record_view *r)
{
    if (r->kind != ALV__RECORD_KIND__RECORD_TEXT && r->kind != ALV__RECORD_KIND__RECORD_CHAT)
        return ALV__REFUSAL__REFUSAL_BAD_ID;
    if (!name_bytes_valid(r->id) || !name_bytes_valid(r->group))
        return ALV__REFUSAL__REFUSAL_BAD_ID;
    if (r->text.len == 0)
        return ALV__REFUSAL__REFUSAL_EMPTY;
    if (r->text.len > LIMIT_RECORD_BYTES)
        return ALV__REFUSAL__REFUSAL_TOO_LONG;
    if (!utf8_valid(r->text.data, r->text.len))
        return ALV__REFUSAL__REFUSAL_NOT_UTF8;
    return ALV__REFUSAL__REFUSAL_NONE;
}

static size_t put_le(uint8_t *at, uint64_t v, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(v >> (8 * i));
    return bytes;
}

void record_digest(const struct record_view *r, struct digest *out)
{
    static const char context[] = "alluvium record 1";
    uint8_t head[sizeof context + 9];
    struct hasher h;
    memcpy(head, context, sizeof context);
    put_le(head + sizeof context, (uint64_t)r->kind, 1);
    put_le(head + sizeof context + 1, r->text.len, 8);
    hasher_init(&h);
    hasher_put(&h, head, sizeof head);
    hasher_put(&h, r->text.data, r->text.len);
    hasher_end(&h, out);
}

void record_chain(struct digest *rolling, const struct record_view *r, const struct digest *digest)
{
    static const char context[] = "alluvium chain 1";
    enum { CHAINS = sizeof context + 2 * DIGEST_LEN };
    uint8_t head[CHAINS + 4], length[4];
    struct hasher h;
    memcpy(head, context, sizeof context);
    memcpy(head + sizeof context, rolling->b, DIGEST_LEN);
    memcpy(head + sizeof context + DIGEST_LEN, digest->b, DIGEST_LEN);
    put_le(head + CHAINS, r->id.len, 4);
    put_le(length, r->group.len, 4);
    hasher_init(&h);
    hasher_put(&h, head, sizeof head);
    hasher_put(&h, r->id.data, r->id.len);
    hasher_put(&h, length, sizeof length);
    hasher_put(&h, r->group.data, r->group.len);
    hasher_end(&h, rolling);
}

void record_names(const struct record_view *r, const struct digest *digest, char hex[DIGEST_HEX_SIZE], struct bytes *id,
                  struct bytes *group)
{
    *id = r->id;
    if (!r->id.len) {
        digest_hex(digest, hex);
        *id = of_string(hex);
    }
    *group = r->group.len ? r->group : *id;
}
