#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    enum status code;
    const char *name;
    int exit_code; /* sysexits.h where it has a fitting one */
} table[] = {
    {ST_OK, "ok", 0},
    {ST_EMPTY, "empty", 3},
    {ST_AGAIN, "again", 75},
    {ST_TIMEOUT, "timeout", 5},
    {ST_USAGE, "usage", 2},
    {ST_CONFIG, "config", 78},
    {ST_NOT_FOUND, "not-found", 3},
    {ST_CONFLICT, "conflict", 4},
    {ST_DENIED, "denied", 77},
    {ST_BAD_DATA, "bad-data", 65},
    {ST_CORRUPT, "corrupt", 8},
    {ST_VERIFY, "verify", 6},
    {ST_ROLLBACK, "rollback", 7},
    {ST_UNSUPPORTED, "unsupported", 66},
    {ST_LIMIT, "limit", 67},
    {ST_IO, "io", 74},
    {ST_NO_SPACE, "no-space", 73},
    {ST_NO_MEMORY, "no-memory", 71},
    {ST_STOPPED, "stopped", 130},
    {ST_INTERNAL, "internal", 70},
};

enum status err_set(struct err *err, enum status code, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
    }
    return code;
}

enum status err_prefix(struct err *err, enum status code, const char *format, ...)
{
    if (err) {
        struct err old = *err;
        va_list args;
        va_start(args, format);
        int n = vsnprintf(err->text, sizeof err->text, format, args);
        va_end(args);
        if (n >= 0 && (size_t)n < sizeof err->text)
            snprintf(err->text + n, sizeof err->text - (size_t)n, ": %s", old.text);
    }
    return code;
}

const char *status_name(enum status code)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].code == code)
            return table[i].name;
    return "unknown";
}

int status_exit_code(enum status code)
{
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        if (table[i].code == code)
            return table[i].exit_code;
    return 1;
}

#ifdef __SANITIZE_THREAD__
/* libzmq, RocksDB and libsodium are not instrumented. What they write on our behalf is seen (through read, recv, memcpy), but not
 * how they hand it over (with atomics of their own), so each message would be reported as a race. Passing over what they
 * write leaves every access of our own code checked, against each other. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "ignore_noninstrumented_modules=1";
}
#endif
