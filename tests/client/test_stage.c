/* The subscriber's directory and its hook, without a network. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapter/adapter.h"
#include "base/hash.h"
#include "client/serve.h"
#include "client/stage.h"
#include "client/subscribe.h"
#include "harness.h"

static void fill_manifest(struct manifest *m, uint64_t number)
{
    *m = (struct manifest){.number = number, .rank = 16, .alpha = 32, .targets = LORA_ALL};
    name_set(&m->line, "clinic", 6);
}

/* Without files to fetch: no connection is touched. */
static enum status put_version(struct stage *stage, uint64_t number, struct err *err)
{
    struct manifest m;
    fill_manifest(&m, number);
    struct stage_files files = {.manifest = &m,
                                .manifest_bytes = {(const uint8_t *)"bytes", 5},
                                .signature = {(const uint8_t *)"sign", 4},
                                .base_name = "base \"x\"",
                                .forms = FORM_PEFT | FORM_GGUF};
    return stage_put(stage, &files, NULL, NULL, err);
}

static bool there(const char *dir, const char *name)
{
    return access(harness_path(dir, name), F_OK) == 0;
}

static void test_versions_are_swapped_and_pruned(void)
{
    const char *dir = harness_path(harness_tmpdir(), "adapters");
    struct stage *stage = NULL, *second = NULL;
    struct name line;
    struct err err;
    char target[64] = "";
    name_set(&line, "clinic", 6);
    EXPECT_ST(stage_open(dir, &line, &stage, &err), ST_OK, &err);
    EXPECT_ST(stage_open(dir, &line, &second, &err), ST_CONFLICT, &err);
    for (uint64_t n = 1; n <= 5; n++) {
        EXPECT_ST(put_version(stage, n, &err), ST_OK, &err);
        EXPECT_ST(stage_swap(stage, n, &err), ST_OK, &err);
        stage_prune(stage, n, 2);
    }
    EXPECT_ST(put_version(stage, 5, &err), ST_OK, &err); /* again is fine */
    EXPECT(readlink(harness_path(dir, "current"), target, sizeof target - 1) > 0);
    EXPECT_STR(target, "clinic-v5");
    EXPECT(there(dir, "current/manifest.json") && there(dir, "clinic-v4/manifest.sig") && there(dir, "clinic-v3"));
    EXPECT(!there(dir, "clinic-v2") && !there(dir, "clinic-v1"));
    stage_close(&stage);
    EXPECT_ST(stage_open(dir, &line, &stage, &err), ST_OK, &err);
    struct buf state = {0};
    EXPECT_ST(stage_load_state(stage, 100, &state, &err), ST_OK, &err);
    EXPECT_EQ(state.len, 0);
    EXPECT_ST(stage_save_state(stage, (struct bytes){(const uint8_t *)"abc", 3}, &err), ST_OK, &err);
    EXPECT_ST(stage_load_state(stage, 100, &state, &err), ST_OK, &err);
    EXPECT_EQ(state.len, 3);
    buf_clear(&state); /* an emptied file is not that of a subscriber that has seen nothing */
    EXPECT_EQ(truncate(harness_path(dir, ".alluvium/state"), 0), 0);
    EXPECT_ST(stage_load_state(stage, 100, &state, &err), ST_CORRUPT, &err);
    buf_release(&state);
    stage_close(&stage);
}

static void test_a_directory_is_one_subscriber(void)
{
    const char *dir = harness_tmpdir();
    uint8_t first[16], again[16], torn[16];
    uint64_t boot, later, last;
    struct stage *stage = NULL;
    struct name line;
    struct err err;
    name_set(&line, "clinic", 6);
    EXPECT_ST(stage_open(dir, &line, &stage, &err), ST_OK, &err);
    EXPECT_ST(stage_identity(stage, first, &boot, &err), ST_OK, &err);
    stage_close(&stage);
    EXPECT_ST(stage_open(dir, &line, &stage, &err), ST_OK, &err);
    EXPECT_ST(stage_identity(stage, again, &later, &err), ST_OK, &err);
    EXPECT(memcmp(first, again, 16) == 0 && later > boot);
    EXPECT_EQ(truncate(harness_path(dir, ".alluvium/instance"), 7), 0); /* damaged: a new one */
    EXPECT_ST(stage_identity(stage, torn, &last, &err), ST_OK, &err);
    EXPECT(memcmp(first, torn, 16) != 0 && last > 0);
    stage_close(&stage);
}

