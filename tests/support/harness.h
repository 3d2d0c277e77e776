/* harness.h - expectations that fail the process, and scratch directories.
 *
 *     int main(void) { RUN(test_this); RUN(test_that); return harness_end(); }
 *
 * EXPECT* count and report, and go on; REQUIRE stops the test function. harness_end() is 0 only when nothing failed and
 * something was expected.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

bool harness_expect(bool ok, const char *file, int line, const char *format, ...) __attribute__((format(printf, 4, 5)));
void harness_begin(const char *name);
int harness_end(void);

/* A fresh directory, removed (with all in it) by harness_end(). Valid until then. */
const char *harness_tmpdir(void);
/* "dir/name" in memory that lives until harness_end(). */
const char *harness_path(const char *dir, const char *name);

#define RUN(test) (harness_begin(#test), test())
#define EXPECT(x) harness_expect((x), __FILE__, __LINE__, "%s", #x)
#define EXPECT_EQ(a, b) harness_expect_eq((long long)(a), (long long)(b), __FILE__, __LINE__, #a, #b)
#define EXPECT_STR(a, b) harness_expect_str((a), (b), __FILE__, __LINE__, #a)
/* |a - b| <= tol; NaN fails */
#define EXPECT_NEAR(a, b, tol) harness_expect_near((double)(a), (double)(b), (double)(tol), __FILE__, __LINE__, #a, #b)
/* the status is `want`; on a surprise prints the error text */
#define EXPECT_ST(call, want, err) harness_expect_status((call), (want), (err), __FILE__, __LINE__, #call)
#define REQUIRE(x)      \
    do {                \
        if (!EXPECT(x)) \
            return;     \
    } while (0)

bool harness_expect_eq(long long a, long long b, const char *file, int line, const char *sa, const char *sb);
bool harness_expect_str(const char *a, const char *b, const char *file, int line, const char *sa);
bool harness_expect_near(double a, double b, double tol, const char *file, int line, const char *sa, const char *sb);
bool harness_expect_status(enum status got, enum status want, const struct err *err, const char *file, int line,
                           const char *call);

#endif
