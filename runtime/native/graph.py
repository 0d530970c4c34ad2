"""An ONNX graph with Q/DQ pairs: what is constant, which range a value has, who reads it, and as what."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.backend import BackendError

if TYPE_CHECKING:
    import onnx

Range = tuple[float, int]  # scale and zero point

ELEMENTWISE = {
    "Abs", "Add", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "Min",
    "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh",
}  # fmt: skip
PAIR = {"QuantizeLinear", "DequantizeLinear"}
VIEWS = {"Reshape", "Flatten", "Squeeze"}
MEANS = {"GlobalAveragePool", "ReduceMean"}
WEIGHTED = {"Conv", "Gemm", "MatMul"}


class QuantizedGraph:
    """`weights` are the dequantized constants, as integers and scales; `done` the nodes that something has taken in."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.graph = model.graph
        self.opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
        self.results = {output.name for output in model.graph.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.constants = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
        self.weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.done: set[int] = set()  # by id
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers[name].append(node)
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
                self.done.add(id(node))
            elif node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                values, scale = self.constants[node.input[0]], self.constants[node.input[1]]
                zero = self.constants[node.input[2]] if len(node.input) > 2 else np.zeros(1, np.int8)
                if np.any(zero) and np.size(values) != 1:
                    raise BackendError(f"the weights {node.input[0]} have a zero point; it takes symmetric ones")
                if np.any(zero):
                    values = values.astype(np.int32) - zero.astype(np.int32)
                self.weights[node.output[0]] = values, scale.reshape(-1)
                self.done.add(id(node))

    def range(self, node: onnx.NodeProto) -> Range:
        """Scale and zero point of a QuantizeLinear to uint8."""
        scale = self.constants[node.input[1]]
        zero = self.constants[node.input[2]] if len(node.input) > 2 else np.uint8(0)
        if np.size(scale) != 1 or zero.dtype != np.uint8:
            raise BackendError(f"{node.output[0]} is not uint8 with one scale; export with --target cpu")
        return float(np.reshape(scale, -1)[0]), int(np.reshape(zero, -1)[0])

    def quantized(self, name: str) -> tuple[Range, str] | None:
        """The range a value is quantized to, if that alone is done with it, and the real value that comes of it."""
        passed: list[onnx.NodeProto] = []
        while True:
            readers = self.readers[name]
            if len(readers) != 1 or name in self.results or readers[0].op_type not in ("QuantizeLinear", *VIEWS):
                return None
            passed.append(readers[0])
            name = readers[0].output[0]
            if readers[0].op_type == "QuantizeLinear":
                break
        back = self.readers[name]
        if len(back) != 1 or back[0].op_type != "DequantizeLinear":
            raise BackendError(f"{name} is read as integers by a node that it has no kernel for")
        self.done |= {id(node) for node in (*passed, *back)}
        return self.range(passed[-1]), back[0].output[0]

    def real(self, name: str) -> bool:
        """Is a dequantized value read as a float, by a norm, a depthwise convolution or whoever runs the graph?

        Raises BackendError when it is also read as integers: a map is stored once.
        """
        kinds = {self._reads_floats(node) for node in self.readers[name]} | ({True} if name in self.results else set())
        if {True, False} <= kinds:
            raise BackendError(f"{name} is read both as integers and as floats")
        return True in kinds

    def _reads_floats(self, node: onnx.NodeProto) -> bool | None:
        """None: it reads either, as sums and means do."""
        if node.op_type in VIEWS:
            return self.real(node.output[0])
        if node.op_type in ("Add", *MEANS):
            return None
        weighted = node.op_type in WEIGHTED
        return node.input[1] not in self.weights if weighted else node.op_type not in ("MaxPool", "QuantizeLinear")

    def activation(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that make one quantized value of this value alone, to the first; empty where there are none."""
        region: list[onnx.NodeProto] = []
        values = {name}
        for node in self.graph.node:
            others = {i for i in node.input if i} - values
            if not values & set(node.input) or not all(np.size(self.constant(i)) == 1 for i in others):
                continue
            if node.op_type not in ELEMENTWISE | PAIR:
                continue
            region.append(node)
            values.add(node.output[0])
            inside = {id(one) for one in region}
            open_ends = {value for value in values if any(id(reader) not in inside for reader in self.readers[value])}
            computes = any(one.op_type in ELEMENTWISE for one in region)
            if computes and node.op_type == "QuantizeLinear" and open_ends == {node.output[0]}:
                return region
        return []

    def constant(self, name: str) -> np.ndarray:
        """A stored or dequantized constant; empty where the name is none."""
        if name in self.weights:
            values, scale = self.weights[name]
            return values.astype(np.float32) * scale if np.size(values) == 1 else values
        return self.constants.get(name, np.empty(0))

    def table(self, region: list[Any], start: str, before: Range) -> np.ndarray:
        """The activation's 256 results, by ONNX's own definition of its nodes."""
        from onnx import TensorProto, helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        made = {start, *(name for node in region for name in node.output)}
        read = {name for node in region for name in node.input if name} - made
        graph = helper.make_graph(
            region, "table", [helper.make_tensor_value_info(start, TensorProto.FLOAT, [256])],
            [helper.make_tensor_value_info(region[-1].output[0], TensorProto.UINT8, [256])],
            [numpy_helper.from_array(self.constant(name), name) for name in sorted(read)],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        values = (np.arange(256, dtype=np.float32) - before[1]) * np.float32(before[0])
        (results,) = ReferenceEvaluator(model).run(None, {start: values})
        return np.asarray(results, np.uint8)


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
