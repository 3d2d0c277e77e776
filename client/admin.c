/* Sends hello, control; receives hello-ok, control-reply, error. */
#include "client/admin.h"

#include <errno.h>
#include <string.h>
#include <zmq.h>

#include "base/hash.h"
#include "client/hello.h"
#include "net/request.h"

static enum status on_hello(void *user, const Alv__HelloOk *ok, struct err *err)
{
    return hello_check(user, ok, err);
}

enum status admin_call(const struct join *join, Alv__Control *control, int timeout_ms, int stop_fd, struct buf *json,
                       struct err *err)
{
    if (join->role != ROLE_OPERATOR)
        return err_set(err, ST_DENIED, "the join file is a %s's; this takes an operator's (operator.join of the line)",
                       role_name(join->role));
    struct join at = *join;
    struct hello hello;
    struct conn *conn = NULL;
    ProtobufCMessage *reply = NULL;
    uint8_t token[16];
    hello_init(&hello, join);
    random_bytes(token, sizeof token);
    control->token = (ProtobufCBinaryData){sizeof token, token};
    void *zmq = zmq_ctx_new();
    if (!zmq)
        return err_set(err, ST_IO, "no ZeroMQ context: %s", zmq_strerror(errno));
    enum status st = conn_open(zmq, join, PLANE_CONTROL, stop_fd, &conn, err);
    if (st != ST_OK)
        goto done;
    conn_set_hello(conn, &hello.message, on_hello, &at);
    st = conn_call(conn, VERB_CONTROL, &control->base, timeout_ms, &reply, err);
    if (st == ST_OK) {
        const char *text = ((const Alv__ControlReply *)reply)->json;
        buf_put(json, text, strlen(text));
    }
done:
    control->token = (ProtobufCBinaryData){0};
    codec_free(reply);
    conn_close(conn);
    zmq_ctx_term(zmq);
    join_wipe(&at);
    return st;
}
