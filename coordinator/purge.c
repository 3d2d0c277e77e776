#include "coordinator/purge.h"

#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

enum { RETRY_MS = 30000 };

struct purger {
    struct db *db;
    int notify_fd;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop, news;               /* under the lock, and so the rest */
    uint64_t asked, done, rest_ms; /* rest_ms: clock_ms() before which nothing is begun */
};

/* Waits on the condition until `at_ms`; the lock is held. */
static void wait_until(struct purger *p, uint64_t at_ms)
{
    struct timespec ts = {(time_t)(at_ms / 1000), (long)(at_ms % 1000) * 1000000};
    pthread_cond_timedwait(&p->wake, &p->lock, &ts);
}

static void *purger_thread(void *arg)
{
    struct purger *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        uint64_t number = p->asked, start = clock_ms();
        if (number == p->done) {
            pthread_cond_wait(&p->wake, &p->lock);
            continue;
        }
        if (start < p->rest_ms) {
            wait_until(p, p->rest_ms);
            continue;
        }
        pthread_mutex_unlock(&p->lock);
        struct err err;
        enum status st = db_purge(p->db, FAMILY_STREAM, (struct bytes){0}, (struct bytes){0}, &err);
        uint64_t took = clock_ms() - start;
        pthread_mutex_lock(&p->lock);
        if (p->stop)
            break;
        p->rest_ms = clock_ms() + (st ? RETRY_MS : took);
        if (st) {
            log_warn("purge", "retracted text is still in the database's files, tried again why=\"%s\"", err.text);
            continue;
        }
        log_info("purge", "retracted text is gone from the database's files retractions=%llu ms=%llu",
                 (unsigned long long)number, (unsigned long long)took);
        p->done = number;
        p->news = true;
        uint64_t one = 1;
        ssize_t n = write(p->notify_fd, &one, sizeof one);
        CHECK(n == sizeof one);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

enum status purger_start(struct db *db, int notify_fd, struct purger **out, struct err *err)
{
    struct purger *p = xcalloc(1, sizeof *p);
    pthread_condattr_t monotonic;
    p->db = db;
    p->notify_fd = notify_fd;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int failed = pthread_create(&p->thread, NULL, purger_thread, p);
    if (failed) {
        pthread_cond_destroy(&p->wake);
        pthread_mutex_destroy(&p->lock);
        free(p);
        return err_set(err, ST_IO, "pthread_create: %s", strerror(failed));
    }
    *out = p;
    return ST_OK;
}

void purger_stop(struct purger **purger)
{
    struct purger *p = *purger;
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
    db_purge_stop(p->db);
    pthread_join(p->thread, NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    free(p);
    *purger = NULL;
}

void purger_submit(struct purger *p, uint64_t number)
{
    pthread_mutex_lock(&p->lock);
    p->asked = number > p->asked ? number : p->asked;
    pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

bool purger_take(struct purger *p, uint64_t *number)
{
    pthread_mutex_lock(&p->lock);
    bool news = p->news;
    p->news = false;
    *number = p->done;
    pthread_mutex_unlock(&p->lock);
    return news;
}
