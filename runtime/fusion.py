"""Which nodes of an ONNX file each layer of an engine stands for.

An engine fuses, renames and reorders nodes. What it says for certain (a node's name, a tensor's name) makes anchors;
every other node that computes something is then counted with the layer it must have been fused into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from export.inspect.flops import MATRIX

if TYPE_CHECKING:
    import onnx

    from export.inspect.layers import Tensors


@dataclass(frozen=True)
class Hint:
    """What an engine tells of one layer: names of nodes or tensors, tensors that it writes and reads, its operator."""

    names: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    operator: str = ""


@dataclass
class File:
    """The nodes of a file, by the names that its layers have (`export.inspect.layers`), in its order."""

    tensors: Tensors
    nodes: dict[str, onnx.NodeProto]
    makers_of: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.makers_of = {tensor: name for name, node in self.nodes.items() for tensor in node.output}

    def maker(self, tensor: str) -> str | None:
        """The node that computes a tensor; None for inputs and for what is stored."""
        return None if tensor in self.tensors.constants else self.makers_of.get(tensor)

    def makers(self, name: str) -> list[str]:
        """The nodes whose results a node reads."""
        return [made for tensor in self.nodes[name].input if (made := self.maker(tensor)) is not None]


def read(model: onnx.ModelProto, batch: int) -> File:
    """Index a model at a batch size. Raises UserError as `export.inspect.layers` does."""
    from export.inspect.layers import Tensors, layers
    from export.inspect.model import shaped

    filled, _ = shaped(model, batch)
    named, _ = layers(model, batch)
    return File(Tensors(filled.graph), {layer.name: node for layer, node in zip(named, filled.graph.node, strict=True)})


def assign(file: File, hints: Sequence[Hint]) -> list[tuple[str, ...]]:
    """The nodes of each layer, in the file's order. `hints` come in the order of execution."""
    owner: dict[str, int] = {}
    for index, hint in enumerate(hints):
        for anchor in _anchors(file, hint):
            owner.setdefault(anchor, index)
    for index, hint in enumerate(hints):
        _backwards(file, index, hint, owner)
    _forwards(file, owner)
    found: list[list[str]] = [[] for _ in hints]
    for name in file.nodes:
        if name in owner:
            found[owner[name]].append(name)
    return [tuple(names) for names in found]


def _anchors(file: File, hint: Hint) -> list[str]:
    named = [name if name in file.nodes else file.maker(name) for name in hint.names]
    made = [file.maker(tensor) for tensor in hint.outputs]
    return [name for name in dict.fromkeys((*named, *made)) if name is not None]


def _backwards(file: File, index: int, hint: Hint, owner: dict[str, int]) -> None:
    """A layer that makes the result of a chain of nodes, and has another operator than the last of them, has them all.

    A matrix product is where such a chain begins: engines fuse what follows one, not what precedes it.
    """
    given = {file.maker(tensor) for tensor in hint.inputs}
    ends = [name for name in _anchors(file, hint) if owner[name] == index]
    if any(file.nodes[name].op_type == hint.operator for name in ends):
        return
    waiting = [name for name in ends if file.nodes[name].op_type not in MATRIX]
    while waiting:
        for name in file.makers(waiting.pop()):
            if name not in owner and name not in given:
                owner[name] = index
                if file.nodes[name].op_type not in MATRIX:
                    waiting.append(name)


def _forwards(file: File, owner: dict[str, int]) -> None:
    """What is left was fused into the layer that computes its input, the last one where it has several."""
    for name in file.nodes:
        if name not in owner:
            sources = [owner[made] for made in file.makers(name) if made in owner]
            if sources:
                owner[name] = max(sources)
