/* One decoding step of a model on a CPU: a token of each row in, the logits of its next token out.

   Shapes: B rows, D emb_dim, H heads, G heads of keys and values, K head_dim, S positions, I inputs, O outputs of a layer.

   All numbers are fp32 except weights, which are fp32, bf16 or 8-bit integers with a scale for each output, and cached keys and
   values, which are fp32 or bf16. A row's numbers do not depend on the other rows: each sum is added up in the same order however
   many rows there are. Vectors have 16 numbers, which the compiler divides where registers are shorter. */

#include <omp.h>

#include "vectors.h"

#define CHAINS 4            /* sums of a dot product that are added up independently */
#define INPUT_BLOCK 1024    /* inputs of a layer that are read at a time: eight rows of them stay in the first cache */
#define PREFETCH_BYTES 8192 /* how far ahead weights are requested */
#define MAX_ROWS 8          /* rows that are multiplied by a weight at a time */
#define UNROLL _Pragma("GCC unroll 16")

enum { GELU_TANH, GELU_ERF, SQUARED_RELU };

typedef struct {
    const void *weight; /* (O, I) */
    const float *bias;  /* (O,), or NULL */
    const float *scale; /* (O,), or NULL */
    int64_t outputs, inputs;
} Linear;

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

static int group_size(int64_t n_rows) { return n_rows > 4 ? 8 : n_rows > 2 ? 4 : (int)n_rows; }

/* Return the number of rows with those that fill up the last group. */
int64_t padded_rows(int64_t n_rows) {
    int64_t group = group_size(n_rows);
    return (n_rows + group - 1) / group * group;
}

/* Inputs of a layer are stored in groups of rows, so that the 16 numbers of all rows of a group are side by side. */
typedef struct {
    int64_t n_rows, n_inputs;
    int group; /* rows of a group: 1, 2, 4 or 8; the last group is filled up with zeros */
    float *numbers;
} Inputs;

INLINE float *input_at(const Inputs *x, int64_t row, int64_t index) {
    int64_t start = row / x->group * x->group * x->n_inputs;
    return x->numbers + start + (index / LANES * x->group + row % x->group) * LANES;
}

/* Add to out the products of a block of inputs of one group of rows with one output's weights. */
INLINE void dot(int type, int group, int chains, const void *weight, const float *x, int64_t n_inputs, int64_t ahead, float *out,
                int64_t out_stride) {
    floats total[MAX_ROWS];
    UNROLL for (int first = 0; first < CHAINS; first += chains) {
        floats sums[MAX_ROWS][CHAINS];
        UNROLL for (int r = 0; r < group; r++) UNROLL for (int c = 0; c < chains; c++) sums[r][c] = (floats){0};
        for (int64_t i = first * LANES; i < n_inputs; i += CHAINS * LANES) {
            UNROLL for (int c = 0; c < chains; c++) {
                floats w = load_as(type, weight, i + c * LANES);
                UNROLL for (int r = 0; r < group; r++) sums[r][c] += w * load(x + (i + c * LANES) * group + r * LANES);
            }
            if (first == 0)
                for (int line = 0; line < CHAINS * LANES * (type == FP32 ? 4 : type == BF16 ? 2 : 1); line += 64)
                    __builtin_prefetch((const char *)weight + i * (type == FP32 ? 4 : type == BF16 ? 2 : 1) + ahead + line);
        }
        UNROLL for (int r = 0; r < group; r++) {
            UNROLL for (int c = 0; c < chains; c += 2) {
                floats pair = sums[r][c] + sums[r][c + 1];
                total[r] = first == 0 && c == 0 ? pair : total[r] + pair;
            }
        }
    }
    UNROLL for (int r = 0; r < group; r++) out[r * out_stride] += sum(total[r]);
}

/* The inputs of one or two rows stay in the first cache as a whole, so each weight is read from its beginning to its end. With more
   rows, a block of inputs is used for all outputs before the next block. Both add up in the same order. */
