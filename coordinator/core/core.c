/* The step: dispatch, the one batch, and what is sent when. */
#include "coordinator/core/core.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "coordinator/core/internal.h"

/* ---- effects */

static void effect_release(struct effect *e)
{
    if (e->kind == EFFECT_SEND)
        protobuf_c_message_free_unpacked(e->send.message, NULL);
    else if (e->kind == EFFECT_PERSIST)
        batch_release(&e->persist.batch);
    else if (e->kind == EFFECT_AGGREGATE)
        free(e->aggregate.deltas);
}

void effects_clear(struct effects *effects)
{
    for (uint32_t i = 0; i < effects->n; i++)
        effect_release(&effects->items[i]);
    effects->n = 0;
}

void effects_release(struct effects *effects)
{
    effects_clear(effects);
    free(effects->items);
    *effects = (struct effects){0};
}

static void emit(struct effects *effects, const struct effect *e)
{
    GROW(effects->items, effects->n, effects->cap);
    effects->items[effects->n++] = *e;
}

struct effect *add_effect(struct core *core, enum effect_kind kind)
{
    GROW(core->fresh, core->fresh_n, core->fresh_cap);
    struct effect *e = &core->fresh[core->fresh_n++];
    memset(e, 0, sizeof *e);
    e->kind = kind;
    return e;
}

void drop_blob(struct core *core, const struct digest *digest)
{
    if (!digest_is_zero(digest))
        add_effect(core, EFFECT_DROP_BLOB)->drop = *digest;
}

void drop_files(struct core *core, const struct version_files *files)
{
    drop_blob(core, &files->peft);
    drop_blob(core, &files->gguf);
    drop_blob(core, &files->state);
}

const struct digest *training_state(const struct version_files *files, uint64_t *bytes)
{
    bool own = !digest_is_zero(&files->state);
    if (bytes)
        *bytes = own ? files->state_bytes : files->peft_bytes;
    return own ? &files->state : &files->peft;
}

/* ---- messages */

void *new_message(const ProtobufCMessageDescriptor *descriptor)
{
    ProtobufCMessage *m = xcalloc(1, descriptor->sizeof_message);
    descriptor->message_init(m);
    return m;
}

void set_bytes(ProtobufCBinaryData *field, const void *data, size_t len)
{
    field->data = len ? xmemdup(data, len) : NULL;
    field->len = len;
}

void reply(struct core *core, const struct peer *peer, uint64_t request, enum verb verb, void *message)
{
    struct effect *e = add_effect(core, EFFECT_SEND);
    e->send.peer = *peer;
    e->send.verb = (uint16_t)verb;
    e->send.request = request;
    e->send.message = message;
}

void reply_ok(struct core *core, const struct peer *peer, uint64_t request, enum verb verb)
{
    Alv__Ok *ok = new_message(&alv__ok__descriptor);
    ok->seq = core->batch.n ? core->seq + 1 : core->seq;
    reply(core, peer, request, verb, ok);
}

void refuse_text(struct core *core, const struct event *event, enum status status, uint32_t retry_ms, const char *text)
{
    Alv__Error *e = new_message(&alv__error__descriptor);
    e->status = status;
    e->text = xstrdup(text);
    e->retry_ms = retry_ms;
    reply(core, &event->peer, event->request, VERB_ERROR, e);
}

/* ---- the batch of a step */

void put_key(struct core *core, uint8_t family, struct state_key key, const struct buf *value)
{
    batch_put(&core->batch, family, key.b, key.len, value->data, value->len);
}

void delete_key(struct core *core, uint8_t family, struct state_key key)
{
    batch_delete(&core->batch, family, key.b, key.len);
}

void wake(struct core *core, uint64_t at_ms)
{
    if (at_ms < core->deadline)
        core->deadline = at_ms;
}

