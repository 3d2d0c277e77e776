/* Versions: made in one batch with the states of what they hold, announced to who watches, never changed. */
#include <stdlib.h>
#include <string.h>

#include "adapter/card.h"
#include "base/check.h"
#include "coordinator/core/internal.h"

enum {
    LATEST_LASTS_S = 30 * 86400, /* a subscriber that hears nothing newer for so long calls `latest` frozen */
    ALIASES_AGAIN_S = 86400,     /* so the statement is signed anew every day */
    WATCH_BYTES = 3 * LIMIT_MANIFEST_BYTES,
};

/* ---- versions in memory */

const struct version *version_find(const struct core *core, uint64_t number)
{
    size_t low = 0, high = core->versions_n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (core->versions[mid].number < number)
            low = mid + 1;
        else
            high = mid;
    }
    return low < core->versions_n && core->versions[low].number == number ? &core->versions[low] : NULL;
}

static bool needed(const struct core *core, uint64_t number)
{
    for (uint32_t i = 0; i < core->n_domains; i++)
        if (core->domains[i]->d.reference == number)
            return true;
    for (uint32_t i = 0; i < core->aliases.n_aliases; i++)
        if (core->aliases.aliases[i].version == number)
            return true;
    return false;
}

bool release_holds(const struct core *core, uint64_t number)
{
    return version_find(core, number) &&
           (needed(core, number) || core->counters.version - number < core->config.settings.versions_kept);
}

static void remove_version(struct core *core, size_t at)
{
    core->versions_bytes -= core->versions[at].manifest_len;
    free(core->versions[at].manifest);
    core->versions_n--;
    memmove(core->versions + at, core->versions + at + 1, (core->versions_n - at) * sizeof *core->versions);
}

/* Keeps the newest manifests within their bounds, and the files of older versions only while something refers to them. */
static void trim_versions(struct core *core)
{
    size_t with = 0;
    for (size_t i = 0; i < core->versions_n; i++)
        with += core->versions[i].manifest != NULL;
    for (size_t i = 0; i < core->versions_n;) {
        struct version *v = &core->versions[i];
        if (v->manifest && (with > VERSIONS_HELD || core->versions_bytes > VERSIONS_BYTES) &&
            i + 1 < core->versions_n) {
            core->versions_bytes -= v->manifest_len;
            free(v->manifest);
            v->manifest = NULL, v->manifest_len = 0;
            with--;
        }
        if (!v->manifest && !needed(core, v->number))
            remove_version(core, i);
        else
            i++;
    }
    core->versions_oldest = NEVER;
    for (size_t i = core->versions_n; i-- > 0 && core->versions[i].manifest;)
        core->versions_oldest = core->versions[i].number;
}

static struct version *insert_version(struct core *core, uint64_t number)
{
    size_t at = core->versions_n;
    while (at > 0 && core->versions[at - 1].number >= number)
        at--;
    if (at < core->versions_n && core->versions[at].number == number)
        return &core->versions[at];
    GROW(core->versions, core->versions_n, core->versions_cap);
    memmove(core->versions + at + 1, core->versions + at, (core->versions_n - at) * sizeof *core->versions);
    core->versions_n++;
    core->versions[at] = (struct version){.number = number};
    return &core->versions[at];
}

void version_hold(struct core *core, uint64_t number, const struct state_version *v, bool manifest)
{
    struct version *held = insert_version(core, number);
    held->parent = v->parent;
    held->files = v->files;
    memcpy(held->signature, v->signature, SIGNATURE_LEN);
    if (manifest && !held->manifest) {
        held->manifest = xmemdup(v->manifest.data, v->manifest.len);
        held->manifest_len = v->manifest.len;
        core->versions_bytes += v->manifest.len;
    }
    trim_versions(core);
}

/* ---- aliases */

static struct alias *alias_slot(struct aliases *a, const char *name)
{
    uint32_t at = 0;
    while (at < a->n_aliases && strcmp(a->aliases[at].name.s, name) < 0)
        at++;
    if (at < a->n_aliases && !strcmp(a->aliases[at].name.s, name))
        return &a->aliases[at];
    if (a->n_aliases == ALIASES_MAX)
        return NULL;
    memmove(a->aliases + at + 1, a->aliases + at, (a->n_aliases - at) * sizeof a->aliases[0]);
    a->n_aliases++;
    a->aliases[at] = (struct alias){0};
    CHECK(name_set(&a->aliases[at].name, name, strlen(name)));
    return &a->aliases[at];
}

