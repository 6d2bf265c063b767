/* One decoding step of a model on a CPU: a token of each row in, the logits of its next token out.

   Shapes: B rows, D emb_dim, H heads, G heads of keys and values, K head_dim, S positions, I inputs, O outputs of a layer.

   All numbers are fp32 except weights, which are fp32, bf16 or 8-bit integers with a scale for each output, inputs of 8-bit weights,
   which are rounded on some processors, and cached keys and values, which are fp32 or bf16. A row's numbers do not depend on the other
   rows: each sum is added up in the same order however many rows there are. Vectors have 16 numbers, which the compiler divides where
   registers are shorter. */

#include "linear.h"

enum { GELU_TANH, GELU_ERF, SQUARED_RELU };

typedef struct {
    const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias; /* (D,), or NULL for an RMS norm */
    Linear qkv, out, up, down;
    const float *value_emb; /* (V, G K), added to the values of each token, or NULL */
} Block;

typedef struct {
    int32_t weight_type, cache_type, activation, n_layers;
    int64_t emb_dim, n_heads, n_kv_heads, head_dim;
    float norm_eps;
    const float *tok_emb;           /* (V, D) */
    const float *pos_emb;           /* (positions, D), or NULL with rotations */
    const float *bigram_emb;        /* (rows, D), or NULL */
    const float *cosines, *sines;   /* (positions, K / 2), or NULL without rotations */
    const float *norm_weight, *norm_bias;
    Linear head;
    const Block *blocks;
} Model;

typedef struct {
    int64_t token_id, position, bigram_row;
    char *keys, *values; /* (layers, 1, G, capacity, K) */
    int64_t layer_bytes, head_bytes;
} Row;

INLINE floats activated(int activation, floats x) {
    if (activation == GELU_TANH) return x / (1.0f + exp_of(x * (x * x * 0.044715f + 1.0f) * -1.5957691216f));
    if (activation == SQUARED_RELU) {
        floats positive = choose(x < 0.0f, (floats){0}, x);
        return positive * positive;
    }
    /* Source: Abramowitz and Stegun, 7.1.26; the error of erf is below 1.5e-7. */
    floats size = choose(x < 0.0f, -x, x) * 0.7071067812f, t = 1.0f / (1.0f + 0.3275911f * size);
    floats p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    floats tail = p * exp_of(-size * size);
    return 0.5f * x * choose(x < 0.0f, tail, 2.0f - tail);
}

/* Normalize n numbers; stride is the distance between the vectors that are written. */
static void normalize(const float *x, int64_t n, float eps, const float *weight, const float *bias, float *out, int64_t stride) {
    floats total = {0}, squares = {0};
    float mean = 0.0f;
    if (weight) {
        for (int64_t i = 0; i < n; i += LANES) total += load(x + i);
        mean = sum(total) / n;
    }
    for (int64_t i = 0; i < n; i += LANES) {
        floats centered = load(x + i) - mean;
        squares += centered * centered;
    }
    float factor = 1.0f / sqrtf(sum(squares) / n + eps);
    for (int64_t i = 0; i < n; i += LANES) {
        floats scaled = (load(x + i) - mean) * factor;
        store(out + i / LANES * stride, weight ? scaled * load(weight + i) + load(bias + i) : scaled);
    }
}

/* Rotate the pairs of a head, each a number of the first half and its counterpart in the second, and normalize the head. */
static void rotate(const Model *m, float *head, int64_t position) {
    int64_t half = m->head_dim / 2;
    const float *cosines = m->cosines + position * half, *sines = m->sines + position * half;
    for (int64_t i = 0; i < half; i++) {
        float first = head[i], second = head[half + i];
        head[i] = first * cosines[i] + second * sines[i];
        head[half + i] = second * cosines[i] - first * sines[i];
    }
    normalize(head, m->head_dim, m->norm_eps, NULL, NULL, head, LANES);
}

static void write_cache(int type, char *cache, const float *numbers, int64_t n) {
    for (int64_t i = 0; i < n; i += LANES) store_as(type, cache, i, load(numbers + i));
}

