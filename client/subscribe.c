/* Sends on models: hello, watch, manifest-get, serving; on bulk: hello, blob-get. Receives their replies and error. */
#include "client/subscribe.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

#include "base/clock.h"
#include "client/hello.h"
#include "client/serve.h"
#include "client/stage.h"
#include "client/vllm.h"
#include "net/bulk.h"
#include "net/request.h"

enum { ANSWER_MS = 15000, HOOK_MS = 120000, RECHECK_MS = 5000 };

struct subscriber {
    struct subscribe_options options;
    struct join join;
    struct hello hello;
    void *zmq;
    struct conn *models, *bulk;
    struct stage *stage;
    struct vllm *vllm; /* NULL: a hook, or nothing */
    struct subscribe_core *core;
    uint64_t problems; /* told so far */
    bool in_trouble;
    uint64_t staging;
};

/* ---- texts ----------------------------------------------------------------------------------------------------------- */

static void put_json(json_t *root, struct buf *out)
{
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    buf_printf(out, "%s\n", text ? text : "{}");
    free(text);
    json_decref(root);
}

void subscribe_peft_config(const struct manifest *m, const char *base_name, struct buf *out)
{
    /* bit order of `targets`, as in adapter/adapter.h, which a client does not link */
    static const char *const leaves[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    json_t *targets = json_array();
    for (unsigned i = 0; i < sizeof leaves / sizeof leaves[0]; i++)
        if (m->targets >> i & 1)
            json_array_append_new(targets, json_string(leaves[i]));
    put_json(json_pack("{s:s,s:s,s:s,s:I,s:I,s:f,s:o,s:s,s:b,s:b}", "peft_type", "LORA", "task_type", "CAUSAL_LM",
                       "base_model_name_or_path", base_name, "r", (json_int_t)m->rank, "lora_alpha",
                       (json_int_t)m->alpha, "lora_dropout", 0.0, "target_modules", targets, "bias", "none",
                       "fan_in_fan_out", 0, "inference_mode", 1),
             out);
}

static json_t *hex(const void *data, size_t len)
{
    char text[2 * 64 + 1];
    hex_encode(data, len, text);
    return json_string(text);
}

void subscribe_manifest_json(const struct manifest *m, struct buf *out)
{
    static const char *const kinds[] = {"?", "peft", "gguf", "state"};
    json_t *files = json_array(), *domains = json_array();
    for (uint32_t i = 0; i < m->n_files; i++) {
        const struct manifest_file *f = &m->files[i];
        json_array_append_new(
            files, json_pack("{s:s,s:I,s:o,s:o}", "kind", f->kind <= FILE_STATE ? kinds[f->kind] : "?", "bytes",
                             (json_int_t)f->bytes, "blake2b_256", hex(f->blake2b.b, sizeof f->blake2b.b), "sha256",
                             hex(f->sha256, sizeof f->sha256)));
    }
    for (uint32_t i = 0; i < m->n_domains; i++) {
        const struct manifest_domain *d = &m->domains[i];
        double tokens = d->tokens ? (double)d->tokens : 1;
        json_array_append_new(domains,
                              json_pack("{s:s,s:I,s:I,s:I,s:f,s:I,s:f,s:f,s:f}", "name", d->name.s, "probe_set",
                                        (json_int_t)d->probe_set, "windows", (json_int_t)d->windows, "tokens",
                                        (json_int_t)d->tokens, "nll_per_token", d->nll / tokens, "reference",
                                        (json_int_t)d->reference, "reference_nll_per_token", d->reference_nll / tokens,
                                        "forgetting", d->forgetting, "forgetting_high", d->forgetting_high));
    }
    put_json(json_pack("{s:s,s:I,s:I,s:o,s:I,s:o,s:I,s:I,s:o,s:I,s:b,s:I,s:I,s:f,s:f,s:s,s:o}", "line", m->line.s,
                       "number", (json_int_t)m->number, "parent", (json_int_t)m->parent, "parent_manifest",
                       hex(m->parent_manifest.b, sizeof m->parent_manifest.b), "created_s", (json_int_t)m->created_s,
                       "card", hex(m->card.b, sizeof m->card.b), "rank", (json_int_t)m->rank, "alpha",
                       (json_int_t)m->alpha, "files", files, "rollback_of", (json_int_t)m->rollback_of, "gated",
                       !(m->flags & MANIFEST_UNGATED), "round", (json_int_t)m->round, "leases", (json_int_t)m->n_leases,
                       "error_rate", m->error_rate, "averaging_error", m->averaging_error, "verdict", m->verdict,
                       "domains", domains),
             out);
}

/* ---- effects --------------------------------------------------------------------------------------------------------- */

static void note(struct subscriber *s, enum status status, const char *text)
{
    if (s->options.note)
        s->options.note(s->options.user, status, text);
}

static void on_progress(void *user, uint64_t done, uint64_t total)
{
    struct subscriber *s = user;
    if (s->options.progress)
        s->options.progress(s->options.user, s->staging, done, total);
}

static enum status stage_version(struct subscriber *s, const struct subscribe_effect *effect, struct err *err)
{
    struct buf base = {0};
    enum status st = s->vllm && !s->options.base_name ? vllm_base_name(s->vllm, &base, err) : ST_OK;
    if (st)
        return st; /* the files of a version are written once: not without the name */
    struct stage_files files = {
        .manifest = effect->manifest,
        .manifest_bytes = effect->manifest_bytes,
        .signature = effect->signature,
        .base_name = base.len ? buf_cstr(&base) : s->options.base_name,
        .forms = s->options.forms,
    };
    struct bulk_options bulk = {.progress = on_progress, .user = s};
    s->staging = effect->number;
    st = stage_put(s->stage, &files, s->bulk, &bulk, err);
    buf_release(&base);
    return st;
}

static enum status swap_version(struct subscriber *s, uint64_t number, struct err *err)
{
    enum status st = stage_swap(s->stage, number, err);
    if (st != ST_OK)
        return st;
    char text[160];
    snprintf(text, sizeof text, "version %llu is in place", (unsigned long long)number);
    note(s, ST_OK, text);
    stage_prune(s->stage, number, s->options.keep);
    return ST_OK;
}

static void note_served(struct subscriber *s, uint64_t number)
{
    char text[160];
    snprintf(text, sizeof text, "version %llu is served", (unsigned long long)number);
    note(s, ST_OK, text);
}

/* Once in a while the same again: only news is told. */
static enum status reconcile(struct subscriber *s, uint64_t number, struct err *err)
{
    struct subscribe_view view;
    subscribe_view(s->core, &view);
    enum status st = vllm_reconcile(s->vllm, number, err);
    if (st == ST_OK && !(view.has_served && view.served == number))
        note_served(s, number);
    return st;
}

static enum status run_hook(struct subscriber *s, uint64_t number, struct err *err)
{
    struct subscribe_view view;
    char dir[STAGE_PATH_SIZE], peft[STAGE_PATH_SIZE + 64] = "", gguf[STAGE_PATH_SIZE + 64] = "";
    subscribe_view(s->core, &view);
    stage_path(s->stage, number, dir);
    if (s->options.forms & FORM_PEFT)
        snprintf(peft, sizeof peft, "%s/adapter_model.safetensors", dir);
    if (s->options.forms & FORM_GGUF)
        snprintf(gguf, sizeof gguf, "%s/adapter.gguf", dir);
    struct hook_facts facts = {
        .line = s->join.line.s,
        .dir = dir,
        .peft = peft,
        .gguf = gguf,
        .version = number,
        .previous = view.served,
        .has_previous = view.has_served,
    };
    enum status st = hook_run(s->options.hook, &facts, s->options.hook_timeout_ms, s->options.stop_fd, err);
    if (st == ST_OK)
        note_served(s, number);
    return st;
}

static enum status wait_until(const struct subscriber *s, uint64_t until_ms)
{
    struct pollfd stop = {.fd = s->options.stop_fd, .events = POLLIN};
    for (uint64_t now; (now = clock_ms()) < until_ms;)
        if (poll(&stop, 1, until_ms - now < 60000 ? (int)(until_ms - now) : 60000) > 0)
            return ST_STOPPED;
    return ST_OK;
}

static enum status perform(struct subscriber *s, const struct subscribe_effect *effect, ProtobufCMessage **reply,
                           struct err *err)
{
    switch (effect->kind) {
    case SUBSCRIBE_SEND: {
        int wait_ms = effect->verb == VERB_WATCH ? (int)((const Alv__Watch *)effect->message)->wait_ms : 0;
        return conn_call(s->models, effect->verb, effect->message, wait_ms + ANSWER_MS, reply, err);
    }
    case SUBSCRIBE_SAVE:
        return stage_save_state(s->stage, effect->state, err);
    case SUBSCRIBE_STAGE:
        return stage_version(s, effect, err);
    case SUBSCRIBE_SWAP:
        return swap_version(s, effect->number, err);
    case SUBSCRIBE_HOOK:
        return s->vllm ? reconcile(s, effect->number, err) : run_hook(s, effect->number, err);
    case SUBSCRIBE_WAIT:
        return wait_until(s, effect->until_ms);
    }
    return ST_INTERNAL;
}

static void tell_problem(struct subscriber *s, const struct subscribe_view *view)
{
    if (view->problems != s->problems && view->problem != ST_OK && view->problem != ST_EMPTY) {
        note(s, view->problem, view->text);
        s->in_trouble = true;
    } else if (s->in_trouble && view->problem == ST_OK && view->settled) {
        note(s, ST_OK, "well again");
        s->in_trouble = false;
    }
    s->problems = view->problems;
}

/* With `once`: is there nothing more to do but wait? */
static bool done_once(const struct subscribe_effect *effect, const struct subscribe_view *view)
{
    bool idle = effect->kind == SUBSCRIBE_WAIT || (effect->kind == SUBSCRIBE_SEND && effect->verb == VERB_WATCH);
    return idle && (view->settled || (view->problem != ST_OK && view->problem != ST_EMPTY));
}

static enum status loop(struct subscriber *s, struct subscribe_view *view, struct err *err)
{
    for (;;) {
        const struct subscribe_effect *effect = subscribe_next(s->core, clock_ms(), clock_wall_s());
        subscribe_view(s->core, view);
        if (!s->options.once) /* else it is the end, and told there */
            tell_problem(s, view);
        if (s->options.once && done_once(effect, view))
            return view->problem == ST_OK ? ST_OK : err_set(err, view->problem, "%s", view->text);
        ProtobufCMessage *reply = NULL;
        struct err why = {""};
        enum status st = perform(s, effect, &reply, &why);
        if (st == ST_STOPPED)
            return st;
        if (st == ST_DENIED && effect->kind == SUBSCRIBE_SEND) /* this key is shut out: no waiting helps */
            return err_set(err, st, "%s", why.text);
        subscribe_answer(s->core, clock_ms(), clock_wall_s(), st, why.text, reply);
        codec_free(reply);
    }
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

static enum status on_hello(void *user, const Alv__HelloOk *ok, struct err *err)
{
    return hello_check(&((struct subscriber *)user)->join, ok, err);
}

static enum status connect_plane(struct subscriber *s, enum plane plane, struct conn **out, struct err *err)
{
    enum status st = conn_open(s->zmq, &s->join, plane, s->options.stop_fd, out, err);
    if (st == ST_OK)
        conn_set_hello(*out, &s->hello.message, on_hello, s);
    return st;
}

static enum status start_core(struct subscriber *s, struct err *err)
{
    struct buf state = {0};
    struct subscribe_config config = {
        .line = s->join.line,
        .root = s->join.root,
        .hook = s->options.hook || s->vllm,
        .recheck_ms = s->vllm ? RECHECK_MS : 0,
        .wait_ms = s->options.once ? 1 : 0,
    };
    const char *follow = s->options.follow ? s->options.follow : "latest";
    if (!name_set(&config.follow, follow, strlen(follow)))
        return err_set(err, ST_USAGE, "\"%s\" is no name of an alias", follow);
    snprintf(config.target, sizeof config.target, "%s",
             s->options.hook    ? s->options.hook
             : s->options.serve ? s->options.serve
                                : s->options.dir);
    enum status st = stage_load_state(s->stage, SUBSCRIBE_STATE_BYTES_MAX, &state, err);
    if (st == ST_OK)
        st = subscribe_new(&config, buf_bytes(&state), &s->core, err);
    if (st == ST_CORRUPT)
        err_prefix(err, st,
                   "%s/.alluvium/state (removing it makes this a new subscriber, which forgets what it has seen)",
                   s->options.dir);
    buf_release(&state);
    return st;
}

static enum status open_server(struct subscriber *s, char **dir, struct err *err)
{
    if (!s->options.serve)
        return ST_OK;
    if (!s->options.serve_dir && !(*dir = realpath(s->options.dir, NULL)))
        return err_set(err, ST_IO, "%s: %s", s->options.dir, strerror(errno));
    struct vllm_options options = {.url = s->options.serve,
                                   .token_file = s->options.serve_token,
                                   .line = s->join.line.s,
                                   .dir = *dir ? *dir : s->options.serve_dir,
                                   .drain_ms = s->options.drain_ms,
                                   .load_ms = s->options.hook_timeout_ms,
                                   .stop_fd = s->options.stop_fd};
    return vllm_open(&options, &s->vllm, err);
}

enum status subscribe_run(const struct subscribe_options *options, struct subscribe_view *last, struct err *err)
{
    struct subscriber s = {.options = *options, .join = *options->join};
    char *hook = NULL, *dir = NULL;
    enum status st = ST_OK;
    if (!s.options.hook_timeout_ms)
        s.options.hook_timeout_ms = HOOK_MS;
    if (!s.options.forms)
        s.options.forms = FORM_PEFT | FORM_GGUF;
    if (!s.options.keep)
        s.options.keep = 2;
    hello_init(&s.hello, &s.join);
    *last = (struct subscribe_view){0};
    if (s.options.hook && (!(hook = realpath(s.options.hook, NULL)) || access(hook, X_OK) != 0)) {
        st = err_set(err, ST_CONFIG, "hook %s: %s", s.options.hook, strerror(errno));
        goto done;
    }
    s.options.hook = hook;
    if (!(s.zmq = zmq_ctx_new())) {
        st = err_set(err, ST_IO, "no ZeroMQ context: %s", zmq_strerror(errno));
        goto done;
    }
    st = stage_open(options->dir, &s.join.line, &s.stage, err);
    if (st == ST_OK)
        st = stage_identity(s.stage, s.hello.instance, &s.hello.message.boot, err);
    if (st == ST_OK)
        st = open_server(&s, &dir, err);
    if (st == ST_OK)
        st = start_core(&s, err);
    if (st == ST_OK)
        st = connect_plane(&s, PLANE_MODELS, &s.models, err);
    if (st == ST_OK)
        st = connect_plane(&s, PLANE_BULK, &s.bulk, err);
    if (st == ST_OK)
        st = loop(&s, last, err);
done:
    conn_close(s.models);
    conn_close(s.bulk);
    subscribe_free(s.core);
    stage_close(&s.stage);
    vllm_close(&s.vllm);
    if (s.zmq)
        zmq_ctx_term(s.zmq);
    free(hook);
    free(dir);
    join_wipe(&s.join);
    return st;
}
