/* The ground floor: bytes, names, hashes, seeded randomness. */
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/hash.h"
#include "base/ids.h"
#include "harness.h"

static void test_reader_never_reads_outside(void)
{
    struct buf b = {0};
    buf_put_u16(&b, 0x1234);
    buf_put_u32_be(&b, 0x01020304);
    buf_put_str(&b, "name");
    struct reader r = reader_of(b.data, b.len);
    char s[8];
    EXPECT_EQ(read_u16(&r), 0x1234);
    EXPECT_EQ(read_u32_be(&r), 0x01020304);
    EXPECT(read_str(&r, s, sizeof s));
    EXPECT_STR(s, "name");
    EXPECT(reader_done(&r));
    EXPECT_EQ(read_u64(&r), 0);
    EXPECT(r.failed && !reader_done(&r));

    for (size_t cut = 0; cut < b.len; cut++) { /* every truncation fails, none reads past it */
        r = reader_of(b.data, cut);
        read_u16(&r), read_u32_be(&r);
        EXPECT(!read_str(&r, s, sizeof s));
    }
    uint8_t lying[] = {0xff, 0xff, 0xff, 0xff, 'x'};
    r = reader_of(lying, sizeof lying);
    EXPECT(read_blob(&r).data == NULL && r.failed);
    r = reader_of("\x03\0\0\0a\0b", 7); /* NUL inside a string */
    EXPECT(!read_str(&r, s, sizeof s));
    buf_release(&b);
}

static void test_names(void)
{
    EXPECT(name_valid("a", 1) && name_valid("9.x_y-z", 7));
    const char *bad[] = {"", ".a", "-a", "A", "a/b", "a b", "\xc3\xa4", ".."};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT(!name_valid(bad[i], strlen(bad[i])));
    char long_name[65];
    memset(long_name, 'a', sizeof long_name);
    EXPECT(name_valid(long_name, 63) && !name_valid(long_name, 64));
}

static void test_hashes_known_answers(void)
{
    /* BLAKE2b-256 of "" and "abc": RFC 7693's function at 32 bytes, computed with Python's hashlib. */
    struct digest d, e;
    char hex[DIGEST_HEX_SIZE];
    hash_blake2b("", 0, &d);
    digest_hex(&d, hex);
    EXPECT_STR(hex, "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8");
    hash_blake2b("abc", 3, &d);
    digest_hex(&d, hex);
    EXPECT_STR(hex, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319");
    struct hasher h;
    hasher_init(&h);
    hasher_put(&h, "a", 1);
    hasher_put(&h, "bc", 2);
    hasher_end(&h, &e);
    EXPECT(digest_eq(&d, &e));
    EXPECT(digest_parse(hex, 64, &e) && digest_eq(&d, &e));
    hex[3] = 'G';
    EXPECT(!digest_parse(hex, 64, &e) && !digest_parse(hex, 63, &e));

    /* SipHash-2-4: the paper's test vector, key 00..0f, input 00..0e. */
    struct sip_key key;
    uint8_t in[15];
    for (uint8_t i = 0; i < 16; i++)
        key.b[i] = i;
    for (uint8_t i = 0; i < 15; i++)
        in[i] = i;
    EXPECT(hash_sip(&key, in, sizeof in) == 0xa129ca6149be45e5u);
}

static void test_rng_is_uniform_and_seeded(void)
{
    struct rng a, b;
    rng_seed(&a, 7);
    rng_seed(&b, 7);
    long counts[10] = {0};
    for (int i = 0; i < 100000; i++) {
        uint64_t v = rng_below(&a, 10);
        EXPECT(v == rng_below(&b, 10));
        counts[v]++;
    }
    double chi2 = 0;
    for (int i = 0; i < 10; i++)
        chi2 += (double)(counts[i] - 10000) * (double)(counts[i] - 10000) / 10000;
    EXPECT(chi2 < 27.9); /* 9 degrees of freedom, p = 0.001 */
}

static void test_files(void)
{
    struct err err;
    struct buf b = {0};
    const char *path = harness_path(harness_tmpdir(), "secret");
    EXPECT_ST(file_write_durable(path, "hello", 5, 0600, &err), ST_OK, &err);
    struct stat st;
    EXPECT(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    EXPECT_ST(file_read(path, 4, &b, &err), ST_LIMIT, &err);
    EXPECT_EQ(b.len, 0);
    EXPECT_ST(file_read(path, 5, &b, &err), ST_OK, &err);
    EXPECT(b.len == 5 && !memcmp(b.data, "hello", 5));
    EXPECT_ST(file_read("/nonexistent/x", 5, &b, &err), ST_NOT_FOUND, &err);
    EXPECT(strstr(err.text, "/nonexistent/x") != NULL);
    EXPECT_ST(file_read("/dev/zero", 1 << 20, &b, &err), ST_BAD_DATA, &err);
    EXPECT_ST(file_read("/", 5, &b, &err), ST_BAD_DATA, &err);
    const char *fifo = harness_path(harness_tmpdir(), "fifo"); /* without a writer: opening it must not block */
    EXPECT_EQ(mkfifo(fifo, 0600), 0);
    EXPECT_ST(file_read(fifo, 5, &b, &err), ST_BAD_DATA, &err);
    EXPECT_ST(hash_file(fifo, NULL, NULL, NULL, &err), ST_BAD_DATA, &err);
    buf_release(&b);
}

int main(void)
{
    hash_start();
    RUN(test_reader_never_reads_outside);
    RUN(test_names);
    RUN(test_hashes_known_answers);
    RUN(test_rng_is_uniform_and_seeded);
    RUN(test_files);
    return harness_end();
}
