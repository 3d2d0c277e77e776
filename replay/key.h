/* key.h - the number that decides whether a segment is replayed.
 *
 * key(d, o) = SipHash-2-4 of (domain u16, offset u64, little-endian) under the line's secret seed. Whoever does not know
 * the seed cannot choose text that is kept. Small keys stay: see sample.h.
 */
#ifndef REPLAY_KEY_H
#define REPLAY_KEY_H

#include <stdint.h>

#include "base/hash.h"
#include "base/ids.h"

uint64_t replay_key(const struct sip_key *seed, struct domain_id domain, uint64_t offset);

#endif
