#include "model/loss.h"

/* One piece's logits: large enough that the product amortises reading the head, small beside the activations. */
static const uint64_t PIECE_BYTES = 64u << 20;
enum { PIECE_ROWS_MIN = 32, PIECE_ROWS_MAX = 512 };

void loss_layout(struct loss *loss, const struct arch *arch, uint32_t rows_max, bool distil, struct arena *arena)
{
    uint64_t rows = PIECE_BYTES / (arch->vocab_size * sizeof(real));
    rows = rows < PIECE_ROWS_MIN ? PIECE_ROWS_MIN : rows > PIECE_ROWS_MAX ? PIECE_ROWS_MAX : rows;
    loss->piece_rows = rows < rows_max ? (uint32_t)rows : rows_max;
    uint64_t C = arch->d_model, piece = loss->piece_rows;
    loss->normed = arena_reals(arena, piece * C); /* as activations, half of it */
    loss->logits = arena_reals(arena, piece * arch->vocab_size);
    loss->rows = arena_take(arena, piece * sizeof *loss->rows);
    loss->targets = arena_take(arena, piece * sizeof *loss->targets);
    loss->nll = arena_take(arena, piece * sizeof *loss->nll);
    loss->teacher = arena_take(arena, piece * sizeof *loss->teacher);
    if (distil) {
        loss->share = arena_reals(arena, piece);
        loss->taught_logits = arena_reals(arena, (uint64_t)LOSS_TAUGHT_ROWS * arch->vocab_size);
        loss->taught_nll = arena_take(arena, LOSS_TAUGHT_ROWS * sizeof *loss->taught_nll);
    }
}

static void head(const struct loss *loss, const struct weights *w, real *logits, const real *x, uint32_t n)
{
    uint32_t C = w->arch.d_model, V = w->arch.vocab_size;
    const real eps = (real)w->arch.rms_eps;
    if (loss->ops->packed) {
        loss->ops->rmsnorm_half(loss->pool, loss->normed, x, w->out_norm, n, C, eps);
        loss->ops->frozen(loss->pool, (struct activation){logits, false}, NULL, (struct activation){loss->normed, true},
                          &w->head, &(struct low_rank){0}, n, V, C, NULL);
    } else {
        loss->ops->rmsnorm(loss->pool, loss->normed, C, x, C, w->out_norm, n, 1, C, eps);
        loss->ops->linear(loss->pool, logits, V, loss->normed, C, w->head.rows, C, n, V, C, 1, false);
    }
}

/* The gradient g (p - text) of the distilled rows of a piece becomes g (p - (1 - d) text - d q), q the teacher's predictions: less
 * d times g (q - text), which is the gradient of the teacher's own cross-entropy. Returns the rows of `taught` that were used. */
static size_t distil(const struct loss *loss, const struct weights *w, const real *taught, real scale, uint32_t n)
{
    size_t C = w->arch.d_model, V = w->arch.vocab_size, used = 0;
    uint32_t rows[LOSS_TAUGHT_ROWS], targets[LOSS_TAUGHT_ROWS];
    for (uint32_t i = 0; i < n;) {
        uint32_t k = 0;
        for (; i < n && k < LOSS_TAUGHT_ROWS; i++)
            if (loss->share[i] > 0)
                rows[k] = i, targets[k++] = loss->targets[i];
        if (!k)
            break;
        head(loss, w, loss->taught_logits, taught + used * C, k);
        loss->ops->cross_entropy(loss->pool, loss->taught_nll, loss->taught_logits, targets, k, (uint32_t)V, scale);
        for (uint32_t j = 0; j < k; j++) {
            real *g = loss->logits + rows[j] * V;
            const real *q = loss->taught_logits + j * V, share = loss->share[rows[j]];
            for (size_t v = 0; v < V; v++)
                g[v] -= share * q[v];
        }
        used += k;
    }
    return used;
}

