"""Optimum's ORTQuantizer, static, for AVX512-VNNI, as its documentation shows. Arguments: FP32 IMAGES.npy FOLDER"""

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from datasets import Dataset
from optimum.onnxruntime import ORTQuantizer
from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

source, images, folder = Path(sys.argv[1]), np.load(sys.argv[2], mmap_mode="r"), Path(sys.argv[3])
name = onnx.load(source).graph.input[0].name


def rows():
    for image in images:
        yield {name: np.asarray(image)}


data = Dataset.from_generator(rows, cache_dir=str(folder / "cache")).with_format("numpy")
quantizer = ORTQuantizer(source)
wanted = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=False)
ranges = quantizer.fit(dataset=data, calibration_config=AutoCalibrationConfig.minmax(data),
                       operators_to_quantize=wanted.operators_to_quantize,
                       onnx_augmented_model_name=str(folder / "augmented.onnx"))  # fmt: skip
quantizer.quantize(save_dir=folder / "made", calibration_tensors_range=ranges, quantization_config=wanted)
shutil.move(next((folder / "made").glob("*.onnx")), folder / "model.onnx")
