#include "coordinator/peers.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

struct slot {
    struct peer peer; /* conn 0: free (a conn has its plane + 1 in it) */
    uint64_t heard_ms;
    bool gone;
};

struct peers {
    struct slot slots[2 * PEERS_MAX]; /* open addressing, at most half full */
    uint32_t n;
    uint32_t scan; /* where peers_take_gone() looks next */
    uint32_t n_gone;
};

struct peers *peers_new(void)
{
    return xcalloc(1, sizeof(struct peers));
}

void peers_free(struct peers *peers)
{
    free(peers);
}

uint64_t peers_conn(const struct route *from)
{
    uint64_t conn = (uint64_t)from->plane + 1;
    for (int i = 0; i < ROUTE_LEN; i++)
        conn = conn << 8 | from->id[i];
    return conn;
}

struct route peers_route(uint64_t conn)
{
    struct route to;
    for (int i = ROUTE_LEN; i-- > 0; conn >>= 8)
        to.id[i] = (uint8_t)conn;
    to.plane = (uint8_t)(conn - 1);
    return to;
}

static struct slot *find(struct peers *p, uint64_t conn) /* its slot, or the free one it would take */
{
    uint32_t mask = 2 * PEERS_MAX - 1;
    uint32_t i = (uint32_t)(conn * 0x9E3779B97F4A7C15u >> 32) & mask;
    while (p->slots[i].peer.conn && p->slots[i].peer.conn != conn)
        i = (i + 1) & mask;
    return &p->slots[i];
}

static void mark_gone(struct peers *p, struct slot *s)
{
    if (s->peer.conn && !s->gone) {
        s->gone = true;
        p->n_gone++;
    }
}

/* Full: the longest silent connection goes. Rare, so a scan will do. */
static void evict(struct peers *p)
{
    struct slot *oldest = NULL;
    for (uint32_t i = 0; i < 2 * PEERS_MAX; i++)
        if (p->slots[i].peer.conn && !p->slots[i].gone && (!oldest || p->slots[i].heard_ms < oldest->heard_ms))
            oldest = &p->slots[i];
    if (oldest)
        mark_gone(p, oldest);
}

void peers_note(struct peers *p, const struct route *from, enum role role, const struct name *key, uint64_t now_ms,
                struct peer *out)
{
    uint64_t conn = peers_conn(from);
    struct slot *s = find(p, conn);
    *out = (struct peer){.conn = conn, .plane = (enum plane)from->plane, .role = role, .key = *key};
    if (!s->peer.conn) {
        if (p->n - p->n_gone >= PEERS_MAX)
            evict(p);
        if (p->n >= 2 * PEERS_MAX - 1) /* the gone ones were not yet taken: serve it, forget it */
            return;
        p->n++;
    } else if (s->gone) { /* it speaks again before anybody was told */
        s->gone = false;
        p->n_gone--;
    }
    s->peer = *out;
    s->heard_ms = now_ms;
}

void peers_gone(struct peers *p, uint64_t conn)
{
    mark_gone(p, find(p, conn));
}

void peers_expire(struct peers *p, uint64_t now_ms)
{
    for (uint32_t i = 0; i < 2 * PEERS_MAX; i++)
        if (p->slots[i].peer.conn && now_ms - p->slots[i].heard_ms > PEER_IDLE_MS)
            mark_gone(p, &p->slots[i]);
}

static void remove_slot(struct peers *p, uint32_t i)
{
    uint32_t mask = 2 * PEERS_MAX - 1;
    p->slots[i] = (struct slot){0};
    p->n--;
    p->n_gone--;
    while (p->slots[i = (i + 1) & mask].peer.conn) { /* what probed past it is put in again */
        struct slot moved = p->slots[i];
        p->slots[i] = (struct slot){0};
        *find(p, moved.peer.conn) = moved;
    }
}

bool peers_take_gone(struct peers *p, struct peer *out)
{
    if (!p->n_gone)
        return false;
    while (!p->slots[p->scan].gone)
        p->scan = (p->scan + 1) & (2 * PEERS_MAX - 1);
    *out = p->slots[p->scan].peer;
    remove_slot(p, p->scan);
    return true;
}
