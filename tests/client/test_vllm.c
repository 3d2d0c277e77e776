/* A server kept at a version: over HTTP, against fake_vllm.py, which answers as vLLM documents. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <curl/curl.h>
#include <jansson.h>

#include "base/check.h"
#include "client/vllm.h"
#include "harness.h"

struct fake {
    pid_t pid;
    int hold; /* its standard input: closed, it ends */
    uint16_t port;
    char url[64];
};

static void fake_start(struct fake *f, uint16_t port, const char *option, const char *value)
{
    int in[2], out[2];
    char text[16] = "", number[16];
    snprintf(number, sizeof number, "%u", port);
    CHECK(pipe(in) == 0 && pipe(out) == 0);
    if ((f->pid = fork()) == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        close(out[0]);
        execlp("python3", "python3", SOURCE_DIR "/tests/client/fake_vllm.py", "--port", number, option, value, NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    f->hold = in[1];
    for (size_t n = 0; n < sizeof text - 1 && read(out[0], text + n, 1) == 1 && text[n] != '\n'; n++)
        ;
    close(out[0]);
    f->port = (uint16_t)strtoul(text, NULL, 10);
    CHECK(f->port);
    snprintf(f->url, sizeof f->url, "http://127.0.0.1:%u", f->port);
}

static void fake_stop(struct fake *f)
{
    close(f->hold);
    while (waitpid(f->pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static size_t keep(char *data, size_t size, size_t n, void *user)
{
    buf_put(user, data, size * n);
    return size * n;
}

/* Posts to /fake, or reads what was called. */
static json_t *fake_ask(const struct fake *f, const char *body)
{
    CURL *curl = curl_easy_init();
    struct buf text = {0}, url = {0};
    buf_printf(&url, "%s/fake", f->url);
    curl_easy_setopt(curl, CURLOPT_URL, buf_cstr(&url));
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, keep);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &text);
    if (body)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
    EXPECT(curl_easy_perform(curl) == CURLE_OK);
    curl_easy_cleanup(curl);
    json_t *json = json_loadb((char *)text.data, text.len, 0, NULL);
    buf_release(&text);
    buf_release(&url);
    return json;
}

static void fake_tell(const struct fake *f, const char *body)
{
    json_decref(fake_ask(f, body));
}

/* How many calls of this kind there were since the start. */
static int calls(const struct fake *f, const char *path)
{
    json_t *list = fake_ask(f, NULL);
    int n = 0;
    for (size_t i = 0; i < json_array_size(list); i++)
        n += !strcmp(json_string_value(json_array_get(json_array_get(list, i), 1)), path);
    json_decref(list);
    return n;
}

static const char *version_dir(const char *dir, const char *name, const char *config)
{
    static const char safetensors[] = "\2\0\0\0\0\0\0\0{}";
    const char *at = harness_path(dir, name);
    mkdir(at, 0700);
    file_write_durable(harness_path(at, "adapter_config.json"), config, strlen(config), 0644, NULL);
    file_write_durable(harness_path(at, "adapter_model.safetensors"), safetensors, sizeof safetensors - 1, 0644, NULL);
    return at;
}

#define GOOD "{\"r\": 8, \"lora_alpha\": 16, \"target_modules\": [\"q_proj\"]}"
#define LOAD "/v1/load_lora_adapter"
#define UNLOAD "/v1/unload_lora_adapter"

static struct vllm *server(const char *url, const char *dir, uint32_t drain_ms, const char *token, int stop_fd)
{
    struct vllm_options options = {.url = url,
                                   .token_file = token,
                                   .line = "notes",
                                   .dir = dir,
                                   .drain_ms = drain_ms,
                                   .load_ms = 20000,
                                   .stop_fd = stop_fd};
    struct vllm *v = NULL;
    struct err err = {""};
    EXPECT_ST(vllm_open(&options, &v, &err), ST_OK, &err);
    return v;
}

static void test_versions_come_and_go(void)
{
    const char *dir = harness_tmpdir();
    struct fake f;
    struct err err = {""};
    struct buf name = {0};
    version_dir(dir, "notes-v1", GOOD);
    version_dir(dir, "notes-v2", GOOD);
    fake_start(&f, 0, "--base", "/models/smol");
    struct vllm *v = server(f.url, dir, 0, NULL, -1);
    EXPECT_ST(vllm_base_name(v, &name, &err), ST_OK, &err);
    EXPECT_STR(buf_cstr(&name), "/models/smol");
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_OK, &err);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_OK, &err); /* nothing more to do */
    EXPECT_EQ(calls(&f, LOAD), 1);
    EXPECT_EQ(calls(&f, UNLOAD), 0);
    EXPECT_ST(vllm_reconcile(v, 2, &err), ST_OK, &err);
    EXPECT_EQ(calls(&f, LOAD), 2);
    EXPECT_EQ(calls(&f, UNLOAD), 1);
    fake_tell(&f, "{\"forget\": true}"); /* the server was started again: it is told again */
    EXPECT_ST(vllm_reconcile(v, 2, &err), ST_OK, &err);
    EXPECT_EQ(calls(&f, LOAD), 3);
    EXPECT_EQ(calls(&f, UNLOAD), 1);
    vllm_close(&v);
    v = server(f.url, dir, 1u << 30, NULL, -1); /* one that drains for long keeps the older one */
    version_dir(dir, "notes-v3", GOOD);
    EXPECT_ST(vllm_reconcile(v, 3, &err), ST_OK, &err);
    EXPECT_ST(vllm_reconcile(v, 3, &err), ST_OK, &err);
    EXPECT_EQ(calls(&f, LOAD), 4);
    EXPECT_EQ(calls(&f, UNLOAD), 1);
    vllm_close(&v);
    buf_release(&name);
    fake_stop(&f);
}

static void test_troubles_are_told_and_pass(void)
{
    const char *dir = harness_tmpdir();
    struct fake f;
    struct err err = {""};
    version_dir(dir, "notes-v1", GOOD);
    version_dir(dir, "notes-v2", "{\"r\": 64, \"lora_alpha\": 16, \"target_modules\": []}");
    fake_start(&f, 0, "--base", "/models/smol");
    struct vllm *v = server(f.url, dir, 0, NULL, -1);
    fake_tell(&f, "{\"fail\": 503, \"times\": 1}");
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_IO, &err);
    EXPECT(strstr(err.text, "503: made to fail"));
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_OK, &err);
    EXPECT_ST(vllm_reconcile(v, 2, &err), ST_IO, &err); /* refused: the one before stays */
    EXPECT(strstr(err.text, "500: LoRA rank 64 is greater than max_lora_rank 16."));
    EXPECT_ST(vllm_reconcile(v, 9, &err), ST_IO, &err);
    EXPECT(strstr(err.text, "404: ") && strstr(err.text, "No adapter found"));
    EXPECT_EQ(calls(&f, UNLOAD), 0);
    struct vllm *other = server(f.url, "/elsewhere", 0, NULL, -1);
    EXPECT_ST(vllm_reconcile(other, 1, &err), ST_CONFLICT, &err); /* somebody else's, and it stays */
    EXPECT_EQ(calls(&f, UNLOAD), 0);
    vllm_close(&other);
    uint16_t port = f.port;
    fake_stop(&f);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_IO, &err); /* nobody there */
    fake_start(&f, port, "--base", "/models/smol");
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_OK, &err); /* back, with nothing loaded */
    EXPECT_EQ(calls(&f, LOAD), 1);
    vllm_close(&v);
    fake_stop(&f);

    fake_start(&f, 0, "--no-updating", NULL);
    v = server(f.url, dir, 0, NULL, -1);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_UNSUPPORTED, &err);
    EXPECT(strstr(err.text, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"));
    vllm_close(&v);
    fake_stop(&f);
}

static void test_a_token_from_a_file(void)
{
    const char *dir = harness_tmpdir(), *token = harness_path(dir, "token");
    struct vllm_options options = {
        .url = "http://127.0.0.1:1", .token_file = token, .line = "notes", .dir = dir, .stop_fd = -1};
    struct vllm *v = NULL;
    struct fake f;
    struct err err = {""};
    version_dir(dir, "notes-v1", GOOD);
    fake_start(&f, 0, "--api-key", "s3cret");
    v = server(f.url, dir, 0, NULL, -1);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_IO, &err);
    EXPECT(strstr(err.text, "401"));
    vllm_close(&v);
    file_write_durable(token, "s3cret\n", 7, 0600, NULL);
    v = server(f.url, dir, 0, token, -1);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_OK, &err);
    vllm_close(&v);
    fake_stop(&f);
    file_write_durable(token, "a\nHost: b\n", 10, 0600, NULL); /* no header of somebody's own */
    EXPECT_ST(vllm_open(&options, &v, &err), ST_CONFIG, &err);
    file_write_durable(token, "s3cret\n", 7, 0644, NULL);
    EXPECT_ST(vllm_open(&options, &v, &err), ST_CONFIG, &err);
    options.token_file = NULL;
    static const char *const bad[] = {"127.0.0.1:8000", "ftp://h", "file:///etc/passwd", "http://user:pass@h"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        options.url = bad[i];
        EXPECT_ST(vllm_open(&options, &v, &err), ST_USAGE, &err);
    }
}

