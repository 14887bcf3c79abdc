// Vectors of 16 fp32 values, which GCC and Clang map to the registers of any CPU, and their loads and stores as fp32 or
// bf16.
#pragma once
#include <cstdint>
#include <cstring>

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
    Bits bits = (Bits)value;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Halves half = __builtin_convertvector(value == value ? rounded : rounded * 0 + 0x7fc0, Halves);
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

static inline float largest(Vec value) {
    float most = value[0];
    for (int i = 1; i < LANES; i++) most = value[i] > most ? value[i] : most;
    return most;
}

// exp with a relative error of 2e-7 (the polynomial is that of Cephes), for x within −87 … 88 and for the nearest of
// these elsewhere. NaN stays NaN.
static inline Vec exp(Vec x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 88.0f ? splat(88.0f) : x;
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
