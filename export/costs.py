"""What layers cost in seconds: profiles of an engine, estimates where there is none, and what int8 would save.

`Costs` is the record that `--costs` reads: one engine's time for each layer of one file.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.manifest import Environment, Record, Struct, UserError, sha256

if TYPE_CHECKING:
    import onnx

# Operations a second of two cores with vector units of 512 bits, rounded. Only the ratios matter for a choice between
# layers: 16-bit products go twice as fast and 8-bit ones four times, in layers that sum over channels.
RATES = {"fp32": 200e9, "fp16": 400e9, "bf16": 400e9, "int8": 800e9}
PROFILES = "profile"  # folder of a model's profiles
BANDWIDTH = 40e9  # bytes a second
WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # bytes


class LayerCost(Struct, frozen=True, kw_only=True):
    """A layer's share of one run of the model. A name that several layers were fused under is the first one's."""

    name: str  # of the node in the file
    operator: str
    precision: str
    seconds: float  # in one run of the model, all calls together
    calls: int = 1  # kernels started for it in one run


class Costs(Record, frozen=True, kw_only=True):
    """A profile of one file in one engine."""

    sha256: str  # of the ONNX file
    engine: str
    device: str
    threads: int
    batch: int
    layers: tuple[LayerCost, ...]
    environment: Environment

    def seconds(self) -> dict[str, float]:
        """Seconds by node name."""
        total: dict[str, float] = defaultdict(float)
        for layer in self.layers:
            total[layer.name] += layer.seconds
        return dict(total)


def load_costs(path: Path, file: Path) -> Costs:
    """Read the profile of `file`. Raises UserError when it is another file's, or holds a time that is none."""
    costs = Costs.load(path)
    if costs.sha256 != sha256(file):
        raise UserError(f"{path} is the profile of another file than {file} (sha256 differs); profile this one")
    wrong = next((x.name for x in costs.layers if not (math.isfinite(x.seconds) and x.seconds >= 0)), None)
    if wrong is not None:
        raise UserError(f"{path}: the time of {wrong!r} is not a number of seconds; profile again")
    return costs


def profiles(folder: Path, files: Collection[str]) -> list[tuple[Path, Costs]]:
    """The profiles in a model's folder of files with these hashes, the newest first."""
    paths = sorted((folder / PROFILES).glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    found = []
    for path in paths:
        try:
            costs = Costs.load(path)
        except UserError:  # a trace, or what somebody else has put there
            continue
        if costs.sha256 in files:
            found.append((path, costs))
    return found


def estimate(model: onnx.ModelProto, batch: int | None = None) -> dict[str, dict[str, float]]:
    """Estimated seconds of each layer by precision, by node name: the longer of arithmetic and memory traffic.

    The roofline of Williams, Waterman and Patterson (2009), with RATES and BANDWIDTH for the roofs. Depthwise
    convolutions and elementwise layers have no sums over channels: narrow types save them bytes, but no arithmetic.
    Layers that only reshape, and operators that are not known, are left out. Raises UserError as `layers` does.
    """
    from export.inspect.layers import layers

    return {
        layer.name: {precision: _roofline(layer.flops, layer.elements, precision, layer.matrix) for precision in RATES}
        for layer in layers(model, batch)[0]
        if layer.flops is not None and layer.elements and not layer.folded
    }  # fmt: skip


def _roofline(flops: int, elements: int, precision: str, matrix: bool) -> float:
    rate = RATES[precision if matrix else "fp32"]
    return max(flops / rate, elements * WIDTHS[precision] / BANDWIDTH)


@dataclass(frozen=True)
class Saving:
    """Seconds that int8 saves in one run of a layer, negative where it is slower. `estimated`: not both were timed."""

    name: str
    seconds: float
    estimated: bool


def savings(model: onnx.ModelProto, costs: tuple[Costs, Costs] | Costs | None = None) -> dict[str, Saving]:
    """What quantizing each layer of an fp32 model to int8 saves, by node name.

    `costs` is the profile of this file and of its int8 form, or of this file alone, or nothing. Without the int8 time
    of a layer its fp32 time is scaled by the estimated ratio; without either the saving is the estimate's.
    Raises UserError where the two profiles were not taken in the same way.
    """
    before, after = costs if isinstance(costs, tuple) else (costs, None)
    if before and after:
        _same_conditions(before, after)
    estimated = estimate(model, before.batch if before else None)
    timed, quantized = before.seconds() if before else None, after.seconds() if after else {}
    found = {}
    for name, seconds in estimated.items():
        ratio = seconds["int8"] / seconds["fp32"]
        now = seconds["fp32"] if timed is None else timed.get(name, 0.0)  # fused into another layer: that has its time
        measured = timed is not None and name in timed and name in quantized
        found[name] = Saving(name, now - (quantized[name] if measured else now * ratio), not measured)
    return found


def _same_conditions(before: Costs, after: Costs) -> None:
    for field in ("engine", "device", "threads", "batch"):
        a, b = getattr(before, field), getattr(after, field)
        if a != b:
            raise UserError(f"the two profiles differ in {field} ({a} and {b}); profile both files in the same way")
