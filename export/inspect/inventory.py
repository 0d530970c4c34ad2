"""Inventory: the layers of one file, summed by operator, with their measured time where a profile is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from export.costs import Costs
from export.inspect.layers import Layer, layers
from export.inspect.model import read
from trainers.manifest import sha256


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bar of the chart: a layer, or all layers of one operator in one precision. None is not known."""

    label: str
    operator: str
    precision: str
    nodes: int
    flops: int | None
    bytes: int | None
    parameters: int
    seconds: float | None
    weight: str = ""
    shape: tuple[int, ...] | None = None

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return self.flops / self.bytes if self.flops is not None and self.bytes else None


@dataclass(frozen=True)
class Inventory:
    """What a file is made of. Rows come with the costliest first: by time where it was measured, else by FLOPs."""

    path: Path
    batch: int
    all_layers: tuple[Layer, ...]
    costs: Costs | None = None

    @property
    def layers(self) -> list[Layer]:
        """Those that an engine runs: without what is folded into others."""
        return [layer for layer in self.all_layers if not layer.folded]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Measured seconds by layer."""
        return self.costs.seconds() if self.costs else {}

    @cached_property
    def by_layer(self) -> list[Row]:
        """A row a layer."""
        return _costliest(
            Row(label=layer.name, operator=layer.operator, precision=layer.precision, nodes=1, flops=layer.flops,
                bytes=layer.bytes, parameters=layer.parameters, weight=layer.weight, shape=layer.shape,
                seconds=self.seconds.get(layer.name))
            for layer in self.layers
        )  # fmt: skip

    @cached_property
    def by_operator(self) -> list[Row]:
        """A row for each operator and precision."""

        def kind(row: Row) -> tuple[str, str]:
            return row.operator, row.precision

        return _costliest(
            Row(label=operator, operator=operator, precision=precision, nodes=len(group),
                flops=_sum(row.flops for row in group), bytes=_sum(row.bytes for row in group),
                parameters=sum(row.parameters for row in group), seconds=_known(row.seconds for row in group))
            for (operator, precision), rows in groupby(sorted(self.by_layer, key=kind), kind)
            for group in [list(rows)]
        )  # fmt: skip

    @property
    def flops(self) -> int:
        """Of all layers where they are known."""
        return sum(row.flops or 0 for row in self.by_layer)

    @property
    def bytes(self) -> int:
        """Read and written by all layers where they are known."""
        return sum(row.bytes or 0 for row in self.by_layer)

    @property
    def parameters(self) -> int:
        """Numbers that were learned."""
        return sum(row.parameters for row in self.by_layer)

    @property
    def unknown(self) -> list[str]:
        """Operators with a layer whose FLOPs are not known."""
        return sorted({row.operator for row in self.by_layer if row.flops is None})

    @property
    def unplaced(self) -> float | None:
        """Measured seconds of no layer of this file: conversions that the engine put in, or fused names."""
        names = {layer.name for layer in self.layers}
        return sum(s for name, s in self.seconds.items() if name not in names) if self.costs else None

    def notes(self) -> list[str]:
        """What the figures do and do not hold, in words."""
        folded = len(self.all_layers) - len(self.layers)
        lines = []
        if folded:
            lines.append(f"{folded} more nodes are part of these layers: Q/DQ pairs count as quantized tensors between "
                         "their neighbours, and nodes on weights alone run once, at load")  # fmt: skip
        if self.unknown:
            lines.append(f"FLOPs unknown, not in the total: {', '.join(self.unknown)}")
        if self.unplaced:
            share = self.unplaced / sum(self.seconds.values())
            lines.append(f"{1e3 * self.unplaced:.3g} ms ({share:.0%}) of the profile are of no node with these names")
        return lines

    def to_document(self) -> dict[str, Any]:
        """The inventory as plain JSON values."""
        totals: dict[str, Any] = {
            "flops": self.flops, "bytes": self.bytes, "parameters": self.parameters, "nodes": len(self.all_layers),
            "folded": len(self.all_layers) - len(self.layers),
        }  # fmt: skip
        if self.costs:
            totals |= {"seconds": sum(self.seconds.values()), "seconds_of_no_layer": self.unplaced}
        return {
            "file": str(self.path), "sha256": sha256(self.path), "batch": self.batch,
            "convention": "a multiply-add is 2 FLOPs; bytes are weights and activations read and written",
            "totals": totals, "unknown": self.unknown,
            "operators": [msgspec.to_builtins(row) for row in self.by_operator],
            "layers": [msgspec.to_builtins(row) for row in self.by_layer],
        }  # fmt: skip


def take(path: Path, batch: int | None, costs: Costs | None = None) -> Inventory:
    """Count what a file holds at a batch size. Raises UserError where it cannot be read or has another batch size."""
    counted, size = layers(read(path, weights=False), batch)
    return Inventory(path, size, counted, costs)


def _costliest(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-(row.seconds or 0), -(row.flops or 0), -(row.bytes or 0)))


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum, or None where one of the values is not known."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _known(values: Iterable[float | None]) -> float | None:
    """The sum of those that are known, if any is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
