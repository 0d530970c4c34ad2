"""What changed between two graphs: which operations correspond, and in what each pair differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx

from export.graph import signature, weight_types
from export.inspect.layers import DEQUANTIZE, QUANTIZE
from export.inspect.model import read
from export.inspect.operations import Graph, Operation, Weight
from trainers.manifest import sha256

Status = Literal["same", "changed", "removed", "added"]
Fate = Literal["same", "changed", "moved", "removed", "added"]  # of a weight
Pair = tuple[Operation | None, Operation | None]

# What two operations must have in common to correspond, the strictest first; a later one aligns what is left between.
KEYS: tuple[Callable[[Operation], Hashable], ...] = (
    lambda node: (node.operator, node.name, node.content),
    lambda node: (node.operator, bool(node.weights), node.content, node.form),
    lambda node: (node.operator, node.name, node.form),
    lambda node: node.form,
    lambda node: (node.operator, node.name),
    lambda node: node.operator,
    lambda node: node.name,
)


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """One constant input of an operation, before and after. `max_abs_difference` needs equal shapes."""

    status: Fate
    operator: str
    before: str | None  # its name
    after: str | None
    dtype_before: str | None
    dtype_after: str | None
    shape_before: tuple[int, ...] | None
    shape_after: tuple[int, ...] | None
    max_abs_difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A pair of corresponding operations, or one without a partner. `changes` are in words."""

    status: Status
    before: Operation | None
    after: Operation | None
    changes: tuple[str, ...] = ()
    weights: tuple[WeightChange, ...] = ()

    @property
    def operator(self) -> str:
        node = self.after or self.before
        assert node is not None, "a row has an operation"
        return node.operator

    @property
    def is_renamed(self) -> bool:
        """The same operation under another name."""
        return self.before is not None and self.after is not None and self.before.name != self.after.name


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two files."""

    path: Path
    bytes: int
    sha256: str
    nodes: int
    opset: Mapping[str, int]  # of the domains that are used
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: Mapping[str, Mapping[str, int]]  # weight types counted by operator
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Diff:
    """Two files, their operations aligned in topological order, and where their outputs come from otherwise."""

    before: Side
    after: Side
    rows: tuple[Row, ...]
    rewired: tuple[str, ...]

    @cached_property
    def weights(self) -> list[WeightChange]:
        """The constant inputs of all operations; the scales of Q/DQ pairs are shown with these alone."""
        return [change for row in self.rows for change in row.weights if row.operator not in (QUANTIZE, DEQUANTIZE)]

    @property
    def interface(self) -> list[str]:
        """Differences of inputs, outputs and operator sets."""
        a, b = self.before, self.after
        named = (("inputs", a.inputs, b.inputs), ("outputs", a.outputs, b.outputs), ("opset", a.opset, b.opset))
        return [f"{name}: {_plain(x)} → {_plain(y)}" for name, x, y in named if x != y] + list(self.rewired)

    @property
    def differs(self) -> bool:
        """Whether anything but names, metadata and layout of the file is different."""
        return bool(self.interface) or any(row.status != "same" for row in self.rows)

    def counts(self) -> Counter[tuple[str, str]]:
        """Operations by status and operator."""
        return Counter((row.status, row.operator) for row in self.rows)

    def summary(self) -> list[tuple[str, str]]:
        """What changed, by subject: operations and weights counted, precision by operator, metadata."""
        distances = [change.max_abs_difference for change in self.weights if change.status == "changed"]
        furthest = max((d for d in distances if d is not None), default=None)
        renamed = sum(row.is_renamed for row in self.rows)
        lines = [
            ("operations", _counted(row.status for row in self.rows)),
            ("weights", _counted(change.status for change in self.weights)),
        ]
        lines += [("renamed", f"{renamed} operations")] if renamed else []
        lines += [] if furthest is None else [("largest difference", f"{furthest:.3g}, of a weight")]
        a, b = self.before, self.after
        for operator in sorted({*a.precision, *b.precision}):
            x, y = _plain(a.precision.get(operator, {})) or "-", _plain(b.precision.get(operator, {})) or "-"
            if x != y:
                lines.append((f"{operator} weights", f"{x} → {y}"))
        keys = [key for key in sorted({*a.metadata, *b.metadata}) if a.metadata.get(key) != b.metadata.get(key)]
        lines += [("metadata", f"other {', '.join(keys)}")] if keys else []
        return [*lines, *((line.partition(":")[0].partition(" ")[0], line) for line in self.interface)]

    def to_document(self) -> dict[str, Any]:
        """The differences as plain JSON values; operations that are the same only counted."""
        sides = {
            name: msgspec.to_builtins(side, enc_hook=str)
            for name, side in (("before", self.before), ("after", self.after))
        }
        rows = [
            {"status": row.status, "operator": row.operator, "before": row.before and row.before.name,
             "after": row.after and row.after.name, "changes": list(row.changes)}
            for row in self.rows if row.status != "same"
        ]  # fmt: skip
        return {
            "differs": self.differs, **sides, "interface": self.interface, "nodes": rows,
            "same_nodes": sum(row.status == "same" for row in self.rows),
            "renamed_nodes": sum(row.is_renamed for row in self.rows),
            "weights": [msgspec.to_builtins(change) for change in self.weights if change.status != "same"],
            "same_weights": sum(change.status == "same" for change in self.weights),
        }  # fmt: skip


def compare(before: Path, after: Path) -> Diff:
    """Read two files and align them. Raises UserError where one cannot be read."""
    models = read(before), read(after)
    a, b = (Graph(model) for model in models)
    pairs = list(align(a.operations, b.operations, KEYS))
    link = Link(a, b, pairs)
    seen = [{weight.sha256 for node in graph.operations for weight in node.weights.values()} for graph in (a, b)]
    rows = tuple(_row(pair, link, seen) for pair in pairs)
    return Diff(_side(before, models[0]), _side(after, models[1]), rows, tuple(link.outputs()))


def align(
    a: Sequence[Operation], b: Sequence[Operation], keys: Sequence[Callable[[Operation], Hashable]]
) -> Iterator[Pair]:
    """Pairs in topological order: what shares the first key, and between these what shares the next ones."""
    if not (a and b and keys):
        yield from ((node, None) for node in a)
        yield from ((None, node) for node in b)
        return
    key, *weaker = keys
    matcher = SequenceMatcher(None, [key(node) for node in a], [key(node) for node in b], autojunk=False)
    for what, start_a, end_a, start_b, end_b in matcher.get_opcodes():
        if what == "equal":
            yield from zip(a[start_a:end_a], b[start_b:end_b], strict=True)
        else:
            yield from align(a[start_a:end_a], b[start_b:end_b], weaker)


class Link:
    """Where corresponding inputs come from, looking back over operations that only one side has."""

    def __init__(self, a: Graph, b: Graph, pairs: Sequence[Pair]) -> None:
        self.a, self.b = a, b
        self.numbers = {id(node): number for number, pair in enumerate(pairs) if all(pair) for node in pair}

    def differs(self, before: str, after: str) -> bool:
        """Whether two tensors come from operations that do not correspond."""
        return self._origin(self.a, before) != self._origin(self.b, after)

    def outputs(self) -> Iterator[str]:
        """The graph's outputs that come from elsewhere."""
        for before, after in zip(self.a.outputs, self.b.outputs, strict=False):
            if self.differs(before, after):
                yield f"output {after} comes from {self._name(self.b, after)}, before from {self._name(self.a, before)}"

    def inputs(self, before: Operation, after: Operation) -> Iterator[str]:
        """The inputs of a pair that come from elsewhere."""
        for place in sorted({*before.sources, *after.sources}):
            x, y = before.sources.get(place), after.sources.get(place)
            if x is None or y is None:
                yield f"input {place} {'added' if x is None else 'removed'}"
            elif self.differs(x, y):
                yield f"input {place} from {self._name(self.b, y)}, before from {self._name(self.a, x)}"

    def _origin(self, graph: Graph, name: str) -> tuple[str, int, int]:
        while (made := graph.producers.get(name)) is not None:
            if id(made) in self.numbers:
                return "node", self.numbers[id(made)], made.outputs.index(name)
            if not made.sources:
                return "constant", 0, 0
            name = next(iter(made.sources.values()))
        return "input", graph.inputs.index(name) if name in graph.inputs else -1, 0

    def _name(self, graph: Graph, name: str) -> str:
        made = graph.producers.get(name)
        return made.name if made else name


