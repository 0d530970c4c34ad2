"""Raw pixels: images as uint8, for files whose graph begins with the normalisation (`--input-dtype uint8`).

An image that was scaled is rounded to whole pixels, as an 8-bit resize would give it, and PyTorch answers the same
rounded image: so files of both input types are judged, and checked while they are timed, on equal terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainers.spec import Preprocess

if TYPE_CHECKING:
    import onnx

PREFIX = "pixels/"  # of the names of nodes and tensors that normalise
# Scaling by a ratio such as 64 to 224 leaves many values halfway between two pixels, but for float32's rounding, which
# another number of threads does in another order. With this added they all go the same way: up.
NUDGE = 1e-3


def to_pixels(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """The uint8 (N, C, H, W) pixels that normalised float32 images came from."""
    mean, std = _channels(preprocess)
    x = images * std  # one array, changed in place: images of 224 pixels outgrow the caches
    x += mean
    x *= 255
    x += np.float32(0.5 + NUDGE)
    np.floor(x, out=x)
    return np.clip(x, 0, 255, out=x).astype(np.uint8)


def normalise(pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """float32 (N, C, H, W): (pixels / 255 - mean) / std."""
    mean, std = _channels(preprocess)
    x = pixels.astype(np.float32)
    x /= np.float32(255)
    x -= mean
    x /= std
    return x


def take_pixels(path: Path, preprocess: Preprocess) -> None:
    """Give an ONNX file uint8 pixels for an input; it then normalises them itself, in one multiplication and sum."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    image = model.graph.input[0]
    mean, std = _channels(preprocess)
    numbers = {"factor": 1 / (255 * std), "offset": -mean / std}
    for name, value in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), PREFIX + name))
    steps = (
        helper.make_node("Cast", [image.name], [f"{PREFIX}float"], f"{PREFIX}cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{PREFIX}float", f"{PREFIX}factor"], [f"{PREFIX}scaled"], f"{PREFIX}scale"),
        helper.make_node("Add", [f"{PREFIX}scaled", f"{PREFIX}offset"], [f"{PREFIX}images"], f"{PREFIX}shift"),
    )
    _begin_with(model.graph, image.name, steps)
    image.type.tensor_type.elem_type = TensorProto.UINT8
    onnx.save(model, path)


def normalising(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes that `take_pixels` has put before the model; they stay in fp32 in every precision."""
    return [node.name for node in graph.node if node.name.startswith(PREFIX)]


def _begin_with(graph: onnx.GraphProto, image: str, steps: tuple[onnx.NodeProto, ...]) -> None:
    for node in graph.node:
        node.input[:] = [steps[-1].output[0] if name == image else name for name in node.input]
    nodes = [*steps, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _channels(preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation as float32 (1, C, 1, 1)."""
    mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return mean, std
