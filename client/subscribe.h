/* subscribe.h - follows an alias of a line into a directory: the subscribe core with sockets, files, and a hook or a
 * model server.
 *
 *     DIR/current -> notes-v7           swapped atomically
 *     DIR/notes-v7/                     one directory a version, never changed once it is there:
 *         adapter_model.safetensors     with adapter_config.json: a PEFT adapter (vLLM, transformers)
 *         adapter_config.json
 *         adapter.gguf                  llama.cpp
 *         manifest.json                 for people
 *         manifest.bin  manifest.sig    what was signed, and the signature
 *     DIR/.alluvium/                    state (what must never be forgotten), lock, downloads
 *
 * A crash at any moment leaves `current` on a whole version, and the next run goes on. One subscriber a directory.
 */
#ifndef CLIENT_SUBSCRIBE_H
#define CLIENT_SUBSCRIBE_H

#include "client/core.h"
#include "net/join.h"

enum subscribe_forms { FORM_PEFT = 1, FORM_GGUF = 2 };

struct subscribe_options {
    const struct join *join;
    const char *follow;       /* alias; NULL: "latest" */
    const char *dir;          /* made when missing */
    const char *base_name;    /* base_model_name_or_path of adapter_config.json; NULL: what `serve` says, else "" */
    const char *hook;         /* program to run after a swap; NULL: none */
    uint32_t hook_timeout_ms; /* 0: 120,000; a server's load too */
    const char *serve; /* URL of a vLLM server that is kept at the version (vllm.h), in place of a hook; NULL: none */
    const char *serve_dir;   /* `dir` as that server sees it; NULL: the same */
    const char *serve_token; /* file with its bearer token; NULL: none */
    uint32_t drain_ms;       /* between a version it has and the unloading of older ones */
    unsigned forms;          /* FORM_*; 0: both */
    uint32_t keep;           /* version directories to keep besides the current one; 0: 2 */
    bool once;               /* return when the alias's version is in place and served, or with the first problem */
    int stop_fd;             /* -1: none. Ends with ST_STOPPED */
    /* What happened, for people; `status` ST_OK: good news. May be NULL. */
    void (*note)(void *user, enum status status, const char *text);
    void (*progress)(void *user, uint64_t version, uint64_t done, uint64_t total);
    void *user;
};

/* Runs until stopped (or, with `once`, until done). ST_CONFLICT: another subscriber has the directory, or it belongs to
 * another line. ST_CORRUPT: its state is damaged (the text says what to do). */
enum status subscribe_run(const struct subscribe_options *options, struct subscribe_view *last, struct err *err);

/* The two texts it writes, for tests: PEFT's ten keys, and the manifest as indented JSON. */
void subscribe_peft_config(const struct manifest *manifest, const char *base_name, struct buf *out);
void subscribe_manifest_json(const struct manifest *manifest, struct buf *out);

#endif
