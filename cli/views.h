/* views.h - the coordinator's answers for people: what an operator asks first stands first; units, ages, one line a thing.
 *
 * Everything in an answer is shown by --json; a view leaves out what only programs want. Fields that are missing or of
 * another kind, of a newer or a damaged coordinator, are shown as "-".
 */
#ifndef CLI_VIEWS_H
#define CLI_VIEWS_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

void view_status(FILE *out, const json_t *answer);
/* `now_s`: Unix time, for ages. */
void view_versions(FILE *out, const json_t *answer, uint64_t now_s);
void view_version(FILE *out, const json_t *answer, uint64_t now_s);
void view_verdict(FILE *out, const json_t *answer, uint64_t now_s);
void view_change(FILE *out, const json_t *answer); /* what promote, rollback and mark answer */
void view_trace(FILE *out, const json_t *answer);  /* of a record, or of a version */

#endif
