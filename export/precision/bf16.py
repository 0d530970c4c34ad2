"""bf16: weights and arithmetic in bfloat16; inputs and outputs stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.pixels import PREFIX

if TYPE_CHECKING:
    from export.precision import Conversion


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Round the weights, and cast at the edges."""
    model = onnx.load(source)
    graph = model.graph
    del graph.value_info[:]  # recorded shapes carry the old types
    # Where to, and how much larger, an image is resized is float32 by the operator's definition.
    exact = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:3]}
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith(PREFIX) and tensor.name not in exact:
            rounded = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    for node in inner_nodes(graph):
        for attribute in node.attribute if node.output[0] not in exact else ():
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.BFLOAT16
            elif node.op_type == "Constant" and attribute.t.data_type == TensorProto.FLOAT:
                rounded = numpy_helper.to_array(attribute.t).astype(ml_dtypes.bfloat16)
                attribute.t.CopyFrom(numpy_helper.from_array(rounded, attribute.t.name))
    _cast_edges(graph)
    onnx.save(model, destination)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function in fp32: every value that the file holds as bfloat16 is rounded to it and widened again."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    for tensor in graph.initializer:
        _widen(tensor)
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
            elif node.op_type == "Constant":
                _widen(attribute.t)
        halves = types.get(node.output[0], TensorProto.BFLOAT16) == TensorProto.BFLOAT16  # shapes and indices are not
        nodes += [node, *(_rounded(node) if halves else ())]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return model


def inner_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The model's own nodes, without those that normalise pixels before it."""
    return [node for node in graph.node if not node.name.startswith(PREFIX)]


def _cast_edges(graph: onnx.GraphProto) -> None:
    """float32 outside, bfloat16 inside; the normalisation of pixels is outside."""
    outside, inside = [node for node in graph.node if node.name.startswith(PREFIX)], inner_nodes(graph)
    start, end = outside[-1].output[0] if outside else graph.input[0].name, graph.output[0].name
    inner = {start: f"{start}/bf16", end: f"{end}/bf16"}
    for node in inside:
        node.input[:] = [inner.get(name, name) for name in node.input]
        node.output[:] = [inner.get(name, name) for name in node.output]
    first = helper.make_node("Cast", [start], [inner[start]], f"{start}/to", to=TensorProto.BFLOAT16)
    last = helper.make_node("Cast", [inner[end]], [end], f"{end}/from", to=TensorProto.FLOAT)
    nodes = [*outside, first, *inside, last]
    del graph.node[:]
    graph.node.extend(nodes)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == TensorProto.BFLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))


def _rounded(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes that round an operator's result; the operator itself then writes to another name."""
    if node.op_type in ("Constant", "Shape") or node.name.startswith(PREFIX):
        return []
    name = node.output[0]
    node.output[0] = f"{name}/exact"
    down = helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=TensorProto.BFLOAT16)
    return [down, helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT)]
