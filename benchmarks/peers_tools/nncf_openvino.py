"""NNCF's post-training quantization of an OpenVINO model, with its defaults. Arguments: FP32 IMAGES.npy FOLDER"""

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino

images = np.load(sys.argv[2], mmap_mode="r")
model = openvino.Core().read_model(sys.argv[1])
dataset = nncf.Dataset([np.asarray(images[index : index + 1]) for index in range(len(images))])
openvino.save_model(nncf.quantize(model, dataset), Path(sys.argv[3]) / "model.xml")
