/* toy.h - a base of a few thousand random numbers with a tokenizer of single characters, and text that is a function of
 * its place: enough to train on in milliseconds. */
#ifndef TESTS_WORKER_TOY_H
#define TESTS_WORKER_TOY_H

#include "alluvium.pb-c.h"
#include "replay/mix.h"
#include "worker/fetch.h"

enum { TOY_VOCAB = 96 };

/* Writes a Hugging Face directory: into `dir`, or into a scratch one whose path it returns. */
void toy_base_write(const char *dir);
const char *toy_base(void);

/* The segment at a place, to be freed by the caller. */
Alv__Segment *toy_segment(struct mix_segment at, bool probe);

/* segments_fn: `user` counts the segments handed out (uint32_t *). */
enum status toy_segments(void *user, struct segment_set *set, const struct mix_segment *wanted, uint32_t n,
                         struct err *err);

/* A lease over `general` and two domains with history; the pointers inside live in static memory, one lease at a time. */
Alv__Lease *toy_lease(void);

#endif
