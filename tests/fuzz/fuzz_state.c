/* A stored value of any bytes, decoded as each kind of value: refused, or one that encodes to bytes which decode to the
 * same again. Whatever it says, nothing outside the bytes is read and no memory is lost. */
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/state.h"
#include "fuzz.h"

#define NO_RELEASE(v) (void)(v)

/* The values are large: on the heap, where the sanitizer sees their ends. */
#define TRY(type, release)                                                            \
    static void try_##type(struct bytes in)                                           \
    {                                                                                 \
        struct type *v = xcalloc(1, sizeof *v), *w = xcalloc(1, sizeof *w);           \
        struct buf once = {0}, twice = {0};                                           \
        if (type##_get(in, v)) {                                                      \
            type##_put(&once, v);                                                     \
            CHECK(type##_get(buf_bytes(&once), w));                                   \
            type##_put(&twice, w);                                                    \
            CHECK(once.len == twice.len && !memcmp(once.data, twice.data, once.len)); \
            release(v);                                                               \
            release(w);                                                               \
        }                                                                             \
        buf_release(&once);                                                           \
        buf_release(&twice);                                                          \
        free(v);                                                                      \
        free(w);                                                                      \
    }

#define EACH(X)                                   \
    X(state_line, NO_RELEASE)                     \
    X(state_session, NO_RELEASE)                  \
    X(state_counters, NO_RELEASE)                 \
    X(state_domain, NO_RELEASE)                   \
    X(state_stream, state_stream_release)         \
    X(state_exclusion, NO_RELEASE)                \
    X(state_quarantine, state_quarantine_release) \
    X(state_link, NO_RELEASE)                     \
    X(state_round, NO_RELEASE)                    \
    X(state_lease, state_lease_release)           \
    X(state_delta, NO_RELEASE)                    \
    X(state_settled, NO_RELEASE)                  \
    X(state_sizes, NO_RELEASE)                    \
    X(state_windows, NO_RELEASE)                  \
    X(state_segment, NO_RELEASE)                  \
    X(state_place, NO_RELEASE)                    \
    X(state_id, NO_RELEASE)                       \
    X(state_version, NO_RELEASE)                  \
    X(state_verdict, NO_RELEASE)                  \
    X(state_losses, state_losses_release)         \
    X(state_audit, NO_RELEASE)                    \
    X(state_token, NO_RELEASE)                    \
    X(state_holder, NO_RELEASE)                   \
    X(state_retraction, NO_RELEASE)

EACH(TRY)

#define ROW(type, release) try_##type,
static void (*const tries[])(struct bytes) = {EACH(ROW)};
enum { KINDS = sizeof tries / sizeof tries[0] };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len)
        tries[data[0] % KINDS]((struct bytes){data + 1, len - 1});
    return 0;
}

/* A seed for every kind: one filled with ones, each small enough to be a plausible count, and two with lists. */
void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    struct range ranges[2] = {{{1}, 5, 6}, {{2}, 0, 1}};
    struct window_loss losses[2] = {{{1}, 3, 2.5, 2.25, 64}, {{2}, 4, 1.5, 1.25, 64}};
    struct buf b = {0};
#define SEED(index, type, ...)          \
    do {                                \
        struct type v = {__VA_ARGS__};  \
        buf_clear(&b);                  \
        buf_put_u8(&b, index);          \
        type##_put(&b, &v);             \
        struct buf exact = {0};         \
        buf_put(&exact, b.data, b.len); \
        use(exact.data, exact.len);     \
        buf_release(&exact);            \
    } while (0)
    SEED(0, state_line, .name = {"notes"});
    SEED(2, state_counters, .version = 7, .alarm = "stopped");
    SEED(3, state_domain, .name = {"notes"}, .train_next = 9, .n_overrides = 1, .overrides = {{"lr", "0.5"}});
    SEED(4, state_stream, .key = {"feed"}, .source = "a.jsonl", .position = 5);
    SEED(6, state_quarantine, .lease = 3, .reason = "noise", .n = 2, .ranges = ranges);
    SEED(8, state_round, .number = 3, .phase = ROUND_OPEN, .n_domains = 2);
    SEED(9, state_lease, .id = 7, .key = {"pool"}, .n_ranges = 2, .ranges = ranges);
    SEED(10, state_delta, .lease = 7, .key = {"pool"}, .fingerprint = "blas");
    SEED(12, state_sizes, .count = 2, .sizes = {(const uint8_t *)"\1\0\2\0", 4});
    SEED(14, state_segment, .pieces = 1, .text = {(const uint8_t *)"text", 4});
    SEED(16, state_id, .revision = 1, .n = 1, .places = {{{1}, 0, 5, 1}});
    SEED(17, state_version, .parent = 1, .manifest = {(const uint8_t *)"m", 1}, .n_domains = 1);
    SEED(18, state_verdict, .round = 1, .text = {(const uint8_t *)"{}", 2});
    SEED(19, state_losses, .n = 2, .items = losses, .fingerprint = "blas");
    SEED(20, state_audit, .key = {"operator"}, .text = "round");
    SEED(21, state_token, .order = 1, .reply = {(const uint8_t *)"{}", 2});
    buf_release(&b);
}
