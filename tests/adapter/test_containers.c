/* GGUF and safetensors: what was written is read, and every lie in a file is an error with its place. The mutations of
 * tests/fuzz look for crashes; here each check is shown to be there. */
#include <string.h>

#include "adapter/gguf.h"
#include "adapter/safetensors.h"
#include "harness.h"

/* ---- GGUF ---- */

static void make_gguf(struct buf *out)
{
    struct gguf_writer w = {0};
    gguf_put_string(&w, "general.architecture", "llama");
    gguf_put_u32(&w, "a.u32", 7);
    gguf_put_f32(&w, "a.f32", 0.5f);
    uint64_t n = gguf_put_tensor(&w, "first", GGUF_T_F32, 1, (const uint64_t[]){3});
    EXPECT_EQ(n, 12);
    EXPECT_EQ(gguf_put_tensor(&w, "second", GGUF_T_Q4_1, 2, (const uint64_t[]){64, 2}), 80);
    gguf_put_header(&w, out);
    for (unsigned i = 0; i < 32 + 96; i++)
        buf_put_u8(out, (uint8_t)i);
    gguf_writer_release(&w);
}

static void test_gguf_reads_what_it_wrote(void)
{
    struct buf file = {0};
    struct gguf *g = NULL;
    struct err err;
    struct bytes text;
    uint32_t u = 0;
    float f = 0;
    make_gguf(&file);
    EXPECT_ST(gguf_parse(file.data, file.len, "x.gguf", &g, &err), ST_OK, &err);
    REQUIRE(g != NULL);
    EXPECT_EQ(gguf_n_kv(g), 3);
    EXPECT_ST(gguf_get_string(g, "general.architecture", &text, &err), ST_OK, &err);
    EXPECT(text.len == 5 && !memcmp(text.data, "llama", 5));
    EXPECT(gguf_get_u32(g, "a.u32", &u, NULL) == ST_OK && u == 7);
    EXPECT(gguf_get_f32(g, "a.f32", &f, NULL) == ST_OK && f == 0.5f);
    EXPECT_ST(gguf_get_u32(g, "a.f32", &u, &err), ST_BAD_DATA, &err);
    EXPECT_ST(gguf_get_u32(g, "a.none", &u, &err), ST_NOT_FOUND, &err);
    const struct gguf_tensor *t = gguf_tensor(g, "second");
    REQUIRE(t != NULL);
    EXPECT(t->ne[0] == 64 && t->ne[1] == 2 && t->ne[2] == 1 && t->bytes == 80 && t->data[0] == 32);
    EXPECT(gguf_tensor(g, "third") == NULL);
    gguf_close(g);
    buf_release(&file);
}

static enum status parse_gguf(const struct buf *file, struct err *err)
{
    struct gguf *g = NULL;
    err->text[0] = 0;
    enum status st = gguf_parse(file->data, file->len, "x.gguf", &g, err);
    EXPECT(st == ST_OK || (g == NULL && !strncmp(err->text, "x.gguf: ", 8)));
    gguf_close(g);
    return st;
}

static size_t find(const struct buf *b, const char *needle)
{
    const uint8_t *p = memmem(b->data, b->len, needle, strlen(needle));
    EXPECT(p != NULL);
    return p ? (size_t)(p - b->data) : 0;
}

static void test_gguf_truncations(void)
{
    struct buf file = {0};
    struct err err;
    make_gguf(&file);
    size_t whole = file.len;
    for (file.len = 0; file.len < whole - 16; file.len++) /* the last tensor's padding may be missing */
        EXPECT_ST(parse_gguf(&file, &err), ST_BAD_DATA, &err);
    for (; file.len <= whole; file.len++)
        EXPECT_ST(parse_gguf(&file, &err), ST_OK, &err);
    file.len = whole;
    buf_put_u8(&file, 0);
    EXPECT_ST(parse_gguf(&file, &err), ST_BAD_DATA, &err);
    buf_release(&file);
}

/* Overwrites `len` bytes at `at`, expects `want`, and puts them back. */
static void lie(struct buf *file, size_t at, const void *bytes, size_t len, enum status want)
{
    uint8_t before[32];
    struct err err;
    memcpy(before, file->data + at, len);
    memcpy(file->data + at, bytes, len);
    EXPECT_ST(parse_gguf(file, &err), want, &err);
    memcpy(file->data + at, before, len);
}

