#include "samples.h"

#include "base/check.h"
#include "base/limits.h"
#include "proto/verbs.h"

static uint8_t zeroes[4096];

#define BIN(n)      \
    {               \
        (n), zeroes \
    }
#define STR(s) ((char *)(uintptr_t)(s))

static Alv__BlobRef ref = {PROTOBUF_C_MESSAGE_INIT(&alv__blob_ref__descriptor), BIN(32), 19537920};
static Alv__Range ranges[] = {{PROTOBUF_C_MESSAGE_INIT(&alv__range__descriptor), 1, 10, 5},
                              {PROTOBUF_C_MESSAGE_INIT(&alv__range__descriptor), 1, 15, 1},
                              {PROTOBUF_C_MESSAGE_INIT(&alv__range__descriptor), 2, 0, 7}};
static Alv__Range *range_list[] = {&ranges[0], &ranges[1], &ranges[2]};

static ProtobufCMessage *task(void)
{
    static Alv__Task t = ALV__TASK__INIT;
    static Alv__Lease l = ALV__LEASE__INIT;
    static Alv__TrainConfig c = ALV__TRAIN_CONFIG__INIT;
    static Alv__DomainView v = ALV__DOMAIN_VIEW__INIT, *views[] = {&v};
    c.seq_tokens = 512, c.step_tokens = 1024, c.lr = 1e-3f, c.beta1 = 0.9f, c.beta2 = 0.99f, c.eps = 1e-8f;
    c.anchor_permille = 50, c.history_permille = 200, c.sample_k = 4096;
    v.domain = 2, v.name = STR("ocaml"), v.watermark = 1000, v.weight = 3;
    l.id = 7, l.generation = 2, l.round = 3, l.session_counter = 1, l.parent = 2, l.seed = UINT64_MAX;
    l.session_incarnation = (ProtobufCBinaryData)BIN(16);
    l.parent_adapter = &ref, l.train = &c, l.progress_ms = 5000;
    l.n_fresh = 3, l.fresh = range_list, l.n_domains = 1, l.domains = views;
    t.lease = &l;
    return &t.base;
}

static ProtobufCMessage *batch(void)
{
    static Alv__PushBatch b = ALV__PUSH_BATCH__INIT;
    static Alv__Record r[2] = {ALV__RECORD__INIT, ALV__RECORD__INIT}, *list[] = {&r[0], &r[1]};
    r[0].kind = ALV__RECORD_KIND__RECORD_TEXT, r[0].id = STR("src/a.ml"), r[0].group = STR("src");
    r[0].text = (ProtobufCBinaryData){5, (uint8_t *)STR("let x")};
    r[1].text = (ProtobufCBinaryData)BIN(100); /* kind none: refused singly, not with the frame */
    b.producer = 3, b.position = 11, b.n_records = 2, b.records = list;
    return &b.base;
}

static ProtobufCMessage *watch_reply(void)
{
    static Alv__WatchReply w = ALV__WATCH_REPLY__INIT;
    static Alv__SignedManifest m = ALV__SIGNED_MANIFEST__INIT, *list[] = {&m, &m};
    static Alv__SignedAliases a = ALV__SIGNED_ALIASES__INIT;
    m.number = 3, m.manifest = (ProtobufCBinaryData)BIN(500), m.signature = (ProtobufCBinaryData)BIN(64);
    a.statement = (ProtobufCBinaryData)BIN(90), a.signature = (ProtobufCBinaryData)BIN(64);
    w.n_versions = 2, w.versions = list, w.aliases = &a;
    w.release_key = (ProtobufCBinaryData)BIN(32), w.release_cert = (ProtobufCBinaryData)BIN(80);
    return &w.base;
}

#define SAMPLE(TYPE, init, ...) \
    do {                        \
        static TYPE m = init;   \
        TYPE *p = &m;           \
        __VA_ARGS__;            \
        return &p->base;        \
    } while (0)

