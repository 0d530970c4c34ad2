"""Reading an ONNX file to look at it: safely, with local functions inlined, and with the shape of every tensor."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

from trainers.manifest import UserError

LIMIT = 2**31  # bytes: no protobuf is larger; larger models keep their weights in a file beside it
SMALL = 1 << 12  # bytes: what shape inference may want to read the values of
ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError, ValueError, RuntimeError)


def read(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The model in a file; without `weights`, external data are left on disk except small tensors such as shapes.

    Raises UserError when it is no ONNX model, is too large, or names data that are missing or outside its folder.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; list what there is with: ls {path.parent}")
    if path.stat().st_size >= LIMIT:
        raise UserError(f"{path}: larger than an ONNX file can be (2 GiB); give another file")
    try:
        model = onnx.load(path, load_external_data=False)
        for tensor in external_data_helper._get_all_tensors(model):
            external = external_data_helper.uses_external_data(tensor)
            if external and (weights or _bytes(tensor) <= SMALL):
                external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
    except (*ERRORS, OSError) as error:
        raise UserError(f"{path}: cannot be read as an ONNX model ({_reason(error)}); give another file") from None
    if not model.HasField("graph") or not model.graph.node:
        raise UserError(f"{path}: not an ONNX model (it has no graph); give another file")
    return model


def shaped(model: onnx.ModelProto, batch: int | None) -> tuple[onnx.ModelProto, int]:
    """A copy without large weights, with functions inlined, free first dimensions filled in and all shapes inferred.

    Returns it and its batch size: `batch`, else the file's own, else 1. Raises UserError where the file's batch size is
    fixed at another, or the graph contradicts itself.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if len(tensor.raw_data) > SMALL:
            tensor.ClearField("raw_data")  # shapes do not depend on it, and inference would copy it
    try:
        if copy.functions:
            copy = inliner.inline_local_functions(copy)
        size = _fill(copy.graph, batch)
        return onnx.shape_inference.infer_shapes(copy, data_prop=True), size
    except ERRORS as error:
        raise UserError(f"the shapes of this graph cannot be inferred ({_reason(error)}); export it again") from None


def inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What the caller feeds: older files also list their weights as inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def _fill(graph: onnx.GraphProto, batch: int | None) -> int:
    """Write the batch size into every free first dimension, and wherever the file calls a dimension the same."""
    first = [value.type.tensor_type.shape.dim[0] for value in inputs(graph) if value.type.tensor_type.shape.dim]
    fixed = next((dim.dim_value for dim in first if dim.HasField("dim_value")), None)
    if fixed is not None and batch not in (None, fixed):
        raise UserError(f"the file's batch size is fixed at {fixed}; leave --batch out, or export it with a free one")
    size = fixed or batch or 1
    free = [dim for dim in first if not dim.HasField("dim_value")]
    names = {dim.dim_param for dim in free if dim.dim_param}
    for value in (*graph.input, *graph.value_info, *graph.output):
        free += [dim for dim in value.type.tensor_type.shape.dim if dim.dim_param in names]
    for dim in free:
        dim.dim_value = size
    return size


def _bytes(tensor: onnx.TensorProto) -> int:
    length = next((entry.value for entry in tensor.external_data if entry.key == "length"), None)
    return int(length) if length else SMALL + 1


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