static void test_a_changed_file_is_noticed(void)
{
    const char *dir = harness_path(harness_tmpdir(), "changed");
    struct stage *stage = NULL;
    struct name line;
    struct err err;
    name_set(&line, "clinic", 6);
    EXPECT_ST(stage_open(dir, &line, &stage, &err), ST_OK, &err);
    EXPECT(mkdir(harness_path(dir, "clinic-v1"), 0755) == 0);
    const char *path = harness_path(dir, "clinic-v1/adapter.gguf");
    EXPECT_ST(file_write_durable(path, "right", 5, 0644, &err), ST_OK, &err);
    struct manifest m;
    fill_manifest(&m, 1);
    m.n_files = 1;
    m.files[0] = (struct manifest_file){.kind = FILE_GGUF, .bytes = 5};
    hash_blake2b("right", 5, &m.files[0].blake2b);
    hash_sha256("right", 5, m.files[0].sha256);
    struct stage_files files = {.manifest = &m, .forms = FORM_GGUF};
    EXPECT_ST(stage_put(stage, &files, NULL, NULL, &err), ST_OK, &err);
    EXPECT_ST(file_write_durable(path, "wrong", 5, 0644, &err), ST_OK, &err);
    EXPECT_ST(stage_put(stage, &files, NULL, NULL, &err), ST_CORRUPT, &err);
    stage_close(&stage);
}

static void test_the_config_names_the_same_modules_as_the_adapter(void)
{
    struct buf ours = {0}, theirs = {0};
    for (uint32_t targets = 1; targets <= LORA_ALL; targets++) {
        struct adapter_shape shape = {.rank = 16, .alpha = 32, .targets = targets};
        struct manifest m;
        fill_manifest(&m, 1);
        m.targets = targets;
        buf_clear(&ours);
        buf_clear(&theirs);
        subscribe_peft_config(&m, "a \"b\"", &ours);
        adapter_peft_config(&shape, "a \"b\"", &theirs);
        /* the same but for white space */
        size_t i = 0, k = 0;
        bool same = true;
        for (;; i++, k++) {
            while (i < ours.len && strchr(" \n", ours.data[i]))
                i++;
            while (k < theirs.len && strchr(" \n", theirs.data[k]))
                k++;
            if (i >= ours.len || k >= theirs.len)
                break;
            same = same && ours.data[i] == theirs.data[k];
        }
        EXPECT(same && i >= ours.len && k >= theirs.len);
    }
    buf_release(&ours);
    buf_release(&theirs);
}

static const char *script(const char *name, const char *text)
{
    const char *path = harness_path(harness_tmpdir(), name);
    struct err err;
    EXPECT_ST(file_write_durable(path, text, strlen(text), 0755, &err), ST_OK, &err);
    return path;
}

static void test_the_hook(void)
{
    struct err err;
    char dir[4200], out[4300], text[5000];
    snprintf(dir, sizeof dir, "%s/x; touch \"$HOME\"/pwned", harness_tmpdir()); /* never seen by a shell */
    snprintf(out, sizeof out, "%s/hook.out", harness_tmpdir());
    snprintf(text, sizeof text,
             "#!/bin/sh\nprintf '%%s|%%s|%%s|%%s' \"$ALLUVIUM_VERSION\" \"$ALLUVIUM_PREVIOUS\" "
             "\"$ALLUVIUM_LINE\" \"$ALLUVIUM_DIR\" > %s\n",
             out);
    struct hook_facts facts = {
        .line = "clinic", .dir = dir, .peft = "p", .gguf = "g", .version = 7, .previous = 6, .has_previous = 1};
    setenv("ALLUVIUM_VERSION", "1", 1); /* an inherited one does not hide ours */
    EXPECT_ST(hook_run(script("ok.sh", text), &facts, 10000, -1, &err), ST_OK, &err);
    unsetenv("ALLUVIUM_VERSION");
    struct buf got = {0};
    EXPECT_ST(file_read(out, 5000, &got, &err), ST_OK, &err);
    snprintf(text, sizeof text, "7|6|clinic|%s", dir);
    EXPECT_STR(buf_cstr(&got), text);
    buf_release(&got);
    EXPECT_ST(hook_run(script("bad.sh", "#!/bin/sh\nexit 3\n"), &facts, 10000, -1, &err), ST_IO, &err);
    EXPECT(strstr(err.text, "status 3") != NULL);
    EXPECT_ST(hook_run(script("slow.sh", "#!/bin/sh\nsleep 1000\n"), &facts, 100, -1, &err), ST_TIMEOUT, &err);
    EXPECT_ST(hook_run("/nonexistent/hook", &facts, 100, -1, &err), ST_IO, &err);
    int fds[2];
    EXPECT(pipe(fds) == 0 && write(fds[1], "", 1) == 1);
    EXPECT_ST(hook_run(script("slow.sh", "#!/bin/sh\nsleep 1000\n"), &facts, 100000, fds[0], &err), ST_STOPPED, &err);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    hash_start();
    RUN(test_versions_are_swapped_and_pruned);
    RUN(test_a_directory_is_one_subscriber);
    RUN(test_a_changed_file_is_noticed);
    RUN(test_the_config_names_the_same_modules_as_the_adapter);
    RUN(test_the_hook);
    return harness_end();
}
