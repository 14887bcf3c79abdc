// One token of 16 lanes through the model, and the range coder of the tokens that follow.
//
// A row holds the same value of all 16 lanes, and a vector a row or a part of it. No operation mixes lanes, so the bits of
// a lane depend neither on the other lanes nor on threads. The file is compiled without contraction: a product is fused into a sum where the source
// says fma, and nowhere else. So they do not depend on the compiler or the instruction set either.
//
// Legend, as in compiled.py: D d_model, E width of the embedding, F input width of the head, I inner width of a mixer
// (H heads × P), G groups, N state, C = I + 2·G·N channels of the convolution, W taps, M hidden width of an MLP,
// V vocabulary.
#include <cmath>
#include <initializer_list>
#include "vectors.h"

constexpr int BATCH = 16, VECTORS = BATCH / LANES;  // lanes, and vectors of a row
// A product keeps sums in registers: 24 of the 32 of AVX-512 and NEON, 12 of the 16 of AVX2.
#if LANES == 16 || defined(__aarch64__)
constexpr int SUMS = 24;
#else
constexpr int SUMS = 12;
#endif
constexpr int TILE = 24, PART = SUMS / VECTORS;  // rows
static_assert(BATCH % LANES == 0 && TILE % PART == 0, "whole vectors and whole tiles");
constexpr int BLOCK = 64;  // symbols whose weights are added up for the search
constexpr float WEIGHTS = 1 << 24;

// The vectors of the same lanes in successive rows. A buffer is aligned to 64 bytes, as PyTorch's allocator does.
struct Rows {
    float* at;
    Vec& operator[](int64_t row) const { return *(Vec*)(at + row * BATCH); }
    Rows operator+(int64_t rows) const { return {at + rows * BATCH}; }
    Rows lanes(int from) const { return {at + from}; }
};

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
    Rows history_LCW, state_LHPN, outputs_LD, x_D, x0_D, u_D, a, b, y_I, e_V;
    Rows sums;  // of the weights of each block of symbols, as integers
    Rows total, scale;
    int64_t size, carried;  // in rows

    Lanes(const Model& m, float* start) {
        const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N;
        int64_t widest = I + C + m.H;
        for (int64_t width : {m.D, m.E, m.F, m.M}) widest = width > widest ? width : widest;
        Rows at = {start};
        auto take = [&](int64_t rows) { const Rows here = at; at = at + rows; return here; };
        auto taken = [&] { return (at.at - start) / BATCH; };
        history_LCW = take(m.n_layer * C * (m.taps - 1));
        state_LHPN = take(m.n_layer * I * m.N);
        carried = taken();
        outputs_LD = take(m.n_layer * m.D);
        x_D = take(m.D), x0_D = take(m.D), u_D = take(m.D);
        a = take(widest + TILE), b = take(widest + TILE), y_I = take(I);
        e_V = take(m.V + TILE);
        sums = take((m.V + BLOCK - 1) / BLOCK);
        total = take(1), scale = take(1);
        size = taken();
    }
};

static inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__) && LANES == 16
    return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) && LANES == 8
    return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

static inline Vec squareroot(Vec x) {
    for (int i = 0; i < LANES; i++) x[i] = std::sqrt(x[i]);
    return x;
}

static inline Vec silu(Vec x) { return x * sigmoid(x); }

// y = W x, all lanes. Each sum runs over the columns in order.
static void product(const Matrix& w, Rows x, Rows y) {
    for (int64_t row = 0; row < w.rows; row += PART) {
        const float* tile = w.tiles + row / TILE * TILE * w.columns + row % TILE;
        Vec sums[PART][VECTORS] = {};
        for (int64_t k = 0; k < w.columns; k++)
#pragma GCC unroll 24
            for (int i = 0; i < PART; i++) {
                const Vec weight = splat(tile[k * TILE + i]);
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++) sums[i][v] = fma(weight, x.lanes(v * LANES)[k], sums[i][v]);
            }
        for (int i = 0; i < PART; i++)
            for (int v = 0; v < VECTORS; v++) y.lanes(v * LANES)[row + i] = sums[i][v];
    }
}

// y = x / sqrt(mean(x²) + eps)
static void rms(Rows x, int64_t width, float eps, Rows y) {
    Vec squares = {};
    for (int64_t i = 0; i < width; i++) squares = fma(x[i], x[i], squares);
    const Vec factor = 1.0f / squareroot(squares / (float)width + eps);
    for (int64_t i = 0; i < width; i++) y[i] = x[i] * factor;
}

