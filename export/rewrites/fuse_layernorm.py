"""A LayerNorm written out becomes one LayerNormalization operator.

Before: d = x - ReduceMean(x); y = d / Sqrt(ReduceMean(d^2) + epsilon) * scale + bias
After:  y = LayerNormalization(x, scale, bias), axis: the first of the trailing axes that were reduced

The division may also be a product with Reciprocal; d^2 a product or a power; scale and bias may be missing. Only means
over trailing axes (the last, or all of C, H, W) match: the operator knows no other. It exists from opset 17 on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.rewrites.nodes import (
    array,
    attribute,
    dims,
    only_user,
    producer,
    raise_opset,
    replace,
    scalar,
    weight,
    with_constant,
)

OPSET = 17


@dataclass(frozen=True)
class Norm:
    """x normalized over its last `shape`; `output` is that, before scale and bias."""

    x: ir.Value
    dtype: np.dtype
    shape: tuple[int, ...]
    epsilon: float
    output: ir.Value


def apply(model: ir.Model) -> int:
    """Fuse in place; returns how many LayerNorms there are."""
    if next(_find(model.graph), None) is None or not raise_opset(model, OPSET):
        return 0
    count = 0
    while norm := next(_find(model.graph), None):  # anew each time: the result of one may be the x of the next
        _fuse(norm)
        RemoveUnusedNodesPass()(model)  # what is left of it would match again
        count += 1
    return count


def _find(graph: ir.Graph) -> Iterator[Norm]:
    return (norm for node in graph if (norm := _match(node)) is not None)


def _match(node: ir.Node) -> Norm | None:
    for deviation, root in _quotients(node):
        variance = _variance(root)
        centred = _centred(deviation)
        if variance is None or centred is None:
            continue
        (squared, axes, epsilon), (x, mean_axes) = variance, centred
        sizes = tuple(size for size in (dims(x) or [])[axes[0] :] if size)
        if x.dtype is not None and len(sizes) == len(axes) and axes == mean_axes and _squares(squared, x, axes):
            return Norm(x, x.dtype.numpy(), sizes, epsilon, node.outputs[0])
    return None


def _quotients(node: ir.Node) -> list[tuple[ir.Value | None, ir.Node]]:
    """The ways to read the node as something divided by a square root."""
    if node.domain == "" and node.op_type == "Div" and (root := producer(node.inputs[1], "Sqrt")):
        return [(node.inputs[0], root)]
    if node.domain != "" or node.op_type != "Mul":
        return []
    a, b = node.inputs
    pairs = ((a, producer(b, "Reciprocal")), (b, producer(a, "Reciprocal")))
    return [(x, root) for x, one in pairs if one is not None and (root := producer(one.inputs[0], "Sqrt"))]


def _variance(root: ir.Node) -> tuple[ir.Value | None, list[int], float] | None:
    """(what was squared and averaged, over which axes, epsilon) under the square root."""
    total = producer(root.inputs[0], "Add")
    if total is None:
        return None
    for value, other in (total.inputs, reversed(total.inputs)):
        epsilon, mean = scalar(other), producer(value, "ReduceMean")
        if epsilon is not None and mean is not None and (axes := _trailing_axes(mean)):
            return mean.inputs[0], axes, epsilon
    return None


def _centred(value: ir.Value | None) -> tuple[ir.Value, list[int]] | None:
    """(x, axes) of x - ReduceMean(x, axes)."""
    node = producer(value, "Sub")
    mean = producer(node.inputs[1], "ReduceMean") if node else None
    if node is None or mean is None or mean.inputs[0] is not node.inputs[0] or node.inputs[0] is None:
        return None
    axes = _trailing_axes(mean)
    return (node.inputs[0], axes) if axes else None


def _squares(value: ir.Value | None, x: ir.Value, axes: list[int]) -> bool:
    """Whether the value is the square of x - ReduceMean(x, axes)."""
    node = producer(value, "Mul", "Pow")
    if node is None or (scalar(node.inputs[1]) != 2 if node.op_type == "Pow" else node.inputs[0] is not node.inputs[1]):
        return False
    return _centred(node.inputs[0]) == (x, axes)


def _trailing_axes(mean: ir.Node) -> list[int]:
    """The axes of a mean that keeps its dimensions, if they are the last ones; else none."""
    given = array(mean.inputs[1]) if len(mean.inputs) > 1 else attribute(mean, "axes", ())
    shape = dims(mean.inputs[0])
    if given is None or shape is None or not attribute(mean, "keepdims", 1):
        return []
    axes = sorted(int(axis) % len(shape) for axis in given)
    return axes if axes == list(range(len(shape) - len(axes), len(shape))) else []


def _fuse(norm: Norm) -> None:
    scale, output = _affine(norm.output, "Mul", norm.shape)
    bias, output = _affine(output, "Add", norm.shape)
    node = norm.output.producer()
    assert node is not None, "a norm is what a node makes"
    weights = [weight(node, "scale", np.ones(norm.shape, norm.dtype) if scale is None else scale)]
    if bias is not None:
        weights.append(weight(node, "bias", bias))
    attributes = {"axis": -len(norm.shape), "epsilon": norm.epsilon}
    replace(output, ir.node("LayerNormalization", [norm.x, *weights], attributes=attributes))


def _affine(value: ir.Value, operator: str, shape: tuple[int, ...]) -> tuple[np.ndarray | None, ir.Value]:
    """The constant that the value is next multiplied with or that is added to it, and the result."""
    node = only_user(value, operator)
    found = with_constant(node) if node else None
    if node is None or found is None:
        return None, value
    content = found[1]
    try:
        return np.broadcast_to(content.reshape(content.shape[-len(shape) :]), shape), node.outputs[0]
    except ValueError:  # it has dimensions before those that were normalized, or other sizes
        return None, value
