// The decoder of `rans.py` with the adaptive histograms of `histograms.py`, for whole sequences of symbols.
#include <algorithm>
#include <cstdint>

constexpr int PRECISION = 24, BUCKET_BITS = 9, REST_BITS = PRECISION - BUCKET_BITS, MAX_ALPHABET = 256;

struct Coder {
    const uint32_t* words;
    int64_t left;  // words that are still to be read, the last one first
    uint64_t state;
};

class Model {
    uint32_t starts[MAX_ALPHABET + 1];  // the sum of the frequencies before each symbol
    // Of the first quantile of each bucket: start (24 bits), frequency (32 bits) and symbol (8 bits). One load finds all
    // that most symbols need; the others are searched from there.
    uint64_t buckets[1 << BUCKET_BITS];

    void add(uint64_t symbol, int64_t end) {
        const int64_t start = starts[symbol];
        starts[symbol + 1] = (uint32_t)end;
        std::fill(
            buckets + ((start + (1 << REST_BITS) - 1) >> REST_BITS), buckets + ((end + (1 << REST_BITS) - 1) >> REST_BITS),
            symbol << 56 | (uint64_t)(end - start) << 24 | (uint64_t)start
        );
    }

  public:
    void set_frequencies(int64_t A, const int64_t* frequencies) {
        starts[0] = 0;
        for (int64_t s = 0; s < A; s++) add(s, starts[s] + frequencies[s]);
    }

    // The frequencies of `rans.frequencies`.
    void set_weights(int64_t A, const int64_t* weights) {
        uint64_t total = 0, sum = 0;
        for (int64_t s = 0; s < A; s++) total += weights[s];
        starts[0] = 0;
        for (int64_t s = 0; s < A; s++) {
            sum += weights[s];
            add(s, sum * ((1 << PRECISION) - A) / total + s + 1);
        }
    }

    uint8_t decode(Coder& coder) const {
        const uint32_t quantile = coder.state & ((1 << PRECISION) - 1);
        const uint64_t bucket = buckets[quantile >> REST_BITS];
        uint32_t s = bucket >> 56, frequency = (uint32_t)(bucket >> 24), rest = quantile - (bucket & ((1 << PRECISION) - 1));
        if (rest >= frequency) {
            while (quantile >= starts[s + 1]) s++;
            frequency = starts[s + 1] - starts[s];
            rest = quantile - starts[s];
        }
        coder.state = (coder.state >> PRECISION) * frequency + rest;
        if (coder.state >> 32 == 0 && coder.left) coder.state = coder.state << 32 | coder.words[--coder.left];
        return (uint8_t)s;
    }
};

extern "C" void decode_run(Coder* coder, int64_t A, const int64_t* frequencies, int64_t count, uint8_t* out) {
    Model model;
    model.set_frequencies(A, frequencies);
    for (int64_t i = 0; i < count; i++) out[i] = model.decode(*coder);
}

// `Histograms.code`: `counts` (K, A) and `seen` (K,) are updated; `grouped` (count,) and `places` (K, 2) are memory to use.
extern "C" void decode_adaptive(
    Coder* coder, int64_t K, int64_t A, int64_t* counts, int64_t* seen, int64_t min_run, int64_t max_run,
    int64_t increment, int64_t count, const uint16_t* contexts, uint8_t* grouped, int64_t* places, uint8_t* out
) {
    Coder local = *coder;
    Model model;
    int64_t *starts = places, *ends = places + K;
    std::fill(ends, ends + K, 0);
    for (int64_t i = 0; i < count; i++) ends[contexts[i]]++;
    for (int64_t k = 0, sum = 0; k < K; k++) {
        starts[k] = sum;
        ends[k] = sum += ends[k];
    }
    for (bool active = true; active;) {
        active = false;
        for (int64_t k = 0; k < K; k++) {
            if (starts[k] == ends[k]) continue;
            active = true;
            const int64_t run = std::min(std::max(seen[k] / 8, min_run), max_run);
            const int64_t stop = std::min(starts[k] + run, ends[k]);
            model.set_weights(A, counts + k * A);
            seen[k] += stop - starts[k];
            for (; starts[k] < stop; starts[k]++) {
                const uint8_t symbol = model.decode(local);
                grouped[starts[k]] = symbol;
                counts[k * A + symbol] += increment;
            }
        }
    }
    // The start of each context is the end of the one before.
    for (int64_t k = K - 1; k > 0; k--) starts[k] = ends[k - 1];
    starts[0] = 0;
    for (int64_t i = 0; i < count; i++) out[i] = grouped[starts[contexts[i]]++];
    *coder = local;
}