static void put_applied(struct batch *batch, uint64_t seq)
{
    struct state_key key = key_plain('s');
    struct buf v = {0};
    buf_put_u64(&v, seq);
    batch_put(batch, FAMILY_META, key.b, key.len, v.data, v.len);
    buf_release(&v);
}

static void release_parked(struct core *core, struct effects *effects)
{
    while (core->parked_head < core->parked_n && core->parked[core->parked_head].seq <= core->committed)
        emit(effects, &core->parked[core->parked_head++].effect);
    if (2 * core->parked_head > core->parked_n) {
        core->parked_n -= core->parked_head;
        memmove(core->parked, core->parked + core->parked_head, core->parked_n * sizeof *core->parked);
        core->parked_head = 0;
    }
}

static void finish_step(struct core *core, struct effects *effects)
{
    for (uint32_t i = 0; i < core->n_domains; i++)
        if (core->domains[i]->dirty) {
            core->domains[i]->dirty = false;
            PUT(core, FAMILY_META, key_u16('d', (uint16_t)i), state_domain, &core->domains[i]->d);
        }
    if (core->counters_dirty) {
        core->counters_dirty = false;
        PUT(core, FAMILY_META, key_plain('c'), state_counters, &core->counters);
    }
    if (core->batch.n) {
        put_applied(&core->batch, ++core->seq);
        struct effect e = {.kind = EFFECT_PERSIST, .persist = {.seq = core->seq, .batch = core->batch}};
        core->batch = (struct batch){0};
        emit(effects, &e);
    }
    bool planted = core->config.planted & PLANT_ACK_BEFORE_COMMIT;
    for (size_t i = 0; i < core->fresh_n; i++) {
        if (planted && core->fresh[i].kind == EFFECT_SEND) {
            emit(effects, &core->fresh[i]);
            continue;
        }
        GROW(core->parked, core->parked_n, core->parked_cap);
        core->parked[core->parked_n++] = (struct parked){core->seq, core->fresh[i]};
    }
    core->fresh_n = 0;
    release_parked(core, effects);
}

/* ---- sessions */

const struct state_session *session_now(const struct core *core)
{
    return &core->sessions[core->sessions_n - 1];
}

bool session_known(const struct core *core, uint64_t counter, ProtobufCBinaryData incarnation)
{
    for (size_t i = core->sessions_n; i-- > 0 && core->sessions[i].counter >= counter;)
        if (core->sessions[i].counter == counter)
            return incarnation.len == 16 && !memcmp(core->sessions[i].incarnation, incarnation.data, 16);
    return false;
}

bool session_forgotten(const struct core *core, uint64_t counter)
{
    for (size_t i = 1; i < core->sessions_n; i++)
        if (core->sessions[i - 1].counter < counter && counter < core->sessions[i].counter)
            return true;
    return false;
}

bool session_grants(const struct core *core, uint64_t counter, ProtobufCBinaryData incarnation)
{
    for (size_t i = core->sessions_n; i-- > 1 && core->sessions[i].counter > counter;)
        if (core->sessions[i].counter > core->sessions[i - 1].counter + 1)
            return false;
    return session_known(core, counter, incarnation);
}

/* ---- loading */

struct core *core_new(const struct core_config *config)
{
    struct core *core = xcalloc(1, sizeof *core);
    core->config = *config;
    core->deadline = core->pending_since = core->round_granted_ms = core->quorum_ms = core->aggregate_at = NEVER;
    core->versions_oldest = NEVER;
    return core;
}

