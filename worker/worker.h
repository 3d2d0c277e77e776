/* worker.h - one worker process: joins a line, trains leases, scores candidates, until it is told to stop.
 *
 *     DIR/instance   16 bytes in hex: who this worker is (a requeued job keeps it with its directory)
 *     DIR/boot       counter of starts; raised durably before the first hello, so that the newest start fences the older
 *     DIR/session    the newest coordinator session seen: the chain that is checked at every hello
 *     DIR/commit     a delta that was computed but not yet answered (its blob is in DIR/blobs)
 *     DIR/blobs      parent adapters and deltas, by digest
 *     DIR/cache      RocksDB: replayed segments, scores of earlier evaluations, sequence of the last erasure
 *     DIR/lock       held while a worker runs; its loop touches it every few seconds
 * All but `instance` and `boot` may be lost without harm to the line.
 */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "model/ops.h"

struct worker_options {
    const char *join;       /* join file */
    const char *dir;        /* NULL: $XDG_STATE_HOME/alluvium/worker-<line>, or ~/.local/state/... */
    const char *base;       /* GGUF file or Hugging Face directory */
    uint32_t threads;       /* 0: the CPUs this process may use */
    uint32_t micro_rows;    /* rows of one micro-batch: memory against speed; 0: 1,024 */
    uint64_t memory_max;    /* bytes; refuse a larger plan; 0: nine tenths of the memory there is */
    uint64_t keep_bytes;    /* replayed text kept on disk; 0: 1 GiB */
    uint64_t reserve_bytes; /* free space to leave on DIR's file system; 0: 256 MiB */
    enum ops_kind ops;      /* the back end of training and evaluation */
    bool check;             /* set everything up, print the memory plan, say hello, and end */
    bool quiet;             /* no progress line */
    FILE *events;           /* one JSON object per event and line; NULL: none */
    FILE *progress;         /* the progress line, a terminal; NULL: none */
    int stop_fd;            /* a byte becomes readable here at each request to stop (1st: drain, 2nd: at once); -1: the
                               worker installs its own handlers of SIGTERM and SIGINT for the duration of the call */
};

/* Blocks until drained (ST_OK), stopped by something it cannot mend (the text says what, and what to do), or told twice. */
enum status worker_run(const struct worker_options *options, struct err *err);

#endif
