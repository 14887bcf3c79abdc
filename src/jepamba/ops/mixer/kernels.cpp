// The mixer between its two projections, forward and backward: convolution with SiLU, recurrence, gated norm.
//
// Compiled for one head dimension P and state size N. One call runs over the sequences of a batch in parallel; each
// sequence is computed by one thread, so results do not depend on the number of threads.
//
// Names as in `ops/mixer/pytorch.py`. Within a sequence, states are stored as (H, N, P), so that all products with a
// state are over vectors of P. u is the convolution before SiLU.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>
#include "vectors.h"

constexpr int K = P / LANES;  // vectors of a head
constexpr int CHUNK = 32;     // tokens between two saved states

// Memory without initial values.
template <class Value = float>
static std::unique_ptr<Value[]> unwritten(int64_t size) { return std::unique_ptr<Value[]>(new Value[size]); }

struct Sizes {
    int64_t batch, tokens, heads, groups, taps, row;  // row: columns of `projected`
    int64_t inner() const { return heads * P; }
    int64_t channels() const { return heads * P + 2 * groups * N; }
    int64_t chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
    int64_t state() const { return heads * N * P; }
};

struct Weights {
    const float *kernel_WC, *bias_C, *dt_bias_H, *A_H, *D_H, *norm_I;
    float eps;
};

struct Before {  // null at the start of a stream
    const float *history_BWC, *state_BHNP;
    const bool* reset_BT;
};

// The inputs of the convolution as fp32, after the history; and how many of the last taps each token reads.
struct Inputs {
    std::unique_ptr<float[]> raw;
    std::vector<int> taps;
};

template <class T>
static Inputs read_inputs(const Sizes& s, const T* projected, const Before& before, int64_t b) {
    const int64_t C = s.channels(), W1 = s.taps - 1;
    Inputs in{unwritten((W1 + s.tokens) * C), std::vector<int>(s.tokens)};
    if (before.history_BWC) std::copy_n(before.history_BWC + b * W1 * C, W1 * C, in.raw.get());
    else std::fill_n(in.raw.get(), W1 * C, 0.0f);
    int since = s.taps;
    for (int64_t t = 0; t < s.tokens; t++) {
        const T* row = projected + (b * s.tokens + t) * s.row + s.inner();
        for (int64_t c = 0; c < C; c += LANES) store(&in.raw[(W1 + t) * C + c], load(row + c));
        bool reset = before.reset_BT && before.reset_BT[b * s.tokens + t];
        since = reset ? 1 : std::min<int>(since + 1, s.taps);
        in.taps[t] = since;
    }
    return in;
}

static inline Vec convolution(const Sizes& s, const Weights& w, const Inputs& in, int64_t t, int64_t c) {
    const int64_t C = s.channels(), last = s.taps - 1;
    Vec u = load(w.bias_C + c);
    for (int k = 0; k < in.taps[t]; k++)
        u += load(w.kernel_WC + (last - k) * C + c) * load(&in.raw[(last + t - k) * C + c]);
    return u;
}

// Of each token and head of a sequence: dt, its derivative, and the decay exp(dt·A), 0 where the state is reset.
struct Steps {
    std::vector<float> dt, slope, decay;
};

template <class T>
static Steps read_steps(const Sizes& s, const Weights& w, const Before& before, const T* projected, int64_t b) {
    const int64_t size = s.tokens * s.heads, padded = (size + LANES - 1) / LANES * LANES;
    Steps steps{std::vector<float>(padded), std::vector<float>(padded), std::vector<float>(padded)};
    for (int64_t t = 0; t < s.tokens; t++)
        for (int64_t h = 0; h < s.heads; h++) {
            const T* row = projected + (b * s.tokens + t) * s.row;
            steps.dt[t * s.heads + h] = load1(row + s.inner() + s.channels() + h) + w.dt_bias_H[h];
            steps.decay[t * s.heads + h] = w.A_H[h];
        }
    for (int64_t i = 0; i < padded; i += LANES) {
        Vec raw = load(&steps.dt[i]), dt = softplus(raw);
        store(&steps.dt[i], dt);
        store(&steps.slope[i], sigmoid(raw));
        store(&steps.decay[i], exp(dt * load(&steps.decay[i])));
    }
    for (int64_t t = 0; before.reset_BT && t < s.tokens; t++)
        if (before.reset_BT[b * s.tokens + t]) std::fill_n(&steps.decay[t * s.heads], s.heads, 0.0f);
    return steps;
}