static void sign_aliases(struct core *core)
{
    struct sign_secret secret;
    struct buf stored = {0};
    core->aliases.line = core->config.line;
    core->aliases.seq++;
    core->aliases.created_s = core->wall_s;
    alias_slot(&core->aliases, "latest")->expires_s = core->wall_s + LATEST_LASTS_S;
    buf_clear(&core->alias_statement);
    CHECK(!aliases_encode(&core->aliases, &core->alias_statement, NULL));
    memcpy(secret.b, core->config.release_secret, sizeof secret.b);
    aliases_sign(&secret, core->alias_statement.data, core->alias_statement.len, core->alias_signature);
    sign_wipe(&secret);
    buf_put(&stored, core->alias_statement.data, core->alias_statement.len);
    buf_put(&stored, core->alias_signature, SIGNATURE_LEN);
    put_key(core, FAMILY_META, key_plain('a'), &stored);
    buf_release(&stored);
}

enum status release_promote(struct core *core, const char *alias, uint64_t number, const uint64_t *expect,
                            struct err *err)
{
    if (!name_valid(alias, strlen(alias)) || !strcmp(alias, "latest"))
        return err_set(err, ST_USAGE, "\"%.64s\" cannot be set: a name other than `latest`, which moves by itself",
                       alias);
    const struct alias *now = aliases_find(&core->aliases, alias);
    if (expect && (now ? now->version : 0) != *expect)
        return err_set(err, ST_CONFLICT, "%s is at version %llu, not %llu", alias,
                       now ? (unsigned long long)now->version : 0, (unsigned long long)*expect);
    const struct mark *mark = aliases_mark(&core->aliases, number, MARK_WITHDRAWN);
    if (mark)
        return err_set(err, ST_CONFLICT, "version %llu is withdrawn%s%s", (unsigned long long)number,
                       mark->reason[0] ? ": " : "", mark->reason);
    struct alias *slot = alias_slot(&core->aliases, alias);
    if (!slot)
        return err_set(err, ST_LIMIT, "there are %u aliases, the most there may be", ALIASES_MAX);
    slot->version = number;
    sign_aliases(core);
    return ST_OK;
}

/* ---- marks */

/* Where (version, kind) is in the list, or would be. */
static uint32_t mark_at(const struct aliases *a, uint64_t version, enum mark_kind kind)
{
    uint32_t at = 0;
    while (at < a->n_marks &&
           (a->marks[at].version < version || (a->marks[at].version == version && a->marks[at].kind < kind)))
        at++;
    return at;
}

static void unmark(struct aliases *a, uint64_t version)
{
    uint32_t first = mark_at(a, version, MARK_WITHDRAWN), end = mark_at(a, version + 1, MARK_WITHDRAWN);
    memmove(a->marks + first, a->marks + end, (a->n_marks - end) * sizeof *a->marks);
    a->n_marks -= end - first;
}

static enum status mark(struct aliases *a, uint64_t version, enum mark_kind kind, const char *reason, struct err *err)
{
    uint32_t at = mark_at(a, version, kind);
    if (at == a->n_marks || a->marks[at].version != version || a->marks[at].kind != kind) {
        if (a->n_marks == MARKS_MAX)
            return err_set(err, ST_LIMIT, "there are %u marks, the most there may be", MARKS_MAX);
        a->marks = xrealloc_array(a->marks, a->n_marks + 1, sizeof *a->marks);
        memmove(a->marks + at + 1, a->marks + at, (a->n_marks - at) * sizeof *a->marks);
        a->n_marks++;
    }
    a->marks[at] = (struct mark){.version = version, .kind = kind};
    FORMAT(a->marks[at].reason, "%s", reason);
    return ST_OK;
}

enum status release_mark(struct core *core, uint64_t number, const char *kind, const char *reason, struct err *err)
{
    bool withdrawn = !strcmp(kind, "withdrawn"), tainted = !strcmp(kind, "tainted");
    enum status st = ST_OK;
    if (!withdrawn && !tainted && strcmp(kind, "none") != 0)
        return err_set(err, ST_USAGE, "\"%.63s\" is no mark: withdrawn, tainted or none", kind);
    if (strlen(reason) > MARK_REASON_MAX)
        return err_set(err, ST_LIMIT, "the reason is over %d bytes", MARK_REASON_MAX);
    if (number > core->counters.version)
        return err_set(err, ST_NOT_FOUND, "there is no version %llu", (unsigned long long)number);
    if (withdrawn || tainted)
        st = mark(&core->aliases, number, withdrawn ? MARK_WITHDRAWN : MARK_TAINTED, reason, err);
    else
        unmark(&core->aliases, number);
    if (!st)
        sign_aliases(core);
    return st;
}

