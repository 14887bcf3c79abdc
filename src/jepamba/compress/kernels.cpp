// One token of 16 lanes through the model, and the range coder of the tokens that follow.
//
// Vectors hold the same value of all 16 lanes, and no operation mixes lanes, so the bits of a lane depend neither on the
// other lanes nor on threads. The file is compiled without contraction: a product is fused into a sum where the source
// says fma, and nowhere else. So they do not depend on the compiler or the instruction set either.
//
// Legend, as in compiled.py: D d_model, E width of the embedding, F input width of the head, I inner width of a mixer
// (H heads × P), G groups, N state, C = I + 2·G·N channels of the convolution, W taps, M hidden width of an MLP,
// V vocabulary.
#include <cmath>
#include <initializer_list>
#define LANES 16
#include "vectors.h"

// A product keeps PART sums of a register each: 24 of the 32 of AVX-512 and NEON, 12 of the 16 of AVX2.
constexpr int TILE = 24, PART = WIDTH == 8 ? 12 : 24;
constexpr int BLOCK = 64;  // symbols whose weights are added up for the search
constexpr float WEIGHTS = 1 << 24;

struct Matrix { const float* tiles; int64_t rows, columns; };  // (rows / TILE, columns, TILE), padded; absent: rows = 0

struct Layer {
    Matrix in_proj, out_proj, up, gate, down;
    const float *mix_2D, *skip_D, *ssm_scale_D, *mlp_scale_D;
    const float *conv_CW, *conv_bias_C, *dt_bias_H, *A_H, *D_H, *norm_I;
    int64_t source;  // layer whose output a skip adds; −1: none
};

struct Model {
    const Layer* layers;
    Matrix embed_proj, head_proj, head;
    const float *embedding_VE, *bias_V;
    int64_t n_layer, D, E, F, H, P, G, N, taps, M, V;
    int64_t gelu, reset;  // token that resets the state; −1: none
    int64_t softcap;      // 0 off, 1 tanh, 2 poly
    float cap, inverse_temperature, rms_eps, gated_eps;
};

// The buffers of a batch of lanes, one after another in one allocation.
struct Lanes {
    Vec *history_LCW, *state_LHPN, *outputs_LD, *x_D, *x0_D, *u_D, *a, *b, *y_I, *e_V;
    Bits* sums;  // of the weights of each block of symbols
    Vec *total, *scale;
    int64_t size, carried;

    Lanes(const Model& m, Vec* start) {
        const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N;
        int64_t widest = I + C + m.H;
        for (int64_t width : {m.D, m.E, m.F, m.M}) widest = width > widest ? width : widest;
        Vec* at = start;
        auto take = [&](int64_t vectors) { Vec* here = at; at += vectors; return here; };
        history_LCW = take(m.n_layer * C * (m.taps - 1));
        state_LHPN = take(m.n_layer * I * m.N);
        carried = at - start;
        outputs_LD = take(m.n_layer * m.D);
        x_D = take(m.D), x0_D = take(m.D), u_D = take(m.D);
        a = take(widest + TILE), b = take(widest + TILE), y_I = take(I);
        e_V = take(m.V + TILE);
        sums = (Bits*)take((m.V + BLOCK - 1) / BLOCK);
        total = take(1), scale = take(1);
        size = at - start;
    }
};

static inline Register fma_register(Register a, Register b, Register c) {
#if defined(__AVX512F__)
    return (Register)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Register)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < WIDTH; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

static inline Vec fma(Vec a, Vec b, Vec c) { return by_register<fma_register>(a, b, c); }

static inline Vec squareroot(Vec x) {
    for (int i = 0; i < LANES; i++) x[i] = std::sqrt(x[i]);
    return x;
}

static inline Vec silu(Vec x) { return x * sigmoid(x); }

// y = W x. Each sum runs over the columns in order.
static void product(const Matrix& w, const Vec* x, Vec* y) {
    for (int64_t row = 0; row < w.rows; row += PART) {
        const float* tile = w.tiles + row / TILE * TILE * w.columns + row % TILE;
        for (int lane = 0; lane < LANES; lane += WIDTH) {
            Register sums[PART] = {}, input;
            for (int64_t k = 0; k < w.columns; k++) {
                memcpy(&input, (const float*)(x + k) + lane, sizeof input);
#pragma GCC unroll 24
                for (int i = 0; i < PART; i++) sums[i] = fma_register(tile[k * TILE + i] - Register{}, input, sums[i]);
            }
            for (int i = 0; i < PART; i++) memcpy((float*)(y + row + i) + lane, &sums[i], sizeof input);
        }
    }
}