template <class T>
static void forward(
    const Sizes& s, const Weights& w, const Before& before, const T* projected, T* out_BTI, float* y_BTI,
    float* starts, float* final_BHNP
) {
    const int64_t I = s.inner(), C = s.channels();
#pragma omp parallel for
    for (int64_t b = 0; b < s.batch; b++) {
        const Inputs in = read_inputs(s, projected, before, b);
        const Steps steps = read_steps(s, w, before, projected, b);
        std::vector<float> xBC(C);
        float* state = final_BHNP + b * s.state();
        if (before.state_BHNP) std::copy_n(before.state_BHNP + b * s.state(), s.state(), state);
        else std::fill_n(state, s.state(), 0.0f);
        for (int64_t t = 0; t < s.tokens; t++) {
            if (t % CHUNK == 0) std::copy_n(state, s.state(), starts + (b * s.chunks() + t / CHUNK) * s.state());
            const int64_t bt = b * s.tokens + t;
            const T* row = projected + bt * s.row;
            float* y_I = y_BTI + bt * I;
            for (int64_t c = 0; c < C; c += LANES) {
                Vec u = convolution(s, w, in, t, c);
                store(&xBC[c], u * sigmoid(u));
            }
            for (int64_t h = 0; h < s.heads; h++) {
                const float dt = steps.dt[t * s.heads + h], decay = steps.decay[t * s.heads + h];
                const float* B = &xBC[I + h / (s.heads / s.groups) * N];
                const float* C_ = B + s.groups * N;
                float* h_NP = state + h * N * P;
                Vec y[K], xdt[K];
                for (int k = 0; k < K; k++) {
                    Vec x = load(&xBC[h * P + k * LANES]);
                    xdt[k] = x * dt;
                    y[k] = x * w.D_H[h];
                }
                for (int n = 0; n < N; n++)
                    for (int k = 0; k < K; k++) {
                        Vec value = load(h_NP + n * P + k * LANES) * decay + xdt[k] * B[n];
                        store(h_NP + n * P + k * LANES, value);
                        y[k] += value * C_[n];
                    }
                for (int k = 0; k < K; k++) store(y_I + h * P + k * LANES, y[k]);
            }
            Vec squares{};
            for (int64_t i = 0; i < I; i += LANES) {
                Vec z = load(row + i), gated = load(y_I + i) * z * sigmoid(z);
                squares += gated * gated;
                store(&xBC[i], gated);
            }
            const float scale = 1.0f / sqrtf(sum(squares) / I + w.eps);
            for (int64_t i = 0; i < I; i += LANES)
                store(out_BTI + bt * I + i, load(&xBC[i]) * scale * load(w.norm_I + i));
        }
    }
}

struct Grads {  // of the weights, for each sequence
    float *kernel_BWC, *bias_BC, *dt_bias_BH, *A_BH, *D_BH, *norm_BI;
};

// The gradients of y, z and the norm's weight of one token.
template <class T>
static void gated_norm_backward(
    int64_t I, const Weights& w, const T* z_I, const float* y_I, const T* dout_I, float* dy_I, T* dz_I, float* dnorm_I
) {
    Vec squares{}, dots{};
    for (int64_t i = 0; i < I; i += LANES) {
        Vec z = load(z_I + i), gate = sigmoid(z), gated = load(y_I + i) * z * gate;
        store(dy_I + i, gate);
        squares += gated * gated;
        dots += gated * load(dout_I + i) * load(w.norm_I + i);
    }
    const float scale = 1.0f / sqrtf(sum(squares) / I + w.eps), mean = sum(dots) * scale * scale / I;
    for (int64_t i = 0; i < I; i += LANES) {
        Vec z = load(z_I + i), y = load(y_I + i), gate = load(dy_I + i), gated = y * z * gate, dout = load(dout_I + i);
        store(dnorm_I + i, load(dnorm_I + i) + dout * gated * scale);
        Vec dgated = (dout * load(w.norm_I + i) - gated * mean) * scale;
        store(dy_I + i, dgated * z * gate);
        store(dz_I + i, dgated * y * gate * (1.0f + z * (1.0f - gate)));
    }
}