static void test_gguf_lies(void)
{
    static const uint8_t huge[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, zero[8] = {0};
    static const uint8_t big[8] = {0, 0, 0, 0, 0, 0, 0, 0x40};
    struct buf file = {0};
    struct err err;
    make_gguf(&file);
    EXPECT_ST(parse_gguf(&file, &err), ST_OK, &err);
    size_t kv = find(&file, "a.u32"), first = find(&file, "first"), second = find(&file, "second");
    lie(&file, 0, "GGUX", 4, ST_BAD_DATA);
    lie(&file, 4, "\x02", 1, ST_UNSUPPORTED);
    lie(&file, 8, huge, 8, ST_LIMIT);      /* tensors */
    lie(&file, 16, huge, 8, ST_LIMIT);     /* keys */
    lie(&file, 8, "\x05", 1, ST_BAD_DATA); /* more than there are */
    lie(&file, 24, huge, 8, ST_BAD_DATA);  /* length of a key */
    lie(&file, kv - 8, zero, 8, ST_BAD_DATA);
    lie(&file, kv, "a.f32", 5, ST_BAD_DATA);              /* a key twice */
    lie(&file, kv, "a\n", 2, ST_BAD_DATA);                /* no printable key */
    lie(&file, kv + 5, "\x0d", 1, ST_BAD_DATA);           /* unknown kind */
    lie(&file, kv + 5, "\x08", 1, ST_BAD_DATA);           /* a string of impossible length */
    lie(&file, kv + 5, "\x09\0\0\0\x09", 5, ST_BAD_DATA); /* an array of arrays */
    lie(&file, first - 8, "\x40", 1, ST_BAD_DATA);        /* a name of 64 bytes */
    lie(&file, first + 5, zero, 4, ST_BAD_DATA);          /* no dimension */
    lie(&file, first + 5, "\x05", 1, ST_BAD_DATA);        /* five */
    lie(&file, first + 9, zero, 8, ST_BAD_DATA);          /* of size 0 */
    lie(&file, first + 9, huge, 8, ST_BAD_DATA);
    lie(&file, first + 9, big, 8, ST_BAD_DATA); /* 2^62 floats: the bytes overflow */
    lie(&file, first + 17, "\xc8", 1, ST_UNSUPPORTED);
    lie(&file, first + 17, "\x03", 1, ST_BAD_DATA);  /* Q4_1 with rows of 3 */
    lie(&file, first + 21, "\x20", 1, ST_BAD_DATA);  /* offset of the first */
    lie(&file, second + 10, big, 8, ST_BAD_DATA);    /* the product overflows */
    lie(&file, second + 30, zero, 8, ST_BAD_DATA);   /* on top of the first */
    lie(&file, second + 30, "\x40", 1, ST_BAD_DATA); /* a hole before it */
    buf_release(&file);
}

static void test_gguf_alignment_and_duplicates(void)
{
    static const struct {
        uint32_t alignment;
        enum status want;
    } cases[] = {{32, ST_OK}, {0, ST_BAD_DATA}, {48, ST_BAD_DATA}, {1u << 31, ST_BAD_DATA}};
    struct err err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gguf_writer w = {0};
        struct buf file = {0};
        gguf_put_u32(&w, "general.alignment", cases[i].alignment);
        gguf_put_header(&w, &file);
        EXPECT_ST(parse_gguf(&file, &err), cases[i].want, &err);
        gguf_writer_release(&w);
        buf_release(&file);
    }
    struct gguf_writer w = {0};
    struct buf file = {0};
    gguf_put_tensor(&w, "same", GGUF_T_F32, 1, (const uint64_t[]){8});
    gguf_put_tensor(&w, "same", GGUF_T_F32, 1, (const uint64_t[]){8});
    gguf_put_header(&w, &file);
    memset(buf_extend(&file, 64), 0, 64);
    EXPECT_ST(parse_gguf(&file, &err), ST_BAD_DATA, &err);
    gguf_writer_release(&w);
    buf_release(&file);
}

/* ---- safetensors ---- */

