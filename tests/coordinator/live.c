#include "live.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/hash.h"
#include "base/log.h"
#include "net/keys.h"
#include "proto/codec.h"

void live_main(int argc, char **argv)
{
    hash_start();
    if (argc != 6 || strcmp(argv[1], "--serve"))
        return;
    struct err err;
    struct coordinator_options options = {.dir = argv[2],
                                          .port = (uint16_t)strtoul(argv[3], NULL, 10),
                                          .reserve_bytes = strtoull(argv[4], NULL, 10),
                                          .http_port = (uint16_t)strtoul(argv[5], NULL, 10),
                                          .stop_fd = -1};
    enum status st = coordinator_run(&options, &err);
    if (st)
        fprintf(stderr, "%s: %s\n", status_name(st), err.text);
    exit(st ? 10 - (int)st : 0);
}

static const struct arch tiny = {.kind = ARCH_LLAMA,
                                 .n_layers = 2,
                                 .d_model = 32,
                                 .d_ff = 64,
                                 .n_heads = 4,
                                 .n_kv_heads = 2,
                                 .head_dim = 8,
                                 .vocab_size = 256,
                                 .context_max = 512,
                                 .rope_theta = 1e4f,
                                 .rms_eps = 1e-5f,
                                 .tied_head = true};
static const struct arch *used = &tiny;

void live_arch(const struct arch *arch)
{
    used = arch;
}

void live_card(struct card *card, struct adapter_shape *shape, struct settings *settings)
{
    *card = (struct card){.base_name = "made-up"};
    hash_blake2b("base", 4, &card->base);
    hash_blake2b("tokenizer", 9, &card->tokenizer);
    card->arch = *used;
    settings_default(settings);
    enum status st = adapter_shape_of(&card->arch, settings->rank, settings->alpha, LORA_ALL, shape, NULL);
    CHECK_EQ(st, ST_OK);
}

enum status live_init(const char *dir, uint16_t port, const struct settings *settings, const char *const *anchors,
                      uint32_t n_anchors, struct coordinator_init_report *report, struct err *err)
{
    struct card card;
    struct adapter_shape shape;
    struct settings own;
    live_card(&card, &shape, &own);
    struct coordinator_init_options options = {.dir = dir,
                                               .line = "test-line",
                                               .card = &card,
                                               .shape = &shape,
                                               .settings = settings ? settings : &own,
                                               .address = "127.0.0.1",
                                               .port = port,
                                               .seed = 1,
                                               .anchors = anchors,
                                               .n_anchors = n_anchors};
    return coordinator_init(&options, report, err);
}

enum status live_key(const char *dir, const char *operator_join, enum role role, const char *name,
                     const char *join_path, struct err *err)
{
    struct join join;
    struct keys *keys = NULL;
    struct curve_pair pair;
    enum status st = join_read(operator_join, &join, err);
    if (!st)
        st = keys_open(dir, &keys, err);
    join.role = role;
    name_set(&join.name, name, strlen(name));
    if (!st)
        st = keys_add(keys, &join.name, role, NULL, 0, &pair, err);
    if (!st) {
        join.secret = pair.secret;
        st = join_write(join_path, &join, err);
    }
    keys_free(keys);
    return st;
}

uint16_t live_port(void)
{
    return (uint16_t)(10000 + (getpid() % 2200) * 10); /* below the ephemeral ports */
}

static uint16_t http_port;

void live_http(uint16_t port)
{
    http_port = port;
}

pid_t live_start(const char *dir, uint16_t port, uint64_t reserve, const char *failpoints, const char *log)
{
    char self[] = "/proc/self/exe", port_text[16], reserve_text[32], http_text[16];
    snprintf(port_text, sizeof port_text, "%u", port);
    snprintf(reserve_text, sizeof reserve_text, "%llu", (unsigned long long)reserve);
    snprintf(http_text, sizeof http_text, "%u", http_port);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* it must not outlive a test that was stopped */
    if (failpoints)
        setenv("ALLUVIUM_FAILPOINTS", failpoints, 1);
    int fd = open(log ? log : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd >= 0)
        dup2(fd, 2);
    char *argv[] = {self, (char[]){"--serve"}, strdup(dir), port_text, reserve_text, http_text, NULL};
    execv(self, argv);
    _exit(127);
}

