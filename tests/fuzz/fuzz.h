/* fuzz.h - one parser under hostile bytes. A target defines both functions. Built by clang it is a libFuzzer program; else
 * fuzz_main.c gives it a main() that derives inputs from the seeds: truncations, byte changes, splices, from a fixed seed. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
/* Calls `use` with each valid input that mutations start from. */
void fuzz_seeds(void (*use)(const uint8_t *data, size_t len));

#endif
