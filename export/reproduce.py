"""Does the same command make the same file? Two files' bytes compared, and what differs named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from export.artifact import SAME
from export.exporters import data_path
from trainers.manifest import sha256

if TYPE_CHECKING:
    import onnx


def compare(first: Path, second: Path) -> str:
    """`same bytes`, or in one line the first thing that differs between two files of one variant."""
    parts = (first, data_path(first), first.with_suffix(".bin"))  # OpenVINO's weights lie in the last
    files = [path for path in dict.fromkeys(parts) if path.is_file()]
    others = [second.with_name(path.name) for path in files]
    if all(sha256(one) == sha256(other) for one, other in zip(files, others, strict=True)):
        return SAME
    return _difference(first, second) if first.suffix == ".onnx" else "the weights differ"


def _difference(first: Path, second: Path) -> str:
    """What differs: nodes, then initializers, then the rest of the model."""
    import onnx

    one, other = onnx.load(first), onnx.load(second)
    for noun, parts in (
        ("node", lambda model: model.graph.node),
        ("initializer", lambda model: model.graph.initializer),
        ("shape", lambda model: model.graph.value_info),
        ("function", lambda model: model.functions),
        ("metadata", lambda model: model.metadata_props),
    ):
        a, b = _named(parts(one)), _named(parts(other))
        if a != b:
            names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
            order = "" if names else " in its order only"
            return f"differs in {len(names)} of {len(a)} {noun}s{order}{f', first in {names[0]!r}' if names else ''}"
        if list(a) != list(b):
            return f"differs in the order of its {noun}s"
    return "differs outside its graph: version, producer or the layout of the file"


def _named(parts: Iterable[onnx.NodeProto | onnx.TensorProto | onnx.StringStringEntryProto]) -> dict[str, bytes]:
    """Each part's bytes under its name."""
    return {
        getattr(part, "name", "") or getattr(part, "key", "") or str(index): part.SerializeToString(deterministic=True)
        for index, part in enumerate(parts)
    }
