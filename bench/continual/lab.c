#include "lab.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "adapter/combine.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/hash.h"
#include "own.h"
#include "results.h"

enum { STAGES = LAB_DOMAINS * LAB_PASSES, WORKERS_MAX = 8, KEY_SIZE = 160 };

#define RATIO(history, anchor) .history_permille = (history), .anchor_permille = (anchor)
#define PLAIN .workers = 1, .rounds = 1, .step_factor = 1, .targets = LORA_ALL, .coding = DELTA_F32
#define OWN .own_anchor = true, .anchor_distil = 1000

static const struct arm arms[] = {
    {"floor", PLAIN, RATIO(0, 0), .what = "fresh text alone: the floor"},
    {"replay25", PLAIN, RATIO(200, 50), .what = "20 % history and 5 % anchor"},
    {"joint", PLAIN, RATIO(200, 50), .joint = true,
     .what = "every lease a slice of all domains, the same text, shares, steps and schedule: the ceiling"},
    {"replay10", PLAIN, RATIO(80, 20), .what = "8 % history and 2 % anchor"},
    {"replay25-w4", RATIO(200, 50), .workers = 4, .rounds = 1, .step_factor = 1, .targets = LORA_ALL,
     .coding = DELTA_F32, .what = "replay25 by four workers, the mean of their factors"},
    {"replay25-dp4", RATIO(200, 50), .workers = 1, .rounds = 1, .step_factor = 4, .targets = LORA_ALL,
     .coding = DELTA_F32, .what = "replay25 by data-parallel training at four times the batch"},
    {"replay25-int8-w4", RATIO(200, 50), .workers = 4, .rounds = 1, .step_factor = 1, .targets = LORA_ALL,
     .coding = DELTA_INT8, .what = "replay25-w4 with deltas sent as int8"},
    {"replay25-mlp", RATIO(200, 50), .workers = 1, .rounds = 1, .step_factor = 1,
     .targets = 1 << LORA_GATE | 1 << LORA_UP | 1 << LORA_DOWN, .coding = DELTA_F32,
     .what = "replay25 with adapters on gate, up and down alone"},
    {"replay25-own", PLAIN, RATIO(200, 50), OWN,
     .what = "replay25, its anchor text that the base wrote, which teaches what the base predicts there"},
    {"replay25-own10", PLAIN, RATIO(150, 100), OWN, .what = "replay25-own with 15 % history and 10 % anchor"},
    {"replay25-own-h2a4", PLAIN, RATIO(200, 50), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .what = "replay25-own, a token of history counting twice, one of the anchor four times"},
    {"replay25-own-h3a8", PLAIN, RATIO(200, 50), OWN, .history_boost = 2000, .anchor_boost = 7000,
     .what = "replay25-own, a token of history counting three times, one of the anchor eight times"},
    {"replay25-own-h2a4-avg", PLAIN, RATIO(200, 50), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .average_permille = 500,
     .what = "replay25-own-h2a4, each lease ending at the mean of its states over its last half"},
    {"replay25-own-h2a4-d30", PLAIN, RATIO(200, 50), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .decay_permille = 300, .what = "replay25-own-h2a4, the rate falling to nothing over each lease's last 30 %"},
    {"replay30-own-h2a4", PLAIN, RATIO(200, 100), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .what = "replay25-own-h2a4 with 10 % anchor beside the 20 % history"},
    {"replay30-own-h2a4-avg", PLAIN, RATIO(200, 100), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .average_permille = 500,
     .what = "replay30-own-h2a4, each lease ending at the mean of its states over its last half"},
    {"replay30-own-h2a4-avg25", PLAIN, RATIO(200, 100), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .average_permille = 250,
     .what = "replay30-own-h2a4, each lease ending at the mean of its states over its last quarter"},
    {"joint-avg", PLAIN, RATIO(200, 50), .joint = true, .average_permille = 500,
     .what = "joint, each lease ending at the mean of its states over its last half"},
    {"replay25-own-h2a4-p50-avg", PLAIN, RATIO(200, 50), OWN, .history_boost = 1000, .anchor_boost = 3000,
     .average_permille = 500, .history_distil = 500,
     .what = "replay25-own-h2a4-avg, history teaching half its text and half what the parent predicts there"},
    {"replay25-general-h2a4-p50-avg", PLAIN, RATIO(200, 50), .anchor_distil = 1000, .history_boost = 1000,
     .anchor_boost = 3000, .average_permille = 500, .history_distil = 500,
     .what = "replay25-own-h2a4-p50-avg with the anchor text of replay25, which teaches the base's predictions"},
    {"replay25-general-h2a4-p50-avg-ema30-92", .of = "replay25-general-h2a4-p50-avg", .ema_permille = 300,
     .publish_permille = 920, .what = "the same, published as replay25-own-h2a4-p50-avg-ema30-92 is"},
    {"replay25-own-h2a4-p50-avg-ema30-92", .of = "replay25-own-h2a4-p50-avg", .ema_permille = 300,
     .publish_permille = 920,
     .what = "replay25-own-h2a4-p50-avg, 0.92 of a mean over the versions being published, in which the one before "
             "counts 0.3"},
    {"replay25-r4", RATIO(200, 50), .workers = 1, .rounds = 4, .step_factor = 1, .targets = LORA_ALL,
     .coding = DELTA_F32, .what = "replay25, a stage in four rounds"},
    {"replay25-r4-nesterov", RATIO(200, 50), .workers = 1, .rounds = 4, .step_factor = 1, .targets = LORA_ALL,
     .coding = DELTA_F32, .outer_momentum = 900, .outer_rate = 700,
     .what = "replay25-r4, each round's change taken by Nesterov's rule (momentum 0.9, rate 0.7)"},
    {"replay25-decay", PLAIN, RATIO(200, 50), .decay_permille = 1000,
     .what = "replay25, the rate falling to nothing over each lease"},
    {"joint-decay", PLAIN, RATIO(200, 50), .joint = true, .decay_permille = 1000,
     .what = "joint, its rate falling over each lease"},
};