static const ProtobufCMessage *work_sample(uint16_t verb)
{
    static Alv__DomainTokens fresh = ALV__DOMAIN_TOKENS__INIT, *fresh_list[] = {&fresh};
    static Alv__Exclusion gone = ALV__EXCLUSION__INIT, *gone_list[] = {&gone, &gone};
    switch (verb) {
    case VERB_TASK_REQUEST:
        SAMPLE(Alv__TaskRequest, ALV__TASK_REQUEST__INIT, p->wait_ms = 30000, p->fingerprint = STR("blas/skylakex/2"));
    case VERB_TASK:
        return task();
    case VERB_PROGRESS:
        SAMPLE(Alv__Progress, ALV__PROGRESS__INIT, p->task = 7, p->generation = 1, p->evaluate = 1, p->done = 3,
               p->total = 16);
    case VERB_PROGRESS_OK:
        SAMPLE(Alv__ProgressOk, ALV__PROGRESS_OK__INIT, p->abandon = 1);
    case VERB_TASK_RETURN:
        SAMPLE(Alv__TaskReturn, ALV__TASK_RETURN__INIT, p->task = 7, p->reason = STR("drained \xc3\xa4"));
    case VERB_DELTA_COMMIT:
        fresh.domain = 2, fresh.tokens = 900, fresh.bytes = 4000;
        SAMPLE(Alv__DeltaCommit, ALV__DELTA_COMMIT__INIT, p->lease = 7,
               p->session_incarnation = (ProtobufCBinaryData)BIN(16), p->delta = &ref, p->n_fresh = 1,
               p->fresh = fresh_list, p->first_losses = (ProtobufCBinaryData)BIN(52), p->fingerprint = STR("f"));
    case VERB_DELTA_ACK:
        SAMPLE(Alv__DeltaAck, ALV__DELTA_ACK__INIT, p->accepted = 1, p->reason = STR("ok"));
    case VERB_EVAL_RESULT:
        SAMPLE(Alv__EvalResult, ALV__EVAL_RESULT__INIT, p->id = 9,
               p->session_incarnation = (ProtobufCBinaryData)BIN(16), p->nll = (ProtobufCBinaryData)BIN(2 * 8 * 8),
               p->tokens = (ProtobufCBinaryData)BIN(8 * 4), p->fingerprint = STR("f"));
    case VERB_EXCLUSIONS_GET:
        SAMPLE(Alv__ExclusionsGet, ALV__EXCLUSIONS_GET__INIT, p->since = 4);
    case VERB_EXCLUSIONS:
        gone.seq = 5, gone.domain = 1, gone.first = 9, gone.count = 2, gone.erase = 1;
        SAMPLE(Alv__Exclusions, ALV__EXCLUSIONS__INIT, p->n_entries = 2, p->entries = gone_list, p->newest = 5);
    default:
        SAMPLE(Alv__Ok, ALV__OK__INIT, p->seq = 12);
    }
}

static const ProtobufCMessage *bulk_sample(uint16_t verb)
{
    static Alv__Segment s = ALV__SEGMENT__INIT, *list[] = {&s, &s, &s};
    switch (verb) {
    case VERB_BLOB_GET:
        SAMPLE(Alv__BlobGet, ALV__BLOB_GET__INIT, p->digest = (ProtobufCBinaryData)BIN(32), p->len = LIMIT_CHUNK_BYTES);
    case VERB_BLOB_CHUNK:
        SAMPLE(Alv__BlobChunk, ALV__BLOB_CHUNK__INIT, p->offset = 10, p->total = 110,
               p->data = (ProtobufCBinaryData)BIN(100), p->chunk_digest = (ProtobufCBinaryData)BIN(32));
    case VERB_BLOB_PUT:
        SAMPLE(Alv__BlobPut, ALV__BLOB_PUT__INIT, p->digest = (ProtobufCBinaryData)BIN(32), p->total = 100,
               p->data = (ProtobufCBinaryData)BIN(100), p->chunk_digest = (ProtobufCBinaryData)BIN(32));
    case VERB_BLOB_PUT_OK:
        SAMPLE(Alv__BlobPutOk, ALV__BLOB_PUT_OK__INIT, p->next = 100, p->complete = 1);
    case VERB_SEGMENTS_GET:
        SAMPLE(Alv__SegmentsGet, ALV__SEGMENTS_GET__INIT, p->domain = 1, p->offsets = (ProtobufCBinaryData)BIN(80));
    default:
        s.kind = ALV__RECORD_KIND__RECORD_CHAT, s.piece = 2, s.group = (ProtobufCBinaryData)BIN(8);
        s.text = (ProtobufCBinaryData)BIN(300);
        SAMPLE(Alv__Segments, ALV__SEGMENTS__INIT, p->n_segments = 3, p->segments = list);
    }
}

