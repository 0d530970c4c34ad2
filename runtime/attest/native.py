"""What the project's own kernels execute: the file's nodes as the fused steps took them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.attestation import Ran

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session


def attest(session: Session, found: Found) -> Ran:
    """Every node that computes is in a step, or the file would not have loaded."""
    lowered = session.lowered  # type: ignore[attr-defined]  # a NativeSession
    floats = session.attested["floats"]
    operators = {name: {floats if kind == "fp32" else kind: count for kind, count in kinds.items()}
                 for name, kinds in lowered.operators.items()}  # fmt: skip
    fused = sum(len(step.names) > 1 for step in lowered.steps)
    return Ran(
        device="CPU", operators=operators,
        nodes={"CPU": sum(sum(kinds.values()) for kinds in lowered.operators.values())},
        notes=(f"{len(lowered.steps)} steps, {fused} of them of several nodes",),
    )  # fmt: skip