const struct arm *arm_at(uint32_t i)
{
    return i < sizeof arms / sizeof arms[0] ? &arms[i] : NULL;
}

const struct arm *arm_find(const char *name)
{
    for (uint32_t i = 0; arm_at(i); i++)
        if (strcmp(arms[i].name, name) == 0)
            return &arms[i];
    return NULL;
}

/* The arm whose leases a cell's states are made by. */
static const struct arm *trained_as(const struct arm *arm)
{
    return arm->of ? arm_find(arm->of) : arm;
}

struct lab {
    struct lab_config config;
    struct engine engine;
    struct results *results;
    struct corpus corpora[1 + LAB_DOMAINS + LAB_SENTINELS]; /* the anchor, domains, sentinels: index is the domain id */
    uint32_t n_corpora;
    struct corpus other_anchor;                  /* the one that is not in use: `anchor`, or what the base wrote */
    bool own_anchor;                             /* corpora[0] is what the base wrote */
    uint32_t seed;                               /* of the order the corpora are in; 0: none */
    uint32_t range_end[LAB_DOMAINS][LAB_PASSES]; /* offset after the fresh segments of a pass */
    uint64_t *tokens_below[LAB_DOMAINS];         /* (range_end of the last pass + 1) sums of tokens */
    struct own own;                              /* read when first wanted */
};

void lab_defaults(struct lab_config *out)
{
    *out = (struct lab_config){
        .anchor = "general",
        .domains = {"ocaml", "health", "scripture", "finance", "erlang"},
        .n_domains = 5,
        .order = {{0, 1, 2, 3, 4}, {2, 4, 0, 3, 1}},
        .sentinels = {"ada", "manual"},
        .fresh_tokens = 30720,
        .seq_tokens = 512,
        .step_tokens = 1024,
        .rank = 16,
        .alpha = 32,
        .warmup_steps = 4,
        .sample_k = 4096,
        .micro_rows = 1024,
        .threads = 1,
        .corpus = {.segment_bytes = 2048, .heldout_permille = 300, .window_tokens = 256, .windows = {64, 64, 16}},
        .ops = ops_best(),
    };
}

/* ---- configuration */

static json_t *config_json(const struct lab *lab)
{
    const struct lab_config *c = &lab->config;
    char hex[DIGEST_HEX_SIZE];
    json_t *texts = json_object(), *orders = json_array();
    for (uint32_t i = 0; i < lab->n_corpora; i++) {
        digest_hex(&lab->corpora[i].digest, hex);
        json_object_set_new(texts, lab->corpora[i].name, json_stringn(hex, 16));
    }
    for (uint32_t p = 0; p < LAB_PASSES; p++) {
        json_t *order = json_array();
        for (uint32_t i = 0; i < c->n_domains; i++)
            json_array_append_new(order, json_string(c->domains[c->order[p][i]]));
        json_array_append_new(orders, order);
    }
    digest_hex(&lab->engine.card.base, hex);
    return json_pack("{s:i, s:s, s:s#, s:o, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:[iii]}", "format",
                     2, "model", lab->engine.card.base_name, "base", hex, 16, "texts", texts, "orders", orders,
                     "fresh_tokens", c->fresh_tokens, "seq_tokens", c->seq_tokens, "step_tokens", c->step_tokens,
                     "rank", c->rank, "alpha", c->alpha, "warmup_steps", c->warmup_steps, "sample_k", c->sample_k,
                     "segment_bytes", c->corpus.segment_bytes, "heldout_permille", c->corpus.heldout_permille,
                     "window_tokens", c->corpus.window_tokens, "windows", c->corpus.windows[0], c->corpus.windows[1],
                     c->corpus.windows[2]);
}

