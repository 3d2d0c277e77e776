/* batch.h - one atomic change of a store, as data.
 *
 * A pure list of puts and deletes: cores make them, the shell commits them (store/db.h) or the simulation does. A
 * "family" is an index into the family names the store was opened with (a RocksDB column family).
 */
#ifndef STORE_BATCH_H
#define STORE_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

/* The coordinator's families, in this order (worker stores name their own, see replay/keep.h). */
enum family {
    FAMILY_META,
    FAMILY_STREAM,
    FAMILY_DEDUPE,
    FAMILY_LEASES,
    FAMILY_DELTAS,
    FAMILY_VERSIONS,
    FAMILY_MATRIX,
    FAMILY_AUDIT,
    FAMILIES
};

enum batch_kind { BATCH_PUT = 1, BATCH_DELETE = 2, BATCH_DELETE_RANGE = 3 };

struct batch { /* zeroed is empty; owns its memory */
    struct buf ops;
    uint32_t n;
};

struct batch_op { /* borrowed from the batch */
    enum batch_kind kind;
    uint8_t family;
    struct bytes key, value; /* DELETE_RANGE: [key, value) */
};

void batch_put(struct batch *batch, uint8_t family, const void *key, size_t key_len, const void *value,
               size_t value_len);
/* The same in two halves, for a value that is encoded in place: what is appended to `ops` between them. */
size_t batch_put_begin(struct batch *batch, uint8_t family, const void *key, size_t key_len);
void batch_put_end(struct batch *batch, size_t begin);
void batch_delete(struct batch *batch, uint8_t family, const void *key, size_t key_len);
void batch_delete_range(struct batch *batch, uint8_t family, const void *from, size_t from_len, const void *to,
                        size_t to_len);
void batch_append(struct batch *batch, const struct batch *more);
void batch_clear(struct batch *batch);
void batch_release(struct batch *batch);

/* Walks the operations in order: `*at` starts at 0; false at the end. */
bool batch_next(const struct batch *batch, size_t *at, struct batch_op *out);

#endif
