/* pack.h - samples laid end to end in one stream: no padding, boundaries kept in cu_seqlens.
 *
 * A sample of n tokens asks n-1 questions: token i+1 from tokens 0..i. It takes n-1 rows, since the last token is never
 * an input. No BOS is put before it: what the caller tokenised is what is learned. Samples of fewer than two tokens take
 * no rows but keep their place, so that results stay aligned with the caller's list.
 * Packing: Krell et al. 2021, arXiv 2107.02027; boundaries in attention as in FlashAttention's varlen functions.
 */
#ifndef MODEL_PACK_H
#define MODEL_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "model/ops.h"

struct sample {             /* borrowed */
    const uint32_t *tokens; /* (n_tokens) */
    const uint8_t *mask;    /* (n_tokens) 1: this token is a target (chat: the assistant's words); NULL: all are */
    uint32_t n_tokens;
};

/* Whose predictions a sample learns besides its text: the bare base's, or those of the adapter that training began with. */
enum teacher { TEACHER_NONE, TEACHER_BASE, TEACHER_START, TEACHERS };

struct packed {           /* owned by whoever called pack_samples; release with packed_release */
    uint32_t *tokens;     /* (n_rows) what is read at each row */
    uint32_t *targets;    /* (n_rows) what follows it */
    uint8_t *mask;        /* (n_rows) 1: the target counts */
    uint32_t *cu_seqlens; /* (n_samples + 1) rows before each sample; the last is n_rows */
    uint32_t n_samples, n_rows;
    uint32_t n_targets; /* rows with mask 1 */

    /* What some objectives need besides (objective.h), set after packing and borrowed; NULL: not given. */
    const double *reference;    /* (n_samples) log-probability of each sample's targets under the reference */
    const real *const *teacher; /* (n_rows) where the teacher's logits (V) of a row begin; read at target rows */
    const uint8_t *distilled;   /* (n_samples) enum teacher */
    const float *weights;       /* (n_samples) how much a target counts, > 0; NULL: 1 each */
};

/* Packs the longest prefix of `samples` whose rows are at most `rows_max`, in order, and returns how many were taken
 * (at least one when n > 0: the caller has cut its samples to rows_max + 1 tokens, which is CHECKed). Deterministic. */
uint32_t pack_samples(const struct sample *samples, uint32_t n, uint32_t rows_max, struct packed *out);

/* The same for samples that belong together by twos: an even number is taken, at least two when n > 0 (n is even, and two
 * neighbours have at most rows_max rows, which is CHECKed). */
uint32_t pack_pairs(const struct sample *samples, uint32_t n, uint32_t rows_max, struct packed *out);
void packed_release(struct packed *packed);

/* ST_BAD_DATA unless every token and target is below `vocab_size` and the boundaries rise: the border check for
 * packed batches. Names the row. */
enum status packed_check(const struct packed *packed, uint32_t vocab_size, struct err *err);

#endif
