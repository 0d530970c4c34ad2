"""int8: static quantization with Q/DQ pairs, placed for the engine that will run the file.

The two placements exclude each other. TensorRT takes symmetric pairs only, no quantized bias, and wants the output of
a convolution free to fuse with what follows. ONNX Runtime's CPU kernels are integer from end to end: they need
asymmetric uint8 activations, and a pair on every edge, or the convolution silently stays in float.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from export.precision import Conversion

MATRIX_OPS = ["Conv", "Gemm", "MatMul"]

PLACEMENTS: dict[str, dict[str, Any]] = {
    "cpu": {"activation_type": QuantType.QUInt8, "extra_options": {"WeightSymmetric": True}},
    "tensorrt": {
        "activation_type": QuantType.QInt8,
        "op_types_to_quantize": MATRIX_OPS,
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": False,
            "OpTypesToExcludeOutputQuantization": MATRIX_OPS,
        },
    },
}


class Reader(CalibrationDataReader):
    """Hands image batches to ONNX Runtime's calibrator, one at a time."""

    def __init__(self, name: str, images: Iterator[np.ndarray]) -> None:
        self.name, self.images = name, images

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.images, None)
        return None if batch is None else {self.name: batch}


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Quantize weights per channel and activations per tensor, with ranges seen on the calibration images."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert conversion.images is not None and conversion.target is not None, "int8 is calibrated for a target"
    settings = dict(PLACEMENTS[conversion.target])
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        if any(node.op_type == "LayerNormalization" for node in graph.node):
            # A norm over (C, H, W) has no channel axis to quantize along; such graphs keep all but the matrix
            # products in float.
            settings["op_types_to_quantize"] = MATRIX_OPS
        kept = list(conversion.kept)
        if conversion.target == "cpu":
            kept += without_integer_kernel(graph)
        quantize_static(
            str(prepared),
            str(destination),
            Reader(graph.input[0].name, conversion.images()),
            nodes_to_exclude=kept,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            **settings,
        )


def without_integer_kernel(graph: onnx.GraphProto) -> list[str]:
    """Grouped convolutions with a channel multiplier: ONNX Runtime runs their int8 form group by group.

    On a ConvNeXt whose depthwise convolutions widen by 4 that is several times slower than the float kernel.
    """
    outputs = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv" and (groups := _groups(node)) > 1 and outputs.get(node.input[1]) != groups
    ]


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
