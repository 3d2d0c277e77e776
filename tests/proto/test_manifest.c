/* Canonical bytes and signatures: one value, one encoding; one flipped bit, no version. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "harness.h"
#include "proto/manifest.h"

static struct name name_of(const char *s)
{
    struct name n = {{0}};
    EXPECT(name_set(&n, s, strlen(s)));
    return n;
}

static struct manifest example(void)
{
    struct manifest m = {.line = name_of("notes"),
                         .number = 7,
                         .parent = 6,
                         .created_s = 1760000000,
                         .rank = 16,
                         .alpha = 32,
                         .targets = 127,
                         .n_files = 2,
                         .round = 7,
                         .session_counter = 2,
                         .exclusion_seq = 3,
                         .n_leases = 2,
                         .error_rate = 0.01,
                         .step_factor = 1,
                         .averaging_error = 0.003,
                         .update_norm = 1.5,
                         .clip_norm = 4,
                         .n_domains = 2};
    memset(m.parent_manifest.b, 9, DIGEST_LEN);
    snprintf(m.verdict, sizeof m.verdict, "published: every upper bound is under its budget");
    m.files[0] = (struct manifest_file){.kind = FILE_PEFT, .bytes = 19537920};
    m.files[1] = (struct manifest_file){.kind = FILE_GGUF, .bytes = 19540000};
    m.leases = xcalloc(2, sizeof *m.leases);
    for (uint32_t i = 0; i < 2; i++) {
        m.leases[i] = (struct manifest_lease){.id = 10 + i, .generation = 1, .weight = 0.5, .n_ranges = 2};
        m.leases[i].ranges = xcalloc(2, sizeof(struct manifest_range));
        m.leases[i].ranges[0] = (struct manifest_range){{1}, 100 * i, 50};
        m.leases[i].ranges[1] = (struct manifest_range){{2}, 10 * i, 10};
    }
    m.domains = xcalloc(2, sizeof *m.domains);
    m.domains[0] = (struct manifest_domain){{0}, name_of("general"), 1, 256, 100000, 3e5, 5, 2.9e5, 0.1, 0.2};
    m.domains[1] = (struct manifest_domain){{2}, name_of("ocaml"), 1, 256, 100000, 2e5, 6, 2.1e5, -0.1, 0.0};
    return m;
}

static void test_round_trip_is_canonical(void)
{
    struct manifest m = example(), back = {0};
    struct buf a = {0}, b = {0};
    struct err err = {{0}};
    EXPECT_ST(manifest_encode(&m, &a, &err), ST_OK, &err);
    EXPECT_ST(manifest_decode(a.data, a.len, &back, &err), ST_OK, &err);
    EXPECT_STR(back.verdict, m.verdict);
    EXPECT(back.n_leases == 2 && back.leases[1].ranges[1].first == 10 && back.domains[1].forgetting == -0.1);
    EXPECT_ST(manifest_encode(&back, &b, &err), ST_OK, &err);
    EXPECT(a.len == b.len && !memcmp(a.data, b.data, a.len));

    /* the format as other programs must read it: head and a known digest (recorded, format 1) */
    EXPECT(!memcmp(a.data, "ALVMANI1\x05notes\x07\0\0\0\0\0\0\0\x06", 23));
    struct digest d;
    char hex[DIGEST_HEX_SIZE];
    manifest_digest(a.data, a.len, &d);
    digest_hex(&d, hex);
    EXPECT_STR(hex, "17017ffd720ee01b6119035f17d327d912d5cb40ae0b999c5ce4e14804ccd40f");
    manifest_release(&back);
    manifest_release(&m);
    buf_release(&a);
    buf_release(&b);
}

