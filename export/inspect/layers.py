"""What each layer of an ONNX graph costs: operations, bytes moved, parameters.

A Q/DQ pair is notation: an engine reads the quantized tensor and computes on it. So a DequantizeLinear is counted with
the layers that read it (they read its quantized input), and a QuantizeLinear with the layer before it where nothing
else reads that layer's output (it writes the quantized tensor). Such nodes are `folded`, as are those that work on
weights alone, whose result an engine computes once. What remains of them is counted as the work that it is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx_ir import DataType

from export.inspect import flops
from export.inspect.model import shaped

NAMES = {
    DataType.FLOAT: "fp32", DataType.FLOAT16: "fp16", DataType.BFLOAT16: "bf16", DataType.DOUBLE: "fp64",
    DataType.INT8: "int8", DataType.UINT8: "int8", DataType.INT4: "int4", DataType.UINT4: "int4",
    DataType.FLOAT8E4M3FN: "fp8", DataType.FLOAT8E5M2: "fp8",
}  # fmt: skip
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Where only some inputs are data; the others are scales, zero points and sizes, which are neither read nor learned.
DATA_INPUTS = {
    QUANTIZE: (0,), DEQUANTIZE: (0,), "Resize": (0,), "Reshape": (0,), "Clip": (0,), "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1), "QLinearConv": (0, 3, 8), "QLinearMatMul": (0, 3), "Pad": (0,), "Slice": (0,),
}  # fmt: skip
INTEGER = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"})
DOT = 4  # 8-bit products that are summed in one instruction
OURS = ("", "ai.onnx")  # an operator of another domain is another operator, whatever its name


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node. `flops` and `bytes` are None where the operator or a shape is unknown.

    `bytes` are those of the activations and weights that it reads and writes, in the types that they have in the file;
    `elements` is how many numbers these are. `parameters` counts a tensor with the first layer that uses it.
    """

    name: str
    operator: str
    precision: str  # what it computes in
    weight: str  # the name of its first stored tensor, which tells where in the model it stands
    shape: tuple[int, ...] | None  # of its output
    flops: int | None
    bytes: int | None
    elements: int
    parameters: int
    matrix: bool  # a product of matrices, or a convolution that sums over channels: no depthwise one
    folded: bool


def layers(model: onnx.ModelProto, batch: int | None = None) -> tuple[tuple[Layer, ...], int]:
    """The layers in the file's order, and the batch size that they are counted at.

    Raises UserError where the graph cannot have this batch size, or contradicts itself.
    """
    model, size = shaped(model, batch)
    tensors = Tensors(model.graph)
    names = Counter(node.name for node in model.graph.node)
    return tuple(
        _layer(node, tensors, node.name if node.name and names[node.name] == 1 else f"{node.name}:{node.output[0]}")
        for node in model.graph.node
    ), size


