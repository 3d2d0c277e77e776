#include "client/source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "client/jsonl.h"
#include "proto/record.h"

enum {
    READ_BYTES = 256 * 1024,
    LINE_BYTES_MAX = 8 << 20, /* a record of the largest size with every byte escaped as \u00XX, and room */
    DEPTH_MAX = 64,           /* of directories */
};

struct level { /* one directory being walked */
    char *path;
    char **names;
    size_t n, at;
};

struct source {
    struct source_options options;
    char *path; /* as given */
    struct level levels[DEPTH_MAX];
    unsigned depth;
    /* the file being read */
    int fd; /* -1: none */
    char *file;
    bool lines; /* JSON lines; else one record */
    bool eof;
    bool live; /* a pipe or terminal: reading may block */
    bool over; /* inside a line that is too long */
    uint64_t line;
    struct buf in; /* bytes read and not yet used, from `at` */
    size_t at;
    /* the record that did not fit into the last batch */
    bool pending;
    struct buf text, id, group;
    Alv__RecordKind kind;
    struct push_place place;
    /* names of files, for messages: those that records in flight may come from */
    char **files;
    uint32_t n_files, cap_files;
    struct source_progress progress;
};

/* ---- names --------------------------------------------------------------------------------------------------------- */

static bool is_lines(const char *path)
{
    size_t n = strlen(path);
    return !strcmp(path, "-") || (n > 6 && !strcmp(path + n - 6, ".jsonl")) ||
           (n > 7 && !strcmp(path + n - 7, ".ndjson"));
}

static uint32_t remember(struct source *s, const char *path)
{
    enum { FILES_KEPT = 65536 }; /* far more than the records in flight: older names are not asked for any more */
    if (!s->files) {
        s->files = xcalloc(FILES_KEPT, sizeof *s->files);
        s->cap_files = FILES_KEPT;
    }
    char **slot = &s->files[s->n_files % s->cap_files];
    free(*slot);
    *slot = xstrdup(path);
    return s->n_files++;
}

void source_where(const struct source *s, struct push_place place, char *out, size_t size)
{
    const char *file = place.file < s->n_files ? s->files[place.file % s->cap_files] : s->path;
    if (place.line)
        snprintf(out, size, "%s:%llu", file, (unsigned long long)place.line);
    else
        snprintf(out, size, "%s", file);
}

static void refuse(struct source *s, const char *why)
{
    char where[4400];
    source_where(s, s->place, where, sizeof where);
    s->progress.refused++;
    if (s->options.refused)
        s->options.refused(s->options.user, where, why);
}

/* ---- directories --------------------------------------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void pop_level(struct source *s)
{
    struct level *level = &s->levels[--s->depth];
    for (size_t i = 0; i < level->n; i++)
        free(level->names[i]);
    free(level->names);
    free(level->path);
    *level = (struct level){0};
}

static enum status push_level(struct source *s, const char *path, struct err *err)
{
    if (s->depth == DEPTH_MAX)
        return err_set(err, ST_LIMIT, "%s: more than %d directories deep", path, DEPTH_MAX);
    DIR *dir = opendir(path);
    if (!dir)
        return err_set(err, ST_IO, "%s: cannot be read: %s", path, strerror(errno));
    struct level *level = &s->levels[s->depth++];
    level->path = xstrdup(path);
    size_t cap = 0;
    struct dirent *entry;
    while ((errno = 0, entry = readdir(dir))) {
        if (entry->d_name[0] == '.')
            continue;
        if (level->n == cap) {
            cap = cap ? 2 * cap : 64;
            level->names = xrealloc_array(level->names, cap, sizeof *level->names);
        }
        level->names[level->n++] = xstrdup(entry->d_name);
    }
    int failed = errno;
    closedir(dir);
    if (failed)
        return err_set(err, ST_IO, "%s: cannot be read: %s", path, strerror(failed));
    if (level->n)
        qsort(level->names, level->n, sizeof *level->names, by_name);
    return ST_OK;
}

/* ---- files ----------------------------------------------------------------------------------------------------------- */

