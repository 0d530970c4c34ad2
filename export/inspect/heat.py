"""Heat: a drawing whose layers are coloured by what they cost and by what quantization did to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from export.artifact import FAILED, Artifact, Found
from export.costs import Costs, profiles
from export.inspect import errors, html
from export.inspect.drawing import Drawing, Node, draw
from export.inspect.units import UNKNOWN, milliseconds, si
from trainers.cli import track
from trainers.manifest import sha256

TEMPLATE = Path(__file__).with_name("heat.html")
COLUMNS = ("layer", "operator", "precision", ">ms", ">error", ">FLOPs", ">bytes")
IMAGES = 8  # of the reference's, that errors are measured on
DECADES = 2  # below the largest error, from where on an error is drawn as none
WORDS = {"time": "measured time", "error": "quantization error", "flops": "FLOPs", "bytes": "bytes moved"}


@dataclass(frozen=True)
class Heat:
    """`errors` are relative, by the name of an activation; empty where there is nothing to compare with."""

    path: Path
    drawing: Drawing
    errors: Mapping[str, float]
    costs: Costs | None

    @cached_property
    def seconds(self) -> dict[str, float]:
        return self.costs.seconds() if self.costs else {}

    def error(self, node: Node) -> float | None:
        """The largest of its results'."""
        return max((self.errors[name] for name in node.outputs if name in self.errors), default=None)

    def values(self, node: Node) -> dict[str, float | None]:
        """What it may be coloured by; None is not known."""
        layer = node.layer
        return {"time": self.seconds.get(layer.name), "error": self.error(node), "flops": layer.flops,
                "bytes": layer.bytes}  # fmt: skip

    @cached_property
    def shown(self) -> list[str]:
        """Those of WORDS that are known of some layer; the first is what the page begins with."""
        known = [self.values(node) for node in self.drawing.nodes]
        return [name for name in WORDS if any(values[name] for values in known)]

    @cached_property
    def levels(self) -> list[dict[str, float]]:
        """Of each node from 0 to 1: costs by their share of the largest, errors by their order of magnitude."""
        known = [self.values(node) for node in self.drawing.nodes]
        most = {name: max((values[name] or 0.0 for values in known), default=0.0) or 1.0 for name in self.shown}
        return [
            {name: _magnitude(value / most[name]) if name == "error" else value / most[name]
             for name in self.shown if (value := values[name]) is not None}
            for values in known
        ]  # fmt: skip

    @property
    def order(self) -> list[int]:
        """The nodes' numbers, what stands out most first."""
        first = self.shown[0] if self.shown else ""
        return sorted(range(len(self.levels)), key=lambda number: -self.levels[number].get(first, 0.0))

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """A row a layer in the order of COLUMNS, what stands out most first."""
        return [self.cells(self.drawing.nodes[number]) for number in self.order]

    def cells(self, node: Node) -> tuple[str, ...]:
        layer, error = node.layer, self.error(node)
        return (layer.name, layer.operator, layer.precision, milliseconds(self.seconds.get(layer.name)),
                UNKNOWN if error is None else f"{error:.2%}", si(layer.flops), si(layer.bytes, "B"))  # fmt: skip

    def to_document(self) -> dict[str, Any]:
        """The layers as plain JSON values, in the file's order."""
        return {
            "file": str(self.path),
            "layers": [{"name": node.layer.name, "operator": node.layer.operator, "precision": node.layer.precision,
                        **self.values(node)} for node in self.drawing.nodes],
        }  # fmt: skip


def heat_of(found: Found, costs: Costs | None) -> Heat:
    """All that is known of an ONNX file's layers, by these times or those of its newest profile."""
    if costs is None and found.record is not None:
        known = profiles(found.path.parent, [found.record.file.sha256])
        costs = known[0][1] if known else None
    return Heat(found.path, draw(found.path, costs.batch if costs else None), _errors(found), costs)


def _errors(found: Found) -> dict[str, float]:
    """Of each activation against the file that was quantized; empty where there is none to compare with."""
    record, folder = found.record, found.path.parent
    home = folder.parent if folder.name == FAILED else folder
    parent = _parent(home, record) if record else None
    if record is None or parent is None or record.variant.input_dtype != "float32":
        return {}
    images = load_file(record.reference.verify(home))["images"][:IMAGES]
    size = record.variant.batch or 1
    batches = [np.resize(images[start : start + size], (size, *images.shape[1:]))
               for start in range(0, len(images), size)]  # fmt: skip
    return errors.measure(parent, found.path, track(batches, "quantization error"), record.variant.precision)


def _parent(folder: Path, record: Artifact) -> Path | None:
    """The fp32 file that it was made from, if that is still there."""
    for edge in reversed(record.parents):
        path = folder / edge.path
        if edge.role in ("fp32", "rewritten") and path.is_file() and sha256(path) == edge.sha256:
            return path
    return None


def _magnitude(share: float) -> float:
    """Of a share of the largest: 1 for the whole, 0 for DECADES less and below."""
    return max(1 + math.log10(max(share, 1e-12)) / DECADES, 0.0)


def rendered(heat: Heat) -> str:
    """The page: the graph, what each colour means, and a table of all layers."""
    costs = heat.costs
    note = (f"{1e3 * sum(heat.seconds.values()):.3g} ms in {costs.engine} on {costs.device}, {costs.threads} "
            f"thread{'s' * (costs.threads > 1)}, batch {costs.batch}") if costs else ""  # fmt: skip
    nodes = [
        {"node": node, "cells": heat.cells(node), "levels": levels, "number": number,
         "values": [heat.values(node)[name] for name in WORDS]}
        for number, (node, levels) in enumerate(zip(heat.drawing.nodes, heat.levels, strict=True))
    ]  # fmt: skip
    return html.render(
        TEMPLATE.read_text(encoding="utf-8"), title=f"{heat.path.stem}: where it is hot", note=note,
        drawing=heat.drawing,
        nodes=nodes, shown={name: WORDS[name] for name in heat.shown}, columns=COLUMNS, order=heat.order,
        errors=bool(heat.errors),
    )  # fmt: skip
