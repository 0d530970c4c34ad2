// int8 convolutions and matrix products: uint8 maps, int8 weights, int32 sums (vpdpbusd), and what follows them.
#pragma once
#include <algorithm>

#include "parts.h"

// What a sum becomes: scaled to its own quantized range; then looked up in a table, or added to another map and
// quantized again, or left as a float.
struct Epilogue {
    const Op& op;
    Table table;
    __m512i zero, residual_zero, out_zero;
    __m512 scale, residual_scale, to_out;

    explicit Epilogue(const Op& o)
        : op(o), table(o.table), zero(_mm512_set1_epi32(o.zero)), residual_zero(_mm512_set1_epi32(o.residual_zero)),
          out_zero(_mm512_set1_epi32(o.out_zero)), scale(_mm512_set1_ps(o.scale)),
          residual_scale(_mm512_set1_ps(o.residual_scale)), to_out(_mm512_set1_ps(1.0f / o.out_scale)) {}

    __m512i quantized(__m512i sum, int channel) const {
        sum = _mm512_add_epi32(sum, _mm512_loadu_si512(static_cast<const int32_t*>(op.bias) + channel));
        __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_loadu_ps(op.multipliers + channel));
        return _mm512_add_epi32(_mm512_cvtps_epi32(scaled), zero);
    }

    // The sums of VECTORS x 16 channels of one pixel.
    template <int VECTORS>
    void operator()(const __m512i* sums, long pixel, int channel) const {
        __m128i q[VECTORS];
        for (int v = 0; v < VECTORS; v++) q[v] = bytes(quantized(sums[v], channel + LANES * v));
        if (op.wide || op.added) {
            for (int v = 0; v < VECTORS; v++) joined(q[v], pixel, channel + LANES * v);
            return;
        }
        uint8_t* out = static_cast<uint8_t*>(op.out) + op.out_offsets[pixel] + channel;
        const int left = op.channels - channel;
        __m512i all = _mm512_castsi128_si512(q[0]);
        if constexpr (VECTORS > 1) all = _mm512_inserti32x4(all, q[1], 1);
        if constexpr (VECTORS > 2) all = _mm512_inserti32x4(all, q[2], 2);
        if constexpr (VECTORS > 3) all = _mm512_inserti32x4(all, q[3], 3);
        if (op.table) all = table(all);
        const int count = std::min(left, VECTORS * LANES);
        if (count == 64) _mm512_storeu_si512(out, all);
        else if (count == 32) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(all));
        else _mm512_mask_storeu_epi8(out, (1ull << count) - 1, all);
    }

    // Where a channel of a float map lies, from the pixel's first.
    static long place(int channel, long block) { return channel / LANES * block + channel % LANES; }

    void joined(__m128i q, long pixel, int channel) const {
        const __mmask16 mask = lanes(op.channels - channel);
        __m512 value = widened(q, zero, scale);
        if (op.added == 1) {
            const uint8_t* other = static_cast<const uint8_t*>(op.residual) + op.residual_offsets[pixel] + channel;
            value = _mm512_add_ps(value, widened(_mm_maskz_loadu_epi8(mask, other), residual_zero, residual_scale));
        } else if (op.added == 2) {
            const float* other = static_cast<const float*>(op.residual) + op.residual_offsets[pixel];
            value = _mm512_add_ps(value, _mm512_loadu_ps(other + place(channel, op.residual_block)));
        }
        if (op.wide) {
            store(static_cast<float*>(op.out) + op.out_offsets[pixel] + place(channel, op.out_block), mask, value);
            return;
        }
        __m512i again = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(value, to_out)), out_zero);
        store(static_cast<uint8_t*>(op.out) + op.out_offsets[pixel] + channel, mask, bytes(again));
    }
};

// PIXELS x (VECTORS x 16) sums in registers. Two chains for each sum where there are too few to hide the latency.
template <int PIXELS, int VECTORS>
inline void tile(const Op& op, const Epilogue& epilogue, const int8_t* weights, long pixel, int channel) {
    constexpr int CHAINS = PIXELS * VECTORS >= 8 ? 1 : 2;
    __m512i sums[CHAINS][PIXELS][VECTORS];
    for (auto& chain : sums)
        for (auto& row : chain)
            for (auto& sum : row) sum = _mm512_setzero_si512();
    const uint8_t* in[PIXELS];
    for (int p = 0; p < PIXELS; p++) in[p] = static_cast<const uint8_t*>(op.in) + op.in_offsets[pixel + p];
    auto step = [&](__m512i (&into)[PIXELS][VECTORS], long at) __attribute__((always_inline)) {
        __m512i w[VECTORS];
        for (int v = 0; v < VECTORS; v++) w[v] = _mm512_loadu_si512(weights + 64 * v);
        weights += 64 * VECTORS;
        for (int p = 0; p < PIXELS; p++) {
            int32_t four;
            __builtin_memcpy(&four, in[p] + at, 4);
            const __m512i x = _mm512_set1_epi32(four);
            for (int v = 0; v < VECTORS; v++) into[p][v] = _mm512_dpbusd_epi32(into[p][v], x, w[v]);
        }
    };
    for (int t = 0; t < op.taps; t++) {
        const long from = op.tap_offsets[t], to = from + op.depth;
        long at = from;
        if constexpr (CHAINS == 2)
            for (; at + 8 <= to; at += 8) step(sums[0], at), step(sums[1], at + 4);
        for (; at < to; at += 4) step(sums[0], at);
    }
    for (int p = 0; p < PIXELS; p++) {
        if constexpr (CHAINS == 2)
            for (int v = 0; v < VECTORS; v++) sums[0][p][v] = _mm512_add_epi32(sums[0][p][v], sums[1][p][v]);
        epilogue.template operator()<VECTORS>(sums[0][p], pixel + p, channel);
    }
}

