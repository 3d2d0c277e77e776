/* The key table, secrets on disk, and the join file. */
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "harness.h"
#include "net/join.h"
#include "net/keys.h"

static struct name name_of(const char *s)
{
    struct name n = {{0}};
    EXPECT(name_set(&n, s, strlen(s)));
    return n;
}

static void test_add_find_revoke(void)
{
    struct keys *a = NULL, *b = NULL;
    struct curve_pair pair, second;
    struct key_grant grant;
    struct err err = {{0}};
    struct name pool = name_of("pool-a"), web = name_of("web"), only[2] = {name_of("ocaml"), name_of("ada")};
    const char *dir = harness_tmpdir();
    EXPECT_ST(keys_open(dir, &a, &err), ST_OK, &err);
    EXPECT_ST(keys_open(dir, &b, &err), ST_OK, &err);
    EXPECT_ST(keys_add(a, &pool, ROLE_WORKER, NULL, 0, &pair, &err), ST_OK, &err);
    EXPECT_ST(keys_find(a, pair.public_key.z85, &grant, &err), ST_OK, &err);
    EXPECT_ST(keys_find(b, pair.public_key.z85, &grant, &err), ST_OK, &err); /* the other process's view */
    EXPECT(grant.role == ROLE_WORKER && name_eq(&grant.name, &pool));
    EXPECT_ST(keys_find(b, pair.secret.z85, &grant, &err), ST_DENIED, &err);
    EXPECT_ST(keys_find(b, "", &grant, &err), ST_DENIED, &err);
    EXPECT_ST(keys_add(b, &pool, ROLE_OPERATOR, NULL, 0, &second, &err), ST_CONFLICT, &err);
    EXPECT_ST(keys_add(b, &web, ROLE_WORKER, only, 2, &second, &err), ST_USAGE, &err);
    EXPECT_ST(keys_add(b, &web, ROLE_PRODUCER, only, 2, &second, &err), ST_OK, &err);
    EXPECT(keys_may_push(a, &web, &only[0]) && keys_may_push(a, &web, &only[1]));
    EXPECT(!keys_may_push(a, &web, &pool) && !keys_may_push(a, &pool, &only[0]));

    EXPECT_ST(keys_revoke(a, &web, &err), ST_OK, &err);
    EXPECT_ST(keys_find(b, second.public_key.z85, &grant, &err), ST_DENIED, &err);
    EXPECT(!keys_may_push(b, &web, &only[0]));
    EXPECT_ST(keys_revoke(b, &web, &err), ST_NOT_FOUND, &err);
    struct curve_pair third;
    EXPECT_ST(keys_add(b, &web, ROLE_PRODUCER, NULL, 0, &third, &err), ST_OK, &err); /* rotation */
    EXPECT_ST(keys_find(a, third.public_key.z85, &grant, &err), ST_OK, &err);
    EXPECT_ST(keys_find(a, second.public_key.z85, &grant, &err), ST_DENIED, &err);
    EXPECT(keys_may_push(a, &web, &pool));

    struct stat at;
    EXPECT(stat(harness_path(dir, "keys.json"), &at) == 0 && (at.st_mode & 0777) == 0600);
    struct buf text = {0}; /* no secret is kept */
    EXPECT_ST(file_read(harness_path(dir, "keys.json"), 100000, &text, &err), ST_OK, &err);
    EXPECT(strstr(buf_cstr(&text), pair.public_key.z85) && !strstr(buf_cstr(&text), pair.secret.z85));
    buf_release(&text);
    keys_free(a);
    keys_free(b);
}

static void test_bad_tables_are_refused(void)
{
    static const char z[] = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7";
    static const char *const bad[] = {
        "",
        "{}",
        "[]",
        "{\"version\":2,\"keys\":[]}",
        "{\"version\":1,\"keys\":[],\"more\":1}",
        "{\"version\":1,\"keys\":[1]}",
        "{\"version\":1,\"version\":1,\"keys\":[]}",
        "{\"version\":1,\"keys\":[{\"name\":\"A\",\"role\":\"worker\",\"public\":\"%\",\"created\":1,\"revoked\":0}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"root\",\"public\":\"%\",\"created\":1,\"revoked\":0}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"worker\",\"public\":\"x\",\"created\":1,\"revoked\":0}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"worker\",\"public\":\"%\",\"created\":1,\"revoked\":-1}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"worker\",\"public\":\"%\",\"created\":1}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"producer\",\"public\":\"%\",\"created\":1,\"revoked\":0,"
        "\"domain\":[\"x\"]}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"producer\",\"public\":\"%\",\"created\":1,\"revoked\":0,"
        "\"domains\":[]}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"worker\",\"public\":\"%\",\"created\":1,\"revoked\":0},"
        "{\"name\":\"a\",\"role\":\"worker\",\"public\":\"%\",\"created\":1,\"revoked\":0}]}",
        "{\"version\":1,\"keys\":[{\"name\":\"a\",\"role\":\"worker\",\"public\":\"%\",\"created\":1,\"revoked\":0},"
        "{\"name\":\"b\",\"role\":\"operator\",\"public\":\"%\",\"created\":1,\"revoked\":0}]}",
    };
    const char *dir = harness_tmpdir(), *path = harness_path(dir, "keys.json");
    struct err err = {{0}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct buf text = {0};
        struct keys *keys = NULL;
        for (const char *c = bad[i]; *c; c++)
            *c == '%' ? buf_put(&text, z, 40) : buf_put_u8(&text, (uint8_t)*c);
        EXPECT_ST(secret_write(path, text.data ? text.data : (uint8_t *)"", text.len, &err), ST_OK, &err);
        EXPECT_ST(keys_open(dir, &keys, &err), ST_CONFIG, &err);
        EXPECT(strstr(err.text, "keys.json") != NULL);
        keys_free(keys);
        buf_release(&text);
    }
}

