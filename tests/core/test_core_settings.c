/* Settings: defaults hold their own rules, bounds are kept, files are refused with their line. */
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "coordinator/core/settings.h"
#include "harness.h"

static void test_defaults_are_within_their_bounds(void)
{
    struct settings s;
    struct err err;
    settings_default(&s);
    EXPECT_ST(settings_check(&s, &err), ST_OK, &err);
    unsigned n = 0;
    for (const struct setting_info *info; (info = settings_info(n)); n++) {
        char value[64];
        settings_value(&s, info->name, value, sizeof value);
        EXPECT_ST(settings_set(&s, info->name, value, &err), ST_OK, &err);
        EXPECT(strlen(info->reason) > 0);
    }
    EXPECT(n > 30);
    EXPECT_EQ(s.segment_bytes, 2048);
    EXPECT_EQ(s.looks[2], 256);
    EXPECT_EQ(s.backlog_bytes, 1ull << 30);
}

static void test_refusals(void)
{
    struct settings s;
    struct err err;
    settings_default(&s);
    EXPECT_ST(settings_set(&s, "speed", "1", &err), ST_CONFIG, &err);
    EXPECT_ST(settings_set(&s, "rank", "0", &err), ST_CONFIG, &err);
    EXPECT_ST(settings_set(&s, "rank", "257", &err), ST_CONFIG, &err);
    EXPECT_ST(settings_set(&s, "rank", "8.5", &err), ST_CONFIG, &err);
    EXPECT_ST(settings_set(&s, "rank", "", &err), ST_CONFIG, &err);
    EXPECT_ST(settings_set(&s, "lr", "nan", &err), ST_CONFIG, &err);
    EXPECT_EQ(s.rank, 16);
    EXPECT_ST(settings_set(&s, "backlog_sample", "true", &err), ST_OK, &err);
    EXPECT(s.backlog_sample);
    s.anchor_permille = 900;
    s.history_permille = 100;
    EXPECT_ST(settings_check(&s, &err), ST_CONFIG, &err);
    settings_default(&s);
    s.window_tokens = 513;
    EXPECT_ST(settings_fit(&s, 513, &err), ST_OK, &err);
    EXPECT_ST(settings_fit(&s, 512, &err), ST_CONFIG, &err);
    EXPECT(strstr(err.text, "window_tokens = 513"));
    EXPECT_ST(settings_fit(&s, 511, &err), ST_CONFIG, &err);
    EXPECT(strstr(err.text, "seq_tokens = 512"));
}

static void test_file(void)
{
    struct settings s;
    struct err err;
    const char *path = harness_path(harness_tmpdir(), "line.conf");
    settings_default(&s);
    const char good[] = "# a line\n rank = 8  # small\n\nlr=0.002\n";
    EXPECT_ST(file_write_durable(path, good, strlen(good), 0600, &err), ST_OK, &err);
    EXPECT_ST(settings_read(path, &s, &err), ST_OK, &err);
    EXPECT_EQ(s.rank, 8);
    EXPECT_NEAR(s.lr, 0.002, 1e-12);
    const char bad[] = "rank = 4\nranc = 8\n";
    EXPECT_ST(file_write_durable(path, bad, strlen(bad), 0600, &err), ST_OK, &err);
    EXPECT_ST(settings_read(path, &s, &err), ST_CONFIG, &err);
    EXPECT(strstr(err.text, ":2") && strstr(err.text, "ranc"));
    EXPECT_EQ(s.rank, 8); /* untouched */
}

int main(void)
{
    RUN(test_defaults_are_within_their_bounds);
    RUN(test_refusals);
    RUN(test_file);
    return harness_end();
}
