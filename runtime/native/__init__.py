"""This project's own engine for int8 files on the CPU: one program of fused steps, in kernels for AVX-512 with VNNI.

`lower.py` reads an ONNX file whose convolutions stand between QuantizeLinear and DequantizeLinear (`--target cpu`)
into `steps.py`'s fused steps; `program.py` lays out memory and packs weights; `library.py` compiles the kernels
(`*.h`, `native.cpp`) for this machine's processor, once, with the system's C++ compiler. A step is more than an engine
for any graph fuses: a convolution with its activation as a table of 256 bytes, its residual sum and its quantization;
a depthwise convolution with the sums that its norm needs.
"""