/* Compute attention of one query over S keys and values of width K, with room for S scores rounded up to whole vectors. */
INLINE void attend_over(int type, int64_t K, const float *query, const char *keys, const char *values, int64_t S, float *scores,
                        float *out) {
    float factor = 1.0f / sqrtf(K), highest = -INFINITY;
    for (int64_t s = 0; s < S; s++) {
        floats products = {0};
        UNROLL for (int64_t i = 0; i < K; i += LANES) products += load(query + i) * load_as(type, keys, s * K + i);
        scores[s] = sum(products) * factor;
        if (!(scores[s] <= highest)) highest = scores[s]; /* NaN stays the highest */
    }
    for (int64_t s = S; s % LANES; s++) scores[s] = -INFINITY;
    floats total = {0};
    for (int64_t s = 0; s < S; s += LANES) {
        floats weights = exp_of(load(scores + s) - highest);
        store(scores + s, weights);
        total += weights;
    }
    float inverse = 1.0f / sum(total);
    for (int64_t start = 0; start < K; start += 4 * LANES) {
        int n = K - start < 4 * LANES ? (int)(K - start) / LANES : 4;
        floats mixed[4] = {{0}, {0}, {0}, {0}};
        if (n == 4)
            for (int64_t s = 0; s < S; s++)
                UNROLL for (int i = 0; i < 4; i++) mixed[i] += scores[s] * load_as(type, values, s * K + start + i * LANES);
        else
            for (int64_t s = 0; s < S; s++)
                for (int i = 0; i < n; i++) mixed[i] += scores[s] * load_as(type, values, s * K + start + i * LANES);
        for (int i = 0; i < n; i++) store(out + start + i * LANES, mixed[i] * inverse);
    }
}

INLINE void attend_as(int type, int64_t K, const float *query, const char *keys, const char *values, int64_t S, float *scores,
                      float *out) {
    if (K == 64) attend_over(type, 64, query, keys, values, S, scores, out); /* the usual width gets code of its own */
    else attend_over(type, K, query, keys, values, S, scores, out);
}

/* Store a row's new keys and values of one head, and compute the attention of the heads of queries that share it. */
static void attend(const Model *m, const Row *row, int64_t layer, int64_t kv_head, float *qkv, float *scores, float *head,
                   const Inputs *context, int64_t index) {
    int64_t K = m->head_dim, group = m->n_heads / m->n_kv_heads, size = m->cache_type == FP32 ? 4 : 2;
    float *key = qkv + (m->n_heads + kv_head) * K, *value = key + m->n_kv_heads * K;
    char *keys = row->keys + layer * row->layer_bytes + kv_head * row->head_bytes;
    char *values = row->values + layer * row->layer_bytes + kv_head * row->head_bytes;
    if (m->blocks[layer].value_emb) {
        const float *added = m->blocks[layer].value_emb + (row->token_id * m->n_kv_heads + kv_head) * K;
        for (int64_t i = 0; i < K; i++) value[i] += added[i];
    }
    if (m->cosines) rotate(m, key, row->position);
    write_cache(m->cache_type, keys + row->position * K * size, key, K);
    write_cache(m->cache_type, values + row->position * K * size, value, K);
    for (int64_t q = kv_head * group; q < (kv_head + 1) * group; q++) {
        if (m->cosines) rotate(m, qkv + q * K, row->position);
        if (m->cache_type == FP32) attend_as(FP32, K, qkv + q * K, keys, values, row->position + 1, scores, head);
        else attend_as(BF16, K, qkv + q * K, keys, values, row->position + 1, scores, head);
        for (int64_t i = 0; i < K; i += LANES) store(input_at(context, index, q * K + i), load(head + i));
    }
}

static int64_t scores_room(int64_t longest, int64_t head_dim) {
    return (longest + LANES - 1) / LANES * LANES + head_dim + 2 * LANES;
}

/* Return how many numbers `step` needs to work with. */
int64_t work_numbers(const Model *m, int64_t n_rows, int64_t longest, int64_t n_threads) {
    int64_t rows = padded_rows(n_rows), D = m->emb_dim, wide = m->blocks[0].up.outputs;
    int64_t rounded = rounded_room(m->weight_type, rows, wide > D ? wide : D);
    return rows * (3 * D + m->blocks[0].qkv.outputs + 2 * wide) + n_threads * (rounded + scores_room(longest, m->head_dim));
}

/* Normalize the rows of the residual stream, (B, D), as the inputs of a layer. The threads divide the rows. */
static void normalize_rows(const Model *m, const float *hidden, const float *weight, const float *bias, const Inputs *normed) {
    int64_t D = m->emb_dim;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < normed->n_rows; b++)
        normalize(hidden + b * D, D, m->norm_eps, weight, bias, input_at(normed, b, 0), normed->group * LANES);
}

/* Add a thread's own outputs of a layer to the residual stream, (B, D). */
static void add_outputs(float *hidden, const float *outputs, int64_t n_rows, int64_t D, int64_t from, int64_t to) {
    for (int64_t b = 0; b < n_rows; b++)
        for (int64_t o = from; o < to; o++) hidden[b * D + o] += outputs[b * D + o];
}

