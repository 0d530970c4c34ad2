"""Olive's OnnxStaticQuantization for the CPU, with its defaults. Arguments: FP32 IMAGES.npy FOLDER"""

import sys
from pathlib import Path

import numpy as np
import onnx
from olive import run
from olive.data.registry import Registry

source, images, folder = sys.argv[1], np.load(sys.argv[2], mmap_mode="r"), Path(sys.argv[3])
name = onnx.load(source).graph.input[0].name


class Images:
    def __len__(self) -> int:
        return len(images)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        return {name: np.asarray(images[index])}, 0


@Registry.register_dataset()
def calibration(**_: object) -> Images:
    return Images()


data = {"name": "calibration", "load_dataset_config": {"type": "calibration"},
        "dataloader_config": {"batch_size": 1}}  # fmt: skip
run({
    "input_model": {"type": "ONNXModel", "model_path": source},
    "systems": {"local": {"type": "LocalSystem", "accelerators": [
        {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
    "data_configs": [data],
    "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
    "host": "local", "target": "local", "output_dir": str(folder), "cache_dir": str(folder / "cache"),
})  # fmt: skip
made = next(path for path in sorted(folder.rglob("*.onnx")) if "cache" not in path.parts)
if made != folder / "model.onnx":
    made.rename(folder / "model.onnx")
