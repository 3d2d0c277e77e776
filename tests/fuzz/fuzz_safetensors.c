/* safetensors, and a PEFT adapter of a small shape. */
#include "adapter/adapter.h"
#include "adapter/safetensors.h"
#include "base/check.h"
#include "fuzz.h"

static const struct adapter_shape shape = {
    1, 2, 4, 1 << LORA_Q | 1 << LORA_DOWN, {3, 3, 3, 4, 3, 3, 5}, {4, 4, 4, 3, 5, 5, 3}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct safetensors *f = NULL;
    struct err err;
    float block[64];
    volatile uint8_t touched = 0;
    CHECK(adapter_floats(&shape) <= 64);
    if (safetensors_parse(data, len, "fuzz", SAFETENSORS_ADAPTER, &f, &err)) {
        CHECK(err.text[0]);
        return 0;
    }
    for (size_t i = 0; i < safetensors_n(f); i++) {
        const struct safetensors_tensor *t = safetensors_at(f, i);
        CHECK(safetensors_find(f, t->name) == t);
        if (t->bytes)
            touched = (uint8_t)(t->data[0] ^ t->data[t->bytes - 1]);
    }
    (void)touched;
    safetensors_close(f);
    adapter_read_peft(&shape, data, len, block, &err);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    struct buf out = {0};
    float block[64] = {0};
    adapter_init(&shape, 1, block);
    adapter_write_peft(&shape, block, &out);
    CHECK(adapter_read_peft(&shape, out.data, out.len, block, NULL) == ST_OK);
    use(out.data, out.len);
    buf_release(&out);
}
