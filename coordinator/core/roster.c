/* Who is here: one member per (plane, key, instance); the newest start of an instance fences the older ones. */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/card.h"
#include "base/check.h"
#include "coordinator/core/internal.h"
#include "proto/frame.h"

static struct hash16 conn_key(const struct peer *peer)
{
    return map_key(peer->conn, 1 + (uint64_t)peer->plane);
}

struct hash16 roster_id(const struct core *core, const struct peer *peer, const uint8_t instance[16])
{
    struct buf b = {0};
    struct hash16 h;
    buf_put_u8(&b, (uint8_t)peer->plane);
    buf_put(&b, instance, 16);
    buf_put_str(&b, peer->key.s);
    crypto_generichash(h.b, sizeof h.b, b.data, b.len, core->config.seed.b, sizeof core->config.seed.b);
    buf_release(&b);
    return h;
}

struct member *roster_find(struct core *core, const struct peer *peer)
{
    uint64_t at;
    struct hash16 key = conn_key(peer);
    if (!map_get(&core->member_by_conn, &key, &at))
        return NULL;
    struct member *m = core->members[at];
    return m->peer.conn == peer->conn && name_eq(&m->peer.key, &peer->key) ? m : NULL;
}

/* ---- who waits: one list a plane, and all of them in a heap by when their wait is over */

static void timer_put(struct core *core, size_t at, struct member *m)
{
    core->timers[at] = m;
    m->timer_at = at;
}

static void timer_up(struct core *core, size_t at, struct member *m)
{
    for (; at && m->until_ms < core->timers[(at - 1) / 2]->until_ms; at = (at - 1) / 2)
        timer_put(core, at, core->timers[(at - 1) / 2]);
    timer_put(core, at, m);
}

static void timer_down(struct core *core, size_t at, struct member *m)
{
    for (size_t child; (child = 2 * at + 1) < core->timers_n; at = child) {
        if (child + 1 < core->timers_n && core->timers[child + 1]->until_ms < core->timers[child]->until_ms)
            child++;
        if (core->timers[child]->until_ms >= m->until_ms)
            break;
        timer_put(core, at, core->timers[child]);
    }
    timer_put(core, at, m);
}

void roster_unpark(struct core *core, struct member *m)
{
    enum plane plane = m->peer.plane;
    if (!m->waiting)
        return;
    m->waiting = false;
    struct member *last = core->waiting[plane][--core->waiting_n[plane]];
    core->waiting[plane][last->wait_at = m->wait_at] = last;
    struct member *moved = core->timers[--core->timers_n];
    if (moved == m)
        return;
    timer_down(core, m->timer_at, moved);
    timer_up(core, moved->timer_at, moved);
}

void roster_park(struct core *core, struct member *m, uint64_t request, uint32_t wait_ms)
{
    enum plane plane = m->peer.plane;
    roster_unpark(core, m);
    m->waiting = true;
    m->request = request;
    m->until_ms = core->now + (wait_ms < LIMIT_WAIT_MS ? wait_ms : LIMIT_WAIT_MS);
    GROW(core->waiting[plane], core->waiting_n[plane], core->waiting_cap[plane]);
    m->wait_at = core->waiting_n[plane]++;
    core->waiting[plane][m->wait_at] = m;
    GROW(core->timers, core->timers_n, core->timers_cap);
    timer_up(core, core->timers_n++, m);
    wake(core, m->until_ms);
}

void roster_expire(struct core *core)
{
    while (core->timers_n && core->timers[0]->until_ms <= core->now) {
        core->scanned++;
        if (core->timers[0]->peer.plane == PLANE_WORK)
            lease_none(core, core->timers[0]);
        else
            release_answer(core, core->timers[0]);
    }
    if (core->timers_n)
        wake(core, core->timers[0]->until_ms);
}

/* ---- who was heard of when */

static void leave_queue(struct member *m)
{
    struct queue *q = m->queue;
    if (!q)
        return;
    *(m->older ? &m->older->newer : &q->oldest) = m->newer;
    *(m->newer ? &m->newer->older : &q->newest) = m->older;
    m->older = m->newer = NULL;
    m->queue = NULL;
    q->n--;
}

