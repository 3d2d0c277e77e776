/* losses.h - what a version lost and learnt on a domain's probe, from the matrix of losses. From any thread. */
#ifndef COORDINATOR_LOSSES_H
#define COORDINATOR_LOSSES_H

#include <stdbool.h>

#include "base/ids.h"
#include "base/status.h"
#include "proto/manifest.h"
#include "store/db.h"

/* Mean losses of a version and of the domain's base, both on the windows that both were scored on: like for like. */
struct learnt {
    uint32_t sentinel; /* enum sentinel: nobody trains on the domain */
    bool measured;
    double loss, base_loss; /* nats per token */
};
enum status losses_learnt(struct db *db, uint64_t version, struct domain_id domain, struct learnt *out,
                          struct err *err);

/* The manifest that has a version's row of the matrix: its own, or for a rollback that of the version it repeats, whose content and
 * so whose losses it has. To be released in any case. ST_NOT_FOUND, ST_CORRUPT. */
enum status losses_manifest(struct db *db, uint64_t version, struct manifest *out, struct err *err);

#endif
