"""fp16: weights and arithmetic in half precision; inputs and outputs stay float32."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from export.pixels import normalising

if TYPE_CHECKING:
    from export.precision import Conversion


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Write the fp16 form of an fp32 ONNX file."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(source)
    # Recorded shapes carry the old types, and the converter trusts them over the graph.
    del model.graph.value_info[:]
    with warnings.catch_warnings():
        # Weights below the smallest half are rounded to it, and the converter says so tensor by tensor.
        warnings.simplefilter("ignore", UserWarning)
        halved = convert_float_to_float16(model, keep_io_types=True, node_block_list=normalising(model.graph))
    onnx.save(sort(halved), destination)


def sort(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put the graph's nodes in topological order: the converter appends its casts at the end."""
    import onnx_ir

    graph = onnx_ir.from_proto(model)
    graph.graph.sort()
    return onnx_ir.to_proto(graph)


if TYPE_CHECKING:
    import onnx
