#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static atomic_int threshold = LOG_INFO;
static const char *const level_names[] = {"error", "warn", "info", "debug"};

void log_set_level(enum log_level level)
{
    atomic_store(&threshold, (int)level);
}

void log_line(enum log_level level, const char *component, const char *format, ...)
{
    if ((int)level > atomic_load(&threshold))
        return;
    char line[1024];
    struct timespec now;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &tm);
    size_t n = strftime(line, sizeof line, "ts=%Y-%m-%dT%H:%M:%S", &tm);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ldZ level=%s comp=%s msg=\"", now.tv_nsec / 1000000,
                          level_names[level], component);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - n - 3, format, args);
    va_end(args);
    if (m < 0)
        return;
    size_t end = n + (size_t)m < sizeof line - 4 ? n + (size_t)m : sizeof line - 4;
    for (size_t i = n; i < end; i++) /* one event stays one line */
        if ((unsigned char)line[i] < ' ' || line[i] == '"')
            line[i] = '\'';
    line[end++] = '"';
    line[end++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, end);
    (void)ignored;
}