INLINE void multiply_group(int type, int group, int chains, const Linear *layer, const Inputs *x, int64_t from, int64_t to, float *out) {
    int64_t size = type == FP32 ? 4 : type == BF16 ? 2 : 1, I = layer->inputs, O = layer->outputs;
    int64_t n_blocks = (I + INPUT_BLOCK - 1) / INPUT_BLOCK, together = group <= 2 ? n_blocks : 1;
    for (int64_t first = 0; first < n_blocks; first += together)
        for (int64_t o = from; o < to; o++)
            for (int64_t block = first; block < first + together; block++) {
                int64_t start = block * INPUT_BLOCK, n = I - start < INPUT_BLOCK ? I - start : INPUT_BLOCK;
                int64_t rows_ahead = (PREFETCH_BYTES + n * size - 1) / (n * size);
                int64_t ahead = together == n_blocks ? PREFETCH_BYTES : rows_ahead * I * size;
                for (int64_t row = 0; row < x->n_rows; row += group)
                    dot(type, group, chains, (const char *)layer->weight + (o * I + start) * size, input_at(x, row, start), n, ahead,
                        out + row * O + o, O);
            }
}

INLINE void multiply_as(int type, const Linear *layer, const Inputs *x, int64_t from, int64_t to, float *out) {
    if (x->group == 1) multiply_group(type, 1, 4, layer, x, from, to, out);
    else if (x->group == 2) multiply_group(type, 2, 4, layer, x, from, to, out);
    else if (x->group == 4) multiply_group(type, 4, 4, layer, x, from, to, out);
    else multiply_group(type, 8, 2, layer, x, from, to, out);
}

/* Multiply by a layer's weights and add its bias, for the outputs of this thread, which are returned in from and to. */
static void multiply(int type, const Linear *layer, const Inputs *x, float *out, int64_t *from, int64_t *to) {
    int64_t O = layer->outputs, n = omp_get_num_threads(), units = (O + LANES - 1) / LANES;
    *from = units * omp_get_thread_num() / n * LANES;
    *to = units * (omp_get_thread_num() + 1) / n * LANES;
    if (*to > O) *to = O;
    for (int64_t row = 0; row < padded_rows(x->n_rows); row++) memset(out + row * O + *from, 0, (*to - *from) * sizeof(float));
    if (type == FP32) multiply_as(FP32, layer, x, *from, *to, out);
    else if (type == BF16) multiply_as(BF16, layer, x, *from, *to, out);
    else multiply_as(INT8, layer, x, *from, *to, out);
    for (int64_t row = 0; row < x->n_rows; row++) {
        float *numbers = out + row * O;
        if (layer->scale) for (int64_t o = *from; o < *to; o++) numbers[o] *= layer->scale[o];
        if (layer->bias) for (int64_t o = *from; o < *to; o++) numbers[o] += layer->bias[o];
    }
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
    int64_t rows = padded_rows(n_rows), wide = m->blocks[0].up.outputs;
    return rows * (3 * m->emb_dim + m->blocks[0].qkv.outputs + 2 * wide) + n_threads * scores_room(longest, m->head_dim);
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
    Inputs normed = {n_rows, D, group, sums + n_padded * wide};
    Inputs context = {n_rows, D, group, normed.numbers + n_padded * D};
    Inputs middle = {n_rows, wide, group, context.numbers + n_padded * D};
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

/* Apply a layer to rows, (B, I) -> (B or more, O). work has room for the inputs of whole groups of rows. */
void apply(int32_t type, const Linear *layer, int64_t n_rows, int64_t n_threads, const float *rows, float *work, float *out) {
    Inputs x = {n_rows, layer->inputs, group_size(n_rows), work};
    for (int64_t b = 0; b < n_rows; b++)
        for (int64_t i = 0; i < layer->inputs; i += LANES) store(input_at(&x, b, i), load(rows + b * layer->inputs + i));
#pragma omp parallel num_threads(n_threads)
    {
        int64_t from, to;
        multiply(type, layer, &x, out, &from, &to);
    }
}
