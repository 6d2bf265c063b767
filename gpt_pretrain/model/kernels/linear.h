/* Layers of few rows. Weights are fp32, bf16 or 8-bit integers with a scale for each output.

   Shapes: B rows, I inputs, O outputs of a layer. I is a multiple of 64. A row's outputs do not depend on the other rows. */

#include <omp.h>

#include "vectors.h"

#define CHAINS 4            /* sums of a dot product that are added up independently */
#define INPUT_BLOCK 1024    /* inputs of a layer that are read at a time: eight rows of them stay in the first cache */
#define PREFETCH_BYTES 8192 /* how far ahead weights are requested */
#define MAX_ROWS 8          /* rows that are multiplied by a weight at a time */
#define UNROLL _Pragma("GCC unroll 16")
#define CHUNK 64            /* inputs that one instruction multiplies by 8-bit weights */

/* With VNNI, inputs of 8-bit weights are rounded to integers of 16 bits, and one instruction multiplies 64 weights. Otherwise, weights are
   converted to fp32. */
#if defined(__AVX512VNNI__)
#define ROUNDS(type) ((type) == INT8)
#else
#define ROUNDS(type) 0
#endif

typedef struct {
    const void *weight; /* (O, I) */
    const float *bias;  /* (O,), or NULL */
    const float *scale; /* (O,), or NULL */
    int64_t outputs, inputs;
} Linear;

static int group_size(int64_t n_rows) { return n_rows > 4 ? 8 : n_rows > 2 ? 4 : (int)n_rows; }

/* Return the number of rows with those that fill up the last group. */
int64_t padded_rows(int64_t n_rows) {
    int64_t group = group_size(n_rows);
    return (n_rows + group - 1) / group * group;
}

/* Inputs of a layer are stored in groups of rows, so that the 16 numbers of all rows of a group are side by side. */
typedef struct {
    int64_t n_rows, n_inputs;
    int group; /* rows of a group: 1, 2, 4 or 8; the last group is filled up */
    float *numbers;
    float *rounded; /* `rounded_room` for each thread */
} Inputs;

INLINE float *input_at(const Inputs *x, int64_t row, int64_t index) {
    int64_t start = row / x->group * x->group * x->n_inputs;
    return x->numbers + start + (index / LANES * x->group + row % x->group) * LANES;
}

/* Request weights into the second cache. Requests into the first one occupy the few buffers in which a core waits for memory. */
INLINE void request(const void *weights) { __builtin_prefetch(weights, 0, 2); }

/* Return how many numbers a thread needs for rounded inputs: a step for each row, and two bytes for each input. */
static int64_t rounded_room(int type, int64_t n_padded, int64_t n_inputs) {
    return ROUNDS(type) ? (n_padded + LANES - 1) / LANES * LANES + n_padded * n_inputs / 2 : 0;
}

#if defined(__AVX512VNNI__)

/* Round the numbers of each row to 16 bits, as multiples of a step of the row. The integers have an offset of 32,768 and are stored as
   high and low bytes. The bytes of all rows of a group are side by side, 64 inputs at a time. */
static uint8_t *round_inputs(const Inputs *x, float *steps) {
    int64_t I = x->n_inputs, group = x->group, n_padded = padded_rows(x->n_rows);
    uint8_t *bytes = (uint8_t *)(steps + (n_padded + LANES - 1) / LANES * LANES);
    for (int64_t row = 0; row < x->n_rows; row++) {
        __m512i largest = _mm512_setzero_si512(); /* the bits of NaN are larger than those of any number */
        for (int64_t i = 0; i < I; i += LANES)
            largest = _mm512_max_epi32(largest, _mm512_and_si512((__m512i)load(input_at(x, row, i)), _mm512_set1_epi32(0x7fffffff)));
        int32_t bits = _mm512_reduce_max_epi32(largest);
        float size;
        memcpy(&size, &bits, sizeof size);
        float step = size > 3.9e-34f ? size / 32767.0f : 1.2e-38f, factor = 1.0f / step; /* never a subnormal number */
        steps[row] = isfinite(size) ? step : NAN;
        for (int64_t i = 0; i < I; i += LANES) {
            int64_t chunk = row / group * group * I + i / CHUNK * CHUNK * group;
            uint8_t *high = bytes + chunk * 2 + row % group * 2 * CHUNK + i % CHUNK;
            __m512i number = _mm512_cvtps_epi32((__m512)(load(input_at(x, row, i)) * factor));
            number = _mm512_add_epi32(number, _mm512_set1_epi32(32768));
            _mm_storeu_si128((__m128i *)high, _mm512_cvtepi32_epi8(_mm512_srli_epi32(number, 8)));
            _mm_storeu_si128((__m128i *)(high + CHUNK), _mm512_cvtepi32_epi8(number));
        }
    }
    return bytes;
}