static enum status use_targets(struct lab *lab, uint32_t targets, struct err *err)
{
    struct memory_plan plan;
    char fingerprint[LIMIT_TEXT_BYTES];
    if (lab->engine.weights && lab->engine.shape.targets == targets)
        return ST_OK;
    return engine_prepare(&lab->engine, lab->config.rank, lab->config.alpha, targets, &plan, fingerprint, err);
}

enum status lab_open(const struct lab_config *config, struct lab **out, struct err *err)
{
    struct lab *lab = xcalloc(1, sizeof *lab);
    lab->config = *config;
    struct engine_options options = {.threads = config->threads, .micro_rows = config->micro_rows, .ops = config->ops};
    const unsigned all = (1 << CORPUS_PARTS) - 1, audit = 1 << PART_AUDIT;
    json_t *json = NULL;
    enum status status = engine_open(config->base, &options, &lab->engine, err);
    if (status == ST_OK && mkdir(config->work, 0755) && errno != EEXIST)
        status = err_set(err, ST_IO, "%s: %s", config->work, strerror(errno));
    for (uint32_t i = 0; status == ST_OK && i < 1 + config->n_domains + LAB_SENTINELS; i++) {
        bool sentinel = i > config->n_domains;
        const char *name = i == 0     ? config->anchor
                           : sentinel ? config->sentinels[i - 1 - config->n_domains]
                                      : config->domains[i - 1];
        if (!name)
            break;
        status = corpus_read(config->text, name, &config->corpus,
                             i == 0     ? 0
                             : sentinel ? audit
                                        : all,
                             &lab->engine, &lab->corpora[i], err);
        lab->n_corpora += status == ST_OK;
    }
    if (status == ST_OK) {
        json = config_json(lab);
        CHECK(json != NULL);
        status = results_open(config->results, json, &lab->results, err);
    }
    json_decref(json);
    if (status == ST_OK)
        *out = lab;
    else
        lab_close(lab);
    return status;
}

void lab_close(struct lab *lab)
{
    if (!lab)
        return;
    for (uint32_t i = 0; i < lab->n_corpora; i++)
        corpus_release(&lab->corpora[i]);
    for (uint32_t d = 0; d < LAB_DOMAINS; d++)
        free(lab->tokens_below[d]);
    corpus_release(&lab->other_anchor);
    own_release(&lab->own);
    results_close(lab->results);
    engine_close(&lab->engine);
    free(lab);
}

const struct lab_config *lab_configuration(const struct lab *lab)
{
    return &lab->config;
}

/* ---- cells */

void cell_text(const struct lab *lab, const struct cell *cell, char *out, size_t size)
{
    static const char *const kinds[] = {"train", "eval", "own"};
    const struct arm *arm = cell->arm && cell->kind == CELL_TRAIN ? trained_as(cell->arm) : cell->arm;
    int n = snprintf(out, size, "%s %s %g %u %u", kinds[cell->kind], arm ? arm->name : "base", cell->rate, cell->seed,
                     cell->stage);
    if (cell->kind == CELL_EVAL)
        snprintf(out + n, size - (size_t)n, " %s %s", lab->corpora[1 + cell->domain].name,
                 corpus_part_names[cell->part]);
}

static const json_t *find(const struct lab *lab, const struct cell *cell)
{
    char key[KEY_SIZE];
    cell_text(lab, cell, key, sizeof key);
    return results_find(lab->results, key);
}

bool lab_has(const struct lab *lab, const struct cell *cell)
{
    return find(lab, cell) != NULL;
}

double lab_loss(const struct lab *lab, const struct cell *cell)
{
    const json_t *loss = json_object_get(find(lab, cell), "loss");
    return json_is_number(loss) ? json_number_value(loss) : NAN;
}

const char *lab_adapter(const struct lab *lab, const struct cell *cell)
{
    const char *hex = json_string_value(json_object_get(find(lab, cell), "adapter"));
    return hex ? hex : "";
}

/* ---- the text of a seed: its order, and which segments each stage trains */

