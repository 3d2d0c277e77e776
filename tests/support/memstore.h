/* memstore.h - an ordered key-value store in memory: what a committed batch leaves on disk, without a disk.
 *
 * Tests and the simulation apply a core's batches to it, copy it to keep a moment, and load a new core from it. */
#ifndef MEMSTORE_H
#define MEMSTORE_H

#include "coordinator/core/core.h"
#include "store/batch.h"

struct memstore { /* zeroed is empty */
    struct mem_item {
        uint8_t family;
        struct buf key, value;
    } * items; /* ascending (family, key) */
    size_t n, cap;
};

void memstore_apply(struct memstore *store, const struct batch *batch);
void memstore_copy(struct memstore *to /* overwritten */, const struct memstore *from);
void memstore_release(struct memstore *store);
bool memstore_get(const struct memstore *store, uint8_t family, const void *key, size_t key_len, struct bytes *out);
/* Index of the first item at or after (family, key); walk on while items[i].family and key are in range. */
size_t memstore_seek(const struct memstore *store, uint8_t family, const void *key, size_t key_len);
/* Feeds a new core everything it asks for. */
enum status memstore_load(const struct memstore *store, struct core *core, struct err *err);
/* The facts of a push batch, as the shell would read them; to be freed by the caller. */
struct push_facts *memstore_facts(const struct memstore *store, const struct sip_key *seed, struct domain_id domain,
                                  const Alv__PushBatch *batch);

#endif