void core_free(struct core *core)
{
    if (!core)
        return;
    for (uint32_t i = 0; i < core->n_domains; i++)
        domain_free(core->domains[i]);
    for (size_t i = 0; i < core->streams_n; i++)
        if (core->streams[i]) {
            state_stream_release(core->streams[i]);
            free(core->streams[i]);
        }
    for (size_t i = core->overlay_head; i < core->overlay_n; i++)
        free(core->overlay[i].id);
    for (size_t i = 0; i < core->held_n; i++)
        state_quarantine_release(&core->held[i].q);
    for (size_t i = core->parked_head; i < core->parked_n; i++)
        effect_release(&core->parked[i].effect);
    for (size_t i = 0; i < core->versions_n; i++)
        free(core->versions[i].manifest);
    for (size_t i = 0; i < core->tokens_n; i++)
        free(core->tokens[i].reply);
    lease_forget_all(core);
    evaluate_release(core);
    roster_release(core);
    aliases_release(&core->aliases);
    buf_release(&core->alias_statement);
    batch_release(&core->batch);
    map_release(&core->stream_index);
    map_release(&core->contents);
    map_release(&core->ids);
    map_release(&core->holder_by_id);
    free(core->holders);
    free(core->fresh);
    free(core->parked);
    free(core->sessions);
    free(core->streams);
    free(core->overlay);
    free(core->exclusions);
    free(core->held);
    free(core->old_acks);
    free(core->versions);
    free(core->tokens);
    free(core);
}

static void set_range(struct load_range *out, uint8_t family, struct state_key from, struct state_key to)
{
    out->family = family;
    memcpy(out->from, from.b, sizeof out->from);
    memcpy(out->to, to.b, sizeof out->to);
    out->from_len = from.len;
    out->to_len = to.len;
}

bool core_load_next(struct core *core, struct load_range *out)
{
    static const struct {
        uint8_t family;
        char from, to;
    } fixed[] = {
        {FAMILY_META, 'A', '\x7f'}, {FAMILY_STREAM, 'w', 'x'}, {FAMILY_STREAM, 'z', '{'}, {FAMILY_STREAM, 't', 'u'},
        {FAMILY_LEASES, 'l', 'm'},  {FAMILY_DELTAS, 'd', 'e'}, {FAMILY_MATRIX, 'e', 'f'}, {FAMILY_AUDIT, 't', 'u'},
    };
    enum { FIXED = sizeof fixed / sizeof fixed[0] };
    if (core->load_stage < FIXED) {
        unsigned i = core->load_stage++;
        set_range(out, fixed[i].family, key_plain(fixed[i].from), key_plain(fixed[i].to));
        return true;
    }
    uint64_t newest = core->counters.version;
    uint64_t oldest = newest >= VERSIONS_HELD ? newest - VERSIONS_HELD + 1 : 0;
    if (core->load_stage == FIXED) {
        core->load_stage++;
        set_range(out, FAMILY_VERSIONS, key_u64('m', oldest), key_plain('n'));
        return true;
    }
    while (core->load_at < core->n_domains) { /* references are asked for their files, however old */
        uint64_t reference = core->domains[core->load_at++]->d.reference;
        if (reference < oldest && !version_find(core, reference)) {
            set_range(out, FAMILY_VERSIONS, key_u64('m', reference), key_u64('m', reference + 1));
            return true;
        }
    }
    return false;
}

static bool load_domain(struct core *core, struct bytes key, struct bytes value)
{
    struct state_domain v;
    struct reader r = reader_of(key.data, key.len);
    read_u8(&r);
    uint16_t id = read_u16_be(&r);
    if (!reader_done(&r) || id != core->n_domains || id >= LIMIT_DOMAINS || !state_domain_get(value, &v) ||
        !v.name.s[0])
        return false;
    struct domain *d = domain_new(core, v.name.s);
    d->d = v;
    d->hint = v.watermark;
    d->dirty = false;
    for (uint32_t i = 0; i < v.n_overrides; i++)
        if (settings_set(&d->settings, v.overrides[i].name, v.overrides[i].value, NULL))
            return false;
    return true;
}

