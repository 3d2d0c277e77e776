/* source.h - the records of a file, a directory or standard input, one after the other, in bounded memory.
 *
 *   *.jsonl, *.ndjson, -   one JSON object a line: {"text": ..., "id": ..., "group": ...} or {"messages": [{"role",
 *                          "content"}, ...]} (a chat); field names are options; an id may be a number
 *   any other file         one text record, whose id is the name as given
 *   a directory            its files, recursively, in the byte order of their names; hidden ones, links and what is no
 *                          regular file are passed over; empty files too
 *
 * The same files give the same records in the same order: what is refused here (a broken line, not UTF-8, too long)
 * takes no position in the stream.
 */
#ifndef CLIENT_SOURCE_H
#define CLIENT_SOURCE_H

#include "client/core.h"

struct source_options {
    const char *text_field, *id_field, *group_field; /* NULL: "text", "id", "group" */
    bool id_required;                                /* a line without the id field is refused */
    /* Called for everything that is refused; `where` is "file:line" or "file". May be NULL. */
    void (*refused)(void *user, const char *where, const char *why);
    void *user;
};

struct source_progress {
    uint64_t bytes_read, bytes_total; /* total 0: not known (a pipe) */
    uint64_t refused;
};

struct source;

/* ST_NOT_FOUND / ST_IO with the path. "-" is standard input. `path` is copied. */
enum status source_open(const char *path, const struct source_options *options, struct source **out, struct err *err);
void source_close(struct source **source);

/* Adds records to `records` until it is full (count, or bytes_max of text) or the source ends. ST_IO: a file cannot be
 * read (the rest of the source is then not to be had in order: stop). ST_EMPTY: a pipe has nothing yet; `records` is
 * empty; wait for source_fd() to become readable. What a pipe has is handed out at once, without filling a batch. */
enum status source_read(struct source *source, uint32_t records_max, size_t bytes_max, struct push_records *records,
                        bool *end, struct err *err);

int source_fd(const struct source *source);

/* "file:line" of a record, or "file". */
void source_where(const struct source *source, struct push_place place, char *out, size_t size);
void source_progress(const struct source *source, struct source_progress *out);

#endif
