/* corpus.h - the bench's text: JSONL of scripts/fetch-text as a line's domains would hold it.
 *
 * A document is held out or trained, never both: by a salted hash of its id, as the intake does it. Trained documents
 * come in an order that the seed decides, cut by the intake's own text_cut(). Held-out documents are dealt to three parts
 * (audit, gate, audit, gate, tuning, ...), so that a few long documents do not leave a part empty; the windows of a part
 * are the first window_tokens tokens of segments, taken one of each document in turn, the same for every seed.
 */
#ifndef CONTINUAL_CORPUS_H
#define CONTINUAL_CORPUS_H

#include "base/ids.h"
#include "worker/engine.h"
#include "worker/train.h"

enum corpus_part { PART_AUDIT, PART_GATE, PART_TUNING, CORPUS_PARTS };
extern const char *const corpus_part_names[CORPUS_PARTS];

struct corpus_options {
    uint32_t segment_bytes, heldout_permille, window_tokens;
    uint32_t windows[CORPUS_PARTS]; /* of each part, per domain */
};

struct corpus_segment {
    struct bytes text;
    uint64_t group;
    uint32_t piece;
    Alv__RecordKind kind;
};

struct corpus {
    const char *name;
    struct digest digest; /* of the file */
    struct buf text;      /* of all documents, one after the other */
    struct corpus_document {
        struct bytes text;
        uint64_t group;
        Alv__RecordKind kind; /* of a chat, `text` is its messages: one segment, never cut */
    } * documents;
    uint32_t n_documents;
    struct corpus_segment *train;
    uint32_t n_train;
    struct token_buf windows[CORPUS_PARTS]; /* window_tokens each */
    uint32_t *window_groups[CORPUS_PARTS];  /* the document of each window, counted from 0 */
    uint32_t n_windows[CORPUS_PARTS];
};

/* Reads DIR/NAME.jsonl; `name` is borrowed. ST_BAD_DATA names the line. `parts` is a bit set of the parts to fill;
 * ST_LIMIT: there is too little text for one of them. */
enum status corpus_read(const char *dir, const char *name, const struct corpus_options *options, unsigned parts,
                        const struct engine *engine, struct corpus *out, struct err *err);
/* Puts the training segments into the order of `seed`, documents whole. */
void corpus_order(struct corpus *corpus, const struct corpus_options *options, uint64_t seed);
void corpus_release(struct corpus *corpus);

/* segments_fn over an array of corpora: domain i of the line is corpora[i]. */
enum status corpus_segments(void *corpora, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                            struct err *err);

#endif
