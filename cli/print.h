/* print.h - results as tables, JSON as text, and progress.
 *
 * Colour only on a terminal, without NO_COLOR and with another TERM than "dumb". A progress bar (share, bytes or steps,
 * rate, time left) is redrawn on a terminal; elsewhere one line every 10 s; --quiet: none.
 */
#ifndef CLI_PRINT_H
#define CLI_PRINT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "cli/table.h"

void print_json(json_t *root); /* consumes; one document on standard output */
void print_json_line(json_t *root);

/* Any JSON for people: an object as "key  value" lines, a list of objects as a table (under a heading when nested). */
void print_value(FILE *out, const json_t *value);

void print_error(const char *command, enum status status, const char *text);
void print_note(const char *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

enum progress_unit { UNIT_BYTES, UNIT_STEPS, UNIT_RECORDS };
struct progress {
    const char *what;
    enum progress_unit unit;
    double began_s, drawn_s; /* 0: not yet */
    uint64_t first;          /* done when it began: not counted in the rate */
    bool drawn;
};
/* `extra` stands behind the bar; may be empty. total 0: unknown. */
void progress_draw(struct progress *p, uint64_t done, uint64_t total, const char *extra);
void progress_end(struct progress *p); /* clears the line; a message may follow */

#endif
