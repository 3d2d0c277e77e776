/* The subscribe core. What is saved, little-endian:
 *
 *     "alluvium subscriber 2\0" | str line | 32 root key | u64 serial of the release key's certificate | 32 card digest |
 *     u64 alias sequence | u8 flags (1: there is a current version, 2: one was served) | u64 current | u64 served |
 *     u64 n | n * (u64 number, rising from 0, 32 digest of its manifest) | 32 BLAKE2b-256 of all before
 */
#include "client/core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/hash.h"
#include "proto/codec.h"
#include "proto/verbs.h"

static const char state_magic[] = "alluvium subscriber 2"; /* with its NUL */

enum { RETRY_MS_MIN = 1000, QUICK_MS = 1000 /* an answer without news that came sooner: do not spin */ };

enum step {
    STEP_WATCH,
    STEP_FIRST,
    STEP_SAVE,
    STEP_MANIFEST,
    STEP_STAGE,
    STEP_SWAP,
    STEP_HOOK,
    STEP_REPORT,
    STEP_WAIT
};

struct subscribe_core {
    struct subscribe_config config;
    /* saved */
    struct digest card;
    uint64_t alias_seq;
    bool has_current, has_served;
    uint64_t current, served;
    uint64_t cert_serial;
    struct known { /* verified versions; numbers rise, with gaps where a line was restored from a backup */
        uint64_t number;
        struct digest digest;
    } * known;
    uint64_t n, cap;
    /* from the coordinator, verified, not saved */
    bool have_release, have_aliases;
    struct sign_public release;
    struct aliases aliases;
    struct buf manifest_bytes; /* of the version being staged */
    uint8_t signature[SIGNATURE_LEN];
    struct manifest manifest;
    /* what is being done */
    enum step step, after_save, after_wait;
    bool asked; /* `effect` stands, unanswered */
    struct subscribe_effect effect;
    uint64_t target; /* version to be put in place */
    bool in_place;   /* `current` was staged and swapped in by this run */
    bool quick;      /* watch without waiting: more may be there */
    bool pause;      /* wait before watching again */
    uint64_t asked_ms, wait_until_ms;
    uint32_t retry_ms;
    char hook_text[256]; /* the hook's last failure; empty: none */
    uint64_t hook_at_ms; /* not before */
    uint32_t hook_retry_ms;
    Alv__Watch watch;
    Alv__ManifestGet get;
    Alv__Serving serving;
    struct buf state;
    struct { /* what the coordinator was told last */
        uint64_t staged, serving;
        char text[512];
    } said;
    bool has_said;
    enum status problem;
    char text[512];
    uint64_t problems;
};

enum { KNOWN_LEN = 8 + DIGEST_LEN };

static const struct known *known_find(const struct subscribe_core *core, uint64_t number) /* NULL */
{
    uint64_t low = 0, high = core->n;
    while (low < high) {
        uint64_t mid = (low + high) / 2;
        if (core->known[mid].number < number)
            low = mid + 1;
        else
            high = mid;
    }
    return low < core->n && core->known[low].number == number ? &core->known[low] : NULL;
}

static uint64_t newest(const struct subscribe_core *core)
{
    return core->n ? core->known[core->n - 1].number : 0;
}

/* ---- state ----------------------------------------------------------------------------------------------------- */

static void encode_state(const struct subscribe_core *core, struct buf *out)
{
    struct digest sum;
    buf_clear(out);
    buf_put(out, state_magic, sizeof state_magic);
    buf_put_str(out, core->config.line.s);
    buf_put(out, core->config.root.b, sizeof core->config.root.b);
    buf_put_u64(out, core->cert_serial);
    buf_put(out, core->card.b, sizeof core->card.b);
    buf_put_u64(out, core->alias_seq);
    buf_put_u8(out, (uint8_t)(core->has_current | core->has_served << 1));
    buf_put_u64(out, core->current);
    buf_put_u64(out, core->served);
    buf_put_u64(out, core->n);
    for (uint64_t i = 0; i < core->n; i++) {
        buf_put_u64(out, core->known[i].number);
        buf_put(out, core->known[i].digest.b, DIGEST_LEN);
    }
    hash_blake2b(out->data, out->len, &sum);
    buf_put(out, sum.b, sizeof sum.b);
}

