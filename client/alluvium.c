#include "client/alluvium.h"

#include <stdio.h>
#include <string.h>

#include "client/push.h"
#include "client/subscribe.h"
#include "proto/record.h"

_Static_assert((int)ALV_OK == (int)ST_OK && (int)ALV_EMPTY == (int)ST_EMPTY && (int)ALV_TIMEOUT == (int)ST_TIMEOUT &&
                   (int)ALV_CONFLICT == (int)ST_CONFLICT && (int)ALV_BAD_DATA == (int)ST_BAD_DATA &&
                   (int)ALV_STOPPED == (int)ST_STOPPED,
               "the public statuses are the inner ones");

const char *alv_version(void)
{
    return ALLUVIUM_VERSION;
}

const char *alv_status_name(int status)
{
    return status_name((enum status)status);
}

static int give(enum status status, const struct err *err, char *error, size_t error_size)
{
    if (error && error_size)
        snprintf(error, error_size, "%s", status == ST_OK ? "" : err->text[0] ? err->text : status_name(status));
    return (int)status;
}

struct feed {
    alv_next_record *next;
    alv_refused *refused;
    void *user;
    uint64_t number; /* of the record taken last, from 1 */
    uint64_t refused_here;
    alv_record pending;
    int has_pending;
};

static struct bytes bytes_of(const char *text)
{
    return (struct bytes){(const uint8_t *)text, text ? strlen(text) : 0};
}

static enum status feed_next(void *user, uint32_t records_max, size_t bytes_max, struct push_records *records,
                             bool *end, struct err *err)
{
    struct feed *feed = user;
    *end = false;
    for (;;) {
        if (!feed->has_pending) {
            if (records->n == records_max)
                return ST_OK;
            feed->pending = (alv_record){0};
            int more = feed->next(feed->user, &feed->pending);
            if (more < 0)
                return err_set(err, ST_STOPPED, "the caller gave up after record %llu",
                               (unsigned long long)feed->number);
            if (!more) {
                *end = true;
                return ST_OK;
            }
            feed->number++;
            feed->has_pending = 1;
        }
        const alv_record *r = &feed->pending;
        struct record_view view = {r->chat ? ALV__RECORD_KIND__RECORD_CHAT : ALV__RECORD_KIND__RECORD_TEXT,
                                   bytes_of(r->id),
                                   bytes_of(r->group),
                                   {r->text, r->text_len}};
        Alv__Refusal reason = record_check(&view);
        if (reason != ALV__REFUSAL__REFUSAL_NONE) { /* takes no position, here as in files */
            feed->refused_here++;
            feed->has_pending = 0;
            if (feed->refused)
                feed->refused(feed->user, feed->number, push_refusal_text(reason));
            continue;
        }
        if (!push_records_add(records, bytes_max, view.kind, view.id, view.group, view.text,
                              (struct push_place){0, feed->number}))
            return ST_OK;
        feed->has_pending = 0;
    }
}

static void feed_where(void *user, struct push_place place, char *out, size_t size)
{
    (void)user;
    snprintf(out, size, "%llu", (unsigned long long)place.line);
}

static void feed_refused(void *user, const char *where, const char *why)
{
    struct feed *feed = user;
    unsigned long long number = 0;
    sscanf(where, "%llu", &number);
    if (feed->refused)
        feed->refused(feed->user, number, why);
}

int alv_push(const char *join_file, const char *domain, const char *source, alv_next_record *next, alv_refused *refused,
             void *user, int stop_fd, alv_push_report *report, char *error, size_t error_size)
{
    struct err err = {""};
    struct join join;
    struct pusher *pusher = NULL;
    struct feed feed = {.next = next, .refused = refused, .user = user};
    enum status st = join_read(join_file, &join, &err);
    if (st != ST_OK)
        return give(st, &err, error, error_size);
    struct push_options options = {
        .join = &join, .domain = domain, .stop_fd = stop_fd, .refused = feed_refused, .user = &feed};
    struct push_input input = {.name = source, .next = feed_next, .where = feed_where, .user = &feed};
    st = pusher_open(&options, &pusher, &err);
    if (st == ST_OK)
        st = pusher_push(pusher, &input, &err);
    if (pusher && report) {
        const struct push_totals *t = pusher_totals(pusher);
        *report = (alv_push_report){t->resumed,    t->records,    t->accepted,
                                    t->duplicates, t->superseded, t->refused + feed.refused_here};
    }
    pusher_close(&pusher);
    join_wipe(&join);
    return give(st, &err, error, error_size);
}

int alv_subscribe(const char *join_file, const alv_subscribe_options *o, uint64_t *current, char *error,
                  size_t error_size)
{
    struct err err = {""};
    struct join join;
    struct subscribe_view view = {0};
    enum status st = join_read(join_file, &join, &err);
    if (st != ST_OK)
        return give(st, &err, error, error_size);
    struct subscribe_options options = {.join = &join,
                                        .follow = o->follow,
                                        .dir = o->dir,
                                        .base_name = o->base_name,
                                        .hook = o->hook,
                                        .once = o->once != 0,
                                        .stop_fd = o->stop_fd};
    st = subscribe_run(&options, &view, &err);
    if (current)
        *current = view.current;
    join_wipe(&join);
    return give(st, &err, error, error_size);
}
