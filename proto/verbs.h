/* verbs.h - every verb of the wire: its number, the plane it is spoken on, who may say it, and its message.
 *
 * One table (verbs.c) is asked by the network edge on every message and by the role x verb test on every cell.
 * A reply verb is the request's verb + 1; VERB_ERROR answers anything. Numbers are never reused.
 */
#ifndef PROTO_VERBS_H
#define PROTO_VERBS_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>

enum plane { PLANE_INGEST, PLANE_WORK, PLANE_MODELS, PLANE_CONTROL, PLANE_BULK, PLANES }; /* port = base port + plane */

enum role { ROLE_NONE = 0, ROLE_PRODUCER = 1, ROLE_WORKER = 2, ROLE_SUBSCRIBER = 4, ROLE_OPERATOR = 8 };

enum verb {
    VERB_ERROR = 1,
    VERB_HELLO = 2,
    VERB_HELLO_OK = 3, /* all planes, all roles */
    VERB_PUSH_OPEN = 10,
    VERB_PUSH_OPENED = 11,
    VERB_PUSH_BATCH = 12,
    VERB_PUSH_ACK = 13,
    VERB_TASK_REQUEST = 20,
    VERB_TASK = 21,
    VERB_PROGRESS = 22,
    VERB_PROGRESS_OK = 23,
    VERB_TASK_RETURN = 24,
    VERB_TASK_RETURN_OK = 25, /* Ok */
    VERB_DELTA_COMMIT = 26,
    VERB_DELTA_ACK = 27,
    VERB_EVAL_RESULT = 28,
    VERB_EVAL_OK = 29, /* Ok */
    VERB_EXCLUSIONS_GET = 30,
    VERB_EXCLUSIONS = 31,
    VERB_BLOB_GET = 40,
    VERB_BLOB_CHUNK = 41,
    VERB_BLOB_PUT = 42,
    VERB_BLOB_PUT_OK = 43,
    VERB_SEGMENTS_GET = 44,
    VERB_SEGMENTS = 45,
    VERB_WATCH = 50,
    VERB_WATCH_REPLY = 51,
    VERB_MANIFEST_GET = 52,
    VERB_MANIFEST = 53, /* SignedManifest */
    VERB_SERVING = 54,
    VERB_SERVING_OK = 55, /* Ok */
    VERB_CONTROL = 60,
    VERB_CONTROL_REPLY = 61,
};

struct verb_info {
    enum verb verb;
    const char *name; /* "push-batch" */
    unsigned planes;  /* bit (1 << enum plane) */
    unsigned roles;   /* who may send it; 0: only the coordinator (a reply) */
    const ProtobufCMessageDescriptor *message;
};

/* NULL for a number that is no verb. */
const struct verb_info *verb_find(uint16_t verb);
const struct verb_info *verb_table(unsigned *n);

/* May a peer of `role` send `verb` on `plane`? Replies: never. A verb of every plane: where the role has another, too. */
bool verb_allowed(uint16_t verb, enum plane plane, enum role role);

const char *role_name(enum role role); /* "producer", "worker", "subscriber", "operator" */
bool role_parse(const char *s, enum role *out);
const char *plane_name(enum plane plane);

#endif
