/* own.h - what an adapter changed where nothing was taught: text that the base drew from itself (`alluvium anchor --self`), so
 * that the loss an adapter gains on it is an unbiased estimate of KL(base || adapter) (model/selftext.h). Any draw estimates the
 * same figure: the texts are no part of a results file's configuration, and base and adapter are scored on the same ones. */
#ifndef CONTINUAL_OWN_H
#define CONTINUAL_OWN_H

#include "worker/engine.h"

struct own {              /* zeroed is empty */
    struct digest digest; /* of the file */
    struct token_buf ids;
    struct buf mask;
    struct sample *samples; /* of ids and mask */
    uint32_t n;
    double *base;      /* summed loss of each under the bare base */
    uint32_t *targets; /* of each */
};

/* Reads DIR/own.jsonl as corpus_read() does, and scores the bare base. ST_NOT_FOUND: there is no such file. */
enum status own_read(const char *dir, struct engine *engine, struct own *out, struct err *err);
void own_release(struct own *own);

/* KL(base || adapter) in nats per token, and each text's part of it: by_text has room for n, its sum over all targets. */
enum status own_score(const struct own *own, struct engine *engine, const float *block, double *kl, double *by_text,
                      struct err *err);

#endif