/* Compute `dot` with rounded inputs. The sums of integers are exact: 16 sums of 64 products each fit into 32 bits. */
INLINE void integer_dot(int group, const int8_t *weight, const uint8_t *x, const float *steps, int64_t n_inputs, int64_t ahead, float *out,
                        int64_t out_stride) {
    __m512i high[MAX_ROWS], low[MAX_ROWS], weights = _mm512_setzero_si512();
    UNROLL for (int r = 0; r < group; r++) high[r] = low[r] = _mm512_setzero_si512();
    for (int64_t i = 0; i < n_inputs; i += CHUNK) {
        __m512i w = _mm512_loadu_si512(weight + i);
        const uint8_t *bytes = x + i * group * 2;
        weights = _mm512_dpbusd_epi32(weights, _mm512_set1_epi8(1), w);
        UNROLL for (int r = 0; r < group; r++) {
            high[r] = _mm512_dpbusd_epi32(high[r], _mm512_loadu_si512(bytes + r * 2 * CHUNK), w);
            low[r] = _mm512_dpbusd_epi32(low[r], _mm512_loadu_si512(bytes + (r * 2 + 1) * CHUNK), w);
        }
        request(weight + i + ahead);
    }
    UNROLL for (int r = 0; r < group; r++) {
        __m512i signed_high = _mm512_sub_epi32(high[r], _mm512_slli_epi32(weights, 7)); /* without the offset */
        __m512i total = _mm512_add_epi32(_mm512_slli_epi32(signed_high, 8), low[r]);
        out[r * out_stride] += sum((floats)_mm512_cvtepi32_ps(total)) * steps[r];
    }
}

#endif

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
                    request((const char *)weight + i * (type == FP32 ? 4 : type == BF16 ? 2 : 1) + ahead + line);
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
#if defined(__AVX512VNNI__)
    float *steps = ROUNDS(type) ? x->rounded + omp_get_thread_num() * rounded_room(type, padded_rows(x->n_rows), I) : NULL;
    uint8_t *bytes = ROUNDS(type) ? round_inputs(x, steps) : NULL;
#endif
    for (int64_t first = 0; first < n_blocks; first += together)
        for (int64_t o = from; o < to; o++)
            for (int64_t block = first; block < first + together; block++) {
                int64_t start = block * INPUT_BLOCK, n = I - start < INPUT_BLOCK ? I - start : INPUT_BLOCK;
                int64_t rows_ahead = (PREFETCH_BYTES + n * size - 1) / (n * size);
                int64_t ahead = together == n_blocks ? PREFETCH_BYTES : rows_ahead * I * size;
                const char *weight = (const char *)layer->weight + (o * I + start) * size;
                for (int64_t row = 0; row < x->n_rows; row += group) {
#if defined(__AVX512VNNI__)
                    if (ROUNDS(type)) {
                        integer_dot(group, (const int8_t *)weight, bytes + (row * I + start * group) * 2, steps + row, n, ahead,
                                    out + row * O + o, O);
                        continue;
                    }
#endif
                    dot(type, group, chains, weight, input_at(x, row, start), n, ahead, out + row * O + o, O);
                }
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