static enum status decode_state(struct subscribe_core *core, struct bytes state, struct err *err)
{
    struct digest sum;
    if (state.len < sizeof state_magic + sizeof sum.b || memcmp(state.data, state_magic, sizeof state_magic))
        return err_set(err, ST_CORRUPT, "the subscriber's state is not one, or of another release");
    size_t len = state.len - sizeof sum.b;
    hash_blake2b(state.data, len, &sum);
    if (memcmp(sum.b, state.data + len, sizeof sum.b))
        return err_set(err, ST_CORRUPT, "the subscriber's state does not match its checksum");
    struct reader r = reader_of(state.data, len);
    char line[NAME_MAX_LEN + 1];
    read_raw(&r, sizeof state_magic);
    bool same = read_str(&r, line, sizeof line) && !strcmp(line, core->config.line.s);
    const uint8_t *root = read_raw(&r, sizeof core->config.root.b);
    core->cert_serial = read_u64(&r);
    const uint8_t *card = read_raw(&r, sizeof core->card.b);
    core->alias_seq = read_u64(&r);
    uint8_t flags = read_u8(&r);
    core->current = read_u64(&r);
    core->served = read_u64(&r);
    core->n = read_u64(&r);
    if (r.failed || core->n > SUBSCRIBE_VERSIONS_MAX || reader_left(&r) != core->n * KNOWN_LEN)
        return err_set(err, ST_CORRUPT, "the subscriber's state has the wrong length");
    if (!same || memcmp(root, core->config.root.b, sizeof core->config.root.b))
        return err_set(err, ST_CONFLICT,
                       "the directory belongs to a subscriber of line \"%s\" or of another root key; use another one",
                       line);
    memcpy(core->card.b, card, sizeof core->card.b);
    core->has_current = flags & 1;
    core->has_served = flags >> 1 & 1;
    core->cap = core->n;
    core->known = xcalloc(core->n, sizeof *core->known);
    bool rising = true;
    for (uint64_t i = 0; i < core->n; i++) {
        core->known[i].number = read_u64(&r);
        memcpy(core->known[i].digest.b, read_raw(&r, DIGEST_LEN), DIGEST_LEN);
        rising = rising && (i ? core->known[i].number > core->known[i - 1].number : core->known[i].number == 0);
    }
    if (!rising || (core->has_current && !known_find(core, core->current)) ||
        (core->has_served && core->served > core->current))
        return err_set(err, ST_CORRUPT, "the subscriber's state contradicts itself");
    return ST_OK;
}

enum status subscribe_new(const struct subscribe_config *config, struct bytes state, struct subscribe_core **out,
                          struct err *err)
{
    struct subscribe_core *core = xcalloc(1, sizeof *core);
    core->config = *config;
    if (!core->config.wait_ms || core->config.wait_ms > LIMIT_WAIT_MS)
        core->config.wait_ms = LIMIT_WAIT_MS;
    if (!core->config.retry_ms_max)
        core->config.retry_ms_max = 60000;
    core->step = STEP_WATCH;
    core->quick = true;
    enum status st = state.len ? decode_state(core, state, err) : ST_OK;
    if (st == ST_OK)
        *out = core;
    else
        subscribe_free(core);
    return st;
}

void subscribe_free(struct subscribe_core *core)
{
    if (!core)
        return;
    if (core->have_aliases)
        aliases_release(&core->aliases);
    manifest_release(&core->manifest);
    buf_release(&core->manifest_bytes);
    buf_release(&core->state);
    free(core->known);
    free(core);
}

