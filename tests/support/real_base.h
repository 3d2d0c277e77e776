/* real_base.h - where the real base model is, for tests that need it. */
#ifndef REAL_BASE_H
#define REAL_BASE_H

#include <stdlib.h>

/* $ALLUVIUM_BASE_GGUF, or what scripts/fetch-base makes. */
static inline const char *real_base_path(void)
{
    const char *path = getenv("ALLUVIUM_BASE_GGUF");
    return path && *path ? path : SOURCE_DIR "/build/cache/SmolLM2-135M-Instruct.Q4_1.gguf";
}

#endif
