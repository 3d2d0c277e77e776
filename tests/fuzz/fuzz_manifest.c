/* A manifest or an alias statement of any bytes: refused, or exactly what the encoder makes of its value. */
#include <string.h>

#include "base/check.h"
#include "fuzz.h"
#include "proto/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct manifest m = {0};
    struct aliases a = {0};
    struct buf out = {0};
    if (manifest_decode(data, size, &m, NULL) == ST_OK) {
        CHECK_EQ(manifest_encode(&m, &out, NULL), ST_OK);
        CHECK(out.len == size && !memcmp(out.data, data, size));
    }
    buf_clear(&out);
    if (aliases_decode(data, size, &a, NULL) == ST_OK) {
        CHECK_EQ(aliases_encode(&a, &out, NULL), ST_OK);
        CHECK(out.len == size && !memcmp(out.data, data, size));
        aliases_find(&a, "latest");
    }
    manifest_release(&m);
    aliases_release(&a);
    buf_release(&out);
    return 0;
}

void fuzz_seeds(void (*use)(const uint8_t *data, size_t len))
{
    struct manifest_range ranges[2] = {{{1}, 0, 5}, {{2}, 7, 9}};
    struct manifest_lease lease = {.id = 3, .generation = 1, .weight = 1, .n_ranges = 2, .ranges = ranges};
    struct manifest_domain domain = {{1}, {"ocaml"}, 1, 64, 9000, 20000, 1, 21000, -0.1, 0.01};
    struct manifest m = {.line = {"notes"}, .number = 2, .parent = 1, .rank = 16, .alpha = 32, .targets = 127};
    struct mark mark = {1, MARK_WITHDRAWN, "no"};
    struct aliases a = {.line = {"notes"}, .seq = 1, .n_aliases = 2, .n_marks = 1, .marks = &mark};
    struct buf out = {0};
    m.parent_manifest.b[0] = 1;
    m.n_files = 1;
    m.files[0] = (struct manifest_file){.kind = FILE_PEFT, .bytes = 100};
    m.n_leases = m.n_domains = 1;
    m.leases = &lease;
    m.domains = &domain;
    CHECK_EQ(manifest_encode(&m, &out, NULL), ST_OK);
    use(out.data, out.len);
    buf_clear(&out);
    a.aliases[0] = (struct alias){{"latest"}, 2, 5};
    a.aliases[1] = (struct alias){{"stable"}, 1, 0};
    CHECK_EQ(aliases_encode(&a, &out, NULL), ST_OK);
    use(out.data, out.len);
    buf_release(&out);
}