/* Returns the rows of `taught` that were used. */
static size_t run_piece(const struct loss *loss, const struct weights *w, real *dx, const real *x, const real *taught,
                        const struct objective *objective, real grad_scale, uint32_t n)
{
    enum objective_kind kind = objective->kind;
    size_t used = 0;
    uint32_t C = w->arch.d_model, V = w->arch.vocab_size;
    head(loss, w, loss->logits, x, n);
    if (kind == OBJECTIVE_KL)
        loss->ops->divergence(loss->pool, loss->nll, loss->logits, loss->teacher, n, V, grad_scale);
    else
        loss->ops->cross_entropy(loss->pool, loss->nll, loss->logits, loss->targets, n, V, dx ? grad_scale : 0);
    if (!dx)
        return 0;
    if (taught)
        used = distil(loss, w, taught, grad_scale, n);
    if (loss->ops->packed)
        loss->ops->frozen_dx(loss->pool, (struct activation){dx, false}, NULL, (struct activation){loss->logits, false},
                             &w->head, &(struct low_rank){0}, n, V, C);
    else
        loss->ops->linear_dx(loss->pool, dx, C, loss->logits, V, w->head.rows, C, n, V, C, 1, false);
    loss->ops->rmsnorm_dx(loss->pool, dx, C, dx, C, x, C, w->out_norm, n, 1, C, (real)w->arch.rms_eps, false);
    return used;
}

/* After the head, since the weight of a pair is known only when both its samples have been through it. */
static void weigh(const struct weights *w, real *dx, const struct packed *packed, const struct objective *objective,
                  const double *nll)
{
    size_t C = w->arch.d_model;
    for (uint32_t s = 0; s < packed->n_samples; s++) {
        real weight = (real)objective_weight(objective, packed, nll, s);
        for (uint32_t m = packed->cu_seqlens[s]; m < packed->cu_seqlens[s + 1]; m++)
            if (packed->mask[m]) {
                for (size_t i = 0; i < C; i++)
                    dx[i] *= weight;
                dx += C;
            }
    }
}

void loss_run(const struct loss *loss, const struct weights *w, real *dx, const real *x, const real *taught,
              const struct packed *packed, const struct objective *objective, real grad_scale, double *nll,
              uint32_t *n_targets)
{
    size_t C = w->arch.d_model, done = 0;
    uint32_t row = 0, sample = 0, at = 0; /* at: the sample of `row` */
    while (done < packed->n_targets) {
        uint32_t n = 0;
        for (; row < packed->n_rows && n < loss->piece_rows; row++)
            if (packed->mask[row]) {
                loss->rows[n] = row;
                loss->teacher[n] = packed->teacher ? packed->teacher[row] : NULL;
                while (row >= packed->cu_seqlens[at + 1])
                    at++;
                if (taught)
                    loss->share[n] = (real)objective->distil[packed->distilled[at]];
                loss->targets[n++] = packed->targets[row];
            }
        size_t used = run_piece(loss, w, dx ? dx + done * C : NULL, x + done * C, taught, objective, grad_scale, n);
        taught = taught ? taught + used * C : NULL;
        done += n;
        for (uint32_t i = 0; i < n; i++) {
            while (loss->rows[i] >= packed->cu_seqlens[sample + 1])
                sample++;
            nll[sample] += loss->nll[i];
            n_targets[sample]++;
        }
    }
    if (dx && (objective->kind == OBJECTIVE_DPO || packed->weights))
        weigh(w, dx, packed, objective, nll);
}

void loss_logits(const struct loss *loss, const struct weights *w, real *logits, const real *x, uint32_t n)
{
    for (size_t i = 0; i < n; i += loss->piece_rows) {
        uint32_t piece = n - i < loss->piece_rows ? (uint32_t)(n - i) : loss->piece_rows;
        head(loss, w, logits + i * w->arch.vocab_size, x + i * w->arch.d_model, piece);
    }
}
