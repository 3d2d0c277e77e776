/* core.h - pushing a stream and following versions as pure state machines.
 *
 * No sockets, disk, clock or randomness: client/push.c and client/subscribe.c carry out what these ask for, and the
 * simulation (tests/sim) drives the very same code. Not thread-safe; one owner each.
 */
#ifndef CLIENT_CORE_H
#define CLIENT_CORE_H

#include <stdbool.h>
#include <stdint.h>

#include "alluvium.pb-c.h"
#include "base/buf.h"
#include "base/ids.h"
#include "base/limits.h"
#include "base/status.h"
#include "proto/manifest.h"

/* ---- push ---------------------------------------------------------------------------------------------------------
 *
 * One push core pushes one source into one domain. It opens the stream, learns how many records of the source are stored
 * already, asks the caller for the source's records from the first one on, chains the digests of those that are stored
 * and compares the chain (a source that changed is refused: ST_CONFLICT), then sends the rest in batches, a few in
 * flight, in order. Whatever is lost is sent again from the first unanswered batch on; the coordinator gives a batch
 * that it has already the first answer. Memory: `window` batches.
 *
 * Events in, effects out; an effect's pointers are good until the next step.
 */
enum {
    PUSH_WINDOW = 8,
    PUSH_WINDOW_MAX = 16,
    PUSH_OPENS_MAX = 8 /* sessions lost in a row without progress: then give up */
};

struct push_place { /* where a record came from, for messages; opaque to the core */
    uint32_t file;
    uint64_t line;
};

struct push_records { /* a batch's worth, owning its memory; zeroed is empty */
    uint32_t n;
    size_t bytes, weight; /* of text; with ids and groups */
    Alv__Record *items[LIMIT_BATCH_RECORDS];
    struct push_place places[LIMIT_BATCH_RECORDS];
    struct push_slab *slabs;   /* memory behind the items */
    struct push_records *next; /* the core's list of spent batches */
};
struct push_records *push_records_new(void);
/* Copies. `id` and `group` may be empty. False: the batch is full (by count, or `bytes_max` of text with the record; a
 * first record always fits). */
bool push_records_add(struct push_records *records, size_t bytes_max, Alv__RecordKind kind, struct bytes id,
                      struct bytes group, struct bytes text, struct push_place place);
void push_records_free(struct push_records **records);

struct push_config {
    struct name domain;
    char source[LIMIT_SOURCE_BYTES + 1];
    uint32_t window;        /* batches in flight: 1 .. PUSH_WINDOW_MAX; 0: PUSH_WINDOW */
    uint32_t request_ms;    /* silence after which what is unanswered is sent again; 0: 10,000 */
    uint64_t first_request; /* request ids count up from here */
};

enum push_event_kind {
    PUSH_UP,      /* the connection stands (first or again) and hello was answered */
    PUSH_MESSAGE, /* a reply, VERB_ERROR too */
    PUSH_RECORDS, /* answer to PUSH_NEED */
    PUSH_TICK,    /* time passed: at the latest at push_core_deadline() */
};

struct push_event {
    enum push_event_kind kind;
    uint64_t now_ms; /* monotonic */
    uint16_t verb;   /* MESSAGE */
    uint64_t request;
    const ProtobufCMessage *message; /* borrowed */
    struct push_records **records;   /* RECORDS: consumed; may hold fewer than asked, or none at the end */
    bool end;                        /* RECORDS: the source ends after these */
};

struct push_report {   /* one batch was stored for good */
    uint64_t position; /* of the source, after it */
    uint32_t records, accepted, duplicates, superseded, refused;
    uint64_t bytes;
    uint64_t train_first, train_end, probe_first, probe_end; /* the receipt; all 0 when `lost` */
    bool lost; /* the answer was lost with its session: stored, but what was refused of it is not known */
};

enum push_effect_kind {
    PUSH_SEND,    /* a request; lost ones are asked again */
    PUSH_NEED,    /* give the next records of the source: at most records_max, bytes_max of text */
    PUSH_RESUMED, /* the first `position` records are stored already and are the same */
    PUSH_ACKED,
    PUSH_REFUSED, /* one record; comes before the PUSH_ACKED of its batch */
    PUSH_DONE,    /* all of the source is stored; nothing follows */
    PUSH_FAILED,  /* status and text; nothing follows */
};

struct push_effect {
    enum push_effect_kind kind;
    union {
        struct {
            uint16_t verb;
            uint64_t request;
            const ProtobufCMessage *message;
        } send;
        struct {
            uint32_t records_max;
            size_t bytes_max;
        } need;
        uint64_t position; /* RESUMED */
        struct push_report acked;
        struct {
            uint64_t position; /* of the record in its source, from 0 */
            struct push_place place;
            const char *id; /* as sent; may be empty */
            Alv__Refusal reason;
        } refused;
        struct {
            enum status status;
            const char *text;
        } failed;
    };
};

struct push_effects { /* zeroed is empty */
    struct push_effect *items;
    uint32_t n, cap;
};
void push_effects_release(struct push_effects *effects);

struct push_core;

