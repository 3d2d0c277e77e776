/* What is checked of the coordinator's hello. */
#include <string.h>

#include "proto/frame.h"
#include "worker/internal.h"

/* Names and files that may serve differ between cards of the same base; what is trained on must not. */
static bool same_base(const struct card *a, const struct card *b)
{
    struct digest left, right;
    card_digest_trained(a, &left);
    card_digest_trained(b, &right);
    return digest_eq(&left, &right);
}

static enum status other_base(const struct name *line, const struct card *theirs, const struct card *ours,
                              struct err *err)
{
    char theirs_hex[DIGEST_HEX_SIZE], ours_hex[DIGEST_HEX_SIZE];
    digest_hex(&theirs->base, theirs_hex);
    digest_hex(&ours->base, ours_hex);
    return err_set(
        err, ST_CONFIG,
        "line %s is trained on the base %s (%.12s), this worker holds another, %s (%.12s): start it with the "
        "base the line was made with",
        line->s, theirs->base_name[0] ? theirs->base_name : "without a name", theirs_hex,
        ours->base_name[0] ? ours->base_name : "without a name", ours_hex);
}

enum status hello_line(const struct worker_config *config, const struct worker_line *known, const Alv__HelloOk *ok,
                       struct worker_line *out, struct err *err)
{
    struct worker_line line = {.rank = ok->adapter_rank, .alpha = ok->adapter_alpha, .targets = ok->adapter_targets};
    struct card card;
    if (!name_set(&line.name, ok->line, strlen(ok->line)) || ok->seed.len != sizeof line.seed ||
        ok->session_incarnation.len != 16 || ok->previous_incarnation.len != 16 || ok->session_counter == 0)
        return err_set(err, ST_BAD_DATA, "the coordinator's hello is incomplete");
    if (!protocol_pick(ok->protocol, ok->protocol))
        return err_set(
            err, ST_UNSUPPORTED,
            "the coordinator answers in protocol %u, this worker speaks %d to %d: run releases next to each other",
            ok->protocol, PROTOCOL_MIN, PROTOCOL_VERSION);
    memcpy(line.seed, ok->seed.data, sizeof line.seed);
    if (config->line[0] && strcmp(config->line, line.name.s) != 0)
        return err_set(err, ST_CONFIG, "the coordinator serves line %s, this worker was sent to line %s", line.name.s,
                       config->line);
    enum status status = card_decode(ok->card.data, ok->card.len, &card, err);
    if (status != ST_OK)
        return err_prefix(err, status, "the coordinator's model card");
    if (!same_base(&card, &config->card))
        return other_base(&line.name, &card, &config->card, err);
    if (known && (!name_eq(&known->name, &line.name) || known->rank != line.rank || known->alpha != line.alpha ||
                  known->targets != line.targets || memcmp(known->seed, line.seed, sizeof line.seed) != 0))
        return err_set(err, ST_CONFLICT, "line %s changed its shape or seed under a running worker: restart it",
                       line.name.s);
    *out = line;
    return ST_OK;
}

enum status hello_session(uint64_t counter, const uint8_t incarnation[16], const Alv__HelloOk *ok, struct err *err)
{
    unsigned long long known = counter, now = ok->session_counter;
    if (known == 0)
        return ST_OK;
    if (now < known)
        return err_set(
            err, ST_CONFLICT,
            "the coordinator is in session %llu, but this worker has seen %llu: its data directory was set back. "
            "If that was meant, remove the worker's `session` file",
            now, known);
    const uint8_t *expected = now == known       ? ok->session_incarnation.data
                              : now == known + 1 ? ok->previous_incarnation.data
                                                 : incarnation; /* too far on to tell */
    if (memcmp(expected, incarnation, 16) != 0)
        return err_set(
            err, ST_CONFLICT,
            "session %llu of the coordinator is not of the chain this worker knows (%llu): two coordinators run "
            "on copies of one data directory. Stop one of them",
            now, known);
    return ST_OK;
}
