/* The index of a backup, text:
 *
 *     alluvium-backup 1
 *     line NAME
 *     created UNIX-SECONDS
 *     file DIGEST BYTES PATH           as many as there are, rising by path
 *     end DIGEST                       BLAKE2b-256 of all bytes before this line
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/hash.h"
#include "coordinator/backup.h"

enum { FILES_MAX = 1 << 20, PATH_LEN_MAX = 256 };
static const char first_line[] = "alluvium-backup 1";

void backup_index_put(const struct backup_index *index, struct buf *out)
{
    struct digest end;
    char hex[DIGEST_HEX_SIZE];
    size_t from = out->len;
    buf_printf(out, "%s\nline %s\ncreated %llu\n", first_line, index->line.s, (unsigned long long)index->created_s);
    for (size_t i = 0; i < index->n; i++) {
        digest_hex(&index->files[i].digest, hex);
        buf_printf(out, "file %s %llu %s\n", hex, (unsigned long long)index->files[i].bytes, index->files[i].path);
    }
    hash_blake2b(out->data + from, out->len - from, &end);
    digest_hex(&end, hex);
    buf_printf(out, "end %s\n", hex);
}

static bool path_ok(const char *path)
{
    size_t len = strlen(path);
    if (!len || len > PATH_LEN_MAX)
        return false;
    for (size_t i = 0; i < len; i++) {
        char c = path[i];
        bool begins = i == 0 || path[i - 1] == '/';
        bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
        if (!word && (begins || (c != '.' && c != '/')))
            return false;
    }
    return path[len - 1] != '/';
}

static bool number(char **at, char end, uint64_t *out)
{
    char *stop;
    if (**at < '0' || **at > '9' || (**at == '0' && (*at)[1] != end))
        return false;
    errno = 0;
    *out = strtoull(*at, &stop, 10);
    if (*stop != end || errno)
        return false;
    *at = stop + (end != 0);
    return true;
}

/* "DIGEST BYTES PATH" */
static bool file_line(char *at, struct backup_index *out)
{
    struct backup_file f;
    if (strlen(at) < DIGEST_HEX_SIZE || at[DIGEST_HEX_SIZE - 1] != ' ' || out->n == FILES_MAX)
        return false;
    at[DIGEST_HEX_SIZE - 1] = 0;
    if (!digest_parse(at, DIGEST_HEX_SIZE - 1, &f.digest))
        return false;
    at += DIGEST_HEX_SIZE;
    if (!number(&at, ' ', &f.bytes) || !path_ok(at) || (out->n && strcmp(out->files[out->n - 1].path, at) >= 0))
        return false;
    if (out->n == out->cap)
        out->files = xrealloc_array(out->files, out->cap = out->cap ? 2 * out->cap : 256, sizeof *out->files);
    f.path = xstrdup(at);
    out->files[out->n++] = f;
    return true;
}

/* One line, without its end; `line` counts from 1. */
static bool take_line(char *at, unsigned line, struct backup_index *out)
{
    if (line == 2)
        return !strncmp(at, "line ", 5) && name_set(&out->line, at + 5, strlen(at + 5));
    if (line == 3) {
        at += 8;
        return !strncmp(at - 8, "created ", 8) && number(&at, 0, &out->created_s);
    }
    return !strncmp(at, "file ", 5) && file_line(at + 5, out);
}

enum status backup_index_parse(const void *data, size_t len, struct backup_index *out, struct err *err)
{
    struct backup_index index = {0};
    struct digest end, told;
    char *text = xcalloc(1, len + 1), *at = text, *next;
    unsigned line = 1;
    enum status st = ST_OK;
    memcpy(text, data, len);
    if (strlen(text) != len || !(next = strchr(at, '\n')))
        st = err_set(err, ST_CORRUPT, "the index is cut off or no text");
    else if (strncmp(at, first_line, sizeof first_line - 1) || at[sizeof first_line - 1] != '\n')
        st = err_set(err, ST_UNSUPPORTED, "line 1 is not \"%s\": not a backup, or of another release", first_line);
    for (bool ended = false; !st && !ended; line++) {
        at = next + 1;
        if (!(next = strchr(at, '\n'))) {
            st = err_set(err, ST_CORRUPT, "the index is cut off after line %u", line);
            break;
        }
        size_t before = (size_t)(at - text);
        *next = 0;
        ended = !strncmp(at, "end ", 4);
        if (ended) {
            hash_blake2b(data, before, &end);
            if (line < 3 || !digest_parse(at + 4, strlen(at + 4), &told) || !digest_eq(&end, &told) || next[1])
                st = err_set(err, ST_CORRUPT, "the index does not match its checksum");
        } else if (!take_line(at, line + 1, &index)) {
            st = err_set(err, ST_CORRUPT, "line %u of the index is not one", line + 1);
        }
    }
    free(text);
    if (st)
        backup_index_release(&index);
    else
        *out = index;
    return st;
}

void backup_index_release(struct backup_index *index)
{
    for (size_t i = 0; i < index->n; i++)
        free(index->files[i].path);
    free(index->files);
    *index = (struct backup_index){0};
}