/* The version that the alias means. Nobody chose where `latest` points: there it is the newest one that is not withdrawn. */
static uint64_t meant(const struct subscribe_core *core, const struct alias *alias)
{
    if (strcmp(alias->name.s, "latest") != 0 || !aliases_mark(&core->aliases, alias->version, MARK_WITHDRAWN))
        return alias->version;
    for (uint64_t i = core->n; i-- > 0;)
        if (core->known[i].number < alias->version &&
            !aliases_mark(&core->aliases, core->known[i].number, MARK_WITHDRAWN))
            return core->known[i].number;
    return alias->version;
}

void subscribe_view(const struct subscribe_core *core, struct subscribe_view *out)
{
    const struct alias *alias = core->have_aliases ? aliases_find(&core->aliases, core->config.follow.s) : NULL;
    *out = (struct subscribe_view){
        .newest = newest(core),
        .wanted = alias ? meant(core, alias) : 0,
        .current = core->current,
        .served = core->served,
        .has_wanted = alias != NULL,
        .has_current = core->has_current,
        .has_served = core->has_served,
        .problem = core->problem,
        .text = core->text,
        .problems = core->problems,
    };
    out->settled = alias && core->in_place && core->has_served && core->served == out->wanted && !core->hook_text[0];
}

/* ---- problems and waiting ---------------------------------------------------------------------------------------- */

static void trouble(struct subscribe_core *core, enum status status, const char *text)
{
    if (status != ST_OK && (core->problem != status || strncmp(core->text, text, sizeof core->text - 1)))
        core->problems++;
    core->problem = status;
    snprintf(core->text, sizeof core->text, "%s", status == ST_OK ? "" : text);
}

static uint32_t back_off(uint32_t *ms, uint32_t max)
{
    *ms = *ms ? *ms * 2 : RETRY_MS_MIN;
    if (*ms > max)
        *ms = max;
    return *ms;
}

/* Waits, longer each time, and then does `step`. */
static void wait_then(struct subscribe_core *core, uint64_t now_ms, enum step step)
{
    core->wait_until_ms = now_ms + back_off(&core->retry_ms, core->config.retry_ms_max);
    core->step = STEP_WAIT;
    core->after_wait = step;
}

static void save_then(struct subscribe_core *core, enum step after)
{
    core->step = STEP_SAVE;
    core->after_save = after;
}

/* ---- verification ------------------------------------------------------------------------------------------------ */

/* Takes the next manifest: a higher number, whose parent we know under the digest it names. */
static enum status take_manifest(struct subscribe_core *core, const Alv__SignedManifest *signed_manifest,
                                 struct err *err)
{
    uint64_t number = signed_manifest->number;
    if (core->n == SUBSCRIBE_VERSIONS_MAX)
        return err_set(err, ST_LIMIT, "more than %d versions", SUBSCRIBE_VERSIONS_MAX);
    const ProtobufCBinaryData *bytes = &signed_manifest->manifest, *signature = &signed_manifest->signature;
    struct manifest m;
    enum status st = manifest_verify(&core->release, bytes->data, bytes->len, signature->data, signature->len, err);
    if (st == ST_OK)
        st = manifest_decode(bytes->data, bytes->len, &m, err);
    if (st != ST_OK)
        return err_prefix(err, st, "version %llu", (unsigned long long)number);
    struct digest zero = {{0}};
    const struct known *parent = known_find(core, m.parent);
    const char *wrong = NULL;
    if (m.number != number || (core->n ? number <= newest(core) : number != 0))
        wrong = "the numbers go backwards, or do not begin with 0";
    else if (!name_eq(&m.line, &core->config.line))
        wrong = "it is of another line";
    else if ((number > 0 && m.parent >= number) || (number == 0 && m.parent != 0))
        wrong = "its parent is not an earlier version";
    else if (number > 0 && !parent)
        wrong = "its parent is a version that was not seen";
    else if (!digest_eq(&m.parent_manifest, parent ? &parent->digest : &zero))
        wrong = "its parent is not the version we know under that number";
    else if (number > 0 && !digest_eq(&m.card, &core->card))
        wrong = "it is for another base model";
    struct digest card = m.card;
    manifest_release(&m);
    if (wrong)
        return err_set(err, ST_VERIFY, "version %llu: %s", (unsigned long long)number, wrong);
    if (core->n == core->cap) {
        core->cap = core->cap ? 2 * core->cap : 64;
        core->known = xrealloc_array(core->known, core->cap, sizeof *core->known);
    }
    core->known[core->n].number = number;
    manifest_digest(bytes->data, bytes->len, &core->known[core->n++].digest);
    core->card = card;
    return ST_OK;
}