static enum status count_ranges(struct lab *lab, uint32_t d, struct err *err)
{
    const struct corpus *c = &lab->corpora[1 + d];
    struct token_buf ids = {0};
    struct buf mask = {0};
    uint64_t total = 0, wanted = lab->config.fresh_tokens;
    enum status status = ST_OK;
    lab->tokens_below[d] = xrealloc_array(lab->tokens_below[d], (size_t)c->n_train + 1, sizeof(uint64_t));
    lab->tokens_below[d][0] = 0;
    uint32_t pass = 0;
    for (uint32_t i = 0; i < c->n_train && pass < LAB_PASSES && status == ST_OK; i++) {
        ids.n = 0;
        buf_clear(&mask);
        status = engine_tokenise(&lab->engine, ALV__RECORD_KIND__RECORD_TEXT, c->train[i].text, &ids, &mask, err);
        total += ids.n;
        lab->tokens_below[d][i + 1] = total;
        if (total >= wanted * (pass + 1))
            lab->range_end[d][pass++] = i + 1;
    }
    if (status == ST_OK && pass < LAB_PASSES)
        status = err_set(err, ST_LIMIT, "%s: %llu tokens to train on, and %u passes of %llu are wanted", c->name,
                         (unsigned long long)total, (unsigned)LAB_PASSES, (unsigned long long)wanted);
    token_buf_release(&ids);
    buf_release(&mask);
    return status;
}

static enum status use_anchor(struct lab *lab, bool own, struct err *err)
{
    enum status status = ST_OK;
    if (lab->own_anchor == own)
        return ST_OK;
    if (!lab->other_anchor.name)
        status = corpus_read(lab->config.grown, "self", &lab->config.corpus, 0, &lab->engine, &lab->other_anchor, err);
    if (status != ST_OK)
        return status;
    struct corpus used = lab->corpora[0];
    lab->corpora[0] = lab->other_anchor;
    lab->other_anchor = used;
    lab->own_anchor = own;
    lab->seed = 0; /* it has no order yet */
    return ST_OK;
}

static enum status use_seed(struct lab *lab, uint32_t seed, struct err *err)
{
    enum status status = ST_OK;
    if (lab->seed == seed)
        return ST_OK;
    lab->seed = 0;
    for (uint32_t i = 0; i <= lab->config.n_domains && status == ST_OK; i++) {
        struct corpus_options options = lab->config.corpus;
        if (i == 0 && lab->own_anchor)
            options.heldout_permille = 0; /* nothing is measured on it */
        corpus_order(&lab->corpora[i], &options, 1000ull * seed + i);
        if (i > 0)
            status = count_ranges(lab, i - 1, err);
    }
    if (status == ST_OK)
        lab->seed = seed;
    return status;
}

static uint32_t range_begin(const struct lab *lab, uint32_t d, uint32_t pass)
{
    return pass ? lab->range_end[d][pass - 1] : 0;
}

/* [from, to) of domain d that part `k` of `n` of a stage trains, in offsets; from == to: nothing. With k == n: where the
 * stage ends. */
static void stage_slice(const struct lab *lab, const struct arm *arm, uint32_t stage, uint32_t d, uint32_t k,
                        uint32_t n, uint32_t *from, uint32_t *to)
{
    uint32_t D = lab->config.n_domains, pass = (stage - 1) / D, place = (stage - 1) % D;
    uint32_t begin = range_begin(lab, d, pass), count = lab->range_end[d][pass] - begin;
    if (arm->joint) {
        *from = begin + (uint32_t)((uint64_t)count * (place * n + k) / (D * n));
        *to = begin + (uint32_t)((uint64_t)count * (place * n + (k < n ? k + 1 : k)) / (D * n));
        return;
    }
    uint32_t at = 0;
    while (lab->config.order[pass][at] != d)
        at++;
    bool mine = at == place;
    *from = at < place ? begin + count : begin + (mine ? (uint32_t)((uint64_t)count * k / n) : 0);
    *to = mine && k < n ? begin + (uint32_t)((uint64_t)count * (k + 1) / n) : *from;
}

/* ---- training a stage */

static const char *state_path(const struct lab *lab, const struct cell *cell, char *path, size_t size)
{
    snprintf(path, size, "%s/%s-%g-%u-%u.safetensors", lab->config.work, cell->arm->name, cell->rate, cell->seed,
             cell->stage);
    return path;
}

static enum status load_state(const struct lab *lab, const struct cell *cell, float *block, struct err *err)
{
    char path[4096];
    struct buf file = {0};
    enum status status = file_read(state_path(lab, cell, path, sizeof path), 1 << 30, &file, err);
    if (status == ST_OK)
        status = adapter_read_peft(&lab->engine.shape, file.data, file.len, block, err);
    buf_release(&file);
    return status;
}