/* Whatever bytes decode are the bytes that encode gives: no second spelling of any value. */
static void test_damage_is_refused_or_another_value(void)
{
    struct manifest m = example();
    struct buf a = {0};
    EXPECT_ST(manifest_encode(&m, &a, NULL), ST_OK, NULL);
    for (size_t len = 0; len < a.len; len++) {
        uint8_t *exact = xmemdup(a.data, len);
        struct manifest back = {0};
        EXPECT(manifest_decode(exact, len, &back, NULL) != ST_OK);
        free(exact);
    }
    buf_put_u8(&a, 0);
    struct manifest more = {0};
    EXPECT_ST(manifest_decode(a.data, a.len, &more, NULL), ST_BAD_DATA, NULL);
    a.len--;
    unsigned passed = 0;
    for (size_t bit = 0; bit < 8 * a.len; bit++) {
        struct manifest back = {0};
        struct buf again = {0};
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (!manifest_decode(a.data, a.len, &back, NULL)) {
            passed++;
            EXPECT_ST(manifest_encode(&back, &again, NULL), ST_OK, NULL);
            EXPECT(again.len == a.len && !memcmp(again.data, a.data, a.len));
        }
        manifest_release(&back);
        buf_release(&again);
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    EXPECT(passed > 0 && passed < 8 * a.len);
    a.data[7] = '2';
    EXPECT_ST(manifest_decode(a.data, a.len, &more, NULL), ST_UNSUPPORTED, NULL);
    manifest_release(&m);
    buf_release(&a);
}

#define WRONG(change)                                           \
    do {                                                        \
        struct manifest m = example();                          \
        struct buf out = {0};                                   \
        change;                                                 \
        EXPECT(manifest_encode(&m, &out, NULL) == ST_BAD_DATA); \
        EXPECT(out.len == 0);                                   \
        manifest_release(&m);                                   \
    } while (0)

static void test_rules(void)
{
    WRONG(m.line.s[0] = 'X');
    WRONG(m.parent = 7);
    WRONG(memset(&m.parent_manifest, 0, sizeof m.parent_manifest));
    WRONG(m.number = 0);
    WRONG(m.rank = 0);
    WRONG(m.n_files = 0);
    WRONG(m.files[1].kind = FILE_PEFT);
    WRONG(m.files[0].bytes = 0);
    WRONG(m.rollback_of = 3);
    WRONG(m.flags = MANIFEST_ROLLBACK);
    WRONG(m.flags = 8);
    WRONG(m.leases[1].id = 10);
    WRONG(m.leases[1].weight = NAN);
    WRONG(m.leases[1].weight = 0);
    WRONG(m.leases[0].ranges[1].domain.v = 0);
    WRONG(m.leases[0].ranges[1].count = 0);
    WRONG((m.leases[0].ranges[1].domain.v = 1, m.leases[0].ranges[1].first = 49));
    WRONG(m.domains[0].id.v = 2);
    WRONG(m.domains[0].nll = INFINITY);
    WRONG(m.domains[0].reference = 8);
    WRONG(m.domains[1].name.s[0] = 0);
    WRONG(m.error_rate = 1);
    WRONG(m.step_factor = -1);
    WRONG(m.verdict[0] = (char)0xff);
}

static void test_signatures(void)
{
    struct sign_public root, release, other;
    struct sign_secret root_secret, release_secret, other_secret;
    struct name line = name_of("notes"), line2 = name_of("other");
    uint8_t cert[CERT_LEN], sig[SIGNATURE_LEN];
    struct err err = {{0}};
    sign_keypair(&root, &root_secret);
    sign_keypair(&release, &release_secret);
    sign_keypair(&other, &other_secret);
    EXPECT(sign_is_pair(&root_secret, &root) && !sign_is_pair(&root_secret, &other));
    for (size_t bit = 0; bit < 8 * SIGN_SECRET_LEN; bit++) {
        root_secret.b[bit / 8] ^= (uint8_t)(1 << bit % 8);
        EXPECT(!sign_is_pair(&root_secret, &root));
        root_secret.b[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }

    cert_sign(&root_secret, &line, &release, 7, 1000, cert);
    EXPECT_EQ(cert_serial(cert), 7);
    EXPECT_ST(cert_verify(&root, &line, &release, cert, CERT_LEN, 1000, &err), ST_OK, &err);
    EXPECT_ST(cert_verify(&root, &line, &release, cert, CERT_LEN, 1001, &err), ST_VERIFY, &err);
    EXPECT_ST(cert_verify(&root, &line2, &release, cert, CERT_LEN, 1, &err), ST_VERIFY, &err);
    EXPECT_ST(cert_verify(&root, &line, &other, cert, CERT_LEN, 1, &err), ST_VERIFY, &err);
    EXPECT_ST(cert_verify(&other, &line, &release, cert, CERT_LEN, 1, &err), ST_VERIFY, &err);
    EXPECT_ST(cert_verify(&root, &line, &release, cert, CERT_LEN - 1, 1, &err), ST_VERIFY, &err);
    for (size_t bit = 0; bit < 8 * CERT_LEN; bit++) {
        cert[bit / 8] ^= (uint8_t)(1 << bit % 8);
        EXPECT(cert_verify(&root, &line, &release, cert, CERT_LEN, 1, NULL) == ST_VERIFY);
        cert[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }

    struct manifest m = example();
    struct buf a = {0};
    EXPECT_ST(manifest_encode(&m, &a, &err), ST_OK, &err);
    manifest_sign(&release_secret, a.data, a.len, sig);
    EXPECT_ST(manifest_verify(&release, a.data, a.len, sig, sizeof sig, &err), ST_OK, &err);
    EXPECT_ST(manifest_verify(&other, a.data, a.len, sig, sizeof sig, &err), ST_VERIFY, &err);
    EXPECT_ST(manifest_verify(&release, a.data, a.len - 1, sig, sizeof sig, &err), ST_VERIFY, &err);
    EXPECT_ST(manifest_verify(&release, a.data, a.len, sig, sizeof sig - 1, &err), ST_VERIFY, &err);
    for (size_t at = 0; at < a.len; at++) { /* every byte counts */
        a.data[at] ^= 0x20;
        EXPECT(manifest_verify(&release, a.data, a.len, sig, sizeof sig, NULL) == ST_VERIFY);
        a.data[at] ^= 0x20;
    }
    for (size_t at = 0; at < sizeof sig; at++) {
        sig[at] ^= 1;
        EXPECT(manifest_verify(&release, a.data, a.len, sig, sizeof sig, NULL) == ST_VERIFY);
        sig[at] ^= 1;
    }
    /* one context cannot pass for another */
    EXPECT_ST(aliases_verify(&release, a.data, a.len, sig, sizeof sig, &err), ST_VERIFY, &err);
    sign_wipe(&root_secret);
    static const struct sign_secret wiped;
    EXPECT(!memcmp(&root_secret, &wiped, sizeof wiped));
    manifest_release(&m);
    buf_release(&a);
}

static void test_aliases(void)
{
    struct aliases a = {.line = name_of("notes"), .seq = 4, .created_s = 5, .n_aliases = 2, .n_marks = 2}, back = {0};
    struct mark marks[2] = {{3, MARK_WITHDRAWN, "it repeats itself"}, {3, MARK_TAINTED, ""}};
    struct buf x = {0}, y = {0};
    struct err err = {{0}};
    a.aliases[0] = (struct alias){name_of("canary"), 7, 0};
    a.aliases[1] = (struct alias){name_of("latest"), 6, 99};
    a.marks = marks;
    EXPECT_ST(aliases_encode(&a, &x, &err), ST_OK, &err);
    EXPECT_ST(aliases_decode(x.data, x.len, &back, &err), ST_OK, &err);
    EXPECT_ST(aliases_encode(&back, &y, &err), ST_OK, &err);
    EXPECT(x.len == y.len && !memcmp(x.data, y.data, x.len));
    EXPECT(aliases_find(&back, "latest") && aliases_find(&back, "latest")->version == 6);
    EXPECT(!aliases_find(&back, "stable"));
    EXPECT(aliases_mark(&back, 3, MARK_TAINTED) && !aliases_mark(&back, 4, MARK_TAINTED));
    REQUIRE(aliases_mark(&back, 3, MARK_WITHDRAWN) != NULL);
    EXPECT_STR(aliases_mark(&back, 3, MARK_WITHDRAWN)->reason, "it repeats itself");
    aliases_release(&back);
    for (size_t len = 0; len < x.len; len++) {
        uint8_t *exact = xmemdup(x.data, len);
        EXPECT(aliases_decode(exact, len, &back, NULL) != ST_OK);
        free(exact);
    }
    marks[1].kind = MARK_WITHDRAWN;
    EXPECT_ST(aliases_encode(&a, &y, NULL), ST_BAD_DATA, NULL);
    marks[1].kind = MARK_TAINTED;
    a.aliases[1].name = a.aliases[0].name;
    EXPECT_ST(aliases_encode(&a, &y, NULL), ST_BAD_DATA, NULL);
    buf_release(&x);
    buf_release(&y);
}

int main(void)
{
    hash_start();
    RUN(test_round_trip_is_canonical);
    RUN(test_damage_is_refused_or_another_value);
    RUN(test_rules);
    RUN(test_signatures);
    RUN(test_aliases);
    return harness_end();
}
