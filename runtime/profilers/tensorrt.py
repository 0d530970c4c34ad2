"""TensorRT's layer profiler, and the ONNX nodes that its inspector names."""

from __future__ import annotations

import importlib
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.attestation import NAMES
from runtime.profilers import Kernel, Taken, middle

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

WARM = 3  # runs before the first that counts
ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
# A tensor's "Format/Datatype" holds one of these words.
TYPES = {"int8": "int8", "fp8": "float8e4m3fn", "bf16": "bfloat16", "bfloat16": "bfloat16", "half": "float16",
         "fp16": "float16", "float": "float", "fp32": "float"}  # fmt: skip


def layers(engine: Any) -> list[Any]:
    """The engine's layers as its inspector describes them; mere names where it was built without details."""
    trt = module(engine)
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found: list[Any] = json.loads(text)["Layers"]
    return found


def module(engine: Any) -> Any:
    """The Python package that an engine is of: TensorRT or TensorRT-RTX."""
    return importlib.import_module(type(engine).__module__.partition(".")[0])


def precision(layer: dict[str, Any]) -> str:
    """The type of a layer's first input, by ONNX's name."""
    inputs = layer.get("Inputs") or [{}]
    text = str(inputs[0].get("Format/Datatype", "")).lower()
    return next((name for word, name in TYPES.items() if word in text), "?")


def originals(name: str, layer: dict[str, Any]) -> tuple[str, ...]:
    """The file's nodes that a layer was made from; without details, those that its own name is put together from."""
    named = ONNX_LAYER.findall(str(layer.get("Metadata", "")))
    return tuple(dict.fromkeys(named or (part.strip() for part in name.split(" + "))))


def take(session: Session, found: Found, runs: int, stem: Path) -> Taken:
    """Times of its layers; a profiled run waits after every layer."""
    engine: Any = session._engine  # type: ignore[attr-defined]  # a TensorRtSession
    base: Any = module(engine).IProfiler
    times: dict[str, list[float]] = defaultdict(list)

    class Times(base):
        def __init__(self) -> None:
            base.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name].append(ms / 1e3)

    for _ in range(WARM):
        session.step()
    session.sync()
    context = session._context  # type: ignore[attr-defined]
    context.profiler = Times()
    for _ in range(runs):
        session.step()
        session.sync()
    known = {layer["Name"]: layer for layer in layers(engine) if isinstance(layer, dict)}
    return Taken(kernels=tuple(
        Kernel(name=name, operator=str(known.get(name, {}).get("LayerType", "?")),
               precision=NAMES.get(precision(known.get(name, {})), "?"), seconds=middle(taken),
               nodes=originals(name, known.get(name, {})))
        for name, taken in times.items()
    ))  # fmt: skip
