// What is not a matrix product: depthwise convolutions and norms in float, pooling, and quantizing the image.
#pragma once
#include <cmath>
#include <vector>

#include "parts.h"

// sum + x * w of 16 floats, or of 16 pairs of bf16 that lie in their bits.
template <bool HALF>
inline __m512 multiplied(__m512 x, __m512 w, __m512 sum) {
#ifdef __AVX512BF16__
    if constexpr (HALF) return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
#endif
    return _mm512_fmadd_ps(x, w, sum);
}

// One row of 16 channels x OUTPUTS depthwise outputs, COLUMNS at once, and its part of the sums that a norm needs. In bf16
// two taps of a row are taken at once: the input has, for each column, itself and its right neighbour.
template <bool HALF, int WIDTH, int STRIDE, int COLUMNS, int OUTPUTS>
inline void depthwise_columns(const Op& op, const float* in, const float* weights, float* out, long apart, __m512* sum,
                              __m512* squares) {
    constexpr int AT_ONCE = HALF ? 2 : 1, TAPS = (WIDTH + AT_ONCE - 1) / AT_ONCE;
    __m512 sums[OUTPUTS][COLUMNS];
    const float* bias = weights + static_cast<long>(OUTPUTS) * op.kernel_height * TAPS * LANES;
    for (int j = 0; j < OUTPUTS; j++)
        for (auto& value : sums[j]) value = _mm512_loadu_ps(bias + j * LANES);
    for (int y = 0; y < op.kernel_height; y++, in += op.in_row, weights += OUTPUTS * TAPS * LANES)
#pragma GCC unroll 7
        for (int k = 0; k < TAPS; k++) {
            __m512 w[OUTPUTS];
            for (int j = 0; j < OUTPUTS; j++) w[j] = _mm512_loadu_ps(weights + (k * OUTPUTS + j) * LANES);
#pragma GCC unroll 7
            for (int c = 0; c < COLUMNS; c++) {
                const __m512 x = _mm512_loadu_ps(in + (c * STRIDE + AT_ONCE * k) * LANES);
                for (int j = 0; j < OUTPUTS; j++) sums[j][c] = multiplied<HALF>(x, w[j], sums[j][c]);
            }
        }
    for (int j = 0; j < OUTPUTS; j++)
        for (int c = 0; c < COLUMNS; c++) {
            _mm512_storeu_ps(out + j * apart + c * LANES, sums[j][c]);
            *sum = _mm512_add_ps(*sum, sums[j][c]);
            *squares = _mm512_fmadd_ps(sums[j][c], sums[j][c], *squares);
        }
}

#ifdef __AVX512BF16__
// Rows of floats as such pairs; the last column has no neighbour.
inline void paired(const Op& op, const float* in, float* out, long rows) {
    const long columns = op.in_row / LANES;
    for (long y = 0; y < rows; y++, in += op.in_row, out += op.in_row) {
        __m512i next = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(in)));
        for (long x = 0; x < columns; x++) {
            const __m512i own = next;
            next = x + 1 == columns ? _mm512_setzero_si512()
                : _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(in + (x + 1) * LANES)));
            _mm512_storeu_si512(out + x * LANES, _mm512_or_si512(own, _mm512_slli_epi32(next, 16)));
        }
    }
}
#endif

template <bool HALF, int WIDTH, int STRIDE, int COLUMNS, int OUTPUTS>
void depthwise_row(const Op& op, const float* in, const float* weights, float* out, long apart, __m512* sum,
                   __m512* squares) {
    int column = 0;
    for (; column + COLUMNS <= op.width; column += COLUMNS)
        depthwise_columns<HALF, WIDTH, STRIDE, COLUMNS, OUTPUTS>(op, in + column * STRIDE * LANES, weights,
                                                              out + column * LANES, apart, sum, squares);
    for (; column < op.width; column++)
        depthwise_columns<HALF, WIDTH, STRIDE, 1, OUTPUTS>(op, in + column * STRIDE * LANES, weights, out + column * LANES,
                                                        apart, sum, squares);
}