/* ---- making one */

/* Stores `m` as the newest version, in the step's batch, with pointer and aliases. */
static enum status add_version(struct core *core, struct manifest *m, const struct version_files *files,
                               struct err *err)
{
    struct buf bytes = {0};
    struct sign_secret secret;
    struct manifest_file list[] = {{FILE_PEFT, files->peft, {0}, files->peft_bytes},
                                   {FILE_GGUF, files->gguf, {0}, files->gguf_bytes},
                                   {FILE_STATE, files->state, {0}, files->state_bytes}};
    memcpy(list[0].sha256, files->peft_sha256, 32);
    memcpy(list[1].sha256, files->gguf_sha256, 32);
    memcpy(list[2].sha256, files->state_sha256, 32);
    memcpy(m->files, list, sizeof list);
    m->n_files = digest_is_zero(&files->state) ? 2 : 3;
    m->line = core->config.line;
    m->created_s = core->wall_s;
    card_digest(&core->config.card, &m->card);
    m->rank = core->config.shape.rank;
    m->alpha = core->config.shape.alpha;
    m->targets = core->config.shape.targets;
    m->exclusion_seq = core->exclusions_n;
    if (core->sessions_n) {
        m->session_counter = session_now(core)->counter;
        memcpy(m->session_incarnation, session_now(core)->incarnation, 16);
    }
    enum status st = manifest_encode(m, &bytes, err);
    if (st)
        goto done;
    struct state_version v = {.parent = m->parent,
                              .round = m->round,
                              .rollback_of = m->rollback_of,
                              .created_s = m->created_s,
                              .manifest = buf_bytes(&bytes),
                              .files = *files,
                              .n_domains = core->n_domains};
    for (uint32_t i = 0; i < m->n_leases; i++) {
        v.tokens += core->leases[i]->delta.target_tokens;
        v.train_ms += core->leases[i]->delta.train_ms;
    }
    memcpy(secret.b, core->config.release_secret, sizeof secret.b);
    manifest_sign(&secret, bytes.data, bytes.len, v.signature);
    sign_wipe(&secret);
    core->counters.version = m->number;
    core->counters_dirty = true;
    version_hold(core, m->number, &v, true);
    for (uint32_t i = 0; i < core->n_domains; i++) {
        const struct version *r = version_find(core, core->domains[i]->d.reference);
        CHECK(r);
        v.references[i] = (struct version_reference){r->number, r->files.peft, r->files.peft_bytes};
    }
    PUT(core, FAMILY_VERSIONS, key_u64('m', m->number), state_version, &v);
    alias_slot(&core->aliases, "latest")->version = m->number;
    sign_aliases(core);
    trim_versions(core);
done:
    buf_release(&bytes);
    return st;
}

static uint64_t next_number(const struct core *core)
{
    uint64_t next = core->counters.version + 1;
    return core->counters.version_next > next ? core->counters.version_next : next;
}

void release_init(struct core *core, const struct version_files *v0)
{
    struct manifest m = {.flags = MANIFEST_UNGATED, .step_factor = 1};
    FORMAT(m.verdict, "the base with a new adapter");
    struct err err;
    enum status st = add_version(core, &m, v0, &err);
    CHECK_EQ(st, ST_OK);
    PUT(core, FAMILY_META, key_plain('c'), state_counters, &core->counters);
}

static void parent_digest(const struct core *core, uint64_t parent, struct digest *out)
{
    const struct version *v = version_find(core, parent);
    CHECK(v && v->manifest); /* the parent is the newest version */
    manifest_digest(v->manifest, v->manifest_len, out);
}