static enum status take_aliases(struct subscribe_core *core, const Alv__SignedAliases *signed_aliases, struct err *err)
{
    const ProtobufCBinaryData *bytes = &signed_aliases->statement, *signature = &signed_aliases->signature;
    struct aliases a;
    enum status st = aliases_verify(&core->release, bytes->data, bytes->len, signature->data, signature->len, err);
    if (st == ST_OK)
        st = aliases_decode(bytes->data, bytes->len, &a, err);
    if (st != ST_OK)
        return err_prefix(err, st, "aliases");
    if (!name_eq(&a.line, &core->config.line))
        st = err_set(err, ST_VERIFY, "aliases: the statement is of line \"%s\"", a.line.s);
    else if (a.seq < core->alias_seq)
        st = err_set(err, ST_ROLLBACK, "aliases: statement %llu is older than %llu, which was seen before",
                     (unsigned long long)a.seq, (unsigned long long)core->alias_seq);
    if (st != ST_OK) {
        aliases_release(&a);
        return st;
    }
    if (core->have_aliases)
        aliases_release(&core->aliases);
    core->aliases = a;
    core->have_aliases = true;
    core->alias_seq = a.seq;
    return ST_OK;
}

static enum status take_watch(struct subscribe_core *core, const Alv__WatchReply *reply, uint64_t wall_s, bool *news,
                              struct err *err)
{
    struct sign_public release;
    *news = false;
    if (reply->release_key.len != sizeof release.b)
        return err_set(err, ST_VERIFY, "the release key is missing");
    memcpy(release.b, reply->release_key.data, sizeof release.b);
    enum status st = cert_verify(&core->config.root, &core->config.line, &release, reply->release_cert.data,
                                 reply->release_cert.len, wall_s, err);
    if (st != ST_OK)
        return st;
    uint64_t serial = cert_serial(reply->release_cert.data);
    if (serial < core->cert_serial)
        return err_set(
            err, ST_ROLLBACK,
            "the release key of certificate %llu was replaced by that of certificate %llu, which was seen before",
            (unsigned long long)serial, (unsigned long long)core->cert_serial);
    *news = serial > core->cert_serial;
    core->cert_serial = serial;
    core->release = release;
    core->have_release = true;
    for (size_t i = 0; i < reply->n_versions && core->n > 0; i++) {
        if (reply->versions[i]->number <= newest(core))
            continue; /* of an answer to an earlier question; known, and not taken from here */
        st = take_manifest(core, reply->versions[i], err);
        if (st != ST_OK)
            return st;
        *news = true;
    }
    uint64_t before = core->have_aliases ? core->alias_seq : 0;
    if (reply->aliases) {
        st = take_aliases(core, reply->aliases, err);
        *news = *news || core->alias_seq != before;
    }
    return st;
}

