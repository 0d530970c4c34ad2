"""int8 matrix products with everything else in fp16: what a GPU with int8 and half units runs fastest.

The int8 file keeps its pairs; their scales, and all that computed in fp32, become half precision.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from export.precision import fp16, int8

if TYPE_CHECKING:
    from export.precision import Conversion


def convert(source: Path, destination: Path, conversion: Conversion) -> None:
    """Quantize as int8 does, then halve the rest."""
    with tempfile.TemporaryDirectory(dir=destination.parent) as folder:
        quantized = Path(folder) / "int8.onnx"
        int8.convert(source, quantized, conversion)
        fp16.convert(quantized, destination, conversion)