static bool load_meta(struct core *core, struct bytes key, struct bytes value)
{
    struct reader r = reader_of(value.data, value.len);
    uint64_t n = 0, first;
    struct domain_id domain;
    switch (key.data[0]) {
    case 'S': {
        GROW(core->sessions, core->sessions_n, core->sessions_cap);
        return core->sessions_n < SESSIONS_MAX && state_session_get(value, &core->sessions[core->sessions_n++]);
    }
    case 'a': {
        bool ok =
            value.len > SIGNATURE_LEN && !aliases_decode(value.data, value.len - SIGNATURE_LEN, &core->aliases, NULL);
        if (ok) {
            buf_put(&core->alias_statement, value.data, value.len - SIGNATURE_LEN);
            memcpy(core->alias_signature, value.data + value.len - SIGNATURE_LEN, SIGNATURE_LEN);
        }
        return ok;
    }
    case 'c':
        return state_counters_get(value, &core->counters);
    case 'd':
        return load_domain(core, key, value);
    case 'e': {
        struct state_exclusion v;
        if (!key_read_u64(key, &n) || !state_exclusion_get(value, &v) || n != core->exclusions_n + 1 ||
            v.domain.v >= core->n_domains)
            return false;
        GROW(core->exclusions, core->exclusions_n, core->exclusions_cap);
        core->exclusions[core->exclusions_n++] =
            (struct state_exclusion_packed){v.first, v.watermark, v.count, v.domain.v, v.state};
        core->erase_seq = v.state == SEG_RETRACTED ? n : core->erase_seq;
        return true;
    }
    case 'f':
        return read_u32(&r) == STATE_FORMAT && reader_done(&r);
    case 'h': {
        struct state_holder v;
        struct hash16 id;
        if (key.len != 1 + sizeof id.b || !state_holder_get(value, &v))
            return false;
        memcpy(id.b, key.data + 1, sizeof id.b);
        return retract_load(core, &id, &v);
    }
    case 'k': {
        struct state_link v;
        if (!key_read_domain(key, &domain, &first) || domain.v >= core->n_domains || !state_link_get(value, &v) ||
            v.source >= first)
            return false;
        domain_add_link(core->domains[domain.v], &(struct link){first, v});
        return true;
    }
    case 'l': {
        struct state_line v;
        struct digest card;
        card_digest(&core->config.card, &card);
        return state_line_get(value, &v) && name_eq(&v.name, &core->config.line) && digest_eq(&v.card, &card);
    }
    case 'p': {
        struct state_stream v;
        return key_read_u64(key, &n) && state_stream_get(value, &v) && v.domain.v < core->n_domains &&
               stream_add(core, n, &v);
    }
    case 'q': {
        struct held held;
        if (!key_read_u64(key, &held.id) || !state_quarantine_get(value, &held.q))
            return false;
        GROW(core->held, core->held_n, core->held_cap);
        core->held[core->held_n++] = held;
        return true;
    }
    case 'r':
        return state_round_get(value, &core->round);
    case 's':
        core->seq = core->committed = read_u64(&r);
        return reader_done(&r);
    }
    return false;
}

static bool load_stream(struct core *core, struct bytes key, struct bytes value)
{
    struct domain_id domain;
    uint64_t first;
    if (!key_read_domain(key, &domain, &first) || domain.v >= core->n_domains)
        return false;
    struct domain *d = core->domains[domain.v];
    if (key.data[0] == 'w') {
        struct state_windows v;
        if (!state_windows_get(value, &v) || v.count != 1)
            return false;
        domain_load_window(core, d, first, &v);
        return true;
    }
    if (key.data[0] == 'z') {
        struct state_sizes v;
        uint64_t next = d->d.watermark + d->n;
        if (!state_sizes_get(value, &v) || first > next || first + v.count < next || first + v.count > d->d.train_next)
            return false;
        domain_load_slots(d, first, v.wall_s, v.sizes, v.count);
        return true;
    }
    struct state_settled v;
    if (!state_settled_get(value, &v) || !state_terminal(v.state) || !domain_slot(d, first) ||
        (v.count && !domain_slot(d, first + v.count - 1)))
        return false;
    for (uint32_t i = 0; i < v.count; i++) {
        struct slot *slot = domain_slot(d, first + i);
        d->count[slot->state]--, d->bytes[slot->state] -= slot->bytes;
        slot->state = v.state;
        d->count[slot->state]++, d->bytes[slot->state] += slot->bytes;
    }
    GROW(d->settled, d->settled_n, d->settled_cap);
    d->settled[d->settled_n++] = (struct settled_range){first, v};
    return true;
}