/* The manifest of `target` again, whose digest we know: what is to be staged. */
static enum status take_target(struct subscribe_core *core, const Alv__SignedManifest *signed_manifest, struct err *err)
{
    const ProtobufCBinaryData *bytes = &signed_manifest->manifest, *signature = &signed_manifest->signature;
    struct digest digest;
    manifest_digest(bytes->data, bytes->len, &digest);
    if (!digest_eq(&digest, &known_find(core, core->target)->digest))
        return err_set(err, ST_VERIFY, "version %llu: this is not the manifest seen before under that number",
                       (unsigned long long)core->target);
    enum status st = manifest_verify(&core->release, bytes->data, bytes->len, signature->data, signature->len, err);
    struct manifest m;
    if (st == ST_OK)
        st = manifest_decode(bytes->data, bytes->len, &m, err);
    if (st != ST_OK)
        return st;
    manifest_release(&core->manifest);
    core->manifest = m;
    buf_clear(&core->manifest_bytes);
    buf_put(&core->manifest_bytes, bytes->data, bytes->len);
    memcpy(core->signature, signature->data, SIGNATURE_LEN);
    return ST_OK;
}

/* ---- choosing ---------------------------------------------------------------------------------------------------- */

/* The version to have in place: where the alias points. Not ST_OK: why not to go there. */
static enum status choose(const struct subscribe_core *core, uint64_t wall_s, uint64_t *target, struct err *err)
{
    const char *follow = core->config.follow.s;
    const struct alias *alias = core->have_aliases ? aliases_find(&core->aliases, follow) : NULL;
    if (!alias)
        return err_set(err, ST_NOT_FOUND, "the line has no alias \"%s\" yet (alluvium promote VERSION %s)", follow,
                       follow);
    unsigned long long version = meant(core, alias);
    if (alias->expires_s && wall_s > alias->expires_s)
        return err_set(err, ST_ROLLBACK,
                       "what is known of \"%s\" has expired: the coordinator is silent, or its answers are held back",
                       follow);
    if (!known_find(core, version))
        return err_set(err, ST_EMPTY, "version %llu is not known yet", version);
    const struct mark *mark = aliases_mark(&core->aliases, alias->version, MARK_WITHDRAWN);
    if (mark && (version == alias->version || (core->has_current && version < core->current)))
        return err_set(err, ST_DENIED, "version %llu, where \"%s\" points, was withdrawn%s%s",
                       (unsigned long long)alias->version, follow, mark->reason[0] ? ": " : "", mark->reason);
    if (core->has_current && version < core->current)
        return err_set(err, ST_ROLLBACK,
                       "\"%s\" points back to version %llu while %llu is in place; going back takes a new number "
                       "(alluvium rollback %llu)",
                       follow, version, (unsigned long long)core->current, version);
    *target = version;
    return ST_OK;
}