// The mixer between its projections: a = (z I, xBC C, dt H) → y.
static void mixer(const Model& m, const Layer& layer, Rows a, Rows history_CW, Rows state_HPN, Rows y_I) {
    const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N, past = m.taps - 1;
    const Rows xBC_C = a + I;
    for (int64_t c = 0; c < C; c++) {
        const Rows history = history_CW + c * past;
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
        const Rows B_N = xBC_C + I + h / (m.H / m.G) * m.N, C_N = B_N + m.G * m.N;
        const Vec dt = softplus(a[I + C + h] + layer.dt_bias_H[h]);
        const Vec decay = exp(dt * layer.A_H[h]);
        for (int64_t p = h * m.P; p < (h + 1) * m.P; p++) {
            const Rows state_N = state_HPN + p * m.N;
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

// x += scale · a
static void add(const Model& m, const float* scale_D, Rows a, Rows x_D) {
    for (int64_t d = 0; d < m.D; d++) x_D[d] = fma(splat(scale_D[d]), a[d], x_D[d]);
}

// b = what the second matrix of the MLP reads, from a and b, the products of the first and of the gate
static void activation(const Model& m, const Layer& layer, Rows a, Rows b) {
    for (int64_t i = 0; i < m.M; i++) {
        const Vec positive = maximum(a[i], splat(0));
        a[i] = layer.gate.rows ? a[i] * silu(b[i]) : positive * positive;
    }
    rms(a, m.M, m.rms_eps, b);
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

// e = exp(logit − largest logit) of each symbol, from the products with the head, and the sums of the weights. NaN, which a
// forged model may give, is 0.
static void probabilities(const Model& m, Rows e_V, Rows sums, Vec& total_weight, Vec& scale) {
    Vec largest = splat(-INFINITY), total = {};
    for (int64_t v = 0; v < m.V; v++) {
        e_V[v] = softcap(m, e_V[v] + m.bias_V[v]) * m.inverse_temperature;
        largest = maximum(e_V[v], largest);
    }
    for (int64_t v = 0; v < m.V;) {
        Vec sum = {};
        for (const int64_t stop = v + BLOCK; v < stop && v < m.V; v++) {
            e_V[v] = maximum(exp(e_V[v] - largest), splat(0));
            sum += e_V[v];
        }
        total += sum;
    }
    total_weight = total;
    scale = WEIGHTS / maximum(total, splat(1));
    for (int64_t v = 0; v < m.V;) {
        Bits sum = {};
        const int64_t block = v / BLOCK;
        for (const int64_t stop = v + BLOCK; v < stop && v < m.V; v++)
            sum += (Bits)__builtin_convertvector(e_V[v] * scale, Ints) + 1;
        sums[block] = (Vec)sum;
    }
}

static inline float value(Rows rows, int64_t row, int lane) { return rows.at[row * BATCH + lane]; }

// The sum of the weights of a block of symbols.
static inline uint32_t block_weight(const Lanes& s, int64_t block, int lane) {
    uint32_t found;
    memcpy(&found, s.sums.at + block * BATCH + lane, sizeof found);
    return found;
}

// The integer weight of a symbol, at least 1: its lane's weights add up to at most 2^24 + V, and a little for rounding.
static inline uint32_t weight(const Lanes& s, int64_t v, int lane) {
    return (uint32_t)(value(s.e_V, v, lane) * value(s.scale, 0, lane)) + 1;
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

extern "C" int64_t lanes_size(const Model* m) { return Lanes(*m, nullptr).size * BATCH; }

// Offset of the (V, BATCH) floats from which the coder takes its weights.
extern "C" int64_t probabilities_at(const Model* m) { return Lanes(*m, nullptr).e_V.at - (float*)nullptr; }

extern "C" void start_reading(Coder* coder) {
    coder->low = coder->next();
    coder->low = coder->low << 32 | coder->next();
}

// Writes the word that no further one can move out of the interval.
extern "C" void finish_writing(Coder* coder) {
    coder->add(0xffffffff);
    coder->words[coder->position++] = coder->low >> 32;
}

// Calls `work` for the vectors of each row: what is not a product does one after the other.
template <class Work>
static inline void each(Work work) {
    for (int from = 0; from < BATCH; from += LANES) work([from](Rows rows) { return rows.lanes(from); });
}

// Feeds a token to each lane, and leaves the probabilities of the next in `buffer`.
extern "C" void step(const Model* model, float* buffer, const int32_t* tokens) {
    const Model& m = *model;
    Lanes s(m, buffer);
    const int64_t I = m.H * m.P, C = I + 2 * m.G * m.N;
    for (int lane = 0; lane < BATCH; lane++) {
        for (int64_t e = 0; e < m.E; e++) s.b.at[e * BATCH + lane] = m.embedding_VE[tokens[lane] * m.E + e];
        if (tokens[lane] == m.reset)
            for (int64_t i = 0; i < s.carried; i++) buffer[i * BATCH + lane] = 0;
    }
    if (m.embed_proj.rows) product(m.embed_proj, s.b, s.a);
    each([&](auto of) { rms(of(m.embed_proj.rows ? s.a : s.b), m.D, m.rms_eps, of(s.x0_D)); });
    memcpy(s.x_D.at, s.x0_D.at, m.D * BATCH * sizeof(float));
    for (int64_t i = 0; i < m.n_layer; i++) {
        const Layer& layer = m.layers[i];
        each([&](auto of) {
            const Rows x_D = of(s.x_D), x0_D = of(s.x0_D), source_D = of(s.outputs_LD) + layer.source * m.D;
            for (int64_t d = 0; d < m.D; d++) {
                if (layer.source >= 0) x_D[d] = fma(splat(layer.skip_D[d]), source_D[d], x_D[d]);
                x_D[d] = fma(splat(layer.mix_2D[d]), x_D[d], layer.mix_2D[m.D + d] * x0_D[d]);
            }
            rms(x_D, m.D, m.rms_eps, of(s.u_D));
        });
        product(layer.in_proj, s.u_D, s.a);
        each([&](auto of) {
            mixer(m, layer, of(s.a), of(s.history_LCW) + i * C * (m.taps - 1), of(s.state_LHPN) + i * I * m.N, of(s.y_I));
        });
        product(layer.out_proj, s.y_I, s.a);
        each([&](auto of) { add(m, layer.ssm_scale_D, of(s.a), of(s.x_D)); });
        if (layer.up.rows) {
            each([&](auto of) { rms(of(s.x_D), m.D, m.rms_eps, of(s.u_D)); });
            product(layer.up, s.u_D, s.a);
            if (layer.gate.rows) product(layer.gate, s.u_D, s.b);
            each([&](auto of) { activation(m, layer, of(s.a), of(s.b)); });
            product(layer.down, s.b, s.a);
            each([&](auto of) { add(m, layer.mlp_scale_D, of(s.a), of(s.x_D)); });
        }
        memcpy((s.outputs_LD + i * m.D).at, s.x_D.at, m.D * BATCH * sizeof(float));
    }
    each([&](auto of) { rms(of(s.x_D), m.D, m.rms_eps, of(s.b)); });
    Rows features_F = s.b;
    if (m.head_proj.rows) product(m.head_proj, s.b, features_F = s.a);
    if (m.gelu)
        for (int64_t i = 0; i < m.F * BATCH; i++) {
            const float x = features_F.at[i];
            features_F.at[i] = x * (0.5f * (1.0f + std::erf(x * 0.70710678f)));
        }
    product(m.head, features_F, s.e_V);
    each([&](auto of) { probabilities(m, of(s.e_V), of(s.sums), of(s.total)[0], of(s.scale)[0]); });
}

// Codes a symbol of each of the first `active` lanes with the probabilities in `buffer`. Returns Σ −ln p, or −1 where a
// reader finds what no writer writes.
extern "C" double code(const Model* model, float* buffer, Coder* coder, int64_t active, int32_t* symbols) {
    Lanes s(*model, buffer);
    const int64_t blocks = (model->V + BLOCK - 1) / BLOCK;
    double nats = 0;
    for (int lane = 0; lane < active; lane++) {
        uint32_t total = 0, start = 0, size;
        for (int64_t b = 0; b < blocks; b++) total += block_weight(s, b, lane);
        coder->range /= total;
        const uint64_t quotient = coder->writing ? 0 : coder->low / coder->range;
        if (quotient >= total) return -1;
        const uint32_t target = quotient;
        const int64_t symbol = symbols[lane];
        auto is_before = [&](int64_t after, uint32_t end) { return coder->writing ? after <= symbol : end <= target; };
        int64_t v = 0;
        while (size = block_weight(s, v / BLOCK, lane), is_before(v + BLOCK, start + size)) start += size, v += BLOCK;
        while (size = weight(s, v, lane), is_before(v + 1, start + size)) start += size, v++;
        coder->narrow(start, size);
        symbols[lane] = v;
        nats += std::log((double)value(s.total, 0, lane)) - std::log((double)value(s.e_V, v, lane));
    }
    return nats;
}