int live_wait(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        CHECK_EQ(errno, EINTR);
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

int live_end(pid_t pid, int signal_no)
{
    kill(pid, signal_no);
    return live_wait(pid);
}

/* ---- a client --------------------------------------------------------------------------------------------------- */

enum status client_ask(struct client *c, uint16_t verb, const ProtobufCMessage *message, int timeout_ms,
                       ProtobufCMessage **reply, struct err *err)
{
    ProtobufCMessage *own = NULL;
    enum status st = conn_call(c->conn, verb, message, timeout_ms, &own, err);
    if (st)
        return st;
    if (reply)
        *reply = own;
    else
        codec_free(own);
    return ST_OK;
}

static void fill_hello(struct client *c, Alv__Hello *hello)
{
    alv__hello__init(hello);
    hello->protocol_min = hello->protocol_max = PROTOCOL_VERSION;
    hello->instance = (ProtobufCBinaryData){sizeof c->instance, c->instance};
    hello->boot = c->boot;
    hello->line = c->join.line.s;
    hello->software = (char *)(uintptr_t) "test";
    if (c->join.role == ROLE_WORKER) {
        struct card card;
        struct adapter_shape shape;
        struct settings settings;
        live_card(&card, &shape, &settings);
        card_digest_trained(&card, &c->card);
        hello->card_digest = (ProtobufCBinaryData){DIGEST_LEN, c->card.b};
    }
}

static enum status take_hello(void *user, const Alv__HelloOk *ok, struct err *err)
{
    struct client *c = user;
    (void)err;
    c->session = ok->session_counter;
    memcpy(c->incarnation, ok->session_incarnation.data, sizeof c->incarnation);
    return ST_OK;
}

enum status client_hello(struct client *c, uint64_t known_session, const uint8_t *known_incarnation, int timeout_ms,
                         struct err *err)
{
    Alv__Hello hello;
    ProtobufCMessage *reply;
    fill_hello(c, &hello);
    hello.session_counter = known_session;
    if (known_session)
        hello.session_incarnation = (ProtobufCBinaryData){16, (uint8_t *)(uintptr_t)known_incarnation};
    enum status st = client_ask(c, VERB_HELLO, &hello.base, timeout_ms, &reply, err);
    if (!st) {
        take_hello(c, (const Alv__HelloOk *)reply, NULL);
        codec_free(reply);
    }
    return st;
}

enum status client_open(struct client *c, const char *join_path, enum plane plane, int timeout_ms, struct err *err)
{
    void *zmq = zmq_ctx_new();
    CHECK(zmq);
    enum status st = client_open_on(zmq, c, join_path, plane, timeout_ms, err);
    c->zmq = zmq;
    return st;
}

enum status client_open_on(void *zmq, struct client *c, const char *join_path, enum plane plane, int timeout_ms,
                           struct err *err)
{
    *c = (struct client){.boot = 1};
    random_bytes(c->instance, sizeof c->instance);
    enum status st = join_read(join_path, &c->join, err);
    if (st)
        return st;
    if ((st = conn_open(zmq, &c->join, plane, -1, &c->conn, err)))
        return st;
    Alv__Hello hello;
    fill_hello(c, &hello);
    conn_set_hello(c->conn, &hello, take_hello, c); /* again after each reconnect */
    return client_hello(c, 0, NULL, timeout_ms, err);
}

void client_close(struct client *c)
{
    conn_close(c->conn);
    if (c->zmq)
        zmq_ctx_term(c->zmq);
    join_wipe(&c->join);
    *c = (struct client){0};
}

enum status client_control(const char *join_path, const Alv__Control *control, char **json, struct err *err)
{
    struct client c;
    ProtobufCMessage *reply;
    uint8_t token[16];
    Alv__Control once = *control;
    random_bytes(token, sizeof token);
    once.token = (ProtobufCBinaryData){sizeof token, token};
    enum status st = client_open(&c, join_path, PLANE_CONTROL, 20000, err);
    if (!st)
        st = client_ask(&c, VERB_CONTROL, &once.base, 10000, &reply, err);
    if (!st) {
        if (json)
            *json = strdup(((const Alv__ControlReply *)reply)->json);
        codec_free(reply);
    }
    client_close(&c);
    return st;
}

enum status client_domain(const char *join_path, const char *domain, struct err *err)
{
    Alv__Control control = ALV__CONTROL__INIT;
    control.verb = ALV__CONTROL_VERB__CONTROL_DOMAIN_SET;
    control.domain = (char *)(uintptr_t)domain;
    return client_control(join_path, &control, NULL, err);
}

enum status client_push_open(struct client *c, const char *domain, const char *source, int timeout_ms,
                             Alv__PushOpened **out, struct err *err)
{
    Alv__PushOpen open = ALV__PUSH_OPEN__INIT;
    open.domain = (char *)(uintptr_t)domain;
    open.source = (char *)(uintptr_t)source;
    return client_ask(c, VERB_PUSH_OPEN, &open.base, timeout_ms, (ProtobufCMessage **)out, err);
}