static void next_step(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s)
{
    if (!core->n) {
        core->step = STEP_FIRST;
        return;
    }
    struct err err;
    core->target = core->current;
    enum status st = choose(core, wall_s, &core->target, &err);
    bool any = st == ST_OK || core->has_current; /* whatever speaks against the new one, the old one stays in place */
    bool told = core->has_served && core->served == core->current && !core->config.recheck_ms && !core->hook_text[0];
    if (st == ST_OK && core->hook_text[0])
        st = err_set(&err, ST_AGAIN, "%s", core->hook_text);
    trouble(core, st, err.text);
    if (any && (!core->in_place || core->target != core->current)) {
        core->step = STEP_MANIFEST;
    } else if (any && !told && now_ms >= core->hook_at_ms) {
        core->step = STEP_HOOK;
    } else {
        core->step = STEP_REPORT;
        core->retry_ms = 0;
    }
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static void ask(struct subscribe_core *core, uint16_t verb, ProtobufCMessage *message)
{
    core->effect.kind = SUBSCRIBE_SEND;
    core->effect.verb = verb;
    core->effect.message = message;
}

static void ask_watch(struct subscribe_core *core, uint64_t now_ms)
{
    uint64_t wait_ms = core->quick ? 0 : core->config.wait_ms;
    bool again = core->hook_text[0] || (core->config.recheck_ms && core->has_current);
    if (again && core->hook_at_ms < now_ms + wait_ms)
        wait_ms = core->hook_at_ms > now_ms ? core->hook_at_ms - now_ms : 0;
    alv__watch__init(&core->watch);
    core->watch.from = newest(core);
    core->watch.alias_seq = core->have_aliases ? core->alias_seq : 0;
    core->watch.wait_ms = (uint32_t)wait_ms;
    ask(core, VERB_WATCH, &core->watch.base);
}

static bool nothing_to_report(const struct subscribe_core *core)
{
    return core->has_said && core->said.staged == core->current && core->said.serving == core->served &&
           !strcmp(core->said.text, core->text);
}

static void ask_report(struct subscribe_core *core)
{
    core->said.staged = core->current;
    core->said.serving = core->served;
    snprintf(core->said.text, sizeof core->said.text, "%s", core->text);
    alv__serving__init(&core->serving);
    core->serving.staged = core->said.staged;
    core->serving.serving = core->said.serving;
    core->serving.target = core->config.target;
    core->serving.error = core->said.text;
    ask(core, VERB_SERVING, &core->serving.base);
}

static void after_report(struct subscribe_core *core, uint64_t now_ms)
{
    if (core->pause)
        wait_then(core, now_ms, STEP_WATCH);
    else
        core->step = STEP_WATCH;
    core->pause = false;
}

const struct subscribe_effect *subscribe_next(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s)
{
    (void)wall_s;
    if (core->asked)
        return &core->effect;
    core->effect = (struct subscribe_effect){.number = core->target};
    if (core->step == STEP_REPORT && nothing_to_report(core))
        after_report(core, now_ms);
    switch (core->step) {
    case STEP_WATCH:
        ask_watch(core, now_ms);
        break;
    case STEP_FIRST:
    case STEP_MANIFEST:
        alv__manifest_get__init(&core->get);
        core->get.number = core->step == STEP_FIRST ? 0 : core->target;
        ask(core, VERB_MANIFEST_GET, &core->get.base);
        break;
    case STEP_REPORT:
        ask_report(core);
        break;
    case STEP_SAVE:
        encode_state(core, &core->state);
        core->effect.kind = SUBSCRIBE_SAVE;
        core->effect.state = buf_bytes(&core->state);
        break;
    case STEP_STAGE:
        core->effect.kind = SUBSCRIBE_STAGE;
        core->effect.manifest = &core->manifest;
        core->effect.manifest_bytes = buf_bytes(&core->manifest_bytes);
        core->effect.signature = (struct bytes){core->signature, sizeof core->signature};
        break;
    case STEP_SWAP:
        core->effect.kind = SUBSCRIBE_SWAP;
        break;
    case STEP_HOOK:
        core->effect.kind = SUBSCRIBE_HOOK;
        core->effect.number = core->current;
        break;
    case STEP_WAIT:
        core->effect.kind = SUBSCRIBE_WAIT;
        core->effect.until_ms = core->wait_until_ms;
        break;
    }
    core->asked = true;
    core->asked_ms = now_ms;
    return &core->effect;
}

/* ---- answers ----------------------------------------------------------------------------------------------------- */

static void on_watch(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s, const Alv__WatchReply *reply)
{
    bool news, quick = core->quick;
    uint64_t n = core->n;
    struct err err;
    enum status st = take_watch(core, reply, wall_s, &news, &err);
    if (st != ST_OK) {
        trouble(core, st, err.text);
        wait_then(core, now_ms, STEP_WATCH);
        return;
    }
    core->quick = core->n != n;
    bool due = (core->hook_text[0] || core->config.recheck_ms) && core->hook_at_ms <= now_ms;
    core->pause = !news && !quick && !due && now_ms - core->asked_ms < QUICK_MS;
    next_step(core, now_ms, wall_s);
    if (news && core->n)
        save_then(core, core->step);
}

static void on_first(struct subscribe_core *core, uint64_t now_ms, const Alv__SignedManifest *reply)
{
    struct err err;
    enum status st = take_manifest(core, reply, &err);
    if (st != ST_OK) {
        trouble(core, st, err.text);
        wait_then(core, now_ms, STEP_WATCH);
        return;
    }
    core->quick = true; /* the first answer's versions could not be taken without this one */
    save_then(core, STEP_WATCH);
}

static void on_swapped(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s)
{
    core->in_place = true;
    core->hook_text[0] = 0;
    core->hook_at_ms = 0;
    core->hook_retry_ms = 0;
    if (!core->config.hook && !(core->has_served && core->served == core->current)) {
        core->has_served = true;
        core->served = core->current;
        next_step(core, now_ms, wall_s);
        save_then(core, core->step);
    } else {
        next_step(core, now_ms, wall_s);
    }
}

static void on_hook(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s, enum status status, const char *text)
{
    if (status == ST_OK) {
        bool known = core->has_served && core->served == core->current;
        core->hook_text[0] = 0;
        core->hook_retry_ms = 0;
        core->hook_at_ms = now_ms + core->config.recheck_ms;
        core->has_served = true;
        core->served = core->current;
        next_step(core, now_ms, wall_s);
        if (!known)
            save_then(core, core->step);
        return;
    }
    snprintf(core->hook_text, sizeof core->hook_text, "%s for version %llu: %s",
             core->config.recheck_ms ? "server" : "hook", (unsigned long long)core->current,
             text && *text ? text : status_name(status));
    core->hook_at_ms = now_ms + back_off(&core->hook_retry_ms, core->config.retry_ms_max);
    next_step(core, now_ms, wall_s);
}

/* Something that the disk or the coordinator refused: say so, wait, and begin again with a watch. */
static void on_failure(struct subscribe_core *core, uint64_t now_ms, enum status status, const char *text)
{
    trouble(core, status, text && *text ? text : status_name(status));
    if (core->step == STEP_SAVE) {
        wait_then(core, now_ms, STEP_SAVE);
    } else if (core->step == STEP_WATCH || core->step == STEP_FIRST) {
        wait_then(core, now_ms, STEP_WATCH);
    } else {
        core->step = STEP_REPORT;
        core->pause = true;
    }
}

void subscribe_answer(struct subscribe_core *core, uint64_t now_ms, uint64_t wall_s, enum status status,
                      const char *text, const ProtobufCMessage *reply)
{
    CHECK(core->asked);
    core->asked = false;
    struct err err;
    switch (core->step) {
    case STEP_WAIT:
        core->step = core->after_wait;
        return;
    case STEP_REPORT: /* a report that did not arrive is sent with the next change */
        core->has_said = status == ST_OK;
        after_report(core, now_ms);
        return;
    case STEP_HOOK:
        on_hook(core, now_ms, wall_s, status, text);
        return;
    default:
        break;
    }
    if (status != ST_OK) {
        on_failure(core, now_ms, status, text);
        return;
    }
    switch (core->step) {
    case STEP_WATCH:
        on_watch(core, now_ms, wall_s, (const Alv__WatchReply *)reply);
        break;
    case STEP_FIRST:
        on_first(core, now_ms, (const Alv__SignedManifest *)reply);
        break;
    case STEP_SAVE:
        core->step = core->after_save;
        break;
    case STEP_MANIFEST:
        status = take_target(core, (const Alv__SignedManifest *)reply, &err);
        if (status == ST_OK)
            core->step = STEP_STAGE;
        else
            on_failure(core, now_ms, status, err.text);
        break;
    case STEP_STAGE: /* what is to be current is saved before it is: a crash between the two only repeats the swap */
        if (core->has_current && core->current == core->target) {
            core->step = STEP_SWAP;
        } else {
            core->has_current = true;
            core->current = core->target;
            core->in_place = false;
            save_then(core, STEP_SWAP);
        }
        break;
    case STEP_SWAP:
        on_swapped(core, now_ms, wall_s);
        break;
    default:
        CHECK(!"unreachable");
    }
}
