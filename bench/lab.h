/* lab.h - what the engine's benchmarks share: a base to measure on, tokens, clocks and medians.
 *
 * A program of bench/ may print and exit: a mistake in its arguments ends it.
 */
#ifndef BENCH_LAB_H
#define BENCH_LAB_H

#include <stdbool.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/status.h"
#include "model/pack.h"
#include "model/weights.h"

_Noreturn void lab_fail(const struct err *err);
uint32_t lab_number(const char *text, uint32_t max); /* from 1 */

enum ops_kind lab_ops(const char *name); /* "blas", "dnnl" or "bf16" */

/* The base at `path`, or NULL: random weights in the shape `name` ("smollm2-135m", "qwen3-0.6b", "llama-3.2-1b"). Speed does
 * not depend on the values. */
struct weights *lab_weights(const char *path, const char *name, enum ops_kind ops);

/* n samples of seq + 1 tokens: hashes of their index, which bench/peers makes too. Free samples[0].tokens and the list. */
struct sample *lab_samples(uint32_t n, uint32_t seq, uint32_t vocab);

/* As a run begins: B = 0, so that losses are the base's. Free it. */
float *lab_adapter(const struct adapter_shape *shape);

struct seconds {
    double wall, cpu; /* cpu: of all threads of this process */
};
struct seconds lab_now(void);
struct seconds lab_since(struct seconds begin);
double lab_median(double *x, uint32_t n); /* sorts x */
double lab_peak_bytes(void);              /* the largest resident set of this process so far */

enum { LAB_STEPS_MAX = 1000 };

/* A step of `gflop` for every line on stdin, so that a program that compares can alternate: prints "wall cpu loss" each time, and at the
 * end the peak in bytes and the seconds that the FLOP alone would take `threads` by registers_gflops(). */
void lab_take_turns(struct seconds (*step)(void *arg, double *loss), void *arg, double gflop, bool half,
                    uint32_t threads);

/* The machine's yardstick: a product of LAB_SGEMM squared by the library itself, on `threads` of its own. */
enum { LAB_SGEMM = 2048 };
struct lab_yardstick {
    float *a, *b, *c;
};
void lab_yardstick_init(struct lab_yardstick *y);
double lab_yardstick_seconds(const struct lab_yardstick *y, uint32_t threads);
void lab_yardstick_release(struct lab_yardstick *y);

#endif
