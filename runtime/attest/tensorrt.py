"""What TensorRT executes, by the engine inspector. Detailed only for engines that were built with that verbosity."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from runtime.attestation import Counts, Ran
from runtime.profilers.tensorrt import layers, precision

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

CONVERSIONS = ("reformat", "cast", "shuffle", "noop")


def attest(session: Session, found: Found) -> Ran:
    """The engine's layers by kind and by the type of their first input."""
    return read(layers(session._engine))  # type: ignore[attr-defined]  # a TensorRtSession


def read(found: list[Any]) -> Ran:
    """Layers as the inspector describes them: objects, or mere names where the engine was built without details."""
    operators: Counts = defaultdict(lambda: defaultdict(int))
    conversions: Counter[str] = Counter()
    detailed = [layer for layer in found if isinstance(layer, dict)]
    for layer in detailed:
        kind = layer.get("LayerType", "")
        if kind.lower() in CONVERSIONS:
            conversions[kind] += 1
        else:
            operators[operator(layer)][precision(layer)] += 1
    notes = () if detailed else (f"{len(found)} layers; built without detailed verbosity: their types are not known",)
    return Ran(
        device="TensorRT", operators={name: dict(kinds) for name, kinds in sorted(operators.items())},
        nodes={"TensorRT": len(found) - sum(conversions.values())}, conversions=dict(conversions), notes=notes,
    )  # fmt: skip


def operator(layer: dict[str, Any]) -> str:
    """ONNX's name of a convolution or product, TensorRT's own of anything else."""
    text = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    if "conv" in text:
        return "Conv"
    if "gemm" in text or "matrixmultiply" in text or "matmul" in text:
        return "MatMul"
    return str(layer.get("LayerType", "?"))
