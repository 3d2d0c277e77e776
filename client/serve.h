/* serve.h - telling a model server about a new version: a program of the user's, called the hook.
 *
 * It is run without a shell and without arguments, with standard input empty and standard output on our standard error,
 * in a process group of its own, with these variables added to ours:
 *
 *     ALLUVIUM_VERSION   7
 *     ALLUVIUM_PREVIOUS  6, the version of the last hook that succeeded; empty: none
 *     ALLUVIUM_LINE      notes
 *     ALLUVIUM_DIR       absolute path of the version's directory: a PEFT adapter (vLLM, transformers)
 *     ALLUVIUM_PEFT      its adapter_model.safetensors
 *     ALLUVIUM_GGUF      its adapter.gguf (llama.cpp)
 *
 * Exit 0 means "served". Anything else is a failure, and the hook is run again later: it must be repeatable.
 */
#ifndef CLIENT_SERVE_H
#define CLIENT_SERVE_H

#include <stdint.h>

#include "base/ids.h"
#include "base/status.h"

struct hook_facts {
    const char *line, *dir, *peft, *gguf; /* peft, gguf: empty when that form is not kept */
    uint64_t version, previous;
    int has_previous;
};

/* Waits for it, at most timeout_ms; then its group gets SIGTERM, and 5 s later SIGKILL. ST_OK; ST_TIMEOUT; ST_IO: cannot
 * be started, or ended badly (how, in the text); ST_STOPPED: stop_fd became readable (the hook was ended too). */
enum status hook_run(const char *path, const struct hook_facts *facts, uint32_t timeout_ms, int stop_fd,
                     struct err *err);

#endif
