/* backup.h - a line's directory as a whole: taken while it is served, checked, and made again from the copy.
 *
 * Taking it has two steps. The snapshot: DIR/snapshot holds one moment of the line, as hard links: a checkpoint of the
 * database, every blob, every file of the directory. The coordinator makes it between two steps of its own (CONTROL_BACKUP;
 * no path ever travels); while nobody serves the directory, whoever has its lock does. The witness is copied before the
 * checkpoint is made, so the snapshot's database is at or ahead of it: all that was acknowledged before is in it. The copy:
 * DEST.part/tree is filled from the snapshot, each byte hashed, each file synced, the index last; then it takes DEST's place in one
 * rename. What an earlier backup in DEST holds unchanged is linked, not written again. A killed backup leaves a DEST that is
 * whole (the one before) or none, and a DEST.part that the next one clears away.
 *
 * Restoring checks everything: each file against the index, each block of the database, the witness, the signature and parent
 * of each version, the blobs that the line needs. Then it makes sure that the line, which has forgotten what came after the
 * backup, never gives out again a number of that time: sessions, rounds, leases and alias statements go on a million further,
 * versions above `version_seen` (at least a thousand further); work that was given out before is refused; the next start is a new incarnation. Positions of producers are as they were: a push compares and sends what is
 * missing.
 */
#ifndef COORDINATOR_BACKUP_H
#define COORDINATOR_BACKUP_H

#include <stdint.h>

#include "coordinator/dir.h"
#include "store/blob.h"
#include "store/db.h"

#define BACKUP_SNAPSHOT "snapshot" /* in the line's directory */
#define BACKUP_INDEX "BACKUP"      /* in the backup */

/* One at a time: whoever takes a backup holds this lock of the directory from before the snapshot until it is copied and dropped.
 * ST_CONFLICT: somebody else does. The caller closes `fd`, which is set in any case. */
enum status backup_begin(const char *dir, int *fd, struct err *err);

/* Makes DIR/snapshot, in place of an old one. */
enum status backup_snapshot(const struct line_dir *dir, struct db *db, struct blob_store *blobs, struct err *err);
/* The same when no coordinator runs. ST_CONFLICT: one does; ask it. */
enum status backup_snapshot_offline(const char *dir, struct err *err);
/* Deletes DIR/snapshot, whole or not; the files stay where they are linked from. */
enum status backup_snapshot_drop(const char *dir, struct err *err);

struct backup_report {
    uint64_t files, bytes;  /* of the backup */
    uint64_t written_bytes; /* the rest was in DEST already */
};
typedef void (*backup_progress_fn)(void *user, uint64_t done_bytes, uint64_t total_bytes);

/* From DIR/snapshot. ST_CONFLICT: DEST is something else than a backup of this line. */
enum status backup_copy(const char *dir, const char *dest, backup_progress_fn progress, void *user,
                        struct backup_report *report, struct err *err);

struct restore_options {
    const char *source, *dir; /* `dir` must not exist, or be empty */
    uint64_t version_seen;    /* highest version that anybody has seen; 0: not known */
    backup_progress_fn progress;
    void *user;
};
struct restore_report {
    uint64_t files, bytes, keys; /* keys: of the database, all read */
    uint64_t versions, newest, next;
    uint64_t created_s; /* the backup */
    struct name line;
};
/* ST_CORRUPT and ST_VERIFY name what is wrong; `dir` is then as it was. */
enum status backup_restore(const struct restore_options *options, struct restore_report *report, struct err *err);

/* ---- the index */

struct backup_file {
    char *path; /* within the backup: words of a-z A-Z 0-9 . _ - with slashes between; none begins with a dot */
    uint64_t bytes;
    struct digest digest;
};
struct backup_index {
    struct name line;
    uint64_t created_s;
    struct backup_file *files; /* rising by path */
    size_t n, cap;
};
void backup_index_put(const struct backup_index *index, struct buf *out);
/* ST_CORRUPT: with the line, when it is cut off or changed; ST_UNSUPPORTED: another format. */
enum status backup_index_parse(const void *data, size_t len, struct backup_index *out, struct err *err);
void backup_index_release(struct backup_index *index);

#endif
