"""fp8: E4M3 weights and activations in Q/DQ pairs, for engines with 8-bit floating-point units (SM89 and newer).

Placed where the int8 form for TensorRT has its pairs: a scale maps the largest magnitude to 448, the largest number of
the format (Micikevicius et al., "FP8 Formats for Deep Learning", 2022), where int8 maps it to 127.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
from onnx import numpy_helper

from export.precision import int8

if TYPE_CHECKING:
    from export.precision import Conversion

INT8_LARGEST, FP8_LARGEST = 127.0, 448.0


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Quantize to int8, then exchange every pair's type, zero point and scale, and the weights behind it."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        quantized = Path(folder) / "int8.onnx"
        int8.quantize(source, quantized, conversion, centred=False)  # floats are finest near zero, where it is
        prepared = onnx.load(int8.prepare(source, Path(folder)))
        model = onnx.load(quantized)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.graph.initializer}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {node.input[1]: numpy_helper.to_array(stored[node.input[1]]) for node in pairs}
    for name, scale in scales.items():
        _store(stored[name], (scale * np.float32(INT8_LARGEST / FP8_LARGEST)).astype(np.float32))
    for node in pairs:
        if node.input[0] in stored:
            weight = weights[node.input[0].removesuffix("_quantized")]
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            _store(stored[node.input[0]], rounded(weight, numpy_helper.to_array(stored[node.input[1]]), axis))
        zero = np.zeros(scales[node.input[1]].shape, ml_dtypes.float8_e4m3fn)
        _store(stored[node.input[2]], zero)
    onnx.save(model, destination)


def rounded(weight: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray:
    """The nearest E4M3 numbers to `weight` / `scale`, where the scale has one value a channel along `axis`."""
    shape = [-1 if dimension == axis else 1 for dimension in range(weight.ndim)] if scale.ndim else []
    scaled = np.clip(weight / scale.reshape(shape), -FP8_LARGEST, FP8_LARGEST)
    return scaled.astype(ml_dtypes.float8_e4m3fn)


def _store(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