def _row(pair: Pair, link: Link, seen: Sequence[set[str]]) -> Row:
    before, after = pair
    weights = tuple(_weights(before, after, seen))
    if before is None or after is None:
        return Row(status="removed" if before else "added", before=before, after=after, weights=weights)
    changes = [f"operator {before.operator} → {after.operator}"] if before.operator != after.operator else []
    for name in sorted({*before.attributes, *after.attributes}):
        x, y = before.attributes.get(name, "-"), after.attributes.get(name, "-")
        if x != y:
            changes.append(f"{name} {x} → {y}")
    changes += [_words(change) for change in weights if change.status != "same"]
    changes += link.inputs(before, after)
    return Row(
        status="changed" if changes else "same", before=before, after=after, changes=tuple(changes), weights=weights
    )


def _weights(before: Operation | None, after: Operation | None, seen: Sequence[set[str]]) -> Iterator[WeightChange]:
    node = after or before
    assert node is not None, "a pair has an operation"
    x, y = before.weights if before else {}, after.weights if after else {}
    for place in sorted({*x, *y}):
        yield _weight(node.operator, x.get(place), y.get(place), seen)


def _weight(operator: str, x: Weight | None, y: Weight | None, seen: Sequence[set[str]]) -> WeightChange:
    status, distance = _compared(x, y, seen)
    return WeightChange(
        status=status, operator=operator, max_abs_difference=distance,
        before=x.name if x else None, dtype_before=x.dtype if x else None, shape_before=x.shape if x else None,
        after=y.name if y else None, dtype_after=y.dtype if y else None, shape_after=y.shape if y else None,
    )  # fmt: skip


