/* recent.h - the newest values of a family, by key, in bounded memory.
 *
 * Beside a database whose own newest entries are kept in the order they came in (db.h, DB_HASHED): that makes writing
 * cheap and finding dear, so what was written lately is looked up here first. A hash table over a ring of bytes: the oldest
 * entries fall out, and then the database is asked; so nothing depends on what is here but speed.
 *
 * Threads: one mutex; every function may be called from any thread.
 */
#ifndef STORE_RECENT_H
#define STORE_RECENT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

struct recent;

enum recent_answer {
    RECENT_UNKNOWN, /* not written lately: ask the database */
    RECENT_DELETED, /* the newest thing said about this key is that it is gone */
    RECENT_VALUE,
};

struct recent *recent_new(size_t bytes_max); /* of entries; the table over them takes about a third more */
void recent_free(struct recent *recent);     /* NULL is fine */

/* `deleted`: the value is not looked at. An entry larger than an eighth of the room is only forgotten. */
void recent_put(struct recent *recent, struct bytes key, struct bytes value, bool deleted);
void recent_clear(struct recent *recent);

/* Appends the value to `out`. */
enum recent_answer recent_get(struct recent *recent, struct bytes key, struct buf *out);

#endif
