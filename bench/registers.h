/* registers.h - how fast the CPU multiplies and adds when everything is in registers: what no product of matrices can exceed. */
#ifndef BENCH_REGISTERS_H
#define BENCH_REGISTERS_H

#include <stdbool.h>
#include <stdint.h>

/* GFLOP/s of `threads` at once, in some hundredths of a second: f32 fused multiply-adds of the widest vectors there are, or with `half` what
 * bf16_unit() names. 0 where this is not known. */
double registers_gflops(bool half, uint32_t threads);

#endif
