#include "results.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/buf.h"

enum { FILE_MAX = 256 << 20 };

struct results {
    int fd;
    json_t **cells;
    size_t n, cap;
};

static void keep(struct results *r, json_t *cell)
{
    if (r->n == r->cap) {
        r->cap = r->cap ? 2 * r->cap : 256;
        r->cells = xrealloc_array(r->cells, r->cap, sizeof(json_t *));
    }
    r->cells[r->n++] = cell;
}

static enum status write_line(struct results *r, const json_t *object, struct err *err)
{
    char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    struct buf line = {0};
    buf_printf(&line, "%s\n", text);
    free(text);
    ssize_t written = write(r->fd, line.data, line.len);
    enum status status = written == (ssize_t)line.len && fdatasync(r->fd) == 0
                             ? ST_OK
                             : err_set(err, ST_IO, "the results file cannot be written: %s", strerror(errno));
    buf_release(&line);
    return status;
}

static enum status other_config(const char *path, const json_t *have, const json_t *want, struct err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)want, name, value)
    {
        if (!json_equal(value, json_object_get(have, name)))
            return err_set(err, ST_CONFLICT,
                           "%s holds results of another configuration (\"%s\" differs): give another "
                           "file, or the same text, base and settings",
                           path, name);
    }
    return err_set(err, ST_CONFLICT, "%s holds results of another configuration: give another file", path);
}

static enum status load(struct results *r, const char *path, const struct buf *file, const json_t *config,
                        struct err *err)
{
    size_t at = 0, line = 0;
    enum status status = ST_OK;
    for (const uint8_t *end; status == ST_OK && at < file->len && (end = memchr(file->data + at, '\n', file->len - at));
         at = (size_t)(end - file->data) + 1) {
        json_error_t why;
        json_t *object = json_loadb((const char *)file->data + at, (size_t)(end - file->data) - at, 0, &why);
        if (line++ == 0) {
            const json_t *have = json_object_get(object, "config");
            if (!json_equal(have, config))
                status = other_config(path, have, config, err);
            json_decref(object);
        } else if (json_is_string(json_object_get(object, "cell"))) {
            keep(r, object);
        } else {
            json_decref(object);
            status = err_set(err, ST_CORRUPT, "%s, line %zu: not a cell", path, line);
        }
    }
    if (status == ST_OK && at < file->len && ftruncate(r->fd, (off_t)at))
        status = err_set(err, ST_IO, "%s: the torn last line cannot be cut off: %s", path, strerror(errno));
    if (status == ST_OK && line == 0) {
        json_t *first = json_pack("{s:O}", "config", config);
        status = write_line(r, first, err);
        json_decref(first);
    }
    return status;
}

enum status results_open(const char *path, const json_t *config, struct results **out, struct err *err)
{
    struct results *r = xcalloc(1, sizeof *r);
    struct buf file = {0};
    enum status status = ST_OK;
    r->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (r->fd < 0)
        status = err_set(err, ST_IO, "%s: %s", path, strerror(errno));
    else if (flock(r->fd, LOCK_EX | LOCK_NB))
        status = err_set(err, ST_CONFLICT, "%s is in use by another process", path);
    if (status == ST_OK)
        status = file_read(path, FILE_MAX, &file, err);
    if (status == ST_OK)
        status = load(r, path, &file, config, err);
    buf_release(&file);
    if (status == ST_OK)
        *out = r;
    else
        results_close(r);
    return status;
}

void results_close(struct results *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->n; i++)
        json_decref(r->cells[i]);
    free(r->cells);
    if (r->fd >= 0)
        close(r->fd);
    free(r);
}

const json_t *results_find(const struct results *r, const char *key)
{
    for (size_t i = 0; i < r->n; i++)
        if (strcmp(json_string_value(json_object_get(r->cells[i], "cell")), key) == 0)
            return r->cells[i];
    return NULL;
}

enum status results_add(struct results *r, json_t *cell, struct err *err)
{
    enum status status = write_line(r, cell, err);
    if (status == ST_OK)
        keep(r, cell);
    else
        json_decref(cell);
    return status;
}
