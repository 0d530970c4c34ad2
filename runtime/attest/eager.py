"""What PyTorch executes, by its own profiler; the same for a compiled module, whose graph breaks are counted too."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.attestation import NAMES, Counts, Ran

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

# ONNX's names of the operators that do the arithmetic, by those of ATen and of the libraries that inductor calls.
STANDARD = {
    **dict.fromkeys(("aten::conv2d", "aten::convolution", "aten::mkldnn_convolution",
                     "mkldnn::_convolution_pointwise", "mkldnn::_convolution_pointwise_"), "Conv"),
    **dict.fromkeys(("aten::linear", "aten::addmm", "mkl::_mkl_linear", "mkldnn::_linear_pointwise"), "Gemm"),
    **dict.fromkeys(("aten::matmul", "aten::mm", "aten::bmm"), "MatMul"),
}  # fmt: skip
TYPES = {"float": "float", "c10::Half": "float16", "c10::BFloat16": "bfloat16", "signed char": "int8",
         "unsigned char": "int8"}  # fmt: skip  # by ONNX's names
CONVERSIONS = ("aten::to", "aten::_to_copy", "aten::copy_", "aten::contiguous", "mkldnn::_reorder_convolution_weight")
MEMORY = ("aten::empty", "aten::empty_strided", "aten::resize_", "aten::as_strided", "aten::detach")


def attest(session: Session, found: Found) -> Ran:
    """The outermost operators of one step, the module's parameters, and what Dynamo counted."""
    import torch

    operators: Counts = defaultdict(lambda: defaultdict(int))
    conversions: Counter[str] = Counter()
    for event in _outermost(_events(session)):
        name, kind = event["name"], _kind(event)
        if name in CONVERSIONS:
            conversions[name] += 1
        elif kind in NAMES and name not in MEMORY:
            operators[STANDARD.get(name, name)][kind] += 1
    device: str = session._device  # type: ignore[attr-defined]  # a TorchSession
    forward = session._forward  # type: ignore[attr-defined]
    notes = [f"{torch.get_num_threads()} threads", f"products of fp32 at {torch.get_float32_matmul_precision()}"]
    if isinstance(forward, torch.nn.Module):
        kinds = Counter(str(parameter.dtype).removeprefix("torch.") for parameter in forward.parameters())
        notes += [f"{count} parameters in {kind}" for kind, count in sorted(kinds.items())]
    return Ran(
        device=device, operators={name: dict(kinds) for name, kinds in sorted(operators.items())},
        nodes={device: sum(sum(kinds.values()) for kinds in operators.values())}, conversions=dict(conversions),
        notes=(*notes, *_dynamo()),
    )  # fmt: skip


def _events(session: Session) -> list[dict[str, Any]]:
    """The operators of one step, from a Chrome trace: the only place where the profiler writes their types."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True, acc_events=True) as recorder:
        session.step()
        session.sync()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        recorder.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") == "cpu_op" and "::" in event["name"]]


def _outermost(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those not called by another operator: conv2d calls convolution, which calls a library."""
    found: list[dict[str, Any]] = []
    ends: dict[int, float] = {}
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] >= ends.get(event["tid"], 0.0):
            found.append(event)
            ends[event["tid"]] = event["ts"] + event["dur"]
    return found


def _kind(event: dict[str, Any]) -> str:
    kinds = event["args"].get("Input type") or ["?"]
    return TYPES.get(kinds[0], kinds[0])


def _dynamo() -> list[str]:
    """Graphs, graph breaks and recompilations since the last load; nothing where nothing was compiled."""
    import torch

    compiled = torch._dynamo.convert_frame.FRAME_COMPILE_COUNTER
    if not compiled:
        return []
    breaks = torch._dynamo.utils.counters["graph_break"]
    again = sum(count - 1 for count in compiled.values())
    reasons = [" ".join(reason.split("\n", 1)[0].split()) for reason in breaks]
    return [f"{sum(breaks.values())} graph breaks", f"{again} recompilations",
            *(f"graph break: {reason}" for reason in reasons)]  # fmt: skip
