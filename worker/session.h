/* session.h - the loop around the worker's core: its connection to the work plane, its clock, its signals, its log.
 *
 * One thread; it never computes and never waits for the disk longer than a small file takes. What the core asks for
 * goes to the job thread (jobs.h) or onto the wire.
 */
#ifndef WORKER_SESSION_H
#define WORKER_SESSION_H

#include <stdio.h>

#include "net/join.h"
#include "worker/core.h"
#include "worker/home.h"
#include "worker/jobs.h"

struct session_config { /* all borrowed */
    void *zmq;
    const struct join *join;
    struct home *home;
    struct jobs *jobs;
    struct worker_config core;
    int stop_fd;      /* readable: a request to stop */
    size_t stop_size; /* bytes that make one request */
    bool check;       /* end as soon as the worker could ask for a task */
    FILE *events, *progress;
};

/* Until the core stops. */
enum status session_run(const struct session_config *config, struct err *err);

#endif