static enum status save_state(const struct lab *lab, const struct cell *cell, const float *block, char hex[17],
                              struct err *err)
{
    char path[4096], whole[DIGEST_HEX_SIZE];
    struct buf file = {0};
    struct digest digest;
    adapter_write_peft(&lab->engine.shape, block, &file);
    hash_blake2b(file.data, file.len, &digest);
    digest_hex(&digest, whole);
    snprintf(hex, 17, "%.16s", whole);
    enum status status = file_write_durable(state_path(lab, cell, path, sizeof path), file.data, file.len, 0644, err);
    buf_release(&file);
    return status;
}

struct lease_box { /* a lease and what its pointers point to */
    Alv__Lease lease;
    Alv__TrainConfig train;
    Alv__BlobRef parent;
    Alv__Range ranges[LAB_DOMAINS], *range_list[LAB_DOMAINS];
    Alv__DomainView views[1 + LAB_DOMAINS], *view_list[1 + LAB_DOMAINS];
    uint8_t incarnation[16], digest[DIGEST_LEN];
};

/* Worker `w` of round `r`. The watermarks are those before the round; weights as in coordinator/core/planner.c: the square
 * root of settled tokens. */
static void make_lease(const struct lab *lab, const struct cell *cell, uint32_t r, uint32_t w, struct lease_box *b)
{
    const struct lab_config *c = &lab->config;
    const struct arm *arm = cell->arm;
    uint32_t n = arm->rounds * arm->workers, D = c->n_domains;
    *b = (struct lease_box){0};
    alv__lease__init(&b->lease);
    alv__train_config__init(&b->train);
    alv__blob_ref__init(&b->parent);
    b->parent.digest = (ProtobufCBinaryData){DIGEST_LEN, b->digest};
    b->parent.bytes = 1;
    b->train.seq_tokens = c->seq_tokens;
    b->train.step_tokens = c->step_tokens * arm->step_factor;
    b->train.lr = (float)cell->rate;
    b->train.beta1 = 0.9f, b->train.beta2 = 0.99f, b->train.eps = 1e-8f, b->train.clip = 1;
    b->train.warmup_steps = c->warmup_steps;
    b->train.anchor_permille = arm->anchor_permille, b->train.history_permille = arm->history_permille;
    b->train.sample_k = c->sample_k;
    b->train.delta_coding = arm->coding;
    b->train.decay_permille = arm->decay_permille, b->train.average_permille = arm->average_permille;
    b->train.history_distil_permille = arm->history_distil;
    b->train.distil_permille = arm->anchor_distil;
    b->train.history_boost_permille = arm->history_boost, b->train.anchor_boost_permille = arm->anchor_boost;
    for (uint32_t i = 0; i <= D; i++) {
        Alv__DomainView *view = b->view_list[i] = &b->views[i];
        uint32_t from = lab->corpora[0].n_train, to;
        alv__domain_view__init(view);
        if (i > 0)
            stage_slice(lab, arm, cell->stage, i - 1, r * arm->workers, n, &from, &to);
        view->domain = i;
        view->watermark = from;
        view->weight = i > 0 ? (uint32_t)sqrt((double)lab->tokens_below[i - 1][from]) : 0;
        view->name = (char *)lab->corpora[i].name;
    }
    for (uint32_t d = 0; d < D; d++) {
        uint32_t from, to;
        stage_slice(lab, arm, cell->stage, d, r * arm->workers + w, n, &from, &to);
        if (from == to)
            continue;
        Alv__Range *range = b->range_list[b->lease.n_fresh] = &b->ranges[b->lease.n_fresh];
        alv__range__init(range);
        range->domain = d + 1, range->first = from, range->count = to - from;
        b->lease.n_fresh++;
    }
    b->lease.id = 1 + r * arm->workers + w;
    b->lease.generation = 1;
    b->lease.session_counter = 1;
    b->lease.session_incarnation = (ProtobufCBinaryData){16, b->incarnation};
    b->lease.parent_adapter = &b->parent;
    b->lease.fresh = b->range_list;
    b->lease.domains = b->view_list;
    b->lease.n_domains = D + 1;
    b->lease.seed = 1000000ull * cell->seed + 1000 * cell->stage + b->lease.id;
    b->lease.train = &b->train;
}

struct stage_sum { /* over the leases of a stage */
    uint64_t rows[MIX_POOLS], targets, bytes;
    uint32_t steps; /* of the longest lease of each round: what a clock on the wall would see */
    double loss_first, loss_last, factor_error;
    char fingerprint[LIMIT_TEXT_BYTES];
};

