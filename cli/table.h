/* table.h - tables and facts for people, no line wider than the terminal.
 *
 *     struct table *t = table_new("version|aliases|>tokens"); // '>' aligns right
 *     table_put(t, "v%u", 7), table_put(t, "latest"), table_put(t, "%u", 4500);
 *     table_print(&t, stdout);
 *
 * Width: of the terminal; else COLUMNS; else any. Text columns are shortened to fit ("…"); when that is not enough, each
 * row is told as facts. A column in which no cell says anything is left out. Control characters, which may have come from a
 * peer, are replaced.
 */
#ifndef CLI_TABLE_H
#define CLI_TABLE_H

#include <stdio.h>

#include "base/buf.h"

enum { TABLE_COLUMNS_MAX = 24 };

struct table;
struct table *table_new(const char *titles);
void table_put(struct table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints and frees; `*table` is NULL then. Without rows nothing is printed. The last row must be whole. */
void table_print(struct table **table, FILE *out);

/* "key  value", the value behind `width` characters; long ones go on below, broken at blanks or, in a word that fits on no
 * line, anywhere. */
void fact(FILE *out, unsigned width, const char *key, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* One or more lines, broken likewise. */
void sentence(FILE *out, const char *format, ...) __attribute__((format(printf, 2, 3)));

void put_clean(struct buf *out, const char *text);
unsigned text_width(const char *text); /* in characters, not bytes */

void human_bytes(uint64_t bytes, char *out, size_t size);
void human_time(double s, char *out, size_t size);

#endif
