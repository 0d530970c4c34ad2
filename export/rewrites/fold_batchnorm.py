"""BatchNormalization into the weights before it, computed in float64.

Before: y = BatchNormalization(Conv(x, W, b), gamma, beta, mean, var)
After:  y = Conv(x, W * f, (b - mean) * f + beta), f = gamma / sqrt(var + epsilon), a factor for each output channel

The same for Gemm. It is left where the result in between is also read elsewhere, or in training mode.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.rewrites.nodes import array, attribute, name, only_user, replace, weight


def apply(model: ir.Model) -> int:
    """Fold in place; returns how many BatchNormalizations went."""
    return sum(_fold(node) for node in list(model.graph) if node.domain == "" and node.op_type in ("Conv", "Gemm"))


def _fold(node: ir.Node) -> bool:
    norm = only_user(node.outputs[0], "BatchNormalization")
    if norm is None or attribute(norm, "training_mode", 0):
        return False
    kernel, bias = array(node.inputs[1]), _bias(node)
    parts = [part for value in norm.inputs[1:] if (part := array(value)) is not None]
    if kernel is None or bias is None or len(parts) != 4:
        return False
    gamma, beta, mean, variance = (part.astype(np.float64) for part in parts)
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    channels = 0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1
    shape = [-1 if axis == channels else 1 for axis in range(kernel.ndim)]
    contents = (kernel * factor.reshape(shape), (bias - mean) * factor + beta)
    names = (name(node.inputs[1]), name(norm.inputs[2], "bias"))
    made = [weight(node, called, part.astype(kernel.dtype)) for called, part in zip(names, contents, strict=True)]
    attributes = {key: value for key, value in node.attributes.items() if key != "beta"}  # it is in the bias now
    replace(norm.outputs[0], ir.node(node.op_type, [node.inputs[0], *made], attributes=attributes, name=node.name))
    return True


def _bias(node: ir.Node) -> np.ndarray | None:
    """What the node adds, float64: a number for each channel or one for all; None when it adds anything else."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    content = np.zeros(1) if value is None else array(value)
    if content is None or content.size != (content.shape or (1,))[-1]:
        return None
    return content.reshape(-1).astype(np.float64) * attribute(node, "beta", 1.0)
