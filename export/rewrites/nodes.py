"""What the rewrites share: reading a graph with its shapes, finding constants, putting nodes in place of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

T = TypeVar("T", int, float, str, Sequence[int])


def read(model: onnx.ModelProto) -> ir.Model:
    """The model for editing, with the shapes that follow from its inputs; the proto stays as it is."""
    own = onnx.ModelProto()
    own.CopyFrom(model)  # onnx_ir renames tensors in the proto that it was given
    read = ir.from_proto(own)
    # Shapes recorded by an exporter may clash with those that are inferred; ours are made anew.
    for value in ir.convenience.create_value_mapping(read.graph).values():
        if value.producer() is not None and not value.is_graph_output():
            value.shape = None
    common.ShapeInferencePass(check_type=False, strict_mode=False)(read)
    return read


def write(model: ir.Model) -> onnx.ModelProto:
    """The edited model without what is no longer used; names are made unique, intermediate shapes are left out."""
    for tidy in (common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass(), common.NameFixPass()):
        tidy(model)
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    proto.ir_version = max(
        proto.ir_version, onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)
    )
    return proto


def raise_opset(model: ir.Model, version: int) -> bool:
    """Bring the model to at least this opset, in place; whether that could be done."""
    from onnxscript.version_converter import ConvertVersionPass

    if model.graph.opset_imports[""] < version:
        ConvertVersionPass(target_version=version, fallback=True)(model)
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return model.graph.opset_imports[""] >= version


def array(value: ir.Value | None) -> np.ndarray | None:
    """The value's content if it is constant: an initializer that no input overrides, or a Constant, also renamed."""
    while value is not None and (node := value.producer()) is not None and node.op_type == "Identity":
        value = node.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The constant's one number, if it has one and does not add dimensions by broadcasting."""
    found = array(value)
    return float(found.item()) if found is not None and found.size == 1 and found.ndim <= 1 else None


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes the value, if it is one of these ONNX operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in operators else None


def only_user(value: ir.Value, *operators: str) -> ir.Node | None:
    """The one node that reads the value, if it is one of these ONNX operators and the value is no output."""
    uses = tuple(value.uses())
    if value.is_graph_output() or len(uses) != 1:
        return None
    node = uses[0].node
    return node if node.domain == "" and node.op_type in operators else None


def with_constant(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The variable and the constant operand of a two-operand node, in either order."""
    first, second = node.inputs
    for value, other in ((first, second), (second, first)):
        content = array(other)
        if content is not None and value is not None and array(value) is None:
            return value, content
    return None


def attribute(node: ir.Node, name: str, default: T) -> T:
    """The attribute's value, or the operator's default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def dims(value: ir.Value | None) -> list[int | None] | None:
    """The value's dimensions, None for those not fixed; None when not even their number is known."""
    if value is None or value.shape is None:
        return None
    return [size if isinstance(size, int) else None for size in value.shape]


def name(value: ir.Value | None, instead: str = "weight") -> str:
    """The value's name, for what is made from it."""
    return (value.name if value is not None else None) or instead


def weight(node: ir.Node, name: str, content: np.ndarray) -> ir.Value:
    """A new initializer in the node's graph; its name gets a number where it is taken."""
    graph = node.graph
    assert isinstance(graph, ir.Graph), "the node is part of a graph"
    unique = name
    count = 0
    while unique in graph.initializers:
        count += 1
        unique = f"{name}.{count}"
    tensor = ir.tensor(np.ascontiguousarray(content), name=unique)
    value = ir.Value(name=unique, shape=ir.Shape(content.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, *nodes: ir.Node) -> None:
    """Put nodes where `old` is made; the last one's output takes its name, its shape and its users."""
    node = old.producer()
    assert node is not None and node.graph is not None, "only what a node of the graph makes can be replaced"
    new = nodes[-1].outputs[0]
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, [old], [new])
