/* lab.h - arms, cells and the results file of bench_continual.
 *
 * A line is run through in stages: stage s trains one domain's next fresh segments (the joint arm: a slice of all of
 * them) in leases made by worker/plan.h, trained by worker/train.h, combined by adapter/combine.h: the product's own
 * pieces in one process, without sockets. A cell is one piece of work whose result is one line of JSON:
 *
 *     train ARM RATE SEED STAGE                     stage by stage; the adapter goes to the work directory
 *     eval  ARM RATE SEED STAGE DOMAIN PART         losses of that adapter on one part of one domain's windows
 *     own   ARM RATE SEED STAGE                     its KL from the base (own.h)
 *
 * The first line of a results file is the configuration: everything numeric that cells depend on, the base's and the
 * texts' digests included. Another configuration is another file. A cell that is in the file is not done again; an
 * adapter that is missing is trained again. A line torn by a crash is cut off. One process at a time (a lock).
 */
#ifndef CONTINUAL_LAB_H
#define CONTINUAL_LAB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "corpus.h"
#include "worker/engine.h"

enum { LAB_DOMAINS = 8, LAB_PASSES = 2, LAB_SENTINELS = 2 };

struct lab_config {
    const char *base, *text, *work, *results; /* paths; results: the file */
    const char *grown;                        /* path of what the base wrote itself: own.jsonl (own.h), self.jsonl */
    const char *anchor;                       /* name of the anchor's corpus */
    const char *domains[LAB_DOMAINS];         /* in the order of the first pass */
    uint32_t n_domains;
    uint32_t order[LAB_PASSES][LAB_DOMAINS]; /* index of the domain at each place of each pass */
    const char *sentinels[LAB_SENTINELS];    /* never trained, replayed or tuned on; NULL: none */
    uint32_t fresh_tokens;                   /* of one stage, at least */
    uint32_t seq_tokens, step_tokens, rank, alpha, warmup_steps, sample_k, micro_rows, threads;
    struct corpus_options corpus;
    enum ops_kind ops;
    bool quiet;
};
/* The plan: SmolLM2-135M, five domains of scripts/fetch-text, two passes. */
void lab_defaults(struct lab_config *out);

struct arm {
    const char *name;
    uint32_t history_permille, anchor_permille;
    uint32_t workers;     /* leases of a round, combined by their mean of factors */
    uint32_t rounds;      /* of a stage, one after the other */
    uint32_t step_factor; /* optimiser steps of so many times step_tokens: data-parallel training at a larger batch */
    bool joint;           /* every stage is a slice of all domains */
    uint32_t targets;     /* bits of LORA_* */
    uint32_t coding;      /* enum delta_coding, on the way to the combination */
    uint32_t decay_permille, average_permille;
    uint32_t history_boost, anchor_boost; /* permille */
    uint32_t history_distil;              /* permille: the parent's predictions in what history teaches */
    uint32_t outer_momentum, outer_rate; /* permille: how a round's change is taken, see outer_step(); 0, 0: as it is */
    bool own_anchor;                     /* the anchor is text that the base wrote */
    uint32_t anchor_distil;              /* permille: the base's predictions in what the anchor teaches */
    const char *of; /* trained as this arm is; what is scored is what a line with these settings publishes of it */
    uint32_t ema_permille, publish_permille; /* 0: all of it */
    const char *what;                        /* for the report */
};
const struct arm *arm_at(uint32_t i); /* NULL past the end */
const struct arm *arm_find(const char *name);

enum cell_kind { CELL_TRAIN, CELL_EVAL, CELL_OWN };
struct cell {
    enum cell_kind kind;
    const struct arm *arm; /* NULL: the base (stage 0; rate and seed 0) */
    double rate;
    uint32_t seed, stage;  /* stage: 1 .. n_domains * LAB_PASSES; eval: 0 is the base */
    uint32_t domain;       /* eval: index; n_domains + i is sentinel i */
    enum corpus_part part; /* eval */
};

struct lab;
/* Reads base, texts and results. ST_CONFLICT: another process has the results file, or it is of another configuration. */
enum status lab_open(const struct lab_config *config, struct lab **out, struct err *err);
void lab_close(struct lab *lab); /* NULL is fine */
bool lab_has(const struct lab *lab, const struct cell *cell);
/* Does the cell and writes its line, durably. Earlier stages it needs are done (and written) first. ST_STOPPED when
 * `cancel` became true: nothing is written of what was in hand. */
enum status lab_do(struct lab *lab, const struct cell *cell, const atomic_bool *cancel, struct err *err);
void cell_text(const struct lab *lab, const struct cell *cell, char *out, size_t size);
bool lab_has_own_text(const struct lab *lab); /* can cells of kind CELL_OWN be done? */
/* Mean loss of an eval cell that is there; NAN when it is not. */
double lab_loss(const struct lab *lab, const struct cell *cell);
/* Digest of a stage's adapter in hex, "" when the cell is not there. For tests. */
const char *lab_adapter(const struct lab *lab, const struct cell *cell);
const struct lab_config *lab_configuration(const struct lab *lab);

#endif
