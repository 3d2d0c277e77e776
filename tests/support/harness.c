#include "harness.h"

#include <ftw.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"

static _Atomic long expectations, failures; /* a rig's thread expects things, too */
static const char *current = "?";
static char *kept[4096];
static size_t n_kept, n_dirs;
static char *dirs[64];

void harness_begin(const char *name)
{
    current = name;
    fprintf(stderr, "  %s\n", name);
}

bool harness_expect(bool ok, const char *file, int line, const char *format, ...)
{
    expectations++;
    if (ok)
        return true;
    failures++;
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: %s: expected ", file, line, current);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return false;
}

bool harness_expect_eq(long long a, long long b, const char *file, int line, const char *sa, const char *sb)
{
    return harness_expect(a == b, file, line, "%s == %s, got %lld and %lld", sa, sb, a, b);
}

bool harness_expect_str(const char *a, const char *b, const char *file, int line, const char *sa)
{
    return harness_expect(a && b && !strcmp(a, b), file, line, "%s to be \"%s\", got \"%s\"", sa, b ? b : "(null)",
                          a ? a : "(null)");
}

bool harness_expect_near(double a, double b, double tol, const char *file, int line, const char *sa, const char *sb)
{
    return harness_expect(fabs(a - b) <= tol, file, line, "|%s - %s| <= %g, got %.9g and %.9g", sa, sb, tol, a, b);
}

bool harness_expect_status(enum status got, enum status want, const struct err *err, const char *file, int line,
                           const char *call)
{
    return harness_expect(got == want, file, line, "%s to be %s, got %s%s%s", call, status_name(want), status_name(got),
                          got && err ? ": " : "", got && err ? err->text : "");
}

static char *keep(char *s)
{
    if (n_kept == sizeof kept / sizeof kept[0])
        abort();
    return kept[n_kept++] = s;
}

const char *harness_tmpdir(void)
{
    const char *base = getenv("TMPDIR");
    struct buf b = {0};
    buf_printf(&b, "%s/alluvium-test-XXXXXX", base && *base ? base : "/tmp");
    char *dir = xstrdup(buf_cstr(&b));
    buf_release(&b);
    if (!mkdtemp(dir) || n_dirs == sizeof dirs / sizeof dirs[0])
        abort();
    return dirs[n_dirs++] = keep(dir);
}

const char *harness_path(const char *dir, const char *name)
{
    struct buf b = {0};
    buf_printf(&b, "%s/%s", dir, name);
    char *path = xstrdup(buf_cstr(&b));
    buf_release(&b);
    return keep(path);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

int harness_end(void)
{
    for (size_t i = 0; i < n_dirs; i++)
        nftw(dirs[i], remove_one, 16, FTW_DEPTH | FTW_PHYS);
    for (size_t i = 0; i < n_kept; i++)
        free(kept[i]);
    fprintf(stderr, "%ld expectations, %ld failed\n", (long)expectations, (long)failures);
    return failures || !expectations ? 1 : 0;
}
