"""Reading and finishing OpenVINO's files: what export/graph.py is for ONNX."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from export.artifact import Tensor

TYPES = {"f32": "float", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}  # by ONNX's names
WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
PASSING = ("Convert", "Multiply", "Subtract", "FakeQuantize", "Reshape")  # between stored and used weights


def finish(path: Path, essentials: dict[str, str]) -> Any:
    """Write the essentials into the file's `model_info`, and return the model read back from disk."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    for key, value in essentials.items():
        model.set_rt_info(value, ["model_info", key])
    finished = path.with_name(f"finished-{path.name}")
    openvino.save_model(model, finished, compress_to_fp16=False)
    del model  # its weights are mapped from the file that is replaced here
    finished.replace(path)
    finished.with_suffix(".bin").replace(path.with_suffix(".bin"))
    return core.read_model(path)


def signature(model: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The graph's inputs and outputs."""
    return tuple(map(_tensor, model.inputs)), tuple(map(_tensor, model.outputs))


def weight_types(model: Any) -> dict[str, dict[str, int]]:
    """How many nodes of each operator hold a weight of each type, as it is stored."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for node in model.get_ordered_ops():
        if node.get_type_name() in WEIGHTED and (kind := _stored(node.input_value(1).get_node())):
            counts[node.get_type_name()][kind] += 1
    return {operator: dict(kinds) for operator, kinds in sorted(counts.items())}


def _stored(node: Any) -> str | None:
    """The type of the constant behind dequantization; None where the operand is no weight."""
    while node.get_type_name() in PASSING:
        node = node.input_value(0).get_node()
    return TYPES[node.get_element_type().to_string()] if node.get_type_name() == "Constant" else None


def _tensor(port: Any) -> Tensor:
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return Tensor(name=port.get_any_name(), dtype=TYPES[port.get_element_type().to_string()], shape=shape)