static enum status parse_safetensors(const char *header, size_t data_len, struct err *err)
{
    struct buf file = {0};
    struct safetensors *f = NULL;
    err->text[0] = 0;
    buf_put_u64(&file, strlen(header));
    buf_put(&file, header, strlen(header));
    memset(buf_extend(&file, data_len), 7, data_len);
    enum status st = safetensors_parse(file.data, file.len, "x", (struct safetensors_limits){4096, 3}, &f, err);
    EXPECT(st == ST_OK || (f == NULL && !strncmp(err->text, "x: ", 3)));
    safetensors_close(f);
    buf_release(&file);
    return st;
}

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_safetensors_lies(void)
{
    static const struct {
        const char *header;
        size_t data_len;
        enum status want;
    } cases[] = {
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "BF16", "[1,3]", 8, 14) "}   ", 14, ST_OK},
        {"{" T("b", "F32", "[2]", 8, 16) "," T("a", "F32", "[]", 0, 4) "," T("c", "F32", "[1]", 4, 8) "}", 16, ST_OK},
        {"{" T("e", "F32", "[0]", 0, 0) "," T("a", "F32", "[1]", 0, 4) "}", 4, ST_OK},
        {"{\"__metadata__\":{\"format\":\"pt\"}}", 0, ST_OK},
        {"{}", 0, ST_OK},
        {"{}", 1, ST_BAD_DATA},
        {" {}", 0, ST_BAD_DATA},
        {"[]", 0, ST_BAD_DATA},
        {"{", 0, ST_BAD_DATA},
        {"{} x", 0, ST_BAD_DATA},
        {"{\"__metadata__\":{\"n\":1}}", 0, ST_BAD_DATA},
        {"{" T("a", "F32", "[2]", 0, 8) "," T("a", "F32", "[2]", 0, 8) "}", 8, ST_BAD_DATA},    /* twice */
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 4, 12) "}", 12, ST_BAD_DATA},  /* overlap */
        {"{" T("a", "F32", "[2]", 0, 8) "," T("b", "F32", "[2]", 12, 20) "}", 20, ST_BAD_DATA}, /* hole */
        {"{" T("a", "F32", "[2]", 4, 12) "}", 12, ST_BAD_DATA},                                 /* hole at the start */
        {"{" T("a", "F32", "[2]", 0, 8) "}", 9, ST_BAD_DATA},                                   /* rest */
        {"{" T("a", "F32", "[2]", 0, 8) "}", 7, ST_BAD_DATA},                                   /* cut short */
        {"{" T("a", "F32", "[3]", 0, 8) "}", 8, ST_BAD_DATA},
        {"{" T("a", "F32", "[2]", 8, 0) "}", 8, ST_BAD_DATA},
        {"{" T("a", "F32", "[-2]", 0, 8) "}", 8, ST_BAD_DATA},
        {"{" T("a", "F32", "[2.0]", 0, 8) "}", 8, ST_BAD_DATA},
        {"{" T("a", "F32", "[4611686018427387904]", 0, 0) "}", 0, ST_BAD_DATA}, /* 2^62 * 4 overflows to 0 */
        {"{" T("a", "F32", "[4294967296,4294967296]", 0, 0) "}", 0, ST_BAD_DATA},
        {"{" T("a", "F32", "[1,1,1,1,2]", 0, 8) "}", 8, ST_LIMIT},
        {"{" T("a", "Q4", "[2]", 0, 8) "}", 8, ST_UNSUPPORTED},
        {"{" T("a b", "F32", "[2]", 0, 8) "}", 8, ST_BAD_DATA}, /* no printable name */
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, ST_BAD_DATA},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, ST_BAD_DATA},
        {"{\"a\":[]}", 0, ST_BAD_DATA},
        {"{" T("a", "U8", "[1]", 0, 1) "," T("b", "U8", "[1]", 1, 2) "," T("c", "U8", "[1]", 2,
                                                                           3) "," T("d", "U8", "[1]", 3, 4) "}",
         4, ST_LIMIT},
    };
    struct err err;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (parse_safetensors(cases[i].header, cases[i].data_len, &err) != cases[i].want)
            EXPECT_STR(cases[i].header, err.text[0] ? err.text : "accepted");
}

static void test_safetensors_truncations(void)
{
    static const float data[6] = {1, 2, 3, 4, 5, 6};
    struct safetensors_tensor tensors[2] = {
        {.name = "b.weight", .rank = 2, .shape = {2, 2}, .data = (const uint8_t *)data},
        {.name = "a.weight", .rank = 1, .shape = {2}, .data = (const uint8_t *)(data + 4)}};
    struct buf file = {0};
    struct safetensors *f = NULL;
    struct err err;
    safetensors_write(tensors, 2, &file);
    EXPECT_EQ(file.len % 8, 0);
    EXPECT_ST(safetensors_parse(file.data, file.len, "x", SAFETENSORS_ADAPTER, &f, &err), ST_OK, &err);
    REQUIRE(f != NULL);
    EXPECT_STR(safetensors_at(f, 0)->name, "a.weight");
    EXPECT(!memcmp(safetensors_find(f, "b.weight")->data, data, 16));
    safetensors_close(f);
    for (size_t cut = 0; cut < file.len; cut++)
        EXPECT_ST(safetensors_parse(file.data, cut, "x", SAFETENSORS_ADAPTER, &f, &err), ST_BAD_DATA, &err);
    memset(file.data, 0xff, 8);
    EXPECT_ST(safetensors_parse(file.data, file.len, "x", SAFETENSORS_ADAPTER, &f, &err), ST_LIMIT, &err);
    buf_release(&file);
}

int main(void)
{
    RUN(test_gguf_reads_what_it_wrote);
    RUN(test_gguf_truncations);
    RUN(test_gguf_lies);
    RUN(test_gguf_alignment_and_duplicates);
    RUN(test_safetensors_lies);
    RUN(test_safetensors_truncations);
    return harness_end();
}
