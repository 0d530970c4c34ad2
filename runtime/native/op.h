// One step of a program, as `Op` of library.py: the fields and their order are the same in both.
#pragma once
#include <cstdint>

enum Kind : int32_t { QUANTIZE, CONVOLUTION, PRODUCT, DEPTHWISE, STATISTICS, NORM, MAXIMUM, MEAN };

// Maps have a border of their padding's value around each image. uint8 ones lie in memory as [image][row][column][channel],
// float ones as [image][channel / 16][row][column][16], so that a window's columns are neighbours and no vector is in part
// unused: what fills up the last 16 channels is zero. Strides and offsets count elements of the map's own type.
struct Op {
    Kind kind;
    int32_t images, height, width, channels;     // of the output
    int32_t depth, taps;                         // of a convolution: bytes a tap (a multiple of 4), and how many taps
    int32_t kernel_height, kernel_width, stride_height, stride_width;
    int32_t in_channels, multiplier;             // of a depthwise convolution: its outputs for each channel
    int32_t in_row, in_block, in_image;          // from one row, 16 channels, image to the next
    int32_t out_row, out_block, out_image, residual_block;
    int32_t wide;                                // the output is float, not uint8
    int32_t half;                                // a depthwise convolution in bf16; a norm's weights as half floats
    int32_t added;                               // what is added before the output: 0 nothing, 1 uint8, 2 float
    int32_t quantized;                           // a mean's input is uint8
    int32_t zero, residual_zero, out_zero;       // zero points: of the sum, of what is added, of the output
    float scale, residual_scale, out_scale;      // and the scales
    float epsilon;
    const void* in;
    void* out;
    const void* residual;
    const void* weights;
    const float* multipliers;                    // accumulator to quantized sum, one a channel
    const void* bias;                            // int32 of a convolution, float of a depthwise one and of a norm
    const uint8_t* table;                        // a function of a quantized value: 256 results, or null
    const int32_t* in_offsets;                   // of each output pixel: where its first tap starts
    const int32_t* tap_offsets;                  // of each tap, from there
    const int32_t* out_offsets;                  // of each output pixel
    const int32_t* residual_offsets;
    double* sums;                                // [image][thread][sum, sum of squares] of a map that is normalised
};
