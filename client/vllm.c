#include "client/vllm.h"

#include <ctype.h>
#include <curl/curl.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "base/clock.h"
#include "net/keys.h"

enum { CONNECT_MS = 5000, CALL_MS = 15000, ACTIONS_MAX = 64, TOKEN_BYTES = 4096, SAID = 200 };

struct vllm {
    struct vllm_options options;
    CURL *curl;
    struct curl_slist *headers;
    size_t url_len; /* without slashes at its end */
    struct buf answer;
    bool too_long, stopped;
    bool here; /* `version` has been listed since `since_ms` */
    uint64_t version, since_ms;
};

/* ---- one call */

static size_t take(char *data, size_t size, size_t n, void *user)
{
    struct vllm *v = user;
    v->too_long = v->answer.len + size * n > VLLM_ANSWER_BYTES;
    if (v->too_long)
        return 0;
    buf_put(&v->answer, data, size * n);
    return size * n;
}

static int look_up(void *user, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) /* once a second at least */
{
    struct vllm *v = user;
    struct pollfd stop = {v->options.stop_fd, POLLIN, 0};
    (void)a, (void)b, (void)c, (void)d;
    v->stopped = v->options.stop_fd >= 0 && poll(&stop, 1, 0) > 0;
    return v->stopped;
}

/* What the server says is wrong, as a word for people: {"error": {"message"}} or {"detail"}, else the text itself. */
static void said(const struct vllm *v, char out[SAID])
{
    json_t *root = json_loadb((const char *)v->answer.data, v->answer.len, 0, NULL);
    const json_t *error = json_object_get(root, "error"), *message = json_object_get(error ? error : root, "message"),
                 *detail = json_object_get(root, "detail");
    if (json_is_string(message))
        snprintf(out, SAID, "%s", json_string_value(message));
    else if (json_is_string(detail))
        snprintf(out, SAID, "%s", json_string_value(detail));
    else
        snprintf(out, SAID, "%.*s", (int)(v->answer.len < SAID ? v->answer.len : SAID - 1),
                 v->answer.data ? (const char *)v->answer.data : "");
    for (char *c = out; *c; c++)
        if (!isprint((unsigned char)*c)) /* it goes into logs and reports */
            *c = '?';
    json_decref(root);
}

