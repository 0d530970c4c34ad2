"""Graphs that keep a processor's arithmetic busy: equal layers in a row, large enough to run at full speed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import onnx

DEPTH = 4  # layers, so that what stands at the edges costs little
SIDE = 1024  # of square matrices
CHANNELS, PIXELS = 256, 28  # of 3x3 convolutions
SHAPES = {"MatMul": (SIDE, SIDE), "Conv": (1, CHANNELS, PIXELS, PIXELS)}  # of every layer's input and output
WEIGHTS = {"MatMul": (SIDE, SIDE), "Conv": (CHANNELS, CHANNELS, 3, 3)}
FLOPS = {"MatMul": DEPTH * 2 * SIDE**3, "Conv": DEPTH * 2 * 9 * (CHANNELS * PIXELS) ** 2}  # a multiply-add is 2
TITLES = {
    "MatMul": f"{DEPTH} MatMul {SIDE}x{SIDE}x{SIDE}",
    "Conv": f"{DEPTH} Conv 3x3 {CHANNELS}x{PIXELS}x{PIXELS}",
}


def example(graph: str) -> np.ndarray:
    """An input, float32."""
    import numpy as np

    return np.random.default_rng(0).standard_normal(SHAPES[graph], np.float32)


def chain(graph: str, precision: str) -> bytes:
    """The ONNX model x -> y in fp32, or in int8 as ONNX Runtime's CPU kernels want it: uint8 by int8, all in pairs."""
    from onnx import TensorProto, helper

    nodes, stored = (_quantized if precision == "int8" else _float)(graph)
    last = nodes[-1].output[0]
    made = helper.make_graph(
        nodes, "chain", [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPES[graph])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, SHAPES[graph])], stored,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _float(graph: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    import numpy as np
    from onnx import numpy_helper

    nodes, stored, tensor = [], [], "x"
    for layer in range(DEPTH):
        weights = np.random.default_rng(layer).standard_normal(WEIGHTS[graph], np.float32)
        weights /= np.float32(math.sqrt(math.prod(WEIGHTS[graph][1:])))  # values stay near 1 from layer to layer
        stored.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes.append(_layer(graph, tensor, f"w{layer}", f"y{layer}"))
        tensor = f"y{layer}"
    return nodes, stored


def _quantized(graph: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    import numpy as np
    from onnx import helper, numpy_helper

    numbers = {"scale": np.float32(0.05), "zero": np.uint8(128), "scale_w": np.float32(0.01), "zero_w": np.int8(0)}
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]

    def pair(tensor: str, name: str) -> list[onnx.NodeProto]:
        return [helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"q{name}"]),
                helper.make_node("DequantizeLinear", [f"q{name}", "scale", "zero"], [f"d{name}"])]  # fmt: skip

    nodes, tensor = pair("x", "x"), "dx"
    for layer in range(DEPTH):
        weights = np.random.default_rng(layer).integers(-8, 8, WEIGHTS[graph], np.int8)
        stored.append(numpy_helper.from_array(weights, f"w{layer}"))
        nodes += [
            helper.make_node("DequantizeLinear", [f"w{layer}", "scale_w", "zero_w"], [f"dw{layer}"]),
            _layer(graph, tensor, f"dw{layer}", f"y{layer}"), *pair(f"y{layer}", str(layer)),
        ]  # fmt: skip
        tensor = f"d{layer}"
    return nodes, stored


def _layer(graph: str, tensor: str, weights: str, made: str) -> onnx.NodeProto:
    from onnx import helper

    node = helper.make_node(graph, [tensor, weights], [made])
    if graph == "Conv":
        node.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    return node