static bool load_lease(struct core *core, struct bytes value)
{
    struct state_lease v;
    if (!state_lease_get(value, &v))
        return false;
    bool ok = core->n_leases < ROUND_LEASES_MAX;
    for (uint32_t i = 0; i < v.n_ranges && ok; i++) {
        struct range r = v.ranges[i];
        struct domain *d = r.domain.v < core->n_domains ? core->domains[r.domain.v] : NULL;
        for (uint32_t j = 0; j < r.count && ok; j++) {
            struct slot *slot = d ? domain_slot(d, r.first + j) : NULL;
            if (!slot || slot->state != SEG_PENDING) {
                ok = false;
                break;
            }
            d->count[SEG_PENDING]--, d->bytes[SEG_PENDING] -= slot->bytes;
            slot->state = v.phase == LEASE_ACCEPTED ? SEG_ACCEPTED : SEG_LEASED;
            d->count[slot->state]++, d->bytes[slot->state] += slot->bytes;
        }
    }
    if (!ok) {
        state_lease_release(&v);
        return false;
    }
    struct lease *l = xcalloc(1, sizeof *l);
    l->s = v;
    core->leases[core->n_leases++] = l;
    core->n_open += v.phase == LEASE_OPEN;
    core->n_accepted += v.phase == LEASE_ACCEPTED;
    return true;
}

static bool load_delta(struct core *core, struct bytes value)
{
    struct state_delta v;
    if (!state_delta_get(value, &v))
        return false;
    struct lease *l = lease_find(core, v.lease, NULL);
    if (l && l->s.phase == LEASE_ACCEPTED) {
        l->delta = v;
        return true;
    }
    core->old_acks = xrealloc_array(core->old_acks, core->old_acks_n + 1, sizeof *core->old_acks);
    core->old_acks[core->old_acks_n++] = (struct old_ack){v.lease, v.generation};
    return true;
}

enum status core_load(struct core *core, uint8_t family, struct bytes key, struct bytes value, struct err *err)
{
    bool ok = false;
    if (key.len) {
        if (family == FAMILY_META)
            ok = load_meta(core, key, value);
        else if (family == FAMILY_STREAM)
            ok = load_stream(core, key, value);
        else if (family == FAMILY_LEASES)
            ok = load_lease(core, value);
        else if (family == FAMILY_DELTAS)
            ok = load_delta(core, value);
        else if (family == FAMILY_MATRIX) {
            struct state_losses v;
            struct reader r = reader_of(key.data, key.len);
            read_u8(&r), read_u64_be(&r);
            uint64_t task = read_u64_be(&r);
            if ((ok = reader_done(&r) && state_losses_get(value, &v))) {
                evaluate_load(core, task, &v);
                state_losses_release(&v);
            }
        } else if (family == FAMILY_VERSIONS) {
            struct state_version v;
            uint64_t number;
            if ((ok = key_read_u64(key, &number) && state_version_get(value, &v)))
                version_hold(core, number, &v, core->load_at == 0);
        } else if (family == FAMILY_AUDIT) {
            struct state_token v;
            ok = state_token_get(value, &v) && !token_load(core, &v);
        }
    }
    if (ok)
        return ST_OK;
    char hex[2 * 32 + 1];
    hex_encode(key.data, key.len < 32 ? key.len : 32, hex);
    return err_set(err, ST_CORRUPT, "family %u, key %s: not a value of this line in format %u", family, hex,
                   STATE_FORMAT);
}

