#include "coordinator/core/settings.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "coordinator/core/text.h"

enum { FILE_BYTES_MAX = 64 * 1024 };

enum kind { U32, U64, F64, BOOL };

struct row {
    struct setting_info info;
    enum kind kind;
    size_t at;
    double initial;
};

#define ROW(type, field, initial, low, high, reason)                                 \
    {                                                                                \
        {#field, reason, low, high}, type, offsetof(struct settings, field), initial \
    }
#define LOOK(i, initial, reason)                                                                                   \
    {                                                                                                              \
        {"look_" #i, reason, 1, 4096}, U32, offsetof(struct settings, looks) + (i - 1) * sizeof(uint32_t), initial \
    }

static const struct row rows[] = {
    ROW(U32, segment_bytes, 2048, 64, 32768, "bytes; a few hundred tokens, so that a lease balances finely"),
    ROW(U32, seq_tokens, 512, 16, 32768, "tokens; longest packed sample, memory grows with it"),
    ROW(U32, step_tokens, 1024, 16, 1048576, "tokens of one optimiser step"),
    ROW(U32, rank, 16, 1, 256, "rank of the adapter; what llama.cpp and vLLM take without options"),
    ROW(U32, alpha, 32, 1, 65536, "scale is alpha / rank; twice the rank is customary"),
    ROW(F64, lr, 1e-3, 0, 1, "peak rate of AdamW; LoRA bears more than full training"),
    ROW(F64, beta1, 0.9, 0, 0.9999, "AdamW, first moment"),
    ROW(F64, beta2, 0.99, 0, 0.99999, "AdamW, second moment; short leases need a short memory"),
    ROW(F64, weight_decay, 0, 0, 1, "AdamW, decoupled"),
    ROW(F64, clip, 1, 0, 1e6, "norm a step's gradient is clipped to; 0: not"),
    ROW(U32, warmup_steps, 4, 0, 100000, "optimiser steps; a lease starts without optimiser state"),
    ROW(U32, decay_permille, 0, 0, 1000, "of a lease's steps, its last: the rate falls to nothing over them"),
    ROW(U32, average_permille, 500, 0, 1000,
        "of a lease's steps, its last: it ends at the mean of its states over them, around which they wander"),
    ROW(U32, ema_permille, 300, 0, 900,
        "share of what was published before in what is published, since rounds pull in different directions; training "
        "goes on from the rest alone"),
    ROW(U32, publish_permille, 920, 1, 1000,
        "of what training adds to the base, what is published of it; a little less costs little of what was learnt"),
    ROW(U32, anchor_permille, 50, 0, 900, "of all tokens, from the anchor domain"),
    ROW(U32, history_permille, 200, 0, 900, "of all tokens, from settled history"),
    ROW(U32, distil_permille, 1000, 0, 1000,
        "share of the base's predictions, which say more than one token, in what anchor text teaches; the rest is the "
        "text"),
    ROW(U32, history_distil_permille, 500, 0, 1000,
        "share of the parent's predictions in what history teaches; the rest is the text, for parents have forgotten a "
        "little"),
    ROW(U32, history_boost_permille, 1000, 0, 100000,
        "by how much more a token of history counts than a fresh one; a larger share would cost tokens"),
    ROW(U32, anchor_boost_permille, 3000, 0, 100000,
        "by how much more a token of the anchor counts than a fresh one; a larger share would cost tokens"),
    ROW(U32, sample_k, 4096, 1, 16777216, "segments of a domain's replay sample"),
    ROW(U32, lease_steps_min, 16, 1, 100000, "optimiser steps; fewer do not leave warm-up behind"),
    ROW(U32, lease_steps_max, 256, 1, 100000, "optimiser steps; bounds what a lost worker costs"),
    ROW(U32, lease_attempts, 3, 1, 100, "failures after which a lease's data is held"),
    ROW(U32, round_wait_ms, 60000, 0, 86400000, "ms; text too small for a full lease waits this long"),
    ROW(F64, quorum, 0.6666, 0.01, 1, "share of a round's leases that lets it close"),
    ROW(F64, grace, 2, 1, 1000, "multiple of the expected time before it closes without the rest"),
    ROW(U32, lease_silence_ms, 60000, 100, 86400000, "ms without progress until a task is given to another"),
    ROW(F64, clip_norm, 3, 1, 1e6, "times the median delta norm"),
    ROW(F64, weight_cap, 2, 1, 1e6, "times the equal share"),
    ROW(F64, forget_budget, 0.02, 0, 100, "nats per token a domain may lose against its reference"),
    ROW(F64, error_rate, 0.01, 1e-9, 0.5, "of a round's verdict, one-sided, divided over domains and looks"),
    LOOK(1, 64, "windows per domain at the first look"),
    LOOK(2, 128, "windows per domain at the second look"),
    LOOK(3, 256, "windows per domain at the last look"),
    ROW(U32, window_tokens, 512, 8, 32768, "tokens of a probe window"),
    ROW(U32, probe_gate, 256, 0, 4096, "windows per domain that the gate sees"),
    ROW(U32, probe_tuning, 64, 0, 4096, "windows per domain for choosing settings"),
    ROW(U32, probe_audit, 256, 0, 4096, "windows per domain that only reports see"),
    ROW(U32, heldout_permille, 20, 0, 500, "of groups that are never trained"),
    ROW(U64, backlog_bytes, 1073741824.0, 4096, 1e15, "bytes pending per domain"),
    ROW(U64, backlog_age_ms, 604800000.0, 1000, 1e12, "ms the oldest pending text may wait"),
    ROW(BOOL, backlog_sample, 0, 0, 1, "over budget: 0 refuses for now, 1 trains a uniform part and skips the rest"),
    ROW(U32, delta_coding, 1, 1, 3, "coding of deltas on the wire: 1 f32, 2 bf16, 3 int8"),
    ROW(F64, double_score, 0.05, 0, 1, "share of evaluation tasks scored again by a second worker"),
    ROW(U32, sentinel, 0, 0, 2,
        "a domain only scored, against version 0, never trained or judged by: 1 text kept aside, 2 the base's own "
        "text"),
    ROW(U32, versions_kept, 64, 1, 1000000, "newest versions whose adapter files stay"),
    ROW(U32, base_tokens_per_kb, 300, 1, 4096, "tokens per 1,024 bytes until workers have reported"),
};
enum { N_ROWS = sizeof rows / sizeof rows[0] };

static double get(const struct settings *s, const struct row *row)
{
    const char *at = (const char *)s + row->at;
    switch (row->kind) {
    case U32:
        return *(const uint32_t *)at;
    case U64:
        return (double)*(const uint64_t *)at;
    case BOOL:
        return *(const bool *)at;
    case F64:
        break;
    }
    return *(const double *)at;
}

static void put(struct settings *s, const struct row *row, double v)
{
    char *at = (char *)s + row->at;
    switch (row->kind) {
    case U32:
        *(uint32_t *)at = (uint32_t)v;
        break;
    case U64:
        *(uint64_t *)at = (uint64_t)v;
        break;
    case BOOL:
        *(bool *)at = v != 0;
        break;
    case F64:
        *(double *)at = v;
        break;
    }
}

static const struct row *find(const char *name)
{
    for (unsigned i = 0; i < N_ROWS; i++)
        if (!strcmp(rows[i].info.name, name))
            return &rows[i];
    return NULL;
}

void settings_default(struct settings *out)
{
    memset(out, 0, sizeof *out);
    for (unsigned i = 0; i < N_ROWS; i++)
        put(out, &rows[i], rows[i].initial);
}

enum status settings_set(struct settings *s, const char *name, const char *value, struct err *err)
{
    const struct row *row = find(name);
    if (!row)
        return err_set(err, ST_CONFIG, "there is no setting \"%.64s\"", name);
    char *end;
    errno = 0;
    double v = strtod(value, &end);
    if (row->kind == BOOL && (!strcmp(value, "true") || !strcmp(value, "false")))
        v = value[0] == 't';
    else if (!*value || *end || errno || !isfinite(v) || (row->kind != F64 && v != floor(v)))
        return err_set(err, ST_CONFIG, "%s = \"%.64s\": not a %snumber", name, value, row->kind == F64 ? "" : "whole ");
    if (v < row->info.low || v > row->info.high)
        return err_set(err, ST_CONFIG, "%s = %s: allowed is %g to %g (%s)", name, value, row->info.low, row->info.high,
                       row->info.reason);
    put(s, row, v);
    return ST_OK;
}

enum status settings_check(const struct settings *s, struct err *err)
{
    if (s->anchor_permille + s->history_permille >= 1000)
        return err_set(err, ST_CONFIG,
                       "anchor_permille + history_permille = %u: must stay below 1000, fresh text is the rest",
                       s->anchor_permille + s->history_permille);
    if (s->lease_steps_min > s->lease_steps_max)
        return err_set(err, ST_CONFIG, "lease_steps_min = %u is over lease_steps_max = %u", s->lease_steps_min,
                       s->lease_steps_max);
    if (s->seq_tokens > s->step_tokens)
        return err_set(err, ST_CONFIG, "seq_tokens = %u is over step_tokens = %u: a step holds whole samples",
                       s->seq_tokens, s->step_tokens);
    if (s->looks[0] > s->looks[1] || s->looks[1] > s->looks[2])
        return err_set(err, ST_CONFIG, "look_1, look_2, look_3 = %u, %u, %u: must not fall", s->looks[0], s->looks[1],
                       s->looks[2]);
    return ST_OK;
}

enum status settings_fit(const struct settings *s, uint32_t context, struct err *err)
{
    if (s->seq_tokens > context)
        return err_set(err, ST_CONFIG, "seq_tokens = %u: the base's context is %u tokens", s->seq_tokens, context);
    if (s->window_tokens > context)
        return err_set(err, ST_CONFIG, "window_tokens = %u: the base's context is %u tokens", s->window_tokens,
                       context);
    return ST_OK;
}

/* Cuts blanks from both ends, in place. */
static char *trim(char *s)
{
    s += strspn(s, " \t\r");
    size_t n = strlen(s);
    while (n && strchr(" \t\r", s[n - 1]))
        s[--n] = 0;
    return s;
}

enum status settings_read(const char *path, struct settings *s, struct err *err)
{
    struct settings next = *s;
    struct buf text = {0};
    unsigned line = 0;
    enum status st = file_read(path, FILE_BYTES_MAX, &text, err);
    if (st)
        goto done;
    for (char *at = (char *)(uintptr_t)buf_cstr(&text), *eol; at && !st; at = eol) {
        line++;
        if ((eol = strchr(at, '\n')))
            *eol++ = 0;
        at[strcspn(at, "#")] = 0;
        char *name = trim(at), *value = strchr(name, '=');
        if (!*name)
            continue;
        if (!value) {
            st = err_set(err, ST_CONFIG, "expected \"name = value\"");
            break;
        }
        *value++ = 0;
        st = settings_set(&next, trim(name), trim(value), err);
    }
    if (!st && next.sentinel)
        st = err_set(err, ST_CONFIG, "sentinel is a setting of a single domain: alluvium domains set NAME sentinel=1");
    if (st)
        err_prefix(err, st, "%s:%u", path, line);
    else if ((st = settings_check(&next, err)))
        err_prefix(err, st, "%s", path);
    else
        *s = next;
done:
    buf_release(&text);
    return st;
}

const struct setting_info *settings_info(unsigned i)
{
    return i < N_ROWS ? &rows[i].info : NULL;
}

bool settings_for_domain(const char *name)
{
    static const char *const names[] = {"segment_bytes",  "forget_budget",    "probe_gate",    "probe_tuning",
                                        "probe_audit",    "heldout_permille", "backlog_bytes", "backlog_age_ms",
                                        "backlog_sample", "sentinel"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(names[i], name))
            return true;
    return false;
}

void settings_value(const struct settings *s, const char *name, char *out, size_t size)
{
    const struct row *row = find(name);
    struct buf text = {0};
    if (row)
        buf_printf(&text, row->kind == F64 ? "%.9g" : "%.0f", get(s, row));
    text_copy(out, size, buf_cstr(&text));
    buf_release(&text);
}
