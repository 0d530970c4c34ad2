// How a step's work is shared, and the vector pieces that several kernels need. AVX-512 with VNNI and VBMI.
#pragma once
#include <immintrin.h>
#include <cstddef>

#include "op.h"

struct Share {
    int thread, threads;
    // This thread's part of `count` pieces of work, contiguous.
    long first(long count) const { return count * thread / threads; }
    long last(long count) const { return count * (thread + 1) / threads; }
};

constexpr int LANES = 16;

inline __mmask16 lanes(int count) { return count >= LANES ? 0xFFFF : static_cast<__mmask16>((1u << count) - 1); }

// 16 integers to bytes, clamped to 0 … 255.
inline __m128i bytes(__m512i values) {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(values, _mm512_setzero_si512()));
}

inline __m512 widened(__m128i quantized, __m512i zero, __m512 scale) {
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(quantized), zero)), scale);
}

// Masked stores of bytes cost many times a whole one on some processors, so the common case goes without.
inline void store(uint8_t* to, __mmask16 mask, __m128i values) {
    if (mask == 0xFFFF) _mm_storeu_si128(reinterpret_cast<__m128i*>(to), values);
    else _mm_mask_storeu_epi8(to, mask, values);
}

inline void store(float* to, __mmask16 mask, __m512 values) {
    if (mask == 0xFFFF) _mm512_storeu_ps(to, values);
    else _mm512_mask_storeu_ps(to, mask, values);
}

// A table of 256 bytes in four registers, looked up for 64 bytes at once.
struct Table {
    __m512i quarter[4];
    explicit Table(const uint8_t* table) {
        for (int i = 0; i < 4; i++) quarter[i] = table ? _mm512_loadu_si512(table + 64 * i) : _mm512_setzero_si512();
    }
    __m512i operator()(__m512i index) const {
        __m512i low = _mm512_permutex2var_epi8(quarter[0], index, quarter[1]);
        __m512i high = _mm512_permutex2var_epi8(quarter[2], index, quarter[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high);
    }
};
