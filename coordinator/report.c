#include "coordinator/report.h"

#include <math.h>
#include <string.h>

#include "base/check.h"
#include "base/limits.h"
#include "coordinator/core/snapshot.h"
#include "coordinator/core/state.h"
#include "coordinator/facts.h"

json_t *json_number(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

json_t *json_count(uint64_t v)
{
    return json_integer(v > INT64_MAX ? INT64_MAX : (json_int_t)v);
}

json_t *json_digest(const struct digest *digest)
{
    char hex[DIGEST_HEX_SIZE];
    digest_hex(digest, hex);
    return json_string(hex);
}

const ProtobufCMessage *report_message(const struct report_reply *reply)
{
    return &reply->control.base; /* the first member of each */
}

void report_release(struct report_reply *reply)
{
    free(reply->json);
    buf_release(&reply->bytes);
    free(reply->items);
    free(reply->pointers);
    *reply = (struct report_reply){0};
}

bool report_answers(const Alv__Control *control)
{
    switch (control->verb) {
    case ALV__CONTROL_VERB__CONTROL_STATUS:
    case ALV__CONTROL_VERB__CONTROL_VERSIONS:
    case ALV__CONTROL_VERB__CONTROL_SHOW:
    case ALV__CONTROL_VERB__CONTROL_EXPLAIN:
    case ALV__CONTROL_VERB__CONTROL_TRACE:
        return true;
    default:
        return false;
    }
}

static json_t *status_now(const struct report_source *source)
{
    struct picture *p = picture_take(source);
    json_t *json = report_status(p);
    free(p);
    return json;
}

enum status report_control(const struct report_source *source, const Alv__Control *control, struct report_reply *out,
                           struct err *err)
{
    json_t *json = NULL;
    enum status st = ST_OK;
    switch (control->verb) {
    case ALV__CONTROL_VERB__CONTROL_STATUS:
        json = status_now(source);
        break;
    case ALV__CONTROL_VERB__CONTROL_VERSIONS:
        st = report_versions(source, control, &json, err);
        break;
    case ALV__CONTROL_VERB__CONTROL_SHOW:
        st = report_show(source, control->number, &json, err);
        break;
    case ALV__CONTROL_VERB__CONTROL_EXPLAIN:
        st = report_explain(source, control, &json, err);
        break;
    default:
        st = report_trace(source, control, &json, err);
    }
    if (st)
        return st;
    out->json = json_dumps(json, JSON_COMPACT);
    json_decref(json);
    if (!out->json)
        return err_set(err, ST_INTERNAL, "the answer could not be written as JSON");
    if (strlen(out->json) > LIMIT_JSON_BYTES)
        return err_set(err, ST_LIMIT, "the answer is over %d bytes; ask for less", LIMIT_JSON_BYTES);
    alv__control_reply__init(&out->control);
    out->control.json = out->json;
    return ST_OK;
}

/* ---- models plane ---------------------------------------------------------------------------------------------- */

/* Appends manifest and signature to `bytes`; the item's pointers are offsets until fix() knows where they are. */
static enum status read_signed(const struct report_source *source, uint64_t number, struct buf *bytes,
                               Alv__SignedManifest *item, struct err *err)
{
    struct buf value = {0};
    struct state_version *v = xmalloc(sizeof *v);
    enum status st = facts_version(streamlog_db(source->log), number, &value, v, err);
    if (!st) {
        alv__signed_manifest__init(item);
        item->number = number;
        item->manifest.len = v->manifest.len;
        item->signature.len = SIGNATURE_LEN;
        buf_put(bytes, v->manifest.data, v->manifest.len);
        buf_put(bytes, v->signature, SIGNATURE_LEN);
    }
    free(v);
    buf_release(&value);
    return st;
}

static void fix(Alv__SignedManifest *items, size_t n, const struct buf *bytes)
{
    uint8_t *at = bytes->data;
    for (size_t i = 0; i < n; i++) {
        items[i].manifest.data = at;
        items[i].signature.data = at += items[i].manifest.len;
        at += SIGNATURE_LEN;
    }
}

enum status report_manifest(const struct report_source *source, const Alv__ManifestGet *get, struct report_reply *out,
                            struct err *err)
{
    enum status st = read_signed(source, get->number, &out->bytes, &out->manifest, err);
    if (!st)
        fix(&out->manifest, 1, &out->bytes);
    return st;
}

enum status report_watch(const struct report_source *source, const Alv__Watch *watch, struct report_reply *out,
                         struct err *err)
{
    const struct line_dir *dir = source->dir;
    size_t n = 0;
    out->items = xcalloc(LIMIT_WATCH_VERSIONS, sizeof *out->items);
    out->pointers = xcalloc(LIMIT_WATCH_VERSIONS, sizeof *out->pointers);
    enum status st = ST_OK;
    for (uint64_t at = watch->from; !st && n < LIMIT_WATCH_VERSIONS && out->bytes.len < 2 * LIMIT_MANIFEST_BYTES;) {
        st = facts_near_version(streamlog_db(source->log), at + 1, false, &at, err);
        if (!st)
            st = read_signed(source, at, &out->bytes, &out->items[n], err);
        n += !st;
    }
    if (st && st != ST_EMPTY) /* the end; the newest may not be committed yet: it comes with the next watch */
        return st;
    fix(out->items, n, &out->bytes);
    for (size_t i = 0; i < n; i++)
        out->pointers[i] = &out->items[i];
    alv__watch_reply__init(&out->watch);
    out->watch.n_versions = n;
    out->watch.versions = out->pointers;
    out->watch.release_key = (ProtobufCBinaryData){SIGN_PUBLIC_LEN, (uint8_t *)(uintptr_t)dir->release.b};
    out->watch.release_cert = (ProtobufCBinaryData){CERT_LEN, (uint8_t *)(uintptr_t)dir->cert};
    return ST_OK;
}
