/* The small window over a plain socket, and the text of metrics. */
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "net/http.h"

static int dial(const struct http *http)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(http_port(http))};
    inet_pton(AF_INET, "127.0.0.1", &at.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const struct timeval patience = {.tv_sec = 60}; /* then the test fails, and does not hang */
    EXPECT(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    EXPECT(connect(fd, (struct sockaddr *)&at, sizeof at) == 0);
    return fd;
}

/* One request, the whole answer. A server that closes early is no failure of the asker. */
static void ask(const struct http *http, const char *request, struct buf *out)
{
    int fd = dial(http);
    ssize_t n;
    buf_clear(out);
    (void)!send(fd, request, strlen(request), MSG_NOSIGNAL);
    do {
        buf_reserve(out, 4096);
        n = recv(fd, out->data + out->len, out->cap - out->len, 0);
        out->len += n > 0 ? (size_t)n : 0;
    } while (n > 0);
    close(fd);
    buf_cstr(out);
}

#define VERSION(host) " HTTP/1.1\r\nHost: " host "\r\nConnection: close\r\n"
#define CLOSE VERSION("127.0.0.1:7480")

static void echo(void *user, const struct http_request *request, struct http_reply *reply)
{
    const char *n = http_query(request, "n");
    reply->status = n ? 200 : 503;
    reply->tagged = true;
    buf_printf(&reply->body, "%s %s", (const char *)user, n ? n : "none");
}

static bool starts(const struct buf *b, const char *s)
{
    return !strncmp((const char *)b->data, s, strlen(s));
}

static bool has(const struct buf *b, const char *s)
{
    return strstr((const char *)b->data, s) != NULL;
}

static void test_pages(void)
{
    struct metrics *m = metrics_new();
    struct http *http = NULL;
    struct err err = {{0}};
    struct buf b = {0};
    char word[] = "hello";
    series_add(metrics_counter(m, "alluvium_x_total", "x", NULL), 3);
    struct http_route routes[] = {{"/echo", echo, word}, {"/metrics", http_metrics, m}};
    EXPECT_ST(http_start("not an address", 0, NULL, routes, 2, &http, &err), ST_CONFIG, &err);
    EXPECT_ST(http_start(NULL, 0, NULL, routes, 2, &http, &err), ST_OK, &err);
    REQUIRE(http);
    ask(http, "GET /echo?n=5" CLOSE "\r\n", &b);
    EXPECT(starts(&b, "HTTP/1.1 200") && has(&b, "\r\n\r\nhello 5") && has(&b, "nosniff"));
    ask(http, "GET /echo" CLOSE "\r\n", &b);
    EXPECT(starts(&b, "HTTP/1.1 503"));
    ask(http, "HEAD /echo?n=5" CLOSE "\r\n", &b);
    EXPECT(starts(&b, "HTTP/1.1 200") && !has(&b, "hello"));
    ask(http, "GET /metrics" CLOSE "\r\n", &b);
    EXPECT(has(&b, "alluvium_x_total 3\n") && has(&b, "version=0.0.4"));
    ask(http, "GET /../etc/passwd" CLOSE "\r\n", &b);
    EXPECT(starts(&b, "HTTP/1.1 404"));
    ask(http, "DELETE /echo" CLOSE "\r\n", &b);
    EXPECT(starts(&b, "HTTP/1.1 405"));
    ask(http, "POST /echo" CLOSE "Content-Length: 5\r\n\r\nabcde", &b);
    EXPECT(starts(&b, "HTTP/1.1 405")); /* before the body is read */
    ask(http, "garbage\r\n\r\n", &b);
    EXPECT(!has(&b, "200 OK"));
    struct http *second = NULL;
    EXPECT_ST(http_start(NULL, http_port(http), NULL, routes, 2, &second, &err), ST_IO, &err);
    http_stop(http);
    metrics_free(m);
    buf_release(&b);
}

static void test_hosts(void)
{
    struct http *http = NULL;
    struct err err = {{0}};
    struct buf b = {0};
    char word[] = "hello";
    struct http_route routes[] = {{"/echo", echo, word}};
    EXPECT_ST(http_start(NULL, 0, "line.example", routes, 1, &http, &err), ST_OK, &err);
    REQUIRE(http);
    static const struct {
        const char *request;
        bool allowed;
    } rows[] = {
        {"GET /echo?n=1" VERSION("127.0.0.1") "\r\n", true},
        {"GET /echo?n=1" VERSION("10.1.2.3:7480") "\r\n", true},
        {"GET /echo?n=1" VERSION("[::1]:7480") "\r\n", true},
        {"GET /echo?n=1" VERSION("LocalHost:1") "\r\n", true},
        {"GET /echo?n=1" VERSION("line.example:7480") "\r\n", true},
        {"GET /echo?n=1 HTTP/1.0\r\n\r\n", true},
        {"GET /echo?n=1" VERSION("evil.example") "\r\n", false},
        {"GET /echo?n=1" VERSION("127.0.0.1.evil.example:7480") "\r\n", false},
        {"GET /echo?n=1" VERSION("localhost.evil.example") "\r\n", false},
        {"GET /echo?n=1" VERSION("line.example:80:80") "\r\n", false},
        {"GET /echo?n=1" VERSION("[::1") "\r\n", false},
        {"GET /echo?n=1" VERSION("[::1]evil.example") "\r\n", false},
        {"GET /echo?n=1" VERSION("") "\r\n", false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ask(http, rows[i].request, &b);
        if (!EXPECT(starts(&b, rows[i].allowed ? "HTTP/1.1 200" : "HTTP/1.1 421")))
            printf("  %s  %.60s\n", rows[i].request, (const char *)b.data);
    }
    http_stop(http);
    buf_release(&b);
}

static void test_tags(void)
{
    struct http *http = NULL;
    struct err err = {{0}};
    struct buf b = {0};
    char word[] = "hello", request[300];
    struct http_route routes[] = {{"/echo", echo, word}};
    EXPECT_ST(http_start(NULL, 0, NULL, routes, 1, &http, &err), ST_OK, &err);
    REQUIRE(http);
    ask(http, "GET /echo?n=5" CLOSE "\r\n", &b);
    EXPECT(has(&b, "default-src 'none'") && has(&b, "frame-ancestors 'none'") && !has(&b, "unsafe"));
    char *tag = strstr((char *)b.data, "ETag: ");
    REQUIRE(tag && strcspn(tag, "\r") == strlen("ETag: ") + 34);
    snprintf(request, sizeof request, "GET /echo?n=5" CLOSE "If-None-Match: %.34s\r\n\r\n", tag + strlen("ETag: "));
    ask(http, request, &b);
    EXPECT(starts(&b, "HTTP/1.1 304") && !has(&b, "hello"));
    memcpy(strstr(request, "n=5"), "n=6", 3);
    ask(http, request, &b);
    EXPECT(starts(&b, "HTTP/1.1 200") && has(&b, "hello 6"));
    http_stop(http);
    buf_release(&b);
}

struct drip { /* clients that send a byte now and then: never silent, never done */
    int fds[3 * HTTP_CONNECTIONS_MAX];
    atomic_int n;
    atomic_bool stop;
};

static void *drip(void *arg)
{
    struct drip *d = arg;
    while (!atomic_load(&d->stop)) {
        for (int i = 0; i < atomic_load(&d->n); i++)
            (void)!send(d->fds[i], "a", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        poll(NULL, 0, 100);
    }
    return NULL;
}

/* Clients that never finish their request, more headers than anybody needs, descriptors beyond select()'s: a probe is answered. */
static void test_hostile(void)
{
    enum { SLOW = sizeof((struct drip *)0)->fds / sizeof(int), HIGH = 1100 };
    struct http *http = NULL;
    struct err err = {{0}};
    struct buf b = {0}, big = {0};
    char word[] = "hello";
    static struct drip slow;
    static int high[HIGH];
    pthread_t dripping;
    struct rlimit files;
    struct http_route routes[] = {{"/echo", echo, word}};
    EXPECT_ST(http_start(NULL, 0, NULL, routes, 1, &http, &err), ST_OK, &err);
    REQUIRE(http);

    REQUIRE(pthread_create(&dripping, NULL, drip, &slow) == 0);
    for (int i = 0; i < SLOW; i++) {
        slow.fds[i] = dial(http);
        EXPECT(send(slow.fds[i], "GET /echo", 9, MSG_NOSIGNAL) == 9);
        atomic_store(&slow.n, i + 1);
        if (i % 16 == 0) {
            ask(http, "GET /echo?n=5" CLOSE "\r\n", &b);
            EXPECT(starts(&b, "HTTP/1.1 200"));
        }
    }
    char byte;
    atomic_store(&slow.stop, true);
    pthread_join(dripping, NULL);
    EXPECT(recv(slow.fds[0], &byte, 1, 0) <= 0); /* the first made room; the last one still may finish */
    EXPECT(send(slow.fds[SLOW - 1], CLOSE "\r\n", strlen(CLOSE "\r\n"), MSG_NOSIGNAL) > 0);
    EXPECT(recv(slow.fds[SLOW - 1], &byte, 1, 0) == 1 && byte == 'H');
    for (int i = 0; i < SLOW; i++)
        close(slow.fds[i]);

    buf_printf(&big, "GET /echo?n=5" CLOSE);
    for (int i = 0; i < 4000; i++)
        buf_printf(&big, "X-Header-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", i);
    buf_printf(&big, "\r\n");
    ask(http, buf_cstr(&big), &b);
    EXPECT(!b.len || starts(&b, "HTTP/1.1 431"));

    REQUIRE(getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_max > HIGH + 200);
    files.rlim_cur = files.rlim_cur < HIGH + 200 ? HIGH + 200 : files.rlim_cur;
    REQUIRE(setrlimit(RLIMIT_NOFILE, &files) == 0);
    for (int i = 0; i < HIGH; i++)
        high[i] = dup(STDIN_FILENO);
    ask(http, "GET /echo?n=5" CLOSE "\r\n", &b);
    EXPECT(high[HIGH - 1] > 1024 && starts(&b, "HTTP/1.1 200"));
    for (int i = 0; i < HIGH; i++)
        close(high[i]);
    http_stop(http);
    buf_release(&b);
    buf_release(&big);
}

static void test_metrics_text(void)
{
    struct metrics *m = metrics_new();
    struct buf b = {0};
    const double bounds[] = {0.1, 1};
    struct series *ok = metrics_counter(m, "a_total", "line one\nline two", "who", "x\"y\\z", NULL);
    EXPECT(ok == metrics_counter(m, "a_total", "", "who", "x\"y\\z", NULL));
    series_inc(ok);
    series_set(metrics_gauge(m, "g", "g", NULL), -2.5);
    struct series *h = metrics_histogram(m, "h_seconds", "h", bounds, 2, "plane", "work", NULL);
    series_observe(h, 0.1);
    series_observe(h, 0.5);
    series_observe(h, 7);
    series_observe(h, 0.0 / 0.0);
    metrics_render(m, &b);
    EXPECT_STR(buf_cstr(&b), "# HELP a_total line one\\nline two\n# TYPE a_total counter\n"
                             "a_total{who=\"x\\\"y\\\\z\"} 1\n"
                             "# HELP g g\n# TYPE g gauge\ng -2.5\n"
                             "# HELP h_seconds h\n# TYPE h_seconds histogram\n"
                             "h_seconds_bucket{plane=\"work\",le=\"0.1\"} 1\n"
                             "h_seconds_bucket{plane=\"work\",le=\"1\"} 2\n"
                             "h_seconds_bucket{plane=\"work\",le=\"+Inf\"} 3\n"
                             "h_seconds_sum{plane=\"work\"} 7.5999999999999996\n"
                             "h_seconds_count{plane=\"work\"} 3\n");
    struct series *last = NULL, *before = NULL;
    for (int i = 0; i < METRICS_SERIES_MAX + 10; i++) { /* labels are bounded: the rest shares one */
        char who[16];
        snprintf(who, sizeof who, "w%d", i);
        before = last;
        last = metrics_counter(m, "many_total", "", "who", who, NULL);
    }
    EXPECT(last == before);
    buf_clear(&b);
    metrics_render(m, &b);
    EXPECT(strstr(buf_cstr(&b), "many_total{who=\"other\"} 0\n") != NULL);
    series_inc(metrics_counter(NULL, "none_total", "", NULL)); /* no registry: nothing happens */
    metrics_free(m);
    buf_release(&b);
}

int main(void)
{
    RUN(test_pages);
    RUN(test_hosts);
    RUN(test_tags);
    RUN(test_hostile);
    RUN(test_metrics_text);
    return harness_end();
}