// y = x / sqrt(mean(x²) + eps)
static void rms(const Vec* x, int64_t width, float eps, Vec* y) {
    Vec squares = {};
    for (int64_t i = 0; i < width; i++) squares = fma(x[i], x[i], squares);
    const Vec factor = 1.0f / squareroot(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * factor;
}

// The mixer between its projections: a = (z I, xBC C, dt H) → y.
static void mixer(const Model& m, const Layer& layer, Vec* a, Vec* history_CW, Vec* state_HPN, Vec* y_I) {
    const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N, past = m.taps - 1;
    Vec* xBC_C = a + I;
    for (int64_t c = 0; c < C; c++) {
        Vec* history = history_CW + c * past;
        const float* taps = layer.conv_CW + c * m.taps;
        const Vec newest = xBC_C[c];
        Vec total = splat(layer.conv_bias_C[c]);
        for (int64_t w = 0; w < past; w++) {
            total = fma(splat(taps[w]), history[w], total);
            history[w] = w + 1 < past ? history[w + 1] : newest;
        }
        xBC_C[c] = silu(fma(splat(taps[past]), newest, total));
    }
    for (int64_t h = 0; h < m.H; h++) {
        const Vec* B_N = xBC_C + I + h / (m.H / m.G) * m.N;
        const Vec* C_N = B_N + m.G * m.N;
        const Vec dt = softplus(a[I + C + h] + layer.dt_bias_H[h]);
        const Vec decay = exp(dt * layer.A_H[h]);
        for (int64_t p = h * m.P; p < (h + 1) * m.P; p++) {
            Vec* state_N = state_HPN + p * m.N;
            const Vec added = dt * xBC_C[p];
            Vec total = layer.D_H[h] * xBC_C[p];
            for (int64_t n = 0; n < m.N; n++) {
                state_N[n] = fma(decay, state_N[n], added * B_N[n]);
                total = fma(state_N[n], C_N[n], total);
            }
            y_I[p] = total * silu(a[p]);
        }
    }
    rms(y_I, I, m.gated_eps, y_I);
    for (int64_t i = 0; i < I; i++) y_I[i] *= layer.norm_I[i];
}

// a = MLP(u)
static void mlp(const Model& m, const Layer& layer, const Vec* u_D, Vec* a, Vec* b) {
    product(layer.up, u_D, a);
    if (layer.gate.rows) product(layer.gate, u_D, b);
    for (int64_t i = 0; i < m.M; i++) {
        const Vec positive = maximum(a[i], splat(0));
        a[i] = layer.gate.rows ? a[i] * silu(b[i]) : positive * positive;
    }
    rms(a, m.M, m.rms_eps, b);
    product(layer.down, b, a);
}

static Vec softcap(const Model& m, Vec logit) {
    if (m.softcap == 1) return m.cap * (1.0f - 2.0f / (1.0f + exp(logit * (2 / m.cap))));
    if (m.softcap == 2) {
        const Vec u = minimum(maximum(logit / m.cap, splat(-2)), splat(2)), square = u * u;
        const Vec capped = u * (1.0f - square / 3.0f + square * square / 15.0f);
        return m.cap * minimum(maximum(capped, splat(-1)), splat(1));
    }
    return logit;
}

// e = exp(logit − largest logit) of each symbol, and the sums of the weights. NaN, which a forged model may give, is 0.
static void probabilities(const Model& m, Lanes& s, const Vec* features_F) {
    product(m.head, features_F, s.e_V);
    Vec largest = splat(-INFINITY), total = {};
    for (int64_t v = 0; v < m.V; v++) {
        s.e_V[v] = softcap(m, s.e_V[v] + m.bias_V[v]) * m.inverse_temperature;
        largest = maximum(s.e_V[v], largest);
    }
    for (int64_t v = 0; v < m.V;) {
        Vec sum = {};
        for (const int64_t stop = v + BLOCK; v < stop && v < m.V; v++) {
            s.e_V[v] = maximum(exp(s.e_V[v] - largest), splat(0));
            sum += s.e_V[v];
        }
        total += sum;
    }
    *s.total = total;
    *s.scale = WEIGHTS / maximum(total, splat(1));
    for (int64_t v = 0; v < m.V;) {
        Bits sum = {};
        Bits& block = s.sums[v / BLOCK];
        for (const int64_t stop = v + BLOCK; v < stop && v < m.V; v++)
            sum += (Bits)__builtin_convertvector(s.e_V[v] * *s.scale, Ints) + 1;
        block = sum;
    }
}

// The integer weight of a symbol, at least 1: its lane's weights add up to at most 2^24 + V, and a little for rounding.
static inline uint32_t weight(const Lanes& s, int64_t v, int lane) {
    return (uint32_t)(s.e_V[v][lane] * (*s.scale)[lane]) + 1;
}

// Range coder (Martin 1979) with 64-bit state and 32-bit words.
struct Coder {
    uint64_t low, range;  // low: of a reader, the value less the lower end of the interval
    uint32_t* words;
    int64_t size, position, writing;

    void narrow(uint64_t start, uint64_t size_of_symbol) {
        if (writing) add(start * range);
        else low -= start * range;
        range *= size_of_symbol;
        if (range >> 32) return;
        if (writing) words[position++] = low >> 32;
        low <<= 32, range <<= 32;
        if (!writing) low |= next();
    }

    void add(uint64_t distance) {
        low += distance;
        if (low < distance)
            for (int64_t i = position; ++words[--i] == 0;) {}
    }

    uint32_t next() { return position < size ? words[position++] : 0; }
};

extern "C" int64_t lanes_size(const Model* m) { return Lanes(*m, nullptr).size * LANES; }

// Offset of the (V, LANES) floats from which the coder takes its weights.
extern "C" int64_t probabilities_at(const Model* m) { return (Lanes(*m, nullptr).e_V - (Vec*)nullptr) * LANES; }

extern "C" void start_reading(Coder* coder) {
    coder->low = coder->next();
    coder->low = coder->low << 32 | coder->next();
}

// Writes the word that no further one can move out of the interval.
extern "C" void finish_writing(Coder* coder) {
    coder->add(0xffffffff);
    coder->words[coder->position++] = coder->low >> 32;
}

// Feeds a token to each lane, and leaves the probabilities of the next in `buffer`.
extern "C" void step(const Model* model, float* buffer, const int32_t* tokens) {
    const Model& m = *model;
    Lanes s(m, (Vec*)buffer);
    const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N;
    for (int lane = 0; lane < LANES; lane++) {
        for (int64_t e = 0; e < m.E; e++) s.b[e][lane] = m.embedding_VE[tokens[lane] * m.E + e];
        if (tokens[lane] == m.reset)
            for (int64_t i = 0; i < s.carried; i++) ((Vec*)buffer)[i][lane] = 0;
    }
    if (m.embed_proj.rows) product(m.embed_proj, s.b, s.a);
    rms(m.embed_proj.rows ? s.a : s.b, m.D, m.rms_eps, s.x0_D);
    memcpy(s.x_D, s.x0_D, m.D * sizeof(Vec));
    for (int64_t i = 0; i < m.n_layer; i++) {
        const Layer& layer = m.layers[i];
        for (int64_t d = 0; d < m.D; d++) {
            if (layer.source >= 0)
                s.x_D[d] = fma(splat(layer.skip_D[d]), s.outputs_LD[layer.source * m.D + d], s.x_D[d]);
            s.x_D[d] = fma(splat(layer.mix_2D[d]), s.x_D[d], layer.mix_2D[m.D + d] * s.x0_D[d]);
        }
        rms(s.x_D, m.D, m.rms_eps, s.u_D);
        product(layer.in_proj, s.u_D, s.a);
        mixer(m, layer, s.a, s.history_LCW + i * C * (m.taps - 1), s.state_LHPN + i * I * m.N, s.y_I);
        product(layer.out_proj, s.y_I, s.a);
        for (int64_t d = 0; d < m.D; d++) s.x_D[d] = fma(splat(layer.ssm_scale_D[d]), s.a[d], s.x_D[d]);
        if (layer.up.rows) {
            rms(s.x_D, m.D, m.rms_eps, s.u_D);
            mlp(m, layer, s.u_D, s.a, s.b);
            for (int64_t d = 0; d < m.D; d++) s.x_D[d] = fma(splat(layer.mlp_scale_D[d]), s.a[d], s.x_D[d]);
        }
        memcpy(s.outputs_LD + i * m.D, s.x_D, m.D * sizeof(Vec));
    }
    rms(s.x_D, m.D, m.rms_eps, s.b);
    Vec* features_F = s.b;
    if (m.head_proj.rows) product(m.head_proj, s.b, features_F = s.a);
    if (m.gelu)
        for (int64_t f = 0; f < m.F; f++)
            for (int lane = 0; lane < LANES; lane++) {
                const float x = features_F[f][lane];
                features_F[f][lane] = x * (0.5f * (1.0f + std::erf(x * 0.70710678f)));
            }
    probabilities(m, s, features_F);
}

// Codes a symbol of each of the first `active` lanes with the probabilities in `buffer`. Returns Σ −ln p, or −1 where a
// reader finds what no writer writes.
extern "C" double code(const Model* model, float* buffer, Coder* coder, int64_t active, int32_t* symbols) {
    Lanes s(*model, (Vec*)buffer);
    const int64_t blocks = (model->V + BLOCK - 1) / BLOCK;
    double nats = 0;
    for (int lane = 0; lane < active; lane++) {
        uint32_t total = 0, start = 0, size;
        for (int64_t b = 0; b < blocks; b++) total += s.sums[b][lane];
        coder->range /= total;
        const uint64_t quotient = coder->writing ? 0 : coder->low / coder->range;
        if (quotient >= total) return -1;
        const uint32_t target = quotient;
        const int64_t symbol = symbols[lane];
        auto is_before = [&](int64_t after, uint32_t end) { return coder->writing ? after <= symbol : end <= target; };
        int64_t v = 0;
        while (is_before(v + BLOCK, start + s.sums[v / BLOCK][lane])) start += s.sums[v / BLOCK][lane], v += BLOCK;
        while (size = weight(s, v, lane), is_before(v + 1, start + size)) start += size, v++;
        coder->narrow(start, size);
        symbols[lane] = v;
        nats += std::log((double)(*s.total)[lane]) - std::log((double)s.e_V[v][lane]);
    }
    return nats;
}