static const ProtobufCMessage *ingest_sample(uint16_t verb)
{
    static Alv__Refused r = ALV__REFUSED__INIT, *list[] = {&r};
    switch (verb) {
    case VERB_PUSH_OPEN:
        SAMPLE(Alv__PushOpen, ALV__PUSH_OPEN__INIT, p->domain = STR("ocaml"), p->source = STR("/var/log/\xe2\x82\xac"));
    case VERB_PUSH_OPENED:
        SAMPLE(Alv__PushOpened, ALV__PUSH_OPENED__INIT, p->producer = 1, p->position = 3,
               p->rolling = (ProtobufCBinaryData)BIN(32), p->record_bytes_max = LIMIT_RECORD_BYTES,
               p->batch_records_max = LIMIT_BATCH_RECORDS, p->batch_bytes_max = LIMIT_BATCH_BYTES);
    case VERB_PUSH_BATCH:
        return batch();
    default:
        r.index = 1, r.reason = ALV__REFUSAL__REFUSAL_EMPTY;
        SAMPLE(Alv__PushAck, ALV__PUSH_ACK__INIT, p->position = 13, p->accepted = 1, p->n_refused = 1,
               p->refused = list);
    }
}

const ProtobufCMessage *sample_of(uint16_t verb)
{
    CHECK(verb_find(verb));
    if (verb >= VERB_PUSH_OPEN && verb <= VERB_PUSH_ACK)
        return ingest_sample(verb);
    if (verb >= VERB_TASK_REQUEST && verb <= VERB_EXCLUSIONS)
        return work_sample(verb);
    if (verb >= VERB_BLOB_GET && verb <= VERB_SEGMENTS)
        return bulk_sample(verb);
    switch (verb) {
    case VERB_ERROR:
        SAMPLE(Alv__Error, ALV__ERROR__INIT, p->status = -8, p->text = STR("no"), p->retry_ms = 10);
    case VERB_HELLO:
        SAMPLE(Alv__Hello, ALV__HELLO__INIT, p->protocol_min = 1, p->protocol_max = 1, p->line = STR("notes"),
               p->instance = (ProtobufCBinaryData)BIN(16), p->boot = 3, p->software = STR("alluvium 0.1.0"),
               p->session_incarnation = (ProtobufCBinaryData)BIN(16), p->card_digest = (ProtobufCBinaryData)BIN(32));
    case VERB_HELLO_OK:
        SAMPLE(Alv__HelloOk, ALV__HELLO_OK__INIT, p->protocol = 1, p->line = STR("notes"), p->session_counter = 1,
               p->session_incarnation = (ProtobufCBinaryData)BIN(16),
               p->previous_incarnation = (ProtobufCBinaryData)BIN(16), p->card = (ProtobufCBinaryData)BIN(200),
               p->root_key = (ProtobufCBinaryData)BIN(32), p->seed = (ProtobufCBinaryData)BIN(16));
    case VERB_WATCH:
        SAMPLE(Alv__Watch, ALV__WATCH__INIT, p->from = 3, p->wait_ms = 1000);
    case VERB_WATCH_REPLY:
        return watch_reply();
    case VERB_MANIFEST_GET:
        SAMPLE(Alv__ManifestGet, ALV__MANIFEST_GET__INIT, p->number = 3);
    case VERB_MANIFEST:
        SAMPLE(Alv__SignedManifest, ALV__SIGNED_MANIFEST__INIT, p->manifest = (ProtobufCBinaryData)BIN(100),
               p->signature = (ProtobufCBinaryData)BIN(64));
    case VERB_SERVING:
        SAMPLE(Alv__Serving, ALV__SERVING__INIT, p->staged = 3, p->serving = 2, p->target = STR("vllm"));
    case VERB_CONTROL:
        SAMPLE(Alv__Control, ALV__CONTROL__INIT, p->verb = ALV__CONTROL_VERB__CONTROL_PROMOTE, p->number = 3,
               p->name = STR("stable"), p->token = (ProtobufCBinaryData)BIN(16));
    case VERB_CONTROL_REPLY:
        SAMPLE(Alv__ControlReply, ALV__CONTROL_REPLY__INIT, p->json = STR("{\"versions\":[]}"));
    case VERB_SERVING_OK:
        SAMPLE(Alv__Ok, ALV__OK__INIT, p->seq = 12);
    default:
        CHECK(!"a verb without a sample");
        return NULL;
    }
}