static void join_queue(struct queue *q, struct member *m)
{
    leave_queue(m);
    m->older = q->newest;
    *(q->newest ? &q->newest->newer : &q->oldest) = m;
    q->newest = m;
    m->queue = q;
    q->n++;
}

void roster_heard(struct core *core, struct member *m)
{
    m->seen_ms = core->now;
    if (m->peer.plane == PLANE_WORK)
        join_queue(&core->present, m);
    else
        leave_queue(m);
}

uint32_t roster_workers(struct core *core)
{
    while (core->present.n && core->now - core->present.oldest->seen_ms >= PRESENT_MS) {
        core->scanned++;
        leave_queue(core->present.oldest);
    }
    return (uint32_t)core->present.n;
}

/* ---- coming and going */

/* Takes a member out; the last one moves to its place. */
static void remove_at(struct core *core, size_t at)
{
    struct member *m = core->members[at];
    struct hash16 conn = conn_key(&m->peer), id = roster_id(core, &m->peer, m->instance);
    roster_unpark(core, m);
    leave_queue(m);
    map_delete(&core->member_by_conn, &conn);
    map_delete(&core->member_by_id, &id);
    free(m);
    core->members[at] = core->members[--core->members_n];
    if (at == core->members_n)
        return;
    m = core->members[at];
    id = roster_id(core, &m->peer, m->instance);
    map_put(&core->member_by_id, &id, at);
    if (m->here) {
        conn = conn_key(&m->peer);
        map_put(&core->member_by_conn, &conn, at);
    }
}

/* Room for one more: the member that has been gone for longest leaves. false: all are here. */
static bool make_room(struct core *core)
{
    if (core->members_n < MEMBERS_MAX)
        return true;
    uint64_t at;
    struct member *m = core->gone.oldest;
    struct hash16 id;
    if (!m)
        return false;
    id = roster_id(core, &m->peer, m->instance);
    CHECK(map_get(&core->member_by_id, &id, &at));
    remove_at(core, at);
    return true;
}

void roster_gone(struct core *core, const struct peer *peer)
{
    struct member *m = roster_find(core, peer);
    if (!m)
        return;
    struct hash16 conn = conn_key(peer);
    map_delete(&core->member_by_conn, &conn);
    roster_unpark(core, m);
    m->here = false; /* leases it works on live on: it may come back on another connection */
    join_queue(&core->gone, m);
    if (m->peer.plane == PLANE_WORK)
        lease_undelivered(core, m);
}

/* A member for this hello, or NULL with the refusal sent. */
static struct member *admit(struct core *core, const struct event *event, const Alv__Hello *hello)
{
    struct hash16 conn = conn_key(&event->peer), id = roster_id(core, &event->peer, hello->instance.data);
    uint64_t at;
    if (map_get(&core->member_by_id, &id, &at)) {
        struct member *m = core->members[at];
        if (hello->boot < m->boot) {
            refuse(core, event, ST_CONFLICT, 0, "a newer start of this instance is here (%llu, this is %llu)",
                   (unsigned long long)m->boot, (unsigned long long)hello->boot);
            return NULL;
        }
        struct hash16 old = conn_key(&m->peer);
        map_delete(&core->member_by_conn, &old);
        roster_unpark(core, m);
        m->peer = event->peer;
        m->boot = hello->boot;
    } else {
        if (!make_room(core)) {
            refuse(core, event, ST_AGAIN, 10 * RETRY_MS, "%u peers are connected, the most there may be", MEMBERS_MAX);
            return NULL;
        }
        struct member *m = xcalloc(1, sizeof *m);
        m->peer = event->peer;
        m->boot = hello->boot;
        memcpy(m->instance, hello->instance.data, 16);
        at = core->members_n++;
        core->members[at] = m;
        map_put(&core->member_by_id, &id, at);
        if (event->peer.plane == PLANE_WORK) {
            core->gather_until = core->now + GATHER_MS;
            wake(core, core->gather_until);
        }
    }
    map_put(&core->member_by_conn, &conn, at);
    core->members[at]->here = true;
    roster_heard(core, core->members[at]);
    return core->members[at];
}

