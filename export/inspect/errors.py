"""What quantization does to each activation: two files of one model on the same images, tensor by tensor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from export.engines import session
from export.inspect.model import read
from export.precision.bf16 import emulated


def measure(before: Path, after: Path, images: Iterable[np.ndarray], precision: str) -> dict[str, float]:
    """The relative error ||after - before|| / ||before|| of every activation that has the same name in both files.

    `images` are batches (N, C, H, W) as the files take them, small ones: all activations of one are held at once.
    `precision` is that of the second file; bf16, which ONNX Runtime has no kernels for, is emulated. Activations whose
    shapes differ are left out. Where a quantizer has made a Relu part of the layer before it, what that Relu would have
    cut off does not count.
    """
    models = read(before), emulated(read(after)) if precision == "bf16" else read(after)
    clipped, known = _clipped(*models), set(_activations(models[0]))
    shared = [name for name in _activations(models[1]) if name in known]
    sessions = [_exposing(model, shared, kind) for model, kind in zip(models, ("fp32", precision), strict=True)]
    squares = np.zeros((2, len(shared)))  # of the differences, of the values
    for batch in images:
        expected, answers = (one.run(shared, {one.get_inputs()[0].name: batch}) for one in sessions)
        for place, (name, x, y) in enumerate(zip(shared, expected, answers, strict=True)):
            y = np.maximum(y, 0) if name in clipped else y
            squares[0, place] += np.square(y - x).sum(dtype=np.float64) if x.shape == y.shape else np.nan
            squares[1, place] += np.square(x).sum(dtype=np.float64)
    errors = np.sqrt(squares[0] / np.maximum(squares[1], 1e-30))
    return {name: float(error) for name, error in zip(shared, errors, strict=True) if np.isfinite(error)}


def _activations(model: onnx.ModelProto) -> list[str]:
    """The floating-point results of nodes that read more than stored tensors, in the file's order."""
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    known = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if all(name in known for name in node.input):
            known.update(node.output)
        elif node.op_type != "DequantizeLinear":
            found += [name for name in node.output if kinds.get(name) == TensorProto.FLOAT]
    return found


def _clipped(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """What a Relu has made in the one file, and the layer before it in the other: there quantization clips it."""
    relus = [{name for node in model.graph.node if node.op_type == "Relu" for name in node.output}
             for model in (before, after)]  # fmt: skip
    return relus[0] - relus[1]


def _exposing(model: onnx.ModelProto, names: list[str], precision: str) -> onnxruntime.InferenceSession:
    """A session that also returns these activations."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    there = {value.name for value in copy.graph.output}
    copy.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in there
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "exposed.onnx"
        onnx.save(copy, path)
        return session(path, precision)