static enum status open_file(struct source *s, const char *path, struct err *err)
{
    s->fd = !strcmp(path, "-") ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (s->fd < 0)
        return err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: cannot be opened: %s", path, strerror(errno));
    posix_fadvise(s->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    free(s->file);
    s->file = xstrdup(path);
    struct stat st;
    s->live = fstat(s->fd, &st) == 0 && !S_ISREG(st.st_mode);
    s->lines = is_lines(path);
    s->over = false;
    s->eof = false;
    s->line = 0;
    s->at = 0;
    buf_clear(&s->in);
    s->place = (struct push_place){remember(s, path), 0};
    return ST_OK;
}

static void close_file(struct source *s)
{
    close(s->fd);
    s->fd = -1;
}

/* The next file of the walk; *end when there is none. */
static enum status next_file(struct source *s, bool *end, struct err *err)
{
    *end = false;
    while (s->depth) {
        struct level *level = &s->levels[s->depth - 1];
        if (level->at == level->n) {
            pop_level(s);
            continue;
        }
        char path[4200];
        const char *name = level->names[level->at++];
        bool slash = level->path[strlen(level->path) - 1] == '/';
        if ((size_t)snprintf(path, sizeof path, "%s%s%s", level->path, slash ? "" : "/", name) >= sizeof path)
            return err_set(err, ST_LIMIT, "%s/%s: the path is too long", level->path, name);
        struct stat st;
        if (lstat(path, &st) != 0)
            return err_set(err, ST_IO, "%s: %s", path, strerror(errno));
        enum status status;
        if (S_ISDIR(st.st_mode))
            status = push_level(s, path, err);
        else if (S_ISREG(st.st_mode) && st.st_size > 0)
            return open_file(s, path, err);
        else
            continue;
        if (status != ST_OK)
            return status;
    }
    *end = true;
    return ST_OK;
}

static uint64_t tree_bytes(const char *path, unsigned depth)
{
    struct stat st;
    if ((depth ? lstat(path, &st) : stat(path, &st)) != 0 || depth > DEPTH_MAX)
        return 0;
    if (S_ISREG(st.st_mode))
        return (uint64_t)st.st_size;
    DIR *dir = S_ISDIR(st.st_mode) ? opendir(path) : NULL;
    uint64_t sum = 0;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        char below[4200];
        if (entry->d_name[0] != '.' &&
            (size_t)snprintf(below, sizeof below, "%s/%s", path, entry->d_name) < sizeof below)
            sum += tree_bytes(below, depth + 1);
    }
    if (dir)
        closedir(dir);
    return sum;
}

enum status source_open(const char *path, const struct source_options *options, struct source **out, struct err *err)
{
    struct source *s = xcalloc(1, sizeof *s);
    s->options = *options;
    if (!s->options.text_field)
        s->options.text_field = "text";
    if (!s->options.id_field)
        s->options.id_field = "id";
    if (!s->options.group_field)
        s->options.group_field = "group";
    s->path = xstrdup(path);
    s->fd = -1;
    struct stat st;
    enum status status;
    if (!strcmp(path, "-")) {
        if (fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode))
            s->progress.bytes_total = (uint64_t)st.st_size;
        status = open_file(s, path, err);
    } else if (stat(path, &st) != 0) {
        status = err_set(err, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    } else {
        s->progress.bytes_total = S_ISFIFO(st.st_mode) ? 0 : tree_bytes(path, 0);
        status = S_ISDIR(st.st_mode) ? push_level(s, path, err) : open_file(s, path, err);
    }
    if (status == ST_OK)
        *out = s;
    else
        source_close(&s);
    return status;
}

void source_close(struct source **source)
{
    struct source *s = *source;
    if (!s)
        return;
    while (s->depth)
        pop_level(s);
    if (s->fd >= 0)
        close_file(s);
    for (uint32_t i = 0; i < s->cap_files; i++)
        free(s->files[i]);
    free(s->files);
    free(s->file);
    free(s->path);
    buf_release(&s->in);
    buf_release(&s->text);
    buf_release(&s->id);
    buf_release(&s->group);
    free(s);
    *source = NULL;
}

int source_fd(const struct source *s)
{
    return s->fd;
}

void source_progress(const struct source *s, struct source_progress *out)
{
    *out = s->progress;
}

