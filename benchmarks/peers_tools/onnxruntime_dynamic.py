"""ONNX Runtime's quantize_dynamic with its defaults, after its own preprocessing. Arguments: FP32 IMAGES.npy FOLDER"""

import sys
from pathlib import Path

from onnxruntime.quantization import quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

folder = Path(sys.argv[3])
quant_pre_process(sys.argv[1], folder / "prepared.onnx")
quantize_dynamic(folder / "prepared.onnx", folder / "model.onnx")
