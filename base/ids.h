/* ids.h - names and digests as types of their own, so that one cannot be passed for another. */
#ifndef BASE_IDS_H
#define BASE_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NAME_MAX_LEN = 63, DIGEST_LEN = 32, DIGEST_HEX_SIZE = 2 * DIGEST_LEN + 1 };

/* Name of a line, domain or key: [a-z0-9][a-z0-9._-]{0,62}, NUL-terminated. Never used as a path by a receiver. */
struct name {
    char s[NAME_MAX_LEN + 1];
};

struct digest { /* BLAKE2b-256 */
    uint8_t b[DIGEST_LEN];
};

struct domain_id { /* dense index of a domain in its line; `general`, the anchor, is 0 */
    uint16_t v;
};

bool name_valid(const char *s, size_t len);
/* false (and *out untouched) when `s` is not a valid name */
bool name_set(struct name *out, const char *s, size_t len);
bool name_eq(const struct name *a, const struct name *b);

bool digest_eq(const struct digest *a, const struct digest *b);
bool digest_is_zero(const struct digest *d);
void digest_hex(const struct digest *d, char out[DIGEST_HEX_SIZE]);
bool digest_parse(const char *hex, size_t len, struct digest *out); /* exactly 64 lower-case hex digits */

void hex_encode(const void *data, size_t len, char *out /* 2*len+1 */);
bool hex_decode(const char *hex, size_t hex_len, uint8_t *out, size_t out_len); /* exactly 2*out_len digits */

#endif
