/* A frame of any bytes: refused, or a message that encodes again and is accepted again. */
#include "base/check.h"
#include "fuzz.h"
#include "proto/codec.h"
#include "proto/frame.h"
#include "proto/record.h"
#include "samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct frame f;
    ProtobufCMessage *m = NULL, *again = NULL;
    if (frame_decode(data, size, &f, NULL) || codec_decode(f.verb, f.body, &m, NULL))
        return 0;
    struct buf out = {0};
    CHECK_EQ(frame_encode(f.verb, f.request_id, m, &out, NULL), ST_OK);
    CHECK_EQ(frame_decode(out.data, out.len, &f, NULL), ST_OK);
    CHECK_EQ(codec_decode(f.verb, f.body, &again, NULL), ST_OK);
    if (f.verb == VERB_PUSH_BATCH) {
        const Alv__PushBatch *batch = (const Alv__PushBatch *)m;
        struct digest d, chain = {{0}};
        for (size_t i = 0; i < batch->n_records; i++) {
            struct record_view r = record_of(batch->records[i]);
            record_check(&r);
            record_digest(&r, &d);
            record_chain(&chain, &r, &d);
        }
    }
    codec_free(again);
    codec_free(m);
    buf_release(&out);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    unsigned n;
    const struct verb_info *table = verb_table(&n);
    for (unsigned i = 0; i < n; i++) {
        struct buf out = {0};
        CHECK_EQ(frame_encode(table[i].verb, 7, sample_of(table[i].verb), &out, NULL), ST_OK);
        use(out.data, out.len);
        buf_release(&out);
    }
}
