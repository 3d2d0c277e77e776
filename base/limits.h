/* limits.h - every bound of the wire, with its reason. codec.c enforces them before anyone sees a message; senders keep
 * to them by the same numbers. What is only the default of a setting does not belong here.
 */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

#include <assert.h>

#include "base/ids.h"

enum {
    /* ---- records and batches: what a push may hold */
    LIMIT_RECORD_BYTES = 1 << 20, /* text of one record; a book chapter fits, a database dump does not */
    LIMIT_RECORD_ID_BYTES = 1024, /* record id and group: a long path fits */
    LIMIT_SOURCE_BYTES = 255,     /* the pusher's name for its source */
    LIMIT_BATCH_RECORDS = 1024,   /* one fsync is shared by so many */
    LIMIT_BATCH_BYTES = 4 << 20,  /* text of a batch; a sender stops here. One over-long record alone may pass it, so
                                       that the core can refuse it singly, up to the frame */

    /* ---- frames */
    LIMIT_FRAME_BYTES = 5 << 20,    /* header and body: ZMQ_MAXMSGSIZE on every socket. A batch and its ids */
    LIMIT_FRAME_FIELDS = 64 * 1024, /* protobuf fields in one frame: bounds the work and memory of unpacking */
    LIMIT_FRAME_DEPTH = 4,          /* nesting of messages; the deepest we have is 3 */
    LIMIT_CHUNK_BYTES = 1 << 20,    /* bulk: above this CURVE gets slower and a loss costs more */
    LIMIT_CHUNKS_IN_FLIGHT = 4,     /* credit of one transfer: covers the round trip, bounds a peer's queue */
    LIMIT_QUEUE_MESSAGES = 64,      /* high-water mark per peer and direction: 64 frames is 320 MiB at the worst */

    /* ---- names and small texts */
    LIMIT_TEXT_BYTES = 1024,    /* reasons, errors, fingerprints: for people */
    LIMIT_JSON_BYTES = 4 << 20, /* a control reply */
    LIMIT_CARD_BYTES = 64 * 1024,
    LIMIT_MANIFEST_BYTES = 1 << 20, /* canonical bytes of one manifest or alias statement */

    /* ---- work */
    LIMIT_DOMAINS = 256,              /* of a line: the planner and a metric's labels are linear in it */
    LIMIT_LEASE_RANGES = 4096,        /* neighbouring segments share a range */
    LIMIT_LEASE_SEGMENTS = 64 * 1024, /* of one lease: 128 MiB of text at 2 KiB each */
    LIMIT_EVAL_ADAPTERS = 8,          /* candidate, reference, step halves, single-domain deltas: asked in portions */
    LIMIT_EVAL_WINDOWS = 4096,        /* of one evaluation task */
    LIMIT_EXCLUSIONS = 4096,          /* entries of one reply */
    LIMIT_SEGMENTS_GET = 1024,        /* segments of one reply */
    LIMIT_SEGMENTS_BYTES = 1 << 20,   /* text of one reply; the first segment always goes, whatever its size */
    LIMIT_WATCH_VERSIONS = 64,        /* manifests of one reply */

    /* ---- time */
    LIMIT_WAIT_MS = 30 * 1000,  /* long poll: below the idle time-outs of middle boxes */
    LIMIT_RETRY_MS = 60 * 1000, /* what a server may ask for in Error.retry_ms */

    /* ---- key table */
    LIMIT_KEYS = 4096,
    LIMIT_KEY_FILE_BYTES = 4 << 20,
    LIMIT_JOIN_BYTES = 16 * 1024,
    LIMIT_HOST_BYTES = 255,
};

#define LIMIT_BLOB_BYTES (1ull << 40) /* one blob: a base model of a terabyte */
#define LIMIT_OFFSET (1ull << 62)     /* segment offsets and positions: sums of two do not overflow */

static_assert(LIMIT_RECORD_BYTES <= LIMIT_BATCH_BYTES, "a batch holds its largest record");
static_assert(LIMIT_BATCH_BYTES + LIMIT_FRAME_BYTES / 8 < LIMIT_FRAME_BYTES, "a full batch fits its frame");
static_assert(LIMIT_CHUNK_BYTES + 4096 < LIMIT_FRAME_BYTES, "a chunk fits its frame");
static_assert(LIMIT_JSON_BYTES + 4096 < LIMIT_FRAME_BYTES, "a control reply fits its frame");
static_assert(LIMIT_SEGMENTS_BYTES + LIMIT_RECORD_BYTES + LIMIT_SEGMENTS_GET * 64 < LIMIT_FRAME_BYTES,
              "a reply of segments fits, even when the last one is a whole record");
static_assert(4 * LIMIT_MANIFEST_BYTES + 4096 < LIMIT_FRAME_BYTES, "a watch reply holds manifests and the aliases");
static_assert(8 * LIMIT_EVAL_ADAPTERS * LIMIT_EVAL_WINDOWS < LIMIT_FRAME_BYTES, "losses of an evaluation fit");
static_assert(4 * LIMIT_LEASE_SEGMENTS < LIMIT_FRAME_BYTES, "first losses of a lease fit");
static_assert(4 * LIMIT_LEASE_RANGES + 5 * LIMIT_DOMAINS + 64 < LIMIT_FRAME_FIELDS, "a lease fits");
static_assert(7 * LIMIT_EXCLUSIONS + 64 < LIMIT_FRAME_FIELDS, "a reply of exclusions fits");

#endif
