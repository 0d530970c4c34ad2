"""ModelOpt's ONNX quantization to int8 with its defaults. Arguments: FP32 IMAGES.npy FOLDER"""

import sys
from pathlib import Path

import numpy as np
from modelopt.onnx.quantization import quantize

quantize(sys.argv[1], quantize_mode="int8", calibration_data=np.load(sys.argv[2]), calibration_eps=["cpu"],
         output_path=str(Path(sys.argv[3]) / "model.onnx"))  # fmt: skip
