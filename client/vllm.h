/* vllm.h - a vLLM server kept at a version, over the calls it documents for adapters at run time.
 *
 *     GET  URL/v1/models                                            {"data": [{"id", "root", "parent", ...}, ...]}
 *     POST URL/v1/load_lora_adapter    {"lora_name", "lora_path"}   200; 400 the name is taken; 404 no such adapter; 500
 *     POST URL/v1/unload_lora_adapter  {"lora_name"}                200; 404 no such name; 500
 *
 * (docs.vllm.ai, LoRA adapters.) The server must run with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and see
 * the directory of versions; `parent` is null or missing for the base. Whatever a call answers, the next list decides.
 * HTTP by libcurl: no redirects, bounded answers, every call with a time-out, and a stop flag that is heard within a second.
 * One thread.
 */
#ifndef CLIENT_VLLM_H
#define CLIENT_VLLM_H

#include "base/buf.h"
#include "client/reconcile.h"

struct vllm;

struct vllm_options {
    const char *url;        /* http://host:8000 or https://...; borrowed until vllm_close() */
    const char *token_file; /* its text is sent as a bearer token (vLLM's --api-key); mode 0600. NULL: none */
    const char *line, *dir; /* see reconcile.h */
    uint32_t drain_ms;      /* between a version that is there and the unloading of older ones */
    uint32_t load_ms;       /* for a load: the server reads the adapter before it answers */
    int stop_fd;            /* readable: ST_STOPPED. -1: none */
};

/* ST_USAGE: the URL; ST_CONFIG: the token file. Asks nothing yet. */
enum status vllm_open(const struct vllm_options *options, struct vllm **out, struct err *err);
void vllm_close(struct vllm **vllm);

/* The server's own name of its base model: the `root` of what it lists without a parent. */
enum status vllm_base_name(struct vllm *vllm, struct buf *out, struct err *err);

/* One pass: lists, acts and lists again until there is nothing more to do now. ST_OK: the server has the version (older ones
 * may still drain: call again). ST_CONFLICT: the name is taken by something else. ST_TIMEOUT, ST_IO (with what the server
 * said), ST_UNSUPPORTED (it takes no adapters at run time), ST_BAD_DATA (it does not speak like vLLM), ST_STOPPED. */
enum status vllm_reconcile(struct vllm *vllm, uint64_t version, struct err *err);

/* Parses a list of models, for vllm.c and tests. The models point into `*json` (a json_t; json_decref() it). ST_BAD_DATA. */
enum { VLLM_MODELS_MAX = 4096, VLLM_ANSWER_BYTES = 4 << 20 };
struct json_t;
enum status vllm_models(struct bytes text, struct json_t **json, struct served_model **models, size_t *n,
                        struct err *err);

#endif
