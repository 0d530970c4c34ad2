"""OpenVINO's performance counters, and the names that its runtime model keeps of the file's nodes."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import fusion
from runtime.attestation import NAMES
from runtime.profilers import Kernel, Taken, middle

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

# What the timed session was compiled with, as far as it decides on arithmetic and speed.
SETTINGS = (
    "INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT", "EXECUTION_MODE_HINT",
    "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "CPU_DENORMALS_OPTIMIZATION",
)  # fmt: skip
TYPES = {"f32": "float", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "int8"}  # by ONNX's names
SUFFIX = re.compile(r"/(WithoutBiases|DequantizationMultiply|DequantizationSubtract|fq_output_0|fq_input_\d+)")
EDGES = ("Input", "Output", "Const")
WARM = 3  # runs before the first that counts


def info(node: Any) -> dict[str, str]:
    """What the runtime model says of a layer: layerType, runtimePrecision, primitiveType, originalLayersNames."""
    return {key: value.astype(str) for key, value in node.get_rt_info().items()}


def live(compiled: Any) -> list[tuple[Any, dict[str, str]]]:
    """The layers that work on the image, in the order of execution: not those that prepare weights at load."""
    reached: set[str] = set()
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        about, name = info(node), node.get_friendly_name()
        sources = {value.get_node().get_friendly_name() for value in node.input_values()}
        if about["layerType"] == "Input" or sources & reached:
            reached.add(name)
            if about["layerType"] not in EDGES:
                found.append((node, about))
    return sorted(found, key=lambda pair: int(pair[1]["execOrder"]))


def originals(about: dict[str, str]) -> tuple[str, ...]:
    """The names that a layer's origins have in the file, without what OpenVINO's passes add to them."""
    return tuple(dict.fromkeys(SUFFIX.sub("", name) for name in about["originalLayersNames"].split(",") if name))


def take(session: Session, found: Found, runs: int, stem: Path) -> Taken:
    """Times of its layers, each with the file's nodes that it was made from.

    Counting slows an inference down, so a second compilation counts.
    """
    import openvino

    first: Any = session._compiled  # type: ignore[attr-defined]  # an OpenVinoSession
    x = session._x  # type: ignore[attr-defined]
    core = openvino.Core()
    model = core.read_model(found.path)
    model.reshape(first.input(0).get_partial_shape())
    kept = {name: first.get_property(name) for name in SETTINGS}
    compiled = core.compile_model(model, "CPU", {**kept, "PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    times: dict[str, list[float]] = defaultdict(list)
    for run in range(WARM + runs):
        request.infer()
        for layer in request.get_profiling_info() if run >= WARM else ():
            if layer.status == openvino.ProfilingInfo.Status.EXECUTED:
                times[layer.node_name].append(layer.real_time.total_seconds())
    ran = [(node, about) for node, about in live(compiled) if node.get_friendly_name() in times]
    nodes = _nodes(found, len(x), [about for _, about in ran])
    return Taken(kernels=tuple(
        Kernel(name=node.get_friendly_name(), operator=about["layerType"],
               precision=_precision(about), seconds=middle(times[node.get_friendly_name()]), nodes=stands_for)
        for (node, about), stands_for in zip(ran, nodes, strict=True)
    ))  # fmt: skip


def _precision(about: dict[str, str]) -> str:
    kind = about["runtimePrecision"]
    return NAMES.get(TYPES.get(kind, kind), kind)


def _nodes(found: Found, batch: int, layers: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """The file's nodes of each layer; OpenVINO's own files have no ONNX nodes, their layers keep their names there."""
    if found.kind != "onnx":
        return [originals(about) for about in layers]
    from export.inspect.model import read

    return fusion.assign(fusion.read(read(found.path), batch), [fusion.Hint(names=originals(a)) for a in layers])
