"""Layers: an engine's profile joined to the file's own figures, and to what this machine could do at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.costs import WIDTHS, LayerCost
from runtime.profilers import Kernel
from runtime.roofline import Roofline

if TYPE_CHECKING:
    import onnx

    from export.inspect.layers import Layer, Tensors


@dataclass(frozen=True, kw_only=True)
class Row:
    """One entry of a profile. None is not known: FLOPs and bytes of what is no node of the file, limits without a roof.

    `bytes` are what a fused layer reads and writes at its edges, in the precision that it ran in. `limit` is the least
    time that this machine could take for both.
    """

    kernel: Kernel
    layers: tuple[str, ...]  # the file's own layers that it stands for: without Q/DQ pairs and nodes on weights alone
    flops: int | None
    bytes: int | None
    limit: float | None

    @property
    def name(self) -> str:
        """The file's first layer of those that were fused, as `export.costs` names one; else the engine's own name."""
        return self.layers[0] if self.layers else self.kernel.name

    @property
    def rate(self) -> float | None:
        """Operations a second."""
        return self.flops / self.kernel.seconds if self.flops and self.kernel.seconds else None

    @property
    def intensity(self) -> float | None:
        """Operations a byte."""
        return self.flops / self.bytes if self.flops and self.bytes else None

    @property
    def reached(self) -> float | None:
        """The share of the roof: 1 where no machine like this one could be faster."""
        return self.limit / self.kernel.seconds if self.limit and self.kernel.seconds else None

    def cost(self) -> LayerCost:
        """The row as `export.costs` records it."""
        return LayerCost(name=self.name, operator=self.kernel.operator, precision=self.kernel.precision,
                         seconds=self.kernel.seconds, calls=self.kernel.calls)  # fmt: skip


class Figures:
    """What a file's layers compute and move, alone or fused."""

    def __init__(self, model: onnx.ModelProto, batch: int) -> None:
        """Raises UserError as `export.inspect.layers` does."""
        from export.inspect.flops import VIEWS
        from export.inspect.layers import DATA_INPUTS, Tensors, layers
        from export.inspect.model import shaped

        filled, _ = shaped(model, batch)
        found, _ = layers(model, batch)
        self._tensors: Tensors = Tensors(filled.graph)
        self._layers: dict[str, Layer] = {layer.name: layer for layer in found if not layer.folded}
        self._reads: dict[str, set[str]] = {}
        self._writes: dict[str, set[str]] = {}
        for layer, node in zip(found, filled.graph.node, strict=True):
            if layer.operator in VIEWS:
                self._reads[layer.name] = self._writes[layer.name] = set()
            elif not layer.folded:
                places = DATA_INPUTS.get(node.op_type, range(len(node.input)))
                data = [node.input[place] for place in places if place < len(node.input)]
                self._reads[layer.name] = {self._tensors.read(name) for name in data if name}
                self._writes[layer.name] = {self._tensors.written(name) for name in node.output if name}

    def layers(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those of the nodes that are layers of their own."""
        return tuple(name for name in nodes if name in self._layers)

    def flops(self, layers: Sequence[str]) -> int | None:
        """Of all these layers; None where one of them is unknown."""
        counts = [self._layers[name].flops for name in layers]
        return sum(count for count in counts if count) if layers and None not in counts else None

    def bytes(self, layers: Sequence[str], precision: str) -> int | None:
        """What the layers read and write at their edges, were their numbers as wide as `precision`."""
        made = {tensor for name in layers for tensor in self._writes[name]}
        inside = {tensor for tensor in made if self._is_read_by_these_alone(tensor, layers)}
        moved = (made | {tensor for name in layers for tensor in self._reads[name]}) - inside
        if not layers or not moved <= self._tensors.shapes.keys() & self._tensors.types.keys():
            return None
        stored = sum(math.prod(self._tensors.shapes[t]) * self._tensors.types[t].itemsize for t in moved)
        width = WIDTHS.get(precision), WIDTHS.get(self._layers[layers[0]].precision)
        return math.ceil(stored * width[0] / width[1] if width[0] and width[1] else stored)

    def _is_read_by_these_alone(self, tensor: str, layers: Sequence[str]) -> bool:
        readers = {name for name, reads in self._reads.items() if tensor in reads}
        return bool(readers) and readers <= set(layers) and tensor not in self._tensors.results


def join(kernels: Sequence[Kernel], figures: Figures | None, roof: Roofline | None, threads: int) -> list[Row]:
    """The profile's rows, the longest first. `figures` is None where the file is no ONNX graph."""
    rows = [_row(kernel, figures, roof, threads) for kernel in kernels]
    return sorted(rows, key=lambda row: -row.kernel.seconds)


def _row(kernel: Kernel, figures: Figures | None, roof: Roofline | None, threads: int) -> Row:
    layers = figures.layers(kernel.nodes) if figures else ()
    flops = figures.flops(layers) if figures else None
    size = figures.bytes(layers, kernel.precision) if figures else None
    limit = None
    if roof is not None and flops is not None and size is not None:
        limit = roof.limit(flops, size, kernel.precision, roof.threads(threads))
    return Row(kernel=kernel, layers=layers or kernel.nodes, flops=flops, bytes=size, limit=limit)