/* ---- starting */

static void apply_exclusions(struct core *core)
{
    for (size_t i = 0; i < core->exclusions_n; i++) {
        struct state_exclusion_packed *x = &core->exclusions[i];
        struct domain *d = core->domains[x->domain];
        if (x->first + x->count <= d->d.watermark || x->state == SEG_QUARANTINED)
            continue;
        for (uint32_t j = 0; j < x->count; j++) {
            struct slot *slot = domain_slot(d, x->first + j);
            if (slot && !state_terminal(slot->state))
                slot->excluded = x->state;
        }
    }
}

static void start(struct core *core, const struct event *event)
{
    struct state_session session = {.counter = 1};
    memcpy(session.incarnation, event->incarnation, 16);
    if (core->sessions_n) {
        session.counter = session_now(core)->counter + 1;
        memcpy(session.previous, session_now(core)->incarnation, 16);
    }
    GROW(core->sessions, core->sessions_n, core->sessions_cap);
    core->sessions[core->sessions_n++] = session;
    PUT(core, FAMILY_META, key_u64('S', session.counter), state_session, &session);
    core->started = true;
    apply_exclusions(core);
    planner_pending(core);
    retract_start(core);
    for (uint32_t i = 0; i < core->n_leases; i++)
        if (core->leases[i]->s.phase == LEASE_GRANTED) {
            core->leases[i]->silent_at = core->now + core->config.settings.lease_silence_ms;
            core->leases[i]->granted_ms = core->round_granted_ms = core->now;
            wake(core, core->leases[i]->silent_at);
        }
    if (core->counters.refusals) {
        core->rest_until = core->now + core->counters.refusals * (uint64_t)core->config.settings.round_wait_ms;
        wake(core, core->rest_until);
    }
    if (core->round.phase == ROUND_AGGREGATING)
        round_aggregate(core);
    else if (core->round.phase == ROUND_EVALUATING)
        evaluate_start(core);
}

/* ---- stepping */

static void exclusions_get(struct core *core, const struct event *event)
{
    const Alv__ExclusionsGet *get = (const Alv__ExclusionsGet *)event->message;
    Alv__Exclusions *out = new_message(&alv__exclusions__descriptor);
    uint64_t from = get->since < core->exclusions_n ? get->since : core->exclusions_n;
    size_t n = core->exclusions_n - from < LIMIT_EXCLUSIONS ? core->exclusions_n - from : LIMIT_EXCLUSIONS;
    out->newest = core->exclusions_n;
    out->entries = n ? xcalloc(n, sizeof *out->entries) : NULL;
    for (; out->n_entries < n; out->n_entries++) {
        struct state_exclusion_packed *x = &core->exclusions[from + out->n_entries];
        Alv__Exclusion *e = out->entries[out->n_entries] = new_message(&alv__exclusion__descriptor);
        e->seq = from + out->n_entries + 1;
        e->domain = x->domain;
        e->first = x->first;
        e->count = x->count;
        e->watermark = x->watermark;
        e->erase = x->state == SEG_RETRACTED;
    }
    reply(core, &event->peer, event->request, VERB_EXCLUSIONS, out);
}

