// RMS norms with fused row-wise operations, forward and backward; see `ops/norms/pytorch.py`.
//
// N rows of D values (a multiple of LANES). Rows are computed in blocks, each with its own partial sums of the weights'
// gradients, so results do not depend on the number of threads. Pointers to optional tensors are null.
#include <algorithm>
#include <cmath>
#include "vectors.h"

constexpr int64_t BLOCK = 32;

template <class Row>
static void each_block(int64_t N, Row row) {
#pragma omp parallel for
    for (int64_t block = 0; block < (N + BLOCK - 1) / BLOCK; block++)
        for (int64_t n = block * BLOCK; n < std::min(N, (block + 1) * BLOCK); n++) row(n, block);
}

static inline float inverse_rms(Vec squares, int64_t D, float eps) { return 1.0f / sqrtf(sum(squares) / D + eps); }

template <class T>
static void add_norm(int64_t N, int64_t D, float eps, const T* x, const T* branch, T* total, T* normed) {
    each_block(N, [=](int64_t n, int64_t) {
        Vec squares{};
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            if (branch) store(total + at, load(x + at) + load(branch + at));
            Vec value = load(total + at);
            squares += value * value;
        }
        const float scale = inverse_rms(squares, D, eps);
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) store(normed + at, load(total + at) * scale);
    });
}

// dx = dtotal + the gradient of rms(total) · dnormed.
template <class T>
static void add_norm_backward(
    int64_t N, int64_t D, float eps, const T* total, const T* dtotal, const T* dnormed, T* dx
) {
    each_block(N, [=](int64_t n, int64_t) {
        Vec squares{}, dots{};
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec value = load(total + at);
            squares += value * value;
            dots += value * load(dnormed + at);
        }
        const float scale = inverse_rms(squares, D, eps), mean = sum(dots) / D * scale * scale;
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec grad = (load(dnormed + at) - load(total + at) * mean) * scale;
            store(dx + at, dtotal ? grad + load(dtotal + at) : grad);
        }
    });
}

// LANES values of mixed, which begin at `at`, in column d of their row.
template <class T>
static inline Vec mixed_at(
    const T* x, const T* x0, const float* mix_2D, const T* skip, const float* skip_D, int64_t D, int64_t at, int64_t d
) {
    Vec value = load(x + at);
    if (skip) value += load(skip_D + d) * load(skip + at);
    return load(mix_2D + d) * value + load(mix_2D + D + d) * load(x0 + at);
}

template <class T>
static void mix_norm(
    int64_t N, int64_t D, float eps, const T* x, const T* x0, const float* mix_2D, const T* skip, const float* skip_D,
    T* mixed, T* normed
) {
    each_block(N, [=](int64_t n, int64_t) {
        Vec squares{};
        for (int64_t d = 0; d < D; d += LANES) {
            Vec value = mixed_at(x, x0, mix_2D, skip, skip_D, D, n * D + d, d);
            store(mixed + n * D + d, value);
            squares += value * value;
        }
        const float scale = inverse_rms(squares, D, eps);
        for (int64_t d = 0; d < D; d += LANES)
            store(normed + n * D + d, mixed_at(x, x0, mix_2D, skip, skip_D, D, n * D + d, d) * scale);
    });
}

template <class T>
static void mix_norm_backward(
    int64_t N, int64_t D, float eps, const T* x, const T* x0, const float* mix_2D, const T* skip, const float* skip_D,
    const T* dmixed, const T* dnormed, const T* dx0_later, const T* dx_later, T* dx, T* dx0, T* dskip, float* sums_K3D
) {
    each_block(N, [=](int64_t n, int64_t block) {
        Vec squares{}, dots{};
        for (int64_t d = 0; d < D; d += LANES) {
            Vec value = mixed_at(x, x0, mix_2D, skip, skip_D, D, n * D + d, d);
            squares += value * value;
            dots += value * load(dnormed + n * D + d);
        }
        const float scale = inverse_rms(squares, D, eps), mean = sum(dots) / D * scale * scale;
        float* sums = sums_K3D + block * 3 * D;
        for (int64_t d = 0; d < D; d += LANES) {
            const int64_t at = n * D + d;
            Vec grad = (load(dnormed + at) - mixed_at(x, x0, mix_2D, skip, skip_D, D, at, d) * mean) * scale;
            if (dmixed) grad += load(dmixed + at);
            Vec value = load(x + at), through = load(mix_2D + d) * grad, early = load(mix_2D + D + d) * grad;
            if (skip) {
                value += load(skip_D + d) * load(skip + at);
                store(dskip + at, load(skip_D + d) * through);
                store(sums + 2 * D + d, load(sums + 2 * D + d) + through * load(skip + at));
            }
            store(sums + d, load(sums + d) + grad * value);
            store(sums + D + d, load(sums + D + d) + grad * load(x0 + at));
            store(dx + at, dx_later ? through + load(dx_later + at) : through);
            store(dx0 + at, dx0_later ? early + load(dx0_later + at) : early);
        }
    });
}

