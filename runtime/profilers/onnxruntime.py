"""ONNX Runtime's profiler, and the graph that it made of the file."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.precision import PRECISIONS
from runtime import fusion
from runtime.attestation import NAMES
from runtime.profilers import Kernel, Taken, middle

if TYPE_CHECKING:
    import onnx

    from export.artifact import Found
    from runtime.backend import Session

SUFFIX = "_kernel_time"
INTEGER = ("Integer", "QLinear", "DynamicQuantizeMatMul", "QGemm")  # in the names of operators that multiply 8-bit
# What its optimisers add to a node's name. Blocked (nchwc) nodes are called after the tensor that they make.
RENAMED = re.compile(r"^InsertedPrecisionFreeCast_|(_token_\d+|_nchwc)+$")
WARM = 3  # runs before the first that counts


def standard(operator: str) -> str:
    """ONNX's name of what an operator of ONNX Runtime computes: QLinearConv, FusedConv and ConvInteger are Conv."""
    if operator in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return operator
    plain = re.sub(r"^(NhwcFused|Nhwc|Fused|QLinear|DynamicQuantize|Q(?=Gemm))", "", operator)
    return re.sub(r"Integer(ToFloat)?$", "", plain)


def computes_in(event: dict[str, Any]) -> str:
    """The type that a node computes in, by ONNX's name: that of its first input, 8 bits for the integer operators."""
    arguments = event["args"]
    if any(part in arguments["op_name"] for part in INTEGER):
        return "int8"
    kinds = [kind for given in arguments["input_type_shape"] for kind in given]
    kind = next(iter(kinds), "?")
    return "int8" if kind == "uint8" else kind


def profile(session: Session, found: Found, runs: int, folder: Path) -> tuple[list[list[dict[str, Any]]], Path]:
    """The nodes executed in each of `runs` runs on the bound input, and the file of the optimised graph.

    A second session with the first one's settings is profiled, so that the first keeps its speed and its memory.
    """
    import onnxruntime

    first: Any = session._session  # type: ignore[attr-defined]  # an OrtSession
    settings, optimised = first.get_session_options(), folder / "optimised.onnx"
    settings.enable_profiling, settings.profile_file_prefix = True, str(folder / "profile")
    settings.optimized_model_filepath = str(optimised)
    providers = [(name, _without_graphs(options)) for name, options in first.get_provider_options().items()]
    row = PRECISIONS[found.record.variant.precision if found.record else "fp32"]
    second = onnxruntime.InferenceSession(str(found.path), settings, providers=providers,
                                          disabled_optimizers=list(row.disabled))  # fmt: skip
    feeds = {first.get_inputs()[0].name: session._x.numpy()}  # type: ignore[attr-defined]
    for _ in range(WARM + runs):
        second.run(None, feeds)
    events = json.loads(Path(second.end_profiling()).read_text())
    return _by_run(events)[WARM:], optimised


def _without_graphs(options: dict[str, str]) -> dict[str, str]:
    """A replayed CUDA graph has no nodes to time."""
    return {**options, "enable_cuda_graph": "0"} if "enable_cuda_graph" in options else options


def _by_run(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Node events in the order of execution, a list for every run. A run's own event is written after its nodes."""
    runs: list[list[dict[str, Any]]] = [[]]
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(SUFFIX):
            runs[-1].append(event)
        elif event["name"] == "model_run":
            runs.append([])
    return runs[:-1]


def take(session: Session, found: Found, runs: int, stem: Path) -> Taken:
    """Times of its nodes, each with the file's nodes that it was made from."""
    import onnx

    from export.inspect.model import read

    with tempfile.TemporaryDirectory() as folder:
        taken, optimised = profile(session, found, runs, Path(folder))
        made = {node.name: node for node in onnx.load(optimised, load_external_data=False).graph.node}
    times: dict[str, list[float]] = defaultdict(list)
    for events in taken:
        for event in events:
            times[event["name"]].append(event["dur"] / 1e6)
    ran = list({event["name"]: event for event in taken[0]}.values())
    batch = int(session._x.shape()[0])  # type: ignore[attr-defined]
    file = fusion.read(read(found.path), batch)
    nodes = fusion.assign(file, [_hint(event, made) for event in ran])
    return Taken(kernels=tuple(
        Kernel(name=event["name"].removesuffix(SUFFIX), operator=event["args"]["op_name"],
               precision=NAMES.get(computes_in(event), computes_in(event)),
               seconds=middle(times[event["name"]]) * len(times[event["name"]]) / runs,
               calls=len(times[event["name"]]) // runs, nodes=stands_for)
        for event, stands_for in zip(ran, nodes, strict=True)
    ))  # fmt: skip


def _hint(event: dict[str, Any], made: dict[str, onnx.NodeProto]) -> fusion.Hint:
    name = event["name"].removesuffix(SUFFIX)
    node = made.get(name)
    return fusion.Hint(
        names=(name, RENAMED.sub("", name)), operator=standard(event["args"]["op_name"]),
        outputs=tuple(node.output) if node else (), inputs=tuple(node.input) if node else (),
    )  # fmt: skip
