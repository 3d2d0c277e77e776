#include "proto/unpack.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/check.h"

struct slab {
    struct slab *next;
    size_t used, size;
    _Alignas(max_align_t) uint8_t data[];
};

struct arena {
    struct slab *newest; /* the first one begins with the message: how unpack_free() finds it */
    size_t left;         /* may still be taken from the system */
    size_t slab;         /* at least so much at a time */
};

static void *arena_alloc(void *data, size_t size)
{
    struct arena *a = data;
    size = (size + alignof(max_align_t) - 1) / alignof(max_align_t) * alignof(max_align_t);
    struct slab *s = a->newest;
    if (!s || s->size - s->used < size) {
        size_t room = size > a->slab ? size : a->slab;
        if (room > a->left || !(s = malloc(sizeof *s + room)))
            return NULL;
        a->left -= room;
        *s = (struct slab){.next = a->newest, .size = room};
        a->newest = s;
    }
    s->used += size;
    return s->data + s->used - size;
}

static void arena_nothing(void *data, void *p) /* all goes with the message */
{
    (void)data, (void)p;
}

static void slabs_free(struct slab *s)
{
    for (struct slab *next; s; s = next) {
        next = s->next;
        free(s);
    }
}

/* protobuf-c takes the message itself first; its slab then leads the list, so that the message leads to them all. */
ProtobufCMessage *unpack_message(const ProtobufCMessageDescriptor *d, struct bytes body, size_t fields)
{
    /* Bytes are copied once; a field costs at most one message, its pointer, a slot of protobuf-c's own scan and the
     * rounding up of what is taken; a slab's end may stay unused. */
    size_t most = 64 * 1024 + 2 * body.len + 448 * fields;
    struct arena arena = {.left = 2 * most, .slab = body.len + body.len / 4 + 64 * fields + 1024};
    ProtobufCAllocator allocator = {arena_alloc, arena_nothing, &arena};
    ProtobufCMessage *m = protobuf_c_message_unpack(d, &allocator, body.len, body.data);
    struct slab *first = arena.newest;
    while (first && first->next)
        first = first->next;
    if (!m) {
        slabs_free(arena.newest);
        return NULL;
    }
    CHECK((uint8_t *)m == first->data);
    if (first != arena.newest)
        first->next = arena.newest; /* a ring: unpack_free() cuts it */
    return m;
}

void unpack_free(ProtobufCMessage *message)
{
    if (!message)
        return;
    struct slab *first = (struct slab *)(void *)((uint8_t *)message - offsetof(struct slab, data)), *ring = first->next;
    first->next = NULL;
    slabs_free(ring ? ring : first); /* the ring ends at the first */
}