struct push_core *push_core_new(const struct push_config *config);
void push_core_free(struct push_core *core);
/* Clears `effects`, then appends. */
void push_core_step(struct push_core *core, const struct push_event *event, struct push_effects *effects);
uint64_t push_core_deadline(const struct push_core *core);             /* UINT64_MAX: none */
uint64_t push_core_next_request(const struct push_core *core);         /* first id it has not used */
bool push_core_busy(const struct push_core *core, uint64_t *until_ms); /* the coordinator asked to wait */
const char *push_core_why(const struct push_core *core);               /* with which words; "": it never did */

const char *push_refusal_text(Alv__Refusal reason);

/* ---- subscribe ----------------------------------------------------------------------------------------------------
 *
 * One subscribe core follows one alias of one line: watch, verify, save, choose, fetch the manifest, stage, swap, run the
 * hook, report, watch again. Strictly one thing at a time: the owner asks subscribe_next() what to do, does it, and
 * tells the outcome with subscribe_answer(). Nothing is lost by that order, since versions are pulled by number.
 *
 * Verified before anything is kept (order after TUF, section 5): root certifies the release key for this line and for
 * now, with a serial that is not lower than one seen before; the key signed each manifest; numbers rise; line and card stay the
 * same; the parent is a version we know, under that digest (so none can be left out but one that nothing is built on: after a
 * restored backup numbers have a gap); the alias statement is signed, of this line, not older than
 * the newest one seen, and its entry has not expired. What was seen is saved before it is acted on, so a replayed older
 * state is refused after a restart too. A version below the one that is served is never swapped in: a rollback is a
 * new, higher number.
 *
 * A withdrawn version is never taken: who follows `latest` has the newest one that is not withdrawn, who follows another
 * alias keeps what is in place until it is moved. One that is in place when it is withdrawn stays, as a problem that is
 * reported: going back takes a new number. A tainted one is taken.
 *
 * A refusal changes nothing: what is served stays, the problem is reported (subscribe_view, Serving.error) and tried
 * again after a wait.
 */
enum { SUBSCRIBE_VERSIONS_MAX = 1 << 20, SUBSCRIBE_STATE_BYTES_MAX = 40 << 20 };

struct subscribe_config {
    struct name line;
    struct sign_public root; /* pinned: from the join file */
    struct name follow;      /* alias */
    bool hook;               /* a hook is to be run after a swap */
    uint32_t recheck_ms;     /* and again this long after it succeeded: it reconciles a server. 0: not again */
    char target[128];        /* told to the coordinator, for people */
    uint32_t wait_ms;        /* long poll; 0: LIMIT_WAIT_MS */
    uint32_t retry_ms_max;   /* back-off of failures doubles from 1 s up to this; 0: 60,000 */
};

enum subscribe_effect_kind {
    SUBSCRIBE_SEND,  /* ask; the answer is the reply, or the status and text of the error */
    SUBSCRIBE_SAVE,  /* keep `state` durably */
    SUBSCRIBE_STAGE, /* fetch the files of `manifest`, check their digests, put them in place for this number, durably */
    SUBSCRIBE_SWAP,  /* make `number` the current one, atomically and durably */
    SUBSCRIBE_HOOK,  /* tell the model server about `number`; at least once per swap, and see recheck_ms */
    SUBSCRIBE_WAIT,  /* do nothing until until_ms; the answer is ST_OK */
};

struct subscribe_effect { /* pointers are good until subscribe_answer() */
    enum subscribe_effect_kind kind;
    uint64_t number;                        /* STAGE, SWAP, HOOK */
    uint16_t verb;                          /* SEND */
    const ProtobufCMessage *message;        /* SEND */
    struct bytes state;                     /* SAVE */
    const struct manifest *manifest;        /* STAGE */
    struct bytes manifest_bytes, signature; /* STAGE */
    uint64_t until_ms;                      /* WAIT */
};

struct subscribe_view {
    uint64_t newest;  /* highest verified number */
    uint64_t wanted;  /* where the alias points; for `latest` the newest one there that is not withdrawn */
    uint64_t current; /* swapped in */
    uint64_t served;  /* and the hook was content */
    bool has_wanted, has_current, has_served;
    bool settled;        /* served is wanted */
    enum status problem; /* ST_OK: none */
    const char *text;    /* of the problem */
    uint64_t problems;   /* counts every new one */
};

struct subscribe_core;

/* `state` as last saved, or empty for a new subscriber. ST_CORRUPT: it does not verify. ST_CONFLICT: it belongs to another
 * line or root key. */
enum status subscribe_new(const struct subscribe_config *config, struct bytes state, struct subscribe_core **out,
                          struct err *err);
void subscribe_free(struct subscribe_core *core);

/* What to do now. now_ms is monotonic, wall_s Unix time (for expiry only). The same effect until it is answered. */
const struct subscribe_effect *subscribe_next(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s);
/* The outcome. SEND with ST_OK: `reply` is the message of verb + 1 (borrowed). */
void subscribe_answer(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s, enum status status,
                      const char *text, const ProtobufCMessage *reply);
void subscribe_view(const struct subscribe_core *core, struct subscribe_view *out);

#endif