def _compared(x: Weight | None, y: Weight | None, seen: Sequence[set[str]]) -> tuple[Fate, float | None]:
    """What became of a weight, and how far it is from what it was."""
    if x and y:
        same = x.sha256 == y.sha256
        distance = 0.0 if same else _distance(x.value, y.value) if x.shape == y.shape else None
        return "same" if same else "changed", distance
    if (x and x.sha256 in seen[1]) or (y and y.sha256 in seen[0]):
        return "moved", None
    return "removed" if x else "added", None


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.abs(x.astype(np.float64) - y.astype(np.float64)).max(initial=0.0))


def _words(change: WeightChange) -> str:
    name = change.before or change.after
    if change.status != "changed":
        return f"weight {name} {change.status}"
    kinds = [f"{change.dtype_before} → {change.dtype_after}"] if change.dtype_before != change.dtype_after else []
    if change.max_abs_difference is None:
        kinds.append(f"{_plain(change.shape_before)} → {_plain(change.shape_after)}")
    else:
        kinds.append(f"max |Δ| {change.max_abs_difference:.3g}")
    return f"{name}: {', '.join(kinds)}"


def _side(path: Path, model: onnx.ModelProto) -> Side:
    used = {node.domain for node in model.graph.node} | {node.domain for f in model.functions for node in f.node}
    inputs, outputs = signature(model)
    return Side(
        path=path, bytes=path.stat().st_size, sha256=sha256(path), nodes=len(model.graph.node),
        opset={entry.domain or "ai.onnx": entry.version for entry in model.opset_import if entry.domain in used},
        inputs=tuple(f"{x.name} {x.dtype} {_plain(x.shape)}" for x in inputs),
        outputs=tuple(f"{x.name} {x.dtype} {_plain(x.shape)}" for x in outputs),
        precision=weight_types(model), metadata={entry.key: entry.value for entry in model.metadata_props},
    )  # fmt: skip


def _counted(found: Iterable[str]) -> str:
    counts = Counter(found)
    order = ("same", "changed", "moved", "removed", "added")
    return ", ".join(f"{counts[status]} {status}" for status in order if counts.get(status)) or "none"


def _plain(value: Any) -> str:
    """A shape or a table as text; a free dimension is `?`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return f"[{', '.join('?' if item is None else str(item) for item in value)}]"