static void test_loose_modes_are_refused(void)
{
    const char *dir = harness_tmpdir();
    struct curve_pair pair, again;
    struct err err = {{0}};
    struct keys *keys = NULL;
    struct name op = name_of("op");
    EXPECT_ST(server_key_read(dir, &pair, &err), ST_NOT_FOUND, &err);
    EXPECT_ST(server_key_create(dir, &pair, &err), ST_OK, &err);
    EXPECT_ST(server_key_create(dir, &pair, &err), ST_CONFLICT, &err);
    EXPECT_ST(server_key_read(dir, &again, &err), ST_OK, &err);
    EXPECT(!memcmp(&pair, &again, sizeof pair));
    EXPECT_ST(keys_open(dir, &keys, &err), ST_OK, &err);
    EXPECT_ST(keys_add(keys, &op, ROLE_OPERATOR, NULL, 0, &again, &err), ST_OK, &err);
    static const mode_t loose[] = {0640, 0604, 0660, 0601};
    for (size_t i = 0; i < sizeof loose / sizeof loose[0]; i++) {
        struct key_grant grant;
        EXPECT(chmod(harness_path(dir, "server.key"), loose[i]) == 0);
        EXPECT_ST(server_key_read(dir, &pair, &err), ST_CONFIG, &err);
        EXPECT(strstr(err.text, "chmod 600") != NULL);
        EXPECT(chmod(harness_path(dir, "keys.json"), loose[i]) == 0);
        EXPECT_ST(keys_find(keys, again.public_key.z85, &grant, &err), ST_AGAIN, &err);
        EXPECT(chmod(harness_path(dir, "keys.json"), 0600) == 0);
        EXPECT_ST(keys_find(keys, again.public_key.z85, &grant, &err), ST_OK, &err);
    }
    EXPECT(chmod(harness_path(dir, "server.key"), 0600) == 0);
    EXPECT_ST(secret_write(harness_path(dir, "server.key"), "short\n", 6, &err), ST_OK, &err);
    EXPECT_ST(server_key_read(dir, &pair, &err), ST_CONFIG, &err);
    EXPECT_ST(secret_read(dir, 100, &(struct buf){0}, &err), ST_CONFIG, &err); /* a directory */
    keys_free(keys);
}

/* What root hands to another user through its group, as systemd and Kubernetes do. */
static enum status read_as_user(const char *path, mode_t mode)
{
    enum { NOBODY = 65534 };
    EXPECT(chmod(path, mode) == 0 && chown(path, 0, NOBODY) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct buf text = {0};
        bool switched = setgroups(0, NULL) == 0 && setgid(NOBODY) == 0 && setuid(NOBODY) == 0;
        _exit(switched ? -secret_read(path, 100, &text, NULL) : 127);
    }
    int code = 0;
    EXPECT(waitpid(pid, &code, 0) == pid && WIFEXITED(code) && WEXITSTATUS(code) != 127);
    return (enum status) - WEXITSTATUS(code);
}

static void test_secret_from_root(void)
{
    const char *dir = harness_tmpdir(), *path = harness_path(dir, "secret");
    struct err err;
    if (geteuid() != 0) /* only root can play root; the suite is run as root somewhere */
        return;
    EXPECT(chmod(dir, 0755) == 0);
    EXPECT_ST(secret_write(path, "secret\n", 7, &err), ST_OK, &err);
    EXPECT_EQ(read_as_user(path, 0440), ST_OK);
    EXPECT_EQ(read_as_user(path, 0640), ST_OK);
    EXPECT_EQ(read_as_user(path, 0660), ST_CONFIG);
    EXPECT_EQ(read_as_user(path, 0444), ST_CONFIG);
    EXPECT_EQ(read_as_user(path, 0450), ST_CONFIG);
    struct buf text = {0};
    EXPECT(chmod(path, 0640) == 0);
    EXPECT_ST(secret_read(path, 100, &text, &err), ST_CONFIG, &err); /* root's own reading is as strict as ever */
    buf_release(&text);
}

