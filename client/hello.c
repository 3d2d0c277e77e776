#include "client/hello.h"

#include <string.h>

#include "base/hash.h"
#include "proto/frame.h"

void hello_init(struct hello *hello, const struct join *join)
{
    memset(hello, 0, sizeof *hello);
    alv__hello__init(&hello->message);
    hello->line = join->line;
    hash_start();
    random_bytes(hello->instance, sizeof hello->instance);
    hello->message.protocol_min = PROTOCOL_MIN;
    hello->message.protocol_max = PROTOCOL_VERSION;
    hello->message.line = hello->line.s;
    hello->message.software = (char *)(uintptr_t) "alluvium " ALLUVIUM_VERSION;
    hello->message.boot = 1;
    hello->message.instance = (ProtobufCBinaryData){sizeof hello->instance, hello->instance};
    hello->message.session_incarnation = (ProtobufCBinaryData){sizeof hello->incarnation, hello->incarnation};
}

enum status hello_check(const struct join *join, const Alv__HelloOk *ok, struct err *err)
{
    if (!protocol_pick(ok->protocol, ok->protocol))
        return err_set(
            err, ST_UNSUPPORTED,
            "the coordinator at %s:%u answers in protocol %u, this program speaks %d to %d: run releases next to "
            "each other",
            join->host, join->port, ok->protocol, PROTOCOL_MIN, PROTOCOL_VERSION);
    if (strcmp(ok->line, join->line.s))
        return err_set(err, ST_CONFLICT, "line \"%s\" answers at %s:%u; the join file is for \"%s\"", ok->line,
                       join->host, join->port, join->line.s);
    if (ok->root_key.len != sizeof join->root.b || memcmp(ok->root_key.data, join->root.b, sizeof join->root.b))
        return err_set(err, ST_CONFLICT,
                       "line \"%s\" at %s:%u has another root key than the join file: it was made anew; get a new join "
                       "file",
                       join->line.s, join->host, join->port);
    return ST_OK;
}
