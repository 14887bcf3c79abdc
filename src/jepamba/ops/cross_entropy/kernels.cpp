// Losses of rows of raw logits, and their gradients in place of the logits; see `row_losses_torch`.
//
// n rows, V logits of a row (a multiple of LANES), K blocks of rows.
#include <algorithm>
#include <cmath>
#include <vector>
#include "vectors.h"

enum Kind { OFF, TANH, POLY };
constexpr int64_t BLOCK = 16;  // rows with one partial sum of the bias' gradient

struct Capped {
    Vec value, slope;
};

template <int kind>
static inline Capped softcap(Vec raw, float cap) {
    if (kind == OFF) return {raw, splat(1.0f)};
    Vec u = raw / cap;
    if (kind == TANH) {
        Vec unit = 1.0f - 2.0f / (exp(2.0f * u) + 1.0f);
        return {unit * cap, 1.0f - unit * unit};
    }
    u = u < -2.0f ? splat(-2.0f) : u;
    u = u > 2.0f ? splat(2.0f) : u;
    Vec square = u * u, unit = u * (1.0f - square / 3.0f + square * square / 15.0f);
    Vec slope = 1.0f - square + square * square / 3.0f;
    slope = unit < 1.0f && unit > -1.0f ? slope : splat(0.0f);
    unit = unit < -1.0f ? splat(-1.0f) : unit;
    unit = unit > 1.0f ? splat(1.0f) : unit;
    return {unit * cap, slope};
}

template <class T, int kind>
static void row_losses(
    int64_t rows, int64_t V, float cap, float z_weight, float scale, T* raw_nV, const float* bias_V,
    const int64_t* targets_n, float* ce_n, float* lse_n, float* dbias_KV
) {
#pragma omp parallel for
    for (int64_t block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        std::vector<float> values(V);
        float* dbias_V = dbias_KV + block * V;
        std::fill_n(dbias_V, V, 0.0f);
        for (int64_t row = block * BLOCK; row < std::min(rows, (block + 1) * BLOCK); row++) {
            T* raw = raw_nV + row * V;
            Vec most = splat(-INFINITY), total{};
            for (int64_t v = 0; v < V; v += LANES) {
                Vec value = softcap<kind>(load(raw + v) + load(bias_V + v), cap).value;
                store(&values[v], value);
                most = maximum(value, most);
            }
            const int64_t target = targets_n[row];
            const float shift = largest(most), logit = values[target];
            for (int64_t v = 0; v < V; v += LANES) {
                Vec value = exp(load(&values[v]) - shift);
                store(&values[v], value);
                total += value;
            }
            lse_n[row] = shift + logf(sum(total));
            ce_n[row] = lse_n[row] - logit;
            // d ce = softmax − onehot;  d lse² = 2·lse·softmax.
            const float factor = (1.0f + 2.0f * z_weight * lse_n[row]) * scale / sum(total);
            values[target] -= scale / factor;
            for (int64_t v = 0; v < V; v += LANES) {
                Vec grad = load(&values[v]) * factor;
                if (kind != OFF) grad *= softcap<kind>(load(raw + v) + load(bias_V + v), cap).slope;
                store(raw + v, grad);
                store(dbias_V + v, load(dbias_V + v) + grad);
            }
        }
    }
}

#define EXPORT(T, kind)                                                                                                \
    extern "C" void row_losses_##kind##_##T(                                                                           \
        int64_t rows, int64_t V, float cap, float z_weight, float scale, T* raw, const float* bias,                    \
        const int64_t* targets, float* ce, float* lse, float* dbias                                                    \
    ) { row_losses<T, kind>(rows, V, cap, z_weight, scale, raw, bias, targets, ce, lse, dbias); }
EXPORT(float, OFF)
EXPORT(float, TANH)
EXPORT(float, POLY)
EXPORT(bf16, OFF)
EXPORT(bf16, TANH)
EXPORT(bf16, POLY)