static void say_progress(void *user, uint32_t done, uint32_t total, uint32_t tokens_per_s)
{
    const struct lab *lab = user;
    if (!lab->config.quiet && (done == total || done % 8 == 0))
        fprintf(stderr, "    step %u of %u, %u tokens/s\n", done, total, tokens_per_s);
}

static double mean_f32(const struct buf *values)
{
    struct reader r = reader_of(values->data, values->len);
    double sum = 0, n = (double)(values->len / 4);
    for (size_t i = 0; i < values->len / 4; i++)
        sum += (double)read_f32(&r);
    return n > 0 ? sum / n : 0;
}

/* Trains one lease; its delta goes to a file in memory. */
static enum status train_lease(struct lab *lab, struct view *view, const struct lease_box *box, const float *parent,
                               const atomic_bool *cancel, struct combine_input *input, struct stage_sum *sum,
                               uint32_t *steps, struct err *err)
{
    struct lease_work work = {0};
    struct train_result result = {0};
    enum status status = plan_check_lease(&box->lease, err);
    if (status == ST_OK)
        status = train_ready(&lab->engine, view, &box->lease, corpus_segments, lab->corpora, cancel, &work, err);
    if (status == ST_OK) {
        work.parent = xmemdup(parent, adapter_floats(&lab->engine.shape) * sizeof *parent);
        status = train_run(&lab->engine, &box->lease, &work, cancel, say_progress, lab, &result, err);
    }
    if (status == ST_OK) {
        input->fd = memfd_create("delta", MFD_CLOEXEC);
        input->bytes = result.delta.len;
        input->target_tokens = result.target_tokens;
        hash_blake2b(result.delta.data, result.delta.len, &input->digest);
        if (input->fd < 0 || write(input->fd, result.delta.data, result.delta.len) != (ssize_t)result.delta.len)
            status = err_set(err, ST_IO, "a delta of %zu bytes cannot be kept in memory: %s", result.delta.len,
                             strerror(errno));
    }
    if (status == ST_OK) {
        for (int p = 0; p < MIX_POOLS; p++)
            sum->rows[p] += work.order.rows[p];
        sum->targets += result.target_tokens;
        sum->bytes += result.delta.len;
        sum->loss_first = mean_f32(&result.first_losses);
        sum->loss_last = result.loss;
        *steps = result.steps > *steps ? result.steps : *steps;
        snprintf(sum->fingerprint, sizeof sum->fingerprint, "%s", result.fingerprint);
    }
    train_result_release(&result);
    lease_work_release(&work);
    return status;
}

/* The change of a round as a gradient for SGD with Nesterov momentum (DiLoCo: Douillard et al. 2023, arXiv 2311.08105). */
static void outer_step(const struct arm *arm, float *block, const float *candidate, float *momentum, size_t n)
{
    const float mu = (float)arm->outer_momentum / 1000, rate = (float)arm->outer_rate / 1000;
    for (size_t i = 0; i < n; i++) {
        float change = candidate[i] - block[i];
        momentum[i] = mu * momentum[i] + change;
        block[i] += rate * (change + mu * momentum[i]);
    }
}

