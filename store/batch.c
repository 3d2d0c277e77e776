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

size_t batch_put_begin(struct batch *batch, uint8_t family, const void *key, size_t key_len)
{
    add(batch, BATCH_PUT, family, key, key_len, NULL, 0);
    return batch->ops.len;
}

void batch_put_end(struct batch *batch, size_t begin)
{
    size_t len = batch->ops.len - begin;
    CHECK(begin >= 4 && len <= UINT32_MAX);
    for (int i = 0; i < 4; i++)
        batch->ops.data[begin - 4 + i] = (uint8_t)(len >> (8 * i));
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
    const uint8_t *op = batch->ops.data + *at; /* each op is walked several times on its way to the disk: no reader */
    size_t left = batch->ops.len - *at, used = 2;
    CHECK(left >= 10);
    out->kind = (enum batch_kind)op[0];
    out->family = op[1];
    struct bytes *parts[] = {&out->key, &out->value};
    for (int i = 0; i < 2; i++) {
        CHECK(left - used >= 4); /* only add() writes here */
        size_t len = op[used] | (size_t)op[used + 1] << 8 | (size_t)op[used + 2] << 16 | (size_t)op[used + 3] << 24;
        used += 4;
        CHECK(left - used >= len);
        *parts[i] = (struct bytes){op + used, len};
        used += len;
    }
    *at += used;
    return true;
}
