/* Chats on their way through a lease: fresh or replayed, only the assistant's words are targets, and each stands alone. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"
#include "real_base.h"
#include "toy.h"
#include "worker/train.h"

static atomic_bool never;

/* Questions and answers that are a function of their place. */
static Alv__Segment *chat_segment(struct mix_segment at)
{
    Alv__Segment s = ALV__SEGMENT__INIT;
    uint8_t group[8] = {(uint8_t)at.offset}, packed[512];
    char text[300];
    int len = snprintf(text, sizeof text,
                       "[{\"role\":\"user\",\"content\":\"What is code %u.%llu?\"},"
                       "{\"role\":\"assistant\",\"content\":\"Injury number %llu.\"}]",
                       at.domain.v, (unsigned long long)at.offset, (unsigned long long)at.offset * 7);
    s.offset = at.offset;
    s.kind = ALV__RECORD_KIND__RECORD_CHAT;
    s.group = (ProtobufCBinaryData){8, group};
    s.text = (ProtobufCBinaryData){(size_t)len, (uint8_t *)text};
    return alv__segment__unpack(NULL, alv__segment__pack(&s, packed), packed);
}

/* Domain 2 is chats, the others text: toy_segments() with other segments. */
static enum status segments(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                            struct err *err)
{
    enum status status = toy_segments(user, set, wanted, n, err);
    for (uint32_t i = 0; i < set->n; i++)
        if (set->items[i].at.domain.v == 2 && set->items[i].segment->kind != ALV__RECORD_KIND__RECORD_CHAT) {
            alv__segment__free_unpacked(set->items[i].segment, NULL);
            set->items[i].segment = chat_segment(set->items[i].at);
        }
    return status;
}

/* Walks a pool's segments: where one is a chat, ids and mask are those of the chat by itself. Returns the chats. */
static uint32_t check_pool(const struct engine *engine, const struct lease_work *work, enum mix_pool pool)
{
    size_t at = 0;
    uint32_t chats = 0;
    for (uint32_t i = 0; i < work->plan.n[pool]; i++) {
        struct mix_segment place = work->plan.segments[pool][i];
        size_t n = work->texts[pool][i].n_tokens;
        EXPECT_EQ(work->texts[pool][i].joins, place.domain.v != 2);
        if (place.domain.v == 2) {
            struct token_buf ids = {0};
            struct buf mask = {0};
            struct err err;
            Alv__Segment *segment = chat_segment(place);
            struct bytes text = {segment->text.data, segment->text.len};
            EXPECT_ST(engine_tokenise(engine, segment->kind, text, &ids, &mask, &err), ST_OK, &err);
            EXPECT(ids.n == n && !memcmp(ids.ids, work->ids[pool].ids + at, n * sizeof *ids.ids) &&
                   !memcmp(mask.data, work->mask[pool].data + at, n));
            EXPECT(memchr(mask.data, 0, n) && memchr(mask.data, 1, n) && mask.data[0] == 0);
            alv__segment__free_unpacked(segment, NULL);
            token_buf_release(&ids);
            buf_release(&mask);
            chats++;
        }
        at += n;
    }
    EXPECT_EQ(at, work->ids[pool].n);
    EXPECT_EQ(at, work->mask[pool].len);
    return chats;
}

static void test_masks_survive_replay(void)
{
    static const struct sip_key seed = {{4}};
    struct engine_options options = {.threads = 1, .micro_rows = 64, .ops = OPS_BLAS};
    struct engine engine = {0};
    struct lease_work work = {0};
    struct err err;
    uint32_t fetched = 0;
    struct view *view = view_new(&seed);
    if (EXPECT_ST(engine_open(real_base_path(), &options, &engine, &err), ST_OK, &err)) {
        Alv__Lease *lease = toy_lease();
        lease->train->seq_tokens = 64;
        lease->train->history_permille = 400;
        EXPECT_ST(train_ready(&engine, view, lease, segments, &fetched, &never, &work, &err), ST_OK, &err);
        EXPECT(check_pool(&engine, &work, MIX_FRESH) > 0);
        EXPECT(check_pool(&engine, &work, MIX_HISTORY) > 0);
        EXPECT_EQ(check_pool(&engine, &work, MIX_ANCHOR), 0);
        bool replayed = false;
        for (uint32_t i = 0; i < work.order.n_samples; i++) /* and they are trained, not only fetched */
            if (work.order.samples[i].pool == MIX_HISTORY) {
                const struct plan_sample *s = &work.order.samples[i];
                replayed |= memchr(work.mask[MIX_HISTORY].data + s->begin, 0, s->n_tokens) != NULL;
            }
        EXPECT(replayed);
        lease_work_release(&work);
        engine_close(&engine);
    }
    view_free(view);
}

int main(void)
{
    hash_start();
    RUN(test_masks_survive_replay);
    return harness_end();
}