static void message(struct core *core, const struct event *event)
{
    if (event->verb == VERB_HELLO) {
        roster_hello(core, event);
        return;
    }
    struct member *m = roster_find(core, &event->peer);
    if (!m) {
        refuse(core, event, ST_CONFLICT, 0,
               "say hello first: this connection is not known, or a newer start of this "
               "instance took its place");
        return;
    }
    roster_heard(core, m);
    switch (event->verb) {
    case VERB_PUSH_OPEN:
        intake_open(core, event);
        break;
    case VERB_PUSH_BATCH:
        intake_push(core, event);
        break;
    case VERB_TASK_REQUEST:
        lease_request(core, event, m);
        break;
    case VERB_PROGRESS:
        lease_progress(core, event, m);
        break;
    case VERB_TASK_RETURN:
        lease_return_task(core, event, m);
        break;
    case VERB_DELTA_COMMIT:
        lease_commit(core, event, m);
        break;
    case VERB_EVAL_RESULT:
        evaluate_result(core, event, m);
        break;
    case VERB_EXCLUSIONS_GET:
        exclusions_get(core, event);
        break;
    case VERB_WATCH:
        release_watch(core, event, m);
        break;
    case VERB_SERVING: {
        const Alv__Serving *s = (const Alv__Serving *)event->message;
        m->staged = s->staged;
        m->serving = s->serving;
        FORMAT(m->target, "%s", s->target);
        FORMAT(m->error, "%s", s->error);
        reply_ok(core, &event->peer, event->request, VERB_SERVING_OK);
        break;
    }
    case VERB_CONTROL:
        control(core, event, m);
        break;
    default:
        refuse(core, event, ST_UNSUPPORTED, 0, "verb %u is not answered here", event->verb);
    }
}

static void tick(struct core *core)
{
    core->deadline = NEVER;
    roster_expire(core);
    lease_expire(core);
    evaluate_expire(core);
    release_expire(core);
    if (core->aggregate_at <= core->now)
        round_aggregate(core);
    else
        wake(core, core->aggregate_at);
    if (core->rest_until > core->now)
        wake(core, core->rest_until);
    if (core->gather_until > core->now)
        wake(core, core->gather_until);
}

void core_step(struct core *core, const struct event *event, struct effects *effects)
{
    core->now = event->now_ms;
    if (event->wall_s)
        core->wall_s = event->wall_s;
    CHECK(core->started == (event->kind != EVENT_START));
    switch (event->kind) {
    case EVENT_START:
        start(core, event);
        break;
    case EVENT_MESSAGE:
        message(core, event);
        break;
    case EVENT_PEER_GONE:
        roster_gone(core, &event->peer);
        break;
    case EVENT_COMMITTED:
        CHECK(event->seq <= core->seq);
        if (event->seq > core->committed)
            core->committed = event->seq;
        intake_committed(core);
        break;
    case EVENT_AGGREGATED:
        round_aggregated(core, event);
        break;
    case EVENT_TICK:
        tick(core);
        break;
    case EVENT_PURGED:
        retract_purged(core, event->seq);
        break;
    case EVENT_DISK_LOW:
        core->disk_low = event->low;
        break;
    }
    if (event->kind != EVENT_COMMITTED) {
        planner_open_round(core);
        round_check(core);
        evaluate_check(core);
        lease_serve(core);
        release_serve(core);
    }
    finish_step(core, effects);
}

uint64_t core_deadline(const struct core *core)
{
    return core->deadline;
}

uint64_t core_versions_oldest(const struct core *core)
{
    return core->versions_oldest;
}

/* ---- a new line */

void core_init_line(const struct core_config *config, const struct version_files *v0, uint64_t wall_s,
                    struct batch *out)
{
    struct core *core = core_new(config);
    core->wall_s = wall_s;
    struct state_line line = {.name = config->line};
    card_digest(&config->card, &line.card);
    struct buf format = {0};
    buf_put_u32(&format, STATE_FORMAT);
    put_key(core, FAMILY_META, key_plain('f'), &format);
    buf_release(&format);
    PUT(core, FAMILY_META, key_plain('l'), state_line, &line);
    PUT(core, FAMILY_META, key_plain('r'), state_round, &core->round);
    PUT(core, FAMILY_META, key_plain('c'), state_counters, &core->counters);
    struct domain *general = domain_new(core, "general");
    PUT(core, FAMILY_META, key_u16('d', 0), state_domain, &general->d);
    release_init(core, v0);
    put_applied(&core->batch, 1);
    batch_append(out, &core->batch);
    core_free(core);
}