/* ST_OK: answered, with `*code`. `body` NULL: GET. */
static enum status call(struct vllm *v, const char *path, const char *body, uint32_t timeout_ms, long *code,
                        struct err *err)
{
    struct buf url = {0};
    buf_printf(&url, "%.*s%s", (int)v->url_len, v->options.url, path);
    buf_clear(&v->answer);
    v->too_long = v->stopped = false;
    curl_easy_setopt(v->curl, CURLOPT_URL, buf_cstr(&url));
    curl_easy_setopt(v->curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    if (body) {
        curl_easy_setopt(v->curl, CURLOPT_POST, 1L);
        curl_easy_setopt(v->curl, CURLOPT_POSTFIELDSIZE, (long)strlen(body));
        curl_easy_setopt(v->curl, CURLOPT_POSTFIELDS, body);
    } else {
        curl_easy_setopt(v->curl, CURLOPT_HTTPGET, 1L);
    }
    CURLcode rc = curl_easy_perform(v->curl);
    enum status st = ST_OK;
    if (v->stopped)
        st = err_set(err, ST_STOPPED, "%s: asked to stop", buf_cstr(&url));
    else if (v->too_long)
        st = err_set(err, ST_BAD_DATA, "%s: the answer is longer than %d bytes", buf_cstr(&url), VLLM_ANSWER_BYTES);
    else if (rc)
        st = err_set(err, rc == CURLE_OPERATION_TIMEDOUT ? ST_TIMEOUT : ST_IO, "%s: %s", buf_cstr(&url),
                     curl_easy_strerror(rc));
    else
        curl_easy_getinfo(v->curl, CURLINFO_RESPONSE_CODE, code);
    buf_release(&url);
    return st;
}

/* A call that changes something; anything but 200 is a failure with the server's words. */
static enum status change(struct vllm *v, const char *path, json_t *body, uint32_t timeout_ms, struct err *err)
{
    char *text = json_dumps(body, JSON_COMPACT), words[SAID];
    long code = 0;
    json_decref(body);
    CHECK(text);
    enum status st = call(v, path, text, timeout_ms, &code, err);
    free(text);
    if (st || code == 200)
        return st;
    said(v, words);
    if (code == 404 && !strcmp(words, "Not Found")) /* the framework's words: there is no such route */
        return err_set(err, ST_UNSUPPORTED,
                       "%s has no %s: start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
                       v->options.url, path);
    return err_set(err, ST_IO, "%s%s: %ld: %s", v->options.url, path, code, words);
}

/* ---- the list */

static const char *text_of(const json_t *object, const char *key)
{
    const json_t *j = json_object_get(object, key);
    return json_is_string(j) && json_string_length(j) == strlen(json_string_value(j)) ? json_string_value(j) : NULL;
}

enum status vllm_models(struct bytes text, struct json_t **json, struct served_model **models, size_t *n,
                        struct err *err)
{
    json_t *root = json_loadb((const char *)text.data, text.len, 0, NULL);
    const json_t *list = json_object_get(root, "data");
    size_t count = json_array_size(list);
    if (!json_is_array(list) || count > VLLM_MODELS_MAX) {
        json_decref(root);
        return err_set(err, ST_BAD_DATA, "is no list of at most %d models", VLLM_MODELS_MAX);
    }
    *models = xcalloc(count + 1, sizeof **models);
    for (size_t i = 0; i < count; i++) {
        const json_t *m = json_array_get(list, i);
        (*models)[i] = (struct served_model){text_of(m, "id"), text_of(m, "root"), text_of(m, "parent")};
    }
    *json = root;
    *n = count;
    return ST_OK;
}

static enum status list(struct vllm *v, json_t **json, struct served_model **models, size_t *n, struct err *err)
{
    static const char path[] = "/v1/models";
    char words[SAID];
    long code = 0;
    enum status st = call(v, path, NULL, CALL_MS, &code, err);
    if (st)
        return st;
    if (code != 200) {
        said(v, words);
        return err_set(err, ST_IO, "%s%s: %ld: %s", v->options.url, path, code, words);
    }
    if ((st = vllm_models(buf_bytes(&v->answer), json, models, n, err)))
        err_prefix(err, st, "%s%s", v->options.url, path);
    return st;
}

enum status vllm_base_name(struct vllm *v, struct buf *out, struct err *err)
{
    json_t *json = NULL;
    struct served_model *models = NULL;
    const char *name = NULL;
    size_t n = 0;
    enum status st = list(v, &json, &models, &n, err);
    for (size_t i = 0; !st && i < n && !name; i++)
        if (!models[i].parent)
            name = models[i].root ? models[i].root : models[i].id;
    if (!st && !name)
        st = err_set(err, ST_BAD_DATA, "%s lists no base model: give its name with --base-name", v->options.url);
    if (!st)
        buf_printf(out, "%s", name);
    free(models);
    json_decref(json);
    return st;
}

/* ---- a pass */

static enum status act(struct vllm *v, const struct reconcile_action *a, struct err *err)
{
    if (a->kind == RECONCILE_LOAD)
        return change(v, "/v1/load_lora_adapter", json_pack("{s:s,s:s}", "lora_name", a->name, "lora_path", a->path),
                      v->options.load_ms, err);
    return change(v, "/v1/unload_lora_adapter", json_pack("{s:s}", "lora_name", a->name), CALL_MS, err);
}

/* Since when has the wanted one been there? A server that lost it begins anew. */
static bool drained(struct vllm *v, uint64_t version, bool here)
{
    uint64_t now = clock_ms();
    if (!here || !v->here || v->version != version)
        v->since_ms = now;
    v->here = here;
    v->version = version;
    return here && now - v->since_ms >= v->options.drain_ms;
}

static enum status look(struct vllm *v, uint64_t version, struct reconcile_action *next, struct err *err)
{
    json_t *json = NULL;
    struct served_model *models = NULL;
    size_t n = 0;
    struct reconcile_wanted wanted = {.line = v->options.line, .dir = v->options.dir, .version = version};
    enum status st = list(v, &json, &models, &n, err);
    if (!st) {
        reconcile_next(&wanted, models, n, next);
        wanted.drained = drained(v, version, next->kind == RECONCILE_NOTHING || next->kind == RECONCILE_DRAIN);
        reconcile_next(&wanted, models, n, next);
    }
    free(models);
    json_decref(json);
    return st;
}

enum status vllm_reconcile(struct vllm *v, uint64_t version, struct err *err)
{
    bool loaded = false;
    for (int i = 0; i < ACTIONS_MAX; i++) {
        struct reconcile_action next;
        enum status st = look(v, version, &next, err);
        if (st)
            return st;
        if (next.kind == RECONCILE_NOTHING || next.kind == RECONCILE_DRAIN)
            return ST_OK;
        if (next.kind == RECONCILE_CONFLICT)
            return err_set(err, ST_CONFLICT, "%s has %s already, from %.200s: unload it there, or serve another line",
                           v->options.url, next.name, next.path);
        if (next.kind == RECONCILE_LOAD && loaded)
            return err_set(err, ST_IO, "%s said that it loaded %s, but does not list it", v->options.url, next.name);
        loaded = loaded || next.kind == RECONCILE_LOAD;
        if ((st = act(v, &next, err)))
            return st;
    }
    return ST_OK; /* the rest at the next pass */
}

/* ---- life */

static enum status add_token(struct vllm *v, struct err *err)
{
    struct buf token = {0}, header = {0};
    enum status st = secret_read(v->options.token_file, TOKEN_BYTES, &token, err);
    if (!st) {
        while (token.len && isspace(token.data[token.len - 1]))
            token.len--;
        for (size_t i = 0; i < token.len && !st; i++)
            if (!isgraph(token.data[i]))
                st = err_set(err, ST_CONFIG, "%s: a token is one word", v->options.token_file);
    }
    if (!st) {
        buf_printf(&header, "Authorization: Bearer %.*s", (int)token.len, (char *)token.data);
        v->headers = curl_slist_append(v->headers, buf_cstr(&header));
    }
    if (token.data)
        explicit_bzero(token.data, token.cap);
    if (header.data)
        explicit_bzero(header.data, header.cap);
    buf_release(&token);
    buf_release(&header);
    return st;
}

enum status vllm_open(const struct vllm_options *options, struct vllm **out, struct err *err)
{
    const char *url = options->url;
    if (strncmp(url, "http://", 7) && strncmp(url, "https://", 8))
        return err_set(err, ST_USAGE, "\"%s\" is no http:// or https:// address", url);
    if (strchr(url, '@'))
        return err_set(err, ST_USAGE, "the server's address may hold no secret: use a token file");
    struct vllm *v = xcalloc(1, sizeof *v);
    v->options = *options;
    v->url_len = strlen(url);
    while (v->url_len && url[v->url_len - 1] == '/')
        v->url_len--;
    v->curl = curl_easy_init();
    CHECK(v->curl);
    v->headers = curl_slist_append(NULL, "Content-Type: application/json");
    enum status st = options->token_file ? add_token(v, err) : ST_OK;
    curl_easy_setopt(v->curl, CURLOPT_HTTPHEADER, v->headers);
    curl_easy_setopt(v->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(v->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(v->curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    curl_easy_setopt(v->curl, CURLOPT_WRITEFUNCTION, take);
    curl_easy_setopt(v->curl, CURLOPT_WRITEDATA, v);
    curl_easy_setopt(v->curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(v->curl, CURLOPT_XFERINFOFUNCTION, look_up);
    curl_easy_setopt(v->curl, CURLOPT_XFERINFODATA, v);
    curl_easy_setopt(v->curl, CURLOPT_USERAGENT, "alluvium/" ALLUVIUM_VERSION);
    if (st)
        vllm_close(&v);
    else
        *out = v;
    return st;
}

void vllm_close(struct vllm **vp)
{
    struct vllm *v = *vp;
    if (!v)
        return;
    *vp = NULL;
    curl_easy_cleanup(v->curl);
    curl_slist_free_all(v->headers);
    buf_release(&v->answer);
    free(v);
}