/* One round: all its leases, then their combination takes the place of `block`. `momentum`: of this stage's rounds before. */
static enum status train_round(struct lab *lab, const struct cell *cell, uint32_t r, float *block, float *momentum,
                               const atomic_bool *cancel, struct stage_sum *sum, struct err *err)
{
    const struct sip_key key = {{(uint8_t)cell->seed}};
    struct combine_input inputs[WORKERS_MAX];
    struct combine_row rows[WORKERS_MAX];
    struct combine_settings settings = combine_defaults();
    struct combine_result result;
    struct lease_box box;
    size_t n = adapter_floats(&lab->engine.shape);
    float *candidate = xmalloc(n * sizeof *candidate);
    struct view *view = view_new(&key);
    uint32_t steps = 0, done = 0;
    enum status status = ST_OK;
    CHECK(cell->arm->workers <= WORKERS_MAX);
    for (uint32_t w = 0; w < cell->arm->workers; w++)
        inputs[w] = (struct combine_input){.fd = -1};
    for (; done < cell->arm->workers && status == ST_OK; done++) {
        make_lease(lab, cell, r, done, &box);
        status = train_lease(lab, view, &box, block, cancel, &inputs[done], sum, &steps, err);
    }
    if (status == ST_OK)
        status = combine(&lab->engine.shape, block, inputs, done, &settings, candidate, rows, &result, err);
    if (status == ST_OK) {
        if (cell->arm->outer_rate)
            outer_step(cell->arm, block, candidate, momentum, n);
        else
            memcpy(block, candidate, n * sizeof *block);
        sum->steps += steps;
        sum->factor_error = result.factor_error > sum->factor_error ? result.factor_error : sum->factor_error;
    }
    for (uint32_t w = 0; w < cell->arm->workers; w++)
        if (inputs[w].fd >= 0)
            close(inputs[w].fd);
    view_free(view);
    free(candidate);
    return status;
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* Of the text that the base wrote, which the configuration does not name: another draw may stand in its place. */
static void add_digest(json_t *cell, const struct digest *digest)
{
    char hex[DIGEST_HEX_SIZE];
    digest_hex(digest, hex);
    json_object_set_new(cell, "text", json_stringn(hex, 16));
}

static enum status write_train_cell(struct lab *lab, const struct cell *cell, const struct stage_sum *sum,
                                    const char *adapter, double seconds, double cpu, struct err *err)
{
    char key[KEY_SIZE];
    cell_text(lab, cell, key, sizeof key);
    json_t *json = json_pack("{s:s, s:i, s:{s:I, s:I, s:I}, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:s, s:s}", "cell", key,
                             "steps", sum->steps, "rows", "fresh", (json_int_t)sum->rows[MIX_FRESH], "history",
                             (json_int_t)sum->rows[MIX_HISTORY], "anchor", (json_int_t)sum->rows[MIX_ANCHOR], "targets",
                             (json_int_t)sum->targets, "bytes", (json_int_t)sum->bytes, "first_pass_loss",
                             sum->loss_first, "loss", sum->loss_last, "factor_error", sum->factor_error, "seconds",
                             seconds, "cpu_s", cpu, "adapter", adapter, "fingerprint", sum->fingerprint);
    CHECK(json != NULL);
    if (cell->arm->own_anchor)
        add_digest(json, &lab->corpora[0].digest);
    return results_add(lab->results, json, err);
}

static void say_cell(const struct lab *lab, const struct cell *cell)
{
    char key[KEY_SIZE];
    cell_text(lab, cell, key, sizeof key);
    if (!lab->config.quiet)
        fprintf(stderr, "%s\n", key);
}

/* The adapter after a stage, into `block`: from the work directory, else trained from the stage before it. */
static enum status state_after(struct lab *lab, const struct cell *at, float *block, const atomic_bool *cancel,
                               struct err *err)
{
    struct cell cell = *at;
    cell.kind = CELL_TRAIN;
    cell.arm = trained_as(at->arm);
    if (cell.stage == 0) {
        adapter_init(&lab->engine.shape, cell.seed, block);
        return ST_OK;
    }
    enum status status = lab_has(lab, &cell) ? load_state(lab, &cell, block, err) : ST_NOT_FOUND;
    if (status != ST_NOT_FOUND)
        return status;
    struct cell before = cell;
    before.stage--;
    status = state_after(lab, &before, block, cancel, err);
    if (status != ST_OK)
        return status;
    say_cell(lab, &cell);
    struct stage_sum sum = {0};
    char adapter[17];
    double begun = clock_s(), cpu = cpu_s();
    float *momentum = xcalloc(adapter_floats(&lab->engine.shape), sizeof *momentum);
    for (uint32_t r = 0; r < cell.arm->rounds && status == ST_OK; r++)
        status = train_round(lab, &cell, r, block, momentum, cancel, &sum, err);
    free(momentum);
    if (status == ST_OK)
        status = save_state(lab, &cell, block, adapter, err);
    if (status == ST_OK && !lab_has(lab, &cell))
        status = write_train_cell(lab, &cell, &sum, adapter, clock_s() - begun, cpu_s() - cpu, err);
    return status;
}

/* What is published after a stage. */
static enum status published_after(struct lab *lab, const struct cell *at, float *block, const atomic_bool *cancel,
                                   struct err *err)
{
    if (!at->arm->of)
        return state_after(lab, at, block, cancel, err);
    struct publish_rule rule = {.scale = at->arm->publish_permille ? at->arm->publish_permille / 1000.0 : 1};
    float *state = xmalloc(adapter_floats(&lab->engine.shape) * sizeof *state);
    struct cell cell = *at;
    cell.stage = 0;
    enum status status = state_after(lab, &cell, block, cancel, err);
    while (status == ST_OK && cell.stage < at->stage) {
        cell.stage++;
        status = state_after(lab, &cell, state, cancel, err);
        if (status == ST_OK)
            publish_next(&lab->engine.shape, &rule, state, block);
        rule.ema = at->arm->ema_permille / 1000.0; /* not after version 0 */
    }
    free(state);
    return status;
}

/* ---- scoring */

static enum status evaluate(struct lab *lab, const struct cell *cell, const float *block, const atomic_bool *cancel,
                            struct err *err)
{
    const struct corpus *c = &lab->corpora[1 + cell->domain];
    uint32_t width = lab->config.corpus.window_tokens, n = c->n_windows[cell->part];
    json_t *losses = json_array(), *groups = json_array();
    char key[KEY_SIZE], fingerprint[LIMIT_TEXT_BYTES];
    double sum = 0, begun = clock_s(), cpu = cpu_s();
    enum status status = engine_evaluator(&lab->engine, width, err);
    if (status == ST_OK) {
        evaluator_set_adapter(lab->engine.evaluator, block);
        evaluator_fingerprint(lab->engine.evaluator, fingerprint, sizeof fingerprint);
    }
    for (uint32_t i = 0; i < n && status == ST_OK; i++) {
        struct sample sample = {c->windows[cell->part].ids + (size_t)i * width, NULL, width};
        double nll;
        uint32_t targets;
        status = atomic_load(cancel) ? err_set(err, ST_STOPPED, "stopped")
                                     : evaluator_score(lab->engine.evaluator, &sample, 1, &nll, &targets, err);
        if (status != ST_OK)
            break;
        sum += nll / targets;
        json_array_append_new(losses, json_real(round(nll / targets * 1e5) / 1e5));
        json_array_append_new(groups, json_integer(c->window_groups[cell->part][i]));
    }
    if (status != ST_OK) {
        json_decref(losses);
        json_decref(groups);
        return status;
    }
    cell_text(lab, cell, key, sizeof key);
    json_t *json = json_pack("{s:s, s:f, s:o, s:f, s:f, s:s}", "cell", key, "loss", sum / n, "windows", losses,
                             "seconds", clock_s() - begun, "cpu_s", cpu_s() - cpu, "fingerprint", fingerprint);
    CHECK(json != NULL);
    if (cell->arm)
        json_decref(groups); /* the base's cell says once which document each window is of */
    else
        json_object_set_new(json, "documents", groups);
    return results_add(lab->results, json, err);
}

bool lab_has_own_text(const struct lab *lab)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/own.jsonl", lab->config.grown);
    return access(path, R_OK) == 0;
}

