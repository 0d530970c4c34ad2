"""What ONNX Runtime executed, by its own profiler."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.attestation import NAMES, Counts, Ran
from runtime.profilers.onnxruntime import computes_in, profile, standard

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

CONVERSIONS = ("Cast", "MemcpyFromHost", "MemcpyToHost", "ReorderInput", "ReorderOutput", "Transpose")
HEAVY = ("Conv", "Gemm", "MatMul")  # whose kernels are named in the notes


def attest(session: Session, found: Found) -> Ran:
    """The nodes of one run of a second session with the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        (events, *_), _ = profile(session, found, 1, Path(folder))
    operators: Counts = defaultdict(lambda: defaultdict(int))
    nodes: Counter[str] = Counter()
    conversions: Counter[str] = Counter()
    for event in events:
        name, kind = event["args"]["op_name"], computes_in(event)
        if name in CONVERSIONS:
            conversions[name] += 1
        elif kind in NAMES:  # sizes and indices are worked out on the CPU wherever the rest runs
            operators[standard(name)][kind] += 1
            nodes[event["args"]["provider"]] += 1
    kernels = Counter(event["args"]["op_name"] for event in events if standard(event["args"]["op_name"]) in HEAVY)
    provider: str = session._session.get_providers()[0]  # type: ignore[attr-defined]  # an OrtSession
    return Ran(
        device=provider, operators={name: dict(kinds) for name, kinds in sorted(operators.items())},
        nodes=dict(nodes), conversions=dict(conversions),
        notes=tuple(f"{count} {name}" for name, count in sorted(kernels.items())),
    )  # fmt: skip
