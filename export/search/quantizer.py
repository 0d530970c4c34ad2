"""Quantizer: the int8 forms of one fp32 file that differ in which layers stay in float, calibrated once."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer, update_opset_version

from export.precision import int8
from export.precision.centre import centre
from export.search.names import counterparts

if TYPE_CHECKING:
    from export.precision import Conversion


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node that can be quantized or left in float."""

    name: str  # in the quantized file, whatever is chosen for it
    source: str | None  # in the fp32 file; None for a node that the preparation has made
    operator: str
    weight: str  # the name of its weight; empty for a layer without one


class Quantizer:
    """Makes int8 forms of a graph in memory, the same that `int8.convert` writes for the same `kept`.

    Raises ValueError and RuntimeError with ONNX Runtime's reason where it cannot take the graph.
    """

    def __init__(self, source: Path, conversion: Conversion) -> None:
        assert conversion.target is not None, "int8 is placed for a target"
        with tempfile.TemporaryDirectory() as folder:
            prepared = int8.prepare(source, Path(folder))
            model = load_model_with_shape_infer(prepared)
            self.settings, self.excluded = int8.placement(model.graph, conversion.target)
            self.ranges = int8.observe(prepared, self.settings, self.excluded, conversion)
        self.centred = int8.is_symmetric(conversion.target)
        self.prepared = update_opset_version(model, QuantType.QInt8, self.settings["activation_type"])
        self.layers = self._layers(onnx.load(source, load_external_data=False).graph)

    def model(self, kept: Collection[str]) -> onnx.ModelProto:
        """The graph in int8 but for the nodes `kept`."""
        model, without = copy.deepcopy(self.prepared), [*self.excluded, *kept]
        operators = self.settings["op_types_to_quantize"]
        ranges = centre(model, self.ranges, operators, without) if self.centred else self.ranges
        quantizer = QDQQuantizer(
            model,
            True,
            False,
            QuantType.QInt8,
            self.settings["activation_type"],
            int8.as_data(ranges),
            [],
            without,
            operators,
            self.settings["extra_options"],
        )
        made: onnx.ModelProto = quantizer.quantize_model()
        return made

    def alone(self, layer: Layer) -> onnx.ModelProto:
        """The graph in float but for this layer, and the operators after it that pass its integers on."""
        return self.model({other.name for other in self.layers} - {layer.name})

    def _layers(self, source: onnx.GraphProto) -> tuple[Layer, ...]:
        """The nodes that start quantization. Others, such as ReLU or pooling, only follow the layer before them."""
        nodes = [node for node in self.prepared.graph.node if node.op_type in self.settings["op_types_to_quantize"]]
        free = [node for node in nodes if node.name not in self.excluded]
        first = {node.op_type: node.name for node in reversed(free)}
        starting = {operator for operator, name in first.items() if self._starts(name)}
        origins = counterparts(self.prepared.graph, source)
        stored = {tensor.name for tensor in self.prepared.graph.initializer}
        return tuple(
            Layer(
                name=node.name,
                source=origins[node.name],
                operator=node.op_type,
                weight=next((name for name in node.input if name in stored), ""),
            )
            for node in free
            if node.op_type in starting
        )

    def _starts(self, name: str) -> bool:
        """Whether this node is quantized where nothing before it is."""
        others = [node.name for node in self.prepared.graph.node if node.name != name]
        return any(node.op_type == "QuantizeLinear" for node in self.model(others).graph.node)