static void add_leases(const struct core *core, struct manifest *m)
{
    m->leases = xcalloc(core->n_leases, sizeof *m->leases);
    m->n_leases = core->n_leases;
    for (uint32_t i = 0; i < core->n_leases; i++) {
        const struct lease *l = core->leases[i];
        struct manifest_lease *out = &m->leases[i];
        *out = (struct manifest_lease){l->s.id, l->s.generation, l->delta.digest, l->s.weight, l->s.n_ranges, NULL};
        out->ranges = xcalloc(l->s.n_ranges, sizeof *out->ranges);
        for (uint32_t j = 0; j < l->s.n_ranges; j++)
            out->ranges[j] = (struct manifest_range){l->s.ranges[j].domain, l->s.ranges[j].first, l->s.ranges[j].count};
    }
}

static void add_domains(const struct core *core, struct manifest *m)
{
    m->domains = xcalloc(core->n_domains, sizeof *m->domains);
    for (uint32_t i = 0; i < core->eval.n_domains; i++) {
        const struct gate_domain *g = &core->eval.domains[i].gate;
        struct manifest_domain *out = &m->domains[m->n_domains++];
        out->id = core->domains[i]->id;
        out->name = g->name;
        out->probe_set = core->domains[i]->d.probe_set;
        out->reference = g->reference;
        out->forgetting = g->mean;
        out->forgetting_high = g->high;
        evaluate_numbers(core, i, &out->windows, &out->tokens, &out->nll, &out->reference_nll);
    }
}

void verdict_json(const struct core *core, enum gate_outcome outcome, struct buf *out)
{
    static const char *const names[ROUND_ATTEMPTS] = {"full step", "half step", "each lease alone", "the rest"};
    const struct evaluation *e = &core->eval;
    struct gate_domain *gates = xcalloc(e->n_domains + 1, sizeof *gates);
    for (uint32_t i = 0; i < e->n_domains; i++)
        gates[i] = e->domains[i].gate;
    buf_printf(out,
               "{\"round\":%llu,\"attempt\":\"%s\",\"lease\":%llu,\"step\":%g,\"leases\":%u,\"opened_with\":%u,"
               "\"averaging_error\":%.6g,\"update_norm\":%.6g,"
               "\"unscored_windows\":%u,\"scored_twice\":{\"windows\":%u,\"largest_difference\":%.6g},\"cost\":",
               (unsigned long long)core->round.number, names[core->round.attempt],
               (unsigned long long)core->round.suspect, core->round.attempt == ATTEMPT_HALF ? 0.5 : 1.0, core->n_leases,
               core->round.n_leases, core->round.error_ratio, core->round.update_norm, e->unscored, e->second_n,
               e->second_max);
    evaluate_cost(core, out);
    buf_printf(out, ",\"gate\":");
    gate_explain(gates, e->n_domains, round_error_rate(core), core->round.look, outcome, out);
    buf_printf(out, "}");
    free(gates);
}

/* Rows of the evaluation matrix, window by window: the version's, and its reference's as it was scored beside it. */
static void store_losses(struct core *core, uint64_t version, uint32_t domain, bool reference)
{
    const struct eval_domain *d = &core->eval.domains[domain];
    struct state_losses v = {.items = xcalloc(d->n + 1, sizeof *v.items)};
    FORMAT(v.fingerprint, "%s", core->eval.fingerprint);
    for (uint32_t i = 0; i < d->n; i++)
        if (d->windows[i].tokens)
            v.items[v.n++] = (struct window_loss){core->domains[domain]->id, d->windows[i].offset,
                                                  reference ? d->windows[i].reference : d->windows[i].candidate,
                                                  d->windows[i].reference, d->windows[i].tokens};
    if (v.n)
        PUT(core, FAMILY_MATRIX, key_matrix(version, core->domains[domain]->id), state_losses, &v);
    state_losses_release(&v);
}

static void store_matrix(struct core *core, uint64_t version)
{
    for (uint32_t i = 0; i < core->eval.n_domains; i++) {
        const struct gate_domain *g = &core->eval.domains[i].gate;
        store_losses(core, version, i, false);
        if (g->reference == core->domains[i]->d.base) /* nobody scored it when it was published */
            store_losses(core, g->reference, i, true);
    }
}

static void settle_leases(struct core *core, uint64_t version)
{
    for (uint32_t i = 0; i < core->n_leases; i++)
        for (uint32_t j = 0; j < core->leases[i]->s.n_ranges; j++) {
            struct range r = core->leases[i]->s.ranges[j];
            domain_set(core, core->domains[r.domain.v], r.first, r.count, SEG_DONE, version);
        }
}

