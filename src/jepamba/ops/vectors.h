// Vectors of 16 fp32 values, which GCC and Clang map to the registers of any CPU, and their loads and stores as fp32 or
// bf16.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX__
#include <immintrin.h>
#endif

constexpr int LANES = 16;
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
#ifdef __AVX512BF16__
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

// The larger of both; the second where one is NaN.
static inline Vec maximum(Vec a, Vec b) {
#ifdef __AVX512F__
    return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    __m256 x[2], y[2];
    memcpy(x, &a, sizeof a), memcpy(y, &b, sizeof b);
    x[0] = _mm256_max_ps(x[0], y[0]), x[1] = _mm256_max_ps(x[1], y[1]);
    memcpy(&a, x, sizeof a);
    return a;
#else
    return a > b ? a : b;
#endif
}

static inline Vec minimum(Vec a, Vec b) {
#ifdef __AVX512F__
    return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    __m256 x[2], y[2];
    memcpy(x, &a, sizeof a), memcpy(y, &b, sizeof b);
    x[0] = _mm256_min_ps(x[0], y[0]), x[1] = _mm256_min_ps(x[1], y[1]);
    memcpy(&a, x, sizeof a);
    return a;
#else
    return a < b ? a : b;
#endif
}

static inline float sum(Vec value) {
    typedef float Half __attribute__((vector_size(2 * LANES)));
    typedef float Quarter __attribute__((vector_size(LANES)));
    Half halves[2];
    memcpy(halves, &value, sizeof value);
    halves[0] += halves[1];
    Quarter quarters[2];
    memcpy(quarters, halves, sizeof quarters);
    quarters[0] += quarters[1];
    return (quarters[0][0] + quarters[0][2]) + (quarters[0][1] + quarters[0][3]);
}

// Lane i is the sum of values[i]; overwrites them.
static inline Vec sums(Vec* values) {
#if defined(__clang__) || __GNUC__ >= 12
#define MERGE(width)                                                                                                   \
    for (int i = 0; i < width; i++) {                                                                                  \
        const Vec a = values[i], b = values[i + width];                                                                \
        values[i] = __builtin_shufflevector(a, b, PICK(0, width), PICK(1, width), PICK(2, width), PICK(3, width),      \
            PICK(4, width), PICK(5, width), PICK(6, width), PICK(7, width), PICK(8, width), PICK(9, width),            \
            PICK(10, width), PICK(11, width), PICK(12, width), PICK(13, width), PICK(14, width), PICK(15, width))      \
            + __builtin_shufflevector(a, b, NEXT(0, width), NEXT(1, width), NEXT(2, width), NEXT(3, width),            \
            NEXT(4, width), NEXT(5, width), NEXT(6, width), NEXT(7, width), NEXT(8, width), NEXT(9, width),            \
            NEXT(10, width), NEXT(11, width), NEXT(12, width), NEXT(13, width), NEXT(14, width), NEXT(15, width));     \
    }
#define PICK(lane, width) ((lane) & (width) ? LANES + (lane) - (width) : (lane))
#define NEXT(lane, width) ((lane) & (width) ? LANES + (lane) : (lane) + (width))
    MERGE(8)
    MERGE(4)
    MERGE(2)
    MERGE(1)
    return values[0];
#else
    Vec result;
    for (int i = 0; i < LANES; i++) result[i] = sum(values[i]);
    return result;
#endif
}

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
