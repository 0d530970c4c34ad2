"""What an engine really computes in GELU's place: read from the graph that it made of the file.

Each engine's own graph is compared with the one that it makes of the same file without any activation. What is more in
the first is the activation: one fused operator a place, or its parts one by one.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
from torch import nn

from export.activations_graph import replace_gelu
from trainers.manifest import UserError


def without_activation(source: Path, destination: Path) -> int:
    """Write the exact file without its GELUs; returns how many there were. Raises UserError when there is none."""
    bare, count = replace_gelu(onnx.load(source), nn.Identity())
    if not count:
        raise UserError(f"{source} has no GELU that a graph rewrite can find; choose another model")
    onnx.save(bare, destination)
    return count


def computed(path: Path, bare: Path) -> dict[str, str]:
    """By engine installed here: the operators that stand for the activation in its own graph of `path`."""
    return {name: _text(count(path) - count(bare)) for name, count in _installed().items()}


def _text(more: Counter[str]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in more.most_common()) or "none"


def _installed() -> dict[str, Callable[[Path], Counter[str]]]:
    import importlib.util

    known = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    return {name: count for name, count in known.items() if importlib.util.find_spec(name) is not None}


def _onnxruntime(path: Path) -> Counter[str]:
    """The operators of the graph as ONNX Runtime optimises it for this CPU; a convolution with what it absorbed."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return Counter(_operator(node) for node in graph.node)


def _operator(node: onnx.NodeProto) -> str:
    absorbed = [entry.s.decode() for entry in node.attribute if entry.name == "activation"]
    return "+".join([node.op_type.removeprefix("Fused"), *absorbed])


def _openvino(path: Path) -> Counter[str]:
    """The nodes that OpenVINO's CPU plugin executes, each with all operators of the file that it stands for."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    types = {node.get_friendly_name(): node.get_type_name() for node in model.get_ops()}
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    executed = (_executed(node, types) for node in compiled.get_runtime_model().get_ops())
    return Counter(name for name in executed if not name.startswith("Const"))


def _executed(node: object, types: dict[str, str]) -> str:
    information = node.get_rt_info()  # type: ignore[attr-defined]
    names = information["originalLayersNames"].astype(str).split(",")
    layer = information["layerType"].astype(str)
    return "+".join(dict.fromkeys([layer, *(types[name] for name in names if name in types)]))
