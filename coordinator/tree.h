/* tree.h - files and directories for backup and restore: links, hashed copies, whole trees. */
#ifndef COORDINATOR_TREE_H
#define COORDINATOR_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/ids.h"
#include "base/status.h"

enum { TREE_PATH_SIZE = 4096 };

enum status tree_join(char out[TREE_PATH_SIZE], const char *dir, const char *name, struct err *err);
bool tree_exists(const char *path);
bool tree_empty(const char *path);                                             /* a directory with nothing in it */
enum status tree_mkdir(const char *path, struct err *err);                     /* 0700; one that is there is fine */
enum status tree_parents(const char *root, const char *path, struct err *err); /* of "a/b/c" below root: a, a/b */
enum status tree_remove(const char *path, struct err *err);  /* with all in it; one that is not there is fine */
enum status tree_sync_all(const char *dir, struct err *err); /* and in every directory below */

enum status tree_link(const char *from, const char *to, struct err *err);
/* Copies, hashes and syncs; `to` must not exist. Group and others get no more than reading, and what `from` gave them. `to`
 * NULL: hashes only. ST_BAD_DATA: not a regular file. */
enum status tree_copy(const char *from, const char *to, struct digest *digest, uint64_t *bytes, struct err *err);

/* Every regular file below `root`, by its path from there, in no order. Links and the like are passed over. */
typedef enum status (*tree_each_fn)(void *user, const char *path, uint64_t bytes, struct err *err);
enum status tree_each(const char *root, tree_each_fn each, void *user, struct err *err);

/* `from` takes the place of the directory `to`, which is deleted. At every moment `to` is one of the two, or (where the file
 * system cannot exchange) none for an instant. */
enum status tree_replace(const char *from, const char *to, struct err *err);

/* A directory in the making: it grows in DEST.part/tree, beside a mark that says what DEST.part is, and is put in DEST's place
 * when it is whole. The mark is the first there and the last to go: killed at any moment, the next one clears it away. */
struct tree_stage {
    char part[TREE_PATH_SIZE], mark[TREE_PATH_SIZE], tree[TREE_PATH_SIZE];
};
/* `what` it is, "backup", for the text of ST_CONFLICT: DEST.part is there, and is nobody's stage. */
enum status tree_stage_begin(struct tree_stage *stage, const char *dest, const char *what, struct err *err);
enum status tree_stage_end(const struct tree_stage *stage, const char *dest, struct err *err);
enum status tree_stage_drop(const struct tree_stage *stage, struct err *err);

#endif