using Row = void (*)(const Op&, const float*, const float*, float*, long, __m512*, __m512*);

template <bool HALF, int WIDTH, int OUTPUTS>
inline Row depthwise_strided(int stride) {
    return stride == 1 ? depthwise_row<HALF, WIDTH, 1, 7, OUTPUTS> : depthwise_row<HALF, WIDTH, 2, 4, OUTPUTS>;
}

template <bool HALF, int OUTPUTS>
inline Row depthwise_kernel(const Op& op) {
    switch (op.kernel_width) {
        case 3: return depthwise_strided<HALF, 3, OUTPUTS>(op.stride_width);
        case 5: return depthwise_strided<HALF, 5, OUTPUTS>(op.stride_width);
        default: return depthwise_strided<HALF, 7, OUTPUTS>(op.stride_width);
    }
}

inline Row depthwise_kernel(const Op& op, int together) {
    if (op.half) return together == 2 ? depthwise_kernel<true, 2>(op) : depthwise_kernel<true, 1>(op);
    return together == 2 ? depthwise_kernel<false, 2>(op) : depthwise_kernel<false, 1>(op);
}

// Output channel j * in_channels + c is the j-th of channel c. Weights: [1 or 2 outputs together][16 channels]
// [kernel row][kernel column][output][16], the biases behind. The sums that a norm needs are taken on the way.
inline void depthwise(const Op& op, Share share) {
    const int together = op.multiplier % 2 ? 1 : 2;
    const Row row = depthwise_kernel(op, together);
    const long groups = (op.in_channels + LANES - 1) / LANES, blocks = groups * (op.multiplier / together);
    const int taps = op.half ? (op.kernel_width + 1) / 2 : op.kernel_width;  // that a vector of weights has for itself
    const long size = static_cast<long>(together) * LANES * (op.kernel_height * taps + 1);
    static thread_local std::vector<float> pairs;
    long paired_from = -1;  // the unit whose map is in pairs, from that unit's row on
    const long apart = groups * op.out_block;
    double* sums = op.sums + 2 * share.thread;  // of image 0
    for (int i = 0; i < op.images; i++) sums[2 * i * share.threads] = sums[2 * i * share.threads + 1] = 0;
    const long units = op.images * blocks * op.height;
    for (long unit = share.first(units); unit < share.last(units); unit++) {
        const long image = unit / (blocks * op.height), block = unit / op.height % blocks, y = unit % op.height;
        const long group = block % groups, j = block / groups * together;
        const float* in = static_cast<const float*>(op.in) + image * op.in_image + group * op.in_block +
                          y * op.stride_height * op.in_row;
        float* out = static_cast<float*>(op.out) + image * op.out_image + j * apart + group * op.out_block + y * op.out_row;
#ifdef __AVX512BF16__
        if (op.half) {
            if (paired_from < 0 || y == 0) {
                const long last = std::min<long>(op.height, y + share.last(units) - unit) - 1;
                const long rows = (last - y) * op.stride_height + op.kernel_height;
                pairs.resize(std::max<size_t>(pairs.size(), rows * op.in_row + LANES));
                paired(op, in, pairs.data(), rows);
                paired_from = y;
            }
            in = pairs.data() + (y - paired_from) * op.stride_height * op.in_row;
        }
#endif
        __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
        row(op, in, static_cast<const float*>(op.weights) + block * size, out, apart, &sum, &squares);
        sums[2 * image * share.threads] += _mm512_reduce_add_ps(sum);
        sums[2 * image * share.threads + 1] += _mm512_reduce_add_ps(squares);
    }
}