// The states of one head after each token of a chunk, from the state before it.
static void chunk_states(
    int64_t count, const float* dt, const float* decay, int64_t heads, const float* x, const float* B, int64_t C,
    float* h_LNP
) {
    for (int64_t j = 0; j < count; j++, h_LNP += N * P) {
        Vec xdt[K];
        for (int k = 0; k < K; k++) xdt[k] = load(x + j * C + k * LANES) * dt[j * heads];
        for (int n = 0; n < N; n++)
            for (int k = 0; k < K; k++) {
                const int64_t at = n * P + k * LANES;
                store(h_LNP + N * P + at, load(h_LNP + at) * decay[j * heads] + xdt[k] * B[j * C + n]);
            }
    }
}

template <class T>
static void backward(
    const Sizes& s, const Weights& w, const Before& before, const T* projected, const float* y_BTI,
    const float* starts, const T* dout_BTI, const float* dfinal_BHNP, T* dprojected, const Grads& grads
) {
    const int64_t I = s.inner(), C = s.channels(), W1 = s.taps - 1, H = s.heads, GN = s.groups * N;
#pragma omp parallel for
    for (int64_t b = 0; b < s.batch; b++) {
        const Inputs in = read_inputs(s, projected, before, b);
        const Steps steps = read_steps(s, w, before, projected, b);
        auto xBC = unwritten(s.tokens * C), slope = unwritten(s.tokens * C), du = unwritten(s.tokens * C);
        auto dy = unwritten(s.tokens * I), states = unwritten((CHUNK + 1) * N * P);
        auto dBC = unwritten<Vec>(CHUNK * 2 * GN);  // gradients of B and C, to be summed over the lanes
        std::vector<float> dstate(s.state());
        if (dfinal_BHNP) std::copy_n(dfinal_BHNP + b * s.state(), s.state(), dstate.begin());
        for (int64_t t = 0; t < s.tokens; t++) {
            const int64_t bt = b * s.tokens + t;
            for (int64_t c = 0; c < C; c += LANES) {
                Vec u = convolution(s, w, in, t, c), gate = sigmoid(u);
                store(&xBC[t * C + c], u * gate);
                store(&slope[t * C + c], gate * (1.0f + u * (1.0f - gate)));
            }
            gated_norm_backward(
                I, w, projected + bt * s.row, y_BTI + bt * I, dout_BTI + bt * I, &dy[t * I], dprojected + bt * s.row,
                grads.norm_BI + b * I
            );
        }
        for (int64_t chunk = s.chunks() - 1; chunk >= 0; chunk--) {
            const int64_t first = chunk * CHUNK, count = std::min<int64_t>(CHUNK, s.tokens - first);
            for (int64_t h = 0; h < H; h++) {
                const int64_t group = h / (H / s.groups) * N;
                std::copy_n(starts + ((b * s.chunks() + chunk) * H + h) * N * P, N * P, states.get());
                chunk_states(
                    count, &steps.dt[first * H + h], &steps.decay[first * H + h], H, &xBC[first * C + h * P],
                    &xBC[first * C + I + group], C, states.get()
                );
                float* dh_NP = &dstate[h * N * P];
                float dA = 0, dD = 0, ddt_bias = 0;
                const bool first_of_group = h % (H / s.groups) == 0;
                for (int64_t j = count - 1; j >= 0; j--) {
                    const int64_t t = first + j;
                    const float dt = steps.dt[t * H + h], decay = steps.decay[t * H + h];
                    const float *B = &xBC[t * C + I + group], *C_ = B + GN;
                    const float *h_NP = &states[(j + 1) * N * P], *before_NP = h_NP - N * P;
                    Vec dy_[K], xdt[K], dxdt[K] = {}, ddecay{};
                    for (int k = 0; k < K; k++) {
                        dy_[k] = load(&dy[t * I + h * P + k * LANES]);
                        xdt[k] = load(&xBC[t * C + h * P + k * LANES]) * dt;
                    }
                    for (int n = 0; n < N; n++) {
                        Vec dB{}, dC{};
                        for (int k = 0; k < K; k++) {
                            const int64_t at = n * P + k * LANES;
                            Vec dh = load(dh_NP + at) + dy_[k] * C_[n];
                            dC += dy_[k] * load(h_NP + at);
                            dB += dh * xdt[k];
                            dxdt[k] += dh * B[n];
                            ddecay += dh * load(before_NP + at);
                            store(dh_NP + at, dh * decay);
                        }
                        Vec* sums = &dBC[j * 2 * GN + group + n];
                        sums[0] = first_of_group ? dB : sums[0] + dB;
                        sums[GN] = first_of_group ? dC : sums[GN] + dC;
                    }
                    const float dlog = sum(ddecay) * decay;  // of dt·A
                    Vec ddt{}, dD_{};
                    for (int k = 0; k < K; k++) {
                        Vec x = load(&xBC[t * C + h * P + k * LANES]);
                        ddt += dxdt[k] * x;
                        dD_ += dy_[k] * x;
                        store(&du[t * C + h * P + k * LANES], dxdt[k] * dt + dy_[k] * w.D_H[h]);
                    }
                    const float draw = (sum(ddt) + dlog * w.A_H[h]) * steps.slope[t * H + h];
                    dA += dlog * dt;
                    dD += sum(dD_);
                    ddt_bias += draw;
                    store1(dprojected + (b * s.tokens + t) * s.row + I + C + h, draw);
                }
                grads.A_BH[b * H + h] += dA;
                grads.D_BH[b * H + h] += dD;
                grads.dt_bias_BH[b * H + h] += ddt_bias;
            }
            for (int64_t j = 0; j < count; j++)
                for (int64_t i = 0; i < 2 * GN; i += LANES)
                    store(&du[(first + j) * C + I + i], sums(&dBC[j * 2 * GN + i]));
        }
        float *dkernel = grads.kernel_BWC + b * s.taps * C, *dbias = grads.bias_BC + b * C;
        for (int64_t t = 0; t < s.tokens; t++)
            for (int64_t c = 0; c < C; c += LANES) {
                Vec value = load(&du[t * C + c]) * load(&slope[t * C + c]);
                store(&du[t * C + c], value);
                store(dbias + c, load(dbias + c) + value);
                for (int k = 0; k < in.taps[t]; k++) {
                    float* to = dkernel + (W1 - k) * C + c;
                    store(to, load(to) + value * load(&in.raw[(W1 + t - k) * C + c]));
                }
            }
        for (int64_t t = 0; t < s.tokens; t++)
            for (int64_t c = 0; c < C; c += LANES) {
                Vec draw{};
                for (int64_t k = 0; k < s.taps && t + k < s.tokens && k < in.taps[t + k]; k++)
                    draw += load(w.kernel_WC + (W1 - k) * C + c) * load(&du[(t + k) * C + c]);
                store(dprojected + (b * s.tokens + t) * s.row + I + c, draw);
            }
    }
}

#define EXPORT(T)                                                                                                      \
    extern "C" void mixer_forward_##T(                                                                                 \
        const Sizes* s, const Weights* w, const Before* before, const T* projected, T* out, float* y, float* starts,   \
        float* final_                                                                                                  \
    ) { forward<T>(*s, *w, *before, projected, out, y, starts, final_); }                                              \
    extern "C" void mixer_backward_##T(                                                                                \
        const Sizes* s, const Weights* w, const Before* before, const T* projected, const float* y,                    \
        const float* starts, const T* dout, const float* dfinal, T* dprojected, const Grads* grads                     \
    ) { backward<T>(*s, *w, *before, projected, y, starts, dout, dfinal, dprojected, *grads); }
EXPORT(float)
EXPORT(bf16)
