"""Floating-point operations of one ONNX operator, from the shapes of its tensors.

A multiply-add counts 2, every other arithmetic step, comparison or elementary function 1. Convolutions and poolings
count all taps of their window, those over padding included, as is usual. Operators that only move data count 0; one
that is in no table here is unknown, which is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Shape = tuple[int, ...]

# Reshaping hands on the same memory: neither arithmetic nor bytes.
VIEWS = frozenset({"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"})
MOVES = frozenset({
    "Cast", "CastLike", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Gather", "GatherElements", "GatherND",
    "Pad", "Range", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Tile", "Transpose",
})  # fmt: skip
# Their sums run over channels, which is what matrix units and dot-product instructions speed up.
MATRIX = frozenset({
    "Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "MatMulInteger", "QLinearConv", "QLinearMatMul",
})  # fmt: skip

AN_OUTPUT = {
    **dict.fromkeys(
        (
            "Abs", "Add", "And", "Ceil", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual",
            "Less", "LessOrEqual", "Log", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Round",
            "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where", "Xor",
        ),
        1,
    ),
    "BatchNormalization": 2,  # at inference one scale and one shift
    "Clip": 2,
    "DequantizeLinear": 2,  # subtract the zero point, multiply by the scale
    "Elu": 3,
    "HardSigmoid": 4,
    "HardSwish": 5,
    "LeakyRelu": 2,
    "Mish": 6,  # x tanh(ln(1 + exp x)), and the comparison that keeps exp finite
    "PRelu": 2,
    "QuantizeLinear": 2,  # divide by the scale, add the zero point
    "Sigmoid": 4,  # 1 / (1 + exp(-x))
    "Softplus": 3,
    "Swish": 5,
}  # fmt: skip
AN_INPUT = {
    **dict.fromkeys(("ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool"), 1),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), 1),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare"), 2),
    # mean 1, centre 1, variance 2, divide 1, scale 1, shift 1
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), 7),
    "DynamicQuantizeLinear": 4,  # least and greatest, divide, add
    "RMSNormalization": 4,
    "Softmax": 5,  # greatest, subtract, exp, sum, divide
    "LogSoftmax": 5,
}


def count(operator: str, attributes: Mapping[str, Any], inputs: Sequence[Shape], output: Shape) -> int | None:
    """Operations of a node with these input shapes and this first output shape; None for an unknown operator.

    An input that is left out has the shape (), as a scalar has.
    """
    size = math.prod(output)
    if operator in VIEWS or operator in MOVES:
        return 0
    if operator in AN_OUTPUT:
        return AN_OUTPUT[operator] * size
    if operator in AN_INPUT:
        return AN_INPUT[operator] * math.prod(inputs[0])
    if operator in FORMULAS:
        return FORMULAS[operator](attributes, inputs, size)
    return None


def _convolution(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    """2 · (input channels of a group) · (window) for each output, and 1 for the bias."""
    return 2 * size * math.prod(inputs[1][1:]) + size * _has(inputs, 2)


def _integer_convolution(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    return 2 * size * math.prod(inputs[1][1:])


def _scaled_convolution(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    """QLinearConv: its weights are the fourth input, its bias the ninth."""
    return 2 * size * math.prod(inputs[3][1:]) + size * _has(inputs, 8)


def _transposed_convolution(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    """Every input is spread over (output channels of a group) · (window)."""
    return 2 * math.prod(inputs[0]) * math.prod(inputs[1][1:]) + size * _has(inputs, 2)


def _product(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    return 2 * size * inputs[0][-1]


def _gemm(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    inner = inputs[0][0 if attributes.get("transA") else 1]
    return 2 * size * inner + size * _has(inputs, 2)


def _pool(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    return size * math.prod(attributes["kernel_shape"])


def _gelu(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    """x/2 (1 + erf(x/√2)), or x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return size * (9 if attributes.get("approximate") == b"tanh" else 5)


def _fold(attributes: Mapping[str, Any], inputs: Sequence[Shape], size: int) -> int:
    """Sum, Max and Min of any number of tensors."""
    return size * (len(inputs) - 1)


def _has(inputs: Sequence[Shape], index: int) -> bool:
    return len(inputs) > index and inputs[index] != ()


FORMULAS: dict[str, Callable[[Mapping[str, Any], Sequence[Shape], int], int]] = {
    "AveragePool": _pool,
    "Conv": _convolution,
    "ConvInteger": _integer_convolution,
    "ConvTranspose": _transposed_convolution,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "MatMul": _product,
    "MatMulInteger": _product,
    "Max": _fold,
    "MaxPool": _pool,
    "Mean": _fold,
    "Min": _fold,
    "QLinearConv": _scaled_convolution,
    "QLinearMatMul": _product,
    "Sum": _fold,
}
