/* roots.h - which blobs somebody needs, and who may fetch them.
 *
 * Published: the files of versions whose blobs are kept; subscribers, operators and workers may fetch them. Work: a round's
 * candidate and its accepted deltas; workers may fetch them. Built from the database at start, when everything else in
 * the blob directory is deleted; kept current by the loop from the batches it commits and the effects it carries out.
 *
 * Threads: all functions are safe from any thread.
 */
#ifndef COORDINATOR_ROOTS_H
#define COORDINATOR_ROOTS_H

#include <stdbool.h>

#include "base/ids.h"
#include "base/status.h"
#include "coordinator/core/core.h"
#include "proto/verbs.h"
#include "store/batch.h"
#include "store/blob.h"
#include "store/db.h"

enum root_kind { ROOT_NONE = 0, ROOT_WORK = 1, ROOT_PUBLISHED = 2 };

struct roots;

struct roots *roots_new(void);
void roots_free(struct roots *roots);

void roots_add(struct roots *roots, const struct digest *digest, enum root_kind kind); /* never lowers the kind */
/* All that a version or candidate has; a training state is nothing that subscribers get. */
void roots_add_files(struct roots *roots, const struct version_files *files, enum root_kind kind);
void roots_remove(struct roots *roots, const struct digest *digest);
enum root_kind roots_find(struct roots *roots, const struct digest *digest);
bool roots_may_get(struct roots *roots, const struct digest *digest, enum role role);

/* What the database refers to. A version whose blob was dropped long ago stays in; a get of it is ST_NOT_FOUND. */
enum status roots_load(struct roots *roots, struct db *db, struct err *err);
/* The same from a batch that has been committed. ST_CORRUPT: our own value does not decode. */
enum status roots_follow(struct roots *roots, const struct batch *batch, struct err *err);

/* At start: deletes every blob that is no root. (A delta whose commit never came is sent again by its worker.) */
enum status roots_collect(struct roots *roots, struct blob_store *blobs, uint64_t *deleted, struct err *err);

#endif
