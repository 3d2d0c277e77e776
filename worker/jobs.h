/* jobs.h - the thread that does a worker's heavy work: set up, exclusions, fetching, training, scoring, uploading.
 *
 * The session (session.h) hands over the core's effects, in order, and takes answers back as events; nothing else crosses the
 * border. The thread owns engine, cache and the connection to the bulk plane. One job runs at a time; a cancelled
 * one ends within a training step, a window or a network wait.
 */
#ifndef WORKER_JOBS_H
#define WORKER_JOBS_H

#include "net/request.h"
#include "worker/core.h"
#include "worker/engine.h"
#include "worker/home.h"

struct jobs_config { /* all borrowed until jobs_stop() */
    void *zmq;
    const struct join *join;
    const Alv__Hello *hello; /* said on the bulk plane */
    struct home *home;
    struct engine *engine;
    uint64_t keep_bytes;
};

struct jobs;

enum status jobs_start(const struct jobs_config *config, struct jobs **out, struct err *err);
/* Cancels what runs, drops what waits, ends the thread. NULL is fine. */
void jobs_stop(struct jobs *jobs);

/* Queues WORKER_PREPARE, _EXCLUDE, _FETCH, _TRAIN, _SCORE, _UPLOAD or _SETTLED; takes the effect's message. */
void jobs_add(struct jobs *jobs, struct worker_effect *effect);
void jobs_cancel(struct jobs *jobs, uint64_t job);

/* Readable when jobs_next() has something. */
int jobs_fd(const struct jobs *jobs);
/* The next event for the core: all but now_ms is filled. False: none. What it points to is good until the next call. */
bool jobs_next(struct jobs *jobs, struct worker_event *out);

#endif