/* Reads more of the file behind what is unused. ST_EMPTY: nothing has come yet. */
static enum status fill(struct source *s, struct err *err)
{
    struct pollfd ready = {.fd = s->fd, .events = POLLIN};
    if (s->live && poll(&ready, 1, 0) == 0)
        return ST_EMPTY;
    if (s->at) {
        memmove(s->in.data, s->in.data + s->at, s->in.len - s->at);
        s->in.len -= s->at;
        s->at = 0;
    }
    buf_reserve(&s->in, READ_BYTES);
    ssize_t n;
    do {
        n = read(s->fd, s->in.data + s->in.len, READ_BYTES);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return err_set(err, ST_IO, "%s: cannot be read: %s", s->file, strerror(errno));
    s->in.len += (size_t)n;
    s->eof = n == 0;
    s->progress.bytes_read += (uint64_t)n;
    return ST_OK;
}

/* ---- one record ------------------------------------------------------------------------------------------------------ */

static void set_text(struct buf *out, const json_t *value)
{
    buf_clear(out);
    buf_put(out, json_string_value(value), json_string_length(value));
}

/* A string, or a whole number written out; false when it is neither. A missing field is empty. */
static bool set_name(struct buf *out, const json_t *value)
{
    buf_clear(out);
    if (json_is_string(value))
        set_text(out, value);
    else if (json_is_integer(value))
        buf_printf(out, "%lld", (long long)json_integer_value(value));
    else
        return !value || json_is_null(value);
    return true;
}

/* The messages with role and content alone, as compact JSON: the form the wire wants. */
static const char *set_chat(struct buf *out, const json_t *messages)
{
    if (!json_is_array(messages) || !json_array_size(messages))
        return "\"messages\" is not a list of messages";
    json_t *plain = json_array();
    size_t i;
    json_t *message;
    bool ok = true;
    json_array_foreach(messages, i, message)
    {
        json_t *role = json_object_get(message, "role"), *content = json_object_get(message, "content");
        ok = ok && json_is_string(role) && json_is_string(content);
        if (ok)
            json_array_append_new(plain, json_pack("{s:O,s:O}", "role", role, "content", content));
    }
    char *text = ok ? json_dumps(plain, JSON_COMPACT) : NULL;
    json_decref(plain);
    if (!text)
        return "a message lacks role or content as strings";
    buf_clear(out);
    buf_put(out, text, strlen(text));
    free(text);
    return NULL;
}

/* The usual line: a text, and an id and a group that are strings or whole numbers, if anything. */
static bool parse_usual(struct source *s, const char *line, size_t len)
{
    struct jsonl_field fields[] = {
        {s->options.text_field, &s->text, JSONL_ABSENT},
        {s->options.id_field, &s->id, JSONL_ABSENT},
        {s->options.group_field, &s->group, JSONL_ABSENT},
    };
    buf_clear(&s->id);
    buf_clear(&s->group);
    s->kind = ALV__RECORD_KIND__RECORD_TEXT;
    if (!jsonl_read((struct bytes){(const uint8_t *)line, len}, fields, 3) || fields[0].kind != JSONL_STRING)
        return false;
    return fields[1].kind != JSONL_OTHER && fields[2].kind != JSONL_OTHER &&
           (!s->options.id_required || (fields[1].kind != JSONL_ABSENT && fields[1].kind != JSONL_NULL));
}

/* Parses one line into the pending record; returns why not. */
static const char *parse_line(struct source *s, const char *line, size_t len, char *room, size_t size)
{
    if (parse_usual(s, line, len))
        return NULL;
    json_error_t error;
    json_t *root = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
    if (!root) {
        snprintf(room, size, "not JSON: %s (column %d)", error.text, error.column);
        return room;
    }
    const char *why = NULL;
    const json_t *text = json_object_get(root, s->options.text_field);
    const json_t *messages = json_object_get(root, "messages");
    const json_t *id = json_object_get(root, s->options.id_field);
    s->kind = ALV__RECORD_KIND__RECORD_TEXT;
    if (!json_is_object(root)) {
        why = "not a JSON object";
    } else if (json_is_string(text)) {
        set_text(&s->text, text);
    } else if (!text && messages) {
        s->kind = ALV__RECORD_KIND__RECORD_CHAT;
        why = set_chat(&s->text, messages);
    } else {
        snprintf(room, size, "no string \"%s\" and no \"messages\" (--text-field names another)",
                 s->options.text_field);
        why = room;
    }
    if (!why && s->options.id_required && (!id || json_is_null(id))) {
        snprintf(room, size, "no field \"%s\" for the id", s->options.id_field);
        why = room;
    }
    if (!why && (!set_name(&s->id, id) || !set_name(&s->group, json_object_get(root, s->options.group_field))))
        why = "id and group must be strings or whole numbers";
    json_decref(root);
    return why;
}

/* The last check before a record takes a position: what the coordinator would refuse is named here already. */
static void offer(struct source *s, const char *why)
{
    struct record_view view = {s->kind, buf_bytes(&s->id), buf_bytes(&s->group), buf_bytes(&s->text)};
    if (!why) {
        Alv__Refusal reason = record_check(&view);
        if (reason != ALV__REFUSAL__REFUSAL_NONE)
            why = push_refusal_text(reason);
    }
    if (why)
        refuse(s, why);
    else
        s->pending = true;
}

static enum status next_line(struct source *s, struct err *err)
{
    size_t scanned = 0;
    const uint8_t *newline = NULL;
    for (;;) {
        size_t left = s->in.len - s->at;
        newline = left > scanned ? memchr(s->in.data + s->at + scanned, '\n', left - scanned) : NULL;
        if (newline || s->eof)
            break;
        scanned = left;
        if (left > LINE_BYTES_MAX) { /* keep nothing of it but its number */
            s->over = true;
            s->at = s->in.len;
            scanned = 0;
        }
        enum status st = fill(s, err);
        if (st != ST_OK)
            return st;
    }
    const char *line = (const char *)s->in.data + s->at;
    size_t len = newline ? (size_t)((const char *)newline - line) : s->in.len - s->at;
    s->at += len + (newline != NULL);
    if (!newline && !len && !s->over) {
        close_file(s);
        return ST_OK;
    }
    s->place.line = ++s->line;
    if (s->line == 1 && len >= 3 && !memcmp(line, "\xef\xbb\xbf", 3)) /* a byte order mark */
        line += 3, len -= 3;
    while (len && strchr(" \t\r", line[len - 1]))
        len--;
    char room[300];
    if (s->over || len > LINE_BYTES_MAX)
        refuse(s, "the line is longer than 8 MiB");
    else if (len)
        offer(s, parse_line(s, line, len, room, sizeof room));
    s->over = false;
    return ST_OK;
}

static enum status whole_file(struct source *s, struct err *err)
{
    while (!s->eof && s->in.len <= LIMIT_RECORD_BYTES) {
        enum status st = fill(s, err);
        if (st != ST_OK)
            return st;
    }
    s->kind = ALV__RECORD_KIND__RECORD_TEXT;
    buf_clear(&s->id);
    buf_clear(&s->group);
    buf_clear(&s->text);
    buf_put(&s->id, s->file, strlen(s->file));
    buf_put(&s->text, s->in.data, s->in.len);
    close_file(s);
    offer(s, NULL);
    return ST_OK;
}

enum status source_read(struct source *s, uint32_t records_max, size_t bytes_max, struct push_records *records,
                        bool *end, struct err *err)
{
    *end = false;
    for (;;) {
        if (s->pending) {
            if (records->n == records_max || !push_records_add(records, bytes_max, s->kind, buf_bytes(&s->id),
                                                               buf_bytes(&s->group), buf_bytes(&s->text), s->place))
                return ST_OK;
            s->pending = false;
        }
        if (s->fd < 0) {
            bool last;
            enum status st = next_file(s, &last, err);
            if (st != ST_OK || last) {
                *end = last && st == ST_OK;
                return st;
            }
        }
        enum status st = s->lines ? next_line(s, err) : whole_file(s, err);
        if (st == ST_EMPTY && records->n)
            return ST_OK;
        if (st != ST_OK)
            return st;
    }
}
