#include "store/batch.h"

#include "base/check.h"

/* One operation in `ops`: u8 kind, u8 family, u32 key length, key, u32 value length, value (both for all kinds). */
static void add(struct batch *batch, enum batch_kind kind, uint8_t family, const void *key, size_t key_len,
                const void *value, size_t value_len)
{
    buf_put_u8(&batch->ops, (uint8_t)kind);
    buf_put_u8(&batch->ops, family);
    buf_put_blob(&batch->ops, key, key_len);
    buf_put_blob(&batch->ops, value, value_len);
    batch->n++;
}

void batch_put(struct batch *batch, uint8_t family, const void *key, size_t key_len, const void *value,
               size_t value_len)
{
    add(batch, BATCH_PUT, family, key, key_len, value, value_len);
}

void batch_delete(struct batch *batch, uint8_t family, const void *key, size_t key_len)
{
    add(batch, BATCH_DELETE, family, key, key_len, NULL, 0);
}

void batch_delete_range(struct batch *batch, uint8_t family, const void *from, size_t from_len, const void *to,
                        size_t to_len)
{
    add(batch, BATCH_DELETE_RANGE, family, from, from_len, to, to_len);
}

void batch_append(struct batch *batch, const struct batch *more)
{
    buf_put(&batch->ops, more->ops.data, more->ops.len);
    batch->n += more->n;
}

void batch_clear(struct batch *batch)
{
    buf_clear(&batch->ops);
    batch->n = 0;
}

void batch_release(struct batch *batch)
{
    if (!batch)
        return;
    buf_release(&batch->ops);
    batch->n = 0;
}

bool batch_next(const struct batch *batch, size_t *at, struct batch_op *out)
{
    if (*at >= batch->ops.len)
        return false;
    struct reader r = reader_of(batch->ops.data + *at, batch->ops.len - *at);
    out->kind = (enum batch_kind)read_u8(&r);
    out->family = read_u8(&r);
    out->key = read_blob(&r);
    out->value = read_blob(&r);
    CHECK(!r.failed); /* only add() writes here */
    *at += r.at;
    return true;
}