// Sum and sum of squares of each image of a float map.
inline void statistics(const Op& op, Share share) {
    const long rows = static_cast<long>((op.in_channels + LANES - 1) / LANES) * op.height;
    for (int image = 0; image < op.images; image++) {
        double total = 0, square = 0;
        for (long r = share.first(rows); r < share.last(rows); r++) {
            const float* row = static_cast<const float*>(op.in) + image * op.in_image + r / op.height * op.in_block +
                               r % op.height * op.in_row;
            __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
            for (int x = 0; x < op.width; x++) {
                const __m512 value = _mm512_loadu_ps(row + x * LANES);
                sum = _mm512_add_ps(sum, value);
                squares = _mm512_fmadd_ps(value, value, squares);
            }
            total += _mm512_reduce_add_ps(sum);
            square += _mm512_reduce_add_ps(squares);
        }
        op.sums[2 * (image * share.threads + share.thread)] = total;
        op.sums[2 * (image * share.threads + share.thread) + 1] = square;
    }
}

// 16 floats that are stored as such or as half floats.
inline __m512 stored(const void* from, long at, bool half) {
    if (!half) return _mm512_loadu_ps(static_cast<const float*>(from) + at);
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(from) + at)));
}

// (x - mean) / std * weight + bias over a whole image, with one weight and bias a position, [row][channel / 16][column][16];
// a quantized output's scale and zero point are already in them.
inline void norm(const Op& op, Share share) {
    const double size = static_cast<double>(op.height) * op.width * op.channels;
    const long groups = (op.channels + LANES - 1) / LANES;
    for (int image = 0; image < op.images; image++) {
        double total = 0, square = 0;
        for (int t = 0; t < share.threads; t++) {
            total += op.sums[2 * (image * share.threads + t)];
            square += op.sums[2 * (image * share.threads + t) + 1];
        }
        const double mean = total / size, variance = std::max(0.0, square / size - mean * mean);
        const double inverse = 1.0 / std::sqrt(variance + op.epsilon);
        const __m512 scale = _mm512_set1_ps(static_cast<float>(inverse));
        const __m512 shift = _mm512_set1_ps(static_cast<float>(-mean * inverse));
        for (long unit = share.first(op.height * groups); unit < share.last(op.height * groups); unit++) {
            const long y = unit / groups, group = unit % groups;
            const float* in = static_cast<const float*>(op.in) + image * op.in_image + group * op.in_block + y * op.in_row;
            const long at = unit * op.width * LANES;
            const long out = image * op.out_image + y * op.out_row + group * op.out_block;
            const __mmask16 mask = lanes(static_cast<int>(op.channels - group * LANES));
            for (int x = 0; x < op.width; x++) {
                const __m512 normal = _mm512_fmadd_ps(_mm512_loadu_ps(in + x * LANES), scale, shift);
                const __m512 value = _mm512_fmadd_ps(normal, stored(op.weights, at + x * LANES, op.half),
                                                     stored(op.bias, at + x * LANES, op.half));
                if (op.wide) _mm512_storeu_ps(static_cast<float*>(op.out) + out + x * LANES, value);
                else store(static_cast<uint8_t*>(op.out) + out + static_cast<long>(x) * op.channels, mask,
                           bytes(_mm512_cvtps_epi32(value)));
            }
        }
    }
}

inline void maximum(const Op& op, Share share) {
    const long rows = static_cast<long>(op.images) * op.height;
    for (long r = share.first(rows); r < share.last(rows); r++)
        for (int x = 0; x < op.width; x++)
            for (int c = 0; c < op.channels; c += 64) {
                const int left = op.channels - c;
                const __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
                const uint8_t* in = static_cast<const uint8_t*>(op.in) + r / op.height * op.in_image +
                                    r % op.height * op.stride_height * op.in_row + x * op.stride_width * op.in_channels + c;
                __m512i most = _mm512_setzero_si512();
                for (int i = 0; i < op.kernel_height; i++)
                    for (int j = 0; j < op.kernel_width; j++)
                        most = _mm512_max_epu8(most, _mm512_maskz_loadu_epi8(mask, in + i * op.in_row + j * op.in_channels));
                uint8_t* out = static_cast<uint8_t*>(op.out) + r / op.height * op.out_image + r % op.height * op.out_row +
                               x * op.channels + c;
                _mm512_mask_storeu_epi8(out, mask, most);
            }
}

