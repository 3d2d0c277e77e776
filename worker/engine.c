#include "worker/engine.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { CHAT_MESSAGES_MAX = 4096, DEFAULT_SEQ = 512 };

enum status engine_open(const char *base_path, const struct engine_options *options, struct engine *out,
                        struct err *err)
{
    struct engine e = {.options = *options};
    struct err why;
    size_t len;
    enum status status = base_open(base_path, &e.base, err);
    if (status == ST_OK)
        status = base_tokenizer(e.base, &e.tok, err);
    if (status == ST_OK)
        status = base_card(e.base, &e.card, err);
    if (status != ST_OK) {
        engine_close(&e);
        return status;
    }
    const char *source = base_chat_template(e.base, &len);
    e.has_chat = chat_template_find(source, source ? len : 0, &e.chat, &why) == ST_OK;
    *out = e;
    return ST_OK;
}

static void put_down(struct engine *engine)
{
    trainer_free(engine->trainer);
    evaluator_free(engine->evaluator);
    engine->trainer = NULL;
    engine->evaluator = NULL;
}

void engine_close(struct engine *engine)
{
    put_down(engine);
    weights_free(engine->weights);
    base_close(engine->base);
    *engine = (struct engine){0};
}

static uint32_t micro_rows(const struct engine *engine, uint32_t seq_rows)
{
    return engine->options.micro_rows > seq_rows ? engine->options.micro_rows : seq_rows;
}

static struct trainer_config config_of(const struct engine *engine, const Alv__TrainConfig *train, uint32_t seq_rows)
{
    struct trainer_config c;
    trainer_defaults(&engine->shape, &c);
    c.threads = engine->options.threads;
    c.ops = engine->options.ops;
    c.memory_max = engine->options.memory_max;
    c.seq_max = seq_rows;
    c.rows_max = micro_rows(engine, seq_rows);
    if (train) {
        c.lr = train->lr;
        c.beta1 = train->beta1;
        c.beta2 = train->beta2;
        c.eps = train->eps;
        c.weight_decay = train->weight_decay;
        c.clip = train->clip;
        c.warmup_steps = train->warmup_steps;
        c.objective.distil[TEACHER_BASE] = train->distil_permille / 1000.0;
        c.objective.distil[TEACHER_START] = train->history_distil_permille / 1000.0;
    } else { /* no lease has come yet: most have both teachers, and these take memory */
        c.objective.distil[TEACHER_BASE] = c.objective.distil[TEACHER_START] = 1;
    }
    return c;
}

static bool same_config(const struct trainer_config *a, const struct trainer_config *b)
{
    return adapter_shape_eq(&a->shape, &b->shape) && a->lr == b->lr && a->beta1 == b->beta1 && a->beta2 == b->beta2 &&
           a->eps == b->eps && a->weight_decay == b->weight_decay && a->clip == b->clip &&
           a->warmup_steps == b->warmup_steps && a->rows_max == b->rows_max && a->seq_max == b->seq_max &&
           a->checkpoint_layers == b->checkpoint_layers &&
           !memcmp(a->objective.distil, b->objective.distil, sizeof a->objective.distil);
}

static enum status make_trainer(struct engine *engine, const struct trainer_config *config, struct err *err)
{
    if (engine->trainer && same_config(&engine->trainer_config, config))
        return ST_OK;
    put_down(engine);
    enum status status = trainer_new(engine->weights, config, &engine->trainer, err);
    if (status == ST_OK)
        engine->trainer_config = *config;
    return status;
}

enum status engine_prepare(struct engine *engine, uint32_t rank, uint32_t alpha, uint32_t targets,
                           struct memory_plan *plan, char fingerprint[LIMIT_TEXT_BYTES], struct err *err)
{
    struct adapter_shape shape;
    enum status status = adapter_shape_of(base_arch(engine->base), rank, alpha, targets, &shape, err);
    if (status != ST_OK)
        return status;
    put_down(engine);
    engine->shape = shape;
    uint32_t context = base_arch(engine->base)->context_max;
    struct trainer_config config = config_of(engine, NULL, context < DEFAULT_SEQ ? context : DEFAULT_SEQ);
    status = trainer_fit(base_arch(engine->base), &config, plan, err);
    if (status == ST_OK && !engine->weights)
        status = weights_load(engine->base, ops_of(engine->options.ops), &engine->weights, err);
    if (status == ST_OK)
        status = make_trainer(engine, &config, err);
    if (status == ST_OK)
        trainer_fingerprint(engine->trainer, fingerprint, LIMIT_TEXT_BYTES);
    return status;
}

