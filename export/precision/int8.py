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

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

if TYPE_CHECKING:
    import numpy as np

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
    """Quantize weights per channel and activations per tensor, with ranges seen on the calibration images.

    Raises ValueError where the graph has no node of a name in `kept`.
    """
    assert conversion.images is not None and conversion.target is not None, "int8 is calibrated for a target"
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        prepared = prepare(source, Path(folder))
        graph = onnx.load(prepared).graph
        unknown = set(conversion.kept) - {node.name for node in graph.node}
        if unknown:
            raise ValueError(f"no node is named {', '.join(sorted(unknown))}")
        settings, excluded = placement(graph, conversion.target)
        quantize_static(
            str(prepared),
            str(destination),
            Reader(graph.input[0].name, conversion.images()),
            nodes_to_exclude=[*excluded, *conversion.kept],
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            **settings,
        )


def prepare(source: Path, folder: Path) -> Path:
    """The graph with its norms folded, its shapes inferred and a name for every node, in `folder`."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(prepared)
    taken: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in taken:  # an inlined function's nodes, for one
            node.name = f"{node.op_type}/{node.output[0]}"
        taken.add(node.name)
    onnx.save(model, prepared)
    return prepared


def placement(graph: onnx.GraphProto, target: str) -> tuple[dict[str, Any], list[str]]:
    """The quantizer's settings for a prepared graph, and the nodes that no assignment may quantize."""
    settings = {"op_types_to_quantize": [*QDQRegistry, *QLinearOpsRegistry], **PLACEMENTS[target]}
    if any(node.op_type == "LayerNormalization" for node in graph.node):
        # A norm over (C, H, W) has no channel axis to quantize along; such graphs keep all but the matrix products in
        # float.
        settings["op_types_to_quantize"] = MATRIX_OPS
    return settings, without_integer_kernel(graph) if target == "cpu" else []


def observe(prepared: Path, settings: dict[str, Any], excluded: list[str], conversion: Conversion) -> TensorsData:
    """The range of every activation that may be quantized, seen on the calibration images."""
    assert conversion.images is not None, "int8 is calibrated"
    with tempfile.TemporaryDirectory() as folder:
        augmented = str(Path(folder) / "augmented.onnx")
        calibrator = create_calibrator(prepared, settings["op_types_to_quantize"], augmented_model_path=augmented)
        calibrator.collect_data(Reader(onnx.load(prepared).graph.input[0].name, conversion.images()))
        found: TensorsData = calibrator.compute_data()
    return found


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
