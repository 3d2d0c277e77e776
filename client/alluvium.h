/* alluvium.h - the client library: push records, follow versions, ask the coordinator. C17; link with -lalluvium.
 *
 * Every function returns 0 or a negative status, and writes a text for a person (what, where, what to do) to `error`,
 * which has room for `error_size` bytes and may be NULL. The statuses are those of docs/reference/exit-codes.md;
 * alv_status_name() names them. Blocking calls end with ALV_STOPPED when `stop_fd` becomes readable (-1: never).
 * No hidden threads but those of the message library. A handle belongs to one thread at a time.
 */
#ifndef ALLUVIUM_H
#define ALLUVIUM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ALV_API __attribute__((visibility("default")))

enum { ALV_OK = 0, ALV_EMPTY = -1, ALV_TIMEOUT = -3, ALV_CONFLICT = -7, ALV_BAD_DATA = -9, ALV_STOPPED = -18 };

ALV_API const char *alv_version(void);
ALV_API const char *alv_status_name(int status);

/* ---- push */

typedef struct alv_record {
    const char *id;    /* NULL or empty: the hash of the content */
    const char *group; /* NULL or empty: the id */
    const void *text;  /* UTF-8; of a chat a JSON array of {"role","content"} */
    size_t text_len;   /* at most 1 MiB */
    int chat;          /* 0: text, 1: chat */
} alv_record;

/* Gives the next record, borrowed until the next call: 1, or 0 at the end, or a negative number to give up. The same source
 * must give the same records in the same order each time it is pushed: what is stored already is compared, and a push
 * that was interrupted goes on from there. */
typedef int alv_next_record(void *user, alv_record *out);
/* Told of every record that was refused: its number in the source, from 1, and why. */
typedef void alv_refused(void *user, uint64_t number, const char *why);

typedef struct alv_push_report {
    uint64_t stored_before, records, accepted, duplicates, superseded, refused;
} alv_push_report;

/* Pushes all records of `source` (the stream's name, 1..255 bytes) into `domain`, and returns when they are stored for
 * good. ALV_CONFLICT: the source is not what was pushed before under this name. Refused records do not fail the call. */
ALV_API int alv_push(const char *join_file, const char *domain, const char *source, alv_next_record *next,
                     alv_refused *refused, void *user, int stop_fd, alv_push_report *report, char *error,
                     size_t error_size);

/* ---- subscribe */

typedef struct alv_subscribe_options {
    const char *follow;    /* alias; NULL: "latest" */
    const char *dir;       /* where versions are put; DIR/current is a link to the newest */
    const char *base_name; /* for PEFT's adapter_config.json; may be NULL */
    const char *hook;      /* program to run after a swap; may be NULL */
    int once;              /* 1: return when the wanted version is in place */
    int stop_fd;
} alv_subscribe_options;

/* Follows the alias until stopped. `current` (may be NULL) gets the version in place at the end. */
ALV_API int alv_subscribe(const char *join_file, const alv_subscribe_options *options, uint64_t *current, char *error,
                          size_t error_size);

#ifdef __cplusplus
}
#endif
#endif
