"""A graph as a list of operations with the weights that they use, for comparing two graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx_ir import DataType

from export.inspect.layers import OURS, attributes
from export.inspect.model import inlined, inputs

# What may stand between a stored weight and the operation that uses it; evaluated, so that quantized weights can be
# compared with those they were made from.
PREPARING = frozenset({
    "Cast", "Constant", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Transpose",
    "Unsqueeze",
})  # fmt: skip
NEUTRAL = {"dilations": 1, "strides": 1, "pads": 0}  # written by one exporter and left out by another


@dataclass(frozen=True)
class Weight:
    """A constant input of an operation: what it is called and stored as, and its value as the operation sees it."""

    name: str
    dtype: str
    value: np.ndarray = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @cached_property
    def sha256(self) -> str:
        """Of type, shape and value."""
        digest = hashlib.sha256(f"{self.dtype} {self.shape}".encode())
        digest.update(np.ascontiguousarray(self.value).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Operation:
    """A node that works on activations. `sources` are the inputs that are no weights, by position."""

    name: str
    operator: str
    attributes: Mapping[str, str]
    weights: Mapping[int, Weight]
    sources: Mapping[int, str]
    outputs: tuple[str, ...]

    @cached_property
    def content(self) -> tuple[str, ...]:
        """Hashes of its weights."""
        return tuple(weight.sha256 for weight in self.weights.values())

    @property
    def form(self) -> tuple[Any, ...]:
        """Its operator, attributes and the shapes of its weights."""
        shapes = tuple((place, weight.shape) for place, weight in self.weights.items())
        return self.operator, tuple(self.attributes.items()), shapes


class Graph:
    """The operations of a model in its order, local functions inlined, nodes that only prepare weights left out."""

    def __init__(self, model: onnx.ModelProto) -> None:
        flat = inlined(model)
        graph = flat.graph
        self.opsets = {entry.domain: entry.version for entry in flat.opset_import}
        self.inputs = [value.name for value in inputs(graph)]
        self.outputs = [value.name for value in graph.output]
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._prepared: dict[str, onnx.NodeProto] = {}
        self.operations: list[Operation] = []
        for node in graph.node:
            if (
                node.domain in OURS
                and node.op_type in PREPARING
                and all(map(self._is_weight, filter(None, node.input)))
            ):
                self._prepared |= dict.fromkeys(node.output, node)
            else:
                self.operations.append(self._operation(node))
        self.producers = {name: operation for operation in self.operations for name in operation.outputs}

    def _is_weight(self, name: str) -> bool:
        return name in self._stored or name in self._prepared

    def _operation(self, node: onnx.NodeProto) -> Operation:
        given = {place: name for place, name in enumerate(node.input) if name}
        return Operation(
            name=node.name or node.output[0],
            operator=node.op_type if node.domain in OURS else f"{node.domain}.{node.op_type}",
            attributes=self._attributes(node),
            weights={place: self._weight(name) for place, name in given.items() if self._is_weight(name)},
            sources={place: name for place, name in given.items() if not self._is_weight(name)},
            outputs=tuple(node.output),
        )

    def _weight(self, name: str) -> Weight:
        origin = name
        while (made := self._prepared.get(origin)) is not None and made.input:
            origin = made.input[0]
        if origin in self._stored:
            kind = DataType(self._stored[origin].data_type).name.lower()
        else:
            kind = str(self._value(origin).dtype)
        return Weight(origin, kind, self._value(name))

    def _value(self, name: str) -> np.ndarray:
        if name in self._stored:
            return onnx.numpy_helper.to_array(self._stored[name])
        node = self._prepared[name]
        feeds = {given: self._value(given) for given in node.input if given}
        results: Any = ReferenceEvaluator(node, opsets=self.opsets).run(None, feeds)  # a list, one an output
        return np.asarray(results[list(node.output).index(name)])

    def _attributes(self, node: onnx.NodeProto) -> dict[str, str]:
        """The attributes as text, defaults included, without what says nothing."""
        found = {name: _text(value) for name, value in attributes(node).items() if not _says_nothing(node, name, value)}
        version = self.opsets.get(node.domain, 1)
        if node.domain in OURS and onnx.defs.has(node.op_type, node.domain):
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            for name, attribute in schema.attributes.items():
                if attribute.default_value.name and name not in found and name != "auto_pad":
                    found[name] = _text(onnx.helper.get_attribute_value(attribute.default_value))
        return dict(sorted(found.items()))


def _says_nothing(node: onnx.NodeProto, name: str, value: Any) -> bool:
    if name == "auto_pad":
        return value == b"NOTSET"
    if name == "kernel_shape":
        return node.op_type == "Conv"  # the weight's shape
    return name in NEUTRAL and all(number == NEUTRAL[name] for number in value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, int):
        return str(value)
    if hasattr(value, "SerializeToString"):  # a tensor or a graph
        return f"sha256 {hashlib.sha256(value.SerializeToString(deterministic=True)).hexdigest()[:12]}…"
    return f"[{', '.join(map(_text, value))}]"
