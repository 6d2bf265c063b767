/* The cross-entropy of each row of logits, and its gradient, in two or three passes over a row, which stays in a cache. And the sum of
   products in bf16.

   Shapes: N rows, V logits of a row. The logits are fp32 or bf16; what is computed from them is fp32. Each sum is added up in the same
   order however many threads there are. */

#include <omp.h>

#include "vectors.h"

#define LOG2_E 1.44269504089f
#define BLOCK 1024         /* logits that are added up before their sum is added to the row's */
#define FEWEST (1L << 15)  /* logits for which a second thread pays */

/* The functions are compiled for each dtype, and with and without bends: whether logits are bent to cap * tanh(logits / cap). */
typedef struct {
    const void *logits;
    int64_t n;
    float cap;
} Row;

/* Load the logits from an index on, with a number in place of those after the row's end. */
INLINE floats logits_at(int type, const Row *row, int64_t index, float after) {
    if (index + LANES <= row->n) return load_as(type, row->logits, index);
    char buffer[LANES * sizeof(float)] = {0};
    int64_t size = type == FP32 ? 4 : 2;
    memcpy(buffer, (const char *)row->logits + index * size, (row->n - index) * size);
    floats v = load_as(type, buffer, 0);
    for (int64_t lane = row->n - index; lane < LANES; lane++) v[lane] = after;
    return v;
}

/* Return (tanh(v / cap) + 1) / 2. */
INLINE floats bend(floats v, float cap) { return reciprocal(1.0f + power_of_two(v * (-2.0f * LOG2_E / cap))); }

INLINE float scalar_at(int type, const void *logits, int64_t index) {
    if (type == FP32) return ((const float *)logits)[index];
    uint32_t bits = (uint32_t)((const uint16_t *)logits)[index] << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Return the highest logit. Bent logits are between -cap and cap, so that no exponential of them overflows, and 0 serves as well. */
INLINE float highest_of(int type, int bends, const Row *row) {
    if (bends) return 0.0f;
    floats highest = (floats){0} - INFINITY;
    for (int64_t i = 0; i < row->n; i += LANES) {
        floats v = logits_at(type, row, i, -INFINITY);
        highest = larger(v, highest);
    }
    float best = highest[0];
    for (int lane = 1; lane < LANES; lane++) best = highest[lane] > best ? highest[lane] : best;
    return best;
}

/* Return the exponential of a logit minus the highest one. */
INLINE floats power(int bends, floats v, float cap, float highest) {
    if (!bends) return power_of_two((v - highest) * LOG2_E);
    return power_of_two(bend(v, cap) * (2.0f * LOG2_E * cap) - LOG2_E * cap);
}

/* Return the sum of the exponentials of the logits minus the highest one. */
INLINE float sum_of_powers(int type, int bends, const Row *row, float highest) {
    floats total = {0};
    for (int64_t start = 0; start < row->n; start += BLOCK) {
        int64_t end = start + BLOCK < row->n ? start + BLOCK : row->n, whole = end / LANES * LANES;
        floats part = {0};
        for (int64_t i = start; i < whole; i += LANES) part += power(bends, load_as(type, row->logits, i), row->cap, highest);
        if (whole < end) {
            floats last = power(bends, logits_at(type, row, whole, 0.0f), row->cap, highest);
            for (int64_t lane = end - whole; lane < LANES; lane++) last[lane] = 0.0f;
            part += last;
        }
        total += part;
    }
    return sum(total);
}

INLINE floats gradient(int bends, floats v, float cap, float highest, float scale) {
    floats p = power(bends, v, cap, highest) * scale;
    if (!bends) return p;
    floats bent = bend(v, cap);
    return p * (4.0f * bent * (1.0f - bent)); /* times the derivative of the tanh */
}

/* Return a row's loss. If d_logits is not NULL, write the gradient of weight times the loss there; it may be the logits' own memory. */
INLINE float row_loss(int type, int bends, const Row *row, int64_t target, float weight, void *d_logits) {
    float highest = highest_of(type, bends, row), total = sum_of_powers(type, bends, row, highest);
    floats at_target = (floats){0} + scalar_at(type, row->logits, target);
    float bent = bends ? bend(at_target, row->cap)[0] : 0.5f;
    float loss = logf(total) + highest - (bends ? row->cap * (2.0f * bent - 1.0f) : at_target[0]);
    if (!d_logits) return loss;
    float scale = weight / total;
    floats d_target = gradient(bends, at_target, row->cap, highest, scale) - weight * (4.0f * bent * (1.0f - bent));
    int64_t whole = row->n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        store_as(type, d_logits, i, gradient(bends, load_as(type, row->logits, i), row->cap, highest, scale));
    if (whole < row->n) {
        char last[LANES * sizeof(float)];
        int64_t size = type == FP32 ? 4 : 2;
        store_as(type, last, 0, gradient(bends, logits_at(type, row, whole, 0.0f), row->cap, highest, scale));
        memcpy((char *)d_logits + whole * size, last, (row->n - whole) * size);
    }
    char one[LANES * sizeof(float)];
    store_as(type, one, 0, d_target);
    memcpy((char *)d_logits + target * (type == FP32 ? 4 : 2), one, type == FP32 ? 4 : 2);
    return loss;
}

INLINE void rows_of(int type, int bends, char *logits, int64_t stride, int64_t n_rows, int64_t n, const int64_t *targets, const float *weights,
                    float cap, int with_gradient, float *losses, int64_t n_threads) {
    int64_t size = type == FP32 ? 4 : 2;
#pragma omp parallel for schedule(static) num_threads(n_threads) if (n_rows * n > FEWEST)
    for (int64_t r = 0; r < n_rows; r++) {
        char *start = logits + r * stride * size;
        if (weights[r] == 0.0f) {
            if (with_gradient) memset(start, 0, n * size);
            losses[r] = 0.0f;
            continue;
        }
        Row row = {start, n, cap};
        losses[r] = row_loss(type, bends, &row, targets[r], weights[r], with_gradient ? start : NULL);
    }
}

/* Compute the losses, (N,), of logits, (N, stride). A row whose weight is 0 has a loss and a gradient of 0. With gradients, replace the
   logits by those of the weighted sum of the losses. A cap of 0 does not bend the logits. */
void softmax_loss(int type, char *logits, int64_t stride, int64_t n_rows, int64_t n, const int64_t *targets, const float *weights,
                  float cap, int with_gradient, float *losses, int64_t n_threads) {
#define ROWS_OF(TYPE, BENDS) \
    rows_of(TYPE, BENDS, logits, stride, n_rows, n, targets, weights, cap, with_gradient, losses, n_threads)
    if (type == FP32 && cap == 0.0f) ROWS_OF(FP32, 0);
    else if (type == FP32) ROWS_OF(FP32, 1);
    else if (cap == 0.0f) ROWS_OF(BF16, 0);
    else ROWS_OF(BF16, 1);
}

/* Add bf16 numbers to fp32 ones, or replace them. */
void sum_products(const uint16_t *product, float *total, int64_t n, int is_first, int64_t n_threads) {
#pragma omp parallel for schedule(static) num_threads(n_threads) if (n > FEWEST)
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t end = start + BLOCK < n ? start + BLOCK : n;
        for (int64_t i = start; i < end; i++) {
            uint32_t bits = (uint32_t)product[i] << 16;
            float number;
            memcpy(&number, &bits, sizeof number);
            total[i] = is_first ? number : total[i] + number;
        }
    }
}
