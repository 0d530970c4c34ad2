"""int8-dynamic: int8 weights; the range of each activation is measured while it runs, so no images are needed."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.precision import Conversion


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Write the dynamically quantized form of an fp32 ONNX file."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from export.precision.int8 import without_integer_kernel

    model = onnx.load(source)
    # Shapes recorded by the dynamo exporter clash with those that the quantizer infers.
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        bare = Path(folder) / "bare.onnx"
        onnx.save(model, bare)
        logging.disable(logging.WARNING)  # it asks for a pre-processing that trips over the same shapes
        try:
            quantize_dynamic(
                str(bare),
                str(destination),
                weight_type=QuantType.QUInt8,  # ONNX Runtime's ConvInteger takes unsigned weights only
                nodes_to_exclude=without_integer_kernel(model.graph),
            )
        finally:
            logging.disable(logging.NOTSET)
