// Vectors of LANES fp32 values, and their loads and stores as fp32 or bf16.
//
// LANES fills a register of the processor: GCC computes comparisons and conversions of wider vectors value by value, and
// keeps their results in memory. The tests set fewer.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__SSE__)
#include <xmmintrin.h>
#endif

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
struct bf16 { uint16_t bits; };

static inline Vec load(const float* from) {
    Vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, Vec value) { memcpy(to, &value, sizeof value); }

static inline Vec load(const bf16* from) {
    Halves half;
    memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, Bits) << 16);
}

// Rounds to nearest even; NaN stays NaN.
static inline void store(bf16* to, Vec value) {
#if defined(__AVX512BF16__) && LANES == 16
    __m256bh half = _mm512_cvtneps_pbh((__m512)value);
#else
    Bits bits = (Bits)value;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Halves half = __builtin_convertvector(value == value ? rounded : rounded * 0 + 0x7fc0, Halves);
#endif
    memcpy(to, &half, sizeof half);
}

static inline float load1(const float* from) { return *from; }
static inline float load1(const bf16* from) {
    uint32_t bits = (uint32_t)from->bits << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline void store1(float* to, float value) { *to = value; }
static inline void store1(bf16* to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    to->bits = value == value ? (bits + 0x7fff + ((bits >> 16) & 1)) >> 16 : 0x7fc0;
}

static inline Vec splat(float value) { return value - Vec{}; }

// The larger and the smaller of both; the second where one is NaN.
#if defined(__AVX512F__) && LANES == 16
static inline Vec maximum(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline Vec minimum(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__) && LANES == 8
static inline Vec maximum(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline Vec minimum(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE__) && LANES == 4
static inline Vec maximum(Vec a, Vec b) { return (Vec)_mm_max_ps((__m128)a, (__m128)b); }
static inline Vec minimum(Vec a, Vec b) { return (Vec)_mm_min_ps((__m128)a, (__m128)b); }
#else
static inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
static inline Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
#endif

// Adds the halves, and those of the result, and so on.
static inline float sum(Vec value) {
    float values[LANES];
    memcpy(values, &value, sizeof value);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) values[i] += values[i + width];
    return values[0];
}

#if defined(__clang__) || __GNUC__ >= 12
template <int width, int... lane>
static inline Vec merged(Vec a, Vec b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (lane & width ? LANES + lane - width : lane)...)
        + __builtin_shufflevector(a, b, (lane & width ? LANES + lane : lane + width)...);
}

// Lane i is the sum of values[i], for half of the vectors at a time; overwrites them.
template <int width = LANES / 2>
static inline Vec sums(Vec* values) {
    for (int i = 0; i < width; i++)
        values[i] = merged<width>(values[i], values[i + width], std::make_integer_sequence<int, LANES>());
    if constexpr (width > 1) return sums<width / 2>(values);
    return values[0];
}
#else
static inline Vec sums(const Vec* values) {
    Vec result;
    for (int i = 0; i < LANES; i++) result[i] = sum(values[i]);
    return result;
}
#endif

static inline float largest(Vec value) {
    float most = value[0];
    for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
    return most;
}

// exp with a relative error of 2e-7 (the polynomial is that of Cephes), for x within −87 … 88 and for the nearest of
// these elsewhere. NaN stays NaN.
static inline Vec exp(Vec x) {
    x = minimum(splat(88.0f), maximum(splat(-87.0f), x));
    // The sum's lowest bits are n + 127 with n = round(x / ln 2): the exponent of 2^n.
    Vec shifted = x * 1.44269504f + 12583039.0f;
    Vec n = shifted - 12583039.0f;
    Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * (Vec)((Bits)shifted << 23);
}

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// log(1 + y) for 0 ≤ y ≤ 1: 2·artanh(s) = 2·(s + s³/3 + …) with s = y / (2 + y) ≤ 1/3, with a relative error of 2e-7.
static inline Vec log1p(Vec y) {
    Vec s = y / (2.0f + y), square = s * s;
    Vec p = splat(1.0f / 13);
    p = p * square + 1.0f / 11;
    p = p * square + 1.0f / 9;
    p = p * square + 1.0f / 7;
    p = p * square + 1.0f / 5;
    p = p * square + 1.0f / 3;
    return 2.0f * s * (p * square + 1.0f);
}

static inline Vec softplus(Vec x) {
    Vec magnitude = x < 0.0f ? -x : x;
    return (x < 0.0f ? splat(0.0f) : x) + log1p(exp(-magnitude));
}
