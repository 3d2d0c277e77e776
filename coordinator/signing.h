/* signing.h - the keys that sign a line's versions, and how one is replaced.
 *
 * Root signs the release key; the release key signs manifests and aliases. Replacing it makes a new key with a certificate of
 * a higher serial, keeps the old certificate in release.old, and lets the next start of the coordinator sign everything anew:
 * a subscriber that pinned root then verifies old and new versions with the new key alone, and refuses the old one once it
 * has seen the new (as TUF does: theupdateframework.io, section 6.1). What a subscriber has on disk keeps its old signature, for
 * which release.old has the certificate.
 *
 * A crash: release.next is the new secret until release.cert, written in one rename, makes it count; whoever opens the
 * directory next finishes or forgets it. Signing anew is repeated until it is done: the aliases are signed last.
 */
#ifndef COORDINATOR_SIGNING_H
#define COORDINATOR_SIGNING_H

#include "coordinator/dir.h"
#include "coordinator/streamlog.h"

enum status signing_create(struct line_dir *dir, struct err *err);
enum status signing_read(struct line_dir *dir, struct err *err);

/* Is this manifest signed by the present release key, or by one before it? */
enum status signing_check(const struct line_dir *dir, struct bytes manifest, const uint8_t *signature, struct err *err);

/* `root_path`: root's secret, wherever it is kept; NULL: root.key of the directory. The certificate ends at not_after_s (0:
 * never). ST_CONFIG: it is not the secret of this line's root. */
enum status signing_rotate(struct line_dir *dir, const char *root_path, uint64_t not_after_s, struct err *err);

/* Before the core is loaded: what an earlier release key signed is signed by the present one. ST_CORRUPT: something that is
 * stored is signed by no key that root ever certified. `n`: versions signed anew. */
enum status signing_renew(struct streamlog *log, const struct line_dir *dir, uint64_t wall_s, uint64_t *n,
                          struct err *err);

#endif
