"""What the project's own kernels execute: the file's nodes as the fused steps took them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.attestation import Ran

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session


def attest(session: Session, found: Found) -> Ran:
    """Every node that computes is in a step, or the file would not have loaded."""
    native: Any = session  # a NativeSession
    floats = session.attested["floats"]
    operators = {name: {floats if (name, kind) == ("Conv", "fp32") else kind: count for kind, count in kinds.items()}
                 for name, kinds in native.operators.items()}  # fmt: skip  # sums, norms and means stay in fp32
    fused = sum(len(names) > 1 for _, names in native.steps)
    return Ran(
        device="CPU", operators=operators,
        nodes={"CPU": sum(sum(kinds.values()) for kinds in operators.values())},
        notes=(f"{len(native.steps)} steps, {fused} of them of several nodes",),
    )  # fmt: skip
