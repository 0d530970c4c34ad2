"""An int8 ONNX file, placed for `cpu`, as fused steps.

Nodes are taken in the file's order. A convolution looks ahead: at the range its result is quantized to, and at what is
done with it then. An activation between two ranges becomes a table; a sum of two maps is left to the later of the
convolutions that it adds. A graph with anything that no step computes raises BackendError, which names it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.backend import BackendError
from runtime.native.graph import ELEMENTWISE, VIEWS, QuantizedGraph, attributes_of
from runtime.native.steps import Convolution, Depthwise, Lowered, Map, Maximum, Mean, Norm, Quantize, Step, Window

if TYPE_CHECKING:
    import onnx


def lower(path: Path) -> Lowered:
    """The file's steps. Raises BackendError when it holds what none computes."""
    import onnx

    return _Lowering(onnx.load(path)).run()


class _Lowering(QuantizedGraph):
    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self.maps: dict[str, Map] = {}
        self.kernels: dict[str, onnx.NodeProto] = {}  # depthwise convolutions that wait for the node joining them
        self.waiting: dict[str, Convolution] = {}  # convolutions whose quantized result is only added to something
        self.summed: dict[int, Depthwise] = {}  # by the id of the map
        self.steps: list[Step] = []
        self.operators: dict[str, Counter[str]] = defaultdict(Counter)

    def run(self) -> Lowered:
        from onnx import TensorProto

        if (len(self.graph.input), len(self.graph.output)) != (1, 1) or not self.graph.node:
            raise BackendError(f"it takes a graph of one input and one output, not {len(self.graph.input)} and "
                               f"{len(self.graph.output)} with {len(self.graph.node)} nodes")  # fmt: skip
        (image,), (result,) = self.graph.input, self.graph.output
        sizes = [d.dim_value for d in image.type.tensor_type.shape.dim][1:]
        if len(sizes) != 3 or not all(sizes):
            raise BackendError("it takes images of one fixed size")
        channels, height, width = sizes
        if image.type.tensor_type.elem_type != TensorProto.FLOAT:
            pixels = image.type.tensor_type.elem_type == TensorProto.UINT8
            raise BackendError("it takes float images" + "; export without --input-dtype uint8" * pixels)
        self.maps[image.name] = Map(channels=channels, height=height, width=width, wide=True)
        for node in self.graph.node:
            if id(node) not in self.done:
                self._node(node)
        if result.name not in self.maps:
            raise BackendError(f"its output {result.name} comes from no step that it has")
        operators = {name: dict(kinds) for name, kinds in sorted(self.operators.items())}
        return Lowered(outputs=self.maps[result.name], steps=self.steps, operators=operators)

    def _node(self, node: onnx.NodeProto) -> None:
        handler = {
            "QuantizeLinear": self._quantize, "DequantizeLinear": self._alias, "Conv": self._conv, "Gemm": self._gemm,
            "MatMul": self._gemm, "Add": self._add, "Concat": self._concat, "LayerNormalization": self._norm,
            "MaxPool": self._maximum, "GlobalAveragePool": self._mean, "ReduceMean": self._mean,
        }.get(node.op_type, self._view if node.op_type in VIEWS else None)  # fmt: skip
        if handler is None:
            raise BackendError(f"it has no kernel for {node.op_type} ({node.name or node.output[0]})")
        handler(node)

    # What stands between the steps.

    def _map(self, node: onnx.NodeProto, index: int = 0) -> Map:
        if node.input[index] not in self.maps:
            raise BackendError(f"it has no kernel for what {node.op_type} {node.output[0]} reads, {node.input[index]}")
        return self.maps[node.input[index]]

    def _alias(self, node: onnx.NodeProto) -> None:
        self.maps[node.output[0]] = self._map(node)

    def _view(self, node: onnx.NodeProto) -> None:
        """A map as one vector an image: the product that reads it orders its weights by the map."""
        self._alias(node)

    def _quantize(self, node: onnx.NodeProto) -> None:
        source, (scale, zero) = self._map(node), self.range(node)
        if not source.wide and (source.scale, source.zero) == (scale, zero):
            self._alias(node)
            return
        if node.input[0] != self.graph.input[0].name:
            raise BackendError(f"it has no kernel for quantizing {node.input[0]} alone")
        target = Map(channels=source.channels, height=source.height, width=source.width, scale=scale, zero=zero)
        self._step(Quantize(source=source, target=target, names=(node.name,)), node.output[0])

    def _over(self, source: Map, window: Window, node: onnx.NodeProto) -> tuple[int, int]:
        """Height and width of what a window makes of a map, which gets the border for it."""
        height, width = window.over(source)
        if min(height, width) < 1 or min(*window.padding, *window.stride, *window.dilation) < 0 or 0 in window.stride:
            raise BackendError(f"the window of {node.op_type} {node.output[0]} does not fit into its input")
        source.widen(window.padding)
        return height, width

    def _step(self, step: Step, *names: str) -> None:
        image = self.maps[self.graph.input[0].name]
        if step.source is image and (self.steps or not isinstance(step, Quantize)):
            raise BackendError(f"it has no kernel for {step.names[0]}: only the first step, which quantizes, may read "
                               "the image")  # fmt: skip
        self.steps.append(step)
        for name in names:
            self.maps[name] = step.target

    # int8 convolutions and products.

    def _conv(self, node: onnx.NodeProto) -> None:
        attributes, source = attributes_of(node), self._map(node)
        kernel = tuple(self._weight(node).shape[2:])
        top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
        if attributes.get("auto_pad", "NOTSET") != "NOTSET" or len(kernel) != 2:
            raise BackendError(f"it has no kernel for Conv {node.output[0]}: auto_pad, or not two dimensions")
        window = Window(
            kernel=kernel, stride=tuple(attributes.get("strides", (1, 1))), padding=(top, left, bottom, right),
            dilation=tuple(attributes.get("dilations", (1, 1))),
        )  # fmt: skip
        if node.input[1] not in self.weights:
            self._float_conv(node, source, window, attributes.get("group", 1))
        elif attributes.get("group", 1) != 1:
            raise BackendError(f"it has no kernel for a grouped int8 Conv ({node.output[0]})")
        else:
            self._convolution(node, source, self.weights[node.input[1]][0], window)

    def _weight(self, node: onnx.NodeProto) -> np.ndarray:
        name = node.input[1]
        if name not in self.weights and name not in self.constants:
            raise BackendError(f"it has no kernel for {node.op_type} {node.output[0]}: its weights are computed")
        return self.weights[name][0] if name in self.weights else self.constants[name]

    def _gemm(self, node: onnx.NodeProto) -> None:
        attributes, source = attributes_of(node), self._map(node)
        if node.input[1] not in self.weights:
            raise BackendError(f"it has no kernel for a float {node.op_type} ({node.output[0]})")
        weights = self._weight(node)
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            raise BackendError(f"it has no kernel for Gemm {node.output[0]} with factors or a transposed input")
        if not attributes.get("transB", 0):
            weights = weights.T
        shape = (source.channels, source.height, source.width)
        window = Window(kernel=shape[1:])
        self._convolution(node, source, weights.reshape(len(weights), *shape), window)

    def _convolution(self, node: onnx.NodeProto, source: Map, weights: np.ndarray, window: Window) -> None:
        if weights.dtype != np.int8:
            raise BackendError(f"the weights of {node.op_type} {node.output[0]} are not int8")
        if source.wide:
            raise BackendError(f"the input of {node.op_type} {node.output[0]} is not quantized")
        quantized = self.quantized(node.output[0])
        if quantized is None:
            raise BackendError(f"{node.op_type} {node.output[0]} is not quantized; export with --target cpu")
        (scale, zero), name = quantized
        if weights.shape[1] != source.channels:
            raise BackendError(
                f"{node.op_type} {node.output[0]} has {weights.shape[1]} channels, not {source.channels}"
            )
        height, width = self._over(source, window, node)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        target = Map(channels=len(weights), height=height, width=width, scale=scale, zero=zero)
        step = Convolution(
            source=source, target=target, names=(node.name,), weights=weights, window=window, scale=scale, zero=zero,
            weight_scales=np.broadcast_to(self.weights[node.input[1]][1], len(weights)),
            bias=self._bias(bias, len(weights)),
        )  # fmt: skip
        self.operators[node.op_type]["int8"] += 1
        readers = self.readers[name]
        if len(readers) == 1 and readers[0].op_type == "Add" and all(i not in self.constants for i in readers[0].input):
            self.waiting[name] = step
        elif not self._looked_up(step, name):
            target.wide = self.real(name)
            self._step(step, name)

    def _bias(self, name: str | None, channels: int) -> np.ndarray:
        if name is None:
            return np.zeros(channels, np.int32)
        if (
            name not in self.weights
            or self.weights[name][0].dtype != np.int32
            or self.weights[name][0].size != channels
        ):
            raise BackendError(f"the bias {name} is not int32, one a channel; export with --target cpu")
        return self.weights[name][0].reshape(-1)

    def _looked_up(self, step: Convolution, name: str) -> bool:
        """Fuse the activation that stands between this range and a later one, if one does, as a table."""
        region = self.activation(name)
        if not region:
            return False
        self.done |= {id(node) for node in region}
        back = self.readers[region[-1].output[0]]
        if len(back) != 1 or back[0].op_type != "DequantizeLinear" or self.real(back[0].output[0]):
            raise BackendError(f"it has no kernel for the activation of {step.names[0]}: its result stays float")
        step.table = self.table(region, name, (step.scale, step.zero))
        step.target.scale, step.target.zero = self.range(region[-1])
        for node in region:
            if node.op_type in ELEMENTWISE:
                self.operators[node.op_type]["int8"] += 1
                step.names += (node.name,)
        self.done.add(id(back[0]))
        self._step(step, back[0].output[0])
        return True

    def _add(self, node: onnx.NodeProto) -> None:
        convolutions = [name for name in node.input if name in self.waiting]
        if not convolutions:
            raise BackendError(f"it has no kernel for Add {node.output[0]}: neither addend is a convolution's result")
        *first, last = convolutions
        for name in first:  # both are: the first is stored, and added by the second
            self._step(self.waiting.pop(name), name)
        step = self.waiting.pop(last)
        other = self.maps.get(next((name for name in node.input if name != last), last))
        shape = (step.target.channels, step.target.height, step.target.width)
        if other is None or (other.channels, other.height, other.width) != shape:
            raise BackendError(f"it has no kernel for Add {node.output[0]}: its addends differ in shape")
        if other is self.maps[self.graph.input[0].name]:
            raise BackendError(f"it has no kernel for Add {node.output[0]}: it adds the image")
        step.added, step.names = other, (*step.names, node.name)
        self.operators["Add"]["fp32"] += 1
        self._store(step, node.output[0])

    def _store(self, step: Step, name: str) -> None:
        """Write a float result as it is, or in the range that it is quantized to."""
        quantized = self.quantized(name)
        if quantized is None:
            step.target.wide = True
            self._step(step, name)
        else:
            (step.target.scale, step.target.zero), after = quantized
            if self.real(after):
                raise BackendError(f"{name} is quantized for a node that reads floats")
            self._step(step, after)

    # What stays in float.

    def _float_conv(self, node: onnx.NodeProto, source: Map, window: Window, group: int) -> None:
        weights = self._weight(node)
        known = window.kernel[1] in (3, 5, 7) and window.stride in ((1, 1), (2, 2)) and window.dilation == (1, 1)
        if group != source.channels or len(weights) != group or not known or not source.wide:
            raise BackendError(f"it has no kernel for a float Conv of {group} groups ({node.output[0]})")
        readers = self.readers[node.output[0]]
        if len(readers) == 1 and readers[0].op_type == "Concat":
            self.kernels[node.output[0]] = node
        else:
            self._depthwise([node], node.output[0], window)

    def _concat(self, node: onnx.NodeProto) -> None:
        parts = [self.kernels[name] for name in node.input if name in self.kernels]
        alike = {(part.input[0], str(sorted(attributes_of(part).items()))) for part in parts}
        if len(parts) != len(node.input) or len(alike) != 1 or attributes_of(node)["axis"] != 1:
            raise BackendError(f"it has no kernel for Concat {node.output[0]}")
        attributes = attributes_of(parts[0])
        window = Window(kernel=tuple(self._weight(parts[0]).shape[2:]), stride=tuple(attributes.get("strides", (1, 1))),
                        padding=tuple(attributes.get("pads", (0, 0, 0, 0))))  # fmt: skip
        self._depthwise(parts, node.output[0], window)

    def _depthwise(self, nodes: list[Any], name: str, window: Window) -> None:
        source = self._map(nodes[0])
        if len(nodes) > 1 and source.channels % 16:
            raise BackendError(f"it has no kernel for joined convolutions of {source.channels} channels ({name})")
        height, width = self._over(source, window, nodes[0])
        target = Map(channels=source.channels * len(nodes), height=height, width=width, wide=True)
        none = np.zeros(source.channels, np.float32)
        step = Depthwise(
            source=source, target=target, names=tuple(node.name for node in nodes), window=window,
            weights=np.stack([self._weight(node)[:, 0] for node in nodes]),
            bias=np.stack([self.constants[node.input[2]] if len(node.input) > 2 else none for node in nodes]),
        )  # fmt: skip
        self.operators["Conv"]["fp32"] += len(nodes)
        self.summed[id(target)] = step
        self._step(step, name)

    def _norm(self, node: onnx.NodeProto) -> None:
        attributes, source = attributes_of(node), self._map(node)
        weight, bias = (self.constants.get(name) for name in (*node.input[1:], "", "")[:2])
        size = source.channels * source.height * source.width
        if weight is None or not source.wide or weight.size != size:
            raise BackendError(f"it has no kernel for LayerNormalization {node.output[0]} over a part of an image")
        shape = (source.channels, source.height, source.width)
        step = Norm(
            source=source, target=Map(channels=shape[0], height=shape[1], width=shape[2]), names=(node.name,),
            weight=weight.reshape(shape), bias=(np.zeros(size, np.float32) if bias is None else bias).reshape(shape),
            epsilon=attributes.get("epsilon", 1e-5), of=self.summed.get(id(source)),
        )  # fmt: skip
        self.operators[node.op_type]["fp32"] += 1
        self._store(step, node.output[0])

    def _maximum(self, node: onnx.NodeProto) -> None:
        attributes, source = attributes_of(node), self._map(node)
        padding = tuple(attributes.get("pads", (0, 0, 0, 0)))
        plain = attributes.get("ceil_mode", 0) == 0 and set(attributes.get("dilations", (1, 1))) == {1}
        plain = plain and attributes.get("auto_pad", "NOTSET") == "NOTSET"
        if source.wide or not plain or (any(padding) and source.zero):
            raise BackendError(f"it has no kernel for MaxPool {node.output[0]}: floats, ceil_mode, auto_pad, or "
                               "negative values")  # fmt: skip
        window = Window(kernel=tuple(attributes["kernel_shape"]), stride=tuple(attributes.get("strides", (1, 1))),
                        padding=padding)  # fmt: skip
        height, width = self._over(source, window, node)
        target = Map(channels=source.channels, height=height, width=width, scale=source.scale, zero=source.zero)
        step = Maximum(source=source, target=target, names=(node.name,), window=window)
        self.operators[node.op_type]["int8"] += 1
        self._step(step, node.output[0])

    def _axes(self, node: onnx.NodeProto) -> tuple[int, ...]:
        """Of a ReduceMean: an attribute below opset 18, an input from there on; none are all of them."""
        if len(node.input) > 1 and node.input[1]:
            return tuple(self.constants[node.input[1]].tolist())
        return tuple(attributes_of(node).get("axes", ()))

    def _mean(self, node: onnx.NodeProto) -> None:
        axes = (2, 3) if node.op_type == "GlobalAveragePool" else self._axes(node)
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            raise BackendError(f"it has no kernel for {node.op_type} {node.output[0]} over axes {axes}")
        source = self._map(node)
        step = Mean(source=source, target=Map(channels=source.channels), names=(node.name,))
        self.operators[node.op_type]["fp32" if source.wide else "int8"] += 1
        self._store(step, node.output[0])
