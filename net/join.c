#include "net/join.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static const char first_line[] = "alluvium-join 1";

/* ---- addresses */

static bool only(const char *s, const char *also)
{
    for (; *s; s++) {
        bool plain = (*s >= 'a' && *s <= 'z') || (*s >= 'A' && *s <= 'Z') || (*s >= '0' && *s <= '9');
        if (!plain && !strchr(also, *s))
            return false;
    }
    return true;
}

/* A name or IPv4; [IPv6]; *. Nothing that could end the address and begin an option of the transport. */
static bool host_valid(const char *host)
{
    size_t len = strlen(host);
    if (!strcmp(host, "*"))
        return true;
    if (len == 0 || len > LIMIT_HOST_BYTES)
        return false;
    if (host[0] == '[')
        return len > 3 && host[len - 1] == ']' && strspn(host + 1, "0123456789abcdefABCDEF:.") == len - 2;
    return host[0] != '-' && only(host, ".-_");
}

enum status join_endpoint(const char *host, uint16_t port, enum plane plane, char out[ENDPOINT_SIZE], struct err *err)
{
    enum { SOCKET_PATH_MAX = 107 }; /* sun_path */
    if (!strncmp(host, "ipc:", 4)) {
        const char *dir = host + 4;
        int len = snprintf(out, ENDPOINT_SIZE, "ipc://%s/%s.sock", dir, plane_name(plane));
        if (dir[0] != '/' || !only(dir, "/._-") || len < 0 || len - 6 > SOCKET_PATH_MAX)
            return err_set(err, ST_CONFIG,
                           "host %s: ipc: wants an absolute directory of plain characters, short "
                           "enough for a socket's path",
                           host);
        return ST_OK;
    }
    if (!host_valid(host))
        return err_set(err, ST_CONFIG, "host %s: is no name, IPv4, [IPv6] or ipc:/directory", host);
    if (port == 0 || port + (int)plane > UINT16_MAX)
        return err_set(err, ST_CONFIG, "port %u: base port and %d planes must lie in 1..65535", port, PLANES);
    snprintf(out, ENDPOINT_SIZE, "tcp://%s:%u", host, port + (unsigned)plane);
    return ST_OK;
}

/* ---- the file */

static bool set_line(struct join *j, const char *v)
{
    return name_set(&j->line, v, strlen(v));
}

static bool set_host(struct join *j, const char *v)
{
    if (strlen(v) > LIMIT_HOST_BYTES)
        return false;
    memcpy(j->host, v, strlen(v) + 1);
    return true; /* judged with the port, at the end */
}

static bool set_port(struct join *j, const char *v)
{
    char *end;
    unsigned long n = strtoul(v, &end, 10);
    j->port = (uint16_t)n;
    return v[0] >= '0' && v[0] <= '9' && !*end && n <= UINT16_MAX;
}

static bool set_key(struct curve_key *out, const char *v)
{
    if (!curve_key_valid(v))
        return false;
    memcpy(out->z85, v, CURVE_Z85_SIZE);
    return true;
}

static bool set_server(struct join *j, const char *v)
{
    return set_key(&j->server, v);
}

static bool set_role(struct join *j, const char *v)
{
    return role_parse(v, &j->role);
}

static bool set_name(struct join *j, const char *v)
{
    return name_set(&j->name, v, strlen(v));
}

static bool set_secret(struct join *j, const char *v)
{
    return set_key(&j->secret, v);
}

static bool set_root(struct join *j, const char *v)
{
    return hex_decode(v, strlen(v), j->root.b, sizeof j->root.b);
}

static const struct {
    const char *key;
    bool (*set)(struct join *join, const char *value);
} fields[] = {{"line", set_line}, {"host", set_host}, {"port", set_port},     {"server", set_server},
              {"role", set_role}, {"name", set_name}, {"secret", set_secret}, {"root", set_root}};

enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static char *trim(char *s)
{
    s += strspn(s, " \t");
    size_t len = strlen(s);
    while (len && strchr(" \t\r", s[len - 1]))
        s[--len] = 0;
    return s;
}

static enum status parse_line(const char *path, int number, char *line, struct join *j, unsigned *seen, struct err *err)
{
    char *equals = strchr(line, '=');
    if (!equals)
        return err_set(err, ST_CONFIG, "%s:%d: is not `key = value`", path, number);
    *equals = 0;
    const char *key = trim(line), *value = trim(equals + 1);
    for (unsigned i = 0; i < N_FIELDS; i++) {
        if (strcmp(key, fields[i].key))
            continue;
        if (*seen & 1u << i)
            return err_set(err, ST_CONFIG, "%s:%d: %s stands twice", path, number, key);
        *seen |= 1u << i;
        return fields[i].set(j, value) ? ST_OK : err_set(err, ST_CONFIG, "%s:%d: %s is malformed", path, number, key);
    }
    return err_set(err, ST_CONFIG, "%s:%d: unknown key %.40s", path, number, key);
}

static enum status parse(const char *path, char *text, struct join *j, struct err *err)
{
    unsigned seen = 0;
    int number = 0;
    for (char *line = text, *next; line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        number++;
        line = trim(line);
        if (number == 1 && strcmp(line, first_line))
            return err_set(err, ST_CONFIG, "%s:1: does not begin with `%s`", path, first_line);
        if (number == 1 || !*line || *line == '#')
            continue;
        enum status st = parse_line(path, number, line, j, &seen, err);
        if (st)
            return st;
    }
    for (unsigned i = 0; i < N_FIELDS; i++)
        if (!(seen & 1u << i))
            return err_set(err, ST_CONFIG, "%s: %s is missing", path, fields[i].key);
    char endpoint[ENDPOINT_SIZE];
    enum status st = join_endpoint(j->host, j->port, PLANES - 1, endpoint, err);
    return st ? err_prefix(err, st, "%s", path) : ST_OK;
}

enum status join_read(const char *path, struct join *out, struct err *err)
{
    struct buf text = {0};
    struct join j = {0};
    enum status st = secret_read(path, LIMIT_JOIN_BYTES, &text, err);
    if (!st && text.len && memchr(text.data, 0, text.len))
        st = err_set(err, ST_CONFIG, "%s: holds a NUL", path);
    if (!st) {
        buf_cstr(&text);
        st = parse(path, (char *)text.data, &j, err);
    }
    if (!st)
        *out = j;
    join_wipe(&j);
    if (text.data)
        sodium_memzero(text.data, text.cap);
    buf_release(&text);
    return st;
}

enum status join_write(const char *path, const struct join *j, struct err *err)
{
    struct buf text = {0};
    char root[2 * SIGN_PUBLIC_LEN + 1], endpoint[ENDPOINT_SIZE];
    enum status st = join_endpoint(j->host, j->port, PLANES - 1, endpoint, err);
    if (st)
        return st;
    hex_encode(j->root.b, SIGN_PUBLIC_LEN, root);
    buf_printf(
        &text, "%s\nline = %s\nhost = %s\nport = %u\nserver = %s\nrole = %s\nname = %s\nsecret = %s\nroot = %s\n",
        first_line, j->line.s, j->host, j->port, j->server.z85, role_name(j->role), j->name.s, j->secret.z85, root);
    st = secret_write(path, text.data, text.len, err);
    sodium_memzero(text.data, text.cap);
    buf_release(&text);
    return st;
}

void join_wipe(struct join *j)
{
    sodium_memzero(j, sizeof *j);
}
