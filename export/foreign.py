"""ONNX files that nobody vouches for: read in a worker first, for reading them can already kill or hang a process."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainers.manifest import Struct, UserError, sha256
from trainers.spec import Preprocess

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import onnxruntime

AGAIN = "export it again, or give another file"
READ_S = 60.0  # reading and three runs of a foreign file take longer only when it means harm
OWN_MEMORY = 4_000_000_000  # bytes that an engine costs by itself
LARGEST = 2_000_000_000  # bytes of weights that one ONNX file can hold
QUANTIZED = ("QuantizeLinear", "QLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger")  # how operators begin
LOWEST_OPSET = 13  # quantization per channel needs it
WEIGHTS_ARE_NO_INPUTS = 4  # the first version of ONNX's file format in which they need not be


class ModelFile(Struct, frozen=True, kw_only=True):
    """An fp32 image classifier as an ONNX file. `batch` is None where it is free."""

    file: str
    batch: int | None
    input_shape: tuple[int, int, int]  # channels, height, width
    num_classes: int
    opset: int
    parameters: int
    preprocess: Preprocess | None  # these two as its metadata say, if it was exported here
    classes: tuple[str, ...] | None
    data: tuple[str, ...] = ()  # the files beside it that hold weights

    @property
    def path(self) -> Path:
        return Path(self.file)

    @property
    def data_sha256(self) -> str | None:
        """A digest of the weights that lie beside the file; None where there are none."""
        digest = hashlib.sha256("".join(sha256(self.path.parent / name) for name in self.data).encode())
        return digest.hexdigest() if self.data else None


def read(path: Path, shape: tuple[int, int, int] | None) -> ModelFile:
    """What the file is, found out in a process with bounded time and memory.

    `shape` (channels, height, width) fixes dimensions that the file leaves free. Raises UserError when it is no model
    that can be exported from.
    """
    from trainers.process import Worker, WorkerError

    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give the path of an ONNX model")
    memory = OWN_MEMORY + 10 * path.stat().st_size
    with contextlib.closing(Worker("export.reader", threads=1, memory_bytes=memory)) as worker:
        try:
            found = worker.ask("describe", path=str(path), shape=shape, timeout=READ_S)
        except WorkerError as error:
            text = str(error)
            raise UserError(
                text if text.startswith(str(path)) else f"{path}: cannot be used as an ONNX model ({text}); {AGAIN}"
            ) from None
    return msgspec.convert(found, ModelFile)


def inspect(path: Path) -> dict[str, Any]:
    """The single input of an ONNX file: its name, type and shape (None where a dimension is free).

    Raises UserError when the file is no ONNX model, has not exactly one image input, or names data outside its folder.
    """
    found = _input(_load(path), path)
    if not found["shape"] or any(size is None for size in found["shape"][1:]):
        raise UserError(f"{path}: its input's shape is {found['shape']}; fix all but the batch size when you export it")
    return found


def describe(path: Path, shape: tuple[int, ...] | None) -> ModelFile:
    """`read` without its own process. Raises UserError, or whatever an engine raises."""
    model = _load(path)
    batch, image = _image(_input(model, path), shape, path)
    _refuse_lower_precision(model, path)
    parameters, size = _weights(model)
    if size > LARGEST:
        raise UserError(f"{path}: its weights are {size / 1e9:.1f} GB, more than one ONNX file can hold; {AGAIN}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return ModelFile(
        file=str(path), batch=batch, input_shape=image, parameters=parameters, num_classes=_run(path, batch, image),
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1),
        preprocess=_said(metadata.get("preprocess"), Preprocess),
        classes=_said(metadata.get("classes"), tuple[str, ...]), data=tuple(sorted(_locations(model))),
    )  # fmt: skip


def copy(file: ModelFile, destination: Path) -> None:
    """Write the model as one file of the kind that the exporters write: without external data or local functions, every
    node with a name, the image's size fixed. Raises UserError."""
    import onnx

    model = _spelt_alike(onnx.load(file.path))
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    for dim, size in zip(inputs[0].type.tensor_type.shape.dim[1:], file.input_shape, strict=True):
        dim.dim_value = size
    del model.graph.input[:]  # old files name their weights as inputs too, which no optimiser can then fold
    model.graph.input.extend(inputs)
    logits = model.graph.output[0].type.tensor_type
    if not logits.HasField("shape"):  # which the format asks for, and engines do not
        logits.shape.dim.add().CopyFrom(inputs[0].type.tensor_type.shape.dim[0])
        logits.shape.dim.add().dim_value = file.num_classes
    model.ir_version = max(model.ir_version, WEIGHTS_ARE_NO_INPUTS)
    if file.opset < LOWEST_OPSET:
        from onnx import version_converter

        try:
            model = version_converter.convert_version(model, LOWEST_OPSET)
        except (RuntimeError, version_converter.ConvertError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{file.path}: cannot be raised from opset {file.opset} to {LOWEST_OPSET}: {reason}; "
                            "export it again at a newer one") from None  # fmt: skip
    onnx.save(model, destination)


