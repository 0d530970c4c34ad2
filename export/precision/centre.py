"""Centring: activations shifted so that symmetric integers use all of their values.

GELU's values lie between -0.17 and, say, 6: of symmetric int8's 255 values that leaves half. With a constant c taken
from the activation before it is rounded, and given back by the bias of what reads it, W (x - c) + (b + W c) = W x + b,
both halves are used. It is what a zero point does, for engines that have none: so c is a multiple of the scale, and W
the rounded weights, and the many values of GELU that are nearly zero keep an error of nearly zero. It holds where every
output sums over all of a filter: in convolutions without padding, Gemm, and a MatMul whose bias is added after it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

LARGEST = 127  # of symmetric int8
WORTH = 0.8  # a range narrower than this share of what it was, once centred, is worth the subtraction

Range = tuple[np.float32, np.float32]


def centre(
    model: onnx.ModelProto, ranges: Mapping[str, Range], operators: Collection[str], kept: Collection[str]
) -> dict[str, Range]:
    """Shift lopsided activations that nodes of these operators read, in place; returns their ranges, and all others.

    What is never negative stays: engines compute ReLU within the convolution before it, which a shift would prevent.
    Nodes `kept` in float read what they read before.
    """
    found = dict(ranges)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, (low, high) in ranges.items():
        if low >= 0 or high <= 0 or (high - low) / 2 > WORTH * max(-low, high):
            continue
        readers = [
            node
            for node in model.graph.node
            if name in node.input and node.op_type in operators and node.name not in kept
        ]
        if not readers or not all(_gives_back(model.graph, node, name, stored) for node in readers):
            continue
        middle = LARGEST * float((high + low) / (high - low))
        zero = max(1 - LARGEST, min(LARGEST - 1, round(middle)))  # minus this integer will stand for 0
        scale = max(float(high) / (LARGEST + zero), float(-low) / (LARGEST - zero))
        shift, shifted = np.float32(zero * scale), f"{name}/centred"
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(shift), f"{name}/centre"))
        node = helper.make_node("Sub", [name, f"{name}/centre"], [shifted], shifted)
        model.graph.node.insert(list(model.graph.node).index(readers[0]), node)
        for info in [info for info in model.graph.value_info if info.name == name]:
            model.graph.value_info.add().CopyFrom(info)
            model.graph.value_info[-1].name = shifted
        for reader in readers:
            reader.input[0] = shifted
            _add_to_bias(model.graph, reader, shift, stored)
        found[shifted] = (np.float32(-LARGEST * scale), np.float32(LARGEST * scale))
    return found


def _gives_back(
    graph: onnx.GraphProto, node: onnx.NodeProto, name: str, stored: Mapping[str, onnx.TensorProto]
) -> bool:
    """Whether the node's bias can give back what is taken from this input at every position alike."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if list(node.input).index(name) != 0 or not all(weight in stored for weight in node.input[1:] if weight):
        return False
    if node.op_type == "Conv":
        return not any(settings.get("pads", ())) and settings.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if node.op_type == "MatMul":
        return len(stored[node.input[1]].dims) == 2 and _sum_after(graph, node, stored) is not None
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type == "Gemm" and all(settings.get(key, value) == value for key, value in plain.items())


def _sum_after(
    graph: onnx.GraphProto, node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]
) -> tuple[onnx.NodeProto, int] | None:
    """The one node that reads a MatMul, if it adds a constant to each column, and which of its inputs that is."""
    (made,), columns = node.output, stored[node.input[1]].dims[-1]
    after = [other for other in graph.node if made in other.input]
    if len(after) != 1 or after[0].op_type != "Add" or made in {output.name for output in graph.output}:
        return None
    place = 1 - list(after[0].input).index(made)
    dims = stored[after[0].input[place]].dims if after[0].input[place] in stored else ()
    return (after[0], place) if dims and dims[-1] == columns == math.prod(dims) else None


def _add_to_bias(
    graph: onnx.GraphProto, node: onnx.NodeProto, shift: np.float32, stored: dict[str, onnx.TensorProto]
) -> None:
    weight = numpy_helper.to_array(stored[node.input[1]]).astype(np.float64)
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    weight = weight if node.op_type == "Conv" or turned else weight.T
    weight = weight.reshape(len(weight), -1)
    scale = np.maximum(np.abs(weight).max(1, keepdims=True), 1e-30) / LARGEST  # one a filter, as the quantizer's
    sums = (np.rint(weight / scale) * scale).sum(1)
    adder, place = (_sum_after(graph, node, stored) if node.op_type == "MatMul" else None) or (node, 2)
    has_bias = len(adder.input) > place and adder.input[place]
    bias = numpy_helper.to_array(stored[adder.input[place]]) if has_bias else np.float32(0)
    name = f"{adder.name}/bias"
    stored[name] = numpy_helper.from_array((bias + float(shift) * sums).astype(np.float32), name)
    graph.initializer.append(stored[name])
    if len(adder.input) == place:
        adder.input.append(name)
    else:
        adder.input[place] = name