static void test_stopping_ends_a_call(void)
{
    const char *dir = harness_tmpdir();
    struct fake f;
    struct err err = {""};
    int stop = eventfd(1, EFD_CLOEXEC);
    version_dir(dir, "notes-v1", GOOD);
    fake_start(&f, 0, "--base", "/models/smol");
    fake_tell(&f, "{\"stall\": 600, \"times\": 1}");
    struct vllm *v = server(f.url, dir, 0, NULL, stop);
    EXPECT_ST(vllm_reconcile(v, 1, &err), ST_STOPPED, &err);
    EXPECT_EQ(calls(&f, LOAD), 0); /* the server stays as it is */
    vllm_close(&v);
    fake_stop(&f);
    close(stop);
}

static void test_lists_are_checked(void)
{
    static const char *const bad[] = {"", "[]", "{}", "{\"data\": 1}", "{\"data\": [", "nul\0l"};
    struct served_model *models = NULL;
    json_t *json = NULL;
    size_t n = 0;
    struct err err = {""};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT_ST(vllm_models((struct bytes){(const uint8_t *)bad[i], strlen(bad[i])}, &json, &models, &n, &err),
                  ST_BAD_DATA, &err);
    static const char odd[] = "{\"data\": [1, null, {}, {\"id\": 7}, {\"id\": \"a\", \"parent\": null, \"root\": []}]}";
    EXPECT_ST(vllm_models((struct bytes){(const uint8_t *)odd, sizeof odd - 1}, &json, &models, &n, &err), ST_OK, &err);
    EXPECT(n == 5 && !models[0].id && !models[3].id && !strcmp(models[4].id, "a") && !models[4].root);
    free(models);
    json_decref(json);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    curl_global_init(CURL_GLOBAL_DEFAULT);
    RUN(test_versions_come_and_go);
    RUN(test_troubles_are_told_and_pass);
    RUN(test_a_token_from_a_file);
    RUN(test_stopping_ends_a_call);
    RUN(test_lists_are_checked);
    return harness_end();
}