def _spelt_alike(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its local functions inlined and ONNX's own domain by its short name; unnamed nodes get names, by
    which quantizers choose."""
    from onnx import inliner

    if model.functions:
        model = inliner.inline_local_functions(model)
    for entry in (*model.opset_import, *model.graph.node):
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    for node in model.graph.node:
        node.name = node.name or f"{node.op_type}/{node.output[0]}"
    return model


def _load(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path}: not a readable ONNX model ({' '.join(str(error).split())}); {AGAIN}") from None
    if not model.HasField("graph") or not model.graph.output:
        raise UserError(f"{path}: not an ONNX model (it has no graph); {AGAIN}")
    _stays_home(model, path)
    return model


def _input(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UserError(f"{path} has {len(inputs)} inputs; give a model with one image input")
    tensor = inputs[0].type.tensor_type
    shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
    return {"name": inputs[0].name, "dtype": onnx.TensorProto.DataType.Name(tensor.elem_type), "shape": shape}


def _image(found: dict[str, Any], asked: tuple[int, ...] | None, path: Path) -> tuple[int | None, tuple[int, int, int]]:
    """The batch or None, and (channels, height, width), free sizes as asked for. Raises UserError on no image."""
    has = found["shape"]
    if found["dtype"] != "FLOAT" or len(has) != 4:
        kind = f"{found['dtype'].lower()} {_text(has) or 'of no known shape'}"
        raise UserError(f"{path}: its input is {kind}; give a model of float images (N, C, H, W)")
    if asked is None and None in has[1:]:
        raise UserError(f"{path}: its input is {_text(has)}; say which size to fix with --input CxHxW")
    if asked is not None and any(size not in (None, wanted) for size, wanted in zip(has[1:], asked, strict=True)):
        raise UserError(f"{path}: its input is {_text(has)}, not {_text(asked)}; leave --input out")
    channels, height, width = asked or has[1:]
    return has[0], (channels, height, width)


def _refuse_lower_precision(model: onnx.ModelProto, path: Path) -> None:
    from onnx import TensorProto

    quantized = next((node.op_type for node in model.graph.node if node.op_type.startswith(QUANTIZED)), None)
    if quantized is not None:
        raise UserError(f"{path}: already quantized (it has {quantized} nodes); give the fp32 file it was made from")
    if any(tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16) for tensor in model.graph.initializer):
        raise UserError(f"{path}: its weights are in half precision; give the fp32 file it was made from")


def _weights(model: onnx.ModelProto) -> tuple[int, int]:
    """How many numbers the graph's float weights hold, and their bytes."""
    import math

    from onnx import TensorProto

    count = sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
    return count, 4 * count


def _run(path: Path, batch: int | None, image: tuple[int, int, int]) -> int:
    """Run the file on random images, alone and together; returns its number of logits. Raises UserError."""
    import numpy as np

    from export.parity import session

    loaded = session(path)
    draw = np.random.default_rng(0).standard_normal
    logits = [_logits(loaded, draw((size, *image), np.float32), path) for size in ((batch,) if batch else (1, 3))]
    first = np.concatenate(logits)
    if not np.isfinite(first).all():
        raise UserError(f"{path}: gives NaN or infinity on random images; give another file")
    if len(first) > 1 and np.ptp(first, axis=0).max() <= 1e-6 * max(float(first.std()), 1e-30):
        raise UserError(f"{path}: gives the same logits for different images; give a model that looks at them")
    return first.shape[1]


def _logits(loaded: onnxruntime.InferenceSession, images: np.ndarray, path: Path) -> np.ndarray:
    outputs = loaded.run(None, {loaded.get_inputs()[0].name: images})
    if len(outputs) != 1:
        raise UserError(f"{path} has {len(outputs)} outputs; give a model whose one output is the logits")
    logits: np.ndarray = outputs[0]
    if logits.ndim != 2 or len(logits) != len(images) or logits.dtype != "float32":
        raise UserError(
            f"{path}: gives {logits.dtype} {_text(logits.shape)} for {len(images)} images; give a model with one row "
            "of logits an image"
        )
    return logits


def _said(text: str | None, kind: Any) -> Any:
    """A value of the file's metadata; None where it is not there or not of that kind."""
    try:
        return msgspec.convert(json.loads(text or "null"), kind)
    except (msgspec.ValidationError, ValueError):
        return None


def _text(shape: Any) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _locations(model: onnx.ModelProto) -> set[str]:
    """Of external data, from the model's folder."""
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    return {entry.value for tensor in _get_all_tensors(model) if uses_external_data(tensor)
            for entry in tensor.external_data if entry.key == "location"}  # fmt: skip


def _stays_home(model: onnx.ModelProto, path: Path) -> None:
    """External data may lie only in the model's own folder or below."""
    home = path.resolve().parent
    for location in sorted(_locations(model)):
        if not (home / location).resolve().is_relative_to(home):
            raise UserError(f"{path}: its weights lie outside its folder ({location}); {AGAIN}")
