/* Vectors of 16 numbers, which the compiler divides where registers are shorter. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
typedef int8_t bytes __attribute__((vector_size(16)));

enum { FP32, BF16, INT8 };

INLINE floats load(const float *numbers) {
    floats v;
    memcpy(&v, numbers, sizeof v);
    return v;
}

INLINE void store(float *numbers, floats v) { memcpy(numbers, &v, sizeof v); }

INLINE floats load_as(int type, const void *numbers, int64_t index) {
    if (type == FP32) return load((const float *)numbers + index);
    if (type == BF16) {
        halves h;
        memcpy(&h, (const uint16_t *)numbers + index, sizeof h);
        words bits = __builtin_convertvector(h, words) << 16;
        return (floats)bits;
    }
#if defined(__AVX512F__)
    __m128i b = _mm_loadu_si128((const __m128i *)((const int8_t *)numbers + index));
    return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b));
#else
    bytes b;
    memcpy(&b, (const int8_t *)numbers + index, sizeof b);
    return __builtin_convertvector(b, floats);
#endif
}

/* Add up the numbers of a vector by halves, in the same order on all processors. */
INLINE float sum(floats v) {
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    eight low8, high8;
    memcpy(&low8, &v, sizeof low8);
    memcpy(&high8, (const char *)&v + sizeof low8, sizeof high8);
    low8 += high8;
    four low4, high4;
    memcpy(&low4, &low8, sizeof low4);
    memcpy(&high4, (const char *)&low8 + sizeof low4, sizeof high4);
    low4 += high4;
    return (low4[0] + low4[2]) + (low4[1] + low4[3]);
}

/* Return the numbers of yes where a comparison holds, and those of no elsewhere. */
INLINE floats choose(ints holds, floats yes, floats no) { return (floats)((holds & (ints)yes) | (~holds & (ints)no)); }

INLINE floats exp_of(floats x) {
    /* Source: the polynomial of Cephes' expf; the exponent is written into the bits. */
    floats bounded = choose(x < -87.0f, (floats){0} - 87.0f, x);
    bounded = choose(bounded > 88.0f, (floats){0} + 88.0f, bounded);
    floats shifted = bounded * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    floats r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    floats p = ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) * r +
                1.6666665459e-1f) * r + 5.0000001201e-1f;
    ints bits = (ints)(p * r * r + r + 1.0f) + ((ints)shifted << 23);
    return choose(x != x, x, (floats)bits);
}

/* Return the bf16 number that is nearest to each number. */
INLINE halves to_bf16(floats v) {
#if defined(__AVX512BF16__)
    return (halves)_mm512_cvtneps_pbh((__m512)v);
#else
    words bits = (words)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    ints is_nan = v != v;
    return __builtin_convertvector((words)((is_nan & 0x7fc0) | (~is_nan & (ints)rounded)), halves);
#endif
}

INLINE void store_as(int type, void *numbers, int64_t index, floats v) {
    if (type == FP32) {
        store((float *)numbers + index, v);
        return;
    }
    halves h = to_bf16(v);
    memcpy((uint16_t *)numbers + index, &h, sizeof h);
}

/* Return 2 to the power of x, with a relative error of at most 3e-7; x is taken as at least -150 and at most 126. Without AVX-512, x is
   taken as at least -125, and the error grows to 4e-6 at the ends. */
INLINE floats power_of_two(floats x) {
#if defined(__AVX512F__)
    __m512 bounded = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_max_ps(_mm512_set1_ps(-150.0f), (__m512)x));
    __m512 n = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    floats f = (floats)_mm512_sub_ps(bounded, n);
    /* The polynomial has the smallest relative error of its degree between -0.5 and 0.5. */
    floats p = ((((1.327647144e-3f * f + 9.675541330e-3f) * f + 5.550713275e-2f) * f + 2.402211972e-1f) * f + 6.931469671e-1f) * f +
               1.000000072f;
    return (floats)_mm512_scalef_ps((__m512)p, n);
#else
    return exp_of(x * 0.6931471806f);
#endif
}

/* Return 1 / x for x of at least 1. */
INLINE floats reciprocal(floats x) {
#if defined(__AVX512F__)
    floats r = (floats)_mm512_rcp14_ps((__m512)x);
    return r * (2.0f - x * r);
#else
    return 1.0f / x;
#endif
}

/* Return the larger number of each pair, or y where x is not a number. */
INLINE floats larger(floats x, floats y) {
#if defined(__AVX512F__)
    return (floats)_mm512_max_ps((__m512)x, (__m512)y);
#else
    return choose(x > y, x, y);
#endif
}
