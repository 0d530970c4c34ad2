"""The time of each fused step, by the program's own clock: all threads meet after every step."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.profilers import Kernel, Taken, middle

if TYPE_CHECKING:
    from export.artifact import Found
    from runtime.backend import Session

FLOAT = ("Depthwise", "Norm")  # steps that are not of integers
WARM = 3  # runs before the first that counts


def take(session: Session, found: Found, runs: int, stem: Path) -> Taken:
    """One entry a step; a norm's sums count to the norm."""
    program, steps = session.program, session.steps  # type: ignore[attr-defined]  # a NativeSession
    floats = session.attested["floats"]
    times: dict[int, list[float]] = defaultdict(list)
    for run in range(WARM + runs):
        spent: dict[int, float] = defaultdict(float)
        for index, seconds in zip(program.steps, program.profile(), strict=True):
            spent[index] += seconds
        for index, seconds in spent.items() if run >= WARM else ():
            times[index].append(seconds)
    return Taken(kernels=tuple(
        Kernel(
            name="+".join(names), operator=kind, seconds=middle(times[index]), nodes=names,
            precision=floats if kind in FLOAT else "int8",
        )
        for index, (kind, names) in enumerate(steps)
    ))  # fmt: skip
