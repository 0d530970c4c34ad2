"""Run the model that lies beside this file: python run.py PICTURE… [--top 5]

model.json says which file it is, how its engine is set, how a picture becomes its input, and what its classes are.
Needs what requirements.txt names, and nothing else.
"""

import argparse
import ctypes
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
LIBRARY, PROGRAM = "native.so", "native.npz"  # where the engine is the one that comes along
Infer = Callable[[np.ndarray], np.ndarray]  # input of the model's shape and type to logits [batch, classes]


def load(model: dict[str, Any]) -> Infer:
    """The model in its engine. Exits in one line when a file is not the one that was measured."""
    for name, digest in model["sha256"].items():
        if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
            sys.exit(f"{name} is not the file that was measured (sha256 differs); copy the folder again")
    return ENGINES[model["engine"]](str(HERE / model["file"]), model["batch"], model["settings"])


def onnxruntime(path: str, batch: int, settings: dict[str, Any]) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = settings["threads"], 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, settings["graph"])
    options.add_session_config_entry("session.intra_op.allow_spinning", settings["spinning"])
    provider = settings["providers"][0][0]
    if provider == "CUDAExecutionProvider":
        onnxruntime.preload_dlls()  # of CUDA and cuDNN, where pip has installed them
    session = onnxruntime.InferenceSession(
        path, options, providers=list(map(tuple, settings["providers"])), disabled_optimizers=settings["disabled"]
    )
    if provider not in session.get_providers():
        sys.exit(f"{provider}, which was measured, does not load here; see what its session said above")
    name = session.get_inputs()[0].name
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
    kind = kinds[session.get_inputs()[0].type]
    return lambda images: np.asarray(session.run(None, {name: images.astype(kind)})[0], np.float32)


def openvino(path: str, batch: int, settings: dict[str, Any]) -> Infer:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    shape = model.input(0).get_partial_shape()
    shape[0] = batch
    model.reshape(shape)
    compiled = core.compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    kind = compiled.input(0).get_element_type().to_dtype()
    return lambda images: np.array(request.infer([images.astype(kind)])[compiled.output(0)], np.float32)


def native(path: str, batch: int, settings: dict[str, Any]) -> Infer:
    """The compiled kernels and the program that lie here; the program's pointers become addresses."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if sys.platform == "linux" else []
    if missing := [flag for flag in settings["needs"] if flag not in flags]:
        sys.exit(f"the kernels need Linux and a processor with {', '.join(missing)}; recommend another form there")
    kernels = ctypes.CDLL(str(HERE / LIBRARY))
    kernels.native_open.restype = ctypes.c_void_p
    kernels.native_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    stored = np.load(HERE / PROGRAM)
    room = np.empty(stored["memory"].size + 64, np.uint8)
    memory = room[-room.ctypes.data % 64 :][: stored["memory"].size]
    memory[:], ops = stored["memory"], stored["ops"].copy()
    for offset in settings["pointers"]:
        pointers = ops[:, offset : offset + 8].view(np.uint64)
        pointers[pointers > 0] += np.uint64(memory.ctypes.data)
    place, channels, row = settings["logits"]
    logits = memory[place : place + 4 * row * batch].view(np.float32).reshape(batch, row)[:, :channels]
    team, source = kernels.native_open(settings["threads"]), settings["input"]
    if not team:
        sys.exit(f"the system gives no {settings['threads']} threads")

    def infer(images: np.ndarray) -> np.ndarray:
        read = np.ascontiguousarray(images, np.float32)
        ops[0, source : source + 8].view(np.uint64)[0] = read.ctypes.data
        kernels.native_run(team, ops.ctypes.data, len(ops), None)
        return logits.copy()

    return infer


ENGINES = {"onnxruntime": onnxruntime, "openvino": openvino, "native": native}


def prepared(path: Path, prepare: dict[str, Any]) -> np.ndarray:
    """A picture as the model's input [C, H, W]: scaled by its shorter side, cut at the centre, normalised."""
    with Image.open(path) as opened:
        picture: Image.Image = opened
        if picture.mode.startswith("I"):
            picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
        picture = (picture.convert("RGBA") if picture.mode == "P" else picture).convert(prepare["mode"])
    height, width = prepare["scaled"]
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    rows, columns = prepare["size"]
    top, left = (height - rows) // 2, (width - columns) // 2
    pixels = np.asarray(picture).reshape(height, width, -1)[top : top + rows, left : left + columns].transpose(2, 0, 1)
    if prepare["raw"]:
        return pixels
    mean, std = (np.array(prepare[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    parser.add_argument("--top", type=int, default=5, help="classes to show (default: 5)")
    arguments = parser.parse_args()
    model = json.loads((HERE / "model.json").read_text(encoding="utf-8"))
    infer = load(model)
    for path in arguments.pictures:
        try:
            image = prepared(path, model["prepare"])
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            sys.exit(f"{path}: {error}")
        images = np.repeat(image[None], model["batch"], axis=0)
        began = time.perf_counter()
        logits = infer(images)[0].astype(np.float64)
        spent = time.perf_counter() - began
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        best = np.argsort(-shares, kind="stable")[: arguments.top]
        named = ", ".join(f"{model['classes'][index]} {shares[index]:.1%}" for index in best)
        print(f"{path}: {named} ({1e3 * spent:.1f} ms)")


if __name__ == "__main__":
    main()
