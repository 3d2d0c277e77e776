/* status.h - how every function of alluvium says how it went.
 *
 * One code says what the caller should do; one bounded text says to a person what, where, and what to do about it.
 * On any status but ST_OK, outputs are untouched and the object stays usable unless the header says otherwise.
 */
#ifndef BASE_STATUS_H
#define BASE_STATUS_H

enum status {
    ST_OK = 0,
    ST_EMPTY = -1,        /* nothing there now; not an error; ask again later */
    ST_AGAIN = -2,        /* refused for now (busy, full backlog, peer away): retry the same request later */
    ST_TIMEOUT = -3,      /* no answer in time: the effect is unknown; retry with the same id */
    ST_USAGE = -4,        /* the caller's arguments are wrong: do not retry */
    ST_CONFIG = -5,       /* a setting or a configuration file is wrong: mend it */
    ST_NOT_FOUND = -6,    /* no such thing: do not retry */
    ST_CONFLICT = -7,     /* another state than the caller assumed (CAS, superseded lease, busy directory) */
    ST_DENIED = -8,       /* this key may not do that: do not retry */
    ST_BAD_DATA = -9,     /* malformed input from a file or a peer: do not retry */
    ST_CORRUPT = -10,     /* our own stored bytes do not verify: stop and look */
    ST_VERIFY = -11,      /* a signature, digest or chain does not verify: refuse what was received */
    ST_ROLLBACK = -12,    /* older than what is known already (going backwards, or frozen): refuse */
    ST_UNSUPPORTED = -13, /* well formed, but a kind we do not do: named in the text */
    ST_LIMIT = -14,       /* larger than a stated limit: named in the text */
    ST_IO = -15,          /* the operating system failed us: errno is in the text */
    ST_NO_SPACE = -16,    /* disk or reserve exhausted: free room, then go on */
    ST_NO_MEMORY = -17,   /* allocation failed or would pass the plan */
    ST_STOPPED = -18,     /* asked to stop (signal) before the work was done */
    ST_INTERNAL = -19,    /* our own mistake, reported rather than crashed on */
};

/* Room for one message to a person. Functions take `struct err *err` last; NULL means "the code is enough". */
struct err {
    char text[512];
};

/* Writes the text (truncated to fit, always terminated) and returns `code`, so that a caller can write
 * `return err_set(err, ST_BAD_DATA, "%s: offset %zu: ...", path, at);`. `err` may be NULL. */
enum status err_set(struct err *err, enum status code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " before the text that is there, and returns `code`. */
enum status err_prefix(struct err *err, enum status code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The code's name ("conflict") and the process exit code it becomes (docs/reference/exit-codes.md). */
const char *status_name(enum status code);
int status_exit_code(enum status code);

#endif
