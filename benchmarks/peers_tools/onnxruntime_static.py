"""ONNX Runtime's quantize_static with its defaults, after its own preprocessing. Arguments: FP32 IMAGES.npy FOLDER"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

source, images, folder = sys.argv[1], np.load(sys.argv[2], mmap_mode="r"), Path(sys.argv[3])
name = onnx.load(source).graph.input[0].name


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = iter(range(len(images)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        index = next(self.left, None)
        return None if index is None else {name: np.asarray(images[index : index + 1])}


quant_pre_process(source, folder / "prepared.onnx")
quantize_static(folder / "prepared.onnx", folder / "model.onnx", Reader())