// The mean of each channel; kernel_height and kernel_width are the input's.
inline void mean(const Op& op, Share share) {
    const long groups = (op.channels + LANES - 1) / LANES, units = op.images * groups;
    const __m512 part = _mm512_set1_ps(1.0f / static_cast<float>(op.kernel_height * op.kernel_width));
    const __m512i zero = _mm512_set1_epi32(op.zero);
    const __m512 scale = _mm512_set1_ps(op.scale);
    for (long unit = share.first(units); unit < share.last(units); unit++) {
        const long image = unit / groups, group = unit % groups;
        const __mmask16 mask = lanes(static_cast<int>(op.channels - group * LANES));
        __m512 total = _mm512_setzero_ps();
        for (int y = 0; y < op.kernel_height; y++)
            for (int x = 0; x < op.kernel_width; x++) {
                const long at = image * op.in_image + group * op.in_block + y * op.in_row;
                total = _mm512_add_ps(total, op.quantized
                    ? widened(_mm_maskz_loadu_epi8(mask, static_cast<const uint8_t*>(op.in) + at + x * op.channels), zero, scale)
                    : _mm512_loadu_ps(static_cast<const float*>(op.in) + at + x * LANES));
            }
        total = _mm512_mul_ps(total, part);
        const long out = image * op.out_image + group * op.out_block;
        if (op.wide) {
            _mm512_storeu_ps(static_cast<float*>(op.out) + out, total);
            continue;
        }
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(total, _mm512_set1_ps(1.0f / op.out_scale)));
        store(static_cast<uint8_t*>(op.out) + out, mask, bytes(_mm512_add_epi32(q, _mm512_set1_epi32(op.out_zero))));
    }
}

// The image, float [channel][row][column], to uint8 [row][column][channel].
inline void quantize(const Op& op, Share share) {
    const long plane = static_cast<long>(op.height) * op.width, rows = static_cast<long>(op.images) * op.height;
    const __m512 inverse = _mm512_set1_ps(1.0f / op.out_scale);
    const __m512i zero = _mm512_set1_epi32(op.out_zero);
    alignas(64) uint8_t order[64] = {};  // four bytes a pixel to three
    for (int i = 0; i < 48; i++) order[i] = static_cast<uint8_t>(i / 3 * 4 + i % 3);
    const __m512i three = _mm512_load_si512(order);
    for (long r = share.first(rows); r < share.last(rows); r++) {
        const float* in = static_cast<const float*>(op.in) + r / op.height * plane * op.channels + r % op.height * op.width;
        uint8_t* out = static_cast<uint8_t*>(op.out) + r / op.height * op.out_image + r % op.height * op.out_row;
        for (int x = 0; x < op.width; x += LANES) {
            const int count = std::min(LANES, op.width - x);
            auto quantized = [&](long c) {
                const __m512 value = _mm512_mul_ps(_mm512_maskz_loadu_ps(lanes(count), in + c * plane + x), inverse);
                return bytes(_mm512_add_epi32(_mm512_cvtps_epi32(value), zero));
            };
            if (op.channels == 1) {
                store(out + x, lanes(count), quantized(0));
            } else if (op.channels == 3) {
                __m512i pixels = _mm512_setzero_si512();
                for (int c = 0; c < 3; c++)
                    pixels = _mm512_or_si512(pixels, _mm512_slli_epi32(_mm512_cvtepu8_epi32(quantized(c)), 8 * c));
                _mm512_mask_storeu_epi8(out + 3 * x, (1ull << (3 * count)) - 1, _mm512_permutexvar_epi8(three, pixels));
            } else {
                for (int c = 0; c < op.channels; c++) {
                    alignas(16) uint8_t values[LANES];
                    _mm_store_si128(reinterpret_cast<__m128i*>(values), quantized(c));
                    for (int i = 0; i < count; i++) out[static_cast<long>(x + i) * op.channels + c] = values[i];
                }
            }
        }
    }
}
