/* mapping.h - a whole file mapped read-only. The file must not be truncated while it is mapped (that is a SIGBUS);
 * published files are never rewritten in place, so only a hand on the disk can do it. */
#ifndef ADAPTER_MAPPING_H
#define ADAPTER_MAPPING_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct mapping {
    const uint8_t *data; /* NULL for an empty file */
    size_t len;
};

enum status mapping_open(const char *path, struct mapping *out, struct err *err);
/* Gives the file's pages back; whoever touches them again reads the file again. */
void mapping_rest(const struct mapping *map);
void mapping_close(struct mapping *map); /* zeroed memory is fine */

#endif