static void write_text(const char *path, const char *text)
{
    struct err err;
    EXPECT_ST(secret_write(path, text, strlen(text), &err), ST_OK, &err);
}

static void test_join_file(void)
{
    const char *path = harness_path(harness_tmpdir(), "pool-a.join");
    struct join join = {.line = name_of("notes"), .port = 7400, .role = ROLE_WORKER, .name = name_of("pool-a")}, back;
    struct curve_pair pair;
    struct err err = {{0}};
    curve_pair_new(&pair);
    join.server = pair.public_key;
    join.secret = pair.secret;
    memset(join.root.b, 7, sizeof join.root.b);
    snprintf(join.host, sizeof join.host, "coordinator.example.org");
    EXPECT_ST(join_write(path, &join, &err), ST_OK, &err);
    EXPECT_ST(join_read(path, &back, &err), ST_OK, &err);
    EXPECT(!memcmp(&join, &back, sizeof join));
    struct buf text = {0};
    EXPECT_ST(secret_read(path, 10000, &text, &err), ST_OK, &err);
    buf_cstr(&text);

    EXPECT(chmod(path, 0644) == 0);
    EXPECT_ST(join_read(path, &back, &err), ST_CONFIG, &err);

    struct buf changed = {0};
    const char *lines = strchr((char *)text.data, '\n') + 1;
    buf_printf(&changed, "alluvium-join 2\n%s", lines);
    write_text(path, buf_cstr(&changed));
    EXPECT_ST(join_read(path, &back, &err), ST_CONFIG, &err);
    EXPECT(strstr(err.text, "pool-a.join:1:") != NULL);
    static const struct {
        const char *more, *words;
    } wrong[] = {{"port = 7400\n", ":10: port stands twice"},
                 {"colour = red\n", ":10: unknown key"},
                 {"nothing\n", ":10: is not"}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        buf_clear(&changed);
        buf_printf(&changed, "%s%s", (char *)text.data, wrong[i].more);
        write_text(path, buf_cstr(&changed));
        EXPECT_ST(join_read(path, &back, &err), ST_CONFIG, &err);
        EXPECT(strstr(err.text, wrong[i].words) != NULL);
    }
    for (int skip = 0; skip < 8; skip++) { /* every key is needed, and no malformed value passes */
        for (int empty = 0; empty < 2; empty++) {
            int at = 0;
            buf_clear(&changed);
            buf_printf(&changed, "alluvium-join 1\n# a comment\n\n");
            for (const char *l = lines; *l; l = strchr(l, '\n') + 1, at++) {
                if (at != skip)
                    buf_printf(&changed, "%.*s\n", (int)strcspn(l, "\n"), l);
                else if (empty)
                    buf_printf(&changed, "%.*s = /?\n", (int)strcspn(l, " "), l);
            }
            EXPECT_EQ(at, 8);
            write_text(path, buf_cstr(&changed));
            EXPECT_ST(join_read(path, &back, &err), ST_CONFIG, &err);
        }
    }
    EXPECT_ST(join_read("/nonexistent/x", &back, &err), ST_NOT_FOUND, &err);
    buf_release(&changed);
    buf_release(&text);
}

static void test_addresses(void)
{
    char out[ENDPOINT_SIZE];
    struct err err = {{0}};
    EXPECT_ST(join_endpoint("127.0.0.1", 7400, PLANE_BULK, out, &err), ST_OK, &err);
    EXPECT_STR(out, "tcp://127.0.0.1:7404");
    EXPECT_ST(join_endpoint("[::1]", 7400, PLANE_INGEST, out, &err), ST_OK, &err);
    EXPECT_ST(join_endpoint("ipc:/run/alluvium", 0, PLANE_WORK, out, &err), ST_OK, &err);
    EXPECT_STR(out, "ipc:///run/alluvium/work.sock");
    static const char *const bad[] = {"",           "a b",  "a;b", "a/b",     "a:1",
                                      "inproc://x", "[::1", "-x",  "ipc:rel", "ipc:/a*b"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        EXPECT_ST(join_endpoint(bad[i], 7400, PLANE_WORK, out, &err), ST_CONFIG, &err);
    EXPECT_ST(join_endpoint("h", 0, PLANE_WORK, out, &err), ST_CONFIG, &err);
    EXPECT_ST(join_endpoint("h", 65532, PLANE_BULK, out, &err), ST_CONFIG, &err);
}

int main(void)
{
    hash_start();
    RUN(test_add_find_revoke);
    RUN(test_bad_tables_are_refused);
    RUN(test_loose_modes_are_refused);
    RUN(test_secret_from_root);
    RUN(test_join_file);
    RUN(test_addresses);
    return harness_end();
}