static enum status measure_own(struct lab *lab, const struct cell *cell, const float *block, struct err *err)
{
    char key[KEY_SIZE], fingerprint[LIMIT_TEXT_BYTES];
    double kl, begun = clock_s(), cpu = cpu_s();
    enum status status = lab->own.n ? ST_OK : own_read(lab->config.grown, &lab->engine, &lab->own, err);
    if (status != ST_OK)
        return status;
    double *by_text = xcalloc(lab->own.n, sizeof *by_text);
    json_t *parts = json_array();
    status = own_score(&lab->own, &lab->engine, block, &kl, by_text, err);
    for (uint32_t i = 0; i < lab->own.n && status == ST_OK; i++)
        json_array_append_new(parts, json_real(round(by_text[i] * 1e8) / 1e8));
    free(by_text);
    if (status != ST_OK) {
        json_decref(parts);
        return status;
    }
    cell_text(lab, cell, key, sizeof key);
    evaluator_fingerprint(lab->engine.evaluator, fingerprint, sizeof fingerprint);
    json_t *json = json_pack("{s:s, s:f, s:o, s:f, s:f, s:s}", "cell", key, "kl", kl, "by_text", parts, "seconds",
                             clock_s() - begun, "cpu_s", cpu_s() - cpu, "fingerprint", fingerprint);
    CHECK(json != NULL);
    add_digest(json, &lab->own.digest);
    return results_add(lab->results, json, err);
}

enum status lab_do(struct lab *lab, const struct cell *cell, const atomic_bool *cancel, struct err *err)
{
    float *block = NULL;
    const struct arm *arm = cell->arm ? trained_as(cell->arm) : NULL;
    enum status status = use_targets(lab, arm ? arm->targets : LORA_ALL, err);
    if (status == ST_OK && arm) {
        block = xmalloc(adapter_floats(&lab->engine.shape) * sizeof *block);
        status = use_anchor(lab, arm->own_anchor, err);
        if (status == ST_OK)
            status = use_seed(lab, cell->seed, err);
        if (status == ST_OK)
            status = cell->kind == CELL_TRAIN ? state_after(lab, cell, block, cancel, err)
                                              : published_after(lab, cell, block, cancel, err);
    }
    if (status == ST_OK && cell->kind == CELL_EVAL) {
        say_cell(lab, cell);
        status = evaluate(lab, cell, block, cancel, err);
    } else if (status == ST_OK && cell->kind == CELL_OWN) {
        say_cell(lab, cell);
        status = measure_own(lab, cell, block, err);
    }
    free(block);
    return status;
}
