"""Files that nobody vouches for: read in a worker, for reading them can already kill or hang a process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.manifest import UserError

if TYPE_CHECKING:
    import onnx

AGAIN = "export it again, or give another file"


def inspect(path: Path) -> dict[str, Any]:
    """The single input of an ONNX file: its name, type and shape (None where a dimension is free).

    Raises UserError when the file is no ONNX model, has not exactly one image input, or names data outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path}: not a readable ONNX model ({' '.join(str(error).split())}); {AGAIN}") from None
    if not model.HasField("graph") or not model.graph.output:
        raise UserError(f"{path}: not an ONNX model (it has no graph); {AGAIN}")
    _stays_home(model, path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"{path} has {len(inputs)} inputs; models with one image input can be measured")
    tensor = inputs[0].type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    if not shape or any(size is None for size in shape[1:]):
        raise UserError(f"{path}: its input's shape is {shape}; fix all but the batch size when you export it")
    return {"name": inputs[0].name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type), "shape": shape}


def _stays_home(model: onnx.ModelProto, path: Path) -> None:
    """External data may lie only in the model's own folder or below."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    home = path.resolve().parent
    for tensor in _get_all_tensors(model):
        if not uses_external_data(tensor):
            continue
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        if not (home / location).resolve().is_relative_to(home):
            raise UserError(f"{path}: its weights lie outside its folder ({location}); {AGAIN}")
