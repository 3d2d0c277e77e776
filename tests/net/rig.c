#include "rig.h"

#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "base/check.h"
#include "base/hash.h"
#include "harness.h"

static uint8_t zeroes[32];

static void *serve(void *arg)
{
    struct rig *rig = arg;
    struct err err;
    unsigned ready = 0;
    for (;;) {
        struct incoming in;
        CHECK(endpoint_wait(rig->endpoint, true, &rig->stop_fd, 1, -1, &ready, &err) == ST_OK);
        if (ready)
            return NULL;
        while (endpoint_recv(rig->endpoint, &in, &err) == ST_OK) {
            atomic_fetch_add(&rig->seen, 1);
            bool go_on = rig->handler(rig, &in);
            incoming_release(&in);
            if (!go_on) {
                endpoint_close(rig->endpoint);
                while (endpoint_open(&rig->config, &rig->endpoint, &err) == ST_IO)
                    ; /* the ports are freed by the library's own thread */
            }
        }
    }
}

void rig_start(struct rig *rig, const char *host, rig_handler *handler, void *user)
{
    struct err err = {{0}};
    struct rng rng;
    *rig = (struct rig){.handler = handler, .user = user, .stop_fd = eventfd(0, EFD_CLOEXEC)};
    rig->zmq = zmq_ctx_new();
    rig->dir = harness_tmpdir();
    rig->metrics = metrics_new();
    CHECK(keys_open(rig->dir, &rig->keys, &err) == ST_OK);
    CHECK(zap_start(rig->zmq, rig->keys, rig->metrics, &rig->zap, &err) == ST_OK);
    rig->config = (struct endpoint_config){.zmq = rig->zmq,
                                           .keys = rig->keys,
                                           .host = host ? host : "127.0.0.1",
                                           .planes = (1u << PLANES) - 1,
                                           .metrics = rig->metrics};
    CHECK(server_key_create(rig->dir, &rig->config.server, &err) == ST_OK);
    random_bytes(&rng, sizeof rng);
    enum status st = ST_IO;
    for (int tries = 0; st == ST_IO && tries < 100; tries++) { /* below the ephemeral ports */
        rig->config.port = host ? 0 : (uint16_t)(20000 + 8 * rng_below(&rng, 1500));
        st = endpoint_open(&rig->config, &rig->endpoint, &err);
    }
    if (st)
        fprintf(stderr, "rig: %s\n", err.text);
    CHECK(st == ST_OK);
    CHECK(pthread_create(&rig->thread, NULL, serve, rig) == 0);
}

void rig_stop(struct rig *rig)
{
    uint64_t one = 1;
    CHECK(write(rig->stop_fd, &one, sizeof one) == sizeof one);
    CHECK(pthread_join(rig->thread, NULL) == 0);
    endpoint_close(rig->endpoint);
    zap_stop(rig->zap);
    keys_free(rig->keys);
    metrics_free(rig->metrics);
    zmq_ctx_term(rig->zmq);
    close(rig->stop_fd);
}

struct join rig_join(struct rig *rig, const char *name, enum role role, const char *only_domain)
{
    struct join join = {.port = rig->config.port, .server = rig->config.server.public_key, .role = role};
    struct curve_pair pair;
    struct name domain;
    struct err err = {{0}};
    CHECK(name_set(&join.line, "notes", 5) && name_set(&join.name, name, strlen(name)));
    CHECK(!only_domain || name_set(&domain, only_domain, strlen(only_domain)));
    snprintf(join.host, sizeof join.host, "%s", rig->config.host);
    CHECK(keys_add(rig->keys, &join.name, role, only_domain ? &domain : NULL, only_domain ? 1 : 0, &pair, &err) ==
          ST_OK);
    join.secret = pair.secret;
    return join;
}

void rig_hello_ok(struct rig *rig, const struct incoming *in)
{
    Alv__HelloOk ok = ALV__HELLO_OK__INIT;
    ok.protocol = 1;
    ok.line = (char *)(uintptr_t)in->key.s;
    ok.session_incarnation = ok.previous_incarnation = (ProtobufCBinaryData){16, zeroes};
    ok.root_key = (ProtobufCBinaryData){32, zeroes};
    endpoint_send(rig->endpoint, &in->from, VERB_HELLO_OK, in->request_id, &ok.base, NULL);
}

void rig_fill_hello(Alv__Hello *hello)
{
    alv__hello__init(hello);
    hello->protocol_min = hello->protocol_max = 1;
    hello->instance = (ProtobufCBinaryData){16, zeroes};
}
