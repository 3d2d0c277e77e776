/* results.h - one JSON object a line, appended durably: a configuration first, then cells by key. */
#ifndef CONTINUAL_RESULTS_H
#define CONTINUAL_RESULTS_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"

struct results;

/* Opens or makes the file and locks it. The first line must be {"config": config}. A last line without its end is cut
 * off. ST_CONFLICT: in use, or of another configuration (the text says what differs). ST_CORRUPT names the line. */
enum status results_open(const char *path, const json_t *config, struct results **out, struct err *err);
void results_close(struct results *results); /* NULL is fine */

/* Each cell has a string member "cell", its key. NULL: not there. Borrowed. */
const json_t *results_find(const struct results *results, const char *key);
/* Takes the reference. The line is on disk when this returns ST_OK. */
enum status results_add(struct results *results, json_t *cell, struct err *err);

#endif