enum status engine_trainer(struct engine *engine, const Alv__TrainConfig *train, uint32_t seq_rows, struct err *err)
{
    struct trainer_config config = config_of(engine, train, seq_rows);
    struct memory_plan plan;
    enum status status = trainer_fit(base_arch(engine->base), &config, &plan, err);
    return status == ST_OK ? make_trainer(engine, &config, err) : status;
}

enum status engine_evaluator(struct engine *engine, uint32_t seq_rows, struct err *err)
{
    if (engine->evaluator && engine->evaluator_seq == seq_rows)
        return ST_OK;
    put_down(engine);
    struct evaluator_config config;
    evaluator_defaults(&engine->shape, &config);
    config.threads = engine->options.threads;
    config.ops = engine->options.ops;
    config.memory_max = engine->options.memory_max;
    config.seq_max = config.rows_max = seq_rows; /* windows are scored one by one, see evaluate.h */
    enum status status = evaluator_new(engine->weights, &config, &engine->evaluator, err);
    if (status == ST_OK)
        engine->evaluator_seq = seq_rows;
    return status;
}

/* ---- text to tokens */

static bool role_of(const char *s, enum chat_role *out)
{
    static const char *const names[] = {"system", "user", "assistant"};
    for (int i = 0; s && i < 3; i++)
        if (strcmp(s, names[i]) == 0) {
            *out = (enum chat_role)i;
            return true;
        }
    return false;
}

static enum status tokenise_chat(const struct engine *engine, struct bytes text, struct token_buf *ids,
                                 struct buf *mask, struct err *err)
{
    json_error_t why;
    struct chat_message *messages = NULL;
    enum status status = ST_BAD_DATA;
    if (!engine->has_chat)
        return err_set(err, ST_UNSUPPORTED, "a chat record, but the base %s has no chat template that is known here",
                       engine->card.base_name);
    json_t *root = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, &why);
    size_t n = json_is_array(root) ? json_array_size(root) : 0;
    if (n == 0 || n > CHAT_MESSAGES_MAX) {
        err_set(err, status, "a chat record is not an array of messages");
        goto done;
    }
    messages = xcalloc(n, sizeof *messages);
    for (size_t i = 0; i < n; i++) {
        const json_t *message = json_array_get(root, i), *content = json_object_get(message, "content");
        if (!role_of(json_string_value(json_object_get(message, "role")), &messages[i].role) ||
            !json_is_string(content)) {
            err_set(err, status, "a chat record: message %zu has no known role or no content", i);
            goto done;
        }
        messages[i].content = json_string_value(content);
        messages[i].len = json_string_length(content);
    }
    status = chat_render(engine->chat, engine->tok, messages, n, false, ids, mask, err);
done:
    free(messages);
    json_decref(root);
    return status;
}

enum status engine_tokenise(const struct engine *engine, Alv__RecordKind kind, struct bytes text, struct token_buf *ids,
                            struct buf *mask, struct err *err)
{
    if (kind == ALV__RECORD_KIND__RECORD_CHAT)
        return tokenise_chat(engine, text, ids, mask, err);
    if (kind != ALV__RECORD_KIND__RECORD_TEXT)
        return err_set(err, ST_UNSUPPORTED, "a segment of kind %d", (int)kind);
    size_t had = ids->n;
    enum status status = tokenizer_encode(engine->tok, (const char *)text.data, text.len, ids, err);
    if (status == ST_OK && ids->n > had)
        memset(buf_extend(mask, ids->n - had), 1, ids->n - had);
    return status;
}