/* Read one token of each row: append its keys and values to the caches, and write the logits after it, (B or more, V).

   work has room for `work_numbers`, and logits for whole groups of rows, `padded_rows`. */
void step(const Model *m, const Row *rows, int64_t n_rows, int64_t longest, int64_t n_threads, float *work, float *logits) {
    int64_t D = m->emb_dim, qkv_size = m->blocks[0].qkv.outputs, wide = m->blocks[0].up.outputs;
    int group = group_size(n_rows), type = m->weight_type;
    int64_t n_padded = padded_rows(n_rows);
    float *hidden = work, *qkv = hidden + n_padded * D, *sums = qkv + n_padded * qkv_size;
    float *rounded = sums + n_padded * wide, *inputs = rounded + n_threads * rounded_room(type, n_padded, wide > D ? wide : D);
    Inputs normed = {n_rows, D, group, inputs, rounded};
    Inputs context = {n_rows, D, group, normed.numbers + n_padded * D, rounded};
    Inputs middle = {n_rows, wide, group, context.numbers + n_padded * D, rounded};
    float *scores = middle.numbers + n_padded * wide;

#pragma omp parallel num_threads(n_threads)
    {
        int64_t from, to, room = scores_room(longest, m->head_dim);
        float *own = scores + omp_get_thread_num() * room;
#pragma omp for schedule(static)
        for (int64_t b = 0; b < n_rows; b++) {
            float *x = hidden + b * D;
            const float *token = m->tok_emb + rows[b].token_id * D;
            if (m->pos_emb)
                for (int64_t i = 0; i < D; i++) x[i] = token[i] + m->pos_emb[rows[b].position * D + i];
            else {
                const float *pair = m->bigram_emb ? m->bigram_emb + rows[b].bigram_row * D : NULL;
                for (int64_t i = 0; i < D; i++) x[i] = pair ? token[i] + pair[i] : token[i];
                normalize(x, D, m->norm_eps, NULL, NULL, x, LANES);
            }
        }
        for (int64_t layer = 0; layer < m->n_layers; layer++) {
            const Block *block = m->blocks + layer;
            normalize_rows(m, hidden, block->norm1_weight, block->norm1_bias, &normed);
            multiply(type, &block->qkv, &normed, qkv, &from, &to);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t one = 0; one < n_rows * m->n_kv_heads; one++) {
                int64_t b = one / m->n_kv_heads;
                attend(m, rows + b, layer, one % m->n_kv_heads, qkv + b * qkv_size, own, own + room - m->head_dim, &context, b);
            }
            multiply(type, &block->out, &context, sums, &from, &to);
            add_outputs(hidden, sums, n_rows, D, from, to);
#pragma omp barrier
            normalize_rows(m, hidden, block->norm2_weight, block->norm2_bias, &normed);
            multiply(type, &block->up, &normed, sums, &from, &to);
            for (int64_t b = 0; b < n_rows; b++)
                for (int64_t o = from; o < to; o += LANES)
                    store(input_at(&middle, b, o), activated(m->activation, load(sums + b * wide + o)));
#pragma omp barrier
            multiply(type, &block->down, &middle, qkv, &from, &to);
            add_outputs(hidden, qkv, n_rows, D, from, to);
#pragma omp barrier
        }
        normalize_rows(m, hidden, m->norm_weight, m->norm_bias, &normed);
        multiply(type, &m->head, &normed, logits, &from, &to);
    }
}

/* Return how many numbers `apply` needs to work with. */
int64_t apply_numbers(int32_t type, int64_t n_rows, int64_t n_inputs, int64_t n_threads) {
    int64_t n_padded = padded_rows(n_rows);
    return n_padded * n_inputs + n_threads * rounded_room(type, n_padded, n_inputs);
}

/* Apply a layer to rows, (B, I) -> (B or more, O). work has room for `apply_numbers`, and out for whole groups of rows. */
void apply(int32_t type, const Linear *layer, int64_t n_rows, int64_t n_threads, const float *rows, float *work, float *out) {
    Inputs x = {n_rows, layer->inputs, group_size(n_rows), work, work + padded_rows(n_rows) * layer->inputs};
    for (int64_t b = 0; b < n_rows; b++)
        for (int64_t i = 0; i < layer->inputs; i += LANES) store(input_at(&x, b, i), load(rows + b * layer->inputs + i));
#pragma omp parallel num_threads(n_threads)
    {
        int64_t from, to;
        multiply(type, layer, &x, out, &from, &to);
    }
}
