"""int8-dynamic: int8 weights; the range of each activation is measured while it runs, so no images are needed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.precision import Conversion


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Write the dynamically quantized form of an fp32 ONNX file."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        # ONNX Runtime's ConvInteger takes unsigned weights only.
        quantize_dynamic(str(prepared), str(destination), weight_type=QuantType.QUInt8)
