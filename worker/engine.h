/* engine.h - the base a worker holds, and the trainer or evaluator over it. Used by the job thread alone.
 *
 * Only one of trainer and evaluator exists at a time, so that the memory plan is that of the larger one.
 */
#ifndef WORKER_ENGINE_H
#define WORKER_ENGINE_H

#include <stdint.h>

#include "adapter/adapter.h"
#include "adapter/card.h"
#include "alluvium.pb-c.h"
#include "base/limits.h"
#include "base/status.h"
#include "model/base.h"
#include "model/evaluate.h"
#include "model/template.h"
#include "model/tokenizer.h"
#include "model/trainer.h"
#include "model/weights.h"

struct engine_options {
    uint32_t threads, micro_rows;
    uint64_t memory_max;
    enum ops_kind ops;
};

struct engine {
    struct engine_options options;
    struct base *base;
    const struct tokenizer *tok;
    bool has_chat;
    enum chat_template chat;
    struct card card;
    struct weights *weights;
    struct adapter_shape shape;
    struct trainer *trainer;
    struct trainer_config trainer_config; /* of `trainer` */
    struct evaluator *evaluator;
    uint32_t evaluator_seq; /* of `evaluator` */
};

/* Opens the base and makes its card (reads the whole file once). */
enum status engine_open(const char *base_path, const struct engine_options *options, struct engine *out,
                        struct err *err);
void engine_close(struct engine *engine);

/* Adapters of this shape from now on: loads the weights and plans. `plan` tells what training will take at a sequence
 * of 512 (or the base's context, if that is less). ST_NO_MEMORY names both numbers. */
enum status engine_prepare(struct engine *engine, uint32_t rank, uint32_t alpha, uint32_t targets,
                           struct memory_plan *plan, char fingerprint[LIMIT_TEXT_BYTES], struct err *err);

/* The trainer of these settings for samples up to `seq_rows`: an existing one when they are the same. */
enum status engine_trainer(struct engine *engine, const Alv__TrainConfig *train, uint32_t seq_rows, struct err *err);
enum status engine_evaluator(struct engine *engine, uint32_t seq_rows, struct err *err);

/* Appends a segment's tokens, and one byte of mask a token (1: a target). Text is plain text; a chat goes through the base's
 * template. */
enum status engine_tokenise(const struct engine *engine, Alv__RecordKind kind, struct bytes text, struct token_buf *ids,
                            struct buf *mask, struct err *err);

#endif