constexpr int PIXELS = 6;  // 6 x 4 sums, 4 weights and one input fill 29 of the 32 registers

template <int VECTORS>
inline void panel(const Op& op, const Epilogue& epilogue, const int8_t* weights, long first, long last, int channel) {
    for (; first + PIXELS <= last; first += PIXELS) tile<PIXELS, VECTORS>(op, epilogue, weights, first, channel);
    switch (last - first) {
        case 5: tile<5, VECTORS>(op, epilogue, weights, first, channel); break;
        case 4: tile<4, VECTORS>(op, epilogue, weights, first, channel); break;
        case 3: tile<3, VECTORS>(op, epilogue, weights, first, channel); break;
        case 2: tile<2, VECTORS>(op, epilogue, weights, first, channel); break;
        case 1: tile<1, VECTORS>(op, epilogue, weights, first, channel); break;
    }
}

// Weights lie in panels of 64 channels (the last one of fewer): [panel][tap][depth / 4][channel][4]. Threads share the
// pixels where the map is larger than the weights, else the panels: each then reads its part of the larger only.
inline void convolution(const Op& op, Share share) {
    const Epilogue epilogue(op);
    const long pixels = static_cast<long>(op.images) * op.height * op.width;
    const long depth = static_cast<long>(op.taps) * op.depth;
    const long panels = (op.channels + 63) / 64, tiles = (pixels + PIXELS - 1) / PIXELS;
    const bool by_pixels = panels < share.threads || (tiles >= share.threads && pixels > op.channels);
    const long first = by_pixels ? PIXELS * share.first(tiles) : 0;
    const long last = by_pixels ? std::min(pixels, PIXELS * share.last(tiles)) : pixels;
    for (long p = by_pixels ? 0 : share.first(panels); p < (by_pixels ? panels : share.last(panels)); p++) {
        const int channel = static_cast<int>(64 * p);
        const int8_t* weights = static_cast<const int8_t*>(op.weights) + channel * depth;
        switch (std::min(4, (op.channels - channel + LANES - 1) / LANES)) {
            case 4: panel<4>(op, epilogue, weights, first, last, channel); break;
            case 3: panel<3>(op, epilogue, weights, first, last, channel); break;
            case 2: panel<2>(op, epilogue, weights, first, last, channel); break;
            default: panel<1>(op, epilogue, weights, first, last, channel);
        }
    }
}

// A few channels of a long input: one dot product each, 64 products a step. Weights: [channel][depth to a multiple of 64].
inline void product(const Op& op, Share share) {
    const long pixels = static_cast<long>(op.images) * op.height * op.width, depth = (op.depth + 63) / 64 * 64;
    const long groups = (op.channels + 4) / 5;
    for (long unit = share.first(pixels * groups); unit < share.last(pixels * groups); unit++) {
        const long pixel = unit / groups, from = unit % groups * 5;
        const long count = std::min<long>(5, op.channels - from);
        const uint8_t* in = static_cast<const uint8_t*>(op.in) + op.in_offsets[pixel] + op.tap_offsets[0];
        alignas(64) int32_t sums[LANES] = {};
        for (long c = 0; c < count; c++) {
            const int8_t* weights = static_cast<const int8_t*>(op.weights) + (from + c) * depth;
            __m512i chains[4] = {};
            long at = 0;
            for (; at + 256 <= depth; at += 256)
                for (int i = 0; i < 4; i++)
                    chains[i] = _mm512_dpbusd_epi32(chains[i], _mm512_loadu_si512(in + at + 64 * i),
                                                    _mm512_loadu_si512(weights + at + 64 * i));
            for (; at < depth; at += 64)
                chains[0] = _mm512_dpbusd_epi32(chains[0], _mm512_loadu_si512(in + at), _mm512_loadu_si512(weights + at));
            sums[c] = _mm512_reduce_add_epi32(_mm512_add_epi32(_mm512_add_epi32(chains[0], chains[1]),
                                                               _mm512_add_epi32(chains[2], chains[3])));
        }
        Op part = op;  // the epilogue of these channels alone
        part.channels = static_cast<int32_t>(from + count);
        Epilogue(part).operator()<1>(reinterpret_cast<__m512i*>(sums), pixel, static_cast<int>(from));
    }
}