/* Files of the version that has just become too old, unless an alias or a reference still needs them. */
static void drop_old_files(struct core *core)
{
    uint64_t newest = core->counters.version, kept = core->config.settings.versions_kept;
    const struct version *old = newest > kept ? version_find(core, newest - kept) : NULL;
    if (!old || needed(core, old->number))
        return;
    for (size_t i = 0; i < core->versions_n; i++) { /* a rollback shares its files with another version */
        const struct version *v = &core->versions[i];
        if (v->number != old->number && (v->number > old->number || needed(core, v->number)) &&
            digest_eq(&v->files.peft, &old->files.peft))
            return;
    }
    drop_files(core, &old->files);
}

void release_publish(struct core *core, enum gate_outcome outcome)
{
    struct manifest m = {.number = next_number(core), .parent = core->round.parent, .round = core->round.number};
    struct buf json = {0};
    struct err err = {0};
    char sentence[MANIFEST_TEXT_MAX + 1];
    struct gate_domain *gates = xcalloc(core->eval.n_domains + 1, sizeof *gates);
    for (uint32_t i = 0; i < core->eval.n_domains; i++)
        gates[i] = core->eval.domains[i].gate;
    gate_sentence(gates, core->eval.n_domains, outcome, sentence, sizeof sentence);
    verdict_json(core, outcome, &json);
    if (outcome != GATE_PASS) {
        round_verdict(core, 0, &json);
        round_refused(core, sentence);
        goto done;
    }
    uint64_t before[LIMIT_DOMAINS];
    for (uint32_t i = 0; i < core->n_domains; i++)
        before[i] = core->domains[i]->d.reference;
    parent_digest(core, m.parent, &m.parent_manifest);
    m.flags = core->round.n_leases != core->n_leases ? MANIFEST_PARTIAL : 0;
    m.error_rate = core->config.settings.error_rate;
    m.step_factor = core->round.attempt == ATTEMPT_HALF ? 0.5 : 1;
    m.averaging_error = core->round.error_ratio;
    m.update_norm = core->round.update_norm;
    m.clip_norm = core->round.clip_norm;
    FORMAT(m.verdict, "%s", sentence);
    add_leases(core, &m);
    add_domains(core, &m);
    /* The references move with the version that earns it; its own record already names them. */
    for (uint32_t i = 0; i < core->eval.n_domains; i++)
        if (gates[i].better) {
            core->domains[i]->d.reference = m.number;
            core->domains[i]->dirty = true;
        }
    insert_version(core, m.number)->files = core->round.candidate;
    if (add_version(core, &m, &core->round.candidate, &err)) { /* nothing of it is in the batch */
        for (uint32_t i = 0; i < core->n_domains; i++)
            core->domains[i]->d.reference = before[i];
        trim_versions(core);
        round_verdict(core, 0, &json);
        round_refused(core, err.text);
        goto done;
    }
    store_matrix(core, m.number);
    round_verdict(core, m.number, &json);
    settle_leases(core, m.number);
    core->counters.refusals = 0;
    round_finish(core, true);
    drop_old_files(core);
done:
    manifest_release(&m);
    buf_release(&json);
    free(gates);
}

/* ---- giving text back */