template <class T>
static void relu2_norm(int64_t N, int64_t D, float eps, const T* u, T* out) {
    each_block(N, [=](int64_t n, int64_t) {
        Vec squares{};
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec value = load(u + at), square = value < 0.0f ? splat(0.0f) : value * value;
            squares += square * square;
        }
        const float scale = inverse_rms(squares, D, eps);
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec value = load(u + at);
            store(out + at, value < 0.0f ? splat(0.0f) : value * value * scale);
        }
    });
}

template <class T>
static void relu2_norm_backward(int64_t N, int64_t D, float eps, const T* u, const T* dout, T* du) {
    each_block(N, [=](int64_t n, int64_t) {
        Vec squares{}, dots{};
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec value = load(u + at), square = value < 0.0f ? splat(0.0f) : value * value;
            squares += square * square;
            dots += square * load(dout + at);
        }
        const float scale = inverse_rms(squares, D, eps), mean = sum(dots) / D * scale * scale;
        for (int64_t at = n * D; at < (n + 1) * D; at += LANES) {
            Vec value = load(u + at), active = value < 0.0f ? splat(0.0f) : value;
            store(du + at, 2.0f * active * (load(dout + at) - active * active * mean) * scale);
        }
    });
}

#define EXPORT(T)                                                                                                      \
    extern "C" void add_norm_##T(int64_t N, int64_t D, float eps, const T* x, const T* branch, T* total, T* normed) {  \
        add_norm(N, D, eps, x, branch, total, normed);                                                                 \
    }                                                                                                                  \
    extern "C" void add_norm_backward_##T(                                                                             \
        int64_t N, int64_t D, float eps, const T* total, const T* dtotal, const T* dnormed, T* dx                      \
    ) { add_norm_backward(N, D, eps, total, dtotal, dnormed, dx); }                                                    \
    extern "C" void mix_norm_##T(                                                                                      \
        int64_t N, int64_t D, float eps, const T* x, const T* x0, const float* mix, const T* skip, const float* weight, \
        T* mixed, T* normed                                                                                            \
    ) { mix_norm(N, D, eps, x, x0, mix, skip, weight, mixed, normed); }                                                \
    extern "C" void mix_norm_backward_##T(                                                                             \
        int64_t N, int64_t D, float eps, const T* x, const T* x0, const float* mix, const T* skip, const float* weight, \
        const T* dmixed, const T* dnormed, const T* dx0_later, const T* dx_later, T* dx, T* dx0, T* dskip, float* sums \
    ) {                                                                                                                \
        mix_norm_backward(                                                                                             \
            N, D, eps, x, x0, mix, skip, weight, dmixed, dnormed, dx0_later, dx_later, dx, dx0, dskip, sums            \
        );                                                                                                             \
    }                                                                                                                  \
    extern "C" void relu2_norm_##T(int64_t N, int64_t D, float eps, const T* u, T* out) {                              \
        relu2_norm(N, D, eps, u, out);                                                                                 \
    }                                                                                                                  \
    extern "C" void relu2_norm_backward_##T(int64_t N, int64_t D, float eps, const T* u, const T* dout, T* du) {       \
        relu2_norm_backward(N, D, eps, u, dout, du);                                                                   \
    }
EXPORT(float)
EXPORT(bf16)
