"""A depthwise convolution that widens becomes plain depthwise ones; the change of channel order is folded away.

Before: h = Conv(x: N x C x H x W, W: mC x 1 x k x k, group=C)
After:  h' = Concat(Conv(x, W[0::m], group=C), …, Conv(x, W[m-1::m], group=C))

Engines have fast kernels for one output a channel, and not for m. The channels of h' are those of h in another order,
h'[j*C + i] = h[i*m + j], so every constant that meets them is reordered in the same way, up to the convolutions that
sum over all channels, whose weights take the order on their input side. Where anything else reads h (a sum with a
value in the old order, an output, a reshape) the graph does not match.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.rewrites.nodes import array, attribute, dims, name, replace, weight

ELEMENTWISE = {
    "Abs", "Cast", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish",
    "Tanh", "ThresholdedRelu",
}  # fmt: skip
BY_CHANNEL = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool"}  # each channel by itself
BINARY = {"Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "PRelu"}
CHANNEL_WEIGHTS = {"BatchNormalization", "InstanceNormalization"}  # their inputs but the first: one number a channel

Edits = list[tuple[ir.Node, int, np.ndarray]]  # node, index of its input, its new weight


def apply(model: ir.Model) -> int:
    """Split in place; returns how many convolutions."""
    return sum(_split(node) for node in list(model.graph) if node.domain == "" and node.op_type == "Conv")


def _split(node: ir.Node) -> bool:
    kernel, groups = array(node.inputs[1]), attribute(node, "group", 1)
    with_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = array(node.inputs[2]) if with_bias else None
    if kernel is None or groups < 2 or kernel.shape[1] != 1 or kernel.shape[0] == groups:
        return False
    if with_bias and bias is None:
        return False
    times = len(kernel) // groups
    order = np.arange(len(kernel)).reshape(groups, times).T.ravel()
    edits = _follow(node.outputs[0], order)
    if edits is None:
        return False
    for reader, index, content in edits:
        reader.replace_input_with(index, weight(reader, name(reader.inputs[index]), content))
    parts = []
    for j in range(times):
        shares = [part[j::times] for part in (kernel, bias) if part is not None]
        weights = [weight(node, name(old), part) for old, part in zip(node.inputs[1:], shares, strict=False)]
        parts.append(ir.node("Conv", [node.inputs[0], *weights], attributes=node.attributes, name=f"{node.name}/{j}"))
    joined = ir.node("Concat", [part.outputs[0] for part in parts], attributes={"axis": 1}, name=f"{node.name}/join")
    replace(node.outputs[0], *parts, joined)
    return True


def _follow(value: ir.Value, order: np.ndarray) -> Edits | None:
    """The weights that change when the value's channels come in the order `order` (new -> old), as far as that shows.

    None when it would show in something that has no weights to take the order.
    """
    graph = value.graph
    assert graph is not None, "the value is made in the graph"
    reordered, edits = {value}, Edits()
    for node in graph:
        if not reordered.intersection(node.inputs):
            continue
        changes = _changes(node, reordered, order)
        if changes is None or any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return None
        edits += [(node, index, content) for index, content in changes.items()]
        if not _mixes(node):
            reordered.add(node.outputs[0])
    hidden = all(use.node.graph is graph for value in reordered for use in value.uses())  # none in a branch's body
    return edits if hidden and not any(value.is_graph_output() for value in reordered) else None


def _mixes(node: ir.Node) -> bool:
    """Whether the node sums over all channels, so that their order does not show in its output."""
    return node.op_type == "Conv" and attribute(node, "group", 1) == 1


def _changes(node: ir.Node, reordered: set[ir.Value], order: np.ndarray) -> dict[int, np.ndarray] | None:
    """The node's new weights by input; None when the order cannot pass through it."""
    first = node.inputs[0] in reordered
    others = list(enumerate(node.inputs))[1:]
    if node.domain != "":
        return None
    if node.op_type in ELEMENTWISE | BY_CHANNEL and first:
        return {} if all(value is None or array(value) is not None for _, value in others) else None
    if node.op_type in BINARY:
        rank = max(len(dims(value) or ()) for value in node.inputs)
        others = [(index, value) for index, value in enumerate(node.inputs) if value not in reordered]
        return _taken([(i, v, _axis_of(v, rank)) for i, v in others], order) if rank else None
    if node.op_type in CHANNEL_WEIGHTS and first:
        return _taken([(i, v, 0) for i, v in others], order)
    if node.op_type == "LayerNormalization" and first:
        rank = len(dims(node.inputs[0]) or ())
        axis = attribute(node, "axis", -1) % rank if rank else 0
        return _taken([(i, v, 0 if axis == 1 else None) for i, v in others], order) if axis else None
    if node.op_type == "Conv" and first and _mixes(node):
        return _taken([(1, node.inputs[1], 1)], order)
    if node.op_type == "Conv" and first and attribute(node, "group", 1) == len(order):
        kernel = array(node.inputs[1])
        return (
            _taken([(i, v, 0) for i, v in others], order) if kernel is not None and len(kernel) == len(order) else None
        )
    return None


def _axis_of(value: ir.Value | None, rank: int) -> int | None:
    """The axis of a constant that meets the channels, axis 1 of `rank`, when it is broadcast; None for none."""
    content = array(value)
    axis = 1 - rank + content.ndim if content is not None else -1
    return axis if content is not None and axis >= 0 and content.shape[axis] > 1 else None


def _taken(weights: list[tuple[int, ir.Value | None, int | None]], order: np.ndarray) -> dict[int, np.ndarray] | None:
    """The constants with the order taken along their channel axis; None when one is not constant."""
    made = {}
    for index, value, axis in weights:
        if value is None:
            continue
        content = array(value)
        if content is None:
            return None
        if axis is not None:
            made[index] = np.take(content, order, axis)
    return made
