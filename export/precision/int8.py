"""int8: static quantization with Q/DQ pairs, placed for the engine that will run the file.

The two placements exclude each other. TensorRT takes symmetric pairs only, so lopsided activations are centred first
(centre.py), no quantized bias, and wants the output of a convolution free to fuse with what follows. ONNX Runtime's CPU
kernels are integer from end to end: they need asymmetric uint8 activations, and a pair on every edge, or the
convolution silently stays in float. OpenVINO's files are NNCF's work (int8_openvino.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from export.pixels import normalising
from export.precision import OPENVINO, int8_openvino, ranges
from export.precision.centre import Range, centre

if TYPE_CHECKING:
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


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Quantize weights per channel and activations per tensor, with ranges seen on the calibration images.

    Raises ValueError where the graph has no node of a name in `kept`.
    """
    assert conversion.target is not None, "int8 is placed for a target"
    if conversion.target == OPENVINO:
        int8_openvino.convert(source, destination, conversion)
    else:
        quantize(source, destination, conversion, centred=is_symmetric(conversion.target))


def quantize(source: Path, destination: Path, conversion: Conversion, *, centred: bool) -> None:
    """Quantize with ONNX Runtime's quantizer, lopsided activations centred first if asked for."""
    assert conversion.target is not None, "int8 is placed for a target"
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        prepared, observed = prepare(source, Path(folder)), Path(folder) / "ranges.json"
        model = onnx.load(prepared)
        unknown = set(conversion.kept) - {node.name for node in model.graph.node}
        if unknown:
            raise ValueError(f"no node is named {', '.join(sorted(unknown))}")
        settings, excluded = placement(model.graph, conversion.target)
        kept = [*excluded, *conversion.kept]
        found = observe(prepared, settings, kept, conversion)
        if centred:
            found = centre(model, found, settings["op_types_to_quantize"], kept)
            onnx.save(model, prepared)
        save_tensors_data(as_data(found), observed)
        quantize_static(
            str(prepared),
            str(destination),
            calibration_cache_path=observed,
            nodes_to_exclude=kept,
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
    floats_between = any(node.op_type == "LayerNormalization" for node in graph.node)
    if floats_between:
        # A norm over (C, H, W) has no channel axis to quantize along; such graphs keep all but the matrix products in
        # float.
        settings["op_types_to_quantize"] = MATRIX_OPS
    slower = without_integer_kernel(graph, floats_between) if target == "cpu" else []
    return settings, normalising(graph) + slower


def is_symmetric(target: str) -> bool:
    """Whether the target's pairs have no zero point for activations."""
    return bool(PLACEMENTS[target]["extra_options"].get("ActivationSymmetric"))


def observe(prepared: Path, settings: dict[str, Any], kept: list[str], conversion: Conversion) -> dict[str, Range]:
    """The range of every activation that is to be quantized, seen on the calibration images."""
    assert conversion.images is not None, "int8 is calibrated"
    model = onnx.load(prepared)
    free = "OpTypesToExcludeOutputQuantization" in settings["extra_options"]
    tensors = ranges.activations(model, settings["op_types_to_quantize"], kept, outputs=not free)
    observed = ranges.observe(model, tensors, conversion.images(), histograms=conversion.method != "minmax")
    found = {name: seen.range(conversion.method) for name, seen in observed.items()}
    return {name: (np.float32(low), np.float32(high)) for name, (low, high) in found.items()}


def as_data(found: Mapping[str, Range]) -> TensorsData:
    """Ranges as ONNX Runtime's quantizer takes them; it changes what it is given."""
    return TensorsData(CalibrationMethod.MinMax, dict(found))


def without_integer_kernel(graph: onnx.GraphProto, floats_between: bool = False) -> list[str]:
    """The grouped convolutions that ONNX Runtime computes faster in float.

    Those with a channel multiplier run group by group in int8: on a ConvNeXt whose depthwise convolutions widen by 4
    that is several times slower. Plain depthwise ones have an integer kernel, which does not pay where what is around
    them stays in float: the same ConvNeXt, split into such, takes 29.7 ms with them in float and 33.1 ms in int8.
    """
    outputs = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    return [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and (groups := _groups(node)) > 1
        and (floats_between or outputs.get(node.input[1]) != groups)
    ]


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
