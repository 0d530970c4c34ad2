"""What OpenVINO executes, by the runtime model that it compiled."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from runtime.attestation import NAMES, Counts, Ran
from runtime.profilers.openvino import TYPES, live

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

CONVERSIONS = ("Convert", "Reorder", "Transpose")
STANDARD = {"Convolution": "Conv", "FullyConnected": "Gemm", "FullyConnectedQuantizedLegacy": "Gemm",
            "FullyConnectedCompressed": "Gemm", "MatMul": "MatMul"}  # fmt: skip
HEAVY = ("Conv", "Gemm", "MatMul")  # whose kernels are named in the notes


def attest(session: Session, found: Found) -> Ran:
    """Its layers by type and runtime precision."""
    operators: Counts = defaultdict(lambda: defaultdict(int))
    conversions: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    for _, about in live(session._compiled):  # type: ignore[attr-defined]  # an OpenVinoSession
        name, kind = about["layerType"], TYPES.get(about["runtimePrecision"], about["runtimePrecision"])
        if name in CONVERSIONS:
            conversions[name] += 1
        elif kind in NAMES:
            operators[STANDARD.get(name, name)][kind] += 1
            if STANDARD.get(name) in HEAVY:
                kernels[f"{name} by {about['primitiveType']}"] += 1
    return Ran(
        device="CPU", operators={name: dict(kinds) for name, kinds in sorted(operators.items())},
        nodes={"CPU": sum(sum(kinds.values()) for kinds in operators.values())}, conversions=dict(conversions),
        notes=tuple(f"{count} {name}" for name, count in sorted(kernels.items())),
    )  # fmt: skip