@dataclass
class Tensors:
    """What is known about every tensor of a graph, by name."""

    graph: onnx.GraphProto
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    types: dict[str, DataType] = field(default_factory=dict)
    producer: dict[str, onnx.NodeProto] = field(default_factory=dict)
    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=lambda: defaultdict(list))
    constants: set[str] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)  # stored tensors whose parameters a layer has

    def __post_init__(self) -> None:
        for value in (*self.graph.value_info, *self.graph.input, *self.graph.output):
            self._note(value)
        for tensor in self.graph.initializer:
            self.shapes[tensor.name], self.types[tensor.name] = tuple(tensor.dims), DataType(tensor.data_type)
            self.constants.add(tensor.name)
        for node in self.graph.node:
            for name in filter(None, node.input):
                self.readers[name].append(node)
            self.producer |= dict.fromkeys(filter(None, node.output), node)
            if node.op_type == "Constant" or self.is_constant(node):
                self.constants |= set(node.output)
        self.results = {value.name for value in self.graph.output}

    def _note(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        if kind.elem_type:
            self.types[value.name] = DataType(kind.elem_type)
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            self.shapes[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether every input of the node is stored in the file."""
        given = [name for name in node.input if name]
        return bool(given) and all(name in self.constants for name in given)

    def is_folded(self, node: onnx.NodeProto) -> bool:
        """Whether an engine does this node's work inside another layer, or before the first image."""
        if set(node.output) & self.results:
            return False
        if self.is_constant(node) or node.op_type in ("Constant", DEQUANTIZE):
            return True
        return node.op_type == QUANTIZE and self.is_only_quantized(node.input[0])

    def is_only_quantized(self, name: str) -> bool:
        """Whether a layer's output is read by QuantizeLinear alone."""
        made = self.producer.get(name)
        return (
            made is not None
            and made.op_type not in (*flops.VIEWS, DEQUANTIZE)
            and name not in self.results
            and all(reader.op_type == QUANTIZE for reader in self.readers[name])
        )

    def read(self, name: str) -> str:
        """The tensor that is really read where `name` is: before a DequantizeLinear, the quantized one."""
        made = self.producer.get(name)
        return made.input[0] if made is not None and made.op_type == DEQUANTIZE else name

    def written(self, name: str) -> str:
        """The tensor that is really written where `name` is: before a QuantizeLinear alone, the quantized one."""
        return self.readers[name][0].output[0] if self.readers[name] and self.is_only_quantized(name) else name

    def stored(self, name: str) -> str:
        """The tensor in the file that a constant comes from."""
        while (made := self.producer.get(name)) is not None and made.input:
            name = made.input[0]
        return name

    def parameters(self, name: str) -> int:
        """Weights in a constant that no layer before had: floating-point or quantized numbers; not single ones."""
        origin = self.stored(name)
        if origin in self.counted or not self.shapes.get(origin):
            return 0
        kind = self.types[origin]
        if not (kind.is_floating_point() or origin != name or kind in NAMES):
            return 0  # indices and sizes
        self.counted.add(origin)
        return math.prod(self.shapes[origin])


def _layer(node: onnx.NodeProto, tensors: Tensors, name: str) -> Layer:
    data = [node.input[i] for i in DATA_INPUTS.get(node.op_type, range(len(node.input))) if i < len(node.input)]
    data = [tensor for tensor in data if tensor]
    weights = [tensor for tensor in data if tensor in tensors.constants]
    folded = tensors.is_folded(node)
    standard = node.domain in OURS
    view = folded or (standard and node.op_type in flops.VIEWS)
    moved = [] if view else [tensors.read(tensor) for tensor in dict.fromkeys(data)]
    moved += [] if view else [tensors.written(tensor) for tensor in node.output if tensor]
    known = all(tensor in tensors.shapes and tensor in tensors.types for tensor in moved)
    return Layer(
        name=name, operator=node.op_type if standard else f"{node.domain}.{node.op_type}",
        precision=_precision(node, tensors, data), weight=tensors.stored(weights[0]) if weights else "",
        shape=tensors.shapes.get(node.output[0]), flops=0 if folded else _flops(node, tensors),
        bytes=sum(_bytes(tensors, tensor) for tensor in moved) if known else None,
        elements=sum(math.prod(tensors.shapes.get(tensor, (0,))) for tensor in moved),
        parameters=0 if folded else sum(tensors.parameters(tensor) for tensor in weights),
        matrix=standard and node.op_type in flops.MATRIX and not _is_depthwise(node, tensors), folded=folded,
    )  # fmt: skip


def _flops(node: onnx.NodeProto, tensors: Tensors) -> int | None:
    needed = [name for name in (*node.input, node.output[0]) if name]
    if node.domain not in OURS or any(name not in tensors.shapes for name in needed):
        return 0 if node.domain in OURS and node.op_type in flops.VIEWS else None
    shapes = [tensors.shapes.get(name, ()) for name in node.input]
    return flops.count(node.op_type, attributes(node), shapes, tensors.shapes[node.output[0]])


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _bytes(tensors: Tensors, name: str) -> int:
    return math.ceil(math.prod(tensors.shapes[name]) * tensors.types[name].itemsize)


def _precision(node: onnx.NodeProto, tensors: Tensors, data: list[str]) -> str:
    """The type of the first two data inputs, seen through Q/DQ; where only one of them is quantized, the float one."""
    kinds = [tensors.types.get(tensors.read(name)) for name in data[:2]]
    if node.op_type not in INTEGER and any(name == tensors.read(name) for name in data[:2]):
        kinds = [tensors.types.get(name) for name in data[:1]]  # a quantized tensor beside a float one is made float
    kind = next((kind for kind in kinds if kind is not None), None)
    return NAMES.get(kind, kind.name.lower()) if kind else "?"


def _is_depthwise(node: onnx.NodeProto, tensors: Tensors) -> bool:
    """Whether a convolution sums over fewer channels than a dot-product instruction takes at once, group by group."""
    weight = node.input[3 if node.op_type == "QLinearConv" else 1]
    return attributes(node).get("group", 1) > 1 and tensors.shapes.get(weight, (0, 0))[1] < DOT
