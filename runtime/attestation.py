"""Attestation: what an engine really executed, and where that falls short of what the artifact's record promises.

A file is int8 only where its convolutions ran in int8: engines leave the pattern they do not know in float, widen types
they have no kernels for, and place nodes on another device, all in silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from trainers.manifest import Struct

if TYPE_CHECKING:
    from export.artifact import Artifact

Counts = dict[str, dict[str, int]]

# What a record, an engine or PyTorch calls the operators that have nearly all of the arithmetic. Only these are held to
# the promise: all others are fused away as each engine likes.
FAMILIES = {
    **dict.fromkeys(("Conv", "ConvInteger", "Conv1d", "Conv2d", "Convolution", "GroupConvolution"), "Conv"),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "Linear"), "MatMul"),
}
NAMES = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
         "float8e4m3fn": "fp8"}  # fmt: skip
FLOATS = ("fp32", "fp16", "bf16")


class Ran(Struct, frozen=True, kw_only=True):
    """What one inference executed. `device` is the provider or device that was asked for.

    `operators` counts nodes by operator and by the type they computed in, both by ONNX's names where the engine lets
    one tell: {"Conv": {"int8": 53}}, as `Artifact.attested` does for the file. `nodes` counts, by provider or device,
    those that work on the model's numbers; `conversions` those that only change a type, a layout or a place, the file's
    own among them. `notes` is whatever else is worth knowing, a line each.
    """

    device: str = ""
    operators: Counts = msgspec.field(default_factory=dict)
    nodes: dict[str, int] = msgspec.field(default_factory=dict)
    conversions: dict[str, int] = msgspec.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def shortfall(record: Artifact, ran: Ran, *, rest: str | None = None) -> str | None:
    """What the record promises and the engine did not do, in one line; None where it did, or where it tells nothing.

    What the export left in float on purpose is in the record as float, and no shortfall. `rest` is the precision that
    an option of the run asked for in place of the record's, for whatever the file leaves in floating point.
    """
    promised, done = _by_family(record.attested, rest), _by_family(ran.operators, None)
    for family, kinds in promised.items():
        line = _missing(_label(record.attested, family), kinds, done.get(family, {}))
        if line is not None:
            return line
    elsewhere = {place: count for place, count in ran.nodes.items() if place != ran.device}
    if elsewhere:
        place, count = max(elsewhere.items(), key=lambda pair: pair[1])
        return f"{count} of {sum(ran.nodes.values())} nodes ran in {place}, {ran.device} was asked for"
    return None


def _missing(operators: str, promised: Mapping[str, int], done: Mapping[str, int]) -> str | None:
    """Fewer nodes than promised in one precision and more than promised in another: these ran as what they are not.

    An engine that merges nodes has fewer of one and no more of another; a graph with products of two activations,
    which hold no weight and promise nothing, has more of another and no fewer of one.
    """
    for precision, count in promised.items():
        missing = count - done.get(precision, 0)
        surplus = {name: n - promised.get(name, 0) for name, n in done.items() if n > promised.get(name, 0)}
        if missing > 0 and surplus:
            name, more = max(surplus.items(), key=lambda pair: pair[1])
            return f"{min(missing, more)} of {count} {operators} ran in {name}, the record says {precision}"
    return None


def _by_family(counts: Counts, rest: str | None) -> Counts:
    """Convolutions and matrix products by precision."""
    found: Counts = defaultdict(lambda: defaultdict(int))
    for operator, kinds in counts.items():
        for kind, count in kinds.items():
            if operator in FAMILIES:
                precision = NAMES.get(kind, kind)
                found[FAMILIES[operator]][rest if rest and precision in FLOATS else precision] += count
    return found


def _label(attested: Counts, family: str) -> str:
    """The family by the record's own names."""
    return " and ".join(sorted(operator for operator in attested if FAMILIES.get(operator) == family))