/* The peer knows a session of ours; ours must know it too, or know that it has forgotten it. */
static bool same_history(struct core *core, const struct event *event, const Alv__Hello *hello)
{
    if (!hello->session_counter || session_known(core, hello->session_counter, hello->session_incarnation) ||
        session_forgotten(core, hello->session_counter))
        return true;
    FORMAT(core->refused_alarm,
           "key %s knows another session %llu than this data directory: it is a copy or an old backup",
           event->peer.key.s, (unsigned long long)hello->session_counter);
    refuse(core, event, ST_VERIFY, 0,
           "session %llu is another one here: this coordinator runs on a copy or an old backup "
           "of its data",
           (unsigned long long)hello->session_counter);
    return false;
}

void roster_hello(struct core *core, const struct event *event)
{
    const Alv__Hello *hello = (const Alv__Hello *)event->message;
    bool worker = event->peer.plane == PLANE_WORK;
    struct digest card;
    card_digest_trained(&core->config.card, &card);
    if (hello->instance.len != 16) {
        refuse(core, event, ST_BAD_DATA, 0, "hello: instance must be 16 bytes");
        return;
    }
    if (!protocol_pick(hello->protocol_min, hello->protocol_max)) {
        refuse(core, event, ST_UNSUPPORTED, 0,
               "protocol %u to %u: this coordinator speaks %d to %d; run releases next to each other",
               hello->protocol_min, hello->protocol_max, PROTOCOL_MIN, PROTOCOL_VERSION);
        return;
    }
    if (hello->line[0] && strcmp(hello->line, core->config.line.s)) {
        refuse(core, event, ST_CONFLICT, 0, "this is line \"%s\", not \"%s\"", core->config.line.s, hello->line);
        return;
    }
    if (worker && (hello->card_digest.len != DIGEST_LEN || memcmp(hello->card_digest.data, card.b, DIGEST_LEN))) {
        refuse(core, event, ST_CONFLICT, 0, "this worker's base or tokenizer is not that of the line (%s)",
               core->config.card.base_name);
        return;
    }
    if (!same_history(core, event, hello))
        return;
    struct member *m = admit(core, event, hello);
    if (!m)
        return;
    if (worker) {
        lease_newer_boot(core, m);
        evaluate_newer_boot(core, m);
    }
    const struct state_session *now = session_now(core);
    struct buf bytes = {0};
    card_encode(&core->config.card, &bytes);
    Alv__HelloOk *ok = new_message(&alv__hello_ok__descriptor);
    ok->protocol = protocol_pick(hello->protocol_min, hello->protocol_max);
    ok->line = xstrdup(core->config.line.s);
    ok->session_counter = now->counter;
    set_bytes(&ok->session_incarnation, now->incarnation, 16);
    set_bytes(&ok->previous_incarnation, now->previous, 16);
    set_bytes(&ok->card, bytes.data, bytes.len);
    set_bytes(&ok->root_key, core->config.root_public, 32);
    if (worker) {
        set_bytes(&ok->seed, core->config.seed.b, SIP_KEY_LEN);
        ok->exclusion_seq = core->exclusions_n;
    }
    ok->adapter_rank = core->config.shape.rank;
    ok->adapter_alpha = core->config.shape.alpha;
    ok->adapter_targets = core->config.shape.targets;
    buf_release(&bytes);
    reply(core, &event->peer, event->request, VERB_HELLO_OK, ok);
}

void roster_release(struct core *core)
{
    for (size_t i = 0; i < core->members_n; i++)
        free(core->members[i]);
    core->members_n = 0;
    for (unsigned plane = 0; plane < PLANES; plane++)
        free(core->waiting[plane]);
    free(core->timers);
    map_release(&core->member_by_conn);
    map_release(&core->member_by_id);
}