static int by_place(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    if (x->domain.v != y->domain.v)
        return x->domain.v < y->domain.v ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

/* First of the sorted, disjoint ranges that ends after (domain, offset). */
static uint32_t first_after(const struct range *r, uint32_t n, uint16_t domain, uint64_t offset)
{
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (r[mid].domain.v < domain || (r[mid].domain.v == domain && r[mid].first + r[mid].count <= offset))
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

enum status release_repeat(struct core *core, const struct range *ranges, uint32_t n, bool supersede,
                           uint64_t *segments, struct err *err)
{
    size_t links = 0;
    for (uint32_t i = 0; i < core->n_domains; i++)
        links += core->domains[i]->links_n;
    struct range *sorted = n ? xmemdup(ranges, n * sizeof *ranges) : NULL;
    bool **gone = xcalloc(n + 1, sizeof *gone);
    enum status st = ST_OK;
    *segments = 0;
    if (n)
        qsort(sorted, n, sizeof *sorted, by_place);
    for (uint32_t i = 0; i < n && !st; i++) {
        bool bad = sorted[i].domain.v >= core->n_domains || !sorted[i].count ||
                   sorted[i].count > LIMIT_LEASE_SEGMENTS ||
                   sorted[i].first + sorted[i].count > core->domains[sorted[i].domain.v]->d.train_next ||
                   (i && sorted[i].domain.v == sorted[i - 1].domain.v &&
                    sorted[i].first < sorted[i - 1].first + sorted[i - 1].count);
        if (bad)
            st = err_set(err, ST_CORRUPT, "a stored range of segments is not one of this line");
        else
            gone[i] = xcalloc(sorted[i].count, sizeof **gone);
    }
    for (size_t i = 0; i < core->exclusions_n && !st; i++) {
        const struct state_exclusion_packed *x = &core->exclusions[i];
        for (uint32_t j = first_after(sorted, n, x->domain, x->first);
             x->state != SEG_QUARANTINED && j < n && sorted[j].domain.v == x->domain &&
             sorted[j].first < x->first + x->count;
             j++)
            for (uint32_t k = 0; k < sorted[j].count; k++)
                gone[j][k] |= sorted[j].first + k >= x->first && sorted[j].first + k < x->first + x->count;
    }
    size_t more = 0;
    for (int pass = 0; pass < 2 && !st; pass++) { /* first counted, then done */
        for (uint32_t i = 0; i < n; i++)
            for (uint32_t k = 0, run; k < sorted[i].count; k += run) {
                for (run = 1; k + run < sorted[i].count && gone[i][k + run] == gone[i][k]; run++)
                    ;
                if (gone[i][k])
                    continue;
                more++;
                if (!pass)
                    continue;
                *segments += run;
                domain_repeat(core, core->domains[sorted[i].domain.v], sorted[i].first + k, run, supersede);
            }
        if (!pass && links + more > LINKS_MAX)
            st = err_set(err, ST_LIMIT,
                         "%zu ranges of text would be given back, beyond the %u a line may hold: keep them done",
                         links + more, LINKS_MAX);
    }
    for (uint32_t i = 0; i < n; i++)
        free(gone[i]);
    free(gone);
    free(sorted);
    planner_pending(core);
    return st;
}

enum status release_rollback(struct core *core, const struct event *event, struct err *err)
{
    const Alv__Control *c = (const Alv__Control *)event->message;
    const struct version_facts *facts = event->version;
    struct state_version old;
    if (!facts || !state_version_get(facts->value, &old))
        return err_set(err, ST_NOT_FOUND, "there is no version %llu", (unsigned long long)c->number);
    if (!facts->files_held)
        return err_set(err, ST_NOT_FOUND, "the files of version %llu are no longer kept",
                       (unsigned long long)c->number);
    if (facts->newest != core->counters.version)
        return err_set(err, ST_AGAIN, "version %llu is just being stored", (unsigned long long)core->counters.version);
    if (aliases_mark(&core->aliases, c->number, MARK_WITHDRAWN))
        return err_set(err, ST_CONFLICT, "version %llu is withdrawn: roll back to one that is not",
                       (unsigned long long)c->number);
    if (!facts->in_lineage || c->number == core->counters.version)
        return err_set(err, ST_CONFLICT, "version %llu is not an ancestor of the newest, %llu",
                       (unsigned long long)c->number, (unsigned long long)core->counters.version);
    struct range *ranges = xcalloc(facts->n + 1, sizeof *ranges);
    uint64_t segments = 0;
    for (uint32_t i = 0; i < facts->n; i++)
        ranges[i] = (struct range){facts->ranges[i].domain, facts->ranges[i].first, facts->ranges[i].count};
    enum status st = c->keep ? ST_OK : release_repeat(core, ranges, facts->n, true, &segments, err);
    free(ranges);
    if (st)
        return st;
    round_cancel(core);
    struct manifest m = {.number = next_number(core),
                         .parent = c->number,
                         .rollback_of = c->number,
                         .flags = MANIFEST_UNGATED | MANIFEST_ROLLBACK,
                         .step_factor = 1};
    manifest_digest(old.manifest.data, old.manifest.len, &m.parent_manifest);
    FORMAT(m.verdict, "rollback to version %llu by %s; %llu segments return to pending", (unsigned long long)c->number,
           event->peer.key.s, (unsigned long long)segments);
    uint64_t kept = core->config.settings.versions_kept, oldest = m.number > kept ? m.number - kept : 0;
    for (uint32_t i = 0; i < core->n_domains; i++) {
        const struct version_reference *r = i < old.n_domains ? &old.references[i] : NULL;
        if (r && (r->version >= oldest || needed(core, r->version))) {
            if (!version_find(core, r->version)) {
                struct version *held = insert_version(core, r->version);
                held->files = (struct version_files){.peft = r->peft, .peft_bytes = r->peft_bytes};
            }
            core->domains[i]->d.reference = r->version;
        } else if (!core->domains[i]->settings.sentinel) {
            core->domains[i]->d.reference = m.number; /* the same content as the version gone back to */
        }
        core->domains[i]->dirty = true;
    }
    insert_version(core, m.number)->files = old.files;
    st = add_version(core, &m, &old.files, err);
    CHECK_EQ(st, ST_OK); /* nothing in it comes from outside */
    return ST_OK;
}

/* ---- watchers */

void release_answer(struct core *core, struct member *m)
{
    Alv__WatchReply *out = new_message(&alv__watch_reply__descriptor);
    size_t bytes = 0;
    roster_unpark(core, m);
    out->versions = xcalloc(LIMIT_WATCH_VERSIONS, sizeof *out->versions);
    for (size_t i = 0; i < core->versions_n && out->n_versions < LIMIT_WATCH_VERSIONS; i++) {
        const struct version *v = &core->versions[i];
        if (v->number <= m->watch_from || !v->manifest)
            continue;
        bytes += v->manifest_len;
        if (out->n_versions && bytes > WATCH_BYTES)
            break;
        Alv__SignedManifest *s = out->versions[out->n_versions++] = new_message(&alv__signed_manifest__descriptor);
        s->number = v->number;
        set_bytes(&s->manifest, v->manifest, v->manifest_len);
        set_bytes(&s->signature, v->signature, SIGNATURE_LEN);
    }
    if (core->aliases.seq > m->watch_alias) {
        out->aliases = new_message(&alv__signed_aliases__descriptor);
        set_bytes(&out->aliases->statement, core->alias_statement.data, core->alias_statement.len);
        set_bytes(&out->aliases->signature, core->alias_signature, SIGNATURE_LEN);
    }
    set_bytes(&out->release_key, core->config.release_public, sizeof core->config.release_public);
    set_bytes(&out->release_cert, core->config.release_cert, sizeof core->config.release_cert);
    reply(core, &m->peer, m->request, VERB_WATCH_REPLY, out);
}

static bool has_news(const struct core *core, const struct member *m)
{
    return m->watch_from < core->counters.version || m->watch_alias < core->aliases.seq;
}

void release_watch(struct core *core, const struct event *event, struct member *m)
{
    const Alv__Watch *w = (const Alv__Watch *)event->message;
    /* What was published after the backup that this line was restored from is below the next number: it will go on from there. */
    if (w->from > core->counters.version && w->from >= core->counters.version_next) {
        FORMAT(core->refused_alarm,
               "a subscriber with key %s holds version %llu; the newest here is %llu: this data directory is older "
               "than what was published",
               event->peer.key.s, (unsigned long long)w->from, (unsigned long long)core->counters.version);
        refuse(core, event, ST_ROLLBACK, 0, "version %llu is unknown here, the newest is %llu",
               (unsigned long long)w->from, (unsigned long long)core->counters.version);
        return;
    }
    if (w->from + 1 < core->versions_oldest && w->from < core->counters.version) {
        refuse(core, event, ST_AGAIN, RETRY_MS, "versions from %llu on are read from disk",
               (unsigned long long)w->from + 1);
        return;
    }
    m->watch_from = w->from;
    m->watch_alias = w->alias_seq;
    roster_park(core, m, event->request, w->wait_ms);
    if (has_news(core, m) || !w->wait_ms)
        release_answer(core, m);
}

void release_serve(struct core *core)
{
    if (core->started && core->wall_s > core->aliases.created_s + ALIASES_AGAIN_S)
        sign_aliases(core);
    if (core->served_version == core->counters.version && core->served_aliases == core->aliases.seq)
        return;
    core->served_version = core->counters.version;
    core->served_aliases = core->aliases.seq;
    for (size_t i = core->waiting_n[PLANE_MODELS]; i-- > 0;) { /* as in lease_serve() */
        struct member *m = core->waiting[PLANE_MODELS][i];
        core->scanned++;
        if (has_news(core, m))
            release_answer(core, m);
    }
}

void release_expire(struct core *core)
{
    wake(core, core->now + ALIASES_AGAIN_S * UINT64_C(1000));
}
